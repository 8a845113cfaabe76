"""What ComfyUI knows of node classes."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import folder_paths
import nodes

from .. import node_ids
from ..prompt import replacing
from ..prompt.class_inputs import (
    FOLDER_LOADERS,
    ClassInput,
    expanded,
    find,
    names_file,
    names_path,
)
from ..prompt.graph import Prompt
from .process import the_server
from .queue import FOREIGN

logger = logging.getLogger(__name__)

KINDS = {
    **{"IMAGE": "image", "MASK": "mask", "LATENT": "latent", "AUDIO": "audio"},
    **{"CONDITIONING": "conditioning", "STRING": "text"},
    **dict.fromkeys(("INT", "FLOAT", "BOOLEAN"), "number"),
}


def node_class(class_type: str) -> type | None:
    """The node class that ComfyUI has under that id."""
    found: type | None = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    return found


def replaced(prompt: Prompt) -> Prompt:
    """The prompt with what this ComfyUI puts in place of classes that are gone."""
    manager = getattr(the_server(), "node_replace_manager", None)
    try:
        return replacing.replaced(prompt, nodes.NODE_CLASS_MAPPINGS.keys(), manager)
    except Exception:  # ComfyUI's own, and its own to tell of its prompts
        logger.warning("a node whose class is gone could not be replaced", exc_info=True)
        return prompt


class Classes:
    """What ComfyUI knows of node classes: see `plans.Classes`, `preflight.Classes` and
    `output_types.Outputs`.

    Looks at a class once: an instance is for one look at one prompt.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Mapping[str, Any]] = {}
        self._boundaries: dict[str, str] = {}

    def is_lazy(self, class_type: str, name: str) -> bool:
        found = self._find(class_type, name)
        return found is not None and bool(found.options.get("lazy"))

    def expands(self, class_type: str) -> bool:
        # To copy what is before it, a node must see the graph.
        return "DYNPROMPT" in self._hidden(class_type)

    def asks_late(self, class_type: str, name: str) -> bool:
        declared = self._find(class_type, name)
        # One that gets the link itself can hand it to a node that it adds.
        return self.is_lazy(class_type, name) or bool(declared and declared.options.get("rawLink"))

    def sees_graph(self, class_type: str) -> bool:
        if class_type in node_ids.QUEUES:  # by what its fetch nodes need, which is not before it
            return True
        return self.expands(class_type) or "EXECUTION_LIST" in self._hidden(class_type)

    def kind(self, class_type: str, slot: int) -> str:
        try:
            found = node_class(class_type).RETURN_TYPES[slot]  # type: ignore[union-attr]
            return KINDS.get(found, "any")
        except (AttributeError, IndexError, TypeError):
            return "any"

    def is_output(self, class_type: str) -> bool:
        return getattr(node_class(class_type), "OUTPUT_NODE", None) is True

    def is_core(self, class_type: str) -> bool:
        # ComfyUI says so of what it loads from a file: "custom_nodes.NAME", "comfy_extras.NAME".
        found = node_class(class_type)
        module = getattr(found, "RELATIVE_PYTHON_MODULE", "nodes")
        return found is not None and str(module).partition(".")[0] != "custom_nodes"

    def loop_boundary(self, class_type: str) -> str:
        if class_type not in self._boundaries:
            try:
                found = node_class(class_type).GET_SCHEMA().loop_boundary  # type: ignore
            except FOREIGN:  # none of the newest ones; or a node's own code
                found = None
            self._boundaries[class_type] = str(found or "")
        return self._boundaries[class_type]

    def returned(self, class_type: str, slot: int) -> str:
        try:
            found = node_class(class_type).RETURN_TYPES[slot]  # type: ignore[union-attr]
        except (AttributeError, IndexError, TypeError, KeyError):
            return ""
        # A V3 class has a kind of text there for which neither "==" nor "!=" holds beside "*".
        return str(found) if isinstance(found, str) else "COMBO" if isinstance(found, list) else ""

    def accepted(self, class_type: str, name: str) -> str:
        found = self._find(class_type, name)
        return found.kind if found is not None and isinstance(found.kind, str) else ""

    def matched(self, class_type: str, slot: int) -> Sequence[str]:
        if self.returned(class_type, slot) != "COMFY_MATCHTYPE_V3":
            return ()
        try:
            schema: Any = node_class(class_type).GET_SCHEMA()  # type: ignore[union-attr]
            template = schema.outputs[slot].template.template_id
            of_it = [(one.id, getattr(one, "template", None)) for one in schema.inputs]
            return [name for name, own in of_it if getattr(own, "template_id", None) == template]
        except FOREIGN:  # another version of these classes; or a node's own code
            return ()

    def names(self) -> Collection[str]:
        return nodes.NODE_CLASS_MAPPINGS.keys()

    def inputs(self, class_type: str, given: Mapping[str, Any]) -> dict[str, ClassInput]:
        try:
            return expanded(self._inputs(class_type), given)
        except FOREIGN:  # a node's own code may have declared anything
            return {}

    def slots(self, class_type: str) -> int | None:
        returns = getattr(node_class(class_type), "RETURN_TYPES", None)
        return len(returns) if type(returns) in (tuple, list) else None  # foreign ones have no end

    def judges(self, class_type: str, name: str) -> bool:
        found: Any = node_class(class_type)
        own = getattr(found, "VALIDATE_INPUTS", None)
        if hasattr(found, "GET_BASE_CLASS"):  # V3
            own, none = found.validate_inputs, found.GET_BASE_CLASS().validate_inputs
            own = None if own.__func__ is none.__func__ else own
        spec = None if own is None else inspect.getfullargspec(own)
        return spec is not None and (spec.varkw is not None or name in spec.args)

    def is_file_input(self, class_type: str, name: str) -> bool:
        found = self._find(class_type, name)
        is_file = found is not None and names_file(class_type, name, found)
        return is_file or self.is_folder_input(class_type, name)

    def is_path_input(self, class_type: str, name: str) -> bool:
        found = self._find(class_type, name)
        return found is not None and names_path(class_type, name, found)

    def is_here(self, path: str) -> bool:
        # Not the root itself: it is a separator as well.
        is_path = os.path.isabs(path) and os.path.dirname(path) != path
        return is_path and os.path.exists(path)

    def outputs(self, class_type: str) -> list[str]:
        return [self.returned(class_type, slot) for slot in range(self.slots(class_type) or 0)]

    def is_folder_input(self, class_type: str, name: str) -> bool:
        """Whether an input names a folder of the user's own."""
        found = self._find(class_type, name)
        lists = found is not None and _lists_folders(found.choices)
        return lists or (class_type, name) in FOLDER_LOADERS

    def _find(self, class_type: str, name: str) -> ClassInput | None:
        try:
            return find(self._inputs(class_type), name)
        except FOREIGN:  # as above
            return None

    def _hidden(self, class_type: str) -> list[Any]:
        hidden = self._inputs(class_type).get("hidden")
        kinds = hidden.values() if isinstance(hidden, Mapping) else ()
        return [kind[0] if kind and isinstance(kind, tuple) else kind for kind in kinds]

    def _inputs(self, class_type: str) -> Mapping[str, Any]:
        if class_type not in self._seen:
            try:
                found = node_class(class_type).INPUT_TYPES()  # type: ignore
            except FOREIGN:  # a node's own code
                found = None
            self._seen[class_type] = found if isinstance(found, Mapping) else {}
        return self._seen[class_type]


def _lists_folders(choices: list[Any] | None) -> bool:
    """Whether what an input offers are the folders in the input folder."""
    if not choices or not all(isinstance(choice, str) for choice in choices):
        return False
    root = folder_paths.get_input_directory()
    # A look at one, first: of most inputs the choices are no folders, and there may be many files.
    if not os.path.isdir(os.path.join(root, choices[0])):
        return False
    try:
        return set(choices) == set(folder_paths.get_input_subfolders())
    except (AttributeError, OSError):
        return False
