"""Sans-IO: the jobs that this side gives, each from its submit to its one end.

A given job belongs to the process that was asked to run it, its `runner`: only on a session with
that `Identity` is it submitted, and only what comes on that very session counts for it. `TABLE` is
its whole life; what stands not in it changes nothing.

A broken session ends no job. It is LOST then, whatever of it was on its way, and submitted again on
the next session with its runner: that one knows it, says where it is, and delivers anew what it
has not been told to be stored. After `reconnect_wait` without such a session it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import Cancelled, LinkLost, ZBusError
from .fields import clip
from .identity import Identity, SessionKey
from .job_records import (
    END,
    RESULT,
    SUBMIT,
    Changed,
    Deliver,
    Drop,
    Ended,
    Event,
    GivenJob,
    GivenState,
    Say,
)
from .messages import JobCancel, JobState
from .outcomes import outcome, stage

MAX_RESULTS = 1024  # of one job
TELL_CANCEL = 600.0  # seconds beyond `reconnect_wait` that a cancel is kept for a lost runner

TABLE: dict[tuple[GivenState, str], GivenState] = {
    (GivenState.SUBMITTED, "queued"): GivenState.QUEUED,
    (GivenState.SUBMITTED, "running"): GivenState.RUNNING,
    (GivenState.QUEUED, "queued"): GivenState.QUEUED,  # at another place, or behind others
    (GivenState.QUEUED, "running"): GivenState.RUNNING,
    (GivenState.RUNNING, "running"): GivenState.RUNNING,
    # The end is here, and every result that it names; or it is a bad one, which needs none.
    (GivenState.SUBMITTED, "completed"): GivenState.ENDED,
    (GivenState.QUEUED, "completed"): GivenState.ENDED,
    (GivenState.RUNNING, "completed"): GivenState.ENDED,
    # Only the session broke: its runner lives, and may be met again.
    (GivenState.SUBMITTED, "session lost"): GivenState.LOST,
    (GivenState.QUEUED, "session lost"): GivenState.LOST,
    (GivenState.RUNNING, "session lost"): GivenState.LOST,
    (GivenState.LOST, "met again"): GivenState.SUBMITTED,
    (GivenState.LOST, "not met again"): GivenState.ENDED,
    # Its runner has ended, was restarted, or said goodbye.
    (GivenState.SUBMITTED, "runner gone"): GivenState.ENDED,
    (GivenState.QUEUED, "runner gone"): GivenState.ENDED,
    (GivenState.RUNNING, "runner gone"): GivenState.ENDED,
    # By this side: its user, a value that cannot travel, a deadlock, the end of the process.
    (GivenState.SUBMITTED, "cancelled"): GivenState.ENDED,
    (GivenState.QUEUED, "cancelled"): GivenState.ENDED,
    (GivenState.RUNNING, "cancelled"): GivenState.ENDED,
    (GivenState.LOST, "cancelled"): GivenState.ENDED,
}


class GivenJobs:
    """All given jobs of one process.

    Args:
        out: What is to be done goes there.
        reconnect_wait: Seconds that a runner whose session broke is waited for.
    """

    def __init__(self, out: list[Event], reconnect_wait: float) -> None:
        self._out, self.reconnect_wait = out, reconnect_wait
        self.jobs: dict[str, GivenJob] = {}
        self.waits_changed = False  # what is waited for, here or there
        self._untold: dict[str, tuple[Identity, str, float]] = {}  # cancels: whom, why, until
        # Jobs that have ended on a session, whose last words (STORED, JOB_CANCEL) are perhaps not
        # heard before that breaks: then their runner would keep what nobody comes for.
        self._said: dict[SessionKey, list[tuple[str, Identity, str]]] = {}

    def _moved(self, given: GivenJob, event: str) -> bool:
        before, given.state = given.state, TABLE.get((given.state, event), given.state)
        return (before, event) in TABLE

    # --- by this side -------------------------------------------------------------------------

    def submit(self, given: GivenJob, session: SessionKey) -> None:
        """Give a job to the peer of that session."""
        self.jobs[given.id] = given
        self.waits_changed = self.waits_changed or bool(given.awaited)
        self._submit(given, session)

    def _submit(self, given: GivenJob, session: SessionKey) -> None:
        given.session = session
        self._out.append(Deliver(session, given.id, SUBMIT, given.what))

    def cancel(self, given: GivenJob, error: ZBusError | None = None) -> None:
        """This side does not want it any more, for `error` or by the user's will. Never waits
        for the peer: one that is lost is told when it is met again."""
        session = given.session
        if not self._moved(given, "cancelled"):
            return
        why = clip(str(error) if error is not None else "cancelled there")
        if session is not None:
            self._out.append(Say(session, JobCancel(given.id, why)))
        else:
            self._tell_later(given.id, given.runner, why, given.lost_at)
        self._end(given, error or Cancelled("cancelled here", peer=given.peer, stage=stage(given)))

    def _tell_later(self, job: str, runner: Identity, why: str, lost_at: float) -> None:
        self._untold[job] = (runner, why, lost_at + self.reconnect_wait + TELL_CANCEL)

    def heard(self, session: SessionKey) -> None:
        """The peer has acknowledged all that was said on that session."""
        self._said.pop(session, None)

    def awaits(self, given: GivenJob, who: str) -> None:
        """A running prompt, `who` in words, waits for that job: it goes on only after it."""
        given.awaited = who
        self.waits_changed = True

    def _end(self, given: GivenJob, error: ZBusError | None) -> None:
        """What follows when its state has become ENDED."""
        self.jobs.pop(given.id, None)
        if given.session is not None:
            why = clip(str(error)) if error is not None else "it is done"
            self._said.setdefault(given.session, []).append((given.id, given.runner, why))
        given.what, given.session = None, None
        given.coming.clear()
        self._out += [Drop(given.id), Ended(given, error)]
        if given.awaited:
            self.waits_changed = True

    def close(self, error: ZBusError) -> None:
        """The process ends."""
        for given in list(self.jobs.values()):
            self.cancel(given, error)

    # --- by its runner ------------------------------------------------------------------------

    def _of(self, session: SessionKey, job: str) -> GivenJob | None:
        """The job, if that is the session on which its runner speaks."""
        given = self.jobs.get(job)
        return given if given is not None and given.session == session else None

    def state(self, session: SessionKey, message: JobState) -> None:
        """The peer says where the job is."""
        given = self._of(session, message.job)
        if given is None or not self._moved(given, message.state):
            return
        given.place = message.place
        if message.waits != given.waits:
            given.waits = message.waits
            self.waits_changed = True
        self._out.append(Changed(given))

    def has(self, session: SessionKey, job: str, part: str) -> bool:
        """Whether that result is here already: a session broke before its runner heard it. An end
        may come again, and be another one: a result that it names could not travel."""
        given = self._of(session, job)
        if given is None or not part.startswith(RESULT):
            return False
        return part[len(RESULT) :] in given.results

    def wants(self, session: SessionKey, job: str, part: str) -> bool:
        """Whether a parcel may come in on this session; once, and only what was asked for."""
        given = self._of(session, job)
        if given is None or part in given.coming:
            return False
        if part != END and not (part.startswith(RESULT) and _is_asked(given, part[len(RESULT) :])):
            return False
        given.coming.add(part)
        return True

    def arrived(self, session: SessionKey, job: str, part: str, value: Any) -> None:
        """A parcel of a given job is here."""
        given = self._of(session, job)
        if given is None:
            return
        given.coming.discard(part)
        if part == END:
            given.end = value if isinstance(value, dict) else {}
        else:
            given.results[part[len(RESULT) :]] = value
            self._out.append(Changed(given))
        self._look_complete(given)

    def _look_complete(self, given: GivenJob) -> None:
        if given.end is None:
            return
        error = outcome(given, given.end)
        is_here = all(name in given.results for name in given.named)
        if (error is not None or is_here) and self._moved(given, "completed"):
            self._end(given, error)

    def lost(
        self, session: SessionKey, job: str, part: str, error: ZBusError, resumable: bool
    ) -> None:
        """A parcel of a given job could not be taken; `resumable`: with its session alone."""
        given = self._of(session, job)
        if given is None:
            return
        given.coming.discard(part)
        if not resumable:  # else its runner keeps it until it is met again
            self.cancel(given, error.at(peer=given.peer, stage=stage(given)))

    def undeliverable(
        self, session: SessionKey, job: str, error: ZBusError, resumable: bool
    ) -> None:
        """The request cannot travel; `resumable`: with its session alone."""
        given = self._of(session, job)
        if given is not None and not resumable:  # else it is submitted again
            self.cancel(given, error.at(peer=given.peer, stage=stage(given)))

    # --- sessions and time --------------------------------------------------------------------

    def session_up(self, session: SessionKey, peer: Identity) -> None:
        """A session with that process stands: its jobs go on, whose own session had broken."""
        for job, (runner, why, _) in list(self._untold.items()):
            if runner == peer:
                del self._untold[job]
                self._out.append(Say(session, JobCancel(job, why)))
        for given in list(self.jobs.values()):
            if given.runner == peer and self._moved(given, "met again"):
                self._submit(given, session)

    def session_down(self, session: SessionKey, error: ZBusError, now: float) -> None:
        """The session has ended. A peer whose link was lost may come back with another."""
        event = "session lost" if isinstance(error, LinkLost) else "runner gone"
        for ended in self._said.pop(session, []):
            if isinstance(error, LinkLost):
                self._tell_later(*ended, now)
        for given in [given for given in self.jobs.values() if given.session == session]:
            given.session, given.lost_at, given.waits = None, now, ()
            given.coming.clear()
            self.waits_changed = True
            if self._moved(given, event) and given.state is GivenState.ENDED:
                self._end(given, error.at(peer=given.peer, stage=stage(given)))

    def tick(self, now: float) -> None:
        """End what nobody came back for."""
        for given in list(self.jobs.values()):
            is_over = given.session is None and now >= given.lost_at + self.reconnect_wait
            if is_over and self._moved(given, "not met again"):
                what = "the link was lost and is not back"
                remedy = "Look at the network or the tunnel, then run it again"
                self._tell_later(given.id, given.runner, what, given.lost_at)
                self._end(given, LinkLost(what, peer=given.peer, stage=stage(given), remedy=remedy))
        self._untold = {job: told for job, told in self._untold.items() if now < told[2]}

    def deadlines(self) -> Iterator[float]:
        """When `tick` has something to do."""
        for given in self.jobs.values():
            if given.session is None:
                yield given.lost_at + self.reconnect_wait
        for _, _, until in self._untold.values():
            yield until


def _is_asked(given: GivenJob, name: str) -> bool:
    """Whether that result is one that may come: not just any that a runner makes up."""
    if given.end is not None and name not in given.named:
        return False
    is_wanted = given.wanted is None or name in given.wanted
    return is_wanted and len(given.results) + len(given.coming) < MAX_RESULTS
