"""What was measured, in figures: medians, their spread, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

UNITS = ("s", "/s", "B", "%", "x")


@dataclass(frozen=True)
class Figure:
    """Several samples of one thing, in their order. Less is better, whatever the unit."""

    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("a figure needs a sample")

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one; of fewer than four samples the least and the greatest."""
        if len(self.samples) < 4:
            return min(self.samples), max(self.samples)
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high

    def as_json(self) -> dict[str, object]:
        low, high = self.quartiles
        return {"median": self.median, "quartiles": [low, high], "samples": list(self.samples)}


def ratio(measured: Figure, yardstick: Figure) -> float:
    """How many times as much it is, median to median."""
    return measured.median / yardstick.median if yardstick.median else float("inf")


def percentile(samples: Sequence[float], part: float) -> float:
    """The sample below which that part of all lies: the greatest one where there are few."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def written(value: float, unit: str) -> str:
    """For a table: three figures. `unit` is one of `UNITS`; "/s" is shown for seconds a piece."""
    if unit == "/s":
        return f"{1 / value:,.0f}/s" if value else "-"
    if unit == "B":
        return f"{value / (1 << 20):.1f} MiB"
    if unit in ("%", "x"):
        return f"{value:.2f} {unit}"
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 1:
        return f"{value:.2f} s"
    if value < 100e-6:
        return f"{value * 1e6:.0f} us"
    digits = 3 if value < 1e-3 else 2 if value < 10e-3 else 1 if value < 100e-3 else 0
    return f"{value * 1e3:.{digits}f} ms"
