"""One value as chunks against grants: exact and once through cuts, within the window."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zbus.errors import RemoteProtocolError
from zbus.protocol.messages import Chunk, Grant
from zbus.protocol.pace import EXTRA_MAX, MAX_CHUNK, MIN_CHUNK, Pace
from zbus.protocol.rates import MOST, Rates
from zbus.protocol.transfer import Incoming, Outgoing

MIB = 1 << 20


def cut(offset: int, want: int) -> int:
    return want


def test_nothing_goes_before_a_grant() -> None:
    outgoing = Outgoing(1, 10 * MIB, cut, Pace())
    assert outgoing.plan() is None
    outgoing.grant(Grant(1, 0, 10 * MIB), 0.0)
    assert outgoing.plan() == (0, Pace().chunk)


def test_the_limit_ends_a_chunk() -> None:
    outgoing = Outgoing(1, 10 * MIB, cut, Pace())
    outgoing.grant(Grant(1, 0, 1000), 0.0)
    assert outgoing.plan() == (0, 1000)
    assert outgoing.plan() is None


@pytest.mark.parametrize("grant", [Grant(1, 1, 100), Grant(1, 0, 101)])
def test_a_grant_of_what_was_never_sent(grant: Grant) -> None:
    outgoing = Outgoing(1, 100, cut, Pace())
    with pytest.raises(RemoteProtocolError, match="GRANT"):
        outgoing.grant(grant, 0.0)


@pytest.mark.parametrize("chunk", [Chunk(1, 5, 5, False), Chunk(1, 0, 101, False)])
def test_a_chunk_that_leaves_a_gap_or_was_not_granted(chunk: Chunk) -> None:
    incoming = Incoming(1, 200, window=100)
    incoming.grant()
    with pytest.raises(RemoteProtocolError, match="chunk"):
        incoming.arrive(chunk)


def test_a_window_moves_with_what_is_stored() -> None:
    incoming = Incoming(1, 200, window=100)
    assert incoming.grant() == Grant(1, 0, 100)
    assert incoming.grant() is None
    assert incoming.arrive(Chunk(1, 0, 60, False))
    assert incoming.stored(0, 60) == [(0, 60)]
    assert incoming.grant() == Grant(1, 60, 160)


def test_decoded_out_of_order_is_granted_in_order() -> None:
    incoming = Incoming(1, 30)
    incoming.grant()
    for offset in (0, 10, 20):
        assert incoming.arrive(Chunk(1, offset, 10, True))
    assert incoming.stored(20, 10) == [] and incoming.stored(10, 10) == []
    assert incoming.stored(0, 10) == [(0, 10), (10, 10), (20, 10)]
    assert incoming.complete


def test_after_a_cut_the_sender_goes_on_where_the_receiver_is() -> None:
    outgoing = Outgoing(1, 10 * MIB, cut, Pace())
    outgoing.grant(Grant(1, 0, 10 * MIB), 0.0)
    first, second = outgoing.plan(), outgoing.plan()
    assert first and second
    outgoing.unlinked()
    assert outgoing.plan() is None
    outgoing.grant(Grant(1, first[1], 10 * MIB), 1.0)
    assert outgoing.plan() == second
    assert outgoing.epoch == 1


def test_a_repeated_grant_waits_for_what_is_being_decoded() -> None:
    incoming = Incoming(1, 30)
    incoming.grant()
    incoming.arrive(Chunk(1, 0, 10, True))
    incoming.linked()
    assert incoming.grant() is None
    incoming.stored(0, 10)
    assert incoming.grant() == Grant(1, 10, 30)


def run_link(pace: Pace, rate: float, trip: float, seconds: float) -> None:
    """A link of `rate` bytes/s and `trip` seconds that is kept as busy as `pace` allows."""
    now, wire_free = 0.0, 0.0
    arriving: deque[float] = deque()
    while now < seconds:
        while pace.has_room():
            wire_free = max(wire_free, now) + pace.chunk / rate
            arriving.append(wire_free + trip)
            pace.sent(pace.chunk, now)
        now = arriving.popleft()
        pace.delivered(1, now)


def test_short_values_do_not_make_a_fast_link_slow() -> None:
    """The window only begins to grow in them: what they take says nothing of the link."""
    pace = Pace()
    for _ in range(40):
        run_link(pace, 2e9, 0.0003, 0.004)
        pace.dropped(1000)
    assert pace.rate is None
    run_link(pace, 2e9, 0.0003, 1.0)
    assert pace.rate == pytest.approx(2e9, rel=0.3)


@pytest.mark.parametrize(
    ("rate", "trip"), [(2e9, 0.0002), (1e8, 0.02), (5e6, 0.005), (2e5, 0.1), (4e7, 0.05)]
)
def test_the_window_fits_the_link(rate: float, trip: float) -> None:
    pace = Pace()
    run_link(pace, rate, trip, 10 * trip + 3.0 * max(1.0, MAX_CHUNK / rate / 4))
    assert pace.rate == pytest.approx(rate, rel=0.3)
    assert pace.window >= min(rate * trip, 2 * MIN_CHUNK), "the wire is kept busy"
    queued = (pace.window - rate * trip) / rate
    assert queued <= 0.10 + 2 * MIN_CHUNK / rate, "a cancel waits a moment, not seconds"
    assert MIN_CHUNK <= pace.chunk <= MAX_CHUNK


def test_behind_a_cipher_a_ping_waits_for_few_bytes() -> None:
    rate, trip = 1e9, 0.0002
    plain, encrypted = Pace(), Pace(encrypted=True)
    for pace in (plain, encrypted):
        run_link(pace, rate, trip, 1.0)
        assert pace.rate == pytest.approx(rate, rel=0.3)
    assert encrypted.window <= 3 * MIB < plain.window
    assert encrypted.window >= 4 * encrypted.chunk, "each of its stages has something to do"
    slow = Pace(encrypted=True)
    run_link(slow, 4e7, 0.05, 5.0)
    assert slow.rate == pytest.approx(4e7, rel=0.3), "and a long way is filled all the same"


def test_the_burst_of_a_buffer_is_no_rate() -> None:
    """What takes the first bytes at once, and then gives 2 MB/s, would keep a cancel waiting."""
    pace, now = Pace(), 0.0
    for _ in range(3):
        pace.sent(pace.chunk, now)
        now += 0.0003
        pace.delivered(1, now)
    assert pace.window <= 0.25 * 2e6


def test_a_fast_link_is_known_soon() -> None:
    pace, now, sent = Pace(), 0.0, 0
    while pace.window < EXTRA_MAX / 2:
        while pace.has_room():
            pace.sent(pace.chunk, now)
        sent += pace.in_flight
        now += 0.0003
        pace.delivered(1000, now)
    assert now < 0.003 and sent < 16 * 1024 * 1024


def test_a_fast_link_queues_milliseconds() -> None:
    pace = Pace()
    run_link(pace, 2e9, 0.0002, 1.0)
    assert pace.window <= EXTRA_MAX * 1.3


def test_a_link_that_waits_for_its_sender_does_not_look_slow() -> None:
    pace = Pace()
    run_link(pace, 1e9, 0.0002, 1.0)
    rate = pace.rate
    assert rate is not None
    for i in range(100):  # a codec makes one small chunk every 10 ms
        now = 2.0 + i / 100
        pace.sent(100_000, now)
        pace.delivered(1, now + 0.0003)
    assert pace.rate == rate


def test_what_an_earlier_session_found_counts_until_this_one_has_found_more() -> None:
    pace = Pace(2e6)
    assert (pace.rate, pace.found) == (2e6, None)
    assert pace.window == Pace().window, "it begins small all the same"
    run_link(pace, 1e8, 0.02, 3.0)
    assert pace.rate == pace.found == pytest.approx(1e8, rel=0.3)


def test_a_rate_is_kept_for_its_link() -> None:
    rates = Rates()
    rates.keep("slow", 1e6)
    rates.keep("slow", None)  # that session was never busy: nothing new
    assert (rates.of("slow"), rates.of("another")) == (1e6, None)


def test_so_many_links_are_known_and_no_more() -> None:
    rates = Rates()
    for number in range(MOST):
        rates.keep(number, 1e6)
    rates.keep(0, 2e6)
    rates.keep("new", 3e6)
    assert [rates.of(name) for name in (0, 1, 2, "new")] == [2e6, None, 1e6, 3e6]


def test_nothing_is_known_of_a_link_that_was_never_busy() -> None:
    pace = Pace()
    for i in range(10):
        pace.sent(1000, i / 10)
        pace.delivered(1, i / 10 + 0.0003)
    assert pace.rate is None and pace.window >= 2 * MIN_CHUNK


def first_chunks(rate: float, trip: float) -> tuple[float | None, int]:
    """What a new session takes a link for, and how much it has sent for that."""
    pace, now, sent = Pace(), 0.0, 0
    pace.answered(trip)
    while pace.likely is None:
        assert pace.has_room()
        size = pace.probe
        pace.sent(size, now)
        now += trip + size / rate
        pace.delivered(1, now)
        sent += size
    return pace.likely, sent


@pytest.mark.parametrize("trip", [0.0003, 0.001, 0.004])
@pytest.mark.parametrize("rate", [1.25e6, 12.5e6, 125e6, 1.25e9])
def test_the_first_chunks_show_what_a_link_is_like(rate: float, trip: float) -> None:
    likely, sent = first_chunks(rate, trip)
    assert likely is not None and likely <= 1.01 * rate
    assert likely >= 0.99 * rate or likely >= 20e6 / max(1.0, trip / 0.001)
    assert sent / rate < 0.014 + trip, "where it is little they do not take long"


def test_a_burst_of_a_shaper_is_soon_known_for_one() -> None:
    pace, now = Pace(), 0.0
    pace.answered(0.001)
    pace.sent(pace.probe, now)
    pace.delivered(1, now + 0.001)
    assert pace.likely is None
    run_link(pace, 1.25e6, 0.001, 1.0)
    assert pace.likely == pytest.approx(1.25e6, rel=0.3)


def test_what_was_known_counts_until_more_is_seen() -> None:
    assert Pace(2e6).likely == 2e6 and Pace(2e6).is_new
    pace = Pace(2e6)
    pace.sent(1 << 20, 0.0)
    pace.delivered(1, 0.01)
    assert pace.likely == pytest.approx(1e8, rel=0.1) and not pace.is_new


def test_an_answer_that_waited_for_a_person_is_no_round_trip() -> None:
    pace = Pace()
    pace.answered(60.0)
    pace.sent(16384, 0.0)
    pace.delivered(1, 0.02)
    pace.sent(1 << 20, 0.02)
    assert pace.answer == 0.0 and pace.busy(1e6, 0) == pytest.approx(1.05, rel=0.01)


def test_an_idle_link_and_a_busy_one() -> None:
    pace = Pace()
    pace.answered(0.001)
    pace.sent(16384, 0.0)
    assert not pace.was_idle(1.0)
    assert pace.busy(1e6, 10_000) == pytest.approx(0.0254, rel=0.01)
    pace.delivered(1, 0.02)
    assert not pace.was_idle(0.03) and pace.was_idle(0.05)
    assert pace.busy(1e6, 0) == 0.0


class Moving(RuleBasedStateMachine):
    """A transfer between an Outgoing and an Incoming, with codec threads on both sides, over
    connections that lose what is in flight."""

    @initialize(
        total=st.integers(0, 3 * MIB),
        window=st.none() | st.integers(4096, MIB),
        data=st.integers(0, 255),
    )
    def begin(self, total: int, window: int | None, data: int) -> None:
        self.now = 0.0
        self.pace = Pace()
        self.total = total
        self.out = Outgoing(1, total, lambda offset, want: max(1, want - data), self.pace)
        self.into = Incoming(1, total, window)
        self.encoding: deque[tuple[int, int, int]] = deque()
        self.wire: deque[Chunk] = deque()
        self.back: deque[Grant] = deque()
        self.decoding: list[Chunk] = []
        self.copies = bytearray((total >> 10) + 1)
        self.is_linked = True

    @rule()
    def plan(self) -> None:
        planned = self.out.plan()
        if planned is not None:
            self.encoding.append((self.out.epoch, *planned))

    @rule(count=st.integers(1, 5))
    def encoded(self, count: int) -> None:
        for _ in range(min(count, len(self.encoding))):
            epoch, offset, size = self.encoding.popleft()
            if epoch == self.out.epoch and self.is_linked:
                self.out.sent(offset, size, size, self.now)
                self.wire.append(Chunk(1, offset, size, True))

    @rule(count=st.integers(1, 8))
    def arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.wire))):
            chunk = self.wire.popleft()
            if self.into.arrive(chunk):
                self.decoding.append(chunk)

    @rule(pick=st.integers(0, 7))
    def decoded(self, pick: int) -> None:
        if self.decoding:
            chunk = self.decoding.pop(pick % len(self.decoding))
            self.into.stored(chunk.offset, chunk.size)

    @rule()
    def grant(self) -> None:
        grant = self.into.grant()
        if grant is not None and self.is_linked:
            self.back.append(grant)

    @rule(count=st.integers(1, 4), lost=st.booleans())
    def granted(self, count: int, lost: bool) -> None:
        self.now += 0.01
        for _ in range(min(count, len(self.back))):
            grant = self.back.popleft()
            # Losing one is harmless if another follows; the last must come.
            if not (lost and self.back):
                self.out.grant(grant, self.now)

    @precondition(lambda self: self.is_linked)
    @rule()
    def cut(self) -> None:
        self.is_linked = False
        self.wire.clear()
        self.back.clear()
        self.out.unlinked()
        self.pace.reset()

    @precondition(lambda self: not self.is_linked)
    @rule()
    def link(self) -> None:
        self.is_linked = True
        self.into.linked()

    @invariant()
    def in_flight_stays_within_the_window(self) -> None:
        if hasattr(self, "pace"):
            assert self.pace.in_flight <= self.pace.window + 4 * MAX_CHUNK
            assert 0 <= self.into.received <= self.into.arrived <= self.total

    def teardown(self) -> None:
        if not hasattr(self, "pace"):
            return
        if not self.is_linked:
            self.link()
        for _ in range(200_000):
            if self.into.complete and self.out.complete:
                break
            self.grant()
            self.granted(4, False)
            self.plan()
            self.encoded(5)
            self.arrive(8)
            self.decoded(0)
        assert self.into.complete and self.out.complete, "no deadlock"
        assert self.pace.in_flight == 0


TestMoving = Moving.TestCase
TestMoving.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
