"""Pure: what a prompt will do on each channel, read from the prompt before any of it runs.

Two runs that meet compare these manifests, so that chains that do not fit are told at once. So
whatever cannot be known here must be said to be uncertain: a false mismatch would stop two runs
that fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from zbus.errors import ZBusError
from zbus.protocol.manifest import JUMPER
from zbus.protocol.messages import MAX_PLANNED, Planned

from .. import node_ids
from ..prompt.graph import Prompt, ancestors, class_type_of, constant, inputs_of, link, reach, title
from ..prompt.loops import LoopClasses, loops_of
from .meeting import Meeting, at_addr, at_peer

MAX_TEXTS = 30_000  # bytes of titles: a manifest travels in one message of 64 KiB


class NodeOperation(NamedTuple):
    """One of our nodes: what it does, and which of its outputs is the order."""

    direction: str
    kind: str  # "" where an input or a link decides
    order_slot: int
    where: tuple[str, str]  # the inputs that say where it meets


_ADDR, _PEER = ("addr", "mode"), ("peer", "channel")
OPERATIONS = {
    node_ids.SEND_STRING: NodeOperation("send", "text", 0, _ADDR),
    node_ids.SEND_IMAGES: NodeOperation("send", "image", 0, _ADDR),
    node_ids.RECEIVE_STRING: NodeOperation("receive", "text", 1, _ADDR),
    node_ids.RECEIVE_IMAGES: NodeOperation("receive", "image", 1, _ADDR),
    node_ids.SEND: NodeOperation("send", "", 1, _PEER),
    node_ids.RECEIVE: NodeOperation("receive", "", 1, _PEER),
}


class Classes(LoopClasses, Protocol):
    """What the host knows of node classes."""

    def is_lazy(self, class_type: str, name: str) -> bool:
        """Whether that input is evaluated only if the node asks for it."""

    def expands(self, class_type: str) -> bool:
        """Whether that node may run copies of what is before it (a loop)."""

    def kind(self, class_type: str, slot: int) -> str:
        """What a value from that output is to zbus ("image", "any"...)."""


@dataclass(frozen=True)
class MeetingPlan:
    """What a prompt does at one meeting: its operations, and the nodes that do them."""

    manifest: tuple[Planned, ...] | None  # None: too long to tell
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class _Op:
    node: str
    meeting: Meeting | None  # None: known only at run time
    family: str  # JUMPER's nodes, or ours ("")
    planned: Planned


def plan_meetings(
    prompt: Prompt, outputs: Iterable[str], classes: Classes
) -> dict[Meeting, MeetingPlan]:
    """What the prompt will do, by where.

    Args:
        prompt: API format: node id -> class_type, inputs, and maybe _meta.
        outputs: The ids of the nodes that are to be executed.
        classes: Knows the node classes.
    """
    graph = _Graph(prompt, outputs, classes)
    ops = [graph.op(i) for i in graph.possible if prompt[i].get("class_type") in OPERATIONS]
    meetings = dict.fromkeys(op.meeting for op in ops if op.meeting is not None)
    return {meeting: _plan_meeting(meeting, ops, graph) for meeting in meetings}


def _plan_meeting(meeting: Meeting, ops: list[_Op], graph: _Graph) -> MeetingPlan:
    family = JUMPER if meeting.channel == JUMPER else ""
    # An operation whose place is not known yet may be one of these, or not.
    ours = [
        op if op.meeting else replace(op, planned=_possible(op.planned))
        for op in ops
        if op.meeting == meeting or (op.meeting is None and op.family == family)
    ]
    ours = graph.in_sequence(ours)
    if family == JUMPER:
        ours = _doubt_from_fork(ours, graph)
    manifest = tuple(op.planned for op in ours)
    too_long = sum(len(op[4].encode("utf-8", "replace")) for op in manifest) > MAX_TEXTS
    nodes = tuple(op.node for op in ours)
    return MeetingPlan(None if too_long or len(manifest) > MAX_PLANNED else manifest, nodes)


def _possible(planned: Planned) -> Planned:
    return (*planned[:3], False, planned[4])


def _doubt_from_fork(ops: list[_Op], graph: _Graph) -> list[_Op]:
    """Jumper's operations pair by sequence: where two are not linked, it is not known."""
    for place, op in enumerate(ops):
        others = [other.node for other in ops if other is not op]
        if not all(graph.linked(op.node, other) for other in others):
            doubtful = [replace(later, planned=_possible(later.planned)) for later in ops[place:]]
            return [*ops[:place], *doubtful]
    return ops


