"""One value on its way: the tables of both sides, and every order in which things can happen.

The model check joins the two real machines by an in-memory session and walks through every state
that is reached by any order of: messages delivered, chunks sent, threads that come back, memory
given, connections cut, the session lost, a value cancelled on either side.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from zbus.errors import (
    Cancelled,
    DigestMismatch,
    LinkLost,
    LocalProtocolError,
    PeerGone,
    RemoteProtocolError,
    TransferRefused,
)
from zbus.protocol.budget import Budget
from zbus.protocol.delivery import (
    RECEIVING,
    SENDING,
    Do,
    ReceiveEvent,
    ReceiveState,
    Receiving,
    SendEvent,
    Sending,
    SendState,
)
from zbus.protocol.messages import Chunk, Grant

CHUNKS = 3
UNSEQUENCED = ("CHUNK", "GRANT")


class FreePace:
    """A window without an end."""

    chunk = 1

    def has_room(self, planned: int = 0) -> bool:
        return True

    def sent(self, size: int, now: float) -> None: ...
    def delivered(self, count: int, now: float) -> None: ...
    def dropped(self, count: int) -> None: ...


PACE: Any = FreePace()


def cut_one(offset: int, want: int) -> int:
    return 1


# --- the world of the model -----------------------------------------------------------------------


class World:
    """Two processes, values that go from one to the other, and all that may still happen."""

    def __init__(self, values: int, way: str, cuts: int, losses: int, cancels: int) -> None:
        self.way = way
        self.cuts, self.losses, self.cancels, self.lies = cuts, losses, cancels, way == "spoiled"
        self.up: tuple[tuple[Any, ...], ...] = ()  # on their way to the receiver
        self.down: tuple[tuple[Any, ...], ...] = ()
        self.sends: dict[int, Sending] = {}
        self.takes: dict[int, Receiving] = {}
        self.jobs: dict[int, str] = {}  # what a thread does for which receiving value
        self.lent: dict[int, bool] = {}  # values that may be read, and whether they are held
        self.row: tuple[int, ...] = ()  # who waits for memory; there is room for one value
        self.holder: int | None = None
        self.due: frozenset[int] = frozenset()  # grants to say
        self.told: dict[tuple[str, int], str] = {}
        self.tries: dict[int, int] = {}  # value of each id
        self.wanted = dict.fromkeys(range(values), True)
        for value in range(values):
            self.begin(value)

    def copy(self) -> World:
        new = copy.copy(self)
        new.sends = {i: _copied(s, "outgoing") for i, s in self.sends.items()}
        new.takes = {i: _copied(t, "incoming") for i, t in self.takes.items()}
        for name in ("jobs", "lent", "told", "tries", "wanted"):
            setattr(new, name, dict(getattr(self, name)))
        return new

    @property
    def key(self) -> object:
        sends = tuple((i, s.state, s.held, _key(s.outgoing)) for i, s in self.sends.items())
        takes = tuple((i, t.state, t._digest, _key(t.incoming)) for i, t in self.takes.items())
        rest = (self.up, self.down, self.row, self.holder, self.due, self.cuts, self.losses)
        told = tuple(sorted(self.told.items()))
        lent, jobs = tuple(self.lent.items()), tuple(self.jobs.items())
        return (sends, takes, *rest, self.cancels, self.lies, told, lent, jobs)

    def begin(self, value: int) -> None:
        """Send it, for the first time or on a new session."""
        transfer = len(self.tries)
        self.tries[transfer] = value
        sending = self.sends[transfer] = Sending(transfer)
        if self.way == "inline":
            self.do_send(transfer, sending.packed())
        else:
            total = CHUNKS + (self.way == "head")
            said = sending.packed_for_chunks(total, cut_one, PACE, 1, lent=self.lends)
            self.do_send(transfer, said)

    @property
    def lends(self) -> bool:
        return self.way in ("memory", "spoiled")

    # --- what the machines want done ------------------------------------------------------------

    def do_send(self, i: int, actions: tuple[Do, ...]) -> None:
        for action in actions:
            if action is Do.OFFER:
                self.up += (("OFFER", i),)
            elif action is Do.LEND:
                self.lent[i] = True
            elif action in (Do.RELEASE, Do.RECLAIM):
                self.lent[i] = False
            else:
                assert action is Do.TELL
                self.tell("send", i, self.sends[i])

    def do_take(self, i: int, actions: tuple[Do, ...]) -> None:
        for action in actions:
            self.act(i, action, self.takes[i])

    def act(self, i: int, action: Do, taking: Receiving) -> None:
        if action is Do.ASK_MEMORY:
            self.row += (i,)
        elif action in (Do.ALLOCATE, Do.BUILD, Do.READ):
            self.jobs[i] = action.name
        elif action is Do.GRANT:
            self.due |= {i}
        elif action is Do.DECLINE:
            self.down += (("DECLINE", i),)
        elif action is Do.COMPARE:
            self.do_take(i, taking.compared(b"right"))
        elif action is Do.STORED:
            self.down += (("STORED", i),)
        elif action is Do.REFUSE:
            self.down += (("REFUSED", i),)
        elif action is Do.RELEASE:
            self.row = tuple(other for other in self.row if other != i)
            self.holder = None if self.holder == i else self.holder
        else:
            assert action is Do.TELL
            self.tell("take", i, taking)

    def tell(self, side: str, i: int, delivery: Sending | Receiving) -> None:
        assert (side, i) not in self.told, "told twice"
        assert delivery.ended
        how = "well" if delivery.error is None else "again" if delivery.resumable else "failed"
        self.told[side, i] = how

    # --- what may happen ------------------------------------------------------------------------

    def choices(self) -> Iterator[tuple[str, Any]]:
        if self.up:
            yield "up", None
        if self.down:
            yield "down", None
        for i, sending in self.sends.items():
            is_moving = sending.state is SendState.MOVING
            if is_moving and copy.copy(sending.outgoing).plan() is not None:
                yield "pump", i
        for i in self.due:
            yield "grant", i
        for i in self.jobs:
            yield "thread", i
        if self.row and self.holder is None:
            yield "memory", None
        if self.cuts:
            yield "cut", None
        if self.losses:
            yield "lose", None
        if self.cancels:
            for i, sending in self.sends.items():
                if not sending.ended:
                    yield "cancel send", i
            for i, taking in self.takes.items():
                if not taking.ended:
                    yield "cancel take", i

    def happen(self, what: str, i: Any) -> None:
        getattr(self, "on_" + what.replace(" ", "_"))(i)

    def on_up(self, _: None) -> None:
        (kind, i, *rest), self.up = self.up[0], self.up[1:]
        taking = self.takes.get(i)
        if kind == "OFFER":
            head = int(self.way == "head")
            total = 0 if self.way == "inline" else CHUNKS + head
            taking = self.takes[i] = Receiving(i, total, head, lent=self.lends)
            self.do_take(i, taking.begin())
        elif taking is None:
            return
        elif kind == "CHUNK":
            self.chunk(i, taking, rest[0])
        elif kind == "FINISH":
            self.do_take(i, taking.finish(b"right"))
        else:
            assert kind == "CANCEL"
            self.do_take(i, taking.dropped(Cancelled("there")))

    def chunk(self, i: int, taking: Receiving, offset: int) -> None:
        if not taking.arrive(Chunk(i, offset, 1, False)):
            return
        taking.stored(offset, 1)
        self.due |= {i}
        if taking.is_head_whole:
            self.do_take(i, taking.spec())
        else:
            self.do_take(i, taking.look())

    def on_down(self, _: None) -> None:
        (kind, i, *rest), self.down = self.down[0], self.down[1:]
        sending = self.sends[i]
        if kind == "GRANT":
            self.do_send(i, sending.grant(Grant(i, *rest), 0.0))
        elif kind == "DECLINE":
            self.do_send(i, sending.declined())
        elif kind == "STORED":
            assert self.takes[i].state is ReceiveState.BUILT
            self.do_send(i, sending.stored())
        elif kind == "REFUSED":
            self.do_send(i, sending.refused(TransferRefused("no")))
        else:
            assert kind == "CANCEL"
            self.do_send(i, sending.dropped(Cancelled("there")))

    def on_pump(self, i: int) -> None:
        outgoing = self.sends[i].outgoing
        assert outgoing is not None
        planned = outgoing.plan()
        assert planned is not None
        outgoing.sent(*planned, 1, 0.0)
        self.up += (("CHUNK", i, planned[0]),)
        if planned[0] + planned[1] == outgoing.total:
            self.up += (("FINISH", i),)

    def on_grant(self, i: int) -> None:
        self.due -= {i}
        taking = self.takes[i]
        if taking.waits_for_memory:
            self.down += (("GRANT", i, 0, 0),)
        if taking.takes_bytes:
            grant = taking.incoming.grant()
            if grant is not None:
                self.down += (("GRANT", i, grant.received, grant.limit),)

    def on_memory(self, _: None) -> None:
        i, self.row = self.row[0], self.row[1:]
        self.holder = i
        self.do_take(i, self.takes[i].given())

    def on_thread(self, i: int) -> None:
        taking, work = self.takes[i], self.jobs.pop(i)
        if taking.ended:
            return
        if work == "ALLOCATE":
            inline = self.way == "inline"
            self.do_take(i, taking.filled() if inline else taking.allocated())
        elif work == "READ":
            self.do_take(i, taking.has_read(1))
            is_right = self.lent[i] and self.way != "spoiled"
            self.do_take(i, taking.read() if is_right else taking.unreadable())
        else:
            self.do_take(i, taking.built())

    def on_cut(self, _: None) -> None:
        """The connection breaks, and is back: what is not in the session's sequence is lost."""
        self.cuts -= 1
        self.up = tuple(m for m in self.up if m[0] not in UNSEQUENCED)
        self.down = tuple(m for m in self.down if m[0] not in UNSEQUENCED)
        for sending in self.sends.values():
            sending.unlinked()
        for i, taking in self.takes.items():
            if not taking.ended:
                taking.linked()
                self.due |= {i}

    def on_lose(self, _: None) -> None:
        """The session is given up, and the two meet again: a job sends its values anew."""
        self.losses -= 1
        self.up = self.down = ()
        error = LinkLost("lost")
        for i, sending in list(self.sends.items()):
            self.do_send(i, sending.broken(error))
        for i, taking in list(self.takes.items()):
            self.do_take(i, taking.broken(error))
        for i, value in list(self.tries.items()):
            is_open = self.told.get(("send", i)) == "again" and self.wanted[value]
            if is_open and self.told.get(("take", i)) != "well":
                self.begin(value)

    def on_cancel_send(self, i: int) -> None:
        self.cancels -= 1
        self.wanted[self.tries[i]] = False
        self.do_send(i, self.sends[i].dropped(Cancelled("here")))
        self.up += (("CANCEL", i),)

    def on_cancel_take(self, i: int) -> None:
        self.cancels -= 1
        self.wanted[self.tries[i]] = False
        self.do_take(i, self.takes[i].dropped(Cancelled("here")))
        self.down += (("CANCEL", i),)

    # --- what must hold ---------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Nothing more can happen but what nobody is bound to do."""
        for i, sending in self.sends.items():
            assert sending.ended, f"{i} is {sending.state} for ever"
            assert ("send", i) in self.told
        for i, taking in self.takes.items():
            assert taking.ended, f"{i} is {taking.state} for ever"
            assert ("take", i) in self.told
        assert self.holder is None and not self.row, "memory is not given back"
        for value, wanted in self.wanted.items():
            got = [i for i, v in self.tries.items() if v == value]
            well = [i for i in got if self.told.get(("take", i)) == "well"]
            assert len(well) <= 1, "handed over twice"
            if wanted:
                assert len(well) == 1, "a value that nobody gave up has not arrived"


