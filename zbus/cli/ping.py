"""Say which leg of a link works and which does not, and how fast the link is.

TARGET is "host:port", as the Client side dials it; or the name of a ComfyUI of yours on this
machine; or the URL of a ComfyUI's page, which tells where its zbus listens. Without one it lists
the names. Looks at the name, the TCP port, the ZMTP greeting, zbus's handshake, its version, and
whether the one answers that was meant; then measures round trips, and sends a made-up block each
way, which the other side verifies and drops. With --jobs it asks whether that ComfyUI runs jobs
for this machine, and for its queue, devices and versions. No workflow is touched. Exit status: 0
only if everything works, 1 if not, 2 for arguments that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout  # not the builtin one before 3.11
from typing import Any, TypeVar

from .. import probe
from ..address import Address
from ..errors import (
    ConnectError,
    InputError,
    NobodyBehind,
    TimedOut,
    Unreachable,
    VersionMismatch,
    ZBusError,
)
from ..job import Remote
from ..messages import VERSION, Hello
from ..operation import size_text
from ..peer import Peer, Probe
from ..wrong import wrong_peer
from . import jobs_ping
from .report import Failed, Report, printable, shown, try_leg
from .target import PATIENCE, Page, Target, known, read

NAME = "ping"
HELP = "say which leg of a link works, and how fast it is"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
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
    if not given.target.strip():
        _complain(known())
        return 2
    try:
        target = read(given.target)
    except InputError as error:
        _complain(str(error))
        return 2
    report = Report(_place(target), show=not given.json)
    report.title(str(target))
    _look(target, given, report)
    if given.json:
        print(json.dumps(report.as_json(), indent=2))
    return 0 if report.ok else 1


def _complain(text: str) -> None:
    print(printable(f"zbus-ping: {text}", sys.stderr), file=sys.stderr)


def _place(target: Target | Page) -> str:
    return str(target.address) if isinstance(target, Target) else str(target)


# --- the legs -----------------------------------------------------------------------------------


def _look(wanted: Target | Page, given: argparse.Namespace, report: Report) -> None:
    try:
        target = _asked(wanted, given, report) if isinstance(wanted, Page) else wanted
        _reach(target, given, report)
        with Peer("zbus-ping") as peer:
            link = peer.probe(str(target.address))
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


def _asked(page: Page, given: argparse.Namespace, report: Report) -> Target:
    report.begin("page", "asking for its zbus")
    target = try_leg(
        report,
        "page",
        lambda: page.ask(min(PATIENCE, given.timeout)),
        lambda told, _: f"{told}, zbus {told.version}" if told.version else str(told),
    )
    report.address = str(target.address)
    return target


def _reach(target: Target, given: argparse.Namespace, report: Report) -> None:
    """Down to ZMTP, with bare sockets."""
    address = target.address

    def own(work: Callable[[], T]) -> T:
        try:
            return work()
        except (Unreachable, NobodyBehind) as error:
            if target.remedy:  # a peer's own listener waits for no Server node
                raise type(error)(error.what, peer=error.peer, remedy=target.remedy) from error
            raise

    numeric = try_leg(report, "name", lambda: probe.resolve(address), lambda n, _: n)
    try_leg(
        report,
        "tcp",
        lambda: own(lambda: probe.connect(address, numeric, given.timeout)).close(),
        lambda _, took: _time(took),
    )
    report.begin("greeting", "waiting")
    try_leg(
        report,
        "greeting",
        lambda: own(lambda: probe.greeting(address, numeric, given.timeout)),
        lambda _, took: "speaks ZMTP",
    )


def _meet(link: Probe, target: Target, timeout: float, report: Report) -> Hello:
    report.begin("handshake", "waiting")
    met = try_leg(
        report,
        "handshake",
        lambda: _hello(link, target.address, timeout),
        lambda met, _: _who(met) if isinstance(met, Hello) else "a zbus peer answers",
    )
    hello = try_leg(report, "version", lambda: _agreed(met), lambda *_: f"both speak {VERSION}")
    if target.instance:
        try_leg(report, "identity", lambda: _demand(target, hello), lambda *_: "the one meant")
    return hello


def _demand(target: Target, hello: Hello) -> None:
    if hello.instance.hex() != target.instance:
        raise wrong_peer(_remote(target), hello.name)


def _remote(target: Target) -> Remote:
    return Remote(str(target.address), target.instance, target.name)


def _hello(link: Probe, address: Address, timeout: float) -> Hello | VersionMismatch:
    try:
        return link.hello(timeout)
    except VersionMismatch as error:
        return error  # the handshake works, or the versions would not be known
    except (FutureTimeout, TimeoutError) as error:
        raise ConnectError(
            f"no answer to HELLO in {timeout:g} s ({link.problem()})",
            peer=str(address),
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


def _jobs(peer: Peer, target: Target, hello: Hello, timeout: float, report: Report) -> None:
    def work() -> list[str]:
        report.jobs = jobs_ping.ask(peer, _remote(target), hello, timeout)
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
