"""Pure: what NetDist's queue nodes send: the whole prompt, changed to be run on the remote."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from zbus.errors import InputError

from .. import node_ids
from .cutting import HERE, add_result, boundary_nodes, closed, restored, up_to
from .graph import (
    Graph,
    Link,
    Prompt,
    ancestors,
    class_type_of,
    constant,
    consumers,
    descendants,
    inputs_of,
    sources,
    title,
)
from .loops import ITERATION, begun, closed_here
from .tapping import as_made

PICTURES = ("PreviewImage", "SaveImage")


class Dispatch(NamedTuple):
    """A prompt for the remote.

    Attributes:
        prompt: The nodes to run there.
        outputs: The ids of those to execute; empty: every output node among them.
        results: The names of the results, in the order of the prompt: ids of fetch nodes.
        boundaries: For each value to attach, the link in the given prompt that it comes from.
    """

    prompt: Graph
    outputs: tuple[str, ...]
    results: tuple[str, ...]
    boundaries: dict[str, Link]


def clean_url(raw: str) -> str:
    """A remote's URL in the one form in which URLs are compared; the first of several.

    No slash at its end, scheme and host in small letters: "http://HOST:8288/" and
    "http://host:8288" are the same. "" where there is none.
    """
    urls = [url for url in re.split(r"[\s,]+", raw) if url]
    if not urls:
        return ""
    scheme, mark, rest = urls[0].partition("://")
    if not mark:
        scheme, rest = "", urls[0]
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    return f"{scheme.lower()}{mark}{user}{at}{host.lower()}{slash}{path}".rstrip("/")


def dispatch(
    prompt: Prompt,
    queue_id: str | None,
    remote_url: str,
    *,
    everything: bool = False,
    attach: Collection[str] = (),
) -> Dispatch:
    """The prompt as the remote is to run it.

    This queue node gets enabled=remote and every other one enabled=false. The images wired to
    the fetch nodes of this queue node become the results; fetch nodes and whatever is after them
    stay behind, and unless `everything` is wanted, so does what the results do not need:
    previews and saved images, and nodes that only this side has.

    Args:
        prompt: The whole current prompt, or a saved one, in API format.
        queue_id: The queue node's id, where it is known.
        remote_url: The remote; tells a saved prompt's queue node.
        everything: Run all output nodes there, not only what the results need.
        attach: Ids of nodes to run here in any case: see `cutting.loaders`.

    Raises:
        InputError: Nothing would come of it, or it cannot be done; the text says what to change.
    """
    _check_format(prompt)
    prompt = as_made(prompt)  # in a turn of a loop it is what ComfyUI executes, with our own in it
    graph = restored(prompt)
    queue = _queue_node(graph, queue_id, remote_url)
    _set_up(graph, queue)
    turns = {i for i in graph if class_type_of(graph[i]) == ITERATION}
    fetches = [i for i in graph if class_type_of(graph[i]) == node_ids.FETCH]
    after_fetch = descendants(graph, fetches, turns)  # one turn of a loop waits for the last one's
    if everything and turns & ancestors(graph, [queue] if queue else []).keys():
        raise InputError(
            f"{title(str(queue), graph[str(queue)])} is in a loop, and its outputs are set to any",
            remedy="Set outputs to final_image, or take it out of the loop.",
        )
    results = _add_fetched(graph, queue, after_fetch)
    if everything and not results:
        results = _add_pictures(graph, after_fetch)
    ends = boundary_nodes(graph, HERE, attach) - set(after_fetch)
    ends |= closed_here(begun(prompt), ends)
    if everything:
        kept = _all_that_serves(prompt, graph, set(graph) - ends - set(after_fetch))
    else:
        kept = up_to(graph, results.values(), ends)
    _check_something(graph, kept, results, queue, everything)
    part, boundaries = closed(graph, kept, ends)
    _check_loops(prompt, graph, kept, results)
    _check_boundaries(graph, boundaries, queue)
    outputs = () if everything else tuple(results.values())
    return Dispatch(part, outputs, tuple(results), boundaries)


def first_result(name: str, results: Iterable[str]) -> str | None:
    """Which of a job's results the fetch node of that id takes; None if there is none.

    Its own; else the last one, for in a saved workflow the ids are others.
    """
    names = list(results)
    return name if name in names else names[-1] if names else None


def _check_format(prompt: object) -> None:
    if not isinstance(prompt, Mapping) or not all(
        isinstance(node, Mapping) and "class_type" in node for node in prompt.values()
    ):
        raise InputError(
            "this workflow is not in API format",
            remedy='Save it with "Export (API)" in ComfyUI\'s menu, and load that file.',
        )


def _queue_node(graph: Graph, queue_id: str | None, remote_url: str) -> str | None:
    """The queue node that this is: that id, unless it is another remote's in a saved prompt."""
    queues = [i for i in graph if class_type_of(graph[i]) in node_ids.QUEUES]
    urls = {i: constant(graph, inputs_of(graph[i]).get("remote_url")) for i in queues}
    wanted = clean_url(remote_url)
    named = [i for i in queues if isinstance(urls[i], str) and clean_url(urls[i]) == wanted]
    is_known = queue_id in urls and (urls[queue_id] is None or queue_id in named or not named)
    if is_known:
        return queue_id
    return named[0] if named else None


