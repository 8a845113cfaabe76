"""The receiver's half of the payload: a spec, hostile until checked, becomes a value.

Reading the spec allocates nothing of the sizes it names; :meth:`Unpacker.allocate` does, once
the caller has decided (by ``total`` and ``memory``) that it may.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import LocalProtocolError
from . import containers, runs
from .nodes import (
    GROUPS,
    ArrayNode,
    BufferNode,
    BytesNode,
    ContainerNode,
    DictNode,
    GroupNode,
    PalettedNode,
    Pool,
    PooledNode,
    QuantisedNode,
    RunNode,
    SmallTensorNode,
    TensorNode,
    build,
)
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
from .tensors import ARRAY_ITEMSIZE, QUANTISABLE, TENSOR_ITEMSIZE

# What a tensor, an array or a text takes beside its own bytes, where there are more than a few: a
# tensor of one byte is one of torch's objects, one of Python's, and its views while it is filled.
_OBJECT, _FEW = 2560, 64


class Unpacker:
    """Builds a value from its spec and its bytes.

    Attributes:
        total: The bytes of all buffers.
        memory: The bytes that :meth:`allocate` takes and :meth:`value` takes on top of it, to
            within a few hundred KiB.
        converted: The bytes of which :meth:`value` makes others, or which it looks through.
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
        looked_at = (leaf.length for leaf in self._leaves if not leaf.is_filled_in_place)
        self.converted = sum(looked_at)
        made = len(reader.leaves) + sum(map(len, reader.pools.values()))
        self.memory = sum(leaf.memory for leaf in self._leaves) + max(0, made - _FEW) * _OBJECT
        self.needs_torch = any(
            isinstance(leaf, (TensorNode, QuantisedNode, Pool)) for leaf in self._leaves
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
        return build(self._root)

    @property
    def parts(self) -> int:
        """How many things it is made of: what building it costs, whatever their size."""
        return self._parts


class _Reader:
    """Reads a spec into nodes: scalars as they are, and those of `nodes`.

    Attributes:
        items: How many nodes and keys there are.
    """

    def __init__(self, spec: bytes) -> None:
        self._atoms = Atoms(spec)
        self._total = self._numbers = 0
        self._forms: list[tuple[Pool, tuple[int, ...], int]] = []
        self.items = 0
        self.leaves: list[BufferNode] = []
        self.pools: dict[str, Pool] = {}

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
        if tag in GROUPS:
            return self._group(tag, depth)
        if tag == "{":
            return self._dict(depth)
        if tag == "o":
            return self._container(depth)
        if tag in _SHAPED:
            return self._shaped(tag)
        if tag in ("S", "b"):
            return self._leaf(BytesNode(self._atoms.count(MAX_TOTAL), text=tag == "S"))
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

    def _group(self, tag: str, depth: int) -> GroupNode:
        count = self._atoms.count(MAX_ITEMS)
        depth = self._enter(count, depth)
        nodes = [self._node(depth) for _ in range(count)]
        if tag == "n" and not all(isinstance(node, _TENSORS) for node in nodes):
            raise bad("has a nested tensor of something else than tensors")
        return GroupNode(tag, nodes)

    def _dict(self, depth: int) -> DictNode:
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
        return DictNode(keys, nodes)

    def _container(self, depth: int) -> ContainerNode:
        kind, fields = self._atoms.text(), dict[str, object]()
        count = self._atoms.count(containers.MAX_FIELDS)
        depth = self._enter(count, depth)
        for _ in range(count):
            name = self._atoms.text()
            if name in fields:
                raise bad("has a field twice")
            fields[name] = self._node(depth)
        containers.check(kind, fields)
        return ContainerNode(kind, fields)

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

    def _shaped(self, tag: str) -> BufferNode | PooledNode:
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
                return self._leaf(QuantisedNode(dtype, shape, elements))
            return self._leaf(PalettedNode(dtype, shape, elements, self._table(dtype)))
        if tag == "t":
            length = elements * TENSOR_ITEMSIZE.get(dtype, 1)
            kind = SmallTensorNode if length < LARGE else TensorNode
            return self._leaf(kind(dtype, shape, length))
        if dtype not in ARRAY_ITEMSIZE:
            raise bad(f"has an array of unknown dtype {dtype[:40]!r}")
        return self._leaf(ArrayNode(dtype, shape, elements * ARRAY_ITEMSIZE[dtype]))

    def _pooled(self, dtype: str, shape: tuple[int, ...], elements: int) -> PooledNode:
        pool = self.pools.get(dtype)
        if pool is None:
            pool = self.pools[dtype] = Pool(dtype)
        if not 0 < elements * pool.layout.itemsize <= MAX_POOLED:
            raise bad(f"has a tensor of shape {list(shape)} in a pool of small ones")
        self._forms.append((pool, shape, elements))
        return pool.add(shape, elements)

    def _another(self) -> PooledNode:
        pool, shape, elements = self._forms[self._atoms.count(len(self._forms) - 1)]
        return pool.add(shape, elements)

    def _table(self, dtype: str) -> bytes:
        table = self._atoms.data()
        count, rest = divmod(len(table), TENSOR_ITEMSIZE[dtype])
        if rest or not 0 < count <= 256:
            raise bad(f"has a picture of {len(table)} bytes of numbers")
        return table

    def _run(self, tag: str, dtype: str, shape: tuple[int, ...]) -> BufferNode:
        if dtype not in runs.DTYPES or len(shape) != 1:
            raise bad(f"has a list of numbers of dtype {dtype[:40]!r} and shape {list(shape)}")
        self._numbers += shape[0]
        if self._numbers > MAX_NUMBERS:
            raise bad(f"holds more than {MAX_NUMBERS} numbers in lists")
        return self._leaf(RunNode(_RUNS[tag], dtype, shape[0]))

    def _leaf(self, leaf: BufferNode) -> BufferNode:
        self._total += leaf.length
        if self._total > MAX_TOTAL:
            raise bad(f"names more than {MAX_TOTAL} bytes")
        self.leaves.append(leaf)
        return leaf


_RUNS: dict[str, Callable[[list[Any]], object]] = {"[#": list, "(#": tuple}
_SHAPED = frozenset(("t", "q", "p", "a", "g", *_RUNS))
_TENSORS = (TensorNode, QuantisedNode, PooledNode)


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
