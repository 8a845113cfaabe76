"""Every operation ends, whatever is raised where: on both sides, with one of zbus's own errors, and
nothing is left; the link and the next transfer go on, and the log has the traceback once."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from children import child, until
from ends import Ends, linked
from jobpair import Host, clean

from zbus import Operation, Peer, Remote, Settings, ZBusError, codecs
from zbus.engine import inflow as inflow_room
from zbus.engine import outflow, shm_lane, wrapping
from zbus.errors import InternalError, LocalProtocolError, PeerClosed, TransferRefused
from zbus.job import Request, Taken
from zbus.net import memory
from zbus.protocol import messages as m
from zbus.trust import Trust
from zbus.values import payload, streams, tensors
from zbus.values.unpack import Unpacker

MIB = 1 << 20
SOON = 10.0  # seconds; in truth milliseconds
ERRORS: tuple[BaseException, ...] = (
    ValueError("a mistake"),
    MemoryError(),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
)
SMALL = np.arange(500, dtype=np.uint8)
LARGE = np.tile(np.arange(251, dtype=np.uint8), 5 * MIB // 251)


class Bomb:
    """Raises once, when what it stands for is called for the nth time."""

    def __init__(self, error: BaseException, at: int = 1, only: Callable[..., bool] | None = None):
        self.error, self.left, self._only = type(error)(*error.args), at, only
        self.went_off = threading.Event()

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **named: Any) -> Any:
            if self._only is None or self._only(*args):
                self.left -= 1
                if self.left == 0:
                    self.went_off.set()
                    raise self.error
            return call(*args, **named)

        return called

    def logged(self, caplog: pytest.LogCaptureFixture) -> int:
        """How many tracebacks of it the log has."""
        return sum(self._is_in(r.exc_info[1]) for r in caplog.records if r.exc_info)

    def _is_in(self, error: BaseException | None) -> bool:
        while error is not None:
            if error is self.error:
                return True
            error = error.__cause__
        return False


Plant = Callable[[pytest.MonkeyPatch, Bomb], None]


def of(owner: Any, name: str, at: int = 1) -> Plant:
    """Where to plant one: in a function of a module or class, for its call of that number."""

    def plant(patched: pytest.MonkeyPatch, bomb: Bomb) -> None:
        bomb.left += at - 1
        patched.setattr(owner, name, bomb.before(getattr(owner, name)))

    return plant


def in_codec(name: str) -> Plant:
    def plant(patched: pytest.MonkeyPatch, bomb: Bomb) -> None:
        codec = codecs.CODECS["lz4"]
        broken = codec._replace(**{name: bomb.before(getattr(codec, name))})
        patched.setitem(codecs.CODECS, "lz4", broken)

    return plant


def hasher_in(room: Any, name: str = "") -> Plant:
    """Its making, or a method of it."""

    def plant(patched: pytest.MonkeyPatch, bomb: Bomb) -> None:
        true = room.xxhash.xxh3_128

        def made() -> Any:
            hasher = true()
            return SimpleNamespace(
                update=bomb.before(hasher.update) if name == "update" else hasher.update,
                digest=bomb.before(hasher.digest) if name == "digest" else hasher.digest,
            )

        fake = made if name else bomb.before(true)
        patched.setattr(room, "xxhash", SimpleNamespace(xxh3_128=fake))

    return plant


# Where it is raised, and by what kind of transfers that place is met: each a large or a small
# value, its quality, and whether it may go through memory.
RAW, LZ4, NEAR = (LARGE, "raw", False), (LARGE, "lz4", False), (LARGE, "raw", True)
INSIDE, INSIDE_LZ4 = (SMALL, "exact", False), (SMALL, "lz4", False)
PLACES: dict[str, tuple[Plant, tuple[tuple[Any, str, bool], ...]]] = {
    "pack": (of(payload, "pack"), (RAW, LZ4, NEAR, INSIDE)),
    "choose": (of(wrapping.codecs, "choose"), (RAW, LZ4, INSIDE_LZ4)),
    "cut": (of(streams.PackedSource, "cut"), (RAW, LZ4)),
    "read": (of(streams.PackedSource, "read"), (RAW, LZ4)),
    "layout": (of(streams.PackedSource, "layout"), (LZ4,)),
    "make the sender's hasher": (hasher_in(outflow), (RAW, NEAR, INSIDE)),
    "hash what goes": (hasher_in(outflow, "update"), (RAW, LZ4)),
    "digest what went": (hasher_in(outflow, "digest"), (RAW, LZ4)),
    "lend": (of(shm_lane.ShmLane, "lend"), (NEAR,)),
    "hold what is lent": (of(memory, "address_of"), (NEAR,)),
    "digest what is lent": (of(shm_lane, "sample"), (NEAR,)),
    "permit": (of(memory, "permit"), (NEAR,)),
    "the spec": (of(Unpacker, "__init__"), (RAW, LZ4, NEAR, INSIDE)),
    "allocate": (of(Unpacker, "allocate"), (RAW, LZ4, NEAR, INSIDE)),
    "view": (of(streams.ValueSink, "view"), (RAW,)),
    "write": (of(streams.ValueSink, "write"), (LZ4, INSIDE)),
    "decode": (in_codec("decode"), (LZ4,)),
    "make the receiver's hasher": (hasher_in(inflow_room), (RAW, NEAR, INSIDE)),
    "hash what comes": (of(streams.ValueSink, "digest"), (RAW, LZ4)),
    "digest what came": (hasher_in(inflow_room, "digest"), (RAW, LZ4)),
    "value": (of(Unpacker, "value"), (RAW, LZ4, NEAR, INSIDE)),
}
# What only would have saved something: the value comes all the same.
SAVINGS: dict[str, tuple[Plant, tuple[tuple[Any, str, bool], ...]]] = {
    "encode": (in_codec("encode"), (LZ4,)),
    "read what is lent": (of(shm_lane.ShmLane, "read"), (NEAR,)),
    "read memory": (of(memory, "read"), (NEAR,)),
    "read the lease": (of(memory, "read", at=3), (NEAR,)),  # after a value of two steps
    "digest what was read": (of(shm_lane, "sample", at=2), (NEAR,)),
}
# Before anything was offered: the other side knows nothing of it, and goes on waiting.
UNOFFERED = (
    "pack",
    "choose",
    "make the sender's hasher",
    "lend",
    "hold what is lent",
    "digest what is lent",
    "permit",
)


@pytest.fixture(scope="module", params=[True, False], ids=["memory", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    assert Trust().keys  # as every ComfyUI has them: who is near is known from the first value on
    settings = Settings(share_memory=request.param)
    with linked(settings, settings) as made:
        yield made


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with Two() as made:
        yield made


def ended(*operations: Operation[Any], within: float = SOON) -> list[Any]:
    """The errors that they end with, in time."""
    for operation in operations:
        until(operation.done, within, f"an end of what says {operation.note!r}")
    errors = [operation.error() for operation in operations]
    for operation, error in zip(operations, errors, strict=True):
        raised = operation._future.exception()
        assert raised is error, f"not one of zbus's own: {raised!r}"
    return errors


def told(error: ZBusError) -> None:
    """It says where, at what, and what to do (if not by itself then by the other side's words)."""
    assert error.peer and error.stage, error
    assert error.remedy or ". " in error.what, error


def left(*peers: Peer) -> None:
    """Nothing is."""

    def held() -> dict[str, int]:
        standing = ("addresses", "sessions", "connections", "registrations")
        return {
            f"{peer.name}: {name}": value
            for peer in peers
            for name, value in peer.counters().items()
            if value and name not in standing
        }

    until(lambda: not held(), SOON, f"nothing is left: {held()}")


@contextlib.contextmanager
def run(ends: Ends, channel: str) -> Iterator[tuple[Any, Any]]:
    """A channel of its own at each end: what ended the one before ends no other."""
    with ends.server.listen(ends.listening.address, channel=channel) as one:
        with ends.client.connect(ends.dialled.address, channel=channel) as other:
            yield one, other


def passes(one: Any, other: Any) -> None:
    send, receive = one.start_send("next"), other.start_receive()
    assert not any(ended(send, receive, within=10)) and receive.result() == "next"


# --- channels -------------------------------------------------------------------------------------


def _cases() -> Iterator[Any]:
    """Each place with two of the errors for each kind of value; all of them come everywhere."""
    number = 0
    for places in (PLACES, SAVINGS):
        for name, (_, kinds) in places.items():
            for kind in kinds:
                lane = "memory" if kind[2] else "small" if kind[0] is SMALL else kind[1]
                yield pytest.param(name, kind, number, id=f"{name}-{lane}")
                number += 1


def some_errors(number: int) -> Iterator[tuple[int, BaseException]]:
    for at in (number, number + 3):
        yield number + at, ERRORS[at % len(ERRORS)]


@pytest.mark.parametrize(("place", "kind", "number"), list(_cases()))
def test_a_channel(
    ends: Ends,
    place: str,
    kind: tuple[Any, str, bool],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    value, quality, needs_memory = kind
    plant = (PLACES | SAVINGS)[place][0]
    if needs_memory and not ends.server._engine.settings.share_memory:
        pytest.skip("by the socket")
    if not needs_memory and quality == "raw" and ends.server._engine.settings.share_memory:
        pytest.skip("through memory")
    if needs_memory and not memory.is_possible():
        pytest.skip("no such call here")
    for turn, error in some_errors(number):
        bomb = Bomb(error)
        with run(ends, f"{place} {turn}") as both:
            if needs_memory:
                for peer in (ends.server, ends.client):
                    for peering in peer._engine.links.peerings:
                        peering.shares = True
            sender, receiver = both if turn % 2 else both[::-1]
            passes(receiver, sender)
            caplog.clear()
            with monkeypatch.context() as patched:
                plant(patched, bomb)
                receive = receiver.start_receive(1)
                send = sender.start_send(value, 1, quality=quality)
                if place in UNOFFERED:
                    (failed,) = ended(send)
                    told(failed)
                    assert not receive.done()
                    send = sender.start_send(value, 1, quality=quality)
                    assert ended(send, receive) == [None, None]
                else:
                    failures = ended(send, receive)
                    if place in SAVINGS:
                        assert failures == [None, None]
                    else:
                        assert any(failures)
                        for failure in filter(None, failures):
                            told(failure)
                if receive.error() is None:
                    assert np.array_equal(receive.result(), value)
            assert bomb.went_off.is_set() and bomb.logged(caplog) == 1, caplog.text
            passes(sender, receiver)
        left(ends.server, ends.client)


@pytest.mark.parametrize("at", [1, 2], ids=["first", "second"])
@pytest.mark.parametrize("place", ["say who is near", "look who is near"])
def test_a_session_that_does_not_know_who_is_near(
    place: str, at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its values come all the same. A side that could not say it says it with the first value that
    is worth it; one that could not look sends its own by the socket."""
    if not memory.is_possible():
        pytest.skip("no such call here")
    assert Trust().keys
    name = {"say who is near": "near", "look who is near": "is_near"}[place]
    settings = Settings(share_memory=True)

    def near(ends: Ends) -> list[bool]:
        links = [peer._engine.links for peer in (ends.server, ends.client)]
        return sorted(peering.is_near for some in links for peering in some.peerings)

    for _, error in some_errors(at + len(place)):
        bomb = Bomb(error)
        caplog.clear()
        with monkeypatch.context() as patched:
            of(shm_lane.ShmLane, name, at)(patched, bomb)
            with linked(settings, settings) as ends:
                for sender, receiver in (ends[:2], ends[1::-1]):
                    send = sender.start_send(LARGE, 1, quality="raw")
                    receive = receiver.start_receive(1)
                    assert ended(send, receive) == [None, None]
                    assert np.array_equal(receive.result(), LARGE)
                assert bomb.went_off.is_set() and bomb.logged(caplog) == 1, caplog.text
                assert near(ends) == [place == "say who is near", True]
                left(ends.server, ends.client)


# Which message, and whether it is the sender's of the value.
SAID = [
    (m.Offer, True),
    (m.Await, False),
    (m.Grant, False),
    (m.Finish, True),
    (m.Stored, False),
    (m.Announce, True),
]


@pytest.mark.parametrize("where", ["say", "hear"])
@pytest.mark.parametrize(("kind", "by_sender"), SAID, ids=[kind.__name__ for kind, _ in SAID])
def test_a_message_that_cannot_be_said_or_taken(
    kind: type[m.Message], by_sender: bool, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session ends, on both sides, and the next one is good."""
    settings = Settings(share_memory=False)
    with linked(settings, settings) as ends:
        for number, error in enumerate(ERRORS):
            sides = [(ends.server, ends.listening), (ends.client, ends.dialled)]
            with run(ends, f"{number}") as both:
                one, other = (0, 1) if number % 2 else (1, 0)
                sender, receiver = both[one], both[other]
                if kind is not m.Announce:
                    passes(sender, receiver)
                by = sides[one if by_sender else other][0]
                at = sides[other if by_sender else one][0]
                until(lambda p=by: p._engine.links.peerings, SOON)  # type: ignore[misc]
                with monkeypatch.context() as patched:
                    if where == "say":
                        bomb = Bomb(error, only=lambda message, *_: isinstance(message, kind))
                        for peering in by._engine.links.peerings:
                            session = peering.session
                            patched.setattr(session, "send", bomb.before(session.send))
                    else:
                        bomb = Bomb(error)
                        handlers = at._engine.links.handlers
                        patched.setitem(handlers, kind, bomb.before(handlers[kind]))
                    send = sender.start_send(LARGE, 1, quality="raw")
                    receive = receiver.start_receive(1)
                    if kind is m.Announce:
                        with run(ends, "late"):
                            until(bomb.went_off.is_set, SOON)
                        until(lambda a=send, b=receive: a.done() or b.done(), SOON)  # type: ignore[misc]
                        for one_of in (send, receive):  # the other one had not met it yet
                            one_of.cancel()
                    failures = ended(send, receive)
                    assert bomb.went_off.is_set()
                    for failure in filter(None, failures):
                        assert failure.stage and (failure.peer or kind is m.Announce), failure
            with run(ends, f"{number} anew") as both:
                passes(*both)
            left(ends.server, ends.client)


# --- jobs -----------------------------------------------------------------------------------------


class Two:
    """One that gives jobs, and one that runs them: their values are their results."""

    def __init__(self) -> None:
        settings = Settings(share_memory=False)
        self.here, self.there = Peer("here", settings=settings), Peer("there", settings=settings)
        address = self.there.serve(Host(_echo))
        self.remote = Remote(address, self.there.own.instance.hex(), "there")

    def __enter__(self) -> Two:
        return self

    def __exit__(self, *_: object) -> None:
        self.here.close()
        self.there.close()

    def give(self, value: Any, quality: str = "raw", **told: Any) -> Any:
        return self.here.submit(
            self.remote, Request({}, values={"a": value}, quality=quality), **told
        )


def _echo(job: Taken) -> None:
    job.started()
    for name, value in job.request.values.items():
        job.result(name, value)
    job.done()


@pytest.mark.parametrize("at", [1, 2, 3], ids=["submit", "result", "end"])
@pytest.mark.parametrize("place", [*PLACES, *SAVINGS])
def test_a_job(
    two: Two,
    place: str,
    at: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plant, kinds = (PLACES | SAVINGS)[place]
    kinds = tuple(kind for kind in kinds if not kind[2])
    if not kinds:
        pytest.skip("through memory")
    for number, (value, quality, _) in enumerate(kinds):
        for _, error in some_errors(number + at + len(place)):
            bomb = Bomb(error, at)
            caplog.clear()
            with monkeypatch.context() as patched:
                plant(patched, bomb)
                job = two.give(value, quality)
                (failed,) = ended(job)
            if failed is not None:
                assert failed.peer and failed.stage, failed
            else:
                assert np.array_equal(job.result()["a"], value)
            if bomb.went_off.is_set():
                assert bomb.logged(caplog) == 1, caplog.text
                # An end that cannot be sent as it is, is sent as one that can.
                assert failed is not None or place in SAVINGS or at > 1, "it went wrong"
            clean(two.here, two.there)
            again = two.give(SMALL)
            assert ended(again) == [None] and np.array_equal(again.result()["a"], SMALL)
            clean(two.here, two.there)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_job_of_which_nothing_can_be_told(two: Two, error: BaseException) -> None:
    """Not its result, and not its end either: then its session ends."""
    true, done = payload.pack, threading.Event()

    def pack(*args: Any) -> Any:
        if done.is_set():
            raise error
        return true(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(payload, "pack", pack)
        hosts = two.there._engine.job_service.taking
        taken: list[Taken] = []
        patched.setattr(hosts.host, "on_submitted", taken.append)
        job = two.give(SMALL)
        until(lambda: taken)
        done.set()
        _echo(taken[0])
        (failed,) = ended(job)
        assert failed is not None and failed.peer == "there"
    clean(two.here, two.there)
    assert ended(two.give(SMALL)) == [None]


# --- the I/O thread -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["poll", "send"])
def test_the_io_thread_itself(
    where: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """All that is open ends with one text, and the log says why; the other side hears it too."""
    with linked() as ends, Two() as two:
        host = Host()  # which never says anything
        address = two.there.serve(host)
        passes(ends.listening, ends.dialled)
        job = two.here.submit(Remote(address), Request({}))
        until(lambda: host.jobs)
        waiting = threading.Event()
        host.facts = lambda: bool(waiting.wait(20)) and {}  # type: ignore
        asked = two.here.enquire(Remote(address))
        receive = ends.listening.start_receive()
        other = two.here.listen("127.0.0.1:0")
        mine = other.start_receive()
        until(lambda: two.here._engine.job_service.enquiries._questions)
        transport = two.here._engine.transport
        bomb = Bomb(error)
        setattr(transport, where, bomb.before(getattr(transport, where)))
        two.here._engine.post(lambda: None)
        if where == "send":
            two.here.set_activity("something to say")
        texts = {str(e.what) for e in ended(job, mine)}
        texts.add(asked.exception(SOON).what)  # type: ignore[union-attr]
        assert len(texts) == 1 and "the I/O thread has failed" in texts.pop()
        assert bomb.logged(caplog) == 1
        two.here._engine._thread.join(SOON)
        with pytest.raises(PeerClosed):
            two.here.counters()
        until(lambda: not two.there.counters()["sessions"], SOON, "the other side knows of it")
        waiting.set()
        assert not receive.done(), "other peers go on"
        ends.dialled.start_send(1)
        assert ended(receive) == [None]


# --- texts ----------------------------------------------------------------------------------------


def test_a_torch_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libcudart.so.12: cannot open shared object file\nand more")

    with monkeypatch.context() as patched:
        patched.setattr(tensors.importlib, "import_module", broken)
        with pytest.raises(TransferRefused) as raised:
            tensors.find_dtype("float32")
    text = str(raised.value)
    assert "torch cannot be loaded here: libcudart.so.12: cannot open shared" in text
    assert "python -c 'import torch' must work" in text and "and more" not in text


CHILD_WITHOUT_TORCH = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from zbus import Peer, ZBusError
    with Peer("child") as peer, peer.connect(sys.argv[1]) as channel:
        try:
            print("got", channel.receive(0, timeout=20), flush=True)
        except ZBusError as error:
            print("ended", type(error).__name__, error, flush=True)
        print("next", channel.receive(0, timeout=20), flush=True)
"""


def test_a_receiver_whose_torch_cannot_be_loaded(tmp_path: Any) -> None:
    (tmp_path / "torch").mkdir()
    broken = 'raise OSError("libcudart.so.12: cannot open shared object file")'
    (tmp_path / "torch" / "__init__.py").write_text(broken)
    with Peer("here") as here, here.listen("127.0.0.1:0") as channel:
        with child(CHILD_WITHOUT_TORCH, channel.address, tmp_path) as other:
            send = channel.start_send(torch.arange(10.0), 0)
            said = other.line("ended")
            (failed,) = ended(send)
            for text in (said, str(failed)):
                assert "torch cannot be loaded here: libcudart.so.12" in text
                assert "must work" in text
            channel.start_send("text", 0)
            assert "text" in other.line("next")


def test_no_memory_reads_well() -> None:
    class OutOfMemoryError(RuntimeError):
        """torch's."""

    for error in (
        MemoryError(),
        MemoryError("Unable to allocate 3 GiB"),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 ..."),
    ):
        made = InternalError.of(error)
        assert made.what.startswith("out of memory") and "send less at once" in made.remedy
        assert "Error" not in str(made)


# --- the end of the interpreter -------------------------------------------------------------------


LATE = """
    import threading, sys
    import numpy as np
    from zbus import Peer
    a, b = Peer("A"), Peer("B")
    listening = a.listen("127.0.0.1:0")
    dialled = b.connect(listening.address)
    main = threading.main_thread()
    def work():
        main.join()
        receive = listening.start_receive(0)
        dialled.send(np.zeros(int(sys.argv[1]), np.uint8), 0, quality=sys.argv[2])
        print("sent", len(receive.result()), flush=True)
    threading.Thread(target=work).start()
"""


@pytest.mark.parametrize("quality", ["exact", "raw", "lz4"])
@pytest.mark.parametrize("share", ["0", "1"])
def test_a_thread_that_sends_when_the_main_thread_is_done(quality: str, share: str) -> None:
    with child(LATE, 2 * MIB, quality, env={"ZBUS_SHARE_MEMORY": share}) as late:
        assert f"sent {2 * MIB}" in late.rest(20)
        assert late.process.returncode == 0


# --- callbacks ------------------------------------------------------------------------------------


def _waits(two: Two, ends: Ends) -> dict[str, Callable[[], Any]]:
    open_ones = ends.listening.start_receive()
    return {
        "result": open_ones.result,
        "send": lambda: ends.listening.send(1, timeout=5),
        "receive": lambda: ends.listening.receive(timeout=5),
        "listen": lambda: two.here.listen("127.0.0.1:0"),
        "connect": lambda: two.here.connect("127.0.0.1:1"),
        "counters": two.here.counters,
        "enquire": lambda: two.here.enquire(two.remote),
        "job": lambda: two.give(1).result(),
    }


def test_a_callback_that_would_wait(two: Two) -> None:
    """It raises at once, in each kind of callback."""
    said: dict[tuple[str, str], str] = {}

    def tries(kind: str, waits: dict[str, Callable[[], Any]]) -> None:
        for name, call in waits.items():
            try:
                call()
            except LocalProtocolError as error:
                said.setdefault((kind, name), str(error))
            except BaseException as error:
                said.setdefault((kind, name), repr(error))

    with linked() as ends:
        waits = _waits(two, ends)
        began = time.monotonic()
        with run(ends, "other") as (one, other):
            receive = one.start_receive(progress=lambda *_: tries("progress", waits))
            receive.add_done_callback(lambda _: tries("done", waits))
            other.send(LARGE, timeout=10)
            every = {(kind, name) for kind in ("progress", "done") for name in waits}
            until(lambda: said.keys() >= every, 10, "all of them")
            # Of another peer, whose callbacks wait for nobody: they come one kind after the other.
            two.give(1, on_change=lambda job: tries("change", waits)).result()
            until(lambda: said.keys() >= {("change", name) for name in waits}, 10, "all of them")
        assert time.monotonic() - began < 10
        # An operation that has failed by the time that it is asked for need not be waited for.
        at_once = ("a call that waits", "OperationPending")
        assert {text for text in said.values() if not any(a in text for a in at_once)} == set()
        assert sum("a call that waits" in text for text in said.values()) > len(said) // 2


def test_a_callback_that_blocks_blocks_nothing_else(two: Two) -> None:
    """But that peer's callbacks behind it, each of which comes in the end."""
    go_on, reached, heard = threading.Event(), threading.Event(), threading.Event()

    def blocks(*_: Any) -> None:
        reached.set()
        assert go_on.wait(30)

    with linked() as ends:
        for plant in ("progress", "done", "change", "preview"):
            go_on.clear()
            reached.clear()
            heard.clear()
            began = time.monotonic()
            if plant in ("change", "preview"):
                taking = two.there._engine.job_service.taking
                with pytest.MonkeyPatch.context() as patched:

                    def preview(job: Taken) -> None:
                        job.started()
                        job.preview("1", "image/png", b"x")
                        _echo(job)

                    patched.setattr(taking.host, "on_submitted", preview)
                    job = two.give(SMALL, **{f"on_{plant}": blocks})
                    assert reached.wait(10)
                    assert ended(job) == [None]
            else:
                receive = ends.listening.start_receive(
                    progress=blocks if plant == "progress" else None
                )
                if plant == "done":
                    receive.add_done_callback(blocks)
                ends.dialled.send(LARGE, timeout=10)
                assert reached.wait(10) and ended(receive) == [None]
            receive = ends.listening.start_receive(timeout=10)
            receive.add_done_callback(lambda _: heard.set())
            ends.dialled.send(LARGE, timeout=10)
            assert ended(receive) == [None]
            assert ended(two.give(LARGE)) == [None]
            assert two.here.enquire(two.remote).result(5)["jobs"]
            if plant in ("progress", "done"):
                assert not heard.is_set(), "it waits behind the other of that peer"
            else:
                assert heard.wait(10), "another peer's waits for nothing"
            assert time.monotonic() - began < 10
            go_on.set()
            assert heard.wait(10)


def test_what_a_callback_raises_is_logged(
    two: Two, ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    for number, error in enumerate(ERRORS):
        bombs = [Bomb(error) for _ in range(3)]
        nothing = lambda *_: None  # noqa: E731
        with run(ends, f"callbacks {number}") as (one, other):
            receive = one.start_receive(progress=bombs[0].before(nothing))
            receive.add_done_callback(bombs[1].before(nothing))
            other.send(SMALL, timeout=10)
            assert ended(receive) == [None]
            assert ended(two.give(1, on_change=bombs[2].before(nothing))) == [None]
            for bomb in bombs:
                until(lambda b=bomb: b.logged(caplog) == 1, 5, "in the log once")
            passes(one, other)
