"""Where a peer's word becomes an identity: the one place that knows which key CURVE has proved."""

from __future__ import annotations

from ..protocol.identity import Identity, SessionKey
from ..protocol.messages import Hello
from .frames import Connection


def identity(connection: Connection, peer: Hello) -> Identity | None:
    """Who said that HELLO; None on a plain link, where anybody may claim anything."""
    return Identity(connection.key, peer.incarnation) if connection.key else None


def session_key(connection: Connection, where: str, own: Hello, peer: Hello) -> SessionKey:
    """Names the session that the peer's HELLO begins, at the listener or dial target `where`."""
    return SessionKey(connection.key, peer.incarnation, own.incarnation, where, peer.session)
