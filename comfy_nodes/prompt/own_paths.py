"""Pure: nodes that are given a path of this computer, as loaders of many packs are. On the other
ComfyUI the same path is another file, or none.

The rule, of a text in an input, also one of a primitive that is wired to it:

1. The input is declared to be a path (see `class_inputs.names_path`): its node runs here, and its
   values are sent along, like those of a loader of the input folder. A path from the root that is
   not there is the other's, and so is a URL.
2. Any other text that is a path from the root, and is there, is taken for one as well. Its node
   runs here if it is a source: nothing but primitives is wired to it, it is no output node, and all
   that it gives can travel.
3. Whatever else is given such a path (a loader of models, a node that saves) runs there, and
   `left` says so: it may be the same file where both are on one computer, and is another elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

from .branches import TRAVELS
from .classes import Readers
from .discreet import is_absolute
from .graph import Prompt, class_type_of, constant, inputs_of, link, title
from .own_files import is_of_this_machine, loaders

MAX_PATH = 4096  # characters; what is longer is a text
MAX_SHOWN = 120


class Classes(Readers, Protocol):
    """What the host knows of node classes, and of this computer's files."""

    def is_file_input(self, class_type: str, name: str) -> bool:
        """Whether that input names a file or a folder of the user's own."""

    def is_path_input(self, class_type: str, name: str) -> bool:
        """Whether that input is declared to be a path, or a URL."""

    def outputs(self, class_type: str) -> Collection[str]:
        """The types of all that it gives; none where it cannot be told."""

    def is_here(self, path: str) -> bool:
        """Whether there is something on this computer at that path from the root."""


def attached(prompt: Prompt, classes: Classes) -> set[str]:
    """The nodes that read a file of this computer, and so run here: see `own_files.loaders`, and
    above."""
    own = loaders(prompt, classes.is_file_input)
    return own | {i for i in prompt if i not in own and _is_reader(prompt, i, classes)}


def left(prompt: Prompt, classes: Classes) -> list[str]:
    """What is given a path of this computer in a part, and runs elsewhere: a sentence of each."""
    return [
        f"{title(i, prompt[i])} is given {_shown(path)}, a path of this computer: the other "
        "ComfyUI takes it for one of its own"
        for i in prompt
        for path in _paths(prompt, i, classes)
    ]


def is_elsewhere(class_type: str, name: str, value: Any, classes: Classes) -> bool:
    """Whether that input has a path that is not on this computer, so that only another can have
    it."""
    text = value.strip() if isinstance(value, str) else ""
    is_path = is_absolute(text) and len(text) <= MAX_PATH
    return is_path and classes.is_path_input(class_type, name) and not classes.is_here(text)


def _is_reader(prompt: Prompt, node: str, classes: Classes) -> bool:
    class_type, inputs = class_type_of(prompt[node]), inputs_of(prompt[node])
    for name, value in inputs.items():
        if classes.is_path_input(class_type, name):
            text = _text(prompt, value)
            if "://" in text:
                if is_of_this_machine(text):
                    return True
            elif text and not is_elsewhere(class_type, name, text, classes):
                return True
    is_there = any(_paths(prompt, node, classes))
    return is_there and _is_source(prompt, node, classes)


def _is_source(prompt: Prompt, node: str, classes: Classes) -> bool:
    class_type, given = class_type_of(prompt[node]), inputs_of(prompt[node]).values()
    gives = classes.outputs(class_type)
    return (
        not classes.is_output(class_type)
        and bool(gives)
        and all(kind in TRAVELS for kind in gives)
        and not any(link(value) and constant(prompt, value) is None for value in given)
    )


def _paths(prompt: Prompt, node: str, classes: Classes) -> Iterator[str]:
    """The paths from the root that the node is given and that are there."""
    class_type = class_type_of(prompt[node])
    for name, value in inputs_of(prompt[node]).items():
        text = _text(prompt, value)
        is_path = is_absolute(text) and len(text) <= MAX_PATH and "\n" not in text
        if is_path and classes.accepted(class_type, name) == "STRING" and classes.is_here(text):
            yield text


def _text(prompt: Prompt, value: Any) -> str:
    found = constant(prompt, value)
    return found.strip() if isinstance(found, str) else ""


def _shown(path: str) -> str:
    return f'"{path if len(path) <= MAX_SHOWN else "..." + path[-MAX_SHOWN:]}"'
