"""Sans-IO: what `channel` keeps of each run and session, and what it wants done."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ..errors import ZBusError
from .identity import SessionKey
from .manifest import Manifest
from .messages import Announce, Await, Message, Offer


@dataclass(frozen=True)
class Endpoint:
    """Where a registration may meet.

    Attributes:
        kind: "listen" or "dial" with an address, "peer" with a key, or "any" of those that have
            come to an address.
        address: Of a "listen" or "dial"; of a "peer" what to call it.
        principal: The public key of a "peer".
        instance, name: Which ComfyUI of that principal, by its id or by its own name; none: any.
    """

    kind: str
    address: str = ""
    principal: bytes = b""
    instance: bytes = b""
    name: str = ""

    def covers(self, link: Link) -> bool:
        if not link.permitted:
            return False
        if self.kind != "peer":
            fits = self.kind == "any" or (self.kind, self.address) == (link.kind, link.address)
            return fits and not link.principal
        # What the peer says of itself counts only within what its key has proved.
        return (
            self.principal == link.principal
            and self.instance in (b"", link.instance)
            and self.name in ("", link.peer)
        )

    def __str__(self) -> str:
        return {"any": "the connected peer", "listen": f"listen:{self.address}"}.get(
            self.kind, self.address
        )


@dataclass
class Link:
    """What channels know of one session."""

    key: SessionKey
    kind: str  # "listen" or "dial"
    address: str
    peer: str  # the peer's name
    incarnation: bytes
    principal: bytes = b""  # its key, on a link of the peers' own listeners
    instance: bytes = b""
    permitted: bool = True  # to exchange values with this side
    proposes: bool | None = None  # where neither side is the listening one
    remote: dict[tuple[str, str], Announce] = field(default_factory=dict)  # (run, channel): waiting
    busy: dict[str, str] = field(default_factory=dict)  # channel -> why nobody is to be had
    announced: set[tuple[str, str]] = field(default_factory=set)  # (run, channel) of this side
    held: list[Registration] = field(default_factory=list)  # not announced: there are too many
    bindings: int = 0
    operations: int = 0

    @property
    def binds(self) -> bool:
        """This side proposes the bindings: the listening one does, and between peers, which may
        both have dialled, the one with the lower id."""
        return self.kind == "listen" if self.proposes is None else self.proposes

    def new_operation(self) -> int:
        """An operation's id, never the same on both sides."""
        self.operations += 1
        return self.operations * 2 + self.binds

    def may_be_theirs(self, operation: int) -> bool:
        """Whether the other side may give that id to something of its own."""
        return operation % 2 != self.binds


class State(Enum):
    WAITING = "waiting"
    PROPOSED = "proposed"
    BOUND = "bound"
    ENDED = "ended"


@dataclass(eq=False)
class ChannelOperation:
    """One send or receive of this side."""

    direction: str
    kind: str  # of a send: its value's; of a receive: what it expects
    node: str
    order: int | None = None
    key: int = -1
    id: int = 0
    posted: bool = False
    matched: bool = False

    def __str__(self) -> str:
        return self.node or f"{self.direction} {self.kind}"


@dataclass(eq=False)
class Registration:
    """One run's place at one endpoint and channel."""

    run: str
    endpoint: Endpoint
    channel: str
    since: str
    manifest: Manifest | None = None
    state: State = State.WAITING
    link: Link | None = None
    binding: int = -1
    partner: Announce | None = None
    error: ZBusError | None = None
    operation: ChannelOperation | None = None
    remote: Await | Offer | None = None  # the other side's open step
    remote_body: bytes = b""
    next_key: int = 0  # of an operation that names no order: the one after the last that was done
    finished: int = 0
    last_done: int = 0  # the other side's id of the operation that was completed last
    # An operation that was given up here, while the other side has not answered that: it may have
    # completed it. The next one waits for that word.
    cancelling: ChannelOperation | None = None

    @property
    def who(self) -> str:
        """Whom this registration has met, or hopes to."""
        return self.link.peer if self.link else str(self.endpoint)

    @property
    def expects_more(self) -> bool:
        """Whether this run, as far as is known, still has operations here."""
        if self.operation is not None or self.manifest is None:
            return self.operation is not None
        return self.finished < sum(op[3] for op in self.manifest)


# --- what is to be done -------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Put `message` on the session."""

    session: SessionKey
    message: Message
    body: bytes = b""


@dataclass(frozen=True)
class MayOffer:
    """That send may go now: pack its value for the link, and `offer` it."""

    registration: Registration
    step: ChannelOperation


@dataclass(frozen=True)
class Matched:
    """A receive has its offer: take the value."""

    registration: Registration
    step: ChannelOperation
    offer: Offer
    body: bytes


@dataclass(frozen=True)
class Failed:
    """The operation failed. Its transfer, if any, is to be dropped."""

    registration: Registration
    step: ChannelOperation
    error: ZBusError


@dataclass(frozen=True)
class RunBroken:
    """It ended while its run was computing with operations still to come: stop that run."""

    registration: Registration
    error: ZBusError


Event = Send | MayOffer | Matched | Failed | RunBroken
