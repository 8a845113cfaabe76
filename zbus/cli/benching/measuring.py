"""Each row measured: its ways in turn, round by round, so that all see the same machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from .figures import Figure
from .processes import Pair, Pairs, WayFailed
from .rows import Entry, Row
from .ways import WAYS

WARM = 2  # rounds that do not count


@dataclass
class Measured:
    """What came out of one row: a figure of each entry, by its label, zbus first."""

    row: Row
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""  # why there is nothing


@dataclass
class Plan:
    """How much is done."""

    rounds: int
    quick: bool


def label(entry: Entry) -> str:
    return entry.label or WAYS[entry.way].label


def transfer(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The mean seconds of a value."""
    return _each(row, pairs, plan, statistics.fmean)


def middle(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The median of many, one after the other."""
    return _each(row, pairs, plan, statistics.median)


def _each(row: Row, pairs: Pairs, plan: Plan, sample: Callable[[list[float]], float]) -> Measured:
    entries = row.of(plan.quick)
    measured, taken = Measured(row), dict[str, list[float]]()
    pairs.start(list(dict.fromkeys(entry.way for entry in entries)))
    alive = [entry for entry in entries if pairs.get(entry.way) is not None]
    for number in range(-WARM, min(plan.rounds, row.rounds)):
        for entry in list(alive):
            pair = pairs.get(entry.way)
            if pair is None:  # another entry of the row has ended it
                alive.remove(entry)
                continue
            try:
                if number == -WARM:
                    pair.prepare(row.value)
                seconds = _one(pair, row, entry)
                if number == -1:
                    pair.check()
            except WayFailed as error:
                measured.notes.append(str(error))
                pairs.drop(entry.way)
                taken.pop(label(entry), None)
                alive.remove(entry)
            else:
                if number >= 0:
                    taken.setdefault(label(entry), []).append(sample(seconds))
    for way in {entry.way for entry in alive}:
        if (pair := pairs.get(way)) is not None:
            pair.clear()
    measured.figures = {name: Figure(tuple(found)) for name, found in taken.items()}
    return measured


def _one(pair: Pair, row: Row, entry: Entry) -> list[float]:
    return pair.pass_on(row.value, row.count, entry.memory, keep=entry.memory == "fresh")


KINDS: dict[str, Callable[[Row, Pairs, Plan], Measured]] = {
    "transfer": transfer,
    "middle": middle,
}


def measure(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    return KINDS[row.kind](row, pairs, plan)
