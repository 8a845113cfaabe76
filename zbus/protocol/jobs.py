"""Sans-IO: the life of a job, on both sides.

A job is a prompt, or part of one, that another peer runs. The side that gives it holds a
`GivenJob`, the side that runs it a `TakenJob`::

    GivenJob   SUBMITTED --> QUEUED --> RUNNING --> ENDED      done | refused | failed | cancelled,
               |             |          |          ^        or the link's own end
               +-------------+----------+-- cancel-+
    TakenJob    ARRIVING --> CHECKING --> QUEUED --> RUNNING --> ENDED --all stored--> forgotten

Values travel as parcels, each a transfer of its own: "submit" one way, "result:NAME" and at last
"end" the other. Whatever comes in whatever order, a given job ends exactly once, and a taken job is
forgotten exactly once.

`Jobs` holds all of a process. It takes messages and calls, and leaves what is to be done in `out`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import Cancelled, LinkLost, QueueDeadlock, ZBusError
from ..reasons import Reason
from .fields import clip
from .job_records import (
    END,
    RESULT,
    SUBMIT,
    Changed,
    Deliver,
    Drop,
    Ended,
    Event,
    Forget,
    GivenJob,
    Say,
    SessionKey,
    State,
    Stop,
    Submitted,
    TakenJob,
)
from .messages import MAX_WAITS, JobCancel, JobState
from .outcomes import not_permitted, outcome, refused, stage

MAX_TAKEN = 256  # of one session
KEPT = 600.0  # seconds that the results for a client whose link is lost are kept
REMEMBERED = 512  # ids of forgotten jobs, so that none is run twice
_IN_QUEUE = (State.QUEUED, State.RUNNING)


class Jobs:
    """All given and taken jobs of one process."""

    def __init__(self, reconnect_wait: float = 300.0) -> None:
        self.out: list[Event] = []
        self.given: dict[str, GivenJob] = {}
        self.taken: dict[str, TakenJob] = {}
        self._reconnect_wait = reconnect_wait
        self._untold = False
        self._gone: dict[str, str] = {}  # ids of taken jobs that were forgotten, and why they ended

    def drain(self) -> list[Event]:
        """What is to be done since the last call, in order."""
        if self._untold:
            self._untold = False
            for taken in self.taken.values():
                self._tell(taken)
        out = self.out.copy()
        self.out.clear()
        return out

    @property
    def sessions(self) -> set[SessionKey | None]:
        """Those that any job needs."""
        given_jobs = {given.session for given in self.given.values()}
        return given_jobs | {taken.session for taken in self.taken.values()}

    # --- giving -------------------------------------------------------------------------------

    def submit(self, given: GivenJob, session: SessionKey) -> None:
        """Give a job to the peer of that session."""
        self.given[given.id] = given
        given.session = session
        self.out.append(Deliver(session, given.id, SUBMIT, given.what))

    def cancel(self, given: GivenJob, error: ZBusError | None = None) -> None:
        """This side does not want it any more, for `error` or by the user's will. Never waits
        for the peer."""
        if given.state is State.ENDED:
            return
        why = str(error) if error is not None else "cancelled there"
        if given.session is not None:
            self.out.append(Say(given.session, JobCancel(given.id, clip(why))))
        self._end(given, error or Cancelled("cancelled here", peer=given.peer, stage=stage(given)))

    def awaits(self, given: GivenJob, who: str) -> None:
        """A running prompt, `who` in words, waits for that job: it goes on only after it."""
        given.awaited = who
        self._look_for_deadlock()
        self._tell_all()

    def _end(self, given: GivenJob, error: ZBusError | None) -> None:
        if given.state is State.ENDED:
            return
        given.state = State.ENDED
        self.given.pop(given.id, None)
        given.what = None
        self.out += [Drop(given.id), Ended(given, error)]
        if given.awaited:
            self._tell_all()

    def state(self, session: SessionKey, message: JobState) -> None:
        """The peer says where the job is."""
        given = self.given.get(message.job)
        if given is None or given.session != session:
            return
        given.state = State(message.state)
        given.place = message.place
        waits = given.waits
        given.waits = message.waits
        self.out.append(Changed(given))
        if waits != given.waits:
            self._look_for_deadlock()
            self._tell_all()

    def wants(self, session: SessionKey, job: str, part: str) -> bool:
        """Whether a parcel of a given job may come in on this session."""
        given = self.given.get(job)
        is_for_us = given is not None and given.session == session
        return is_for_us and (part == END or part.startswith(RESULT))

    def arrived(self, job: str, part: str, value: Any) -> None:
        """A parcel of a given job is here."""
        given = self.given.get(job)
        if given is None:
            return
        if part == END:
            given.end = value if isinstance(value, dict) else {}
        else:
            given.results[part[len(RESULT) :]] = value
            self.out.append(Changed(given))
        self._look_complete(given)

    def _look_complete(self, given: GivenJob) -> None:
        end = given.end
        if end is None:
            return
        names = end.get("results")
        names = [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
        error = outcome(given, end)
        if error is not None or all(name in given.results for name in names):
            self._end(given, error)

    def lost(self, job: str, error: ZBusError) -> None:
        """A parcel of a given job could not be taken."""
        given = self.given.get(job)
        if given is not None:
            self.cancel(given, error)

    # --- running ------------------------------------------------------------------------------

    def offered(
        self, session: SessionKey, incarnation: bytes, client: str, job: str, denial: str = ""
    ) -> bool:
        """A "submit" parcel begins to come; whether it is to be taken. A job that is known
        already is answered again, and not run twice. `denial`: why the client may give none."""
        if denial:
            self._answer(session, job, not_permitted(denial))
            return False
        taken = self.taken.get(job)
        if taken is not None and taken.incarnation != incarnation:
            text = "another peer's job has that id"
            self._answer(session, job, refused([Reason("other", text=text)]))
            return False
        if taken is not None and not taken.unwanted:
            is_cut_off = taken.state is State.ARRIVING and taken.session != session
            self._adopt(taken, session)
            return is_cut_off  # the session on which it came is not used any more: take it anew
        why = taken.why if taken is not None else self._gone.get(job)
        if why is not None:
            self._answer(session, job, {"outcome": "cancelled", "why": why})
            return False
        if sum(taken.session == session for taken in self.taken.values()) >= MAX_TAKEN:
            text = f"more than {MAX_TAKEN} jobs at once"
            self._answer(session, job, refused([Reason("other", text=text)]))
            return False
        self.taken[job] = TakenJob(job, session, incarnation, client)
        return True

    def _answer(self, session: SessionKey, job: str, end: dict[str, Any]) -> None:
        self.out.append(Deliver(session, job, END, end))

    def _adopt(self, taken: TakenJob, session: SessionKey) -> None:
        """The client has come back with another session."""
        taken.session, taken.kept_until, taken.told = session, None, None
        for part, value in taken.parts.items():
            self.out.append(Deliver(session, taken.id, part, value))
        self._tell(taken)

    def submitted(self, job: str, what: Any, title: str = "", group: str = "") -> None:
        """The request is here."""
        taken = self.taken.get(job)
        if taken is None or taken.state is not State.ARRIVING:
            return
        taken.what, taken.title, taken.group, taken.state = what, title, group, State.CHECKING
        self.out.append(Submitted(taken))
        if group:
            # In the order in which they were offered: a large one may arrive after a newer one.
            same = [t for t in self.taken.values() if t.group == group]
            for older in [t for t in same if t.incarnation == taken.incarnation][:-1]:
                self._stop(older, "a newer job of the same node has come")

    def not_submitted(self, job: str, error: ZBusError) -> None:
        """The request did not arrive whole, or cannot be used."""
        taken = self.taken.get(job)
        if taken is not None and taken.state is State.ARRIVING:
            self.ended(taken, refused([Reason("other", text=str(error))]))

    def queued(self, taken: TakenJob, place: int) -> None:
        """It is in the queue, behind so many others."""
        if taken.state in (State.CHECKING, State.QUEUED):
            taken.state, taken.place = State.QUEUED, place
            self._tell(taken)

    def started(self, taken: TakenJob) -> None:
        """It runs."""
        if taken.state in (State.CHECKING, State.QUEUED):
            taken.state, taken.place = State.RUNNING, 0
            self._tell(taken)

    def result(self, taken: TakenJob, name: str, value: Any) -> None:
        """One of its outputs is there."""
        if taken.state is not State.ENDED and name not in taken.gave:
            taken.gave.append(name)
            self._give(taken, RESULT + name, value)

    def ended(self, taken: TakenJob, end: dict[str, Any]) -> None:
        """It has ended: {"outcome": "done" | "refused" | "failed" | "cancelled", ...}."""
        if taken.state is State.ENDED:
            return
        taken.state, taken.what = State.ENDED, None
        self._give(taken, END, taken.spoiled or end | {"results": list(taken.gave)})
        self._look_forget(taken)

    def _give(self, taken: TakenJob, part: str, value: Any) -> None:
        if taken.unwanted:
            return
        taken.parts[part] = value
        if taken.session is not None:
            self.out.append(Deliver(taken.session, taken.id, part, value))

    def delivered(self, session: SessionKey, job: str, part: str) -> None:
        """The peer has a parcel of ours."""
        taken = self.taken.get(job)
        if taken is not None and taken.session == session and part != SUBMIT:
            taken.parts.pop(part, None)
            self._look_forget(taken)

    def undeliverable(
        self, session: SessionKey, job: str, part: str, error: ZBusError, resumable: bool = False
    ) -> None:
        """A parcel of ours cannot travel; `resumable`: not over that session."""
        if resumable:
            return
        given = self.given.get(job)
        if part == SUBMIT and given is not None:
            self.cancel(given, error.at(peer=given.peer, stage=stage(given)))
        elif part != SUBMIT:
            taken = self.taken.get(job)
            if taken is not None and taken.session == session and part != END:
                self._spoil(taken, part, error)
            self.delivered(session, job, part)

    def _spoil(self, taken: TakenJob, part: str, error: ZBusError) -> None:
        """A result of it cannot travel: whoever waits for it has to hear that."""
        message = f"its result {part[len(RESULT) :]} cannot be sent: {error}"
        taken.spoiled = {
            "outcome": "failed",
            "title": "sending the result",
            "exception_type": type(error).__name__,
            "message": message,
        }
        if taken.state is State.ENDED:
            self._give(taken, END, taken.spoiled)
        else:
            self._stop(taken, message)

    def cancelled(self, session: SessionKey, message: JobCancel) -> None:
        """The peer does not want its job any more."""
        taken = self.taken.get(message.job)
        if taken is not None and taken.session == session:
            self._abandon(taken, message.why)

    def _abandon(self, taken: TakenJob, why: str) -> None:
        taken.unwanted, taken.why = True, why
        taken.parts.clear()
        self.out.append(Drop(taken.id))
        if taken.state is State.ARRIVING:
            del self.taken[taken.id]  # nobody has seen it, and it may come again
        elif taken.state is State.ENDED:
            self._look_forget(taken)
        else:
            self._stop(taken, why)

    def _stop(self, taken: TakenJob, why: str) -> None:
        if taken.state is not State.ENDED and not taken.stopping:
            taken.stopping = True
            self.out.append(Stop(taken, why))

    def _look_forget(self, taken: TakenJob) -> None:
        if taken.state is not State.ENDED or taken.parts or taken.id not in self.taken:
            return
        del self.taken[taken.id]
        self._gone[taken.id] = taken.why or "its result was delivered already"
        while len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self.out.append(Forget(taken))

    # --- two queues that wait for each other --------------------------------------------------

    @property
    def _waits(self) -> tuple[str, ...]:
        """The jobs that the prompt which runs here waits for, and those that they wait for."""
        found: dict[str, None] = {}
        for given in self.given.values():
            if given.awaited:
                found |= dict.fromkeys((given.id, *given.waits))
        return tuple(found)[:MAX_WAITS]

    def _tell(self, taken: TakenJob) -> None:
        if taken.session is None or taken.state not in _IN_QUEUE:
            return
        told = (taken.state.value, taken.place, self._waits)
        if told != taken.told:
            taken.told = told
            self.out.append(Say(taken.session, JobState(taken.id, *told)))

    def _tell_all(self) -> None:
        """What is waited for here has changed: told once, when all that has changed is known."""
        self._untold = True

    def _look_for_deadlock(self) -> None:
        """Our running prompt waits for a job whose queue waits for a job in ours. Every side of
        such a ring can see it; one whose own job has a higher id than the job in its queue ends
        it: at least one of a ring is so, and never all, so that the others go on."""
        for given in list(self.given.values()):
            ring = [self.taken[i] for i in given.waits if i in self.taken] if given.awaited else []
            ring = [t for t in ring if t.state in _IN_QUEUE and not t.stopping]
            if ring and given.id > max(taken.id for taken in ring):
                other = ring[0]
                error = QueueDeadlock(
                    f"{given.awaited} here waits for the job {given.title} there, and the prompt "
                    f"that runs there waits for its job {other.title} in the queue here",
                    peer=given.peer,
                    stage=stage(given),
                    remedy="Run the two workflows one after the other, or let only one of the two "
                    "machines give jobs to the other",
                )
                self.cancel(given, error)

    # --- sessions and time --------------------------------------------------------------------

    def session_up(self, session: SessionKey, incarnation: bytes) -> None:
        """A new session: given jobs whose peer had only been out of reach go on."""
        for given in list(self.given.values()):
            if given.session is None and given.incarnation == incarnation:
                self.submit(given, session)

    def session_down(self, session: SessionKey, error: ZBusError, now: float) -> None:
        """The session has ended. A peer whose link was lost may come back with another."""
        may_return = isinstance(error, LinkLost)
        given_jobs = [given for given in self.given.values() if given.session == session]
        taken_jobs = [taken for taken in self.taken.values() if taken.session == session]
        for taken in taken_jobs:
            taken.session = None
        for given in given_jobs:
            given.session, given.lost_at, given.waits = None, now, ()
            if not may_return:
                self._end(given, error.at(peer=given.peer, stage=stage(given)))
        for taken in taken_jobs:
            if may_return and taken.state in (State.RUNNING, State.ENDED):
                taken.kept_until = now + KEPT if taken.state is State.ENDED else None
            else:
                self._abandon(taken, f"{taken.client}, whose job it is, is gone")
        if given_jobs:
            self._tell_all()

    def tick(self, now: float) -> None:
        """End what nobody came back for."""
        for given in list(self.given.values()):
            if given.session is None and now >= given.lost_at + self._reconnect_wait:
                what = "the link was lost and is not back"
                remedy = "Look at the network or the tunnel, then run it again"
                self._end(given, LinkLost(what, peer=given.peer, stage=stage(given), remedy=remedy))
        for taken in list(self.taken.values()):
            if taken.session is not None or taken.state is not State.ENDED:
                continue
            taken.kept_until = taken.kept_until or now + KEPT
            if now >= taken.kept_until:
                self._abandon(taken, "nobody came for its results")

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return min(self._deadlines(), default=None)

    def _deadlines(self) -> Iterator[float]:
        for given in self.given.values():
            if given.session is None:
                yield given.lost_at + self._reconnect_wait
        for taken in self.taken.values():
            if taken.session is None and taken.state is State.ENDED:
                yield taken.kept_until or 0.0

    def close(self, error: ZBusError) -> None:
        """The process ends."""
        for given in list(self.given.values()):
            self.cancel(given, error)
