"""ComfyUI's door: one ``zbus`` per process, whatever is installed and however the clone is named.

Each case runs in a process of its own, which loads the pack by path as ComfyUI does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[1]

# What ComfyUI's load_custom_node does, and a report of the outcome.
LOADER = """
import asyncio, importlib.util, io, json, logging, sys, threading
log = io.StringIO()
logging.basicConfig(stream=log, level=logging.INFO)
path_before = list(sys.path)

def load(folder):
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

def report(**more):
    import zbus
    copies = [n for n in sys.modules if n.split(".")[-1] == "zbus" and "/" not in n]
    print(json.dumps(dict(
        file=zbus.__file__, version=zbus.__version__, distribution=zbus.DISTRIBUTION,
        path_changed=sys.path != path_before, threads=threading.active_count(),
        copies=copies, log=log.getvalue(), **more)))
"""
NODES = """
import zbus
class ZBusExtension:
    library = zbus
"""
FOREIGN = "raise SystemExit('the foreign package was run')\n"


@pytest.fixture
def clone(tmp_path):
    return make_clone(tmp_path / "ComfyUI-zbus.v1-main")


def make_clone(folder: Path) -> Path:
    """The door and the library as they are, with nodes that need no ComfyUI."""
    folder.mkdir(parents=True)
    for name in ("__init__.py", "_locate.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    copy_library(folder)
    (folder / "comfy_nodes").mkdir()
    (folder / "comfy_nodes" / "__init__.py").write_text(NODES)
    return folder


def copy_library(folder: Path, version: str = VERSION) -> Path:
    """Put zbus into that folder as pip would; another version where one is given."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "zbus", folder / "zbus", ignore=ignored)
    init = folder / "zbus" / "__init__.py"
    init.write_text(init.read_text("utf-8").replace(f'"{VERSION}"', f'"{version}"'), "utf-8")
    return folder


def put_foreign(folder: Path, code: str = FOREIGN) -> Path:
    (folder / "zbus").mkdir(parents=True)
    (folder / "zbus" / "__init__.py").write_text(code)
    return folder


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run with only those folders, and what is installed, to import from."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-B", "-c", LOADER + code]
    return subprocess.run(
        command, env=env, cwd="/", capture_output=True, text=True, timeout=60, check=False
    )


