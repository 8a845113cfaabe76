"""The rooms of a package, and which may import from which: one graph, looked at transitively."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

Module = tuple[str, ...]


class Rooms:
    """A package as rooms.

    Args:
        package: Its folder.
        graph: Each room, and those it imports from: also what can be reached from these.
        belongs: The room of a module or folder that is not named as its room.
    """

    def __init__(
        self, package: Path, graph: Mapping[str, tuple[str, ...]], belongs: Mapping[str, str]
    ) -> None:
        self.graph, self._belongs = graph, belongs
        self.modules: dict[Module, Path] = {
            path.relative_to(package).with_suffix("").parts: path
            for path in sorted(package.rglob("*.py"))
            if "__pycache__" not in path.parts
        }

    def room(self, module: Module) -> str:
        return self._belongs.get(module[0], module[0])

    def imported(self, module: Module) -> set[Module]:
        """The package's own modules that it imports."""
        found = set()
        for what, level in imports(self.modules[module]):
            if level:
                whole = (*module[: len(module) - level], *what.split("."))
                ends = [whole[:end] for end in range(len(whole), -1, -1)]
                known = [m for end in ends for m in (end, (*end, "__init__")) if m in self.modules]
                assert known, f"{name(module)} imports {'.'.join(whole)}, which is not there"
                found.add(known[0])
        return found - {module}

    def outside(self, module: Module) -> set[str]:
        """The other packages that it imports."""
        return {
            what.partition(".")[0] for what, level in imports(self.modules[module]) if not level
        }

    def reachable(self, room: str) -> set[str]:
        return {room}.union(*(self.reachable(other) for other in self.graph[room]))

    # --- what must hold ---------------------------------------------------------------------------

    def check_graph(self) -> None:
        """Its rooms are those that there are, and it has no circle."""
        assert {self.room(module) for module in self.modules} == set(self.graph)
        graphlib.TopologicalSorter(self.graph).prepare()  # raises CycleError

    def check_arrows(self, module: Module) -> None:
        """It imports only from what its room can reach."""
        allowed = self.reachable(self.room(module))
        beyond = [name(m) for m in self.imported(module) if self.room(m) not in allowed]
        assert beyond == [], f"{self.room(module)} may know {sorted(allowed)}"

    def check_circles(self, but: Mapping[Module, set[Module]] | None = None) -> None:
        """No module imports itself by way of others. `but`: imports that do not count."""
        but = but or {}
        graphlib.TopologicalSorter(
            {module: self.imported(module) - but.get(module, set()) for module in self.modules}
        ).prepare()


def name(module: Module) -> str:
    return "/".join(module)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(what, level) of each import: a module, or a name in one. What is imported for its types
    alone does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield ".".join(filter(None, (node.module, alias.name))), node.level
