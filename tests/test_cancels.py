"""Each wait is cancelled at each of its checkpoints: it ends at once on this side, the other side
hears it, nothing is left, and what is begun next is well."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from children import until
from ends import Ends, linked
from jobpair import Host, clean
from proxy import Proxy

from zbus import Channel, Operation, Peer, Remote, Settings, ZBusError, codecs
from zbus.engine.inflow import Inflow
from zbus.engine.outflow import Outflow
from zbus.errors import Cancelled, PeerClosed, RunEnded, TransferRefused
from zbus.job import Request, Taken
from zbus.net import memory
from zbus.protocol.delivery import Do
from zbus.values import payload
from zbus.values.unpack import Unpacker

MIB = 1 << 20
SOON = 0.5  # seconds: the promise, see the last test
LONG = 10.0  # seconds: ends by other things come later than that, or never
LARGE = np.tile(np.arange(251, dtype=np.uint8), 5 * MIB // 251)
LOOKED_AT = np.ones(5 * MIB, np.bool_)  # byte by byte when it is built, so not in the I/O thread
MANY = [np.zeros(1, np.uint8) for _ in range(4000)]  # its spec is too long for the offer


class Gates:
    """Holds whoever comes to a place, in a worker thread, until the test is over with it."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self._patched = patched
        self.reached, self.opened = threading.Event(), threading.Event()

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def waits(*args: Any, **named: Any) -> Any:
            if threading.current_thread().name.startswith("zbus-work"):
                self.reached.set()
                assert self.opened.wait(20)
            return call(*args, **named)

        return waits

    def at(self, owner: Any, name: str) -> None:
        self._patched.setattr(owner, name, self.before(getattr(owner, name)))

    def in_codec(self, name: str) -> None:
        codec = codecs.CODECS["lz4"]
        gated = codec._replace(**{name: self.before(getattr(codec, name))})
        self._patched.setitem(codecs.CODECS, "lz4", gated)

    def never(self, flow: type[Outflow] | type[Inflow], action: Do) -> None:
        """That is not done."""

        def skipped(_: Any) -> None:
            self.reached.set()

        self._patched.setitem(flow.DOING, action, skipped)  # type: ignore[arg-type]

    def arrived(self) -> None:
        assert self.reached.wait(10), "nobody came there"


@pytest.fixture
def gates() -> Iterator[Gates]:
    with pytest.MonkeyPatch.context() as patched:
        made = Gates(patched)
        yield made
        made.opened.set()


TOOK: list[float] = []  # seconds, each cancel of this file


def cancelled(operation: Operation[Any]) -> None:
    began = time.monotonic()
    operation.cancel()
    until(operation.done, LONG, lambda: f"an end of what says {operation.note!r}")
    TOOK.append(time.monotonic() - began)
    assert isinstance(operation.error(), Cancelled)


def nothing_left(*peers: Peer) -> None:
    standing = ("addresses", "sessions", "connections", "registrations")

    def held() -> dict[str, int]:
        return {
            f"{peer.name}: {name}": value
            for peer in peers
            for name, value in peer.counters().items()
            if value and name not in standing
        }

    until(lambda: not held(), 5, f"nothing is left: {held()}")


def passes(one: Channel, other: Channel, order: int | None = None) -> None:
    send, receive = one.start_send("next", order), other.start_receive(order)
    until(lambda: send.done() and receive.done(), 10, f"the next: {send.note}, {receive.note}")
    assert (send.error(), receive.error()) == (None, None) and receive.result() == "next"


def settled(*ends: Channel) -> None:
    """Both sides know of it."""

    def known() -> bool:
        registrations = [end._registration for end in ends]
        return not any(r.remote or r.cancelling or r.operation for r in registrations)

    until(known, 5, "both sides know of it")


# --- before there is a partner --------------------------------------------------------------------


@contextlib.contextmanager
def _nobody_there() -> Iterator[tuple[Peer, Channel]]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with Peer("here") as here, here.connect(address) as channel:
        yield here, channel


