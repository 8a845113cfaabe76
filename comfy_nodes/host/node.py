"""The prompt and the node that are being executed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import comfy.utils
import nodes
from comfy_execution.graph import DynamicPrompt, ExecutionBlocker
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from ..prompt import output_types
from ..prompt.graph import inputs_of, link
from ..prompt.late_readers import Execution
from .classes import Classes

logger = logging.getLogger(__name__)

ProgressBar = comfy.utils.ProgressBar


class Here(NamedTuple):
    """The node that is being executed."""

    prompt_id: str
    node_id: str
    node: Mapping[str, Any]
    list_index: int | None = None  # where a list input runs it once for each item

    @property
    def key(self) -> tuple[str, int | None]:
        """What tells it from all that its prompt executes beside it."""
        return self.node_id, self.list_index


def executing() -> Here:
    """The node that this coroutine executes."""
    context = get_executing_context()
    if context is None:
        raise RuntimeError("called outside of a node's execution")
    graph = get_progress_state().dynprompt
    node = graph.get_node(context.node_id) if graph.has_node(context.node_id) else {}
    return Here(context.prompt_id, context.node_id, node, context.list_index)


def graph() -> dict[str, Any]:
    """All nodes of the prompt that is being executed, those that nodes have added among them.

    As they were made: `get_node` gives an End Loop without its links once its loop has begun.
    """
    dynamic = get_progress_state().dynprompt
    return {**dynamic.original_prompt, **dynamic.ephemeral_prompt}


def no_picture(name: str) -> str:
    """See `output_types.no_picture`, for what arrives at that input of the node."""
    wired = link(inputs_of(executing().node).get(name))
    if wired is None:
        return ""
    return output_types.no_picture(graph(), wired, Classes())


def execution() -> object:
    """Something that no other execution of a prompt has, also of one with the same id."""
    return get_progress_state()


def how_far(prompt_id: str, outputs: Collection[str]) -> Execution | None:
    """How far that prompt is; None where it is not the one that is being executed.

    Args:
        outputs: The nodes that are wanted; none: all that are output nodes.
    """
    registry = get_progress_state()
    if registry is None or registry.prompt_id != prompt_id:
        return None
    dynamic = registry.dynprompt
    prompt = {node_id: dynamic.get_node(node_id) for node_id in dynamic.all_node_ids()}
    added = {i: parent for i in prompt if (parent := dynamic.get_parent_node_id(i)) is not None}
    states = registry.nodes.copy().items()
    finished = {node_id for node_id, state in states if state["state"].value == "finished"}
    return Execution(prompt, outputs or _output_nodes(prompt), added, finished)


def _output_nodes(prompt: Mapping[str, Mapping[str, Any]]) -> list[str]:
    classes = nodes.NODE_CLASS_MAPPINGS
    return [
        i for i, n in prompt.items() if getattr(classes.get(n["class_type"]), "OUTPUT_NODE", False)
    ]


def shown_as(node_id: str) -> str:
    """The node that the page knows, for one that it does not: it was added while running."""
    dynamic = get_progress_state().dynprompt
    return str(dynamic.get_display_node_id(node_id)) if dynamic.has_node(node_id) else node_id


def doing() -> list[tuple[str, Mapping[str, Any], float, float]]:
    """What is being executed: (node id, node, value, maximum) of each node that has begun."""
    registry = get_progress_state()
    found = []
    for node_id, state in registry.nodes.copy().items():
        if state["state"].value == "running" and registry.dynprompt.has_node(node_id):
            node = registry.dynprompt.get_node(node_id)
            found.append((node_id, node, state["value"], state["max"]))
    return found


def current_prompt() -> Mapping[str, Any]:
    """The prompt that is being executed, as it was queued."""
    prompt: Mapping[str, Any] = get_progress_state().dynprompt.get_original_prompt()
    return prompt


def blocked() -> Any:
    """A value that silently blocks what comes after it."""
    return ExecutionBlocker(None)


def tell_prompt_as(change: Callable[[Any], Any]) -> None:
    """Have nodes that ask for the prompt (a Save writes it into its picture) get what `change`
    makes of it. Only while ComfyUI loads its nodes.

    The one place where a method of the host is wrapped: it has no hook for what it tells of a
    prompt, and `on_prompt` may change only what is executed.

    What it makes is made once a prompt: nodes write into it (a seed that was drawn), for those that
    save it later.
    """
    told = DynamicPrompt.get_original_prompt
    if hasattr(told, "zbus"):
        return

    def get_original_prompt(self: Any) -> Any:
        prompt = told(self)
        before, made = getattr(self, "zbus_told", (None, None))
        if before is not prompt:
            made = prompt
            try:
                made = change(prompt)
            except Exception:  # of a prompt that may have nothing to do with us
                logger.exception("a prompt is told as it is executed")
            self.zbus_told = prompt, made
        return made

    get_original_prompt.zbus = True  # type: ignore[attr-defined]
    DynamicPrompt.get_original_prompt = get_original_prompt
