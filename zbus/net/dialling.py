"""Does what each `Dial` says: names resolved, connections made and ended, problems looked at.

Runs in the I/O thread. What blocks (a name, a look) goes to a thread of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from .. import probe
from ..address import Address
from ..errors import ConnectError, Unreachable, ZBusError
from ..protocol import dial
from ..protocol.dial import State
from ..protocol.ways import Spot
from .greeting import Greetings
from .places import DialTarget, ListenedAddress, Place
from .transport import Transport
from .websocket import Lane, open_lane

logger = logging.getLogger(__name__)

T = TypeVar("T")


class InThread(Protocol):
    """Runs `work`, which may block long, in a thread, and `then` with its result in this one: with
    what it raised, as one of our errors, if it did."""

    def __call__(self, work: Callable[[], T], then: Callable[[T | ZBusError], None]) -> None: ...


class Dialler:
    """Makes the connections of all dial targets.

    Args:
        transport: Makes them.
        greetings: Say HELLO on them.
        places: All places of the peer; the list that `Links` keeps.
        in_thread: Runs what blocks.
        faulty: Told of a target where each answer is wrong, up to now.
        given_up: Told of a target where dialling again cannot help.
    """

    def __init__(
        self,
        transport: Transport,
        greetings: Greetings,
        places: list[Place],
        in_thread: InThread,
        faulty: Callable[[DialTarget, ZBusError], None],
        given_up: Callable[[DialTarget, ZBusError], None],
    ) -> None:
        self._transport, self._greetings, self._places = transport, greetings, places
        self._in_thread, self._faulty, self._given_up = in_thread, faulty, given_up

    # --- told by links and addresses --------------------------------------------------------------

    def tell(self, target: DialTarget, event: dial.Event, now: float) -> None:
        """Something has happened to what is dialled there."""
        self._do_all(target, target.dial.handle(event, now), now)

    def tick(self, target: DialTarget, now: float) -> None:
        """Do what is due there."""
        self._do_all(target, target.dial.tick(now), now)

    def closed(self, target: DialTarget, stage: str, now: float) -> None:
        """Its connection is gone."""
        target.connection = None
        self.tell(target, dial.Closed(stage), now)

    def close(self, target: DialTarget, now: float) -> None:
        """Nobody needs it any more."""
        self.tell(target, dial.Close(), now)
        for lane in target.lanes.values():
            lane.close()
        target.lanes.clear()

    # --- actions ----------------------------------------------------------------------------------

    def _do_all(self, target: DialTarget, actions: list[dial.Action], now: float) -> None:
        for action in actions:
            self._do(target, action, now)

    def _do(self, target: DialTarget, action: dial.Action, now: float) -> None:
        match action:
            case dial.Resolve():
                self._resolve(target, action.way)
            case dial.Connect():
                self._connect(target, action, now)
            case dial.Greet():
                assert target.connection is not None
                self._greetings.dial(target.connection, target, now)
            case dial.HangUp():
                self._hang_up(target)
            case dial.Diagnose():
                self._diagnose(target, action.way, action.spot)
            case dial.Warn():
                self._faulty(target, action.error)
            case dial.Tell():
                self._given_up(target, action.error)

    def _connect(self, target: DialTarget, action: dial.Connect, now: float) -> None:
        if self._left_behind(target):
            self.tell(target, dial.Held(), now)
            return
        host, port = action.spot
        try:
            target.connection = self._transport.dial(
                host, port, server=target.key, timeout=action.timeout
            )
        except Unreachable as error:
            logger.error("%s: %s", target.address, error)
            self.closed(target, "connect", now)

    def _left_behind(self, target: DialTarget) -> bool:
        """Whether this peer still listens, for nobody, where it dials now: the two sides have
        changed their modes. The listener goes as soon as all is acknowledged."""
        for place in self._places:
            if isinstance(place, ListenedAddress) and place.address == target.address:
                return not place.users and not place.own
        return False

    def _hang_up(self, target: DialTarget) -> None:
        connection, target.connection = target.connection, None
        if connection is not None:
            self._greetings.forget(connection)
            self._transport.end(connection)

    def _resolve(self, target: DialTarget, way: Address) -> None:
        lane = target.lanes.get(way)
        if lane is not None:
            self.tell(target, dial.Found(way, (_spot(lane),)), time.monotonic())
        elif way.url:
            self._in_thread(
                lambda: open_lane(way.url), lambda found: self._opened(target, way, found)
            )
        else:
            self._in_thread(lambda: _spots(way), lambda found: self._found(target, way, found))

    def _opened(self, target: DialTarget, way: Address, lane: Lane | ZBusError) -> None:
        if isinstance(lane, ZBusError):
            self._found(target, way, lane)
        elif target.dial.state is State.IDLE:  # closed meanwhile
            lane.close()
        else:
            target.lanes[way] = lane
            self._found(target, way, (_spot(lane),))

    def _found(self, target: DialTarget, way: Address, found: tuple[Spot, ...] | ZBusError) -> None:
        now = time.monotonic()
        if isinstance(found, ZBusError):
            self.tell(target, dial.NotFound(way, found), now)
        else:
            self.tell(target, dial.Found(way, found), now)

    def _diagnose(self, target: DialTarget, way: Address, spot: Spot) -> None:
        lane, key = target.lanes.get(way), target.key

        def look() -> ConnectError | None:
            return lane.problem if lane is not None else probe.diagnose(way, spot.host, key)

        def told(error: ZBusError | None) -> None:
            self.tell(target, dial.Diagnosed(way, spot, error), time.monotonic())

        self._in_thread(look, told)


def _spots(way: Address) -> tuple[Spot, ...]:
    return tuple(Spot(host, way.port) for host in probe.resolve_all(way))


def _spot(lane: Lane) -> Spot:
    return Spot("127.0.0.1", lane.port)
