"""What the I/O thread remembers of each address it dials or listens on, and of each session."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..address import Address
from ..errors import ConnectError, ZBusError
from ..protocol.identity import Identity, SessionKey
from ..protocol.messages import MAX_CHUNK
from ..protocol.pace import Pace
from ..protocol.session import Session
from ..settings import Settings as Settings
from .frames import Connection, Listener
from .websocket import Lane

ADDR, OWN = "addr", "own"  # kinds of listener, as HELLO names them
BACKOFF_FIRST = 0.1  # seconds to the next dial
BACKOFF_LOOPBACK = 0.5  # it grows to this on the loopback while a run waits,
BACKOFF_REMOTE = 1.0  # to this elsewhere,
BACKOFF_IDLE = 5.0  # and to this while no run waits


@dataclass(eq=False)
class Place:
    """One address that runs meet at: listened on or dialled."""

    kind: str  # "listen" or "dial"
    address: Address
    own: bool = False  # this peer's own listener: for jobs too, and never closed
    key: bytes = b""  # of a dialled one: the public key that must answer; none: a plain one
    routes: tuple[Address, ...] = ()  # of a dialled one: the ways there; `address` is tried now
    hints: frozenset[Address] = frozenset()  # those of them where a failure says nothing
    users: int = 0
    idle_since: float = 0.0
    listener: Listener | None = None
    peerings: list[Peering] = field(default_factory=list)
    # A dialled place has at most one session, and makes its connections itself.
    numeric: str | None = None
    port: int = 0  # to dial at `numeric`
    lane: Lane | None = None  # which leads on from there
    problems: dict[Address, ZBusError] = field(default_factory=dict)  # of each way there
    hopeless: set[Address] = field(default_factory=set)  # the ways where dialling again is no help
    connection: Connection | None = None
    dialled_at: float = 0.0
    next_dial: float | None = None
    backoff: float = BACKOFF_FIRST
    failures: int = 0  # since the last success
    looking: bool = False  # a resolver or probe is under way
    problem: ConnectError | None = None  # why nothing stands there: each way has been tried
    given_up: ZBusError | None = None  # dialling again cannot help, and why
    hopeless_since: float | None = None  # accepted and closed, or refused elsewhere, each time

    @property
    def peering(self) -> Peering | None:
        return self.peerings[0] if self.peerings else None

    @property
    def known_routes(self) -> list[Address]:
        """The ways that count."""
        return [route for route in self.routes if route not in self.hints] or list(self.routes)

    def turn(self) -> None:
        """The next way there, in their order, and the first again after the last."""
        if len(self.routes) > 1:
            self.address = self.routes[(self.routes.index(self.address) + 1) % len(self.routes)]
            self.forget_way()

    def forget_way(self) -> None:
        """Find the way to `address` anew before the next dial."""
        self.numeric = None
        if self.lane is not None:
            self.lane.close()
            self.lane = None

    def delay(self) -> float:
        """Seconds to wait before the next dial; grows with each call."""
        most = BACKOFF_LOOPBACK if self.address.is_loopback else BACKOFF_REMOTE
        if not self.users and not self.peerings:
            most = BACKOFF_IDLE
        delay, self.backoff = self.backoff, min(most, self.backoff * 1.5)
        return delay

    def succeeded(self) -> None:
        """A connection stands and the peer has answered."""
        self.backoff, self.failures = BACKOFF_FIRST, 0
        self.problem = self.hopeless_since = None
        self.problems.clear()
        self.hopeless.clear()


@dataclass(eq=False)
class Peering:
    """One session at one place, and the connection that carries it now."""

    session: Session
    place: Place
    key: SessionKey
    identity: Identity | None  # who the peer is, as CURVE has proved it; None on a plain link
    connection: Connection | None = None
    pace: Pace = field(default_factory=Pace)
    transfers: int = 0  # open ones
    activity: str = ""  # what the peer says it is doing
    silent: float = 0.0  # seconds, once it is worth a word
    process: str | None = None  # of a peer on this machine: what tells its process from another
    permissions: frozenset[str] = frozenset()  # what the peer may do here
    faults: int = 0  # protocol errors
    jobs: bool = False  # some job needs it
    shares: bool = False  # large values are read out of the sender's memory, either way

    @property
    def principal(self) -> bytes:
        """The peer's public key; none on a plain link."""
        return self.identity.key if self.identity is not None else b""

    @property
    def name(self) -> str:
        return self.session.peer.name

    @property
    def is_own(self) -> bool:
        """Whether it goes through the own listener of either side, and not one for values only."""
        return self.identity is not None

    @property
    def is_local(self) -> bool:
        """Whether the peer is on this machine."""
        return self.process is not None

    @property
    def largest_chunk(self) -> int:
        """The plain bytes of a chunk that the peer takes."""
        return max(1, dict(self.session.peer.limits).get("chunk", MAX_CHUNK))

    @property
    def error(self) -> ZBusError | None:
        return self.session.error
