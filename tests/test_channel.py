"""Two runs meeting on a chain, in memory: binding, pairing, mismatches, ends."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from zbus.errors import (
    AmbiguousPeer,
    Cancelled,
    InvalidOrder,
    LinkLost,
    Mismatch,
    OperationPending,
    RemoteProtocolError,
    RunEnded,
    WrongNodes,
    ZBusError,
)
from zbus.protocol import registrations as c
from zbus.protocol.channel import MAX_REMOTE_RUNS, Channels
from zbus.protocol.manifest import JUMPER, Manifest, compare
from zbus.protocol.messages import Announce, Bound, Cancel, Message, Offer

ADDRESS = "127.0.0.1:8282"


@dataclass(eq=False)
class Side:
    """One process: its Channels, and what an engine would do with the events."""

    name: str
    channels: Channels = field(default_factory=Channels)
    outbox: dict[bytes, deque[tuple[Message, bytes]]] = field(default_factory=dict)
    outcomes: dict[c.ChannelOperation, list[object]] = field(default_factory=dict)
    broken: list[c.RunBroken] = field(default_factory=list)
    values: dict[c.ChannelOperation, str] = field(default_factory=dict)
    stored: deque[tuple[bytes, int]] = field(default_factory=deque)
    arriving: list[c.Matched] = field(default_factory=list)
    is_slow: bool = False  # values take their time, until `store`
    sends: dict[tuple[bytes, int], tuple[c.Registration, c.ChannelOperation]] = field(
        default_factory=dict
    )

    def settle(self) -> None:
        while events := self.channels.drain():
            for event in events:
                match event:
                    case c.Send(session, message, body):
                        if session in self.outbox:
                            self.outbox[session].append((message, body))
                    case c.MayOffer(registration, step):
                        self.offer(registration, step)
                    case c.Matched():
                        self.arriving.append(event)
                        if not self.is_slow:
                            self.store()
                    case c.Failed(_, step, error):
                        self.end(step, error)
                    case c.RunBroken():
                        self.broken.append(event)

    def store(self) -> None:
        """The values under way have arrived."""
        arriving, self.arriving = self.arriving, []
        for event in arriving:
            if event.registration.operation is event.step and event.registration.link is not None:
                self.end(event.step, event.body.decode())
                self.channels.matching.complete(event.registration, event.step)
                self.stored.append((event.registration.link.key, event.offer.operation))

    def end(self, step: c.ChannelOperation, outcome: object) -> None:
        self.outcomes.setdefault(step, []).append(outcome)

    def begin(
        self, registration: c.Registration, step: c.ChannelOperation, value: str = ""
    ) -> c.ChannelOperation:
        self.values[step] = value
        try:
            self.channels.matching.begin(registration, step)
        except ZBusError as error:
            self.end(step, error)
        self.settle()
        return step

    def offer(self, registration: c.Registration, step: c.ChannelOperation) -> None:
        assert registration.link is not None and not step.posted
        body = self.values[step].encode()
        self.sends[registration.link.key, step.id] = registration, step
        self.channels.matching.offer(
            registration, step, body, total=len(body), codec="raw", spec=b"", head=0, inline=True
        )

    def open(
        self, run: str, endpoint: c.Endpoint, channel: str = "main", plan: Manifest | None = None
    ) -> c.Registration:
        registration = self.channels.open(run, endpoint, channel, "14:02", plan)
        self.settle()
        return registration

    def close(self, registration: c.Registration, outcome: str = "ok", why: str = "") -> None:
        self.channels.close(registration, outcome, why)
        self.settle()

    def outcome(self, step: c.ChannelOperation) -> object:
        (only,) = self.outcomes[step]
        return only


class World:
    """Sides joined by sessions, each a pair of queues."""

    def __init__(self, *names: str) -> None:
        self.sides = {name: Side(name) for name in names}
        self.sessions: dict[bytes, tuple[Side, Side]] = {}

    def connect(self, dialler: str, listener: str, address: str = ADDRESS) -> bytes:
        key = bytes([len(self.sessions) + 1]) * 16
        a, b = self.sides[dialler], self.sides[listener]
        self.sessions[key] = a, b
        for side, other, kind in ((a, b, "dial"), (b, a, "listen")):
            side.outbox[key] = deque()
            link = c.Link(key, kind, address, other.name, other.name.encode())
            side.channels.session_up(link)
            side.settle()
        return key

    def disconnect(self, key: bytes, error: ZBusError) -> None:
        for side in self.sessions.pop(key):
            del side.outbox[key]
            side.channels.session_down(key, error)
            side.settle()

    def step(self, key: bytes, forward: bool) -> bool:
        """Deliver one message; False if there is none."""
        source, target = self.sessions[key] if forward else self.sessions[key][::-1]
        if not source.outbox[key]:
            return False
        message, body = source.outbox[key].popleft()
        if isinstance(message, _Stored):
            registration, step = target.sends[key, message.transfer]
            if registration.operation is step:
                target.end(step, None)
                target.channels.matching.complete(registration, step)
        else:
            target.channels.receive(key, message, body)
        target.settle()
        self.acknowledge()
        return True

    def acknowledge(self) -> None:
        for side in self.sides.values():
            while side.stored:
                key, transfer = side.stored.popleft()
                if key in side.outbox:
                    side.outbox[key].append((_Stored(transfer), b""))

    def run(self) -> None:
        """Deliver everything."""
        for _ in range(10_000):
            if not any([self.step(k, f) for k in list(self.sessions) for f in (True, False)]):
                return
        raise AssertionError("the two sides never come to rest")


@dataclass(frozen=True)
class _Stored(Message):
    transfer: int


DIAL, LISTEN, ANY = c.Endpoint("dial", ADDRESS), c.Endpoint("listen", ADDRESS), c.Endpoint("any")


def send(order: int | None = 0, kind: str = "text", node: str = "") -> c.ChannelOperation:
    return c.ChannelOperation("send", kind, node, order)


def receive(order: int | None = 0, kind: str = "text", node: str = "") -> c.ChannelOperation:
    return c.ChannelOperation("receive", kind, node, order)


def pair(channel: str = "main", a: Manifest | None = None, b: Manifest | None = None):  # type: ignore[no-untyped-def]
    world = World("desk", "cloud")
    world.connect("desk", "cloud")
    desk, cloud = world.sides.values()
    registrations = (
        desk.open("run-a", DIAL, channel, a),
        cloud.open("run-b", LISTEN, channel, b),
    )
    world.run()
    return world, desk, cloud, *registrations


def plan(*ops: str) -> Manifest:
    """ "send text 0" , "receive image ?" (order unknown), "maybe send text 1"."""
    made = []
    for op in ops:
        *maybe, direction, kind, key = op.split()
        made.append(
            (direction, kind, None if key == "?" else int(key), not maybe, f"{direction} {kind}")
        )
    return tuple(made)


def test_two_runs_meet_and_a_value_passes() -> None:
    world, desk, cloud, a, b = pair()
    assert a.state is b.state is c.State.BOUND
    sent = desk.begin(a, send(3), "hello")
    got = cloud.begin(b, receive(3))
    world.run()
    assert desk.outcome(sent) is None and cloud.outcome(got) == "hello"


def test_either_side_may_come_first_in_everything() -> None:
    world = World("desk", "cloud")
    desk, cloud = world.sides.values()
    a = desk.open("run-a", DIAL)
    sent = desk.begin(a, send(), "early")
    world.connect("desk", "cloud")
    world.run()
    b = cloud.open("run-b", LISTEN)
    got = cloud.begin(b, receive())
    world.run()
    assert desk.outcome(sent) is None and cloud.outcome(got) == "early"


def test_jumpers_chains_pair_in_sequence_whatever_their_numbers() -> None:
    world, desk, cloud, a, b = pair(JUMPER)
    for mine, theirs, value in ((send(0), receive(40), "x"), (send(2), receive(41), "y")):
        sent, got = desk.begin(a, mine, value), cloud.begin(b, theirs)
        world.run()
        assert desk.outcome(sent) is None and cloud.outcome(got) == value


def test_no_order_is_the_one_after_the_last() -> None:
    """Also after explicit ones, which the other side may have to all of its own."""
    world, desk, cloud, a, b = pair()
    for mine, theirs in ((None, 0), (5, 5), (None, 6), (7, None), (None, None), (2, None)):
        if (mine, theirs) == (2, None):  # one may go back: the other side has to say so, too
            theirs = 2
        sent, got = desk.begin(a, send(mine), "x"), cloud.begin(b, receive(theirs))
        world.run()
        assert desk.outcome(sent) is None and cloud.outcome(got) == "x", (mine, theirs)
    assert a.next_key == b.next_key == 3


@pytest.mark.parametrize("order", [None, 0, 7])
def test_a_number_whose_operation_came_to_nothing_is_free_again(order: int | None) -> None:
    world, desk, cloud, a, b = pair()
    desk.begin(a, send(4), "first")
    cloud.begin(b, receive(4))
    world.run()
    given_up = send(order)
    desk.begin(a, given_up, "never")
    desk.channels.matching.fail(a, given_up, Cancelled("cancelled here"), tell=True)
    desk.settle()
    world.run()
    sent, got = desk.begin(a, send(None), "y"), cloud.begin(b, receive(None))
    world.run()
    assert desk.outcome(sent) is None and cloud.outcome(got) == "y" and got.key == 5


def test_there_is_an_order_after_which_none_is_left() -> None:
    world, desk, _, a, _ = pair()
    last = (1 << 63) - 1
    a.next_key = last + 1
    with pytest.raises(InvalidOrder, match="no order left"):
        desk.channels.matching.begin(a, send(None))
    assert a.operation is None and a.next_key == last + 1


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        (send(1, node="Send 4"), send(1, node="Send 9"), ["both sides send", "Send 4", "Send 9"]),
        (receive(1), receive(1), ["both sides receive"]),
        (send(1, node="Send 4"), receive(2, node="Get"), ["order 1", "order 2", "Send 4", "Get"]),
        (send(1, "text"), receive(1, "image"), ["image is expected, text is sent"]),
    ],
)
def test_operations_that_do_not_pair_fail_on_both_sides(
    mine: c.ChannelOperation, theirs: c.ChannelOperation, said: list[str]
) -> None:
    world, desk, cloud, a, b = pair()
    desk.begin(a, mine, "v")
    cloud.begin(b, theirs, "w")
    world.run()
    for side, step, other in ((desk, mine, "cloud"), (cloud, theirs, "desk")):
        error = side.outcome(step)
        assert isinstance(error, Mismatch), error
        assert all(part in str(error) for part in said) and other in str(error)


MATCHING = (
    (JUMPER, plan("send text 0", "receive image 1"), plan("receive text 7", "send image 8")),
    (JUMPER, plan("send text 0", "maybe send text 1"), plan("receive text 0")),
    ("main", plan("send any 0", "receive any 1"), plan("send image 1", "receive any 0")),
    ("main", plan("send any ?"), plan("receive any 4")),
    ("main", plan("send any 0", "maybe send any 1"), plan("receive any 0")),
)
NOT_MATCHING = (
    (JUMPER, plan("send text 0"), plan("send text 0"), "operation 1"),
    (JUMPER, plan("send text 0"), plan("receive image 0"), "receive image there"),
    (JUMPER, plan("send text 0", "send text 1"), plan("receive text 0"), "2 operations here and 1"),
    (JUMPER, plan("receive text 0"), plan("send text 0", "send text 1"), "1 operations here and 2"),
    ("main", plan("send any 0"), plan("receive any 1"), "order 0"),
    (
        "main",
        plan("receive image 0"),
        plan("send text 0"),
        "order 0 is receive image here and send text there: image is expected, text is sent",
    ),
)


@pytest.mark.parametrize(("channel", "ours", "theirs"), MATCHING)
def test_manifests_that_fit(channel: str, ours: Manifest, theirs: Manifest) -> None:
    assert compare(channel, ours, theirs) is None
    assert compare(channel, theirs, ours) is None


@pytest.mark.parametrize(("channel", "ours", "theirs", "said"), NOT_MATCHING)
def test_manifests_that_do_not_fit_end_both_runs_before_anything_is_computed(
    channel: str, ours: Manifest, theirs: Manifest, said: str
) -> None:
    _world, desk, cloud, a, b = pair(channel, ours, theirs)
    assert isinstance(a.error, Mismatch) and said in str(a.error)
    assert isinstance(b.error, Mismatch)
    assert [e.registration for e in desk.broken] == [a] and [
        e.registration for e in cloud.broken
    ] == [b]
    late = desk.begin(a, send(), "late")
    error = desk.outcome(late)
    assert isinstance(error, Mismatch) and said in str(error) and "send" in error.stage


def test_a_second_operation_at_a_time_names_both() -> None:
    _world, desk, _cloud, a, _b = pair()
    desk.begin(a, send(0, node="Send 4"), "x")
    second = desk.begin(a, send(1, node="Send 5"), "y")
    error = desk.outcome(second)
    assert isinstance(error, OperationPending)
    assert "Send 4" in str(error) and "Send 5" in str(error)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [("ok", "finished"), ("failed", "failed: boom"), ("cancelled", "cancelled")],
)
def test_the_end_of_one_run_ends_the_others_wait_with_its_text(outcome: str, said: str) -> None:
    world, desk, cloud, a, b = pair()
    got = desk.begin(a, receive())
    cloud.close(b, outcome, "boom" if outcome == "failed" else "")
    world.run()
    error = desk.outcome(got)
    assert isinstance(error, RunEnded) and said in str(error) and "cloud" in str(error)


def test_a_computing_run_is_stopped_only_if_it_still_needs_the_other() -> None:
    ours, theirs = plan("send text 0", "receive text 1"), plan("receive text 0", "send text 1")
    world, desk, cloud, a, b = pair("main", ours, theirs)
    desk.begin(a, send(0), "x")
    cloud.begin(b, receive(0))
    world.run()
    cloud.close(b, "failed", "boom")
    world.run()
    assert [e.registration for e in desk.broken] == [a] and "boom" in str(desk.broken[0].error)

    world, desk, cloud, a, b = pair("main", plan("send text 0"), plan("receive text 0"))
    desk.begin(a, send(0), "x")
    cloud.begin(b, receive(0))
    world.run()
    cloud.close(b)
    world.run()
    assert desk.broken == [] and isinstance(a.error, RunEnded)


def test_a_cancelled_operation_frees_both_sides_and_the_channel_goes_on() -> None:
    world, desk, cloud, a, b = pair()
    first = desk.begin(a, send(0), "x")
    world.run()
    desk.channels.matching.fail(a, first, Cancelled("cancelled here"), tell=True)
    desk.settle()
    world.run()
    assert isinstance(desk.outcome(first), Cancelled)
    again, got = desk.begin(a, send(1), "y"), cloud.begin(b, receive(1))
    world.run()
    assert desk.outcome(again) is None and cloud.outcome(got) == "y"


def test_one_run_is_bound_to_one_other_and_the_next_is_told_so() -> None:
    world = World("first", "second", "server")
    first, second, server = world.sides.values()
    world.connect("first", "server")
    key = world.connect("second", "server")
    registration = server.open("run-s", LISTEN)
    one, two = first.open("run-1", DIAL), second.open("run-2", DIAL)
    world.run()
    assert one.state is c.State.BOUND and two.state is c.State.WAITING
    assert "busy with the run" in second.channels.links[key].busy["main"]
    server.close(registration)
    first.close(one)
    world.run()
    registration = server.open("run-t", LISTEN)
    world.run()
    assert registration.partner is not None and registration.partner.run == "run-2"


def test_no_run_gets_an_older_runs_items() -> None:
    world, desk, cloud, a, b = pair()
    old = desk.begin(a, send(0), "old")
    world.run()
    cloud.close(b, "cancelled")
    fresh_b = cloud.open("run-b2", LISTEN)
    got = cloud.begin(fresh_b, receive(0))
    world.run()
    assert isinstance(desk.outcome(old), RunEnded) and got not in cloud.outcomes
    desk.close(a)
    fresh_a = desk.open("run-a2", DIAL)
    desk.begin(fresh_a, send(0), "new")
    world.run()
    assert cloud.outcome(got) == "new"


def test_the_end_of_the_session_ends_what_was_bound_on_it() -> None:
    world, desk, cloud, a, b = pair()
    got = desk.begin(a, receive())
    (key,) = world.sessions
    world.disconnect(key, LinkLost("the link was lost", peer="x"))
    assert isinstance(desk.outcome(got), LinkLost)
    assert isinstance(b.error, LinkLost) and cloud.outcomes == {}


def test_jumpers_nodes_and_our_own_do_not_meet() -> None:
    world = World("desk", "cloud")
    world.connect("desk", "cloud")
    desk, cloud = world.sides.values()
    a = desk.open("run-a", DIAL, JUMPER, plan("send text 0"))
    b = cloud.open("run-b", LISTEN, "main", plan("receive any 0"))
    world.run()
    assert isinstance(a.error, WrongNodes) and isinstance(b.error, WrongNodes)
    assert "ComfyUI-Jumper" in str(a.error) and "send text" in str(a.error)
    assert "receive any" in str(a.error)


def test_no_peer_named_and_two_connected() -> None:
    world = World("first", "second", "desk")
    world.connect("desk", "first", "127.0.0.1:1")
    world.connect("desk", "second", "127.0.0.1:2")
    registration = world.sides["desk"].open("run", ANY)
    assert isinstance(registration.error, AmbiguousPeer)
    assert "first, second" in str(registration.error)


def test_no_peer_named_and_one_connected() -> None:
    world = World("desk", "cloud")
    desk, cloud = world.sides.values()
    a = desk.open("run", ANY)
    world.connect("desk", "cloud")
    b = cloud.open("other", ANY)
    world.run()
    assert a.state is b.state is c.State.BOUND


def test_a_run_that_closes_while_it_is_proposed_ends_the_binding() -> None:
    world = World("desk", "cloud")
    key = world.connect("desk", "cloud")
    desk, cloud = world.sides.values()
    a, b = desk.open("run-a", DIAL), cloud.open("run-b", LISTEN)
    while not isinstance(cloud.outbox[key][-1][0] if cloud.outbox[key] else None, Bound):
        world.step(key, True)
    cloud.close(b, "failed", "boom")
    world.run()
    assert isinstance(a.error, RunEnded) and "boom" in str(a.error)


@pytest.mark.parametrize("forward", [True, False])
def test_binding_is_for_the_listening_side_and_rows_are_bounded(forward: bool) -> None:
    world = World("desk", "cloud")
    key = world.connect("desk", "cloud")
    side = world.sides["cloud" if forward else "desk"]
    if forward:
        with pytest.raises(RemoteProtocolError, match="BOUND"):
            side.channels.receive(key, Bound(1, "main", "a", "b"))
    with pytest.raises(RemoteProtocolError, match="too many"):
        for run in range(100):
            side.channels.receive(key, Announce(str(run), "main", "", ("main",)))


def test_messages_of_other_bindings_and_sessions_are_ignored() -> None:
    world, desk, _cloud, a, _b = pair()
    (key,) = world.sessions
    offer = Offer(99, 1, 0, "text", "", 1, "raw", b"", 0, True)
    for session, message in ((key, offer), (b"?" * 16, offer), (key, Cancel(99, 12345, ""))):
        desk.channels.receive(session, message, b"x")
        assert a.remote is None and not desk.channels.drain()


@pytest.mark.parametrize("order", [0, None])
@pytest.mark.parametrize("store_first", [True, False])
def test_a_cancel_that_crosses_a_stored_leaves_both_runs_usable(
    order: int | None, store_first: bool
) -> None:
    """The sender gives up while the receiver, which it cannot know, has the value already or is
    about to have it. Whichever it was: both sides agree, and the next items pass."""
    world, desk, cloud, a, b = pair()
    cloud.is_slow = True
    given_up = desk.begin(a, send(order), "one")
    got = cloud.begin(b, receive(order))
    world.run()
    if store_first:
        cloud.store()
        world.acknowledge()  # its word is on the way
    desk.channels.matching.fail(a, given_up, Cancelled("here"), tell=True)
    desk.settle()
    assert isinstance(desk.outcome(given_up), Cancelled), "a cancel never waits for the peer"
    following = (None, None) if order is None else (order + store_first, order + store_first)
    sent = desk.begin(a, send(following[0]), "two")
    taken = cloud.begin(b, receive(following[1])) if store_first else None
    world.run()
    if taken is None:
        assert isinstance(cloud.outcome(got), RunEnded), "the other side gave up"
        taken = cloud.begin(b, receive(following[1]))
    else:
        assert cloud.outcome(got) == "one"
    world.run()
    cloud.store()
    world.acknowledge()
    world.run()
    assert cloud.outcome(taken) == "two" and desk.outcome(sent) is None
    assert a.state is b.state is c.State.BOUND
    assert (a.next_key, a.finished) == (b.next_key, b.finished)


def test_two_cancels_that_cross_are_both_answered() -> None:
    world, desk, cloud, a, b = pair()
    cloud.is_slow = True
    one, two = desk.begin(a, send(None), "one"), cloud.begin(b, receive(None))
    world.run()
    for side, registration, step in ((desk, a, one), (cloud, b, two)):
        side.channels.matching.fail(registration, step, Cancelled("here"), tell=True)
        side.settle()
    again, taken = desk.begin(a, send(None), "again"), cloud.begin(b, receive(None))
    assert not again.id and not taken.id, "nothing is said before the other side has answered"
    world.run()
    cloud.store()
    assert cloud.outcome(taken) == "again" and again.key == taken.key == 0


def test_more_runs_than_a_session_keeps_wait_for_their_turn() -> None:
    """They are announced as soon as others have met their partners; no session ends for it."""
    world = World("desk", "cloud")
    key = world.connect("desk", "cloud")
    desk, cloud = world.sides["desk"], world.sides["cloud"]
    runs = [desk.open(f"r{i}", DIAL, f"c{i}") for i in range(MAX_REMOTE_RUNS + 3)]
    world.run()
    link = desk.channels.links[key]
    assert link.held == runs[MAX_REMOTE_RUNS:]
    assert len(cloud.channels.links[key].remote) == MAX_REMOTE_RUNS
    first = cloud.open("there", LISTEN, "c0")
    desk.close(runs[1])
    world.run()
    assert first.state is runs[0].state is c.State.BOUND and link.held == runs[-1:]
    late = cloud.open("late", LISTEN, f"c{MAX_REMOTE_RUNS}")
    world.run()
    assert late.state is runs[MAX_REMOTE_RUNS].state is c.State.BOUND and not link.held
    desk.close(runs[5])
    world.run()
    assert len(cloud.channels.links[key].remote) == MAX_REMOTE_RUNS - 1


@pytest.mark.parametrize("close_first", [True, False])
def test_two_places_of_one_run_both_meet(close_first: bool) -> None:
    """One run has two places that cover one session on one channel: each has its own partner."""
    world = World("desk", "cloud")
    world.connect("desk", "cloud")
    desk, cloud = world.sides["desk"], world.sides["cloud"]
    one, two = cloud.open("r", LISTEN, "main"), cloud.open("r", ANY, "main")
    first = desk.open("a", DIAL, "main")
    world.run()
    assert first.state is one.state is c.State.BOUND
    if close_first:
        desk.close(first)
        cloud.close(one)
        world.run()
    second = desk.open("b", DIAL, "main")
    world.run()
    assert second.state is two.state is c.State.BOUND


def test_a_run_that_is_held_back_meets_when_its_turn_comes() -> None:
    """On the side that proposes: it may not propose what the other side has not heard of."""
    world = World("desk", "cloud")
    world.connect("desk", "cloud")
    desk, cloud = world.sides["desk"], world.sides["cloud"]
    runs = [cloud.open(f"r{i}", LISTEN, f"c{i}") for i in range(MAX_REMOTE_RUNS + 1)]
    other = desk.open("late", DIAL, f"c{MAX_REMOTE_RUNS}")
    world.run()
    assert other.state is c.State.WAITING
    cloud.close(runs[0])
    world.run()
    assert other.state is runs[-1].state is c.State.BOUND


def test_a_run_that_is_announced_again_takes_its_own_room() -> None:
    world = World("desk", "cloud")
    key = world.connect("desk", "cloud")
    side = world.sides["cloud"]
    for run in [*range(MAX_REMOTE_RUNS), 3]:
        side.channels.receive(key, Announce(str(run), "main", "", ("main",)))
    assert len(side.channels.links[key].remote) == MAX_REMOTE_RUNS


class Meeting(RuleBasedStateMachine):
    """Runs open, operate, cancel and close on two sides at once; sessions end and come again.
    Every operation ends in one outcome, values are those of the run that is bound, and nothing
    is left waiting for something that is already there."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World("desk", "cloud")
        self.key: bytes | None = None
        self.registrations: dict[str, c.Registration | None] = {"desk": None, "cloud": None}
        self.operations: dict[str, list[tuple[c.Registration, c.ChannelOperation]]] = {
            "desk": [],
            "cloud": [],
        }
        self.count = 0
        for side in self.world.sides.values():
            side.is_slow = True
        self.up()

    names = st.sampled_from(["desk", "cloud"])

    @precondition(lambda self: self.key is None)
    @rule()
    def up(self) -> None:
        self.world.sessions.clear()
        self.key = self.world.connect("desk", "cloud")

    @precondition(lambda self: self.key is not None)
    @rule()
    def down(self) -> None:
        assert self.key is not None
        self.world.disconnect(self.key, LinkLost("lost"))
        self.key = None

    @rule(name=names, channel=st.sampled_from(["main", JUMPER]))
    def open(self, name: str, channel: str) -> None:
        if self.registrations[name] is None:
            self.count += 1
            endpoint = DIAL if name == "desk" else LISTEN
            self.registrations[name] = self.world.sides[name].open(
                f"{name}-{self.count}", endpoint, channel
            )

    @rule(name=names, outcome=st.sampled_from(["ok", "failed", "cancelled"]))
    def close(self, name: str, outcome: str) -> None:
        registration = self.registrations[name]
        if registration is not None:
            self.world.sides[name].close(registration, outcome, "why")
            self.registrations[name] = None

    orders = st.sampled_from([0, 1, None])

    @rule(name=names, direction=st.sampled_from(["send", "receive"]), order=orders)
    def begin(self, name: str, direction: str, order: int | None) -> None:
        registration = self.registrations[name]
        if registration is not None:
            step = c.ChannelOperation(direction, "text", "", order)
            self.operations[name].append((registration, step))
            self.world.sides[name].begin(registration, step, registration.run)

    @rule(sender=names, channel=st.sampled_from(["main", JUMPER]), order=orders)
    def exchange(self, sender: str, channel: str, order: int | None) -> None:
        """What people mean to do: both sides run, and one sends what the other awaits."""
        for name in self.registrations:
            self.open(name, channel)
            self.begin(name, "send" if name == sender else "receive", order)
        if self.key is not None:
            self.rest()

    @rule(name=names)
    def store(self, name: str) -> None:
        self.world.sides[name].store()
        self.world.acknowledge()

    @rule(name=names)
    def cancel(self, name: str) -> None:
        registration = self.registrations[name]
        if registration is not None and registration.operation is not None:
            side = self.world.sides[name]
            side.channels.matching.fail(
                registration, registration.operation, Cancelled("here"), tell=True
            )
            side.settle()

    @precondition(lambda self: self.key is not None)
    @rule(forward=st.booleans(), count=st.integers(1, 6))
    def deliver(self, forward: bool, count: int) -> None:
        assert self.key is not None
        for _ in range(count):
            self.world.step(self.key, forward)

    def teardown(self) -> None:
        if self.key is None:
            self.up()
        self.world.run()
        self.nothing_waits_for_what_is_there()
        for name in self.registrations:
            self.store(name)
        self.world.run()
        for name in self.registrations:
            self.close(name, "ok")
        self.world.run()
        for name, steps in self.operations.items():
            side = self.world.sides[name]
            for registration, step in steps:
                (outcome,) = side.outcomes[step]
                if isinstance(outcome, str):
                    assert outcome.split("-")[0] != name, "a value of the other side"
                    assert registration.partner is not None and outcome == registration.partner.run
            assert side.channels.registrations == []

    @precondition(lambda self: self.key is not None)
    @rule()
    def rest(self) -> None:
        self.world.run()
        self.nothing_waits_for_what_is_there()

    def nothing_waits_for_what_is_there(self) -> None:
        desk, cloud = self.registrations["desk"], self.registrations["cloud"]
        for registration, other in ((desk, cloud), (cloud, desk)):
            if registration is not None and other is None:
                assert registration.state in (c.State.WAITING, c.State.ENDED), (
                    "bound to a run that is gone"
                )
        if desk is None or cloud is None:
            return
        if desk.channel == cloud.channel and desk.error is None and cloud.error is None:
            assert desk.state is cloud.state is c.State.BOUND
            steps = [s for s in (desk.operation, cloud.operation) if s is not None]
            matched = [step.matched for step in steps]
            assert len(matched) < 2 or all(matched), "both open, and neither paired nor failed"
            assert len(matched) == 2 or not any(matched), "one half of a pair is gone"
            assert desk.cancelling is cloud.cancelling is None
            if not any(side.arriving for side in self.world.sides.values()):
                assert (desk.next_key, desk.finished) == (cloud.next_key, cloud.finished), (
                    "the two sides do not agree on which items are done"
                )


TestMeeting = Meeting.TestCase
TestMeeting.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
