"""What a link can meet, with real peers: each has its own text, within its time, and no leak."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq
from children import LISTENER, child, until
from ends import linked
from proxy import Proxy

from zbus import Operation, Peer, Settings, ZBusError, codecs
from zbus.errors import (
    Cancelled,
    DialledSelf,
    InvalidAddress,
    InvalidOrder,
    ListenRefused,
    NameNotResolved,
    OperationPending,
    PeerClosed,
    PeerGone,
    PeerRestarted,
    PortInUse,
    RunEnded,
    TimedOut,
    TransferRefused,
    VersionMismatch,
)
from zbus.net.places import Peering
from zbus.protocol import handshake, messages

pytestmark = pytest.mark.usefixtures("by_socket")

MIB = 1 << 20


@pytest.fixture
def here() -> Iterator[Peer]:
    with Peer("here") as peer:
        yield peer


@pytest.fixture
def there() -> Iterator[Peer]:
    with Peer("there") as peer:
        yield peer


def noted(operation: Operation[Any], *texts: str, within: float = 5.0) -> str:
    seen = lambda: f"{texts} in a note: {operation.note!r}"  # noqa: E731
    until(lambda: all(t in operation.note for t in texts), within, seen)
    return operation.note


def error(operation: Operation[Any], within: float = 5.0) -> Any:
    """The error that it ends with, in time."""
    until(operation.done, within, f"an end of what says {operation.note!r}")
    with pytest.raises(ZBusError) as raised:
        operation.result()
    return raised.value


# --- addresses -----------------------------------------------------------------------------------


def test_a_name_that_is_not_known(here: Peer) -> None:
    with here.connect("no-such-host.invalid:8282") as channel:
        failed = error(channel.start_receive())
    assert isinstance(failed, NameNotResolved)
    assert '"no-such-host.invalid" is not known' in str(failed) and "spelling" in str(failed)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "[::]", "example.org"])
def test_no_plain_listener_off_the_loopback(here: Peer, host: str) -> None:
    with pytest.raises(ListenRefused, match="ssh -N -L 127.0.0.1:8282:127.0.0.1:8282 "):
        here.listen(f"{host}:8282")


@pytest.mark.parametrize("address", ["8282", "localhost:", "x:99999", "http://x:1/"])
def test_an_address_that_is_none(here: Peer, address: str) -> None:
    for call in (here.listen, here.connect):
        with pytest.raises(InvalidAddress, match="Write it as"):
            call(address)


def test_orders_below_0(here: Peer) -> None:
    with here.listen("127.0.0.1:0") as channel:
        for order in (-1, True, 1.0, "1"):
            with pytest.raises(InvalidOrder):
                channel.start_receive(order)  # type: ignore[arg-type]


def test_a_port_in_use_by_another_peer_names_it(here: Peer) -> None:
    with child(LISTENER, "127.0.0.1:0") as other:
        address = other.line("listening").split()[1]
        with pytest.raises(PortInUse) as raised:
            here.listen(address)
    assert f"(pid {other.pid})" in str(raised.value)
    assert "both sides are Server: set one to Client" in str(raised.value)


def test_a_port_in_use_by_this_process(here: Peer, there: Peer) -> None:
    with here.listen("127.0.0.1:0") as channel:
        with pytest.raises(PortInUse, match="this very ComfyUI"):
            there.listen(channel.address)
        here.listen(channel.address).close()  # its own is no conflict


def test_both_sides_client(here: Peer, addr: str) -> None:
    with here.connect(addr) as channel:
        operation = channel.start_receive()
        note = noted(operation, "nobody listens on")
    assert "press Run on the other side" in note and "with listen: before its peer" in note


def test_a_server_that_comes_late(here: Peer, there: Peer, addr: str) -> None:
    with here.connect(addr) as dialled:
        receive = dialled.start_receive(timeout=20)
        noted(receive, "nobody listens on")
        with there.listen(addr) as listening:
            began = time.monotonic()
            listening.send("late", timeout=20)
            assert receive.result() == "late"
            assert time.monotonic() - began < 2  # it redials each half second


def test_dialling_oneself(here: Peer) -> None:
    with here.listen("127.0.0.1:0") as listening, here.connect(listening.address) as dialled:
        failed = error(dialled.start_receive())
        assert isinstance(failed, DialledSelf) and "other ComfyUI" in str(failed)
        waiting = listening.start_receive(timeout=0.2)
        assert isinstance(error(waiting), TimedOut)  # the listener is not harmed


def test_versions_that_do_not_fit(here: Peer, there: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    links = there._engine.links
    links._greetings._own = replace(links._greetings._own, versions=(7, 9))
    check = handshake.Handshake._check
    with here.listen("127.0.0.1:0") as listening, there.connect(listening.address) as dialled:
        # The listener sees versions 7 to 9 and speaks 1.
        monkeypatch.setattr(
            handshake.Handshake, "_check", lambda s, p: None if s.dialled else check(s, p)
        )
        failed = error(dialled.start_receive())
    assert isinstance(failed, VersionMismatch)
    assert "7 to 9" in str(failed) and "Update zbus on" in str(failed)


# --- two clients, and who is there ---------------------------------------------------------------


def test_two_clients_on_one_address(here: Peer, there: Peer) -> None:
    with Peer("third") as third, here.listen("127.0.0.1:0") as listening:
        with there.connect(listening.address) as first:
            send = listening.start_send(1)
            assert first.receive(timeout=10) == 1
            send.result()
            with third.connect(listening.address) as second:
                operation = second.start_receive(timeout=20)
                assert "from there" in noted(operation, "here: busy with the run of ")
                first.close()
                listening.close()
                with here.listen(listening.address) as again:
                    again.send(2, timeout=10)
                    assert operation.result() == 2


def test_a_peer_that_is_idle_or_busy(here: Peer, there: Peer) -> None:
    with here.listen("127.0.0.1:0", channel="another") as listening:
        with there.connect(listening.address) as dialled:
            operation = dialled.start_receive()
            noted(operation, 'here waits on channel "another"')  # it is connected
            listening.close()
            noted(operation, "press Run on here: it is connected and idle")
            here.set_activity("KSampler 14/20")
            noted(operation, "here is connected and busy: KSampler 14/20")


def test_other_channels(here: Peer, there: Peer) -> None:
    with here.listen("127.0.0.1:0", channel="a") as listening:
        with there.connect(listening.address, channel="b") as dialled:
            mine, theirs = listening.start_receive(), dialled.start_receive()
            noted(mine, 'waits on channel "b", not "a"')
            noted(theirs, 'waits on channel "a", not "b"')


# --- ends of processes ---------------------------------------------------------------------------

SENDER = """
    import sys
    from zbus import Peer
    peer = Peer("listener", instance="the same after a restart")
    channel = peer.listen(sys.argv[1])
    print("listening", channel.address, flush=True)
    channel.send("hello")
    print("sent", flush=True)
    if len(sys.argv) > 2:
        peer.listen("127.0.0.1:0").start_receive()
        sys.exit(0)  # with everything open
    sys.stdin.read()
