"""Pure: file names with this system's separators, whichever the one that wrote the prompt has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .classes import Inputs
from .graph import Graph, Prompt, class_type_of, inputs_of


def separators(prompt: Prompt, classes: Inputs) -> Graph:
    """The prompt with this system's "/" or "\\" in every choice that is here under the other."""
    return {node_id: _separated(node, classes) for node_id, node in prompt.items()}


def _separated(node: Mapping[str, Any], classes: Inputs) -> dict[str, Any]:
    inputs = dict(inputs_of(node))
    declared = classes.inputs(class_type_of(node), inputs)
    for name, value in inputs.items():
        if not isinstance(value, str) or not re.search(r"[\\/]", value) or name not in declared:
            continue
        choices = declared[name].choices or []
        if value not in choices:
            same = [c for c in choices if isinstance(c, str) and _slashed(c) == _slashed(value)]
            inputs[name] = same[0] if same else value
    return {**node, "inputs": inputs}


def _slashed(name: str) -> str:
    return name.replace("\\", "/")
