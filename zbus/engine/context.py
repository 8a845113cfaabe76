"""What the I/O thread's own rooms share: made by the engine, handed to those that use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..net.links import Links
from ..net.places import Peering, Place, Settings
from ..operation import Operation
from ..protocol.channel import Channels
from ..protocol.identity import SessionKey
from ..protocol.registrations import ChannelOperation, Registration
from ..values.payload import Flat
from ..values.streams import Budget
from .transfers import Transfers

T = TypeVar("T")


class InPool(Protocol):
    """Runs `work` in the worker pool and `then` with its result in the I/O thread."""

    def __call__(self, work: Callable[[], T], then: Callable[[T], None]) -> None: ...


@dataclass
class Context:
    """The parts that the engine joins."""

    settings: Settings
    links: Links
    channels: Channels
    transfers: Transfers
    budget: Budget
    in_pool: InPool

    def peering(self, key: SessionKey) -> Peering | None:
        """The session of that key."""
        return next((p for p in self.links.peerings if p.key == key), None)


@dataclass(eq=False)
class Running:
    """One operation of this side under way."""

    operation: Operation[Any]
    registration: Registration
    step: ChannelOperation
    place: Place | None
    deadline: float | None
    flat: Flat | None = None  # of a send
    quality: str = "exact"
    preparing: bool = False
    transferring: bool = False
    peering: Peering | None = None
    transfer: int = -1
    memory: int = 0  # taken from the budget
    ended: bool = False
