"""The sends and receives under way: from the caller's value to a transfer and back.

Runs in the I/O thread. `channel` says when a step is bound, matched or failed; here a value is
packed and offered, or memory taken and a value built, and the caller's `Operation` told.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import codecs, payload
from .bulk import Inflow, Outflow
from .channel import Failed, Matched, Seat, State, Step
from .codecs import CODECS
from .errors import (
    Cancelled,
    Mismatch,
    PeerClosed,
    RemoteProtocolError,
    TimedOut,
    TransferRefused,
    ZBusError,
)
from .layout import PLAIN
from .messages import MAX_INLINE, MAX_SPEC, Offer, Refused, Stored, clip
from .operation import Operation, size_text
from .places import Peering, Place
from .streams import PackedSource, ValueSink
from .transfer import Incoming, Outgoing
from .unpack import Unpacker

if TYPE_CHECKING:
    from .engine import Engine

HEAVY = 1 << 20  # bytes from which packing and building go to the worker pool
EXPLAIN_EVERY = 0.25  # seconds


@dataclass(eq=False)
class Running:
    """One operation of this side under way."""

    operation: Operation[Any]
    seat: Seat
    step: Step
    place: Place | None
    deadline: float | None
    flat: payload.Flat | None = None  # of a send
    quality: str = "exact"
    preparing: bool = False
    transferring: bool = False
    peering: Peering | None = None
    transfer: int = -1
    memory: int = 0  # taken from the budget


class Steps:
    """All operations of one peer that are under way."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running: dict[Step, Running] = {}
        self._inflows: dict[Running, Inflow] = {}  # whose spec travels in front
        self._explain_at = 0.0

    # --- from the caller ----------------------------------------------------------------------

    def begin(self, running: Running) -> None:
        """A send or receive begins."""
        self._running[running.step] = running
        try:
            self._engine.channels.begin(running.seat, running.step)
        except ZBusError as error:
            self._end(running, error)
            return
        if running.seat.state is State.BOUND:
            self._prepare(running)
        self._explain_at = 0.0

    def cancel(self, operation: Operation[Any], error: ZBusError | None = None) -> None:
        """The caller gives up."""
        for running in self._running.values():
            if running.operation is operation:
                error = error or Cancelled("cancelled here", stage=str(running.step))
                self._engine.channels.fail(running.seat, running.step, error, tell=True)
                return

    def on(self, seat: Seat) -> list[Running]:
        """The operations under way on a seat."""
        return [running for running in self._running.values() if running.seat is seat]

    def close(self, error: PeerClosed) -> None:
        """The peer is closed: everything ends."""
        for running in list(self._running.values()):
            self._end(running, error)

    # --- sending ------------------------------------------------------------------------------

    def bound(self, seat: Seat) -> None:
        """The seat has met its partner: a send that waits for it may go."""
        running = self._running.get(seat.step) if seat.step is not None else None
        if running is not None:
            self._prepare(running)

    def _prepare(self, running: Running) -> None:
        link = running.seat.link
        running.peering = self._engine.peering(link.key) if link is not None else None
        if running.flat is None or running.preparing or running.peering is None:
            return
        running.preparing = True
        peering, flat, quality = running.peering, running.flat, running.quality
        rate, local = peering.pace.rate, peering.is_local

        def pack() -> tuple[payload.Packed, str] | ZBusError:
            try:
                packed = payload.pack(flat, codecs.pack_mode(quality, rate, local))
                theirs = peering.session.peer.codecs
                return packed, codecs.choose(quality, packed, theirs, rate, local)
            except ZBusError as error:
                return error

        def packed(result: tuple[payload.Packed, str] | ZBusError) -> None:
            self._packed(running, result)

        if flat.nbytes < HEAVY:
            packed(pack())
        else:
            running.operation.note = f"packing {size_text(flat.nbytes)}"
            self._engine.in_pool(pack, packed)

    def _packed(self, running: Running, result: tuple[payload.Packed, str] | ZBusError) -> None:
        peering = running.peering
        if running.step not in self._running or peering is None:
            return
        if isinstance(result, ZBusError):
            self._engine.channels.fail(running.seat, running.step, result, tell=True)
            return
        packed, codec = result
        running.operation.notes = packed.notes
        views = [buffer.view for buffer in packed.buffers]
        parts = [(len(buffer.view), buffer.layout) for buffer in packed.buffers]
        head = len(packed.spec) if len(packed.spec) > MAX_SPEC else 0
        if head:
            views.insert(0, memoryview(packed.spec))
            parts.insert(0, (head, PLAIN))
        inline = not head and packed.total <= MAX_INLINE
        running.transfer = running.step.id
        running.operation.codec = "raw" if inline else codec
        running.operation.begin_bytes(packed.total)
        link = self._engine.channels.offer(
            running.seat,
            running.step,
            body=b"".join(views) if inline else b"",
            total=packed.total + head,
            codec=running.operation.codec,
            spec=b"" if head else packed.spec,
            head=head,
            inline=inline,
        )
        if link is not None and not inline:
            source = PackedSource(views, parts, CODECS[codec].pictures)
            self._send(running, peering, source, codec)

    def _send(self, running: Running, peering: Peering, source: PackedSource, codec: str) -> None:
        outgoing = Outgoing(running.transfer, source.total, source.cut, peering.pace)

        def progress(received: int) -> None:
            running.transferring = received > 0
            running.operation.progressed(min(received, running.operation.total_bytes))

        self._engine.bulk.send(
            Outflow(
                peering,
                outgoing,
                source,
                CODECS[codec],
                on_progress=progress,
                on_stored=lambda: None,  # `stored` below sees every STORED
                on_failed=lambda error: None,  # and channels every failure
            )
        )

    def stored(self, peering: Peering, transfer: int) -> None:
        """The peer has a value of ours."""
        running = self._find(peering, transfer)
        if running is not None:
            self._engine.channels.complete(running.seat, running.step)
            running.operation.progressed(running.operation.total_bytes)
            self._end(running, None)

    def refused(self, peering: Peering, transfer: int, error: ZBusError) -> None:
        """The peer will not take a value of ours."""
        running = self._find(peering, transfer)
        if running is not None:
            self._engine.channels.fail(running.seat, running.step, error, tell=False)

    def _find(self, peering: Peering, transfer: int) -> Running | None:
        for running in self._running.values():
            if running.transfer == transfer and running.peering is peering:
                return running
        return None

    # --- receiving ----------------------------------------------------------------------------

    def matched(self, event: Matched) -> None:
        """A receive has its offer."""
        running = self._running.get(event.step)
        link = event.seat.link
        peering = self._engine.peering(link.key) if link is not None else None
        if running is None or peering is None:
            return
        running.peering, running.transfer = peering, event.offer.operation
        sink = ValueSink(event.offer.head)
        if event.offer.codec not in codecs.available():
            self._refuse(running, RemoteProtocolError(f"no codec {event.offer.codec!r} here"))
        elif event.offer.head:
            self._receive(running, event.offer, sink, event.offer.head)
        else:
            self._unpack(running, event, sink, event.offer.spec)

    def _unpack(self, running: Running, event: Matched, sink: ValueSink, spec: bytes) -> None:
        """The spec is there: take memory for what it says, then the bytes."""
        offer, budget = event.offer, self._engine.budget
        try:
            unpacker = Unpacker(spec)
            if unpacker.total + offer.head != offer.total:
                raise RemoteProtocolError("an OFFER whose total is not what its spec says")
            if not budget.fits(unpacker.memory):
                raise TransferRefused(
                    f"the value needs {size_text(unpacker.memory)}, "
                    f"{size_text(budget.cap)} may be taken here",
                    remedy="Free memory on the receiving side, or send fewer images at once",
                )
        except ZBusError as error:
            self._refuse(running, error)
            return
        running.operation.begin_bytes(unpacker.total)
        budget.take(unpacker.memory, lambda: self._allocate(running, event, sink, unpacker))

    def _allocate(
        self, running: Running, event: Matched, sink: ValueSink, unpacker: Unpacker
    ) -> None:
        running.memory = unpacker.memory
        if running.step not in self._running:  # it ended while it waited for memory
            self._engine.budget.give_back(unpacker.memory)
            return

        def work() -> ZBusError | None:
            try:
                sink.open(unpacker)
            except ZBusError as error:
                return error
            return None

        def then(error: ZBusError | None) -> None:
            if running.step in self._running:
                self._allocated(running, event, sink, error)

        # The first tensor may import torch, which takes seconds outside of ComfyUI.
        if "torch" in sys.modules or unpacker.memory == 0:
            then(work())
        else:
            self._engine.in_pool(work, then)

    def _allocated(
        self, running: Running, event: Matched, sink: ValueSink, error: ZBusError | None
    ) -> None:
        if error is not None:
            self._refuse(running, error)
        elif event.offer.inline:
            try:
                sink.fill(event.body)
            except ZBusError as wrong:
                self._refuse(running, wrong)
                return
            self._build(running, sink)
        elif event.offer.head:
            flow = self._inflows[running]
            self._engine.bulk.open(flow, event.offer.total)
        else:
            self._receive(running, event.offer, sink, event.offer.total)

    def _receive(self, running: Running, offer: Offer, sink: ValueSink, total: int) -> None:
        peering = running.peering
        assert peering is not None

        def progress(received: int) -> None:
            running.transferring = True
            running.operation.progressed(max(0, received - offer.head))

        flow = Inflow(
            peering,
            Incoming(offer.operation, total),
            sink,
            CODECS[offer.codec],
            on_progress=progress,
            on_complete=lambda: self._build(running, sink),
            on_failed=lambda error: self._refuse(running, error),
            head=offer.head,
        )
        if offer.head:
            event = Matched(running.seat, running.step, offer, b"")
            flow.on_head = lambda: self._unpack(running, event, sink, sink.head())
            self._inflows[running] = flow
        self._engine.bulk.receive(flow)

    def _build(self, running: Running, sink: ValueSink) -> None:
        """Every byte is there and right: build the value and hand it over."""
        expect = running.step.kind

        def work() -> Any:
            try:
                value = sink.value()
                if not payload.fits(expect, value):
                    kind = payload.describe(value)
                    raise Mismatch(f"{expect} is expected, {kind} has come")
                return value
            except ZBusError as error:
                return _Broken(error)

        def then(result: Any) -> None:
            if running.step not in self._running:
                return
            if isinstance(result, _Broken):
                self._refuse(running, result.error)
                return
            assert running.peering is not None
            running.peering.session.send(Stored(running.transfer))
            self._engine.channels.complete(running.seat, running.step)
            running.operation.progressed(running.operation.total_bytes)
            self._end(running, None, result)

        if running.operation.total_bytes < HEAVY:
            then(work())
        else:
            self._engine.in_pool(work, then)

    def _refuse(self, running: Running, error: ZBusError) -> None:
        if running.step not in self._running or running.peering is None:
            return
        peering = running.peering
        if peering.error is None:
            peering.session.send(Refused(running.transfer, clip(str(error))))
        error = error.at(peer=peering.name, stage=str(running.step))
        self._engine.channels.fail(running.seat, running.step, error, tell=False)

    # --- ends ---------------------------------------------------------------------------------

    def failed(self, event: Failed) -> None:
        """Channels say that a step failed."""
        running = self._running.get(event.step)
        if running is not None:
            self._end(running, event.error)

    def _end(self, running: Running, error: ZBusError | None, value: Any = None) -> None:
        self._running.pop(running.step, None)
        self._inflows.pop(running, None)
        if running.peering is not None and running.transfer >= 0:
            self._engine.bulk.drop(running.peering, running.transfer)
        if running.memory:
            self._engine.budget.give_back(running.memory)
        if error is None:
            running.operation.succeed(value)
        else:
            running.operation.fail(error)

    # --- time and words -----------------------------------------------------------------------

    def deadline(self, now: float) -> float | None:
        """When `tick` has something to do."""
        if not self._running:
            return None
        ends = [r.deadline for r in self._running.values() if r.deadline is not None]
        return min([max(self._explain_at, now), *ends])

    def tick(self, now: float) -> None:
        """End what is over its time, and say what the rest waits for."""
        for running in list(self._running.values()):
            if running.deadline is not None and now >= running.deadline:
                what = "the time given is over"
                note = running.operation.note
                error = TimedOut(f"{what}: {note}" if note else what, stage=str(running.step))
                self.cancel(running.operation, error)
        if self._running and now >= self._explain_at:
            self._explain_at = now + EXPLAIN_EVERY
            for running in self._running.values():
                note = self._explain(running, now)
                if note:
                    running.operation.note = note

    def _explain(self, running: Running, now: float) -> str:
        """One line: whom this operation waits for and why; "" leaves the line as it is."""
        seat, place = running.seat, running.place
        if seat.link is not None and seat.state is State.BOUND:
            peering = self._engine.peering(seat.link.key)
            return "" if peering is None else self._explain_bound(running, peering, now)
        covered = [x for x in self._engine.channels.links.values() if seat.endpoint.covers(x)]
        known = [(link, self._engine.peering(link.key)) for link in covered]
        # A session whose link stands says more than one that is lost.
        for link, peering in sorted(
            known, key=lambda p: p[1] is None or not p[1].session.is_linked
        ):
            if peering is None:
                continue
            troubled = _trouble(peering, now, self._engine.settings.reconnect_wait)
            if troubled:
                return troubled
            busy = link.busy.get(seat.channel)
            if busy:
                return f"{peering.name}: {busy}"
            others = sorted({channel for _, channel in link.remote})
            if others and seat.channel not in others:
                return f'{peering.name} waits on channel "{others[0]}", not "{seat.channel}"'
            if peering.activity and peering.activity != "idle":
                return f"{peering.name} is connected and busy: {peering.activity}"
            return f"{peering.name} is connected and idle: press Run there"
        if place is not None:
            return self._engine.links.explain(place, now)
        return "no peer is connected yet"

    def _explain_bound(self, running: Running, peering: Peering, now: float) -> str:
        troubled = _trouble(peering, now, self._engine.settings.reconnect_wait)
        if troubled:
            return troubled
        if running.transferring or (running.preparing and not running.step.posted):
            return ""
        if running.step.matched:
            return f"{peering.name}: {running.step} begins"
        doing = peering.activity if peering.activity not in ("", "idle") else "computing"
        return f"{peering.name} has not come to this yet: {doing}"


class _Broken:
    """A failure on its way out of the pool."""

    def __init__(self, error: ZBusError) -> None:
        self.error = error


def _trouble(peering: Peering, now: float, wait: float) -> str:
    lost = peering.session.lost_for(now)
    if lost > 0:
        minutes, seconds = divmod(int(wait), 60)
        return (
            f"link to {peering.name} lost {lost:.0f} s ago, trying, "
            f"gives up at {minutes}:{seconds:02d}"
        )
    return f"{peering.name} is not answering for {peering.silent:.0f} s" if peering.silent else ""
