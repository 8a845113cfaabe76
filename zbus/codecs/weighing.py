"""Which codec the next chunk of a transfer goes by: the one that has it there soonest.

Encoding and sending overlap, so a codec takes the longer of the two. How fast it is and how much it
saves is first assumed, then seen in a sample from the middle of the value, then in each chunk. What
the link delivers is somebody else's to know, and may change from chunk to chunk.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..values.layout import MOST_ROWS, Layout

if TYPE_CHECKING:
    from ..codecs import Codec
    from ..values.layout import Buffer

RAW = "raw"
SLOW = 1e6  # bytes/s: what is right there does least harm where nothing is known
SAMPLE = 64 * 1024  # bytes
HOP = 0.0002  # seconds that a chunk's way through a worker thread costs besides
SLOWER = 1.25  # times that a codec is believed to take longer than the last time
STARVED = 3  # times that the link had nothing to do, after which a chunk shows how fast it is


class Weight(NamedTuple):
    """What a codec costs and saves."""

    seconds: float  # of one thread, for a byte
    ratio: float  # bytes on the wire for a byte


class Ahead(NamedTuple):
    """What is to be done before the next chunk can go."""

    wire: float = 0.0  # seconds until the link has nothing to do
    encoding: float = 0.0  # seconds until every chunk is encoded that is in the pool
    chunks: int = 0  # that are there


NOTHING = Ahead()


class Sample(NamedTuple):
    """A piece of a value."""

    view: memoryview
    layout: Layout


class Sight(NamedTuple):
    """What a codec has made of some bytes."""

    name: str
    layout: Layout
    plain: int
    packed: int
    seconds: float


# Before anything is seen. Of a photograph and of a sampler's noise, on one core of a shared server.
_PICTURE = {"lz4": (600e6, 0.65), "zlib": (90e6, 0.5), "png": (45e6, 0.45), "webp": (60e6, 0.36)}
_NUMBERS = {"lz4": (1000e6, 0.85), "zlib": (40e6, 0.85)}
_BYTES = {"lz4": (500e6, 0.7), "zlib": (60e6, 0.6)}


def _kind(layout: Layout) -> str:
    if layout.row:
        return "picture"
    return "bytes" if layout.itemsize == 1 else "numbers"


_ASSUMED = {
    (kind, name): Weight(1 / rate, ratio)
    for kind, told in {"picture": _PICTURE, "numbers": _NUMBERS, "bytes": _BYTES}.items()
    for name, (rate, ratio) in told.items()
}


class Weighing:
    """The choice for one value.

    Args:
        codecs: Those that may be chosen, besides sending the bytes as they are.
        samples: Pieces of the value.
        threads: How many chunks are encoded at once.
        is_free: Whether there is a choice at all; else the only codec takes every chunk.
    """

    def __init__(
        self,
        codecs: Collection[Codec],
        samples: Sequence[Sample] = (),
        threads: int = 1,
        is_free: bool = True,
    ) -> None:
        self._codecs = {codec.name: codec for codec in codecs}
        self._samples, self.threads, self._is_free = samples, threads, is_free
        self._seen: dict[tuple[str, str], Weight] = {}
        self._starved = 0

    def best(self, layout: Layout, size: int, rate: float | None, ahead: Ahead = NOTHING) -> str:
        """The codec for so many such bytes on a link of `rate` bytes per second; None: not known
        yet."""
        if not self._is_free:
            return next(iter(self._codecs), RAW)
        rate = rate or SLOW
        begins = max(ahead.wire, ahead.encoding)  # chunks go in their order
        least, name = begins + size / rate, RAW
        for codec in self._codecs.values():
            weight = self._weight(codec.name, _kind(layout))
            ready = size * weight.seconds + (ahead.encoding if ahead.chunks >= self.threads else 0)
            took = max(begins, ready) + size * weight.ratio / rate + HOP
            if took < least and (layout.row or not codec.pictures):
                least, name = took, codec.name
        return name

    def pick(self, layout: Layout, size: int, rate: float, ahead: Ahead) -> str:
        """The same for the next chunk, which is a probe at times."""
        if self._starved >= STARVED and self._is_free:
            self._starved = 0
            return RAW
        return self.best(layout, size, rate, ahead)

    def is_late(self, layout: Layout, size: int, name: str, rate: float, waits: float) -> bool:
        """Whether a chunk is there sooner as it is than it is encoded, with a link that has nothing
        else to do.

        Args:
            waits: The seconds since it was handed to its codec.
        """
        weight = self._weight(name, _kind(layout))
        ready = max(0.0, size * weight.seconds - waits)
        return self._is_free and size / rate < ready + size * weight.ratio / rate

    def takes(self, name: str, layout: Layout, size: int) -> float:
        """Seconds of one thread for so many bytes."""
        return size * self._weight(name, _kind(layout)).seconds

    def starved(self) -> None:
        """The link had nothing to do while a chunk was encoded: it may be faster than is known."""
        self._starved += 1

    def ratio(self, name: str, layout: Layout) -> float:
        """The bytes on the wire that it is likely to make of a byte."""
        return 1.0 if name == RAW else self._weight(name, _kind(layout)).ratio

    def _weight(self, name: str, kind: str) -> Weight:
        key = (kind, name)
        return self._seen.get(key) or _ASSUMED.get(key) or _ASSUMED["bytes", "zlib"]

    def sample(self) -> list[Sight]:
        """What each codec makes of the samples. For a worker thread."""
        return [
            look(codec, sample.view, sample.layout)
            for sample in self._samples
            for codec in self._codecs.values()
            if sample.layout.row or not codec.pictures
        ]

    def saw(self, sight: Sight) -> None:
        """What a codec has made of a sample or a chunk."""
        kind = _kind(sight.layout)
        new = Weight(sight.seconds / sight.plain, min(1.0, sight.packed / sight.plain))
        old = self._seen.get((kind, sight.name)) or Weight(
            self._weight(sight.name, kind).seconds, new.ratio
        )
        # What it took may be another's time, that a thread has waited for.
        seconds = min(new.seconds, SLOWER * old.seconds)
        self._seen[kind, sight.name] = Weight(seconds, (old.ratio + new.ratio) / 2)

    def failed(self, name: str) -> bool:
        """A codec that fails saves nothing: it is done without; False if it was already."""
        return self._codecs.pop(name, None) is not None


def look(codec: Codec, view: memoryview, layout: Layout) -> Sight:
    """Encode that, to see what comes of it."""
    started = time.perf_counter()
    packed = codec.encode(view, layout)
    seconds = time.perf_counter() - started
    return Sight(
        codec.name, layout, len(view), len(view) if packed is None else len(packed), seconds
    )


def middle(buffer: Buffer, size: int) -> Sample:
    """A piece of about that size from the middle of a buffer, whole rows or items."""
    length, layout = len(buffer.view), buffer.layout
    unit = layout.row or layout.itemsize
    size = min(length, max(unit, size // unit * unit))
    if layout.row:  # no codec takes a taller strip
        size = min(size, MOST_ROWS * layout.row)
    start = (length - size) // 2 // unit * unit
    return Sample(buffer.view[start : start + size], layout)


def samples(buffers: Sequence[Buffer]) -> list[Sample]:
    """One of the largest buffer of each kind."""
    largest: dict[str, Buffer] = {}
    for buffer in buffers:
        kind = _kind(buffer.layout)
        if kind not in largest or len(buffer.view) > len(largest[kind].view):
            largest[kind] = buffer
    return [middle(buffer, SAMPLE) for buffer in largest.values()]
