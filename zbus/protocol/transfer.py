"""Sans-IO: one value on its way, as chunks against absolute grants.

The receiver says GRANT(received, limit); the sender sends chunks in order up to `limit` plain
bytes, within the link's window (`pace`). After a reconnect the receiver repeats its GRANT and the
sender goes on at `received`: losing or repeating one is harmless, and there is no other resume
logic. Offsets mean the concatenation of the value's plain buffers. This module never sees a byte
of them: it says which range goes next and which range may come.

Chunks are encoded and decoded in threads, so a range has three moments on each side: planned,
encoded and sent here; arrived, decoded and stored there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..errors import RemoteProtocolError
from .messages import MAX_CHUNK, Chunk, Grant
from .pace import Pace

Cut = Callable[[int, int], int]
"""(offset, wanted size) -> size of the next chunk there; at least 1."""


class Outgoing:
    """The sending side of one transfer.

    Args:
        transfer: Its id.
        total: Plain bytes.
        cut: Where a chunk may end.
        pace: The window of its link.
        largest: The plain bytes of a chunk that the peer takes.
    """

    def __init__(
        self, transfer: int, total: int, cut: Cut, pace: Pace, largest: int = MAX_CHUNK
    ) -> None:
        self.id, self.total = transfer, total
        self.received = 0  # by the peer, as it says
        self.next = 0  # the offset that is planned next
        self.epoch = 0  # grows with each cut: what was planned before does not count
        self._limit = 0
        self._linked = True
        self._cut, self._pace, self._largest = cut, pace, min(largest, MAX_CHUNK)
        self._under_way: deque[int] = deque()  # the ends of the chunks sent and not granted

    def grant(self, grant: Grant, now: float) -> None:
        """The peer's word on what it has and takes.

        Raises:
            RemoteProtocolError: It claims what was not sent.
        """
        if grant.received > max(self.next, self.received) or grant.limit > self.total:
            raise RemoteProtocolError("a GRANT beyond what was sent")
        if not self._linked:
            self._resume(grant.received)
        if grant.received < self.received:
            return
        self.received, self._limit = grant.received, max(self._limit, grant.limit)
        count = 0
        while self._under_way and self._under_way[0] <= self.received:
            self._under_way.popleft()
            count += 1
        self._pace.delivered(count, now)

    def unlinked(self) -> None:
        """The connection is gone: nothing goes until the receiver has said what it has."""
        self._linked = False
        self.epoch += 1
        self._under_way.clear()

    def _resume(self, received: int) -> None:
        self._linked = True
        self.next = self.received = received

    def may_go(self, planned: int = 0) -> bool:
        """Whether the next range may, behind so many wire bytes that are planned and not sent."""
        return self._linked and self.next < self._limit and self._pace.has_room(planned)

    def plan(self, want: int | None = None) -> tuple[int, int] | None:
        """The next range (offset, size) to encode and send; None: not now. Planned is promised:
        each planned range is `sent` in order, unless `epoch` has changed since.

        Args:
            want: The plain bytes that it should have; None: those that the link should have.
        """
        if not self.may_go():
            return None
        offset = self.next
        want = self._pace.chunk if want is None else want
        size = min(self._cut(offset, want), self._largest, self._limit - offset)
        self.next = offset + size
        return offset, size

    def sent(self, offset: int, size: int, wire: int, now: float) -> None:
        """The planned range has gone, as `wire` bytes."""
        self._under_way.append(offset + size)
        self._pace.sent(wire, now)

    def abandon(self) -> None:
        """Cancelled: what is under way will not be granted any more."""
        self._linked = False
        self._pace.dropped(len(self._under_way))
        self._under_way.clear()

    @property
    def complete(self) -> bool:
        """Whether the peer has everything."""
        return self.received >= self.total


class Incoming:
    """The receiving side of one transfer.

    Args:
        transfer: Its id.
        total: Plain bytes.
        window: Grant at most this many bytes beyond what is stored; None: everything (the memory
            for all of it is there).
    """

    def __init__(self, transfer: int, total: int, window: int | None = None) -> None:
        self.id, self.total = transfer, total
        self.received = 0  # stored, without a gap
        self.arrived = 0  # arrived, perhaps still being decoded
        self._window = window
        self._done: dict[int, int] = {}  # decoded ranges that wait for an earlier one
        self._granted = -1
        self._waiting = False  # after a reconnect: grant when what had arrived is decoded

    def open(self, total: int, window: int | None = None) -> None:
        """The head has come and tells the rest: grant up to `total` now."""
        self.total, self._window, self._granted = total, window, -1

    def arrive(self, chunk: Chunk) -> bool:
        """Whether this chunk is wanted; if so, its `size` bytes go to its `offset`.

        Raises:
            RemoteProtocolError: It lies beyond what was granted, or leaves a gap.
        """
        end = chunk.offset + chunk.size
        if self._waiting or end <= self.arrived:
            return False  # repeated after a reconnect
        if chunk.offset != self.arrived or end > self._limit:
            raise RemoteProtocolError(f"a chunk at {chunk.offset} where {self.arrived} was due")
        self.arrived = end
        return True

    def stored(self, offset: int, size: int) -> list[tuple[int, int]]:
        """A range has been decoded into place; returns the ranges that are now without a gap
        before them, in order (for the digest)."""
        self._done[offset] = size
        ready = []
        while (size := self._done.pop(self.received, 0)) > 0:
            ready.append((self.received, size))
            self.received += size
        return ready

    @property
    def _limit(self) -> int:
        return self.total if self._window is None else min(self.total, self.received + self._window)

    def grant(self) -> Grant | None:
        """The GRANT that is due, if any: call it once after a batch of input."""
        if self._waiting and self.received < self.arrived:
            return None
        self._waiting = False
        if self._granted == self.received:
            return None
        self._granted = self.received
        return Grant(self.id, self.received, self._limit)

    def reach(self, received: int) -> None:
        """So much of it is there, without a gap, by another way than chunks."""
        self.arrived = self.received = received

    def restart(self) -> None:
        """Nothing of it is there after all: chunks are to bring it."""
        self.reach(0)
        self._granted = -1

    def linked(self) -> None:
        """A new connection stands: repeat the GRANT, once everything that came is decoded."""
        self._granted, self._waiting = -1, True

    @property
    def complete(self) -> bool:
        """Whether everything is in its place."""
        return self.received >= self.total
