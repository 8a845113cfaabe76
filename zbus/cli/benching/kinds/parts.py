"""How the time grows with the parts of a value."""

from __future__ import annotations

import statistics

from ..processes import Pairs
from ..rows import Row
from .measured import WARM, Measured, Plan, pair_of

STEPS = (100, 1_000, 10_000)  # parts
COUNTS = {100: 10, 1_000: 3, 10_000: 1}  # values in one go


def growth(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The time of 10,000 parts as a multiple of a hundred times that of 100 parts."""
    measured, taken = Measured(row), dict[int, list[float]]()
    with pair_of(row.entries[0].way, pairs, measured) as pair:
        if pair is None:
            return measured
        for number in range(-WARM, plan.of(row)):
            for parts in STEPS:
                value = f"{row.value}:{parts}"
                pair.prepare(value)
                seconds = statistics.fmean(pair.pass_on(value, COUNTS[parts]))
                if number >= 0:
                    taken.setdefault(parts, []).append(seconds)
        few, some, many = (taken[parts] for parts in STEPS)
        measured.take({"zbus": [m / (100 * f) for f, m in zip(few, many, strict=True)]})
        whole = statistics.median(some), statistics.median(many)
        measured.notes.append(
            f"a part of 1,000: {whole[0] * 1e3:.2f} us; of 10,000: {whole[1] * 1e2:.2f} us"
        )
    return measured