def _copied(delivery: Any, part: str) -> Any:
    new = copy.copy(delivery)
    inner = getattr(delivery, part)
    if inner is not None:
        inner = copy.copy(inner)
        for name in ("_under_way", "_done"):
            if hasattr(inner, name):
                setattr(inner, name, copy.copy(getattr(inner, name)))
        setattr(new, part, inner)
    return new


def _key(inner: Any) -> object:
    if inner is None:
        return None
    skipped = ("_cut", "_pace")
    return tuple(
        tuple(v) if isinstance(v, (dict,)) or hasattr(v, "popleft") else v
        for k, v in vars(inner).items()
        if k not in skipped
    )


OWED = ("up", "down", "pump", "grant", "thread", "memory")


LOCAL = ("grant", "thread", "memory", "pump")


def settle(world: World) -> None:
    """What one process does by itself happens at once."""
    while owed := [choice for choice in world.choices() if choice[0] in LOCAL]:
        world.happen(*owed[0])


def explore(world: World, most: int, eager: bool = False) -> Counter[str]:
    """Every state that can be reached; how often each kind of step was taken."""
    if eager:
        settle(world)
    seen, stack, taken = {world.key}, [world], Counter[str]()
    while stack:
        at = stack.pop()
        choices = list(at.choices())
        if not any(what in OWED for what, _ in choices):
            at.at_rest()
        for what, i in choices:
            following = at.copy()
            following.happen(what, i)
            if eager:
                settle(following)
            taken[what] += 1
            if following.key not in seen:
                seen.add(following.key)
                stack.append(following)
        assert len(seen) < most, "more states than this test is meant for"
    taken["states"] = len(seen)
    return taken


