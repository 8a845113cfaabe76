"""The sender's first half: a value walked into atoms and leaves, with nothing copied yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..errors import NotTransferable
from . import containers, rounding, runs
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
_AS_THEY_ARE = frozenset((float, bool, type(None)))  # of just that type they are atoms
_SIMPLE = _AS_THEY_ARE | {int, str}
_SURELY_SHORT = wire.MAX_SHORT // 4  # characters

# Where something lies: what it lies in, how that is written, and under which key; None is the value
# itself. Of ten thousand parts nobody asks, so the text is made when somebody does.
Place = tuple[Any, str, object]
_ITEM, _KEY, _FIELD, _NESTED = "[%s]", "[%s] ", ".%s", ".tensors[%s]"


def where(place: Place | None) -> str:
    """That place as a text: "value['model'][0]"."""
    steps = []
    while place is not None:
        place, form, key = place
        steps.append(f"[{_short(key)}]" if form is _KEY else form % key)
    return "value" + "".join(reversed(steps))


class Form(NamedTuple):
    """What the parts of one dtype and shape have in common.

    Attributes:
        what: Why they may not be 8-bit, if so.
        may_shrink: Whether they may be 8-bit where that keeps every bit.
    """

    nbytes: int
    dtype: str = ""
    shape: tuple[int, ...] = ()
    what: str = ""
    may_shrink: bool = False

    def atoms(self, tag: str) -> tuple[object, ...]:
        """How it stands in a spec, under that tag."""
        if self.dtype:
            return (tag, self.dtype, len(self.shape), *self.shape)
        return (tag, self.nbytes)


class Leaf(NamedTuple):
    """What has a buffer: ``tag`` is its tag in the spec, where nothing is done to it."""

    tag: str
    source: Any
    place: Place | None
    form: Form


class Flat:
    """A value taken apart, with references to its tensors: nothing is copied yet.

    Attributes:
        nbytes: Its plain bytes, if it is sent losslessly.
        kind: What :func:`describe` says of it.
    """

    def __init__(self, atoms: list[object], kind: str) -> None:
        self._atoms = atoms
        self.leaves = [atom for atom in atoms if type(atom) is Leaf]
        self.kind = kind
        self.nbytes = sum(leaf.form.nbytes for leaf in self.leaves)

    @property
    def on_device(self) -> bool:
        """Whether a tensor of it lies elsewhere than in this computer's own memory: copying it
        from there may wait for what the device computes."""
        return any(leaf.tag == "t" and not leaf.source.is_cpu for leaf in self.leaves)

    @property
    def parts(self) -> int:
        """How many things it is made of: what walking over it costs, whatever their size."""
        return len(self._atoms)

    def spec(self, leaves: Iterable[tuple[object, ...]]) -> bytes:
        """The spec, with these atoms for the leaves, in order."""
        left = iter(leaves)
        atoms: list[object] = [wire.VERSION]
        for atom in self._atoms:
            if type(atom) is Leaf:
                atoms += next(left)
            else:
                atoms.append(atom)
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
    value = _looked_at(value, None)
    walk = _Walk()
    walk.node(value, None, 0, rounding.declared(declared))
    flat = Flat(walk.atoms, describe(value))
    if flat.nbytes > wire.MAX_TOTAL:
        raise NotTransferable(f"value is {flat.nbytes} bytes, above {wire.MAX_TOTAL}")
    return flat


class _Walk:
    """Takes a value apart into the atoms of a spec, with a Leaf for what has a buffer."""

    def __init__(self) -> None:
        self.atoms: list[object] = []
        self._items = self._numbers = 0
        self._forms: dict[tuple[object, ...], Form] = {}

    # `role` is why something is no picture, whatever its shape; "" where it may be one.

    def node(self, value: Any, place: Place | None, depth: int, role: str) -> None:
        if isinstance(value, str):
            self._text(value, place)
        elif is_tensor(value):
            self._tensor(value, place, role)
        elif type(value) in (list, tuple) or _is_size(value):
            self._sequence(value, place, depth, role)
        elif is_nested(value):
            self._nested(value.tensors, place, depth, role)
        elif isinstance(value, np.ndarray):
            self._array(value, place)
        elif isinstance(value, (bytes, bytearray)):
            self._bytes(value, place)
        elif isinstance(value, Mapping):
            self._dict(_looked_at(value, place), place, depth, role)
        elif value is None or isinstance(value, _SCALARS):
            self._scalar(value, place)
        elif (held := containers.taken(value, partial(where, place))) is not None:
            self._container(held, place, depth, role)
        else:
            raise _refused(value, place)

    def _enter(self, items: int, place: Place | None, depth: int) -> int:
        """Count what lies in something at that depth; returns their depth."""
        self._items += items
        if items and depth >= wire.MAX_DEPTH:
            text = where(place)
            short = text[:60] + "..." if len(text) > 60 else text
            raise NotTransferable(
                f"{short} is nested deeper than {wire.MAX_DEPTH} levels, or holds itself"
            )
        if self._items > wire.MAX_ITEMS:
            raise NotTransferable(
                f"value holds more than {wire.MAX_ITEMS} items",
                remedy="Send long lists of numbers as a tensor.",
            )
        return depth + 1

    def _tensor(self, tensor: Any, place: Place | None, role: str) -> None:
        check_tensor(tensor, partial(where, place))
        key = (tensor.dtype, tensor.shape, role)
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = _form(tensor, place, role)
        self.atoms.append(Leaf("t", tensor, place, form))

    def _nested(self, tensors: list[Any], place: Place | None, depth: int, role: str) -> None:
        self.atoms += ["n", len(tensors)]
        depth = self._enter(len(tensors), place, depth)
        for index, tensor in enumerate(tensors):
            inner = (place, _NESTED, index)
            if not is_tensor(tensor):
                raise _refused(tensor, inner)
            self._tensor(tensor, inner, rounding.within("nested tensor", role))

    def _array(self, array: np.ndarray[Any, Any], place: Place | None) -> None:
        dtype = array.dtype.name
        if type(array) not in (np.ndarray, np.memmap) or dtype not in ARRAY_ITEMSIZE:
            raise NotTransferable(
                f"{where(place)} is a numpy {type(array).__name__} of dtype {dtype}, which cannot "
                f"travel",
                remedy="Convert it to an ordinary array of numbers before sending.",
            )
        _check_shape(array.shape, place)
        what = f"a numpy array of shape {list(array.shape)}"
        self.atoms.append(Leaf("a", array, place, Form(array.nbytes, dtype, array.shape, what)))

    def _bytes(self, value: bytes | bytearray, place: Place | None) -> None:
        if len(value) > wire.MAX_SHORT:
            self.atoms.append(Leaf("b", value, place, Form(len(value))))
        else:
            self.atoms.append(bytes(value))

    def _text(self, value: str, place: Place | None) -> None:
        if len(value) > _SURELY_SHORT:
            data = value.encode("utf-8", "surrogatepass")
            if len(data) > wire.MAX_SHORT:
                self.atoms.append(Leaf("S", data, place, Form(len(data))))
                return
        self.atoms += ("s", str.__str__(value))

    def _dict(self, value: dict[Any, Any], place: Place | None, depth: int, role: str) -> None:
        self.atoms += ("{", len(value))
        depth = self._enter(2 * len(value), place, depth)
        is_film, inner_role = role == rounding.FILM, rounding.in_dict(value, role)
        for key, inner in value.items():
            there = (place, _KEY, key)
            self._key(key, there, depth)
            if type(inner) in _AS_THEY_ARE:
                self.atoms.append(inner)
            elif type(inner) is int:
                self._int(inner, there)
            else:
                self.node(inner, there, depth, rounding.in_film(key) if is_film else inner_role)

    def _container(
        self, held: containers.Container, place: Place | None, depth: int, role: str
    ) -> None:
        self.atoms += ["o", held.kind, len(held.fields)]
        depth = self._enter(len(held.fields), place, depth)
        for name, inner in held.fields.items():
            self.atoms.append(name)
            self.node(inner, (place, _FIELD, name), depth, rounding.within(held.kind, role))

    def _key(self, key: Any, place: Place, depth: int) -> None:
        if isinstance(key, str):
            self.atoms += ("s", str.__str__(key))
        elif type(key) is tuple:
            self.atoms += ("(", len(key))
            depth = self._enter(len(key), place, depth)
            for part in key:
                self._key(part, place, depth)
        elif isinstance(key, bytes):
            self.atoms.append(bytes(key))
        elif key is None or isinstance(key, (int, float, np.bool_, np.integer, np.floating)):
            self._scalar(key, place)
        else:
            raise NotTransferable(
                f"{where(place)} has a key of type {type(key).__name__}, which cannot travel"
            )

    def _sequence(self, value: Any, place: Place | None, depth: int, role: str) -> None:
        tag = "[" if isinstance(value, list) else "("
        numbers = runs.packed(value)
        if numbers is not None:
            self._run(tag + "#", numbers, place)
            return
        self.atoms += (tag, len(value))
        depth = self._enter(len(value), place, depth)
        items_role = role
        if not _SIMPLE.issuperset(map(type, value)):
            for index, inner in enumerate(value):
                if is_tensor(inner):
                    check_tensor(inner, partial(where, (place, _ITEM, index)))
            items_role = rounding.in_list(value, partial(where, place), role)
        for index, inner in enumerate(value):
            if type(inner) in _AS_THEY_ARE:
                self.atoms.append(inner)
                continue
            if type(inner) is int:
                self._int(inner, (place, _ITEM, index))
                continue
            # A dict of a list says itself what it is, but for that of a conditioning.
            is_own = isinstance(inner, Mapping) and items_role != rounding.CONDITIONING
            self.node(inner, (place, _ITEM, index), depth, role if is_own else items_role)

    def _run(self, tag: str, numbers: np.ndarray[Any, Any], place: Place | None) -> None:
        self._numbers += numbers.size
        if self._numbers > wire.MAX_NUMBERS:
            raise NotTransferable(
                f"value holds more than {wire.MAX_NUMBERS} numbers in lists",
                remedy="Send long lists of numbers as a tensor.",
            )
        form = Form(numbers.nbytes, numbers.dtype.name, numbers.shape)
        self.atoms.append(Leaf(tag, numbers, place, form))

    def _scalar(self, value: Any, place: Place | None) -> None:
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

    def _int(self, value: int, place: Place | None) -> None:
        if -(2**63) <= value < 2**64:
            self.atoms.append(value)
            return
        bits = value.bit_length()
        if bits > wire.MAX_INT_BITS:
            raise NotTransferable(
                f"{where(place)} is an int of {bits} bits, above {wire.MAX_INT_BITS}"
            )
        self.atoms += ["i", value.to_bytes(bits // 8 + 1, "little", signed=True)]


def _form(tensor: Any, place: Place | None, role: str) -> Form:
    dtype, shape = tensor_dtype(tensor), tuple(tensor.shape)
    _check_shape(shape, place)
    what = role
    if role in rounding.OPEN and not rounding.looks_like_picture(tensor):
        what = f"a {dtype} tensor of shape {list(shape)}"
    nbytes = tensor.numel() * TENSOR_ITEMSIZE[dtype]
    return Form(nbytes, dtype, shape, what, rounding.may_shrink(tensor, role))


def _looked_at(value: Any, place: Place | None) -> Any:
    """A mapping as the dict that it stands for: some decode their file only now. Anything else as
    it is."""
    if not isinstance(value, Mapping) or type(value) is dict:
        return value
    try:
        return dict(value)
    except Exception as error:  # foreign code; its text may hold paths
        raise NotTransferable(
            f"{where(place)} is a {type(value).__name__} that cannot be read "
            f"({type(error).__name__})",
            remedy="Look at the node that made it, and at the file that it reads.",
        ) from error


def _number(value: np.generic[Any], place: Place | None) -> object:
    """Of numpy's scalars the numbers, texts and bytes: a time would arrive as a bare int."""
    kinds = (np.bool_, np.integer, np.floating, np.complexfloating, np.character)
    if not isinstance(value, kinds) or isinstance(value, np.timedelta64):
        raise NotTransferable(
            f"{where(place)} is a numpy {type(value).__name__}, which cannot travel",
            remedy="Send it as a number or a text.",
        )
    return value.item()


def _is_size(value: object) -> bool:
    """torch.Size is a tuple of ints with methods; it arrives as the tuple."""
    return type(value).__name__ == "Size" and type(value).__module__ == "torch"


def _check_shape(shape: tuple[int, ...], place: Place | None) -> None:
    elements = 1
    for size in shape:
        elements *= max(size, 1)
    if len(shape) > wire.MAX_DIMS or elements > wire.MAX_ELEMENTS:
        raise NotTransferable(f"{where(place)} has the shape {list(shape)}, which is too large")


def _short(key: object) -> str:
    if not isinstance(key, (str, int, float, bytes, type(None))):
        return f"a {type(key).__name__}"  # its repr is not ours to call
    if isinstance(key, int) and key.bit_length() > 64:
        return "a large int"  # Python refuses to print the largest
    text = repr(key)
    return text if len(text) <= 60 else text[:57] + "..."


def _refused(value: object, place: Place | None) -> NotTransferable:
    name = type(value).__name__
    module = type(value).__module__
    full = name if module in ("builtins", "__main__") else f"{module}.{name}"
    return NotTransferable(
        f"{where(place)} is a live object ({full}), which cannot travel",
        remedy="Send what it is made of (an image, latent, text or numbers) instead.",
    )