@contextlib.contextmanager
def _nobody_comes() -> Iterator[tuple[Peer, Channel]]:
    with Peer("here") as here, here.listen("127.0.0.1:0") as channel:
        yield here, channel


@contextlib.contextmanager
def _connecting() -> Iterator[tuple[Peer, Channel]]:
    """TCP stands, and nobody speaks."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with Peer("here") as here, here.connect(address) as channel:
            with deaf.accept()[0]:
                yield here, channel


@contextlib.contextmanager
def _handshake() -> Iterator[tuple[Peer, Channel]]:
    """HELLO is said, and not answered."""
    greeted = threading.Event()
    with Peer("there") as there, there.listen("127.0.0.1:0") as listening:
        there._engine.links._greet = lambda *_: greeted.set()  # type: ignore[method-assign]
        with Peer("here") as here, here.connect(listening.address) as channel:
            assert greeted.wait(10)
            yield here, channel


@contextlib.contextmanager
def _linked() -> Iterator[tuple[Peer, Channel]]:
    """The peer is there, and no run of its."""
    with linked() as ends:
        until(lambda: ends.client.counters()["sessions"])
        with ends.client.connect(ends.dialled.address, channel="another") as channel:
            yield ends.client, channel


@contextlib.contextmanager
def _bound() -> Iterator[tuple[Peer, Channel]]:
    """The other run is there, and does something else."""
    with linked() as ends:
        passes(ends.listening, ends.dialled)
        yield ends.client, ends.dialled


@contextlib.contextmanager
def _lost() -> Iterator[tuple[Peer, Channel]]:
    with linked() as ends:
        passes(ends.listening, ends.dialled)
        ends.proxy.refuse()
        ends.proxy.cut()
        until(lambda: not any(p.connection for p in ends.client._engine.links.peerings))
        yield ends.client, ends.dialled


@contextlib.contextmanager
def _meeting(address: str = "") -> Iterator[tuple[Peer, Channel]]:
    """A certain peer, which may only come by itself, or nobody answers."""
    with Peer("here") as here, here.meet(Remote(address, name="there")) as channel:
        yield here, channel


@contextlib.contextmanager
def _meeting_nobody() -> Iterator[tuple[Peer, Channel]]:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        with _meeting(f"127.0.0.1:{deaf.getsockname()[1]}") as made:
            yield made


@contextlib.contextmanager
def _meeting_linked() -> Iterator[tuple[Peer, Channel]]:
    with Peer("there") as there, _meeting(there.serve(None)) as (here, channel):
        until(lambda: here.counters()["sessions"])
        yield here, channel


ALONE = {
    "nobody there": _nobody_there,
    "nobody comes": _nobody_comes,
    "connecting": _connecting,
    "handshake": _handshake,
    "linked": _linked,
    "bound": _bound,
    "lost": _lost,
    "a meeting, connecting": _meeting_nobody,
    "a meeting, linked": _meeting_linked,
}


@pytest.mark.parametrize("which", ["send", "receive"])
@pytest.mark.parametrize("state", ALONE)
def test_alone(state: str, which: str) -> None:
    with ALONE[state]() as (peer, channel):
        operation: Any = channel.start_send(LARGE) if which == "send" else channel.start_receive()
        until(lambda: operation.note, 5, "it says what it waits for")
        cancelled(operation)
        nothing_left(peer)
        again: Any = channel.start_send(1) if which == "receive" else channel.start_receive()
        cancelled(again)
        nothing_left(peer)


@pytest.mark.parametrize("state", ["nobody there", "connecting", "handshake"])
def test_the_closing_of_a_channel_ends_its_dial(state: str) -> None:
    with ALONE[state]() as (peer, channel):
        operation = channel.start_receive()
        channel.close()
        until(operation.done, LONG)
        until(lambda: not peer.counters()["addresses"], 5, "nobody dials any more")
        nothing_left(peer)


# --- with a value on its way ----------------------------------------------------------------------


def _packing(ends: Ends, gates: Gates) -> tuple[Any, str]:
    gates.at(payload, "pack")
    return LARGE, "raw"


def _head(ends: Ends, gates: Gates) -> tuple[Any, str]:
    gates.at(Unpacker, "__init__")
    return MANY, "raw"


def _memory(ends: Ends, gates: Gates) -> tuple[Any, str]:
    """The receiver has none to give."""

    def take(budget: Any) -> None:
        ticket = budget.ticket(budget.cap, lambda: None)
        ticket.ask()
        until_over.append(lambda: ends_of[budget].ask(ticket.release))

    until_over: list[Callable[[], object]] = []
    ends_of = {peer._engine.budget: peer._engine for peer in (ends.server, ends.client)}
    for budget, engine in ends_of.items():
        engine.ask(lambda b=budget: take(b))  # type: ignore[misc]

    def reached() -> bool:
        return any(budget.waiting for budget in ends_of)

    gates.arrived = lambda: until(reached, 10) and None  # type: ignore[method-assign]
    true = gates.opened.set

    def opened() -> None:
        for release in until_over:
            release()
        until_over.clear()
        true()

    gates.opened.set = opened  # type: ignore[method-assign]
    return LARGE, "raw"


def _moving(ends: Ends, gates: Gates) -> tuple[Any, str]:
    ends.proxy.rate = 2e6
    flows = [peer._engine.transfers for peer in (ends.server, ends.client)]

    def reached() -> bool:
        every = [flow for some in flows for flow in list(some._flows.values())]
        return any(isinstance(f, Inflow) and f.delivery.incoming.received for f in every)

    gates.arrived = lambda: until(reached, 10) and None  # type: ignore[method-assign]
    return LARGE, "raw"


def _encoding(ends: Ends, gates: Gates) -> tuple[Any, str]:
    gates.in_codec("encode")
    return LARGE, "lz4"


def _decoding(ends: Ends, gates: Gates) -> tuple[Any, str]:
    gates.in_codec("decode")
    return LARGE, "lz4"


def _reading(ends: Ends, gates: Gates) -> tuple[Any, str]:
    if not memory.is_possible():
        pytest.skip("no such call here")
    gates.at(memory, "read")
    return LARGE, "near"


def _verifying(ends: Ends, gates: Gates) -> tuple[Any, str]:
    gates._patched.setattr(Outflow, "_finish", lambda *_: gates.reached.set())
    return LARGE, "raw"


def _building(ends: Ends, gates: Gates) -> tuple[Any, str]:
    gates.at(Unpacker, "value")
    return LOOKED_AT, "raw"


def _storing(ends: Ends, gates: Gates) -> tuple[Any, str]:
    """It is there, and the sender has not heard that."""
    gates.never(Inflow, Do.STORED)
    return LARGE, "raw"


MOVING = {
    "packing": _packing,
    "spec coming": _head,
    "waiting for memory": _memory,
    "moving": _moving,
    "encoding": _encoding,
    "decoding": _decoding,
    "reading memory": _reading,
    "verifying": _verifying,
    "building": _building,
    "storing": _storing,
}


@pytest.mark.parametrize("which", ["send", "receive"])
@pytest.mark.parametrize("sender", ["dialler", "listener"])
@pytest.mark.parametrize("state", MOVING)
def test_on_its_way(state: str, sender: str, which: str, gates: Gates) -> None:
    if (state, which) == ("storing", "receive"):
        pytest.skip("it is done")
    settings = Settings(share_memory=state == "reading memory", memory=64 * MIB)
    with linked(settings, settings) as ends:
        passes(ends.listening, ends.dialled)
        pair = (ends.dialled, ends.listening)
        source, target = pair if sender == "dialler" else pair[::-1]
        value, quality = MOVING[state](ends, gates)
        receive = target.start_receive(5)
        send = source.start_send(value, 5, quality="raw" if quality == "near" else quality)
        gates.arrived()
        mine, other = (send, receive) if which == "send" else (receive, send)
        cancelled(mine)
        if state == "packing":  # nothing was offered, so the other one waits for another
            cancelled(other)
        gone = ends.proxy.forwarded
        until(other.done, LONG, lambda: f"the other side hears it: {other.note}")
        if state == "moving":  # a cancel waits behind what is under way, and that is a part
            assert ends.proxy.forwarded - gone < LARGE.nbytes // 2
        if state == "storing":
            assert np.array_equal(other.result(), value)
        elif state != "packing":
            error = other.error()
            assert isinstance(error, (RunEnded, TransferRefused)), error
            assert "cancelled" in str(error) and error.peer and error.stage
        gates.opened.set()
        gates._patched.undo()
        ends.proxy.rate = None
        settled(source, target)
        nothing_left(ends.server, ends.client)
        for turn in range(2):
            passes(*((source, target) if turn else (target, source)), order=6 + turn)
        nothing_left(ends.server, ends.client)


# --- jobs and questions ---------------------------------------------------------------------------


class Jobs:
    """One that gives jobs, one that runs them, and a proxy between."""

    def __init__(self, stack: contextlib.ExitStack, gates: Gates) -> None:
        settings = Settings(share_memory=False)
        self.gates = gates
        self.here = stack.enter_context(Peer("here", settings=settings))
        self.there = stack.enter_context(Peer("there", settings=settings))
        self.host = Host()
        self.proxy = stack.enter_context(Proxy(self.there.serve(self.host)))
        self.remote = Remote(self.proxy.address, self.there.own.instance.hex(), "there")

    def give(self, value: Any = 1, quality: str = "raw") -> Any:
        return self.here.submit(self.remote, Request({}, values={"a": value}, quality=quality))

    def taken(self) -> Taken:
        return self.host.only()


def _job_nobody(jobs: Jobs) -> Any:
    jobs.proxy.refuse()
    return jobs.give()


def _job_connecting(jobs: Jobs) -> Any:
    jobs.proxy.black_hole = True
    job = jobs.give()
    until(lambda: jobs.proxy.accepted)
    return job


def _job_packing(jobs: Jobs) -> Any:
    jobs.gates.at(payload, "pack")
    job = jobs.give(LARGE)
    jobs.gates.arrived()
    return job


def _job_moving(jobs: Jobs) -> Any:
    jobs.proxy.rate = 2e6
    job = jobs.give(LARGE)
    until(lambda: job.progress.received)
    return job


def _job_checking(jobs: Jobs) -> Any:
    job = jobs.give()
    jobs.taken()
    return job


def _job_queued(jobs: Jobs) -> Any:
    job = jobs.give()
    jobs.taken().queued(3)
    until(lambda: job.progress.state == "queued")
    return job


def _job_running(jobs: Jobs) -> Any:
    job = jobs.give()
    jobs.taken().started()
    until(lambda: job.progress.state == "running")
    return job


def _job_lost(jobs: Jobs) -> Any:
    job = _job_running(jobs)
    jobs.proxy.refuse()
    jobs.proxy.cut()
    until(lambda: not any(p.connection for p in jobs.here._engine.links.peerings))
    return job


def _result(jobs: Jobs) -> Any:
    job = _job_running(jobs)
    jobs.taken().result("a", LARGE)
    return job


def _result_packing(jobs: Jobs) -> Any:
    job = _job_running(jobs)
    jobs.gates.at(payload, "pack")
    jobs.taken().result("a", LARGE)
    jobs.gates.arrived()
    return job


def _result_moving(jobs: Jobs) -> Any:
    jobs.proxy.rate = 2e6
    job = _result(jobs)
    until(lambda: job.progress.received)
    return job


def _result_building(jobs: Jobs) -> Any:
    job = _job_running(jobs)
    jobs.gates.at(Unpacker, "value")
    jobs.taken().result("a", LOOKED_AT)
    jobs.gates.arrived()
    return job


def _result_there(jobs: Jobs) -> Any:
    job = _result(jobs)
    until(lambda: job.results)
    return job


JOBS: dict[str, Callable[[Jobs], Any]] = {
    "nobody there": _job_nobody,
    "connecting": _job_connecting,
    "packing": _job_packing,
    "moving": _job_moving,
    "checking": _job_checking,
    "queued": _job_queued,
    "running": _job_running,
    "link lost": _job_lost,
    "result packing": _result_packing,
    "result moving": _result_moving,
    "result building": _result_building,
    "result there": _result_there,
}


@pytest.mark.parametrize("state", JOBS)
def test_a_job(state: str, gates: Gates) -> None:
    with contextlib.ExitStack() as stack:
        jobs = Jobs(stack, gates)
        job = JOBS[state](jobs)
        cancelled(job)
        gates.opened.set()
        gates._patched.undo()
        jobs.proxy.accept()
        jobs.proxy.rate, jobs.proxy.black_hole = None, False
        if jobs.host.jobs:
            until(lambda: jobs.host.count("forget"), 10, "its runner hears it")
            assert [said[0] for said in jobs.host.said] == ["submitted", "cancel", "forget"]
        clean(jobs.here, jobs.there)

        def answers(taken: Taken) -> None:
            taken.result("a", 2)
            taken.done()

        jobs.host.on_submitted = answers
        again = jobs.give()
        until(again.done, 10)
        assert again.result() == {"a": 2}
        clean(jobs.here, jobs.there)
        nothing_left(jobs.here, jobs.there)


@pytest.mark.parametrize("state", ["connecting", "answering", "link lost"])
def test_a_question_ends_with_its_peer(state: str, gates: Gates) -> None:
    """It is nobody's to cancel, and short; but it never keeps a peer from ending."""
    with contextlib.ExitStack() as stack:
        jobs = Jobs(stack, gates)
        answering = threading.Event()

        def facts() -> dict[str, Any]:
            answering.set()
            gates.opened.wait(20)
            return {}

        jobs.host.facts = facts  # type: ignore[method-assign]
        jobs.proxy.black_hole = state == "connecting"
        asked = jobs.here.enquire(jobs.remote)
        if state == "connecting":
            until(lambda: jobs.proxy.accepted)
        else:
            assert answering.wait(10)
        if state == "link lost":
            jobs.proxy.refuse()
            jobs.proxy.cut()
        assert not asked.cancel()
        threading.Thread(target=jobs.here.close).start()
        assert isinstance(asked.exception(LONG), PeerClosed)
        gates.opened.set()


