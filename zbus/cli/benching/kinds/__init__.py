"""How the rows are measured, by the name of their kind."""

from __future__ import annotations

from ..processes import Pairs
from ..rows import Row
from .beside import deaf, idle, memory, ping
from .jobs import job
from .many import many
from .measured import Kind, Measured, Plan
from .new_links import cuts, first, slow
from .parts import growth
from .transfers import busy, middle, transfer

KINDS: dict[str, Kind] = {
    "transfer": transfer,
    "middle": middle,
    "busy": busy,
    "growth": growth,
    "ping": ping,
    "deaf": deaf,
    "memory": memory,
    "idle": idle,
    "first": first,
    "slow": slow,
    "cuts": cuts,
    "many": many,
    "job": job,
}


def measure(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """Measure that row."""
    return KINDS[row.kind](row, pairs, plan)


__all__ = ["KINDS", "Measured", "Plan", "measure"]
