"""Who is meant: another peer, and the ways there."""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import given
from .address import Address, parse_route
from .errors import InputError


@dataclass(frozen=True)
class Remote:
    """A peer, its key, and where its own listener is.

    Attributes:
        address: The way there: "host:port", or the URL of its ComfyUI; "" where it can only come
            by itself.
        instance: Who must answer there, as 32 hexadecimal digits; "": whoever does.
        name: What to call it before it has said its name.
        key: The public key that must answer, 32 bytes; none: this user's own.
        peer: The name by which it must call itself; "": any of that key's.
        others: More ways there, tried in their order when the first leads nowhere.
        hints: Addresses where somebody says, in the local network, to be that peer: tried last,
            and no failure there says anything of it.

    Raises:
        InputError: A field cannot be used; the text names it.
    """

    address: str
    instance: str = ""
    name: str = ""
    key: bytes = b""
    peer: str = ""
    others: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("address", "instance", "name", "peer"):
            given.text(field, getattr(self, field))
        if self.instance and not re.fullmatch("[0-9a-f]{32}", self.instance):
            raise InputError(f"instance is 32 hexadecimal digits, not {given.said(self.instance)}")
        if not isinstance(self.key, bytes) or len(self.key) not in (0, 32):
            raise InputError("key is a public key of 32 bytes, or none")
        for field in ("others", "hints"):
            ways = getattr(self, field)
            if not isinstance(ways, tuple) or not all(isinstance(way, str) for way in ways):
                raise InputError(f"{field} are addresses in a tuple, not {given.said(ways)}")

    def __str__(self) -> str:
        return self.name or self.address

    @property
    def where(self) -> str:
        """For texts: the name, and the way there."""
        shown = str(next(iter(self.routes()), ""))
        return f"{self.name} at {shown}" if self.name and shown else self.name or shown

    def routes(self) -> list[Address]:
        """All ways there.

        Raises:
            InvalidAddress: One of them is none.
        """
        ways = (self.address, *self.others, *self.hints)
        return [parse_route(written) for written in ways if written]

    def hinted(self) -> frozenset[Address]:
        """Those of `routes` that are hints, and nothing more."""
        known = {self.address, *self.others}
        return frozenset(parse_route(written) for written in self.hints if written not in known)

    def is_met_by(self, key: bytes, instance: bytes, name: str) -> bool:
        """Whether the peer that has proved that key, and says the rest of itself, is meant."""
        return self.key == key and self.instance in ("", instance.hex()) and self.peer in ("", name)
