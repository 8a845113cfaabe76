"""What waits for a session with a certain peer: an open one is used, else its listener dialled.

Runs in the I/O thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import (
    DialledSelf,
    KeyChanged,
    NotPaired,
    NotPermitted,
    NotZBus,
    Unreachable,
    ValuesOnly,
    ZBusError,
)
from ..net.places import DialTarget, Lease, ListenedAddress, Peering, Place
from ..remote import Remote
from ..wrong import wrong_peer
from .context import Context

PATIENCE = 10.0  # seconds for each address, for the first link: nobody has to press Run for it;
DEAF = 40.0  # where TCP stands: a process can be deaf for half a minute while it loads a model,
GAP = 3.0  # and hangs up now and then, for a handshake that takes too long
LOOK_EVERY = 0.1


@dataclass(eq=False)
class SessionRequest:
    """Somebody who needs a session with `remote`. `done` when it needs it no more."""

    remote: Remote
    then: Callable[[Peering], None]
    failed: Callable[[ZBusError], None]
    lease: Lease[Place] | None = None
    began: float = 0.0
    stood: float = 0.0  # when TCP last stood
    waiting: bool = True

    @property
    def place(self) -> Place | None:
        """Where the session is, or will be."""
        return self.lease.place if self.lease is not None else None


class Connecting:
    """All requests of one peer."""

    def __init__(self, context: Context, instance: bytes) -> None:
        self._context, self._instance = context, instance
        self._open: list[SessionRequest] = []

    def begin(self, session_request: SessionRequest) -> None:
        """Call `then` with the session, at once if there is one, or `failed`."""
        self._open.append(session_request)
        remote, now = session_request.remote, time.monotonic()
        if remote.instance == self._instance.hex():
            self._fail(session_request, _self(remote))
            return
        peering = self._peering(remote)
        if peering is not None:
            session_request.lease = self._context.links.addresses.use(peering.place)
            self._met(session_request, peering)
            return
        try:
            routes = remote.routes()
            if not routes:
                raise _absent(remote)
            if any(_is_own(p) and p.address in routes for p in self._context.links.places):
                raise _own(remote)
            lease = self._context.links.addresses.dial_own(routes, remote.key, now, remote.hinted())
        except ZBusError as error:
            self._fail(session_request, error)
            return
        session_request.began, session_request.lease = now, lease
        met = lease.place.peering
        if met is not None and met.connection is not None:
            self._met(session_request, met)

    def again(self, session_request: SessionRequest) -> None:
        """Its session is lost. Where the other side had dialled it, that may have no reason to do
        so again: this side dials now."""
        remote, lease = session_request.remote, session_request.lease
        routes = remote.routes()
        if routes and lease is not None and not isinstance(lease.place, DialTarget):
            dial, now = self._context.links.addresses.dial_own, time.monotonic()
            with contextlib.suppress(ZBusError):
                session_request.lease = dial(routes, remote.key, now, remote.hinted())
                lease.release()

    def done(self, session_request: SessionRequest) -> None:
        """It is over: the place may go, after a while."""
        if session_request in self._open:
            self._open.remove(session_request)
            session_request.waiting = False
            if session_request.lease is not None:
                session_request.lease.release()

    def _peering(self, remote: Remote) -> Peering | None:
        """A session that stands with that very peer, whichever side dialled."""
        for peering in self._context.links.peerings:
            if _is_met(remote, peering) and peering.connection is not None:
                return peering
        return None

    def _met(self, session_request: SessionRequest, peering: Peering) -> None:
        session_request.waiting = False
        if _is_met(session_request.remote, peering):
            session_request.then(peering)
        else:
            self._fail(
                session_request, wrong_peer(session_request.remote, peering.session.peer.name)
            )

    def _fail(self, session_request: SessionRequest, error: ZBusError) -> None:
        self.done(session_request)
        session_request.failed(error)

    # --- told by the engine -------------------------------------------------------------------

    def linked(self, peering: Peering) -> None:
        """A connection stands."""
        for session_request in [e for e in self._open if e.waiting and e.place is peering.place]:
            self._met(session_request, peering)

    def place_failed(self, place: DialTarget, error: ZBusError) -> None:
        """Dialling there cannot help."""
        for session_request in [e for e in self._open if e.waiting and e.place is place]:
            is_self = isinstance(error, DialledSelf)
            self._fail(
                session_request,
                _own(session_request.remote)
                if is_self
                else _missing(session_request.remote, error),
            )

    def tick(self, now: float) -> None:
        """Give up what is unreachable."""
        for session_request in [e for e in self._open if e.waiting]:
            if isinstance(session_request.place, DialTarget):
                self._look(session_request, session_request.place, now)

    def _look(self, session_request: SessionRequest, target: DialTarget, now: float) -> None:
        if target.connection is not None and target.connection.connected:
            session_request.stood = now  # TCP stands, on which no peer has answered yet
        # Each address may take its time; the last one more, where somebody is there and is deaf.
        patience = PATIENCE * target.dial.ways.count
        if now - session_request.stood <= GAP:
            patience += DEAF - PATIENCE
        problem = target.dial.problem
        # One that was there a moment ago may be back as soon as its session waits for that.
        is_waited_for = target.peering is not None and not target.dial.given_up
        if problem is not None and not is_waited_for:
            self._fail(session_request, _missing(session_request.remote, problem))
        elif now >= session_request.began + patience:
            silent = Unreachable(f"no answer in {now - session_request.began:.0f} s")
            self._fail(session_request, _missing(session_request.remote, problem or silent))

    def deadline(self, now: float) -> float | None:
        """When `tick` has something to do."""
        return now + LOOK_EVERY if any(e.waiting for e in self._open) else None

    def close(self, error: ZBusError) -> None:
        """The peer is closed."""
        for session_request in [e for e in self._open if e.waiting]:
            self._fail(session_request, error)


def _is_own(place: Place) -> bool:
    return isinstance(place, ListenedAddress) and place.own


def _is_met(remote: Remote, peering: Peering) -> bool:
    told = peering.session.peer
    return peering.is_own and remote.is_met_by(peering.principal, told.instance, told.name)


def _self(remote: Remote) -> DialledSelf:
    return DialledSelf(
        "that is this very ComfyUI",
        peer=remote.where,
        remedy="Choose another one: a job for oneself would wait for itself",
    )


def _own(remote: Remote) -> ZBusError:
    """That address is this process's own: also on another machine, whose page it is from."""
    return wrong_peer(remote, "this very ComfyUI") if remote.instance else _self(remote)


def _absent(remote: Remote) -> Unreachable:
    return Unreachable(
        "it is not connected, and no address of it is known here",
        peer=remote.where,
        remedy="Start something on it that names this computer, or give its address here: "
        "zbus-pair move NAME HOST:PORT",
    )


def _missing(remote: Remote, problem: ZBusError) -> ZBusError:
    if isinstance(problem, ValuesOnly):
        what = f"no jobs or questions there: {problem.what}"
        return NotPermitted(what, peer=remote.where, remedy=problem.remedy)
    if isinstance(problem, (NotZBus, NotPaired, KeyChanged)):
        return problem.at(peer=remote.where)
    return Unreachable(
        problem.what,
        peer=remote.where,
        stage="connecting",
        remedy="Look whether that ComfyUI runs, with zbus in it, and whether its tunnel stands: "
        f"zbus-ping {remote.name or remote.address}",
    )
