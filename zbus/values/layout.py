"""What the bytes of a value look like, and how they are cut into chunks.

A value travels as the concatenation of its buffers. Sender and receiver both know the length
and the :class:`Layout` of every buffer (the receiver computes them from the spec), so for any
range of the concatenation both see the same :meth:`Map.layout`, and no chunk needs to say how
it was encoded beyond the transfer's codec.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..errors import LocalProtocolError

ALIGN = 64  # a chunk ends on a multiple of this: a multiple of every item size
SMALL = 64 * 1024  # buffers below this share a chunk
LONGEST_ROW = 1024 * 1024  # a row beyond this could not be one chunk
MOST_ROWS = 16383  # WebP's limit for a side


@dataclass(frozen=True)
class Layout:
    """What a codec may know of the bytes of a range.

    Attributes:
        itemsize: The element's size in bytes, for byte shuffling.
        width: Above 0 the bytes are rows of an 8-bit picture, width * channels bytes a row.
        channels: 1, 3 or 4 where width is above 0.
    """

    itemsize: int = 1
    width: int = 0
    channels: int = 0

    @property
    def row(self) -> int:
        """The bytes in a row of the picture; 0 where this is none."""
        return self.width * self.channels


@dataclass(frozen=True)
class Buffer:
    """One run of a value's bytes. The view has format "B", one dimension, and is contiguous."""

    view: memoryview
    layout: Layout


PLAIN = Layout()


def picture(shape: Sequence[int]) -> Layout:
    """The layout of a quantised image [B, H, W, C] or mask [B, H, W] or [H, W]."""
    width, channels = (shape[2], shape[3]) if len(shape) == 4 else (shape[-1], 1)
    if channels not in (1, 3, 4) or not 0 < width * channels <= LONGEST_ROW:
        return PLAIN
    return Layout(1, width, channels)


class Map:
    """The concatenation of a value's buffers: cuts it into chunks, and finds ranges in it.

    Args:
        parts: (length, layout) of each buffer, in order. No length may be 0.
    """

    def __init__(self, parts: Sequence[tuple[int, Layout]]) -> None:
        self._parts = tuple(parts)
        self._starts = [0, *accumulate(length for length, _ in self._parts)]
        self.total = self._starts[-1]

    def layout(self, offset: int, size: int) -> Layout:
        """The layout that a codec may assume for this range, the same on both sides.

        The buffer's own where the range lies within one buffer and starts and ends on a row of
        its picture, or on an item; plain bytes otherwise.
        """
        index, start = self._find(offset, size)
        length, layout = self._parts[index]
        unit = layout.row or layout.itemsize
        if start + size > length or start % unit or size % unit:
            return PLAIN
        return layout

    def buffer(self, offset: int) -> Layout:
        """That of the buffer which has the byte at ``offset``."""
        return self._parts[self._find(offset, 1)[0]][1]

    def cut(self, offset: int, want: int, rows: bool) -> int:
        """The size of the next chunk at ``offset``, at least 1.

        Args:
            offset: Where the chunk starts, below ``total``.
            want: The size to aim at. A chunk is larger only where one row is.
            rows: Whether the codec works on pictures: their chunks are then whole rows.

        A chunk lies within one buffer, except that small buffers in a row share one. It ends at
        a buffer's end, on a row, or on a multiple of 64 bytes in its buffer.
        """
        index, start = self._find(offset, 1)
        want = max(want, 1)
        length, layout = self._parts[index]
        rest = length - start
        if rows and layout.row:
            return min(rest, _strip(start, want, layout.row))
        if rest <= want:
            return self._gather(index, rest, want, rows) if length < SMALL else rest
        aligned = (start + want) // ALIGN * ALIGN - start
        return aligned if aligned > 0 else want

    def pieces(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """(buffer's index, start in that buffer, length) of each piece of the range, in order."""
        index, start = self._find(offset, size)
        while size:
            length = min(size, self._parts[index][0] - start)
            yield index, start, length
            index, start, size = index + 1, 0, size - length

    def _find(self, offset: int, size: int) -> tuple[int, int]:
        if offset < 0 or size < 1 or offset + size > self.total:
            raise LocalProtocolError(
                f"bytes {offset} to {offset + size} are outside of a value of {self.total} bytes"
            )
        index = bisect_right(self._starts, offset) - 1
        return index, offset - self._starts[index]

    def _gather(self, index: int, size: int, want: int, rows: bool) -> int:
        """Adds the small buffers that follow, as long as they fit whole."""
        for at in range(index + 1, len(self._parts)):
            length, layout = self._parts[at]
            if length >= SMALL or size + length > want or (rows and layout.row):
                break
            size += length
        return size


def _strip(start: int, want: int, row: int) -> int:
    """The size of a strip of whole rows. One that starts within a row goes to that row's end."""
    if start % row:
        return min(want, row - start % row)
    return max(1, min(want // row, MOST_ROWS)) * row
