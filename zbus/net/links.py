"""Keeps the links: dials and redials, accepts, shakes hands, and holds the sessions over them.

Runs in the I/O thread. Between `transport`, which moves frames, and the engine, which gives the
messages their meaning.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol, TypeVar

from ..errors import LinkLost, PeerGone, PeerRestarted, RemoteProtocolError, ZBusError
from ..machine import process_start
from ..protocol.fields import clip
from ..protocol.messages import Bye, Hello, Message, Ready, Reject, Status, decode, encode
from ..protocol.session import Ended, Redial, Session, Silent
from ..trust import EXCHANGE, Trust
from .addresses import Addresses
from .admission import NAME_IT, PAIRED_ONLY, Admission
from .dialling import Dialler, Helper
from .frames import Body, Closed, Connected, Connection, Received
from .greeting import Greeting, Greetings, Refused
from .places import BACKOFF_FIRST, Peering, Place, Settings
from .transport import Transport

logger = logging.getLogger(__name__)

MAX_PEERINGS = 64  # sessions at one listener
MAX_FAULTS = 3  # protocol errors that one session survives
PID_EVERY = 0.2  # seconds between looks whether a lost local peer still lives

T = TypeVar("T")


class Owner(Helper, Protocol):
    """Who is told what happens on the links: the engine."""

    def session_up(self, peering: Peering) -> None: ...
    def session_linked(self, peering: Peering) -> None: ...
    def session_unlinked(self, peering: Peering) -> None: ...
    def session_down(self, peering: Peering, error: ZBusError) -> None: ...
    def message(self, peering: Peering, message: Message, body: Body | None) -> None: ...


class Links:
    """All places and sessions of one peer.

    Args:
        transport: Moves the frames.
        own: This process's HELLO.
        settings: Times.
        owner: Is told what happens.
        trust: Whose keys are admitted, and for what.
    """

    def __init__(
        self, transport: Transport, own: Hello, settings: Settings, owner: Owner, trust: Trust
    ) -> None:
        self._transport, self._own, self._settings, self._owner = transport, own, settings, owner
        self.admission = Admission(trust, self._trust_changed)
        self.places: list[Place] = []
        self._dialler = Dialler(transport, self.places, owner)
        self.addresses = Addresses(transport, self.admission, settings, self.places, self._dialler)
        self._greetings = Greetings(transport, own, _known, self.admission.permitted)
        self._peerings: dict[Connection, Peering] = {}
        self._logged_at = 0.0

    @property
    def peerings(self) -> list[Peering]:
        return [peering for place in self.places for peering in place.peerings]

    # --- places -------------------------------------------------------------------------------

    def _close_place(self, place: Place, why: str) -> None:
        self.places.remove(place)
        for peering in list(place.peerings):
            self.end_session(peering, PeerGone(why, peer=peering.name), say=why)
        if place.connection is not None:
            self._drop(place.connection)
            place.connection = None
        place.forget_way()
        if place.listener is not None:
            self._greetings.forget_place(place)
            self._transport.unbind(place.listener)

    def say_goodbye(self, why: str) -> None:
        """Tell every peer that this side ends: it hangs up then. A side that hangs up by itself,
        with something of the peer's unread, makes TCP throw away what it has just said."""
        for peering in self.peerings:
            peering.session.send(Bye(why))
            self.flush(peering)

    def close(self, why: str) -> None:
        """End everything."""
        for place in list(self.places):
            self._close_place(place, why)

    # --- trust --------------------------------------------------------------------------------

    def _trust_changed(self) -> None:
        """Whoever is not paired any more, or may do other things now, is told and gone."""
        for peering in self.peerings:
            if peering.principal:
                self._reconsider(peering)
            elif not self.admission.plain:
                error = PeerGone(PAIRED_ONLY, peer=peering.name, remedy=NAME_IT)
                self.end_session(peering, error, say="only paired peers are wanted there now")
        self.addresses.widen()

    def _reconsider(self, peering: Peering) -> None:
        allowed, before = self.admission.permitted(peering.principal), peering.permissions
        if not self.admission.knows(peering.principal):
            error = PeerGone(
                "is not paired with this side any more",
                peer=peering.name,
                remedy="Pair anew if that was not meant: zbus-pair invite, zbus-pair accept",
            )
            self.end_session(peering, error, say="not paired any more")
        elif before - allowed or EXCHANGE in allowed - before:
            error = PeerGone(
                "may do other things here from now on",
                peer=peering.name,
                remedy="If it still may (zbus-pair list), run it again",
            )
            self.end_session(peering, error, say="its permissions have changed there")
        else:
            peering.permissions = allowed

    # --- events of the transport --------------------------------------------------------------

    def connected(self, event: Connected, now: float) -> None:
        """A dialled connection stands: say HELLO."""
        connection = event.connection
        place = next((p for p in self.places if p.connection is connection), None)
        if place is None:
            self._transport.end(connection)
            return
        self._greetings.dial(connection, place, now)

    def closed(self, event: Closed, now: float) -> None:
        """A connection is gone."""
        connection = event.connection
        self._greetings.forget(connection)
        peering = self._peerings.pop(connection, None)
        if peering is not None and peering.connection is connection:
            self._unlink(peering, now)
        place = next((p for p in self.places if p.connection is connection), None)
        if place is not None:
            self._dialler.failed(place, event.stage, now)

    def received(self, event: Received, now: float) -> None:
        """A message has come. Whatever is wrong with it ends its connection, and nothing else."""
        connection = event.connection
        try:
            seq, message = decode(event.header, event.body is not None)
            peering = self._peerings.get(connection)
            if peering is None:
                self._greet(connection, message, now)
            else:
                self._take(peering, seq, message, event.body, now)
        except RemoteProtocolError as error:
            self._fault(connection, error, now)

    def _take(
        self, peering: Peering, seq: int, message: Message, body: Body | None, now: float
    ) -> None:
        peering.silent = 0.0
        if not peering.session.receive(seq, message, now):
            return
        if isinstance(message, Bye):
            error = PeerGone(
                f"said goodbye: {message.why}", peer=peering.name, remedy="Run both workflows again"
            )
            self.end_session(peering, error, linger=0)  # it waits for this side to hang up
        elif isinstance(message, Reject):
            raise RemoteProtocolError(f"the peer ended the connection: {message.why}")
        elif isinstance(message, (Hello, Ready)):
            raise RemoteProtocolError(f"{type(message).__name__.upper()} after the handshake")
        elif isinstance(message, Status):
            peering.activity = message.activity
        else:
            self._owner.message(peering, message, body)

    def _fault(self, connection: Connection, error: RemoteProtocolError, now: float) -> None:
        peering = self._peerings.pop(connection, None)
        place = self._greetings.place(connection)
        self._greetings.forget(connection)
        where = connection.listener.port if connection.listener else "a dialled address"
        if now - self._logged_at >= 1.0:
            self._logged_at = now
            logger.error("protocol error on %s: %s; connection ended", where, error)
        self._transport.send(connection, encode(Reject("protocol", clip(str(error), 500))))
        self._transport.end(connection, linger=500)
        if peering is not None:
            peering.faults += 1
            self._unlink(peering, now)
            if peering.faults >= MAX_FAULTS:
                self.end_session(peering, error.at(peer=peering.name))
            place = peering.place
        if place is not None and place.connection is connection:
            self._dialler.failed(place, "link", now)
            if place.peering is None and place.failures >= MAX_FAULTS:
                self._dialler.give_up(place, error.at(peer=str(place.address)))

    # --- handshakes ---------------------------------------------------------------------------

    def _greet(self, connection: Connection, message: Message, now: float) -> None:
        if self._greetings.place(connection) is None:
            place = next((p for p in self.places if p.listener is connection.listener), None)
            if place is None or connection.dialled:
                raise RemoteProtocolError("no handshake is possible here")
            self._greetings.accept(connection, place, now)
        try:
            greeting = self._greetings.receive(connection, message)
        except Refused as refused:
            if connection.dialled:  # else the dialler closes it
                self._transport.end(connection)
                refused.place.connection = None
                error = refused.error.at(peer=str(refused.place.address))
                self._dialler.give_up(refused.place, error)
            return
        if greeting is not None and connection.dialled:
            self._dialled(connection, greeting, now)
        elif greeting is not None:
            self._accepted(connection, greeting, now)

    def _dialled(self, connection: Connection, greeting: Greeting, now: float) -> None:
        place, peer = greeting.place, greeting.peer
        place.succeeded()
        peering = place.peering
        if peering is not None and not peer.resumed:
            self.end_session(peering, _not_resumed(peering.session.peer, peer))
            self._drop(connection)
            place.connection, place.next_dial = None, now
            return
        is_new = peering is None
        if peering is None:
            peering = self._new_peering(greeting, connection, now)
        self._greetings.agree(connection, greeting)
        self._link(peering, connection, peer.received, now, is_new)

    def _accepted(self, connection: Connection, greeting: Greeting, now: float) -> None:
        place, peer = greeting.place, greeting.peer
        if connection.key and not self.admission.knows(connection.key):
            raise RemoteProtocolError("not paired any more")
        peering = _known(place, peer, connection.key)
        is_new = peering is None
        if peering is None:
            self._supersede(place, peer, connection.key)
            self._make_room(place)
            peering = self._new_peering(greeting, connection, now)
        elif peering.connection is not None:
            self._drop(peering.connection)
            self._unlink(peering, now)
        self._link(peering, connection, peer.received, now, is_new)

    def _make_room(self, place: Place) -> None:
        """Anybody may open sessions at a plain listener: the oldest lost one goes for a new one.

        Raises:
            RemoteProtocolError: All of them are linked.
        """
        if len(place.peerings) < MAX_PEERINGS:
            return
        lost = next((p for p in place.peerings if p.connection is None), None)
        if lost is None:
            raise RemoteProtocolError(f"{MAX_PEERINGS} peers are connected here")
        self.end_session(lost, LinkLost("gave way to another peer", peer=lost.name))

    def _supersede(self, place: Place, peer: Hello, key: bytes) -> None:
        """A peer that comes anew has forgotten its older sessions here."""
        for old in list(place.peerings):
            told = old.session.peer
            if (old.principal, told.instance) != (key, peer.instance):
                continue
            if told.incarnation != peer.incarnation:
                self.end_session(old, _not_resumed(told, peer))
            elif old.connection is None:
                # It had given up the old one, and may go on with its jobs.
                self.end_session(old, LinkLost("has dialled anew", peer=told.name))

    def _new_peering(self, greeting: Greeting, connection: Connection, now: float) -> Peering:
        place, peer = greeting.place, greeting.peer
        if peer.resumed or peer.received:
            raise RemoteProtocolError("it would go on with a session that is not known here")
        session = Session(
            peer.session,
            peer,
            dialled=connection.dialled,
            reconnect_wait=self._settings.reconnect_wait,
            now=now,
        )
        peering = Peering(session, place, connection.key)
        peering.permissions = self.admission.permitted(connection.key)
        if peer.boot and peer.boot == self._own.boot:
            peering.process = process_start(peer.pid)
        place.peerings.append(peering)
        logger.info("session with %s at %s", peer.name, place.address)
        return peering

    def _link(
        self, peering: Peering, connection: Connection, received: int, now: float, is_new: bool
    ) -> None:
        peering.session.linked(received, now)
        peering.connection = connection
        self._peerings[connection] = peering
        if is_new:
            self._owner.session_up(peering)
        else:
            logger.info("link to %s is back", peering.name)
        self._owner.session_linked(peering)
        self.flush(peering)

    def _unlink(self, peering: Peering, now: float) -> None:
        if peering.connection is not None:
            self._peerings.pop(peering.connection, None)
        peering.connection = None
        peering.silent = 0.0
        if peering.error is None and peering.session.is_linked:
            peering.session.unlinked(now)
            peering.pace.reset()
            logger.info("link to %s lost", peering.name)
            self._owner.session_unlinked(peering)
            self._look_after_pid(peering)

    def _drop(self, connection: Connection) -> None:
        self._greetings.forget(connection)
        self._peerings.pop(connection, None)
        self._transport.end(connection)

    # --- sessions -----------------------------------------------------------------------------

    def flush(self, peering: Peering) -> None:
        """Put what the session has to say on its connection."""
        for header, *body in peering.session.outgoing():
            if peering.connection is not None:
                self._transport.send(peering.connection, header, body[0] if body else None)

    def end_session(
        self, peering: Peering, error: ZBusError, say: str = "", linger: int = 200
    ) -> None:
        """The session is over: tell the owner, and with `say` the peer too."""
        if peering not in peering.place.peerings:
            return
        peering.place.peerings.remove(peering)
        if say:
            peering.session.send(Bye(say))
            self.flush(peering)
        peering.session.end(error)
        logger.info("session with %s ended: %s", peering.name, error)
        connection, peering.connection = peering.connection, None
        if connection is not None:
            self._peerings.pop(connection, None)
            # What is under way goes first: a goodbye behind a window of bulk takes its time.
            self._transport.end(connection, linger=3 * linger if peering.transfers else linger)
            if peering.place.connection is connection:
                peering.place.connection = None
                peering.place.next_dial = time.monotonic() + BACKOFF_FIRST
        self._owner.session_down(peering, error)

    def _look_after_pid(self, peering: Peering) -> None:
        peer = peering.session.peer
        if peering.process is not None and process_start(peer.pid) != peering.process:
            error = PeerGone(
                f"its process (pid {peer.pid}) has ended",
                peer=peering.name,
                remedy="Start that ComfyUI again, then run both workflows",
            )
            self.end_session(peering, error)

    # --- time ---------------------------------------------------------------------------------

    def tick(self, now: float, late: float) -> None:
        """Do what is due. Call it after all input that had come was handed in."""
        self.admission.tick(now)
        for place in list(self.places):
            self._tick_place(place, now)
            for peering in list(place.peerings):
                self._tick_peering(peering, now, late)
        for connection, place in self._greetings.overdue(now):
            self._drop(connection)
            if place.connection is connection:
                self._dialler.failed(place, "link", now)

    def _tick_place(self, place: Place, now: float) -> None:
        if not place.users and not place.own and self.addresses.is_done(place, now):
            self._close_place(place, "the address is not in use any more")
            return
        is_due = place.next_dial is not None and now >= place.next_dial
        is_resolving = place.looking and place.numeric is None
        if is_due and place.connection is None and not is_resolving:
            self._dialler.dial(place, now)

    def _tick_peering(self, peering: Peering, now: float, late: float) -> None:
        session, place = peering.session, peering.place
        session.active = place.users > 0 or peering.transfers > 0 or peering.jobs
        for event in session.tick(now, late):
            if isinstance(event, Silent):
                peering.silent = event.seconds
            elif isinstance(event, Redial) and peering.connection is not None:
                connection = peering.connection
                self._drop(connection)
                self._unlink(peering, now)
                if place.connection is connection:
                    self._dialler.failed(place, "link", now)
            elif isinstance(event, Ended):
                self.end_session(peering, event.error)
        if session.error is None and not session.is_linked:
            self._look_after_pid(peering)
            self._give_up_hopeless(peering, now)

    def _give_up_hopeless(self, peering: Peering, now: float) -> None:
        since = peering.place.hopeless_since
        if since is None or now - since < self._settings.nobody_wait or peering.error is not None:
            return
        problem = peering.place.problem
        why = problem.what if problem else "every new connection is closed at once"
        error = LinkLost(
            f"the link was lost, and for {now - since:.0f} s {why}",
            peer=peering.name,
            remedy="Look at the tunnel, and whether that ComfyUI still runs; then run both again",
        )
        self.end_session(peering, error)

    def deadline(self, now: float) -> float | None:
        """When `tick` has something to do."""
        first = self._greetings.deadline()
        times = [] if first is None else [first]
        if any(p.principal not in (b"", self._transport.key) for p in self.peerings):
            times.append(self.admission.deadline)  # of this user's own peers none can be sent away
        for place in self.places:
            if place.next_dial is not None and place.connection is None:
                times.append(place.next_dial)
            if not place.users and not place.own:
                times.append(max(place.idle_since + self._settings.linger, now + PID_EVERY))
            for peering in place.peerings:
                due = peering.session.deadline()
                if due is not None:
                    times.append(due)
                if not peering.session.is_linked:
                    times.append(now + PID_EVERY)
        return min(times, default=None)


def _not_resumed(known: Hello, peer: Hello) -> ZBusError:
    remedy = "Run both workflows again"
    if known.incarnation != peer.incarnation:
        return PeerRestarted(
            "was restarted; what was under way is gone", peer=known.name, remedy=remedy
        )
    return LinkLost("gave up waiting for this side", peer=known.name, remedy=remedy)


def _known(place: Place, peer: Hello, key: bytes) -> Peering | None:
    """The session at that place which this HELLO, from the owner of that key, would go on with."""
    for peering in place.peerings:
        told = peering.session.peer
        is_same = (peering.principal, told.incarnation) == (key, peer.incarnation)
        if is_same and peering.key == peer.session:
            return peering
    return None
