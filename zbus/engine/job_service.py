"""The desk where jobs are given and taken: joins `jobs` to links, parcels, callers and the host.

Runs in the I/O thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import RemoteProtocolError, ZBusError
from ..job import Job, JobHost, Progress, Reason, Request, Taken
from ..net.places import DialTarget, Peering
from ..protocol import job_records as core
from ..protocol.fields import clip
from ..protocol.job_records import END, RESULT, SUBMIT, GivenJob, State
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
from ..protocol.outcomes import NOBODY, NOT_YOU, PLAIN, refused
from ..trust import JOBS
from ..values.payload import Flat, flatten
from .connecting import Connecting, SessionRequest
from .context import Context
from .enquiries import Enquiries
from .job_transfers import JobTransfers
from .status_text import explain_job

logger = logging.getLogger(__name__)

EXPLAIN_EVERY = 0.25  # seconds
PREVIEW_EVERY = 0.1  # seconds, of one job; and no more than
PREVIEW_SHARE = 0.25  # of what the link carries
MAX_STATES = 64  # JOB-STATEs of one session before it has acknowledged everything


@dataclass(eq=False)
class _Given:
    """A job of this side."""

    job: Job
    flat: Flat
    errand: SessionRequest
    record: GivenJob | None = None
    awaited: str = ""  # by whom, told before there was a link


class JobService:
    """All jobs of one peer, in both directions.

    Args:
        instance: Who this peer is.
        post: Hands a call to the I/O thread, from any thread.
    """

    def __init__(
        self, context: Context, instance: bytes, post: Callable[[Callable[[], None]], bool]
    ) -> None:
        self._context, self._post = context, post
        self.jobs = Jobs(context.settings.reconnect_wait)
        self.connecting = Connecting(context, instance)
        self.enquiries = Enquiries(context, self.connecting)
        self.job_transfers = JobTransfers(context, self.jobs, self._moved)
        self.host: JobHost | None = None
        self._given: dict[str, _Given] = {}
        self._taken: dict[str, Taken] = {}
        self._states: dict[tuple[bytes, str], JobState] = {}  # to be said: the latest of each job
        self._stated: dict[bytes, int] = {}  # how many were, since a session was drained
        self._previewed: dict[str, float] = {}  # when the next preview of a job may go
        self._explain_at = 0.0

    # --- giving -------------------------------------------------------------------------------

    def submit(self, job: Job, flat: Flat) -> None:
        """Give a job to its peer as soon as there is a link."""

        def then(peering: Peering) -> None:
            told = peering.session.peer
            job.peer = job.remote.name or told.name
            given.record = GivenJob(job.id, flat, job.peer, told.incarnation, job.request.title)
            given.record.awaited = given.awaited
            self.jobs.submit(given.record, peering.key)

        def failed(error: ZBusError) -> None:
            del self._given[job.id]
            job.fail(error)

        given = self._given[job.id] = _Given(job, flat, SessionRequest(job.remote, then, failed))
        self.connecting.begin(given.errand)

    def cancel(self, job: Job, error: ZBusError) -> None:
        """This side does not want it any more."""
        given = self._given.get(job.id)
        if given is not None and given.record is not None:
            self.jobs.cancel(given.record, error)
        elif given is not None:
            del self._given[job.id]
            self.connecting.done(given.errand)
            job.fail(error)

    def awaits(self, job: Job, who: str) -> None:
        """A running prompt waits for it."""
        given = self._given.get(job.id)
        if given is not None and given.record is not None:
            self.jobs.awaits(given.record, who)
        elif given is not None:
            given.awaited = who

    # --- taking: told by `Taken` --------------------------------------------------------------

    def refuse(self, job: str, reasons: Sequence[Reason]) -> None:
        self.ended(job, refused(list(reasons)))

    def queued(self, job: str, place: int) -> None:
        if job in self.jobs.taken:
            self.jobs.queued(self.jobs.taken[job], place)

    def started(self, job: str) -> None:
        if job in self.jobs.taken:
            self.jobs.started(self.jobs.taken[job])

    def progressed(self, job: str, node: str, title: str, value: int, maximum: int) -> None:
        peering = self._client(job)
        if peering is not None:
            at, most = max(0, int(value)), max(0, int(maximum))  # some nodes count in floats
            told = JobProgress(job, clip(node, 120), clip(title, 120), at, most)
            peering.session.send(told)

    def preview(self, job: str, node: str, kind: str, data: bytes) -> None:
        peering, now = self._client(job), time.monotonic()
        if peering is None or now < self._previewed.get(job, 0.0):
            return
        if not 0 < len(data) <= JobPreview.BODY:
            return
        rate = peering.pace.rate
        cost = len(data) / rate / PREVIEW_SHARE if rate else 0.0
        self._previewed[job] = now + max(PREVIEW_EVERY, cost)
        peering.session.send(JobPreview(job, clip(node, 120), kind), data)

    def _client(self, job: str) -> Peering | None:
        """The session of the peer that gave the job."""
        taken_job = self.jobs.taken.get(job)
        return (
            self._context.peering(taken_job.session)
            if taken_job is not None and taken_job.session
            else None
        )

    def result(self, job: str, name: str, flat: Flat) -> None:
        if job in self.jobs.taken:
            self.jobs.result(self.jobs.taken[job], name, flat)

    def ended(self, job: str, end: dict[str, Any]) -> None:
        if job in self.jobs.taken:
            self.jobs.ended(self.jobs.taken[job], end)

    # --- messages -----------------------------------------------------------------------------

    def message(self, peering: Peering, message: Message, body: bytes) -> bool:
        """Take one message; False if it is not for jobs.

        Raises:
            RemoteProtocolError: It breaks the rules.
        """
        match message:
            case JobOffer():
                self._parcel(peering, message, body)
            case JobState():
                self.jobs.state(peering.key, message)
            case JobProgress():
                self._progress(peering, message)
            case JobPreview():
                self._preview(peering, message, body)
            case JobCancel():
                self.jobs.cancelled(peering.key, message)
            case Enquire():
                self.enquiries.asked(peering, message, not self.denial(peering), self._facts)
            case Facts():
                self.enquiries.told(peering, message)
            case _:
                return False
        return True

    def _parcel(self, peering: Peering, parcel: JobOffer, body: bytes) -> None:
        job = parcel.job
        if parcel.part == SUBMIT:
            told, denial = peering.session.peer, self.denial(peering)
            if self.jobs.offered(peering.key, told.incarnation, told.name, job, denial):
                self.job_transfers.take(
                    peering,
                    parcel,
                    body,
                    lambda value: self._submitted(job, value),
                    lambda error, _: self.jobs.not_submitted(job, error),
                )
            else:
                self.job_transfers.known(peering, parcel)
        elif self.jobs.wants(peering.key, job, parcel.part):
            self.job_transfers.take(
                peering,
                parcel,
                body,
                lambda value: self.jobs.arrived(job, parcel.part, value),
                lambda error, _: self.jobs.lost(job, error.at(peer=peering.name)),
            )
        else:
            self.job_transfers.refuse(peering, parcel, "that job is not waited for here")

    def _facts(self) -> dict[str, Any]:
        return self.host.facts() if self.host is not None else {}

    def denial(self, peering: Peering) -> str:
        """Why the peer of that session may run no jobs here; "" if it may."""
        if not peering.is_own:
            return PLAIN
        if self.host is None:
            return NOBODY
        return "" if JOBS in peering.permissions else NOT_YOU

    def _submitted(self, job: str, value: object) -> None:
        taken_job = self.jobs.taken.get(job)
        if taken_job is None or taken_job.state is not State.ARRIVING:
            return
        try:
            request = Request.read(value)
        except RemoteProtocolError as error:
            self.jobs.not_submitted(job, error)
            return
        self._taken[job] = Taken(
            job, taken_job.client, request, lambda tell: self._post(lambda: tell(self))
        )
        self.jobs.submitted(job, request, request.title, request.group)

    def _progress(self, peering: Peering, message: JobProgress) -> None:
        given = self._mine(peering, message.job)
        if given is not None:
            job = given.job
            job.progress = replace(
                job.progress,
                node=message.node,
                title=message.title,
                value=message.value,
                maximum=message.maximum,
            )
            _changed(job)

    def _preview(self, peering: Peering, message: JobPreview, body: bytes) -> None:
        given = self._mine(peering, message.job)
        if given is not None and given.job.on_preview is not None:
            _told(given.job.on_preview, message.node, message.format, body)

    def _mine(self, peering: Peering, job: str) -> _Given | None:
        given = self._given.get(job)
        record = given.record if given is not None else None
        return given if record is not None and record.session == peering.key else None

    # --- told by the engine -------------------------------------------------------------------

    def linked(self, peering: Peering) -> None:
        """A connection stands."""
        if peering.is_own:
            self.jobs.session_up(peering.key, peering.session.peer.incarnation)
        self.connecting.linked(peering)

    def session_down(self, peering: Peering, error: ZBusError) -> None:
        """The session has ended."""
        self.job_transfers.session_down(peering, error)
        self.jobs.session_down(peering.key, error, time.monotonic())
        self._hold(peering, False)
        self.enquiries.session_down(peering, error)
        self._stated.pop(peering.key, None)

    def place_failed(self, place: DialTarget, error: ZBusError) -> None:
        """Dialling there cannot help."""
        self.connecting.place_failed(place, error)

    def close(self, error: ZBusError) -> None:
        """The peer is closed: everything ends."""
        self.connecting.close(error)
        self.jobs.close(error)
        self.enquiries.close(error)
        self.settle()

    def settle(self) -> None:
        """Do what the jobs want done."""
        while events := self.jobs.drain():
            for event in events:
                try:
                    self._do(event)
                except Exception:  # it ends one thing, and not what comes after it
                    logger.exception("a fault in the jobs of zbus; please report it")

    def _do(self, event: core.Event) -> None:
        match event:
            case core.Say(session, JobState() as state):
                self._say_state(session, state)
            case core.Say():
                peering = self._context.peering(event.session)
                if peering is not None:
                    peering.session.send(event.message)
            case core.Deliver():
                self._deliver(event)
            case core.Drop():
                self.job_transfers.drop(event.job, "not wanted any more")
            case core.Submitted():
                if self.host is not None:
                    _told(self.host.submitted, self._taken[event.taken.id])
            case core.Stop():
                if self.host is not None:
                    _told(self.host.cancel, self._taken[event.taken.id], event.why)
            case core.Forget():
                self._forget(event.taken.id)
            case core.Changed():
                self._show(event.given)
            case core.Ended():
                self._ended(event)

    def _deliver(self, event: core.Deliver) -> None:
        peering = self._context.peering(event.session)
        if peering is None:
            return
        flat = event.value if isinstance(event.value, Flat) else flatten(event.value)
        taken = self._taken.get(event.job)
        is_result = event.part.startswith(RESULT) and taken is not None
        quality = taken.request.quality if is_result and taken is not None else "exact"
        self.job_transfers.send(peering, event.job, event.part, flat, quality)

    def _say_state(self, session: bytes, state: JobState) -> None:
        """Where a peer's job is, now or later. The latest counts: while a link is down or a peer
        reads nothing, each place in a long queue would else be kept for it."""
        self._states[session, state.job] = state
        peering = self._context.peering(session)
        if peering is None or state.job not in self.jobs.taken:
            del self._states[session, state.job]
            return
        told = 0 if peering.session.drained else self._stated.get(session, 0)
        if peering.connection is not None and told < MAX_STATES:
            del self._states[session, state.job]
            self._stated[session] = told + 1
            peering.session.send(state)

    def _forget(self, job: str) -> None:
        self._previewed.pop(job, None)
        taken = self._taken.pop(job, None)
        if taken is not None and self.host is not None:
            _told(self.host.forget, taken)

    def _show(self, record: GivenJob) -> None:
        given = self._given.get(record.id)
        if given is not None:
            job = given.job
            job.results = record.results
            if record.state in (State.QUEUED, State.RUNNING):
                job.accepted = True
                job.progress = replace(job.progress, state=record.state.value, place=record.place)
            _changed(job)

    def _moved(self, job: str, part: str, done: int, total: int) -> None:
        """Bytes of a parcel have moved."""
        given = self._given.get(job)
        if given is None or part == END:
            return
        progress = given.job.progress
        if part == SUBMIT and progress.state != "sending":
            return
        given.job.progress = replace(progress, received=done, total=total)
        _changed(given.job)

    def _ended(self, event: core.Ended) -> None:
        given = self._given.pop(event.given.id, None)
        if given is None:
            return
        job = given.job
        self.connecting.done(given.errand)
        job.progress = Progress("ended")
        job.request = replace(job.request, values={})  # the handle may be kept for long
        job.results = event.given.results
        if event.error is None:
            job.succeed(event.given.results)
        else:
            job.fail(event.error)

    def counters(self) -> dict[str, int]:
        """How many jobs, and their values on the way, there are."""
        return {
            "jobs given": len(self._given),
            "jobs taken": len(self.jobs.taken),
            "job values": len(self.job_transfers),
        }

    # --- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.connecting.tick(now)
        self.jobs.tick(now)
        for (key, _), state in list(self._states.items()):
            self._say_state(key, state)
        needed = self.jobs.sessions
        for peering in self._context.links.peerings:
            self._hold(peering, peering.key in needed)
        if self._given and now >= self._explain_at:
            self._explain_at = now + EXPLAIN_EVERY
            for given in self._given.values():
                record = given.record
                session = record.session if record is not None else None
                through = self._context.peering(session) if session else None
                note = explain_job(self._context, given.job, through, now)
                if note != given.job.note:
                    given.job.note = note
                    _changed(given.job)

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
        times = [self.connecting.deadline(now), self.jobs.deadline()]
        if self._given:
            times.append(max(now, self._explain_at))
        return min((t for t in times if t is not None), default=None)


def _changed(job: Job) -> None:
    if job.on_change is not None:
        _told(job.on_change, job)


def _told(call: Callable[..., None], *args: Any) -> None:
    """Call the caller's or the host's own code."""
    try:
        call(*args)
    except Exception:
        logger.exception("a callback of a job failed")
