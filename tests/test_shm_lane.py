"""The same-host lane: large values are read out of the sender's memory, or else take the socket."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import child, until
from ends import Ends, linked
from proxy import Proxy

from zbus import Peer, Settings, ZBusError
from zbus.engine import shm_lane
from zbus.engine.inflow import _unusable
from zbus.engine.shm_lane import ShmLane, Unreadable
from zbus.engine.workers import COUNT, Workers
from zbus.engine.wrapping import LinkFacts
from zbus.errors import PeerGone, RemoteProtocolError
from zbus.net import memory
from zbus.protocol.delivery import ReceiveState
from zbus.protocol.messages import MAX_INLINE, MAX_PIECES, Chunk, Loan, Offer, ShmDecline, ShmNear
from zbus.trust import Trust
from zbus.values.tensors import tensor_bytes

MIB = 1 << 20
LARGE = 8 * MIB


def _missing() -> str:
    """Why there is nothing to test here."""
    if not memory.is_possible():
        return "this system has no call that reads another process's memory, or forbids it"
    with contextlib.suppress(OSError):
        if memory._YAMA.read_text().strip() in ("2", "3") and os.geteuid():
            return "Yama lets nobody but root read another process's memory here"
    return ""


MISSING = _missing()
if MISSING:
    print(f"test_shm_lane: skipped: {MISSING}")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture
def ends() -> Iterator[Ends]:
    assert Trust().keys  # as every ComfyUI has them, for its own listener
    with linked() as made:
        yield made


def passed(ends: Ends, value: Any, quality: str = "exact", up: bool = True) -> tuple[Any, int]:
    """The value as it arrives, and the bytes that went through the socket for it."""
    sender, receiver = (ends.dialled, ends.listening) if up else (ends.listening, ends.dialled)
    before = ends.proxy.forwarded
    send = sender.start_send(value, quality=quality, timeout=30)
    got = receiver.receive(timeout=30)
    send.result()
    return got, ends.proxy.forwarded - before


def noise(nbytes: int = LARGE, seed: int = 1) -> torch.Tensor:
    return torch.rand(nbytes // 4, generator=torch.Generator().manual_seed(seed))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a.dtype == b.dtype and np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def shares(ends: Ends) -> list[bool]:
    return [p.shares for end in (ends.server, ends.client) for p in end._engine.links.peerings]


def settled(ends: Ends) -> None:
    """Nothing is left of any transfer."""
    for end in (ends.server, ends.client):
        until(lambda e=end: not e.counters()["transfers"])
        assert end.counters()["memory"] == 0


# --- what goes through memory ---------------------------------------------------------------------


@pytest.mark.parametrize("up", [True, False])
def test_a_large_value_is_exact_and_the_socket_carries_words_only(ends: Ends, up: bool) -> None:
    for seed in range(3):
        got, wire = passed(ends, noise(seed=seed), up=up)
        assert torch.equal(got, noise(seed=seed)) and wire < 4096
    assert shares(ends) == [True, True]
    settled(ends)


def test_a_user_without_keys_gets_them_with_the_first_large_value(tmp_path: Path) -> None:
    trust = Trust(tmp_path / "new")
    with Peer("a", trust=trust) as a, Peer("b", trust=trust) as b:
        with a.listen("127.0.0.1:0") as listening, b.connect(listening.address) as dialled:
            for there, value in enumerate((b"small", noise(), noise())):
                sending = dialled.start_send(value, timeout=30)
                assert same(listening.receive(timeout=30), value)
                sending.result()
                assert trust.has_keys == (there > 0)
            [peering] = b._engine.links.peerings
            assert peering.lends


CODE = """
    import sys
    import torch
    from zbus import Peer
    with Peer("child") as peer, peer.connect(sys.argv[1]) as channel:
        value = channel.receive(timeout=60)
        value += 1
        channel.send(value, timeout=60)
