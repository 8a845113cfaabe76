"""The pictures of the state machines in docs/protocol.md are those of the tables."""

from __future__ import annotations

import importlib
import subprocess
import sys
from enum import Enum

import pytest
from children import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
draw_states = importlib.import_module("_draw_states")
sys.path.remove(str(ROOT / "scripts"))

PAGE = draw_states.PAGE.read_text(encoding="utf-8")
MACHINES = [found[1] for found in draw_states.MARKED.finditer(PAGE)]


def test_each_picture_is_that_of_its_table() -> None:
    assert {"dial", "delivery.SENDING", "delivery.RECEIVING"} <= set(MACHINES)
    assert draw_states.drawn(PAGE) == PAGE, "run scripts/draw-states"


@pytest.mark.parametrize("name", MACHINES)
def test_each_row_that_does_something_is_in_the_picture(name: str) -> None:
    table = draw_states.table_of(name)
    arrows = draw_states.arrows(table)
    for (state, event), row in table.items():
        target, *done = row if isinstance(row, tuple) else (row,)
        names = [draw_states.name_of(one) for one in (state, target, event)]
        if target is not state or any(done):
            assert names[2] in arrows[names[0], names[1]]


class Light(Enum):
    RED = "stop"
    GREEN = "go"


def test_a_picture() -> None:
    table = {
        (Light.RED, "timer"): (Light.GREEN, ("switch",)),
        (Light.RED, "button"): (Light.RED, ()),
        (Light.GREEN, "timer"): (Light.RED, ("switch",)),
        (Light.GREEN, "button"): (Light.GREEN, ("wait",)),
    }
    assert draw_states.draw(table) == (
        "```mermaid\nstateDiagram-v2\n    [*] --> RED\n    RED: RED<br>stop\n"
        "    GREEN: GREEN<br>go\n    RED --> GREEN: timer\n    GREEN --> RED: timer\n"
        "    GREEN --> GREEN: button\n```\n"
    )


def test_a_page_that_is_not_up_to_date_is_told() -> None:
    script = ROOT / "scripts" / "_draw_states.py"
    done = subprocess.run([sys.executable, "-B", str(script), "--check"], check=False)
    assert done.returncode == 0
    stale = "<!-- dial:begin -->\nold\n<!-- dial:end -->\n"
    assert "IDLE --> RESOLVING: Use" in draw_states.drawn(stale)
