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
PROBE_EVERY = 8  # chunks, at least, between two that go as they are only to see how fast that is


class Weight(NamedTuple):
    """What a codec costs and saves."""

    seconds: float  # of one thread, for a byte
    ratio: float  # bytes on the wire for a byte


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
        self._samples, self._threads, self._is_free = samples, threads, is_free
        self._seen: dict[tuple[str, str], Weight] = {}
        self._probes = False
        self._picked = PROBE_EVERY

    def best(self, layout: Layout, rate: float | None) -> str:
        """The codec for such bytes on a link of so many bytes per second; None: not known yet."""
        if not self._is_free:
            return next(iter(self._codecs), RAW)
        rate = rate or SLOW
        least, name = 1 / rate, RAW
        for codec in self._codecs.values():
            weight = self._weight(codec.name, layout)
            took = max(weight.seconds / self._threads, weight.ratio / rate)
            if took < least and (layout.row or not codec.pictures):
                least, name = took, codec.name
        return name

    def pick(self, layout: Layout, rate: float | None) -> str:
        """The same for the next chunk, which is a probe at times."""
        self._picked += 1
        if self._probes and self._is_free:
            self._probes, self._picked = False, 0
            return RAW
        return self.best(layout, rate)

    def starved(self) -> None:
        """The link had nothing to do while a chunk was encoded: it may be faster than is known."""
        self._probes = self._picked >= PROBE_EVERY

    def ratio(self, name: str, layout: Layout) -> float:
        """The bytes on the wire that it is likely to make of a byte."""
        return 1.0 if name == RAW else self._weight(name, layout).ratio

    def _weight(self, name: str, layout: Layout) -> Weight:
        key = (_kind(layout), name)
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
        key = (_kind(sight.layout), sight.name)
        new = Weight(sight.seconds / sight.plain, min(1.0, sight.packed / sight.plain))
        old = self._seen.get(key, new)
        half = Weight((old.seconds + new.seconds) / 2, (old.ratio + new.ratio) / 2)
        self._seen[key] = half

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
