"""Measure zbus beside what one would take instead, in one run, on this machine.

Each way of passing a value has two processes of its own; the ways take turns, so that all see the
same machine. A figure is the median of its rounds, with the quartiles; what counts is the ratio
to the yardsticks. What is not installed here is named, and left out.

The yardsticks open ports on the loopback without any proof of who comes, for as long as they run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from .. import __version__
from ..printable import printable
from .benching import plot, report
from .benching.kinds import Measured, Plan, measure
from .benching.processes import ROOT, Pairs
from .benching.rows import ROWS, chosen
from .benching.ways import WAYS
from .endings import interrupt_once, signals

NAME = "bench"
HELP = "measure zbus beside what one would take instead"
ROUNDS, QUICK_ROUNDS = 9, 5
PHOTO = ROOT / "tests" / "data" / "rocket.jpg"  # in a clone


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parser.add_argument(
        "--rows", metavar="NAME", nargs="+", default=[], help='these alone; "192m*" is several'
    )
    parser.add_argument("--list", action="store_true", help="list the rows, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="a part of it, in under a minute")
    parser.add_argument("-n", metavar="ROUNDS", type=_count, help=f"rounds ({ROUNDS})")
    parser.add_argument(
        "--photo", metavar="FILE", type=Path, default=PHOTO, help="a picture of your own"
    )
    parser.add_argument(
        "--comfyui",
        metavar="URL",
        nargs=2,
        help="two ComfyUIs with zbus, for the rows of jobs: that gives them, and that runs them",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    parser.add_argument(
        "--markdown", metavar="FILE", type=Path, help="write the table of docs/performance.md"
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", type=Path, help="draw sizes against rates there"
    )
    parser.add_argument(
        "--guard", action="store_true", help="fail where a ratio is far from what it was"
    )


def run(given: argparse.Namespace) -> int:
    """Measure, print, and return the exit status."""
    if given.list:
        _say(_listed())
        return 0
    try:
        rows = chosen(given.rows, given.quick)
    except ValueError as error:
        print(
            printable(f"zbus-bench: {error}. There are:\n{_listed()}", sys.stderr), file=sys.stderr
        )
        return 2
    if why := _unusable(given):
        print(printable(f"zbus-bench: {why}", sys.stderr), file=sys.stderr)
        return 2
    rounds = given.n or (QUICK_ROUNDS if given.quick else ROUNDS)
    photo = given.photo if given.photo.is_file() else None
    plan = Plan(rounds, given.quick, photo, tuple(given.comfyui) if given.comfyui else None)
    about, began = report.machine(), time.monotonic()
    _say(
        f"zbus {__version__}, Python {about['python']}, {about['system']}, {about['cores']} cores; "
        f"medians of {plan.rounds} (quartiles)"
    )
    found: list[Measured] = []
    with signals(interrupt_once), Pairs() as pairs:
        for row in rows:
            at = time.monotonic()
            found.append(measure(row, pairs, plan))
            found[-1].took = time.monotonic() - at
            _say("\n" + "\n".join(report.lines(found[-1])))
        absent = {WAYS[way].label: why for way, why in pairs.absent.items()}
    _say("")
    for label, why in absent.items():
        _say(f"Absent: {label}: {why}")
    _say(f"{time.monotonic() - began:.0f} s in all")
    _say(report.missed(found))
    try:
        if given.json:
            given.json.write_text(json.dumps(report.as_json(found, absent), indent=1), "utf-8")
        if given.markdown:
            given.markdown.write_text(report.markdown(found), "utf-8")
        if given.plot:
            plot.draw(found).save(given.plot)
    except (OSError, ValueError) as error:
        print(printable(f"zbus-bench: {error}", sys.stderr), file=sys.stderr)
        return 1
    return _guarded(found) if given.guard else 0


def _unusable(given: argparse.Namespace) -> str:
    """Which of the files cannot be read, or written when all is measured; "" where none is."""
    if given.photo is not PHOTO and not given.photo.is_file():
        return f"--photo {given.photo}: there is no such file"
    for option in ("json", "markdown", "plot"):
        path = getattr(given, option)
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            return f"--{option} {path}: no file can be written there"
    return ""


def _guarded(found: list[Measured]) -> int:
    bad = [
        f"{measured.row.name}: {verdict.found:.2f} of {verdict.goal.against}, "
        f"the guard allows {verdict.goal.guard:g}"
        for measured in found
        for verdict in report.verdicts(measured)
        if not verdict.is_guarded
    ]
    bad += [f"{m.row.name}: zbus has failed there" for m in found if report.has_failed(m)]
    for line in bad:
        _say(f"GUARD: {line}")
    return 1 if bad else 0


def _listed() -> str:
    width = max(len(row.name) for row in ROWS)
    return "\n".join(f"  {row.name:<{width}}  {row.title}" for row in ROWS)


def _say(text: str) -> None:
    print(printable(text, sys.stdout), flush=True)


def _count(written: str) -> int:
    if not (written.isascii() and written.isdigit() and 1 <= int(written) <= 1000):
        raise argparse.ArgumentTypeError(f'"{written}" is not a count from 1 to 1000')
    return int(written)