class _Graph:
    """A prompt's links."""

    def __init__(self, prompt: Prompt, outputs: Iterable[str], classes: Classes) -> None:
        self._prompt, self._classes = prompt, classes
        self._before: dict[str, set[str]] = {}
        wanted = [i for i in outputs if i in prompt]
        self.possible = ancestors(prompt, wanted)
        self.certain = set(reach(prompt, wanted, self._is_strong))
        loops = [
            i
            for i in self.possible
            if classes.expands(self._class(i)) and not classes.loop_boundary(self._class(i))
        ]
        # What a loop repeats runs an unknown number of times: of ComfyUI's own, what lies in it.
        self._repeated = set(ancestors(prompt, loops)) - set(loops)
        self._repeated.update(*(loop.body for loop in loops_of(prompt, classes).values()))

    def _class(self, node: str) -> str:
        return class_type_of(self._prompt[node])

    def _inputs(self, node: str) -> Mapping[str, Any]:
        return inputs_of(self._prompt[node])

    def _is_strong(self, node: str, name: str) -> bool:
        return not self._classes.is_lazy(self._class(node), name)

    def before(self, node: str) -> set[str]:
        """The nodes that run before this one."""
        if node not in self._before:
            self._before[node] = set(ancestors(self._prompt, [node])) - {node}
        return self._before[node]

    def linked(self, one: str, other: str) -> bool:
        return one in self.before(other) or other in self.before(one)

    def in_sequence(self, ops: list[_Op]) -> list[_Op]:
        nodes = {op.node for op in ops}
        return sorted(ops, key=lambda op: (len(self.before(op.node) & nodes), op.node))

    # --- one of our nodes -----------------------------------------------------------------------

    def op(self, node: str) -> _Op:
        spec, inputs = OPERATIONS[self._class(node)], self._inputs(node)
        repeated = node in self._repeated
        order = None if spec.where is _ADDR or repeated else self.order(node)
        certain = node in self.certain and not repeated
        family = JUMPER if spec.where is _ADDR else ""
        name = title(node, self._prompt[node])
        planned = (spec.direction, self._kind(node, spec, inputs), order, certain, name)
        return _Op(node, self._meeting(spec, inputs), family, planned)

    def _meeting(self, spec: NodeOperation, inputs: Mapping[str, Any]) -> Meeting | None:
        first, second = (constant(self._prompt, inputs.get(name)) for name in spec.where)
        if not isinstance(first, str) or not isinstance(second, str):
            return None
        try:
            return at_addr(first, second) if spec.where is _ADDR else at_peer(first, second)
        except ZBusError:
            return None  # the node itself says so

    def _kind(self, node: str, spec: NodeOperation, inputs: Mapping[str, Any]) -> str:
        if spec.kind:
            return spec.kind
        if spec.direction == "receive":
            expect = constant(self._prompt, inputs.get("expect"))
            return expect[:20] if isinstance(expect, str) else "any"
        source = link(inputs.get("value"))
        if source is None or source[0] not in self._prompt:
            return "any"
        return self._classes.kind(self._class(source[0]), source[1])

    def order(self, node: str, seen: frozenset[str] = frozenset()) -> int | None:
        """The order with which one of our nodes runs; None if only the run will tell."""
        given = self._inputs(node).get("order", 0)
        source = link(given)
        if source is None or source[0] not in self._prompt:
            return _whole(given)
        spec = OPERATIONS.get(self._class(source[0]))
        if spec is None or spec.order_slot != source[1] or source[0] in seen:
            return _whole(constant(self._prompt, given))
        before = self.order(source[0], seen | {node})
        return None if before is None else before + 1


def _whole(value: Any) -> int | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and value >= 0 else None