"""


def test_between_two_processes() -> None:
    with Peer("here") as here, here.listen("127.0.0.1:0") as channel:
        with Proxy(channel.address) as proxy, child(CODE, proxy.address) as other:
            channel.send(noise(), timeout=60)
            assert torch.equal(channel.receive(timeout=60), noise() + 1)
            assert other.process.wait(20) == 0
            assert proxy.forwarded < 16384


@pytest.mark.parametrize(
    "value",
    [
        {"samples": noise(), "mask": torch.ones(3, 7, dtype=torch.bool), "note": "x" * 100_000},
        [noise(MIB, seed) for seed in range(9)],
        (np.arange(MIB), b"\x01" * MIB, "é" * MIB),
        noise().to(torch.bfloat16),
        torch.zeros(2 * MIB, dtype=torch.bool),
    ],
    ids=["dict", "list", "arrays", "bfloat16", "bool"],
)
def test_values_of_many_pieces(ends: Ends, value: Any) -> None:
    got, wire = passed(ends, value)
    assert same(got, value) and wire < 16384


def test_8_bit(ends: Ends) -> None:
    picture = noise().reshape(1, 1024, 512, 4)
    got, wire = passed(ends, picture, "8-bit")
    assert wire < 4096 and (got - picture).abs().max() <= 0.5 / 255 + 1e-6


def test_its_progress_is_told_on_both_sides(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm_lane, "STEP", MIB)
    monkeypatch.setattr(shm_lane, "TELL", MIB)
    true = memory.read

    def slow(*read: Any) -> None:
        threading.Event().wait(0.03)  # as a large value would take
        true(*read)

    monkeypatch.setattr(memory, "read", slow)
    seen: list[list[int]] = [[], []]
    send = ends.dialled.start_send(
        noise(), timeout=30, progress=lambda done, total: seen[0].append(done)
    )
    receive = ends.listening.start_receive(
        timeout=30, progress=lambda done, total: seen[1].append(done)
    )
    assert torch.equal(receive.result(), noise())
    send.result()
    for calls in seen:  # told in a thread of its own, which may come later
        until(lambda c=calls: c and c[-1] == LARGE)  # type: ignore[misc]
        assert calls == sorted(calls) and len(calls) > 2


def test_what_came_is_the_receivers_own(ends: Ends) -> None:
    value = noise()
    got, _ = passed(ends, value)
    value.zero_()
    assert torch.equal(got, noise())


@pytest.mark.parametrize("lane", ["memory", "socket"])
def test_memory_is_free_when_the_value_is(lane: str) -> None:
    """And not when the garbage collector comes round to it."""
    settings = Settings(share_memory=lane == "memory")
    with linked(settings, settings) as ends:
        passed(ends, noise(), "raw")
        gc.collect()
        gc.disable()
        try:
            got, wire = passed(ends, noise(), "raw")
            assert (wire < LARGE) is (lane == "memory")
            ref = weakref.ref(got)
            del got
            until(lambda: ref() is None, what="no reference to the value")
        finally:
            gc.enable()


# --- what takes the socket ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "quality"),
    [
        (noise(MAX_INLINE), "raw"),
        (noise(), "lz4"),
        ([torch.full((16384,), float(i)) for i in range(MAX_PIECES + 1)], "raw"),
    ],
    ids=["inside its offer", "a codec by name", "too many pieces"],
)
def test_what_is_not_for_it_takes_the_socket(ends: Ends, value: Any, quality: str) -> None:
    got, wire = passed(ends, value, quality)
    assert same(got, value) and wire > MAX_INLINE
    assert shares(ends) == [True, True]


@pytest.mark.parametrize("who", ["server", "client"])
def test_who_does_not_want_it(who: str) -> None:
    with linked(**{who: Settings(share_memory=False)}) as ends:
        for up in (True, False):
            got, wire = passed(ends, noise(), up=up, quality="raw")
            assert torch.equal(got, noise()) and wire > LARGE


def test_it_can_be_turned_off_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZBUS_SHARE_MEMORY", "0")
    with linked() as ends:
        got, wire = passed(ends, noise(), quality="raw")
        assert torch.equal(got, noise()) and wire > LARGE


@pytest.mark.parametrize("up", [True, False])
def test_another_users_process_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, up: bool
) -> None:
    """Another user has another key. Nothing is read for it, whatever the system would allow."""
    monkeypatch.setattr(memory, "read", lambda *_: pytest.fail("memory was read"))
    with linked(other=Trust(tmp_path)) as ends:
        told: list[Any] = []
        for end in (ends.server, ends.client):
            monkeypatch.setattr(end._engine.shm_lane, "lend", lambda *given: told.append(given))
        for _ in range(2):
            got, wire = passed(ends, noise(), up=up, quality="raw")
            assert torch.equal(got, noise()) and wire > LARGE
        assert told == [], "addresses were told to a stranger"


Pieces = Sequence[tuple[int, int]]
Views = Sequence[memoryview]


def refusing(number: int, true: Callable[..., None] = memory.read) -> Callable[..., None]:
    """`memory.read` that fails once, after a piece of it has been read."""
    left = [1]

    def read(pid: int, pieces: Pieces, into: Views) -> None:
        true(pid, pieces, into)
        if left:
            left.pop()
            raise OSError(number, os.strerror(number))

    return read


def test_what_the_system_forbids_is_not_tried_again(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "read", refusing(errno.EPERM))
    for _ in range(2):
        got, wire = passed(ends, noise(), quality="raw")
        assert torch.equal(got, noise()) and wire > LARGE
    assert shares(ends) == [False, False]
    settled(ends)


def test_what_was_let_go_of_comes_by_the_socket_and_the_next_does_not(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "read", refusing(errno.EFAULT))
    got, wire = passed(ends, noise(), quality="raw")
    assert torch.equal(got, noise()) and wire > LARGE
    got, wire = passed(ends, noise())
    assert torch.equal(got, noise()) and wire < 4096


def test_a_fault_of_our_own_costs_only_its_saving(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a mistake")

    monkeypatch.setattr(memory, "read", broken)
    got, wire = passed(ends, noise(), quality="raw")
    assert torch.equal(got, noise()) and wire > LARGE
    assert "please report it" in caplog.text


def test_bytes_that_are_not_what_was_sent_are_sent_again(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = memory.read

    def spoilt(pid: int, pieces: Pieces, into: Views) -> None:
        true(pid, pieces, into)
        into[0][0] ^= 1

    monkeypatch.setattr(memory, "read", spoilt)
    got, wire = passed(ends, noise(), quality="raw")
    assert torch.equal(got, noise()) and wire > LARGE
    settled(ends)


# --- ends, and cuts, in mid-read ------------------------------------------------------------------


class Gate:
    """`memory.read` that waits at its first piece until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._read = memory.read
        monkeypatch.setattr(memory, "read", self._waiting)

    def _waiting(self, pid: int, pieces: Pieces, into: Views) -> None:
        self.reached.set()
        assert self.opened.wait(20)
        self._read(pid, pieces, into)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


