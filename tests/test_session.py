"""The session: exactly once and in order, whatever happens to its connections; life and death."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zbus.errors import LinkLost, RemoteProtocolError
from zbus.protocol import session as s
from zbus.protocol.messages import Ack, Hello, Message, Ping, Pong, Status, Stored, decode

PEER = Hello((1, 1), b"i" * 16, b"n" * 16, "cloud", b"x" * 16)


def make(now: float = 0.0, *, dialled: bool = True, wait: float = 300.0) -> s.Session:
    return s.Session(b"k" * 16, PEER, dialled=dialled, reconnect_wait=wait, now=now)


def linked(now: float = 0.0) -> s.Session:
    session = make(now)
    session.linked(0, now)
    return session


def said(session: s.Session) -> list[tuple[int, Message]]:
    return [decode(frames[0], len(frames) > 1) for frames in session.outgoing()]


def test_messages_are_numbered_and_kept_until_acknowledged() -> None:
    session = linked()
    session.send(Stored(1))
    session.send(Status("idle"))
    session.send(Stored(2))
    assert said(session) == [(1, Stored(1)), (0, Status("idle")), (2, Stored(2))]
    assert not session.drained
    session.receive(0, Ack(2), 1.0)
    assert session.drained


def test_an_acknowledgement_comes_after_20_ms_or_32_messages() -> None:
    session = linked()
    session.receive(1, Stored(1), 5.0)
    assert session.deadline() == pytest.approx(5.02) and not session.outgoing()
    session.tick(5.03)
    assert (0, Ack(1)) in said(session)
    for seq in range(2, 34):
        session.receive(seq, Stored(seq), 5.1)
    assert said(session) == [(0, Ack(33))]


def test_what_was_not_acknowledged_is_sent_again_on_the_next_connection() -> None:
    session = linked()
    for item in (1, 2, 3):
        session.send(Stored(item))
    session.outgoing()
    session.unlinked(1.0)
    session.send(Stored(4))
    session.send(Status("lost"))  # outside the sequence: not kept
    assert session.outgoing() == []
    session.linked(2, 2.0)
    assert said(session) == [(3, Stored(3)), (4, Stored(4))]


def test_what_comes_twice_is_dropped_and_a_gap_is_an_error() -> None:
    session = linked()
    assert session.receive(1, Stored(1), 0.0)
    assert not session.receive(1, Stored(1), 0.0)
    with pytest.raises(RemoteProtocolError, match="3 after 1"):
        session.receive(3, Stored(3), 0.0)


@pytest.mark.parametrize("claimed", [1, 5])
def test_a_peer_that_claims_what_was_never_sent(claimed: int) -> None:
    session = linked()
    with pytest.raises(RemoteProtocolError, match="ACK"):
        session.receive(0, Ack(claimed), 0.0)


def test_a_peer_that_forgets_what_it_acknowledged() -> None:
    session = linked()
    session.send(Stored(1))
    session.receive(0, Ack(1), 0.0)
    session.unlinked(1.0)
    with pytest.raises(RemoteProtocolError, match="forgotten"):
        session.linked(0, 2.0)


def test_unacknowledged_messages_are_bounded() -> None:
    session = linked()
    for item in range(s.MAX_UNACKED):
        session.send(Stored(item))
    assert session.tick(0.0) == []
    session.send(Stored(0))
    (ended,) = session.tick(0.0)
    assert isinstance(ended, s.Ended) and "1024 messages" in str(ended.error)


def test_pings_are_frequent_only_while_something_is_open() -> None:
    session = linked(0.0)
    session.active = True
    session.tick(1.9)
    assert said(session) == []
    session.tick(2.0)
    assert said(session) == [(0, Ping(1))]
    session.receive(0, Pong(1), 2.3)
    assert session.round_trip == pytest.approx(0.3)
    session.active = False
    session.tick(20.0)
    assert said(session) == []
    session.tick(32.0)
    assert said(session) == [(0, Ping(2))]


def test_silence_is_told_before_the_connection_is_given_up() -> None:
    session = linked(0.0)
    session.active = True
    told = []
    for now in range(1, 31):
        told += session.tick(float(now))
    assert isinstance(told[0], s.Silent) and told[0].seconds == 7.0
    assert told[-1] == s.Redial() and told.count(s.Redial()) == 1
    assert session.error is None, "a deaf peer is not a dead one"


def test_a_turn_that_came_late_says_nothing_of_the_peer() -> None:
    session = linked(0.0)
    session.active = True
    assert session.tick(40.0, late=39.0) == []


def test_a_lost_link_is_waited_for_and_then_it_ends() -> None:
    session = make(0.0, wait=5.0)
    session.linked(0, 0.0)
    session.send(Stored(1))
    session.unlinked(10.0)
    assert session.deadline() == 15.0
    assert session.tick(14.9) == [] and session.lost_for(14.0) == 4.0
    (ended,) = session.tick(15.0)
    assert isinstance(ended, s.Ended) and isinstance(ended.error, LinkLost)
    assert "cloud" in str(ended.error) and "5 s" in str(ended.error)
    assert session.deadline() is None and session.drained


class Exchange(RuleBasedStateMachine):
    """Two sessions over connections that lose everything in flight when they are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sides = (make(), make(dialled=False))
        self.wires: tuple[deque[s.Frames], deque[s.Frames]] = (deque(), deque())
        self.sent: tuple[list[int], list[int]] = ([], [])
        self.got: tuple[list[int], list[int]] = ([], [])
        self.is_linked = False
        self.link()

    def flush(self) -> None:
        for side, wire in zip(self.sides, self.wires, strict=True):
            wire.extend(side.outgoing())

    @precondition(lambda self: not self.is_linked)
    @rule()
    def link(self) -> None:
        told = [side.received for side in self.sides]
        for side, received in zip(self.sides, reversed(told), strict=True):
            side.linked(received, self.now)
        self.is_linked = True

    @rule(who=st.integers(0, 1), count=st.integers(1, 40))
    def send(self, who: int, count: int) -> None:
        for _ in range(count):
            item = len(self.sent[who])
            self.sides[who].send(Stored(item))
            self.sent[who].append(item)
        self.flush()

    @precondition(lambda self: self.is_linked)
    @rule(who=st.integers(0, 1), count=st.integers(1, 60), twice=st.booleans())
    def deliver(self, who: int, count: int, twice: bool) -> None:
        for _ in range(min(count, len(self.wires[who]))):
            frames = self.wires[who].popleft()
            for _ in range(1 + twice):
                seq, message = decode(frames[0], len(frames) > 1)
                is_new = self.sides[1 - who].receive(seq, message, self.now)
                if is_new and isinstance(message, Stored):
                    self.got[1 - who].append(message.transfer)
        self.flush()

    @precondition(lambda self: self.is_linked)
    @rule(who=st.integers(0, 1))
    def lose_one_message(self, who: int) -> None:
        """A frame that vanishes (a ROUTER may drop) is noticed by the next one: the connection
        ends, and the next one brings it again."""
        if len(self.wires[who]) < 2:
            return
        lost, after = self.wires[who].popleft(), self.wires[who][0]
        seqs = [decode(frames[0], False)[0] for frames in (lost, after)]
        if 0 in seqs or seqs[0] <= self.sides[1 - who].received:
            self.wires[who].appendleft(lost)
            return
        with pytest.raises(RemoteProtocolError):
            self.sides[1 - who].receive(seqs[1], Stored(0), self.now)
        self.cut()

    @precondition(lambda self: self.is_linked)
    @rule()
    def cut(self) -> None:
        for side, wire in zip(self.sides, self.wires, strict=True):
            side.unlinked(self.now)
            wire.clear()
        self.is_linked = False

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for side in self.sides:
            side.tick(self.now)
        self.flush()

    @invariant()
    def delivered_is_a_prefix_of_sent(self) -> None:
        for who in (0, 1):
            assert self.got[1 - who] == self.sent[who][: len(self.got[1 - who])]

    def teardown(self) -> None:
        if not self.is_linked:
            self.link()
        self.flush()
        for _ in range(2000):
            if not any(self.wires):
                break
            self.deliver(0, 100, False)
            self.deliver(1, 100, False)
        assert self.got == (self.sent[1], self.sent[0]), "everything arrives in the end"
        self.wait(1.0)
        self.deliver(0, 100, False)
        self.deliver(1, 100, False)
        assert all(side.drained for side in self.sides)


TestExchange = Exchange.TestCase
TestExchange.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_a_link_that_was_idle_is_not_called_silent_as_soon_as_it_is_used() -> None:
    """Nothing came for 20 s because nothing was to be said: that is no fault of the peer."""
    session = linked()
    for now in (1.0, 21.0):
        assert not [e for e in session.tick(now) if isinstance(e, s.Silent)]
    session.active = True
    assert session.tick(21.1) == []
    told = [event for later in range(22, 30) for event in session.tick(float(later))]
    assert isinstance(told[0], s.Silent) and told[0].seconds == pytest.approx(7.0, abs=1.0)