def ids(case: tuple[Any, ...]) -> str:
    return "-".join(map(str, case))


SMALL = [  # values, way, cuts, lost sessions, cancels
    (1, "inline", 2, 1, 1),
    (1, "chunks", 1, 0, 1),
    (1, "chunks", 0, 1, 0),
    (1, "head", 1, 0, 1),
    (1, "memory", 1, 1, 1),
    (1, "spoiled", 0, 0, 1),
    (2, "chunks", 0, 0, 1),
]
WHOLE = [
    (1, "chunks", 2, 1, 1),
    (1, "spoiled", 1, 1, 1),
    (1, "memory", 2, 1, 1),
    (1, "head", 2, 0, 1),
]


@pytest.mark.parametrize("case", SMALL, ids=ids)
def test_every_order_of_everything(case: tuple[Any, ...]) -> None:
    """Each step of each thread at any time between each two others."""
    taken = explore(World(*case), most=100_000)
    assert taken["memory"] and bool(taken["cancel send"] and taken["cancel take"]) is bool(case[4])
    assert bool(taken["cut"]) is bool(case[2]) and bool(taken["lose"]) is bool(case[3])


@pytest.mark.parametrize("case", [("memory", 1, 1, 1), ("chunks", 1, 0, 0)], ids=ids)
def test_two_values_that_share_memory_for_one(case: tuple[Any, ...]) -> None:
    """Cuts, a lost session and a cancel at any point between two messages."""
    taken = explore(World(2, *case), most=200_000, eager=True)
    assert taken["cut"] and bool(taken["lose"]) is bool(case[2])


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", WHOLE, ids=ids)
def test_every_order_of_everything_at_length(case: tuple[Any, ...]) -> None:
    assert explore(World(*case), most=2_000_000)["states"]


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", ["chunks", "memory", "spoiled", "head"])
def test_two_values_two_cuts_a_lost_session_and_a_cancel(way: str) -> None:
    assert explore(World(2, way, 2, 1, 1), most=3_000_000, eager=True)["states"]


