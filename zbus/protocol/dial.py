"""Sans-IO: one peer that this side dials, until it answers or nothing can help.

There may be several ways to it, and a name may have several addresses: all of them are tried in
turn (`ways`), for as long as somebody needs the peer. `TABLE` is the whole machine; its picture is
in docs/protocol.md. A `Dial` is told what has happened, and returns what is to be done:

    for action in dial.handle(Found(way, spots), now):
        ...  # the dialler in net/ does it, and tells what comes of it

Each state but IDLE, LINKED and GIVEN_UP has an end of its own: `deadline` says when `tick` is due.
Times are seconds of any steady clock.

What is final of an address ends nothing while a session with the peer stands or is waited for: the
session has its own end, and until then the peer may be back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..address import Address
from ..errors import (
    LocalProtocolError,
    NameNotResolved,
    NobodyBehind,
    Unreachable,
    ZBusError,
)
from .ways import FAULTS, Spot, Ways, refused

BACKOFF_FIRST = 0.1  # seconds to the next dial; each one waits longer,
BACKOFF_LOOPBACK = 0.5  # up to this on the loopback
BACKOFF_REMOTE = 1.0  # and to this elsewhere
RESOLVE_TIME = 30.0  # seconds for a name
CONNECT_TIME = 10.0  # seconds for TCP,
CONNECT_SOON = 4.0  # or for this one of several addresses, of which one may lead nowhere
STAND_TIME = 40.0  # seconds for all of a connection until ZMTP stands
GREET_TIME = 30.0  # seconds for its HELLO: a model load can hold the peer's GIL this long
LOOK_EVERY = 5  # failures of the only address from one look at why to the next
QUICK = 5.0  # seconds: who ends a handshake later was only too busy for it


class State(Enum):
    """Where a dial is."""

    IDLE = "nobody needs it"
    RESOLVING = "which address is next?"
    CONNECTING = "TCP and ZMTP"
    GREETING = "HELLO is said"
    LINKED = "the peer has answered"
    BACKOFF = "until the next try"
    GIVEN_UP = "trying again cannot help"


# --- what happens ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something has happened."""


@dataclass(frozen=True)
class Use(Event):
    """Somebody more needs the peer: to be tried at once. The ways there, as known now."""

    ways: tuple[Address, ...] = ()
    hints: frozenset[Address] = frozenset()


@dataclass(frozen=True)
class Close(Event):
    """Nobody needs it any more."""


@dataclass(frozen=True)
class Due(Event):
    """`deadline` has come."""


@dataclass(frozen=True)
class Found(Event):
    """The addresses of a way; at least one."""

    way: Address
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class NotFound(Event):
    """A way has no address."""

    way: Address
    error: ZBusError


@dataclass(frozen=True)
class Held(Event):
    """This side cannot dial there just now, and can in a moment."""


@dataclass(frozen=True)
class Connected(Event):
    """ZMTP stands, with CURVE where that is wanted."""


@dataclass(frozen=True)
class Closed(Event):
    """The connection is gone. `stage`: how far it had come, as `net.frames.Closed` tells it."""

    stage: str


@dataclass(frozen=True)
class Refused(Event):
    """The two shall not talk: their versions do not fit, or both are this very process."""

    error: ZBusError


@dataclass(frozen=True)
class Faulty(Event):
    """What came breaks the protocol."""

    error: ZBusError


@dataclass(frozen=True)
class Greeted(Event):
    """The two know whom they talk to, and a session stands."""


@dataclass(frozen=True)
class Parted(Event):
    """The session is over, and with it the connection that carries it."""


@dataclass(frozen=True)
class Diagnosed(Event):
    """Why connections to an address come to nothing; None: they should not."""

    way: Address
    spot: Spot
    error: ZBusError | None


@dataclass(frozen=True)
class Hopeless(Event):
    """Each way that counts has a final problem. The machine tells itself."""


