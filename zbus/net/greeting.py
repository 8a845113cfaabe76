"""The handshakes under way, on either side: until both know whom they talk to.

Runs in the I/O thread. `handshake` knows the messages; here they meet their connections and
places.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import DialledSelf, RemoteProtocolError, VersionMismatch, ZBusError
from ..protocol.handshake import Handshake, rejection
from ..protocol.messages import Hello, Message, encode
from .frames import Connection
from .places import OWN, DialTarget, Peering, Place
from .transport import Transport

MAX_UNDER_WAY = 256  # at one listener
PATIENCE = 30.0  # seconds: a model load can hold the peer's GIL this long


@dataclass(eq=False)
class Greeting:
    """One connection's handshake and the place it belongs to."""

    connection: Connection
    shake: Handshake
    place: Place
    since: float

    @property
    def peer(self) -> Hello:
        assert self.shake.peer is not None
        return self.shake.peer


class Refused(Exception):
    """The two shall not talk, and dialling again cannot help; `error` says why."""

    def __init__(self, error: ZBusError) -> None:
        super().__init__(str(error))
        self.error = error


class Greetings:
    """All handshakes of one peer.

    Args:
        transport: Carries them.
        own: This process's HELLO.
        known: Finds the session that a HELLO at a place would go on with.
        permitted: What the owner of a key may do here.
    """

    def __init__(
        self,
        transport: Transport,
        own: Hello,
        known: Callable[[Place, Connection, Hello], Peering | None],
        permitted: Callable[[bytes], frozenset[str]],
    ) -> None:
        self._transport, self._own = transport, own
        self._known, self._permitted = known, permitted
        self._under_way: dict[Connection, Greeting] = {}

    def _hello(self, connection: Connection, port: int) -> Hello:
        """What this side says of itself to whoever is there."""
        if not connection.key:
            return replace(self._own, port=port)
        allowed = tuple(sorted(self._permitted(connection.key)))
        return replace(self._own, port=port, listener=OWN, permissions=allowed)

    def dial(self, connection: Connection, target: DialTarget, now: float) -> None:
        """A dialled connection stands: say HELLO."""
        shake = Handshake(self._hello(connection, target.address.port), True, random_bytes)
        session = target.peering.session if target.peering else None
        key = session.key if session else random_bytes()
        shake.dial(key, session is not None, session.received if session else 0)
        self._under_way[connection] = Greeting(connection, shake, target, now)
        self._say(connection, shake)

    def accept(self, connection: Connection, place: Place, now: float) -> None:
        """The first message of a connection has come at a listener.

        Raises:
            RemoteProtocolError: Too many are under way.
        """
        if sum(one.place is place for one in self._under_way.values()) >= MAX_UNDER_WAY:
            raise RemoteProtocolError("no handshake is possible here")
        port = connection.listener.port if connection.listener is not None else 0
        shake = Handshake(self._hello(connection, port), False, random_bytes)
        self._under_way[connection] = Greeting(connection, shake, place, now)

    def receive(self, connection: Connection, message: Message) -> Greeting | None:
        """Take a message; returns the greeting when it is done. A dialler then `agree`s.

        Raises:
            Refused: The dialler is told so, or was.
            RemoteProtocolError: The message has no place here.
        """
        greeting = self._under_way[connection]
        shake = greeting.shake
        try:
            shake.receive(message)
        except (DialledSelf, VersionMismatch) as error:
            del self._under_way[connection]
            if not connection.dialled:
                self._transport.send(connection, encode(rejection(error)))
            raise Refused(error) from error
        if shake.done:
            return self._under_way.pop(connection)
        known = self._known(greeting.place, connection, greeting.peer)
        shake.answer(known is not None, known.session.received if known else 0)
        self._say(connection, shake)
        return None

    def agree(self, greeting: Greeting) -> None:
        """The dialler's READY: before anything else of the session."""
        self._say(greeting.connection, greeting.shake)

    def _say(self, connection: Connection, shake: Handshake) -> None:
        for message in shake.outgoing:
            self._transport.send(connection, encode(message))
        shake.outgoing.clear()

    def place(self, connection: Connection) -> Place | None:
        """Where a handshake under way belongs; None if there is none."""
        greeting = self._under_way.get(connection)
        return greeting.place if greeting is not None else None

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._under_way.pop(connection, None)

    def forget_place(self, place: Place) -> None:
        """The place is gone."""
        for connection in [c for c, g in self._under_way.items() if g.place is place]:
            del self._under_way[connection]

    @property
    def _accepted(self) -> list[Greeting]:
        """Those of diallers. How long an answer may take to this side's own, its dial knows."""
        return [one for one in self._under_way.values() if not one.connection.dialled]

    def overdue(self, now: float) -> list[Connection]:
        """The accepted connections that have taken too long."""
        return [g.connection for g in self._accepted if now - g.since > PATIENCE]

    def deadline(self) -> float | None:
        """When the first of them will be."""
        return min((g.since + PATIENCE + 0.1 for g in self._accepted), default=None)


def random_bytes() -> bytes:
    """16 fresh ones."""
    return os.urandom(16)
