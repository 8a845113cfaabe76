"""Helpers for tests of jobs: sides in memory whose sessions may end, and a host on real peers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from children import until

from zbus import Peer
from zbus.errors import TransferRefused, ZBusError
from zbus.job import Taken
from zbus.protocol import job_records as core
from zbus.protocol.job_records import END, RESULT, SUBMIT, GivenJob, State, TakenJob
from zbus.protocol.jobs import Jobs
from zbus.protocol.messages import JobCancel, JobState

# --- in memory ----------------------------------------------------------------------------------


@dataclass(eq=False)
class JobOffer:
    """One value on its way."""

    key: bytes
    source: Side
    target: Side
    job: str
    part: str
    value: Any
    inline: bool  # it rides in its message; else its bytes come later, while the sender sends
    out: bool = True  # the sender has not forgotten it
    arriving: bool = False  # the receiver has taken it


@dataclass(eq=False)
class Hosted:
    """What the host of a side knows of one job."""

    taken: TakenJob
    gave: dict[str, Any] = field(default_factory=dict)
    outcome: str = ""
    stops: list[str] = field(default_factory=list)
    forgotten: int = 0


@dataclass(eq=False)
class Side:
    """One process: its Jobs, and what desk, parcels and host would do with the events."""

    world: World
    name: str
    life: int = 0  # grows with each restart
    jobs: Jobs = field(default_factory=lambda: Jobs(reconnect_wait=300.0))
    up: dict[bytes, Side] = field(default_factory=dict)  # its open sessions, and with whom
    packing: list[JobOffer] = field(default_factory=list)
    hosted: dict[str, Hosted] = field(default_factory=dict)
    given: dict[str, GivenJob] = field(default_factory=dict)
    ended: dict[str, ZBusError | None] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # as of the end

    @property
    def incarnation(self) -> bytes:
        return f"{self.name}{self.life}".encode()

    # --- what a user does ---------------------------------------------------------------------

    def submit(self, key: bytes, job: str, group: str = "", title: str = "") -> GivenJob:
        other = self.up[key]
        what = ("request", title or job, group)
        given = GivenJob(job, what, other.name, other.incarnation, title or job)
        self.given[job] = given
        self.jobs.submit(given, key)
        self.settle()
        return given

    def cancel(self, job: str) -> None:
        self.jobs.cancel(self.given[job])
        self.settle()

    def awaits(self, job: str, who: str) -> None:
        self.jobs.awaits(self.given[job], who)
        self.settle()

    def outcome(self, job: str) -> ZBusError | None:
        assert job in self.ended, f"{job} is {self.given[job].state}"
        return self.ended[job]

    # --- what the host does -------------------------------------------------------------------

    def queue(self, job: str, place: int = 0) -> None:
        self.jobs.queued(self.hosted[job].taken, place)
        self.settle()

    def start(self, job: str) -> None:
        self.jobs.started(self.hosted[job].taken)
        self.settle()

    def give(self, job: str, name: str) -> None:
        hosted = self.hosted[job]
        hosted.gave.setdefault(name, (job, name, self.life))
        self.jobs.result(hosted.taken, name, hosted.gave[name])
        self.settle()

    def end(self, job: str, outcome: str = "done", **told: Any) -> None:
        hosted = self.hosted[job]
        hosted.outcome = outcome
        self.jobs.ended(hosted.taken, {"outcome": outcome, **told})
        self.settle()

    # --- what desk and parcels do -------------------------------------------------------------

    def settle(self) -> None:
        for event in self.jobs.drain():
            self._do(event)
            self.check()
        self.check()

    def check(self) -> None:
        """What always holds."""
        for given in self.jobs.given.values():
            assert given.state is not State.ENDED and given.id not in self.ended
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
                self.packing.append(self.world.parcel(session, self, job, part, value))
            case core.Drop(job):
                self._drop(job)
            case core.Submitted(taken):
                assert taken.id not in self.hosted, "run twice"
                self.hosted[taken.id] = Hosted(taken)
            case core.Stop(taken, why):
                hosted = self.hosted[taken.id]
                assert taken.state is not State.ENDED and not hosted.stops
                hosted.stops.append(why)
            case core.Forget(taken):
                assert taken.state is State.ENDED and taken.id not in self.jobs.taken
                if taken.id in self.hosted:
                    self.hosted[taken.id].forgotten += 1
                    assert self.hosted[taken.id].forgotten == 1
            case core.Changed(given):
                assert given.id not in self.ended
            case core.Ended(given, error):
                self._ended(given, error)

    def _check_waits(self, said: set[str]) -> None:
        """No given of its own that has ended, if a peer has not just said so."""
        told = {job for given in self.jobs.given.values() for job in given.waits}
        assert not said & self.ended.keys() - told

    def _ended(self, given: GivenJob, error: ZBusError | None) -> None:
        assert given.id not in self.ended, "ended twice"
        self.ended[given.id] = error
        self.results[given.id] = dict(given.results)
        if error is None:
            hosted = self.world.hosted(given.id)
            assert hosted.outcome == "done" and given.results == hosted.gave

    def _drop(self, job: str) -> None:
        for parcel in [p for p in self.packing if p.job == job]:
            self.packing.remove(parcel)
        for parcel in [p for p in self.world.moving if p.job == job]:
            if parcel.source is self:
                parcel.out = False
            elif parcel.arriving:
                self.world.moving.remove(parcel)
                self.world.put(parcel.key, self, (parcel, TransferRefused("not wanted any more")))

    def packed(self, parcel: JobOffer, error: ZBusError | None = None) -> None:
        """The pool has packed a value for its link, or cannot."""
        self.packing.remove(parcel)
        if error is None:
            self.world.moving.append(parcel)
            self.world.put(parcel.key, self, parcel)
        else:
            self.jobs.undeliverable(parcel.key, parcel.job, parcel.part, error)
        self.settle()

    def receive(self, key: bytes, message: Any) -> None:
        match message:
            case JobState():
                self.jobs.state(key, message)
            case JobCancel():
                self.jobs.cancelled(key, message)
            case JobOffer():
                self._offered(key, message)
            case (parcel, error):
                if parcel.out:
                    parcel.out = False
                    if error is None:
                        self.jobs.delivered(key, parcel.job, parcel.part)
                    else:
                        self.jobs.undeliverable(key, parcel.job, parcel.part, error)
        self.settle()

    def _offered(self, key: bytes, parcel: JobOffer) -> None:
        client, error = parcel.source, None
        if parcel.part == SUBMIT:
            said = (client.incarnation, client.name, parcel.job)
            parcel.arriving = self.jobs.offered(key, *said)
        else:
            parcel.arriving = self.jobs.wants(key, parcel.job, parcel.part)
            error = TransferRefused("that job is not waited for here")
        if not parcel.arriving:
            self.world.moving.remove(parcel)
            self.world.put(key, self, (parcel, error))
        elif parcel.inline:
            self.arrived(parcel)

    def arrived(self, parcel: JobOffer, error: ZBusError | None = None) -> None:
        """Its last byte is here, or it cannot be taken."""
        self.world.moving.remove(parcel)
        self.world.put(parcel.key, self, (parcel, error))
        if parcel.part != SUBMIT:
            if error is None:
                self.jobs.arrived(parcel.job, parcel.part, parcel.value)
            else:
                self.jobs.lost(parcel.job, error)
        elif error is None:
            self.jobs.submitted(parcel.job, parcel.value, *parcel.value[1:])
        else:
            self.jobs.not_submitted(parcel.job, error)
        self.settle()

    def down(self, key: bytes, error: ZBusError) -> None:
        """The session has ended, as this side sees it."""
        del self.up[key]
        self.packing = [p for p in self.packing if p.key != key]
        for parcel in [p for p in self.world.moving if p.key == key]:
            if parcel.source is self:
                parcel.out = False
            elif parcel.arriving:
                self.world.moving.remove(parcel)
        self.jobs.session_down(key, error, self.world.now)
        self.settle()


class World:
    """Sides joined by sessions, each a pair of queues."""

    def __init__(self, *names: str) -> None:
        self.sides = [Side(self, name) for name in names]
        self.all = list(self.sides)  # and those that were killed
        self.queues: dict[tuple[bytes, Side], deque[Any]] = {}  # by session and who reads
        self.moving: list[JobOffer] = []
        self.now = 1000.0
        self._sessions = self._parcels = 0

    def connect(self, one: Side, other: Side) -> bytes:
        self._sessions += 1
        key = f"session {self._sessions}".encode()
        for side, peer in ((one, other), (other, one)):
            side.up[key] = peer
            self.queues[key, side] = deque()
        for side, peer in ((one, other), (other, one)):
            side.jobs.session_up(key, peer.incarnation)
            side.settle()
        return key

    def parcel(self, key: bytes, source: Side, job: str, part: str, value: Any) -> JobOffer:
        self._parcels += 1
        inline = self._parcels % 2 == 0
        return JobOffer(key, source, source.up[key], job, part, value, inline)

    def put(self, key: bytes, sender: Side, message: Any) -> None:
        for (of, reader), queue in self.queues.items():
            if of == key and reader is not sender:
                queue.append(message)

    def hosted(self, job: str) -> Hosted:
        (only,) = [s.hosted[job] for s in self.all if job in s.hosted]
        return only

    def ready(self) -> list[Callable[[], None]]:
        """Everything that may happen next by itself."""
        steps: list[Callable[[], None]] = []
        for (key, reader), queue in self.queues.items():
            if queue and key in reader.up:
                steps.append(lambda k=key, r=reader, q=queue: r.receive(k, q.popleft()))  # type: ignore[misc]
        for side in self.sides:
            steps += [lambda s=side, p=p: s.packed(p) for p in side.packing]  # type: ignore[misc]
        for p in self.moving:
            if p.arriving and p.out:
                steps.append(lambda p=p: p.target.arrived(p))  # type: ignore[misc]
        return steps

    def run(self, pick: Callable[[int], int] = lambda count: 0) -> None:
        """Let everything arrive; `pick` says which of so many things is next."""
        for _ in range(20_000):
            steps = self.ready()
            if not steps:
                return
            steps[pick(len(steps))]()
        raise AssertionError("the sides never come to rest")

    def cut(self, key: bytes, one: ZBusError, other: ZBusError) -> None:
        """The session ends on both sides."""
        readers = [reader for of, reader in self.queues if of == key]
        for side, error in zip(readers, (one, other), strict=True):
            if key in side.up:
                side.down(key, error)

    def kill(self, side: Side) -> Side:
        """Its process ends, and another one begins; nobody has noticed yet."""
        fresh = Side(self, side.name, side.life + 1)
        self.sides[self.sides.index(side)] = fresh
        self.all.append(fresh)
        side.up.clear()
        side.packing.clear()
        self.moving = [p for p in self.moving if p.target is not side]
        return fresh

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for side in self.sides:
            side.jobs.tick(self.now)
            side.settle()

    def nothing_left(self) -> bool:
        """No job anywhere, and nobody who still waits for bytes."""
        waiting = any(parcel.arriving for parcel in self.moving)
        return not waiting and not any(s.jobs.given or s.jobs.taken for s in self.sides)


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
            "given": len(desk._given),
            "taken": len(desk._taken),
            "previewed": len(desk._previewed),
            "questions": len(desk.enquiries._questions),
            "moving": [(m.part, m.is_out) for m in desk.job_transfers._moving],
            "waiting": len(desk.job_transfers._waiting),
            "states": len(desk._states),
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


__all__ = ["END", "RESULT", "SUBMIT", "Host", "Hosted", "JobOffer", "Side", "World"]
__all__ += ["clean", "left"]
