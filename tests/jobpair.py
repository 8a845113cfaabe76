"""Helpers for tests of jobs: sides in memory whose sessions may end, and a host on real peers."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar

from children import until

from zbus import Peer
from zbus.errors import Cancelled, LinkLost, TransferRefused, ZBusError
from zbus.job import Taken
from zbus.protocol import job_records as core
from zbus.protocol.budget import Budget, Ticket
from zbus.protocol.delivery import Actions, Do, Receiving, Sending, SendState
from zbus.protocol.identity import Identity
from zbus.protocol.job_records import (
    END,
    RESULT,
    SUBMIT,
    GivenJob,
    GivenState,
    TakenJob,
    TakenState,
    wait_token,
)
from zbus.protocol.jobs import Jobs
from zbus.protocol.messages import (
    Chunk,
    Finish,
    Grant,
    JobCancel,
    JobState,
    Refused,
    Stored,
)
from zbus.protocol.pace import Pace

# --- in memory ----------------------------------------------------------------------------------

CHUNKS = 3  # of a value that does not ride inside its offer
SPEC = b"spec"  # comes first of a value "head first"
MEMORY = {"inline": 1, "chunks": 3, "head first": 3}  # what a value takes of a side's memory
Said = tuple[Any, bytes]  # a message and its body


@dataclass(eq=False)
class Parcel:
    """One value on its way, and both machines that move it. In a queue it is its own offer."""

    SEQUENCED: ClassVar[bool] = True

    key: bytes  # its session
    id: int
    source: Side
    target: Side
    job: str
    part: str
    way: str
    body: bytes
    sending: Sending
    sent_for: bool = True  # the sender's jobs are to hear how it ends
    is_finished: bool = False  # FINISH was said
    taking: Receiving | None = None
    taken_for: bool = True  # the receiver's jobs are
    ticket: Ticket | None = None
    got: bytearray = field(default_factory=bytearray)
    value: Any = None

    @property
    def receiving(self) -> Receiving:
        assert self.taking is not None, "not offered yet"
        return self.taking

    @property
    def is_coming(self) -> bool:
        """The receiver has taken it, and has not all of it yet."""
        return self.taking is not None and not self.taking.ended

    @property
    def is_between(self) -> bool:
        """Some of its bytes have come, and not all."""
        return self.is_coming and 0 < self.receiving.incoming.received < len(self.body)


@dataclass(eq=False)
class Hosted:
    """What the host of a side knows of one job."""

    taken: TakenJob
    gave: dict[str, Any] = field(default_factory=dict)
    outcome: str = ""
    stops: list[str] = field(default_factory=list)
    forgotten: int = 0


class Moving:
    """The values of one process on their way: does what `Sending` and `Receiving` say, as the flows
    of the engine do. Threads come back when the world lets them."""

    world: World
    jobs: Jobs

    def __init__(self) -> None:
        self.memory = 4  # of one value in chunks at a time, and of a small one beside it
        self.budget = Budget(lambda: self.memory)
        self.paces: dict[bytes, Pace] = {}
        self.packing: list[Parcel] = []
        self.sends: dict[tuple[bytes, int], Parcel] = {}
        self.takes: dict[tuple[bytes, int], Parcel] = {}
        self.work: list[tuple[Parcel, str]] = []  # what threads do for values that come in
        self.due: dict[Parcel, None] = {}  # GRANTs to say

    def put(self, parcel: Parcel, message: Any, body: bytes = b"") -> None:
        raise NotImplementedError

    def settle(self) -> None:
        raise NotImplementedError

    # --- out ----------------------------------------------------------------------------------

    def send(self, parcel: Parcel) -> None:
        self.packing.append(parcel)
        self.sends[parcel.key, parcel.id] = parcel

    def packed(self, parcel: Parcel, error: ZBusError | None = None) -> None:
        """The pool has packed a value for its link, or cannot."""
        self.packing.remove(parcel)
        sending, total = parcel.sending, len(parcel.body)
        if error is not None:
            self.do_send(parcel, sending.failed(error))
        elif parcel.way == "inline":
            self.do_send(parcel, sending.packed())
        else:
            size = -(-total // CHUNKS)
            pace = self.paces.setdefault(parcel.key, Pace())
            self.do_send(parcel, sending.packed_for_chunks(total, lambda at, n: size, pace, total))
        self.settle()

    def do_send(self, parcel: Parcel, actions: Actions) -> None:
        for action in actions:
            if action is Do.OFFER:
                self.put(parcel, parcel)
            elif action is Do.RELEASE:
                del self.sends[parcel.key, parcel.id]
                if parcel in self.packing:
                    self.packing.remove(parcel)
                if parcel.sending.outgoing is not None:
                    parcel.sending.outgoing.abandon()
            else:
                assert action is Do.TELL and parcel.sending.ended
                self._sent(parcel, parcel.sending.error)

    def _sent(self, parcel: Parcel, error: ZBusError | None) -> None:
        if not parcel.sent_for:
            return
        parcel.sent_for = False
        of = (parcel.key, parcel.job, parcel.part)
        if error is None:
            self.jobs.delivered(*of)
        else:
            self.jobs.undeliverable(*of, error, parcel.sending.resumable)

    def may_send(self, parcel: Parcel) -> bool:
        """Whether a chunk of it may go: what `Outgoing.plan` would say."""
        outgoing = parcel.sending.outgoing
        if parcel.sending.state is not SendState.MOVING or outgoing is None:
            return False
        return outgoing._linked and outgoing.next < outgoing._limit

    def send_chunk(self, parcel: Parcel) -> None:
        outgoing = parcel.sending.outgoing
        assert outgoing is not None
        planned = outgoing.plan()
        assert planned is not None
        offset, size = planned
        end = offset + size
        self.put(parcel, Chunk(parcel.id, offset, size, False), parcel.body[offset:end])
        outgoing.sent(offset, size, size, self.world.now)
        if end == outgoing.total and not parcel.is_finished:
            parcel.is_finished = True
            self.put(parcel, Finish(parcel.id, digest(parcel.body)))

    # --- in -----------------------------------------------------------------------------------

    def take(self, parcel: Parcel) -> None:
        head = len(SPEC) if parcel.way == "head first" else 0
        parcel.taking = Receiving(parcel.id, len(parcel.body), head)
        parcel.got = bytearray(len(parcel.body))
        self.takes[parcel.key, parcel.id] = parcel
        self.do_take(parcel, parcel.taking.begin())

    def do_take(self, parcel: Parcel, actions: Actions) -> None:
        for action in actions:
            self._do_take(parcel, action, parcel.receiving)

    def _do_take(self, parcel: Parcel, action: Do, taking: Receiving) -> None:
        if action is Do.ASK_MEMORY:
            self._ask_memory(parcel, taking)
        elif action in (Do.ALLOCATE, Do.BUILD):
            self._in_thread(parcel, action.name)
        elif action is Do.GRANT:
            self.due[parcel] = None
        elif action is Do.COMPARE:
            self.do_take(parcel, taking.compared(digest(parcel.got)))
        elif action is Do.STORED:
            self.put(parcel, Stored(parcel.id))
        elif action is Do.REFUSE:
            self.put(parcel, Refused(parcel.id, str(taking.error)))
        elif action is Do.RELEASE:
            del self.takes[parcel.key, parcel.id]
            self.due.pop(parcel, None)
            if parcel.ticket is not None:
                parcel.ticket.release()
        else:
            assert action is Do.TELL and taking.ended
            self._got(parcel, taking.error)

    def _ask_memory(self, parcel: Parcel, taking: Receiving) -> None:
        given = lambda: self.do_take(parcel, taking.given())  # noqa: E731
        parcel.ticket = self.budget.ticket(MEMORY[parcel.way], given)
        parcel.ticket.ask()
        if taking.waits_for_memory:
            self.put(parcel, Grant(parcel.id, 0, 0))

    def _in_thread(self, parcel: Parcel, work: str) -> None:
        self.work.append((parcel, work))
        if self.world.is_quick:
            self.worked(parcel, work)

    def worked(self, parcel: Parcel, work: str) -> None:
        """A thread comes back."""
        self.work.remove((parcel, work))
        taking = parcel.receiving
        if taking.ended:
            return
        if work == "READ SPEC":
            assert parcel.got.startswith(SPEC)
            self.do_take(parcel, taking.spec())
        elif work == "BUILD":
            parcel.value = pickle.loads(parcel.got.removeprefix(SPEC))
            self.do_take(parcel, taking.built())
        elif parcel.way == "inline":
            parcel.got[:] = parcel.body
            self.do_take(parcel, taking.filled())
        else:
            self.do_take(parcel, taking.allocated())

    def say_grant(self, parcel: Parcel) -> None:
        del self.due[parcel]
        taking = parcel.receiving
        if taking.waits_for_memory:
            self.put(parcel, Grant(parcel.id, 0, 0))
        if taking.takes_bytes and parcel.key in self.world.linked:
            grant = taking.incoming.grant()
            if grant is not None:
                self.put(parcel, grant)

    def not_taken(self, parcel: Parcel, error: ZBusError) -> None:
        """Something was raised here."""
        self.do_take(parcel, parcel.receiving.failed(error))
        self.settle()

    def _got(self, parcel: Parcel, error: ZBusError | None) -> None:
        if not parcel.taken_for:
            return
        parcel.taken_for = False
        of, value = (parcel.key, parcel.job), parcel.value
        if error is not None:
            self.jobs.lost(*of, parcel.part, error, parcel.receiving.resumable)
        elif parcel.part == SUBMIT:
            self.jobs.taking.submitted(*of, value, *value[1:])
        else:
            self.jobs.arrived(*of, parcel.part, value)

    # --- both ---------------------------------------------------------------------------------

    def hear(self, key: bytes, message: Any, body: bytes) -> None:
        """A message that concerns a transfer. Late ones are of no account."""
        parcel = self.sends.get((key, message.transfer))
        if parcel is not None:
            self._hear_of_sent(parcel, message)
            return
        parcel = self.takes.get((key, message.transfer))
        if parcel is None:
            return
        if isinstance(message, Finish):
            self.do_take(parcel, parcel.receiving.finish(message.digest))
        elif isinstance(message, Chunk):
            self._chunk(parcel, parcel.receiving, message, body)

    def _hear_of_sent(self, parcel: Parcel, message: Any) -> None:
        sending = parcel.sending
        if isinstance(message, Grant):
            self.do_send(parcel, sending.grant(message, self.world.now))
        elif isinstance(message, Stored):
            self.do_send(parcel, sending.stored())
        else:
            assert isinstance(message, Refused)
            self.do_send(parcel, sending.refused(TransferRefused(message.why)))

    def _chunk(self, parcel: Parcel, taking: Receiving, chunk: Chunk, body: bytes) -> None:
        if not taking.arrive(chunk):
            return
        parcel.got[chunk.offset : chunk.offset + chunk.size] = body
        taking.stored(chunk.offset, chunk.size)
        self.due[parcel] = None
        if taking.is_head_whole:
            self._in_thread(parcel, "READ SPEC")
        else:
            self.do_take(parcel, taking.look())

    def drop(self, job: str, session: bytes | None) -> None:
        """The jobs do not want what is on its way for that one, nor hear of it."""
        for parcel in [*self.sends.values(), *self.takes.values()]:
            if parcel.job != job or session not in (None, parcel.key):
                continue
            error = Cancelled("not wanted any more")
            if parcel.source is self:
                parcel.sent_for = False
                self.do_send(parcel, parcel.sending.dropped(error))
            else:
                parcel.taken_for = False
                self.do_take(parcel, parcel.receiving.failed(error))  # which says REFUSED

    def unlinked(self, key: bytes) -> None:
        """The connection is gone."""
        for parcel in self.sends.values():
            if parcel.key == key:
                parcel.sending.unlinked()
        if key in self.paces:
            self.paces[key].reset()

    def relinked(self, key: bytes) -> None:
        """Another one stands."""
        for parcel in self.takes.values():
            if parcel.key == key:
                parcel.receiving.linked()
                self.due[parcel] = None

    def broken(self, key: bytes, error: ZBusError) -> None:
        """The session has ended."""
        for parcel in [p for p in self.sends.values() if p.key == key]:
            self.do_send(parcel, parcel.sending.broken(error))
        for parcel in [p for p in self.takes.values() if p.key == key]:
            self.do_take(parcel, parcel.receiving.broken(error))

    def still_moving(self) -> list[Any]:
        """What is there of values; nothing, when all have ended."""
        left: list[Any] = [*self.packing, *self.sends, *self.takes, *self.work, *self.due]
        left += [pace.in_flight for pace in self.paces.values() if pace.in_flight]
        return left + [self.budget.taken, self.budget.waiting] * bool(
            self.budget.taken or self.budget.waiting
        )


def digest(data: bytes | bytearray) -> bytes:
    return blake2b(data, digest_size=16).digest()


class Side(Moving):
    """One process: its Jobs, and what job service, flows and host would do with the events."""

    def __init__(self, world: World, name: str, life: int = 0) -> None:
        super().__init__()
        self.world, self.name = world, name
        self.life = life  # grows with each restart
        self.jobs = Jobs(reconnect_wait=300.0)
        self.up: dict[bytes, Side] = {}  # its open sessions, and with whom
        self.hosted: dict[str, Hosted] = {}
        self.given: dict[str, GivenJob] = {}
        self.ended: dict[str, ZBusError | None] = {}
        self.results: dict[str, dict[str, Any]] = {}  # as of the end

    @property
    def identity(self) -> Identity:
        return Identity(self.name.encode(), f"life {self.life}".encode())

    def put(self, parcel: Parcel, message: Any, body: bytes = b"") -> None:
        assert parcel.key in self.up, "said on a session that is down"
        self.world.put(parcel.key, self, message, body)

    # --- what a user does ---------------------------------------------------------------------

    def submit(self, key: bytes, job: str, group: str = "", title: str = "") -> GivenJob:
        other = self.up[key]
        what = ("request", title or job, group)
        given = GivenJob(job, what, other.name, other.identity, title or job)
        self.given[job] = given
        self.jobs.giving.submit(given, key)
        self.settle()
        return given

    def cancel(self, job: str) -> None:
        self.jobs.giving.cancel(self.given[job])
        self.settle()

    def awaits(self, job: str, who: str) -> None:
        self.jobs.giving.awaits(self.given[job], who)
        self.settle()

    def outcome(self, job: str) -> ZBusError | None:
        assert job in self.ended, f"{job} is {self.given[job].state}"
        return self.ended[job]

    # --- what the host does -------------------------------------------------------------------

    def queue(self, job: str, place: int = 0) -> None:
        self.jobs.taking.queued(self.hosted[job].taken, place)
        self.settle()

    def start(self, job: str) -> None:
        self.jobs.taking.started(self.hosted[job].taken)
        self.settle()

    def give(self, job: str, name: str) -> None:
        hosted = self.hosted[job]
        hosted.gave.setdefault(name, (job, name, self.life))
        self.jobs.taking.result(hosted.taken, name, hosted.gave[name])
        self.settle()

    def end(self, job: str, outcome: str = "done", **told: Any) -> None:
        hosted = self.hosted[job]
        hosted.outcome = outcome
        self.jobs.taking.ended(hosted.taken, {"outcome": outcome, **told})
        self.settle()

    # --- what the job service does ------------------------------------------------------------

    def settle(self) -> None:
        while events := self.jobs.drain():
            for event in events:
                self._do(event)
                self.check()
        self.check()
        assert not (self.jobs.giving.waits_changed or self.jobs.taking.queue_changed), "seen to"

    def check(self) -> None:
        """What always holds."""
        for given in self.jobs.given.values():
            assert given.state is not GivenState.ENDED and given.id not in self.ended
        for taken in self.jobs.taken.values():
            assert taken.session is None or taken.session in self.up

    def check_ended(self) -> None:
        """Nothing changes after the end."""
        for id, error in self.ended.items():
            assert self.given[id].results == self.results[id]
            assert error is not None or self.given[id].end is not None

    def _do(self, event: core.Event) -> None:
        match event:
            case core.Say(session, message):
                assert session in self.up, "said on a session that is down"
                if isinstance(message, JobState):
                    self._check_waits(set(message.waits))
                self.world.put(session, self, message)
            case core.Deliver(session, job, part, value):
                assert session in self.up, "delivered on a session that is down"
                self.send(self.world.parcel(session, self, job, part, value))
            case core.Drop(job, session):
                self.drop(job, session)
            case core.Submitted(taken):
                assert taken.id not in self.hosted, "run twice"
                self.hosted[taken.id] = Hosted(taken)
            case core.Stop(taken, why):
                hosted = self.hosted[taken.id]
                assert taken.state is not TakenState.ENDED and not hosted.stops
                hosted.stops.append(why)
            case core.Forget(taken):
                assert taken.state is TakenState.FORGOTTEN and taken.id not in self.jobs.taken
                if taken.id in self.hosted:
                    self.hosted[taken.id].forgotten += 1
                    assert self.hosted[taken.id].forgotten == 1
            case core.Unsaid(session, error):
                self.world.cut(session, error, error)
            case core.Changed(given):
                assert given.id not in self.ended
            case core.Ended(given, error):
                self._ended(given, error)

    def _check_waits(self, said: set[str]) -> None:
        """No given of its own that has ended, if a peer has not just said so."""
        told = {job for given in self.jobs.given.values() for job in given.waits}
        assert not said & {wait_token(job) for job in self.ended} - told

    def _ended(self, given: GivenJob, error: ZBusError | None) -> None:
        assert given.id not in self.ended, "ended twice"
        self.ended[given.id] = error
        self.results[given.id] = dict(given.results)
        if error is None:
            hosted = self.world.hosted(given.id)
            assert hosted.outcome == "done" and given.results == hosted.gave

    def receive(self, key: bytes, said: Said) -> None:
        message, body = said
        if isinstance(message, JobState):
            self.jobs.giving.state(key, message)
        elif isinstance(message, JobCancel):
            self.jobs.taking.cancelled(self.up[key].identity, message)
        elif isinstance(message, Parcel):
            self._offered(key, message)
        else:
            self.hear(key, message, body)
        self.settle()

    def _offered(self, key: bytes, parcel: Parcel) -> None:
        giving, client = self.jobs.giving, self.up[key]
        if parcel.part == SUBMIT:
            if not self.jobs.taking.offered(key, client.identity, client.name, parcel.job):
                self.put(parcel, Stored(parcel.id))
                return
        elif giving.has(key, parcel.job, parcel.part):
            self.put(parcel, Stored(parcel.id))
            return
        elif not giving.wants(key, parcel.job, parcel.part):
            self.put(parcel, Refused(parcel.id, "that job is not waited for here"))
            return
        self.take(parcel)

    def linked(self, key: bytes) -> None:
        """A connection of that session stands."""
        self.relinked(key)
        self.jobs.session_up(key, self.up[key].identity)
        self.settle()

    def down(self, key: bytes, error: ZBusError, jobs_first: bool = True) -> None:
        """The session has ended, as this side sees it."""
        self.world.unplug(key)
        del self.up[key]
        # The engine's jobs hear it first. One that only lost its link may hear it last as well.
        jobs_first = jobs_first or not isinstance(error, LinkLost)
        if jobs_first:
            self.jobs.session_down(key, error, self.world.now)
        self.broken(key, error)
        if not jobs_first:
            self.jobs.session_down(key, error, self.world.now)
        self.settle()


class World:
    """Sides joined by sessions, each a pair of queues, over connections that may break.

    Attributes:
        ways: How values go, one after the other.
        is_quick: What threads do is done at once.
        held: Values that are packed, sent and taken no further for now.
    """

    def __init__(self, *names: str) -> None:
        self.ways = ["chunks", "inline", "head first"]
        self.is_quick = False
        self.held: set[Parcel] = set()
        self.now = 1000.0
        self.sides = [Side(self, name) for name in names]
        self.all = list(self.sides)  # and those that were killed
        self.ends: dict[bytes, tuple[Side, Side]] = {}  # of each session
        self.linked: set[bytes] = set()  # sessions whose connection stands
        self.queues: dict[tuple[bytes, Side], deque[Said]] = {}  # by session and who reads
        self.parcels = 0

    # --- sessions -----------------------------------------------------------------------------

    def connect(self, one: Side, other: Side) -> bytes:
        key = f"session {len(self.ends) + 1}".encode()
        self.ends[key] = (one, other)
        for side, peer in ((one, other), (other, one)):
            side.up[key] = peer
            self.queues[key, side] = deque()
        self.plug(key)
        return key

    def plug(self, key: bytes) -> None:
        """A connection of that session stands."""
        self.linked.add(key)
        for side in self.ends[key]:
            side.linked(key)

    def unplug(self, key: bytes) -> None:
        """The connection breaks, and not its session: what has no number is lost."""
        if key not in self.linked:
            return
        self.linked.discard(key)
        for side in self.ends[key]:
            queue = self.queues[key, side]
            kept = [said for said in queue if said[0].SEQUENCED]
            queue.clear()
            queue.extend(kept)
            side.unlinked(key)

    def cut(self, key: bytes, one: ZBusError, other: ZBusError, jobs_first: bool = True) -> None:
        """The session ends on both sides."""
        for side, error in zip(self.ends[key], (one, other), strict=True):
            if key in side.up:
                side.down(key, error, jobs_first)

    def kill(self, side: Side) -> Side:
        """Its process ends, and another one begins; nobody has noticed yet."""
        for key in side.up:
            self.unplug(key)
        fresh = Side(self, side.name, side.life + 1)
        self.sides[self.sides.index(side)] = fresh
        self.all.append(fresh)
        side.up.clear()
        return fresh

    # --- what is on its way -------------------------------------------------------------------

    def parcel(self, key: bytes, source: Side, job: str, part: str, value: Any) -> Parcel:
        self.parcels += 1
        way, body = self.ways[self.parcels % len(self.ways)], pickle.dumps(value)
        body = SPEC + body if way == "head first" else body
        target, sending = source.up[key], Sending(self.parcels)
        return Parcel(key, self.parcels, source, target, job, part, way, body, sending)

    def put(self, key: bytes, sender: Side, message: Any, body: bytes = b"") -> None:
        if message.SEQUENCED or key in self.linked:
            one, other = self.ends[key]
            self.queues[key, other if sender is one else one].append((message, body))

    def coming(self) -> list[Parcel]:
        """Values that somebody takes."""
        return [parcel for side in self.sides for parcel in side.takes.values()]

    def hosted(self, job: str) -> Hosted:
        (only,) = [s.hosted[job] for s in self.all if job in s.hosted]
        return only

    # --- what happens by itself ---------------------------------------------------------------

    def steps(self) -> Iterator[Callable[[], None]]:
        """Everything that may happen next by itself."""
        for (key, reader), queue in self.queues.items():
            if queue and key in reader.up and key in self.linked:
                yield lambda k=key, r=reader, q=queue: r.receive(k, q.popleft())  # type: ignore[misc]
        for key, (one, other) in self.ends.items():
            if key not in self.linked and key in one.up and key in other.up:
                yield lambda k=key: self.plug(k)  # type: ignore[misc]
        for side in self.sides:
            for parcel, step in self._steps_of(side):
                if parcel not in self.held:
                    yield step

    def _steps_of(self, side: Side) -> Iterator[tuple[Parcel, Callable[[], None]]]:
        for parcel in side.packing:
            yield parcel, lambda p=parcel: side.packed(p)  # type: ignore[misc]
        for parcel in side.sends.values():
            if side.may_send(parcel):
                yield parcel, lambda p=parcel: side.send_chunk(p)  # type: ignore[misc]
        for parcel in side.due:
            yield parcel, lambda p=parcel: side.say_grant(p)  # type: ignore[misc]
        for parcel, work in side.work:
            yield parcel, lambda p=parcel, w=work: self._worked(side, p, w)  # type: ignore[misc]

    def _worked(self, side: Side, parcel: Parcel, work: str) -> None:
        side.worked(parcel, work)
        side.settle()

    def ready(self) -> list[Callable[[], None]]:
        return list(self.steps())

    def run(self, pick: Callable[[int], int] | None = None) -> None:
        """Let everything arrive; `pick` says which of so many things is next."""
        self.run_until(lambda: False, pick)

    def run_until(self, done: Callable[[], bool], pick: Callable[[int], int] | None = None) -> None:
        """Let things happen until then, or until nothing more does."""
        for _ in range(60_000):
            if done():
                return
            if pick is None:
                step = next(self.steps(), None)
                if step is None:
                    return
            elif steps := self.ready():
                step = steps[pick(len(steps))]
            else:
                return
            step()
        raise AssertionError("the sides never come to rest")

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for side in self.sides:
            side.jobs.tick(self.now)
            side.settle()

    def nothing_left(self) -> bool:
        """No job anywhere, no value on its way, and no memory that waits for one."""
        return not any(s.jobs.given or s.jobs.taken or s.still_moving() for s in self.sides)


# --- on real peers ------------------------------------------------------------------------------


class Host:
    """A `JobHost` that notes what it is told; `on_submitted` does the work.

    Attributes:
        jobs: All that were submitted, by id.
        said: (what, job id, why) of every call, in given.
    """

    def __init__(self, on_submitted: Callable[[Taken], None] | None = None) -> None:
        self.on_submitted = on_submitted
        self.jobs: dict[str, Taken] = {}
        self.said: list[tuple[str, str, str]] = []
        self.on_cancel: Callable[[Taken, str], None] = lambda job, why: job.stopped(why)
        self.told: dict[str, Any] = {"devices": ["cpu"]}

    def submitted(self, job: Taken) -> None:
        self.said.append(("submitted", job.id, ""))
        self.jobs[job.id] = job
        if self.on_submitted is not None:
            self.on_submitted(job)

    def cancel(self, job: Taken, why: str) -> None:
        self.said.append(("cancel", job.id, why))
        self.on_cancel(job, why)

    def forget(self, job: Taken) -> None:
        self.said.append(("forget", job.id, ""))

    def facts(self) -> dict[str, Any]:
        return self.told

    def only(self, within: float = 10.0) -> Taken:
        """The one job that has come."""
        until(lambda: self.jobs, within, "a job")
        (job,) = self.jobs.values()
        return job

    def count(self, what: str) -> int:
        return sum(said[0] == what for said in self.said)


def left(peer: Peer) -> dict[str, Any]:
    """What a peer still holds of jobs; empty when all have ended."""
    engine = peer._engine

    def look() -> dict[str, Any]:
        desk = engine.job_service
        held = {
            "given": len(desk.giving.given),
            "taken": len(desk.taking.taken),
            "previewed": len(desk.taking.previewed),
            "questions": len(desk.enquiries._questions),
            "moving": [(m.part, m.is_out) for m in desk.job_transfers._moving],
            "waiting": len(desk.job_transfers._waiting),
            "states": len(desk.taking.states),
            "calls": desk.taking.calls.is_busy,
            "errands": len(desk.connecting._open),
            "given_jobs": [o.state.value for o in desk.jobs.given.values()],
            "taken_jobs": [(t.state.value, list(t.parts)) for t in desk.jobs.taken.values()],
            "flows": len(engine.transfers),
            "transfers": sum(p.transfers for p in engine.links.peerings),
            "budget": engine.budget.taken,
        }
        return {name: value for name, value in held.items() if value}

    return engine.ask(look)


def clean(*peers: Peer, within: float = 5.0) -> None:
    """Nothing of any job is left on these."""
    try:
        until(lambda: not any(left(peer) for peer in peers), within)
    except AssertionError:
        raise AssertionError(f"left: {[left(peer) for peer in peers]}") from None


__all__ = ["CHUNKS", "END", "RESULT", "SPEC", "SUBMIT", "Host", "Hosted", "Parcel", "Side", "World"]
__all__ += ["clean", "left"]