# --- what is to be done ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Resolve:
    """Look a way's addresses up: `Found` or `NotFound` follows."""

    way: Address


@dataclass(frozen=True)
class Connect:
    """Begin a connection, in at most `timeout` seconds of TCP: `Connected` or `Closed` follows."""

    way: Address
    spot: Spot
    timeout: float


@dataclass(frozen=True)
class Greet:
    """Say HELLO: `Greeted`, `Refused`, `Faulty` or `Closed` follows."""


@dataclass(frozen=True)
class HangUp:
    """End the connection, whatever it is at; no event follows."""


@dataclass(frozen=True)
class Diagnose:
    """Look why connections to an address come to nothing: `Diagnosed` follows."""

    way: Address
    spot: Spot


@dataclass(frozen=True)
class Warn:
    """Whoever has come only to look need look no longer: each answer is wrong."""

    error: ZBusError


@dataclass(frozen=True)
class Tell:
    """Whoever waits for the peer waits in vain."""

    error: ZBusError


Action = Resolve | Connect | Greet | HangUp | Diagnose | Warn | Tell


class Do(Enum):
    """A step of the table: an `Action`, or something to keep in mind."""

    BEGIN = "as if nothing had been wrong before"
    HURRY = "the next wait is the shortest again"
    RESOLVE = "look the way up, unless its addresses are known"
    CONNECT = "dial the address"
    GREET = "say HELLO"
    HANG_UP = "end the connection"
    ASK_WHY = "count the failure, and find out what is wrong"
    TURN = "the next address, or the next way"
    WAIT = "until the next try, longer each time"
    WAIT_BRIEFLY = "as before the second try"
    SUCCEED = "nothing is wrong any more"
    PART = "no session is to be gone on with"
    WARN = "whoever looks, if each answer is wrong"
    TELL = "whoever waits"


# --- the machine ----------------------------------------------------------------------------------

_IDLE, _RESOLVING, _CONNECTING = State.IDLE, State.RESOLVING, State.CONNECTING
_GREETING, _LINKED, _BACKOFF, _GIVEN_UP = (
    State.GREETING,
    State.LINKED,
    State.BACKOFF,
    State.GIVEN_UP,
)