def _set_up(graph: Graph, queue: str | None) -> None:
    for node in graph:
        if class_type_of(graph[node]) in node_ids.QUEUES:
            graph[node]["inputs"]["enabled"] = "remote" if node == queue else "false"
        elif class_type_of(graph[node]) == node_ids.CHAIN_START:
            # The remote dispatches nothing, and need not have the workflow's file.
            graph[node]["inputs"]["workflow"] = {}


def _add_fetched(graph: Graph, queue: str | None, after_fetch: Collection[str]) -> dict[str, str]:
    """Add the results of that queue node's fetch nodes: fetch node -> node of its result."""
    values: dict[str, Link] = {}
    for node in graph:
        if class_type_of(graph[node]) == node_ids.FETCH:
            wired = dict(sources(graph, node))
            if wired.get("remote_info", ("", 0))[0] == queue and "final_image" in wired:
                values[node] = wired["final_image"]
    for node, (source, _) in values.items():
        if source in after_fetch:
            raise InputError(
                f"the image wired to {title(node, graph[node])} is made from what another "
                '"Fetch from remote" brings, so the remote cannot make it',
                remedy="Wire to final_image what comes before any fetch node; to pass images on "
                'from machine to machine, use "Run on Peers".',
            )
    return {node: add_result(graph, value, node) for node, value in values.items()}


def _add_pictures(graph: Graph, after_fetch: Collection[str]) -> dict[str, str]:
    """Add results for the pictures that are shown or saved there; as `_add_fetched`."""
    values = {
        node: value
        for node in graph
        if class_type_of(graph[node]) in PICTURES and node not in after_fetch
        for name, value in sources(graph, node)
        if name == "images"
    }
    return {node: add_result(graph, value, node) for node, value in values.items()}


def _all_that_serves(prompt: Prompt, graph: Graph, kept: set[str]) -> set[str]:
    """Without what only served nodes that stay behind: the remote may not even know its class."""
    served = {i for i, taken in consumers(prompt).items() if taken}
    while True:
        used = {source for i in kept for _, (source, _) in sources(graph, i)}
        useless = (kept & served) - used
        if not useless:
            return kept
        kept = kept - useless


def _check_something(
    graph: Graph, kept: Collection[str], results: Collection[str], queue: str | None, any_: bool
) -> None:
    if results or (
        any_ and any(class_type_of(graph[i]) not in node_ids.QUEUES + node_ids.CHAIN for i in kept)
    ):
        return
    whose = f"the queue node {title(queue, graph[queue])}" if queue else "a queue node of this URL"
    remedy = (
        'Wire its remote_info to a "Fetch from remote" node, and to final_image there the image '
        "that the remote is to make"
    )
    if any_:
        raise InputError(
            "nothing in this workflow would run on the remote: it has no output node there that "
            f'does not come after a "Fetch from remote", and no such node is wired to {whose}',
            remedy=f"{remedy}; or add a Save Image before any fetch node.",
        )
    raise InputError(
        f'no "Fetch from remote" with an image is wired to {whose}, so nothing would come back',
        remedy=f"{remedy}.",
    )


def _check_loops(
    prompt: Prompt,
    graph: Graph,
    kept: Collection[str],
    results: Mapping[str, str],
) -> None:
    for start, loop in begun(prompt).items():
        given = [source for i in results.values() for _, (source, _) in sources(graph, i)]
        inside = [i for i in given if i in loop.body]
        if start in kept and inside:
            raise InputError(
                f"{title(inside[0], graph[inside[0]])} is in a loop that would run on the remote, "
                "and its value is fetched in each turn",
                remedy="Put the queue node into the loop, too: wire its seed from the Start Loop.",
            )


def _check_boundaries(graph: Graph, boundaries: dict[str, Link], queue: str | None) -> None:
    for source, _ in boundaries.values():
        if queue and queue in ancestors(graph, [source]):
            raise InputError(
                f"{title(source, graph[source])} is to run here before the job is sent, but it "
                f"needs what the queue node {title(queue, graph[queue])} gives out after that",
                remedy="Wire it to something else than the queue node, or remove it.",
            )
