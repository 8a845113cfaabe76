"""The registry of all values on their way, in both directions: (session, id) -> flow.

Runs in the I/O thread. Every message that concerns a transfer, and every news of its session, is
for the one flow of that id; nobody else hears of it. A flow is here from its begin to its one end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from ..errors import RemoteProtocolError, TransferRefused, ZBusError
from ..net import memory
from ..net.frames import Body
from ..net.places import Peering
from ..net.transport import Transport
from ..protocol.budget import Budget
from ..protocol.delivery import Receiving
from ..protocol.identity import SessionKey
from ..protocol.messages import (
    Chunk,
    Finish,
    Grant,
    JobOffer,
    Offer,
    Refused,
    ShmDecline,
    ShmNear,
    Stored,
)
from ..values.streams import ValueSink
from .flow import Lanes
from .inflow import Inflow, Sink, Taker
from .outflow import Giver, Outflow
from .shm_lane import ShmLane
from .workers import Workers, outcome


class Transfers:
    """All transfers of one peer.

    Args:
        transport: Sends the chunks.
        workers: Run the codecs, and what else computes.
        post: Hands a call to the I/O thread, from any thread.
        shm: The same-host lane.
        budget: The memory that values on their way in may take.
        unsaid: Ends a session in which something that had to be said could not be.
    """

    def __init__(
        self,
        transport: Transport,
        workers: Workers,
        post: Callable[[Callable[[], None]], bool],
        shm: ShmLane,
        budget: Budget,
        unsaid: Callable[[Peering, ZBusError], None],
    ) -> None:
        mine = self._grant_due, self._permit, self._ended
        self._lanes = Lanes(transport, workers, shm, budget, post, unsaid, *mine)
        self._flows: dict[tuple[SessionKey, int], Outflow | Inflow] = {}
        self._due: dict[Inflow, None] = {}  # those that may have a GRANT to say

    # --- beginning and ending -----------------------------------------------------------------

    def send(self, peering: Peering, transfer: int, giver: Giver) -> Outflow:
        """Begin to send: `pack` a value, or `stream` its bytes, next."""
        flow = Outflow(self._lanes, peering, transfer, giver)
        self._add(flow)
        return flow

    def receive(
        self, peering: Peering, offer: Offer | JobOffer, expect: str, taker: Taker
    ) -> Inflow:
        """Begin to receive what is offered, of the kind `expect` or any: `take` it next.

        Raises:
            RemoteProtocolError: Its id is that of a transfer which is under way.
        """
        lent = offer.loan is not None
        delivery = Receiving(offer.operation, offer.total, offer.head, lent=lent)
        flow = Inflow(self._lanes, peering, delivery, ValueSink(expect), taker)
        self._add(flow)
        return flow

    def absorb(
        self, peering: Peering, transfer: int, total: int, window: int, sink: Sink, taker: Taker
    ) -> Inflow:
        """Begin to receive bytes without an offer, `window` of them granted ahead."""
        delivery = Receiving(transfer, total, window=window)
        flow = Inflow(self._lanes, peering, delivery, sink, taker)
        self._add(flow)
        flow.do(delivery.begin())
        return flow

    def _add(self, flow: Outflow | Inflow) -> None:
        key = flow.peering.key, flow.delivery.id
        if key in self._flows:
            raise RemoteProtocolError(f"the id {key[1]} of a transfer that is under way")
        self._flows[key] = flow
        flow.peering.transfers += 1

    def _ended(self, flow: Outflow | Inflow) -> None:
        if self._flows.pop((flow.peering.key, flow.delivery.id), None) is not None:
            flow.peering.transfers -= 1

    def __len__(self) -> int:
        return len(self._flows)

    def knows(self, peering: Peering, transfer: int) -> bool:
        """Whether a transfer of that id is under way, in either direction."""
        return (peering.key, transfer) in self._flows

    # --- sessions -----------------------------------------------------------------------------

    def unlinked(self, peering: Peering) -> None:
        """The connection is gone: nothing goes until the peer has said what it has."""
        for flow in self._of(peering):
            if isinstance(flow, Outflow):
                flow.unlinked()

    def linked(self, peering: Peering) -> None:
        """A connection stands again: say what is here."""
        for flow in self._of(peering):
            if isinstance(flow, Inflow):
                flow.linked()

    def session_down(self, peering: Peering, error: ZBusError) -> None:
        """The session has ended, and with it its transfers."""
        for flow in self._of(peering):
            flow.broken(error)

    def close(self, error: ZBusError) -> None:
        """The peer is closed, and with it everything."""
        for flow in list(self._flows.values()):
            flow.drop(error)

    def holders_without_link(self) -> list[str]:
        """Whose values have their memory here, and no link on which they could go on."""
        return sorted(
            {
                flow.peering.name
                for flow in self._flows.values()
                if isinstance(flow, Inflow) and flow.has_memory and not flow.peering.connection
            }
        )

    def _of(self, peering: Peering) -> list[Outflow | Inflow]:
        return [flow for key, flow in self._flows.items() if key[0] == peering.key]

    # --- messages -----------------------------------------------------------------------------

    def grant(self, peering: Peering, message: Grant, _: Body | None) -> None:
        flow = self._out(peering, message.transfer)
        if flow is not None:
            flow.guarded(lambda: flow.granted(message, time.monotonic()))

    def shm_near(self, peering: Peering, message: ShmNear, _: Body | None) -> None:
        # A fault in it costs the lane alone.
        peering.is_near = outcome(lambda: self._lanes.shm.is_near(peering, message)) is True

    def shm_decline(self, peering: Peering, message: ShmDecline, _: Body | None) -> None:
        flow = self._out(peering, message.transfer)
        if flow is not None:
            flow.guarded(lambda: flow.declined(message.for_good))

    def stored(self, peering: Peering, message: Stored, _: Body | None) -> None:
        flow = self._out(peering, message.transfer)
        if flow is not None:
            flow.guarded(lambda: flow.stored())

    def refused(self, peering: Peering, message: Refused, _: Body | None) -> None:
        flow = self._flows.get((peering.key, message.transfer))
        error = TransferRefused(message.why, peer=peering.name)
        if isinstance(flow, Outflow):
            flow.guarded(partial(flow.refused, error))
        elif flow is not None:  # whoever sends it gives it up
            flow.drop(error)

    def chunk(self, peering: Peering, message: Chunk, body: Body | None) -> None:
        flow = self._flows.get((peering.key, message.transfer))
        if flow is None:
            return  # of a cancelled transfer
        if body is None or not isinstance(flow, Inflow):
            raise RemoteProtocolError("a CHUNK without a body, or of what this side sends")
        flow.guarded(lambda: flow.chunk(message, body))

    def finish(self, peering: Peering, message: Finish, _: Body | None) -> None:
        flow = self._in(peering, message.transfer)
        if flow is not None:
            flow.guarded(lambda: flow.finish(message.digest))

    def _out(self, peering: Peering, transfer: int) -> Outflow | None:
        flow = self._flows.get((peering.key, transfer))
        return flow if isinstance(flow, Outflow) else None

    def _in(self, peering: Peering, transfer: int) -> Inflow | None:
        flow = self._flows.get((peering.key, transfer))
        return flow if isinstance(flow, Inflow) else None

    # --- each turn of the loop ------------------------------------------------------------------

    @property
    def may_move(self) -> bool:
        """Whether `pump` could have something to send."""
        return any(flow.moves for flow in self._outflows())

    def pump(self, now: float) -> bool:
        """Send what may go; True if more could go at once."""
        more = False
        for flow in [flow for flow in self._outflows() if flow.moves]:
            if flow.peering.connection is not None:
                # What has just failed may have been what another waited behind.
                more = flow.guarded(partial(flow.pump, now)) or flow.delivery.ended or more
        return more

    def grants(self) -> None:
        """Say the GRANTs that are due: once after each batch of input."""
        if not self._due:
            return
        due, self._due = self._due, {}
        for flow in due:
            flow.guarded(flow.grant)

    def _outflows(self) -> Iterator[Outflow]:
        return (flow for flow in self._flows.values() if isinstance(flow, Outflow))

    def _grant_due(self, flow: Inflow) -> None:
        self._due[flow] = None

    def _permit(self) -> None:
        memory.permit({flow.peering.session.peer.pid for flow in self._outflows() if flow.is_lent})