TABLE: dict[tuple[State, type[Event]], tuple[State, tuple[Do, ...]]] = {
    (_IDLE, Use): (_RESOLVING, (Do.BEGIN, Do.RESOLVE)),
    (_IDLE, Close): (_IDLE, ()),
    (_IDLE, Parted): (_IDLE, (Do.PART,)),
    #
    (_RESOLVING, Found): (_CONNECTING, (Do.CONNECT,)),
    (_RESOLVING, NotFound): (_BACKOFF, (Do.TURN, Do.WAIT)),
    (_RESOLVING, Due): (_BACKOFF, (Do.TURN, Do.WAIT)),
    (_RESOLVING, Use): (_RESOLVING, ()),
    (_RESOLVING, Parted): (_RESOLVING, (Do.PART,)),
    (_RESOLVING, Diagnosed): (_RESOLVING, ()),
    (_RESOLVING, Hopeless): (_GIVEN_UP, (Do.TELL,)),
    (_RESOLVING, Close): (_IDLE, ()),
    #
    (_CONNECTING, Connected): (_GREETING, (Do.GREET,)),
    (_CONNECTING, Closed): (_BACKOFF, (Do.ASK_WHY, Do.TURN, Do.WAIT)),
    (_CONNECTING, Due): (_BACKOFF, (Do.HANG_UP, Do.ASK_WHY, Do.TURN, Do.WAIT)),
    # It may speak before it is heard that ZMTP stands.
    (_CONNECTING, Faulty): (_BACKOFF, (Do.HANG_UP, Do.WARN, Do.TURN, Do.WAIT)),
    (_CONNECTING, Held): (_BACKOFF, (Do.WAIT_BRIEFLY,)),
    (_CONNECTING, Use): (_CONNECTING, ()),
    (_CONNECTING, Parted): (_CONNECTING, (Do.PART,)),
    (_CONNECTING, Diagnosed): (_CONNECTING, ()),
    (_CONNECTING, Hopeless): (_GIVEN_UP, (Do.HANG_UP, Do.TELL)),
    (_CONNECTING, Close): (_IDLE, (Do.HANG_UP,)),
    #
    (_GREETING, Greeted): (_LINKED, (Do.SUCCEED,)),
    (_GREETING, Closed): (_BACKOFF, (Do.ASK_WHY, Do.TURN, Do.WAIT)),
    (_GREETING, Refused): (_BACKOFF, (Do.HANG_UP, Do.TURN, Do.WAIT)),
    (_GREETING, Faulty): (_BACKOFF, (Do.HANG_UP, Do.WARN, Do.TURN, Do.WAIT)),
    (_GREETING, Due): (_BACKOFF, (Do.HANG_UP, Do.ASK_WHY, Do.TURN, Do.WAIT)),
    (_GREETING, Use): (_GREETING, ()),
    # HELLO would have gone on with a session that is no more.
    (_GREETING, Parted): (_RESOLVING, (Do.HANG_UP, Do.PART, Do.RESOLVE)),
    (_GREETING, Close): (_IDLE, (Do.HANG_UP,)),
    #
    # An address that has worked is tried first when its link is lost: no turn.
    (_LINKED, Closed): (_BACKOFF, (Do.ASK_WHY, Do.WAIT)),
    (_LINKED, Faulty): (_BACKOFF, (Do.HANG_UP, Do.WAIT)),
    (_LINKED, Parted): (_BACKOFF, (Do.HANG_UP, Do.PART, Do.WAIT)),
    (_LINKED, Use): (_LINKED, ()),
    (_LINKED, Close): (_IDLE, (Do.HANG_UP,)),
    #
    (_BACKOFF, Due): (_RESOLVING, (Do.RESOLVE,)),
    (_BACKOFF, Use): (_RESOLVING, (Do.HURRY, Do.RESOLVE)),
    (_BACKOFF, Parted): (_BACKOFF, (Do.PART,)),
    (_BACKOFF, Diagnosed): (_BACKOFF, ()),
    (_BACKOFF, Hopeless): (_GIVEN_UP, (Do.TELL,)),
    (_BACKOFF, Close): (_IDLE, ()),
    #
    (_GIVEN_UP, Use): (_RESOLVING, (Do.BEGIN, Do.RESOLVE)),
    (_GIVEN_UP, Parted): (_GIVEN_UP, (Do.PART,)),
    (_GIVEN_UP, Close): (_IDLE, ()),
}
# Answers that may come when nobody waits for them any more: all other gaps of the table are events
# that cannot be.
LATE = (Found, NotFound, Diagnosed)
# How long each state may last; the others last until something happens.
TIMES = {_RESOLVING: RESOLVE_TIME, _CONNECTING: STAND_TIME, _GREETING: GREET_TIME}


