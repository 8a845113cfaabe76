"""The I/O of one value on its way out: packs it, sends its chunks, lends its memory.

Runs in the I/O thread. `protocol.delivery.Sending` says what is to be done when; here it is done.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import xxhash

from .. import codecs
from ..codecs import CODECS, Codec
from ..errors import ZBusError
from ..net.places import Peering
from ..protocol.delivery import Do, Sending, SendState
from ..protocol.messages import Chunk, Finish, Grant, Loan, encode
from ..values.layout import Layout
from ..values.payload import Flat
from .flow import Flow, Lanes
from .shm_lane import SOON, Lease
from .wrapping import LinkFacts, Wrapped, wrap

logger = logging.getLogger(__name__)

HEAVY = 1 << 20  # bytes from which packing and building go to the worker pool
MANY = 1000  # parts from which they do
ENCODES_AHEAD = 8  # chunks of one transfer in the pool at once
TURN = 8 << 20  # bytes that one turn sends before it looks at its input again


class Source(Protocol):
    """The plain bytes of a value to send."""

    total: int

    @property
    def pieces(self) -> Sequence[memoryview]:
        """The memory itself, in order; none where there is none."""

    def read(self, offset: int, size: int) -> memoryview: ...
    def layout(self, offset: int, size: int) -> Layout: ...
    def cut(self, offset: int, want: int) -> int: ...


class Giver(Protocol):
    """Whose value it is: an operation, a job, a measurement. Told how it ends, once."""

    def offer(self, wrapped: Wrapped) -> None:
        """Say what is offered, in a message of its own."""

    def moved(self, received: int) -> None:
        """So many plain bytes are with the peer."""

    def delivered(self, value: Any) -> None: ...
    def undeliverable(self, error: ZBusError, resumable: bool) -> None: ...


@dataclass(eq=False)
class _Encoding:
    """One chunk in the worker pool."""

    epoch: int
    offset: int
    plain: memoryview
    is_done: bool = False
    encoded: Any = None


@dataclass(frozen=True)
class _Unencoded:
    """What a codec has raised."""

    error: BaseException


class Outflow(Flow[Sending]):
    """One value on its way out.

    Args:
        lanes: What carries it.
        peering: The session.
        transfer: Its id there.
        giver: Whose it is.
    """

    def __init__(self, lanes: Lanes, peering: Peering, transfer: int, giver: Giver) -> None:
        super().__init__(lanes, peering, Sending(transfer), giver)
        self._giver = giver
        self._source: Source | None = None
        self._codec: Codec = CODECS["raw"]
        self._wrapped: Wrapped | None = None
        self._hasher = xxhash.xxh3_128()
        self._hashed = 0
        self._is_finished = False  # FINISH has been said
        self._lent: tuple[Lease, Loan] | None = None
        self._encoding: deque[_Encoding] = deque()

    # --- what is sent -------------------------------------------------------------------------

    def pack(self, flat: Flat, quality: str) -> None:
        """Send that value: it is packed, offered, and goes when the peer grants."""
        link = LinkFacts.of(self.peering)
        lends = self.peering.shares and self.peering.is_near
        is_as_it_is = codecs.pack_mode(quality, link.rate, link.is_local) == "never"
        heavy = SOON if lends and is_as_it_is else HEAVY
        is_light = flat.nbytes < heavy and flat.parts < MANY and not flat.on_device

        def work() -> Wrapped:
            wrapped = wrap(flat, quality, link)
            pieces = _lendable(wrapped) if lends else ()
            if pieces:
                self._lent = self._lanes.shm.lend(self.peering, self.delivery.id, pieces)
            return wrapped

        self._work(work, self._packed, at_once=is_light)

    def _packed(self, wrapped: Wrapped) -> None:
        self._wrapped, self._codec = wrapped, CODECS[wrapped.codec]
        if self._lent is not None:
            told = wrapped.told | {"loan": self._lent[1]}
            self._wrapped = replace(wrapped, told=told)
        if wrapped.source is None:
            self.do(self.delivery.packed())
        else:
            self.stream(wrapped.source)

    def stream(self, source: Source) -> None:
        """Send those bytes."""
        self._source = source
        self.do(
            self.delivery.packed_for_chunks(
                source.total,
                source.cut,
                self.peering.pace,
                self.peering.largest_chunk,
                lent=self._lent is not None,
            )
        )

    def _offer(self) -> None:
        if self._wrapped is not None:
            self._giver.offer(self._wrapped)

    # --- what the peer says ---------------------------------------------------------------------

    def granted(self, grant: Grant, now: float) -> None:
        self.do(self.delivery.grant(grant, now))
        self._giver.moved(self.delivery.received)

    def declined(self, for_good: bool) -> None:
        self.peering.shares = self.peering.shares and not for_good
        self.do(self.delivery.declined())

    def stored(self) -> None:
        if self.is_lent and self._source is not None:
            self._giver.moved(self._source.total)
        self.do(self.delivery.stored())

    def refused(self, error: ZBusError) -> None:
        self.do(self.delivery.refused(error))

    def unlinked(self) -> None:
        self.delivery.unlinked()

    # --- chunks ---------------------------------------------------------------------------------

    @property
    def moves(self) -> bool:
        """Whether `pump` could have something to send."""
        return self.delivery.state is SendState.MOVING

    def pump(self, now: float) -> bool:
        """Send what may go; True if more could go at once."""
        outgoing, source = self.delivery.outgoing, self._source
        if self.delivery.state is not SendState.MOVING or outgoing is None or source is None:
            return False
        left = TURN
        while left > 0 and len(self._encoding) < ENCODES_AHEAD:
            planned = outgoing.plan()
            if planned is None:
                break
            offset, size = planned
            plain = source.read(offset, size)
            left -= size
            if self._codec.name == "raw" and not self._encoding:  # chunks go in their order
                self._put(offset, plain, None, now)
            elif self._codec.name == "raw":
                self._encoding.append(_Encoding(outgoing.epoch, offset, plain, is_done=True))
            else:
                self._encode(offset, plain)
        while self._encoding and self._encoding[0].is_done:
            done = self._encoding.popleft()
            if done.epoch == outgoing.epoch:
                self._put(done.offset, done.plain, done.encoded, now)
        if self._hashed >= source.total:
            self._finish(self._hasher.digest())
        return left <= 0

    def _encode(self, offset: int, plain: memoryview) -> None:
        assert self._source is not None and self.delivery.outgoing is not None
        layout, codec = self._source.layout(offset, len(plain)), self._codec
        encoding = _Encoding(self.delivery.outgoing.epoch, offset, plain)
        self._encoding.append(encoding)

        def work() -> Any:
            try:
                return codec.encode(plain, layout)
            except BaseException as error:  # foreign code
                return _Unencoded(error)

        def done(result: Any) -> None:
            if isinstance(result, _Unencoded):
                self._unencoded(result.error)
            else:
                encoding.encoded = result
            encoding.is_done = True

        self._lanes.workers.run(work, done)

    def _unencoded(self, error: BaseException) -> None:
        """A codec that fails saves nothing: this chunk goes plain, and so does what comes after."""
        if self._codec.name != "raw":
            name = self._codec.name
            logger.warning("%s has failed on a chunk: plain bytes go instead", name, exc_info=error)
            self._codec = CODECS["raw"]

    def _put(self, offset: int, plain: memoryview, encoded: Any, now: float) -> None:
        outgoing = self.delivery.outgoing
        assert outgoing is not None
        size = len(plain)
        is_encoded = encoded is not None and len(encoded) < size
        body = encoded if is_encoded else plain
        header = encode(Chunk(self.delivery.id, offset, size, is_encoded))
        connection = self.peering.connection
        if connection is None or not self._lanes.transport.send(connection, header, body):
            return  # the link is gone: `unlinked` follows
        outgoing.sent(offset, size, len(body), now)
        if offset + size > self._hashed:  # after it is sent: ZeroMQ's thread goes on meanwhile
            self._hasher.update(plain[self._hashed - offset :])
            self._hashed = offset + size

    def _finish(self, digest: bytes) -> None:
        if not self._is_finished:
            self._is_finished = True
            self.peering.session.send(Finish(self.delivery.id, digest))

    # --- lent memory ------------------------------------------------------------------------------

    @property
    def is_lent(self) -> bool:
        return self.delivery.state is SendState.LENT

    def _lend(self) -> None:
        self._lanes.permit()

    def _reclaim(self) -> None:
        if self._lent is not None:
            self._lent[0].end()
            self._lent = None
            self._lanes.permit()

    # --- its end ----------------------------------------------------------------------------------

    def _release(self) -> None:
        if self.delivery.outgoing is not None:
            self.delivery.outgoing.abandon()
        self._lanes.ended(self)
        self._reclaim()
        self._source = self._wrapped = None
        self._encoding.clear()

    DOING: ClassVar = {
        Do.OFFER: _offer,
        Do.LEND: _lend,
        Do.RECLAIM: _reclaim,
        Do.RELEASE: _release,
        Do.TELL: Flow._tell,
    }


def _lendable(wrapped: Wrapped) -> Sequence[memoryview]:
    """Its pieces, where a peer that is near had better read them where they lie."""
    source = wrapped.source
    if source is None or wrapped.codec != "raw" or wrapped.told["head"]:
        return ()
    return source.pieces
