"""What the I/O thread remembers of each address it listens on or dials, and of each session."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..address import Address
from ..errors import ZBusError
from ..protocol.dial import Dial
from ..protocol.identity import Identity, SessionKey
from ..protocol.messages import MAX_CHUNK, ShmNear
from ..protocol.pace import MIN_CHUNK, Pace
from ..protocol.session import Session
from ..settings import Settings as Settings
from .frames import Connection, Listener
from .websocket import Lane

ADDR, OWN = "addr", "own"  # kinds of listener, as HELLO names them


@dataclass(eq=False)
class _Leased:
    """What is open as long as somebody uses it, and a while longer."""

    leases: set[Lease[Place]] = field(default_factory=set, init=False)
    idle_since: float = field(default=0.0, init=False)
    peerings: list[Peering] = field(default_factory=list, init=False)

    @property
    def users(self) -> int:
        """How many use it."""
        return len(self.leases)


@dataclass(eq=False)
class ListenedAddress(_Leased):
    """An address where others come to this peer.

    Attributes:
        own: This peer's own listener: for jobs too, and never closed.
        refused_hosts: Where it was to listen too, and the system has said no.
    """

    address: Address
    listener: Listener
    own: bool = False
    refused_hosts: set[str] | None = None
    kind = "listen"  # for the channels

    @property
    def where(self) -> str:
        """Names it in the keys of its sessions."""
        return f"listen {self.address}"


@dataclass(eq=False)
class DialTarget(_Leased):
    """A peer that this side dials: it has at most one session.

    Attributes:
        key: The public key that must answer; none: a plain listener.
        connection: The one that stands or is being made.
        lanes: Of ways that are pages: what leads on from there.
    """

    dial: Dial
    key: bytes = b""
    connection: Connection | None = None
    lanes: dict[Address, Lane] = field(default_factory=dict)
    kind = "dial"  # for the channels

    def __post_init__(self) -> None:
        # Names it in the keys of its sessions: the ways may change, and this does not.
        self.where = f"dial {self.dial.address}"

    @property
    def address(self) -> Address:
        """The way that is tried now."""
        return self.dial.address

    @property
    def peering(self) -> Peering | None:
        return self.peerings[0] if self.peerings else None


Place = ListenedAddress | DialTarget
P = TypeVar("P", bound=Place)
P_co = TypeVar("P_co", bound=Place, covariant=True)


class Lease(Generic[P_co]):
    """One use of a place: it is not closed before the last of them is released."""

    def __init__(self, place: P_co) -> None:
        self._place = place
        place.leases.add(self)

    @property
    def place(self) -> P_co:
        """What is used."""
        return self._place

    def release(self) -> None:
        """Done with it; once is enough, and more does no harm. The place stays a while, and until
        all is acknowledged."""
        if self in self._place.leases:
            self._place.leases.remove(self)
            self._place.idle_since = time.monotonic()


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
    was_linked: bool = False  # a connection has carried it
    jobs: Lease[Place] | None = None  # some job needs it
    pid_at: float = 0.0  # when to look next whether its process lives
    is_direct: bool = False  # the peer is on this machine, and nothing between the two
    shares: bool = False  # large values are read out of the sender's memory, either way
    said_near: bool = False  # this side has proved that it is one of that peer's user
    is_near: bool = False  # the peer has proved that it is a process of this user's

    @property
    def lends(self) -> bool:
        """Whether the peer may be told where a value lies."""
        return self.shares and self.is_near

    def say_near(self, message: ShmNear) -> None:
        """Prove to the peer that this is a process of its user."""
        self.said_near = True
        self.session.send(message)

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
        """The plain bytes of a chunk that the peer takes. One that says less than any peer must
        take would have this side spend its time on headers."""
        return max(MIN_CHUNK, dict(self.session.peer.limits).get("chunk", MAX_CHUNK))

    @property
    def error(self) -> ZBusError | None:
        return self.session.error
