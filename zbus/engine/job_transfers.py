"""The values of jobs on their way, in both directions: transfers that belong to no channel.

Runs in the I/O thread. A flow moves each; here it is known which job and part it is for, and how
many of one session go at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import Cancelled, LinkLost, RemoteProtocolError, ZBusError
from ..net.places import Peering
from ..protocol.fields import clip
from ..protocol.identity import SessionKey
from ..protocol.messages import JobOffer, Refused, Stored
from ..values.payload import Flat
from .context import Context
from .inflow import Inflow
from .outflow import Outflow
from .workers import outcome
from .wrapping import Wrapped

MAX_OUT = 128  # of one session at once: a burst must not fill what the session keeps


class Owner(Protocol):
    """Who is told how each value ends, once: see `jobs.Jobs`."""

    def delivered(self, session: SessionKey, job: str, part: str) -> None: ...
    def undeliverable(
        self, session: SessionKey, job: str, part: str, error: ZBusError, resumable: bool
    ) -> None: ...


Progress = Callable[[str, str, int, int], None]
"""Called with (job, part, bytes done, bytes in all)."""


@dataclass(frozen=True)
class _Waiting:
    """A value that is to be sent when there is room."""

    peering: Peering
    job: str
    part: str
    flat: Flat
    quality: str


class JobTransfers:
    """All of one peer.

    Args:
        owner: Is told how those that go out have ended.
        on_progress: Hears of the bytes, in both directions.
    """

    def __init__(self, context: Context, owner: Owner, on_progress: Progress) -> None:
        self._context, self._owner, self.on_progress = context, owner, on_progress
        self._moving: set[_Part] = set()
        self._waiting: list[_Waiting] = []

    def __len__(self) -> int:
        return len(self._moving) + len(self._waiting)

    # --- out ----------------------------------------------------------------------------------

    def send(self, peering: Peering, job: str, part: str, flat: Flat, quality: str) -> None:
        """Send a value to the peer of that session, after those that are under way already."""
        self._waiting.append(_Waiting(peering, job, part, flat, quality))
        self._begin_waiting(peering)

    def _begin_waiting(self, peering: Peering) -> None:
        under_way = sum(part.is_out and part.peering is peering for part in self._moving)
        of_it = [waiting for waiting in self._waiting if waiting.peering is peering]
        for waiting in of_it[: max(0, MAX_OUT - under_way)]:
            self._waiting.remove(waiting)
            self._send(waiting)

    def _send(self, waiting: _Waiting) -> None:
        peering = waiting.peering
        transfer = self._context.channels.links[peering.key].new_operation()
        part = _Sent(self, peering, waiting.job, waiting.part)
        flow = outcome(lambda: self._context.transfers.send(peering, transfer, part))
        if isinstance(flow, ZBusError):
            job, name = waiting.job, waiting.part
            self._owner.undeliverable(peering.key, job, name, flow, resumable=False)
            return
        part.flow = flow
        self._moving.add(part)
        flow.pack(waiting.flat, waiting.quality)

    def sent(self, part: _Part, error: ZBusError | None, resumable: bool) -> None:
        """A value that went out has come to its end."""
        self._moving.discard(part)
        part.flow = None
        session = part.peering.key
        if error is None:
            self._owner.delivered(session, part.job, part.part)
        else:
            self._owner.undeliverable(session, part.job, part.part, error, resumable)
        if part.peering.error is None:
            self._begin_waiting(part.peering)

    # --- in -----------------------------------------------------------------------------------

    def take(
        self,
        peering: Peering,
        offer: JobOffer,
        body: bytes,
        on_value: Callable[[Any], None],
        on_failed: Callable[[ZBusError, bool], None],
    ) -> None:
        """Receive a value that the peer sends. `on_failed` hears the error, and whether the value
        may come again over another session.

        Raises:
            RemoteProtocolError: Its id is that of a transfer which is under way.
        """
        part = _Got(self, peering, offer.job, offer.part, on_value, on_failed)
        flow = outcome(lambda: self._context.transfers.receive(peering, offer, "any", part))
        if isinstance(flow, RemoteProtocolError):
            raise flow
        if isinstance(flow, ZBusError):
            self.refuse(peering, offer, str(flow))
            on_failed(flow, False)
            return
        part.flow = flow
        self._moving.add(part)
        flow.take(offer, body)

    def got(self, part: _Part) -> None:
        """A value that came in has come to its end."""
        self._moving.discard(part)
        part.flow = None

    def refuse(self, peering: Peering, offer: JobOffer, why: str) -> None:
        """Nobody here wants it."""
        peering.session.send(Refused(offer.operation, clip(why)))

    def known(self, peering: Peering, offer: JobOffer) -> None:
        """It is here already."""
        peering.session.send(Stored(offer.operation))

    # --- both ---------------------------------------------------------------------------------

    def drop(self, job: str, why: str, session: SessionKey | None = None) -> None:
        """Whatever is on its way for that job (with `session`, over that) is not wanted any more,
        and nobody is to be told of its end but the peer."""

        def is_meant(one: _Waiting | _Part) -> bool:
            return one.job == job and session in (None, one.peering.key)

        self._waiting = [waiting for waiting in self._waiting if not is_meant(waiting)]
        for part in [part for part in self._moving if is_meant(part)]:
            self._moving.discard(part)
            flow = part.forget()
            error = Cancelled(why, peer=part.peering.name)
            if flow is not None and part.is_out:
                flow.drop(error)
                self._begin_waiting(part.peering)
            elif flow is not None:
                flow.failed(error)  # which says REFUSED

    def session_down(self, peering: Peering, error: ZBusError) -> None:
        """The session has ended: what was still to be sent over it ends as what was moving."""
        gone = [waiting for waiting in self._waiting if waiting.peering is peering]
        self._waiting = [waiting for waiting in self._waiting if waiting.peering is not peering]
        for waiting in gone:
            self._owner.undeliverable(
                peering.key, waiting.job, waiting.part, error, isinstance(error, LinkLost)
            )


class _Part:
    """One value of a job under way, as its flow sees it: see `Giver` and `Taker`."""

    is_out: bool
    flow: Outflow | Inflow | None = None

    def __init__(self, transfers: JobTransfers, peering: Peering, job: str, part: str) -> None:
        self._transfers, self.peering, self.job, self.part = transfers, peering, job, part
        self._is_wanted = True
        self._total = 0

    def begins(self, total: int) -> None:
        self._total = total

    def moved(self, received: int) -> None:
        if self._is_wanted:
            self._transfers.on_progress(self.job, self.part, received, self._total)

    def forget(self) -> Outflow | Inflow | None:
        """Nobody wants to hear of it any more; returns its flow, which is to be ended."""
        self._is_wanted = False
        flow, self.flow = self.flow, None
        return flow


class _Sent(_Part):
    is_out = True

    def offer(self, wrapped: Wrapped) -> None:
        assert self.flow is not None
        self.begins(wrapped.plain)
        message = JobOffer(self.job, self.part, self.flow.delivery.id, **wrapped.told)
        self.peering.session.send(message, wrapped.body)

    def delivered(self, value: Any) -> None:
        if self._is_wanted:
            self._transfers.sent(self, None, False)

    def undeliverable(self, error: ZBusError, resumable: bool) -> None:
        if self._is_wanted:
            self._transfers.sent(self, error, resumable)


class _Got(_Part):
    is_out = False

    def __init__(
        self,
        transfers: JobTransfers,
        peering: Peering,
        job: str,
        part: str,
        on_value: Callable[[Any], None],
        on_failed: Callable[[ZBusError, bool], None],
    ) -> None:
        super().__init__(transfers, peering, job, part)
        self._on_value, self._on_failed = on_value, on_failed

    def delivered(self, value: Any) -> None:
        self._transfers.got(self)
        if self._is_wanted:
            self._on_value(value)

    def undeliverable(self, error: ZBusError, resumable: bool) -> None:
        self._transfers.got(self)
        if self._is_wanted:
            self._on_failed(error, resumable)