@pytest.mark.parametrize("which", ["send", "receive"])
def test_cancel_in_mid_read(ends: Ends, gate: Gate, which: str) -> None:
    send = ends.dialled.start_send(noise(), timeout=30)
    receive = ends.listening.start_receive(timeout=30)
    assert gate.reached.wait(10)
    (send if which == "send" else receive).cancel()
    for operation in (send, receive):
        until(operation.done)
        with pytest.raises(ZBusError, match="cancelled"):
            operation.result()
    gate.opened.set()
    got, wire = passed(ends, noise(seed=2))
    assert torch.equal(got, noise(seed=2)) and wire < 4096
    settled(ends)


def test_a_sender_that_lets_go_and_writes_there_spoils_nothing(ends: Ends, gate: Gate) -> None:
    """Cancelled, it may do with its memory what it likes, while the other side still reads."""
    value = noise()
    send = ends.dialled.start_send(value, timeout=30)
    receive = ends.listening.start_receive(timeout=30)
    assert gate.reached.wait(10)
    send.cancel()
    value.fill_(7)
    gate.opened.set()
    until(receive.done)
    with pytest.raises(ZBusError, match="cancelled"):
        receive.result()
    settled(ends)


def test_cuts_in_mid_read(ends: Ends, gate: Gate) -> None:
    send = ends.dialled.start_send(noise(), timeout=30)
    receive = ends.listening.start_receive(timeout=30)
    assert gate.reached.wait(10)
    for _ in range(3):
        accepted = ends.proxy.accepted
        assert ends.proxy.cut()
        until(lambda a=accepted: ends.proxy.accepted > a)
        until(lambda: ends.server.counters()["connections"] == 1)
    gate.opened.set()
    assert torch.equal(receive.result(), noise())
    send.result()
    settled(ends)


