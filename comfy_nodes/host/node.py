"""The prompt and the node that are being executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.utils
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from ..prompt import output_types
from ..prompt.graph import inputs_of, link
from .classes import Classes

ProgressBar = comfy.utils.ProgressBar


class Here(NamedTuple):
    """The node that is being executed."""

    prompt_id: str
    node_id: str
    node: Mapping[str, Any]
    list_index: int | None = None  # where a list input runs it once for each item


def executing() -> Here:
    """The node that this coroutine executes."""
    context = get_executing_context()
    if context is None:
        raise RuntimeError("called outside of a node's execution")
    graph = get_progress_state().dynprompt
    node = graph.get_node(context.node_id) if graph.has_node(context.node_id) else {}
    return Here(context.prompt_id, context.node_id, node, context.list_index)


def graph() -> dict[str, Any]:
    """All nodes of the prompt that is being executed, those that nodes have added among them."""
    dynamic = get_progress_state().dynprompt
    return {node_id: dynamic.get_node(node_id) for node_id in dynamic.all_node_ids()}


def no_picture(name: str) -> str:
    """The type that is declared for what arrives at that input of the node that is being executed,
    if that is certainly no picture; "" if it may be one."""
    wired = link(inputs_of(executing().node).get(name))
    return (
        ""
        if wired is None
        else output_types.no_picture(output_types.declared(graph(), wired, Classes()))
    )


def shown_as(node_id: str) -> str:
    """The node that the page knows, for one that it does not: it was added while running."""
    dynamic = get_progress_state().dynprompt
    return str(dynamic.get_display_node_id(node_id)) if dynamic.has_node(node_id) else node_id


def doing() -> list[tuple[str, Mapping[str, Any], float, float]]:
    """What is being executed: (node id, node, value, maximum) of each node that has begun."""
    registry = get_progress_state()
    found = []
    for node_id, state in list(registry.nodes.items()):
        if state["state"].value == "running" and registry.dynprompt.has_node(node_id):
            node = registry.dynprompt.get_node(node_id)
            found.append((node_id, node, state["value"], state["max"]))
    return found


def current_prompt() -> Mapping[str, Any]:
    """The prompt that is being executed, as it was queued."""
    prompt: Mapping[str, Any] = get_progress_state().dynprompt.get_original_prompt()
    return prompt