# --- the tables, row by row -----------------------------------------------------------------------

S_ENDS, R_ENDS = Sending.TERMINAL, Receiving.TERMINAL
FROM_PEER = {
    SendEvent.HELD,
    SendEvent.GRANTED,
    SendEvent.DECLINED,
    SendEvent.STORED,
    SendEvent.REFUSED,
}


@pytest.mark.parametrize("table", [SENDING, RECEIVING], ids=["sending", "receiving"])
def test_every_state_that_is_not_the_end_has_a_way_to_it(table: Any) -> None:
    """However it goes: a failure here, a drop and the end of the session end it everywhere."""
    ends = {state for state, _ in table.values()} - {state for state, _ in table}
    assert ends == (S_ENDS if table is SENDING else R_ENDS)
    for state in {state for state, _ in table}:
        for event in ("FAILED", "DROPPED", "BROKEN"):
            kind = SendEvent if table is SENDING else ReceiveEvent
            following, actions = table[state, kind[event]]
            assert following in ends
            assert actions[-1] is Do.TELL and Do.RELEASE in actions


@pytest.mark.parametrize("table", [SENDING, RECEIVING], ids=["sending", "receiving"])
def test_an_end_tells_and_releases_once(table: Any) -> None:
    ends = S_ENDS | R_ENDS
    for (_, _), (following, actions) in table.items():
        told = (actions.count(Do.TELL), actions.count(Do.RELEASE))
        assert told == ((1, 1) if following in ends else (0, 0))
        assert (Do.STORED in actions) is (following is ReceiveState.BUILT)


