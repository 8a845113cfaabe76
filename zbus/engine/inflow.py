"""The I/O of one value on its way in: its spec read, memory taken, filled, checked, built.

Runs in the I/O thread. `protocol.delivery.Receiving` says what is to be done when; here it is done.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, ClassVar, Protocol

import xxhash

from .. import codecs
from ..codecs import CODECS, Codec
from ..errors import InternalError, RemoteProtocolError, TransferError, TransferRefused, ZBusError
from ..net.frames import Body
from ..net.places import Peering
from ..operation import size_text
from ..protocol.budget import Ticket
from ..protocol.delivery import Do, ReceiveState, Receiving
from ..protocol.fields import clip
from ..protocol.messages import (
    DIGEST,
    Chunk,
    Grant,
    JobOffer,
    Loan,
    Offer,
    Refused,
    ShmDecline,
    Stored,
)
from ..values.layout import Layout
from ..values.streams import ValueSink
from .flow import Flow, Lanes
from .outflow import HEAVY, MANY
from .shm_lane import SOON, Unreadable
from .workers import outcome

logger = logging.getLogger(__name__)

SMALL = 64 * 1024  # bytes of memory that nobody waits for


class Sink(Protocol):
    """Where the plain bytes of a value go, and what becomes of them."""

    memory: int  # bytes that it takes, once its spec is read
    parts: int  # of which it is built
    converted: int  # bytes that are worked on then, and are not the value's own memory
    needs_torch: bool

    def view(self, offset: int, size: int) -> memoryview | None:
        """That range's own memory; None if it lies in several pieces."""

    def write(self, offset: int, data: memoryview) -> None: ...
    def layout(self, offset: int, size: int) -> Layout: ...

    def digest(self, offset: int, size: int, hasher: Any) -> None:
        """Feed the stored range to the hasher."""

    def expect_head(self, head: int) -> None:
        """A spec comes first in the stream, `head` bytes of it."""

    def read_spec(self, spec: bytes | None) -> int:
        """Read the spec, or that which came first; returns the plain bytes that follow it."""

    def allocate(self) -> None:
        """Make the memory of the value; the stream goes there from now on."""

    def fill(self, body: bytes) -> None:
        """Take the whole stream at once."""

    def value(self) -> Any:
        """The value, once every byte is there."""


class Taker(Protocol):
    """Who gets it: an operation, a job, a measurement. Told how it ends, once."""

    def begins(self, total: int) -> None:
        """Its spec is read: so many plain bytes are to come."""

    def moved(self, received: int) -> None:
        """So many of them are here."""

    def delivered(self, value: Any) -> None: ...
    def undeliverable(self, error: ZBusError, resumable: bool) -> None: ...


