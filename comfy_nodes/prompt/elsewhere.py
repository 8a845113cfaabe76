"""Pure: which runs have their part run elsewhere alone, and what of a prompt nothing here needs.

ComfyUI refuses the whole prompt for one node that it cannot run: there, stand-ins take the place of
what only the other ComfyUI can run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from zbus.address import several

from .. import node_ids
from .cutting import BOUNDARIES, boundary_nodes, up_to
from .graph import (
    Link,
    Prompt,
    ancestors,
    class_type_of,
    constant,
    consumers,
    copied,
    inputs_of,
    sources,
)
from .loops import Loop, around, closed_here
from .stand_ins import stood_in

NO, ALSO, ONLY = "no", "also run here", "only here"  # `here` of a ZBusRun
THIS = "this computer"  # the same in its `peer`, in workflows from before there was ONLY


def elsewhere(peer: str) -> tuple[list[str], bool]:
    """The names in a ZBusRun's `peer` but for `THIS`, and whether that is among them."""
    names = several(peer)
    others = [name for name in names if name.lower() != THIS]
    return others, len(others) < len(names)


def stand_in(
    prompt: Prompt,
    is_bad: Callable[[str, Mapping[str, Any]], bool],
    outputs: Collection[str] | None = None,
    loops: Mapping[str, Loop] | None = None,
) -> Prompt:
    """The prompt with stand-ins for what only the peer can run, so that it is valid here.

    A node is stood in for if all that it feeds is what a ZBusRun runs elsewhere alone, and if it
    is bad.

    Args:
        prompt: The whole prompt, as it came.
        is_bad: Whether this ComfyUI could not run that node (id, node).
        outputs: The ids of the output nodes that are to be executed: what none of them needs is
            not needed here. None: every node whose values nobody takes.
        loops: Its loops: see `loops.loops_of`.

    Returns:
        A changed copy; the very same object if there is nothing to change.
    """
    bad = {i for i in _only_elsewhere(prompt, outputs, loops or {}) if is_bad(i, prompt[i])}
    if not bad:
        return prompt
    return {i: stood_in(node) if i in bad else copied(node) for i, node in prompt.items()}


def elsewhere_runs(prompt: Prompt) -> dict[str, Link]:
    """The ZBusRuns that are known to run their part elsewhere alone, each with its value's link."""
    runs = [i for i in _runs(prompt) if isinstance(_peer(prompt, i), str)]
    return {i: source for i in runs for name, source in sources(prompt, i) if name == "value"}


def _runs(prompt: Prompt) -> list[str]:
    """Those that do not, as far as one can tell, run their part here too."""
    return [
        i
        for i, node in prompt.items()
        if class_type_of(node) in node_ids.RUNS
        and inputs_of(node).get("here", NO) == NO
        and not elsewhere(str(_peer(prompt, i)))[1]
    ]


def _peer(prompt: Prompt, run: str) -> Any:
    return constant(prompt, inputs_of(prompt[run]).get("peer", ""))


def parts_of(
    prompt: Prompt,
    values: Mapping[str, Link],
    attach: Collection[str],
    loops: Mapping[str, Loop],
) -> dict[str, set[str]]:
    """For each of these runs its part, before any loop has run: its Start Loop runs here."""
    ends = boundary_nodes(prompt, BOUNDARIES, attach)
    ends |= closed_here(loops, ends)
    return {run: up_to(prompt, [s], ends | around(loops, run)) for run, (s, _) in values.items()}


def _only_elsewhere(
    prompt: Prompt, outputs: Collection[str] | None, loops: Mapping[str, Loop]
) -> set[str]:
    """The nodes that nothing on this side needs."""
    runs = set(_runs(prompt))
    values = {i: s for i in runs for name, s in sources(prompt, i) if name == "value"}
    parts = set().union(*parts_of(prompt, values, (), loops).values())
    used = prompt.keys() if outputs is None else ancestors(prompt, outputs).keys()
    after, there = consumers(prompt), set(parts)

    def is_needed_here(node: str) -> bool:
        return node in (outputs or ()) or not all(
            to in there or (to in runs and name == "value")
            for to, name in after[node]
            if to in used
        )

    left = list(there)
    while left:  # what a node that is needed here needs is needed here
        node = left.pop()
        if node in there and is_needed_here(node):
            there.discard(node)
            left += [source for _, (source, _) in sources(prompt, node)]
    there |= _beside(prompt, parts, prompt.keys() - used)
    return {i for i in there if class_type_of(prompt[i]) != node_ids.THERE}


def _beside(prompt: Prompt, part: Collection[str], unused: Collection[str]) -> set[str]:
    """Those of the unused nodes that belong to branches of a part: they lead nowhere."""
    after = consumers(prompt)
    found: set[str] = set()
    left = [to for node in part for to, _ in after[node]]
    while left:
        node = left.pop()
        if node in unused and node not in found:
            found.add(node)
            left += [source for _, (source, _) in sources(prompt, node)]
            left += [to for to, _ in after[node]]
    return found
