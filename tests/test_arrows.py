"""Imports point one way, and what may import what is kept."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zbus"

SANS_IO = (
    "protocol/fields",
    "protocol/identity",
    "protocol/messages",
    "protocol/handshake",
    "protocol/session",
    "protocol/ways",
    "protocol/dial",
    "protocol/pace",
    "protocol/transfer",
    "protocol/manifest",
    "protocol/registrations",
    "protocol/binding",
    "protocol/channel",
    "protocol/job_records",
    "protocol/job_room",
    "protocol/outcomes",
    "protocol/given_jobs",
    "protocol/taken_jobs",
    "protocol/queue_deadlock",
    "protocol/jobs",
    "pairing/tokens",
    "pairing/invitation",
)
FORBIDDEN = {"zmq", "torch", "threading", "time", "asyncio", "socket", "concurrent", "select"}
# Rooms in which every module has a floor of its own; in the others all are on one.
ROOMS = {"protocol", "values", "net", "engine", "pairing"}
# Each may import from the rows above its own and from its own row, but for itself in a circle.
FLOORS = (
    ("reasons", "printable", "values/recycling"),
    ("errors", "protocol/fields", "protocol/identity"),
    ("given", "callbacks"),
    ("address", "machine", "operation", "settings"),
    ("protocol/messages", "protocol/pace", "values/layout", "values/spec"),
    ("protocol/handshake", "protocol/session", "protocol/transfer", "protocol/manifest"),
    ("protocol/ways", "protocol/dial"),
    ("protocol/budget", "protocol/delivery"),
    ("protocol/job_records", "protocol/job_room", "protocol/outcomes"),
    ("protocol/given_jobs", "protocol/taken_jobs", "protocol/queue_deadlock"),
    ("protocol/jobs",),
    ("protocol/registrations", "protocol/binding", "protocol/channel"),
    ("values/tensors",),
    ("values/kinds", "values/quantise", "values/flatten"),
    ("values/unpack",),
    ("values/payload", "values/streams", "codecs"),
    ("keys", "private", "probe", "discovery", "remote"),
    ("principals", "wrong"),
    ("trust",),
    ("lan", "card", "job"),
    ("resolver",),
    ("net/frames", "net/zap", "net/memory", "net/websocket"),
    ("net/sockets", "net/cutting", "net/widening"),
    ("net/transport", "net/places"),
    ("net/greeting", "net/owner"),
    ("nudging",),
    ("pairing/tokens", "pairing/reach"),
    ("pairing/invitation", "pairing/hellos"),
    ("pairing/inviting", "pairing/accepting", "pairing/offers"),
    ("net/dialling", "net/admission", "net/proving"),
    ("net/addresses", "net/peerings"),
    ("net/links",),
    ("engine/shm_lane", "engine/foreign", "engine/workers"),
    ("engine/wrapping", "engine/flow"),
    ("engine/inflow", "engine/outflow"),
    ("engine/transfers",),
    ("engine/context",),
    ("engine/running", "engine/status_text", "engine/operations"),
    ("engine/measuring", "engine/job_transfers", "engine/connecting", "engine/meetings"),
    ("engine/enquiries", "engine/giving", "engine/taking"),
    ("engine/job_service",),
    ("engine/dispatch",),
    ("engine/loop",),
    ("run", "peer"),
    ("__init__",),
    ("cli", "__main__"),
)
# What only the host has.
COMFY = {"comfy", "comfy_execution", "execution", "folder_paths", "nodes", "server", "app"}


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, relative level, only for types) of each import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, id(node) in typed) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            if node.module in ROOMS:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name, node.level, id(node) in typed) for name in names)


def place(parts: Sequence[str]) -> str:
    """What has a floor: the module itself, or the room of it. "" is a room's own docstring."""
    if parts[0] in ROOMS:
        return "/".join(parts[:2]) if parts[1:] and parts[1] != "__init__" else ""
    return parts[0] if parts[0] in FLOOR else "__init__"  # a name such as __version__


FLOOR = {name: level for level, row in enumerate(FLOORS) for name in row}


def test_each_module_has_one_floor() -> None:
    rows = [name for row in FLOORS for name in row]
    assert sorted(rows) == sorted(FLOOR)
    found = {"/".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in modules(PACKAGE)}
    assert {name for name in FLOOR if name not in found} == {"codecs", "cli"}, "rooms of one floor"


@pytest.mark.parametrize("path", modules(PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    here = place(parts)
    if not here:
        assert list(imports(path)) == []
        return
    assert here in FLOOR, f"{here} has no floor yet: give it one above"
    for name, level, _ in imports(path):
        if level == 0:
            continue  # not of zbus
        target = place((*parts[: len(parts) - level], *name.split(".")))
        if here == "peer" and target == "__init__":
            continue  # its one look upwards, at the version, inside a function
        assert FLOOR[target] <= FLOOR[here], f"{here} imports {target}, which stands above it"


@pytest.mark.parametrize("name", SANS_IO)
def test_the_core_has_no_socket_clock_or_thread(name: str) -> None:
    found = {
        module.split(".")[0] for module, level, _ in imports(PACKAGE / f"{name}.py") if not level
    }
    assert not found & FORBIDDEN


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
        path.name for path in modules(PACKAGE) for m, _, _ in imports(path) if m.startswith("zmq")
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
    users = [
        path.name
        for path in modules(PACKAGE)
        for module, _, typed in imports(path)
        if module.split(".")[0] == "torch" and not typed
    ]
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
    allowed = {"tensors.py"}  # NestedTensor's own class, where the process has it
    for path in modules(PACKAGE):
        found = {m.split(".")[0] for m, level, _ in imports(path) if level == 0}
        assert path.name in allowed or not found & (COMFY | {"comfy_api"}), path


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
    assert not {"pickle", "marshal", "shelve"} & {m for m, _, _ in imports(path)}
