"""From an offer to the caller's value: its spec checked, memory taken, filled, built."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from . import codecs, payload
from .bulk import Inflow
from .codecs import CODECS
from .errors import Mismatch, RemoteProtocolError, TransferRefused, ZBusError
from .messages import DIGEST, Offer, Refused, Stored, clip
from .operation import size_text
from .parts import Parts, Running
from .places import Peering
from .seats import Matched
from .sending import HEAVY
from .streams import ValueSink
from .transfer import Incoming
from .unpack import Unpacker


class Receiving:
    """One value on its way in.

    Args:
        event: The receive and its offer.
        on_value: Called with the value when it is whole and verified.
    """

    def __init__(
        self,
        parts: Parts,
        running: Running,
        peering: Peering,
        event: Matched,
        on_value: Callable[[Any], None],
    ) -> None:
        self._parts, self._running, self._peering = parts, running, peering
        self._offer: Offer = event.offer
        self._body = event.body
        self._on_value = on_value
        self._sink = ValueSink()
        self._flow: Inflow | None = None

    def begin(self) -> None:
        """Look at the offer; take it, or refuse it with the reason."""
        offer = self._offer
        if offer.codec not in codecs.available():
            self._refuse(RemoteProtocolError(f"no codec {offer.codec!r} here"))
        elif offer.digest != DIGEST:
            self._refuse(RemoteProtocolError(f"no digest {offer.digest!r} here"))
        elif offer.head > offer.total:
            self._refuse(RemoteProtocolError("an OFFER whose spec is longer than the whole"))
        elif offer.head:
            self._sink.expect_head(offer.head)
            self._receive(offer.head)
        else:
            self._open(offer.spec)

    def _open(self, spec: bytes) -> None:
        """The spec is there: wait for the memory that it asks for."""
        budget = self._parts.budget
        try:
            unpacker = Unpacker(spec)
            if unpacker.total + self._offer.head != self._offer.total:
                raise RemoteProtocolError("an OFFER whose total is not what its spec says")
            if not budget.fits(unpacker.memory):
                raise TransferRefused(
                    f"the value needs {size_text(unpacker.memory)}, "
                    f"{size_text(budget.cap)} may be taken here",
                    remedy="Free memory on the receiving side, or send fewer images at once",
                )
        except ZBusError as error:
            self._refuse(error)
            return
        self._running.operation.begin_bytes(unpacker.total)
        budget.take(unpacker.memory, lambda: self._allocate(unpacker))

    def _allocate(self, unpacker: Unpacker) -> None:
        if self._running.ended:  # while it waited for memory
            self._parts.budget.give_back(unpacker.memory)
            return
        self._running.memory = unpacker.memory

        def work() -> ZBusError | None:
            try:
                self._sink.open(unpacker)
            except ZBusError as error:
                return error
            return None

        # The first tensor may import torch, which takes seconds outside of ComfyUI.
        if "torch" in sys.modules or not unpacker.needs_torch:
            self._allocated(work())
        else:
            self._parts.in_pool(work, self._allocated)

    def _allocated(self, error: ZBusError | None) -> None:
        if self._running.ended:
            return
        if error is not None:
            self._refuse(error)
        elif self._offer.inline:
            self._fill()
        elif self._flow is not None:
            self._parts.bulk.open(self._flow, self._offer.total)
        else:
            self._receive(self._offer.total)

    def _fill(self) -> None:
        try:
            self._sink.fill(self._body)
        except ZBusError as error:
            self._refuse(error)
        else:
            self._build()

    def _receive(self, total: int) -> None:
        """Grant `total` bytes: all of them, or those of a spec that comes in front."""
        offer, operation = self._offer, self._running.operation

        def progress(received: int) -> None:
            self._running.transferring = True
            operation.progressed(max(0, received - offer.head))

        self._flow = Inflow(
            self._peering,
            Incoming(offer.operation, total),
            self._sink,
            CODECS[offer.codec],
            on_progress=progress,
            on_complete=self._build,
            on_failed=self._refuse,
            head=offer.head,
            on_head=(lambda: self._open(self._sink.head())) if offer.head else None,
        )
        self._parts.bulk.receive(self._flow)

    def _build(self) -> None:
        """Every byte is there and right: build the value and hand it over."""
        expect = self._running.step.kind

        def work() -> tuple[Any, ZBusError | None]:
            try:
                value = self._sink.value()
                if not payload.fits(expect, value):
                    kind = payload.describe(value)
                    raise Mismatch(
                        f"{expect} is expected, {kind} has come",
                        remedy="Choose what comes, or any, as what this receive expects",
                    )
                return value, None
            except ZBusError as error:
                return None, error

        def then(result: tuple[Any, ZBusError | None]) -> None:
            value, error = result
            if self._running.ended:
                return
            if error is not None:
                self._refuse(error)
                return
            self._peering.session.send(Stored(self._offer.operation))
            self._on_value(value)

        if self._offer.total < HEAVY:
            then(work())
        else:
            self._parts.in_pool(work, then)

    def _refuse(self, error: ZBusError) -> None:
        running, peering = self._running, self._peering
        if running.ended:
            return
        if peering.error is None:
            peering.session.send(Refused(self._offer.operation, clip(str(error))))
        error = error.at(peer=peering.name, stage=str(running.step))
        self._parts.channels.pairing.fail(running.seat, running.step, error, tell=False)