def outcome(code: str, *path: Path) -> dict:
    done = run(code, *path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def error(code: str, *path: Path) -> str:
    done = run(code, *path)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def inside(file: str, folder: Path) -> bool:
    return Path(file).resolve() == (folder / "zbus" / "__init__.py").resolve()


def test_a_clone_with_a_hyphen_and_a_dot_uses_its_own(clone):
    found = outcome(f"load({str(clone)!r}); report()")
    assert inside(found["file"], clone)
    assert (found["version"], found["distribution"]) == (VERSION, "comfyui-bus")
    assert f"zbus {VERSION} from {clone.resolve() / 'zbus'}" in found["log"]


def test_loading_has_no_other_effect(clone):
    found = outcome(f"load({str(clone)!r}); report()")
    assert found["threads"] == 1
    assert not found["path_changed"]


def test_the_entry_point_gives_the_extension_and_its_nodes_use_the_one_zbus(clone):
    found = outcome(
        f"door = load({str(clone)!r}); import zbus\n"
        "extension = asyncio.run(door.comfy_entrypoint())\n"
        "report(one=extension.library is zbus, top='comfy_nodes' in sys.modules,"
        " kind=type(extension).__name__, web=door.WEB_DIRECTORY,"
        " v1=hasattr(door, 'NODE_CLASS_MAPPINGS'))"
    )
    assert found["one"] and not found["top"] and not found["v1"]
    assert (found["kind"], found["web"]) == ("ZBusExtension", "./web")


def test_a_foreign_zbus_is_passed_over_and_never_run(clone, tmp_path):
    found = outcome(f"load({str(clone)!r}); report()", put_foreign(tmp_path / "site"))
    assert inside(found["file"], clone)


def test_a_foreign_zbus_that_is_imported_already_gives_way(clone, tmp_path):
    site = put_foreign(tmp_path / "site", "import zbus.part\n")
    (site / "zbus" / "part.py").write_text("")
    code = f"import zbus; load({str(clone)!r}); report(part='zbus.part' in sys.modules)"
    found = outcome(code, site)
    assert inside(found["file"], clone)
    assert not found["part"]
    assert "another package called zbus" in found["log"]


def test_a_mere_folder_called_zbus_is_no_package(clone, tmp_path):
    (tmp_path / "site" / "zbus").mkdir(parents=True)
    assert inside(outcome(f"load({str(clone)!r}); report()", tmp_path / "site")["file"], clone)


def test_the_clone_itself_on_the_path_as_zbus_is_not_taken_for_the_library(tmp_path):
    clone = make_clone(tmp_path / "custom_nodes" / "zbus")
    found = outcome(f"load({str(clone)!r}); report()", tmp_path / "custom_nodes")
    assert inside(found["file"], clone)


def test_an_installed_one_of_the_same_version_is_the_only_one(clone, tmp_path):
    site = copy_library(tmp_path / "site")
    found = outcome(f"load({str(clone)!r}); report()", site)
    assert inside(found["file"], site)
    assert found["copies"] == ["zbus"]
    assert str(site) in found["log"]


def test_an_installed_one_of_another_version_is_passed_over(clone, tmp_path):
    site = copy_library(tmp_path / "site", "0.0.1")
    found = outcome(f"load({str(clone)!r}); report()", site)
    assert inside(found["file"], clone)
    assert found["version"] == VERSION


def test_another_version_in_use_is_an_error_that_names_both(clone, tmp_path):
    site = copy_library(tmp_path / "site", "0.0.1")
    text = error(f"import zbus; load({str(clone)!r})", site)
    assert text.startswith("ImportError: zbus 0.0.1 from")
    assert VERSION in text and str(clone) in text and "Remove one" in text


def test_loading_twice_gives_one_and_logs_once(clone, tmp_path):
    second = make_clone(tmp_path / "custom_nodes" / "second-clone")
    found = outcome(
        f"load({str(clone)!r}); import zbus; first = zbus\n"
        f"load({str(clone)!r}); load({str(second)!r})\n"
        "report(one=sys.modules['zbus'] is first)"
    )
    assert found["one"] and inside(found["file"], clone)
    assert found["log"].count(f"zbus {VERSION} from") == 1


@pytest.mark.parametrize("where", ["zbus", "comfy_nodes"])
def test_a_missing_dependency_names_the_command_that_installs_it(clone, where):
    with (clone / where / "__init__.py").open("a") as file:
        file.write("\nimport msgpack\n")
    text = error(
        f"sys.modules['msgpack'] = None; asyncio.run(load({str(clone)!r}).comfy_entrypoint())"
    )
    assert text.startswith("ImportError: zbus needs the Python package 'msgpack'")
    assert f'"{sys.executable}" -m pip install -r "{clone.resolve() / "requirements.txt"}"' in text


def test_any_other_missing_module_is_reported_as_it_is(clone):
    with (clone / "zbus" / "__init__.py").open("a") as file:
        file.write("\nimport zbus.no_such_part\n")
    text = error(f"load({str(clone)!r})")
    assert text == "ModuleNotFoundError: No module named 'zbus.no_such_part'"


def test_a_library_that_fails_to_load_leaves_nothing_behind(clone):
    with (clone / "zbus" / "__init__.py").open("a") as file:
        file.write("\nraise RuntimeError('broken')\n")
    done = run(
        f"try: load({str(clone)!r})\n"
        "except RuntimeError: print([n for n in sys.modules if n.startswith('zbus')])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_version_is_written_the_same_everywhere():
    import zbus

    assert (zbus.__version__, zbus.DISTRIBUTION) == (VERSION, "comfyui-bus")


def test_requirements_txt_lists_the_dependencies_and_not_torch():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", project, re.M | re.S)[1]
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    needed = re.findall(r'"(.+)"', block)
    assert listed == needed
    assert not any(name.startswith("torch") for name in listed)


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"])
def test_lz4_stops_no_install_where_it_may_have_no_wheel(python):
    """The free-threaded 3.14, which no marker tells from the other; see pyproject.toml."""
    requirements = pytest.importorskip("packaging.requirements")
    version = {"python_version": python, "python_full_version": f"{python}.0"}
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    every = [requirements.Requirement(line) for line in lines if line and line[0] != "#"]
    wanted = {r.name for r in every if not r.marker or r.marker.evaluate(version)}
    assert {r.name for r in every} - wanted == ({"lz4"} if python in ("3.14", "3.15") else set())


def test_without_lz4_it_loads_and_says_what_is_left_out(clone):
    found = outcome(
        f"sys.modules['lz4'] = None; load({str(clone)!r})\n"
        "from zbus import codecs; report(here=codecs.available())"
    )
    assert "raw" in found["here"] and "zlib" in found["here"] and "lz4" not in found["here"]
    assert "without the Python package lz4" in found["log"]
    assert f'"{sys.executable}" -m pip install lz4' in found["log"]
