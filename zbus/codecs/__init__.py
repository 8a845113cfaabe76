"""Codecs: each a pair of functions in one table, named on the wire, and how one is chosen.

What the user chooses is a *choice*, by meaning first: ``exact`` (whatever gets it there soonest,
every bit kept) or ``8-bit`` (images and masks); or a codec by its name. ``png`` and ``webp`` by
name mean 8-bit too. A codec works on one chunk at a time, knows of it what its
:class:`~zbus.values.layout.Layout` says, and is told by the receiver how many bytes must come out.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import features

from ..codecs import lz4, png, raw, webp, zlib
from ..errors import CodecRefused, UnknownCodec
from ..given import said
from ..values.layout import MOST_ROWS, Layout

if TYPE_CHECKING:
    from ..values.payload import Buffer, EightBit, Packed

logger = logging.getLogger(__name__)

__all__ = [
    "CHOICES",
    "CODECS",
    "Codec",
    "available",
    "check",
    "choose",
    "eight_bit",
    "pack_mode",
]


class Codec(NamedTuple):
    """How the bytes of a chunk travel.

    Attributes:
        name: Its name on the wire.
        pictures: It works on rows of 8-bit pictures, and falls back by itself elsewhere.
        eight_bit: Choosing it by name means sending images as 8 bits.
        encode: (the chunk, its layout) -> shorter bytes, or None: send the plain ones.
        decode: (the bytes, the chunk's size, its layout) -> exactly so many bytes, or
            RemoteProtocolError. Allocates little more than that size, whatever the bytes.
    """

    name: str
    pictures: bool
    eight_bit: bool
    encode: Callable[[memoryview, Layout], bytes | memoryview | None]
    decode: Callable[
        [memoryview, int, Layout], bytes | memoryview | np.ndarray[Any, np.dtype[np.uint8]]
    ]


CODECS: dict[str, Codec] = {
    "raw": Codec("raw", False, False, raw.encode, raw.decode),
    "lz4": Codec("lz4", False, False, lz4.encode, lz4.decode),
    "zlib": Codec("zlib", False, False, zlib.encode, zlib.decode),
    "png": Codec("png", True, True, png.encode, png.decode),
    "webp": Codec("webp", True, True, webp.encode, webp.decode),
}

CHOICES = ("exact", "8-bit", *CODECS)
# What an installation may do without, and how it shows.
_LACKS: dict[str, Callable[[], bool]] = {
    "lz4": lambda: not lz4.HERE,
    "webp": lambda: not features.check("webp"),
}

FAST = 600e6  # bytes/s: above it no codec here keeps up
FAST_HERE = 150e6  # between two peers on one machine: a slow one has no time for codecs either
ASSUMED = 100e6  # bytes/s of a link to elsewhere that was not measured yet
SMALL = 64 * 1024  # bytes: a value up to this rides inside its offer
_SAMPLE = 256 * 1024
_SAMPLED_BUFFERS = 4


def check(choice: object) -> None:
    """That there is such a choice.

    Raises:
        UnknownCodec: There is none; the text names all.
    """
    if not isinstance(choice, str) or choice not in CHOICES:
        raise UnknownCodec(
            f"there is no codec {said(choice)}", remedy=f"Choose one of: {', '.join(CHOICES)}."
        )


def eight_bit(choice: str) -> Literal["never", "always", "if exact"]:
    """When a choice sends images as 8 bits."""
    check(choice)
    if choice == "exact":
        return "if exact"
    return "always" if choice == "8-bit" or CODECS[choice].eight_bit else "never"


def pack_mode(choice: str, rate: float | None, local: bool) -> EightBit:
    """How to :func:`~zbus.values.payload.pack` for this choice and link.

    As :func:`eight_bit`, but ``exact`` does not quantise where the link is as fast as that.
    """
    mode = eight_bit(choice)
    return "never" if mode == "if exact" and _is_fast(rate, local) else mode


@cache
def available() -> tuple[str, ...]:
    """The codecs that this process can do, in the table's order."""
    lacking = {name for name, lacks in _LACKS.items() if lacks()}
    if "lz4" in lacking:
        logger.info(
            "without the Python package lz4: the codec of that name is left out. To have it: %s",
            f'"{sys.executable}" -m pip install lz4',
        )
    return tuple(name for name in CODECS if name not in lacking)


def choose(
    choice: str, packed: Packed, theirs: Collection[str], rate: float | None, local: bool
) -> str:
    """The codec for one transfer.

    Args:
        choice: One of CHOICES.
        packed: The value.
        theirs: The codecs that the peer can do.
        rate: The link's measured bytes per second, where there is a measurement.
        local: The peer is on this machine.

    Raises:
        CodecRefused: A codec was chosen by name that one side cannot do.
    """
    check(choice)
    both = [name for name in available() if name in theirs]
    if choice == "8-bit":
        # On a fast link a quarter of the bytes is there before any picture codec has begun.
        if _is_fast(rate, local):
            return "raw"
        return next((name for name in ("webp", "png") if name in both), "raw")
    if choice != "exact":
        return _named(choice, both, theirs)
    if _is_fast(rate, local) or packed.total < SMALL:
        return "raw"
    return _soonest(packed, both, rate or ASSUMED)


def _is_fast(rate: float | None, local: bool) -> bool:
    return local if rate is None else rate >= (FAST_HERE if local else FAST)


def _named(name: str, both: list[str], theirs: Collection[str]) -> str:
    if name in both or name == "raw":  # every peer can do raw
        return name
    whose = "this side" if name in theirs else "the peer"
    where = "here" if name in theirs else "there"
    install = (
        f" Or install it {where}, in ComfyUI's Python: pip install lz4." if name == "lz4" else ""
    )
    raise CodecRefused(
        f"{whose} cannot do the codec {name}",
        remedy=f"Choose exact, 8-bit, or what both can do: {', '.join(both) or 'raw'}.{install}",
    )


def _soonest(packed: Packed, both: list[str], rate: float) -> str:
    """The codec with the least time, by samples from the middle of the largest buffers."""
    largest = sorted(packed.buffers, key=lambda buffer: len(buffer.view), reverse=True)
    samples = [_sample(buffer) for buffer in largest[:_SAMPLED_BUFFERS]]
    shown = any(layout.row for _, _, layout in samples)
    best, least = "raw", packed.total / rate
    for name in both:
        codec = CODECS[name]
        if name == "raw" or (codec.pictures and not shown):
            continue
        took = _estimate(codec, samples, rate) * packed.total
        if took < least:
            best, least = name, took
    return best


def _estimate(codec: Codec, samples: list[tuple[int, memoryview, Layout]], rate: float) -> float:
    """Seconds a byte: encoding and sending overlap, so the slower of the two."""
    whole = sum(length for length, _, _ in samples)
    encoding = sending = 0.0
    for length, view, layout in samples:
        started = time.perf_counter()
        packed = codec.encode(view, layout)
        seconds = time.perf_counter() - started
        part = length / whole
        encoding += part * seconds / len(view)
        sending += part * (1.0 if packed is None else len(packed) / len(view)) / rate
    return max(encoding, sending)


def _sample(buffer: Buffer) -> tuple[int, memoryview, Layout]:
    """(the buffer's length, a piece from its middle, the piece's layout)."""
    length, layout = len(buffer.view), buffer.layout
    unit = layout.row or layout.itemsize
    size = min(length, max(unit, _SAMPLE // unit * unit))
    if layout.row:  # no codec takes a taller strip
        size = min(size, MOST_ROWS * layout.row)
    start = (length - size) // 2 // unit * unit
    return length, buffer.view[start : start + size], layout
