"""Pure: the part of a prompt that another ComfyUI is to run, cut out and ready to be sent.

It is cut at boundaries: nodes that run here, whose values are attached to the job. In the part a
``ZBusValue`` node stands for each such value, and ``ZBusResult`` nodes hand over the results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from zbus.address import is_loopback_host, several
from zbus.errors import InputError

from .. import node_ids
from .class_inputs import FOLDER_LOADERS
from .graph import (
    Graph,
    Link,
    Prompt,
    ancestors,
    class_type_of,
    clean,
    constant,
    consumers,
    copied,
    fresh_id,
    inputs_of,
    link,
    reach,
    sources,
    title,
)
from .loops import ITERATION, Loop, around, begun, closed_here

NO, ALSO, ONLY = "no", "also run here", "only here"  # `here` of a ZBusRun
THIS = "this computer"  # the same in its `peer`, in workflows from before there was ONLY
_OWN = ("class_type", "inputs", "of")  # inputs of a stand-in itself

# They run on this side: they take part in what this run sends, receives and fetches (VALUE: in
# the job that this run is). A turn of a loop is given here, and hangs on the one before.
HERE = frozenset(
    {node_ids.COMPUTE_HERE, *node_ids.RUNS, node_ids.VALUE, ITERATION}
    | {node_ids.SEND, node_ids.RECEIVE, *node_ids.JUMPER}
)
# NetDist's nodes too: on the peer they would queue its prompt on yet another machine.
BOUNDARIES = HERE | {node_ids.FETCH, *node_ids.QUEUES, *node_ids.CHAIN}


def elsewhere(peer: str) -> tuple[list[str], bool]:
    """The names in a ZBusRun's `peer` but for `THIS`, and whether that is among them."""
    names = several(peer)
    others = [name for name in names if name.lower() != THIS]
    return others, len(others) < len(names)


class Part(NamedTuple):
    """A part of a prompt, for a peer to run.

    Attributes:
        prompt: The nodes to run there.
        outputs: The ids of those whose results are wanted: "value", and what is tapped.
        boundaries: For each value to attach, the link in the whole prompt that it comes from.
        varies: Whether the part is a different one at each position (`for_position`).
    """

    prompt: Graph
    outputs: tuple[str, ...]
    boundaries: dict[str, Link]
    varies: bool


def cut(prompt: Prompt, value: Link, *, attach: Collection[str] = ()) -> Part:
    """Everything that is needed for `value`, up to the boundaries.

    Args:
        prompt: The whole prompt.
        value: The link whose value is wanted.
        attach: Ids of nodes to run here in any case: see `loaders`.

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
    outputs = [add_result(graph, source, name) for name, source in wanted.items()]
    ends = boundary_nodes(graph, BOUNDARIES, attach)
    ends |= closed_here(begun(prompt), ends)
    part, boundaries = closed(graph, up_to(graph, outputs, ends), ends)
    _check_loaders(prompt, {source for source, _ in boundaries.values() if source in attach})
    varies = any(class_type_of(node) == node_ids.VARY for node in part.values())
    return Part(part, tuple(outputs), boundaries, varies)


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


# --- nodes that only the peer can run -----------------------------------------------------------


def stand_in(
    prompt: Prompt,
    is_bad: Callable[[str, Mapping[str, Any]], bool],
    outputs: Collection[str] | None = None,
    loops: Mapping[str, Loop] | None = None,
) -> Prompt:
    """The prompt with stand-ins for what only the peer can run, so that it is valid here.

    A node is stood in for if all that it feeds is what a ZBusRun runs elsewhere alone, and if it
    is bad.

    Args:
        prompt: The whole prompt, as it came.
        is_bad: Whether this ComfyUI could not run that node (id, node).
        outputs: The ids of the output nodes that are to be executed: what none of them needs is
            not needed here. None: every node whose values nobody takes.
        loops: Its loops: see `loops.loops_of`.

    Returns:
        A changed copy; the very same object if there is nothing to change.
    """
    bad = {i for i in _only_elsewhere(prompt, outputs, loops or {}) if is_bad(i, prompt[i])}
    if not bad:
        return prompt
    return {i: stood_in(node) if i in bad else copied(node) for i, node in prompt.items()}


def elsewhere_runs(prompt: Prompt) -> dict[str, Link]:
    """The ZBusRuns that are known to run their part elsewhere alone, each with its value's link."""
    runs = [i for i in _runs(prompt) if isinstance(_peer(prompt, i), str)]
    return {i: source for i in runs for name, source in sources(prompt, i) if name == "value"}


def _runs(prompt: Prompt) -> list[str]:
    """Those that do not, as far as one can tell, run their part here too."""
    return [
        i
        for i, node in prompt.items()
        if class_type_of(node) in node_ids.RUNS
        and inputs_of(node).get("here", NO) == NO
        and not elsewhere(str(_peer(prompt, i)))[1]
    ]


def _peer(prompt: Prompt, run: str) -> Any:
    return constant(prompt, inputs_of(prompt[run]).get("peer", ""))