def test_a_cut_before_the_socket_takes_over(ends: Ends, gate: Gate) -> None:
    """The word that it cannot be read is under way when the link goes."""
    gate._read = refusing(errno.EFAULT, gate._read)
    send = ends.dialled.start_send(noise(), timeout=30)
    receive = ends.listening.start_receive(timeout=30)
    assert gate.reached.wait(10)
    ends.proxy.black_hole = True
    gate.opened.set()
    flows = ends.server._engine.transfers._flows
    until(lambda: {f.delivery.state for f in flows.values()} == {ReceiveState.MOVING})
    ends.proxy.black_hole = False
    ends.proxy.cut()
    assert torch.equal(receive.result(), noise())
    send.result()
    settled(ends)


SENDER = """
    import sys
    import torch
    from zbus import Peer
    with Peer("child") as peer, peer.connect(sys.argv[1]) as channel:
        channel.send(torch.ones(2 << 20), timeout=60)
"""


def test_the_sender_is_killed_in_mid_read(gate: Gate) -> None:
    with Peer("here") as here, here.listen("127.0.0.1:0") as channel:
        with child(SENDER, channel.address) as other:
            receive = channel.start_receive(timeout=60)
            assert gate.reached.wait(30)
            other.kill()
            gate.opened.set()
            with pytest.raises(PeerGone):
                receive.result()
        until(lambda: not here.counters()["transfers"])


# --- the proof ------------------------------------------------------------------------------------


@pytest.fixture
def pair(ends: Ends) -> Iterator[tuple[Any, Any]]:
    """(the sender's peering, the receiver's), of a link that stands."""
    passed(ends, "hello")
    yield ends.client._engine.links.peerings[0], ends.server._engine.links.peerings[0]


class Into:
    def __init__(self, size: int) -> None:
        self.data = memoryview(bytearray(size))

    def view(self, offset: int, size: int) -> memoryview:
        return self.data[offset : offset + size]


def alone(work: Callable[[], None], most: int) -> None:
    work()


def test_only_what_this_user_says_is_read(
    ends: Ends, pair: tuple[Any, Any], tmp_path: Path
) -> None:
    to_server, to_client = pair
    data = memoryview(bytearray(os.urandom(MIB)))
    into = Into(len(data))
    sender, reader = ends.client._engine.shm_lane, ends.server._engine.shm_lane
    stranger = ShmLane(ends.client.own, Trust(tmp_path))

    def read(loan: Loan, transfer: int = 5) -> None:
        given = to_client, transfer, loan, len(data), into, alone
        reader.read(*given, lambda: True, lambda _: None)

    near = reader.near(to_client)
    assert near is not None and sender.is_near(to_server, near)
    assert not sender.is_near(to_server, ShmNear(bytes(32)))
    other = ShmLane(ends.server.own, Trust(tmp_path)).near(to_client, makes_key=True)
    assert not sender.is_near(to_server, other)
    assert not sender.is_near(to_server, sender.near(to_server)), "its own word, sent back"
    lease, said = sender.lend(to_server, 5, [data])
    [(address, length)] = said.pieces
    for wrong in (
        stranger.lend(to_server, 5, [data])[1],
        sender.lend(to_server, 6, [data])[1],
        said._replace(pieces=((address + 1, length),)),
        said._replace(lease=said.lease + 1),
        said._replace(token=bytes(16)),
        said._replace(sample=bytes(16)),
        said._replace(proof=bytes(32)),
        reader.lend(to_client, 5, [data])[1],
    ):
        with pytest.raises(Unreadable, match="another user") as raised:
            read(wrong)
        assert raised.value.for_good
    assert not any(into.data)
    read(said)
    assert into.data == data
    with pytest.raises(Unreadable, match="not as long"):
        read(sender.lend(to_server, 5, [data, data[:1]])[1])


