"""Moves frames: one ROUTER for each listener, one DEALER for each connection that is dialled.

Knows no message. Everything here belongs to the I/O thread. A `Connection` is one TCP connection:
a DEALER's socket is used for one and never again, so no stale frame can arrive; on a ROUTER a
connection is a routing id, and the file descriptor under it (`SRCFD`) is what the monitor's
DISCONNECTED names and what `end` shuts down, since ZeroMQ has no call for that.

Plain sockets and CURVE's have a Context each: a plain handshake must not wait for `zap`, which
waits for this thread, and so for whoever holds the GIL.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Generator, Iterator

import zmq
from zmq.utils.monitor import parse_monitor_message

from ..errors import PortInUse, Unreachable
from ..keys import KeyPair
from ..protocol.messages import MAX_FRAME
from . import sockets, widening
from .cutting import LOOK_EVERY, Cutting
from .frames import Body, Closed, Connected, Connection, Event, Listener, Received
from .zap import Admit, Zap, user_key

logger = logging.getLogger(__name__)

LAST_WORDS = 2.0  # seconds for what a connection said before it ended, under a flood of others
DRAIN = 64  # messages taken from one socket before the others have their turn
DRAIN_TIME = 0.002  # seconds after which they have it, too, and what was heard is answered
# Milliseconds until a DEALER would dial again; it is closed long before. Not -1: ZeroMQ then drops,
# with the connection, what it has received and nobody has read yet.
NEVER = 2**30
CONNECT_TIME = 10.0  # seconds
# As plain numbers: what pyzmq's enums take to be put together is worth a message's checks.
_NOW, _MORE, _IN = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE), int(zmq.POLLIN)

_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
# Of a zone that is not known ZeroMQ says that it will try again, and nothing else. It never does
# (`NEVER`), so that is an end as well.
_OVER = (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED)


class Transport:
    """All sockets of one peer, in Contexts of its own.

    Args:
        keys: This side's, for CURVE; may be set later.
        admit: Asked for the public key of everyone who comes to a CURVE listener, in the thread
            that polls.
        max_frame: Bytes of the largest frame that may come.
    """

    def __init__(
        self,
        keys: KeyPair | None = None,
        admit: Admit | None = None,
        max_frame: int = MAX_FRAME,
    ) -> None:
        self.keys, self._admit, self._max_frame = keys, admit, max_frame
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.setsockopt(zmq.MAX_SOCKETS, 4096)
        self._secure: zmq.Context[zmq.Socket[bytes]] | None = None
        self._zap: Zap | None = None
        # Of each socket the descriptor that ZeroMQ signals at: asking every socket of its own
        # accord, as `zmq.Poller` does, costs a system call each, several times a turn.
        self._selector = selectors.DefaultSelector()
        self._fds: dict[zmq.Socket[bytes], int] = {}
        # Those that may have input of which no descriptor tells any more: it tells of news only,
        # and whatever is done with a socket may have taken note of them.
        self._look: dict[zmq.Socket[bytes], None] = {}
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self.may_sleep = True  # from now on, what is done elsewhere has to call `wake`
        self._monitors: dict[zmq.Socket[bytes], Listener | Connection] = {}
        self._sources: dict[zmq.Socket[bytes], Listener | Connection] = {}
        self._pending: list[Event] = []
        self._cutting = Cutting()
        # Gone, but perhaps not all of it is read: its stage, and when it is not waited for longer.
        self._leaving: dict[Connection, tuple[str, float]] = {}
        self._ended: list[
            Connection
        ] = []  # by this side, and gone; to be ignored until all is read

    @property
    def key(self) -> bytes:
        """This side's public key; none where there was no need of one yet."""
        return self.keys.public if self.keys is not None else b""

    def wake(self) -> None:
        """End a `poll` under way. The one call for other threads."""
        if self.may_sleep:
            self.may_sleep = False
            with contextlib.suppress(OSError):  # it is awake already, or closed
                self._wake_in.send(b"\0")

    # --- making and ending ----------------------------------------------------------------------

    def bind(self, host: str, port: int, *, curve: bool = False) -> Listener:
        """Listen on a numeric address; with `curve` for those alone whose key is admitted.

        Raises:
            PortInUse: The system refuses the address.
        """
        router = self._socket(zmq.ROUTER, host, curve)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if curve:
            router.setsockopt(zmq.CURVE_SERVER, 1)
        listener = Listener(router, host, port, curve)
        # Monitored before it is bound: somebody may dial this very moment.
        self._register(router, listener)
        try:
            router.bind(sockets.endpoint(host, port))
        except zmq.ZMQError as error:
            self._close(router, 0)
            raise PortInUse(str(error)) from error
        bound = router.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        listener.port = int(bound.rstrip(b"\0").rpartition(b":")[2])
        return listener

    def dial(
        self, host: str, port: int, *, server: bytes = b"", timeout: float = CONNECT_TIME
    ) -> Connection:
        """Begin a connection to a numeric address; `Connected` or `Closed` follows.

        Args:
            server: The public key that must answer, with CURVE; none: plain.
            timeout: Seconds that TCP may take.

        Raises:
            Unreachable: There is no socket for it.
        """
        try:
            return self._dial(host, port, server, timeout)
        except zmq.ZMQError as error:
            raise Unreachable(f"no connection can be made: {error}".lower()) from error

    def _dial(self, host: str, port: int, server: bytes, timeout: float) -> Connection:
        dealer = self._socket(zmq.DEALER, host, bool(server))
        dealer.setsockopt(zmq.RECONNECT_IVL, NEVER)
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, round(timeout * 1000))
        if server:
            # Its listener must answer, and before that perhaps a WebSocket.
            dealer.setsockopt(zmq.HANDSHAKE_IVL, 20_000)
            dealer.setsockopt(zmq.CURVE_SERVERKEY, server)
        connection = Connection(dealer, key=server)
        self._register(dealer, connection)
        try:
            dealer.connect(sockets.endpoint(host, port))
        except zmq.ZMQError:
            self._close(dealer, 0)
            raise
        return connection

    def _socket(self, kind: int, host: str, curve: bool) -> zmq.Socket[bytes]:
        assert self.keys is not None or not curve, "CURVE needs keys"
        context, keys = (self._secured(), self.keys) if curve else (self.context, None)
        return sockets.make(context, kind, host, keys, self._max_frame)

    def _secured(self) -> zmq.Context[zmq.Socket[bytes]]:
        """The Context of the CURVE sockets; whoever decides stands before any is bound."""
        if self._secure is None:
            self._secure = zmq.Context()
            self._secure.setsockopt(zmq.MAX_SOCKETS, 4096)
            self._zap = Zap(self._secure, self._admit or (lambda _: False))
            self._watch(self._zap.socket)
        return self._secure

    def _register(self, made: zmq.Socket[bytes], owner: Listener | Connection) -> None:
        monitor = made.get_monitor_socket(_EVENTS)
        self._monitors[monitor] = owner
        self._sources[made] = owner
        self._watch(made)
        self._watch(monitor)

    def _watch(self, made: zmq.Socket[bytes]) -> None:
        self._fds[made] = fd = int(made.getsockopt(zmq.FD))
        self._selector.register(fd, selectors.EVENT_READ, made)
        self._look[made] = None

    def _look_at(self, made: zmq.Socket[bytes]) -> None:
        if made in self._fds:  # and not closed, by what has just come of it
            self._look[made] = None

    def _unwatch(self, made: zmq.Socket[bytes]) -> None:
        self._selector.unregister(self._fds.pop(made))
        self._look.pop(made, None)

    def end(self, connection: Connection, linger: int = 0) -> None:
        """End one connection; no event follows. `linger` ms for what was just sent."""
        if not connection.is_open:
            return
        connection.is_open = False
        if connection.listener is None:
            self._close(connection.socket, linger)
            return
        connection.listener.by_id.pop(connection.routing_id, None)
        connection.listener.ignored.add(connection.routing_id)
        self._cutting.doom(connection, linger)
        self._cutting.tick([])

    def widen(self, listener: Listener, hosts: set[str]) -> None:
        """Have it listen on those hosts too, and on no others beside its own.

        Raises:
            PortInUse: The system refuses one of them.
        """
        try:
            widening.widen(listener, hosts)
        finally:
            self._look_at(listener.socket)

    def unbind(self, listener: Listener, linger: int = 200) -> None:
        """Stop listening and end all connections there."""
        for connection in listener.by_id.values():
            connection.is_open = False
        self._cutting.forget(listener)
        self._close(listener.socket, linger)

    def _close(self, made: zmq.Socket[bytes], linger: int) -> None:
        owner = self._sources.pop(made)
        monitor = next((m for m, owns in self._monitors.items() if owns is owner), None)
        self._unwatch(made)
        if monitor is not None:
            del self._monitors[monitor]
            self._unwatch(monitor)
            made.disable_monitor()
            monitor.close(0)
        made.close(linger)

    def close(self) -> None:
        """Close everything; waits at most for the sockets' lingers."""
        for made, owner in list(self._sources.items()):
            if isinstance(owner, Listener):
                self.unbind(owner)
            else:
                owner.is_open = False
                self._close(made, 200)
        if self._zap is not None:
            self._unwatch(self._zap.socket)
            self._zap.close()
            self._zap = None
        if self._secure is not None:
            self._secure.term()
        self.context.term()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    # --- frames -----------------------------------------------------------------------------------

    def send(
        self, connection: Connection, header: bytes, body: bytes | memoryview | None = None
    ) -> bool:
        """Put one message on a connection; False if it is gone. A body of 64 KiB or more is sent
        from its own memory: it must not change until the peer has it."""
        if not connection.is_open:
            return False
        put = connection.socket.send
        try:
            if connection.listener is not None:
                put(connection.routing_id, _MORE)
            put(header, _NOW if body is None else _MORE)
            if body is not None:
                put(body, _NOW, copy=len(body) < 65536)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._gone(connection, "link")
            return False
        finally:  # also a send that fails takes note of what others have said there
            self._look_at(connection.socket)
        return True

    def poll(self, timeout: float | None) -> Iterator[Event]:
        """Wait for input, at most `timeout` seconds, and yield it: monitors first. A `Received`
        body that is not taken when the next event is asked for is dropped."""
        listeners = [owner for owner in self._sources.values() if isinstance(owner, Listener)]
        soon = LOOK_EVERY if self._leaving or self._ended else self._cutting.timeout(listeners)
        if soon is not None:
            timeout = soon if timeout is None else min(soon, timeout)
        ready = self._ready(0 if self._pending else timeout)
        if not ready and soon is None and not self._pending:
            return
        if self._zap is not None and self._zap.socket in ready:
            self._zap.answer()
            self._look.pop(self._zap.socket, None)
        for monitor in [m for m in self._monitors if m in ready]:
            self._read_monitor(monitor)
            self._look.pop(monitor, None)
        self._cutting.tick(listeners)
        yield from self._take_pending()
        leaving = {connection.socket for connection in (*self._leaving, *self._ended)}
        drained = set()
        for source in [s for s in self._sources if s in ready or s in leaving]:
            if (yield from self._read(source)):
                drained.add(source)
            if self._pending:
                yield from self._take_pending()
        if leaving:
            yield from self._let_go(drained)

    def _ready(self, timeout: float | None) -> set[zmq.Socket[bytes]]:
        """Wait, at most `timeout` seconds, until some sockets may have input: those."""
        for known in list(self._look):
            if not _has_input(known):
                del self._look[known]
        ready = set(self._look)
        for key, _ in self._selector.select(0 if ready else timeout):
            if key.data is None:
                self._drain_wake()
            else:
                ready.add(key.data)
        self.may_sleep = False
        return ready

    def _let_go(self, drained: set[zmq.Socket[bytes]]) -> Iterator[Event]:
        """A connection's last words (STORED, BYE) come before its end: it is gone when all that
        had come at its socket is read."""
        now = time.monotonic()
        for connection, (stage, until) in list(self._leaving.items()):
            if connection.socket in drained or now >= until or not connection.is_open:
                self._leaving.pop(connection, None)
                self._gone(connection, stage)
        for connection in self._ended:
            if connection.socket in drained and connection.listener is not None:
                connection.listener.ignored.discard(connection.routing_id)
        self._ended = [c for c in self._ended if c.socket in self._sources.keys() - drained]
        yield from self._take_pending()

    def _take_pending(self) -> Iterator[Event]:
        pending, self._pending = self._pending, []
        yield from pending

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_out.recv(4096)  # if there is more, the next `poll` is over at once

    def _read(self, source: zmq.Socket[bytes]) -> Generator[Event, None, bool]:
        """Some of a socket's input; returns whether that was all of it."""
        until = time.monotonic() + DRAIN_TIME
        for taken in range(DRAIN):
            if taken and time.monotonic() >= until:
                break
            owner = self._sources.get(source)
            if owner is None:
                return True
            if not _has_input(source):
                self._look.pop(source, None)
                return True
            frame = source.recv(_NOW, copy=False)
            connection: Connection | None
            if isinstance(owner, Listener):
                connection, has_header = self._accepted(owner, frame), frame.more
                frame = source.recv(_NOW, copy=False) if has_header else frame
            else:
                connection, has_header = owner, True
            body = Body(source) if frame.more else None
            if connection is not None and connection.is_open and has_header:
                yield Received(connection, frame.bytes, body)
            if body is not None and self._sources.get(source) is owner:
                body.drop()
        self._look_at(source)
        return False

    def _leave(self, connection: Connection, stage: str) -> None:
        self._leaving.setdefault(connection, (stage, time.monotonic() + LAST_WORDS))

    def _accepted(self, listener: Listener, first: zmq.Frame) -> Connection | None:
        routing_id = first.bytes
        key = user_key(first) if listener.curve else b""
        connection = listener.by_id.get(routing_id)
        if connection is not None and connection.key != key:
            return None  # it has the routing id of another
        if connection is not None or routing_id in listener.ignored:
            return connection
        fd = int(first.get(zmq.SRCFD))
        # The monitor has told of this descriptor's ACCEPTED before its first message could come,
        # and of the DISCONNECTED of an earlier connection that had the same one.
        for monitor in [m for m, owner in self._monitors.items() if owner is listener]:
            self._read_monitor(monitor)
        if fd in listener.dead or (listener.curve and not key):
            return None
        listener.young.pop(fd, None)
        connection = Connection(listener.socket, routing_id, fd, listener, greeted=True, key=key)
        listener.by_id[routing_id] = listener.by_fd[fd] = connection
        return connection

    def _read_monitor(self, monitor: zmq.Socket[bytes]) -> None:
        while monitor in self._monitors:
            try:
                parts = monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            event = parse_monitor_message(parts)
            owner = self._monitors[monitor]
            if isinstance(owner, Listener):
                self._listener_event(owner, event["event"], event["value"])
            else:
                self._dialled_event(owner, event["event"])

    def _listener_event(self, listener: Listener, event: int, fd: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._cutting.came(listener, fd)
        elif event == zmq.EVENT_DISCONNECTED:
            listener.dead.add(fd)
            listener.young.pop(fd, None)
            connection = listener.by_fd.pop(fd, None)
            if connection is not None and connection.is_open:
                self._leave(connection, "link")
            elif connection is not None:
                self._ended.append(connection)
        elif event & _FAILED:
            logger.debug("a connection to port %d that is not ZeroMQ", listener.port)

    def _dialled_event(self, connection: Connection, event: int) -> None:
        if event == zmq.EVENT_CONNECTED:
            connection.connected = True
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            connection.greeted = True
            self._pending.append(Connected(connection))
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._leave(connection, "refused")
        elif event in _OVER or event & _FAILED:
            stage = "link" if connection.greeted else "greeting"
            self._leave(connection, stage if connection.connected else "connect")

    def _gone(self, connection: Connection, stage: str) -> None:
        if not connection.is_open:
            return
        connection.is_open = False
        if connection.listener is None:
            self._close(connection.socket, 0)
        else:
            connection.listener.by_id.pop(connection.routing_id, None)
        self._pending.append(Closed(connection, stage))


def _has_input(made: zmq.Socket[bytes]) -> bool:
    """Whether something can be read of it; if not, its descriptor tells when that changes."""
    return int(made.getsockopt(zmq.EVENTS)) & _IN != 0
