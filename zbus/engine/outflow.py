"""The I/O of one value on its way out: packs it, sends its chunks, lends its memory.

Runs in the I/O thread. `protocol.delivery.Sending` says what is to be done when; here it is done.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import xxhash

from .. import codecs
from ..codecs import CODECS, MIXED, mixed
from ..codecs.weighing import RAW, SLOW, Ahead, Sight, Weighing
from ..errors import ZBusError
from ..net.places import Peering
from ..protocol.delivery import Do, Sending, SendState
from ..protocol.messages import Chunk, Finish, Grant, Loan, encode
from ..protocol.transfer import Outgoing
from ..values.layout import Layout
from ..values.payload import Flat
from .flow import Flow, Lanes
from .shm_lane import SOON, Lease
from .wrapping import LinkFacts, Wrapped, wrap

logger = logging.getLogger(__name__)

HEAVY = 1 << 20  # bytes from which packing and building go to the worker pool
MANY = 1000  # parts from which they do
ENCODES_AHEAD = 8  # chunks of one transfer in the pool at once
ENCODED = 128 * 1024  # plain bytes of a chunk that is encoded: so that several threads have one
TURN = 8 << 20  # bytes that one turn sends before it looks at its input again


class Source(Protocol):
    """The plain bytes of a value to send."""

    total: int

    @property
    def pieces(self) -> Sequence[memoryview]:
        """The memory itself, in order; none where there is none."""

    def read(self, offset: int, size: int) -> memoryview: ...
    def layout(self, offset: int, size: int) -> Layout: ...

    def buffer(self, offset: int) -> Layout:
        """What the bytes from there on look like."""

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
    """One chunk in the worker pool, or behind one that is there."""

    epoch: int
    name: str  # of its codec
    offset: int
    plain: memoryview
    wire: int  # bytes that it is likely to be
    since: float
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
        self._codec = RAW  # as it was offered
        self._weighing: Weighing | None = None  # what each chunk goes by; None: as it is
        self._is_sampled = False
        self._offered: float | None = None  # when
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
        lends = self.peering.lends
        is_as_it_is = codecs.pack_mode(quality, link.rate, link.is_local) == "never"
        heavy = SOON if is_as_it_is else HEAVY  # where nothing is computed
        is_light = flat.nbytes < heavy and flat.parts < MANY and not flat.on_device

        def work() -> tuple[Wrapped, tuple[Lease, Loan] | None]:
            wrapped = wrap(flat, quality, link)
            pieces = _lendable(wrapped) if lends else ()
            if not pieces:
                return wrapped, None
            return wrapped, self._lanes.shm.lend(self.peering, self.delivery.id, pieces)

        # What comes back when this has ended is kept by nobody.
        self._work(work, lambda made: self._packed(*made), at_once=is_light)

    def _packed(self, wrapped: Wrapped, lent: tuple[Lease, Loan] | None) -> None:
        self._lent = lent
        self._wrapped, self._codec, self._weighing = wrapped, wrapped.codec, wrapped.weighing
        if self._lent is not None:
            told = wrapped.told | {"loan": self._lent[1]}
            self._wrapped = replace(wrapped, told=told)
        if wrapped.source is None:
            self.do(self.delivery.packed())
        else:
            self.stream(wrapped.source)

    def _sample(self, weighing: Weighing) -> None:
        """See what the codecs make of it, while some of it is on its way."""

        def done(sights: list[Sight] | ZBusError) -> None:
            for sight in sights if isinstance(sights, list) else ():
                weighing.saw(sight)

        self._lanes.workers.run(weighing.sample, done)

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
            self._offered = time.monotonic()
            self._giver.offer(self._wrapped)

    # --- what the peer says ---------------------------------------------------------------------

    def granted(self, grant: Grant, now: float) -> None:
        if self._offered is not None:
            self.peering.pace.answered(now - self._offered)
            self._offered = None
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
        while self._encoding and self._encoding[0].epoch != outgoing.epoch:
            self._encoding.popleft()  # of a connection that is gone: they would be in the way
        left = TURN
        while left > 0 and len(self._encoding) < ENCODES_AHEAD:
            picked = self._pick(outgoing, source) if outgoing.may_go(self._planned) else None
            if picked is None:
                break
            name, want = picked
            planned = outgoing.plan(want)
            assert planned is not None
            offset, size = planned
            plain = source.read(offset, size)
            left -= size
            if name != RAW:
                self._encode(name, offset, plain)
            elif not self._encoding:  # chunks go in their order
                self._put(offset, plain, None, now)
            else:
                self._encoding.append(
                    _Encoding(outgoing.epoch, RAW, offset, plain, size, now, is_done=True)
                )
        while self._encoding and self._may_put(source, now):
            done = self._encoding.popleft()
            self._put(done.offset, done.plain, done.encoded, now)
        if self._hashed >= source.total:
            self._finish(self._hasher.digest())
        return left <= 0

    @property
    def _planned(self) -> int:
        """Wire bytes that are planned and not sent."""
        return sum(chunk.wire for chunk in self._encoding)

    def _pick(self, outgoing: Outgoing, source: Source) -> tuple[str, int] | None:
        """What the next chunk goes by, and how many plain bytes it should have; None: not now."""
        pace, weighing = self.peering.pace, self._weighing
        if weighing is None:
            return RAW, pace.chunk
        rate, layout = pace.likely, source.buffer(outgoing.next)
        if self._codec == MIXED and (rate is None or pace.is_new):
            # What goes as it is shows what the link is like. Meanwhile nothing takes CPU time.
            if pace.in_flight or self._encoding:
                return None
            return RAW, pace.probe
        ahead = self._ahead(weighing, source, rate or SLOW)
        name = weighing.pick(
            layout, min(ENCODED, source.total - outgoing.next), rate or SLOW, ahead
        )
        if name == RAW:
            return RAW, pace.chunk
        has_time = max(ahead.wire, ahead.encoding) > weighing.takes(name, layout, ENCODED)
        if has_time and self._codec == MIXED and not self._is_sampled:
            self._is_sampled = True
            self._sample(weighing)
        most = ENCODED if has_time else ENCODED // 4  # the link waits for it
        return name, min(most, int(pace.chunk / max(weighing.ratio(name, layout), 0.01)))

    def _ahead(self, weighing: Weighing, source: Source, rate: float) -> Ahead:
        busy = [chunk for chunk in self._encoding if not chunk.is_done]
        seconds = sum(
            weighing.takes(chunk.name, source.buffer(chunk.offset), len(chunk.plain))
            for chunk in busy
        )
        wire = self.peering.pace.busy(rate, self._planned)
        return Ahead(wire, seconds / weighing.threads, len(busy))

    def _may_put(self, source: Source, now: float) -> bool:
        """Whether the chunk that is due may go. It may have come out larger than was likely, and
        those before it too: then it waits until some of them have arrived."""
        if self._encoding[0].is_done:
            return self.peering.pace.has_room()
        return self._is_late(source, now)

    def _is_late(self, source: Source, now: float) -> bool:
        """Whether the chunk that is due is there sooner as it is: the link is faster than was
        thought."""
        chunk, weighing, pace = self._encoding[0], self._weighing, self.peering.pace
        rate = pace.likely
        if weighing is None or rate is None or pace.in_flight:
            return False
        layout, waits = source.buffer(chunk.offset), now - chunk.since
        return weighing.is_late(layout, len(chunk.plain), chunk.name, rate, waits)

    def _encode(self, name: str, offset: int, plain: memoryview) -> None:
        assert self._source is not None and self.delivery.outgoing is not None
        layout, weighing = self._source.layout(offset, len(plain)), self._weighing
        assert weighing is not None
        likely = int(weighing.ratio(name, layout) * len(plain))
        epoch, now = self.delivery.outgoing.epoch, time.monotonic()
        encoding = _Encoding(epoch, name, offset, plain, likely, now)
        self._encoding.append(encoding)

        def work() -> tuple[Any, float]:
            try:
                started = time.perf_counter()
                if self._codec == MIXED:
                    encoded: Any = mixed.encode(plain, layout, name)
                else:
                    encoded = CODECS[name].encode(plain, layout)
                return encoded, time.perf_counter() - started
            except BaseException as error:  # foreign code
                return _Unencoded(error), 0.0

        def done(result: Any) -> None:
            encoded, seconds = result
            encoding.is_done = True
            if isinstance(encoded, _Unencoded):
                self._unencoded(name, encoded.error)
                return
            encoding.encoded = encoded
            encoding.wire = len(plain) if encoded is None else len(encoded)
            weighing.saw(Sight(name, layout, len(plain), encoding.wire, seconds))

        self._lanes.workers.run(work, done)

    def _unencoded(self, name: str, error: BaseException) -> None:
        """A codec that fails saves nothing: this chunk goes plain, and no more goes by it."""
        if self._weighing is not None and self._weighing.failed(name):
            logger.warning("%s has failed on a chunk: plain bytes go instead", name, exc_info=error)

    def _put(self, offset: int, plain: memoryview, encoded: Any, now: float) -> None:
        outgoing = self.delivery.outgoing
        assert outgoing is not None
        size = len(plain)
        is_last = offset + size == outgoing.total
        if is_last:  # FINISH follows at once
            self._hash(offset, plain)
        is_encoded = encoded is not None and len(encoded) < size
        body = encoded if is_encoded else plain
        if encoded is not None and self._weighing is not None and self.peering.pace.was_idle(now):
            self._weighing.starved()
        header = encode(Chunk(self.delivery.id, offset, size, is_encoded))
        connection = self.peering.connection
        if connection is None or not self._lanes.transport.send(connection, header, body):
            return  # the link is gone: `unlinked` follows
        outgoing.sent(offset, size, len(body), now)
        if not is_last:  # after it is sent: ZeroMQ's thread goes on meanwhile
            self._hash(offset, plain)

    def _hash(self, offset: int, plain: memoryview) -> None:
        end = offset + len(plain)
        if offset <= self._hashed < end:  # in order: one before it may not have gone
            self._hasher.update(plain[self._hashed - offset :])
            self._hashed = end

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
