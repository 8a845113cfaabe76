"""Say which leg of a link works and which does not, and how fast the link is.

TARGET is "host:port", as the Client side dials it; or the name of a ComfyUI of yours on this
machine, or of one that is paired; or the URL of a ComfyUI's page, which tells where its zbus
listens. Without one it lists the names; with --discover those of the local network too. Looks at
the name, the TCP port, the ZMTP greeting, zbus's handshake, its version, and whether the one
answers that was meant; then measures round trips, and sends a made-up block each way, which the
other side verifies and drops. It fails, too, where a ComfyUI runs no prompts any more. With --jobs
it asks whether that ComfyUI runs jobs for this machine, and for its queue, devices and versions.
No workflow is touched. Exit status: 0 only if everything works, 1 if not, 2 for arguments that
cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys

from ..address import EXAMPLE, Address
from ..card import Page
from ..errors import InputError, TrustError
from ..peer import Peer
from ..printable import printable, shown
from ..protocol.messages import Hello
from ..remote import Remote
from ..resolver import Resolver, looking_around
from ..trust import Trust
from .pinging import jobs as asking
from .pinging.discover import SECONDS, discover
from .pinging.measuring import throughput, trips
from .pinging.meeting import described, meet
from .pinging.reaching import asked, reach
from .pinging.report import Failed, Report, try_leg

NAME = "ping"
HELP = "say which leg of a link works, and how fast it is"
ASIDE = 1.0  # seconds for what was not asked for
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


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


def _look(
    wanted: Address | Remote | Page, resolver: Resolver, given: argparse.Namespace, report: Report
) -> None:
    try:
        meant = asked(wanted, resolver, given, report) if isinstance(wanted, Page) else wanted
        target = reach(meant, resolver, given, report)
        with Peer("zbus-ping") as peer:
            where = target if isinstance(target, Remote) else str(target)
            link = peer.probe(where)
            hello = meet(link, target, given.timeout, report)
            report.peer = described(hello)
            trips(link, hello.name, given, report)
            told = None  # in the time that the blocks take
            if isinstance(target, Remote) and not given.jobs:
                told = peer.enquire(target)
            if given.size:
                report.throughput = {"size": given.size, "up": None, "down": None}
                for direction in ("up", "down"):
                    throughput(link, hello.name, direction, given, report)
            if given.jobs:
                _jobs(peer, target, hello, given.timeout, report)
            elif told is not None and asking.has_stopped(told, min(ASIDE, given.timeout)):
                try_leg(report, "prompts", lambda: _stopped(hello), lambda *_: "")
    except Failed:
        pass


def _stopped(hello: Hello) -> None:
    raise asking.stopped(shown(hello.name))


def _jobs(
    peer: Peer, target: Address | Remote, hello: Hello, timeout: float, report: Report
) -> None:
    def work() -> list[str]:
        if isinstance(target, Address):
            report.jobs = asking.checked({}, hello)
        else:
            report.jobs = asking.ask(peer, target, hello, timeout)
        if not report.jobs["permitted"]:
            raise asking.refusal(hello)
        if report.jobs["runs_prompts"] is False:
            _stopped(hello)
        return asking.lines(report.jobs)

    report.begin("jobs", "asking")
    report.note(try_leg(report, "jobs", work, lambda lines, _: lines[0])[1:])


# --- arguments --------------------------------------------------------------------------------


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
