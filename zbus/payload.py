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
bytes), list, tuple, dict, torch tensors, ComfyUI's NestedTensor, numpy arrays; and what is a
plain subclass of these (an IntEnum arrives as int, an OrderedDict as dict, a Parameter as
tensor). The spec's format is in :mod:`zbus.spec`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from . import spec as wire
from .errors import CodecRefused, InputError, NotTransferable
from .layout import PLAIN, Buffer, Layout, Map, picture
from .quantise import exactly, quantise
from .tensors import (
    ARRAY_ITEMSIZE,
    QUANTISABLE,
    TENSOR_ITEMSIZE,
    NestedTensor,
    array_bytes,
    check_tensor,
    is_nested,
    is_tensor,
    plain,
    tensor_bytes,
    tensor_dtype,
)
from .unpack import Unpacker

__all__ = [
    "KINDS",
    "Buffer",
    "EightBit",
    "Flat",
    "Layout",
    "Map",
    "NestedTensor",
    "Packed",
    "Unpacker",
    "check_choice",
    "describe",
    "fits",
    "flatten",
    "pack",
]

EightBit = Literal["never", "always", "if exact"]

KINDS = ("any", "image", "mask", "latent", "audio", "text", "number", "conditioning")

LIST = "zbus.list"
"""How ComfyUI's lists travel: {LIST: [item, ...]}. Its kind is that of its items."""

_DICTS = (dict, OrderedDict, defaultdict, Counter)
# Parts of these are never pictures, whatever their shapes.
_NOT_PICTURES = ("latent", "audio", "conditioning")


def describe(value: object) -> str:
    """What a value is to ComfyUI, told by its structure.

    Returns:
        "image" for a float tensor [B, H, W, 1 to 4], "mask" for a float tensor [B, H, W] or
        [H, W], "latent" for a dict with "samples", "audio" for one with "waveform" and
        "sample_rate", "conditioning" for a list of [tensor, dict], "text", "number", else "any".
    """
    if is_tensor(value):
        return _describe_tensor(value)
    if isinstance(value, str):
        return "text"
    if isinstance(value, (bool, int, float)):
        return "number"
    if isinstance(value, dict):
        return _describe_dict(value)
    if isinstance(value, list) and value and all(map(_is_condition, value)):
        return "conditioning"
    return "any"


def fits(value_kind_expected: str, value: object) -> bool:
    """Whether a value may go where this kind (one of KINDS) is expected.

    Raises:
        InputError: There is no such kind.
    """
    if value_kind_expected not in KINDS:
        raise InputError(
            f"there is no kind of value {value_kind_expected!r}",
            remedy=f"Choose one of: {', '.join(KINDS)}.",
        )
    return value_kind_expected in ("any", describe(value))


def _describe_tensor(tensor: Any) -> str:
    if tensor_dtype(tensor) not in QUANTISABLE:
        return "any"
    shape = tuple(tensor.shape)
    if len(shape) == 4 and 1 <= shape[3] <= 4:
        return "image"
    return "mask" if len(shape) in (2, 3) else "any"


def _describe_dict(value: dict[Any, Any]) -> str:
    if len(value) == 1 and isinstance(value.get(LIST), list):
        kinds = {describe(item) for item in value[LIST]}
        return kinds.pop() if len(kinds) == 1 else "any"
    samples = value.get("samples")
    if is_tensor(samples) or is_nested(samples):
        return "latent"
    return "audio" if is_tensor(value.get("waveform")) and "sample_rate" in value else "any"


def _is_condition(item: object) -> bool:
    return (
        isinstance(item, (list, tuple))
        and len(item) == 2
        and is_tensor(item[0])
        and isinstance(item[1], dict)
    )


