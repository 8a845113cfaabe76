"""What ComfyUI's registry wants of a pack, and what its scanners and the common checker of packs
(comfy-test) complain of: as far as it can be looked at without a network.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SECURITY = (ROOT / "docs" / "security.md").read_text("utf-8")
sys.path.insert(0, str(ROOT / "scripts"))
import _draw_logo as draw_logo  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def sources() -> Iterator[Path]:
    """Every file of Python, also those that have no such name."""
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        is_script = parts[:-1] == ("scripts",) and not path.suffix
        if (path.suffix == ".py" or is_script) and not any(p.startswith(".") for p in parts):
            yield path


def of_the_pack() -> list[Path]:
    """What runs in ComfyUI, or comes with it."""
    folders = (ROOT / "zbus", ROOT / "comfy_nodes")
    return [*ROOT.glob("_*.py"), *(path for one in folders for path in one.rglob("*.py"))]


def archived() -> list[str]:
    """What the registry's archive holds: git's files, less those of .comfyignore, whose lines are
    read as .gitignore's are."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git")
    files = git("ls-files").splitlines()
    patterns = f"core.excludesFile={ROOT / '.comfyignore'}"
    ignored = git("-c", patterns, "check-ignore", "--no-index", "--stdin", given="\n".join(files))
    return sorted(set(files) - set(ignored.splitlines()))


def git(*words: str, given: str = "") -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *words], input=given, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


# --- the forms of the registry


def test_the_license_is_in_a_form_that_the_registry_knows() -> None:
    known = project()["project"]["license"]
    assert isinstance(known, dict) and set(known) in ({"text"}, {"file"})
    assert (ROOT / known.get("file", "LICENSE")).is_file()


def test_the_name_and_version_are_such_as_it_takes() -> None:
    said = project()["project"]
    assert re.fullmatch(r"[A-Za-z](?:[._-]?[A-Za-z0-9])*", said["name"]) and len(said["name"]) < 100
    assert re.fullmatch(r"\d+\.\d+\.\d+", said["version"])
    assert {"Repository", "Documentation", "Issues"} <= set(said["urls"])


def test_the_systems_and_pythons_are_classified() -> None:
    said = project()["project"]
    systems = [c for c in said["classifiers"] if c.startswith("Operating System :: ")]
    assert systems == ["Operating System :: OS Independent"]
    # Of accelerators it knows a few; naming none says that it does not matter which there is.
    assert not [c for c in said["classifiers"] if c.startswith("Environment ::")]
    named = {c.rpartition(" ")[2] for c in said["classifiers"] if ":: Python :: 3." in c}
    assert named == {f"3.{minor}" for minor in range(10, 15)}
    assert said["requires-python"] == ">=3.10"


def test_it_says_which_comfyui_it_needs() -> None:
    part = r"(?:==|>=|<=|!=|~=|>|<)\d+\.\d+\.\d+"
    assert re.fullmatch(rf"{part}(?:,{part})*", project()["tool"]["comfy"]["requires-comfyui"])


def test_nothing_goes_into_the_archive_as_it_lies_on_the_disk() -> None:
    comfy = project()["tool"]["comfy"]
    assert comfy["includes"] == []
    assert "web" not in comfy, "WEB_DIRECTORY says it already: the page would load it twice"


@pytest.mark.parametrize(
    "kind, name, drawn, fits",
    [
        ("Icon", "icon.png", draw_logo.icon, lambda w, h: w == h <= 400),
        ("Banner", "banner.png", draw_logo.banner, lambda w, h: w * 9 == h * 21),
    ],
)
def test_the_icon_and_the_banner(kind: str, name: str, drawn: Any, fits: Any) -> None:
    repository = project()["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    raw = f"https://raw.githubusercontent.com/{repository}/main/docs/{name}"
    assert project()["tool"]["comfy"][kind] == raw
    path = ROOT / "docs" / name
    assert path.stat().st_size < 100_000
    with Image.open(path) as picture:
        assert picture.format == "PNG" and fits(*picture.size)
        written = np.asarray(picture.convert("RGB"), np.int16)
    # Pillow's versions may differ by a shade along the edges.
    difference = np.abs(written - np.asarray(drawn(), np.int16))
    assert difference.mean() < 0.5, "run scripts/draw-logo"


# --- the archive


def test_the_archive_holds_what_is_needed_to_run() -> None:
    held = set(archived())
    tracked = set(git("ls-files").splitlines())
    for folder in ("zbus/", "comfy_nodes/", "web/", "locales/", "example_workflows/"):
        assert {name for name in tracked if name.startswith(folder)} <= held
    root = {"__init__.py", "_locate.py", "pyproject.toml", "requirements.txt", "LICENSE"}
    assert root | {"README.md", "CHANGELOG.md", "docs/security.md"} <= held
    commands = [name for name in project()["project"]["scripts"] if name != "zbus"]
    assert {f"scripts/{name}{end}" for name in commands for end in ("", ".cmd")} <= held


def test_the_archive_holds_no_tests_and_nothing_that_runs_pip() -> None:
    held = archived()
    assert not [name for name in held if name.startswith(("tests/", ".", "scripts/_"))]
    for name in held:
        if name.endswith(".py") or (name.startswith("scripts/") and "." not in name):
            words = strings((ROOT / name).read_text("utf-8"))
            assert not {"pip", "ensurepip", "conda"} & words, name


def strings(code: str) -> set[str]:
    tree = ast.walk(ast.parse(code))
    return {n.value for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, str)}


