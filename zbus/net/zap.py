"""Who may connect: answers ZeroMQ's own question of each CURVE connection (ZAP, RFC 27).

Belongs to the thread that polls. ZeroMQ asks before the handshake ends, so that nobody whose key
is not admitted gets a single message through; what `admit` says is asked anew each time.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

ADDRESS = "inproc://zeromq.zap.01"  # fixed by ZeroMQ: one in each Context
DOMAIN = b"zbus"
KEY = 32  # bytes of a CURVE public key

Admit = Callable[[bytes], bool]


class Zap:
    """The handler of one Context.

    Args:
        context: Whose listeners ask here.
        admit: Whether the owner of a public key (32 bytes) may connect.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], admit: Admit) -> None:
        self._admit = admit
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ADDRESS)

    def answer(self) -> None:
        """Answer all that has been asked."""
        while True:
            try:
                asked = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self.socket.send_multipart(self._answer(asked))

    def _answer(self, asked: list[bytes]) -> list[bytes]:
        version, request = (*asked, b"", b"")[:2]
        key = _key(asked)
        if key is None or not self._admit(key):
            return [version, request, b"400", b"not paired", b"", b""]
        # What `Frame.get("User-Id")` says of every message of that connection.
        return [version, request, b"200", b"", key.hex().encode(), b""]

    def close(self) -> None:
        """No more answers."""
        self.socket.close(0)


def _key(asked: list[bytes]) -> bytes | None:
    if len(asked) != 7 or asked[0] != b"1.0":
        return None
    domain, mechanism, key = asked[2], asked[5], asked[6]
    fits = domain == DOMAIN and mechanism == b"CURVE" and len(key) == KEY
    return key if fits else None


def user_key(frame: zmq.Frame) -> bytes:
    """The authenticated key of whoever sent a message, by its first frame; b"" where none is."""
    try:
        return bytes.fromhex(str(frame.get("User-Id")))
    except (zmq.ZMQError, ValueError):
        return b""
