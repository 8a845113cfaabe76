"""A cut connection is a pause, not a failure: real peers, and a proxy between them that cuts."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from children import LISTENER, child, until
from ends import Ends, linked
from proxy import Proxy

from zbus import Operation, Peer, Settings
from zbus.errors import LinkError, LinkLost, PeerGone

pytestmark = pytest.mark.usefixtures("by_socket")

MIB = 1 << 20


def both(settings: Settings) -> contextlib.AbstractContextManager[Ends]:
    return linked(settings, settings)


@pytest.fixture
def ends() -> Iterator[Ends]:
    with linked() as made:
        yield made


def met(ends: Ends) -> None:
    """Pass one value, so that the two runs are bound."""
    send = ends.listening.start_send("hello")
    assert ends.dialled.receive(timeout=20) == "hello"
    send.result()


def value_of(size: int, seed: int) -> torch.Tensor:
    """Half noise, half smooth, so that codecs have both."""
    made = torch.rand(size // 4, generator=torch.Generator().manual_seed(seed))
    made[: size // 8] = torch.arange(size // 8) % 977
    return made


class Cutter:
    """Cuts the connection after random numbers of bytes, `times` times."""

    def __init__(self, proxy: Proxy, total: int, times: int, seed: int) -> None:
        self._proxy, self._random = proxy, random.Random(seed)
        self._points = sorted(self._random.randrange(1, total) for _ in range(times))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.done = 0
        self._start = proxy.forwarded
        self._thread.start()

    def _run(self) -> None:
        for point in self._points:
            while self._proxy.forwarded - self._start < point:
                if self._ended.wait(0.0005):
                    return
            self.done += 1
            if self._random.random() < 0.4:
                # Also in the handshake of the connection that comes next.
                self._proxy.cut()
                self._proxy.cut_after = self._random.randrange(1, 700)
                while self._proxy.cut_after is not None:
                    if self._ended.wait(0.0005):
                        return
            else:
                self._proxy.cut()

    def end(self) -> None:
        self._ended.set()
        self._thread.join(10)


@pytest.mark.parametrize("codec", ["raw", "lz4"])
@pytest.mark.parametrize("sender", ["dialler", "listener"])
def test_192_mib_arrive_exact_and_once(ends: Ends, sender: str, codec: str) -> None:
    met(ends)
    value = value_of(192 * MIB, seed=1)
    pair = (ends.dialled, ends.listening)
    source, target = pair if sender == "dialler" else pair[::-1]
    seen: list[int] = []
    wire = 192 * MIB if codec == "raw" else 100 * MIB
    cutter = Cutter(ends.proxy, int(wire * 0.9), times=8, seed=len(sender + codec))
    receive = target.start_receive(timeout=120, progress=lambda done, _: seen.append(done))
    send = source.start_send(value, quality=codec, timeout=120)
    got = receive.result()
    send.result()
    cutter.end()
    assert torch.equal(got, value)
    assert cutter.done >= 6 and ends.proxy.cuts >= 5
    until(lambda: seen[-1] == 192 * MIB)  # told in a thread of its own, which may come later
    assert seen == sorted(seen)  # never back: nothing that had arrived was taken anew
    # And the link is as good as before, with nothing left over from the value.
    met(ends)


def test_what_is_sent_again_is_little(ends: Ends) -> None:
    """At most about a window for each cut."""
    met(ends)
    value = value_of(96 * MIB, seed=2)
    before = ends.proxy.forwarded
    cutter = Cutter(ends.proxy, 90 * MIB, times=6, seed=3)
    receive = ends.dialled.start_receive(timeout=60)
    ends.listening.send(value, quality="raw", timeout=60)
    assert torch.equal(receive.result(), value)
    cutter.end()
    assert ends.proxy.forwarded - before < 96 * MIB + 8 * 14 * MIB


def test_many_small_values_in_order(ends: Ends) -> None:
    """Cuts at any byte: in a handshake, between the messages of an operation, in one of them."""
    count, pick = 150, random.Random(4)
    got: list[Any] = []

    def receive() -> None:
        for i in range(count):
            got.append(ends.listening.receive(i, timeout=60))

    thread = threading.Thread(target=receive)
    thread.start()
    for i in range(count):
        if i % 5 == 0:
            ends.proxy.cut_after = pick.randrange(1, 500)
        ends.dialled.send([i, "x" * (i % 7)], i, timeout=60)
    thread.join(60)
    assert got == [[i, "x" * (i % 7)] for i in range(count)]
    assert ends.proxy.cuts >= 8


def test_both_ways_in_turn_with_cuts(ends: Ends) -> None:
    pick = random.Random(5)

    def echo() -> None:
        for _ in range(25):
            ends.listening.send(ends.listening.receive(timeout=60), timeout=60)

    thread = threading.Thread(target=echo)
    thread.start()
    for i in range(25):
        ends.proxy.cut_after = pick.randrange(1, 400_000)
        value = torch.full((50_000,), i, dtype=torch.int32)
        ends.dialled.send(value, quality="raw", timeout=60)
        assert torch.equal(ends.dialled.receive(timeout=60), value)
    thread.join(60)
    assert not thread.is_alive() and ends.proxy.cuts >= 10


@pytest.mark.parametrize("cuts", [[1], [5, 64], [100, 200, 300], [400, 900]])
def test_cuts_in_the_first_handshake(cuts: list[int]) -> None:
    with linked() as ends:
        for cut in cuts:
            ends.proxy.cut_after = cut
            with contextlib.suppress(AssertionError):
                until(lambda: ends.proxy.cut_after is None, 2)
        met(ends)


# --- a link that is only slow, or dead for a while -----------------------------------------------


def test_a_black_hole_for_two_seconds(ends: Ends) -> None:
    met(ends)
    value = value_of(32 * MIB, seed=6)
    ends.proxy.rate = 20e6
    receive = ends.dialled.start_receive(timeout=60)
    send = ends.listening.start_send(value, quality="raw", timeout=60)
    until(lambda: receive.done_bytes > MIB)
    ends.proxy.black_hole = True
    stood = receive.done_bytes
    time.sleep(2)  # what the test is about: that nothing moves has no event
    assert not receive.done() and receive.done_bytes - stood < 16 * MIB
    ends.proxy.black_hole, ends.proxy.rate = False, None
    assert torch.equal(receive.result(), value)
    send.result()


def test_a_black_hole_and_then_a_cut(ends: Ends) -> None:
    met(ends)
    value = value_of(16 * MIB, seed=7)
    ends.proxy.rate = 20e6
    receive = ends.listening.start_receive(timeout=60)
    send = ends.dialled.start_send(value, quality="lz4", timeout=60)
    until(lambda: receive.done_bytes > MIB)
    ends.proxy.black_hole = True
    until(lambda: ends.proxy._pairs)
    ends.proxy.cut()
    ends.proxy.black_hole, ends.proxy.rate = False, None
    assert torch.equal(receive.result(), value)
    send.result()


def test_a_slow_and_late_link(ends: Ends) -> None:
    ends.proxy.delay, ends.proxy.rate = 0.03, 15e6
    met(ends)
    value = value_of(12 * MIB, seed=8)
    receive = ends.dialled.start_receive(timeout=60)
    ends.listening.send(value, quality="raw", timeout=60)
    assert torch.equal(receive.result(), value)


# --- what is said, and when it is given up -------------------------------------------------------


def _notes(operation: Operation[Any], text: str, within: float = 5.0) -> str:
    until(lambda: text in operation.note, within, f"{text!r} in {operation.note!r}")
    return operation.note


def test_a_lost_link_is_said_on_both_sides(ends: Ends) -> None:
    met(ends)
    receive = ends.dialled.start_receive(timeout=60)
    until(lambda: ends.listening._registration.remote is not None)
    value = torch.ones(8 * MIB)
    ends.proxy.rate = 4e6
    send = ends.listening.start_send(value, quality="raw", timeout=60)
    until(lambda: receive.done_bytes > 0)
    ends.proxy.refuse()
    ends.proxy.cut()
    assert "link to server lost" in _notes(receive, "gives up at 5:00")
    assert "link to client lost" in _notes(send, "gives up at 5:00")
    ends.proxy.rate = None
    ends.proxy.accept()
    assert torch.equal(receive.result(), value)
    send.result()


def _errors(*operations: Operation[Any]) -> list[BaseException]:
    found = []
    for operation in operations:
        with pytest.raises(LinkError) as error:
            operation.result()
        found.append(error.value)
    return found


def test_a_link_that_is_not_back_in_time() -> None:
    with both(Settings(reconnect_wait=1.0)) as ends:
        met(ends)
        ends.proxy.refuse()
        ends.proxy.cut()
        began = time.monotonic()
        until(lambda: _lost(ends.client) and _lost(ends.server), 5)
        # Two receives would not pair: on a link that stands they would fail of that.
        receive = ends.dialled.start_receive(timeout=60)
        other = ends.listening.start_receive(timeout=60)
        for error, peer in zip(_errors(receive, other), ("server", "client"), strict=True):
            assert isinstance(error, LinkLost) and error.peer == peer
            assert "not back within 1 s" in str(
                error
            ) and "then run again (with Send and Receive: both" in str(error)
            assert error.stage
        assert 0.5 < time.monotonic() - began < 5
        # The address is usable at once.
        ends.proxy.accept()
        with ends.server.listen(ends.listening.address) as listening:
            with ends.client.connect(ends.proxy.address) as dialled:
                met(ends._replace(listening=listening, dialled=dialled))


def test_back_in_time_again_and_again() -> None:
    """Each loss has its own wait: they do not add up."""
    with both(Settings(reconnect_wait=1.5)) as ends:
        met(ends)
        for _ in range(3):
            ends.proxy.refuse()
            ends.proxy.cut()
            until(lambda: _lost(ends.client), 5)
            time.sleep(0.6)  # three of these are more than one wait
            ends.proxy.accept()
            met(ends)


def _lost(peer: Peer) -> bool:
    count = peer.counters()
    return bool(count["sessions"]) and not count["connections"]


def test_a_tunnel_with_nobody_behind_after_a_loss() -> None:
    """Each redial is accepted and closed: given up after `nobody_wait`, long before the other."""
    with both(Settings(nobody_wait=1.0)) as ends:
        met(ends)
        receive = ends.dialled.start_receive(timeout=60)
        ends.proxy.accepting = "close"
        ends.proxy.cut()
        began = time.monotonic()
        (error,) = _errors(receive)
        assert isinstance(error, LinkLost) and 0.9 < time.monotonic() - began < 8
        assert "accepts and closes" in str(error) and "Look at the tunnel" in str(error)


def test_nobody_behind_but_only_for_a_moment() -> None:
    with both(Settings(nobody_wait=3.0)) as ends:
        met(ends)
        receive = ends.dialled.start_receive(timeout=60)
        ends.proxy.accepting = "close"
        before = ends.proxy.accepted
        ends.proxy.cut()
        until(lambda: ends.proxy.accepted > before + 2)
        ends.proxy.accepting = "forward"
        ends.listening.send("here again", timeout=20)
        assert receive.result() == "here again"


@pytest.mark.parametrize("which", ["send", "receive"])
def test_a_cancel_while_the_link_is_lost(ends: Ends, which: str) -> None:
    """It ends at once, and the other side hears of it when the link is back."""
    met(ends)
    ends.proxy.rate = 5e6
    receive = ends.dialled.start_receive(timeout=60)
    send = ends.listening.start_send(torch.ones(8 * MIB), quality="raw", timeout=60)
    until(lambda: receive.done_bytes > 0)
    ends.proxy.refuse()
    ends.proxy.cut()
    _notes(receive, "lost")
    mine, other = (send, receive) if which == "send" else (receive, send)
    began = time.monotonic()
    mine.cancel()
    assert "cancelled here" in str(_error(mine))
    assert time.monotonic() - began < 2
    assert not other.done()
    ends.proxy.rate = None
    ends.proxy.accept()
    assert "the other side gave up: " in str(_error(other))
    met(ends)


def _error(operation: Operation[Any]) -> BaseException:
    with pytest.raises(Exception) as error:
        operation.result()
    return error.value


def test_a_local_peer_that_is_killed_while_the_link_is_lost() -> None:
    with child(LISTENER, "127.0.0.1:0") as listener:
        address = listener.line("listening").split()[1]
        with Proxy(address) as proxy, Peer() as peer, peer.connect(proxy.address) as channel:
            until(lambda: channel.peer == "listener")
            receive = channel.start_receive(timeout=60)
            proxy.refuse()
            proxy.cut()
            until(lambda: not peer.counters()["connections"])
            listener.kill()
            began = time.monotonic()
            (error,) = _errors(receive)
            assert isinstance(error, PeerGone) and time.monotonic() - began < 1.5


def test_a_bound_peer_that_is_killed() -> None:
    code = """
        import sys
        from zbus import Peer
        peer = Peer("listener")
        channel = peer.listen(sys.argv[1])
        print("listening", channel.address, flush=True)
        channel.send("hello")
        sys.stdin.read()
    """
    with child(code, "127.0.0.1:0") as listener:
        address = listener.line("listening").split()[1]
        with Peer() as peer, peer.connect(address) as channel:
            assert channel.receive(timeout=20) == "hello"
            receive = channel.start_receive(timeout=60)
            listener.kill()
            began = time.monotonic()
            (error,) = _errors(receive)
            assert isinstance(error, PeerGone) and time.monotonic() - began < 1.5
            assert f"its process (pid {listener.pid}) has ended" in str(error)
            assert "listener, receive any: " in str(error)


def test_an_address_lingers_also_where_links_are_given_up_soon() -> None:
    """What is not acknowledged yet makes it stay longer, and never shorter."""
    with both(Settings(reconnect_wait=0.3)) as ends:
        met(ends)
        (session,) = (peering.key for peering in ends.client._engine.links.peerings)
        ends.proxy.black_hole = True
        ends.dialled.close()
        time.sleep(1)  # the one thing to wait for is time
        ends.proxy.black_hole = False
        with ends.client.connect(ends.proxy.address, channel="again") as dialled:
            with ends.server.listen(ends.listening.address, channel="again") as listening:
                send = dialled.start_send("still")
                assert listening.receive(timeout=5) == "still"
                send.result()
        assert [peering.key for peering in ends.client._engine.links.peerings] == [session]
