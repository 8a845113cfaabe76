"""Pure: ComfyUI's own loops: what lies between a Start Loop and its End Loop runs many times.

When a Start Loop is executed, ComfyUI puts copies of what lies between into the prompt, one set
for each turn, and in place of the Start Loop an iteration node in each. What is already ready to
run by then runs as it is: so a node whose only link is a lazy one must be held back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

from .graph import Graph, Prompt, ancestors, class_type_of, consumers, copied

ITERATION = "LoopIteration"  # ComfyUI's own: what the Start Loop gives in one turn
AFTER = "zbus_after"  # inputs that hold a node back; it takes no notice of their values
BODY, END = "_loop_body", "_loop_end"  # what ComfyUI writes into a Start Loop


class Loop(NamedTuple):
    """What lies between a Start Loop and its End Loop, neither among it."""

    end: str
    body: frozenset[str]


class LoopClasses(Protocol):
    """What the host knows of node classes."""

    def loop_boundary(self, class_type: str) -> str:
        """Of a Start Loop "start", of an End Loop "end", of all else ""."""


def loops_of(prompt: Prompt, classes: LoopClasses) -> dict[str, Loop]:
    """The loops of a prompt, by their Start Loops."""
    found: dict[str, list[str]] = {"start": [], "end": [], "": []}
    for i, node in prompt.items():
        found.get(classes.loop_boundary(class_type_of(node)), []).append(i)
    return paired(prompt, found["start"], found["end"])


def paired(prompt: Prompt, starts: Collection[str], ends: Collection[str]) -> dict[str, Loop]:
    """The loops of a prompt, by their Start Loops.

    As ComfyUI pairs them: an End Loop belongs to the nearest Start Loop before it that is still
    open. One without its other makes no loop; ComfyUI refuses it.

    Args:
        starts: The ids of the Start Loops.
        ends: The ids of the End Loops.
    """
    before = {end: set(ancestors(prompt, [end])) - {end} for end in ends if end in prompt}
    nested = {start: set(ancestors(prompt, [start])) for start in starts if start in prompt}
    pairs: dict[str, str] = {}
    left = dict(before)
    while left:
        inner = [end for end, found in left.items() if not found & (left.keys() - {end})]
        if not inner:
            break  # they are in a circle
        for end in inner:
            open_ones = [s for s in nested if s in left[end] and s not in pairs]
            nearest = [s for s in open_ones if all(o in nested[s] for o in open_ones)]
            if nearest:
                pairs[nearest[0]] = end
            del left[end]
    return {start: Loop(end, _between(prompt, start, end)) for start, end in pairs.items()}


def _between(prompt: Prompt, start: str, end: str) -> frozenset[str]:
    after = consumers(prompt)
    found: set[str] = set()
    left = [to for to, _ in after[start]]
    while left:
        node = left.pop()
        if node not in found and node not in (start, end):
            found.add(node)
            left += [to for to, _ in after[node]]
    return frozenset(found)


def around(loops: Mapping[str, Loop], node: str) -> set[str]:
    """The Start Loops of those in which that node lies."""
    return {start for start, loop in loops.items() if node in loop.body}


def held_back(prompt: Prompt, loops: Mapping[str, Loop], runs: Collection[str]) -> Prompt:
    """The prompt with each of those runs waiting for the loops that it lies in.

    Its only link is a lazy one: it would be ready, and run, before its loop.

    Returns:
        A changed copy; the very same object if there is nothing to change.
    """
    wanted = {run: sorted(around(loops, run)) for run in runs}
    if not any(wanted.values()):
        return prompt
    graph: Graph = copied(prompt)
    for run, starts in wanted.items():
        graph[run]["inputs"] |= {f"{AFTER}{k}": [start, 0] for k, start in enumerate(starts)}
    return graph


def freed(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A node's inputs as they were before it was held back."""
    return {name: value for name, value in inputs.items() if not name.startswith(AFTER)}


def begun(prompt: Prompt) -> dict[str, Loop]:
    """The loops of a prompt that ComfyUI has validated, and of what it has added since: by their
    Start Loops."""
    found = {}
    for start, node in prompt.items():
        body, end = node.get(BODY), node.get(END)
        if isinstance(body, list) and isinstance(end, str):
            found[start] = Loop(end, frozenset(i for i in body if isinstance(i, str)))
    return found


def closed_here(loops: Mapping[str, Loop], ends: Collection[str]) -> set[str]:
    """The End Loops of those in which something runs here: then all of it does."""
    return {loop.end for loop in loops.values() if not loop.body.isdisjoint(ends)}
