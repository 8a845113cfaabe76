"""The receiver's half of the payload: a spec, hostile until checked, becomes a value.

Reading the spec allocates nothing of the sizes it names; :meth:`Unpacker.allocate` does, once
the caller has decided (by ``total`` and ``memory``) that it may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import LocalProtocolError, RemoteProtocolError
from . import containers, runs
from .layout import PLAIN, Layout, picture
from .quantise import dequantise, unpaletted
from .recycling import LARGE
from .spec import (
    MAX_DEPTH,
    MAX_DIMS,
    MAX_ELEMENTS,
    MAX_INT_BITS,
    MAX_ITEMS,
    MAX_NUMBERS,
    MAX_POOLED,
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
    parted,
    tensor_bytes,
    torch_module,
)

if TYPE_CHECKING:
    import torch

# What a tensor, an array or a text takes beside its own bytes, where there are more than a few: a
# tensor of one byte is one of torch's objects, one of Python's, and its views while it is filled.
_OBJECT, _FEW = 2560, 64

_GROUPS: dict[str, Callable[[list[Any]], object]] = {"[": list, "(": tuple, "n": nested}


class Unpacker:
    """Builds a value from its spec and its bytes.

    Attributes:
        total: The bytes of all buffers.
        memory: The bytes that :meth:`allocate` takes and :meth:`value` takes on top of it, to
            within a few hundred KiB.
        layouts: (length, layout) of each buffer, in order; none is empty.
        needs_torch: Whether :meth:`allocate` imports torch, if nothing has yet.

    Raises:
        RemoteProtocolError: The spec is not one that `payload.pack` writes, or names
            a dtype that this side does not have.
    """

    def __init__(self, spec: bytes) -> None:
        reader = _Reader(spec)
        self._root = reader.root()
        self._leaves = [*reader.pools.values(), *reader.leaves]
        self._parts = reader.items
        self._allocated = False
        self.layouts = [(leaf.length, leaf.layout) for leaf in self._leaves if leaf.length]
        self.total = sum(length for length, _ in self.layouts)
        made = len(reader.leaves) + sum(map(len, reader.pools.values()))
        self.memory = sum(leaf.memory for leaf in self._leaves) + max(0, made - _FEW) * _OBJECT
        self.needs_torch = any(
            isinstance(leaf, (_Tensor, _Quantised, _Pool)) for leaf in self._leaves
        )

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

    @property
    def parts(self) -> int:
        """How many things it is made of: what building it costs, whatever their size."""
        return self._parts


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


class _Pool(_Leaf):
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

    def add(self, shape: tuple[int, ...], elements: int) -> _Pooled:
        """Another tensor in it."""
        self._shapes.append(shape)
        self._lengths.append(elements)
        self.length += elements * self.layout.itemsize
        return _Pooled(self, len(self._shapes) - 1)

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


class _Pooled(NamedTuple):
    """One tensor of a pool."""

    pool: _Pool
    number: int


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


class _Paletted(_Quantised):
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


class _Run(_Leaf):
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
    build = _BUILDS.get(type(node))
    return node if build is None else build(node)


_BUILDS: dict[type, Callable[[Any], object]] = {
    _Pooled: lambda node: node.pool.part(node.number),
    _Group: lambda node: _GROUPS[node.tag]([*map(_build, node.nodes)]),
    _Dict: lambda node: dict(zip(node.keys, map(_build, node.nodes), strict=True)),
    _Container: lambda node: containers.made(
        node.kind, {name: _build(inner) for name, inner in node.fields.items()}
    ),
    **dict.fromkeys(
        (_Bytes, _Tensor, _SmallTensor, _Quantised, _Paletted, _Array, _Run),
        lambda leaf: leaf.build(),
    ),
}


def _check_bools(view: memoryview) -> None:
    # A bool that is neither 0 nor 1 makes torch and numpy behave as nobody defined.
    if int(np.frombuffer(view, np.uint8).max(initial=0)) > 1:
        raise RemoteProtocolError("a bool tensor of the value holds bytes other than 0 and 1")


class _Reader:
    """Reads a spec into nodes: scalars as they are, _Leaf, _Pooled, _Group, _Dict, _Container.

    Attributes:
        items: How many nodes and keys there are.
    """

    def __init__(self, spec: bytes) -> None:
        self._atoms = Atoms(spec)
        self._total = self._numbers = 0
        self._forms: list[tuple[_Pool, tuple[int, ...], int]] = []
        self.items = 0
        self.leaves: list[_Leaf] = []
        self.pools: dict[str, _Pool] = {}

    def root(self) -> object:
        version = self._atoms.any()
        if type(version) is not int or version != VERSION:
            raise bad(f"is not of version {VERSION}")
        node = self._node(0)
        self._atoms.end()
        return node

    def _node(self, depth: int) -> object:
        tag = self._atoms.any()
        if type(tag) is not str:
            return tag
        if tag == "=":
            return self._another()
        if tag in _GROUPS:
            return self._group(tag, depth)
        if tag == "{":
            return self._dict(depth)
        if tag == "o":
            return self._container(depth)
        if tag in _SHAPED:
            return self._shaped(tag)
        if tag in ("S", "b"):
            return self._leaf(_Bytes(self._atoms.count(MAX_TOTAL), text=tag == "S"))
        return self._scalar(tag)

    def _enter(self, items: int, depth: int) -> int:
        """Count what lies in something at that depth; returns their depth."""
        self.items += items
        if items and depth >= MAX_DEPTH:
            raise bad(f"is nested deeper than {MAX_DEPTH} levels")
        if self.items > MAX_ITEMS:
            raise bad(f"holds more than {MAX_ITEMS} items")
        return depth + 1

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
        depth = self._enter(count, depth)
        nodes = [self._node(depth) for _ in range(count)]
        if tag == "n" and not all(isinstance(node, _TENSORS) for node in nodes):
            raise bad("has a nested tensor of something else than tensors")
        return _Group(tag, nodes)

    def _dict(self, depth: int) -> _Dict:
        keys, nodes = [], []
        count = self._atoms.count(MAX_ITEMS)
        depth = self._enter(2 * count, depth)
        for _ in range(count):
            keys.append(self._key(depth))
            nodes.append(self._node(depth))
        # Keys made to collide would keep dict busy for minutes: look at the hashes first.
        if len(keys) > 64 and len({hash(key) for key in keys}) * 2 < len(keys):
            raise bad("has a dict whose keys collide")
        if len(set(keys)) != len(keys):
            raise bad("has a dict with a key twice")
        return _Dict(keys, nodes)

    def _container(self, depth: int) -> _Container:
        kind, fields = self._atoms.text(), dict[str, object]()
        count = self._atoms.count(containers.MAX_FIELDS)
        depth = self._enter(count, depth)
        for _ in range(count):
            name = self._atoms.text()
            if name in fields:
                raise bad("has a field twice")
            fields[name] = self._node(depth)
        containers.check(kind, fields)
        return _Container(kind, fields)

    def _key(self, depth: int) -> object:
        atom = self._atoms.any()
        if type(atom) is not str:
            return atom
        if atom == "s":
            return self._atoms.text()
        if atom == "(":
            count = self._atoms.count(MAX_ITEMS)
            depth = self._enter(count, depth)
            return tuple([self._key(depth) for _ in range(count)])
        if atom != "i":
            raise bad(f"has a dict with a key of tag {atom[:20]!r}")
        return self._scalar(atom)

    def _shaped(self, tag: str) -> _Leaf | _Pooled:
        dtype = self._atoms.text()
        sizes = [self._atoms.count(MAX_ELEMENTS) for _ in range(self._atoms.count(MAX_DIMS))]
        elements = _elements(sizes)
        shape = tuple(sizes)
        if tag == "g":
            return self._pooled(dtype, shape, elements)
        if tag in _RUNS:
            return self._run(tag, dtype, shape)
        if tag in ("q", "p"):
            if dtype not in QUANTISABLE or not _may_be_picture(shape):
                raise bad(f"has 8 bits for a {dtype[:40]} tensor of shape {sizes}")
            if tag == "q":
                return self._leaf(_Quantised(dtype, shape, elements))
            return self._leaf(_Paletted(dtype, shape, elements, self._table(dtype)))
        if tag == "t":
            length = elements * TENSOR_ITEMSIZE.get(dtype, 1)
            kind = _SmallTensor if length < LARGE else _Tensor
            return self._leaf(kind(dtype, shape, length))
        if dtype not in ARRAY_ITEMSIZE:
            raise bad(f"has an array of unknown dtype {dtype[:40]!r}")
        return self._leaf(_Array(dtype, shape, elements * ARRAY_ITEMSIZE[dtype]))

    def _pooled(self, dtype: str, shape: tuple[int, ...], elements: int) -> _Pooled:
        pool = self.pools.get(dtype)
        if pool is None:
            pool = self.pools[dtype] = _Pool(dtype)
        if not 0 < elements * pool.layout.itemsize <= MAX_POOLED:
            raise bad(f"has a tensor of shape {list(shape)} in a pool of small ones")
        self._forms.append((pool, shape, elements))
        return pool.add(shape, elements)

    def _another(self) -> _Pooled:
        pool, shape, elements = self._forms[self._atoms.count(len(self._forms) - 1)]
        return pool.add(shape, elements)

    def _table(self, dtype: str) -> bytes:
        table = self._atoms.data()
        count, rest = divmod(len(table), TENSOR_ITEMSIZE[dtype])
        if rest or not 0 < count <= 256:
            raise bad(f"has a picture of {len(table)} bytes of numbers")
        return table

    def _run(self, tag: str, dtype: str, shape: tuple[int, ...]) -> _Leaf:
        if dtype not in runs.DTYPES or len(shape) != 1:
            raise bad(f"has a list of numbers of dtype {dtype[:40]!r} and shape {list(shape)}")
        self._numbers += shape[0]
        if self._numbers > MAX_NUMBERS:
            raise bad(f"holds more than {MAX_NUMBERS} numbers in lists")
        return self._leaf(_Run(_RUNS[tag], dtype, shape[0]))

    def _leaf(self, leaf: _Leaf) -> _Leaf:
        self._total += leaf.length
        if self._total > MAX_TOTAL:
            raise bad(f"names more than {MAX_TOTAL} bytes")
        self.leaves.append(leaf)
        return leaf


_RUNS: dict[str, Callable[[list[Any]], object]] = {"[#": list, "(#": tuple}
_SHAPED = frozenset(("t", "q", "p", "a", "g", *_RUNS))
_TENSORS = (_Tensor, _Quantised, _Pooled)


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
