"""What the I/O thread's own rooms share: made by the engine, handed to those that use it."""

from __future__ import annotations

from dataclasses import dataclass

from ..net.links import Links
from ..net.places import Peering, Settings
from ..protocol.budget import Budget
from ..protocol.channel import Channels
from ..protocol.identity import SessionKey
from .transfers import Transfers
from .workers import Workers


@dataclass
class Context:
    """The parts that the engine joins."""

    settings: Settings
    links: Links
    channels: Channels
    transfers: Transfers
    budget: Budget
    workers: Workers

    def peering(self, key: SessionKey) -> Peering | None:
        """The session of that key."""
        return self.links.peering(key)
