"""Pure: the nodes of zbus's own in a prompt whose parts are looked into, put in and taken out.

A ``ZBusTap`` stands where an output node's link led into a part, and the ZBusRun, as a
``ZBusRunTapped``, brings that value along; ``ZBusWanted``, before its lazy value, holds the links
to what it is to bring. A stand-in takes the place of a node in the part that runs here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from zbus.errors import InputError

from .. import node_ids
from .graph import (
    Graph,
    Link,
    Prompt,
    class_type_of,
    consumers,
    copied,
    fresh_id,
    inputs_of,
    link,
    sources,
)
from .loops import freed
from .stand_ins import is_twin, original, stood_in

TAPPED = 2  # the output of a ZBusRunTapped with what it brings along
MAX_DEEP = 8  # nodes of our own in a row


class Draft:
    """A prompt that is being wired anew. Each step takes as long as there are links that it
    changes, and can be taken back.

    Attributes:
        graph: It, as it is now: a copy.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._given = prompt
        self.graph: Graph = copied(prompt)
        self._readers = {i: dict.fromkeys(found) for i, found in consumers(prompt).items()}
        self._undo: list[Callable[[], object]] = []
        self._twins = {str(inputs_of(n)["of"]): i for i, n in self.graph.items() if is_twin(n)}
        self._brought: dict[str, dict[Link, str]] = {}  # of each ZBusWanted: their names
        self._taps = {_tap_of(n): i for i, n in self.graph.items() if _is_tap(n)}

    @property
    def prompt(self) -> Prompt:
        """It; the very same object that was given if nothing is changed."""
        return self.graph if self._undo else self._given

    def readers(self, node: str) -> Iterable[str]:
        """The nodes that take something from it."""
        return [reader for reader, _ in self._readers[node]]

    @property
    def step(self) -> int:
        """How far it is, for `back_to`."""
        return len(self._undo)

    def back_to(self, step: int) -> None:
        """As it was then."""
        while len(self._undo) > step:
            self._undo.pop()()

    # --- what is put in ---------------------------------------------------------------------------

    def stand_in(self, node: str) -> None:
        """Put a stand-in in the place of that node."""
        self._put(node, stood_in(self.graph[node]))

    def twin(self, node: str, there: Collection[str]) -> str:
        """Put a stand-in for that node beside it, and have all that run `there` take what they
        took from it from that. Returns its id."""
        twin = self._own_id("there", node)
        self._put(twin, stood_in(self.graph[node], of=node))
        self._keep(self._twins, node, twin)
        for reader, name in list(self._readers[node]):
            is_run = class_type_of(self.graph[reader]) in node_ids.RUNS
            if (reader in there or _is_between(self.graph[reader])) and (
                not is_run or name == "value"
            ):
                slot = self.graph[reader]["inputs"][name][1]
                self._set(reader, name, [twin, slot])
                if reader in self._brought and name != "value":
                    self._keep(self._brought[reader], (twin, slot), name)
        return twin

    def tap(self, reader: str, name: str, run: str) -> str | None:
        """Have that run bring along what that input takes. Returns the node which that comes from;
        None if it is brought already."""
        source, slot = self.graph[reader]["inputs"][name]
        if class_type_of(self.graph[source]) == node_ids.TAP:  # another branch's as well
            return None
        wanted = self._look_into(run)
        source = self._twins.get(source, source)
        names, inputs = self._brought[wanted], self.graph[wanted]["inputs"]
        found = link([source, slot])
        assert found is not None, "the source of a link is one"
        if found not in names:
            self._keep(names, found, f"tap{len(inputs) - 1}")
            self._set(wanted, names[found], [source, slot])
        self._set(reader, name, [self._tap(run, names[found]), 0])
        return str(source)

    def _look_into(self, run: str) -> str:
        """Have that run bring more than its value; returns what holds the links to that."""
        node = self.graph[run]
        if class_type_of(node) != node_ids.RUN_TAPPED:
            wanted = self._own_id("wanted", run)
            inputs = {"value": node["inputs"]["value"]}
            self._put(wanted, {"class_type": node_ids.WANTED, "inputs": inputs})
            inputs = {**node["inputs"], "value": [wanted, 0]}
            self._put(run, {**node, "class_type": node_ids.RUN_TAPPED, "inputs": inputs})
        wanted = str(self.graph[run]["inputs"]["value"][0])
        if wanted not in self._brought:
            given = sources(self.graph, wanted)
            self._keep(self._brought, wanted, {to: name for name, to in given if name != "value"})
        return wanted

    def _tap(self, run: str, name: str) -> str:
        if (run, name) not in self._taps:
            tap = self._own_id(name, run)
            inputs = {"tapped": [run, TAPPED], "name": name}
            self._put(tap, {"class_type": node_ids.TAP, "inputs": inputs})
            self._keep(self._taps, (run, name), tap)
        return self._taps[run, name]

    def _own_id(self, what: str, node: str) -> str:
        return fresh_id(self.graph, _stem(what, node))

    # --- with a way back --------------------------------------------------------------------------

    def _keep(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        table[key] = value
        self._undo.append(lambda: table.pop(key))

    def _put(self, node_id: str, node: dict[str, Any]) -> None:
        before = self.graph.get(node_id)
        self._undo.append(lambda: self._replace(node_id, before))
        self._replace(node_id, node)

    def _replace(self, node_id: str, node: dict[str, Any] | None) -> None:
        if node_id in self.graph:
            for name, (source, _) in sources(self.graph, node_id):
                self._readers[source].pop((node_id, name), None)
        if node is None:
            del self.graph[node_id], self._readers[node_id]
            return
        self.graph[node_id] = node
        self._readers.setdefault(node_id, {})
        for name, (source, _) in sources(self.graph, node_id):
            self._readers[source][node_id, name] = None

    def _set(self, node_id: str, name: str, value: list[Any]) -> None:
        before = self.graph[node_id]["inputs"].get(name)
        self._undo.append(lambda: self._wire(node_id, name, before))
        self._wire(node_id, name, value)

    def _wire(self, node_id: str, name: str, value: list[Any] | None) -> None:
        """That link, or none where there was none."""
        inputs = self.graph[node_id]["inputs"]
        found = link(inputs.get(name))
        if found and found[0] in self._readers:
            self._readers[found[0]].pop((node_id, name), None)
        if value is None:
            del inputs[name]
        else:
            inputs[name] = value
            self._readers[value[0]][node_id, name] = None


def _stem(what: str, node: str) -> str:
    # Without a ":", by which the page finds what lies in a subgraph.
    return f"zbus-{what}-{node.replace(':', '.')}"


def _is_between(node: Mapping[str, Any]) -> bool:
    """Whether it takes something of a part without being in one."""
    return class_type_of(node) in (*node_ids.RUNS, node_ids.WANTED, node_ids.THERE)


def _is_tap(node: Mapping[str, Any]) -> bool:
    tapped = link(inputs_of(node).get("tapped"))
    return class_type_of(node) == node_ids.TAP and tapped is not None and tapped[1] == TAPPED


def _tap_of(node: Mapping[str, Any]) -> tuple[str, str]:
    tapped = inputs_of(node)["tapped"]
    return str(tapped[0]), str(inputs_of(node).get("name"))


# --- what is put in, read -----------------------------------------------------------------------


def taps_shown_by(
    prompt: Prompt, run: str, is_output: Callable[[str], bool]
) -> dict[str, list[str]]:
    """For each value that a run brings along, the output nodes that take it as it is."""
    taps = {i: _tap_of(node) for i, node in prompt.items() if _is_tap(node)}
    found: dict[str, list[str]] = {}
    for i, node in prompt.items() if taps else ():
        for _, (source, _) in sources(prompt, i) if is_output(class_type_of(node)) else ():
            of, name = taps.get(source, ("", ""))
            if of == run:
                found.setdefault(name, []).append(i)
    return found


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
    return is_twin(node) or class_type_of(node) in (node_ids.TAP, node_ids.WANTED)


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
        elif found and is_twin(node):
            value = [_copied(prompt, found[0], str(inputs["of"])), found[1]]
        else:
            return value
    return None  # in a circle: none of ours


def _copied(prompt: Prompt, twin: str, of: str) -> str:
    """What that stand-in stands for: in a turn of a loop, the copy of that turn."""
    turn, _, _ = twin.rpartition(_stem("there", of))
    return turn + of if turn + of in prompt else of


def _brought(prompt: Prompt, tap: Mapping[str, Any]) -> Any:
    """The link within the part that a tap stands for."""
    run = link(tap.get("tapped"))
    wanted = link(inputs_of(prompt.get(run[0], {})).get("value")) if run else None
    return inputs_of(prompt.get(wanted[0], {})).get(str(tap.get("name"))) if wanted else None
