"""Thousands of transfers and jobs over links that are cut and lost, with cancels at any moment.

Whatever happens, every operation ends, what arrives is exact, nobody fails who was not cancelled
or parted, and afterwards nothing is left. ZBUS_STRESS_SEED sets the seed, which is printed;
ZBUS_STRESS_TRANSFERS how many values the long test sends on channels.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import until
from jobpair import Host, left
from proxy import Proxy

from zbus import Channel, Operation, Peer, Remote, Settings
from zbus.errors import Cancelled, LinkLost, Unreachable
from zbus.job import Job, Request, Taken
from zbus.values.recycling import KEPT, RECYCLER

SIZES = (10, 3_000, 70_000, 70_000, 300_000, 1_500_000, 6_000_000)
QUALITIES = ("exact", "exact", "raw", "lz4", "zlib")
PICTURES = ("exact", "8-bit", "png", "webp", "raw", "lz4")
WITHIN = 40.0  # seconds that anything may take, with all the cuts
SOON = 0.5  # seconds in which whoever cancels is done
MIB = 1 << 20


class Failed(AssertionError):
    """Something hangs, or is wrong."""


class Values:
    """Values of all kinds and sizes, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._noise = np.random.default_rng(seed)

    def one(self) -> tuple[Any, str]:
        """A value, and a quality in which it arrives as it is."""
        pick, size = self.random.random(), self.random.choice(SIZES)
        if pick < 0.15:
            side = max(1, int((size / 12) ** 0.5))
            # What 8 bits can hold exactly, and smooth enough to shrink.
            steps = torch.arange(3 * side * side) // 5 % 256
            picture = (steps.to(torch.float32) / 255).reshape(1, side, side, 3)
            return picture, self.random.choice(PICTURES)
        data = self._noise.integers(0, 256, max(16, size), np.uint8)[:size]
        data[: size // 3] = 7
        if pick < 0.3:
            return torch.from_numpy(data), self.random.choice(QUALITIES)
        if pick < 0.4:
            return {"a": data, "b": ["text", 1, None, data[: size // 7].copy()]}, "exact"
        return data, self.random.choice(QUALITIES)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


class Worker(Host):
    """Runs jobs: their values are their results; some take a moment, and then some fail."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random, self._open = random.Random(seed), threading.Event()
        self.timers: list[threading.Timer] = []

    def submitted(self, job: Taken) -> None:
        job.queued(0)
        if self._random.random() < 0.5:
            self._work(job)
        else:
            self.timers = [timer for timer in self.timers if timer.is_alive()]
            timer = threading.Timer(self._random.uniform(0, 0.1), self._work, (job,))
            self.timers.append(timer)
            timer.start()

    def _work(self, job: Taken) -> None:
        job.started()
        for name, value in job.request.values.items():
            job.progress("1", name, 1, 2)
            job.result(name, value)
        job.done()

    def cancel(self, job: Taken, why: str) -> None:
        job.stopped(why)

    def forget(self, job: Taken) -> None:
        """Nothing of it is kept here."""


class World:
    """Two peers on a link that breaks: over its plain listener runs meet, over the own listeners
    of both go jobs, and all of it through proxies.

    Attributes:
        counts: What has happened.
        loses: Sessions are given up now and then, and are not only cut.
        slowest: Seconds that the slowest cancel took.
    """

    def __init__(self, seed: int, settings: Settings, loses: bool = False) -> None:
        self.seed, self.loses, self.counts = seed, loses, Counter[str]()
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._ended = threading.Event()
        self.failure: BaseException | None = None
        self._values: list[weakref.ref[Any]] = []
        self.slowest = 0.0  # seconds of a cancel
        enter = self._stack.enter_context
        self.server, self.client = (
            enter(Peer(name, settings=settings)) for name in ("server", "client")
        )
        for peer in (self.server, self.client):
            jobs = peer._engine.job_service.jobs
            jobs.giving.reconnect_wait = jobs.taking.reconnect_wait = 120.0
        with self.server.listen("127.0.0.1:0") as meeting:
            self.address = meeting.address
        self.plain = enter(Proxy(self.address))
        self.hosts = [Worker(seed + 11), Worker(seed + 12)]
        self.owns, self.remotes = [], []
        for peer, host in zip((self.server, self.client), self.hosts, strict=True):
            own = enter(Proxy(peer.serve(host)))
            self.owns.append(own)
            self.remotes.append(Remote(own.address, peer.own.instance.hex(), peer.name))

    @property
    def peers(self) -> tuple[Peer, Peer]:
        return self.server, self.client

    def count(self, what: str, more: int = 1) -> None:
        with self._lock:
            self.counts[what] += more

    def keep_an_eye_on(self, value: Any) -> None:
        """Nobody may hold that value, sent or received, at the end."""
        for one in value.values() if isinstance(value, dict) else (value,):
            if isinstance(one, (np.ndarray, torch.Tensor)):
                self._values.append(weakref.ref(one))

    def held(self) -> int:
        """How many values are still held by anybody."""
        gc.collect()
        return sum(value() is not None for value in self._values)

    def run(self, *works: Callable[[], None]) -> None:
        """All of these at once, while the links are cut; then everything is let come to rest."""

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                self.failure = self.failure or error
                self._ended.set()

        # Who was there once is waited for; at the first time nobody's answer is one.
        for peer, remote in zip(self.peers, reversed(self.remotes), strict=True):
            assert peer.enquire(remote).result(WITHIN)["jobs"]
        breaker = threading.Thread(target=guarded, args=(self._break,))
        threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
        for thread in (breaker, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        self._ended.set()
        breaker.join()
        if self.failure is None:
            guarded(self._rest)
        if self.failure is not None:
            print(self.described(), file=sys.stderr)
            raise self.failure

    @property
    def is_over(self) -> bool:
        """Whether some other part of the test has failed."""
        return self._ended.is_set()

    def _break(self) -> None:
        dice = random.Random(self.seed + 1)
        proxies = (self.plain, *self.owns)
        while not self._ended.wait(dice.uniform(0.02, 0.2)):
            proxy = dice.choice(proxies)
            if self.loses and dice.random() < 0.2:
                proxy.refuse()
                self.count("cuts", proxy.cut())
                self.count("losses")
                self._ended.wait(dice.uniform(0.2, 0.9))
                proxy.accept()
            elif dice.random() < 0.3:
                proxy.cut_after = dice.randrange(1, 2_000_000)
            else:
                proxy.cut()
        for proxy in proxies:
            proxy.cut_after = None
            proxy.accept()

    def _rest(self) -> None:
        """Nothing is left of anything."""

        def open_things() -> dict[str, Any]:
            found = {}
            for peer in self.peers:
                counters = peer.counters()
                found.update({(peer.name, k): v for k, v in counters.items() if v})
                found.update({(peer.name, "jobs", k): v for k, v in left(peer).items()})
                for stays in ("addresses", "sessions", "connections"):
                    found.pop((peer.name, stays), None)
            return found

        try:
            until(lambda: not open_things(), 20)
        except AssertionError:
            raise Failed(f"left at the end: {open_things()}") from None
        if held := self.held():
            raise Failed(f"{held} values are held at the end")

    def described(self) -> str:
        """Everything that is open on either side."""
        lines = [f"seed {self.seed}", f"counts {dict(self.counts)}", f"failure {self.failure!r}"]
        for peer in self.peers:
            with contextlib.suppress(Exception):
                lines += [f"{peer.name}: {peer.counters()} {left(peer)}"]
                lines += peer._engine.ask(lambda p=peer: _described(p))  # type: ignore[misc]
        return "\n".join(lines)

    def close(self) -> None:
        self._ended.set()
        for host in self.hosts:
            for timer in host.timers:
                timer.join()
        self._stack.close()
        for proxy in (self.plain, *self.owns):
            self.count("cuts", proxy.cuts)


def _described(peer: Peer) -> list[str]:
    engine, lines = peer._engine, []
    for peering in engine.links.peerings:
        session = peering.session
        lines.append(
            f"  session with {peering.name}: linked {session.is_linked}, sent {session._sent}, "
            f"unacknowledged {len(session._unacked)}, received {session.received}"
        )
    for running in engine.operations._running.values():
        step = running.step
        lines.append(
            f"  operation {step} order {step.order} id {step.id}: posted {step.posted}, "
            f"matched {step.matched}, note {running.handle.note!r}"
        )
    for r in engine.channels.registrations:
        lines.append(
            f"  run {r.channel}: {r.state.value}, open {r.operation}, theirs {r.remote}, "
            f"cancelling {r.cancelling}, error {r.error!r}"[:600]
        )
    for key, flow in engine.transfers._flows.items():
        more = vars(flow.delivery).items()
        told = {name: value for name, value in more if name not in ("incoming", "outgoing")}
        lines.append(f"  {type(flow).__name__} {key[1]}: {told}")
        lines.append(f"    {vars(getattr(flow.delivery, 'incoming', flow.delivery))}"[:600])
    for given in engine.job_service.giving.given.values():
        lines.append(f"  given {given.record!r} note {given.job.note!r}"[:600])
    return lines


# --- channels -------------------------------------------------------------------------------------


class Chain:
    """Values both ways on one channel, one after the other."""

    def __init__(self, world: World, number: int, transfers: int) -> None:
        self._world, self._name, self._transfers = world, f"chain-{number}", transfers
        self._values = Values(world.seed * 1000 + number)
        self._dice = self._values.random
        self._order = 0
        self._ends: tuple[Channel, Channel] | None = None

    def run(self) -> None:
        for _ in range(self._transfers):
            if self._world.is_over:
                break
            self._one(*self._open())
        self._close()

    def _open(self) -> tuple[Channel, Channel]:
        if self._ends is None:
            world, self._order = self._world, 0
            self._ends = (
                world.server.listen(world.address, channel=self._name),
                world.client.connect(world.plain.address, channel=self._name),
            )
        return self._ends

    def _close(self) -> None:
        for end in self._ends or ():
            end.close()
        self._ends = None

    def _one(self, listening: Channel, dialled: Channel) -> None:
        world, dice, order = self._world, self._dice, self._order
        self._order += 1
        sender, receiver = dice.choice([(listening, dialled), (dialled, listening)])
        value, quality = self._values.one()
        begin: list[Callable[[], Operation[Any]]] = [
            lambda: sender.start_send(value, order, quality=quality),
            lambda: receiver.start_receive(order),
        ]
        first = dice.randrange(2)
        operations: list[Any] = [None, None]
        operations[first] = begin[first]()
        if dice.random() < 0.3:
            time.sleep(dice.uniform(0, 0.03))
        operations[1 - first] = begin[1 - first]()
        send, receive = operations
        world.count("transfers")
        world.keep_an_eye_on(value)
        is_cancelled = dice.random() < 0.2
        if is_cancelled:
            self._cancel(*dice.sample([send, receive], 2))
            self._settle(listening, dialled)
        else:
            self._wait(send, receive)
        self._look(send, receive, value, is_cancelled)

    def _cancel(self, one: Operation[Any], other: Operation[Any]) -> None:
        """One side gives up at some moment. Where the other had not heard of it yet it goes on
        waiting, by right: then it gives up too."""
        world, dice = self._world, self._dice
        time.sleep(dice.choice([0, dice.uniform(0, 0.005), dice.uniform(0, 0.15)]))
        world.count("cancels")
        for operation in (one, other):
            operation.cancel()
            began = time.monotonic()
            self._wait(operation)
            world.slowest = max(world.slowest, time.monotonic() - began)
            wait([other._future], dice.choice([0, 0.05, 0.5]))

    def _settle(self, *ends: Channel) -> None:
        """Both sides know of it."""

        def known() -> bool:
            registrations = [end._registration for end in ends]
            if any(registration.error is not None for registration in registrations):
                return True
            return not any(r.remote or r.cancelling or r.operation for r in registrations)

        until(known, WITHIN, "both sides know of the cancel")

    def _wait(self, *operations: Operation[Any]) -> None:
        waited = wait([operation._future for operation in operations], WITHIN)
        if waited.not_done:
            notes = [(operation.done(), operation.note) for operation in operations]
            self._world.count("hung")
            raise Failed(f"hung: {self._name} at order {self._order - 1}: {notes}")

    def _look(
        self, send: Operation[Any], receive: Operation[Any], value: Any, is_cancelled: bool
    ) -> None:
        world, errors = self._world, [send.error(), receive.error()]
        if errors[1] is None:
            world.keep_an_eye_on(receive.result())
            if not same(value, receive.result()):
                world.count("wrong")
                raise Failed(f"wrong: {self._name} at order {self._order - 1}, by {send.codec}")
            world.count("arrived")
        lost = [error for error in errors if isinstance(error, LinkLost)]
        if lost and world.loses:
            world.count("parted")
            self._close()
        elif any(errors) and not is_cancelled:
            world.count("unasked")
            raise Failed(f"failed unasked: {self._name} at order {self._order - 1}: {errors!r}")
        elif any(end._registration.error for end in self._ends or ()):
            assert world.loses, [end._registration.error for end in self._ends or ()]
            self._close()


# --- jobs -----------------------------------------------------------------------------------------


class Jobs:
    """Jobs for one of the two, a few at a time, with values both ways."""

    def __init__(self, world: World, direction: int, jobs: int, at_once: int = 3) -> None:
        self._world, self._jobs, self._at_once = world, jobs, at_once
        self._peer, self._remote = world.peers[1 - direction], world.remotes[direction]
        self._values = Values(world.seed * 1000 + 500 + direction)
        self._dice = self._values.random

    def run(self) -> None:
        under_way: list[tuple[Job, dict[str, Any], bool]] = []
        for _ in range(self._jobs):
            if self._world.is_over:
                break
            under_way.append(self._give())
            if len(under_way) >= self._at_once:
                self._end(*under_way.pop(self._dice.randrange(len(under_way))))
        for one in under_way:
            self._end(*one)

    def _give(self) -> tuple[Job, dict[str, Any], bool]:
        world, dice = self._world, self._dice
        values = {f"v{i}": self._values.one()[0] for i in range(dice.randrange(3))}
        quality = dice.choice(["exact", "raw", "lz4", "zlib"])
        job = self._peer.submit(self._remote, Request({}, values=values, quality=quality))
        world.count("jobs")
        world.keep_an_eye_on(values)
        is_cancelled = dice.random() < 0.2
        if is_cancelled:
            time.sleep(dice.choice([0, dice.uniform(0, 0.1)]))
            world.count("job cancels")
            job.cancel()
            self._wait(job, SOON * 20)
        return job, values, is_cancelled

    def _end(self, job: Job, values: dict[str, Any], is_cancelled: bool) -> None:
        world = self._world
        self._wait(job, WITHIN)
        error = job.error()
        if is_cancelled and isinstance(error, Cancelled):
            return
        if self._world.loses and isinstance(error, Unreachable):
            world.count("unreached")  # nobody listened when it was to be given
            return
        if error is not None:
            world.count("unasked")
            raise Failed(f"a job failed unasked: {error!r}")
        world.keep_an_eye_on(job.result())
        if not same(values, dict(sorted(job.result().items()))):
            world.count("wrong")
            raise Failed("wrong: a job's results")
        world.count("job values", 2 * len(values) + 2)

    def _wait(self, job: Job, within: float) -> None:
        if wait([job._future], within).not_done:
            self._world.count("hung")
            raise Failed(f"hung: a job for {self._remote.name}: {job.note!r}")


# --- what is left ---------------------------------------------------------------------------------


class Held:
    """What this process holds of the system."""

    def __init__(self) -> None:
        RECYCLER.sweep(time.monotonic())
        RECYCLER.sweep(time.monotonic() + 2 * KEPT)  # what is kept for later is no leak
        RECYCLER.sweep(time.monotonic())
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self.files = len(os.listdir("/proc/self/fd"))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory = pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("ZBUS_STRESS_SEED") or random.randrange(1 << 20))


@contextlib.contextmanager
def world(seed: int, settings: Settings, loses: bool = False) -> Iterator[World]:
    made = World(seed, settings, loses)
    try:
        yield made
    finally:
        made.close()
        counts = dict(sorted(made.counts.items()))
        print(f"seed {seed}, {settings}: {counts}, {made.slowest:.3f} s", flush=True)


def stress(seed: int, transfers: int, jobs: int) -> Counter[str]:
    """On three links: values through memory; by the socket and with little memory; and with
    sessions that are given up."""
    kinds = (
        (Settings(reconnect_wait=60), False),
        (Settings(reconnect_wait=60, share_memory=False, memory=13 * MIB), False),
        (Settings(reconnect_wait=0.3), True),
    )
    total = Counter[str]()
    for number, (settings, loses) in enumerate(kinds):
        with world(seed + number, settings, loses) as made:
            each = -(-transfers // len(kinds) // 3)
            chains = [Chain(made, i, each).run for i in range(3)]
            made.run(*chains, *(Jobs(made, i, jobs // len(kinds) // 2).run for i in range(2)))
        total += made.counts
    return total


def looked_over(seed: int, transfers: int, jobs: int) -> None:
    """Run it, and look at what it has left."""
    print(f"ZBUS_STRESS_SEED={seed}", flush=True)
    # What is imported, made or mapped once is no leak, and arenas of the allocator are none either.
    others = set(threading.enumerate())  # of tests before this one; some last with the process
    stress(seed ^ 1, transfers // 10, jobs // 10)
    until(lambda: not _threads(others), 10, lambda: f"these threads end: {_threads(others)}")
    before = Held()
    total = stress(seed, transfers, jobs)
    until(lambda: not _threads(others), 10, lambda: f"these threads end: {_threads(others)}")
    after = Held()
    grown = (after.memory - before.memory) / MIB
    print(f"seed {seed}: {dict(sorted(total.items()))}")
    print(f"files {before.files} -> {after.files}, memory {grown:+.1f} MiB", flush=True)
    assert total["transfers"] >= transfers and not total["wrong"] + total["hung"]
    # A look at the free memory has a file open for a moment.
    until(lambda: len(os.listdir("/proc/self/fd")) <= before.files, 5, "no more open files")
    assert grown < 150  # of gigabytes that have come and gone


def _threads(others: set[threading.Thread]) -> set[str]:
    made = set(threading.enumerate()) - others
    return {thread.name for thread in made if thread.name.startswith("zbus-")}


def test_a_short_stress(seed: int) -> None:
    looked_over(seed, 90, 30)


@pytest.mark.stress
@pytest.mark.timeout(1200)
def test_a_long_stress(seed: int) -> None:
    looked_over(seed, int(os.environ.get("ZBUS_STRESS_TRANSFERS") or 2100), 300)
