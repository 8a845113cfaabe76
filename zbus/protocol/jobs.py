"""Sans-IO: the life of a job, on both sides.

A job is a prompt, or part of one, that another peer runs. The side that gives it holds a
`GivenJob`, the side that runs it a `TakenJob`; their lives are the tables of `given_jobs` and
`taken_jobs`. `queue_deadlock` looks at both.

Values travel as parcels, each a transfer of its own: "submit" one way, "result:NAME" and at last
"end" the other. Whatever comes in whatever order, a given job ends exactly once, and a taken job is
forgotten exactly once.

`Jobs` holds all of a process. It takes messages and calls, and leaves what is to be done in `out`.
"""

from __future__ import annotations

from typing import Any

from ..errors import ZBusError
from .given_jobs import GivenJobs
from .identity import Identity, SessionKey
from .job_records import SUBMIT, Event
from .outcomes import deadlock, deadlock_error
from .queue_deadlock import rings, waits_of
from .taken_jobs import TakenJobs


class Jobs:
    """All given and taken jobs of one process.

    Whoever moves the parcels ends each of them once: one that goes out with `delivered` or
    `undeliverable`, one that comes in with `arrived` (a request: `taking.submitted`) or `lost`.
    `resumable` says that it ended with its session only, and might go over another one.
    """

    def __init__(self, reconnect_wait: float = 300.0) -> None:
        self.out: list[Event] = []
        self.giving = GivenJobs(self.out, reconnect_wait)
        self.taking = TakenJobs(self.out, reconnect_wait)
        self.given, self.taken = self.giving.jobs, self.taking.jobs

    @property
    def is_changed(self) -> bool:
        """Whether `drain` has something to tell."""
        return bool(self.out) or self.giving.waits_changed or self.taking.queue_changed

    def drain(self) -> list[Event]:
        """What is to be done since the last call, in order."""
        self._look_for_deadlock()
        if self.giving.waits_changed:  # told once, when all that has changed is known
            self.giving.waits_changed = False
            self.taking.tell_all(waits_of(self.given.values()))
        out = self.out.copy()
        self.out.clear()
        return out

    def _look_for_deadlock(self) -> None:
        if not (self.giving.waits_changed or self.taking.queue_changed):
            return
        self.taking.queue_changed = False
        for given, taken, ends_given in list(rings(self.given.values(), self.taken.values())):
            if ends_given:
                self.giving.cancel(given, deadlock_error(given, taken.title))
            else:
                why = f"the prompt that runs here waits for {given.title}, and that waits for it"
                self.taking.spoil(taken, deadlock(given.title), why)

    @property
    def sessions(self) -> set[SessionKey | None]:
        """Those that any job needs."""
        given_jobs = {given.session for given in self.given.values()}
        return given_jobs | {taken.session for taken in self.taken.values()}

    # --- parcels ------------------------------------------------------------------------------

    def delivered(self, session: SessionKey, job: str, part: str) -> None:
        """The peer has a parcel of ours."""
        if part != SUBMIT:
            self.taking.delivered(session, job, part)

    def undeliverable(
        self, session: SessionKey, job: str, part: str, error: ZBusError, resumable: bool
    ) -> None:
        """A parcel of ours cannot travel."""
        if part == SUBMIT:
            self.giving.undeliverable(session, job, error, resumable)
        else:
            self.taking.undeliverable(session, job, part, error, resumable)

    def arrived(self, session: SessionKey, job: str, part: str, value: Any) -> None:
        """A parcel of a given job is here."""
        self.giving.arrived(session, job, part, value)

    def lost(
        self, session: SessionKey, job: str, part: str, error: ZBusError, resumable: bool
    ) -> None:
        """A parcel that was coming in is not here, and will not be."""
        if part == SUBMIT:
            self.taking.lost(session, job, error, resumable)
        else:
            self.giving.lost(session, job, part, error, resumable)

    # --- sessions and time --------------------------------------------------------------------

    def session_up(self, session: SessionKey, peer: Identity) -> None:
        """A session stands: given jobs whose peer had only been out of reach go on."""
        self.giving.session_up(session, peer)

    def session_down(self, session: SessionKey, error: ZBusError, now: float) -> None:
        """The session has ended. A peer whose link was lost may come back with another."""
        self.giving.session_down(session, error, now)
        self.taking.session_down(session, error, now)

    def tick(self, now: float) -> None:
        """End what nobody came back for."""
        self.giving.tick(now)
        self.taking.tick(now)

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return min((*self.giving.deadlines(), *self.taking.deadlines()), default=None)

    def close(self, error: ZBusError) -> None:
        """The process ends."""
        self.giving.close(error)
