"""Opens the places of a peer: the addresses that it listens on, and those that it dials.

Runs in the I/O thread. Who comes there, `links` knows.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence

from ..address import Address
from ..callbacks import CALLBACKS
from ..errors import PortInUse
from ..machine import port_holder
from ..protocol.dial import Dial, Use
from .admission import Admission
from .dialling import Dialler
from .places import DialTarget, Lease, ListenedAddress, P, Place, Settings
from .transport import Transport

logger = logging.getLogger(__name__)

STAND_AGAIN = 5.0  # seconds between tries of an own listener that stands nowhere
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
        self._stand_at: float | None = None

    def use(self, place: P) -> Lease[P]:
        """Go on with a place that is open; `release` it afterwards."""
        return Lease(place)

    def listen(self, address: Address) -> Lease[ListenedAddress]:
        """Listen there, or go on listening.

        Raises:
            PortInUse: Somebody else does; the text says who, where it can be told.
            ListenRefused: Only paired peers are wanted here.
        """
        self._admission.check_listen(address)
        place = self._listened(address) if address.port else None
        if place is None:
            try:
                listener = self._transport.bind(address.host, address.port)
            except PortInUse as error:
                raise _port_in_use(address, str(error)) from error
            place = ListenedAddress(Address(address.host, listener.port), listener)
            self.places.append(place)
            logger.info("listening on %s", place.address)
        return Lease(place)

    def listen_always(self, address: Address) -> ListenedAddress:
        """This peer's own listener, for those who are paired and what each is permitted; it stays
        until the end.

        Raises:
            PortInUse: The port is taken.
            TrustError: There are no keys to be had.
        """
        self._transport.keys = self._admission.keys
        listener = self._transport.bind(address.host, address.port, curve=True)
        place = ListenedAddress(Address(address.host, listener.port), listener, own=True)
        self.places.append(place)
        logger.info("own listener on %s", place.address)
        self._widen(place)
        return place

    def dial(self, address: Address, now: float) -> Lease[DialTarget]:
        """Dial a plain listener, or go on dialling.

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
    ) -> Lease[DialTarget]:
        """Dial a peer's own listener, or go on dialling.

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
    ) -> Lease[DialTarget]:
        new = DialTarget(Dial(routes, hints, is_keyed=bool(key)), key)
        target = next((t for t in self._targets if _is_same(t, new)), None)
        if target is None:
            target = new
            self.places.append(target)
            logger.info("dialling %s", target.address)
        lease = Lease(target)
        self._dialler.tell(target, Use(routes, hints), now)
        return lease

    @property
    def _targets(self) -> list[DialTarget]:
        return [place for place in self.places if isinstance(place, DialTarget)]

    def _listened(self, address: Address) -> ListenedAddress | None:
        """The plain listener there."""
        for place in self.places:
            if isinstance(place, ListenedAddress) and place.address == address and not place.own:
                return place
        return None

    def _is_dialled(self, address: Address) -> bool:
        """Whether a run dials there, plainly."""
        return any(t.users and not t.key and t.address == address for t in self._targets)

    def widen(self) -> None:
        """Have this peer's own listener open where the user wants it, and nowhere else."""
        self._stand_at = None
        for place in self.places:
            if isinstance(place, ListenedAddress) and place.own:
                self._widen(place)

    def _widen(self, place: ListenedAddress) -> None:
        wanted = {self._admission.lan} - {"", place.address.host}
        # What was refused is not tried anew at each change of the store: a try cuts whoever has
        # come by the loopback. Who closes the LAN and opens it again has it tried.
        is_refused, place.refused_hosts = wanted == place.refused_hosts, None
        if place.listener.stands and wanted == place.listener.other_hosts:
            return
        if place.listener.stands and is_refused:
            place.refused_hosts = wanted
            return
        try:
            self._transport.widen(place.listener, wanted)
        except PortInUse as error:
            logger.error("cannot listen on %s, port %d: %s", wanted, place.address.port, error)
            place.refused_hosts = wanted
            self._stand_at = None if place.listener.stands else time.monotonic() + STAND_AGAIN
            return
        logger.info("own listener on %s", ", ".join(sorted(wanted | {place.address.host})))
        if self.on_lan is not None:
            CALLBACKS.call(self.on_lan, "".join(wanted), place.address.port)

    def tick(self, now: float) -> None:
        """Try again where the own listener stands nowhere: whoever has taken its port in that very
        moment may have gone."""
        if self._stand_at is not None and now >= self._stand_at:
            self.widen()

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._stand_at

    def is_done(self, place: Place, now: float) -> bool:
        """Whether nobody needs it any more."""
        unused = now - place.idle_since
        if isinstance(place, DialTarget) and place.peering is None:
            return True
        drained = all(p.session.drained and not p.transfers for p in place.peerings)
        if isinstance(place, ListenedAddress) and self._is_dialled(place.address):
            return drained or unused >= CHANGE_MODES
        linger = self._settings.linger
        return unused >= (linger if drained else max(linger, self._settings.reconnect_wait))

    def explain(self, place: Place, now: float) -> str:
        """One line for people: why nobody is there yet."""
        if isinstance(place, DialTarget):
            return place.dial.explain(now)
        return (
            f"press Run on the other side: nobody has connected to {place.address} yet "
            "(if both sides are Server, set one to Client)"
        )


def _is_same(one: DialTarget, other: DialTarget) -> bool:
    """Whether both are one peer, by the ways that count."""
    ways = [[way.address for way in target.dial.ways.known] for target in (one, other)]
    return one.key == other.key and ways[0] == ways[1]


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
