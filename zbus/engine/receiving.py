"""From an offer to the caller's value: its spec checked, memory taken, filled, built."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

from .. import codecs
from ..codecs import CODECS
from ..errors import Mismatch, RemoteProtocolError, TransferRefused, ZBusError
from ..net.places import Peering
from ..operation import Operation, size_text
from ..protocol.fields import clip
from ..protocol.messages import DIGEST, JobOffer, Offer, Refused, Stored
from ..protocol.transfer import Incoming
from ..values import payload
from ..values.streams import ValueSink
from ..values.unpack import Unpacker
from .context import Context
from .flows import Inflow
from .sending import HEAVY


class Holder(Protocol):
    """For whom a value is received."""

    operation: Operation[Any]
    ended: bool  # nobody wants it any more
    transferring: bool
    memory: int  # taken from the budget; given back by who ends it


class Receiving:
    """One value on its way in.

    Args:
        holder: For whom.
        offer: What the peer offers.
        body: What rode inside the offer.
        expect: The kind of value that must come, or "any".
        on_value: Called with the value when it is whole and verified.
        on_failed: Called when it was refused, and why.
    """

    def __init__(
        self,
        context: Context,
        peering: Peering,
        holder: Holder,
        offer: Offer | JobOffer,
        body: bytes,
        expect: str,
        on_value: Callable[[Any], None],
        on_failed: Callable[[ZBusError], None],
    ) -> None:
        self._context, self._peering, self._holder = context, peering, holder
        self._offer, self._body, self._expect = offer, body, expect
        self._on_value, self._on_failed = on_value, on_failed
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
        budget = self._context.budget
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
        self._holder.operation.begin_bytes(unpacker.total)
        budget.take(unpacker.memory, lambda: self._allocate(unpacker))

    def _allocate(self, unpacker: Unpacker) -> None:
        if self._holder.ended:  # while it waited for memory
            self._context.budget.give_back(unpacker.memory)
            return
        self._holder.memory = unpacker.memory

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
            self._context.in_pool(work, self._allocated)

    def _allocated(self, error: ZBusError | None) -> None:
        if self._holder.ended:
            return
        if error is not None:
            self._refuse(error)
        elif self._offer.inline:
            self._fill()
        elif self._flow is not None:
            self._context.transfers.open(self._flow, self._offer.total)
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
        offer, operation = self._offer, self._holder.operation

        def progress(received: int) -> None:
            self._holder.transferring = True
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
        self._context.transfers.receive(self._flow)

    def _build(self) -> None:
        """Every byte is there and right: build the value and hand it over."""
        expect = self._expect

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
            if self._holder.ended:
                return
            if error is not None:
                self._refuse(error)
                return
            self._let_go()
            self._peering.session.send(Stored(self._offer.operation))
            self._on_value(value)

        if self._offer.total < HEAVY:
            then(work())
        else:
            self._context.in_pool(work, then)

    def _let_go(self) -> None:
        """The memory is the caller's alone: it is free when that lets go of it, and not when the
        garbage collector comes round to this."""
        self._flow, self._sink = None, ValueSink()

    def _refuse(self, error: ZBusError) -> None:
        if self._holder.ended:
            return
        self._let_go()
        if self._peering.error is None:
            self._peering.session.send(Refused(self._offer.operation, clip(str(error))))
        self._on_failed(error)
