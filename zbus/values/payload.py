"""Values as bytes: a spec (what it is) and buffers (its tensors' own memory), and back.

Sender::

    flat = flatten(value)                 # NotTransferable, and nothing copied yet
    check_choice(flat, eight_bit)         # CodecRefused
    packed = pack(flat, "if exact")       # the heavy part: spec, buffers

Receiver::

    unpacker = Unpacker(packed.spec)      # checks everything, allocates nothing
    for view in unpacker.allocate(): ...  # fill them, in order
    value = unpacker.value()

What travels: None, bool, int up to 4096 bits, float, complex, str, bytes, bytearray (arrives as
bytes), list, tuple, dict, torch tensors, ComfyUI's NestedTensor, numpy arrays; what is a plain
subclass of these (an IntEnum arrives as int, a Parameter as tensor); every other
`collections.abc.Mapping`, as the dict that it stands for (one that decodes when it is looked at is
looked at now); and the types of the host's own table, as `MESH` (:mod:`zbus.values.containers`).
The spec's format is in :mod:`zbus.values.spec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import CodecRefused, NotTransferable
from . import spec as wire
from .containers import Container
from .flatten import Flat, Leaf, flatten, where
from .kinds import KINDS, describe, fits
from .layout import PLAIN, Buffer, Layout, Map, picture
from .quantise import exactly, paletted, quantise, span
from .rounding import UNKNOWN
from .tensors import (
    ARRAY_ITEMSIZE,
    TENSOR_ITEMSIZE,
    NestedTensor,
    array_bytes,
    joined,
    plain,
    tensor_bytes,
    tensor_dtype,
)
from .unpack import Unpacker

__all__ = [
    "KINDS",
    "Buffer",
    "Container",
    "EightBit",
    "Flat",
    "Layout",
    "Map",
    "NestedTensor",
    "Packed",
    "Unpacker",
    "check_choice",
    "clipped",
    "describe",
    "fits",
    "flatten",
    "pack",
]

EightBit = Literal["never", "always", "if exact"]
WORTH = 1024  # bytes of a tensor, from which "if exact" looks at it


def check_choice(flat: Flat, eight_bit: bool) -> None:
    """That this value may be sent as 8 bits, where that was chosen.

    A value without a tensor passes: there is nothing to quantise. So does one of which nobody says
    what it is: it stays as it is.

    Raises:
        CodecRefused: A tensor of it is no image and no mask.
    """
    for leaf in flat.leaves if eight_bit else ():
        if leaf.form.what and leaf.form.what != UNKNOWN:
            raise CodecRefused(
                f"{where(leaf.place)} is {leaf.form.what}, and 8-bit is for images and masks only",
                remedy="Choose exact, raw, lz4 or zlib.",
            )


def clipped(flat: Flat) -> tuple[str, ...]:
    """What `pack` with "always" will change or leave, as its notes: known before it is packed.

    Raises:
        CodecRefused: An image holds NaN.
    """
    low, high = 0.0, 1.0
    for leaf in flat.leaves:
        if leaf.form.nbytes and leaf.tag == "t" and not leaf.form.what:
            least, most = span(leaf.source, where(leaf.place))
            low, high = min(low, least), max(high, most)
    return _notes(low, high, any(map(_is_left, flat.leaves)))


def _is_left(leaf: Leaf) -> bool:
    """Whether it looks like a picture that 8 bits were chosen for, and nobody says that it is."""
    return bool(leaf.form.nbytes) and leaf.form.what == UNKNOWN


def _notes(low: float, high: float, some_left: bool) -> tuple[str, ...]:
    notes = []
    if low < 0 or high > 1:
        notes.append(f"values outside 0..1 were clipped (min {low:.4g}, max {high:.4g})")
    if some_left:
        notes.append("sent bit for bit: the node before does not say whether it is a picture")
    return tuple(notes)


@dataclass
class Packed:
    """A value ready to travel.

    Attributes:
        spec: What the receiver's Unpacker reads.
        buffers: The bytes, in order; offsets mean their concatenation. None is empty.
        total: The sum of their lengths.
        kind: What :func:`describe` says of the value.
        notes: What was changed on the way, as sentences for the user.
    """

    spec: bytes
    buffers: list[Buffer]
    total: int
    kind: str
    notes: tuple[str, ...] = ()


def pack(flat: Flat, eight_bit: EightBit) -> Packed:
    """Makes the bytes: copies to the CPU what is not there, and quantises.

    Args:
        flat: From :func:`flatten`. Its tensors must not change until the buffers are sent: where
            they are contiguous in CPU memory, the buffers are views of them.
        eight_bit: "always" sends what is known to be an image or a mask as 8 bits, clipped to 0..1
            (see `rounding`), and all else as it is; "if exact" whatever has the shape of one and
            comes back bit for bit; "never" sends all as they are.

    Raises:
        CodecRefused: "always", and an image holds NaN.
        NotTransferable: The spec would be too long, or something has another size by now.
    """
    packer = _Packer(eight_bit)
    for leaf in flat.leaves:
        packer.add(leaf)
    spec = flat.spec(packer.described)
    if len(spec) > wire.MAX_SPEC:
        raise NotTransferable("value has too many small parts", remedy="Send it in several.")
    buffers = packer.buffers()
    total = sum(len(buffer.view) for buffer in buffers)
    return Packed(spec, buffers, total, flat.kind, packer.notes())


class _Packer:
    def __init__(self, eight_bit: EightBit) -> None:
        self._eight_bit = eight_bit
        self._low, self._high = 0.0, 1.0
        self._some_left = False
        self.described: list[tuple[object, ...]] = []
        self._buffers: list[Buffer] = []
        self._pools: dict[str, list[Any]] = {}
        self._forms: dict[tuple[str, tuple[int, ...]], tuple[object, ...]] = {}

    def add(self, leaf: Leaf) -> None:
        _check_unchanged(leaf)
        form = leaf.form
        self._some_left |= self._eight_bit == "always" and _is_left(leaf)
        shrunk = self._shrunk(leaf) if form.may_shrink and form.nbytes else None
        if shrunk is not None:
            said, q = shrunk
            self.described.append(said)
            self._buffers.append(Buffer(tensor_bytes(q), picture(form.shape)))
        elif leaf.tag == "t" and 0 < form.nbytes <= wire.MAX_POOLED:
            self._pool(leaf)
        else:
            self.described.append(form.atoms(leaf.tag))
            if form.nbytes:
                self._buffers.append(_buffer(leaf))

    def _pool(self, leaf: Leaf) -> None:
        form = leaf.form
        self._pools.setdefault(form.dtype, []).append(leaf.source)
        again = self._forms.get(form[1:3])
        if again is None:
            self._forms[form[1:3]] = ("=", len(self._forms))
            again = form.atoms("g")
        self.described.append(again)

    def buffers(self) -> list[Buffer]:
        """In the order in which the spec means them."""
        pools = [
            Buffer(tensor_bytes(joined(tensors)), Layout(TENSOR_ITEMSIZE[dtype]))
            for dtype, tensors in self._pools.items()
        ]
        return pools + self._buffers

    def notes(self) -> tuple[str, ...]:
        return _notes(self._low, self._high, self._some_left)

    def _shrunk(self, leaf: Leaf) -> tuple[tuple[object, ...], Any] | None:
        """One byte an element, and how that is said."""
        form = leaf.form
        if self._eight_bit == "always" and not form.what:
            q, low, high = quantise(leaf.source, where(leaf.place))
            self._low, self._high = min(self._low, low), max(self._high, high)
            return form.atoms("q"), q
        # A dtype of one byte is no longer than q; a look at a few elements costs more than they do.
        is_long = form.nbytes >= WORTH and TENSOR_ITEMSIZE[form.dtype] > 1
        if self._eight_bit == "never" or not is_long:
            return None
        exact = exactly(leaf.source)
        if exact is not None:
            return form.atoms("q"), exact
        few = paletted(leaf.source)
        return None if few is None else ((*form.atoms("p"), bytes(tensor_bytes(few.table))), few.q)


def _check_unchanged(leaf: Leaf) -> None:
    # In one buffer with others it would shift them, and the receiver would never know.
    source, form = leaf.source, leaf.form
    if leaf.tag == "t":
        is_same = source.shape == form.shape and tensor_dtype(source) == form.dtype
    else:
        is_same = bool(form.dtype) or len(source) == form.nbytes
    if not is_same:
        raise NotTransferable(
            f"{where(leaf.place)} has changed its size while it was being sent",
            remedy="Find the node that goes on changing what it has handed on.",
        )


def _buffer(leaf: Leaf) -> Buffer:
    if leaf.tag == "t":
        return Buffer(tensor_bytes(plain(leaf.source)), Layout(TENSOR_ITEMSIZE[leaf.form.dtype]))
    if leaf.form.dtype:
        return Buffer(array_bytes(leaf.source), Layout(ARRAY_ITEMSIZE[leaf.form.dtype]))
    return Buffer(memoryview(leaf.source), PLAIN)
