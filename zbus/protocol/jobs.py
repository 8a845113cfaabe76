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
from typing import Any

from ..errors import Cancelled, LinkLost, QueueDeadlock, ZBusError
from ..reasons import Reason
from .fields import clip
from .messages import MAX_WAITS, JobCancel, JobState
from .orders import (
    END,
    RESULT,
    SUBMIT,
    Changed,
    Deliver,
    Drop,
    Ended,
    Event,
    Forget,
    Order,
    Say,
    SessionKey,
    State,
    Stop,
    Submitted,
    Task,
)
from .outcomes import not_permitted, outcome, refused, stage

MAX_TASKS = 256  # of one session
KEPT = 600.0  # seconds that the results for a client whose link is lost are kept
REMEMBERED = 512  # ids of forgotten tasks, so that none is run twice
_IN_QUEUE = (State.QUEUED, State.RUNNING)


class Jobs:
    """All orders and tasks of one process."""

    def __init__(self, reconnect_wait: float = 300.0) -> None:
        self.out: list[Event] = []
        self.orders: dict[str, Order] = {}
        self.tasks: dict[str, Task] = {}
        self._reconnect_wait = reconnect_wait
        self._untold = False
        self._gone: dict[str, str] = {}  # ids of tasks that were forgotten, and why they ended

    def drain(self) -> list[Event]:
        """What is to be done since the last call, in order."""
        if self._untold:
            self._untold = False
            for task in self.tasks.values():
                self._tell(task)
        out = self.out.copy()
        self.out.clear()
        return out

    @property
    def sessions(self) -> set[SessionKey | None]:
        """Those that any job needs."""
        orders = {order.session for order in self.orders.values()}
        return orders | {task.session for task in self.tasks.values()}

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
        self._end(order, error or Cancelled("cancelled here", peer=order.peer, stage=stage(order)))

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
        error = outcome(order, end)
        if error is not None or all(name in order.results for name in names):
            self._end(order, error)

    def lost(self, job: str, error: ZBusError) -> None:
        """A parcel of an order could not be taken."""
        order = self.orders.get(job)
        if order is not None:
            self.cancel(order, error)

    # --- running ------------------------------------------------------------------------------

    def offered(
        self, session: SessionKey, incarnation: bytes, client: str, job: str, denial: str = ""
    ) -> bool:
        """A "submit" parcel begins to come; whether it is to be taken. A job that is known
        already is answered again, and not run twice. `denial`: why the client may give none."""
        if denial:
            self._answer(session, job, not_permitted(denial))
            return False
        task = self.tasks.get(job)
        if task is not None and task.incarnation != incarnation:
            text = "another peer's job has that id"
            self._answer(session, job, refused([Reason("other", text=text)]))
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
            self._answer(session, job, refused([Reason("other", text=text)]))
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
            self.ended(task, refused([Reason("other", text=str(error))]))

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
        self._look_forget(task)

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
            self.cancel(order, error.at(peer=order.peer, stage=stage(order)))
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

    def _look_forget(self, task: Task) -> None:
        if task.state is not State.ENDED or task.parts or task.id not in self.tasks:
            return
        del self.tasks[task.id]
        self._gone[task.id] = task.why or "its result was delivered already"
        while len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self.out.append(Forget(task))

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
        """What is waited for here has changed: told once, when all that has changed is known."""
        self._untold = True

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
                    stage=stage(order),
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
                self._end(order, error.at(peer=order.peer, stage=stage(order)))
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
                self._end(order, LinkLost(what, peer=order.peer, stage=stage(order), remedy=remedy))
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