class Dial:
    """One peer that is dialled.

    Args:
        ways: The ways there, in the order in which they are tried; at least one.
        hints: Those of them that somebody claims, and nobody vouches for.
        is_keyed: Whether the peer must prove a key.

    Attributes:
        state: Where it is.
        ways: What is known of them.
        dialled_at: When the last connection was begun.
        given_up: Why, in GIVEN_UP.
        nobody_since: Since when every connection is accepted and closed, or is refused by another
            machine.
    """

    def __init__(
        self,
        ways: tuple[Address, ...],
        hints: frozenset[Address] = frozenset(),
        *,
        is_keyed: bool = False,
    ) -> None:
        self.state = State.IDLE
        self.ways = Ways(ways, hints)
        self.dialled_at = 0.0
        self.given_up: ZBusError | None = None
        self.nobody_since: float | None = None
        self._is_keyed = is_keyed
        self._due: float | None = None
        self._backoff = BACKOFF_FIRST
        self._failures = 0  # since the last success
        self._has_session = False  # one stands, or is to be gone on with

    @property
    def address(self) -> Address:
        """The way that is tried now."""
        return self.ways.now.address

    @property
    def problem(self) -> ZBusError | None:
        """Why nothing stands there, once every address of every way was tried."""
        return self.ways.problem

    def deadline(self) -> float | None:
        """When `tick` is due; None: only what happens moves it."""
        return self._due

    # --- events ---------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Do what is due."""
        return self.handle(Due(), now) if self._due is not None and now >= self._due else []

    def handle(self, event: Event, now: float) -> list[Action]:
        """Something has happened: returns what is to be done, in this order.

        Raises:
            LocalProtocolError: It cannot have happened in this state: a fault of the caller.
        """
        row = TABLE.get((self.state, type(event)))
        if row is None and not isinstance(event, LATE):
            raise LocalProtocolError(f"a dial that is {self.state.name} has no {event}")
        self._answered(event)
        if row is None or not self._is_meant(event):
            return []
        self._note(event, now)
        before, (self.state, steps) = self.state, row
        if self.state is not before:
            self._due = now + TIMES[self.state] if self.state in TIMES else None
        actions: list[Action] = []
        for step in steps:
            actions += self._do(step, event, now)
        if (self.state, Hopeless) in TABLE and self.ways.are_hopeless:
            actions += self.handle(Hopeless(), now)
        return actions

    def _answered(self, event: Event) -> None:
        """An answer has come, also one that nobody waits for."""
        way = self.ways.named(event.way) if isinstance(event, LATE) else None
        if way is not None and isinstance(event, Diagnosed):
            way.asked.discard(event.spot)
        elif way is not None:
            way.is_sought = False

    def _is_meant(self, event: Event) -> bool:
        """Whether it is the answer that is waited for: a name's may come when its turn is over."""
        return not isinstance(event, (Found, NotFound)) or event.way == self.address

    def _note(self, event: Event, now: float) -> None:
        """What an event says of the addresses."""
        match event:
            case Found():
                self.ways.now.found(event.spots)
            case NotFound():
                self.ways.now.not_found(event.error, is_final=True)
            case Due() if self.state is State.RESOLVING:
                self.ways.now.not_found(_unanswered(self.address), is_final=False)
            case Refused():
                self.ways.wrong(event.error, is_final=True)
            case Faulty():
                self._failures += 1
                self.ways.faulty(event.error, now, may_end=not self._has_session)
            case Closed():
                self.ways.now.faults = 0
                if event.stage == "refused":
                    self.ways.wrong(refused(), is_final=True)
            case Diagnosed():
                way = self.ways.named(event.way)
                if way is not None:
                    way.diagnosed(event.spot, event.error, may_end=not self._has_session)
            case Use() if event.ways:
                rests = self.state in (State.IDLE, State.BACKOFF, State.GIVEN_UP)
                self.ways.take(event.ways, event.hints, is_tried=not rests)

    # --- steps ----------------------------------------------------------------------------------

    def _do(self, step: Do, event: Event, now: float) -> list[Action]:
        match step:
            case Do.BEGIN:
                self._succeed()
                self.ways.now.look_up_again()
            case Do.HURRY:
                self._backoff = BACKOFF_FIRST
            case Do.RESOLVE:
                return self._resolve(now)
            case Do.CONNECT:
                return self._connect(now)
            case Do.GREET:
                return [Greet()]
            case Do.HANG_UP:
                return [HangUp()]
            case Do.ASK_WHY:
                return self._ask_why(event, now)
            case Do.TURN:
                self.ways.turn(self._failures)
            case Do.WAIT:
                self._wait(now)
            case Do.WAIT_BRIEFLY:
                self._due = now + BACKOFF_FIRST
            case Do.SUCCEED:
                self._succeed()
                self._has_session = True
            case Do.PART:
                self._has_session, self._failures = False, 0
            case Do.WARN:
                return self._warn()
            case Do.TELL:
                self.given_up = self.ways.first
                return [Tell(self.given_up)] if self.given_up is not None else []
        return []

    def _succeed(self) -> None:
        self._backoff, self._failures = BACKOFF_FIRST, 0
        self.given_up = self.nobody_since = None
        self.ways.forget()

    def _resolve(self, now: float) -> list[Action]:
        way = self.ways.now
        if way.is_fresh and way.spots:
            return self.handle(Found(way.address, way.spots), now)
        if way.is_sought:
            return []  # the answer is on its way, or RESOLVE_TIME ends the wait for it
        way.is_sought = True
        return [Resolve(way.address)]

    def _connect(self, now: float) -> list[Action]:
        self.dialled_at = now
        timeout = CONNECT_SOON if len(self.ways.now.spots) > 1 else CONNECT_TIME
        return [Connect(self.address, self.ways.settle(), timeout)]

    def _ask_why(self, event: Event, now: float) -> list[Action]:
        """Ask why, now and then: the only address there is need not be looked at each time."""
        self._failures += 1
        stage = event.stage if isinstance(event, Closed) else "link"
        self._count_nobody(stage, now)
        way, spot = self.ways.now, self.ways.spot
        if spot is None or stage == "refused":
            return []
        # A handshake that ends late tells of a busy peer, and not of another key.
        is_early = now - self.dialled_at < QUICK
        is_due = way.doubt(spot, self._is_keyed and stage == "greeting" and is_early)
        is_due = is_due or self.ways.count > 1 or self._failures % LOOK_EVERY == 1
        if not is_due or spot in way.asked:
            return []
        way.asked.add(spot)
        return [Diagnose(way.address, spot)]

    def _count_nobody(self, stage: str, now: float) -> None:
        refused_elsewhere = stage == "connect" and not self.address.is_loopback
        # Whose handshake ends late is there, and busy: a model load can hold its GIL for long.
        is_busy = self._is_keyed and now - self.dialled_at >= QUICK
        if not (stage == "greeting" or refused_elsewhere) or is_busy:
            self.nobody_since = None
        elif self.nobody_since is None:
            self.nobody_since = now

    def _warn(self) -> list[Action]:
        problem, is_faulty = self.problem, self.ways.now.faults >= FAULTS
        return [Warn(problem)] if problem is not None and is_faulty else []

    def _wait(self, now: float) -> None:
        most = BACKOFF_LOOPBACK if self.address.is_loopback else BACKOFF_REMOTE
        self._due = now + self._backoff
        self._backoff = min(most, self._backoff * 1.5)

    # --- for people -----------------------------------------------------------------------------

    def explain(self, now: float) -> str:
        """One line: why nobody is there yet."""
        problem, first = self.problem, self.ways.known[0].address
        if self.state is State.GREETING:
            waited = now - self.dialled_at
            return f"{self.address} has accepted and has not answered for {waited:.0f} s"
        if problem is None:
            return f"dialling {self.address}"
        if self._is_keyed:
            why = f"not reachable at {first}: {problem.what}"
            return f"{why}; dialling again, and waiting for it to come by itself"
        if isinstance(problem, NobodyBehind):
            return (
                f"press Run on the other side: {first} is a tunnel with nobody at its far end yet"
            )
        if isinstance(problem, Unreachable):
            is_refused = "refused" in problem.what
            return NOBODY_LISTENS.format(first) if is_refused else str(problem)
        return f"{problem.at(peer=str(first))}; dialling again"


NOBODY_LISTENS = (
    "press Run on the other side: nobody listens on {} yet "
    "(one of the two has to listen: as Server, or with listen: before its peer)"
)


def _unanswered(address: Address) -> NameNotResolved:
    return NameNotResolved(
        f'nobody says what the name "{address.host}" means',
        peer=str(address),
        remedy="Look at this machine's network, or write the numeric address",
    )
