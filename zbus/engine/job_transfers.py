"""The values of jobs on their way, in both directions: each a transfer that no channel owns.

Runs in the I/O thread. `sending` and `receiving` do the work; here it is known which job and part
a transfer belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import LinkLost, RemoteProtocolError, ZBusError
from ..net.places import Peering
from ..operation import Operation
from ..protocol.fields import clip
from ..protocol.identity import SessionKey
from ..protocol.messages import JobOffer, Refused, Stored
from ..values.payload import Flat
from .context import Context
from .receiving import Receiving
from .sending import Wrapped, stream, wrap


class Owner(Protocol):
    """Who is told how each parcel ends, once: see `jobs.Jobs`."""

    def delivered(self, session: SessionKey, job: str, part: str) -> None: ...
    def undeliverable(
        self, session: SessionKey, job: str, part: str, error: ZBusError, resumable: bool
    ) -> None: ...
    def lost(
        self, session: SessionKey, job: str, part: str, error: ZBusError, resumable: bool
    ) -> None: ...


MAX_OUT = 128  # of one session at once: a burst must not fill what the session keeps

Progress = Callable[[str, str, int, int], None]
"""Called with (job, part, bytes done, bytes in all)."""


@dataclass(eq=False)
class _Moving:
    """One parcel under way."""

    job: str
    part: str
    peering: Peering
    transfer: int
    outgoing: bool
    operation: Operation[Any]
    ended: bool = False
    transferring: bool = False
    memory: int = 0


class JobTransfers:
    """All parcels of one peer.

    Args:
        owner: Is told how those that go out have ended.
        on_progress: Hears of the bytes, in both directions.
    """

    def __init__(self, context: Context, owner: Owner, on_progress: Progress) -> None:
        self._context, self._owner, self._on_progress = context, owner, on_progress
        self._moving: dict[tuple[SessionKey, int], _Moving] = {}
        self._waiting: list[tuple[Peering, str, str, Flat, str]] = []  # to be sent

    # --- out ----------------------------------------------------------------------------------

    def send(self, peering: Peering, job: str, part: str, flat: Flat, quality: str) -> None:
        """Send a value to the peer of that session, after those that are under way already."""
        self._waiting.append((peering, job, part, flat, quality))
        self._begin_waiting(peering)

    def _begin_waiting(self, peering: Peering) -> None:
        under_way = sum(m.outgoing and m.peering is peering for m in self._moving.values())
        of_it = [waiting for waiting in self._waiting if waiting[0] is peering]
        for waiting in of_it[: max(0, MAX_OUT - under_way)]:
            self._waiting.remove(waiting)
            self._send(*waiting)

    def _send(self, peering: Peering, job: str, part: str, flat: Flat, quality: str) -> None:
        link = self._context.channels.links[peering.key]
        moving = self._begin(peering, job, part, link.new_operation(), outgoing=True)

        def then(result: Wrapped | ZBusError) -> None:
            if moving.ended:
                return
            if isinstance(result, ZBusError):
                self._end(moving)
                self._owner.undeliverable(peering.key, job, part, result, resumable=False)
                return
            moving.operation.begin_bytes(result.plain)
            parcel = JobOffer(job, part, moving.transfer, **result.told)
            peering.session.send(parcel, result.body)
            progressed = moving.operation.progressed
            stream(self._context, peering, moving.transfer, result, progressed)

        wrap(self._context, peering, flat, quality, then)

    def stored(self, peering: Peering, transfer: int) -> None:
        """The peer has it."""
        moving = self._out(peering, transfer)
        if moving is not None:
            self._end(moving)
            self._owner.delivered(peering.key, moving.job, moving.part)

    def refused(self, peering: Peering, transfer: int, error: ZBusError) -> None:
        """The peer will not have it."""
        moving = self._out(peering, transfer)
        if moving is not None:
            self._end(moving)
            self._owner.undeliverable(peering.key, moving.job, moving.part, error, False)

    def _out(self, peering: Peering, transfer: int) -> _Moving | None:
        moving = self._moving.get((peering.key, transfer))
        return moving if moving is not None and moving.outgoing else None

    # --- in -----------------------------------------------------------------------------------

    def check(self, peering: Peering, parcel: JobOffer) -> None:
        """Raises:
        RemoteProtocolError: Its id is that of a transfer which is under way.
        """
        known = (peering.key, parcel.operation) in self._moving
        if known or self._context.transfers.knows(peering, parcel.operation):
            raise RemoteProtocolError("a JOB_OFFER with the id of a transfer that is under way")

    def take(
        self,
        peering: Peering,
        parcel: JobOffer,
        body: bytes,
        on_value: Callable[[Any], None],
        on_failed: Callable[[ZBusError, bool], None],
    ) -> None:
        """Receive a value that the peer sends. `on_failed` hears the error, and whether the value
        may come again over another session."""
        moving = self._begin(peering, parcel.job, parcel.part, parcel.operation, outgoing=False)

        def value(got: Any) -> None:
            self._end(moving)
            on_value(got)

        def failed(error: ZBusError) -> None:
            self._end(moving)
            on_failed(error, isinstance(error, LinkLost))

        Receiving(self._context, peering, moving, parcel, body, "any", value, failed).begin()

    def refuse(self, peering: Peering, parcel: JobOffer, why: str) -> None:
        """Nobody here wants it."""
        peering.session.send(Refused(parcel.operation, clip(why)))

    def known(self, peering: Peering, parcel: JobOffer) -> None:
        """It is here already."""
        peering.session.send(Stored(parcel.operation))

    # --- both ---------------------------------------------------------------------------------

    def _begin(
        self, peering: Peering, job: str, part: str, transfer: int, *, outgoing: bool
    ) -> _Moving:
        def progress(done: int, total: int) -> None:
            self._on_progress(job, part, done, total)

        operation: Operation[Any] = Operation(lambda _: None, progress)
        moving = _Moving(job, part, peering, transfer, outgoing, operation)
        self._moving[peering.key, transfer] = moving
        return moving

    def _end(self, moving: _Moving) -> None:
        moving.ended = True
        self._moving.pop((moving.peering.key, moving.transfer), None)
        self._context.transfers.drop(moving.peering, moving.transfer)
        if moving.memory:
            self._context.budget.give_back(moving.memory)
        if moving.outgoing and moving.peering.error is None:
            self._begin_waiting(moving.peering)

    def drop(self, job: str, why: str, session: SessionKey | None = None) -> None:
        """Whatever is on its way for that job is not wanted any more; with `session`, over that."""

        def is_meant(other: str, peering: Peering) -> bool:
            return other == job and session in (None, peering.key)

        self._waiting = [one for one in self._waiting if not is_meant(one[1], one[0])]
        for moving in [m for m in self._moving.values() if is_meant(m.job, m.peering)]:
            self._end(moving)
            if not moving.outgoing:
                moving.peering.session.send(Refused(moving.transfer, clip(why)))

    def session_down(self, peering: Peering, error: ZBusError) -> None:
        """The session has ended, and its transfers with it; each is told. Where only the link was
        lost, they may go over another session."""
        resumable, session = isinstance(error, LinkLost), peering.key
        waiting = [waiting for waiting in self._waiting if waiting[0] is peering]
        self._waiting = [waiting for waiting in self._waiting if waiting[0] is not peering]
        for _, job, part, _, _ in waiting:
            self._owner.undeliverable(session, job, part, error, resumable)
        for moving in [m for m in self._moving.values() if m.peering is peering]:
            self._end(moving)
            ended = self._owner.undeliverable if moving.outgoing else self._owner.lost
            ended(session, moving.job, moving.part, error, resumable)
