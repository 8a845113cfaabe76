"""Pure: whether ComfyUI may compute a node again in the run that has computed it.

A node's result is handed to the nodes that wait for it. A node that asks for it only later (by a
lazy input, or by adding nodes that do) gets it from the host's cache; where the host keeps none,
or has given it up for want of memory, the node is computed again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from .graph import Prompt, class_type_of, consumers, reach, sources


class Execution(NamedTuple):
    """A prompt that is being executed, and how far it is.

    Attributes:
        prompt: All its nodes, those among them that nodes have added.
        outputs: The ids of the nodes that are wanted.
        added: Each node that was added, and the node that has added it.
        finished: The ids of the nodes that are done.
    """

    prompt: Prompt
    outputs: Collection[str]
    added: Mapping[str, str]
    finished: Collection[str]


class Classes(Protocol):
    """What the host knows of node classes."""

    def asks_late(self, class_type: str, name: str) -> bool:
        """Whether what feeds that input may be asked for once the node has begun."""

    def sees_graph(self, class_type: str) -> bool:
        """Whether that node may ask for any other."""


def may_come(node: str, execution: Execution, classes: Classes) -> bool:
    """Whether someone may still ask for the result of a node that has been computed. In doubt
    someone may."""
    prompt, open_ = execution.prompt, _open(execution)
    after = _after(node, execution)
    for other in open_ - {node}:
        class_type = class_type_of(prompt[other])
        if classes.sees_graph(class_type) or (other in execution.added and other in after):
            return True
        for name, (source, _) in sources(prompt, other):
            if source in after and classes.asks_late(class_type, name):
                return True
    return False


def _open(execution: Execution) -> set[str]:
    """The nodes that may have to be done yet, as far as anybody could need them."""
    prompt, finished = execution.prompt, execution.finished
    wanted = [i for i in (*execution.outputs, *execution.added) if i not in finished]
    return {i for i in reach(prompt, wanted, lambda node, name: True) if i not in finished}


def _after(node: str, execution: Execution) -> set[str]:
    """The node, and all that its result goes into. What an added node gives may be the result of
    the one that has added it."""
    readers = consumers(execution.prompt)
    found: set[str] = set()
    left = [node]
    while left:
        at = left.pop()
        if at not in found and at in readers:
            found.add(at)
            left += [reader for reader, _ in readers[at]]
            left += [execution.added[at]] if at in execution.added else []
    return found
