"""What a user may change of how a peer waits and what it takes."""

from __future__ import annotations

from dataclasses import dataclass

from . import given

MAX_MEMORY = 1 << 62  # bytes


@dataclass(frozen=True)
class Settings:
    """Times and limits. Whoever holds one holds a checked one.

    Attributes:
        reconnect_wait: Seconds that a lost link is waited for.
        linger: Seconds that an address stays open after its last run.
        nobody_wait: Seconds after which a lost link is given up when each redial is accepted and
            closed at once, or refused by another machine.
        memory: Bytes that values on their way in may take, all together; None: 80 % of what is
            free when the first one comes.
        share_memory: Whether this user's peers on this machine read large values out of each
            other's memory, where the system lets them (Linux); else they take the socket.

    Raises:
        InputError: A time is no number of seconds from 0 to 30 days, or another field cannot be
            used; the text names it.
    """

    reconnect_wait: float = 300.0
    linger: float = 30.0
    nobody_wait: float = 15.0
    memory: int | None = None
    share_memory: bool = True

    def __post_init__(self) -> None:
        for name in ("reconnect_wait", "linger", "nobody_wait"):
            given.seconds(name, getattr(self, name))
        if self.memory is not None:
            given.whole("memory", self.memory, 1, MAX_MEMORY)
        given.flag("share_memory", self.share_memory)
