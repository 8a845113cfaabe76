"""The sessions of one peer: found again, made, linked, lost and ended.

Runs in the I/O thread. Which connections there are, and what is said on them, `links` knows; whom
a session belongs to, it has been told by the handshake.
"""

from __future__ import annotations

import logging
import time

from ..errors import (
    RUN_AGAIN,
    LinkLost,
    PeerGone,
    PeerRestarted,
    RemoteProtocolError,
    ZBusError,
)
from ..machine import process_start
from ..protocol import dial
from ..protocol.fields import clip
from ..protocol.identity import SessionKey
from ..protocol.messages import Bye, Hello
from ..protocol.pace import Pace
from ..protocol.rates import Rates
from ..protocol.session import Ended, Redial, Session, Silent
from ..trust import EXCHANGE
from .admission import NAME_IT, PAIRED_ONLY, Admission
from .dialling import Dialler
from .frames import Connection
from .greeting import Greeting
from .owner import Owner
from .places import DialTarget, Peering, Place, Settings
from .proving import identity, session_key
from .transport import Transport

logger = logging.getLogger(__name__)

AGAIN = "Run it again"
MAX_PEERINGS = 64  # sessions of one principal at one listener
PID_EVERY = 0.2  # seconds between looks whether a lost local peer still lives,
PID_ACTIVE = 1.0  # and one whose link stands: a child of it may hold that open


