"""All jobs of one peer: joins `jobs` to links and parcels, and its two halves to each other.

Runs in the I/O thread. `giving` has the callers of this side, `taking` its host.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ..errors import InternalError, ZBusError
from ..net.places import DialTarget, Peering
from ..protocol import job_records as core
from ..protocol.identity import SessionKey
from ..protocol.job_records import RESULT, SUBMIT
from ..protocol.jobs import Jobs
from ..protocol.messages import (
    Enquire,
    Facts,
    JobCancel,
    JobOffer,
    JobPreview,
    JobProgress,
    JobState,
    Message,
)
from ..values.payload import Flat, flatten
from .connecting import Connecting
from .context import Context
from .enquiries import Enquiries
from .giving import Giving
from .job_transfers import JobTransfers
from .taking import Taking

logger = logging.getLogger(__name__)


class JobService:
    """All jobs of one peer, in both directions.

    Args:
        instance: Who this peer is.
        post: Hands a call to the I/O thread, from any thread.
    """

    def __init__(
        self, context: Context, instance: bytes, post: Callable[[Callable[[], None]], object]
    ) -> None:
        self._context = context
        self.jobs = Jobs(context.settings.reconnect_wait)
        self.connecting = Connecting(context, instance)
        self.enquiries = Enquiries(self.connecting, post)
        self.giving = Giving(context, self.jobs.giving, self.connecting)
        self.taking = Taking(context, self.jobs.taking, post)
        self.job_transfers = JobTransfers(context, self.jobs, self.giving.moved)
        self._handlers: dict[type[Message], Callable[[Peering, Any, bytes], None]] = {
            JobOffer: self._parcel,
            JobState: self._state,
            JobProgress: self._progress,
            JobPreview: self._preview,
            JobCancel: self._cancelled,
            Enquire: self._asked,
            Facts: self._answered,
        }

    # --- messages -----------------------------------------------------------------------------

    def receive(self, peering: Peering, message: Message, body: bytes) -> None:
        """Take one message, of one of `kinds`.

        Raises:
            RemoteProtocolError: It breaks the rules.
        """
        self._handlers[type(message)](peering, message, body)

    @property
    def kinds(self) -> tuple[type[Message], ...]:
        """The kinds of messages that are for jobs."""
        return tuple(self._handlers)

    def _state(self, peering: Peering, message: JobState, _: bytes) -> None:
        self.jobs.giving.state(peering.key, message)

    def _progress(self, peering: Peering, message: JobProgress, _: bytes) -> None:
        self.giving.progress(peering, message)

    def _preview(self, peering: Peering, message: JobPreview, body: bytes) -> None:
        self.giving.preview(peering, message, body)

    def _cancelled(self, peering: Peering, message: JobCancel, _: bytes) -> None:
        if peering.identity is not None:
            self.jobs.taking.cancelled(peering.identity, message)

    def _asked(self, peering: Peering, message: Enquire, _: bytes) -> None:
        permitted = not self.taking.denial(peering)
        self.enquiries.asked(peering, message, permitted, self.taking.facts)

    def _answered(self, peering: Peering, message: Facts, _: bytes) -> None:
        self.enquiries.told(peering, message)

    def _parcel(self, peering: Peering, parcel: JobOffer, body: bytes) -> None:
        """A value of a job is offered: take it, or say that it is here, or not wanted."""
        job, part, session = parcel.job, parcel.part, peering.key
        if part == SUBMIT:
            if not self.taking.offered(peering, job):
                self.job_transfers.known(peering, parcel)
                return
        elif self.jobs.giving.has(session, job, part):
            self.job_transfers.known(peering, parcel)
            return
        elif not self.jobs.giving.wants(session, job, part):
            self.job_transfers.refuse(peering, parcel, "that job is not waited for here")
            return

        def value(got: object) -> None:
            if part == SUBMIT:
                self.taking.arrived(session, job, got)
            else:
                self.jobs.arrived(session, job, part, got)

        def failed(error: ZBusError, resumable: bool) -> None:
            named = error if part == SUBMIT else error.at(peer=peering.name)
            self.jobs.lost(session, job, part, named, resumable)

        self.job_transfers.take(peering, parcel, body, value, failed)

    # --- told by the engine -------------------------------------------------------------------

    def linked(self, peering: Peering) -> None:
        """A connection stands."""
        if peering.identity is not None:
            self.jobs.session_up(peering.key, peering.identity)
        self.connecting.linked(peering)

    def session_down(self, peering: Peering, error: ZBusError) -> None:
        """The session has ended. The jobs hear it first, and decide which of them go on; what was
        on its way over it ends after that, and is of no more account."""
        self.jobs.session_down(peering.key, error, time.monotonic())
        self.job_transfers.session_down(peering, error)
        self._hold(peering, False)
        self.enquiries.session_down(peering, error)
        self._go_on(peering)
        self.giving.look_for_lost()
        self.taking.session_down(peering.key)

    def _go_on(self, ended: Peering) -> None:
        """Where another session with the same process stands already, none has to come first."""
        identity = ended.identity
        standing = [p for p in self._context.links.peerings if p.connection is not None]
        another = next((p for p in standing if p.identity == identity), None)
        if identity is not None and another is not None:
            self.jobs.session_up(another.key, identity)

    def place_failed(self, place: DialTarget, error: ZBusError) -> None:
        """Dialling there cannot help."""
        self.connecting.place_failed(place, error)

    def close(self, error: ZBusError) -> None:
        """The peer is closed: everything ends."""
        self.connecting.close(error)
        self.jobs.close(error)
        self.enquiries.close(error)
        self.settle()

    # --- what is to be done -------------------------------------------------------------------

    @property
    def is_unsettled(self) -> bool:
        """Whether the jobs want something done."""
        return self.jobs.is_changed

    def settle(self) -> None:
        """Do what the jobs want done."""
        while events := self.jobs.drain():
            for event in events:
                try:
                    self._do(event)
                except BaseException as error:  # it ends one thing, and not what comes after it
                    logger.exception("a fault in the jobs of zbus; please report it")
                    self._undone(event, InternalError.of(error))

    def _undone(self, event: core.Event, error: InternalError) -> None:
        """Whoever waits for that hears that it will not be done."""
        if isinstance(event, core.Deliver):
            self.jobs.undeliverable(event.session, event.job, event.part, error, False)
        elif isinstance(event, core.Say):
            self._unsaid(event.session, error)

    def _unsaid(self, session: SessionKey, error: ZBusError) -> None:
        peering = self._context.peering(session)
        if peering is not None:
            self._context.links.unsaid(peering, error.at(peer=peering.name))

    def _do(self, event: core.Event) -> None:
        match event:
            case core.Say(session, JobState() as state):
                self.taking.say_state(session, state)
            case core.Say():
                peering = self._context.peering(event.session)
                if peering is not None:
                    peering.session.send(event.message)
            case core.Deliver():
                self._deliver(event)
            case core.Drop():
                self.job_transfers.drop(event.job, "not wanted any more", event.session)
            case core.Unsaid():
                self._unsaid(event.session, event.error)
            case core.Submitted():
                self.taking.submitted(event.taken)
            case core.Stop():
                self.taking.stop(event)
            case core.Forget():
                self.taking.forget(event.taken)
            case core.Changed():
                self.giving.show(event.given)
            case core.Ended():
                self.giving.ended(event)

    def _deliver(self, event: core.Deliver) -> None:
        peering = self._context.peering(event.session)
        if peering is None:
            return
        flat = event.value if isinstance(event.value, Flat) else flatten(event.value)
        is_result = event.part.startswith(RESULT)
        quality = self.taking.quality(event.job) if is_result else "exact"
        self.job_transfers.send(peering, event.job, event.part, flat, quality)

    def counters(self) -> dict[str, int]:
        """How many jobs, and their values on the way, there are."""
        return {
            "jobs given": len(self.giving.given),
            "jobs taken": len(self.jobs.taken),
            "job values": len(self.job_transfers),
        }

    # --- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.connecting.tick(now)
        self.enquiries.tick(now)
        self.jobs.tick(now)
        self.taking.tick()
        needed = self.jobs.sessions
        for peering in self._context.links.peerings:
            self._hold(peering, peering.key in needed)
            if peering.session.drained:
                self.jobs.giving.heard(peering.key)
        self.giving.tick(now)

    def _hold(self, peering: Peering, busy: bool) -> None:
        """A place is in use while some job needs its session: also one that this side dialled
        for a job of its own, long ended, and over which it was given others since."""
        if busy and peering.jobs is None:
            peering.jobs = self._context.links.addresses.use(peering.place)
        elif not busy and peering.jobs is not None:
            peering.jobs.release()
            peering.jobs = None

    def deadline(self, now: float) -> float | None:
        """When `tick` has something to do."""
        times = (
            self.connecting.deadline(now),
            self.enquiries.deadline(now),
            self.jobs.deadline(),
            self.giving.deadline(now),
        )
        return min((t for t in times if t is not None), default=None)
