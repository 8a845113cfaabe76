"""Sans-IO: the life of a job, on both sides.

A job is a prompt, or part of one, that another peer runs. The side that gives it holds an `Order`,
the side that runs it a `Task`::

    Order   SUBMITTED --> QUEUED --> RUNNING --> ENDED      done | refused | failed | cancelled,
               |             |          |          ^        or the link's own end
               +-------------+----------+-- cancel-+
    Task    ARRIVING --> CHECKING --> QUEUED --> RUNNING --> ENDED --all stored--> forgotten

Values travel as parcels, each a transfer of its own: "submit" one way, "result:NAME" and at last
"end" the other. Whatever comes in whatever order, an order ends exactly once, and a task is
forgotten exactly once.

`Jobs` holds all of a process. It takes messages and calls, and leaves what is to be done in `out`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .errors import (
    Cancelled,
    JobCancelled,
    JobError,
    JobFailed,
    JobRefused,
    LinkLost,
    NotPermitted,
    QueueDeadlock,
    RemoteProtocolError,
    ZBusError,
)
from .messages import MAX_WAITS, JobCancel, JobState, Message, clip
from .reasons import MAX_REASONS, Reason, lines

SUBMIT, RESULT, END = "submit", "result:", "end"
MAX_TASKS = 256  # of one session
KEPT = 600.0  # seconds that the results for a client whose link is lost are kept
REMEMBERED = 512  # ids of forgotten tasks, so that none is run twice

SessionKey = bytes


class State(Enum):
    ARRIVING = "arriving"
    SUBMITTED = "submitted"
    CHECKING = "checking"
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


_IN_QUEUE = (State.QUEUED, State.RUNNING)


@dataclass(eq=False)
class Order:
    """A job that another peer runs for this one."""

    id: str
    what: Any  # the request; opaque here
    peer: str  # its name
    incarnation: bytes
    title: str = ""
    session: SessionKey | None = None
    state: State = State.SUBMITTED
    place: int = 0  # in the queue there
    waits: tuple[str, ...] = ()
    awaited: str = ""  # what waits for it here, in words; "": nothing does yet
    results: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] | None = None  # as told; the results may still be on their way
    lost_at: float = 0.0  # when its session ended, while it may come back


@dataclass(eq=False)
class Task:
    """A job that this peer runs for another one."""

    id: str
    session: SessionKey | None
    incarnation: bytes
    client: str  # the peer's name
    what: Any = None
    title: str = ""
    group: str = ""
    state: State = State.ARRIVING
    place: int = 0
    told: tuple[str, int, tuple[str, ...]] | None = None
    parts: dict[str, Any] = field(default_factory=dict)  # part -> value, until it is stored
    gave: list[str] = field(default_factory=list)  # names of the results
    stopping: bool = False
    unwanted: bool = False  # its client has cancelled it, or is gone
    why: str = ""  # it was stopped
    spoiled: dict[str, Any] | None = None  # how it ends: a result of it cannot travel
    kept_until: float | None = None


# --- what is to be done -------------------------------------------------------------------------


@dataclass(frozen=True)
class Say:
    """Put `message` on the session."""

    session: SessionKey
    message: Message


@dataclass(frozen=True)
class Deliver:
    """Send that value as a parcel; say `delivered` or `undeliverable` in the end."""

    session: SessionKey
    job: str
    part: str
    value: Any


@dataclass(frozen=True)
class Drop:
    """Whatever of that job is on its way, in either direction, is not wanted any more."""

    job: str


@dataclass(frozen=True)
class Submitted:
    """A job has come: check it and queue it."""

    task: Task


@dataclass(frozen=True)
class Stop:
    """Stop exactly that job, and say `ended` when it has."""

    task: Task
    why: str


@dataclass(frozen=True)
class Forget:
    """Its results are delivered or dropped: remove every trace of it."""

    task: Task


@dataclass(frozen=True)
class Changed:
    """Something about that order is new, for people."""

    order: Order


@dataclass(frozen=True)
class Ended:
    """The order has come to its end: well, or for `error`."""

    order: Order
    error: ZBusError | None


Event = Say | Deliver | Drop | Submitted | Stop | Forget | Changed | Ended


class Jobs:
    """All orders and tasks of one process."""

    def __init__(self, reconnect_wait: float = 300.0) -> None:
        self.out: list[Event] = []
        self.orders: dict[str, Order] = {}
        self.tasks: dict[str, Task] = {}
        self._reconnect_wait = reconnect_wait
        self._gone: dict[str, str] = {}  # ids of tasks that were forgotten, and why they ended

    def drain(self) -> list[Event]:
        """What is to be done since the last call, in order."""
        out = self.out.copy()
        self.out.clear()
        return out

    def busy(self, session: SessionKey) -> bool:
        """Whether any job needs that session."""
        return any(order.session == session for order in self.orders.values()) or any(
            task.session == session for task in self.tasks.values()
        )

    # --- giving -------------------------------------------------------------------------------

    def submit(self, order: Order, session: SessionKey) -> None:
        """Give a job to the peer of that session."""
        self.orders[order.id] = order
        order.session = session
        self.out.append(Deliver(session, order.id, SUBMIT, order.what))

    def cancel(self, order: Order, error: ZBusError | None = None) -> None:
        """This side does not want it any more, for `error` or by the user's will. Never waits
        for the peer."""
        if order.state is State.ENDED:
            return
        why = str(error) if error is not None else "cancelled there"
        if order.session is not None:
            self.out.append(Say(order.session, JobCancel(order.id, clip(why))))
        self._end(order, error or Cancelled("cancelled here", peer=order.peer, stage=_stage(order)))

    def awaits(self, order: Order, who: str) -> None:
        """A running prompt, `who` in words, waits for that job: it goes on only after it."""
        order.awaited = who
        self._look_for_deadlock()
        self._tell_all()

    def _end(self, order: Order, error: ZBusError | None) -> None:
        if order.state is State.ENDED:
            return
        order.state = State.ENDED
        self.orders.pop(order.id, None)
        order.what = None
        self.out += [Drop(order.id), Ended(order, error)]
        if order.awaited:
            self._tell_all()

    def state(self, session: SessionKey, message: JobState) -> None:
        """The peer says where the job is."""
        order = self.orders.get(message.job)
        if order is None or order.session != session:
            return
        order.state = State(message.state)
        order.place = message.place
        waits = order.waits
        order.waits = message.waits
        self.out.append(Changed(order))
        if waits != order.waits:
            self._look_for_deadlock()
            self._tell_all()

    def wants(self, session: SessionKey, job: str, part: str) -> bool:
        """Whether a parcel of an order may come in on this session."""
        order = self.orders.get(job)
        is_for_us = order is not None and order.session == session
        return is_for_us and (part == END or part.startswith(RESULT))

    def arrived(self, job: str, part: str, value: Any) -> None:
        """A parcel of an order is here."""
        order = self.orders.get(job)
        if order is None:
            return
        if part == END:
            order.end = value if isinstance(value, dict) else {}
        else:
            order.results[part[len(RESULT) :]] = value
            self.out.append(Changed(order))
        self._look_complete(order)

    def _look_complete(self, order: Order) -> None:
        end = order.end
        if end is None:
            return
        names = end.get("results")
        names = [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
        error = _outcome(order, end)
        if error is not None or all(name in order.results for name in names):
            self._end(order, error)

    def lost(self, job: str, error: ZBusError) -> None:
        """A parcel of an order could not be taken."""
        order = self.orders.get(job)
        if order is not None:
            self.cancel(order, error)

    # --- running ------------------------------------------------------------------------------

    def offered(
        self, session: SessionKey, incarnation: bytes, client: str, job: str, permitted: bool
    ) -> bool:
        """A "submit" parcel begins to come; whether it is to be taken. A job that is known
        already is answered again, and not run twice."""
        if not permitted:
            self._answer(session, job, _refusal(_not_permitted()))
            return False
        task = self.tasks.get(job)
        if task is not None and task.incarnation != incarnation:
            text = "another peer's job has that id"
            self._answer(session, job, _refusal([Reason("other", text=text)]))
            return False
        if task is not None and not task.unwanted:
            is_cut_off = task.state is State.ARRIVING and task.session != session
            self._adopt(task, session)
            return is_cut_off  # the session on which it came is not used any more: take it anew
        why = task.why if task is not None else self._gone.get(job)
        if why is not None:
            self._answer(session, job, {"outcome": "cancelled", "why": why})
            return False
        if sum(task.session == session for task in self.tasks.values()) >= MAX_TASKS:
            text = f"more than {MAX_TASKS} jobs at once"
            self._answer(session, job, _refusal([Reason("other", text=text)]))
            return False
        self.tasks[job] = Task(job, session, incarnation, client)
        return True

    def _answer(self, session: SessionKey, job: str, end: dict[str, Any]) -> None:
        self.out.append(Deliver(session, job, END, end))

    def _adopt(self, task: Task, session: SessionKey) -> None:
        """The client has come back with another session."""
        task.session, task.kept_until, task.told = session, None, None
        for part, value in task.parts.items():
            self.out.append(Deliver(session, task.id, part, value))
        self._tell(task)

    def submitted(self, job: str, what: Any, title: str = "", group: str = "") -> None:
        """The request is here."""
        task = self.tasks.get(job)
        if task is None or task.state is not State.ARRIVING:
            return
        task.what, task.title, task.group, task.state = what, title, group, State.CHECKING
        self.out.append(Submitted(task))
        if group:
            # In the order in which they were offered: a large one may arrive after a newer one.
            same = [t for t in self.tasks.values() if t.group == group]
            for older in [t for t in same if t.incarnation == task.incarnation][:-1]:
                self._stop(older, "a newer job of the same node has come")

    def not_submitted(self, job: str, error: ZBusError) -> None:
        """The request did not arrive whole, or cannot be used."""
        task = self.tasks.get(job)
        if task is not None and task.state is State.ARRIVING:
            self.ended(task, _refusal([Reason("other", text=str(error))]))

    def queued(self, task: Task, place: int) -> None:
        """It is in the queue, behind so many others."""
        if task.state in (State.CHECKING, State.QUEUED):
            task.state, task.place = State.QUEUED, place
            self._tell(task)

    def started(self, task: Task) -> None:
        """It runs."""
        if task.state in (State.CHECKING, State.QUEUED):
            task.state, task.place = State.RUNNING, 0
            self._tell(task)

    def result(self, task: Task, name: str, value: Any) -> None:
        """One of its outputs is there."""
        if task.state is not State.ENDED and name not in task.gave:
            task.gave.append(name)
            self._give(task, RESULT + name, value)

    def ended(self, task: Task, end: dict[str, Any]) -> None:
        """It has ended: {"outcome": "done" | "refused" | "failed" | "cancelled", ...}."""
        if task.state is State.ENDED:
            return
        task.state, task.what = State.ENDED, None
        self._give(task, END, task.spoiled or end | {"results": list(task.gave)})
        if not self._look_forget(task) and task.session is None:
            task.kept_until = task.kept_until or 0.0  # `tick` sets the time

    def _give(self, task: Task, part: str, value: Any) -> None:
        if task.unwanted:
            return
        task.parts[part] = value
        if task.session is not None:
            self.out.append(Deliver(task.session, task.id, part, value))

    def delivered(self, session: SessionKey, job: str, part: str) -> None:
        """The peer has a parcel of ours."""
        task = self.tasks.get(job)
        if task is not None and task.session == session and part != SUBMIT:
            task.parts.pop(part, None)
            self._look_forget(task)

    def undeliverable(self, session: SessionKey, job: str, part: str, error: ZBusError) -> None:
        """A parcel of ours cannot travel."""
        order = self.orders.get(job)
        if part == SUBMIT and order is not None:
            self.cancel(order, error.at(peer=order.peer, stage=_stage(order)))
        elif part != SUBMIT:
            task = self.tasks.get(job)
            if task is not None and task.session == session and part != END:
                self._spoil(task, part, error)
            self.delivered(session, job, part)

    def _spoil(self, task: Task, part: str, error: ZBusError) -> None:
        """A result of it cannot travel: whoever waits for it has to hear that."""
        message = f"its result {part[len(RESULT) :]} cannot be sent: {error}"
        task.spoiled = {
            "outcome": "failed",
            "title": "sending the result",
            "exception_type": type(error).__name__,
            "message": message,
        }
        if task.state is State.ENDED:
            self._give(task, END, task.spoiled)
        else:
            self._stop(task, message)

    def cancelled(self, session: SessionKey, message: JobCancel) -> None:
        """The peer does not want its job any more."""
        task = self.tasks.get(message.job)
        if task is not None and task.session == session:
            self._abandon(task, message.why)

    def _abandon(self, task: Task, why: str) -> None:
        task.unwanted, task.why = True, why
        task.parts.clear()
        self.out.append(Drop(task.id))
        if task.state is State.ARRIVING:
            del self.tasks[task.id]  # nobody has seen it, and it may come again
        elif task.state is State.ENDED:
            self._look_forget(task)
        else:
            self._stop(task, why)

    def _stop(self, task: Task, why: str) -> None:
        if task.state is not State.ENDED and not task.stopping:
            task.stopping = True
            self.out.append(Stop(task, why))

    def _look_forget(self, task: Task) -> bool:
        if task.state is not State.ENDED or task.parts or task.id not in self.tasks:
            return False
        del self.tasks[task.id]
        self._gone[task.id] = task.why or "its result was delivered already"
        while len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self.out.append(Forget(task))
        return True

    # --- two queues that wait for each other --------------------------------------------------

    @property
    def _waits(self) -> tuple[str, ...]:
        """The jobs that the prompt which runs here waits for, and those that they wait for."""
        found: dict[str, None] = {}
        for order in self.orders.values():
            if order.awaited:
                found |= dict.fromkeys((order.id, *order.waits))
        return tuple(found)[:MAX_WAITS]

    def _tell(self, task: Task) -> None:
        if task.session is None or task.state not in _IN_QUEUE:
            return
        told = (task.state.value, task.place, self._waits)
        if told != task.told:
            task.told = told
            self.out.append(Say(task.session, JobState(task.id, *told)))

    def _tell_all(self) -> None:
        for task in self.tasks.values():
            self._tell(task)

    def _look_for_deadlock(self) -> None:
        """Our running prompt waits for a job whose queue waits for a job in ours. Every side of
        such a ring can see it; one whose own job has a higher id than the job in its queue ends
        it: at least one of a ring is so, and never all, so that the others go on."""
        for order in list(self.orders.values()):
            ring = [self.tasks[i] for i in order.waits if i in self.tasks] if order.awaited else []
            ring = [t for t in ring if t.state in _IN_QUEUE and not t.stopping]
            if ring and order.id > max(task.id for task in ring):
                other = ring[0]
                error = QueueDeadlock(
                    f"{order.awaited} here waits for the job {order.title} there, and the prompt "
                    f"that runs there waits for its job {other.title} in the queue here",
                    peer=order.peer,
                    stage=_stage(order),
                    remedy="Run the two workflows one after the other, or let only one of the two "
                    "machines give jobs to the other",
                )
                self.cancel(order, error)

    # --- sessions and time --------------------------------------------------------------------

    def session_up(self, session: SessionKey, incarnation: bytes) -> None:
        """A new session: orders whose peer had only been out of reach go on."""
        for order in list(self.orders.values()):
            if order.session is None and order.incarnation == incarnation:
                self.submit(order, session)

    def session_down(self, session: SessionKey, error: ZBusError, now: float) -> None:
        """The session has ended. A peer whose link was lost may come back with another."""
        may_return = isinstance(error, LinkLost)
        orders = [order for order in self.orders.values() if order.session == session]
        tasks = [task for task in self.tasks.values() if task.session == session]
        for task in tasks:
            task.session = None
        for order in orders:
            order.session, order.lost_at, order.waits = None, now, ()
            if not may_return:
                self._end(order, error.at(peer=order.peer, stage=_stage(order)))
        for task in tasks:
            if may_return and task.state in (State.RUNNING, State.ENDED):
                task.kept_until = now + KEPT if task.state is State.ENDED else None
            else:
                self._abandon(task, f"{task.client}, whose job it is, is gone")
        if orders:
            self._tell_all()

    def tick(self, now: float) -> None:
        """End what nobody came back for."""
        for order in list(self.orders.values()):
            if order.session is None and now >= order.lost_at + self._reconnect_wait:
                what = "the link was lost and is not back"
                remedy = "Look at the network or the tunnel, then run it again"
                self._end(
                    order, LinkLost(what, peer=order.peer, stage=_stage(order), remedy=remedy)
                )
        for task in list(self.tasks.values()):
            if task.session is not None or task.state is not State.ENDED:
                continue
            task.kept_until = task.kept_until or now + KEPT
            if now >= task.kept_until:
                self._abandon(task, "nobody came for its results")

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return min(self._deadlines(), default=None)

    def _deadlines(self) -> Iterator[float]:
        for order in self.orders.values():
            if order.session is None:
                yield order.lost_at + self._reconnect_wait
        for task in self.tasks.values():
            if task.session is None and task.state is State.ENDED:
                yield task.kept_until or 0.0

    def close(self, error: ZBusError) -> None:
        """The process ends."""
        for order in list(self.orders.values()):
            self.cancel(order, error)


# --- outcomes -----------------------------------------------------------------------------------


def refused(reasons: list[Reason]) -> dict[str, Any]:
    """How a job ends that cannot run."""
    return _refusal(reasons)


def _refusal(reasons: list[Reason]) -> dict[str, Any]:
    return {"outcome": "refused", "reasons": [r.told() for r in reasons[:MAX_REASONS]]}


def _not_permitted() -> list[Reason]:
    text = "jobs are not permitted over this link: it is for values only"
    return [Reason("permission", text=text)]


def _stage(order: Order) -> str:
    return f"job {order.title}".strip()


def _outcome(order: Order, end: dict[str, Any]) -> ZBusError | None:
    """How the order has ended, by what was told; None: well."""
    outcome, where = end.get("outcome"), {"peer": order.peer, "stage": _stage(order)}
    if outcome == "done":
        return None
    if outcome == "refused":
        return _refused_error(end.get("reasons"), where)
    if outcome == "failed":
        return _failed_error(end, where)
    if outcome == "cancelled":
        return JobCancelled(_text(end.get("why")) or "stopped there", **where)
    return RemoteProtocolError("the job ended in no known way", **where)


def _refused_error(told: object, where: dict[str, str]) -> JobError:
    given = told[:MAX_REASONS] if isinstance(told, list) else []
    reasons = tuple(Reason.read(reason) for reason in given)
    if any(reason.kind == "permission" for reason in reasons):
        remedy = "Give the peer's name or the address of its own listener, not that of a Server"
        return NotPermitted(lines(reasons), **where, remedy=remedy)
    text = lines(reasons) or "it does not say why"
    error = JobRefused(f"cannot run there:\n{text}" if len(reasons) > 1 else text, **where)
    error.reasons = reasons
    return error


def _failed_error(end: dict[str, Any], where: dict[str, str]) -> JobFailed:
    names = ("node_id", "class_type", "exception_type", "message", "traceback")
    told = {name: _text(end.get(name)) for name in names}
    title = _text(end.get("title")) or told["class_type"] or "a node"
    said = told["message"].strip() or told["exception_type"] or "it failed without a word"
    kind, class_type = told["exception_type"].rpartition(".")[2], told["class_type"]
    more = [] if kind in said else [kind]
    more += [] if title.startswith(class_type) else [f"in {class_type}"]
    of = f" ({' '.join(more)})" if more else ""
    error = JobFailed(f"{title} failed there: {said}{of}", **where)
    for name, value in told.items():
        setattr(error, name, value)
    return error


def _text(value: object) -> str:
    return value[:200_000] if isinstance(value, str) else ""
