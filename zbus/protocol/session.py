"""Sans-IO: the reliable stream of control messages between two incarnations.

A session outlives its connections. What is sent in it has a sequence number, is kept until the
peer acknowledges it, and is sent again on the next connection; what comes twice is dropped. So
between two live processes nothing is lost, doubled or reordered, however often the TCP connection
is cut. Kinds outside the sequence (pings, chunks, grants, status) go through unkept.

The second half is life and death: pings, how long the peer has been silent, how long a broken
link is waited for. Every deadline lives here, and `deadline` says when to call `tick` next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ..errors import RUN_AGAIN, LinkLost, PeerGone, RemoteProtocolError, ZBusError
from .messages import Ack, Hello, Message, Ping, Pong, encode

MAX_UNACKED = 1024  # messages
MAX_UNACKED_BYTES = 32 << 20
ACK_AFTER = 0.020  # seconds
ACK_EVERY = 32  # messages
PING_ACTIVE = 2.0  # seconds between pings while something is open
PING_IDLE = 30.0
SILENT_AFTER = 5.0  # then it is said
REDIAL_AFTER = 30.0  # a model load can hold the peer's GIL this long
LATE_TURN = 1.0  # an own turn this late says nothing about the peer

Frames = tuple[bytes, ...]


@dataclass(frozen=True)
class Silent:
    """Nothing has come for `seconds`, though the connection stands."""

    seconds: float


@dataclass(frozen=True)
class Redial:
    """The connection is as good as dead: close it and make another."""


@dataclass(frozen=True)
class Ended:
    """The session is over, and why."""

    error: ZBusError


Event = Silent | Redial | Ended


class Session:
    """One side of one session.

    Args:
        key: 16 bytes that name the session on both sides.
        peer: The peer's HELLO.
        dialled: Whether this side dialled.
        reconnect_wait: Seconds that a broken link is waited for.
        now: The time, in seconds of any steady clock, as in all calls.
    """

    def __init__(
        self, key: bytes, peer: Hello, *, dialled: bool, reconnect_wait: float, now: float
    ) -> None:
        self.key, self.peer, self.dialled = key, peer, dialled
        self.reconnect_wait = reconnect_wait
        self.is_linked = False
        self.active = False  # a run or transfer is open: ping often
        self._was_active = True
        self.received = 0
        self.round_trip: float | None = None  # the smallest seen, in seconds
        self.error: ZBusError | None = None
        self._sent = 0
        self._unacked: deque[tuple[int, Frames]] = deque()
        self._unacked_bytes = 0
        self._out: list[Frames] = []
        self._ack_at: float | None = None
        self._acked = 0  # the last sequence number that we acknowledged
        self._lost_at = now
        self._heard = now
        self._pinged = now
        self._pings: dict[int, float] = {}
        self._token = 0
        self._overflowed = False
        self._told_silent = 0.0

    # --- the sequence -------------------------------------------------------------------------

    def send(self, message: Message, body: bytes = b"") -> None:
        """Queue a message. Sequenced ones are kept and reach the peer exactly once, in order;
        others go out only if the link stands. More than a session keeps ends it, at the next
        `tick`: a peer that acknowledges nothing does not get to fill this side's memory.
        """
        if self.error is not None:
            return
        if not message.SEQUENCED:
            if self.is_linked:
                self._out.append(_frames(encode(message), body))
            return
        if len(self._unacked) >= MAX_UNACKED or self._unacked_bytes >= MAX_UNACKED_BYTES:
            self._overflowed = True
            return
        frames = _frames(encode(message, self._sent + 1), body)
        self._sent += 1
        self._unacked.append((self._sent, frames))
        self._unacked_bytes += sum(map(len, frames))
        if self.is_linked:
            self._out.append(frames)

    def receive(self, seq: int, message: Message, now: float) -> bool:
        """Take note of a message; True if it is new and to be acted on.

        Raises:
            RemoteProtocolError: A gap in the sequence, or an ACK of what was never sent.
        """
        self._heard, self._told_silent = now, 0.0
        if isinstance(message, Ack):
            self._acknowledged(message.received)
        elif isinstance(message, Ping):
            self.send(Pong(message.token))
        elif isinstance(message, Pong):
            self._ponged(message.token, now)
        if not message.SEQUENCED:
            return True
        if seq <= self.received:
            return False
        if seq != self.received + 1:
            raise RemoteProtocolError(f"message {seq} after {self.received}")
        self.received = seq
        if self.received - self._acked >= ACK_EVERY:
            self._acknowledge()
        elif self._ack_at is None:
            self._ack_at = now + ACK_AFTER
        return True

    @property
    def has_outgoing(self) -> bool:
        """Whether there is something to put on the connection."""
        return bool(self._out)

    def outgoing(self) -> list[Frames]:
        """The frames to put on the connection now, in order."""
        out, self._out = self._out, []
        return out

    @property
    def drained(self) -> bool:
        """Whether the peer has acknowledged everything."""
        return not self._unacked

    def _acknowledge(self) -> None:
        self._acked, self._ack_at = self.received, None
        self.send(Ack(self.received))

    def _acknowledged(self, upto: int) -> None:
        if upto > self._sent:
            raise RemoteProtocolError(f"an ACK of {upto} where {self._sent} were sent")
        while self._unacked and self._unacked[0][0] <= upto:
            self._unacked_bytes -= sum(map(len, self._unacked.popleft()[1]))

    # --- the link -----------------------------------------------------------------------------

    def linked(self, received: int, now: float) -> None:
        """A connection stands; the peer has our messages up to `received`: send the rest again.

        Raises:
            RemoteProtocolError: The peer claims messages that were never sent, or lacks some that
                it had acknowledged.
        """
        self._acknowledged(received)
        if self._sent - len(self._unacked) != received:
            raise RemoteProtocolError("the peer has forgotten messages it acknowledged")
        self.is_linked = True
        self._heard, self._told_silent = now, 0.0
        self._pings.clear()
        self._pinged = now
        self._out = [frames for _, frames in self._unacked]
        self._acked, self._ack_at = self.received, None  # HELLO or READY carried it

    def unlinked(self, now: float) -> None:
        """The connection is gone."""
        if self.is_linked:
            self.is_linked, self._lost_at = False, now
            self._out = []
            self._ack_at = None

    def end(self, error: ZBusError) -> None:
        """The session is over. Nothing is sent any more."""
        self.error = self.error or error
        self.is_linked = False
        self._out, self._ack_at = [], None
        self._unacked.clear()
        self._unacked_bytes = 0

    # --- life and death -----------------------------------------------------------------------

    def ping(self, now: float) -> int:
        """Send a ping; returns its token."""
        self._token += 1
        token, self._pinged = self._token, now
        if len(self._pings) < 64:
            self._pings[token] = now
        self.send(Ping(token))
        return token

    def _ponged(self, token: int, now: float) -> None:
        sent = self._pings.pop(token, None)
        if sent is not None:
            trip = now - sent
            self.round_trip = trip if self.round_trip is None else min(trip, self.round_trip)

    @property
    def _ping_every(self) -> float:
        return PING_ACTIVE if self.active else PING_IDLE

    def deadline(self) -> float | None:
        """When `tick` has to be called next; None: never."""
        if self.error is not None:
            return None
        if self._overflowed:
            return self._heard
        if not self.is_linked:
            return self._lost_at + self.reconnect_wait
        ping_at = self._pinged + self._ping_every
        return ping_at if self._ack_at is None else min(ping_at, self._ack_at)

    def lost_for(self, now: float) -> float:
        """Seconds since the link broke; 0 while it stands."""
        return 0.0 if self.is_linked else now - self._lost_at

    def tick(self, now: float, late: float = 0.0) -> list[Event]:
        """Do what is due. Call it after all input that had come was handed in.

        Args:
            late: How late this turn of the caller's loop came, in seconds: a caller that was
                itself deaf knows nothing of the peer's silence.
        """
        if self.error is not None:
            return []
        if self._overflowed:
            # One that reads nothing over a link that stands does not come back by another.
            kind = PeerGone if self.is_linked else LinkLost
            error = kind(
                f"{len(self._unacked)} messages are not acknowledged",
                peer=self.peer.name,
                remedy="Restart that side; its zbus reads nothing any more",
            )
            self.end(error)
            return [Ended(error)]
        if not self.is_linked:
            return self._tick_lost(now)
        woken, self._was_active = self.active and not self._was_active, self.active
        if late > LATE_TURN or woken:  # an idle link's silence says nothing either
            self._heard = now
        if self._ack_at is not None and now >= self._ack_at:
            self._acknowledge()
        if now >= self._pinged + self._ping_every:
            self.ping(now)
        return self._tick_silence(now)

    def _tick_lost(self, now: float) -> list[Event]:
        if now < self._lost_at + self.reconnect_wait:
            return []
        error = LinkLost(
            f"the link was lost and not back within {self.reconnect_wait:.0f} s",
            peer=self.peer.name,
            remedy=f"Look at the network or the tunnel, then {RUN_AGAIN}",
        )
        self.end(error)
        return [Ended(error)]

    def _tick_silence(self, now: float) -> list[Event]:
        silent = now - self._heard
        if silent >= max(REDIAL_AFTER, self._ping_every + SILENT_AFTER):
            self._heard = now
            return [Redial()]
        # An idle link is silent by right until its ping should have been answered.
        if silent >= self._ping_every + SILENT_AFTER and silent - self._told_silent >= 1.0:
            self._told_silent = silent
            return [Silent(silent)]
        return []


def _frames(header: bytes, body: bytes) -> Frames:
    return (header, body) if body else (header,)
