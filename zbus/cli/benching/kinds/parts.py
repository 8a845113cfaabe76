"""How the time grows with the parts of a value."""

from __future__ import annotations

import statistics

from ..processes import Pairs
from ..rows import Row
from .measured import WARM, Measured, Plan, pair_of

STEPS = {100: 10, 1_000: 3, 10_000: 1}  # parts, and values in one go
ENTRY = 10  # parts that an entry of a conditioning is taken for


def growth(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The time of 10,000 parts as a multiple of a hundred times that of 100 parts. No value may
    have more than 65,536."""
    each = ENTRY if row.value == "conditioning" else 1
    measured, taken = Measured(row), dict[int, list[float]]()
    with pair_of(row.entries[0].way, pairs, measured) as pair:
        if pair is None:
            return measured
        for number in range(-WARM, plan.of(row)):
            for parts, count in STEPS.items():
                value = f"{row.value}:{parts // each}"
                pair.prepare(value)
                seconds = statistics.fmean(pair.pass_on(value, count))
                if number >= 0:
                    taken.setdefault(parts, []).append(seconds)
        few, _, many = (taken[parts] for parts in STEPS)
        measured.take({"zbus": [m / (100 * f) for f, m in zip(few, many, strict=True)]})
        part = [statistics.median(taken[parts]) / parts * 1e6 for parts in STEPS]
        measured.notes.append(
            f"microseconds a part: {part[0]:.1f} of 100, {part[1]:.2f} of 1,000, "
            f"{part[2]:.2f} of 10,000"
        )
    return measured
