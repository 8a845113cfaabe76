"""Values on links that nothing is known of: each has a new one, slowed down where that is meant."""

from __future__ import annotations

import random
import sys

from ..processes import Pair, Pairs, Process, WayFailed
from ..rows import Row
from ..values import size_of
from .measured import Measured, Plan, label, pair_of

MBIT = 1e6 / 8  # bytes per second
CUTS = 50
CUT_RATE = 400e6  # bytes per second


def first(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The first value of a new link, which stands already."""
    return _on_new_links(row, pairs, plan, None, row.value)


def slow(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The first picture of a new link of so many Mbit/s, from one machine to another; the row's
    value is the rate."""
    if plan.photo is None:
        return Measured(row, skipped="it needs a photograph: name one with --photo FILE")
    rate = float(row.value) * MBIT
    return _on_new_links(row, pairs, plan, rate, f"photo:{plan.photo}")


def _on_new_links(row: Row, pairs: Pairs, plan: Plan, rate: float | None, value: str) -> Measured:
    measured, taken = Measured(row), dict[str, list[float]]()
    entries = [*row.of(plan.quick)]
    pairs.start([entry.way for entry in entries])
    with Throttles(pairs, rate) as throttles:
        for number in range(-1, plan.of(row)):
            for entry in list(entries):
                if (pair := pairs.get(entry.way)) is None:
                    entries.remove(entry)
                    continue
                try:
                    if number == -1:
                        pair.prepare(value)
                    seconds = _first_value(pair, throttles, value, number == -1)
                except WayFailed as error:
                    measured.notes.append(str(error))
                    pairs.drop(entry.way)
                    entries.remove(entry)
                else:
                    if number >= 0:
                        taken.setdefault(label(entry), []).append(seconds)
    for entry in entries:
        if (pair := pairs.get(entry.way)) is not None:
            pair.clear()
    measured.take({name: taken[name] for name in map(label, row.entries) if name in taken})
    return measured


def _first_value(pair: Pair, throttles: Throttles, value: str, check: bool) -> float:
    pair.wake()
    told = pair.sender.ask("call", method="listen", given={})
    told = throttles.through(told)
    pair.receiver.tell("call", method="dial", given=told)
    pair.sender.ask("call", method="accept", given={})
    pair.receiver.answer()
    seconds = pair.pass_on(value, keep=True)[0]
    if check:
        pair.check()
    pair.wake()
    for side in (pair.sender, pair.receiver):
        side.tell("call", method="hang_up", given={})
    for side in (pair.sender, pair.receiver):
        side.answer()
    pair.rest()
    return seconds


class Throttles:
    """Where a link goes through something slower, or that cuts it: a process of its own. A context
    manager.

    Args:
        rate: Bytes per second; None: nothing stands between.
    """

    def __init__(self, pairs: Pairs, rate: float | None) -> None:
        self._rate = rate
        self._process: Process | None = None
        if rate is not None:
            self._process = Process("throttle", "", pairs.folder())

    def __enter__(self) -> Throttles:
        if self._process is not None:
            self._process.ask("load")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()

    def through(self, told: dict[str, object]) -> dict[str, object]:
        """Where to dial in place of that: never dialled before."""
        if self._process is None:
            return told
        given = {"port": told["port"], "rate": self._rate, "host": _unused_host()}
        return {**told, **self.call("stand_between", given)}

    def call(self, method: str, given: dict[str, object]) -> dict[str, object]:
        assert self._process is not None
        answer: dict[str, object] = self._process.ask("call", method=method, given=given)
        return answer


def _unused_host() -> str:
    """An address of the loopback that nobody has dialled before, where there is more than one: what
    is known of a link is known by it."""
    if not sys.platform.startswith("linux"):
        return "127.0.0.1"
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"


def cuts(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The bytes that are sent again for each of 50 cuts within one value, which is exact."""
    measured, entry = Measured(row), row.entries[0]
    with pair_of(entry.way, pairs, measured) as pair, Throttles(pairs, CUT_RATE) as throttles:
        if pair is None:
            return measured
        pair.prepare(row.value)
        told = throttles.through(pair.sender.ask("call", method="listen", given={}))
        pair.receiver.tell("call", method="dial", given=told)
        pair.sender.ask("call", method="accept", given={})
        pair.receiver.answer()
        throttles.call("cut_each", {"size": size_of(row.value) // (CUTS + 1), "times": CUTS})
        seconds = pair.pass_on(row.value)[0]
        pair.check()
        done = throttles.call("counts", {})
        number, moved = int(str(done["cuts"])), int(str(done["forwarded"]))
        measured.take({"zbus": [max(0.0, moved - size_of(row.value)) / max(1, number)]})
        measured.notes.append(f"{number} cuts in {seconds:.1f} s, and exact")
    return measured
