"""What was measured, for people: a table, and which goals are missed. And as JSON."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .figures import Figure, ratio, written
from .kinds import Measured
from .rows import Goal

WIDTH = 100
NAME, VALUE, SPREAD = 24, 11, 25


class Verdict(NamedTuple):
    """A goal, and what it came to."""

    goal: Goal
    found: float

    @property
    def is_met(self) -> bool:
        return self.found <= self.goal.most

    @property
    def is_guarded(self) -> bool:
        """Whether it is within the generous bound."""
        return not self.goal.guard or self.found <= self.goal.guard


def best(measured: Measured) -> str:
    """The label of the yardstick with the least; "" where there is none."""
    others = [label for label in measured.figures if label != "zbus" and not is_limit(label)]
    return min(others, key=lambda label: measured.figures[label].median, default="")


def verdicts(measured: Measured) -> list[Verdict]:
    """Of the goals whose yardstick was there."""
    zbus, found = _zbus(measured), []
    if zbus is None:
        return []
    for goal in measured.row.goals:
        if not goal.against:
            found.append(Verdict(goal, zbus.median))
        else:
            label = best(measured) if goal.against == "best" else goal.against
            if label in measured.figures:
                found.append(Verdict(goal, ratio(zbus, measured.figures[label])))
    return found


def _zbus(measured: Measured) -> Figure | None:
    return measured.figures.get("zbus")


def is_limit(label: str) -> bool:
    """What nobody could send by."""
    return label.startswith("memcpy")


def _is_compared(measured: Measured) -> bool:
    """Whether the other figures are yardsticks."""
    goals = measured.row.goals
    return not goals or any(goal.against for goal in goals)


def lines(measured: Measured) -> list[str]:
    """A row of the table: zbus, the yardsticks, the ratio to each."""
    row, made = measured.row, [f"{measured.row.title}  [{measured.row.name}]"]
    zbus, fastest = _zbus(measured), best(measured)
    for label, figure in measured.figures.items():
        low, high = (written(value, row.unit) for value in figure.quartiles)
        cells = f"  {label:<{NAME}}{written(figure.median, row.unit):>{VALUE}}"
        cells += f"  {f'({low} to {high})':<{SPREAD}}"
        if zbus is not None and label != "zbus" and _is_compared(measured):
            cells += f"  zbus {ratio(zbus, figure):6.2f} x"
            cells += "  (a limit)" if is_limit(label) else "  (the best)" * (label == fastest)
        made.append(cells.rstrip())
    made += [f"  {note}"[:WIDTH] for note in measured.notes]
    if measured.skipped:
        made.append(f"  skipped: {measured.skipped}")
    for verdict in verdicts(measured):
        made.append(f"  {_told(verdict, row.unit)}")
    return made


def _told(verdict: Verdict, unit: str) -> str:
    goal = verdict.goal
    mark = "reached" if verdict.is_met else "MISSED"
    if goal.against:
        return f"goal {mark}: {verdict.found:.2f} x {goal.against}, at most {goal.most:g}"
    return f"goal {mark}: {written(verdict.found, unit)}, at most {written(goal.most, unit)}"


def markdown(all_measured: Iterable[Measured]) -> str:
    """The table of docs/performance.md."""
    made = ["| what | zbus | beside it | goal |", "|---|---:|---|---|"]
    for measured in all_measured:
        row, zbus = measured.row, _zbus(measured)
        others = [
            f"{label} {written(figure.median, row.unit)}"
            + (f" ({ratio(zbus, figure):.2f})" if zbus and _is_compared(measured) else "")
            for label, figure in measured.figures.items()
            if label != "zbus"
        ]
        goals = [
            f"{'' if verdict.is_met else 'missed: '}{_bound(verdict, row.unit)}"
            for verdict in verdicts(measured)
        ]
        shown = written(zbus.median, row.unit) if zbus else "-"
        beside = ", ".join(others) or measured.skipped or "-"
        made.append(f"| {row.title} | {shown} | {beside} | {'; '.join(goals) or '-'} |")
    return "\n".join(made) + "\n"


def _bound(verdict: Verdict, unit: str) -> str:
    goal = verdict.goal
    return f"{goal.most:g} x {goal.against}" if goal.against else f"{written(goal.most, unit)}"


def missed(all_measured: Sequence[Measured]) -> str:
    """The last words: the rows that miss a goal, each with the goal that it misses by most; and
    those of which nothing is known."""
    names = []
    for measured in all_measured:
        bad = [verdict for verdict in verdicts(measured) if not verdict.is_met]
        if bad:
            worst = max(bad, key=lambda verdict: verdict.found / verdict.goal.most)
            factor = worst.found / worst.goal.most
            names.append(f"{measured.row.name} ({factor:.1f} times the goal)")
    what = "1 row misses its goal" if len(names) == 1 else f"{len(names)} rows miss their goals"
    said = [f"{what}: {', '.join(names)}."] if names else []
    without = [measured.row.name for measured in all_measured if _zbus(measured) is None]
    if without:
        said.append(f"Without a figure of zbus: {', '.join(without)}.")
    text = " ".join(said) or "All goals reached."
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def has_failed(measured: Measured) -> bool:
    """Whether zbus has no figure there, and should have one."""
    return _zbus(measured) is None and not measured.skipped


def machine() -> dict[str, Any]:
    """What it ran on, for people."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def as_json(all_measured: Iterable[Measured], absent: dict[str, str]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "absent": absent,
        "rows": [_row(measured) for measured in all_measured],
    }


def _row(measured: Measured) -> dict[str, Any]:
    return {
        "name": measured.row.name,
        "title": measured.row.title,
        "unit": measured.row.unit,
        "figures": {label: figure.as_json() for label, figure in measured.figures.items()},
        "goals": [
            {"against": v.goal.against, "most": v.goal.most, "found": v.found, "met": v.is_met}
            for v in verdicts(measured)
        ],
        "notes": measured.notes,
        "skipped": measured.skipped,
        "took": measured.took,
    }
