"""Names looked up for aiohttp: off its loop, and none that is nearer than what may be asked."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from .nearness import Nearness, nearness


class TooNear(Exception):
    """A redirect leads to what is nearer than who sent it; the text says where to."""


class Resolver(AbstractResolver):
    """Looks names up on a thread of its own, and at how near they are.

    The loop's thread pool would do it too, but the end of a prompt waits for that pool: a slow
    name server would hold it up after the user's X.

    Attributes:
        farthest: The farthest address that was looked at.
    """

    def __init__(self, nearest: Nearness = Nearness.LOOPBACK) -> None:
        self._nearest = self.farthest = nearest

    def note(self, addresses: list[str]) -> None:
        """Raises TooNear: one of them is nearer than what may be asked."""
        found = [nearness(address) for address in addresses]
        if max(found) > self._nearest:
            home = max(found) is Nearness.LOOPBACK
            where = "this computer itself" if home else "an address of a private network"
            raise TooNear(f"a redirect from elsewhere leads to {where}, and is not followed")
        self.farthest = min(found)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()

        def settle(found: list[Any], error: OSError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(found)
            else:
                future.set_exception(error)

        def look() -> None:
            found, error = [], None
            try:
                found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            except (OSError, UnicodeError) as raised:
                error = raised if isinstance(raised, OSError) else socket.gaierror(str(raised))
            with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
                loop.call_soon_threadsafe(settle, found, error)

        threading.Thread(target=look, name="zbus-name", daemon=True).start()
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        found = await future
        self.note([str(at[0]) for *_, at in found])
        return [
            ResolveResult(
                hostname=host, host=_numeric(at), port=at[1], family=kind, proto=proto, flags=flags
            )
            for kind, _, proto, _, at in found
        ]

    async def close(self) -> None:
        """Nothing is kept."""


def _numeric(at: tuple[Any, ...]) -> str:
    """The address, with its zone where it has one (link-local IPv6)."""
    return f"{at[0]}%{at[3]}" if len(at) > 3 and at[3] else str(at[0])


def numeric_form(host: str) -> str:
    """The address that a numeric host is; "" for a name."""
    if ":" not in host and not host.replace(".", "").isdigit():
        return ""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:  # "127.1" and the like, which some versions of aiohttp hand to the system as they are
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return ""
