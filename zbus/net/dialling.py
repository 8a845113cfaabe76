"""Dials and redials: names resolved, back-off, and why a connection does not come about.

Runs in the I/O thread. What blocks (a name, a probe) goes to a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from .. import probe
from ..address import Address
from ..errors import (
    ConnectError,
    KeyChanged,
    NobodyBehind,
    NotPaired,
    NotZBus,
    Unreachable,
    ValuesOnly,
    ZBusError,
)
from ..keys import fingerprint
from .places import BACKOFF_FIRST, Place
from .transport import Transport
from .websocket import Lane, open_lane

RESOLVE_AGAIN = 20  # failures after which a name is looked up anew
REFUSED = (
    "press Run on the other side: nobody listens on {} yet "
    "(if both sides are Client, set one to Server)"
)
PAIR = "Pair the two, once: zbus-pair invite on one of them, zbus-pair accept TOKEN on the other"
DOUBTS = 2  # handshakes in a row that must fail before a key is said to have changed
QUICK = 5.0  # seconds: who ends a handshake later was only too busy for it

T = TypeVar("T")


class Way(NamedTuple):
    """A numeric address, and the lane that leads on from there."""

    numeric: str
    port: int
    lane: Lane | None = None


def _way(address: Address) -> Way:
    if not address.url:
        return Way(probe.resolve(address), address.port)
    lane = open_lane(address.url)
    return Way("127.0.0.1", lane.port, lane)


def not_paired(who: str, key: bytes) -> NotPaired:
    """This side does not trust whoever has that key."""
    return NotPaired(
        f"this computer is not paired with it (the fingerprint that it shows: {fingerprint(key)})",
        peer=who,
        remedy=PAIR,
    )


def refused() -> NotPaired:
    """The other side does not trust this one."""
    return NotPaired("not paired there with this computer", remedy=PAIR)


def key_changed() -> KeyChanged:
    """Whoever answers has another key than the one that was paired."""
    return KeyChanged(
        "it does not prove the key that it was paired with: another machine answers there, its "
        "zbus folder is a new one, or somebody pretends to be it",
        remedy="If you know why it has changed, pair anew (zbus-pair forget NAME; then zbus-pair "
        "invite and accept). If not, do not",
    )


class Helper(Protocol):
    """What a dialler needs done: the engine does it."""

    def in_thread(self, work: Callable[[], T], then: Callable[[T | ZBusError], None]) -> None: ...
    def place_failed(self, place: Place, error: ZBusError) -> None: ...


class Dialler:
    """Makes the connections of the dialled places.

    Args:
        transport: Makes them.
        places: All places of the peer; the list that `Links` keeps.
        helper: Runs what blocks, and is told what is hopeless.
    """

    def __init__(self, transport: Transport, places: list[Place], helper: Helper) -> None:
        self._transport, self._places, self._helper = transport, places, helper

    def dial(self, place: Place, now: float) -> None:
        """Begin a connection there, once its name is resolved."""
        place.next_dial = None
        if self._left_behind(place):
            place.next_dial = now + BACKOFF_FIRST
            return
        if place.numeric is None:
            address = place.address
            self._look(
                place, lambda: _way(address), lambda place, way: self._found(place, address, way)
            )
            return
        place.dialled_at = now
        place.connection = self._transport.dial(place.numeric, place.port, server=place.key)

    def _left_behind(self, place: Place) -> bool:
        """Whether this peer still listens, for nobody, where it dials now: the two sides have
        changed their modes. The listener goes as soon as all is acknowledged."""
        listening = next(
            (p for p in self._places if p.kind == "listen" and p.address == place.address), None
        )
        return listening is not None and not listening.users and not listening.own

    def _look(
        self,
        place: Place,
        work: Callable[[], T],
        then: Callable[[Place, T | ZBusError], None],
    ) -> None:
        def guarded() -> T | ZBusError:
            try:
                return work()
            except ZBusError as error:
                return error

        def done(result: T | ZBusError) -> None:
            place.looking = False
            if place in self._places:
                then(place, result)

        place.looking = True
        self._helper.in_thread(guarded, done)

    def _found(self, place: Place, address: Address, way: Way | ZBusError) -> None:
        if isinstance(way, ZBusError):
            self._hopeless(place, address, way)
        else:
            place.numeric, place.port, place.lane = way
            place.next_dial = time.monotonic()

    def _hopeless(self, place: Place, address: Address, error: ZBusError) -> None:
        """Dialling this way again cannot help: perhaps another one leads there, now or later."""
        if address not in place.hints:
            place.hopeless.add(address)
        self._note(place, address, error)
        if set(place.known_routes) <= place.hopeless:
            self.give_up(place, place.problems[place.known_routes[0]])
        elif place.address == address and place.connection is None:
            place.turn()
            place.next_dial = time.monotonic() + place.delay()

    def _note(self, place: Place, address: Address, error: ZBusError) -> None:
        """Why this way leads nowhere. What is wrong with the place is told when all are tried, and
        by the first of those that count."""
        place.problems[address] = error
        if all(route in place.problems for route in place.routes):  # hints come and go
            first = place.problems[place.known_routes[0]]
            place.problem = first if isinstance(first, ConnectError) else None

    def give_up(self, place: Place, error: ZBusError) -> None:
        """Dialling again cannot help: whoever waits there is told, and it ends."""
        place.problem = error if isinstance(error, ConnectError) else None
        place.next_dial, place.given_up = None, error
        self._helper.place_failed(place, error)

    def failed(self, place: Place, stage: str, now: float) -> None:
        """Its connection came to nothing at `stage`, or was lost: when to try again, and why."""
        place.connection = None
        place.failures += 1
        if stage == "refused":
            self._hopeless(place, place.address, refused())
            return
        if place.failures % RESOLVE_AGAIN == 0:
            place.forget_way()  # the name may mean another machine by now
        place.next_dial = now + place.delay()
        self._diagnose(place, stage, now)
        refused_elsewhere = stage == "connect" and not place.address.is_loopback
        # Whose handshake ends late is there, and busy: a model load can hold its GIL for long.
        is_busy = bool(place.key) and now - place.dialled_at >= QUICK
        if not (stage == "greeting" or refused_elsewhere) or is_busy:
            place.hopeless_since = None
        elif place.hopeless_since is None:
            place.hopeless_since = now

    def _diagnose(self, place: Place, stage: str, now: float) -> None:
        """Ask why, now and then; off this thread. A place with several ways turns to the next."""
        numeric, address, key, lane = place.numeric, place.address, place.key, place.lane
        several = len(place.routes) > 1
        # A handshake that ends late tells of a busy peer, and not of another key.
        is_doubt = bool(key) and stage == "greeting" and now - place.dialled_at < QUICK
        due = several or place.failures % 5 == 1 or (is_doubt and place.failures <= DOUBTS)
        if numeric is None or place.looking or not due:
            return

        def look() -> ConnectError | None:
            problem = lane.problem if lane is not None else probe.diagnose(address, numeric, key)
            if problem is None and is_doubt and place.failures >= DOUBTS:
                return key_changed()
            return problem

        self._look(place, look, lambda place, error: self._diagnosed(place, address, error))

    def _diagnosed(self, place: Place, address: Address, error: ZBusError | None) -> None:
        if place.connection is not None and place.connection.greeted:
            return  # meanwhile it works
        if isinstance(error, (NotZBus, KeyChanged, NotPaired, ValuesOnly)):
            self._hopeless(place, address, error)
            return
        if error is None and len(place.routes) == 1:
            place.problem = None
        elif error is not None:
            self._note(place, address, error)
        if place.address == address and place.connection is None:
            place.turn()

    def explain(self, place: Place, now: float) -> str:
        """One line for people: why nobody is there yet."""
        connection = place.connection
        if connection is not None and connection.greeted:
            waited = now - place.dialled_at
            return f"{place.address} has accepted and has not answered for {waited:.0f} s"
        if place.key and place.problem is not None:
            why = f"not reachable at {place.address}: {place.problem.what}"
            return f"{why}; dialling again, and waiting for it to come by itself"
        if isinstance(place.problem, NobodyBehind):
            return (
                f"press Run on the other side: {place.address} is a tunnel with nobody at its "
                "far end yet"
            )
        if isinstance(place.problem, Unreachable):
            refused = "refused" in place.problem.what
            return REFUSED.format(place.address) if refused else str(place.problem)
        return f"dialling {place.address}"
