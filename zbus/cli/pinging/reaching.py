"""The first legs, with bare sockets: from what was given down to ZMTP."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ... import probe
from ...address import Address
from ...card import PATIENCE, Page
from ...errors import ConnectError, NobodyBehind, NotPaired, NotZBus, TimedOut, Unreachable
from ...net.websocket import Lane, open_lane
from ...remote import Remote
from ...resolver import Resolver
from .report import Failed, Leg, Report, duration, try_leg

NOT_RUNNING = (
    "Look whether that ComfyUI still runs, with zbus in it, and whether the tunnel to it stands"
)
MOVE = "Say where it is: zbus-pair move NAME HOST:PORT"
PAIRED_ONLY = (
    "Give its name (zbus-ping alone lists those known here) or its page's URL. If the two are not "
    "paired yet: zbus-pair invite on one of them, zbus-pair accept on the other. For a plain "
    "exchange give the Server node's addr (8282)"
)
T = TypeVar("T")


def asked(page: Page, resolver: Resolver, given: argparse.Namespace, report: Report) -> Remote:
    """Whose page that is, and the ways there."""
    report.begin("page", "asking for its zbus")
    card = try_leg(
        report,
        "page",
        lambda: page.ask(min(PATIENCE, given.timeout)),
        lambda card, _: f"{card.name or 'a zbus peer'}, zbus {card.version or '?'}",
    )
    return try_leg(
        report,
        "paired",
        lambda: resolver.of_card(page, card),
        lambda remote, _: f"its key is trusted here; the way there: {remote.routes()[0]}",
    )


def reach(
    meant: Address | Remote, resolver: Resolver, given: argparse.Namespace, report: Report
) -> Address | Remote:
    """Down to ZMTP, with bare sockets: the first way there on which it answers."""
    if isinstance(meant, Address):
        _reach_one(meant, b"", given.timeout, report)
        return meant
    ways = meant.routes()
    if not ways:
        report.add(_no_way(meant, resolver))
        raise Failed
    for way, following in zip(ways, [*ways[1:], None], strict=True):
        try:
            report.address = str(way)
            _reach_one(way, meant.key, given.timeout, report)
            return replace(meant, address=way.url or str(way), others=(), hints=())
        except Failed:
            if following is None:
                raise
            report.legs[-1].ok = True  # of no account if another way leads there
            report.note([f"Another way is tried: {following}"])
    raise AssertionError


def _no_way(meant: Remote, resolver: Resolver) -> Leg:
    what, remedy = "no address of it is known here: it can only come by itself", MOVE
    its = ", ".join(one.name for one in resolver.paired() if one.key == meant.key)
    if its and meant.peer:
        what, remedy = f"no address of it is known here; known: {its}", MOVE
    elif its:
        what, remedy = f"which of its ComfyUIs? Known here: {its}", "Give one of these names"
    return Leg("name", False, what, None, remedy, "Unreachable")


def _reach_one(address: Address, key: bytes, timeout: float, report: Report) -> None:
    def own(work: Callable[[], T]) -> T:
        try:
            return work()
        except (Unreachable, NobodyBehind) as error:
            if key:  # a peer's own listener waits for no Server node
                raise type(error)(error.what, peer=error.peer, remedy=NOT_RUNNING) from error
            raise
        except NotPaired as error:
            raise NotPaired(error.what, peer=error.peer, remedy=PAIRED_ONLY) from error

    if address.url:
        report.begin("websocket", "connecting")
        lane = try_leg(
            report,
            "websocket",
            lambda: _through(address, timeout),
            lambda *_: "stands, speaks ZMTP",
        )
        lane.close()
        return
    every = try_leg(
        report, "name", lambda: probe.resolve_all(address), lambda found, _: ", ".join(found)
    )

    def connect(numeric: str) -> None:
        own(lambda: probe.connect(address, numeric, timeout)).close()

    def greet(numeric: str) -> None:
        own(lambda: probe.greeting(address, numeric, key, timeout))

    try_leg(report, "tcp", lambda: _any_of(every, connect), lambda _, took: duration(took))
    report.begin("greeting", "waiting")
    try_leg(
        report,
        "greeting",
        lambda: _any_of(every, greet),
        lambda _, took: "speaks ZMTP, encrypted" if key else "speaks ZMTP",
    )


def _any_of(every: list[str], work: Callable[[str], None]) -> None:
    """The first of a name's addresses with which that works; what is wrong with the first one, if
    it does with none."""
    first: ConnectError | None = None
    for numeric in every:
        try:
            work(numeric)
            return
        except ConnectError as error:
            first = first or error
    if first is not None:
        raise first


def _through(address: Address, timeout: float) -> Lane:
    """The WebSocket lane, with ZMTP at its far end."""
    lane = open_lane(address.url)
    first = _answer(lane.port, timeout)
    if first == b"\xff":
        return lane
    problem = lane.problem if first == b"" else None
    lane.close()
    if first is None:
        what, remedy = f"no answer in {timeout:g} s", "Look at that ComfyUI's console, or try again"
        raise TimedOut(what, peer=str(address), remedy=remedy)
    what = "what is behind it does not speak ZMTP"
    raise problem or NotZBus(what, peer=str(address), remedy=NOT_RUNNING)


def _answer(port: int, timeout: float) -> bytes | None:
    """The first byte through a lane; none if it closes, None if nothing comes. Unlike at a plain
    port it is for this side to speak first: the far end connects no further before that."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as link:
            link.sendall(probe.VERSION)
            return link.recv(1)
    except TimeoutError:
        return None
    except OSError:
        return b""  # reset: the same as closed
