"""The work of `scripts/draw-states`: pictures of the state machines, drawn from their tables.

A machine is a module of `zbus/protocol` with a `TABLE` that maps (state, event) to the next state
and what is done. Its picture stands in docs/protocol.md between two comments that name the module,
and the table where that is called otherwise:

    <!-- dial:begin -->
    <!-- dial:end -->
    <!-- delivery.SENDING:begin -->
    <!-- delivery.SENDING:end -->
"""

from __future__ import annotations

import importlib
import re
import sys
from enum import Enum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "protocol.md"
MARKED = re.compile(r"<!-- ([\w.]+):begin -->\n(.*?)<!-- \1:end -->", re.DOTALL)
WIDTH = 60  # of the events on one arrow
USAGE = """usage: scripts/draw-states [--check]

Draws the state machines in docs/protocol.md anew, from their tables in zbus/protocol. With --check
it changes nothing, and ends with 1 if a picture is not that of its table.
"""


def name_of(value: Any) -> str:
    """As the picture calls a state or an event."""
    if isinstance(value, Enum):
        return value.name
    return value.__name__ if isinstance(value, type) else str(value)


def arrows(table: dict[tuple[Any, Any], Any]) -> dict[tuple[str, str], list[str]]:
    """(from, to) -> the events; those after which nothing is done and nothing changes are left
    out."""
    found: dict[tuple[str, str], list[str]] = {}
    for (state, event), row in table.items():
        target, *done = row if isinstance(row, tuple) else (row,)
        if target is not state or any(done):
            found.setdefault((name_of(state), name_of(target)), []).append(name_of(event))
    return found


def states(table: dict[tuple[Any, Any], Any]) -> list[Any]:
    """All of them, in the order in which they are declared, or else of the rows."""
    first = next(iter(table))[0]
    if isinstance(first, Enum):
        return list(type(first))
    return list(dict.fromkeys(state for state, _ in table))


def draw(table: dict[tuple[Any, Any], Any]) -> str:
    """The picture of one table, as a block of Mermaid."""
    every = states(table)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {name_of(every[0])}"]
    for state in every:
        if isinstance(state, Enum) and isinstance(state.value, str):
            lines.append(f"    {state.name}: {state.name}<br>{state.value}")
    for (source, target), events in arrows(table).items():
        lines.append(f"    {source} --> {target}: {_label(events)}")
    return "\n".join([*lines, "```"]) + "\n"


def _label(events: list[str]) -> str:
    rows = [""]
    for event in events:
        joined = f"{rows[-1]}, {event}" if rows[-1] else event
        rows[-1:] = [joined] if len(joined) <= WIDTH else [f"{rows[-1]},", event]
    return "<br>".join(rows)


def table_of(name: str) -> dict[tuple[Any, Any], Any]:
    """The table that a picture is drawn from: "dial", "delivery.SENDING"."""
    module, _, table = name.partition(".")
    found: dict[tuple[Any, Any], Any] = getattr(
        importlib.import_module(f"zbus.protocol.{module}"), table or "TABLE"
    )
    return found


def drawn(page: str) -> str:
    """The page with every picture as its table has it."""

    def anew(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- {name}:begin -->\n{draw(table_of(name))}<!-- {name}:end -->"

    return MARKED.sub(anew, page)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        sys.stdout.write(USAGE)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    sys.path.insert(0, str(ROOT))
    before = PAGE.read_text(encoding="utf-8")
    try:
        after = drawn(before)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("zbus"):
            raise
        sys.stderr.write(f"draw-states: this Python ({sys.executable}) has no {error.name}\n")
        return 2
    if arguments:
        return int(before != after)
    if before != after:
        PAGE.write_text(after, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
