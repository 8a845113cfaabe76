"""The sends and receives under way, from their begin to their one end.

Runs in the I/O thread. `channel` says when a step is bound, matched or failed; `sending` and
`receiving` move its value; here the caller's `Operation` is told.
"""

from __future__ import annotations

from typing import Any

from ..errors import Cancelled, PeerClosed, TimedOut, ZBusError
from ..net.places import Peering
from ..operation import Operation
from ..protocol.registrations import ChannelOperation, Failed, Matched, Registration, State
from .context import Context, Running
from .receiving import Receiving
from .sending import prepare
from .status_text import explain

EXPLAIN_EVERY = 0.25  # seconds


class Operations:
    """All operations of one peer that are under way."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._running: dict[ChannelOperation, Running] = {}
        self._explain_at = 0.0

    # --- from the caller ----------------------------------------------------------------------

    def begin(self, running: Running) -> None:
        """A send or receive begins."""
        self._running[running.step] = running
        self._explain_at = 0.0
        try:
            self._context.channels.matching.begin(running.registration, running.step)
        except ZBusError as error:
            self._end(running, error)
            return
        if running.registration.state is State.BOUND:
            prepare(self._context, running)

    def cancel(self, operation: Operation[Any], error: ZBusError | None = None) -> None:
        """The caller gives up."""
        for running in self._running.values():
            if running.operation is operation:
                error = error or Cancelled("cancelled here", stage=str(running.step))
                self._context.channels.matching.fail(
                    running.registration, running.step, error, tell=True
                )
                return

    def on(self, registration: Registration) -> list[Running]:
        """The operations under way on a registration."""
        return [
            running for running in self._running.values() if running.registration is registration
        ]

    def close(self, error: PeerClosed) -> None:
        """The peer is closed: everything ends."""
        for running in list(self._running.values()):
            self._end(running, error)

    # --- told by the engine -------------------------------------------------------------------

    def bound(self, registration: Registration) -> None:
        """The registration has met its partner: a send that waits for it may go."""
        running = self._running.get(registration.step) if registration.step is not None else None
        if running is not None:
            prepare(self._context, running)

    def matched(self, event: Matched) -> None:
        """A receive has its offer."""
        running = self._running.get(event.step)
        link = event.registration.link
        peering = self._context.peering(link.key) if link is not None else None
        if running is None or peering is None:
            return
        running.peering, running.transfer = peering, event.offer.operation

        def value(got: Any) -> None:
            self._complete(running, got)

        def failed(error: ZBusError) -> None:
            error = error.at(peer=peering.name, stage=str(running.step))
            self._context.channels.matching.fail(
                running.registration, running.step, error, tell=False
            )

        Receiving(
            self._context, peering, running, event.offer, event.body, event.step.kind, value, failed
        ).begin()

    def stored(self, peering: Peering, transfer: int) -> None:
        """The peer has a value of ours."""
        running = self._find(peering, transfer)
        if running is not None:
            self._complete(running, None)

    def refused(self, peering: Peering, transfer: int, error: ZBusError) -> None:
        """The peer will not take a value of ours."""
        running = self._find(peering, transfer)
        if running is not None:
            self._context.channels.matching.fail(
                running.registration, running.step, error, tell=False
            )

    def failed(self, event: Failed) -> None:
        """Channels say that a step failed."""
        running = self._running.get(event.step)
        if running is not None:
            self._end(running, event.error)

    def _find(self, peering: Peering, transfer: int) -> Running | None:
        for running in self._running.values():
            sends = running.step.direction == "send"
            if sends and running.transfer == transfer and running.peering is peering:
                return running
        return None

    def _complete(self, running: Running, value: Any) -> None:
        self._context.channels.matching.complete(running.registration, running.step)
        running.operation.progressed(running.operation.total_bytes)
        self._end(running, None, value)

    def _end(self, running: Running, error: ZBusError | None, value: Any = None) -> None:
        running.ended = True
        self._running.pop(running.step, None)
        if running.peering is not None and running.transfer >= 0:
            self._context.transfers.drop(running.peering, running.transfer)
        if running.memory:
            self._context.budget.give_back(running.memory)
        if error is None:
            running.operation.succeed(value)
        else:
            running.operation.fail(error)

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
                note = running.operation.note
                error = TimedOut(f"{what}: {note}" if note else what, stage=str(running.step))
                self.cancel(running.operation, error)
        if self._running and now >= self._explain_at:
            self._explain_at = now + EXPLAIN_EVERY
            for running in self._running.values():
                running.operation.note = explain(self._context, running, now) or (
                    running.operation.note
                )
