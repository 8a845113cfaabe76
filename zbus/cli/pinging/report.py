"""What came out of each leg of a link: printed as it comes, and as one JSON object."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...errors import ZBusError
from ...printable import printable, shown

T = TypeVar("T")


@dataclass
class Leg:
    """One leg: whether it works, seconds it took, and what to say and do."""

    name: str
    ok: bool
    text: str
    seconds: float | None = None
    remedy: str = ""
    error: str = ""  # the exception's class


@dataclass
class Report:
    """All legs so far; prints each as it comes, unless `show` is off."""

    address: str
    show: bool
    legs: list[Leg] = field(default_factory=list)
    peer: dict[str, Any] | None = None
    round_trip: dict[str, Any] | None = None
    throughput: dict[str, Any] | None = None
    jobs: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        return all(leg.ok for leg in self.legs)

    def title(self, target: str) -> None:
        if self.show:
            print(printable(f"zbus-ping {target}", sys.stdout), flush=True)

    def begin(self, name: str, text: str) -> None:
        """A line that `add` writes over, where a person looks on."""
        if self.show and sys.stdout.isatty():
            print(f"  {name:<10}  ..    {text}", end="\r", flush=True)

    def add(self, leg: Leg) -> None:
        self.legs.append(leg)
        if not self.show:
            return
        erase = "\x1b[K" if sys.stdout.isatty() else ""
        text = printable(leg.text, sys.stdout)
        print(f"{erase}  {leg.name:<10}  {'ok' if leg.ok else 'FAIL':<4}  {text}", flush=True)
        self.note([leg.remedy] if leg.remedy else [])

    def note(self, lines: list[str]) -> None:
        """More of the leg that was added last."""
        for line in lines if self.show else []:
            print(f"{'':20}{printable(line, sys.stdout)}", flush=True)

    def as_json(self) -> dict[str, Any]:
        """The whole, with the same keys whatever came out."""
        return {
            "address": self.address,
            "ok": self.ok,
            "legs": [vars(leg) for leg in self.legs],
            "peer": self.peer,
            "round_trip": self.round_trip,
            "throughput": self.throughput,
            "jobs": self.jobs,
        }


class Failed(Exception):
    """A leg does not work, and so none after it."""


def try_leg(report: Report, name: str, work: Callable[[], T], say: Callable[[T, float], str]) -> T:
    """Do one leg's work and report it."""
    began = time.monotonic()
    try:
        result = work()
    except ZBusError as error:
        what = error.what if error.peer in ("", report.address) else f"{error.peer}: {error.what}"
        what, remedy = shown(what), shown(error.remedy)
        report.add(Leg(name, False, what, None, remedy, type(error).__name__))
        raise Failed from error
    took = time.monotonic() - began
    report.add(Leg(name, True, say(result, took), took))
    return result


def duration(seconds: float) -> str:
    if seconds < 0.1:
        return f"{seconds * 1000:.2f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
