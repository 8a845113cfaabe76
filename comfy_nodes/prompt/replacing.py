"""Pure: classes that are gone, and what ComfyUI puts in their place, as POST /prompt does."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from .graph import Prompt, class_type_of, copied


class Manager(Protocol):
    """ComfyUI's own, from 0.14 on."""

    def has_replacement(self, old_node_id: str) -> bool:
        """Whether there is something to put in place of that class."""

    def apply_replacements(self, prompt: dict[str, dict[str, Any]]) -> None:
        """Put it there, in place, for each class that is gone."""


def replaced(prompt: Prompt, names: Collection[str], manager: Manager | None) -> Prompt:
    """The prompt with what stands in place of classes that are gone.

    Args:
        names: The classes that there are.
        manager: None on a ComfyUI that replaces nothing.

    Returns:
        A changed copy; the very same object if there is nothing to change.

    Raises:
        Exception: Whatever the manager raises where an input is not there that it counts on.
    """
    kinds = {class_type_of(node) for node in prompt.values()}
    if manager is None or not any(k not in names and manager.has_replacement(k) for k in kinds):
        return prompt
    # It takes a title for granted, which a prompt that no page has made lacks.
    made = {i: {"inputs": {}, "_meta": {}, **copied(node)} for i, node in prompt.items()}
    manager.apply_replacements(made)
    for node_id, node in prompt.items():
        for name in ("inputs", "_meta"):
            if name not in node and not made[node_id].get(name):
                made[node_id].pop(name, None)
    return made
