"""From the caller's value to a transfer: packed for its link, then offered, then streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import codecs
from ..codecs import CODECS
from ..errors import ZBusError
from ..net.places import Peering
from ..operation import size_text
from ..protocol.messages import MAX_INLINE, MAX_OFFERED_SPEC
from ..protocol.transfer import Outgoing
from ..values import payload
from ..values.layout import PLAIN
from ..values.streams import PackedSource
from .context import Context, Running
from .flows import Outflow

HEAVY = 1 << 20  # bytes from which packing and building go to the worker pool


@dataclass(frozen=True)
class Wrapped:
    """A value, packed for one link.

    Attributes:
        told: The fields of its OFFER or JOB_OFFER that speak of it.
        body: The whole of it, where it rides inside that message.
        source: Its bytes, where they follow in chunks.
        plain: How many bytes it has, without a spec in front.
        notes: What the user should know of it.
    """

    told: dict[str, Any]
    body: bytes
    source: PackedSource | None
    plain: int
    notes: tuple[str, ...]

    @property
    def codec(self) -> str:
        return str(self.told["codec"])


def wrap(
    context: Context,
    peering: Peering,
    flat: payload.Flat,
    quality: str,
    then: Callable[[Wrapped | ZBusError], None],
) -> None:
    """Pack a value for that link, and call `then` here; at once if it is small."""
    # What the peer reads out of this process's memory is there sooner than any codec has begun.
    rate, local = None if peering.shares else peering.pace.rate, peering.is_local
    theirs = peering.session.peer.codecs

    def pack() -> Wrapped | ZBusError:
        try:
            packed = payload.pack(flat, codecs.pack_mode(quality, rate, local))
            return _wrapped(packed, codecs.choose(quality, packed, theirs, rate, local))
        except ZBusError as error:
            return error

    if flat.nbytes < HEAVY:
        then(pack())
    else:
        context.in_pool(pack, then)


def _wrapped(packed: payload.Packed, codec: str) -> Wrapped:
    views = [buffer.view for buffer in packed.buffers]
    layouts = [(len(buffer.view), buffer.layout) for buffer in packed.buffers]
    head = len(packed.spec) if len(packed.spec) > MAX_OFFERED_SPEC else 0
    if head:
        views.insert(0, memoryview(packed.spec))
        layouts.insert(0, (head, PLAIN))
    inline = not head and packed.total <= MAX_INLINE
    told = {
        "total": packed.total + head,
        "codec": "raw" if inline else codec,
        "spec": b"" if head else packed.spec,
        "head": head,
        "inline": inline,
    }
    source = None if inline else PackedSource(views, layouts, CODECS[codec].pictures)
    return Wrapped(told, b"".join(views) if inline else b"", source, packed.total, packed.notes)


def stream(
    context: Context,
    peering: Peering,
    transfer: int,
    wrapped: Wrapped,
    on_progress: Callable[[int], None],
) -> None:
    """Begin to send the bytes of an offered value, if they did not ride inside the offer. Its
    end is seen by who sees every STORED, REFUSED and end of a session."""
    source = wrapped.source
    if source is None:
        return
    context.transfers.send(
        Outflow(
            peering,
            Outgoing(transfer, source.total, source.cut, peering.pace, peering.largest_chunk),
            source,
            CODECS[wrapped.codec],
            on_progress=lambda received: on_progress(min(received, wrapped.plain)),
            on_stored=lambda: None,
            on_failed=lambda error: None,
        )
    )


# --- on a channel -------------------------------------------------------------------------------


def prepare(context: Context, running: Running) -> None:
    """The run of this send has met its partner: pack the value for that link, and offer it.
    Nothing happens if this is no send, or it is being prepared already."""
    link = running.registration.link
    peering = context.peering(link.key) if link is not None else None
    running.peering = peering
    if running.flat is None or running.preparing or peering is None:
        return
    running.preparing = True

    def then(result: Wrapped | ZBusError) -> None:
        if running.ended:
            return
        if isinstance(result, ZBusError):
            context.channels.matching.fail(running.registration, running.step, result, tell=True)
        else:
            _offer(context, running, peering, result)

    if running.flat.nbytes >= HEAVY:
        running.operation.note = f"packing {size_text(running.flat.nbytes)}"
    wrap(context, peering, running.flat, running.quality, then)


def _offer(context: Context, running: Running, peering: Peering, wrapped: Wrapped) -> None:
    operation = running.operation
    operation.notes, operation.codec = wrapped.notes, wrapped.codec
    operation.begin_bytes(wrapped.plain)
    running.transfer = running.step.id
    offered = context.channels.matching.offer(
        running.registration, running.step, body=wrapped.body, **wrapped.told
    )

    def progress(received: int) -> None:
        running.transferring = received > 0
        operation.progressed(received)

    if offered is not None:
        stream(context, peering, running.transfer, wrapped, progress)
