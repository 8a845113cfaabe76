"""What `zbus-pair` and ComfyUI's page share: opening an invitation, and who is paired as JSON."""

from __future__ import annotations

import contextlib
import getpass
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..address import parse_route
from ..errors import InputError
from ..keys import fingerprint, to_text
from ..nudging import nudge
from ..principals import EVERY_HOST, Peers, Principal
from ..trust import Trust
from . import reach
from .hellos import usable_name
from .reach import Reach


@dataclass(frozen=True)
class Offer:
    """Whom an invitation is for.

    Attributes:
        lan: Those in the local networks.
        at: Those who reach this machine under that address; "": as the cloud says. With neither,
            those on this machine's loopback.
        port: To listen on; 0: the usual one.
    """

    lan: bool = False
    at: str | None = None
    port: int = 0

    @property
    def is_public(self) -> bool:
        """Whether it is for more than the loopback."""
        return self.lan or (self.at is not None and not self._is_on_loopback)

    @property
    def _is_on_loopback(self) -> bool:
        return bool(self.at) and parse_route(self.at or "").is_loopback

    @contextlib.contextmanager
    def opened(self, trust: Trust) -> Iterator[Reach]:
        """This user's ComfyUIs listen in the network if it is public; no longer if what is under it
        fails, or this process is killed, and they did not before.

        Raises:
            InputError: Nobody would reach it.
        """
        if not self.is_public or (trust.lan and not trust.is_lan_lent):
            yield self._reach(trust)
            return
        try:  # from here on: a signal may come while it is being opened
            with trust.lan_lent():
                nudge(trust)
                yield self._reach(trust)
                trust.reload()
                if trust.is_lan_lent:  # who has closed the LAN meanwhile has meant it
                    trust.set_lan(EVERY_HOST)  # before the loan ends: it stays open
        except BaseException:
            nudge(trust)
            raise

    def _reach(self, trust: Trust) -> Reach:
        if self.at is None and not self.lan:
            return reach.on_loopback(self.port)
        if self.at is not None and self._is_on_loopback:
            return reach.at(self.at, self.port)
        if not trust.lan:
            raise InputError(
                "ZBUS_LISTEN keeps this computer's ComfyUIs off the network",
                remedy="Unset it, or set it to on",
            )
        if self.at is None:
            return reach.in_lan(trust.lan, self.port)
        return reach.at(self.at, self.port)


def own_name(is_local: bool) -> str:
    """What the other one would call this side: within one computer only the user's name tells."""
    if is_local:
        try:
            return usable_name(getpass.getuser())
        except (OSError, KeyError, ImportError):  # a container's nameless user
            pass
    return _host()


def _host() -> str:
    return usable_name(socket.gethostname().split(".")[0])


def shown(peers: Peers) -> dict[str, list[str]]:
    """Addresses as a screen may show them: without a login."""
    return {name: [str(parse_route(address)) for address in there] for name, there in peers}


def as_json(one: Principal) -> dict[str, Any]:
    """A principal, as programs get it."""
    return {
        "name": one.name,
        "key": to_text(one.key),
        "fingerprint": fingerprint(one.key),
        "permissions": sorted(one.permissions),
        "peers": shown(one.peers),
        "paired": one.paired,
    }


def own_as_json(trust: Trust) -> dict[str, Any]:
    """This side, as programs get it."""
    return {
        "name": _host(),
        "key": to_text(trust.keys.public),
        "fingerprint": fingerprint(trust.keys.public),
        "lan": trust.lan,
        "require_pairing": trust.require_pairing,
    }
