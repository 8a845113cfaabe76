"""Connections and listeners, and what the transport tells of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import zmq


@dataclass(eq=False)
class Connection:
    """One TCP connection, dialled or accepted."""

    socket: zmq.Socket[bytes]
    routing_id: bytes = b""  # of an accepted one
    fd: int = -1
    listener: Listener | None = None
    is_open: bool = True
    connected: bool = False  # TCP stands (a dialled one)
    greeted: bool = False  # and ZMTP too
    key: bytes = b""  # the peer's authenticated public key; none on a plain one

    @property
    def dialled(self) -> bool:
        return self.listener is None


@dataclass(eq=False)
class Listener:
    """One bound ROUTER and its connections."""

    socket: zmq.Socket[bytes]
    host: str
    port: int
    curve: bool = False  # only those whose key is admitted get in
    stands: bool = True  # it listens on its own host, or on every one
    other_hosts: set[str] = field(default_factory=set)  # where it listens too
    young: dict[int, float] = field(default_factory=dict)  # fds without a word yet, since when
    by_id: dict[bytes, Connection] = field(default_factory=dict)
    by_fd: dict[int, Connection] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)  # file descriptors, as the monitor tells
    ignored: set[bytes] = field(default_factory=set)  # routing ids that were ended


class Body:
    """The body frame of the message just received; take it at once, and once."""

    def __init__(self, source: zmq.Socket[bytes]) -> None:
        self._source = source
        self._is_taken = False

    def take(self) -> bytes:
        """The body's bytes, copied."""
        return bytes(self._taken().recv(zmq.DONTWAIT))

    def frame(self) -> zmq.Frame:
        """The body without a copy."""
        return self._taken().recv(zmq.DONTWAIT, copy=False)

    def into(self, view: memoryview) -> int:
        """Receive straight into `view`, without the GIL; returns the body's own length, which may
        be more than the view took."""
        return self._taken().recv_into(view, flags=zmq.DONTWAIT)

    def _taken(self) -> zmq.Socket[bytes]:
        assert not self._is_taken, "a body is taken once"
        self._is_taken = True
        return self._source

    def drop(self) -> None:
        """Throw away what is left of the message. Call it whether or not it was taken: there may
        be more frames than one."""
        while self._source.getsockopt(zmq.RCVMORE):
            self._source.recv(zmq.DONTWAIT, copy=False)


@dataclass(frozen=True)
class Received:
    connection: Connection
    header: bytes
    body: Body | None


@dataclass(frozen=True)
class Connected:
    """A dialled connection stands and speaks ZMTP."""

    connection: Connection


@dataclass(frozen=True)
class Closed:
    """A connection is gone. `stage`: "connect", "greeting" (it stood, without ZMTP), "refused" (the
    other side does not admit this side's key), "link"."""

    connection: Connection
    stage: str


Event = Received | Connected | Closed
