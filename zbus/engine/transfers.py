"""The bytes of the transfers under way: reads, encodes, sends; receives, decodes, stores.

Runs in the I/O thread; codecs run in the worker pool. `transfer` says which range goes next and
`pace` how much may be under way; here those ranges meet the memory they mean. Chunks are views of
the sender's tensor, and land at their offset in the receiver's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import xxhash

from ..errors import DigestMismatch, RemoteProtocolError, TransferError, ZBusError
from ..net import memory
from ..net.frames import Body
from ..net.places import Peering
from ..net.transport import Transport
from ..protocol.identity import SessionKey
from ..protocol.messages import Chunk, Finish, Grant, ShmDecline, ShmOffer, ShmReady, encode
from .flows import Encoding, Inflow, Outflow
from .shm_lane import LEAST, ShmLane, Unreadable, digest

logger = logging.getLogger(__name__)

ENCODES_AHEAD = 8  # chunks of one transfer in the pool at once
TURN = 8 << 20  # bytes that one turn sends before it looks at its input again


class Transfers:
    """All transfers of one peer.

    Args:
        transport: Sends the chunks.
        pool: Runs the codecs.
        post: Hands a call to the I/O thread, from any thread.
        sharing: The same-host lane.
    """

    def __init__(
        self,
        transport: Transport,
        pool: Executor,
        post: Callable[[Callable[[], None]], None],
        sharing: ShmLane,
    ) -> None:
        self._transport, self._pool, self._post = transport, pool, post
        self._shm = sharing
        self._out: dict[tuple[SessionKey, int], Outflow] = {}
        self._in: dict[tuple[SessionKey, int], Inflow] = {}
        self._due: dict[Inflow, None] = {}  # those that may have a GRANT to say

    # --- beginning and ending -----------------------------------------------------------------

    def send(self, flow: Outflow) -> None:
        """Begin to send; chunks go when the peer grants."""
        self._out[flow.peering.key, flow.outgoing.id] = flow
        flow.peering.transfers += 1

    def receive(self, flow: Inflow) -> None:
        """Begin to receive: the GRANT goes out with this turn."""
        self._in[flow.peering.key, flow.incoming.id] = flow
        flow.peering.transfers += 1
        self._due[flow] = None
        if flow.peering.shares and flow.codec.name == "raw" and flow.incoming.total >= LEAST:
            near = None if flow.head else self._shm.near(flow.peering, flow.incoming.id)
            if near is not None:
                flow.peering.session.send(near)

    def open(self, flow: Inflow, total: int) -> None:
        """The head was read: grant the rest."""
        flow.incoming.open(total)
        self._due[flow] = None
        self._look_complete(flow)

    def drop(self, peering: Peering, transfer: int) -> None:
        """Forget a transfer, in either direction. Its late chunks are ignored."""
        out = self._out.pop((peering.key, transfer), None)
        if out is not None:
            out.dropped = True
            out.outgoing.abandon()
            peering.transfers -= 1
            if out.shared:
                self._permit()
        into = self._in.pop((peering.key, transfer), None)
        if into is not None:
            into.dropped = True
            peering.transfers -= 1

    def knows(self, peering: Peering, transfer: int) -> bool:
        """Whether a transfer of that id is under way, in either direction."""
        return (peering.key, transfer) in self._out or (peering.key, transfer) in self._in

    def session_down(self, peering: Peering, error: ZBusError) -> None:
        """The session has ended, and with it its transfers."""
        for flow in [*self._of(peering, self._out), *self._of(peering, self._in)]:
            flow.on_failed(error)
        for key in [k for k in (*self._out, *self._in) if k[0] == peering.key]:
            self.drop(peering, key[1])

    def unlinked(self, peering: Peering) -> None:
        """The connection is gone: nothing goes until the peer has said what it has."""
        for flow in self._of(peering, self._out):
            flow.outgoing.unlinked()

    def linked(self, peering: Peering) -> None:
        """A connection stands again: say what is here."""
        for flow in self._of(peering, self._in):
            flow.incoming.linked()
            self._due[flow] = None

    def _of(self, peering: Peering, flows: dict[tuple[SessionKey, int], Any]) -> list[Any]:
        return [flow for key, flow in flows.items() if key[0] == peering.key]

    # --- sending ------------------------------------------------------------------------------

    def grant(self, peering: Peering, grant: Grant, now: float) -> None:
        """The peer says what it has and takes."""
        flow = self._out.get((peering.key, grant.transfer))
        if flow is None:
            return
        if flow.shared and grant.received:  # by another way than chunks
            flow.on_progress(min(grant.received, flow.source.total))
            return
        flow.outgoing.grant(grant, now)
        if flow.may_share and not flow.shared and grant.limit == flow.source.total:
            self._share(flow)
        flow.on_progress(flow.outgoing.received)

    def stored(self, peering: Peering, transfer: int) -> None:
        """The peer has the value."""
        flow = self._out.get((peering.key, transfer))
        if flow is not None:
            self.drop(peering, transfer)
            flow.on_stored()

    def refused(self, peering: Peering, transfer: int, error: ZBusError) -> None:
        """The peer will not take the value."""
        flow = self._out.get((peering.key, transfer))
        if flow is not None:
            self.drop(peering, transfer)
            flow.on_failed(error)

    def pump(self, now: float) -> bool:
        """Send what may go; True if more could go at once."""
        more = False
        for flow in list(self._out.values()):
            if flow.peering.connection is not None:
                more = self._pump(flow, now) or more
        return more

    def _pump(self, flow: Outflow, now: float) -> bool:
        if flow.shared:
            return False
        left = TURN
        while left > 0 and len(flow.encoding) < ENCODES_AHEAD:
            planned = flow.outgoing.plan()
            if planned is None:
                break
            offset, size = planned
            plain = flow.source.read(offset, size)
            left -= size
            if flow.codec.name == "raw":
                self._put(flow, offset, plain, None, now)
            else:
                self._encode(flow, offset, plain)
        while flow.encoding and flow.encoding[0].future.done():
            done = flow.encoding.popleft()
            if done.epoch == flow.outgoing.epoch:
                # A codec that fails on a chunk saves nothing on it: the plain bytes go.
                encoded = None if done.future.exception() else done.future.result()
                self._put(flow, done.offset, done.plain, encoded, now)
        if flow.hashed >= flow.source.total and not flow.finished:
            flow.finished = True
            digest = flow.hasher.digest()
            flow.peering.session.send(Finish(flow.outgoing.id, digest))
        return left <= 0

    def _encode(self, flow: Outflow, offset: int, plain: memoryview) -> None:
        layout = flow.source.layout(offset, len(plain))
        future = self._pool.submit(flow.codec.encode, plain, layout)
        flow.encoding.append(Encoding(flow.outgoing.epoch, offset, plain, future))
        future.add_done_callback(lambda _: self._post(_nothing))

    def _put(self, flow: Outflow, offset: int, plain: memoryview, encoded: Any, now: float) -> None:
        size = len(plain)
        if offset + size > flow.hashed:
            flow.hasher.update(plain[flow.hashed - offset :])
            flow.hashed = offset + size
        is_encoded = encoded is not None and len(encoded) < size
        body = encoded if is_encoded else plain
        header = encode(Chunk(flow.outgoing.id, offset, size, is_encoded))
        if flow.peering.connection is None or not self._transport.send(
            flow.peering.connection, header, body
        ):
            return  # the link is gone: `unlinked` follows
        flow.outgoing.sent(offset, size, len(body), now)
        flow.wire += len(body)

    # --- sending: the peer reads it itself ----------------------------------------------------

    def near(self, peering: Peering, message: ShmReady) -> None:
        """The peer, which has not granted it yet, could read a value itself."""
        flow = self._out.get((peering.key, message.transfer))
        if flow is not None and peering.shares and flow.codec.name == "raw":
            flow.may_share = self._shm.is_near(peering, message)

    def _share(self, flow: Outflow) -> None:
        pieces = flow.source.pieces
        if flow.outgoing.next:
            return
        shared = self._shm.shared(flow.peering, flow.outgoing.id, pieces)
        if shared is None:
            return
        flow.shared = True
        self._permit()
        flow.peering.session.send(shared)

        def done(future: Future[bytes | None]) -> None:
            self._post(lambda: self._digested(flow, future.result()))

        self._pool.submit(digest, pieces, lambda: not flow.dropped).add_done_callback(done)

    def _digested(self, flow: Outflow, digest: bytes | None) -> None:
        if digest is not None and not flow.dropped and not flow.finished:
            flow.finished = True
            flow.peering.session.send(Finish(flow.outgoing.id, digest))

    def _permit(self) -> None:
        memory.permit({f.peering.session.peer.pid for f in self._out.values() if f.shared})

    def unshared(self, peering: Peering, message: ShmDecline) -> None:
        """The peer cannot read it: it gets chunks."""
        peering.shares = peering.shares and not message.for_good
        flow = self._out.get((peering.key, message.transfer))
        if flow is not None:
            flow.shared = flow.may_share = False
            self._permit()

    # --- receiving ----------------------------------------------------------------------------

    def chunk(self, peering: Peering, chunk: Chunk, body: Body | None) -> None:
        """A chunk has come.

        Raises:
            RemoteProtocolError: It was not granted, or its body is not what its header says.
        """
        flow = self._in.get((peering.key, chunk.transfer))
        if flow is None:
            return  # of a cancelled transfer
        if body is None:
            raise RemoteProtocolError("a CHUNK without a body")
        if flow.reading:
            raise RemoteProtocolError("a CHUNK of what is SHM_OFFER")
        if not flow.incoming.arrive(chunk):
            return
        if chunk.encoded:
            self._decode(flow, chunk, body)
            return
        view = flow.sink.view(chunk.offset, chunk.size)
        if view is not None:
            length = body.into(view)
        else:
            data = body.take()
            length = len(data)
            if length == chunk.size:
                flow.sink.write(chunk.offset, memoryview(data))
        if length != chunk.size:
            raise RemoteProtocolError(f"a CHUNK of {length} bytes that promised {chunk.size}")
        self._store(flow, chunk)

    def _decode(self, flow: Inflow, chunk: Chunk, body: Body) -> None:
        frame = body.frame()
        layout = flow.sink.layout(chunk.offset, chunk.size)

        def work() -> None:
            decoded: Any = flow.codec.decode(frame.buffer, chunk.size, layout)
            flow.sink.write(chunk.offset, memoryview(decoded).cast("B"))

        def done(future: Future[None]) -> None:
            self._post(lambda: self._decoded(flow, chunk, future))

        self._pool.submit(work).add_done_callback(done)

    def _decoded(self, flow: Inflow, chunk: Chunk, future: Future[None]) -> None:
        if self._in.get((flow.peering.key, chunk.transfer)) is not flow:
            return
        error = future.exception()
        if error is None:
            self._store(flow, chunk)
        else:
            what = f"a chunk could not be decoded: {error}"
            flow.on_failed(TransferError(what, remedy="Send it with the quality raw"))

    def _store(self, flow: Inflow, chunk: Chunk) -> None:
        incoming = flow.incoming
        for offset, size in incoming.stored(chunk.offset, chunk.size):
            flow.sink.digest(offset, size, flow.hasher)
        self._due[flow] = None
        flow.on_progress(incoming.received)
        if flow.on_head is not None and incoming.received >= flow.head:
            on_head, flow.on_head = flow.on_head, None
            on_head()
        else:
            self._look_complete(flow)

    def finish(self, peering: Peering, message: Finish) -> None:
        """The digest of the whole has come."""
        flow = self._in.get((peering.key, message.transfer))
        if flow is not None:
            flow.digest = message.digest
            self._look_complete(flow)

    def _look_complete(self, flow: Inflow) -> None:
        if flow.digest is None or flow.on_head is not None or not flow.incoming.complete:
            return
        is_right = flow.hasher.digest() == flow.digest
        if flow.reading and not is_right:  # it was let go of meanwhile, or written to
            self._unshare(flow, for_good=False)
            return
        self.drop(flow.peering, flow.incoming.id)
        if is_right:
            flow.on_complete()
        else:
            flow.on_failed(
                DigestMismatch(
                    "what arrived is not what was sent", remedy="Send it again; check the memory"
                )
            )

    # --- receiving: read out of the sender's memory -------------------------------------------

    def shared(self, peering: Peering, message: ShmOffer) -> None:
        """The peer says where a value lies.

        Raises:
            RemoteProtocolError: It is not one that could be read so.
        """
        flow = self._in.get((peering.key, message.transfer))
        if flow is None:
            return  # of a cancelled transfer
        if flow.reading or flow.incoming.arrived or flow.head or flow.codec.name != "raw":
            raise RemoteProtocolError("a SHM_OFFER where chunks are due")
        flow.reading = True
        if not peering.shares:
            self._unshare(flow, for_good=True)
            return

        def progress(read: int) -> None:
            self._post(lambda: self._is_read(flow, read))

        def work() -> Any:
            total, is_wanted = flow.incoming.total, lambda: not flow.dropped
            return self._shm.read(peering, message, total, flow.sink, is_wanted, progress)

        def done(future: Future[Any]) -> None:
            self._post(lambda: self._was_read(flow, future))

        self._pool.submit(work).add_done_callback(done)

    def _is_read(self, flow: Inflow, read: int) -> None:
        if flow.reading and not flow.dropped:
            flow.incoming.reach(read)
            flow.on_progress(read)
            self._due[flow] = None

    def _was_read(self, flow: Inflow, future: Future[Any]) -> None:
        if flow.dropped:
            return
        try:
            flow.hasher = future.result()
        except Unreadable as error:
            name = flow.peering.name
            logger.info("a value of %s comes over the socket: its memory is %s", name, error)
            self._unshare(flow, error.for_good)
        except Exception:
            logger.exception("a fault in the same-host lane; please report it")
            self._unshare(flow, for_good=True)
        else:
            flow.incoming.reach(flow.incoming.total)
            flow.on_progress(flow.incoming.total)
            self._look_complete(flow)

    def _unshare(self, flow: Inflow, for_good: bool) -> None:
        flow.reading = False
        flow.peering.shares = flow.peering.shares and not for_good
        flow.hasher = xxhash.xxh3_128()
        flow.incoming.restart()
        flow.peering.session.send(ShmDecline(flow.incoming.id, for_good))
        self._due[flow] = None

    def grants(self) -> None:
        """Say the GRANTs that are due: once after each batch of input."""
        due, self._due = self._due, {}
        for flow in due:
            if (flow.peering.key, flow.incoming.id) not in self._in:
                continue
            grant = flow.incoming.grant()
            if grant is not None and flow.peering.connection is not None:
                flow.peering.session.send(grant)


def _nothing() -> None:
    """Only the waking counts: the pump looks at every future itself."""
