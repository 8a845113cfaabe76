"""Opens and closes places: the addresses that this peer listens on and dials.

Runs in the I/O thread. Who comes there, `links` knows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

from ..address import Address
from ..errors import PortInUse
from ..machine import port_holder
from .admission import Admission
from .dialling import Dialler
from .places import BACKOFF_FIRST, Place, Settings
from .transport import Transport

logger = logging.getLogger(__name__)

CHANGE_MODES = 1.0  # seconds that an unused listener keeps a dial of the same address waiting


class Addresses:
    """All places of one peer.

    Args:
        transport: Listens and dials.
        admission: Says where that is wanted.
        settings: Times.
        places: All of them; shared with whoever dials.
        dialler: Explains those that are dialled.
    """

    def __init__(
        self,
        transport: Transport,
        admission: Admission,
        settings: Settings,
        places: list[Place],
        dialler: Dialler,
    ) -> None:
        self._transport, self._admission, self._settings = transport, admission, settings
        self._dialler = dialler
        self.places = places
        self.on_lan: Callable[[str, int], None] | None = None

    def listen(self, address: Address) -> Place:
        """Listen there, or go on listening; `release` it afterwards.

        Raises:
            PortInUse: Somebody else does; the text says who, where it can be told.
            ListenRefused: Only paired peers are wanted here.
        """
        self._admission.check_listen(address)
        place = self._find("listen", address) if address.port else None
        if place is None:
            try:
                listener = self._transport.bind(address.host, address.port)
            except PortInUse as error:
                raise _port_in_use(address, str(error)) from error
            place = Place("listen", Address(address.host, listener.port), listener=listener)
            self.places.append(place)
            logger.info("listening on %s", place.address)
        place.users += 1
        return place

    def listen_always(self, address: Address) -> Place:
        """This peer's own listener, for those who are paired and what each is permitted; it stays
        until the end.

        Raises:
            PortInUse: The port is taken.
            TrustError: There are no keys to be had.
        """
        self._transport.keys = self._admission.keys
        listener = self._transport.bind(address.host, address.port, curve=True)
        place = Place("listen", Address(address.host, listener.port), own=True, listener=listener)
        self.places.append(place)
        logger.info("own listener on %s", place.address)
        self._widen(place)
        return place

    def dial(self, address: Address, now: float) -> Place:
        """Dial a plain listener, or go on dialling; `release` it afterwards.

        Raises:
            NotPaired: Only paired peers are wanted here.
        """
        self._admission.check_dial(address)
        return self._dial((address,), b"", now)

    def dial_own(
        self,
        routes: Sequence[Address],
        key: bytes,
        now: float,
        hints: frozenset[Address] = frozenset(),
    ) -> Place:
        """Dial a peer's own listener, or go on dialling; `release` it afterwards.

        Args:
            routes: The ways there: one after the other until one leads there.
            key: The public key that must answer.
            hints: Those of them that somebody claims, and nobody vouches for.

        Raises:
            NotPaired: That key is not one of this side's.
            TrustError: There are no keys to be had.
        """
        self._admission.check_key(str(routes[0]), key)
        self._transport.keys = self._admission.keys
        return self._dial(tuple(routes), key, now, hints)

    def _dial(
        self,
        routes: tuple[Address, ...],
        key: bytes,
        now: float,
        hints: frozenset[Address] = frozenset(),
    ) -> Place:
        new = Place("dial", routes[0], key=key, routes=routes, hints=hints)
        dialled = (place for place in self.places if place.kind == "dial" and place.key == key)
        place = next((p for p in dialled if p.known_routes == new.known_routes), None)
        if place is None:
            place = new
            self.places.append(place)
            logger.info("dialling %s", place.address)
        elif place.address in routes:
            place.routes, place.hints = routes, hints
        if place.given_up is not None:  # for an earlier run: look again
            place.problem = place.given_up = None
            place.problems.clear()
            place.hopeless.clear()
            place.failures = 0
        if place.connection is None and not (place.looking and place.numeric is None):
            place.next_dial, place.backoff = now, BACKOFF_FIRST
        place.users += 1
        return place

    def release(self, place: Place, now: float) -> None:
        """A run is done with the place. It stays a while, and until all is acknowledged."""
        place.users -= 1
        place.idle_since = now

    def _find(self, kind: str, address: Address) -> Place | None:
        """The plain place there."""
        for place in self.places:
            is_plain = not place.key and not place.own
            if place.kind == kind and place.address == address and is_plain:
                return place
        return None

    def widen(self) -> None:
        """Have this peer's own listener open where the user wants it, and nowhere else."""
        for place in self.places:
            if place.own:
                self._widen(place)

    def _widen(self, place: Place) -> None:
        assert place.listener is not None
        wanted = {self._admission.lan} - {"", place.address.host}
        if wanted == place.listener.other_hosts:
            return
        try:
            self._transport.widen(place.listener, wanted)
        except PortInUse as error:
            logger.error("cannot listen on %s, port %d: %s", wanted, place.address.port, error)
            return
        logger.info("own listener on %s", ", ".join(sorted(wanted | {place.address.host})))
        if self.on_lan is not None:
            self.on_lan("".join(wanted), place.address.port)

    def is_done(self, place: Place, now: float) -> bool:
        """Whether nobody needs it any more."""
        unused = now - place.idle_since
        if place.kind == "dial" and place.peering is None:
            return True
        drained = all(p.session.drained and not p.transfers for p in place.peerings)
        dialled = self._find("dial", place.address) if place.kind == "listen" else None
        if dialled is not None and dialled.users:
            return drained or unused >= CHANGE_MODES
        if not drained:
            return unused >= self._settings.reconnect_wait
        return unused >= self._settings.linger

    def explain(self, place: Place, now: float) -> str:
        """One line for people: why nobody is there yet."""
        if place.kind == "dial":
            return self._dialler.explain(place, now)
        return (
            f"press Run on the other side: nobody has connected to {place.address} yet "
            "(if both sides are Server, set one to Client)"
        )


def _port_in_use(address: Address, why: str) -> PortInUse:
    holder = port_holder(address.port)
    if holder.startswith("ssh"):
        remedy = "A tunnel ends here: this side should be Client"
    elif f"(pid {os.getpid()})" in holder:
        remedy = "That is this very ComfyUI: choose another port"
    elif holder:
        remedy = (
            "If that is the other ComfyUI, both sides are Server: set one to Client (where it has "
            "just been changed, the port is free in 30 s). Else choose another port on both sides"
        )
    else:
        remedy = "Choose another port on both sides, or set one side to Client"
    what = f"held by {holder}" if holder else why.lower()
    return PortInUse(f"cannot listen on {address}: {what}", remedy=remedy)
