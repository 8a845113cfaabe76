"""Sans-IO: the jobs that this side runs for others, each until every trace of it is gone.

A taken job belongs to its `owner`, the process that gave it, with the key that it has proved. Only
that one may submit it again, hear of it, have its results and cancel it, on whatever session; a
group is the owner's, too. `TABLE` is its whole life; what stands not in it changes nothing.

Where a job's session breaks, its owner may come back with another: until then one that waits in
the queue is kept for `reconnect_wait`, and one that runs goes on, its results kept for `KEPT`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import LinkLost, RemoteProtocolError, TransferRefused, ZBusError
from .identity import Identity, SessionKey
from .job_records import (
    END,
    RESULT,
    Deliver,
    Drop,
    Event,
    Forget,
    Say,
    Stop,
    Submitted,
    TakenJob,
    TakenState,
    Unsaid,
)
from .job_room import MAX_TAKEN, Forgotten, is_full
from .messages import JobCancel, JobState
from .outcomes import not_permitted, refused_for, unsendable

MAX_ANSWERS = 2048  # of one session, not stored yet
KEPT = 600.0  # seconds that the results for a client whose link is lost are kept

TABLE: dict[tuple[TakenState, str], TakenState] = {
    (TakenState.ARRIVING, "arrived"): TakenState.CHECKING,
    (TakenState.ARRIVING, "unusable"): TakenState.ENDED,
    (
        TakenState.ARRIVING,
        "abandoned",
    ): TakenState.FORGOTTEN,  # nobody has seen it, and it may come again
    (TakenState.CHECKING, "queued"): TakenState.QUEUED,
    (TakenState.CHECKING, "started"): TakenState.RUNNING,
    (TakenState.CHECKING, "ended"): TakenState.ENDED,
    (TakenState.CHECKING, "stop"): TakenState.STOPPING,
    (TakenState.QUEUED, "queued"): TakenState.QUEUED,  # at another place
    (TakenState.QUEUED, "started"): TakenState.RUNNING,
    (TakenState.QUEUED, "ended"): TakenState.ENDED,
    (TakenState.QUEUED, "stop"): TakenState.STOPPING,
    (TakenState.RUNNING, "ended"): TakenState.ENDED,
    (TakenState.RUNNING, "stop"): TakenState.STOPPING,
    (TakenState.STOPPING, "ended"): TakenState.ENDED,
    # Everything of it is stored, or is not wanted any more.
    (TakenState.ENDED, "all stored"): TakenState.FORGOTTEN,
}


class TakenJobs:
    """All taken jobs of one process.

    Args:
        out: What is to be done goes there.
        reconnect_wait: Seconds that a queued job is kept for an owner whose session broke.
    """

    def __init__(self, out: list[Event], reconnect_wait: float) -> None:
        self._out, self.reconnect_wait = out, reconnect_wait
        self.jobs: dict[str, TakenJob] = {}
        self.queue_changed = False  # perhaps a ring of waits is closed now
        self.waits: tuple[str, ...] = ()  # what the prompt that runs here waits for, as tokens
        self._gone = Forgotten()
        self._answers: Counter[SessionKey] = Counter()  # on their way, of jobs that are not kept

    def _moved(self, taken: TakenJob, event: str) -> bool:
        before, taken.state = taken.state, TABLE.get((taken.state, event), taken.state)
        return (before, event) in TABLE

    # --- a job comes --------------------------------------------------------------------------

    def offered(self, session: SessionKey, owner: Identity, client: str, job: str) -> bool:
        """A "submit" parcel begins to come; whether it is to be taken. A job that is known
        already is answered again, and not run twice."""
        taken = self.jobs.get(job)
        if taken is not None and taken.owner != owner:
            self._answer(session, job, refused_for("another peer's job has that id"))
            return False
        if taken is not None and not taken.unwanted:
            is_cut_off = taken.state is TakenState.ARRIVING and taken.session != session
            self._adopt(taken, session)
            return is_cut_off  # the session on which it came is not used any more: take it anew
        why = taken.why if taken is not None else self._gone.why(owner, job)
        if why is not None:
            self._answer(session, job, {"outcome": "cancelled", "why": why})
            return False
        if is_full((other.owner for other in self.jobs.values()), owner):
            self._answer(session, job, refused_for(f"more than {MAX_TAKEN} jobs at once"))
            return False
        self.jobs[job] = TakenJob(job, session, owner, client)
        return True

    def deny(self, session: SessionKey, job: str, why: str) -> None:
        """Whoever offers that one may give none here: one of `outcomes.DENIALS`."""
        self._answer(session, job, not_permitted(why))

    def _answer(self, session: SessionKey, job: str, end: dict[str, Any]) -> None:
        """Of a job that is not kept here.

        Raises:
            RemoteProtocolError: The peer offers and offers, and takes no answers.
        """
        if self._answers[session] >= MAX_ANSWERS:
            raise RemoteProtocolError("too many jobs offered whose refusals were not taken")
        self._answers[session] += 1
        self._out.append(Deliver(session, job, END, end))

    def _answered(self, session: SessionKey) -> None:
        if self._answers[session] > 1:
            self._answers[session] -= 1
        else:
            del self._answers[session]

    def _adopt(self, taken: TakenJob, session: SessionKey) -> None:
        """The client has come back: what it has not said to have goes to it once more."""
        taken.told = None
        if taken.session != session:
            if taken.session is not None:  # which this side still holds, and its owner does not
                self._out.append(Drop(taken.id, taken.session))
            taken.session, taken.kept_until, taken.end_is_new = session, None, False
            for part, value in taken.parts.items():
                self._out.append(Deliver(session, taken.id, part, value))
        self.tell(taken)

    def submitted(
        self, session: SessionKey, job: str, what: Any, title: str = "", group: str = ""
    ) -> None:
        """The request is here."""
        taken = self._of(session, job)
        if taken is None or not self._moved(taken, "arrived"):
            return
        taken.what, taken.title, taken.group = what, title, group
        self._out.append(Submitted(taken))
        if group:
            # In the order in which they were offered: a large one may arrive after a newer one.
            same = [t for t in self.jobs.values() if t.group == group]
            for older in [t for t in same if t.owner == taken.owner][:-1]:
                self._stop(older, "a newer job of the same node has come")

    def lost(self, session: SessionKey, job: str, error: ZBusError, resumable: bool) -> None:
        """The request did not arrive whole, or cannot be used; `resumable`: its session broke."""
        taken = self._of(session, job)
        if taken is None:
            return
        if resumable:
            self._abandon(taken, str(error))
        elif self._moved(taken, "unusable"):
            self._ended(taken, refused_for(str(error)))

    def _of(self, session: SessionKey, job: str) -> TakenJob | None:
        taken = self.jobs.get(job)
        return taken if taken is not None and taken.session == session else None

    # --- told by its host ---------------------------------------------------------------------

    def queued(self, taken: TakenJob, place: int) -> None:
        """It is in the queue, behind so many others."""
        if self._moved(taken, "queued"):
            taken.place, self.queue_changed = place, True
            self.tell(taken)

    def started(self, taken: TakenJob) -> None:
        """It runs."""
        if self._moved(taken, "started"):
            taken.place, taken.kept_until, self.queue_changed = 0, None, True
            self.tell(taken)

    def result(self, taken: TakenJob, name: str, value: Any, notes: Sequence[str] = ()) -> None:
        """One of its outputs is there; with what its owner should know of it."""
        if taken.state is not TakenState.ENDED and name not in taken.gave:
            taken.gave.append(name)
            taken.notes += notes
            self._give(taken, RESULT + name, value)

    def ended(self, taken: TakenJob, end: dict[str, Any]) -> None:
        """It has ended: {"outcome": "done" | "refused" | "failed" | "cancelled", ...}."""
        if self._moved(taken, "ended"):
            self._ended(taken, end)

    def _ended(self, taken: TakenJob, end: dict[str, Any]) -> None:
        taken.what, taken.kept_until = None, None
        told = {"results": list(taken.gave)}
        if taken.notes:
            told["notes"] = list(dict.fromkeys(taken.notes))
        self._give(taken, END, taken.spoiled or end | told)
        self._look_forget(taken)

    # --- to its owner -------------------------------------------------------------------------

    def _give(self, taken: TakenJob, part: str, value: Any) -> None:
        if taken.unwanted:
            return
        taken.parts[part] = value
        if taken.session is not None:
            self._out.append(Deliver(taken.session, taken.id, part, value))

    def tell(self, taken: TakenJob) -> None:
        """Say where it is, if that is new."""
        if taken.session is None or not taken.is_in_queue:
            return
        told = (taken.state.name.lower(), taken.place, self.waits)
        if told != taken.told:
            taken.told = told
            self._out.append(Say(taken.session, JobState(taken.id, *told)))

    def tell_all(self, waits: tuple[str, ...]) -> None:
        """What is waited for here has changed."""
        self.waits = waits
        for taken in self.jobs.values():
            self.tell(taken)

    def delivered(self, session: SessionKey, job: str, part: str) -> None:
        """The owner has a parcel of ours."""
        taken = self._of(session, job)
        if taken is None:
            self._answered(session)
            return
        if part == END and taken.end_is_new:
            taken.end_is_new = False
            self._give(taken, END, taken.parts[END])
            return
        taken.parts.pop(part, None)
        self._look_forget(taken)

    def undeliverable(
        self, session: SessionKey, job: str, part: str, error: ZBusError, resumable: bool
    ) -> None:
        """A parcel of ours cannot travel; `resumable`: not on this session, which broke."""
        taken = self._of(session, job)
        if taken is None:
            self._answered(session)
        if taken is None or resumable:  # it stays in `parts`, for the owner to come back
            return
        if part != END:  # whoever waits for that result has to hear it
            end = unsendable(part[len(RESULT) :], error)
            self.spoil(taken, end, end["message"])
        elif not (isinstance(error, TransferRefused) or taken.end_is_new):
            # It is waited for, and was not refused there; and no other one goes after it.
            if not taken.is_end_plain:
                taken.is_end_plain, taken.spoiled = True, unsendable("", error)
                self._give(taken, END, taken.spoiled)
                return
            self._out.append(Unsaid(session, error))
        self.delivered(session, job, part)

    def spoil(self, taken: TakenJob, end: dict[str, Any], why: str) -> None:
        """It ends like that, whatever its host says of it."""
        taken.spoiled = end
        if taken.state is TakenState.ENDED and END in taken.parts:
            # Another end is on its way, and its owner takes no second one while that comes.
            taken.parts[END], taken.end_is_new = end, taken.session is not None
        elif taken.state is TakenState.ENDED:
            self._give(taken, END, end)
        else:
            self._stop(taken, why)

    # --- not wanted any more ------------------------------------------------------------------

    def cancelled(self, owner: Identity, message: JobCancel) -> None:
        """A peer does not want its job any more."""
        taken = self.jobs.get(message.job)
        if taken is not None and taken.owner == owner:
            self._abandon(taken, message.why)

    def _abandon(self, taken: TakenJob, why: str) -> None:
        taken.unwanted, taken.why = True, why
        taken.parts.clear()
        self._out.append(Drop(taken.id))
        if self._moved(taken, "abandoned"):
            del self.jobs[taken.id]
        elif taken.state is TakenState.ENDED:
            self._look_forget(taken)
        else:
            self._stop(taken, why)

    def _stop(self, taken: TakenJob, why: str) -> None:
        if self._moved(taken, "stop"):
            self._out.append(Stop(taken, why))

    def _look_forget(self, taken: TakenJob) -> None:
        if taken.parts or not self._moved(taken, "all stored"):
            return
        del self.jobs[taken.id]
        self._gone.add(taken.owner, taken.id, taken.why or "its result was delivered already")
        self._out.append(Forget(taken))

    # --- sessions and time --------------------------------------------------------------------

    def session_down(self, session: SessionKey, error: ZBusError, now: float) -> None:
        """The session has ended. An owner whose link was lost may come back with another."""
        self._answers.pop(session, None)
        of_it = [taken for taken in self.jobs.values() if taken.session == session]
        for taken in of_it:
            taken.session = None
        for taken in of_it:
            if not isinstance(error, LinkLost) or taken.state is TakenState.ARRIVING:
                self._abandon(taken, _gone(taken))
            else:
                taken.kept_until = self._kept_until(taken, now)

    def _kept_until(self, taken: TakenJob, now: float) -> float | None:
        """How long its owner is waited for; None: as long as it runs."""
        if taken.state is TakenState.ENDED:
            return now + KEPT
        waits = taken.state in (TakenState.CHECKING, TakenState.QUEUED)
        return now + self.reconnect_wait if waits else None

    def tick(self, now: float) -> None:
        """End what nobody came back for."""
        for taken in [t for t in self.jobs.values() if t.session is None]:
            taken.kept_until = taken.kept_until or self._kept_until(taken, now)
            if taken.kept_until is not None and now >= taken.kept_until and not taken.unwanted:
                is_over = taken.state is TakenState.ENDED
                self._abandon(taken, "nobody came for its results" if is_over else _gone(taken))

    def deadlines(self) -> Iterator[float]:
        """When `tick` has something to do."""
        for taken in self.jobs.values():
            is_kept = taken.kept_until is not None or taken.state is TakenState.ENDED
            if taken.session is None and is_kept and not taken.unwanted:
                yield taken.kept_until or 0.0


def _gone(taken: TakenJob) -> str:
    return f"{taken.client}, whose job it is, is gone"
