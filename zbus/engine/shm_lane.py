"""The same-host lane of transfers: the receiver reads a value where the sender has it.

Each side says once a session, in SHM_NEAR, that it is a process of the other's own user, with a
proof that is keyed with that user's secret key. To whom that has been proved a value is lent with
its OFFER: the addresses of its pieces, with such a proof of its own; for a receiver that read
whatever it is told could be led to read a third process. So addresses are told to this user's
processes alone, and taken from them alone.

Nobody is asked before and after. What was read is right if two things hold when it has been read:

- The sender's lease still stands. It is a random token in the sender's memory, wiped before the
  sender lets go of any piece, and read after the last one: so all were held all the while. A
  process that has died, or another one that has its number, has no such token.
- The sample is the same: the digest of some lines, evenly spread, taken when the value was offered
  and again of what was read. It finds a sender that goes on changing what it sends.

What cannot be read so (SHM_DECLINE) comes in chunks.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgpack
import numpy as np
import xxhash

from ..errors import ZBusError
from ..net import memory
from ..net.places import Peering
from ..protocol.messages import MAX_PIECES, Hello, Loan, ShmNear
from ..trust import Trust
from ..values.tensors import memory_of
from .workers import outcome

logger = logging.getLogger(__name__)

STEP = 4 << 20  # bytes of one read, after which somebody looks whether it is still wanted,
TELL = 32 << 20  # and between two words on how far it is
WHOLE = 4 << 20  # bytes that are all in their sample: gathering lines takes as long
LINE, LINES = 64, 4096  # bytes of a line, and about how many of them are a sample of more
SOON = 4 << 20  # bytes that are read, and lent, sooner than another thread is at work
READERS = 4  # threads that read one value: one alone does not get what the memory gives


class Unreadable(Exception):
    """It cannot be read; `for_good`: and no other value of that session can."""

    def __init__(self, why: str, for_good: bool) -> None:
        super().__init__(why)
        self.for_good = for_good


class Lease:
    """A value that is lent, as long as this stands: till then its pieces are held here, and so none
    can be free before the token is wiped, whoever else lets go of them, and of this."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = views
        self.token = os.urandom(16)
        self._word = bytearray(self.token)
        self.address = memory.address_of(memoryview(self._word))

    def end(self) -> None:
        """To be called before any piece is let go of. More than once does no harm."""
        self._word[:] = bytes(len(self._word))
        self._views = ()

    def __del__(self) -> None:
        self.end()


class Target(Protocol):
    """Where the bytes go; a range that lies in several pieces has no view."""

    def view(self, offset: int, size: int) -> memoryview | None: ...


Share = Callable[[Callable[[], None], int], None]
"""Does something in so many threads at once, this one among them."""


class ShmLane:
    """What the two sides of the lane do.

    Args:
        own: What this side says of itself.
        trust: Whose secret key proves who shares.
    """

    def __init__(self, own: Hello, trust: Trust) -> None:
        self._own, self._trust = own, trust

    def serves(self, peering: Peering) -> bool:
        """Whether both sides can, as far as they say."""
        lanes = (self._own.lanes, peering.session.peer.lanes)
        return peering.is_local and all(memory.LANE in known for known in lanes)

    def near(self, peering: Peering, *, makes_key: bool = False) -> ShmNear | None:
        """What to tell a peer whose values could be read, once a session; None where this user has
        no key, and none is to be made: a plain link needs none until something is worth it."""
        if not (makes_key or self._trust.has_keys):
            return None
        proof = self._proof(self._own, peering.session.peer, peering, b"near")
        return ShmNear(proof) if proof else None

    def say_near(self, peering: Peering, *, makes_key: bool = False) -> None:
        """Tell the peer so, if that can be. A fault in it costs the lane alone."""
        message = outcome(lambda: self.near(peering, makes_key=makes_key))
        if isinstance(message, ShmNear):
            peering.say_near(message)

    def is_near(self, peering: Peering, message: ShmNear) -> bool:
        """Whether it is this user's process that says so."""
        if not self._trust.has_keys:
            return False
        proof = self._proof(peering.session.peer, self._own, peering, b"near")
        return bool(proof) and hmac.compare_digest(proof, message.proof)

    def lend(
        self, peering: Peering, transfer: int, views: Sequence[memoryview]
    ) -> tuple[Lease, Loan] | None:
        """What to tell a peer that is near of a value in these views; None where it takes the
        socket. For any thread."""
        if not 0 < len(views) <= MAX_PIECES:
            return None
        lease, pieces = Lease(views), tuple((memory.address_of(view), len(view)) for view in views)
        said = pieces, lease.token, lease.address, sample(views)
        proof = self._proof(self._own, peering.session.peer, peering, transfer, *said)
        return (lease, Loan(*said, proof)) if proof else None

    def read(
        self,
        peering: Peering,
        transfer: int,
        loan: Loan,
        total: int,
        target: Target,
        share: Share,
        is_wanted: Callable[[], bool],
        on_progress: Callable[[int], None],
    ) -> None:
        """Read a value. For any thread.

        Raises:
            Unreadable: That cannot be, or it is not wanted any more, or what was read is not what
                was lent.
        """
        peer = peering.session.peer
        proof = self._proof(peer, self._own, peering, transfer, *loan[:-1])
        if not proof or not hmac.compare_digest(proof, loan.proof):
            raise Unreadable("another user's", for_good=True)
        if sum(length for _, length in loan.pieces) != total:
            raise Unreadable("not as long as was offered", for_good=False)
        views = _views(loan, target)
        try:
            reading = _Reading(peer.pid, loan, views, is_wanted, on_progress)
            share(reading, min(READERS, reading.steps))
            word = memoryview(bytearray(len(loan.token)))
            memory.read(peer.pid, [(loan.lease, len(word))], [word])
        except OSError as error:
            # EFAULT: the sender has let go of it. Anything else forbids it.
            raise Unreadable(error.strerror or "", error.errno != errno.EFAULT) from error
        if word != loan.token:
            raise Unreadable("not held any more", for_good=False)
        if sample(views) != loan.sample:
            raise Unreadable("being changed by who sends it", for_good=False)

    def _proof(self, says: Hello, hears: Hello, peering: Peering, *said: Any) -> bytes:
        """Keyed BLAKE2b over all of it; empty where this user has no key."""
        about = (says.incarnation, hears.incarnation, says.pid, peering.session.key)
        try:
            secret = self._trust.keys.secret
        except ZBusError as error:
            logger.info("no key, and so no memory is shared: %s", error)
            return b""
        data = msgpack.packb((*about, *said))
        return hashlib.blake2b(data, digest_size=32, key=secret, person=b"zbus-memory").digest()


