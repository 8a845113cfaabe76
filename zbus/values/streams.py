"""The memory behind a transfer: a packed value to read, an unpacked one to fill, and the made-up
blocks of zbus-ping, which are never held as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import Mismatch, RemoteProtocolError
from ..protocol.messages import MAX_CHUNK
from .kinds import describe, fits
from .layout import PLAIN, Layout, Map
from .unpack import Unpacker


def _view(buffers: Sequence[memoryview], at: Map, offset: int, size: int) -> memoryview | None:
    (index, start, length), *rest = at.pieces(offset, size)
    return None if rest else buffers[index][start : start + length]


class PackedSource:
    """Reads a packed value, with its spec in front where that is long.

    Args:
        buffers: The plain buffers, in order; none of them empty.
        parts: (length, layout) of each.
        rows: Whether the codec works on picture rows.
    """

    def __init__(
        self, buffers: Sequence[memoryview], parts: Sequence[tuple[int, Layout]], rows: bool
    ) -> None:
        self._buffers, self._map, self._rows = buffers, Map(parts), rows
        self.total = self._map.total

    @property
    def pieces(self) -> Sequence[memoryview]:
        """The memory itself, in order."""
        return self._buffers

    def read(self, offset: int, size: int) -> memoryview:
        view = _view(self._buffers, self._map, offset, size)
        return view if view is not None else memoryview(self._joined(offset, size))

    def _joined(self, offset: int, size: int) -> bytes:
        pieces = self._map.pieces(offset, size)
        return b"".join(self._buffers[i][start : start + length] for i, start, length in pieces)

    def layout(self, offset: int, size: int) -> Layout:
        return self._map.layout(offset, size)

    def buffer(self, offset: int) -> Layout:
        return self._map.buffer(offset)

    def cut(self, offset: int, want: int) -> int:
        return self._map.cut(offset, want, self._rows)


class ValueSink:
    """Fills a value, with its spec in front where that is long.

    Args:
        expect: The kind of value that must come, or "any".

    Attributes:
        memory: The bytes that the value takes, as its spec says.
        parts: How many things it is built of.
        converted: The bytes that building it works on, and that are not the value's own memory.
        needs_torch: Whether its memory is torch's.
    """

    def __init__(self, expect: str = "any") -> None:
        self._expect = expect
        self._buffers: list[memoryview] = []
        self._parts: list[tuple[int, Layout]] = []
        self._map = Map(self._parts)
        self._unpacker: Unpacker | None = None
        self.memory, self.parts, self.converted, self.needs_torch = 0, 0, 0, False

    def expect_head(self, head: int) -> None:
        """The spec comes first in the stream, `head` bytes of it."""
        self._buffers, self._parts = [memoryview(bytearray(head))], [(head, PLAIN)]
        self._map = Map(self._parts)

    def read_spec(self, spec: bytes | None) -> int:
        """Read the spec, or with None that which came first; returns the plain bytes to come.

        Raises:
            RemoteProtocolError: It is none.
        """
        unpacker = Unpacker(bytes(self._buffers[0]) if spec is None else spec)
        self._unpacker = unpacker
        self.memory, self.parts = unpacker.memory, unpacker.parts
        self.converted = unpacker.converted
        self.needs_torch = unpacker.needs_torch
        return unpacker.total

    def allocate(self) -> None:
        """Make the memory of the value; the stream goes there from now on.

        Raises:
            TransferRefused: The system does not give that much.
        """
        assert self._unpacker is not None
        self._buffers = [*self._buffers, *self._unpacker.allocate()]
        self._parts = [*self._parts, *self._unpacker.layouts]
        self._map = Map([part for part in self._parts if part[0]])
        self._buffers = [buffer for buffer in self._buffers if len(buffer)]

    def value(self) -> Any:
        """The value, once every byte is there.

        Raises:
            RemoteProtocolError: The bytes are not what the spec says (a text that is not UTF-8).
            Mismatch: It is of another kind than was expected.
        """
        assert self._unpacker is not None
        value = self._unpacker.value()
        if not fits(self._expect, value):
            raise Mismatch(
                f"{self._expect} is expected, {describe(value)} has come",
                remedy="Choose what comes, or any, as what this receive expects",
            )
        return value

    def view(self, offset: int, size: int) -> memoryview | None:
        return _view(self._buffers, self._map, offset, size)

    def write(self, offset: int, data: memoryview) -> None:
        at = 0
        for index, start, length in self._map.pieces(offset, len(data)):
            self._buffers[index][start : start + length] = data[at : at + length]
            at += length

    def layout(self, offset: int, size: int) -> Layout:
        return self._map.layout(offset, size)

    def digest(self, offset: int, size: int, hasher: Any) -> None:
        for index, start, length in self._map.pieces(offset, size):
            hasher.update(self._buffers[index][start : start + length])

    def fill(self, body: bytes) -> None:
        """Take the whole stream at once, of a value that rode inside its OFFER.

        Raises:
            RemoteProtocolError: It has another length than the spec says.
        """
        if len(body) != self._map.total:
            raise RemoteProtocolError(f"{len(body)} bytes where the spec says {self._map.total}")
        if body:
            self.write(0, memoryview(body))


PATTERN = bytes((i * 167 + (i >> 8) * 59) & 0xFF for i in range(1 << 16)) * (MAX_CHUNK >> 16)


class PatternSource:
    """A made-up block of any size, for measuring: one MiB over and over."""

    pieces = ()  # nothing of it lies anywhere

    def __init__(self, total: int) -> None:
        self.total = total

    def read(self, offset: int, size: int) -> memoryview:
        return memoryview(PATTERN)[:size]

    def layout(self, offset: int, size: int) -> Layout:
        return PLAIN

    def buffer(self, offset: int) -> Layout:
        return PLAIN

    def cut(self, offset: int, want: int) -> int:
        return min(want, MAX_CHUNK, self.total - offset)


class DropSink:
    """Takes a block of any size and keeps one chunk of it."""

    memory, parts, converted, needs_torch = 0, 0, 0, False

    def __init__(self) -> None:
        self._scratch = memoryview(bytearray(MAX_CHUNK))

    def view(self, offset: int, size: int) -> memoryview | None:
        return self._scratch[:size]

    def write(self, offset: int, data: memoryview) -> None:
        self._scratch[: len(data)] = data

    def layout(self, offset: int, size: int) -> Layout:
        return PLAIN

    def digest(self, offset: int, size: int, hasher: Any) -> None:
        hasher.update(self._scratch[:size])

    def expect_head(self, head: int) -> None:
        """It has none."""

    def read_spec(self, spec: bytes | None) -> int:
        return 0

    def allocate(self) -> None:
        """It holds one chunk."""

    def fill(self, body: bytes) -> None:
        """It never rides inside an offer."""

    def value(self) -> None:
        """Nothing is kept."""
