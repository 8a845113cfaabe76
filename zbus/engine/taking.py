"""The jobs that this side runs for others: joins `taken_jobs` to the host and to their clients.

Runs in the I/O thread; the host is called in a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..callbacks import Callbacks
from ..errors import ZBusError
from ..job import JobHost, Reason, Request, Taken
from ..net.places import Peering
from ..protocol import job_records as core
from ..protocol.fields import clip
from ..protocol.identity import SessionKey
from ..protocol.job_records import TakenJob, TakenState
from ..protocol.messages import JobPreview, JobProgress, JobState
from ..protocol.outcomes import NOBODY, NOT_YOU, PLAIN, refused
from ..protocol.taken_jobs import TakenJobs
from ..trust import JOBS
from .context import Context
from .workers import outcome

PREVIEW_EVERY = 0.1  # seconds, of one job; and no more than
PREVIEW_SHARE = 0.25  # of what the link carries
MAX_STATES = 64  # JOB-STATEs of one session before it has acknowledged everything


class Taking:
    """All jobs of others at this peer. What a `Taken` tells comes in here, as its `Teller`.

    Args:
        post: Hands a call to the I/O thread, from any thread.
    """

    def __init__(
        self, context: Context, core: TakenJobs, post: Callable[[Callable[[], None]], object]
    ) -> None:
        self._context, self._core, self._post = context, core, post
        self.host: JobHost | None = None
        self.calls = Callbacks("zbus-host")
        self.taken: dict[str, Taken] = {}
        self.states: dict[tuple[SessionKey, str], JobState] = {}  # to be said: each job's latest
        self._stated: dict[SessionKey, int] = {}  # how many were, since a session was drained
        self.previewed: dict[str, float] = {}  # when the next preview of a job may go

    # --- a job comes --------------------------------------------------------------------------

    def denial(self, peering: Peering) -> str:
        """Why the peer of that session may run no jobs here; "" if it may."""
        if not peering.is_own:
            return PLAIN
        if self.host is None:
            return NOBODY
        return "" if JOBS in peering.permissions else NOT_YOU

    def offered(self, peering: Peering, job: str) -> bool:
        """A peer offers a job; whether it is to be taken."""
        identity, denial = peering.identity, self.denial(peering)
        if identity is None or denial:
            self._core.deny(peering.key, job, denial)
            return False
        return self._core.offered(peering.key, identity, peering.name, job)

    def arrived(self, session: SessionKey, job: str, value: object) -> None:
        """Its request is here."""
        record = self._core.jobs.get(job)
        if record is None or record.session != session or record.state is not TakenState.ARRIVING:
            return
        request = outcome(lambda: Request.read(value))
        if isinstance(request, ZBusError):
            self._core.lost(session, job, request, resumable=False)
            return
        self.taken[job] = Taken(
            job, record.client, request, lambda tell: self._post(lambda: tell(self))
        )
        self._core.submitted(session, job, request, request.title, request.group)

    # --- told by `Taken` ----------------------------------------------------------------------

    def refuse(self, job: str, reasons: Sequence[Reason]) -> None:
        self.ended(job, refused(list(reasons)))

    def queued(self, job: str, place: int) -> None:
        record = self._core.jobs.get(job)
        if record is not None:
            self._core.queued(record, place)

    def started(self, job: str) -> None:
        record = self._core.jobs.get(job)
        if record is not None:
            self._core.started(record)

    def progressed(self, job: str, node: str, title: str, value: int, maximum: int) -> None:
        peering = self._client(job)
        if peering is not None:
            at, most = max(0, int(value)), max(0, int(maximum))  # some nodes count in floats
            told = JobProgress(job, clip(node, 120), clip(title, 120), at, most)
            peering.session.send(told)

    def preview(self, job: str, node: str, kind: str, data: bytes) -> None:
        peering, now = self._client(job), time.monotonic()
        if peering is None or now < self.previewed.get(job, 0.0):
            return
        if not 0 < len(data) <= JobPreview.BODY:
            return
        rate = peering.pace.rate
        cost = len(data) / rate / PREVIEW_SHARE if rate else 0.0
        self.previewed[job] = now + max(PREVIEW_EVERY, cost)
        peering.session.send(JobPreview(job, clip(node, 120), kind), data)

    def _client(self, job: str) -> Peering | None:
        """The session of the peer that gave the job."""
        record = self._core.jobs.get(job)
        session = record.session if record is not None else None
        return self._context.peering(session) if session is not None else None

    def result(self, job: str, name: str, flat: Any, notes: Sequence[str]) -> None:
        record = self._core.jobs.get(job)
        if record is not None:
            self._core.result(record, name, flat, notes)

    def ended(self, job: str, end: dict[str, Any]) -> None:
        record = self._core.jobs.get(job)
        if record is not None:
            self._core.ended(record, end)

    # --- what is to be done -------------------------------------------------------------------

    def submitted(self, record: TakenJob) -> None:
        """The host is to check it and queue it."""
        if self.host is not None:
            self.calls.call(self.host.submitted, self.taken[record.id])

    def stop(self, event: core.Stop) -> None:
        """The host is to stop exactly this one."""
        if self.host is not None:
            self.calls.call(self.host.cancel, self.taken[event.taken.id], event.why)

    def forget(self, record: TakenJob) -> None:
        """Nothing of it is left."""
        self.previewed.pop(record.id, None)
        taken = self.taken.pop(record.id, None)
        if taken is not None and self.host is not None:
            self.calls.call(self.host.forget, taken)

    def quality(self, job: str) -> str:
        """How the results of that job travel."""
        taken = self.taken.get(job)
        return taken.request.quality if taken is not None else "exact"

    def say_state(self, session: SessionKey, state: JobState) -> None:
        """Where a peer's job is, now or later. The latest counts: while a link is down or a peer
        reads nothing, each place in a long queue would else be kept for it."""
        self.states[session, state.job] = state
        peering = self._context.peering(session)
        if peering is None or state.job not in self._core.jobs:
            del self.states[session, state.job]
            return
        told = 0 if peering.session.drained else self._stated.get(session, 0)
        if peering.connection is not None and told < MAX_STATES:
            del self.states[session, state.job]
            self._stated[session] = told + 1
            peering.session.send(state)

    def session_down(self, session: SessionKey) -> None:
        """The session has ended."""
        self._stated.pop(session, None)

    def tick(self) -> None:
        """Say what could not be said yet."""
        for (session, _), state in list(self.states.items()):
            self.say_state(session, state)

    def facts(self) -> dict[str, Any]:
        """What the host tells of itself; may block."""
        return self.host.facts() if self.host is not None else {}
