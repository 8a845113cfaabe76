"""The sends and receives under way, from their begin to their one end.

Runs in the I/O thread. `protocol.binding` says when an operation is bound, matched or failed, and
`transfers` moves its value; here the two meet, and the caller's `Operation` is told.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..callbacks import guarded
from ..errors import Cancelled, TimedOut, ZBusError
from ..net.places import Peering
from ..operation import Operation, size_text
from ..protocol.registrations import ChannelOperation, Failed, Matched, MayOffer, Registration
from .context import Context
from .inflow import Inflow
from .outflow import HEAVY, Outflow
from .running import Running
from .status_text import explain
from .wrapping import Wrapped

EXPLAIN_EVERY = 0.25  # seconds


class _Client:
    """Told by the flow of an operation how far its value is: see `Giver` and `Taker`."""

    def __init__(self, operations: Operations, running: Running) -> None:
        self._operations, self._running = operations, running
        self._handle = running.handle

    def offer(self, wrapped: Wrapped) -> None:
        self._handle.notes, self._handle.codec = wrapped.notes, wrapped.codec
        self.begins(wrapped.plain)
        self._operations.offer(self._running, wrapped)

    def begins(self, total: int) -> None:
        self._handle.begin_bytes(total)

    def moved(self, received: int) -> None:
        if received:
            self._handle.progressed(min(received, self._handle.total_bytes))

    def delivered(self, value: Any) -> None:
        self._operations.complete(self._running, value)

    def undeliverable(self, error: ZBusError, resumable: bool) -> None:
        self._operations.fail(self._running, error)


class Operations:
    """All operations of one peer that are under way."""

    def __init__(self, context: Context) -> None:
        self._context, self._matching = context, context.channels.matching
        self._running: dict[ChannelOperation, Running] = {}
        self._explain_at = 0.0
        self._told: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._running)

    # --- from the caller ----------------------------------------------------------------------

    def begin(self, running: Running) -> None:
        """A send or receive begins."""
        self._running[running.step] = running
        self._explain_at = 0.0
        try:
            self._matching.begin(running.registration, running.step)
        except ZBusError as error:
            self._end(running, error)

    def cancel(self, handle: Operation[Any], error: ZBusError | None = None) -> None:
        """The caller gives up."""
        for running in self._running.values():
            if running.handle is handle:
                error = error or Cancelled("cancelled here", stage=str(running.step))
                self._matching.fail(running.registration, running.step, error, tell=True)
                return

    def on(self, registration: Registration) -> list[Running]:
        """The operations under way on a registration."""
        return [r for r in self._running.values() if r.registration is registration]

    def close(self, error: ZBusError) -> None:
        """The peer is closed: everything ends."""
        for running in list(self._running.values()):
            self._end(running, error)

    # --- told by the channels -----------------------------------------------------------------

    def may_offer(self, event: MayOffer) -> None:
        """A send may go: pack the value for its link, and offer it."""
        running, peering = self._met(event.registration, event.step)
        if running is None or peering is None or running.flat is None:
            return
        if running.flat.nbytes >= HEAVY:
            running.handle.note = f"packing {size_text(running.flat.nbytes)}"
        try:
            flow = self._context.transfers.send(peering, running.step.id, _Client(self, running))
        except ZBusError as error:
            self.fail(running, error)
            return
        running.flow = flow
        flow.pack(running.flat, running.quality)

    def matched(self, event: Matched) -> None:
        """A receive has its offer."""
        running, peering = self._met(event.registration, event.step)
        if running is None or peering is None:
            return
        client, expect = _Client(self, running), event.step.kind
        try:
            running.flow = self._context.transfers.receive(peering, event.offer, expect, client)
        except ZBusError as error:  # the peer gives two values one id
            self.fail(running, error)
        else:
            running.flow.take(event.offer, event.body)

    def _met(
        self, registration: Registration, step: ChannelOperation
    ) -> tuple[Running | None, Peering | None]:
        running, link = self._running.get(step), registration.link
        return running, self._context.peering(link.key) if link is not None else None

    def failed(self, event: Failed) -> None:
        """They say that an operation failed."""
        running = self._running.get(event.step)
        if running is not None:
            self._end(running, event.error)

    # --- told by the flows --------------------------------------------------------------------

    def offer(self, running: Running, wrapped: Wrapped) -> None:
        """The value of a send is packed."""
        self._matching.offer(running.registration, running.step, body=wrapped.body, **wrapped.told)

    def complete(self, running: Running, value: Any) -> None:
        """The value has arrived, there or here."""
        self._forget(running)
        try:
            self._matching.complete(running.registration, running.step)
            running.handle.progressed(running.handle.total_bytes)
        finally:
            self._told.append(partial(running.handle.succeed, value))

    def fail(self, running: Running, error: ZBusError) -> None:
        """It has not. The other side knows by REFUSED, or hears it by CANCEL."""
        flow = running.flow
        error = error.at(peer=flow.peering.name if flow else "", stage=str(running.step))
        tell = not isinstance(flow, Inflow) and not (flow and flow.delivery.refused_there)
        self._matching.fail(running.registration, running.step, error, tell=tell)

    def _end(self, running: Running, error: ZBusError) -> None:
        flow = self._forget(running)
        self._told.append(partial(running.handle.fail, error))
        if flow is not None:
            flow.drop(error)

    def tell(self) -> None:
        """Tell those whose operations have ended."""
        told, self._told = self._told, []
        for tell in told:
            guarded(tell)

    def _forget(self, running: Running) -> Outflow | Inflow | None:
        """It has ended. Its flow knows it: left here, the two would hold each other, and the value
        would stay until the garbage collector comes round to them."""
        self._running.pop(running.step, None)
        flow, running.flow = running.flow, None
        return flow

    # --- time ---------------------------------------------------------------------------------

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
                note = running.handle.note
                error = TimedOut(
                    f"{what}: {note}" if note else what,
                    stage=str(running.step),
                    remedy="See to what it waited for, or give it a longer timeout",
                )
                self.cancel(running.handle, error)
        if self._running and now >= self._explain_at:
            self._explain_at = now + EXPLAIN_EVERY
            for running in self._running.values():
                running.handle.note = explain(self._context, running, now) or running.handle.note