# --- what scanners look for


def test_the_rules_of_the_registrys_own_check() -> None:
    """exec, eval, two statements in one line; and of ours: pickle, a shell, a shell's words."""
    rules = "S102,S307,E702,S301,S602,S604,S605,S609"
    command = ["check", "--isolated", "--no-cache", "--quiet", "--select", rules, "--output-format"]
    targets = [str(path) for path in of_the_pack()]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "concise", *targets],
        capture_output=True,
        text=True,
    )
    if "No module named ruff" in done.stderr:
        pytest.skip("ruff is not installed")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_no_source_holds_what_windows_cannot_show() -> None:
    """A console of cp1252; and whoever reads a source with the system's own encoding."""
    found = []
    for path in sources():
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            try:
                line.encode("cp1252")
            except UnicodeEncodeError:
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []


def test_the_scripts_of_the_page_keep_to_themselves() -> None:
    """Under the pack's own name, which is DisplayName's letters; and no listener, or anything else,
    at what all packs share."""
    own = re.sub("[^a-z0-9]+", "", project()["tool"]["comfy"]["DisplayName"].lower())
    scripts = list((ROOT / "web").rglob("*.js"))
    assert scripts
    for path in scripts:
        code = re.sub(r"//[^\n]*", "", path.read_text("utf-8"))
        names = re.findall(r'registerExtension\(\{\s*name: "([^"]+)"', code)
        assert len(names) == code.count("registerExtension(") > 0
        assert all(name.startswith(f"{own}.") for name in names)
        assert not re.search(r"\bdocument(?:\.\w+)*\.(?:addEventListener|append\w*)\(", code)
        assert not re.search(r"\baddEventListener\(\s*[\"']message", code)
        assert not re.search(r"\b(?:window|globalThis)\.\w+ = |\bdocument\.body\b", code)


# --- docs/security.md


def listed(start: str, end: str) -> list[str]:
    """The files in the table between two headings' first words."""
    part = SECURITY.partition(f"\n{start}")[2].partition(f"\n{end}")[0]
    return re.findall(r"^\| `([\w/.]+)` \|", part, re.M)


@cache
def imports() -> dict[str, set[str]]:
    """What each file of the pack imports from elsewhere, by its first name."""
    found = {}
    for path in of_the_pack():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                named.add(node.module or "")
        found[path.relative_to(ROOT).as_posix()] = {name.partition(".")[0] for name in named}
    return found


def users(module: str) -> list[str]:
    return sorted(path for path, named in imports().items() if module in named)


@pytest.mark.parametrize(
    "module, start, end",
    [
        ("subprocess", "**Programs**", "**ctypes**"),
        ("ctypes", "**ctypes**", "**Sockets.**"),
        ("socket", "**Sockets.**", "## "),
    ],
)
def test_each_use_is_explained(module: str, start: str, end: str) -> None:
    told = listed(start, end)
    assert sorted(told) == users(module)
    assert len(set(told)) == len(told)


def test_there_is_no_other_way_to_start_a_program_or_to_load_code() -> None:
    others = {"multiprocessing", "pty", "pickle", "shelve", "marshal", "cffi", "pip"}
    assert {module: users(module) for module in others} == {module: [] for module in others}
    calls = re.compile(
        r"\bos\.(?:system|popen|exec\w+|spawn\w+|startfile|fork\w*)\b|create_subproc"
    )
    for path in of_the_pack():
        assert not calls.search(path.read_text("utf-8")), path
