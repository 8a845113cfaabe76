"""Say which leg of a link works and which does not, and how fast the link is.

TARGET is "host:port", as the Client side dials it; or the name of a ComfyUI of yours on this
machine, or of one that is paired; or the URL of a ComfyUI's page, which tells where its zbus
listens. Without one it lists the names; with --discover those of the local network too. Looks at
the name, the TCP port, the ZMTP greeting, zbus's handshake, its version, and whether the one
answers that was meant; then measures round trips, and sends a made-up block each way, which the
other side verifies and drops. With --jobs it asks whether that ComfyUI runs jobs for this machine,
and for its queue, devices and versions. No workflow is touched. Exit status: 0 only if everything
works, 1 if not, 2 for arguments that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout  # not the builtin one before 3.11
from dataclasses import replace
from typing import Any, TypeVar

from .. import probe
from ..address import EXAMPLE, Address
from ..card import PATIENCE, Page
from ..cli import jobs_ping
from ..errors import (
    ConnectError,
    InputError,
    NobodyBehind,
    NotPaired,
    NotZBus,
    TimedOut,
    TrustError,
    Unreachable,
    VersionMismatch,
    ZBusError,
)
from ..net.websocket import Lane, open_lane
from ..operation import size_text
from ..peer import Peer, Probe
from ..printable import shown
from ..protocol.messages import VERSION, Hello
from ..remote import Remote
from ..resolver import Resolver, looking_around
from ..trust import Trust
from ..wrong import wrong_peer
from .discover import SECONDS, discover
from .report import Failed, Leg, Report, printable, try_leg

NAME = "ping"
HELP = "say which leg of a link works, and how fast it is"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
NOT_RUNNING = (
    "Look whether that ComfyUI still runs, with zbus in it, and whether the tunnel to it stands"
)
MOVE = "Say where it is: zbus-pair move NAME HOST:PORT"
PAIRED_ONLY = (
    "Give its name (zbus-ping alone lists those known here) or its page's URL. If the two are not "
    "paired yet: zbus-pair invite on one of them, zbus-pair accept TOKEN on the other. For a plain "
    "exchange give the Server node's addr (8282)"
)
LOOK_EVERY = 0.25  # seconds between pings while a block is under way
T = TypeVar("T")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        default="",
        help='"host:port", for example 127.0.0.1:8282; a name; or http://host:port of a ComfyUI',
    )
    parser.add_argument(
        "--jobs", action="store_true", help="ask whether it runs jobs, and how it is"
    )
    parser.add_argument(
        "--discover", action="store_true", help="list who is here, paired, and on the local network"
    )
    parser.add_argument("-n", metavar="COUNT", type=_count, default=20, help="pings (20)")
    parser.add_argument(
        "--size", type=_size, default=64 << 20, help="bytes each way: 64M, 1G; 0 for none (64M)"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=10.0,
        help="for each leg; for a block, without an answer (10)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(given: argparse.Namespace) -> int:
    """Ping, print, and return the exit status."""
    if given.discover:
        return discover(min(SECONDS, given.timeout), given.json, sys.stdout)
    try:
        resolver = looking_around(Trust(), given.target)
        if not given.target.strip():
            _complain(_known(resolver))
            return 2
        target = resolver.read(given.target)
    except (InputError, TrustError) as error:
        _complain(str(error))
        return 2
    report = Report(_place(target), show=not given.json)
    report.title(target.where if isinstance(target, Remote) else str(target))
    _look(target, resolver, given, report)
    if given.json:
        print(json.dumps(report.as_json(), indent=2))
    return 0 if report.ok else 1


def _complain(text: str) -> None:
    print(printable(f"zbus-ping: {text}", sys.stderr), file=sys.stderr)


def _known(resolver: Resolver) -> str:
    """The peers that a name could mean, for who has named none."""
    remotes = [*resolver.local(), *resolver.paired()]
    if not remotes:
        return (
            "which peer? None is known on this machine: start a ComfyUI with zbus here, or give "
            f"the URL of its page or an address. {EXAMPLE}"
        )
    width = max(len(remote.name) for remote in remotes)
    lines = [f"  {remote.name:<{width}}  {remote.routes()[0]}" for remote in remotes]
    ask = 'which peer? Give "host:port", the URL of a ComfyUI\'s page, or a name. Known here:'
    return "\n".join([ask, *lines])


def _place(target: Address | Remote | Page) -> str:
    return str(target.routes()[0]) if isinstance(target, Remote) and target.address else str(target)


# --- the legs -----------------------------------------------------------------------------------


def _look(
    wanted: Address | Remote | Page, resolver: Resolver, given: argparse.Namespace, report: Report
) -> None:
    try:
        meant = _asked(wanted, resolver, given, report) if isinstance(wanted, Page) else wanted
        target = _reach(meant, resolver, given, report)
        with Peer("zbus-ping") as peer:
            where = target if isinstance(target, Remote) else str(target)
            link = peer.probe(where)
            hello = _meet(link, target, given.timeout, report)
            report.peer = _described(hello)
            _trips(link, hello.name, given, report)
            if given.size:
                report.throughput = {"size": given.size, "up": None, "down": None}
                for direction in ("up", "down"):
                    _throughput(link, hello.name, direction, given, report)
            if given.jobs:
                _jobs(peer, target, hello, given.timeout, report)
    except Failed:
        pass


def _asked(page: Page, resolver: Resolver, given: argparse.Namespace, report: Report) -> Remote:
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


def _reach(
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
    numeric = try_leg(report, "name", lambda: probe.resolve(address), lambda n, _: n)
    try_leg(
        report,
        "tcp",
        lambda: own(lambda: probe.connect(address, numeric, timeout)).close(),
        lambda _, took: _time(took),
    )
    report.begin("greeting", "waiting")
    try_leg(
        report,
        "greeting",
        lambda: own(lambda: probe.greeting(address, numeric, key, timeout)),
        lambda _, took: "speaks ZMTP, encrypted" if key else "speaks ZMTP",
    )


def _through(address: Address, timeout: float) -> Lane:
    """The WebSocket lane, with ZMTP at its far end."""
    lane = open_lane(address.url)
    first = _answer(lane.port, timeout)
    if first == b"\xff":
        return lane
    if first == b"":
        time.sleep(LOOK_EVERY)  # the code of its end, which tells more, comes after it
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


def _meet(link: Probe, target: Address | Remote, timeout: float, report: Report) -> Hello:
    report.begin("handshake", "waiting")
    met = try_leg(
        report,
        "handshake",
        lambda: _hello(link, report.address, timeout),
        lambda met, _: _who(met) if isinstance(met, Hello) else "a zbus peer answers",
    )
    hello = try_leg(report, "version", lambda: _agreed(met), lambda *_: f"both speak {VERSION}")
    if isinstance(target, Remote):
        what = "the one meant, by its key"
        try_leg(report, "identity", lambda: _demand(target, hello), lambda *_: what)
    return hello


def _demand(target: Remote, hello: Hello) -> None:
    if not target.is_met_by(target.key, hello.instance, hello.name):
        raise wrong_peer(target, hello.name)


def _hello(link: Probe, address: str, timeout: float) -> Hello | VersionMismatch:
    try:
        return link.hello(timeout)
    except VersionMismatch as error:
        return error  # the handshake works, or the versions would not be known
    except (FutureTimeout, TimeoutError) as error:
        raise ConnectError(
            f"no answer to HELLO in {timeout:g} s ({link.problem()})",
            peer=address,
            remedy="That ComfyUI hangs or is very busy: look at its console, then try again",
        ) from error


def _agreed(met: Hello | VersionMismatch) -> Hello:
    if isinstance(met, VersionMismatch):
        raise met
    return met


def _trips(link: Probe, name: str, given: argparse.Namespace, report: Report) -> None:
    def work() -> list[float]:
        trips = []
        for _ in range(given.n):
            try:
                trips.append(link.ping(given.timeout))
            except (FutureTimeout, TimeoutError) as error:
                raise _stopped(link, name, f"after {len(trips)} pings", given.timeout) from error
        return sorted(trips)

    def say(trips: list[float], _: float) -> str:
        low, middle, high = (_time(_quantile(trips, q)) for q in (0.0, 0.5, 0.99))
        return f"min {low}, median {middle}, p99 {high} ({len(trips)} pings)"

    report.begin("round trip", f"{given.n} pings")
    trips = try_leg(report, "round trip", work, say)
    report.round_trip = {
        "count": len(trips),
        "min": trips[0],
        "median": _quantile(trips, 0.5),
        "p99": _quantile(trips, 0.99),
    }


def _throughput(
    link: Probe, name: str, direction: str, given: argparse.Namespace, report: Report
) -> None:
    size = given.size
    report.begin(direction, f"{size_text(size)} under way")
    took = try_leg(
        report,
        direction,
        lambda: _Block(link, name, direction, size).wait(given.timeout),
        lambda took, _: f"{size_text(size)} in {_time(took)}, {_rate(size / took)}, verified",
    )
    assert report.throughput is not None
    report.throughput[direction] = {"seconds": took, "bytes_per_second": size / took}


def _jobs(
    peer: Peer, target: Address | Remote, hello: Hello, timeout: float, report: Report
) -> None:
    def work() -> list[str]:
        if isinstance(target, Address):
            report.jobs = jobs_ping.checked({}, hello)
        else:
            report.jobs = jobs_ping.ask(peer, target, hello, timeout)
        if not report.jobs["permitted"]:
            raise jobs_ping.refusal(hello)
        return jobs_ping.lines(report.jobs)

    report.begin("jobs", "asking")
    report.note(try_leg(report, "jobs", work, lambda lines, _: lines[0])[1:])


class _Block:
    """A block under way: it may take as long as it likes, while the peer answers pings."""

    def __init__(self, link: Probe, name: str, direction: str, size: int) -> None:
        self._link, self._name, self._direction, self._size = link, name, direction, size
        self._result: float | ZBusError | None = None
        self._ended = threading.Event()
        # It ends at the latest when the peer is closed.
        threading.Thread(target=self._move, name="zbus-block", daemon=True).start()

    def _move(self) -> None:
        try:
            self._result = self._link.block(self._direction, self._size, threading.TIMEOUT_MAX)
        except ZBusError as error:
            self._result = error
        finally:
            self._ended.set()

    def wait(self, timeout: float) -> float:
        """Seconds it took.

        Raises:
            ZBusError: It failed, or the peer has not answered for `timeout` seconds.
        """
        heard = time.monotonic()
        while not self._ended.wait(LOOK_EVERY):
            left = heard + timeout - time.monotonic()
            if left <= 0:
                stage = f"in the middle of the block ({self._direction})"
                raise _stopped(self._link, self._name, stage, timeout)
            try:
                self._link.ping(min(left, 1.0))  # one that a cut swallows is not waited for long
                heard = time.monotonic()
            except (FutureTimeout, TimeoutError):
                pass
            except ZBusError:
                self._ended.wait(1.0)  # the block has failed with it, and says so itself
        if isinstance(self._result, float):
            return max(self._result, 1e-9)
        error = self._result or ZBusError("the block came to nothing")
        raise error.at(peer=self._name)


def _stopped(link: Probe, name: str, when: str, timeout: float) -> TimedOut:
    why = link.problem()
    tail = "" if "has accepted" in why or why.startswith("dialling") else f" ({why})"
    return TimedOut(
        f"stopped answering {when}: nothing for {timeout:g} s{tail}",
        peer=name,
        remedy="Look whether that ComfyUI or the tunnel to it hangs, or give a longer --timeout",
    )


# --- for people -------------------------------------------------------------------------------


def _described(hello: Hello) -> dict[str, Any]:
    return {
        "name": shown(hello.name),
        "software": shown(hello.software),
        "protocol": list(hello.versions),
        "codecs": [shown(codec) for codec in hello.codecs],
        "pid": hello.pid,
    }


def _who(hello: Hello) -> str:
    who = (shown(hello.name), shown(hello.software), f"pid {hello.pid}")
    return ", ".join(part for part in who if part)


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def _time(seconds: float) -> str:
    if seconds < 0.1:
        return f"{seconds * 1000:.2f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _rate(rate: float) -> str:
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.1f} MB/s"


def _size(written: str) -> int:
    digits = written.upper().removesuffix("B").removesuffix("I")
    number, unit = (digits[:-1], digits[-1]) if digits[-1:] in UNITS and digits else (digits, "")
    try:
        size = int(float(number) * UNITS[unit])
    except (ValueError, OverflowError):
        size = -1
    if not 0 <= size <= 1 << 40:
        raise argparse.ArgumentTypeError(f'"{written}" is not a size up to 1T: try 64M or 1G')
    return size


def _count(written: str) -> int:
    if not (written.isascii() and written.isdigit() and 1 <= int(written) <= 1_000_000):
        raise argparse.ArgumentTypeError(f'"{written}" is not a count from 1 to 1000000')
    return int(written)


def _seconds(written: str) -> float:
    try:
        seconds = float(written)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f'"{written}" is not a time in seconds')
    return seconds