"""


def test_a_listener_that_is_killed(here: Peer) -> None:
    with child(SENDER, "127.0.0.1:0") as listener:
        address = listener.line("listening").split()[1]
        with here.connect(address) as channel:
            assert channel.receive(timeout=20) == "hello"
            operation = channel.start_receive()
            listener.kill()
            failed = error(operation, within=1.5)
    assert isinstance(failed, PeerGone) and failed.peer == "listener"
    assert f"its process (pid {listener.pid}) has ended" in str(failed)


def test_a_listener_that_was_restarted(here: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen from another machine, where no pid tells."""
    monkeypatch.setattr("zbus.net.peerings.process_start", lambda pid: None)
    with child(SENDER, "127.0.0.1:0") as old:
        address = old.line("listening").split()[1]
        with here.connect(address) as channel:
            assert channel.receive(timeout=20) == "hello"
            operation = channel.start_receive()
            old.kill()
            noted(operation, "link to listener lost")
            with child(SENDER, address) as new:
                new.line("listening")
                failed = error(operation, within=10)
            assert isinstance(failed, PeerRestarted)
            assert "was restarted" in str(
                failed
            ) and "Run again (with Send and Receive: both" in str(failed)


def test_a_process_that_ends_with_everything_open(here: Peer) -> None:
    """It says goodbye, and ends in under a second."""
    with child(SENDER, "127.0.0.1:0", "leave") as listener:
        address = listener.line("listening").split()[1]
        with here.connect(address) as channel:
            assert channel.receive(timeout=20) == "hello"
            operation = channel.start_receive()
            listener.line("sent")
            began = time.monotonic()
            assert listener.process.wait(10) == 0
            assert time.monotonic() - began < 2
            failed = error(operation)
    # Its goodbye, or its pid, whichever is seen first.
    assert isinstance(failed, PeerGone)
    assert "said goodbye: the process ends" in str(failed) or "has ended" in str(failed)


