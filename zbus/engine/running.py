"""One send or receive of this side under way, as the I/O thread keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..net.places import Place
from ..operation import Operation
from ..protocol.registrations import ChannelOperation, Registration
from ..values.payload import Flat
from .inflow import Inflow
from .outflow import Outflow


@dataclass(eq=False)
class Running:
    """One operation of this side under way, and whose value its flow is.

    Attributes:
        handle: What the caller holds.
        step: What the other side knows of it.
        place: Where it meets the other side; None on a channel to anyone.
        deadline: When its time is over.
        flat: The value of a send.
        flow: Its value on its way, once it has met its partner.
    """

    handle: Operation[Any]
    registration: Registration
    step: ChannelOperation
    place: Place | None
    deadline: float | None
    flat: Flat | None = None
    quality: str = "exact"
    flow: Outflow | Inflow | None = None
