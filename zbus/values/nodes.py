"""What a spec is read into: nodes, of which some have a buffer, and each of which is made a value.

Nothing is allocated before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import RemoteProtocolError
from . import containers, runs
from .layout import PLAIN, Layout, picture
from .quantise import dequantise, unpaletted
from .tensors import (
    ARRAY_ITEMSIZE,
    TENSOR_ITEMSIZE,
    check_dtype,
    empty_tensor,
    find_dtype,
    memory_of,
    nested,
    no_memory,
    parted,
    tensor_bytes,
    torch_module,
)

if TYPE_CHECKING:
    import torch

GROUPS: dict[str, Callable[[list[Any]], object]] = {"[": list, "(": tuple, "n": nested}


class BufferNode:
    """What has a buffer of ``length`` bytes."""

    length: int
    memory: int
    layout: Layout = PLAIN
    is_filled_in_place = False  # building it looks at none of its bytes

    def allocate(self) -> memoryview:
        raise NotImplementedError

    def build(self) -> object:
        raise NotImplementedError


class BytesNode(BufferNode):
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


class TensorNode(BufferNode):
    def __init__(self, dtype: str, shape: tuple[int, ...], length: int) -> None:
        self._dtype = check_dtype(dtype)
        self._shape = shape
        self._tensor: torch.Tensor | None = None
        self.length = self.memory = length
        self.layout = Layout(TENSOR_ITEMSIZE[dtype])
        self.is_filled_in_place = dtype != "bool"

    def allocate(self) -> memoryview:
        self._tensor = empty_tensor(self._shape, find_dtype(self._dtype))
        return tensor_bytes(self._tensor)

    def build(self) -> object:
        if self._tensor is None:  # it has no bytes
            return empty_tensor(self._shape, find_dtype(self._dtype))
        if self._dtype == "bool":
            _check_bools(tensor_bytes(self._tensor))
        return self._tensor


class SmallTensorNode(TensorNode):
    """Filled elsewhere and copied: memory that numpy has seen can never be resized again, and a
    node that computes into the tensor (``out=``) may want to."""

    def __init__(self, dtype: str, shape: tuple[int, ...], length: int) -> None:
        super().__init__(dtype, shape, length)
        self.memory = length * 2
        self.is_filled_in_place = False

    def build(self) -> object:
        built = super().build()
        return built.clone() if self._tensor is not None else built  # type: ignore[attr-defined]


class Pool(BufferNode):
    """The small tensors of one dtype."""

    def __init__(self, dtype: str) -> None:
        self._dtype = check_dtype(dtype)
        self._shapes: list[tuple[int, ...]] = []
        self._lengths: list[int] = []
        self._memory: torch.Tensor | None = None
        self._parts: Sequence[object] = ()
        self.length = 0
        self.layout = Layout(TENSOR_ITEMSIZE[dtype])

    @property
    def memory(self) -> int:  # type: ignore[override]
        return self.length * 2

    def __len__(self) -> int:
        return len(self._shapes)

    def add(self, shape: tuple[int, ...], elements: int) -> PooledNode:
        """Another tensor in it."""
        self._shapes.append(shape)
        self._lengths.append(elements)
        self.length += elements * self.layout.itemsize
        return PooledNode(self, len(self._shapes) - 1)

    def allocate(self) -> memoryview:
        self._memory = empty_tensor((sum(self._lengths),), find_dtype(self._dtype))
        return tensor_bytes(self._memory)

    def part(self, index: int) -> object:
        if self._memory is not None:  # the first that is asked for
            if self._dtype == "bool":
                _check_bools(tensor_bytes(self._memory))
            # Each gets memory of its own: a view would keep all of the others, in a file, too.
            self._parts = parted(self._memory, self._lengths, self._shapes)
            self._memory = None
        return self._parts[index]


class PooledNode(NamedTuple):
    """One tensor of a pool."""

    pool: Pool
    number: int


class QuantisedNode(BufferNode):
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


class ArrayNode(BufferNode):
    def __init__(self, dtype: str, shape: tuple[int, ...], length: int) -> None:
        self._dtype = np.dtype(dtype)
        self._shape = shape
        self._array: np.ndarray[Any, Any] | None = None
        self.length = self.memory = length
        self.layout = Layout(ARRAY_ITEMSIZE[dtype])
        self.is_filled_in_place = dtype != "bool"

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


class PalettedNode(QuantisedNode):
    def __init__(self, dtype: str, shape: tuple[int, ...], elements: int, table: bytes) -> None:
        super().__init__(dtype, shape, elements)
        self._table = table

    def build(self) -> object:
        made = empty_tensor(self._shape, find_dtype(self._dtype))
        if self._q is None:
            return made
        table = empty_tensor((len(self._table) // made.element_size(),), made.dtype)
        tensor_bytes(table)[:] = self._table
        if not unpaletted(self._q, table, made):
            raise RemoteProtocolError("a picture of the value counts beyond its numbers")
        return made


class RunNode(BufferNode):
    """Numbers of one type in a list or tuple."""

    def __init__(self, kind: Callable[[list[Any]], object], dtype: str, count: int) -> None:
        self._kind, self._dtype = kind, np.dtype(dtype)
        self._numbers: np.ndarray[Any, Any] | None = None
        self.length = count * self._dtype.itemsize
        self.memory = self.length + count * runs.OBJECT
        self.layout = Layout(self._dtype.itemsize)

    def allocate(self) -> memoryview:
        try:
            self._numbers = np.empty(self.length // self._dtype.itemsize, self._dtype)
        except MemoryError as error:
            raise no_memory(f"{self.length} bytes of numbers") from error
        return memory_of(self._numbers)

    def build(self) -> object:
        numbers = np.empty(0, self._dtype) if self._numbers is None else self._numbers
        if self._dtype == np.bool_ and len(numbers):
            _check_bools(memory_of(numbers))
        built: list[Any] = numbers.tolist()
        return built if self._kind is list else self._kind(built)


@dataclass(frozen=True)
class GroupNode:
    """A list, tuple or NestedTensor by its tag."""

    tag: str
    nodes: list[object]


@dataclass(frozen=True)
class DictNode:
    keys: list[Any]
    nodes: list[object]


@dataclass(frozen=True)
class ContainerNode:
    kind: str
    fields: dict[str, object]


def build(node: object) -> object:
    build = _BUILDS.get(type(node))
    return node if build is None else build(node)


_BUILDS: dict[type, Callable[[Any], object]] = {
    PooledNode: lambda node: node.pool.part(node.number),
    GroupNode: lambda node: GROUPS[node.tag]([*map(build, node.nodes)]),
    DictNode: lambda node: dict(zip(node.keys, map(build, node.nodes), strict=True)),
    ContainerNode: lambda node: containers.made(
        node.kind, {name: build(inner) for name, inner in node.fields.items()}
    ),
    **dict.fromkeys(
        (BytesNode, TensorNode, SmallTensorNode, QuantisedNode, PalettedNode, ArrayNode, RunNode),
        lambda leaf: leaf.build(),
    ),
}


def _check_bools(view: memoryview) -> None:
    # A bool that is neither 0 nor 1 makes torch and numpy behave as nobody defined.
    if int(np.frombuffer(view, np.uint8).max(initial=0)) > 1:
        raise RemoteProtocolError("a bool tensor of the value holds bytes other than 0 and 1")