def test_a_process_that_ends_while_it_dials(addr: str) -> None:
    code = """
        import sys, time
        from zbus import Peer
        peer = Peer()
        for address in (sys.argv[1], "no-such-host.invalid:1", "10.255.255.1:9"):
            peer.connect(address).start_receive()
        peer.listen("127.0.0.1:0").start_send("x")
        print(time.monotonic(), flush=True)
    """
    with child(code, addr) as process:
        began = float(process.line())
        assert process.process.wait(10) == 0
        assert time.monotonic() - began < 2, process.rest()


def test_close_with_operations_open(here: Peer, there: Peer, addr: str) -> None:
    """In under a second, in every state; each operation ends, and the other side hears of it."""
    direct = here.listen("127.0.0.1:0")
    with here.listen("127.0.0.1:0") as listening, Proxy(listening.address) as proxy:
        other = there.connect(direct.address)
        until(lambda: direct.peer and other.peer)
        waiting = direct.start_receive()
        dialled = there.connect(proxy.address)
        proxy.rate = 4e6
        mine = [there.connect(addr).start_receive(), there.listen("127.0.0.1:0").start_send(1)]
        receive = listening.start_receive()
        mine.append(dialled.start_send(torch.ones(8 * MIB), quality="raw"))
        until(lambda: receive.done_bytes > 0)
        began = time.monotonic()
        there.close()
        assert time.monotonic() - began < 1.2
        for operation in mine:
            assert isinstance(error(operation, 0.1), PeerClosed)
        failed = error(waiting)
        assert isinstance(failed, PeerGone) and "said goodbye" in str(failed)
        # On the throttled link the goodbye is behind a second of data, and may not get through.
        receive.cancel()
        with pytest.raises(PeerClosed):
            there.connect(addr)
        assert isinstance(error(dialled.start_receive(), 1), PeerClosed)
        dialled.close()
        there.close()  # again: no harm


def test_nothing_leaks() -> None:
    def once() -> None:
        with Peer() as a, Peer() as b, a.listen("127.0.0.1:0") as listening:
            with b.connect(listening.address) as dialled:
                send = dialled.start_send([1, torch.ones(3)])
                listening.receive(timeout=20)
                send.result()

    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    once()
    fds, threads = held()
    began = time.monotonic()
    for _ in range(50):
        once()
    assert time.monotonic() - began < 45
    # A look at the free memory has a file open for a moment.
    until(lambda: held()[0] <= fds and held()[1] <= threads, 5, lambda: (held(), fds, threads))


def test_channels_of_one_peer_do_not_leak(here: Peer, there: Peer) -> None:
    with here.listen("127.0.0.1:0") as listening:
        address = listening.address
    for i in range(30):
        with here.listen(address) as listening, there.connect(address) as dialled:
            send = listening.start_send(i)
            assert dialled.receive(timeout=10) == i
            send.result()
    for peer in (here, there):
        until(lambda p=peer: not p.counters()["registrations"], 5, "no registration left")
        counters = peer.counters()
        stay = ("addresses", "sessions", "connections")
        assert [counters.pop(name) for name in stay] == [1, 1, 1]
        assert not any(counters.values()), counters


# --- cancel --------------------------------------------------------------------------------------


def _cancelled(operation: Operation[Any]) -> None:
    timer = threading.Thread(target=operation.cancel)
    began = time.monotonic()
    timer.start()
    assert isinstance(error(operation), Cancelled)
    assert time.monotonic() - began < 2  # in truth milliseconds: the promise is half a second
    timer.join()


