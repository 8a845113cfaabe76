"""Keeps the links: dials and redials, accepts, shakes hands, and holds the sessions over them.

Runs in the I/O thread. Between `transport`, which moves frames, and the engine, which gives the
messages their meaning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import RUN_AGAIN, InternalError, PeerGone, RemoteProtocolError, ZBusError
from ..protocol import dial
from ..protocol.fields import clip
from ..protocol.identity import SessionKey
from ..protocol.messages import (
    Ack,
    Bye,
    Hello,
    Message,
    Ping,
    Ready,
    Reject,
    Status,
    decode,
    encode,
)
from ..trust import Trust
from .addresses import Addresses
from .admission import Admission
from .dialling import Dialler
from .frames import Body, Closed, Connected, Connection, Received
from .greeting import Greeting, Greetings, Refused
from .owner import Owner
from .peerings import Peerings
from .places import DialTarget, ListenedAddress, Peering, Place, Settings
from .transport import Transport

logger = logging.getLogger(__name__)

MAX_FAULTS = 3  # protocol errors that one session survives
REJECT_TIME = 500  # milliseconds for a REJECT to arrive, until its connection is cut
LOG_EVERY = 1.0  # seconds between log lines on strangers
FAULTY = (
    "Look at the address: another program answers there, or a zbus that does not fit (update both)"
)
AGAIN = 0.2  # seconds to the next look whether an unused address may go

Handler = Callable[[Peering, Any, "Body | None"], None]


class Links:
    """All places and sessions of one peer.

    Args:
        transport: Moves the frames.
        own: This process's HELLO.
        settings: Times.
        owner: Is told what happens.
        trust: Whose keys are admitted, and for what.

    Attributes:
        refused: How many HELLOs this side has refused; their connections are cut soon after.
    """

    def __init__(
        self, transport: Transport, own: Hello, settings: Settings, owner: Owner, trust: Trust
    ) -> None:
        self._transport, self._settings, self._owner = transport, settings, owner
        self.admission = Admission(trust, self._trust_changed)
        self.places: list[Place] = []
        self._greetings = Greetings(transport, own, self._known, self.admission.permitted)
        self._dialler = Dialler(
            transport,
            self._greetings,
            self.places,
            owner.in_thread,
            owner.place_faulty,
            self._given_up,
        )
        self.addresses = Addresses(transport, self.admission, settings, self.places, self._dialler)
        self._peerings = Peerings(
            transport, self.admission, settings, owner, self.places, self._dialler, own
        )
        # Each kind has one handler: those of the links themselves, and the engine adds its own.
        self.handlers: dict[type[Message], Handler] = {
            Hello: self._late_handshake,
            Ready: self._late_handshake,
            Reject: self._rejected,
            Bye: self._bye,
            Status: self._status,
            Ack: self._taken_note_of,
            Ping: self._taken_note_of,
        }
        self.refused = 0
        self._unsaid: dict[Peering, ZBusError] = {}  # sessions that are to end, and why
        self._logged_at = 0.0
        self._unlogged = 0

    @property
    def peerings(self) -> list[Peering]:
        return self._peerings.all

    def peering(self, key: SessionKey) -> Peering | None:
        """The session of that key; None once it has ended."""
        return self._peerings.of(key)

    def _known(self, place: Place, connection: Connection, peer: Hello) -> Peering | None:
        return self._peerings.known(place, connection, peer)

    # --- places -------------------------------------------------------------------------------

    def _target(self, connection: Connection) -> DialTarget | None:
        """What a connection was dialled for."""
        for place in self.places:
            if isinstance(place, DialTarget) and place.connection is connection:
                return place
        return None

    def _close_place(self, place: Place, why: str, now: float) -> None:
        self.places.remove(place)
        for peering in list(place.peerings):
            self._peerings.end(peering, PeerGone(why, peer=peering.name), say=why)
        if isinstance(place, DialTarget):
            self._dialler.close(place, now)
        else:
            self._greetings.forget_place(place)
            self._transport.unbind(place.listener)

    def _given_up(self, target: DialTarget, error: ZBusError) -> None:
        error = error.at(peer=str(target.dial.ways.known[0].address))
        self._peerings.given_up(target, error)
        self._owner.place_failed(target, error)

    def say_goodbye(self, why: str) -> None:
        """Tell every peer that this side ends."""
        self._peerings.say_goodbye(why)

    def close(self, why: str) -> None:
        """End everything."""
        for place in list(self.places):
            self._close_place(place, why, time.monotonic())

    def unsaid(self, peering: Peering, error: ZBusError) -> None:
        """Something that the peer waits for could not be said to it, or what it said could not be
        taken: nothing can be relied on any more, so the session ends, on both sides. In the next
        `tick`: whoever says so may be in the midst of beginning it."""
        self._unsaid.setdefault(peering, error)

    def _end_unsaid(self) -> None:
        unsaid, self._unsaid = self._unsaid, {}
        for peering, error in unsaid.items():
            self._peerings.end(peering, error, say=f"a fault of its own: {error.what}")

    def flush(self, peering: Peering) -> None:
        """Put what the session has to say on its connection."""
        self._peerings.flush(peering)

    def _trust_changed(self) -> None:
        self._peerings.trust_changed()
        self.addresses.widen()

    # --- events of the transport --------------------------------------------------------------

    def poll(self, timeout: float | None) -> Iterator[tuple[float, bool]]:
        """Wait for input, at most `timeout` seconds; the time of each event, once it was handled,
        and whether it was a message of a session. A bug in that ends the one thing, and not every
        link of this process."""
        for event in self._transport.poll(timeout):
            now = time.monotonic()
            is_message = False
            try:
                if isinstance(event, Received):
                    is_message = self._peerings.on(event.connection) is not None
                    self.received(event, now)
                elif isinstance(event, Connected):
                    self.connected(event, now)
                else:
                    self.closed(event, now)
            except BaseException:
                logger.exception("a fault in zbus itself; please report it")
            yield now, is_message and not self._unsaid

    def connected(self, event: Connected, now: float) -> None:
        """A dialled connection stands: say HELLO."""
        target = self._target(event.connection)
        if target is None:
            self._transport.end(event.connection)
        else:
            self._dialler.tell(target, dial.Connected(), now)

    def closed(self, event: Closed, now: float) -> None:
        """A connection is gone."""
        connection = event.connection
        self._greetings.forget(connection)
        peering = self._peerings.on(connection)
        if peering is not None:
            self._peerings.unlink(peering, now)
        target = self._target(connection)
        if target is not None:
            self._dialler.closed(target, event.stage, now)

    def received(self, event: Received, now: float) -> None:
        """A message has come. Whatever is wrong with it ends its connection, and nothing else."""
        connection = event.connection
        try:
            seq, message = decode(event.header, event.body is not None)
            peering = self._peerings.on(connection)
            if peering is None:
                self._greet(connection, message, now)
            else:
                self._take(peering, seq, message, event.body, now)
        except RemoteProtocolError as error:
            self._fault(connection, error, now)
        except BaseException as error:
            peering = self._peerings.on(connection)
            if peering is None:
                raise
            # It is not said again.
            logger.exception("a fault in zbus itself; please report it")
            self.unsaid(peering, InternalError.of(error).at(peer=peering.name))

    def _take(
        self, peering: Peering, seq: int, message: Message, body: Body | None, now: float
    ) -> None:
        peering.silent = 0.0
        if not peering.session.receive(seq, message, now):
            return
        self.handlers[type(message)](peering, message, body)

    def _bye(self, peering: Peering, message: Bye, _: Body | None) -> None:
        remedy = RUN_AGAIN[0].upper() + RUN_AGAIN[1:]
        error = PeerGone(f"said goodbye: {message.why}", peer=peering.name, remedy=remedy)
        self._peerings.end(peering, error, linger=0)  # it waits for this side to hang up

    def _rejected(self, _: Peering, message: Reject, __: Body | None) -> None:
        raise RemoteProtocolError(f"the peer ended the connection: {message.why}")

    def _late_handshake(self, _: Peering, message: Hello | Ready, __: Body | None) -> None:
        raise RemoteProtocolError(f"{type(message).__name__.upper()} after the handshake")

    def _status(self, peering: Peering, message: Status, _: Body | None) -> None:
        peering.activity = message.activity

    def _taken_note_of(self, _: Peering, __: Message, ___: Body | None) -> None:
        """The session has, by itself."""

    def _fault(self, connection: Connection, error: RemoteProtocolError, now: float) -> None:
        peering, target = self._peerings.on(connection), self._target(connection)
        if peering is None and not connection.dialled:
            self.refused += 1
        self._greetings.forget(connection)
        where = connection.listener.port if connection.listener else "a dialled address"
        self._log(f"protocol error on {where}: {error}; connection ended", now)
        self._transport.send(connection, encode(Reject("protocol", clip(str(error), 500))))
        self._transport.end(connection, linger=REJECT_TIME)
        if peering is not None:
            peering.faults += 1
            self._peerings.unlink(peering, now)
        if target is not None:
            told = RemoteProtocolError(
                error.what, peer=str(target.address), stage="handshake", remedy=FAULTY
            )
            self._dialler.tell(target, dial.Faulty(told), now)
        if peering is not None and peering.faults >= MAX_FAULTS:
            self._peerings.end(peering, error.at(peer=peering.name))

    def _log(self, text: str, now: float) -> None:
        """What strangers can bring about fills no log."""
        if now - self._logged_at < LOG_EVERY:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more like it before)" if self._unlogged else ""
        self._logged_at, self._unlogged = now, 0
        logger.error("%s%s", text, more)

    # --- handshakes ---------------------------------------------------------------------------

    def _greet(self, connection: Connection, message: Message, now: float) -> None:
        if self._greetings.place(connection) is None:
            self._greetings.accept(connection, self._listened(connection), now)
        try:
            greeting = self._greetings.receive(connection, message)
        except Refused as refused:
            self._refuse(connection, refused.error, now)
            return
        if greeting is None:
            return
        target = self._target(connection)
        if target is not None:
            self._dialled(target, greeting, now)
        else:
            self._accepted(greeting, now)

    def _listened(self, connection: Connection) -> ListenedAddress:
        """Where it has come, with its first message.

        Raises:
            RemoteProtocolError: Nowhere.
        """
        for place in self.places:
            if isinstance(place, ListenedAddress) and place.listener is connection.listener:
                return place
        raise RemoteProtocolError("no handshake is possible here")

    def _refuse(self, connection: Connection, error: ZBusError, now: float) -> None:
        """The two shall not talk. An honest dialler hangs up when it is told so."""
        target = self._target(connection)
        if target is not None:
            error = error.at(peer=str(target.address))
            self._dialler.tell(target, dial.Refused(error), now)
        else:
            self.refused += 1
            self._log(f"a HELLO was refused: {error}", now)
            self._transport.end(connection, linger=REJECT_TIME)

    def _dialled(self, target: DialTarget, greeting: Greeting, now: float) -> None:
        peering = self._peerings.answered(target, greeting)
        if peering is None:
            return
        self._dialler.tell(target, dial.Greeted(), now)
        self._greetings.agree(greeting)
        self._peerings.link(peering, greeting, now)

    def _accepted(self, greeting: Greeting, now: float) -> None:
        connection = greeting.connection
        if connection.key and not self.admission.knows(connection.key):
            raise RemoteProtocolError("not paired any more")
        peering = self._peerings.accepted(greeting, connection, now)
        self._peerings.link(peering, greeting, now)

    # --- time ---------------------------------------------------------------------------------

    def tick(self, now: float, late: float) -> None:
        """Do what is due. Call it after all input that had come was handed in."""
        self._end_unsaid()
        self.admission.tick(now)
        self.addresses.tick(now)
        for place in list(self.places):
            if place in self.places:
                self._tick_place(place, now)
            for peering in list(place.peerings):
                self._peerings.tick(peering, now, late)
        for connection in self._greetings.overdue(now):
            self._greetings.forget(connection)
            self._transport.end(connection)

    def _tick_place(self, place: Place, now: float) -> None:
        is_unused = not place.users and not _stays(place)
        if is_unused and self.addresses.is_done(place, now):
            self._close_place(place, "the address is not in use any more", now)
        elif isinstance(place, DialTarget):
            self._dialler.tick(place, now)

    def deadline(self, now: float) -> float | None:
        """When `tick` has something to do."""
        times = [self._greetings.deadline(), self.addresses.deadline()]
        times += [now] if self._unsaid else []
        # Of this user's own peers none can be sent away.
        strangers = any(p.principal not in (b"", self._transport.key) for p in self.peerings)
        if strangers or self.admission.is_lan_lent:
            times.append(self.admission.deadline)
        for place in self.places:
            if isinstance(place, DialTarget):
                times.append(place.dial.deadline())
            if not place.users and not _stays(place):
                times.append(max(place.idle_since + self._settings.linger, now + AGAIN))
            times += [self._peerings.deadline(peering, now) for peering in place.peerings]
        return min((at for at in times if at is not None), default=None)


def _stays(place: Place) -> bool:
    return isinstance(place, ListenedAddress) and place.own