def test_what_has_no_row_is_a_fault_of_who_said_it() -> None:
    for delivery, table in ((Sending, SENDING), (Receiving, RECEIVING)):
        kind, state_kind = (
            (SendEvent, SendState) if table is SENDING else (ReceiveEvent, ReceiveState)
        )
        for state in state_kind:
            for event in kind:
                made: Any = Sending(1) if table is SENDING else Receiving(1, 3)
                made.state = state
                if state in delivery.TERMINAL:
                    assert made._on(event) == () and made.state is state, "late words are no faults"
                elif (state, event) in table:
                    made._on(event)
                else:
                    fault = RemoteProtocolError if event in FROM_PEER else LocalProtocolError
                    with pytest.raises(fault):
                        made._on(event)
                    assert made.state is state


# --- single rules ---------------------------------------------------------------------------------


def sending(total: int = CHUNKS) -> Sending:
    made = Sending(7)
    assert made.packed_for_chunks(total, cut_one, PACE, 1) == (Do.OFFER,)
    return made


@pytest.mark.parametrize("grant", [(0, CHUNKS + 1), (2, 1), (1, CHUNKS)])
def test_a_grant_of_what_was_not_sent(grant: tuple[int, int]) -> None:
    made = sending()
    with pytest.raises(RemoteProtocolError, match="GRANT"):
        made.grant(Grant(7, *grant), 0.0)
    assert made.state is SendState.OFFERED


def test_a_value_that_waits_for_memory_there_says_so() -> None:
    made = sending()
    assert made.grant(Grant(7, 0, 0), 0.0) == () and made.held
    assert made.grant(Grant(7, 0, CHUNKS), 0.0) == () and not made.held
    inline = Sending(8)
    inline.packed()
    assert inline.grant(Grant(8, 0, 0), 0.0) == () and inline.held
    assert inline.stored() == (Do.RELEASE, Do.TELL)


def test_a_block_of_no_bytes_is_granted_and_not_held() -> None:
    made = sending(0)
    assert made.grant(Grant(7, 0, 0), 0.0) == () and not made.held
    assert made.state is SendState.MOVING


def test_how_a_lent_value_is_read_and_reclaimed() -> None:
    made = Sending(7)
    said = made.packed_for_chunks(CHUNKS, cut_one, PACE, 1, lent=True)
    assert said == (Do.LEND, Do.OFFER), "it may be read as soon as it is offered"
    assert made.grant(Grant(7, 0, 0), 0.0) == () and made.held
    made.grant(Grant(7, 2, CHUNKS), 0.0)
    assert made.state is SendState.LENT
    assert made.received == 2 and made.outgoing is not None and made.outgoing.next == 0
    assert made.declined() == (Do.RECLAIM,) and made.received == 0
    assert made.declined() == (), "said twice"
    made.grant(Grant(7, 0, CHUNKS), 0.0)
    assert made.outgoing.plan() == (0, 1)


@pytest.mark.parametrize(
    ("error", "resumable"),
    [(LinkLost("lost"), True), (PeerGone("gone"), False), (Cancelled("x"), False)],
)
def test_only_a_lost_link_lets_a_value_go_again(error: Any, resumable: bool) -> None:
    for made in (sending(), Receiving(7, 3)):
        made.broken(error)
        assert made.ended and made.resumable is resumable and made.error is error
        made.broken(LinkLost("later"))
        assert made.resumable is resumable and made.error is error, "the first end counts"


def test_a_refusal_is_known_there() -> None:
    made = sending()
    made.refused(TransferRefused("no"))
    assert made.refused_there
    late = sending()
    late.dropped(Cancelled("x"))
    late.refused(TransferRefused("no"))
    assert not late.refused_there


def receiving(lent: bool = False) -> Receiving:
    made = Receiving(7, 2, lent=lent)
    assert made.begin() == (Do.ASK_MEMORY,) and made.waits_for_memory
    assert made.given() == (Do.ALLOCATE,)
    assert made.allocated() == ((Do.READ,) if lent else (Do.GRANT,))
    if not lent:
        assert made.incoming.grant() == Grant(7, 0, 2)
    return made


def fill(made: Receiving) -> None:
    for offset in range(2):
        assert made.arrive(Chunk(7, offset, 1, False))
        made.stored(offset, 1)