@dataclass(frozen=True)
class _Leaf:
    """What has a buffer: ``tag`` is its tag in the spec, ``what`` says why not 8-bit, if so."""

    tag: str
    source: Any
    nbytes: int
    place: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    what: str = ""

    @property
    def is_picture(self) -> bool:
        return self.tag == "t" and not self.what

    def atoms(self, tag: str) -> tuple[object, ...]:
        if self.dtype:
            return (tag, self.dtype, len(self.shape), *self.shape)
        return (tag, self.nbytes)


class Flat:
    """A value taken apart, with references to its tensors: nothing is copied yet.

    Attributes:
        nbytes: Its plain bytes, if it is sent losslessly.
        kind: What :func:`describe` says of it.
    """

    def __init__(self, atoms: list[object], kind: str) -> None:
        self._atoms = atoms
        self.kind = kind
        self.nbytes = sum(leaf.nbytes for leaf in self.leaves())

    def leaves(self) -> Iterator[_Leaf]:
        return (atom for atom in self._atoms if isinstance(atom, _Leaf))

    def spec(self, tags: list[str]) -> bytes:
        """The spec, with these tags for the leaves, in order."""
        left = iter(tags)
        atoms: list[object] = [wire.VERSION]
        for atom in self._atoms:
            atoms.extend(atom.atoms(next(left)) if isinstance(atom, _Leaf) else (atom,))
        return wire.write(atoms)


def flatten(value: object) -> Flat:
    """Takes a value apart. Imports no torch unless there is a tensor in it.

    Raises:
        NotTransferable: Something in it cannot travel. The text has its type and place, as in
            "value['model'][0] is a ModelPatcher".
    """
    walk = _Walk()
    walk.node(value, "value", 0, "")
    flat = Flat(walk.atoms, describe(value))
    if flat.nbytes > wire.MAX_TOTAL:
        raise NotTransferable(f"value is {flat.nbytes} bytes, above {wire.MAX_TOTAL}")
    return flat