@pytest.mark.parametrize("what", ["send", "receive"])
@pytest.mark.parametrize("kind", ["listen", "connect"])
def test_cancel_while_waiting_for_the_peer(here: Peer, kind: str, what: str, addr: str) -> None:
    with getattr(here, kind)(addr) as channel:
        operation = channel.start_send(1) if what == "send" else channel.start_receive()
        noted(operation, addr)
        _cancelled(operation)
        # The address is usable at once.
        assert isinstance(error(channel.start_receive(timeout=0.05)), TimedOut)


def _knows_of_an_operation(peer: Peer) -> bool:
    """Whether it has been told of one that the other side has open."""
    return any(
        registration.remote is not None for registration in peer._engine.channels.registrations
    )


@pytest.mark.parametrize("what", ["send", "receive"])
def test_cancel_while_waiting_for_the_order(here: Peer, there: Peer, what: str) -> None:
    with here.listen("127.0.0.1:0") as listening, there.connect(listening.address) as dialled:
        until(lambda: listening.peer and dialled.peer)
        operation = dialled.start_send(1, 5) if what == "send" else dialled.start_receive(5)
        noted(operation, "has not come to this yet")
        # What the other side begins while it does not know of the cancel is a mismatch, rightly.
        until(lambda: _knows_of_an_operation(here))
        _cancelled(operation)
        until(lambda: not _knows_of_an_operation(here))
        send = dialled.start_send("next", 6)
        assert listening.receive(6, timeout=10) == "next"
        send.result()


@pytest.mark.parametrize("sender", ["dialler", "listener"])
def test_what_a_link_delivers_is_known_to_its_next_session(sender: str) -> None:
    """Else the first value of each goes by a codec for a link ten times as fast."""
    short = Settings(share_memory=False, linger=0.2)
    with linked(short, short) as ends:
        ends.proxy.rate = 4e6
        mine = ends.client if sender == "dialler" else ends.server

        def session() -> Peering:
            return until(lambda: next(iter(mine._engine.links.peerings), None))

        with ends.client.connect(ends.proxy.address, channel="a") as dialled:
            with ends.server.listen(ends.listening.address, channel="a") as listening:
                pair = (dialled, listening) if sender == "dialler" else (listening, dialled)
                receive = pair[1].start_receive()
                pair[0].start_send(torch.rand(MIB), quality="raw", timeout=30).result()
                receive.result()
                first = session()
                assert first.pace.found == pytest.approx(4e6, rel=0.5)
        ends.dialled.close()
        until(lambda: first not in mine._engine.links.peerings, what="the session is over")
        with ends.client.connect(ends.proxy.address):
            assert session().pace.rate == first.pace.found and session().pace.found is None


@pytest.mark.parametrize("which", ["send", "receive"])
@pytest.mark.parametrize("sender", ["dialler", "listener"])
@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_cancel_in_mid_transfer(
    here: Peer, there: Peer, sender: str, which: str, codec: str
) -> None:
    with here.listen("127.0.0.1:0") as listening, Proxy(listening.address) as proxy:
        proxy.rate = 8e6
        with there.connect(proxy.address) as dialled:
            pair = (dialled, listening) if sender == "dialler" else (listening, dialled)
            receive = pair[1].start_receive()
            send = pair[0].start_send(torch.rand(12 * MIB), quality=codec)
            until(lambda: receive.done_bytes > 0)
            mine, other = (send, receive) if which == "send" else (receive, send)
            _cancelled(mine)
            failed = error(other)
            assert isinstance(failed, (RunEnded, TransferRefused))
            assert "cancelled" in str(failed) and failed.peer
            # The link goes on, and nothing of the old value is in the next.
            proxy.rate = None
            receive = pair[1].start_receive(timeout=20)
            pair[0].send("next", timeout=20)
            assert receive.result() == "next"
    for peer in (here, there):
        counters = peer.counters()
        assert not counters["memory"] and not counters["transfers"], counters