def test_an_address_is_told_in_one_session_only(ends: Ends, pair: tuple[Any, Any]) -> None:
    """What was overheard in one session proves nothing in another."""
    to_server, to_client = pair
    sender, reader = ends.client._engine.shm_lane, ends.server._engine.shm_lane
    near = reader.near(to_client)
    assert sender.is_near(to_server, near)
    to_server.session.key = os.urandom(16)
    assert not sender.is_near(to_server, near)


def test_what_is_let_go_of_is_never_good(pair: tuple[Any, Any], ends: Ends) -> None:
    """Its bytes may all be as they were: who let go of them may have done anything meanwhile."""
    to_server, to_client = pair
    data = memoryview(bytearray(os.urandom(MIB)))
    lease, loan = ends.client._engine.shm_lane.lend(to_server, 5, [data])
    here, into = ends.server._engine.shm_lane, Into(len(data))

    def let_go(work: Callable[[], None], most: int) -> None:
        work()
        lease.end()

    with pytest.raises(Unreadable, match="not held") as raised:
        here.read(to_client, 5, loan, len(data), into, let_go, lambda: True, lambda _: None)
    assert into.data == data and not raised.value.for_good


def test_its_lease_ends_before_anything_is_let_go_of(
    ends: Ends, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is read and after; whichever way the send ends."""
    seen: list[bool] = []
    flows: list[Any] = []
    true = shm_lane.Lease.end

    def end(lease: shm_lane.Lease) -> None:
        mine = [flow for flow in flows if flow._lent is not None and flow._lent[0] is lease]
        seen.extend(flow._source is not None for flow in mine)
        true(lease)
        assert not any(lease._word)

    monkeypatch.setattr(shm_lane.Lease, "end", end)
    send = ends.dialled.start_send(noise(), timeout=30)
    receive = ends.listening.start_receive(timeout=30)
    assert gate.reached.wait(10)
    flows += ends.client._engine.transfers._flows.values()
    send.cancel()
    until(send.done)
    until(lambda: seen == [True])
    gate.opened.set()
    until(receive.done)
    settled(ends)


def test_what_is_lent_too_late_is_kept_by_nobody(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send that is cancelled while its value is packed."""
    passed(ends, "hello")
    reached, opened, true = threading.Event(), threading.Event(), ShmLane.lend

    def lend(*given: Any) -> Any:
        reached.set()
        assert opened.wait(20)
        lent = true(*given)
        leases.append(weakref.ref(lent[0]))
        return lent

    monkeypatch.setattr(ShmLane, "lend", lend)
    leases: list[weakref.ref[shm_lane.Lease]] = []
    send = ends.dialled.start_send(noise(), timeout=30)
    assert reached.wait(10)
    [flow] = ends.client._engine.transfers._flows.values()  # which somebody may still have
    send.cancel()
    until(send.done)
    opened.set()
    until(lambda: leases, what="lent")
    until(lambda: leases[0]() is None, what="no reference to the lease")
    assert flow.delivery.ended


@pytest.mark.parametrize("up", [True, False])
def test_without_a_key_nothing_is_lent(tmp_path: Path, up: bool) -> None:
    """Where its file was damaged, say."""
    (tmp_path / "secret.key").write_text("no key")
    (tmp_path / "secret.key").chmod(0o600)
    with linked(other=Trust(tmp_path)) as ends:
        got, wire = passed(ends, noise(), up=up, quality="raw")
        assert torch.equal(got, noise()) and wire > LARGE


def test_a_lease_that_nobody_has_ended_outlives_none_of_its_pieces() -> None:
    """A flow that was dropped without its end, as when the I/O thread has failed."""

    class Piece(bytearray):
        def __del__(self) -> None:
            seen.append(bytes(word))

    class Owner:  # what it holds goes in this order
        def __init__(self) -> None:
            self.piece = Piece(MIB)
            self.lease = shm_lane.Lease([memoryview(self.piece)])

    seen: list[bytes] = []
    owner = Owner()
    word = owner.lease._word
    assert any(word)
    del owner
    gc.collect()
    assert seen == [bytes(16)]


def test_what_cannot_be_read_to_its_end_is_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the other threads, for nothing."""
    monkeypatch.setattr(memory, "read", refusing(errno.EFAULT, lambda *_: None))
    into = memoryview(bytearray(8 * shm_lane.STEP))
    loan = LOAN._replace(pieces=((4096, len(into)),))
    reading = shm_lane._Reading(os.getpid(), loan, [into], lambda: True, lambda _: None)
    with pytest.raises(OSError):
        reading()
    assert not reading._left
    reading()


def test_another_process_that_has_got_its_number_is_not_taken_for_it(
    ends: Ends, pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has died, and another with its pid, whose memory can be read at those addresses."""
    to_server, to_client = pair
    data = memoryview(bytearray(os.urandom(MIB)))
    _, loan = ends.client._engine.shm_lane.lend(to_server, 5, [data])
    here, into = ends.server._engine.shm_lane, Into(len(data))

    def others(pid: int, pieces: Pieces, into: Views) -> None:
        for view in into:
            view[:] = os.urandom(len(view))

    monkeypatch.setattr(memory, "read", others)
    with pytest.raises(Unreadable, match="not held"):
        here.read(to_client, 5, loan, len(data), into, alone, lambda: True, lambda _: None)


@pytest.mark.parametrize("when", ["before", "in mid-read"])
def test_a_sender_that_goes_on_changing_it(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What arrives is one state of it, and no mixture of two."""
    value, left = noise(), [True]
    true = memory.read
    monkeypatch.setattr(shm_lane, "READERS", 1)  # or all may have been read before it is changed

    def changing(pid: int, pieces: Pieces, into: Views) -> None:
        if when == "before" and left:
            left.clear()
            value.mul_(2)
        true(pid, pieces, into)
        if left:
            left.clear()
            value.mul_(2)

    monkeypatch.setattr(memory, "read", changing)
    got, wire = passed(ends, value, quality="raw")
    assert torch.equal(got, value) and wire > LARGE
    assert shares(ends) == [True, True]
    settled(ends)


def test_a_sample_sees_every_change_of_some_length() -> None:
    data = np.zeros(8 * MIB, np.uint8)
    every = (len(data) // shm_lane.LINES // 64 + 1) * 64
    before = shm_lane.sample([memoryview(data)])
    assert shm_lane.sample([memoryview(data)]) == before
    length = every + 63
    for at in (0, 1, 12_345, 4 * MIB - 7, len(data) - length - every):
        data[at : at + length] ^= 1
        assert shm_lane.sample([memoryview(data)]) != before
        data[at : at + length] ^= 1
    small = bytearray(4 * MIB)
    before = shm_lane.sample([memoryview(small)])
    for at in (0, 777, len(small) - 1):
        small[at] ^= 1
        assert shm_lane.sample([memoryview(small)]) != before, "all of what is small is looked at"
        small[at] ^= 1


def test_memory_that_is_lent_cannot_be_resized_away() -> None:
    """The lease says that the pieces are held; torch must not move them all the same."""
    value = torch.rand(MIB)
    [view] = [memoryview(tensor_bytes(value))]
    with pytest.raises(RuntimeError, match="resiz"):
        value.resize_(2 * MIB)
    with pytest.raises(RuntimeError, match="resiz"):
        value.untyped_storage().resize_(0)
    where = memory.address_of(view)
    value.set_()  # type: ignore[no-untyped-call]
    value.data = torch.rand(3)
    assert memory.address_of(view) == where and view[0] == view[0]


def test_pieces_are_read_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm_lane, "STEP", 100)
    lengths = (30, 30, 250, 1, 100, 7)
    data = [os.urandom(length) for length in lengths]
    into = [memoryview(bytearray(length)) for length in lengths]
    pieces = [(memory.address_of(memoryview(each)), len(each)) for each in data]
    steps = shm_lane._steps(pieces, into)
    assert [sum(map(len, views)) for _, views in steps] == [100, 100, 100, 100, 18]
    for theirs, mine in steps:
        memory.read(os.getpid(), theirs, mine)
    assert list(map(bytes, into)) == data


def test_a_read_that_comes_in_parts_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system reads less than was asked for where it likes."""
    true = memory._libc().process_vm_readv

    class Libc:
        @staticmethod
        def process_vm_readv(pid: int, mine: Any, n: int, theirs: Any, m: int, flags: int) -> int:
            for ranges in (mine, theirs):
                ranges[0].length = min(ranges[0].length, 9)
            return int(true(pid, mine, 1, theirs, 1, flags))

    monkeypatch.setattr(memory, "_libc", Libc)
    data = [os.urandom(length) for length in (5, 40, 9, 1)]
    into = [memoryview(bytearray(len(each))) for each in data]
    memory.read(os.getpid(), [(memory.address_of(memoryview(d)), len(d)) for d in data], into)
    assert list(map(bytes, into)) == data


def test_a_peer_that_breaks_the_rules(ends: Ends, pair: tuple[Any, Any], gate: Gate) -> None:
    to_server, _ = pair
    bulk = ends.server._engine.transfers
    send = ends.dialled.start_send(noise(), timeout=30)
    receive = ends.listening.start_receive(timeout=30)
    assert gate.reached.wait(10)
    (_, transfer), flow = next(iter(bulk._flows.items()))
    with pytest.raises(RemoteProtocolError, match="CHUNK while"):
        bulk.chunk(flow.peering, Chunk(transfer, 0, 1, False), object())  # type: ignore[arg-type]
    gate.opened.set()
    assert torch.equal(receive.result(), noise())
    send.result()
    # Of what is over, or never was.
    ends.client._engine.transfers.shm_decline(to_server, ShmDecline(12345, False), None)


LOAN = Loan(((4096, LARGE),), bytes(16), 4096, bytes(16), bytes(32))


@pytest.mark.parametrize(
    "wrong", [{"codec": "zlib"}, {"head": 5}, {"inline": True, "total": 4}], ids=str
)
def test_a_loan_of_what_cannot_be_lent(wrong: dict[str, Any]) -> None:
    offer = Offer(1, 2, 3, "any", "", LARGE, "raw", b"", 0, False, loan=LOAN)
    assert _unusable(offer, b"") is None
    error = _unusable(replace(offer, **wrong), b"abcd")
    assert isinstance(error, RemoteProtocolError)


def test_a_value_with_empty_parts(ends: Ends) -> None:
    value = [torch.zeros(0), np.zeros((3, 0)), b"", "", noise(), torch.zeros(2, 0, 5)]
    got, wire = passed(ends, value)
    assert same(got, value) and wire < 4096


def test_only_a_peer_that_is_near_makes_a_tunnel_a_local_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To another user's process nothing is lent: there the tunnel is all there is, and may be
    slow."""
    for trust, local in ((None, True), (Trust(tmp_path), False)):
        with linked(other=trust) as ends:
            passed(ends, "hello")
            for end in (ends.server, ends.client):
                [peering] = end._engine.links.peerings
                until(lambda p=peering: p.session is not None and p.shares)
                assert LinkFacts.of(peering).is_local is local


def test_a_peer_of_before_gets_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lane was asked for with other words, and it knows no loans."""
    with monkeypatch.context() as patch:
        patch.setattr("zbus.peer._lanes", lambda _: ("tcp", "memory"))
        before = Peer("before")
    with before, before.listen("127.0.0.1:0") as listening, Peer("now") as now:
        with Proxy(listening.address) as proxy, now.connect(proxy.address) as dialled:
            ends = Ends(listening, dialled, proxy, before, now)
            for up in (True, False):
                got, wire = passed(ends, noise(), up=up, quality="raw")
                assert torch.equal(got, noise()) and wire > LARGE


# --- the system's own rules -----------------------------------------------------------------------


def test_what_cannot_be_read() -> None:
    into = memoryview(bytearray(16))
    with pytest.raises(OSError) as raised:
        memory.read(os.getpid(), [(4096, 16)], [into])
    assert raised.value.errno == errno.EFAULT
    with child("pass") as gone:
        gone.process.wait(20)
        with pytest.raises(OSError):
            memory.read(gone.pid, [(4096, 16)], [into])


def test_elsewhere_it_is_not_even_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.is_possible.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(memory.sys, "platform", "win32")
            assert not memory.is_possible()
            with Peer("elsewhere") as peer:
                assert peer.own.lanes == ("tcp",)
        memory.is_possible.cache_clear()
        with monkeypatch.context() as patch:  # a container that forbids the call
            patch.setattr(memory, "read", refusing(errno.EPERM))
            assert not memory.is_possible()
    finally:
        memory.is_possible.cache_clear()


def test_yama_is_told_who_may_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Libc:
        def prctl(self, option: int, who: int, *_: int) -> int:
            assert option == 0x59616D61
            told.append(who)
            return 0

    monkeypatch.setattr(memory, "_libc", Libc)
    own, parent = os.getpid(), os.getppid()
    monkeypatch.setattr(memory, "_asks_for_names", lambda: False)
    memory.permit({own})
    assert told == []
    monkeypatch.setattr(memory, "_asks_for_names", lambda: True)
    monkeypatch.setattr(memory, "_is_own", lambda pid: pid != 1)
    for pids in (set(), {own}, {own, parent}, {1}, {1, own}):
        memory.permit(pids)
    assert told == [0, own, 2**64 - 1, 0, own]


def test_whose_process_that_is() -> None:
    assert memory._is_own(os.getpid())
    with child("pass") as gone:
        gone.process.wait(20)
        assert not memory._is_own(gone.pid)


# --- several threads for one value ----------------------------------------------------------------


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(lambda call: True)
    yield made
    made.close()


def test_work_is_shared_by_threads_and_all_of_them_are_waited_for(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zbus.engine.workers.CORES", 3)
    together = threading.Barrier(3)
    ended: list[int] = []

    def work() -> None:
        together.wait(20)
        ended.append(threading.get_ident())

    workers.share(work, 8)
    assert len(set(ended)) == 3 and threading.get_ident() in ended


@pytest.mark.parametrize("where", ["here", "there"])
def test_what_one_of_them_raises_waits_for_the_others(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """They write into memory that is let go of then."""
    monkeypatch.setattr("zbus.engine.workers.CORES", 2)
    together, here, ended = threading.Barrier(2), threading.get_ident(), []

    def work() -> None:
        together.wait(20)
        if (threading.get_ident() == here) is (where == "here"):
            raise Unreadable("this", for_good=False)
        threading.Event().wait(0.05)
        ended.append(True)

    with pytest.raises(Unreadable, match="this"):
        workers.share(work, 2)
    assert ended == [True]


def test_a_pool_that_is_busy_is_not_waited_for(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its own threads share: each would wait for another."""
    monkeypatch.setattr("zbus.engine.workers.CORES", 4)
    held, done = threading.Event(), []
    for _ in range(COUNT):
        workers._pool.submit(held.wait, 20)
    try:
        workers.share(lambda: done.append(True), 4)
        assert done == [True]
    finally:
        held.set()
