"""Sans-IO: the memory that values on their way in may take, all together.

Whoever wants some holds a `Ticket`: it waits in the row, has its bytes, or is over. A ticket is
released once, by its one owner, however often that is asked for, and whether or not its turn had
come: so what is taken is always the sum of the tickets that have their bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Ticket:
    """A place in the row for `size` bytes, and then those bytes.

    Attributes:
        size: Bytes.
        is_given: The bytes are taken, and not released yet.
    """

    def __init__(self, budget: Budget, size: int, on_given: Callable[[], None]) -> None:
        self.size, self.is_given = size, False
        self._budget, self._on_given = budget, on_given
        self._is_over = False

    def ask(self) -> None:
        """Stand in the row: `on_given` is called when the bytes are taken for it, at once if they
        are free and nobody waits before it."""
        self._budget._asked(self)

    def release(self) -> None:
        """The bytes are free, or not wanted any more."""
        if not self._is_over:
            self._is_over = True
            self._on_given = _nothing
            self._budget._released(self)

    def _give(self) -> None:
        self.is_given = True
        self._on_given()


class Budget:
    """All tickets of one process's peer.

    Args:
        limit: Tells the bytes that may be taken now, when nothing is.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._cap = 0  # as of when nothing was taken
        self._taken = 0
        self._row: deque[Ticket] = deque()
        self._is_serving = False

    @property
    def cap(self) -> int:
        """The bytes that all may take together."""
        if not self._taken:
            self._cap = self._limit()
        return self._cap

    @property
    def taken(self) -> int:
        """The bytes that are taken now."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many tickets wait for their bytes."""
        return len(self._row)

    def fits(self, size: int) -> bool:
        """Whether `size` bytes could be taken, if not now then later."""
        return size <= self.cap

    def ticket(self, size: int, on_given: Callable[[], None]) -> Ticket:
        """A ticket for `size` bytes. Whoever is to release it keeps it first, and then asks: its
        bytes may be given, used and released within that very call."""
        return Ticket(self, size, on_given)

    def _asked(self, ticket: Ticket) -> None:
        if not ticket._is_over:
            self._row.append(ticket)
            self._serve()

    def _released(self, ticket: Ticket) -> None:
        if ticket.is_given:
            ticket.is_given = False
            self._taken -= ticket.size
        elif ticket in self._row:
            self._row.remove(ticket)
        self._serve()

    def _serve(self) -> None:
        # Whoever is told may release or ask at once: the loop that tells it goes on, and there is
        # only one, however many are released one after the other.
        if self._is_serving:
            return
        self._is_serving = True
        try:
            while self._row and (not self._taken or self._taken + self._row[0].size <= self.cap):
                ticket = self._row.popleft()
                self._taken += ticket.size
                ticket._give()
        finally:
            self._is_serving = False


def _nothing() -> None:
    """Whoever it was for is not there any more."""
