"""The same-host lane of transfers: the receiver reads a value where the sender has it.

A receiver says SHM_READY: that it is a process of the sender's own user, with a proof that is
keyed with that user's secret key. Once it has granted the transfer, the sender says SHM_OFFER: the
addresses of its pieces, with such a proof of its own; for a receiver that read whatever it is told
could be led to read a third process. So addresses are told to this user's processes alone, and
taken from them alone. The digest comes as ever, and holds here too: a sender that was cancelled
may let go of the memory while it is read. What cannot be read so (SHM_DECLINE) comes in chunks.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgpack
import xxhash

from ..errors import ZBusError
from ..net import memory
from ..net.places import Peering
from ..protocol.messages import MAX_PIECES, Hello, ShmOffer, ShmReady
from ..trust import Trust

logger = logging.getLogger(__name__)

LEAST = 1 << 20  # bytes: what is smaller is there as soon in a chunk
STEP = 4 << 20  # bytes between two looks whether it is still wanted,
TELL = 32 << 20  # and between two words on how far it is


class Unreadable(Exception):
    """It cannot be read; `for_good`: and no other value of that session can."""

    def __init__(self, why: str, for_good: bool) -> None:
        super().__init__(why)
        self.for_good = for_good


Pieces = Sequence[tuple[int, int]]


class Target(Protocol):
    """Where the bytes go; a range that lies in several pieces has no view."""

    def view(self, offset: int, size: int) -> memoryview | None: ...


class ShmLane:
    """What the two sides of the lane do, in worker threads.

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

    def ready(self, peering: Peering, transfer: int) -> ShmReady | None:
        """What to tell the sender of a value; None where this user has no key."""
        proof = self._proof(self._own, peering.session.peer, transfer)
        return ShmReady(transfer, proof) if proof else None

    def is_near(self, peering: Peering, message: ShmReady) -> bool:
        """Whether it is this user's process that says so."""
        proof = self._proof(peering.session.peer, self._own, message.transfer)
        return bool(proof) and hmac.compare_digest(proof, message.proof)

    def offer(
        self, peering: Peering, transfer: int, views: Sequence[memoryview]
    ) -> ShmOffer | None:
        """What to tell who is near of a value in these views; None where it takes the socket."""
        if not 0 < len(views) <= MAX_PIECES:
            return None
        pieces = tuple((memory.address_of(view), len(view)) for view in views)
        proof = self._proof(self._own, peering.session.peer, transfer, pieces)
        return ShmOffer(transfer, pieces, proof) if proof else None

    def read(
        self,
        peering: Peering,
        message: ShmOffer,
        total: int,
        target: Target,
        is_wanted: Callable[[], bool],
        on_progress: Callable[[int], None],
    ) -> Any:
        """Read a value; returns the hasher of its bytes. For a worker thread.

        Raises:
            Unreadable: That cannot be, or it is not wanted any more.
        """
        peer = peering.session.peer
        proof = self._proof(peer, self._own, message.transfer, message.pieces)
        if not proof or not hmac.compare_digest(proof, message.proof):
            raise Unreadable("another user's", for_good=True)
        if sum(length for _, length in message.pieces) != total:
            raise Unreadable("not as long as was offered", for_good=False)
        try:
            return _read(peer.pid, message.pieces, target, is_wanted, on_progress)
        except OSError as error:
            # EFAULT: the sender has let go of it. Anything else forbids it.
            raise Unreadable(error.strerror or "", error.errno != errno.EFAULT) from error

    def _proof(self, says: Hello, hears: Hello, transfer: int, pieces: Pieces = ()) -> bytes:
        """Keyed BLAKE2b over all of it; empty where this user has no key."""
        said = (says.incarnation, hears.incarnation, says.pid, transfer, pieces)
        try:
            secret = self._trust.keys.secret
        except ZBusError as error:
            logger.info("no key, and so no memory is shared: %s", error)
            return b""
        data = msgpack.packb(said)
        return hashlib.blake2b(data, digest_size=32, key=secret, person=b"zbus-memory").digest()


def _read(
    pid: int,
    pieces: Pieces,
    target: Target,
    is_wanted: Callable[[], bool],
    on_progress: Callable[[int], None],
) -> Any:
    hasher, at, told = xxhash.xxh3_128(), 0, 0
    total = sum(length for _, length in pieces)
    for address, length in pieces:
        for start in range(0, length, STEP):
            size = min(STEP, length - start)
            view = target.view(at, size)
            if view is None or not is_wanted():
                raise Unreadable("not cut as was offered, or not wanted", for_good=False)
            memory.read(pid, address + start, view)
            hasher.update(view)
            at += size
            if at - told >= TELL and at < total:  # all of it is more than a word: it is verified
                told = at
                on_progress(at)
    return hasher


def digest(views: Sequence[memoryview], is_wanted: Callable[[], bool]) -> bytes | None:
    """The digest of a value in these views; None once nobody wants it. For a worker thread."""
    hasher = xxhash.xxh3_128()
    for view in views:
        for start in range(0, len(view), STEP):
            if not is_wanted():
                return None
            hasher.update(view[start : start + STEP])
    return hasher.digest()
