"""Pure: whether a peer's prompt can run on this ComfyUI, and everything that is wrong with it.

ComfyUI's own validation stops at the first node class that is missing. Here all is told at once,
with the nearest that there is, so that one look mends a workflow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

from zbus.protocol.fields import clip
from zbus.reasons import Reason, lines

from .class_inputs import ClassInput
from .classes import Inputs, Names
from .graph import WRAP, Link, Prompt, class_type_of, inputs_of, link, title
from .nearest import Near
from .output_types import Outputs, results, unheld, untransferable

MAX_REASONS = 64  # of one refusal
MAX_USES = 3  # nodes of a missing class that are named
MAX_VALUE = 120  # characters of a value in a text


class Classes(Names, Inputs, Outputs, Protocol):
    """What the host knows of node classes."""

    def slots(self, class_type: str) -> int | None:
        """How many outputs it has; None where it cannot be told."""

    def judges(self, class_type: str, name: str) -> bool:
        """Whether it validates that input itself, in place of the host."""


# --- looking at a prompt ------------------------------------------------------------------------


def look(prompt: Prompt, classes: Classes, types: Collection[str] | None = None) -> list[Reason]:
    """Everything that can be seen to be wrong with a prompt.

    Args:
        prompt: API format, and only what shall be executed.
        classes: Knows the node classes.
        types: Which of the containers (see `zbus.values.containers`) who gets its results can hold;
            None: unknown.
    """
    found = _missing_classes(prompt, classes)
    near = Near()
    for node_id, node in prompt.items():
        found += _links(prompt, node_id, classes)
        if class_type_of(node) in classes.names():
            found += _values(node_id, node, classes, near)
    found += cannot_travel(prompt, results(prompt), classes)
    return found if types is None else found + _cannot_be_held(prompt, classes, types)


def cannot_travel(prompt: Prompt, wanted: Iterable[Link], outputs: Outputs) -> list[Reason]:
    """What is wanted and lives in one ComfyUI: told before it is computed."""
    return [
        _of_output(
            prompt,
            node,
            f"a {kind} lives in one ComfyUI and cannot travel; let the nodes that use it run where "
            "it is loaded",
        )
        for node, kind in untransferable(prompt, wanted, outputs)
    ]


def _cannot_be_held(prompt: Prompt, classes: Classes, types: Collection[str]) -> list[Reason]:
    return [
        _of_output(
            prompt,
            node,
            f"a {kind} would come back, and the ComfyUI that asks for it has no such type; update "
            "that ComfyUI, or let the nodes that use it run here as well",
        )
        for node, kind in unheld(prompt, results(prompt), classes, types)
    ]


def _of_output(prompt: Prompt, node: str, said: str) -> Reason:
    text = f"{_named(node, prompt[node])}: {said}"
    return Reason("output", node, title(node, prompt[node]), class_type_of(prompt[node]), text=text)


def _missing_classes(prompt: Prompt, classes: Classes) -> list[Reason]:
    users: dict[str, list[str]] = {}
    for node_id, node in prompt.items():
        if class_type_of(node) not in classes.names():
            users.setdefault(class_type_of(node), []).append(node_id)
    near = Near()
    return [
        _missing_class(name, ids, prompt, near.of(name, classes.names()))
        for name, ids in users.items()
    ]


def _missing_class(name: str, ids: list[str], prompt: Prompt, near: tuple[str, ...] = ()) -> Reason:
    uses = [_use(node_id, prompt.get(node_id, {})) for node_id in ids[:MAX_USES]]
    more = [f"and {len(ids) - MAX_USES} more"] if len(ids) > MAX_USES else []
    used = f" (used by {', '.join(uses + more)})"
    text = (
        f'node class "{clip(name, MAX_VALUE)}" is not installed' if name else "a node of no class"
    )
    first = ids[0]
    shown = title(first, prompt.get(first, {}))
    text += used + (f"; nearest: {', '.join(near)}" if near else "")
    return Reason("class", first, shown, name, "", name, near, text)


def _use(node_id: str, node: Mapping[str, Any]) -> str:
    name = title(node_id, node).rpartition(" #")[0]
    return f"#{node_id}" if name == class_type_of(node) else f'#{node_id} "{name}"'


def _links(prompt: Prompt, node_id: str, classes: Classes) -> Iterator[Reason]:
    for name, value in inputs_of(prompt[node_id]).items():
        found = link(value)
        if found is None:
            continue
        source, slot = found
        if source not in prompt:
            said = f"is linked to node #{source}, which is not in the prompt"
        else:
            slots = classes.slots(class_type_of(prompt[source]))
            if slots is None or 0 <= slot < slots:
                continue
            said = f"is linked to output {slot} of {title(source, prompt[source])}, "
            said += f"which has {slots} here: another version of that node?"
        yield _reason("input", node_id, prompt[node_id], name, value, said)


def _values(
    node_id: str, node: Mapping[str, Any], classes: Classes, near: Near
) -> Iterator[Reason]:
    class_type, given = class_type_of(node), inputs_of(node)
    for name, declared in classes.inputs(class_type, given).items():
        if name not in given:
            # Of inputs that grow in ways unknown here, only the parts are in a prompt.
            if declared.group == "required" and not str(declared.kind).startswith("COMFY_"):
                yield _reason("input", node_id, node, name, "", "is missing")
            continue
        value = given[name]
        if link(value) or classes.judges(class_type, name):
            continue
        if declared.choices is not None:
            if not _offers(declared, _plain(value)):
                yield _no_choice(node_id, node, name, declared, near)
        elif said := _out_of_range(declared, value):
            yield _reason("value", node_id, node, name, value, said)


def _plain(value: Any) -> Any:
    return value[WRAP] if isinstance(value, dict) and WRAP in value else value


def _offers(declared: ClassInput, value: Any) -> bool:
    choices = declared.choices or []
    if isinstance(value, list) and declared.options.get("multiselect"):
        return all(item in choices for item in value)
    return value in choices


def _no_choice(
    node_id: str, node: Mapping[str, Any], name: str, declared: ClassInput, near: Near
) -> Reason:
    value, choices = _plain(inputs_of(node).get(name)), declared.choices or []
    found = near.of(value, choices)
    said = f"{_shown(value)} is not there"
    quoted = ", ".join(_shown(choice) for choice in found)
    if not choices:
        said += "; there are none"
    elif found:
        all_named = len(found) == len(choices)
        said += f"; {'there are only' if all_named else 'nearest'}: {quoted}"
    return _reason("choice", node_id, node, name, value, said, found)


def _out_of_range(declared: ClassInput, value: Any) -> str:
    cast = {"INT": int, "FLOAT": float}.get(str(declared.kind))
    if cast is None:
        return ""
    try:
        number = cast(value)
        low, high = declared.options.get("min"), declared.options.get("max")
        if low is not None and number < low:
            return f"{_shown(value)} is less than {low}, the least here"
        if high is not None and number > high:
            return f"{_shown(value)} is more than {high}, the most here"
    except (TypeError, ValueError, OverflowError):
        return f"{_shown(value)} is no number"
    return ""


def _reason(
    kind: str,
    node_id: str,
    node: Mapping[str, Any],
    name: str,
    value: Any,
    said: str,
    near: tuple[str, ...] = (),
) -> Reason:
    text = ": ".join((_named(node_id, node), " ".join((name, said)).strip()))
    given = value if isinstance(value, str) else json.dumps(value, default=str)
    return Reason(
        kind, node_id, title(node_id, node), class_type_of(node), name, clip(given, 300), near, text
    )


def _named(node_id: str, node: Mapping[str, Any]) -> str:
    """LoraLoader "My LoRA" #12, or LoraLoader #12 where it has no other title."""
    name, class_type = title(node_id, node).rpartition(" #")[0], class_type_of(node)
    return f"{class_type} #{node_id}" if name == class_type else f'{class_type} "{name}" #{node_id}'


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return clip(text, MAX_VALUE)


