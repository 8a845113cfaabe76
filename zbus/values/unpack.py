"""The receiver's half of the payload: a spec, hostile until checked, becomes a value.

Reading the spec allocates nothing of the sizes it names; :meth:`Unpacker.allocate` does, once
the caller has decided (by ``total`` and ``memory``) that it may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LocalProtocolError, RemoteProtocolError
from . import containers
from .layout import PLAIN, Layout, picture
from .quantise import dequantise
from .recycling import LARGE
from .spec import (
    MAX_DEPTH,
    MAX_DIMS,
    MAX_ELEMENTS,
    MAX_INT_BITS,
    MAX_ITEMS,
    MAX_TOTAL,
    VERSION,
    Atoms,
    bad,
)
from .tensors import (
    ARRAY_ITEMSIZE,
    QUANTISABLE,
    TENSOR_ITEMSIZE,
    check_dtype,
    empty_tensor,
    find_dtype,
    memory_of,
    nested,
    no_memory,
    tensor_bytes,
    torch_module,
)

if TYPE_CHECKING:
    import torch

_GROUPS: dict[str, Callable[[list[Any]], object]] = {"[": list, "(": tuple, "n": nested}


class Unpacker:
    """Builds a value from its spec and its bytes.

    Attributes:
        total: The bytes of all buffers.
        memory: The bytes that :meth:`allocate` takes and :meth:`value` takes on top of it.
        layouts: (length, layout) of each buffer, in order; none is empty.
        needs_torch: Whether :meth:`allocate` imports torch, if nothing has yet.

    Raises:
        RemoteProtocolError: The spec is not one that `payload.pack` writes, or names
            a dtype that this side does not have.
    """

    def __init__(self, spec: bytes) -> None:
        reader = _Reader(spec)
        self._root = reader.root()
        self._leaves = reader.leaves
        self._allocated = False
        self.layouts = [(leaf.length, leaf.layout) for leaf in self._leaves if leaf.length]
        self.total = sum(length for length, _ in self.layouts)
        self.memory = sum(leaf.memory for leaf in self._leaves)
        self.needs_torch = any(isinstance(leaf, (_Tensor, _Quantised)) for leaf in self._leaves)

    def allocate(self) -> list[memoryview]:
        """The memory to fill: writable views of bytes, parallel to ``layouts``.

        Raises:
            TransferRefused: The system does not give that much.
        """
        self._allocated = True
        made = [(leaf.length, leaf.allocate()) for leaf in self._leaves]
        return [view for length, view in made if length]

    def value(self) -> object:
        """The value. You must have filled every view of :meth:`allocate` before.

        Raises:
            RemoteProtocolError: The bytes are no such value (a string is not UTF-8).
        """
        if self.total and not self._allocated:
            raise LocalProtocolError("value() before allocate()")
        return _build(self._root)


class _Leaf:
    """What has a buffer of ``length`` bytes."""

    length: int
    memory: int
    layout: Layout = PLAIN

    def allocate(self) -> memoryview:
        raise NotImplementedError

    def build(self) -> object:
        raise NotImplementedError


class _Bytes(_Leaf):
    def __init__(self, length: int, text: bool) -> None:
        self.length = length
        # The bytearray, and beside it the bytes, or a str of up to 4 bytes a character.
        self.memory = length * (5 if text else 2)
        self._text = text
        self._store = bytearray()

    def allocate(self) -> memoryview:
        try:
            self._store = bytearray(self.length)
        except MemoryError as error:
            raise no_memory(f"{self.length} bytes") from error
        return memoryview(self._store)

    def build(self) -> object:
        if not self._text:
            return bytes(self._store)
        try:
            return self._store.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            what = f"a string of the value is not UTF-8 ({error.reason})"
            raise RemoteProtocolError(what) from None


class _Tensor(_Leaf):
    def __init__(self, dtype: str, shape: tuple[int, ...], length: int) -> None:
        self._dtype = check_dtype(dtype)
        self._shape = shape
        self._tensor: torch.Tensor | None = None
        self.length = self.memory = length
        self.layout = Layout(TENSOR_ITEMSIZE[dtype])

    def allocate(self) -> memoryview:
        self._tensor = empty_tensor(self._shape, find_dtype(self._dtype))
        return tensor_bytes(self._tensor)

    def build(self) -> object:
        if self._tensor is None:  # it has no bytes
            return empty_tensor(self._shape, find_dtype(self._dtype))
        if self._dtype == "bool":
            _check_bools(tensor_bytes(self._tensor))
        return self._tensor


class _SmallTensor(_Tensor):
    """Filled elsewhere and copied: memory that numpy has seen can never be resized again, and a
    node that computes into the tensor (``out=``) may want to."""

    def __init__(self, dtype: str, shape: tuple[int, ...], length: int) -> None:
        super().__init__(dtype, shape, length)
        self.memory = length * 2

    def build(self) -> object:
        built = super().build()
        return built.clone() if self._tensor is not None else built  # type: ignore[attr-defined]


class _Quantised(_Leaf):
    def __init__(self, dtype: str, shape: tuple[int, ...], elements: int) -> None:
        self._dtype = check_dtype(dtype)
        self._shape = shape
        self._q: torch.Tensor | None = None
        self.length = elements
        self.memory = elements * (1 + TENSOR_ITEMSIZE[dtype])
        self.layout = picture(shape)

    def allocate(self) -> memoryview:
        self._q = empty_tensor((self.length,), torch_module().uint8)
        return tensor_bytes(self._q)

    def build(self) -> object:
        made = empty_tensor(self._shape, find_dtype(self._dtype))
        if self._q is not None:
            dequantise(self._q, made)
        return made


class _Array(_Leaf):
    def __init__(self, dtype: str, shape: tuple[int, ...], length: int) -> None:
        self._dtype = np.dtype(dtype)
        self._shape = shape
        self._array: np.ndarray[Any, Any] | None = None
        self.length = self.memory = length
        self.layout = Layout(ARRAY_ITEMSIZE[dtype])

    def allocate(self) -> memoryview:
        try:
            self._array = np.empty(self._shape, self._dtype)
        except (MemoryError, ValueError) as error:
            raise no_memory(f"an array of shape {list(self._shape)}, {self._dtype}") from error
        return memory_of(self._array)

    def build(self) -> object:
        if self._array is None:
            return np.empty(self._shape, self._dtype)
        if self._dtype == np.bool_:
            _check_bools(memory_of(self._array))
        return self._array


@dataclass(frozen=True)
class _Group:
    """A list, tuple or NestedTensor by its tag."""

    tag: str
    nodes: list[object]


@dataclass(frozen=True)
class _Dict:
    keys: list[Any]
    nodes: list[object]


@dataclass(frozen=True)
class _Container:
    kind: str
    fields: dict[str, object]


def _build(node: object) -> object:
    if isinstance(node, _Leaf):
        return node.build()
    if isinstance(node, _Group):
        return _GROUPS[node.tag]([_build(inner) for inner in node.nodes])
    if isinstance(node, _Dict):
        return dict(zip(node.keys, map(_build, node.nodes), strict=True))
    if isinstance(node, _Container):
        fields = {name: _build(inner) for name, inner in node.fields.items()}
        return containers.made(node.kind, fields)
    return node


def _check_bools(view: memoryview) -> None:
    # A bool that is neither 0 nor 1 makes torch and numpy behave as nobody defined.
    if int(np.frombuffer(view, np.uint8).max(initial=0)) > 1:
        raise RemoteProtocolError("a bool tensor of the value holds bytes other than 0 and 1")


class _Reader:
    """Reads a spec into nodes: scalars as they are, _Leaf, _Group, _Dict,
    _Container."""

    def __init__(self, spec: bytes) -> None:
        self._atoms = Atoms(spec)
        self._items = 0
        self._total = 0
        self.leaves: list[_Leaf] = []

    def root(self) -> object:
        version = self._atoms.any()
        if type(version) is not int or version != VERSION:
            raise bad("is not of version 1")
        node = self._node(0)
        self._atoms.end()
        return node

    def _node(self, depth: int) -> object:
        tag = self._next(depth)
        if not isinstance(tag, str):
            return tag
        if tag in _GROUPS:
            return self._group(tag, depth)
        if tag == "{":
            return self._dict(depth)
        if tag == "o":
            return self._container(depth)
        if tag in ("t", "q", "a"):
            return self._shaped(tag)
        if tag in ("S", "b"):
            return self._leaf(_Bytes(self._atoms.count(MAX_TOTAL), text=tag == "S"))
        return self._scalar(tag)

    def _next(self, depth: int) -> object:
        self._items += 1
        if depth > MAX_DEPTH:
            raise bad(f"is nested deeper than {MAX_DEPTH} levels")
        if self._items > MAX_ITEMS:
            raise bad(f"holds more than {MAX_ITEMS} items")
        return self._atoms.any()

    def _scalar(self, tag: str) -> object:
        if tag == "s":
            return self._atoms.text()
        if tag == "c":
            return complex(self._atoms.real(), self._atoms.real())
        if tag == "i":
            data = self._atoms.data()
            if len(data) > MAX_INT_BITS // 8 + 1:
                raise bad(f"holds an int of {len(data)} bytes")
            return int.from_bytes(data, "little", signed=True)
        raise bad(f"holds an unknown tag {tag[:20]!r}")

    def _group(self, tag: str, depth: int) -> _Group:
        count = self._atoms.count(MAX_ITEMS)
        nodes = [self._node(depth + 1) for _ in range(count)]
        if tag == "n" and not all(isinstance(node, (_Tensor, _Quantised)) for node in nodes):
            raise bad("has a nested tensor of something else than tensors")
        return _Group(tag, nodes)

    def _dict(self, depth: int) -> _Dict:
        keys, nodes = [], []
        for _ in range(self._atoms.count(MAX_ITEMS)):
            keys.append(self._key(depth + 1))
            nodes.append(self._node(depth + 1))
        # Keys made to collide would keep dict busy for minutes: look at the hashes first.
        if len(keys) > 64 and len({hash(key) for key in keys}) * 2 < len(keys):
            raise bad("has a dict whose keys collide")
        if len(set(keys)) != len(keys):
            raise bad("has a dict with a key twice")
        return _Dict(keys, nodes)

    def _container(self, depth: int) -> _Container:
        kind, fields = self._atoms.text(), dict[str, object]()
        for _ in range(self._atoms.count(containers.MAX_FIELDS)):
            name = self._atoms.text()
            if name in fields:
                raise bad("has a field twice")
            fields[name] = self._node(depth + 1)
        containers.check(kind, fields)
        return _Container(kind, fields)

    def _key(self, depth: int) -> object:
        atom = self._next(depth)
        if not isinstance(atom, str):
            return atom
        if atom == "(":
            return tuple(self._key(depth + 1) for _ in range(self._atoms.count(MAX_ITEMS)))
        if atom not in ("s", "i"):
            raise bad(f"has a dict with a key of tag {atom[:20]!r}")
        return self._scalar(atom)

    def _shaped(self, tag: str) -> _Leaf:
        dtype = self._atoms.text()
        sizes = [self._atoms.count(MAX_ELEMENTS) for _ in range(self._atoms.count(MAX_DIMS))]
        elements = _elements(sizes)
        shape = tuple(sizes)
        if tag == "q":
            if dtype not in QUANTISABLE or not _may_be_picture(shape):
                raise bad(f"has 8 bits for a {dtype[:40]} tensor of shape {sizes}")
            return self._leaf(_Quantised(dtype, shape, elements))
        if tag == "t":
            length = elements * TENSOR_ITEMSIZE.get(dtype, 1)
            kind = _SmallTensor if length < LARGE else _Tensor
            return self._leaf(kind(dtype, shape, length))
        if dtype not in ARRAY_ITEMSIZE:
            raise bad(f"has an array of unknown dtype {dtype[:40]!r}")
        return self._leaf(_Array(dtype, shape, elements * ARRAY_ITEMSIZE[dtype]))

    def _leaf(self, leaf: _Leaf) -> _Leaf:
        self._total += leaf.length
        if self._total > MAX_TOTAL:
            raise bad(f"names more than {MAX_TOTAL} bytes")
        self.leaves.append(leaf)
        return leaf


def _elements(sizes: list[int]) -> int:
    # With each 0 as 1: torch and numpy compute strides of it, which must not overflow.
    extent = elements = 1
    for size in sizes:
        extent *= max(size, 1)
        elements *= size
        if extent > MAX_ELEMENTS:
            raise bad(f"has a tensor of shape {sizes}, which is too large")
    return elements


def _may_be_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) or (len(shape) == 4 and 1 <= shape[3] <= 4)
