"""Who is told what happens on the links: the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from ..errors import ZBusError
from ..protocol.messages import Message
from .frames import Body
from .places import DialTarget, Peering

T = TypeVar("T")


class Owner(Protocol):
    """All calls come in the I/O thread."""

    def session_up(self, peering: Peering) -> None: ...
    def session_linked(self, peering: Peering) -> None: ...
    def session_unlinked(self, peering: Peering) -> None: ...
    def session_down(self, peering: Peering, error: ZBusError) -> None: ...
    def message(self, peering: Peering, message: Message, body: Body | None) -> None: ...
    def place_failed(self, place: DialTarget, error: ZBusError) -> None: ...
    def in_thread(self, work: Callable[[], T], then: Callable[[T], None]) -> None: ...
