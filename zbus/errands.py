"""What waits for a session with a certain peer: an open one is used, else its listener dialled.

Runs in the I/O thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from .address import parse_dial
from .errors import DialledSelf, NotZBus, Unreachable, WrongPeer, ZBusError
from .job import Remote
from .parts import Parts
from .places import Peering, Place

PATIENCE = 10.0  # seconds for the first link: nobody has to press Run for it
LOOK_EVERY = 0.1


@dataclass(eq=False)
class Errand:
    """Somebody who needs a session with `remote`. `done` when it needs it no more."""

    remote: Remote
    then: Callable[[Peering], None]
    failed: Callable[[ZBusError], None]
    place: Place | None = None
    deadline: float = 0.0
    waiting: bool = True


class Errands:
    """All errands of one peer."""

    def __init__(self, parts: Parts, instance: bytes) -> None:
        self._parts, self._instance = parts, instance
        self._open: list[Errand] = []

    def begin(self, errand: Errand) -> None:
        """Call `then` with the session, at once if there is one, or `failed`."""
        self._open.append(errand)
        remote, now = errand.remote, time.monotonic()
        if remote.instance == self._instance.hex():
            self._fail(errand, _self(remote))
            return
        peering = self._peering(remote)
        if peering is not None:
            errand.place = peering.place
            peering.place.users += 1
            self._met(errand, peering)
            return
        try:
            address = parse_dial(remote.address)
        except ZBusError as error:
            self._fail(errand, error)
            return
        if any(place.own and place.address == address for place in self._parts.links.places):
            self._fail(errand, _own(remote))
            return
        errand.place = self._parts.links.dial(address, now)
        errand.deadline = now + PATIENCE
        if errand.place.peering is not None and errand.place.peering.connection is not None:
            self._met(errand, errand.place.peering)

    def done(self, errand: Errand) -> None:
        """It is over: the place may go, after a while."""
        if errand in self._open:
            self._open.remove(errand)
            errand.waiting = False
            if errand.place is not None:
                self._parts.links.release(errand.place, time.monotonic())

    def _peering(self, remote: Remote) -> Peering | None:
        """A session that stands with that very peer, whichever side dialled."""
        if not remote.instance:
            return None
        for peering in self._parts.links.peerings:
            is_it = peering.session.peer.instance.hex() == remote.instance and peering.is_own
            if is_it and peering.connection is not None:
                return peering
        return None

    def _met(self, errand: Errand, peering: Peering) -> None:
        errand.waiting = False
        told = peering.session.peer
        if errand.remote.instance not in ("", told.instance.hex()):
            self._fail(errand, _wrong(errand.remote, told.name))
        else:
            errand.then(peering)

    def _fail(self, errand: Errand, error: ZBusError) -> None:
        self.done(errand)
        errand.failed(error)

    # --- told by the engine -------------------------------------------------------------------

    def linked(self, peering: Peering) -> None:
        """A connection stands."""
        for errand in [e for e in self._open if e.waiting and e.place is peering.place]:
            self._met(errand, peering)

    def place_failed(self, place: Place, error: ZBusError) -> None:
        """Dialling there cannot help."""
        for errand in [e for e in self._open if e.waiting and e.place is place]:
            is_self = isinstance(error, DialledSelf)
            self._fail(errand, _own(errand.remote) if is_self else _missing(errand.remote, error))

    def tick(self, now: float) -> None:
        """Give up what is unreachable."""
        for errand in [e for e in self._open if e.waiting and e.place is not None]:
            problem = errand.place.problem if errand.place is not None else None
            if problem is not None:
                self._fail(errand, _missing(errand.remote, problem))
            elif now >= errand.deadline:
                what = f"no answer in {PATIENCE:.0f} s"
                self._fail(errand, _missing(errand.remote, Unreachable(what)))

    def deadline(self, now: float) -> float | None:
        """When `tick` has something to do."""
        return now + LOOK_EVERY if any(e.waiting for e in self._open) else None

    def close(self, error: ZBusError) -> None:
        """The peer is closed."""
        for errand in [e for e in self._open if e.waiting]:
            self._fail(errand, error)


def _where(remote: Remote) -> str:
    return f"{remote.name} at {remote.address}" if remote.name else remote.address


def _self(remote: Remote) -> DialledSelf:
    return DialledSelf(
        "that is this very ComfyUI",
        peer=_where(remote),
        remedy="Choose another one: a job for oneself would wait for itself",
    )


def _own(remote: Remote) -> ZBusError:
    """That address is this process's own: also on another machine, whose page it is from."""
    return _wrong(remote, "this very ComfyUI") if remote.instance else _self(remote)


def _wrong(remote: Remote, name: str) -> WrongPeer:
    port = remote.address.rpartition(":")[2]
    return WrongPeer(
        f"{name} answers there, and not {remote.name or 'the peer that was meant'}",
        peer=_where(remote),
        remedy="If that ComfyUI is reached through a tunnel, forward its zbus port too, to a port "
        f"that is free here (ssh -L 18190:127.0.0.1:{port} ...), and name 127.0.0.1:18190",
    )


def _missing(remote: Remote, problem: ZBusError) -> ZBusError:
    if isinstance(problem, NotZBus):
        return problem.at(peer=_where(remote))
    return Unreachable(
        problem.what,
        peer=_where(remote),
        stage="connecting",
        remedy="Look whether that ComfyUI runs, with zbus in it, and whether its tunnel stands: "
        f"zbus-ping {remote.address}",
    )
