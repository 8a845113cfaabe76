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
    """All errands of one peer."""

    def __init__(self, context: Context, instance: bytes) -> None:
        self._context, self._instance = context, instance
        self._open: list[SessionRequest] = []

    def begin(self, errand: SessionRequest) -> None:
        """Call `then` with the session, at once if there is one, or `failed`."""
        self._open.append(errand)
        remote, now = errand.remote, time.monotonic()
        if remote.instance == self._instance.hex():
            self._fail(errand, _self(remote))
            return
        peering = self._peering(remote)
        if peering is not None:
            errand.lease = self._context.links.addresses.use(peering.place)
            self._met(errand, peering)
            return
        try:
            routes = remote.routes()
            if not routes:
                raise _absent(remote)
            if any(_is_own(p) and p.address in routes for p in self._context.links.places):
                raise _own(remote)
            lease = self._context.links.addresses.dial_own(routes, remote.key, now, remote.hinted())
        except ZBusError as error:
            self._fail(errand, error)
            return
        errand.began, errand.lease = now, lease
        met = lease.place.peering
        if met is not None and met.connection is not None:
            self._met(errand, met)

    def again(self, errand: SessionRequest) -> None:
        """Its session is lost. Where the other side had dialled it, that may have no reason to do
        so again: this side dials now."""
        remote, lease = errand.remote, errand.lease
        routes = remote.routes()
        if routes and lease is not None and not isinstance(lease.place, DialTarget):
            dial, now = self._context.links.addresses.dial_own, time.monotonic()
            with contextlib.suppress(ZBusError):
                errand.lease = dial(routes, remote.key, now, remote.hinted())
                lease.release()

    def done(self, errand: SessionRequest) -> None:
        """It is over: the place may go, after a while."""
        if errand in self._open:
            self._open.remove(errand)
            errand.waiting = False
            if errand.lease is not None:
                errand.lease.release()

    def _peering(self, remote: Remote) -> Peering | None:
        """A session that stands with that very peer, whichever side dialled."""
        for peering in self._context.links.peerings:
            if _is_met(remote, peering) and peering.connection is not None:
                return peering
        return None

    def _met(self, errand: SessionRequest, peering: Peering) -> None:
        errand.waiting = False
        if _is_met(errand.remote, peering):
            errand.then(peering)
        else:
            self._fail(errand, wrong_peer(errand.remote, peering.session.peer.name))

    def _fail(self, errand: SessionRequest, error: ZBusError) -> None:
        self.done(errand)
        errand.failed(error)

    # --- told by the engine -------------------------------------------------------------------

    def linked(self, peering: Peering) -> None:
        """A connection stands."""
        for errand in [e for e in self._open if e.waiting and e.place is peering.place]:
            self._met(errand, peering)

    def place_failed(self, place: DialTarget, error: ZBusError) -> None:
        """Dialling there cannot help."""
        for errand in [e for e in self._open if e.waiting and e.place is place]:
            is_self = isinstance(error, DialledSelf)
            self._fail(errand, _own(errand.remote) if is_self else _missing(errand.remote, error))

    def tick(self, now: float) -> None:
        """Give up what is unreachable."""
        for errand in [e for e in self._open if e.waiting]:
            if isinstance(errand.place, DialTarget):
                self._look(errand, errand.place, now)

    def _look(self, errand: SessionRequest, target: DialTarget, now: float) -> None:
        if target.connection is not None and target.connection.connected:
            errand.stood = now  # TCP stands, on which no peer has answered yet
        # Each address may take its time; the last one more, where somebody is there and is deaf.
        patience = PATIENCE * target.dial.ways.count
        if now - errand.stood <= GAP:
            patience += DEAF - PATIENCE
        problem = target.dial.problem
        # One that was there a moment ago may be back as soon as its session waits for that.
        is_waited_for = target.peering is not None and not target.dial.given_up
        if problem is not None and not is_waited_for:
            self._fail(errand, _missing(errand.remote, problem))
        elif now >= errand.began + patience:
            silent = Unreachable(f"no answer in {now - errand.began:.0f} s")
            self._fail(errand, _missing(errand.remote, problem or silent))

    def deadline(self, now: float) -> float | None:
        """When `tick` has something to do."""
        return now + LOOK_EVERY if any(e.waiting for e in self._open) else None

    def close(self, error: ZBusError) -> None:
        """The peer is closed."""
        for errand in [e for e in self._open if e.waiting]:
            self._fail(errand, error)


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
