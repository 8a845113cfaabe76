"""Round trips and throughput, for zbus-ping: asked for on one side, served on the other.

The blocks are made up by the sender and dropped by the receiver, chunk by chunk, and verified by
their digest; neither side holds more than a window of them. Runs in the I/O thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..errors import Cancelled, LinkLost, RemoteProtocolError, TransferRefused, ZBusError
from ..net.frames import Body
from ..net.places import DialTarget, Peering
from ..protocol.fields import clip
from ..protocol.identity import SessionKey
from ..protocol.messages import Hello, Measure, Pong, Refused
from ..values.streams import DropSink, PatternSource
from .context import Context
from .inflow import Inflow
from .outflow import Outflow
from .wrapping import Wrapped

WINDOW = 64 << 20  # bytes granted ahead; nothing is held
MAX_BLOCKS = 4  # measured at once over one session, each way

_End = Callable[["ZBusError | None"], None]


@dataclass(eq=False)
class _Ask:
    target: DialTarget
    peering: Peering | None
    future: Future[float]
    flow: Outflow | Inflow | None = None  # of a block


class Measuring:
    """What zbus-ping asks of a link, on both sides."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._meetings: list[tuple[DialTarget, Future[Hello]]] = []
        self._pings: dict[tuple[SessionKey, int], tuple[float, _Ask]] = {}
        self._asks: list[_Ask] = []
        self._blocks: Counter[SessionKey] = Counter()  # that this side has asked for, by session
        self._served: Counter[SessionKey] = Counter()  # and that it was asked for

    # --- asking -------------------------------------------------------------------------------

    def meet(self, target: DialTarget) -> Future[Hello]:
        """The peer's HELLO, as soon as a session with it stands."""
        future: Future[Hello] = Future()
        peering = target.peering
        if peering is not None and peering.connection is not None:
            future.set_result(peering.session.peer)
        elif target.dial.given_up is not None:
            future.set_exception(target.dial.given_up)
        else:
            self._meetings.append((target, future))
        return future

    def ping(self, target: DialTarget) -> Future[float]:
        """One round trip, in seconds, from I/O thread to I/O thread."""
        ask, peering = self._ask(target)
        if peering is not None:
            now = time.monotonic()
            token = peering.session.ping(now)
            self._pings[peering.key, token] = now, ask
        return ask.future

    def block(self, target: DialTarget, direction: str, size: int) -> Future[float]:
        """The seconds that a verified block of `size` bytes takes, "up" or "down"."""
        ask, peering = self._ask(target)
        link = self._context.channels.links.get(peering.key) if peering is not None else None
        if peering is None or link is None:
            return ask.future
        key = peering.key
        if self._blocks[key] >= MAX_BLOCKS:
            self._end(ask, _too_many(peering))
            return ask.future
        self._blocks[key] += 1
        transfer, began = link.new_operation(), time.monotonic()
        peering.session.send(Measure(transfer, direction, size))

        def end(error: ZBusError | None) -> None:
            _count_down(self._blocks, key)
            self._end(ask, error or time.monotonic() - began)

        give = self._send if direction == "up" else self._receive
        ask.flow = give(peering, transfer, size, end)
        return ask.future

    def give_up(self, future: Future[Any], why: str) -> None:
        """Nobody waits for that any more: what moves for it is dropped, on both sides."""
        error = Cancelled(why)
        for ask in [ask for ask in self._asks if ask.future is future]:
            if ask.flow is None or ask.peering is None:
                self._end(ask, error)
            else:
                ask.peering.session.send(Refused(ask.flow.delivery.id, clip(why)))
                ask.flow.drop(error)
        for meeting in [meeting for meeting in self._meetings if meeting[1] is future]:
            self._meetings.remove(meeting)
            future.set_exception(error)

    def _ask(self, target: DialTarget) -> tuple[_Ask, Peering | None]:
        peering = target.peering
        ask = _Ask(target, peering, Future())
        self._asks.append(ask)
        if peering is None or not peering.session.is_linked:
            error = target.dial.problem or LinkLost(
                "the link is gone", peer=str(target.address), remedy="Try again"
            )
            self._end(ask, error)
        return ask, peering

    def _end(self, ask: _Ask, result: float | ZBusError) -> None:
        if ask in self._asks:
            self._asks.remove(ask)
            if isinstance(result, ZBusError):
                ask.future.set_exception(result)
            else:
                ask.future.set_result(result)

    # --- serving ------------------------------------------------------------------------------

    def asked(self, peering: Peering, message: Measure, _: Body | None) -> None:
        """The peer measures: drop what it sends, or make up what it wants.

        Raises:
            RemoteProtocolError: It measures more at once than any peer does, or one block twice.
        """
        key = peering.key
        is_known = self._context.transfers.knows(peering, message.transfer)
        if self._served[key] >= MAX_BLOCKS or is_known:
            raise RemoteProtocolError("too many measurements at once, or one twice")
        self._served[key] += 1

        def end(_: ZBusError | None) -> None:
            # Served for the peer, which knows by itself how it ended.
            _count_down(self._served, key)

        if message.direction == "down":
            self._send(peering, message.transfer, message.size, end)
        else:
            self._receive(peering, message.transfer, message.size, end)

    def _send(self, peering: Peering, transfer: int, size: int, end: _End) -> Outflow:
        flow = self._context.transfers.send(peering, transfer, _Block(end))
        flow.stream(PatternSource(size))
        return flow

    def _receive(self, peering: Peering, transfer: int, size: int, end: _End) -> Inflow:
        sink, block = DropSink(), _Block(end)
        return self._context.transfers.absorb(peering, transfer, size, WINDOW, sink, block)

    # --- told by the engine -------------------------------------------------------------------

    def linked(self, peering: Peering) -> None:
        for meeting in [m for m in self._meetings if m[0] is peering.place]:
            self._meetings.remove(meeting)
            meeting[1].set_result(peering.session.peer)

    def pong(self, peering: Peering, message: Pong, _: Body | None) -> None:
        sent, ask = self._pings.pop((peering.key, message.token), (0.0, None))
        if ask is not None:
            self._end(ask, time.monotonic() - sent)

    def session_down(self, peering: Peering, error: ZBusError) -> None:
        for ask in [a for a in self._asks if a.peering is peering]:
            self._end(ask, error)
        for key in [k for k in self._pings if k[0] == peering.key]:
            del self._pings[key]
        self._blocks.pop(peering.key, None)
        self._served.pop(peering.key, None)

    def place_failed(self, place: DialTarget, error: ZBusError) -> None:
        for meeting in [m for m in self._meetings if m[0] is place]:
            self._meetings.remove(meeting)
            meeting[1].set_exception(error)

    def close(self, error: ZBusError) -> None:
        for ask in list(self._asks):
            self._end(ask, error)
        for _, future in self._meetings:
            future.set_exception(error)
        self._meetings.clear()


class _Block:
    """A made-up block on its way: see `Giver` and `Taker`."""

    def __init__(self, end: _End) -> None:
        self._end = end

    def offer(self, wrapped: Wrapped) -> None:
        """The MEASURE has said it."""

    def begins(self, total: int) -> None: ...

    def moved(self, received: int) -> None: ...

    def delivered(self, value: Any) -> None:
        self._end(None)

    def undeliverable(self, error: ZBusError, resumable: bool) -> None:
        self._end(error)


def _count_down(counter: Counter[SessionKey], key: SessionKey) -> None:
    """One less; of a session that is over nothing is counted."""
    if counter[key] > 1:
        counter[key] -= 1
    else:
        del counter[key]


def _too_many(peering: Peering) -> TransferRefused:
    return TransferRefused(
        f"{MAX_BLOCKS} blocks are being measured on this link already",
        peer=peering.name,
        remedy="Try again when they are done",
    )