def test_channel_cancel(here: Peer, addr: str) -> None:
    with here.listen(addr) as channel:
        operation = channel.start_receive()
        channel.cancel()
        assert isinstance(error(operation), Cancelled)


def test_the_other_run_ends(here: Peer, there: Peer) -> None:
    for outcome, text in (
        ("failed", "the other workflow failed: out of memory"),
        ("ok", "has finished"),
    ):
        with here.listen("127.0.0.1:0") as listening, there.connect(listening.address) as dialled:
            until(lambda a=listening, b=dialled: a.peer and b.peer)
            operation = dialled.start_receive()
            noted(operation, "has not come to this yet")
            listening.close(outcome, "out of memory" if outcome == "failed" else "")
            failed = error(operation)
            assert isinstance(failed, RunEnded) and text in str(failed)


# --- time, progress, memory ----------------------------------------------------------------------


def test_a_timeout_says_what_was_waited_for(here: Peer, addr: str) -> None:
    with here.connect(addr) as channel:
        operation = channel.start_receive(timeout=0.6)
        failed = error(operation)
        assert isinstance(failed, TimedOut) and isinstance(failed, TimeoutError)
        assert "nobody listens on" in str(failed) and "receive any" in str(failed)
        began = time.monotonic()
        with pytest.raises(TimedOut):
            channel.send(1, timeout=0.0)
        assert time.monotonic() - began < 1


def test_a_second_operation(here: Peer) -> None:
    with here.listen("127.0.0.1:0") as channel:
        first = channel.start_receive()
        failed = error(channel.start_send(1))
        assert isinstance(failed, OperationPending) and "receive any" in str(failed)
        assert not first.done()


def test_progress(here: Peer, there: Peer) -> None:
    seen: dict[str, list[tuple[int, int]]] = {"send": [], "receive": []}

    def broken(done: int, total: int) -> None:
        seen["receive"].append((done, total))
        raise RuntimeError("the caller's own mistake")

    with here.listen("127.0.0.1:0") as listening, Proxy(listening.address) as proxy:
        proxy.rate = 30e6
        with there.connect(proxy.address) as dialled:
            value = torch.rand(3 * MIB)
            receive = listening.start_receive(timeout=30, progress=broken)
            send = dialled.start_send(
                value, quality="raw", timeout=30, progress=lambda *a: seen["send"].append(a)
            )
            note = noted(receive, " of 12.0 MiB, ", "B/s, ", " s left")
            assert torch.equal(receive.result(), value), note
            send.result()
            for calls in seen.values():  # told in a thread of its own, which may come later
                until(lambda c=calls: c and c[-1] == (12 * MIB, 12 * MIB), 5, str(calls))
    for calls in seen.values():
        assert len(calls) >= 3 and calls == sorted(calls)
        assert all(0 <= c[0] <= c[1] for c in calls)