def check_choice(flat: Flat, eight_bit: bool) -> None:
    """That this value may be sent as 8 bits, where that was chosen.

    A value without a tensor passes: there is nothing to quantise.

    Raises:
        CodecRefused: A tensor of it is no image and no mask.
    """
    for leaf in flat.leaves() if eight_bit else ():
        if leaf.what:
            raise CodecRefused(
                f"{leaf.place} is {leaf.what}, and 8-bit is for images and masks only",
                remedy="Choose exact, raw, lz4 or zlib.",
            )


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
        eight_bit: "always" sends images and masks as 8 bits, clipped to 0..1; "if exact" only
            those that come back bit for bit; "never" sends all as they are.

    Raises:
        CodecRefused: "always", and an image holds NaN.
        NotTransferable: The spec would be too long.
    """
    packer = _Packer(eight_bit)
    for leaf in flat.leaves():
        packer.add(leaf)
    spec = flat.spec(packer.tags)
    if len(spec) > wire.MAX_SPEC:
        raise NotTransferable("value has too many small parts", remedy="Send it in several.")
    total = sum(len(buffer.view) for buffer in packer.buffers)
    return Packed(spec, packer.buffers, total, flat.kind, packer.notes())


class _Packer:
    def __init__(self, eight_bit: EightBit) -> None:
        self._eight_bit = eight_bit
        self._low, self._high = 0.0, 1.0
        self.tags: list[str] = []
        self.buffers: list[Buffer] = []

    def add(self, leaf: _Leaf) -> None:
        quantised = self._quantised(leaf) if leaf.is_picture and leaf.nbytes else None
        self.tags.append(leaf.tag if quantised is None else "q")
        if not leaf.nbytes:
            return
        if quantised is not None:
            self.buffers.append(Buffer(quantised, picture(leaf.shape)))
        elif leaf.tag == "t":
            view = tensor_bytes(plain(leaf.source))
            self.buffers.append(Buffer(view, Layout(TENSOR_ITEMSIZE[leaf.dtype])))
        elif leaf.tag == "a":
            view = array_bytes(leaf.source)
            self.buffers.append(Buffer(view, Layout(ARRAY_ITEMSIZE[leaf.dtype])))
        else:
            self.buffers.append(Buffer(memoryview(leaf.source), PLAIN))

    def notes(self) -> tuple[str, ...]:
        if self._low >= 0 and self._high <= 1:
            return ()
        span = f"min {self._low:.4g}, max {self._high:.4g}"
        return (f"values outside 0..1 were clipped ({span})",)

    def _quantised(self, leaf: _Leaf) -> memoryview | None:
        if self._eight_bit == "always":
            q, low, high = quantise(leaf.source, leaf.place)
            self._low, self._high = min(self._low, low), max(self._high, high)
            return tensor_bytes(q)
        # A dtype of one byte is no longer than q.
        if self._eight_bit == "if exact" and TENSOR_ITEMSIZE[leaf.dtype] > 1:
            exact = exactly(leaf.source)
            return None if exact is None else tensor_bytes(exact)
        return None


class _Walk:
    """Takes a value apart into the atoms of a spec, with a _Leaf for what has a buffer."""

    def __init__(self) -> None:
        self.atoms: list[object] = []
        self._items = 0

    def node(self, value: Any, place: str, depth: int, part_of: str) -> None:
        self._count(place, depth)
        if is_tensor(value):
            self._tensor(value, place, part_of)
        elif is_nested(value):
            self._nested(value.tensors, place, depth, part_of)
        elif isinstance(value, np.ndarray):
            self._array(value, place)
        elif isinstance(value, (bytes, bytearray)):
            self._bytes(value, place)
        elif isinstance(value, str):
            self._text(value, place)
        elif isinstance(value, dict):
            self._dict(value, place, depth, part_of)
        elif type(value) in (list, tuple) or _is_size(value):
            self._sequence(value, place, depth, part_of)
        else:
            self._scalar(value, place)

    def _count(self, place: str, depth: int) -> None:
        self._items += 1
        if depth > wire.MAX_DEPTH:
            short = place[:60] + "..." if len(place) > 60 else place
            raise NotTransferable(
                f"{short} is nested deeper than {wire.MAX_DEPTH} levels, or holds itself"
            )
        if self._items > wire.MAX_ITEMS:
            raise NotTransferable(
                f"value holds more than {wire.MAX_ITEMS} items",
                remedy="Send long lists of numbers as a tensor.",
            )

    def _tensor(self, tensor: Any, place: str, part_of: str) -> None:
        check_tensor(tensor, place)
        dtype, shape = tensor_dtype(tensor), tuple(tensor.shape)
        _check_shape(shape, place)
        what = ""
        if part_of:
            what = f"part of {'an' if part_of == 'audio' else 'a'} {part_of}"
        elif _describe_tensor(tensor) not in ("image", "mask"):
            what = f"a {dtype} tensor of shape {list(shape)}"
        nbytes = tensor.numel() * TENSOR_ITEMSIZE[dtype]
        self.atoms.append(_Leaf("t", tensor, nbytes, place, dtype, shape, what))

    def _nested(self, tensors: list[Any], place: str, depth: int, part_of: str) -> None:
        self.atoms += ["n", len(tensors)]
        for index, tensor in enumerate(tensors):
            inner = f"{place}.tensors[{index}]"
            if not is_tensor(tensor):
                raise _refused(tensor, inner)
            self.node(tensor, inner, depth + 1, part_of or "nested tensor")

    def _array(self, array: np.ndarray[Any, Any], place: str) -> None:
        dtype = array.dtype.name
        if type(array) not in (np.ndarray, np.memmap) or dtype not in ARRAY_ITEMSIZE:
            raise NotTransferable(
                f"{place} is a numpy {type(array).__name__} of dtype {dtype}, which cannot travel",
                remedy="Convert it to an ordinary array of numbers before sending.",
            )
        _check_shape(array.shape, place)
        what = f"a numpy array of shape {list(array.shape)}"
        self.atoms.append(_Leaf("a", array, array.nbytes, place, dtype, array.shape, what))

    def _bytes(self, value: bytes | bytearray, place: str) -> None:
        if len(value) > wire.MAX_INLINE:
            self.atoms.append(_Leaf("b", value, len(value), place))
        else:
            self.atoms.append(bytes(value))

    def _text(self, value: str, place: str) -> None:
        data = value.encode("utf-8", "surrogatepass")
        if len(data) > wire.MAX_INLINE:
            self.atoms.append(_Leaf("S", data, len(data), place))
        else:
            self.atoms += ["s", str.__str__(value)]

    def _dict(self, value: dict[Any, Any], place: str, depth: int, part_of: str) -> None:
        if type(value) not in _DICTS:
            raise _refused(value, place)
        self.atoms += ["{", len(value)]
        part_of = part_of or _part(value)
        for key, inner in value.items():
            there = f"{place}[{_short(key)}]"
            self._key(key, there, depth + 1)
            self.node(inner, there, depth + 1, part_of)

    def _key(self, key: Any, place: str, depth: int) -> None:
        self._count(place, depth)
        if type(key) is tuple:
            self.atoms += ["(", len(key)]
            for part in key:
                self._key(part, place, depth + 1)
        elif isinstance(key, str):
            self.atoms += ["s", str.__str__(key)]
        elif isinstance(key, bytes):
            self.atoms.append(bytes(key))
        elif key is None or isinstance(key, (int, float)):
            self._scalar(key, place)
        else:
            raise NotTransferable(
                f"{place} has a key of type {type(key).__name__}, which cannot travel"
            )

    def _sequence(self, value: Any, place: str, depth: int, part_of: str) -> None:
        self.atoms += ["[" if isinstance(value, list) else "(", len(value)]
        part_of = part_of or _part(value)
        for index, inner in enumerate(value):
            self.node(inner, f"{place}[{index}]", depth + 1, part_of)

    def _scalar(self, value: Any, place: str) -> None:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool):
            self.atoms.append(value)
        elif isinstance(value, int):
            self._int(int.__int__(value), place)
        elif isinstance(value, float):
            self.atoms.append(float.__float__(value))
        elif isinstance(value, complex):
            self.atoms += ["c", value.real, value.imag]
        else:
            raise _refused(value, place)

    def _int(self, value: int, place: str) -> None:
        bits = value.bit_length()
        if bits > wire.MAX_INT_BITS:
            raise NotTransferable(f"{place} is an int of {bits} bits, above {wire.MAX_INT_BITS}")
        if -(2**63) <= value < 2**64:
            self.atoms.append(value)
        else:
            self.atoms += ["i", value.to_bytes(bits // 8 + 1, "little", signed=True)]


def _part(value: object) -> str:
    kind = describe(value)
    return kind if kind in _NOT_PICTURES else ""


def _is_size(value: object) -> bool:
    """torch.Size is a tuple of ints with methods; it arrives as the tuple."""
    return type(value).__name__ == "Size" and type(value).__module__ == "torch"


def _check_shape(shape: tuple[int, ...], place: str) -> None:
    elements = 1
    for size in shape:
        elements *= max(size, 1)
    if len(shape) > wire.MAX_DIMS or elements > wire.MAX_ELEMENTS:
        raise NotTransferable(f"{place} has the shape {list(shape)}, which is too large")


def _short(key: object) -> str:
    if not isinstance(key, (str, int, float, bytes, type(None))):
        return f"a {type(key).__name__}"  # its repr is not ours to call
    if isinstance(key, int) and key.bit_length() > 64:
        return "a large int"  # Python refuses to print the largest
    text = repr(key)
    return text if len(text) <= 60 else text[:57] + "..."


def _refused(value: object, place: str) -> NotTransferable:
    name = type(value).__name__
    module = type(value).__module__
    full = name if module in ("builtins", "__main__") else f"{module}.{name}"
    return NotTransferable(
        f"{place} is a live object ({full}), which cannot travel",
        remedy="Send what it is made of (an image, latent, text or numbers) instead.",
    )