@pytest.mark.parametrize("digest_first", [True, False])
def test_digest_and_bytes_in_either_order(digest_first: bool) -> None:
    made = receiving()
    if digest_first:
        assert made.finish(b"d") == ()
    fill(made)
    actions = made.look() if digest_first else (*made.look(), *made.finish(b"d"))
    assert actions == (Do.COMPARE,)
    assert made.finish(b"other") == (Do.COMPARE,), "the first digest counts"
    assert made.compared(b"d") == (Do.BUILD,) and made.is_whole
    assert made.built() == (Do.RELEASE, Do.STORED, Do.TELL)


def test_bytes_that_are_not_what_was_sent() -> None:
    made = receiving()
    fill(made)
    made.finish(b"d")
    assert made.compared(b"e") == (Do.REFUSE, Do.RELEASE, Do.TELL)
    assert isinstance(made.error, DigestMismatch)


def test_what_was_read_wrongly_comes_in_chunks() -> None:
    made = receiving(lent=True)
    with pytest.raises(RemoteProtocolError, match="CHUNK while"):
        made.arrive(Chunk(7, 0, 1, False))
    assert made.has_read(1) == (Do.GRANT,)
    assert made.unreadable() == (Do.DECLINE, Do.GRANT)
    assert made.incoming.grant() == Grant(7, 0, 2)
    assert made.has_read(2) == made.read() == made.unreadable() == (), "a late reader"
    fill(made)
    made.finish(b"d")
    assert made.compared(b"d") == (Do.BUILD,)


def test_what_was_read_rightly_waits_for_no_digest() -> None:
    made = receiving(lent=True)
    assert made.has_read(1) == (Do.GRANT,)
    assert made.read() == (Do.BUILD,) and made.is_whole
    assert made.built() == (Do.RELEASE, Do.STORED, Do.TELL)


def test_chunks_come_only_where_they_were_granted() -> None:
    early = Receiving(7, 2)
    early.begin()
    with pytest.raises(RemoteProtocolError, match="CHUNK while a value is waiting for memory"):
        early.arrive(Chunk(7, 0, 1, False))
    made = receiving()
    fill(made)
    made.look()
    assert not made.arrive(Chunk(7, 1, 1, False)), "repeated after a reconnect"
    made.dropped(Cancelled("x"))
    assert not made.arrive(Chunk(7, 1, 1, False)), "late"


# --- the memory -----------------------------------------------------------------------------------


def test_memory_is_given_in_the_order_of_asking() -> None:
    budget, given = Budget(lambda: 10), []
    tickets = [budget.ticket(size, lambda n=n: given.append(n)) for n, size in enumerate((6, 6, 2))]
    for ticket in tickets:
        ticket.ask()
    assert given == [0] and (budget.taken, budget.waiting) == (6, 2), "nobody is overtaken"
    tickets[1].release()
    assert given == [0, 2] and budget.taken == 8, "who has gone holds nobody up"
    for ticket in tickets:
        ticket.release()
        ticket.release()
    assert (budget.taken, budget.waiting) == (0, 0)


def test_whoever_is_given_memory_may_release_it_at_once() -> None:
    """Also where thousands wait: none inside the other."""
    budget, rounds = Budget(lambda: 1), []
    first = budget.ticket(1, lambda: None)
    first.ask()
    for n in range(5000):
        ticket = budget.ticket(1, lambda: None)
        ticket._on_given = lambda t=ticket, n=n: (rounds.append(n), t.release())
        ticket.ask()
    first.release()
    assert rounds == list(range(5000)) and (budget.taken, budget.waiting) == (0, 0)


def test_one_that_asks_for_more_than_there_is_gets_it_when_nothing_else_is_taken() -> None:
    budget, given = Budget(lambda: 4), []
    assert budget.fits(4) and not budget.fits(5)
    small, large = budget.ticket(1, lambda: given.append("small")), budget.ticket(4, given.clear)
    small.ask()
    large.ask()
    assert given == ["small"] and budget.waiting == 1
    small.release()
    assert given == [] and budget.taken == 4


def test_a_ticket_that_is_released_before_it_asks() -> None:
    budget = Budget(lambda: 4)
    ticket = budget.ticket(2, lambda: pytest.fail("given"))
    ticket.release()
    ticket.ask()
    assert (budget.taken, budget.waiting) == (0, 0)
