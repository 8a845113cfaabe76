"""The spec: what a value is, without the bytes of its tensors.

A spec is a run of msgpack atoms (nil, bool, int, float, str, bin), one after the other; no
msgpack array or map occurs, so reading one allocates no more than its own length, and hostile
nesting is met by our own depth count. The first atom is the int 2, the format's version. Then
comes one node. A node is an atom that stands for itself (nil, bool, int, float, bin), or a tag
(a str) with what follows it:

    "s" str                      a string of at most 1 KiB, or a dict's key
    "S" n                        a string: the next buffer is its n bytes of UTF-8
    "b" n                        bytes: the next buffer, of n bytes
    "i" bin                      an int beyond 64 bits: two's complement, little-endian
    "c" float float              a complex number: real, imaginary
    "[" n, n nodes               a list
    "(" n, n nodes               a tuple
    "[#" dtype 1 n               a list of n numbers of one type: the next buffer is their array
    "(#" dtype 1 n               the same as a tuple
    "{" n, n times key, node     a dict; a key is nil, bool, int, float, bin, "s", "i" or a "("
                                 of these
    "n" n, n nodes               a NestedTensor; the nodes are tensors
    "o" str n, n times str, node a value of a host's own type, by its name, and its n fields, by
                                 theirs: see :mod:`zbus.values.containers`
    "t" dtype d, d sizes         a torch tensor of d dimensions: the next buffer is its elements
                                 in C order, little-endian
    "q" dtype d, d sizes         an image [B, H, W, C] or mask [B, H, W] or [H, W] as 8 bits: the
                                 next buffer is one byte an element, q; the element is q / 255
                                 in float32, then the dtype
    "p" dtype d, d sizes, bin    the same, of other numbers: the bin is an array of up to 256 of the
                                 dtype, and the next buffer one byte an element, its place there
    "a" dtype d, d sizes         a numpy array; else as "t"
    "g" dtype d, d sizes         a small tensor in the pool of its dtype: see below
    "=" n                        another one like the n-th "g" of the spec, counted from 0

The small tensors of one dtype lie in one buffer, its pool, in the order of their nodes. The pools
come before all other buffers, in the order in which their dtypes first occur.

A buffer of 0 bytes is not there. Strings are UTF-8 in which lone surrogates are let through.
For example the value ``{"samples": tensor}`` of shape [1, 4] and dtype float32 is::

    02  a1 "{"  01  a1 "s"  a7 "samples"  a1 "t"  a7 "float32"  02  01  04
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgpack

from ..errors import RemoteProtocolError

VERSION = 2
MAX_SPEC = 16 * 1024 * 1024  # bytes
MAX_DEPTH = 32
MAX_ITEMS = 65536  # nodes, keys included
MAX_NUMBERS = 2**24  # in lists of numbers, all together
MAX_POOLED = 16 * 1024  # bytes of a tensor that is one of many: copying it is cheaper than a buffer
MAX_SHORT = 1024  # bytes of a string that stays in the spec
MAX_INT_BITS = 4096
MAX_DIMS = 32
MAX_ELEMENTS = 2**46  # also of the sizes with each 0 taken as 1: torch computes strides of them
MAX_TOTAL = 2**46  # bytes


def write(atoms: list[object]) -> bytes:
    """The atoms as msgpack, one after the other."""
    packed: bytes = msgpack.packb(atoms, unicode_errors="surrogatepass")
    head = 1 if len(atoms) < 16 else 3 if len(atoms) < 65536 else 5  # says that it is an array
    return packed[head:]


_ATOMS = frozenset((type(None), bool, int, float, str, bytes))
_AT_ONCE = 4096  # atoms read ahead of what is looked at


class Atoms:
    """Reads the atoms of a spec.

    Every method raises RemoteProtocolError where the bytes are not what it is to read.
    """

    def __init__(self, spec: bytes) -> None:
        if len(spec) > MAX_SPEC:
            raise bad(f"is {len(spec)} bytes long, above {MAX_SPEC}")
        self._size = len(spec)
        self._unpacker = msgpack.Unpacker(
            raw=False,
            unicode_errors="surrogatepass",
            max_buffer_size=max(1, self._size),
            max_array_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
        self._unpacker.feed(spec)
        self._is_whole = False
        self._left = self._stream()
        self.any: Callable[[], object] = self._left.__next__
        """The next atom."""

    def _stream(self) -> Iterator[object]:
        while True:
            try:
                atoms = list(islice(self._unpacker, _AT_ONCE))
            except Exception as error:  # msgpack's own kinds, ValueError, UnicodeDecodeError, ...
                raise bad(f"is not msgpack ({type(error).__name__})") from error
            for kind in set(map(type, atoms)) - _ATOMS:
                raise bad(f"holds a msgpack {kind.__name__}")
            if atoms:
                yield from atoms
            elif self._is_whole:
                return
            else:
                raise bad("ends before its value")

    def text(self) -> str:
        return self._of(str)  # type: ignore[no-any-return]

    def real(self) -> float:
        return self._of(float)  # type: ignore[no-any-return]

    def data(self) -> bytes:
        return self._of(bytes)  # type: ignore[no-any-return]

    def count(self, most: int) -> int:
        """An int from 0 to ``most``."""
        number = self._of(int)
        if not 0 <= number <= most:
            raise bad(f"holds a count of {number}, which is not within 0 to {most}")
        return int(number)

    def end(self) -> None:
        """That there are no more."""
        self._is_whole = True
        if next(self._left, self) is not self or self._unpacker.tell() != self._size:
            raise bad("goes on after its value")

    def _of(self, kind: type) -> Any:
        atom = self.any()
        if type(atom) is not kind:
            raise bad(f"holds a {type(atom).__name__} in place of a {kind.__name__}")
        return atom


def bad(what: str) -> RemoteProtocolError:
    """The error of a spec that cannot be."""
    return RemoteProtocolError(f"the spec of the value {what}")
