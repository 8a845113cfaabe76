"""Writes locales/en/nodeDefs.json from what the nodes say of themselves, or looks whether it is so.

The page shows what stands there, in English too, in place of the nodes' own words: so it has to be
the same. Needs no ComfyUI: its API is stood in for by what remembers what it was told.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "locales" / "en" / "nodeDefs.json"
PACKAGE = "zbus_nodes_to_describe"
# The modules that only ComfyUI has, by their first names.
HOST = {"app", "comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfyui_version"} | {
    *("execution", "folder_paths", "latent_preview", "node_helpers", "nodes", "server")
}
USAGE = """usage: scripts/write-locales [--check]

Writes locales/en/nodeDefs.json from the nodes' own words. With --check nothing is written: the
exit status is 1 if it would change. Needs the Python of your ComfyUI.
"""


class Slot:
    """An input or output: what was said of it."""

    def __init__(self, slot_id: str = "", **more: Any) -> None:
        self.slot_id, self.more = slot_id, more


class Schema:
    """A node, as it describes itself."""

    def __init__(self, **said: Any) -> None:
        self.said = said


class _Kind:
    Input = Output = Slot


class _Kinds:
    """For `io`: whatever kind of value is asked for is one that has inputs and outputs."""

    Schema, ComfyNode, Hidden = Schema, type("ComfyNode", (), {}), mock.MagicMock()

    def __getattr__(self, name: str) -> type[_Kind]:
        return _Kind

    def Custom(self, _: str) -> type[_Kind]:  # as it is called there
        return _Kind


class _StandIn:
    """Finds a module of any name for what only ComfyUI has."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.partition(".")[0] in HOST else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> Any:
        made = mock.MagicMock(__path__=[], __spec__=spec)
        if spec.name == "comfy_api.latest":
            made.ComfyExtension, made.io = object, _Kinds()
        return made

    def exec_module(self, module: Any) -> None:
        """There is nothing to run."""


@contextmanager
def _nodes() -> Iterator[ModuleType]:
    """comfy_nodes, where ComfyUI can do nothing but be asked."""
    before, finders = set(sys.modules), list(sys.meta_path)
    folder = ROOT / "comfy_nodes"
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[PACKAGE] = module = importlib.util.module_from_spec(spec)
    sys.meta_path.insert(0, _StandIn())  # type: ignore[arg-type]
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.meta_path[:] = finders
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in {PACKAGE, *HOST}:
                del sys.modules[name]


def described() -> dict[str, Any]:
    """Every node that a user sees, as ComfyUI's page wants it."""
    with _nodes() as pack:
        classes = asyncio.run(pack.ZBusExtension().get_node_list())
        said = [cls.define_schema().said for cls in classes]
        inner = set(pack.node_ids.INTERNAL)
    return {one["node_id"]: _node(one) for one in said if one["node_id"] not in inner}


def _node(said: dict[str, Any]) -> dict[str, Any]:
    node = {
        "display_name": said.get("display_name") or said["node_id"],
        "description": said.get("description"),
        "inputs": {slot.slot_id: _slot(slot) for slot in said.get("inputs", ())},
        "outputs": {str(place): _slot(slot) for place, slot in enumerate(said.get("outputs", ()))},
    }
    return {key: value for key, value in node.items() if value}


def _slot(slot: Slot) -> dict[str, str]:
    found = {"name": slot.more.get("display_name") or slot.slot_id}
    tooltip = slot.more.get("tooltip")
    return {**found, "tooltip": tooltip} if tooltip else found


def written() -> str:
    """What the file should hold."""
    return json.dumps(described(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        sys.stdout.write(USAGE)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    sys.path.insert(0, str(ROOT))
    try:
        text = written()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("zbus"):
            raise
        sys.stderr.write(f"write-locales: this Python ({sys.executable}) has no {error.name}\n")
        return 2
    if arguments:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
