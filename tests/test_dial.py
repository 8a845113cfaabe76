"""A dialled peer's machine in memory, without sockets: its table, and every small world."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from zbus.address import Address, parse_dial
from zbus.errors import (
    DialledSelf,
    KeyChanged,
    LocalProtocolError,
    NameNotResolved,
    NobodyBehind,
    NotPaired,
    NotZBus,
    RemoteProtocolError,
    Unreachable,
    VersionMismatch,
    ZBusError,
)
from zbus.protocol import dial, ways
from zbus.protocol.dial import (
    LATE,
    TABLE,
    Action,
    Close,
    Closed,
    Connect,
    Connected,
    Diagnose,
    Diagnosed,
    Dial,
    Due,
    Event,
    Faulty,
    Found,
    Greet,
    Greeted,
    HangUp,
    Held,
    Hopeless,
    NotFound,
    Parted,
    Refused,
    Resolve,
    State,
    Tell,
    Use,
    Warn,
)
from zbus.protocol.ways import Problem, Spot

A, B = Address("one.example", 1), Address("two.example", 2)
SPOTS = {
    way: (Spot(f"10.0.0.{2 * way.port}", way.port), Spot("fe80::1%Eth0", way.port))
    for way in (A, B)
}
REFUSED = Unreachable("nobody listens there: connection refused", peer="one")
OTHER = NotZBus("a web server answers there, not a zbus peer")
UNKNOWN = NameNotResolved("the name is not known")
WRONG = RemoteProtocolError("a wrong answer")
SELF = DialledSelf("this address is this very process")


class World:
    """A dial, its clock, and what it has asked for and not yet been answered."""

    def __init__(self, *given: Address, hints: tuple[Address, ...] = (), key: bool = False) -> None:
        self.dial = Dial(given or (A,), frozenset(hints), is_keyed=key)
        self.now = 100.0
        self.done: list[Action] = []
        self.resolving: list[Address] = []
        self.looking: list[tuple[Address, Spot]] = []
        self.connection: Spot | None = None
        self.tried: set[Spot] = set()

    def tell(self, *events: Event) -> list[Action]:
        """What it wants done for these."""
        self.done = []
        for event in events:
            for action in self.dial.handle(event, self.now):
                self._take(action)
        return self.done

    def _take(self, action: Action) -> None:
        self.done.append(action)
        if isinstance(action, Resolve):
            assert action.way not in self.resolving, "one look-up of a name at a time"
            self.resolving.append(action.way)
        elif isinstance(action, Connect):
            assert self.connection is None, "one connection at a time"
            self.connection = action.spot
            self.tried.add(action.spot)
        elif isinstance(action, Diagnose):
            assert (action.way, action.spot) not in self.looking, "one look at a time"
            self.looking.append((action.way, action.spot))
        elif isinstance(action, HangUp):
            self.connection = None

    def wait(self) -> list[Action]:
        """The time of its deadline has come."""
        due = self.dial.deadline()
        assert due is not None
        self.now = max(self.now, due)
        return self.tell(Due())

    def use(self) -> list[Action]:
        given = tuple(way.address for way in self.dial.ways.all)
        hints = frozenset(way.address for way in self.dial.ways.all if way.is_hint)
        return self.tell(Use(given, hints))

    def found(self, way: Address = A, spots: tuple[Spot, ...] = ()) -> list[Action]:
        self.resolving.remove(way)
        return self.tell(Found(way, spots or SPOTS[way][:1]))

    def closed(self, stage: str = "connect") -> list[Action]:
        self.connection = None
        return self.tell(Closed(stage))

    def diagnosed(self, error: ZBusError | None, at: int = 0) -> list[Action]:
        return self.tell(Diagnosed(*self.looking.pop(at), error))

    def linked(self) -> World:
        self.use()
        if self.resolving:
            self.found()
        self.tell(Connected(), Greeted())
        assert self.state is State.LINKED
        return self

    @property
    def state(self) -> State:
        return self.dial.state


def in_state(state: State, *given: Address) -> World:
    """A world whose dial has come there."""
    world = World(*given)
    if state is not State.IDLE:
        world.use()
    if state in (State.CONNECTING, State.GREETING, State.LINKED, State.BACKOFF):
        world.found()
    if state in (State.GREETING, State.LINKED):
        world.tell(Connected())
    if state is State.LINKED:
        world.tell(Greeted())
    if state is State.BACKOFF:
        world.closed()
    if state is State.GIVEN_UP:
        world.resolving.clear()
        world.tell(NotFound(A, UNKNOWN))
    assert world.state is state
    return world


EVENTS: dict[type[Event], Event] = {
    Use: Use((A,)),
    Close: Close(),
    Due: Due(),
    Found: Found(A, SPOTS[A]),
    NotFound: NotFound(A, UNKNOWN),
    Held: Held(),
    Connected: Connected(),
    Closed: Closed("link"),
    Refused: Refused(VersionMismatch("versions")),
    Faulty: Faulty(WRONG),
    Greeted: Greeted(),
    Parted: Parted(),
    Diagnosed: Diagnosed(A, SPOTS[A][0], REFUSED),
}


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_each_row(state: State, event: type[Event]) -> None:
    world = in_state(state)
    row = TABLE.get((state, event))
    if row is not None:
        world.tell(EVENTS[event])
        # What follows at once of itself: an address that is known, and no hope left.
        goes_on = {
            State.RESOLVING: (State.RESOLVING, State.CONNECTING),
            State.BACKOFF: (State.BACKOFF, State.GIVEN_UP),
        }
        assert world.state in goes_on.get(row[0], (row[0],))
    elif event in LATE:
        assert world.tell(EVENTS[event]) == [] and world.state is state
    else:
        with pytest.raises(LocalProtocolError, match=state.name):
            world.tell(EVENTS[event])
        assert world.state is state


def test_the_table_has_every_state_and_event() -> None:
    assert {state for state, _ in TABLE} == set(State)
    assert {event for _, event in TABLE} == {*EVENTS, Hopeless}
    for state in State:  # each can be left for good, whatever it waits for
        assert TABLE[state, Close][0] is State.IDLE
        if state is not State.IDLE:
            assert TABLE[state, Use][0] is not State.GIVEN_UP


def test_each_state_that_waits_has_an_end() -> None:
    for state in State:
        waits = state not in (State.IDLE, State.LINKED, State.GIVEN_UP)
        assert (in_state(state).dial.deadline() is not None) is waits
        assert ((state, Due) in TABLE) is waits


TURNING = [
    (State.RESOLVING, NotFound),
    (State.RESOLVING, Due),
    (State.CONNECTING, Closed),
    (State.CONNECTING, Due),
    (State.CONNECTING, Faulty),
    (State.GREETING, Closed),
    (State.GREETING, Refused),
    (State.GREETING, Faulty),
    (State.GREETING, Due),
]
STAYING = [
    (State.CONNECTING, Held),
    (State.LINKED, Closed),
    (State.LINKED, Faulty),
    (State.LINKED, Parted),
]


@pytest.mark.parametrize("state, event", TURNING + STAYING)
def test_a_failure_turns_to_the_next_way_and_a_lost_link_does_not(
    state: State, event: type[Event]
) -> None:
    world = in_state(state, A, B)
    world.tell(EVENTS[event])
    assert world.state is State.BACKOFF
    assert world.dial.address == (B if (state, event) in TURNING else A)


@pytest.mark.parametrize("state", State)
def test_a_session_that_has_parted_is_not_gone_on_with(state: State) -> None:
    """So what is wrong with an address may be final again."""
    world = World().linked()
    if state is not State.LINKED:
        world.closed("link")
    if state in (State.CONNECTING, State.GREETING):
        world.wait()
    if state is State.GREETING:
        world.tell(Connected())
    if state is State.RESOLVING:
        world.dial.ways.now.look_up_again()
        world.wait()
    if state is State.IDLE:
        world.tell(Close())
    if state is State.GIVEN_UP:
        world.wait()
        world.closed("refused")
    assert world.state is state
    world.tell(Parted())
    if state in (State.IDLE, State.GIVEN_UP):
        world.use()
    while world.state is not State.CONNECTING:
        world.found() if world.state is State.RESOLVING else world.wait()
    world.tell(Connected())
    world.closed("link")
    assert world.diagnosed(OTHER) == [Tell(OTHER)]


def test_nothing_is_done_before_it_is_due() -> None:
    world = World()
    assert world.dial.tick(world.now) == [] and world.state is State.IDLE
    world.use()
    due = world.dial.deadline()
    assert due == world.now + dial.RESOLVE_TIME
    assert world.dial.tick(due - 0.01) == [] and world.state is State.RESOLVING
    world.dial.tick(due)
    assert world.state is State.BACKOFF


# --- the ways -------------------------------------------------------------------------------------


def test_the_first_try() -> None:
    world = World()
    assert world.use() == [Resolve(A)]
    assert world.found() == [Connect(A, SPOTS[A][0], dial.CONNECT_TIME)]
    assert world.tell(Connected()) == [Greet()]
    assert world.tell(Greeted()) == []
    assert world.state is State.LINKED and world.dial.deadline() is None


def test_every_address_of_a_name_is_tried() -> None:
    world = World()
    world.use()
    (first,) = world.found(spots=SPOTS[A])
    assert first == Connect(A, SPOTS[A][0], dial.CONNECT_SOON)
    assert world.closed() == [Diagnose(A, SPOTS[A][0])]
    assert world.wait() == [Connect(A, SPOTS[A][1], dial.CONNECT_SOON)]
    world.closed()
    assert world.wait() == [Connect(A, SPOTS[A][0], dial.CONNECT_SOON)]


def test_every_way_is_tried_and_a_name_is_looked_up_anew() -> None:
    world = World(A, B)
    world.use()
    world.found(A)
    world.closed()
    assert world.wait() == [Resolve(B)]
    world.found(B)
    world.closed()
    assert world.wait() == [Resolve(A)]


def test_no_answer_of_the_resolver_is_no_end() -> None:
    world = World(A, B)
    world.use()
    assert world.wait() == [] and world.state is State.BACKOFF
    assert world.wait() == [Resolve(B)]
    world.found(B)
    # The late answer is of no use just now, and of no harm.
    world.resolving.remove(A)
    assert world.tell(Found(A, SPOTS[A])) == [] and world.state is State.CONNECTING
    alone = World()
    alone.use()
    alone.wait()
    assert "nobody says what the name" in str(alone.dial.problem)
    assert alone.wait() == [] and alone.state is State.RESOLVING  # the look-up is still under way
    assert alone.found() == [Connect(A, SPOTS[A][0], dial.CONNECT_TIME)]


def test_an_unknown_name_is_hopeless_until_it_was_known_once() -> None:
    world = World()
    world.use()
    world.resolving.clear()
    assert world.tell(NotFound(A, UNKNOWN)) == [Tell(UNKNOWN)]
    assert world.dial.given_up is UNKNOWN
    assert world.use() == [Resolve(A)]
    world.found()
    for _ in range(ways.RESOLVE_AGAIN):
        world.closed("link")
        world.wait()
    assert world.state is State.RESOLVING  # the name is looked up anew: this network is down
    world.resolving.clear()
    assert world.tell(NotFound(A, UNKNOWN)) == [] and world.state is State.BACKOFF
    assert world.wait() == [Resolve(A)]


def test_a_link_that_is_lost_is_dialled_where_it_stood() -> None:
    world = World(A, B)
    world.use()
    world.resolving.clear()
    world.tell(NotFound(A, UNKNOWN))
    world.wait()
    world.found(B)
    world.tell(Connected(), Greeted())
    world.closed("link")
    assert world.wait() == [Connect(B, SPOTS[B][0], dial.CONNECT_TIME)]


def test_hints_come_and_go() -> None:
    world = World(A, B, hints=(B,))
    world.use()
    world.found(A)
    world.closed()
    world.diagnosed(OTHER)
    assert world.state is State.GIVEN_UP  # what a hint leads to says nothing
    assert [way.address for way in world.dial.ways.known] == [A]
    assert world.tell(Use((A,), frozenset())) == [Resolve(A)]
    assert [way.address for way in world.dial.ways.all] == [A]
    world.tell(Use((B, A), frozenset((B,))))
    assert world.dial.address == A and [way.address for way in world.dial.ways.all] == [B, A]


def test_a_problem_is_told_when_all_was_tried() -> None:
    world = World(A, B)
    world.use()
    world.found(A, SPOTS[A])
    for _ in range(2):
        world.closed()
        world.diagnosed(REFUSED)
        assert world.dial.problem is None
        world.wait()
    world.found(B)
    world.closed()
    world.diagnosed(NobodyBehind("a tunnel"))
    assert world.dial.problem is REFUSED


@pytest.mark.parametrize("found", [(OTHER, REFUSED), (REFUSED, OTHER)], ids=str)
def test_an_address_that_may_answer_yet_counts_before_one_that_never_will(
    found: tuple[ZBusError, ZBusError],
) -> None:
    world = World()
    world.use()
    world.found(spots=SPOTS[A])
    for error in found:
        world.closed()
        assert world.diagnosed(error) == []
        world.wait()
    assert world.dial.problem is REFUSED and world.state is State.CONNECTING


# --- what ends, and what does not -----------------------------------------------------------------


def test_one_wrong_answer_ends_nothing() -> None:
    world = World()
    world.use()
    world.found()
    for _ in range(20):  # other failures do not make a wrong answer worse
        world.closed()
        world.wait()
    world.resolving.clear()
    if world.state is State.RESOLVING:
        world.tell(Found(A, SPOTS[A][:1]))
    for count in range(1, 6):
        world.tell(Connected())
        told = [Warn(WRONG)] if count >= ways.FAULTS else []
        assert world.tell(Faulty(WRONG)) == [HangUp(), *told] and world.state is State.BACKOFF
        assert ("a wrong answer" in world.dial.explain(world.now)) is bool(told)
        assert world.wait() == [Connect(A, SPOTS[A][0], dial.CONNECT_TIME)]
    world.tell(Connected(), Greeted())
    assert world.state is State.LINKED and world.dial.problem is None


def test_wrong_answers_for_long_end_it() -> None:
    world = World()
    world.use()
    world.found()
    began = world.now
    while world.state is not State.GIVEN_UP:
        world.tell(Connected(), Faulty(WRONG))
        if world.state is State.BACKOFF:
            world.wait()
        assert world.now - began < ways.FAULTY_TIME + 2
    assert world.dial.given_up is WRONG and world.now - began >= ways.FAULTY_TIME


def test_another_key_is_doubted_twice() -> None:
    world = World(key=True)
    world.use()
    world.found()
    world.closed("greeting")
    assert world.diagnosed(None) == [] and world.state is State.BACKOFF
    world.wait()
    world.closed("greeting")
    (told,) = world.diagnosed(None)
    assert isinstance(told, Tell) and isinstance(told.error, KeyChanged)


def test_who_is_busy_is_not_doubted_and_not_nobody() -> None:
    world = World(key=True)
    world.use()
    world.found()
    for _ in range(5):
        world.now += dial.QUICK + 1
        world.closed("greeting")
        if world.looking:
            world.diagnosed(None)
        assert world.state is State.BACKOFF and world.dial.nobody_since is None
        world.wait()


def test_nobody_behind() -> None:
    world = World().linked()
    world.closed("link")
    assert world.dial.nobody_since is None
    world.wait()
    world.closed("greeting")
    since = world.dial.nobody_since
    assert since == world.now
    world.wait()
    world.closed("connect")  # refused by another machine
    assert world.dial.nobody_since == since
    world.wait()
    world.tell(Connected(), Greeted())
    assert world.dial.nobody_since is None


def test_while_a_session_is_waited_for_only_its_own_peer_can_refuse() -> None:
    world = World().linked()
    world.closed("link")
    assert world.diagnosed(OTHER) == [] and world.state is State.BACKOFF
    world.tell(Parted())
    world.wait()
    world.closed()
    (told,) = world.diagnosed(OTHER)
    assert told == Tell(OTHER)
    refused = World().linked()
    refused.closed("link")
    refused.wait()
    (told,) = refused.closed("refused")
    assert isinstance(told, Tell) and isinstance(told.error, NotPaired)


def test_who_says_that_it_refuses_is_not_looked_at() -> None:
    world = World(A, B)
    world.use()
    world.found(A)
    assert world.closed("refused") == [] and isinstance(world.dial.ways.all[0].problem, Problem)
    world.wait()
    world.found(B)
    (told,) = world.closed("refused")
    assert isinstance(told, Tell) and isinstance(told.error, NotPaired)


def test_a_refusal_ends_it_only_if_no_other_way_is_left() -> None:
    world = World(A, B)
    world.use()
    world.found(A)
    assert world.tell(Connected(), Refused(SELF)) == [Greet(), HangUp()]
    assert world.wait() == [Resolve(B)]
    world.found(B)
    world.tell(Connected())
    assert world.tell(Refused(SELF)) == [HangUp(), Tell(SELF)]


def test_a_session_that_ends_in_mid_handshake_begins_it_anew() -> None:
    world = World().linked()
    world.closed("link")
    world.wait()
    world.tell(Connected())
    assert world.tell(Parted()) == [HangUp(), Connect(A, SPOTS[A][0], dial.CONNECT_TIME)]


def test_being_held_is_no_failure() -> None:
    world = World()
    world.use()
    world.found()
    world.connection = None
    assert world.tell(Held()) == []
    assert world.dial.deadline() == world.now + dial.BACKOFF_FIRST
    assert world.wait() == [Connect(A, SPOTS[A][0], dial.CONNECT_TIME)]


def test_somebody_new_is_dialled_for_at_once() -> None:
    world = World()
    world.use()
    world.found()
    for _ in range(10):
        world.closed()
        world.wait()
    world.closed()
    assert world.use() == [Connect(A, SPOTS[A][0], dial.CONNECT_TIME)]
    world.closed()
    assert world.dial.deadline() == world.now + dial.BACKOFF_FIRST


@pytest.mark.parametrize(
    "host, most", [("127.0.0.1", dial.BACKOFF_LOOPBACK), ("10.0.0.1", dial.BACKOFF_REMOTE)]
)
def test_waits_grow_to_their_limit(host: str, most: float) -> None:
    world = World(Address(host, 1))
    world.use()
    world.resolving.clear()
    world.tell(Found(Address(host, 1), (Spot(host, 1),)))
    waits = []
    for _ in range(10):
        world.closed()
        waits.append((world.dial.deadline() or 0) - world.now)
        world.wait()
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(0.1) and waits[-1] == pytest.approx(most)


def test_texts() -> None:
    world = World()
    assert world.dial.explain(0) == "dialling one.example:1"
    world.use()
    world.found()
    world.closed()
    world.diagnosed(REFUSED)
    assert "nobody listens on one.example:1 yet" in world.dial.explain(world.now)
    world.wait()
    world.tell(Connected())
    world.now += 3
    assert "has accepted and has not answered for 3 s" in world.dial.explain(world.now)


# --- every small world ----------------------------------------------------------------------------


DEPTH = 9  # events, one after the other


@dataclass(eq=False)
class Choice:
    """Something that can happen next."""

    what: str
    do: Callable[[World], Any]


def choices(world: World) -> Iterator[Choice]:
    """All that can happen in the world now."""
    state = world.state
    for way in world.resolving:
        yield Choice(f"found {way}", lambda w, a=way: w.found(a, SPOTS[a]))
        yield Choice(f"unknown {way}", lambda w, a=way: _unknown(w, a))
    for at, (_, spot) in enumerate(world.looking):
        for error in (None, REFUSED, OTHER):
            yield Choice(f"{spot} {error}", lambda w, i=at, e=error: w.diagnosed(e, i))
    if world.connection is not None and state is State.CONNECTING:
        yield Choice("stands", lambda w: w.tell(Connected()))
        yield Choice("faulty", lambda w: w.tell(Faulty(WRONG)))
        yield Choice("held", lambda w: (setattr(w, "connection", None), w.tell(Held())))
        for stage in ("connect", "greeting", "refused"):
            yield Choice(stage, lambda w, s=stage: w.closed(s))
    if state is State.GREETING:
        yield Choice("greeted", lambda w: w.tell(Greeted()))
        yield Choice("self", lambda w: w.tell(Refused(SELF)))
        yield Choice("faulty", lambda w: w.tell(Faulty(WRONG)))
    if state in (State.GREETING, State.LINKED):
        yield Choice("cut", lambda w: w.closed("link"))
    if world.dial.deadline() is not None:
        yield Choice("due", lambda w: w.wait())
    yield Choice("parted", lambda w: w.tell(Parted()))
    yield Choice("use", lambda w: w.use())


def _unknown(world: World, way: Address) -> None:
    world.resolving.remove(way)
    world.tell(NotFound(way, UNKNOWN))


def snapshot(world: World) -> Any:
    """What distinguishes a world from another; times and counts only as far as they matter."""
    machine = world.dial
    told = [
        (
            way.spots,
            way.is_fresh,
            way.is_sought,
            way.unknown and way.unknown.is_final,
            tuple((s, p.is_final) for s, p in sorted(way.problems.items())),
            tuple(sorted((s, min(n, 3)) for s, n in way.doubts.items())),
            tuple(sorted(way.asked)),
        )
        for way in machine.ways.all
    ]
    return (
        machine.state,
        machine.address,
        machine.ways.spot,
        machine._has_session,
        machine._failures % 5,
        tuple(told),
        world.connection,
        tuple(world.resolving),
        tuple(sorted(world.looking, key=str)),
    )


def check(world: World) -> None:
    """What holds in every world."""
    machine = world.dial
    connects = machine.state in (State.CONNECTING, State.GREETING, State.LINKED)
    assert (world.connection is not None) == connects, "a connection for each state that has one"
    if machine.state not in (State.IDLE, State.LINKED, State.GIVEN_UP):
        assert machine.deadline() is not None, "nothing would ever move it"
    if machine.state is State.GIVEN_UP:
        known = machine.ways.known
        assert machine.given_up is not None and machine.deadline() is None
        assert all(way.problem is not None and way.problem.is_final for way in known)
        assert all(way.unknown or set(way.problems) == set(way.spots) for way in known)
    else:
        assert machine.given_up is None
    asked = {(way.address, spot) for way in machine.ways.all for spot in way.asked}
    assert asked == set(world.looking)
    machine.explain(world.now)


@pytest.mark.parametrize("key", [False, True], ids=["plain", "keyed"])
@pytest.mark.parametrize("hints", [(), (B,)], ids=["two ways", "a way and a hint"])
def test_no_small_world_gets_stuck(key: bool, hints: tuple[Address, ...]) -> None:
    """Two ways with two addresses each, and all that can happen, in every order."""
    start = World(A, B, hints=hints, key=key)
    start.use()
    seen, edge = {snapshot(start)}, [start]
    for _ in range(DEPTH):
        grown = []
        for world in edge:
            for choice in choices(world):
                after = copy.deepcopy(world)
                choice.do(after)
                check(after)
                mark = snapshot(after)
                if mark not in seen:
                    seen.add(mark)
                    grown.append(after)
        edge = grown
    print(f"\n{len(seen)} worlds")
    assert len(seen) > 2000
    for world in edge[:: max(1, len(edge) // 200)]:
        _comes_to_the_peer(world)


def _comes_to_the_peer(world: World) -> None:
    """Wherever it has come to: if the peer is at one address from now on, it is found, and until
    then every address is tried."""
    for right in itertools.chain(SPOTS[A], SPOTS[B]):
        one = copy.deepcopy(world)
        one.tried.clear()
        one.use()
        for _ in range(60):
            if one.state is State.LINKED:
                if one.connection == right:
                    break
                one.closed("link")
            _next(one, right)
        assert one.state is State.LINKED and one.connection == right, (right, one.state)


def _next(world: World, right: Spot) -> None:
    if world.looking:
        world.diagnosed(REFUSED)
    elif world.state is State.RESOLVING and world.resolving:
        way = world.resolving[0]
        world.found(way, SPOTS[way])
    elif world.state is State.CONNECTING:
        world.tell(Connected()) if world.connection == right else world.closed()
    elif world.state is State.GREETING:
        world.tell(Greeted()) if world.connection == right else world.closed("link")
    else:
        world.wait() if world.state is not State.GIVEN_UP else world.use()


@pytest.mark.parametrize("written", ["[fe80::1%Eth0]:1", "[FE80::1%eth0.5]:1"])
def test_a_zone_keeps_its_case(written: str) -> None:
    zone = written[written.index("%") : written.index("]")]
    assert parse_dial(written).host == "fe80::1" + zone