# --- what ComfyUI itself says -------------------------------------------------------------------

_KINDS = {
    "value_not_in_list": "choice",
    "required_input_missing": "input",
    "bad_linked_input": "input",
    "return_type_mismatch": "input",
    "invalid_input_type": "value",
    "value_smaller_than_min": "value",
    "value_bigger_than_max": "value",
    "custom_validation_failed": "value",
    "prompt_no_outputs": "output",
}
_OF_CHOICES = ("value_not_in_list", "custom_validation_failed")
_MISSING = re.compile(r"node (.+) does not exist")


def from_host(
    prompt: Prompt,
    error: Mapping[str, Any] | None,
    node_errors: Mapping[str, Any],
    classes: Classes | None = None,
    hide: Callable[[str], str] = str,
) -> list[Reason]:
    """What ComfyUI's validation said, as reasons.

    Args:
        prompt: What was validated.
        error: The error of the prompt as a whole.
        node_errors: The errors by node id.
        classes: For the nearest choices; a file that a loader does not find is a missing choice.
        hide: Takes the paths of this computer out of a text: what a node's own check says may
            hold them.
    """
    looking = Near()
    found = [
        _from_node(node_id, prompt.get(node_id, {}), said, classes, looking, hide)
        for node_id, node in node_errors.items()
        for said in node.get("errors") or ()
    ]
    if error is not None and not found:
        found.append(_from_whole(prompt, error, hide))
    return found


