"""The memory behind a transfer: a packed value to read, an unpacked one to fill, and the made-up
blocks of zbus-ping, which are never held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import RemoteProtocolError
from ..protocol.messages import MAX_CHUNK
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

    def cut(self, offset: int, want: int) -> int:
        return self._map.cut(offset, want, self._rows)


class ValueSink:
    """Fills a value, with its spec in front where that is long."""

    def __init__(self) -> None:
        self._buffers: list[memoryview] = []
        self._parts: list[tuple[int, Layout]] = []
        self._map = Map(self._parts)
        self.unpacker: Unpacker | None = None

    def expect_head(self, head: int) -> None:
        """The spec comes first in the stream, `head` bytes of it."""
        self._buffers, self._parts = [memoryview(bytearray(head))], [(head, PLAIN)]
        self._map = Map(self._parts)

    def head(self) -> bytes:
        """The spec that has come."""
        return bytes(self._buffers[0])

    def open(self, unpacker: Unpacker) -> None:
        """Allocate the value's memory; the stream goes there from now on."""
        self.unpacker = unpacker
        self._buffers = [*self._buffers, *unpacker.allocate()]
        self._parts = [*self._parts, *unpacker.layouts]
        self._map = Map([part for part in self._parts if part[0]])
        self._buffers = [buffer for buffer in self._buffers if len(buffer)]

    def value(self) -> Any:
        """The value, once every byte is there.

        Raises:
            RemoteProtocolError: The bytes are not what the spec says (a text that is not UTF-8).
        """
        assert self.unpacker is not None
        return self.unpacker.value()

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

    def cut(self, offset: int, want: int) -> int:
        return min(want, MAX_CHUNK, self.total - offset)


class DropSink:
    """Takes a block of any size and keeps one chunk of it."""

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


class Budget:
    """The memory that values on their way in may take, all together.

    Args:
        limit: Tells the bytes that may be taken now, when nothing is.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._cap = 0  # as of when nothing was taken
        self._taken = 0
        self._waiting: list[tuple[int, Callable[[], None]]] = []

    def fits(self, size: int) -> bool:
        """Whether `size` bytes could be taken, if not now then later."""
        return size <= self.cap

    @property
    def cap(self) -> int:
        """The bytes that all may take together."""
        if not self._taken:
            self._cap = self._limit()
        return self._cap

    def take(self, size: int, then: Callable[[], None]) -> None:
        """Take `size` bytes and call `then`, at once or when others have given theirs back."""
        self._waiting.append((size, then))
        self._serve()

    def give_back(self, size: int) -> None:
        """They are the user's now, or freed."""
        self._taken -= size
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            size, then = self._waiting[0]
            if self._taken and self._taken + size > self.cap:
                return
            del self._waiting[0]
            self._taken += size
            then()
