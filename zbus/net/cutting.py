"""Ends connections that others have made to this peer: ZeroMQ has no call for that.

The descriptor under such a connection is known, from the monitor and from what is said on it; a
copy of it is shut down. It is done to those that this side has told to go, a while after; and to
strangers that say nothing, when they become too many or take too long.
"""

from __future__ import annotations

import time

from . import sockets
from .frames import Connection, Listener

LOOK_EVERY = 0.05  # seconds, while a connection is about to end
MAX_DOOMED = 64  # connections that may still read what they were told; beyond, the oldest goes
MAX_YOUNG = 128  # connections of one listener that have not said a word for
YOUNG = 2.0  # seconds; no more than
MOST_YOUNG = (
    400  # at once, which only programs of this machine can be: or they took all descriptors
)
SILENT_TIME = 45.0  # seconds for a first word: a process can be deaf for 30 while it loads a model


class Cutting:
    """All connections of one peer that are to end."""

    def __init__(self) -> None:
        self._doomed: list[tuple[float, Connection]] = []  # when to shut down which

    def doom(self, connection: Connection, linger: int) -> None:
        """Shut that one down in `linger` milliseconds."""
        self._doomed.append((time.monotonic() + linger / 1000, connection))
        if len(self._doomed) > MAX_DOOMED:
            _cut(self._doomed.pop(0)[1])

    def forget(self, listener: Listener) -> None:
        """It is closed, and its connections with it."""
        self._doomed = [(at, c) for at, c in self._doomed if c.listener is not listener]

    def came(self, listener: Listener, fd: int) -> None:
        """Somebody has connected there. If that is a flood, the first to come is the first to
        go."""
        listener.dead.discard(fd)
        listener.young.pop(fd, None)  # the last to come stands last
        now = listener.young[fd] = time.monotonic()
        oldest, since = next(iter(listener.young.items()))
        many = MOST_YOUNG if now - since < YOUNG and not listener.curve else MAX_YOUNG
        if len(listener.young) > many:
            _cut_stranger(listener, oldest)

    def tick(self, listeners: list[Listener]) -> None:
        """Shut down those whose time has come."""
        if not self._doomed and not any(listener.young for listener in listeners):
            return
        now = time.monotonic()
        for at, connection in self._doomed:
            if at <= now:
                _cut(connection)
        self._doomed = [(at, connection) for at, connection in self._doomed if at > now]
        for listener in listeners:
            for fd in [fd for fd, since in listener.young.items() if now - since >= SILENT_TIME]:
                _cut_stranger(listener, fd)

    def timeout(self, listeners: list[Listener]) -> float | None:
        """Seconds until `tick` has something to do."""
        if self._doomed:
            return LOOK_EVERY
        firsts = [next(iter(one.young.values())) for one in listeners if one.young]
        return max(0.0, min(firsts) + SILENT_TIME - time.monotonic()) if firsts else None


def _cut(connection: Connection) -> None:
    listener = connection.listener
    if listener is not None and listener.by_fd.get(connection.fd) is connection:
        sockets.shutdown(connection.fd, listener.port)


def _cut_stranger(listener: Listener, fd: int) -> None:
    del listener.young[fd]
    sockets.shutdown(fd, listener.port)