@pytest.mark.parametrize("state", ["nobody there", "connecting", "linked"])
def test_a_probe(state: str) -> None:
    with Peer("here") as here, Peer("there") as there, there.listen("127.0.0.1:0") as channel:
        with Proxy(channel.address) as proxy:
            if state == "nobody there":
                proxy.refuse()
            proxy.black_hole = state == "connecting"
            probe = here.probe(proxy.address)
            if state == "linked":
                assert probe.hello(10).name == "there"
            elif state == "connecting":
                until(lambda: proxy.accepted)
            ended: list[BaseException] = []

            def asks() -> None:
                try:
                    probe.block("up", 1 << 40, None)
                except BaseException as error:
                    ended.append(error)

            thread = threading.Thread(target=asks)
            thread.start()
            if state == "linked":
                until(lambda: here.counters()["transfers"])
            here.close()
            thread.join(LONG)
            assert isinstance(ended[0], ZBusError)
            until(lambda: not there.counters()["transfers"], 5)


def test_nearly_all_ended_at_once(measured: Callable[[str], None]) -> None:
    """One of ten may be late: a machine that runs tests has other things to do as well."""
    if not TOOK:
        pytest.skip("nothing was cancelled before this (run the whole file)")
    took = sorted(TOOK)
    near_worst = took[len(took) * 9 // 10]
    measured(f"{len(took)} cancels: nine of ten in {near_worst:.3f} s, all in {took[-1]:.3f} s")
    assert near_worst < SOON
