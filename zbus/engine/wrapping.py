"""From a caller's value to what a link carries: packed, with the codec for that link chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import codecs
from ..codecs import CODECS, MIXED
from ..codecs.weighing import Weighing, samples
from ..net.places import Peering
from ..protocol.messages import MAX_INLINE, MAX_OFFERED_SPEC
from ..values import payload
from ..values.layout import PLAIN
from ..values.streams import PackedSource
from .workers import CORES, COUNT

THREADS = min(COUNT, CORES)  # that encode at once


@dataclass(frozen=True)
class Wrapped:
    """A value, packed for one link.

    Attributes:
        told: The fields of its OFFER or JOB_OFFER that speak of it.
        body: The whole of it, where it rides inside that message.
        source: Its bytes, where they follow in chunks.
        weighing: What each chunk goes by; None: as it is.
        plain: How many bytes it has, without a spec in front.
        notes: What the user should know of it.
    """

    told: dict[str, Any]
    body: bytes
    source: PackedSource | None
    weighing: Weighing | None
    plain: int
    notes: tuple[str, ...]

    @property
    def codec(self) -> str:
        return str(self.told["codec"])


@dataclass(frozen=True)
class LinkFacts:
    """What the choice of a codec rests on: taken in the I/O thread, used in any."""

    rate: float | None  # measured bytes per second
    is_local: bool  # and nothing is between
    codecs: tuple[str, ...]  # that the peer can do

    @classmethod
    def of(cls, peering: Peering) -> LinkFacts:
        # What the peer reads out of this process's memory is there sooner than any codec has begun.
        is_local = peering.lends or peering.is_direct
        return cls(peering.pace.likely, is_local, peering.session.peer.codecs)


def wrap(flat: payload.Flat, quality: str, link: LinkFacts) -> Wrapped:
    """Pack a value for that link.

    Raises:
        CodecRefused: It cannot travel in that quality.
        NotTransferable: It has too many small parts.
    """
    packed = payload.pack(flat, codecs.pack_mode(quality, link.rate, link.is_local))
    head = len(packed.spec) if len(packed.spec) > MAX_OFFERED_SPEC else 0
    inline = not head and packed.total <= MAX_INLINE
    if inline and quality == "exact":  # what rides inside its offer is not looked at
        codec = "raw"
    else:
        codec = codecs.choose(quality, packed, link.codecs, link.rate, link.is_local)
    views = [buffer.view for buffer in packed.buffers]
    layouts = [(len(buffer.view), buffer.layout) for buffer in packed.buffers]
    if head:
        views.insert(0, memoryview(packed.spec))
        layouts.insert(0, (head, PLAIN))
    told = {
        "total": packed.total + head,
        "codec": "raw" if inline else codec,
        "spec": b"" if head else packed.spec,
        "head": head,
        "inline": inline,
    }
    source = None if inline else PackedSource(views, layouts, CODECS[codec].pictures)
    body = b"".join(views) if inline else b""
    weighing = None if inline else _weighing(codec, packed, link)
    return Wrapped(told, body, source, weighing, packed.total, packed.notes)


def _weighing(codec: str, packed: payload.Packed, link: LinkFacts) -> Weighing | None:
    if codec == MIXED:
        return Weighing(codecs.usable(link.codecs), samples(packed.buffers), THREADS)
    return None if codec == "raw" else Weighing([CODECS[codec]], is_free=False)