def _from_node(
    node_id: str,
    node: Mapping[str, Any],
    said: Mapping[str, Any],
    classes: Classes | None,
    looking: Near,
    hide: Callable[[str], str],
) -> Reason:
    kind = str(said.get("type"))
    more = said.get("extra_info")
    name = str(more.get("input_name", "")) if isinstance(more, Mapping) else ""
    value = inputs_of(node).get(name, "")
    given = inputs_of(node)
    declared = classes.inputs(class_type_of(node), given).get(name) if classes else None
    chosen = declared is not None and declared.choices is not None and not link(value)
    if declared and chosen and kind in _OF_CHOICES and not _offers(declared, value):
        return _no_choice(node_id, node, name, declared, looking)
    # Details often begin with the input's name.
    details = str(said.get("details", "")).removeprefix(name).lstrip(" ,:-")
    text = hide(": ".join(part for part in (str(said.get("message", "")), details) if part))
    text = f"({clip(text, 300)})" if name else clip(text, 300)
    return _reason(_KINDS.get(kind, "other"), node_id, node, name, value, text)


def _from_whole(prompt: Prompt, error: Mapping[str, Any], hide: Callable[[str], str]) -> Reason:
    kind, details = str(error.get("type")), str(error.get("details", ""))
    message = str(error.get("message", ""))
    more = error.get("extra_info")
    info = more if isinstance(more, Mapping) else {}
    missing = _MISSING.search(message)
    if kind == "missing_node_type" or missing:
        name = str(info.get("class_type") or (missing.group(1) if missing else ""))
        users = [i for i, node in prompt.items() if class_type_of(node) == name]
        return _missing_class(name, users or [str(info.get("node_id", "?"))], prompt)
    if kind == "prompt_no_outputs":
        return Reason("output", text="none of the nodes that were asked for is an output node")
    text = hide(": ".join(part for part in (message, details) if part))
    return Reason(_KINDS.get(kind, "other"), text=clip(text, 300))


def unique(reasons: Iterable[Reason]) -> list[Reason]:
    """The first about each input of each node, at most MAX_REASONS."""
    found: dict[tuple[str, ...], Reason] = {}
    for reason in reasons:
        place = (reason.node, reason.input) if reason.node else (reason.kind, reason.text)
        found.setdefault(place, reason)
    return list(found.values())[:MAX_REASONS]


def summary(reasons: Iterable[Reason], peer: str) -> str:
    """A refusal for people: one line for each, at most 20."""
    return f"{peer} cannot run this:\n{lines(reasons)}"


# --- other words --------------------------------------------------------------------------------


def in_words(exception_type: str, message: str, peer: str) -> str:
    """An exception's text, with what it means where that is known; on the peer of that name."""
    first = message.strip().partition("\n")[0]
    if exception_type.endswith("OutOfMemoryError") or "out of memory" in first.lower():
        return f"out of memory on {peer}: {first}"
    if exception_type.endswith("FileNotFoundError"):
        return f"a file is missing on {peer}: {first}"
    return message.strip()
