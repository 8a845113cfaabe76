"""`comfy_nodes/`: which room may import from which, and one table of all node ids."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
import logging
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rooms import Module, Rooms, name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "comfy_nodes"
# A room may import from those that can be reached from it here, and from itself.
ROOMS = {
    "node_ids": (),
    "prompt": ("node_ids",),
    "host": ("prompt",),
    "page": ("host",),
    "exchange": ("page",),
    "jobs": ("exchange",),
    "netdist": ("jobs",),
    "__init__": ("netdist",),
}
# What only the host has: its internals, and beside them what it offers to all packs.
INTERNALS = {"comfy", "comfy_execution", "comfyui_version", "execution", "folder_paths"} | {
    *("latent_preview", "nodes", "server", "app")
}
API = {"comfy_api"}
IMPURE = {"zmq", "torch", "threading", "asyncio", "socket", "time", "aiohttp", "concurrent"}

COMFY_NODES = Rooms(PACKAGE, ROOMS, {})
MODULES = COMFY_NODES.modules


# --- the arrows


def test_the_rooms_are_those_of_the_graph_which_has_no_circle() -> None:
    COMFY_NODES.check_graph()


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_room_imports_only_what_the_graph_lets_it_reach(module: Module) -> None:
    COMFY_NODES.check_arrows(module)


def test_no_module_imports_itself_by_way_of_others() -> None:
    COMFY_NODES.check_circles()


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_only_host_touches_comfyui(module: Module) -> None:
    assert module[0] == "host" or not COMFY_NODES.outside(module) & INTERNALS


@pytest.mark.parametrize("module", [m for m in MODULES if m[0] in ("prompt", "node_ids")], ids=name)
def test_prompt_is_pure(module: Module) -> None:
    assert not COMFY_NODES.outside(module) & (INTERNALS | API | IMPURE)
    assert {other[0] for other in COMFY_NODES.imported(module)} <= {"prompt", "node_ids"}


# --- the node ids


class Schema:
    """What a node says of itself, as far as it matters here."""

    def __init__(self, node_id: str, **_: Any) -> None:
        self.node_id = node_id


class ComfyUI:
    """Finds a module of any name for what only ComfyUI has."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.partition(".")[0] in INTERNALS | API else None

    def create_module(self, spec: ModuleSpec) -> Any:
        made = mock.MagicMock(__path__=[], __spec__=spec)
        if spec.name == "comfy_api.latest":
            made.ComfyExtension, made.io.ComfyNode = object, type("ComfyNode", (), {})
            made.io.Schema = Schema
        return made

    def exec_module(self, module: Any) -> None:
        pass


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """comfy_nodes, where ComfyUI can do nothing but be asked."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "meta_path", [ComfyUI(), *sys.meta_path])
    package = "zbus_rooms_under_test"
    spec = importlib.util.spec_from_file_location(
        package, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[package] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    logger = logging.getLogger("zbus")  # whose lines it names, in all tests that follow
    handlers, propagates = [*logger.handlers], logger.propagate
    yield module
    logger.handlers[:], logger.propagate = handlers, propagates
    for loaded in set(sys.modules) - before:
        if loaded.partition(".")[0] in {package, *INTERNALS, *API}:
            del sys.modules[loaded]


def test_what_is_registered_is_the_table(extension: types.ModuleType) -> None:
    classes = asyncio.run(extension.ZBusExtension().get_node_list())
    table = extension.node_ids.ALL
    assert tuple(cls.define_schema().node_id for cls in classes) == table
    assert len(set(table)) == len(table) == len(set(classes)) == 33
    registered = [node_id for module in extension.MODULES for node_id in module.NODES]
    assert sorted(registered) == sorted(table), "one that ComfyUI would never be told of"


def test_the_table_holds_every_id_that_it_names(extension: types.ModuleType) -> None:
    ids = extension.node_ids
    names = [value for key, value in vars(ids).items() if key.isupper() and isinstance(value, str)]
    assert sorted(names) == sorted(ids.ALL)


def test_no_other_module_spells_an_id(extension: types.ModuleType) -> None:
    for module, path in MODULES.items():
        if module == ("node_ids",):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not texts & set(extension.node_ids.ALL), name(module)


def test_every_translation_is_of_a_node_that_there_is(extension: types.ModuleType) -> None:
    ids = extension.node_ids
    for path in sorted((ROOT / "locales").glob("*/nodeDefs.json")):
        translated = json.loads(path.read_text(encoding="utf-8"))
        assert set(translated) == set(ids.ALL) - set(ids.INTERNAL), path