def test_a_value_beyond_the_memory(there: Peer) -> None:
    with Peer("small", settings=Settings(memory=MIB)) as small:
        with small.listen("127.0.0.1:0") as listening, there.connect(listening.address) as dialled:
            receive = listening.start_receive(timeout=20)
            send = dialled.start_send(torch.ones(MIB), timeout=20)
            for failed in (error(receive), error(send)):
                assert isinstance(failed, TransferRefused)
                assert "4.0 MiB" in str(failed) and "1.0 MiB may be taken here" in str(failed)
            receive = listening.start_receive(timeout=20)
            dialled.send(torch.ones(MIB // 8), timeout=20)
            assert receive.result().shape == (MIB // 8,)
        assert small.counters()["memory"] == 0


# --- asyncio -------------------------------------------------------------------------------------


def test_asyncio(here: Peer, there: Peer) -> None:
    async def both() -> list[Any]:
        return await asyncio.gather(
            dialled.start_receive(timeout=20), listening.start_send([1, 2], timeout=20)
        )

    async def impatient() -> None:
        await asyncio.wait_for(operation, 0.1)

    with here.listen("127.0.0.1:0") as listening, there.connect(listening.address) as dialled:
        assert asyncio.run(both()) == [[1, 2], None]
        operation = dialled.start_receive()
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(impatient())
        assert isinstance(error(operation), Cancelled)
        # One that nobody waits for is not harmed by a loop that ends.
        other = dialled.start_receive(2, timeout=20)
        listening.send("after", 2, timeout=20)
        assert other.result() == "after"


def test_asyncio_errors(here: Peer, addr: str) -> None:
    async def wait() -> None:
        with here.connect(addr) as channel:
            await channel.start_receive(timeout=0.05)

    with pytest.raises(TimedOut):
        asyncio.run(wait())


def test_an_error_leaves_the_with_block(here: Peer, there: Peer) -> None:
    with here.listen("127.0.0.1:0") as listening:
        operation = listening.start_receive()
        with contextlib.suppress(ValueError), there.connect(listening.address):
            until(lambda: listening.peer)
            raise ValueError("a node failed")
        failed = error(operation)
    assert "the other workflow failed: ValueError: a node failed" in str(failed)


def test_the_log_of_a_quiet_day_is_quiet(
    here: Peer, there: Peer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with here.listen("127.0.0.1:0") as listening, there.connect(listening.address) as dialled:
        send = listening.start_send(b"x" * 200_000)
        dialled.receive(timeout=10)
        send.result()
    here.close()
    there.close()
    assert [r for r in caplog.records if r.levelname in ("WARNING", "ERROR", "CRITICAL")] == []


def test_somebody_dials_the_moment_the_port_opens(
    addr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dialler knocks twice a second: its connection may stand before `bind` has returned."""
    bind, knocked = zmq.Socket.bind, threading.Event()

    def slow_bind(self: zmq.Socket[bytes], address: str) -> None:
        bind(self, address)
        if address.endswith(addr):
            assert knocked.wait(5)

    with Peer("late") as late, zmq.Context() as context, context.socket(zmq.DEALER) as knocker:
        knocker.linger, knocker.reconnect_ivl = 0, 5
        knocker.connect(f"tcp://{addr}")
        hello = replace(late.own, incarnation=os.urandom(16), instance=os.urandom(16))
        knocker.send(messages.encode(hello))
        monitor = knocker.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)

        def watch() -> None:
            monitor.poll(5000)
            knocked.set()

        monkeypatch.setattr(zmq.Socket, "bind", slow_bind)
        watcher = threading.Thread(target=watch)
        watcher.start()
        with late.listen(addr):
            watcher.join()
            assert knocker.poll(5000), "its HELLO is answered"
            assert isinstance(messages.decode(knocker.recv(), False)[1], messages.Hello)
        knocker.disable_monitor()
        monitor.close(0)


def test_a_link_that_was_given_up_is_not_waited_for(here: Peer) -> None:
    """The end may come before anybody has asked."""
    with here.listen("127.0.0.1:0") as channel:
        probe = here.probe(channel.address)  # itself
        until(
            lambda: any(p.dial.given_up for p in here._engine.links.places if p.kind == "dial"), 5
        )
        with pytest.raises(DialledSelf):
            probe.hello(2)
        probe.close()


def test_an_encoder_that_fails_costs_only_its_saving(
    here: Peer, there: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> bytes:
        raise OSError("no such luck")

    monkeypatch.setitem(codecs.CODECS, "lz4", codecs.CODECS["lz4"]._replace(encode=broken))
    value = torch.rand(1 << 20)
    with here.listen("127.0.0.1:0") as listening, there.connect(listening.address) as dialled:
        receive = dialled.start_receive(timeout=20)
        listening.send(value, quality="lz4", timeout=20)
        assert torch.equal(receive.result(), value)


def test_a_fault_of_our_own_ends_one_thing_and_not_every_link(
    here: Peer, there: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a bug")

    with here.listen("127.0.0.1:0") as listening, there.connect(listening.address) as dialled:
        with monkeypatch.context() as patched:
            patched.setattr(here._engine.operations, "matched", broken)
            with pytest.raises(ZBusError):
                dialled.start_send("lost", 0, timeout=20)
                listening.receive(0, timeout=1)
        assert "please report it" in caplog.text
    with here.listen("127.0.0.1:0") as listening, there.connect(listening.address) as dialled:
        dialled.start_send("next", 0, timeout=20)
        assert listening.receive(0, timeout=20) == "next"
