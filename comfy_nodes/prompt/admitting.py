"""Pure: what becomes of a prompt that comes in, before ComfyUI validates it.

ComfyUI refuses the whole prompt for one node that it does not know, and runs all that an output
node needs. What runs elsewhere alone is exempt from both: see `tapping` and `elsewhere.stand_in`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from .. import node_ids
from . import own_paths, tapping
from .classes import Names
from .elsewhere import stand_in
from .graph import Prompt, class_type_of, consumers, title
from .loops import LoopClasses, held_back, loops_of


class Classes(Names, tapping.Classes, LoopClasses, own_paths.Classes, Protocol):
    """What the host knows of node classes."""


class Admitted(NamedTuple):
    """A prompt that ComfyUI may validate.

    Attributes:
        prompt: A changed copy; the very same object if there is nothing to change.
        notes: What its user should know, in words.
    """

    prompt: Prompt
    notes: tuple[str, ...]


def admit(
    prompt: Prompt,
    targets: Collection[str] | None,
    classes: Classes,
    is_bad: Callable[[str, Mapping[str, Any]], bool],
) -> Admitted:
    """The prompt as this ComfyUI is to run it.

    Args:
        prompt: The whole prompt, as it came.
        targets: The only output nodes that are asked for; None: all.
        is_bad: Whether this ComfyUI could not run that node (id, node).
    """
    if not any(class_type_of(node) in node_ids.RUNS for node in prompt.values()):
        return Admitted(prompt, ())
    outputs = [
        i
        for i, node in prompt.items()
        if classes.is_output(class_type_of(node)) and (targets is None or i in targets)
    ]
    attach = {i for i in own_paths.attached(prompt, classes) if not is_bad(i, prompt[i])}
    loops = loops_of(prompt, classes)
    seen = tapping.tapped(prompt, outputs, attach, loops, classes)
    still = [i for i in outputs if classes.is_output(class_type_of(seen.prompt[i]))]
    now = stand_in(seen.prompt, is_bad, still, loops)
    runs = [i for i, node in now.items() if class_type_of(node) in node_ids.RUNS]
    notes = (*seen.notes, *_left_out(prompt, now, classes))
    return Admitted(held_back(now, loops, runs), notes)


def _left_out(prompt: Prompt, now: Prompt, classes: Classes) -> Iterator[str]:
    """A node that is not installed may be a Save: nobody can tell."""
    after = consumers(prompt)
    for i, node in prompt.items():
        is_stood_in = class_type_of(now[i]) != class_type_of(node)
        if is_stood_in and not after[i] and class_type_of(node) not in classes.names():
            said = "is not installed here, and nothing takes what it gives: it is left out"
            yield f"{title(i, node)} {said}"
