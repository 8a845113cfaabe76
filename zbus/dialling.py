"""Dials and redials: names resolved, back-off, and why a connection does not come about.

Runs in the I/O thread. What blocks (a name, a probe) goes to a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from . import probe
from .errors import ConnectError, NobodyBehind, NotZBus, Unreachable, ZBusError
from .places import BACKOFF_FIRST, Place
from .transport import Transport

RESOLVE_AGAIN = 20  # failures after which a name is looked up anew
REFUSED = (
    "press Run on the other side: nobody listens on {} yet "
    "(if both sides are Client, set one to Server)"
)

T = TypeVar("T")


class Helper(Protocol):
    """What a dialler needs done: the engine does it."""

    def aside(self, work: Callable[[], T], then: Callable[[T], None]) -> None: ...
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
            self._look(place, lambda: probe.resolve(place.address), self._resolved)
            return
        place.dialled_at = now
        place.connection = self._transport.dial(place.numeric, place.address.port)

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
        self._helper.aside(guarded, done)

    def _resolved(self, place: Place, result: str | ZBusError) -> None:
        if isinstance(result, ZBusError):
            self.give_up(place, result)
            return
        place.numeric = result
        place.next_dial = time.monotonic()

    def give_up(self, place: Place, error: ZBusError) -> None:
        """Dialling again cannot help: whoever waits there is told, and it ends."""
        place.problem = error if isinstance(error, ConnectError) else None
        place.next_dial, place.given_up = None, error
        self._helper.place_failed(place, error)

    def failed(self, place: Place, stage: str, now: float) -> None:
        """Its connection came to nothing at `stage`, or was lost: when to try again, and why."""
        place.connection = None
        place.failures += 1
        if place.failures % RESOLVE_AGAIN == 0:
            place.numeric = None  # the name may mean another machine by now
        place.next_dial = now + place.delay()
        if place.numeric is not None and not place.looking and place.failures % 5 == 1:
            numeric = place.numeric
            self._look(place, lambda: probe.diagnose(place.address, numeric), self._diagnosed)
        refused_elsewhere = stage == "connect" and not place.address.is_loopback
        if not (stage == "greeting" or refused_elsewhere):
            place.hopeless_since = None
        elif place.hopeless_since is None:
            place.hopeless_since = now

    def _diagnosed(self, place: Place, error: ConnectError | ZBusError | None) -> None:
        if place.connection is not None and place.connection.greeted:
            return  # meanwhile it works
        place.problem = error if isinstance(error, ConnectError) else None
        if isinstance(error, NotZBus):
            self.give_up(place, error)

    def explain(self, place: Place, now: float) -> str:
        """One line for people: why nobody is there yet."""
        connection = place.connection
        if connection is not None and connection.greeted:
            waited = now - place.dialled_at
            return f"{place.address} has accepted and has not answered for {waited:.0f} s"
        if isinstance(place.problem, NobodyBehind):
            return (
                f"press Run on the other side: {place.address} is a tunnel with nobody at its "
                "far end yet"
            )
        if isinstance(place.problem, Unreachable):
            refused = "refused" in place.problem.what
            return REFUSED.format(place.address) if refused else str(place.problem)
        return f"dialling {place.address}"
