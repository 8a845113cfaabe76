"""Values passed, one after the other: the ways in turn, round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from ..processes import Pair, Pairs, WayFailed
from ..rows import Entry, Row
from .measured import WARM, Measured, Plan, label, short_of_memory


def transfer(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The mean seconds of a value."""
    return _each(row, pairs, plan, statistics.fmean, _pass_on)


def middle(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The median of many, one after the other."""
    return _each(row, pairs, plan, statistics.median, _pass_on)


def busy(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """As `transfer`, while a thread on each side computes in Python."""

    def pass_on(pair: Pair, row: Row, entry: Entry) -> list[float]:
        with pair.busy():
            return _pass_on(pair, row, entry)

    return _each(row, pairs, plan, statistics.fmean, pass_on)


def _pass_on(pair: Pair, row: Row, entry: Entry) -> list[float]:
    return pair.pass_on(row.value, row.count, entry.memory, keep=entry.memory == "fresh")


def _each(
    row: Row,
    pairs: Pairs,
    plan: Plan,
    sample: Callable[[list[float]], float],
    pass_on: Callable[[Pair, Row, Entry], list[float]],
) -> Measured:
    entries = row.of(plan.quick)
    measured, taken = Measured(row), dict[str, list[float]]()
    # Each holds the value on both sides at the same time: else one would be made for each turn.
    if why := short_of_memory(row, 2 * len(entries)):
        measured.skipped = why
        return measured
    pairs.start(list(dict.fromkeys(entry.way for entry in entries)))
    alive = [entry for entry in entries if pairs.get(entry.way) is not None]
    for number in range(-WARM, plan.of(row)):
        for entry in list(alive):
            pair = pairs.get(entry.way)
            if pair is None:  # another entry of the row has ended it
                alive.remove(entry)
                continue
            try:
                if number == -WARM:
                    pair.prepare(row.value)
                seconds = pass_on(pair, row, entry)
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
    measured.take(taken)
    return measured
