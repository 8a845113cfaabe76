"""Runs that wait for a certain peer's: it is dialled, or comes by itself.

Runs in the I/O thread.
"""

from __future__ import annotations

import time

from ..errors import NotPermitted, ZBusError
from ..net.links import Links
from ..net.places import DialTarget, Lease, Peering, Place
from ..protocol.channel import Channels
from ..protocol.registrations import Endpoint, Link, Registration, State
from ..remote import Remote
from ..trust import EXCHANGE
from ..wrong import wrong_peer


def endpoint(remote: Remote) -> Endpoint:
    """Where runs with that peer meet."""
    instance = bytes.fromhex(remote.instance)
    return Endpoint("peer", str(remote), remote.key, instance, remote.peer)


class Meetings:
    """All of one peer."""

    def __init__(self, links: Links, channels: Channels) -> None:
        self._links, self._channels = links, channels
        self._open: dict[Registration, tuple[Remote, Place | None]] = {}

    def way(self, remote: Remote) -> Lease[Place] | None:
        """What leads to that peer: its session if one stands, else its own listener is dialled;
        `release` it afterwards. None where it can only come by itself.

        Raises:
            NotPaired, InvalidAddress, TrustError: It cannot be dialled.
        """
        for peering in self._links.peerings:
            told = peering.session.peer
            is_it = remote.is_met_by(peering.principal, told.instance, told.name)
            if is_it and peering.connection is not None:
                return self._links.addresses.use(peering.place)
        routes = remote.routes()
        if not routes:
            return None
        return self._links.addresses.dial_own(routes, remote.key, time.monotonic(), remote.hinted())

    def begin(self, registration: Registration, remote: Remote, place: Place | None) -> None:
        """A run waits for that peer's."""
        self._open[registration] = remote, place
        if isinstance(place, DialTarget) and place.dial.given_up is not None:
            self._fail(registration, place.dial.given_up)
        for peering in self._links.peerings:
            self._look(registration, peering)

    def end(self, registration: Registration) -> None:
        """The run has ended."""
        self._open.pop(registration, None)

    def linked(self, peering: Peering) -> None:
        """A connection stands: perhaps it is the one, and perhaps it will not do."""
        for registration in list(self._open):
            self._look(registration, peering)

    def place_failed(self, place: DialTarget, error: ZBusError) -> None:
        """Dialling there cannot help."""
        for registration, (remote, its) in list(self._open.items()):
            if its is place:
                self._fail(registration, error.at(peer=str(remote)))

    def _look(self, registration: Registration, peering: Peering) -> None:
        remote, place = self._open[registration]
        told = peering.session.peer
        link: Link | None = self._channels.links.get(peering.key)
        if link is None or registration.state is not State.WAITING:
            return
        if not remote.is_met_by(peering.principal, told.instance, told.name):
            if place is peering.place and place.kind == "dial":  # who comes may be anybody
                self._fail(registration, wrong_peer(remote, told.name))
        elif not link.permitted:
            self._fail(registration, _not_permitted_here(told.name))
        elif EXCHANGE not in told.permissions:
            self._fail(registration, _not_permitted_there(told.name))

    def _fail(self, registration: Registration, error: ZBusError) -> None:
        if registration.state is State.WAITING:
            self._channels.matching.end(registration, error)


def _not_permitted_here(name: str) -> NotPermitted:
    return NotPermitted(
        "this computer does not let it exchange values",
        peer=name,
        remedy="Allow it here: zbus-pair permit NAME exchange (zbus-pair list shows the names)",
    )


def _not_permitted_there(name: str) -> NotPermitted:
    return NotPermitted(
        "it does not let this computer exchange values",
        peer=name,
        remedy="Allow it there: zbus-pair permit NAME exchange (zbus-pair list shows the names)",
    )
