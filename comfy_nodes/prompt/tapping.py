"""Pure: output nodes inside a part that runs elsewhere: a preview or a save of what it makes.

ComfyUI runs whatever an output node needs: such a node would have the part run here as well. So
it is given what the peer has made: a ``ZBusTap`` stands where its links led into the part, and the
ZBusRun, as a ``ZBusRunTapped``, brings those values along. ``ZBusWanted``, before the lazy value,
holds the links to them.

A node that hands on what it shows is needed there too: it runs in both places, and a stand-in
takes its place in the part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from zbus.errors import InputError

from .. import node_ids
from .cutting import BOUNDARIES, boundary_nodes, elsewhere_runs, original, parts_of, stood_in
from .graph import (
    Graph,
    Link,
    Prompt,
    ancestors,
    class_type_of,
    copied,
    fresh_id,
    inputs_of,
    link,
    reach,
    sources,
    title,
)
from .loops import Loop, around, closed_here, freed
from .output_types import Outputs, declared

TAPPED = 2  # the output of a ZBusRunTapped with what it brings along

# What a branch is looked at for. The others are parameters: cheap, where nothing is before them.
PICTURES = frozenset({"IMAGE", "MASK", "AUDIO", "VIDEO"})
TRAVELS = PICTURES | {"LATENT", "SIGMAS", "STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}
TRAVELS |= {"MESH", "VOXEL", "SPLAT", "FILE_3D", "SVG", "CURVE", "RANGE"}
# A branch that takes one of these computes something of its own, beside the part.
OWN = frozenset({"MODEL", "GUIDER", "SAMPLER", "NOISE"})

MAX_DEEP = 8  # nodes of our own in a row


class Classes(Outputs, Protocol):
    """What the host knows of node classes."""

    def is_output(self, class_type: str) -> bool:
        """Whether it is an output node."""

    def accepted(self, class_type: str, name: str) -> str:
        """The type of that input ("IMAGE", "IMAGE,MASK"...), "" where it cannot be told."""


class Tapped(NamedTuple):
    """A prompt whose output nodes have the values of a part from elsewhere.

    Attributes:
        prompt: A changed copy; the very same object if there is nothing to change.
        notes: What could not be had, in words.
    """

    prompt: Prompt
    notes: tuple[str, ...]


def tapped(
    prompt: Prompt,
    outputs: Collection[str],
    attach: Collection[str],
    loops: Mapping[str, Loop],
    classes: Classes,
) -> Tapped:
    """Have the output nodes inside parts that run elsewhere get the values from there.

    Args:
        prompt: The whole prompt, as it came.
        outputs: The ids of the output nodes that are to be executed.
        attach: The ids of the nodes whose files are here: see `cutting.loaders`.
        loops: Its loops: see `loops.loops_of`.
    """
    runs = elsewhere_runs(prompt)
    if not runs:
        return Tapped(prompt, ())
    ends = boundary_nodes(prompt, BOUNDARIES, attach)
    parts = parts_of(prompt, runs, attach, loops)
    # Where all that a job needs from here is computed: loops too, and each turn of one.
    here = ends | closed_here(loops, ends) | set().union(*(around(loops, run) for run in runs))
    left: set[str] = set()  # as they are: something that runs here needs what comes after them
    while True:
        made = _tapped(prompt, outputs, left, parts, ends, here, classes)
        reached = _stood_in_here(prompt, made.prompt, outputs, runs, here) - left
        if not reached:
            return made
        left |= reached


def _tapped(
    prompt: Prompt,
    outputs: Collection[str],
    left: Collection[str],
    parts: Mapping[str, set[str]],
    ends: Collection[str],
    here: Collection[str],
    classes: Classes,
) -> Tapped:
    now: Prompt = prompt
    notes = []
    there: set[str] = set().union(*parts.values())
    # Those in the parts last: what comes after them is no longer needed here by then.
    for output in sorted((i for i in prompt if i in outputs), key=lambda i: i in there):
        name = title(output, prompt[output])
        branch = _Branch(prompt, output, parts, ends, classes)
        try:
            taps = branch.taps()
        except _Needed as needed:
            note = needed.args[0] if needed.args else ""
            if branch.is_inside and output not in left:
                now = _there_alone(now, output)
                note = f"{name} runs on the other ComfyUI alone: what it shows or saves is there"
            if note:
                notes.append(note)
            continue
        if output in left:
            notes.append(
                f'{name} is inside the part of "Run on Peers", and something that runs here needs '
                "what comes after it, so that part runs here as well"
            )
            continue
        if taps:
            made = _with_taps(now, prompt, output, taps, there)
            if _is_sound(made, parts, here):
                now = made
            else:
                notes.append(
                    f'{name} is inside the part of "Run on Peers" and before it at once, so what '
                    "it needs of the part runs here as well"
                )
    return Tapped(now, tuple(notes))


def _stood_in_here(
    prompt: Prompt,
    now: Prompt,
    outputs: Collection[str],
    runs: Collection[str],
    here: Collection[str],
) -> set[str]:
    """The output nodes that have got a stand-in which would be executed here: never to be."""
    found: set[str] = set()
    left = [i for i in outputs if i in now and class_type_of(now[i]) != node_ids.THERE]
    while left:
        needed = reach(now, left, lambda node, name: node not in runs or name != "value").keys()
        new, left = needed - found, []
        found |= new
        for run in new & set(runs):  # what its part needs from here
            left += [i for i in _before(now, run, here) if i in here and i not in found]
    stood = [i for i in found if class_type_of(now[i]) == node_ids.THERE]
    made = [i for i in stood if i not in prompt or prompt[i].get("class_type") != node_ids.THERE]
    return {str(inputs_of(now[i]).get("of") or i) for i in made}


def _before(prompt: Prompt, run: str, here: Collection[str]) -> dict[str, None]:
    """Its part, and the nodes at which that ends."""
    return reach(prompt, [run], lambda i, name: name == "value" if i == run else i not in here)


class _Needed(Exception):
    """The part is needed here as well: why, in words; none where that goes without saying."""


class _Tap(NamedTuple):
    consumer: str
    name: str  # of its input
    source: Link
    run: str


class _Branch:
    """What an output node needs, as far as it is not in a part that runs elsewhere."""

    def __init__(
        self,
        prompt: Prompt,
        output: str,
        parts: Mapping[str, set[str]],
        ends: Collection[str],
        classes: Classes,
    ) -> None:
        self._prompt, self._output, self._classes = prompt, output, classes
        self._parts, self._ends = parts, ends
        self._there: set[str] = set().union(*parts.values())
        self._pushed: dict[str, str] = {}  # run there too, since they alone can: the run of each
        self.is_inside = output in self._there

    def taps(self) -> list[_Tap]:
        """The links that lead into a part, each with the run that is to bring its value.

        Raises:
            _Needed: One of them cannot be had.
        """
        while True:
            crossing = list(self._crossing())
            if not crossing:
                return []
            left = [(tap, self._kind(tap)) for tap in crossing]
            if any(kind in OWN for kind in self._kinds()):
                if any(self._is_made(tap, kind) for tap, kind in left):
                    raise _Needed(self._why(*self._worst(left)))
                raise _Needed
            stay = [tap for tap, kind in left if not _travels(kind)]
            if not stay:
                return [tap for tap, kind in left if not self._is_parameter(tap, kind)]
            for tap in stay:
                self._push(tap)

    def _crossing(self) -> Iterator[_Tap]:
        for node in self._nodes():
            for name, source in sources(self._prompt, node):
                run = self._run_of(source[0])
                if run and source[0] != self._output:
                    yield _Tap(node, name, source, run)

    def _nodes(self) -> list[str]:
        """Those of the branch that run here."""

        def follow(node: str, name: str) -> bool:
            return node == self._output or not (node in self._ends or self._run_of(node))

        found = reach(self._prompt, [self._output], follow)
        return [i for i in found if i == self._output or follow(i, "")]

    def _run_of(self, node: str) -> str:
        """The run in whose part that node is, "" if in none."""
        if node in self._pushed:
            return self._pushed[node]
        return next((run for run, part in self._parts.items() if node in part), "")

    def _kinds(self) -> Iterator[str]:
        for node in self._nodes():
            for name, source in sources(self._prompt, node):
                yield from _each(self._kind(_Tap(node, name, source, "")))

    def _kind(self, tap: _Tap) -> str:
        """The type of that value, "" where it cannot be told."""
        found = declared(self._prompt, tap.source, self._classes)
        if not found:
            taken = class_type_of(self._prompt[tap.consumer])
            found = self._classes.accepted(taken, tap.name)
        return found if _is_plain(found) else ""

    def _is_parameter(self, tap: _Tap, kind: str) -> bool:
        """Whether it is rather computed here, too: it takes no time, and nothing waits for it."""
        is_source = not any(sources(self._prompt, tap.source[0]))
        known = self._classes.returned(class_type_of(self._prompt[tap.source[0]]), tap.source[1])
        return is_source and bool(known) and not PICTURES & set(_each(kind))

    def _is_made(self, tap: _Tap, kind: str) -> bool:
        return _travels(kind) and not self._is_parameter(tap, kind)

    def _push(self, tap: _Tap) -> None:
        """Have the node that takes such a value run there, with all that it needs."""
        if tap.consumer == self._output:
            raise _Needed(self._why(tap, self._kind(tap)))

        def follow(node: str, name: str) -> bool:
            return node not in self._ends and not self._run_of(node)

        for node in reach(self._prompt, [tap.consumer], follow):
            if node not in self._ends and not self._run_of(node):
                self._pushed[node] = tap.run

    def _worst(self, left: list[tuple[_Tap, str]]) -> tuple[_Tap, str]:
        own = [(tap, kind) for tap, kind in left if kind in OWN]
        return next(iter(own or [(tap, kind) for tap, kind in left if self._is_made(tap, kind)]))

    def _why(self, tap: _Tap, kind: str) -> str:
        source = title(tap.source[0], self._prompt[tap.source[0]])
        what = f"a {kind}, which cannot travel" if kind and not _travels(kind) else "its value"
        if not kind:
            what = "a value of a kind that cannot be told"
        needs = f"{title(self._output, self._prompt[self._output])} needs {what}, from {source}"
        return f'{needs}: so that part of "Run on Peers" runs here as well'


def _each(kind: str) -> list[str]:
    return [part.strip() for part in kind.split(",")]


def _travels(kind: str) -> bool:
    return all(part in TRAVELS for part in _each(kind))


def _is_plain(kind: str) -> bool:
    """Whether it says what the value is: a wildcard, and a type that others decide, does not."""
    return bool(kind) and not any(p == "*" or p.startswith("COMFY_") for p in _each(kind))


def _is_sound(prompt: Prompt, runs: Collection[str], here: Collection[str]) -> bool:
    """Whether no run waits for what it brings itself, or is to send what another brings."""
    return not any(
        run in ancestors(prompt, [source for _, (source, _) in sources(prompt, run)])
        or any(class_type_of(prompt[i]) == node_ids.TAP for i in _before(prompt, run, here))
        for run in runs
    )


def _there_alone(prompt: Prompt, output: str) -> Graph:
    """The prompt with a stand-in for an output node of the part."""
    return {i: stood_in(node) if i == output else copied(node) for i, node in prompt.items()}


def _with_taps(
    now: Prompt, made: Prompt, output: str, taps: list[_Tap], there: Collection[str]
) -> Graph:
    """The prompt with those links taken from the runs."""
    graph: Graph = copied(now)
    if output in there:
        _clone(graph, made, output, there)
    twins = {str(inputs_of(node)["of"]): i for i, node in graph.items() if _is_clone(node)}
    for tap in taps:
        wanted = _look_into(graph, tap.run)
        source, slot = graph[tap.consumer]["inputs"][tap.name]
        if class_type_of(graph[source]) != node_ids.TAP:  # else it is another branch's as well
            name = _tapped_as(graph[wanted]["inputs"], [twins.get(source, source), slot])
            graph[tap.consumer]["inputs"][tap.name] = [_tap(graph, tap.run, name), 0]
    return graph


def _clone(graph: Graph, made: Prompt, output: str, there: Collection[str]) -> None:
    """A stand-in for that node in the part: the node itself has the values from there."""
    twin = _own_id(graph, "there", output)
    graph[twin] = stood_in({**made[output], "inputs": graph[output]["inputs"]}, of=output)
    for node in graph:
        if node in there or _is_between(graph[node]):
            for name, (source, slot) in list(sources(graph, node)):
                is_run = class_type_of(graph[node]) in node_ids.RUNS
                if source == output and (not is_run or name == "value"):
                    graph[node]["inputs"][name] = [twin, slot]


def _is_between(node: Mapping[str, Any]) -> bool:
    """Whether it takes something of a part without being in one."""
    return class_type_of(node) in (*node_ids.RUNS, node_ids.WANTED, node_ids.THERE)


def _is_clone(node: Mapping[str, Any]) -> bool:
    return class_type_of(node) == node_ids.THERE and bool(inputs_of(node).get("of"))


def _look_into(graph: Graph, run: str) -> str:
    """Have that run bring more than its value; returns what holds the links to that."""
    node = graph[run]
    if class_type_of(node) == node_ids.RUN_TAPPED:
        return str(node["inputs"]["value"][0])
    wanted = _own_id(graph, "wanted", run)
    inputs = {"value": node["inputs"]["value"]}
    graph[wanted] = {"class_type": node_ids.WANTED, "inputs": inputs}
    node["class_type"], node["inputs"]["value"] = node_ids.RUN_TAPPED, [wanted, 0]
    return wanted


def _tapped_as(inputs: dict[str, Any], source: list[Any]) -> str:
    for name, value in inputs.items():
        if name != "value" and value == source:
            return name
    name = f"tap{len(inputs) - 1}"
    inputs[name] = list(source)
    return name


def _tap(graph: Graph, run: str, name: str) -> str:
    made = {"class_type": node_ids.TAP, "inputs": {"tapped": [run, TAPPED], "name": name}}
    found = next((i for i, node in graph.items() if node == made), "")
    tap = found or _own_id(graph, name, run)
    graph[tap] = made
    return tap


def _own_id(graph: Graph, what: str, node: str) -> str:
    return fresh_id(graph, _stem(what, node))


def _stem(what: str, node: str) -> str:
    # Without a ":", by which the page finds what lies in a subgraph.
    return f"zbus-{what}-{node.replace(':', '.')}"


# --- back ---------------------------------------------------------------------------------------


def as_made(prompt: Prompt) -> Prompt:
    """The prompt as its user made it, without anything that zbus has put into it.

    Returns:
        A changed copy; the very same object if there is nothing to change.
    """
    if not any(_is_changed(node) for node in prompt.values()):
        return prompt
    return {i: _as_made(prompt, i) for i in prompt if not _is_added(prompt[i])}


def _is_changed(node: Mapping[str, Any]) -> bool:
    class_type, inputs = class_type_of(node), inputs_of(node)
    is_held = class_type == node_ids.RUN and len(freed(inputs)) < len(inputs)
    return is_held or class_type in (node_ids.THERE, node_ids.RUN_TAPPED)


def _is_added(node: Mapping[str, Any]) -> bool:
    return _is_clone(node) or class_type_of(node) in (node_ids.TAP, node_ids.WANTED)


def _as_made(prompt: Prompt, node_id: str) -> dict[str, Any]:
    try:
        node: dict[str, Any] = copied(original(node_id, prompt[node_id]))
    except InputError:  # none of ours, whatever it is called
        node = copied(prompt[node_id])
    inputs = inputs_of(node)
    if class_type_of(node) in node_ids.RUNS:
        node["class_type"], inputs = node_ids.RUN, freed(inputs)
    node["inputs"] = {name: _as_wired(prompt, value) for name, value in inputs.items()}
    return node


def _as_wired(prompt: Prompt, value: Any) -> Any:
    """Where its user had that link lead to."""
    for _ in range(MAX_DEEP):
        found = link(value)
        node = prompt.get(found[0], {}) if found else {}
        inputs = inputs_of(node)
        if class_type_of(node) == node_ids.TAP:
            value = _brought(prompt, inputs)
        elif class_type_of(node) == node_ids.WANTED:
            value = inputs.get("value")
        elif found and _is_clone(node):
            value = [_copied(prompt, found[0], str(inputs["of"])), found[1]]
        else:
            return value
    return None  # in a circle: none of ours


def _copied(prompt: Prompt, clone: str, of: str) -> str:
    """What that stand-in stands for: in a turn of a loop, the copy of that turn."""
    turn, _, _ = clone.rpartition(_stem("there", of))
    return turn + of if turn + of in prompt else of


def _brought(prompt: Prompt, tap: Mapping[str, Any]) -> Any:
    """The link within the part that a tap stands for."""
    run = link(tap.get("tapped"))
    wanted = link(inputs_of(prompt.get(run[0], {})).get("value")) if run else None
    return inputs_of(prompt.get(wanted[0], {})).get(str(tap.get("name"))) if wanted else None
