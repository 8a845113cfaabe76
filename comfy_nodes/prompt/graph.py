"""Pure: the links of a prompt in API format, and copies of its nodes that may leave this ComfyUI.

Nothing here changes what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

PRIMITIVES = ("PrimitiveInt", "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean")
KEPT = ("class_type", "inputs", "_meta")
WRAP = "__value__"  # how ComfyUI tells a list that is a value from a list that is a link
MAX_TITLE = 60
MAX_PRIMITIVES = 8  # links in a row that are followed to a constant

Link = tuple[str, int]  # the id of a node ("57:8" inside a subgraph), and one of its outputs
Prompt = Mapping[str, Mapping[str, Any]]
Graph = dict[str, dict[str, Any]]  # a prompt of our own making


def link(value: Any) -> Link | None:
    """The link that an input's value is; None if it is a constant."""
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        return None
    slot = value[1]
    if isinstance(slot, float) and slot.is_integer():
        slot = int(slot)
    return (value[0], int(slot)) if isinstance(slot, int) else None


def class_type_of(node: Mapping[str, Any]) -> str:
    """A node's class, "" where it has none."""
    return str(node.get("class_type", ""))


def inputs_of(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """A node's inputs, empty where it has none."""
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, Mapping) else {}


def title(node_id: str, node: Mapping[str, Any]) -> str:
    """What texts call a node: its title and id."""
    meta = node.get("_meta")
    given = meta.get("title") if isinstance(meta, Mapping) else None
    name = given if isinstance(given, str) and given.strip() else str(node.get("class_type", "?"))
    return f"{name.strip()[:MAX_TITLE]} #{node_id}"


def copied(value: Any) -> Any:
    """A copy of dicts and lists, all the way down; what they hold stays as it is."""
    if isinstance(value, Mapping):
        return {name: copied(item) for name, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def clean(node: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a node as a browser would send it.

    Execution writes more into nodes (``is_changed``, ``_loop_body``), and validation unwraps
    constants that are lists: unless they are wrapped again, the next one takes them for links.
    """
    kept = {name: copied(node[name]) for name in KEPT if name in node}
    kept["inputs"] = {name: _wrapped(value) for name, value in inputs_of(kept).items()}
    return kept


def whole(prompt: Prompt) -> Graph:
    """A clean copy of all nodes."""
    return {node_id: clean(node) for node_id, node in prompt.items()}


def _wrapped(value: Any) -> Any:
    return {WRAP: value} if isinstance(value, list) and link(value) is None else value


def sources(prompt: Prompt, node_id: str) -> Iterator[tuple[str, Link]]:
    """The inputs of a node that are links to nodes which are there, by name."""
    for name, value in inputs_of(prompt[node_id]).items():
        found = link(value)
        if found and found[0] in prompt:
            yield name, found


def reach(
    prompt: Prompt, start: Iterable[str], follow: Callable[[str, str], bool]
) -> dict[str, None]:
    """The nodes from which these are reached, these among them, in a stable order.

    Args:
        prompt: API format: node id -> class_type, inputs, and maybe _meta.
        start: Where to start; ids that are not in the prompt are passed over.
        follow: Whether to go on along this link: the id of a node, and the name of its input.
    """
    found: dict[str, None] = {}
    left = [node for node in start if node in prompt]
    while left:
        node = left.pop()
        if node not in found:
            found[node] = None
            left += [to for name, (to, _) in sources(prompt, node) if follow(node, name)]
    return found


def ancestors(prompt: Prompt, ids: Iterable[str]) -> dict[str, None]:
    """Everything that these nodes need, themselves among it, in a stable order."""
    return reach(prompt, ids, lambda node, name: True)


def consumers(prompt: Prompt) -> dict[str, list[tuple[str, str]]]:
    """For each node, which inputs take something from it: (node id, name of the input)."""
    found: dict[str, list[tuple[str, str]]] = {node: [] for node in prompt}
    for node in prompt:
        for name, (source, _) in sources(prompt, node):
            found[source].append((node, name))
    return found


def descendants(prompt: Prompt, ids: Iterable[str], stop: Collection[str] = ()) -> dict[str, None]:
    """Everything that comes after these nodes, themselves among it, in a stable order.

    Args:
        stop: Nodes that are left out, and what comes after them alone.
    """
    after = consumers(prompt)
    found: dict[str, None] = {}
    left = [node for node in ids if node in prompt]
    while left:
        node = left.pop()
        if node not in found and node not in stop:
            found[node] = None
            left += [consumer for consumer, _ in after[node]]
    return found


def constant(prompt: Prompt, value: Any) -> Any:
    """The value itself, or that of the primitive node it comes from; None if unknown."""
    for _ in range(MAX_PRIMITIVES):
        found = link(value)
        if found is None:
            return value
        if found[0] not in prompt or class_type_of(prompt[found[0]]) not in PRIMITIVES:
            return None
        value = inputs_of(prompt[found[0]]).get("value")
    return None


def fresh_id(taken: Collection[str], stem: str) -> str:
    """A node id that is not taken: the stem, with a number if need be."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name
