"""What both directions of a value's way have in common: what carries them, and their one end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ..errors import InternalError, RemoteProtocolError, ZBusError
from ..net.places import Peering
from ..net.transport import Transport
from ..protocol.budget import Budget
from ..protocol.delivery import Actions, Do, Receiving, Sending
from .shm_lane import ShmLane
from .workers import Workers, outcome

logger = logging.getLogger(__name__)

T = TypeVar("T")
D = TypeVar("D", Sending, Receiving)


class Client(Protocol):
    """Whose value it is. Told how it ends, once."""

    def delivered(self, value: Any) -> None:
        """The peer has it (None), or it is here."""

    def undeliverable(self, error: ZBusError, resumable: bool) -> None:
        """It did not arrive. `resumable`: only because its session has ended, with a link that
        may come back: it can be sent again on the next session with that process."""


@dataclass
class Lanes:
    """What carries the values of one peer.

    Attributes:
        transport: Sends the chunks.
        workers: Run what computes.
        shm: The same-host lane.
        budget: The memory that values on their way in may take.
        post: Hands a call to the I/O thread, from any thread.
        unsaid: Ends a session in which something that had to be said could not be.
        grant_due: Has a flow asked for its GRANT at the end of this turn.
        permit: Tells the system whom memory is lent to now.
        ended: Forgets a flow.
    """

    transport: Transport
    workers: Workers
    shm: ShmLane
    budget: Budget
    post: Callable[[Callable[[], None]], bool]
    unsaid: Callable[[Peering, ZBusError], None]
    grant_due: Callable[[Any], None]
    permit: Callable[[], None]
    ended: Callable[[Any], None]


class Flow(Generic[D]):
    """One value on its way, in one direction: its delivery, and what does what that says.

    Attributes:
        delivery: How far it is, and what comes next.
        peering: The session it goes over.
    """

    DOING: ClassVar[Mapping[Do, Callable[[Any], None]]]
    """What does each action. The class's own: a flow that held its methods would hold itself."""

    def __init__(self, lanes: Lanes, peering: Peering, delivery: D, client: Client) -> None:
        self.delivery: D = delivery
        self.peering = peering
        self._lanes, self._client = lanes, client
        self._value: Any = None  # what is handed over

    def do(self, actions: Actions) -> None:
        """Do what the delivery says, in order. Whatever one of them raises ends the delivery, and
        so its client is told in any case, and the peer: if not by words, by the session's end."""
        for action in actions:
            try:
                self.DOING[action](self)
            except BaseException as error:
                logger.exception("a fault in zbus (%s); please report it", action.value)
                made = InternalError.of(error).at(peer=self.peering.name)
                if action in (Do.STORED, Do.REFUSE):  # the peer would wait for that for ever
                    self._lanes.unsaid(self.peering, made)
                self.failed(made)

    def failed(self, error: ZBusError) -> None:
        """It cannot go on, for a reason on this side."""
        self.do(self.delivery.failed(error))

    def drop(self, error: ZBusError) -> None:
        """Nobody here wants it any more. Who drops it tells the peer, in its own words."""
        self.do(self.delivery.dropped(error))

    def broken(self, error: ZBusError) -> None:
        """Its session has ended."""
        self.do(self.delivery.broken(error))

    def guarded(self, call: Callable[[], T]) -> T | None:
        """Do one thing for it: what that raises ends this transfer, and no other.

        Raises:
            RemoteProtocolError: The peer's fault: it ends the connection.
        """
        try:
            return call()
        except RemoteProtocolError:
            raise
        except ZBusError as error:
            self.failed(error)
        except BaseException as error:  # no memory, a codec, a bug
            logger.exception("a fault in a transfer; please report it")
            self.failed(InternalError.of(error))
        return None

    def _work(
        self,
        work: Callable[[], T],
        then: Callable[[T], None],
        *,
        at_once: bool = False,
        failed: Callable[[ZBusError], None] | None = None,
    ) -> None:
        """Run `work` in the pool, or here, and `then` with its result here. What it raises ends
        the delivery; `failed` hears it first, if it was the first to do so."""

        def done(result: T | ZBusError) -> None:
            if self.delivery.ended:
                return
            if isinstance(result, ZBusError):
                if failed is not None:
                    failed(result)
                self.failed(result)
                return
            try:
                then(result)
            except ZBusError as error:
                self.failed(error)
            except BaseException as error:
                logger.exception("a fault in zbus; please report it")
                self.failed(InternalError.of(error))

        if at_once:
            done(outcome(work))
        else:
            self._lanes.workers.run(work, done)

    def _tell(self) -> None:
        error, value = self.delivery.error, self._value
        # The memory is the client's alone: it is free when that lets go of it, and not when the
        # garbage collector comes round to this.
        self._value = None
        if error is None:
            self._client.delivered(value)
        else:
            self._client.undeliverable(error, self.delivery.resumable)
