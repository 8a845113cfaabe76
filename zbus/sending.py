"""From the caller's value to a transfer: packed when the other side is known, then offered."""

from __future__ import annotations

from . import codecs, payload
from .bulk import Outflow
from .codecs import CODECS
from .errors import ZBusError
from .layout import PLAIN
from .messages import MAX_INLINE, MAX_SPEC
from .operation import size_text
from .parts import Parts, Running
from .places import Peering
from .streams import PackedSource
from .transfer import Outgoing

HEAVY = 1 << 20  # bytes from which packing and building go to the worker pool

Packing = tuple[payload.Packed, str]
"""A packed value, and the codec it goes by."""


def prepare(parts: Parts, running: Running) -> None:
    """The seat of this send has met its partner: pack the value for that link, and offer it.
    Nothing happens if this is no send, or it is being prepared already."""
    link = running.seat.link
    peering = parts.peering(link.key) if link is not None else None
    running.peering = peering
    if running.flat is None or running.preparing or peering is None:
        return
    running.preparing = True
    flat, quality = running.flat, running.quality
    rate, local = peering.pace.rate, peering.is_local
    theirs = peering.session.peer.codecs

    def pack() -> Packing | ZBusError:
        try:
            packed = payload.pack(flat, codecs.pack_mode(quality, rate, local))
            return packed, codecs.choose(quality, packed, theirs, rate, local)
        except ZBusError as error:
            return error

    def then(result: Packing | ZBusError) -> None:
        if running.ended:
            return
        if isinstance(result, ZBusError):
            parts.channels.pairing.fail(running.seat, running.step, result, tell=True)
        else:
            _offer(parts, running, peering, *result)

    if flat.nbytes < HEAVY:
        then(pack())
    else:
        running.operation.note = f"packing {size_text(flat.nbytes)}"
        parts.in_pool(pack, then)


def _offer(
    parts: Parts, running: Running, peering: Peering, packed: payload.Packed, codec: str
) -> None:
    views = [buffer.view for buffer in packed.buffers]
    layouts = [(len(buffer.view), buffer.layout) for buffer in packed.buffers]
    head = len(packed.spec) if len(packed.spec) > MAX_SPEC else 0
    if head:
        views.insert(0, memoryview(packed.spec))
        layouts.insert(0, (head, PLAIN))
    inline = not head and packed.total <= MAX_INLINE
    operation = running.operation
    operation.notes, operation.codec = packed.notes, "raw" if inline else codec
    operation.begin_bytes(packed.total)
    running.transfer = running.step.id
    link = parts.channels.pairing.offer(
        running.seat,
        running.step,
        body=b"".join(views) if inline else b"",
        total=packed.total + head,
        codec=operation.codec,
        spec=b"" if head else packed.spec,
        head=head,
        inline=inline,
    )
    if link is not None and not inline:
        source = PackedSource(views, layouts, CODECS[codec].pictures)
        _send(parts, running, peering, source, codec)


def _send(
    parts: Parts, running: Running, peering: Peering, source: PackedSource, codec: str
) -> None:
    def progress(received: int) -> None:
        running.transferring = received > 0
        running.operation.progressed(min(received, running.operation.total_bytes))

    parts.bulk.send(
        Outflow(
            peering,
            Outgoing(
                running.transfer, source.total, source.cut, peering.pace, peering.largest_chunk
            ),
            source,
            CODECS[codec],
            on_progress=progress,
            on_stored=lambda: None,  # `Steps.stored` sees every STORED, inline ones too
            on_failed=lambda error: None,  # and channels every end of a session
        )
    )
