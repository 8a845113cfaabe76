"""Codecs: each a pair of functions in one table, named on the wire, and how one is chosen.

What the user chooses is a *choice*, by meaning first: ``exact`` (whatever gets it there soonest,
every bit kept) or ``8-bit`` (images and masks); or a codec by its name. ``png`` and ``webp`` by
name mean 8-bit too. A codec works on one chunk at a time, knows of it what its
:class:`~zbus.values.layout.Layout` says, and is told by the receiver how many bytes must come out.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import features

from ..codecs import lz4, mixed, png, raw, webp, zlib
from ..errors import CodecRefused, UnknownCodec
from ..given import said
from ..values.layout import Layout
from .weighing import Sample, look, middle

if TYPE_CHECKING:
    from ..values.payload import EightBit, Packed

logger = logging.getLogger(__name__)

__all__ = [
    "CHOICES",
    "CODECS",
    "MIXED",
    "SINGLE",
    "Codec",
    "available",
    "check",
    "choose",
    "eight_bit",
    "pack_mode",
    "usable",
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
    "mixed": Codec("mixed", True, False, mixed.encode, mixed.decode),
}

MIXED = "mixed"
SINGLE = tuple(name for name in CODECS if name != MIXED)  # each chunk by the same one
CHOICES = ("exact", "8-bit", *SINGLE)
# What an installation may do without, and how it shows.
_LACKS: dict[str, Callable[[], bool]] = {
    "lz4": lambda: not lz4.HERE,
    "webp": lambda: not features.check("webp"),
}

FAST = 600e6  # bytes/s: above it no codec here keeps up
ASSUMED = 100e6  # bytes/s of a link that was not measured yet, where a codec is for the whole value
SMALL = 64 * 1024  # bytes: a value up to this rides inside its offer
_SAMPLE = 256 * 1024  # bytes
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
    """The codec for one transfer; MIXED where its chunks may be of several.

    Args:
        choice: One of CHOICES.
        packed: The value.
        theirs: The codecs that the peer can do.
        rate: The link's measured bytes per second, where there is a measurement.
        local: The peer is on this machine, and nothing is between: no codec pays there, however
            slow the link seems. It is then slow for want of CPU time.

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
    if local or packed.total < SMALL:
        return "raw"
    if MIXED in both:
        return MIXED
    return "raw" if _is_fast(rate, local) else _soonest(packed, both, rate or ASSUMED)


def _is_fast(rate: float | None, local: bool) -> bool:
    return local or (rate is not None and rate >= FAST)


def usable(theirs: Collection[str]) -> list[Codec]:
    """The codecs that chunks of a mixed transfer may go by, for a peer that can do those."""
    both = [CODECS[name] for name in available() if name in theirs and name in SINGLE[1:]]
    # Of a picture WebP makes less than PNG, and sooner.
    better = any(codec.name == "webp" for codec in both)
    return [codec for codec in both if not (better and codec.name == "png")]


def _named(name: str, both: list[str], theirs: Collection[str]) -> str:
    if name in both or name == "raw":  # every peer can do raw
        return name
    single = [one for one in both if one in SINGLE]
    whose = "this side" if name in theirs else "the peer"
    where = "here" if name in theirs else "there"
    install = (
        f" Or install it {where}, in ComfyUI's Python: pip install lz4." if name == "lz4" else ""
    )
    raise CodecRefused(
        f"{whose} cannot do the codec {name}",
        remedy=f"Choose exact, 8-bit, or what both can do: {', '.join(single) or 'raw'}.{install}",
    )


def _soonest(packed: Packed, both: list[str], rate: float) -> str:
    """The codec with the least time, by samples from the middle of the largest buffers."""
    largest = sorted(packed.buffers, key=lambda buffer: len(buffer.view), reverse=True)
    samples = [(len(buffer.view), middle(buffer, _SAMPLE)) for buffer in largest[:_SAMPLED_BUFFERS]]
    shown = any(sample.layout.row for _, sample in samples)
    best, least = "raw", packed.total / rate
    for name in both:
        codec = CODECS[name]
        if name == "raw" or (codec.pictures and not shown):
            continue
        took = _estimate(codec, samples, rate) * packed.total
        if took < least:
            best, least = name, took
    return best


def _estimate(codec: Codec, samples: list[tuple[int, Sample]], rate: float) -> float:
    """Seconds a byte: encoding and sending overlap, so the slower of the two."""
    whole = sum(length for length, _ in samples)
    encoding = sending = 0.0
    for length, sample in samples:
        sight = look(codec, sample.view, sample.layout)
        part = length / whole / sight.plain
        encoding += part * sight.seconds
        sending += part * sight.packed / rate
    return max(encoding, sending)