def _views(loan: Loan, target: Target) -> list[memoryview]:
    """Where each piece goes."""
    views, at = [], 0
    for _, length in loan.pieces:
        view = target.view(at, length)
        if view is None:
            raise Unreadable("not cut as was offered", for_good=False)
        views.append(view)
        at += length
    return views


class _Reading:
    """Reads all pieces, a step at a time, in as many threads as call it."""

    def __init__(
        self,
        pid: int,
        loan: Loan,
        views: Sequence[memoryview],
        is_wanted: Callable[[], bool],
        on_progress: Callable[[int], None],
    ) -> None:
        self._pid, self._is_wanted, self._on_progress = pid, is_wanted, on_progress
        self._left = deque(_steps(loan.pieces, views))
        self.steps = len(self._left)
        self._total = sum(map(len, views))
        self._lock = threading.Lock()
        self._done = self._told = 0

    def __call__(self) -> None:
        try:
            self._read()
        except BaseException:
            self._left.clear()  # what the other threads would go on with is for nothing
            raise

    def _read(self) -> None:
        while True:
            try:
                theirs, into = self._left.popleft()
            except IndexError:
                return
            if not self._is_wanted():
                raise Unreadable("not wanted any more", for_good=False)
            memory.read(self._pid, theirs, into)
            with self._lock:
                self._done += sum(map(len, into))
                if self._told + TELL <= self._done < self._total:
                    self._told = self._done
                    self._on_progress(self._done)


_Step = tuple[list[tuple[int, int]], list[memoryview]]


def _steps(pieces: Sequence[tuple[int, int]], views: Sequence[memoryview]) -> list[_Step]:
    """The pieces and where they go, in groups of STEP bytes: large ones cut, small ones joined."""
    steps: list[_Step] = [([], [])]
    room = STEP
    for (address, length), view in zip(pieces, views, strict=True):
        start = 0
        while start < length:
            size = min(room, length - start)
            steps[-1][0].append((address + start, size))
            steps[-1][1].append(view[start : start + size])
            start, room = start + size, room - size
            if not room:
                steps.append(([], []))
                room = STEP
    return steps if steps[-1][0] else steps[:-1]


def sample(views: Sequence[memoryview]) -> bytes:
    """The digest of a value in these views: of all of it up to 4 MiB, and else of lines of 64
    bytes, some four thousand of them, evenly spread. The first line of each view is among them."""
    total = sum(map(len, views))
    # Over all offsets within a page.
    every = LINE if total <= WHOLE else (total // LINES // LINE + 1) * LINE
    hasher = xxhash.xxh3_128()
    for view in views:
        if len(view) <= LINE or every == LINE:
            hasher.update(view)
            continue
        data = np.frombuffer(view, np.uint8)
        count = (len(view) - LINE) // every + 1
        lines = np.lib.stride_tricks.as_strided(data, (count, LINE), (every, 1), writeable=False)
        hasher.update(memory_of(np.ascontiguousarray(lines)))
    return hasher.digest()
