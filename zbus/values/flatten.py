"""The sender's first half: a value walked into atoms and leaves, with nothing copied yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NotTransferable
from . import containers, rounding
from . import spec as wire
from .kinds import describe
from .tensors import (
    ARRAY_ITEMSIZE,
    TENSOR_ITEMSIZE,
    check_tensor,
    is_nested,
    is_tensor,
    tensor_dtype,
)

_SCALARS = (int, float, complex, np.generic)


@dataclass(frozen=True)
class Leaf:
    """What has a buffer: ``tag`` is its tag in the spec, ``what`` says why not 8-bit, if so;
    ``may_shrink``: it may be 8-bit where that keeps every bit."""

    tag: str
    source: Any
    nbytes: int
    place: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    what: str = ""
    may_shrink: bool = False

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

    @property
    def on_device(self) -> bool:
        """Whether a tensor of it lies elsewhere than in this computer's own memory: copying it
        from there may wait for what the device computes."""
        return any(leaf.tag == "t" and not leaf.source.is_cpu for leaf in self.leaves())

    def leaves(self) -> Iterator[Leaf]:
        return (atom for atom in self._atoms if isinstance(atom, Leaf))

    def spec(self, tags: list[str]) -> bytes:
        """The spec, with these tags for the leaves, in order."""
        left = iter(tags)
        atoms: list[object] = [wire.VERSION]
        for atom in self._atoms:
            atoms.extend(atom.atoms(next(left)) if isinstance(atom, Leaf) else (atom,))
        return wire.write(atoms)


def flatten(value: object, declared: str = "") -> Flat:
    """Takes a value apart. Imports no torch unless there is a tensor in it.

    Args:
        declared: Its type as its maker declares it, where that is known and has no picture in it;
            "*" where its maker may give anything (see `rounding`): nothing of it goes as 8 bits
            then, whatever its shape, but for the frames of a VIDEO.

    Raises:
        NotTransferable: Something in it cannot travel. The text has its type and place, as in
            "value['model'][0] is a ModelPatcher".
    """
    value = _looked_at(value, "value")
    walk = _Walk()
    walk.node(value, "value", 0, rounding.declared(declared))
    flat = Flat(walk.atoms, describe(value))
    if flat.nbytes > wire.MAX_TOTAL:
        raise NotTransferable(f"value is {flat.nbytes} bytes, above {wire.MAX_TOTAL}")
    return flat


class _Walk:
    """Takes a value apart into the atoms of a spec, with a Leaf for what has a buffer."""

    def __init__(self) -> None:
        self.atoms: list[object] = []
        self._items = 0

    # `role` is why something is no picture, whatever its shape; "" where it may be one.

    def node(self, value: Any, place: str, depth: int, role: str) -> None:
        self._count(place, depth)
        if is_tensor(value):
            self._tensor(value, place, role)
        elif is_nested(value):
            self._nested(value.tensors, place, depth, role)
        elif isinstance(value, np.ndarray):
            self._array(value, place)
        elif isinstance(value, (bytes, bytearray)):
            self._bytes(value, place)
        elif isinstance(value, str):
            self._text(value, place)
        elif isinstance(value, Mapping):
            self._dict(_looked_at(value, place), place, depth, role)
        elif type(value) in (list, tuple) or _is_size(value):
            self._sequence(value, place, depth, role)
        elif value is None or isinstance(value, _SCALARS):
            self._scalar(value, place)
        elif (held := containers.taken(value, place)) is not None:
            self._container(held, place, depth, role)
        else:
            raise _refused(value, place)

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

    def _tensor(self, tensor: Any, place: str, role: str) -> None:
        check_tensor(tensor, place)
        dtype, shape = tensor_dtype(tensor), tuple(tensor.shape)
        _check_shape(shape, place)
        what = role
        if role in ("", rounding.UNKNOWN) and not rounding.looks_like_picture(tensor):
            what = f"a {dtype} tensor of shape {list(shape)}"
        nbytes = tensor.numel() * TENSOR_ITEMSIZE[dtype]
        may_shrink = rounding.may_shrink(tensor, role)
        self.atoms.append(Leaf("t", tensor, nbytes, place, dtype, shape, what, may_shrink))

    def _nested(self, tensors: list[Any], place: str, depth: int, role: str) -> None:
        self.atoms += ["n", len(tensors)]
        for index, tensor in enumerate(tensors):
            inner = f"{place}.tensors[{index}]"
            if not is_tensor(tensor):
                raise _refused(tensor, inner)
            self.node(tensor, inner, depth + 1, rounding.within("nested tensor", role))

    def _array(self, array: np.ndarray[Any, Any], place: str) -> None:
        dtype = array.dtype.name
        if type(array) not in (np.ndarray, np.memmap) or dtype not in ARRAY_ITEMSIZE:
            raise NotTransferable(
                f"{place} is a numpy {type(array).__name__} of dtype {dtype}, which cannot travel",
                remedy="Convert it to an ordinary array of numbers before sending.",
            )
        _check_shape(array.shape, place)
        what = f"a numpy array of shape {list(array.shape)}"
        self.atoms.append(Leaf("a", array, array.nbytes, place, dtype, array.shape, what))

    def _bytes(self, value: bytes | bytearray, place: str) -> None:
        if len(value) > wire.MAX_SHORT:
            self.atoms.append(Leaf("b", value, len(value), place))
        else:
            self.atoms.append(bytes(value))

    def _text(self, value: str, place: str) -> None:
        data = value.encode("utf-8", "surrogatepass")
        if len(data) > wire.MAX_SHORT:
            self.atoms.append(Leaf("S", data, len(data), place))
        else:
            self.atoms += ["s", str.__str__(value)]

    def _dict(self, value: dict[Any, Any], place: str, depth: int, role: str) -> None:
        self.atoms += ["{", len(value)]
        for key, inner in value.items():
            there = f"{place}[{_short(key)}]"
            self._key(key, there, depth + 1)
            self.node(inner, there, depth + 1, rounding.in_dict(value, key, role))

    def _container(self, held: containers.Container, place: str, depth: int, role: str) -> None:
        self.atoms += ["o", held.kind, len(held.fields)]
        for name, inner in held.fields.items():
            self.atoms.append(name)
            self.node(inner, f"{place}.{name}", depth + 1, rounding.within(held.kind, role))

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
        elif key is None or isinstance(key, (int, float, np.bool_, np.integer, np.floating)):
            self._scalar(key, place)
        else:
            raise NotTransferable(
                f"{place} has a key of type {type(key).__name__}, which cannot travel"
            )

    def _sequence(self, value: Any, place: str, depth: int, role: str) -> None:
        self.atoms += ["[" if isinstance(value, list) else "(", len(value)]
        for index, inner in enumerate(value):
            if is_tensor(inner):
                check_tensor(inner, f"{place}[{index}]")
        items_role = rounding.in_list(value, place, role)
        for index, inner in enumerate(value):
            # A dict of a list says itself what it is, but for that of a conditioning.
            is_own = isinstance(inner, Mapping) and items_role != rounding.CONDITIONING
            self.node(inner, f"{place}[{index}]", depth + 1, role if is_own else items_role)

    def _scalar(self, value: Any, place: str) -> None:
        if isinstance(value, np.generic):
            value = _number(value, place)
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


def _looked_at(value: Any, place: str) -> Any:
    """A mapping as the dict that it stands for: some decode their file only now. Anything else as
    it is."""
    if not isinstance(value, Mapping) or type(value) is dict:
        return value
    try:
        return dict(value)
    except Exception as error:  # foreign code; its text may hold paths
        raise NotTransferable(
            f"{place} is a {type(value).__name__} that cannot be read ({type(error).__name__})",
            remedy="Look at the node that made it, and at the file that it reads.",
        ) from error


def _number(value: np.generic[Any], place: str) -> object:
    """Of numpy's scalars the numbers, texts and bytes: a time would arrive as a bare int."""
    kinds = (np.bool_, np.integer, np.floating, np.complexfloating, np.character)
    if not isinstance(value, kinds) or isinstance(value, np.timedelta64):
        raise NotTransferable(
            f"{place} is a numpy {type(value).__name__}, which cannot travel",
            remedy="Send it as a number or a text.",
        )
    return value.item()


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