class Peerings:
    """All of them.

    Args:
        transport: Carries what they say.
        admission: Whom this side admits, and to what.
        settings: Times.
        owner: Is told what becomes of them.
        places: Where they are.
        dialler: Is told when one is over that this side has dialled.
        own: This process's HELLO.
    """

    def __init__(
        self,
        transport: Transport,
        admission: Admission,
        settings: Settings,
        owner: Owner,
        places: list[Place],
        dialler: Dialler,
        own: Hello,
    ) -> None:
        self._transport, self._admission, self._settings = transport, admission, settings
        self._owner, self._places, self._dialler, self._own = owner, places, dialler, own
        self._by_connection: dict[Connection, Peering] = {}
        self._by_key: dict[SessionKey, Peering] = {}
        self._rates = Rates()

    def __len__(self) -> int:
        return len(self._by_connection)

    @property
    def all(self) -> list[Peering]:
        return list(self._by_key.values())

    def of(self, key: SessionKey) -> Peering | None:
        """The session of that key; None once it has ended."""
        return self._by_key.get(key)

    def on(self, connection: Connection) -> Peering | None:
        """The session that a connection carries."""
        return self._by_connection.get(connection)

    def known(self, place: Place, connection: Connection, peer: Hello) -> Peering | None:
        """The session there which that HELLO would go on with."""
        key = session_key(connection, place.where, self._own, peer)
        return next((peering for peering in place.peerings if peering.key == key), None)

    # --- from the handshakes --------------------------------------------------------------------

    def answered(self, target: DialTarget, greeting: Greeting) -> Peering | None:
        """The session that an answer to this side's HELLO belongs to, made if need be. None if it
        had to end: then all is said anew.

        Raises:
            RemoteProtocolError: The answer makes no sense.
        """
        peering, peer = target.peering, greeting.peer
        if peering is None:
            return self._made(greeting)
        if not peer.resumed:
            self.end(peering, not_resumed(peering.session.peer, peer))
            return None
        if self.known(target, greeting.connection, peer) is not peering:
            raise RemoteProtocolError("it would go on with the session of another process")
        return peering

    def accepted(self, greeting: Greeting, connection: Connection, now: float) -> Peering:
        """The session that a dialler's HELLO belongs to.

        Raises:
            RemoteProtocolError: The HELLO makes no sense, or there are too many sessions.
        """
        place, peer = greeting.place, greeting.peer
        peering = self.known(place, connection, peer)
        if peering is None:
            _check_new(peer)  # before any other session has to go for it
            self._supersede(place, peer, connection.key)
            self._make_room(place, connection.key)
            return self._made(greeting)
        if peering.connection is not None:
            self._transport.end(peering.connection)
            self.unlink(peering, now)
        return peering

    def _made(self, greeting: Greeting) -> Peering:
        connection, place, peer = greeting.connection, greeting.place, greeting.peer
        _check_new(peer)
        session = Session(
            peer.session,
            peer,
            dialled=connection.dialled,
            reconnect_wait=self._settings.reconnect_wait,
            now=time.monotonic(),
        )
        key = session_key(connection, place.where, self._own, peer)
        peering = Peering(session, place, key, identity(connection, peer))
        earlier = self._rates.of(_link(peering))
        peering.pace = Pace(earlier, encrypted=bool(peering.principal))
        peering.permissions = self._admission.permitted(connection.key)
        if peer.boot and peer.boot == self._own.boot:
            peering.process = process_start(peer.pid)
        place.peerings.append(peering)
        self._by_key[peering.key] = peering
        logger.info("session with %s at %s", peer.name, place.address)
        return peering

    def _make_room(self, place: Place, key: bytes) -> None:
        """Anybody may open sessions at a plain listener: the oldest lost one goes for a new one.
        At an own listener only one of the same principal does: nobody pushes out another's.

        Raises:
            RemoteProtocolError: All of them are linked.
        """
        same = [p for p in place.peerings if p.principal == key]
        if len(same) < MAX_PEERINGS:
            return
        lost = next((p for p in same if p.connection is None), None)
        if lost is None:
            raise RemoteProtocolError(f"{MAX_PEERINGS} peers are connected here")
        self.end(lost, LinkLost("gave way to another peer", peer=lost.name, remedy=AGAIN))

    def _supersede(self, place: Place, peer: Hello, key: bytes) -> None:
        """A peer that comes anew has forgotten its older sessions here."""
        for old in list(place.peerings):
            told = old.session.peer
            if (old.principal, told.instance) != (key, peer.instance):
                continue
            if told.incarnation != peer.incarnation:
                self.end(old, not_resumed(told, peer))
            elif old.connection is None:
                # It had given up the old one, and may go on with its jobs.
                self.end(old, LinkLost("has dialled anew", peer=told.name, remedy=AGAIN))

    # --- their connections ----------------------------------------------------------------------

    def link(self, peering: Peering, greeting: Greeting, now: float) -> None:
        """A connection carries it from now on.

        Raises:
            RemoteProtocolError: What the peer says to have of it makes no sense.
        """
        is_new = not peering.was_linked
        peering.session.linked(greeting.peer.received, now)
        peering.connection, peering.was_linked = greeting.connection, True
        peering.is_direct = peering.is_local and _is_direct(greeting)
        self._by_connection[greeting.connection] = peering
        if is_new:
            self._owner.session_up(peering)
        else:
            logger.info("link to %s is back", peering.name)
        self._owner.session_linked(peering)
        self.flush(peering)

    def unlink(self, peering: Peering, now: float) -> None:
        """Its connection is gone."""
        if peering.connection is not None:
            self._by_connection.pop(peering.connection, None)
        peering.connection = None
        peering.silent = 0.0
        if peering.error is None and peering.session.is_linked:
            peering.session.unlinked(now)
            peering.pace.reset()
            logger.info("link to %s lost", peering.name)
            self._owner.session_unlinked(peering)
            self._look_after_pid(peering)

    def flush(self, peering: Peering) -> None:
        """Put what the session has to say on its connection."""
        for header, *body in peering.session.outgoing():
            if peering.connection is not None:
                self._transport.send(peering.connection, header, body[0] if body else None)

    # --- their end ------------------------------------------------------------------------------

    def end(self, peering: Peering, error: ZBusError, say: str = "", linger: int = 200) -> None:
        """The session is over: tell the owner, and with `say` the peer too."""
        if peering not in peering.place.peerings:
            return
        peering.place.peerings.remove(peering)
        self._by_key.pop(peering.key, None)
        self._rates.keep(_link(peering), peering.pace.found)
        if say:
            try:
                peering.session.send(Bye(clip(say)))
                self.flush(peering)
            except BaseException:  # it ends in any case, and the peer misses the words
                logger.exception("no goodbye could be said")
        peering.session.end(error)
        logger.info("session with %s ended: %s", peering.name, error)
        connection, peering.connection = peering.connection, None
        if connection is not None:
            self._by_connection.pop(connection, None)
            # What is under way goes first: a goodbye behind a window of bulk takes its time.
            self._transport.end(connection, linger=3 * linger if peering.transfers else linger)
        if isinstance(peering.place, DialTarget):
            self._dialler.tell(peering.place, dial.Parted(), time.monotonic())
        self._owner.session_down(peering, error)

    def given_up(self, target: DialTarget, error: ZBusError) -> None:
        """Nobody dials there any more: its session cannot come back."""
        for peering in [p for p in target.peerings if p.connection is None]:
            self.end(peering, error.at(peer=peering.name))

    def say_goodbye(self, why: str) -> None:
        """Tell every peer that this side ends: it hangs up then. A side that hangs up by itself,
        with something of the peer's unread, makes TCP throw away what it has just said."""
        for peering in self.all:
            peering.session.send(Bye(why))
            self.flush(peering)

    def trust_changed(self) -> None:
        """Whoever is not paired any more, or may do other things now, is told and gone."""
        for peering in self.all:
            if peering.principal:
                self._reconsider(peering)
            elif not self._admission.plain:
                error = PeerGone(PAIRED_ONLY, peer=peering.name, remedy=NAME_IT)
                self.end(peering, error, say="only paired peers are wanted there now")

    def _reconsider(self, peering: Peering) -> None:
        allowed, before = self._admission.permitted(peering.principal), peering.permissions
        if not self._admission.knows(peering.principal):
            error = PeerGone(
                "is not paired with this side any more",
                peer=peering.name,
                remedy="Pair anew if that was not meant: zbus-pair invite, zbus-pair accept",
            )
            self.end(peering, error, say="not paired any more")
        elif before - allowed or EXCHANGE in allowed - before:
            error = PeerGone(
                "may do other things here from now on",
                peer=peering.name,
                remedy="If it still may (zbus-pair list), run it again",
            )
            self.end(peering, error, say="its permissions have changed there")
        else:
            peering.permissions = allowed

    # --- time -----------------------------------------------------------------------------------

    def tick(self, peering: Peering, now: float, late: float) -> None:
        """Do what is due for one."""
        session, place = peering.session, peering.place
        session.active = place.users > 0 or peering.transfers > 0 or peering.jobs is not None
        for event in session.tick(now, late):
            if isinstance(event, Silent):
                peering.silent = event.seconds
                self._look_after_pid(peering)
            elif isinstance(event, Redial) and peering.connection is not None:
                self._redial(peering, peering.connection, now)
            elif isinstance(event, Ended):
                self.end(peering, event.error)
        if session.error is None and not session.is_linked:
            self._look_after_pid(peering)
            self._give_up_hopeless(peering, now)
        elif session.error is None and session.active and now >= peering.pid_at:
            peering.pid_at = now + PID_ACTIVE
            self._look_after_pid(peering)

    def _redial(self, peering: Peering, connection: Connection, now: float) -> None:
        self._transport.end(connection)
        self.unlink(peering, now)
        place = peering.place
        if isinstance(place, DialTarget) and place.connection is connection:
            self._dialler.closed(place, "link", now)

    def _look_after_pid(self, peering: Peering) -> None:
        peer = peering.session.peer
        if peering.process is not None and process_start(peer.pid) != peering.process:
            error = PeerGone(
                f"its process (pid {peer.pid}) has ended",
                peer=peering.name,
                remedy=f"Start that ComfyUI again, then {RUN_AGAIN}",
            )
            self.end(peering, error)

    def _give_up_hopeless(self, peering: Peering, now: float) -> None:
        place = peering.place
        since = place.dial.nobody_since if isinstance(place, DialTarget) else None
        if since is None or now - since < self._settings.nobody_wait or peering.error is not None:
            return
        problem = place.dial.problem if isinstance(place, DialTarget) else None
        why = problem.what if problem else "every new connection is closed at once"
        error = LinkLost(
            f"the link was lost, and for {now - since:.0f} s {why}",
            peer=peering.name,
            remedy=f"Look at the tunnel, and whether that ComfyUI still runs; then {RUN_AGAIN}",
        )
        self.end(peering, error)

    def deadline(self, peering: Peering, now: float) -> float | None:
        """When `tick` has something to do for one."""
        due = peering.session.deadline()
        if peering.session.is_linked:
            return due
        return now + PID_EVERY if due is None else min(due, now + PID_EVERY)


def _link(peering: Peering) -> tuple[object, ...]:
    """What a link is known by, whatever sessions it carries: the way and who is at its end."""
    place, peer = peering.place, peering.session.peer
    # All come in by one listener, and of one principal many: each by its own way.
    return place.where, peering.principal, isinstance(place, DialTarget) or peer.instance


def _is_direct(greeting: Greeting) -> bool:
    """Whether what was dialled is the listener itself, of a peer on this machine: with another
    port it is a tunnel's or a proxy's end, which may be as slow as it likes. A peer of before does
    not say."""
    theirs = greeting.peer.port
    return not theirs or theirs == greeting.shake.own.port


def _check_new(peer: Hello) -> None:
    if peer.resumed or peer.received:
        raise RemoteProtocolError("it would go on with a session that is not known here")


def not_resumed(known: Hello, peer: Hello) -> ZBusError:
    """Why a session of that peer does not go on."""
    remedy = RUN_AGAIN[0].upper() + RUN_AGAIN[1:]
    if known.incarnation != peer.incarnation:
        return PeerRestarted(
            "was restarted; what was under way is gone", peer=known.name, remedy=remedy
        )
    return LinkLost("gave up waiting for this side", peer=known.name, remedy=remedy)
