"""Sans-IO: one value on its way, on one side, from the offer to its one end.

A `Sending` is the side that has the value, a `Receiving` the side that gets it. Each is one table:
(state, event) -> (next state, what is to be done). Whoever holds one calls the method for what has
happened and does what comes back, in order. Nothing else knows how far a value is.

::

    sending                                      receiving
    PACKING                                      .
       | OFFER or JOB_OFFER ------------------>  OFFERED
    OFFERED                                         | memory asked for
       |                                         WAITING_FOR_MEMORY   (GRANT of nothing)
       |                                         ALLOCATING
       |  <---------------- SHM_READY, GRANT ---    | its memory is there
    MOVING or LENT                               MOVING or READING
       | CHUNK ... or SHM_OFFER; FINISH ------->    | every byte is there
       |                                         VERIFYING or VERIFYING_READ
       |                                            | the digest is right
       |                                         BUILDING
       |  <------------------------- STORED ----    | handed over
    STORED                                       BUILT

A connection that breaks is none of these: the session is mended or it ends. What was granted and
what had come is said anew on the next connection, by `Outgoing` and `Incoming` (`transfer`).

Between OFFERED and MOVING or LENT a `Sending` may be LENDABLE: the peer has proved that it could
read the value where it lies. A `Receiving` whose spec is long has it first (HEAD), in chunks.

Late words are no faults: between the end of one side and the news of it the other goes on. So an
ended delivery takes every event and does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

from ..errors import DigestMismatch, LinkLost, LocalProtocolError, RemoteProtocolError, ZBusError
from .messages import Chunk, Grant
from .pace import Pace
from .transfer import Cut, Incoming, Outgoing


class Key(Enum):
    """Of a table: looked up by what it is, in C, and not by its name."""

    __hash__ = object.__hash__


class Do(Key):
    """What is to be done by whoever holds the delivery."""

    OFFER = "say what is offered, in the OFFER or JOB_OFFER"
    LEND = "say SHM_OFFER: where the bytes lie; and digest them for the FINISH"
    RECLAIM = "nothing is lent any more: chunks go"
    INVITE = "say SHM_READY, where this side could read the value itself"
    GRANT = "say GRANT: what is here, and what is taken"
    ASK_MEMORY = "take a ticket of the budget for what the spec asks for"
    ALLOCATE = "make the memory of the value"
    READ = "read the bytes out of the sender's memory"
    DECLINE = "say SHM_DECLINE: they are to come in chunks"
    COMPARE = "compare the digest with that of what has come"
    BUILD = "make the value of the bytes"
    STORED = "say STORED"
    REFUSE = "say REFUSED, and why"
    RELEASE = "let go of the bytes and the memory"
    TELL = "tell whose value it is: delivered or undeliverable, once"


Actions = tuple[Do, ...]


# --- sending --------------------------------------------------------------------------------------


class SendState(Key):
    PACKING = "packing"  # the value's bytes are made
    OFFERED = "offered"  # the peer knows of it
    LENDABLE = "lendable"  # and could read it where it lies, as it has proved
    MOVING = "moving"  # chunks go
    LENT = "lent"  # the peer reads it out of this process's memory
    STORED = "stored"  # the peer has it
    FAILED = "failed"


class SendEvent(Key):
    PACKED = "packed"
    READY = "SHM_READY"
    HELD = "GRANT of nothing"
    GRANTED = "GRANT"
    DECLINED = "SHM_DECLINE"
    STORED = "STORED"
    REFUSED = "REFUSED"
    FAILED = "failed here"  # something was raised: in packing, in a codec, in CUDA
    DROPPED = "dropped here"  # nobody wants it any more: cancelled, timed out, the run ended
    BROKEN = "session ended"


_S, _SE = SendState, SendEvent
_SENT: tuple[SendState, Actions] = (_S.STORED, (Do.RELEASE, Do.TELL))
_NOT_SENT: tuple[SendState, Actions] = (_S.FAILED, (Do.RELEASE, Do.TELL))

SENDING: Mapping[tuple[SendState, SendEvent], tuple[SendState, Actions]] = {
    (_S.PACKING, _SE.PACKED): (_S.OFFERED, (Do.OFFER,)),
    (_S.PACKING, _SE.FAILED): _NOT_SENT,
    (_S.PACKING, _SE.DROPPED): _NOT_SENT,
    (_S.PACKING, _SE.BROKEN): _NOT_SENT,
    (_S.OFFERED, _SE.READY): (_S.LENDABLE, ()),
    (_S.OFFERED, _SE.HELD): (_S.OFFERED, ()),
    (_S.OFFERED, _SE.GRANTED): (_S.MOVING, ()),
    (_S.OFFERED, _SE.STORED): _SENT,  # it rode inside the offer
    (_S.OFFERED, _SE.REFUSED): _NOT_SENT,
    (_S.OFFERED, _SE.FAILED): _NOT_SENT,
    (_S.OFFERED, _SE.DROPPED): _NOT_SENT,
    (_S.OFFERED, _SE.BROKEN): _NOT_SENT,
    (_S.LENDABLE, _SE.GRANTED): (_S.LENT, (Do.LEND,)),
    (_S.LENDABLE, _SE.HELD): (_S.LENDABLE, ()),
    (_S.LENDABLE, _SE.REFUSED): _NOT_SENT,
    (_S.LENDABLE, _SE.FAILED): _NOT_SENT,
    (_S.LENDABLE, _SE.DROPPED): _NOT_SENT,
    (_S.LENDABLE, _SE.BROKEN): _NOT_SENT,
    (_S.MOVING, _SE.GRANTED): (_S.MOVING, ()),
    (_S.MOVING, _SE.HELD): (_S.MOVING, ()),  # its spec is there, the rest waits
    (_S.MOVING, _SE.STORED): _SENT,
    (_S.MOVING, _SE.REFUSED): _NOT_SENT,
    (_S.MOVING, _SE.FAILED): _NOT_SENT,
    (_S.MOVING, _SE.DROPPED): _NOT_SENT,
    (_S.MOVING, _SE.BROKEN): _NOT_SENT,
    (_S.LENT, _SE.GRANTED): (_S.LENT, ()),  # how far it has read
    (_S.LENT, _SE.DECLINED): (_S.MOVING, (Do.RECLAIM,)),
    (_S.LENT, _SE.STORED): _SENT,
    (_S.LENT, _SE.REFUSED): _NOT_SENT,
    (_S.LENT, _SE.FAILED): _NOT_SENT,
    (_S.LENT, _SE.DROPPED): _NOT_SENT,
    (_S.LENT, _SE.BROKEN): _NOT_SENT,
}

# --- receiving ------------------------------------------------------------------------------------


class ReceiveState(Key):
    OFFERED = "offered"  # nothing was answered yet
    HEAD = "head"  # its spec is long, and comes first, in chunks
    WAITING_FOR_MEMORY = "waiting for memory"
    ALLOCATING = "allocating"
    MOVING = "moving"  # chunks come
    READING = "reading"  # it is read out of the sender's memory
    VERIFYING = "verifying"  # every chunk is in its place; the digest is compared when it is known
    VERIFYING_READ = "verifying what was read"
    BUILDING = "building"  # the bytes are right, and become the value
    BUILT = "built"  # handed over
    FAILED = "failed"


class ReceiveEvent(Key):
    HEAD_FIRST = "spec comes first"
    SPEC = "spec is here"
    GIVEN = "memory given"
    ALLOCATED = "allocated"
    FILLED = "filled"  # it rode inside the offer
    LENT = "SHM_OFFER"
    UNREADABLE = "unreadable"
    COMPLETE = "every byte is here"
    RIGHT = "digest right"
    WRONG = "digest wrong"
    BUILT = "built"
    BUILT_AT_ONCE = "built at once"  # it rode inside the offer, and is small
    FAILED = "failed here"
    DROPPED = "dropped here"
    BROKEN = "session ended"


_R, _RE = ReceiveState, ReceiveEvent
_REFUSED: tuple[ReceiveState, Actions] = (_R.FAILED, (Do.REFUSE, Do.RELEASE, Do.TELL))
_NOT_GOT: tuple[ReceiveState, Actions] = (_R.FAILED, (Do.RELEASE, Do.TELL))
# Who drops it tells the peer in its own words: CANCEL, CLOSE. Who has none lets it fail: REFUSED.
_ENDS = {_RE.FAILED: _REFUSED, _RE.DROPPED: _NOT_GOT, _RE.BROKEN: _NOT_GOT}
_OPEN = [state for state in ReceiveState if state not in (_R.BUILT, _R.FAILED)]
_GRANTING = (_R.HEAD, _R.MOVING, _R.READING, _R.VERIFYING, _R.VERIFYING_READ)

RECEIVING: Mapping[tuple[ReceiveState, ReceiveEvent], tuple[ReceiveState, Actions]] = {
    (_R.OFFERED, _RE.HEAD_FIRST): (_R.HEAD, (Do.GRANT,)),
    (_R.OFFERED, _RE.BUILT_AT_ONCE): (_R.BUILT, (Do.RELEASE, Do.STORED, Do.TELL)),
    (_R.OFFERED, _RE.SPEC): (_R.WAITING_FOR_MEMORY, (Do.ASK_MEMORY,)),
    (_R.HEAD, _RE.SPEC): (_R.WAITING_FOR_MEMORY, (Do.ASK_MEMORY,)),
    (_R.WAITING_FOR_MEMORY, _RE.GIVEN): (_R.ALLOCATING, (Do.ALLOCATE,)),
    (_R.ALLOCATING, _RE.ALLOCATED): (_R.MOVING, (Do.INVITE, Do.GRANT)),
    (_R.ALLOCATING, _RE.FILLED): (_R.BUILDING, (Do.BUILD,)),
    (_R.MOVING, _RE.LENT): (_R.READING, (Do.READ,)),
    (_R.MOVING, _RE.COMPLETE): (_R.VERIFYING, ()),
    (_R.VERIFYING, _RE.RIGHT): (_R.BUILDING, (Do.BUILD,)),
    (_R.VERIFYING, _RE.WRONG): _REFUSED,
    (_R.READING, _RE.UNREADABLE): (_R.MOVING, (Do.DECLINE, Do.GRANT)),
    (_R.READING, _RE.COMPLETE): (_R.VERIFYING_READ, ()),
    (_R.VERIFYING_READ, _RE.RIGHT): (_R.BUILDING, (Do.BUILD,)),
    # The sender has let go of it, or written there, while it was read: chunks are to bring it.
    (_R.VERIFYING_READ, _RE.WRONG): (_R.MOVING, (Do.DECLINE, Do.GRANT)),
    (_R.BUILDING, _RE.BUILT): (_R.BUILT, (Do.RELEASE, Do.STORED, Do.TELL)),
    **{(state, event): end for state in _OPEN for event, end in _ENDS.items()},
}

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


class Delivery(Generic[S, E]):
    """What both sides have in common.

    Attributes:
        state: How far it is.
        error: Why it has failed.
        resumable: Whether it has failed for its session alone, with a link that may come back:
            then the same value can be sent again on the next session of the two processes.
    """

    TABLE: Mapping[tuple[S, E], tuple[S, Actions]]
    TERMINAL: frozenset[S]

    def __init__(self, state: S) -> None:
        self.state = state
        self.error: ZBusError | None = None
        self.resumable = False

    @property
    def ended(self) -> bool:
        """Whether it has come to its end: nothing more will be done for it."""
        return self.state in self.TERMINAL

    def _on(self, event: E) -> Actions:
        if self.ended:
            return ()
        try:
            self.state, actions = self.TABLE[self.state, event]
        except KeyError:
            raise self._out_of_place(event) from None
        return actions

    def _out_of_place(self, event: E) -> ZBusError:
        said = f"{event.value} while a value is {self.state.value}"
        from_peer = event.value.replace(" of nothing", "").isupper()  # the kind of a message
        return RemoteProtocolError(said) if from_peer else LocalProtocolError(said)

    def _fail(self, event: E, error: ZBusError) -> Actions:
        if not self.ended:
            self.error = error
        return self._on(event)

    def _broken(self, event: E, error: ZBusError) -> Actions:
        if not self.ended:
            self.resumable = isinstance(error, LinkLost)
        return self._fail(event, error)


class Sending(Delivery[SendState, SendEvent]):
    """A value on its way out.

    Attributes:
        outgoing: Its chunks; None while it is packed, and of one that rides inside its offer.
        held: The peer wants it, and has no memory for it yet.
        refused_there: The peer has refused it, and so knows of the end.
        received: Plain bytes that the peer has.
    """

    TABLE = SENDING
    TERMINAL = frozenset((SendState.STORED, SendState.FAILED))

    def __init__(self, transfer: int) -> None:
        super().__init__(SendState.PACKING)
        self.id = transfer
        self.outgoing: Outgoing | None = None
        self.held = False
        self.refused_there = False
        self.received = 0

    def packed(self) -> Actions:
        """Its bytes are made, and ride inside its offer."""
        return self._on(SendEvent.PACKED)

    def packed_for_chunks(self, total: int, cut: Cut, pace: Pace, largest: int) -> Actions:
        """Its bytes are made, and follow its offer. The arguments are those of `Outgoing`."""
        self.outgoing = Outgoing(self.id, total, cut, pace, largest)
        return self._on(SendEvent.PACKED)

    def ready(self) -> Actions:
        """The peer has proved that it could read the value where it lies."""
        return self._on(SendEvent.READY) if self.state is SendState.OFFERED else ()

    def grant(self, grant: Grant, now: float) -> Actions:
        """The peer says what it has and takes.

        Raises:
            RemoteProtocolError: It claims what was not sent, or grants what does not move.
        """
        if self.ended:
            return ()
        total = self.outgoing.total if self.outgoing is not None else 0
        if grant.limit > total or grant.received > grant.limit:
            raise RemoteProtocolError("a GRANT beyond the value")
        is_inline = self.outgoing is None  # it rode inside its offer, and waits there
        self.held = grant.limit == 0 and (total > 0 or is_inline)
        if self.held or self.outgoing is None:
            return self._on(SendEvent.HELD)
        if self.state is SendState.LENT:  # how far the peer has read
            self.received = grant.received
        else:
            self.outgoing.grant(grant, now)
            self.received = self.outgoing.received
        return self._on(SendEvent.GRANTED)

    def declined(self) -> Actions:
        """The peer cannot read it after all."""
        self.received = 0
        return self._on(SendEvent.DECLINED) if self.state is SendState.LENT else ()

    def stored(self) -> Actions:
        """The peer has it."""
        return self._on(SendEvent.STORED)

    def refused(self, error: ZBusError) -> Actions:
        """The peer will not take it."""
        self.refused_there = not self.ended
        return self._fail(SendEvent.REFUSED, error)

    def failed(self, error: ZBusError) -> Actions:
        """Something was raised on this side."""
        return self._fail(SendEvent.FAILED, error)

    def dropped(self, error: ZBusError) -> Actions:
        """Nobody here wants it sent any more."""
        return self._fail(SendEvent.DROPPED, error)

    def broken(self, error: ZBusError) -> Actions:
        """Its session has ended."""
        return self._broken(SendEvent.BROKEN, error)

    def unlinked(self) -> None:
        """The connection is gone: nothing goes until the peer has said what it has."""
        if self.outgoing is not None:
            self.outgoing.unlinked()


class Receiving(Delivery[ReceiveState, ReceiveEvent]):
    """A value on its way in.

    Args:
        transfer: Its id, as the sender has given it.
        total: Plain bytes, with those of a spec in front.
        head: How many of them are a spec in front.
        window: Grant at most so many bytes beyond what is stored; None: everything.

    Attributes:
        incoming: Its chunks.
    """

    TABLE = RECEIVING
    TERMINAL = frozenset((ReceiveState.BUILT, ReceiveState.FAILED))

    def __init__(self, transfer: int, total: int, head: int = 0, window: int | None = None) -> None:
        super().__init__(ReceiveState.OFFERED)
        self.id, self.total, self.head = transfer, total, head
        self.incoming = Incoming(transfer, head or total, window)
        self._digest: bytes | None = None

    # --- its offer ----------------------------------------------------------------------------

    def begin(self) -> Actions:
        """Take it: its spec comes first, or is here already."""
        return self._on(ReceiveEvent.HEAD_FIRST if self.head else ReceiveEvent.SPEC)

    def built_at_once(self) -> Actions:
        """It rode inside the offer, and is the value already."""
        return self._on(ReceiveEvent.BUILT_AT_ONCE)

    @property
    def is_head_whole(self) -> bool:
        """Whether a spec that comes first is here, and to be read."""
        return self.state is ReceiveState.HEAD and self.incoming.complete

    def spec(self) -> Actions:
        """A spec that came first has been read."""
        return self._on(ReceiveEvent.SPEC)

    @property
    def waits_for_memory(self) -> bool:
        return self.state is ReceiveState.WAITING_FOR_MEMORY

    @property
    def is_whole(self) -> bool:
        """Whether every byte is here and right."""
        return self.state in (ReceiveState.BUILDING, ReceiveState.BUILT)

    @property
    def takes_bytes(self) -> bool:
        """Whether a GRANT has something to say."""
        return self.state in _GRANTING

    def given(self) -> Actions:
        """Its memory may be taken."""
        return self._on(ReceiveEvent.GIVEN)

    def allocated(self) -> Actions:
        """Its memory is there, and empty."""
        if self.head and not self.ended:
            self.incoming.open(self.total)
        actions = self._on(ReceiveEvent.ALLOCATED)
        return (*actions, *self._look_complete())

    def filled(self) -> Actions:
        """Its memory is there, and filled with what rode inside the offer."""
        return self._on(ReceiveEvent.FILLED)

    # --- its bytes ----------------------------------------------------------------------------

    def arrive(self, chunk: Chunk) -> bool:
        """Whether this chunk is wanted; if so, its bytes go to their place, and then `stored`.

        Raises:
            RemoteProtocolError: It was not granted, or leaves a gap.
        """
        if self.state not in (ReceiveState.HEAD, ReceiveState.MOVING):
            if self.state in (ReceiveState.VERIFYING, ReceiveState.BUILDING) or self.ended:
                return False  # repeated after a reconnect
            raise RemoteProtocolError(f"a CHUNK while a value is {self.state.value}")
        return self.incoming.arrive(chunk)

    def stored(self, offset: int, size: int) -> list[tuple[int, int]]:
        """A chunk is in its place: the ranges that are now without a gap before them. Call `look`
        when they are digested."""
        return self.incoming.stored(offset, size)

    def look(self) -> Actions:
        """Whether every byte is here, and known to be right."""
        if self.ended:
            return ()
        return self._look_complete()

    def finish(self, digest: bytes) -> Actions:
        """The digest of the whole has come."""
        if self._digest is None:
            self._digest = digest
        return self.look()

    def _look_complete(self) -> Actions:
        moving = (ReceiveState.MOVING, ReceiveState.READING)
        actions: Actions = ()
        if self.state in moving and self.incoming.complete:
            actions = self._on(ReceiveEvent.COMPLETE)
        verifying = (ReceiveState.VERIFYING, ReceiveState.VERIFYING_READ)
        if self.state in verifying and self._digest is not None:
            return (*actions, Do.COMPARE)
        return actions

    def compared(self, digest: bytes) -> Actions:
        """That is the digest of what has come."""
        if digest == self._digest:
            return self._on(ReceiveEvent.RIGHT)
        if self.state is ReceiveState.VERIFYING_READ:
            self.incoming.restart()
            return self._on(ReceiveEvent.WRONG)
        return self._fail(
            ReceiveEvent.WRONG,
            DigestMismatch(
                "what arrived is not what was sent", remedy="Send it again; check the memory"
            ),
        )

    # --- read out of the sender's memory --------------------------------------------------------

    def lent(self) -> Actions:
        """The peer says where it lies.

        Raises:
            RemoteProtocolError: Chunks of it have come already.
        """
        if self.ended:
            return ()
        if self.incoming.arrived or self.head:
            raise RemoteProtocolError("a SHM_OFFER where chunks are due")
        return self._on(ReceiveEvent.LENT)

    def has_read(self, received: int) -> Actions:
        """So much of it was read."""
        if self.state is ReceiveState.READING:
            self.incoming.reach(received)
            return (Do.GRANT, *self.look())
        return ()

    def unreadable(self) -> Actions:
        """It cannot be read after all."""
        if self.state is not ReceiveState.READING:
            return ()
        self.incoming.restart()
        return self._on(ReceiveEvent.UNREADABLE)

    def linked(self) -> None:
        """A connection stands again: what was granted is to be said anew."""
        self.incoming.linked()

    # --- its end ------------------------------------------------------------------------------

    def built(self) -> Actions:
        """The value is made."""
        return self._on(ReceiveEvent.BUILT)

    def failed(self, error: ZBusError) -> Actions:
        """It cannot be taken, or something was raised on this side."""
        return self._fail(ReceiveEvent.FAILED, error)

    def dropped(self, error: ZBusError) -> Actions:
        """Nobody here wants it any more."""
        return self._fail(ReceiveEvent.DROPPED, error)

    def broken(self, error: ZBusError) -> Actions:
        """Its session has ended."""
        return self._broken(ReceiveEvent.BROKEN, error)