class Inflow(Flow[Receiving]):
    """One value on its way in.

    Args:
        lanes: What carries it.
        peering: The session.
        delivery: Its state.
        sink: Where it goes.
        taker: Who gets it.
    """

    def __init__(
        self, lanes: Lanes, peering: Peering, delivery: Receiving, sink: Sink, taker: Taker
    ) -> None:
        super().__init__(lanes, peering, delivery, taker)
        self._taker, self._sink = taker, sink
        self._codec: Codec = CODECS["raw"]
        self._body: bytes | None = None  # of one that rode inside its offer
        self._ticket: Ticket | None = None
        self._hasher = xxhash.xxh3_128()
        self._for_good = False  # no value of this session can be read out of memory
        self._loan: Loan | None = None

    # --- its offer ----------------------------------------------------------------------------

    def take(self, offer: Offer | JobOffer, body: bytes) -> None:
        """Look at the offer; take it, or refuse it with the reason."""
        error = _unusable(offer, body)
        if error is not None:
            self.failed(error)
            return
        self._codec = CODECS[offer.codec]
        self._body = body if offer.inline else None
        self._loan = offer.loan
        if self.peering.shares and not self.peering.said_near and not offer.inline:
            self._lanes.shm.say_near(self.peering, makes_key=True)
        if offer.head:
            self._sink.expect_head(offer.head)
            self.do(self.delivery.begin())
        else:
            self._read_spec(offer.spec)

    def _read_spec(self, spec: bytes | None) -> None:
        sink = self._sink  # which is another one here as soon as this has ended

        def work() -> bool:
            if sink.read_spec(spec) + self.delivery.head != self.delivery.total:
                raise RemoteProtocolError("an OFFER whose total is not what its spec says")
            return self._build_at_once()

        def then(is_built: bool) -> None:
            self._taker.begins(self.delivery.total - self.delivery.head)
            if is_built:
                self.do(self.delivery.built_at_once())
            else:
                self.do(self.delivery.begin() if spec is not None else self.delivery.spec())

        self._work(work, then, at_once=spec is not None)

    def _build_at_once(self) -> bool:
        """Build it where that is sooner done than said: most values are small."""
        sink, body = self._sink, self._body
        is_small = sink.memory <= SMALL and sink.parts < MANY
        if body is None or not (is_small and self._is_quick):
            return False
        sink.allocate()
        sink.fill(body)
        self._value = sink.value()
        return True

    @property
    def _is_quick(self) -> bool:
        # The first tensor may import torch, which takes seconds outside of ComfyUI.
        return "torch" in sys.modules or not self._sink.needs_torch

    # --- its memory ---------------------------------------------------------------------------

    def _ask_memory(self) -> None:
        budget, memory = self._lanes.budget, self._sink.memory
        if memory <= SMALL:  # it takes less than saying that it waits
            self.do(self.delivery.given())
            return
        if not budget.fits(memory):
            self.failed(
                TransferRefused(
                    f"the value needs {size_text(memory)}, "
                    f"{size_text(budget.cap)} may be taken here",
                    remedy="Free memory on the receiving side, or send fewer images at once",
                )
            )
            return
        self._ticket = budget.ticket(memory, lambda: self.do(self.delivery.given()))
        self._ticket.ask()
        if self.delivery.waits_for_memory:
            self._hold()

    def _hold(self) -> None:
        """It is wanted, and waits: the sender is told, or it would look as if nobody was there."""
        self.peering.session.send(Grant(self.delivery.id, 0, 0))

    @property
    def has_memory(self) -> bool:
        """Whether it has taken what it needs of the budget."""
        return self._ticket is not None and self._ticket.is_given

    def _allocate(self) -> None:
        sink, body = self._sink, self._body

        def work() -> None:
            sink.allocate()
            if body is not None:
                sink.fill(body)

        def then(_: None) -> None:
            is_here = self._body is not None
            self.do(self.delivery.filled() if is_here else self.delivery.allocated())

        self._work(work, then, at_once=self._is_quick)

    def _grant(self) -> None:
        self._lanes.grant_due(self)

    def grant(self) -> None:
        """Say the GRANT that is due, if one is: once after each batch of input."""
        if self.delivery.waits_for_memory:
            self._hold()
        if self.delivery.takes_bytes and self.peering.connection is not None:
            grant = self.delivery.incoming.grant()
            if grant is not None:
                self.peering.session.send(grant)

    def linked(self) -> None:
        """A connection stands again: say what is here."""
        self.delivery.linked()
        self._grant()

    # --- chunks ---------------------------------------------------------------------------------

    def chunk(self, chunk: Chunk, body: Body) -> None:
        """A chunk has come.

        Raises:
            RemoteProtocolError: It was not granted, or its body is not what its header says.
        """
        if not self.delivery.arrive(chunk):
            return
        if chunk.encoded:
            self._decode(chunk, body)
            return
        view = self._sink.view(chunk.offset, chunk.size)
        if view is not None:
            length = body.into(view)
        else:
            data = body.take()
            length = len(data)
            if length == chunk.size:
                self._sink.write(chunk.offset, memoryview(data))
        if length != chunk.size:
            raise RemoteProtocolError(f"a CHUNK of {length} bytes that promised {chunk.size}")
        self._store(chunk)

    def _decode(self, chunk: Chunk, body: Body) -> None:
        frame, codec, sink = body.frame(), self._codec, self._sink
        layout = sink.layout(chunk.offset, chunk.size)

        def work() -> None:
            try:
                decoded: Any = codec.decode(frame.buffer, chunk.size, layout)
                sink.write(chunk.offset, memoryview(decoded).cast("B"))
            except BaseException as error:  # foreign code, on foreign bytes
                what = f"a chunk could not be decoded: {InternalError.of(error).what}"
                raise TransferError(what, remedy="Send it with the quality raw") from error

        def failed(error: ZBusError) -> None:
            logger.warning("a chunk could not be decoded", exc_info=error.__cause__)

        self._work(work, lambda _: self._store(chunk), failed=failed)

    def _store(self, chunk: Chunk) -> None:
        for offset, size in self.delivery.stored(chunk.offset, chunk.size):
            self._sink.digest(offset, size, self._hasher)
        self._grant()
        self._taker.moved(max(0, self.delivery.incoming.received - self.delivery.head))
        if self.delivery.is_head_whole:
            self._read_spec(None)
        else:
            self.do(self.delivery.look())

    def finish(self, digest: bytes) -> None:
        """The digest of the whole has come."""
        self.do(self.delivery.finish(digest))

    def _compare(self) -> None:
        self.do(self.delivery.compared(self._hasher.digest()))

    # --- read out of the sender's memory --------------------------------------------------------

    def _read(self) -> None:
        loan, peering, sink, delivery = self._loan, self.peering, self._sink, self.delivery
        assert loan is not None
        if not peering.shares:
            self._unreadable(for_good=True)
            return

        def is_wanted() -> bool:
            return not delivery.ended

        def progress(read: int) -> None:
            self._lanes.post(lambda: self._has_read(read))

        def work() -> Unreadable | None:
            lanes, it = self._lanes, (delivery.id, loan, delivery.total, sink)
            try:
                lanes.shm.read(peering, *it, lanes.workers.share, is_wanted, progress)
            except Unreadable as error:
                return error
            return None

        def done(result: Unreadable | ZBusError | None) -> None:
            if delivery.ended:
                return
            if isinstance(result, ZBusError):
                self._unreadable(for_good=True)
            elif isinstance(result, Unreadable):
                name = peering.name
                logger.info("a value of %s comes over the socket: its memory is %s", name, result)
                self._unreadable(result.for_good)
            else:
                self._taker.moved(delivery.total)
                self.do(delivery.read())

        if delivery.total <= SOON:
            done(outcome(work))
        else:
            self._lanes.workers.run(work, done)

    def _has_read(self, received: int) -> None:
        if self.delivery.state is ReceiveState.READING:
            self._taker.moved(received)
            self.do(self.delivery.has_read(received))

    def _unreadable(self, for_good: bool) -> None:
        self._for_good = for_good
        self.do(self.delivery.unreadable())

    def _decline(self) -> None:
        self._loan = None
        self.peering.shares = self.peering.shares and not self._for_good
        self.peering.session.send(ShmDecline(self.delivery.id, self._for_good))

    # --- its end ----------------------------------------------------------------------------------

    def _build(self) -> None:
        def then(value: Any) -> None:
            self._value = value
            self.do(self.delivery.built())

        is_light = self._sink.converted < HEAVY and self._sink.parts < MANY
        self._work(self._sink.value, then, at_once=is_light)

    def _stored(self) -> None:
        self.peering.session.send(Stored(self.delivery.id))

    def _refuse(self) -> None:
        why = clip(str(self.delivery.error))
        self.peering.session.send(Refused(self.delivery.id, why))

    def _release(self) -> None:
        self._sink = ValueSink()
        self._body = None
        self._lanes.ended(self)
        if self._ticket is not None:
            self._ticket.release()

    DOING: ClassVar = {
        Do.ASK_MEMORY: _ask_memory,
        Do.ALLOCATE: _allocate,
        Do.GRANT: _grant,
        Do.READ: _read,
        Do.DECLINE: _decline,
        Do.COMPARE: _compare,
        Do.BUILD: _build,
        Do.STORED: _stored,
        Do.REFUSE: _refuse,
        Do.RELEASE: _release,
        Do.TELL: Flow._tell,
    }


def _unusable(offer: Offer | JobOffer, body: bytes) -> ZBusError | None:
    """Why that offer cannot be taken by anybody here."""
    if offer.codec not in codecs.available():
        return RemoteProtocolError(f"no codec {offer.codec!r} here")
    if offer.digest != DIGEST:
        return RemoteProtocolError(f"no digest {offer.digest!r} here")
    if offer.head > offer.total:
        return RemoteProtocolError("an OFFER whose spec is longer than the whole")
    if offer.inline and (offer.head or len(body) != offer.total):
        return RemoteProtocolError(f"an OFFER of {offer.total} bytes with {len(body)} inside")
    if offer.loan is not None and (offer.codec != "raw" or offer.head or offer.inline):
        return RemoteProtocolError("an OFFER that lends what is to come in chunks, or inside")
    return None
