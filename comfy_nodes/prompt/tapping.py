"""Pure: output nodes inside a part that runs elsewhere: a preview or a save of what it makes.

ComfyUI runs whatever an output node needs: such a node would have the part run here as well. So
it is given what the peer has made: a ``ZBusTap`` stands where its links led into the part, and the
ZBusRun, as a ``ZBusRunTapped``, brings those values along. ``ZBusWanted``, before the lazy value,
holds the links to them.

A node that hands on what it shows is needed there too: it runs in both places, and a stand-in
takes its place in the part; one that gives the very value that it takes is left out of the part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from .. import node_ids
from .branches import Branch, Classes, Needed, Parts, Tapping
from .cutting import BOUNDARIES, boundary_nodes
from .elsewhere import ONLY, elsewhere_runs, parts_of
from .graph import Prompt, ancestors, class_type_of, descendants, inputs_of, reach, sources, title
from .loops import Loop, around, closed_here
from .passing import HANDED_ON
from .wiring import Draft


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
        attach: The ids of the nodes whose files are here: see `own_files.loaders`.
        loops: Its loops: see `loops.loops_of`.
    """
    runs = elsewhere_runs(prompt)
    if not runs:
        return Tapped(prompt, ())
    ends = boundary_nodes(prompt, BOUNDARIES, attach)
    nodes = parts_of(prompt, runs, attach, loops)
    # Where all that a job needs from here is computed: loops too, and each turn of one.
    here = ends | closed_here(loops, ends) | set().union(*(around(loops, run) for run in runs))
    parts = Parts(prompt, nodes, ends)
    left: set[str] = set()  # as they are: something that runs here needs what comes after them
    while True:
        made = _tapped(prompt, outputs, left, parts, _Waits(prompt, runs, here), classes)
        reached = _stood_in_here(prompt, made.prompt, outputs, runs, here) - left
        if not reached:
            return made
        left |= reached


def _tapped(
    prompt: Prompt,
    outputs: Collection[str],
    left: Collection[str],
    parts: Parts,
    waits: _Waits,
    classes: Classes,
) -> Tapped:
    draft = Draft(prompt)
    notes = []
    # Those in the parts last: what comes after them is no longer needed here by then.
    for output in sorted((i for i in prompt if i in outputs), key=lambda i: i in parts.run_of):
        name = title(output, prompt[output])
        branch = Branch(prompt, output, parts, classes)
        try:
            taps = branch.taps()
        except Needed as needed:
            note = needed.args[0] if needed.args else ""
            if branch.is_inside and output not in left:
                draft.stand_in(output)
                note = f"{name} runs on the other ComfyUI alone: what it shows or saves is there"
            if note:
                notes.append(note)
            continue
        if output in left:
            notes.append(
                f'{name} is inside the part of "Run on Peers", and something that runs here needs '
                "what comes after it, so that part runs here as well"
            )
        elif taps and not _take(draft, output, taps, parts, waits):
            notes.append(
                f'{name} is inside the part of "Run on Peers" and before it at once, so what '
                "it needs of the part runs here as well"
            )
        elif taps and branch.is_inside and _saves_there(class_type_of(prompt[output]), classes):
            notes.append(
                f"{name} hands on what it saves, so it runs on the other ComfyUI as well, and "
                "saves there, too"
            )
    return Tapped(draft.prompt, tuple(notes))


def _saves_there(class_type: str, classes: Classes) -> bool:
    """As far as its name tells. (The report of the run names all that might.)"""
    is_led_past = class_type in HANDED_ON and classes.is_core(class_type)
    return "save" in class_type.lower() and not is_led_past


def _take(draft: Draft, output: str, taps: Iterable[Tapping], parts: Parts, waits: _Waits) -> bool:
    """Take those links from the runs, if that is sound; else nothing changes."""
    step = draft.step
    there = parts.run_of.keys()
    twin = [draft.twin(output, there)] if output in there else []
    brought = [draft.tap(tap.consumer, tap.name, tap.run) for tap in taps]
    wanted = [source for source in brought if source is not None]
    takers = {*draft.readers(output), *(tap.consumer for tap in taps)} - {output}
    if not waits.allow(draft, [*twin, *wanted], takers):
        draft.back_to(step)
        return False
    return True


class _Waits:
    """What runs wait for. None may wait for what it brings itself, or be to send what another one
    brings: neither one that runs its part here as well.

    Args:
        runs: Those that run their part elsewhere alone.
        here: The nodes at which a part ends.
    """

    def __init__(self, prompt: Prompt, runs: Collection[str], here: Collection[str]) -> None:
        self._runs, self._here = runs, here
        # And some that a stand-in waits for now.
        self._before = set(ancestors(prompt, _senders(prompt)))
        self._after = descendants(prompt, runs).keys()  # in the prompt as it came
        self._is_odd = False  # more has been allowed than can be told by these two

    def allow(self, draft: Draft, wanted: Iterable[str], takers: Iterable[str]) -> bool:
        """Whether all is well with what has been done since the last time.

        Args:
            wanted: The nodes that a run needs now.
            takers: The nodes that have what a run brings now, themselves or at once from another.
        """
        graph, before = draft.graph, self._before
        reached = reach(graph, wanted, lambda i, name: i not in before).keys()
        new = reached - before
        # That is only likely: to be sure takes a look at the whole prompt.
        is_odd = self._is_odd or any(i in self._after or _is_tap(graph[i]) for i in reached)
        is_odd |= any(i in before or i in new or _is_wanted(graph[i]) for i in takers)
        if is_odd and not _is_sound(graph, self._runs, self._here):
            return False
        self._is_odd = is_odd
        before |= new
        return True


def _is_tap(node: Mapping[str, object]) -> bool:
    return class_type_of(node) == node_ids.TAP


def _is_wanted(node: Mapping[str, object]) -> bool:
    return class_type_of(node) == node_ids.WANTED


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


def _is_sound(prompt: Prompt, runs: Collection[str], here: Collection[str]) -> bool:
    """Whether no run waits for what it brings itself, or is to send what another brings."""
    return not any(
        run in ancestors(prompt, [source for _, (source, _) in sources(prompt, run)])
        for run in runs
    ) and not any(
        _is_tap(prompt[i]) for run in _senders(prompt) for i in _before(prompt, run, here)
    )


def _senders(prompt: Prompt) -> list[str]:
    """The runs that may give their part to another ComfyUI."""
    return [
        i
        for i, node in prompt.items()
        if class_type_of(node) in node_ids.RUNS and inputs_of(node).get("here") != ONLY
    ]
