"""Pure: the part of a prompt that another ComfyUI is to run, cut out and ready to be sent.

It is cut at boundaries: nodes that run here, whose values are attached to the job. In the part a
``ZBusValue`` node stands for each such value, and ``ZBusResult`` nodes hand over the results.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from zbus.errors import InputError

from .. import node_ids
from .graph import (
    Graph,
    Link,
    Prompt,
    class_type_of,
    clean,
    copied,
    fresh_id,
    inputs_of,
    link,
    reach,
    sources,
    title,
)
from .loops import ITERATION, begun, closed_here
from .passing import led_past
from .stand_ins import is_twin, original

# They run on this side: they take part in what this run sends, receives and fetches (VALUE: in
# the job that this run is). A turn of a loop is given here, and hangs on the one before.
HERE = frozenset(
    {node_ids.COMPUTE_HERE, *node_ids.RUNS, node_ids.VALUE, ITERATION}
    | {node_ids.SEND, node_ids.RECEIVE, *node_ids.JUMPER}
)
# NetDist's nodes too: on the peer they would queue its prompt on yet another machine.
BOUNDARIES = HERE | {node_ids.FETCH, *node_ids.QUEUES, *node_ids.CHAIN}


class Part(NamedTuple):
    """A part of a prompt, for a peer to run.

    Attributes:
        prompt: The nodes to run there.
        outputs: The ids of those whose results are wanted: "value", and what is tapped.
        boundaries: For each value to attach, the link in the whole prompt that it comes from.
        brought: For each value that is tapped, the result that it is: some are the same one.
        varies: Whether the part is a different one at each position (`for_position`).
    """

    prompt: Graph
    outputs: tuple[str, ...]
    boundaries: dict[str, Link]
    brought: dict[str, str]
    varies: bool


def cut(
    prompt: Prompt,
    value: Link,
    *,
    attach: Collection[str] = (),
    is_core: Callable[[str], bool] = lambda class_type: True,
) -> Part:
    """Everything that is needed for `value`, up to the boundaries.

    Args:
        prompt: The whole prompt.
        value: The link whose value is wanted.
        attach: Ids of nodes to run here in any case: see `own_files.loaders`.
        is_core: Whether that class is ComfyUI's own: see `passing.HANDED_ON`.

    Raises:
        InputError: Nothing is wired there; or a loader cannot run here.
    """
    if value[0] not in prompt:
        raise InputError(
            f"nothing arrives at its value input: node #{value[0]} is not in this prompt",
            remedy="Un-mute that node, or wire another one to value.",
        )
    graph = restored(prompt)
    wanted = {"value": value}
    if class_type_of(graph[value[0]]) == node_ids.WANTED:
        wanted = dict(sources(graph, value[0]))
    twins = {i for i, node in prompt.items() if is_twin(node)}  # which show and save here
    core = {i for i in twins if is_core(class_type_of(graph[i]))}
    wanted = led_past(graph, core, wanted)
    results: dict[Link, str] = {}
    brought = {name: results.setdefault(source, name) for name, source in wanted.items()}
    outputs = [add_result(graph, source, name) for source, name in results.items()]
    ends = boundary_nodes(graph, BOUNDARIES, attach)
    ends |= closed_here(begun(prompt), ends)
    part, boundaries = closed(graph, up_to(graph, outputs, ends), ends)
    _check_loaders(prompt, {source for source, _ in boundaries.values() if source in attach})
    varies = any(class_type_of(node) == node_ids.VARY for node in part.values())
    del brought["value"]
    return Part(part, tuple(outputs), boundaries, brought, varies)


# --- what every job is made with (see also dispatching.py) --------------------------------------


def restored(prompt: Prompt) -> Graph:
    """Clean copies of all nodes, with the originals in place of their stand-ins."""
    return {node: clean(original(node, prompt[node])) for node in prompt}


def add_result(graph: Graph, value: Link, name: str) -> str:
    """Add a node that hands that value to the job as `name`; returns its id."""
    output = fresh_id(graph, "zbus-result" if name == "value" else f"zbus-result-{name}")
    inputs = {"value": list(value), "name": name, "job": ""}
    graph[output] = {"class_type": node_ids.RESULT, "inputs": inputs}
    return output


def boundary_nodes(prompt: Prompt, classes: Collection[str], attach: Collection[str]) -> set[str]:
    """The ids of the nodes that run here: those classes, and the nodes in `attach`."""
    return {i for i in prompt if i in attach or class_type_of(prompt[i]) in classes}


def up_to(prompt: Prompt, outputs: Iterable[str], ends: Collection[str]) -> set[str]:
    """Everything that these outputs need and that does not run here."""
    return set(reach(prompt, outputs, lambda node, name: node not in ends)) - set(ends)


def closed(
    graph: Graph, kept: Collection[str], ends: Collection[str]
) -> tuple[Graph, dict[str, Link]]:
    """Those nodes alone, each of their links leading to one of them.

    A link to a node that runs here leads to a ``ZBusValue`` node, one for each value; one to a
    node that is not there (muted, or left out) is dropped.

    Returns:
        The nodes, in the order in which they were; and for each value the link it comes from.
    """
    boundaries: dict[str, Link] = {}
    values: Graph = {}
    ids: dict[Link, str] = {}

    def attached(source: Link) -> str:
        if source not in ids:
            name = f"{source[0]}.{source[1]}"
            ids[source] = fresh_id(graph.keys() | values.keys(), f"zbus-value-{name}")
            inputs = {"name": name, "digest": ""}
            values[ids[source]] = {"class_type": node_ids.VALUE, "inputs": inputs}
            boundaries[name] = source
        return ids[source]

    def rewired(inputs: Mapping[str, Any]) -> dict[str, Any]:
        stay = {}
        for name, value in inputs.items():
            source = link(value)
            if source is None or source[0] in kept:
                stay[name] = value
            elif source[0] in ends:
                stay[name] = [attached(source), 0]
        return stay

    part = {i: {**graph[i], "inputs": rewired(graph[i]["inputs"])} for i in graph if i in kept}
    return {**part, **values}, boundaries


# --- what is filled in when the job is known ----------------------------------------------------


def for_position(prompt: Prompt, position: int) -> Graph:
    """The same part as it is at that position in a row of runs: 0, 1, 2..."""
    changes = {"position": position}
    return {
        i: _changed(node, changes, node_ids.VARY_AT)
        if class_type_of(node) == node_ids.VARY
        else copied(node)
        for i, node in prompt.items()
    }


def with_digests(prompt: Prompt, digests: Mapping[str, str]) -> Graph:
    """The same part with these digests of its attached values, by name, whatever it said."""
    return {
        i: _changed(node, {"digest": digests.get(str(inputs_of(node).get("name")), "")})
        if class_type_of(node) == node_ids.VALUE
        else copied(node)
        for i, node in prompt.items()
    }


def value_names(prompt: Prompt) -> frozenset[str]:
    """The attached values that it reads."""
    return _names(prompt, node_ids.VALUE)


def result_names(prompt: Prompt) -> frozenset[str]:
    """The results that it hands over."""
    return _names(prompt, node_ids.RESULT)


def _names(prompt: Prompt, class_type: str) -> frozenset[str]:
    ours = [inputs_of(node) for node in prompt.values() if class_type_of(node) == class_type]
    return frozenset(str(inputs.get("name", "")) for inputs in ours)


def with_job(prompt: Prompt, job_id: str) -> Graph:
    """The same part with its results going to that job."""
    return {
        i: _changed(node, {"job": job_id})
        if class_type_of(node) == node_ids.RESULT
        else copied(node)
        for i, node in prompt.items()
    }


def _changed(
    node: Mapping[str, Any], inputs: Mapping[str, Any], class_type: str = ""
) -> dict[str, Any]:
    same: dict[str, Any] = copied(node)
    same["class_type"] = class_type or class_type_of(node)
    same["inputs"] = {**inputs_of(same), **inputs}
    return same


# --- files of this side -------------------------------------------------------------------------


def _check_loaders(prompt: Prompt, attached: Collection[str]) -> None:
    """That what is before them can run here, once for all who take part."""

    def goes_on(node: str, name: str) -> bool:
        return class_type_of(prompt[node]) not in BOUNDARIES

    for loader in sorted(attached):
        before = {class_type_of(prompt[i]): i for i in reach(prompt, [loader], goes_on)}
        it = f"{title(loader, prompt[loader])} loads a file of this computer, so it runs here"
        if node_ids.THERE in before:
            there = before[node_ids.THERE]
            only = title(there, original(there, prompt[there]))
            raise InputError(
                f"{it}; but it needs {only}, which only the other ComfyUI has",
                remedy="Install here too what that needs, or wire nothing that comes from it to "
                "the loader.",
            )
        if node_ids.VARY in before:
            vary = title(before[node_ids.VARY], prompt[before[node_ids.VARY]])
            raise InputError(
                f"{it}, once for all; but {vary} before it is to differ on each",
                remedy=f"Wire {vary} to a node after the loader, which can run there.",
            )
