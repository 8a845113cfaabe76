"""Pure: what an output node needs of a part that runs elsewhere, and whether that can be had."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Protocol

from .classes import Readers
from .graph import Link, Prompt, class_type_of, consumers, reach, sources, title
from .output_types import Outputs, declared

# What a branch is looked at for. The others are parameters: cheap, where nothing is before them.
PICTURES = frozenset({"IMAGE", "MASK", "AUDIO", "VIDEO"})
TRAVELS = PICTURES | {"LATENT", "SIGMAS", "STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}
TRAVELS |= {"MESH", "VOXEL", "SPLAT", "FILE_3D", "SVG", "CURVE", "RANGE"}
# A branch that takes one of these computes something of its own, beside the part.
OWN = frozenset({"MODEL", "GUIDER", "SAMPLER", "NOISE"})


class Classes(Outputs, Readers, Protocol):
    """What the host knows of node classes."""

    def is_core(self, class_type: str) -> bool:
        """Whether it is ComfyUI's own, and of no pack."""


class Needed(Exception):
    """The part is needed here as well: why, in words; none where that goes without saying."""


class Tapping(NamedTuple):
    consumer: str
    name: str  # of its input
    source: Link
    run: str


class Parts:
    """The parts of a prompt that run elsewhere, and what is in none.

    Args:
        parts: Each run, and the nodes of its part.
        ends: The nodes at which parts end.

    Attributes:
        run_of: Each node of a part, and the run that it is for.
        ends: As given.
        after: The nodes in none that take something out of one, themselves or by others.
    """

    def __init__(
        self, prompt: Prompt, parts: Mapping[str, Collection[str]], ends: Collection[str]
    ) -> None:
        self.run_of: dict[str, str] = {}
        for run, part in parts.items():
            for node in part:
                self.run_of.setdefault(node, run)
        self.ends = ends
        self.after = self._after(prompt)

    def _after(self, prompt: Prompt) -> set[str]:
        readers, found = consumers(prompt), set[str]()
        left = [*self.run_of]
        while left:
            new = {to for to, _ in readers[left.pop()]} - found - self.run_of.keys()
            found |= new
            left += new - set(self.ends)
        return found


class Branch:
    """What an output node needs, as far as it is not in a part that runs elsewhere."""

    def __init__(self, prompt: Prompt, output: str, parts: Parts, classes: Classes) -> None:
        self._prompt, self._output, self._classes = prompt, output, classes
        self._parts, self._ends = parts, parts.ends
        self._pushed: dict[str, str] = {}  # run there too, since they alone can: the run of each
        self.is_inside = output in parts.run_of

    def taps(self) -> list[Tapping]:
        """The links that lead into a part, each with the run that is to bring its value.

        Raises:
            Needed: One of them cannot be had.
        """
        while self.is_inside or self._output in self._parts.after:
            crossing = list(self._crossing())
            if not crossing:
                break
            left = [(tap, self._kind(tap)) for tap in crossing]
            if any(kind in OWN for kind in self._kinds()):
                if any(self._is_made(tap, kind) for tap, kind in left):
                    raise Needed(self._why(*self._worst(left)))
                raise Needed
            stay = [tap for tap, kind in left if not _travels(kind)]
            if not stay:
                return [tap for tap, kind in left if not self._is_parameter(tap, kind)]
            for tap in stay:
                self._push(tap)
        return []

    def _crossing(self) -> Iterator[Tapping]:
        for node in self._nodes():
            for name, source in sources(self._prompt, node):
                run = self._run_of(source[0])
                if run and source[0] != self._output:
                    yield Tapping(node, name, source, run)

    def _nodes(self) -> list[str]:
        """Those of the branch that run here."""

        def follow(node: str, name: str) -> bool:
            return node == self._output or not (node in self._ends or self._run_of(node))

        found = reach(self._prompt, [self._output], follow)
        return [i for i in found if i == self._output or follow(i, "")]

    def _run_of(self, node: str) -> str:
        """The run in whose part that node is, "" if in none."""
        return self._pushed.get(node) or self._parts.run_of.get(node, "")

    def _kinds(self) -> Iterator[str]:
        for node in self._nodes():
            for name, source in sources(self._prompt, node):
                yield from _each(self._kind(Tapping(node, name, source, "")))

    def _kind(self, tap: Tapping) -> str:
        """The type of that value, "" where it cannot be told."""
        found = declared(self._prompt, tap.source, self._classes)
        if not found:
            taken = class_type_of(self._prompt[tap.consumer])
            found = self._classes.accepted(taken, tap.name)
        return found if _is_plain(found) else ""

    def _is_parameter(self, tap: Tapping, kind: str) -> bool:
        """Whether it is rather computed here, too: it takes no time, and nothing waits for it."""
        is_source = not any(sources(self._prompt, tap.source[0]))
        known = self._classes.returned(class_type_of(self._prompt[tap.source[0]]), tap.source[1])
        return is_source and bool(known) and not PICTURES & set(_each(kind))

    def _is_made(self, tap: Tapping, kind: str) -> bool:
        return _travels(kind) and not self._is_parameter(tap, kind)

    def _push(self, tap: Tapping) -> None:
        """Have the node that takes such a value run there, with all that it needs."""
        if tap.consumer == self._output:
            raise Needed(self._why(tap, self._kind(tap)))

        def follow(node: str, name: str) -> bool:
            return node not in self._ends and not self._run_of(node)

        for node in reach(self._prompt, [tap.consumer], follow):
            if node not in self._ends and not self._run_of(node):
                self._pushed[node] = tap.run

    def _worst(self, left: list[tuple[Tapping, str]]) -> tuple[Tapping, str]:
        own = [(tap, kind) for tap, kind in left if kind in OWN]
        return next(iter(own or [(tap, kind) for tap, kind in left if self._is_made(tap, kind)]))

    def _why(self, tap: Tapping, kind: str) -> str:
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
