"""The legs that measure: round trips, and a block each way."""

from __future__ import annotations

import argparse
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout  # not the builtin one before 3.11

from ...errors import TimedOut, ZBusError
from ...operation import rate_text, size_text
from ...peer import Probe
from .report import Report, duration, try_leg

LOOK_EVERY = 0.25  # seconds between pings while a block is under way


def trips(link: Probe, name: str, given: argparse.Namespace, report: Report) -> None:
    """Round trips, one after the other."""

    def work() -> list[float]:
        trips = []
        for _ in range(given.n):
            try:
                trips.append(link.ping(given.timeout))
            except (FutureTimeout, TimeoutError) as error:
                raise _stopped(link, name, f"after {len(trips)} pings", given.timeout) from error
        return sorted(trips)

    def say(trips: list[float], _: float) -> str:
        low, middle, high = (duration(_quantile(trips, q)) for q in (0.0, 0.5, 0.99))
        return f"min {low}, median {middle}, p99 {high} ({len(trips)} pings)"

    report.begin("round trip", f"{given.n} pings")
    trips = try_leg(report, "round trip", work, say)
    report.round_trip = {
        "count": len(trips),
        "min": trips[0],
        "median": _quantile(trips, 0.5),
        "p99": _quantile(trips, 0.99),
    }


def throughput(
    link: Probe, name: str, direction: str, given: argparse.Namespace, report: Report
) -> None:
    """A made-up block, "up" or "down"."""
    size = given.size
    report.begin(direction, f"{size_text(size)} under way")
    took = try_leg(
        report,
        direction,
        lambda: _Block(link, name, direction, size).wait(given.timeout),
        lambda took, _: (
            f"{size_text(size)} in {duration(took)}, {rate_text(size / took)}, verified"
        ),
    )
    assert report.throughput is not None
    report.throughput[direction] = {"seconds": took, "bytes_per_second": size / took}


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
            self._result = self._link.block(self._direction, self._size, None)
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


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
