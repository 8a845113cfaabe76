"""The jobs that this side gives: joins `given_jobs` to callers and to the links to their runners.

Runs in the I/O thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import ZBusError
from ..job import Job, Progress
from ..net.places import Peering
from ..protocol import job_records as core
from ..protocol.given_jobs import GivenJobs
from ..protocol.job_records import END, SUBMIT, GivenJob, GivenState
from ..protocol.messages import JobPreview, JobProgress
from ..values.payload import Flat
from .connecting import Connecting, SessionRequest
from .context import Context
from .status_text import explain_job

EXPLAIN_EVERY = 0.25  # seconds


@dataclass(eq=False)
class _Given:
    """A job of this side."""

    job: Job
    flat: Flat
    session_request: SessionRequest
    record: GivenJob | None = None
    awaited: str = ""  # by whom, told before there was a link


class Giving:
    """All jobs that callers of this peer have given."""

    def __init__(self, context: Context, core: GivenJobs, connecting: Connecting) -> None:
        self._context, self._core, self._connecting = context, core, connecting
        self.given: dict[str, _Given] = {}
        self._explain_at = 0.0

    # --- from callers -------------------------------------------------------------------------

    def submit(self, job: Job, flat: Flat) -> None:
        """Give a job to its peer as soon as there is a link."""

        def then(peering: Peering) -> None:
            told, identity = peering.session.peer, peering.identity
            assert identity is not None, "only a proved peer meets a remote"
            job.peer, asked = job.remote.name or told.name, job.request
            given.record = GivenJob(job.id, flat, job.peer, identity, asked.title, asked.wanted)
            given.record.awaited = given.awaited
            self._core.submit(given.record, peering.key)

        def failed(error: ZBusError) -> None:
            del self.given[job.id]
            job.fail(error)

        given = self.given[job.id] = _Given(job, flat, SessionRequest(job.remote, then, failed))
        self._connecting.begin(given.session_request)

    def cancel(self, job: Job, error: ZBusError) -> None:
        """This side does not want it any more."""
        given = self.given.get(job.id)
        if given is not None and given.record is not None:
            self._core.cancel(given.record, error)
        elif given is not None:
            del self.given[job.id]
            self._connecting.done(given.session_request)
            job.fail(error)

    def awaits(self, job: Job, who: str) -> None:
        """A running prompt waits for it."""
        given = self.given.get(job.id)
        if given is not None and given.record is not None:
            self._core.awaits(given.record, who)
        elif given is not None:
            given.awaited = who

    def look_for_lost(self) -> None:
        """A session has ended: see that those jobs which go on can meet their runners again."""
        for given in self.given.values():
            if given.record is not None and given.record.state is GivenState.LOST:
                self._connecting.again(given.session_request)

    # --- from their runners -------------------------------------------------------------------

    def progress(self, peering: Peering, message: JobProgress) -> None:
        """Which node is at which step."""
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

    def preview(self, peering: Peering, message: JobPreview, body: bytes) -> None:
        """A picture of what a node computes."""
        given = self._mine(peering, message.job)
        if given is not None and given.job.on_preview is not None:
            told = given.job.on_preview, message.node, message.format, body
            given.job.callbacks.call(*told, key=(given.job, "preview"))

    def _mine(self, peering: Peering, job: str) -> _Given | None:
        """The job, if that is the session on which its runner speaks."""
        given = self.given.get(job)
        record = given.record if given is not None else None
        return given if record is not None and record.session == peering.key else None

    # --- what is to be done -------------------------------------------------------------------

    def show(self, record: GivenJob) -> None:
        """Something about it is new, for people."""
        given = self.given.get(record.id)
        if given is not None:
            job = given.job
            job.results = record.results
            if record.state in (GivenState.QUEUED, GivenState.RUNNING):
                job.accepted = True
                at, state = job.progress, record.state.name.lower()
                if at.state == "sending":  # the bytes so far were of what it was given
                    at = replace(at, received=0, total=0)
                job.progress = replace(at, state=state, place=record.place)
            _changed(job)

    def moved(self, job: str, part: str, done: int, total: int) -> None:
        """Bytes of a parcel have moved."""
        given = self.given.get(job)
        if given is None or part == END:
            return
        progress = given.job.progress
        if part == SUBMIT and progress.state != "sending":
            return
        given.job.progress = replace(progress, received=done, total=total)
        _changed(given.job)

    def ended(self, event: core.Ended) -> None:
        """It has come to its end: tell its caller."""
        given = self.given.pop(event.given.id, None)
        if given is None:
            return
        job = given.job
        self._connecting.done(given.session_request)
        job.progress = Progress("ended")
        job.request = replace(job.request, values={})  # the handle may be kept for long
        job.results, job.notes = event.given.results, event.given.notes
        # Either runs what callers have asked to be called then.
        if event.error is None:
            job.succeed(event.given.results)
        else:
            job.fail(event.error)

    # --- time ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Say what the jobs wait for."""
        if not self.given or now < self._explain_at:
            return
        self._explain_at = now + EXPLAIN_EVERY
        for given in self.given.values():
            record = given.record
            session = record.session if record is not None else None
            through = self._context.peering(session) if session else None
            is_lost = record is not None and record.state is GivenState.LOST
            lost_at = record.lost_at if record is not None and is_lost else None
            note = explain_job(self._context, given.job, through, lost_at, now)
            if note != given.job.note:
                given.job.note = note
                _changed(given.job)

    def deadline(self, now: float) -> float | None:
        """When `tick` has something to do."""
        return max(now, self._explain_at) if self.given else None


def _changed(job: Job) -> None:
    if job.on_change is not None:
        job.callbacks.call(job.on_change, job, key=(job, "change"))  # the latest word counts
