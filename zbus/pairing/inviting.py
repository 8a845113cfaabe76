"""Invites somebody to pair: the socket, the clock and the store around an `Invitation`.

The pairing socket is one of its own, open only while an invitation is: CURVE, with this user's
key, for any key; nothing but `invitation`'s messages passes it. Whether the owner of a key is the
one that was invited, the secret in the token decides.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
import threading
import time
from dataclasses import replace

from .. import machine
from ..address import Address
from ..errors import Cancelled, PortInUse, RemoteProtocolError, ZBusError
from ..net.frames import Closed, Connection, Event, Received
from ..net.transport import Transport
from ..trust import Principal, Trust
from .hellos import INVITER_GRANTS, own_hello, store
from .invitation import MAX_MESSAGE, Hello, Invitation, refused
from .reach import Reach, on_loopback
from .tokens import SECRET, Token

logger = logging.getLogger(__name__)

LOOK_EVERY = 0.25  # seconds between two looks at `cancelled`
THANKS_WITHIN = 5.0  # seconds for the accepter to say that it knows
MAX_CONNECTIONS = 16  # that have said something


class Inviting:
    """An open invitation. Use with ``with``, or `close` it; one thread at a time.

    Args:
        trust: Where the accepter is put.
        where: Where to listen, and what to tell.
        name: What to call the accepter; "": as it calls itself.
        own_name: What this side would be called; "": as the machine.

    Attributes:
        token: What the accepter needs. It is a secret.
        address: Where the pairing socket listens.
        confirmed: Whether the accepter has said that it knows.

    Raises:
        PortInUse: The port is taken, and no other will do.
    """

    def __init__(
        self, trust: Trust, where: Reach | None = None, name: str = "", own_name: str = ""
    ) -> None:
        where = where if where is not None else on_loopback()
        self._trust, self._name = trust, name
        hello = own_hello(trust, where, own_name)
        self._transport = Transport(trust.keys, admit=lambda _: True, max_frame=MAX_MESSAGE)
        try:
            self.address = Address(where.host, self._bind(where))
        except BaseException:
            self._transport.close()
            raise
        hints = tuple(replace(hint, port=hint.port or self.address.port) for hint in where.hints)
        secret = secrets.token_bytes(SECRET)
        self.token = Token(trust.keys.public, secret, hints).text()
        self._invitation = Invitation(trust.keys.public, secret, hello, time.monotonic())
        self._talking: dict[Connection, None] = {}  # in the order in which they spoke first
        self._paired: Principal | None = None
        self._problem: ZBusError | None = None
        self.confirmed = False

    def _bind(self, where: Reach) -> int:
        try:
            return self._transport.bind(where.host, where.port, curve=True).port
        except PortInUse as error:
            if not where.fixed:
                return self._transport.bind(where.host, 0, curve=True).port
            holder = machine.port_holder(where.port)
            raise PortInUse(
                f"port {where.port} is held by {holder or 'another program'}",
                remedy="End that, or give another one: --port N",
            ) from error

    def serve(self, cancelled: threading.Event | None = None) -> Principal:
        """Wait until somebody has paired, who is returned; then close.

        Raises:
            PairingFailed: Ten minutes are over, or five wrong tries have come.
            TrustError: The accepter could not be stored; it knows.
            Cancelled: `cancelled` is set.
        """
        leave_at: float | None = None
        try:
            while True:
                for event in self._transport.poll(LOOK_EVERY):
                    self._take(event)
                now = time.monotonic()
                is_cancelled = cancelled is not None and cancelled.is_set()
                if self._problem is not None:
                    raise self._problem
                if self._paired is not None:
                    leave_at = leave_at or now + THANKS_WITHIN
                    self.confirmed = self._invitation.is_over
                    if self.confirmed or is_cancelled or now >= leave_at:
                        return self._paired
                elif is_cancelled:
                    raise Cancelled("cancelled: the token counts no longer")
                lapsed = self._invitation.lapsed(now)
                if lapsed:
                    raise refused(lapsed)
        finally:
            self.close()

    def close(self) -> None:
        """Close the pairing socket: the token counts no longer."""
        self._transport.close()

    def __enter__(self) -> Inviting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, event: Event) -> None:
        if isinstance(event, Closed):
            self._talking.pop(event.connection, None)
        if not isinstance(event, Received):
            return
        connection = event.connection
        self._talking.setdefault(connection)
        if len(self._talking) > MAX_CONNECTIONS:
            self._end(next(iter(self._talking)))
        try:
            if event.body is not None:
                raise RemoteProtocolError("a message with a body")
            step = self._invitation.receive(connection.key, event.header, time.monotonic())
        except RemoteProtocolError as error:
            logger.debug("pairing: %s", error)
            self._end(connection)
            return
        reply = self._stored(connection, step.store) if step.store is not None else step.reply
        if reply:
            self._transport.send(connection, reply)
        if step.ends:
            self._end(connection, linger=500)

    def _stored(self, connection: Connection, hello: Hello) -> bytes:
        went = _remote_host(connection)
        try:
            self._paired = store(
                self._trust, connection.key, hello, self._name, INVITER_GRANTS, went
            )
        except ZBusError as error:
            self._problem = error
            return self._invitation.failed()
        return self._invitation.stored()

    def _end(self, connection: Connection, linger: int = 0) -> None:
        self._talking.pop(connection, None)
        self._transport.end(connection, linger)


def _remote_host(connection: Connection) -> str:
    """From where an accepted connection comes; "" if that cannot be told."""
    try:
        with socket.fromfd(connection.fd, socket.AF_INET, socket.SOCK_STREAM) as copy:
            host = str(copy.getpeername()[0])
        return str(ipaddress.ip_address(host.partition("%")[0].removeprefix("::ffff:")))
    except (OSError, ValueError, IndexError):
        return ""