def parts_of(
    prompt: Prompt,
    values: Mapping[str, Link],
    attach: Collection[str],
    loops: Mapping[str, Loop],
) -> dict[str, set[str]]:
    """For each of these runs its part, before any loop has run: its Start Loop runs here."""
    ends = boundary_nodes(prompt, BOUNDARIES, attach)
    ends |= closed_here(loops, ends)
    return {run: up_to(prompt, [s], ends | around(loops, run)) for run, (s, _) in values.items()}


def _only_elsewhere(
    prompt: Prompt, outputs: Collection[str] | None, loops: Mapping[str, Loop]
) -> set[str]:
    """The nodes that nothing on this side needs."""
    runs = set(_runs(prompt))
    values = {i: s for i in runs for name, s in sources(prompt, i) if name == "value"}
    parts = set().union(*parts_of(prompt, values, (), loops).values())
    used = prompt.keys() if outputs is None else ancestors(prompt, outputs).keys()
    after, there = consumers(prompt), set(parts)

    def is_needed_here(node: str) -> bool:
        return node in (outputs or ()) or not all(
            to in there or (to in runs and name == "value")
            for to, name in after[node]
            if to in used
        )

    left = list(there)
    while left:  # what a node that is needed here needs is needed here
        node = left.pop()
        if node in there and is_needed_here(node):
            there.discard(node)
            left += [source for _, (source, _) in sources(prompt, node)]
    there |= _beside(prompt, parts, prompt.keys() - used)
    return {i for i in there if class_type_of(prompt[i]) != node_ids.THERE}


def _beside(prompt: Prompt, part: Collection[str], unused: Collection[str]) -> set[str]:
    """Those of the unused nodes that belong to branches of a part: they lead nowhere."""
    after = consumers(prompt)
    found: set[str] = set()
    left = [to for node in part for to, _ in after[node]]
    while left:
        node = left.pop()
        if node in unused and node not in found:
            found.add(node)
            left += [source for _, (source, _) in sources(prompt, node)]
            left += [to for to, _ in after[node]]
    return found


def stood_in(node: Mapping[str, Any], *, of: str = "") -> dict[str, Any]:
    """A stand-in for that node; `of` where the node of that id is there as well."""
    given: dict[str, Any] = copied(inputs_of(node))
    # A link whose input is called like one of the stand-in's own travels with the constants.
    links = {name: value for name, value in given.items() if link(value) and name not in _OWN}
    constants = {name: value for name, value in given.items() if name not in links}
    text = json.dumps(constants, sort_keys=True)
    inputs = {"class_type": class_type_of(node), "inputs": text, **links}
    if of:
        inputs["of"] = of
    return {**copied(node), "class_type": node_ids.THERE, "inputs": inputs}


def original(node_id: str, node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node that it stands for, if it is a stand-in; else the same.

    Raises:
        InputError: It is one that zbus has not made.
    """
    if class_type_of(node) != node_ids.THERE:
        return node
    given = dict(inputs_of(node))
    class_type, text, _ = (given.pop(name, None) for name in _OWN)
    try:
        constants = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        constants = None
    if not isinstance(class_type, str) or not isinstance(constants, dict):
        raise InputError(
            f"node #{node_id} (ZBusThere) does not say which node it stands for",
            remedy="It is made by zbus itself: remove it, and put the node there that you mean.",
        )
    return {**node, "class_type": class_type, "inputs": {**constants, **given}}


# --- files of this side -------------------------------------------------------------------------


def loaders(prompt: Prompt, is_file_input: Callable[[str, str], bool]) -> set[str]:
    """The nodes that load a file of the user's own on this side, to be attached by `cut`: the
    peer may lack it, or have another picture under the same name. So are those that load from a
    URL of this very machine, which means another one there.

    Links beside the file's name do not matter: what they come from runs here as well. Those whose
    file's name is computed are not among them (the peer may have made that file), nor are those
    with a stand-in, whose file only the peer has, and those that name none (a painter without a
    mask). Those that load a whole folder are, however it is named: the peer's folder of the same
    name holds other files.

    Args:
        prompt: The whole prompt.
        is_file_input: Whether that input of that class names such a file.
    """

    def is_loader(class_type: str, name: str, value: Any) -> bool:
        if (class_type, name) in FOLDER_LOADERS:
            return True
        named = constant(prompt, value)
        if not str(named or "").strip():
            return False
        if class_type in (node_ids.LOAD_IMAGE_URL, node_ids.LOAD_LATENT_URL):
            return name == "url" and is_of_this_machine(str(named))
        return is_file_input(class_type, name)

    return {
        i
        for i, node in prompt.items()
        if any(is_loader(class_type_of(node), *given) for given in inputs_of(node).items())
    }


def is_of_this_machine(url: str) -> bool:
    """Whether that is a URL of the loopback."""
    try:
        return is_loopback_host(urlsplit(url.strip()).hostname or "")
    except ValueError:  # it is none, which its node will say
        return False


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
