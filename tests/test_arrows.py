"""Imports point one way, and what may import what is kept."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from rooms import Module, Rooms, name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zbus"
# A room may import from those that can be reached from it here, and from itself.
GRAPH = {
    "basics": (),  # errors, addresses, checks, the handle of an operation
    "protocol": ("basics",),  # sans-IO
    "values": ("protocol",),  # tensors as bytes; the codecs
    "trust": ("protocol",),  # keys, who is paired, where peers are found
    "net": ("trust",),  # sockets, and sessions over them
    "engine": ("net", "values"),  # the I/O thread, and the API on it
    "pairing": ("net",),
    "cli": ("engine", "pairing"),
}
BELONGS = {
    **dict.fromkeys(("errors", "reasons", "printable", "given", "settings"), "basics"),
    **dict.fromkeys(("address", "machine", "callbacks", "operation"), "basics"),
    **dict.fromkeys(("in_a_thread", "in_time", "webproxy"), "basics"),
    "codecs": "values",
    **dict.fromkeys(
        ("keys", "opening", "private", "principals", "trust", "wrong", "remote"), "trust"
    ),
    **dict.fromkeys(("discovery", "lan", "card", "resolver", "probe"), "trust"),
    **dict.fromkeys(("peer", "run", "job", "__init__"), "engine"),
    "nudging": "pairing",
    "__main__": "cli",
}
ROOMS = Rooms(PACKAGE, GRAPH, BELONGS)
# Its one look upwards, at the version, inside a function.
UPWARDS: dict[Module, set[Module]] = {("peer",): {("__init__",)}}

SANS_IO = [m for m in ROOMS.modules if m[0] == "protocol"]
SANS_IO += [("pairing", "tokens"), ("pairing", "invitation")]
FORBIDDEN = {"zmq", "torch", "threading", "time", "asyncio", "socket", "concurrent", "select"}
# What zbus is compared with by zbus-bench, in processes of their own: no part of the bus.
YARDSTICKS = ("cli", "benching", "ways")
# What only the host has. One room of ours may touch it.
COMFY = {"comfy", "comfy_execution", "execution", "folder_paths", "nodes", "server", "app"}


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def test_the_rooms_are_those_of_the_graph_which_has_no_circle() -> None:
    ROOMS.check_graph()
    stale = {named for named in BELONGS if not any(m[0] == named for m in ROOMS.modules)}
    assert stale == set(), "modules that are no more"


@pytest.mark.parametrize("module", ROOMS.modules, ids=name)
def test_a_room_imports_only_what_the_graph_lets_it_reach(module: Module) -> None:
    ROOMS.check_arrows(module)


def test_no_module_imports_itself_by_way_of_others() -> None:
    ROOMS.check_circles(UPWARDS)


@pytest.mark.parametrize("module", SANS_IO, ids=name)
def test_the_core_has_no_socket_clock_or_thread(module: Module) -> None:
    assert not ROOMS.outside(module) & FORBIDDEN


def test_identities_are_made_where_the_key_is_proved() -> None:
    """Else what a HELLO claims could pass for what CURVE has shown."""
    makers = {
        (path.relative_to(PACKAGE).as_posix(), ast.unparse(node.func))
        for path in modules(PACKAGE)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in ("Identity", "SessionKey")
    }
    assert makers == {("net/proving.py", "Identity"), ("net/proving.py", "SessionKey")}


def test_zmq_is_imported_by_the_transport_alone() -> None:
    users = {
        m[-1] + ".py" for m in ROOMS.modules if "zmq" in ROOMS.outside(m) and m[:3] != YARDSTICKS
    }
    assert users == {
        "frames.py",
        "sockets.py",
        "transport.py",
        "widening.py",
        "zap.py",
        "keys.py",
    }


def test_torch_is_imported_by_name_nowhere() -> None:
    ours = [module for module in ROOMS.modules if module[:3] != YARDSTICKS]
    users = [name(module) for module in ours if "torch" in ROOMS.outside(module)]
    assert users == [], "tensors.torch_module() imports it, when the first tensor comes"


def test_importing_zbus_brings_no_torch_and_starts_no_thread() -> None:
    code = (
        "import sys, threading, zbus, zbus.cli.ping; "
        "print('torch' in sys.modules, threading.active_count())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["False", "1"]


def test_zbus_knows_nothing_of_comfyui() -> None:
    allowed = {"tensors"}  # NestedTensor's own class, where the process has it
    for module in ROOMS.modules:
        found = ROOMS.outside(module) & (COMFY | {"comfy_api"})
        assert module[-1] in allowed or not found, module


@pytest.mark.parametrize(
    "path",
    [p for folder in ("zbus", "comfy_nodes", "scripts") for p in modules(ROOT / folder)],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_pickle_no_eval_no_shell(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "os.system", "os.popen", "pickle.loads"), name
            assert not any(k.arg == "shell" for k in node.keywords), f"{name}(shell=...)"
    imported = {
        alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
    }
    imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not {"pickle", "marshal", "shelve"} & imported
