"""Sans-IO: the first messages of a connection, until both sides know whom they talk to.

::

    dialler                          listener
       | HELLO(nonce=a, session, received) -->|
       |<-- HELLO(nonce=b, echo=a, received)  |   or REJECT(code, why)
       | READY(nonce=b, received) -->         |

Nothing else counts before READY: its nonce proves that the dialler reads what the listener
writes. An HTTP form that a web page posts to the port can write, but never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..errors import DialledSelf, RemoteProtocolError, VersionMismatch, ZBusError
from .fields import clip
from .messages import VERSION, Hello, Message, Ready, Reject

Nonce = Callable[[], bytes]


@dataclass
class Handshake:
    """One connection's handshake, on either side.

    Args:
        own: What this process says of itself; `nonce`, `session` and the like are filled in.
        dialled: Whether this side dialled.
        nonce: Makes 16 fresh random bytes.
    """

    own: Hello
    dialled: bool
    nonce: Nonce
    peer: Hello | None = None
    done: bool = False
    outgoing: list[Message] = field(default_factory=list)
    _sent: Hello | None = None

    def dial(self, session: bytes, resumed: bool, received: int) -> None:
        """Begin, on the dialling side."""
        self._say(session=session, resumed=resumed, received=received)

    def answer(self, resumed: bool, received: int) -> None:
        """The listening side has looked up the session of `peer`: say what it has of it."""
        assert self.peer is not None
        self._say(
            echo=self.peer.nonce, session=self.peer.session, resumed=resumed, received=received
        )

    def receive(self, message: Message) -> None:
        """Take the next message. Afterwards look at `peer` and `done`.

        Raises:
            DialledSelf, VersionMismatch: The two shall not talk; the listener tells it.
            RemoteProtocolError: The message has no place here.
        """
        if isinstance(message, Reject):
            raise _rejected(message)
        if self.dialled:
            self._receive_answer(message)
        elif self.peer is None:
            self._receive_hello(message)
        else:
            self._receive_ready(message)

    def _receive_hello(self, message: Message) -> None:
        if not isinstance(message, Hello):
            raise RemoteProtocolError("a connection that does not begin with HELLO")
        self.peer = message
        self._check(message)

    def _receive_answer(self, message: Message) -> None:
        assert self._sent is not None
        if not isinstance(message, Hello) or message.echo != self._sent.nonce:
            raise RemoteProtocolError("no answer to HELLO")
        self.peer = message
        self._check(message)
        self.outgoing.append(Ready(message.nonce, self._sent.received))
        self.done = True

    def _receive_ready(self, message: Message) -> None:
        if self._sent is None or not isinstance(message, Ready):
            raise RemoteProtocolError("no READY after HELLO")
        if message.nonce != self._sent.nonce:
            raise RemoteProtocolError("a READY that does not know the nonce")
        self.done = True

    def _check(self, peer: Hello) -> None:
        if peer.incarnation == self.own.incarnation:
            raise DialledSelf(
                "this address is this very process",
                remedy="One side of the pair must be in the other ComfyUI",
            )
        low, high = peer.versions
        if not low <= VERSION <= high:
            raise VersionMismatch(
                # Both sides show this text: it may not say "here" and "there".
                f"{peer.name} speaks protocol {low} to {high}, {self.own.name} speaks {VERSION}",
                remedy=f"Update zbus on {peer.name if high < VERSION else self.own.name}",
            )

    def _say(self, echo: bytes = b"", session: bytes = bytes(16), **told: int | bool) -> None:
        self._sent = replace(
            self.own,
            nonce=self.nonce(),
            echo=echo,
            session=session,
            **told,  # type: ignore[arg-type]
        )
        self.outgoing.append(self._sent)


def rejection(error: ZBusError) -> Reject:
    """What a listener says before it ends a connection because of `error`."""
    code = {"DialledSelf": "self", "VersionMismatch": "version"}.get(type(error).__name__)
    return Reject(code or "protocol", clip(str(error), 500))


def _rejected(message: Reject) -> ZBusError:
    if message.code == "self":
        return DialledSelf(message.why)
    if message.code == "version":
        return VersionMismatch(message.why)
    return RemoteProtocolError(f"the peer ended the connection: {message.why}")
