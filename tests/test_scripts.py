"""Every script starts, from anywhere, with nothing but the Python that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    path for path in (ROOT / "scripts").iterdir() if path.is_file() and path.suffix != ".cmd"
)
LAUNCHED = [path for path in SCRIPTS if not path.suffix]
MODULES = [path for path in SCRIPTS if path.suffix == ".py"]


def is_python(script: Path) -> bool:
    return "python" in script.read_text("utf-8").partition("\n")[0]


def begun(command: list[str], folder: Path) -> subprocess.Popen[str]:
    variables = {**os.environ, "PYTHON": sys.executable, "ZBUS_HOME": str(folder / "home")}
    variables["COLUMNS"] = "80"
    return subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def said(running: Mapping[str, subprocess.Popen[str]]) -> dict[str, tuple[int, str]]:
    """(exit status, output) of each. They were begun together: most of their time is imports."""
    ended = {name: process.communicate(timeout=100)[0] for name, process in running.items()}
    return {name: (running[name].returncode, text) for name, text in ended.items()}


def test_there_are_scripts_and_each_can_be_started_by_its_name() -> None:
    assert {"codec-table", "demo", "draw-states", "test"} < {path.name for path in LAUNCHED}
    first = {path.name: path.read_text("utf-8").partition("\n")[0] for path in LAUNCHED}
    known = {"#!/usr/bin/env python3", "#!/usr/bin/env bash"}
    assert {name: line for name, line in first.items() if line not in known} == {}
    if os.name == "posix":
        assert [path.name for path in LAUNCHED if not os.access(path, os.X_OK)] == []


def test_every_script_tells_how_it_is_used(tmp_path: Path) -> None:
    ours = [path for path in LAUNCHED if is_python(path) or os.name == "posix"]
    starts = {path.name: [sys.executable, "-B"] if is_python(path) else ["bash"] for path in ours}
    running = {
        path.name: begun([*starts[path.name], str(path), "--help"], tmp_path) for path in ours
    }
    for name, (status, text) in said(running).items():
        assert status == 0, (name, text)
        if name.startswith("zbus-"):
            assert text.startswith(f"usage: {name} ")
            assert [line for line in text.splitlines() if len(line) > 80] == [], name
        assert "usage" in text.lower() and name.rpartition("-")[2] in text, (name, text)


def test_an_unknown_option_is_told_with_the_commands_own_usage(capsys) -> None:
    from zbus.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main(["ping", "--jobb", "desk-8188"])
    told = capsys.readouterr().err
    assert told.startswith("usage: zbus-ping [-h]") and "unrecognized arguments: --jobb" in told


def test_what_the_scripts_consist_of_can_be_imported(tmp_path: Path) -> None:
    running = {}
    for path in MODULES:
        code = f"import sys; sys.path.insert(0, {str(path.parent)!r}); import {path.stem}"
        running[path.name] = begun([sys.executable, "-B", "-c", code], tmp_path)
    for name, ended in said(running).items():
        assert ended == (0, ""), name


def test_every_launcher_of_windows_has_its_script() -> None:
    """And leads to it: a copy with another name in it would start the wrong one."""
    for path in (ROOT / "scripts").glob("*.cmd"):
        script = path.with_suffix("")
        target = script.name if is_python(script) else f"_{script.name.replace('-', '_')}.py"
        assert script.is_file() and (ROOT / "scripts" / target).is_file()
        lines = [line for line in path.read_text("ascii").splitlines() if '"%~dp0' in line]
        assert any(f'"%~dp0{target}"' in line for line in lines)


def test_the_codec_table_measures_every_codec(tmp_path: Path) -> None:
    picture = tmp_path / "photo.png"
    Image.effect_noise((64, 48), 20).save(picture)
    table = [sys.executable, "-B", str(ROOT / "scripts" / "codec-table"), str(picture), "-n", "1"]
    status, text = said({"table": begun(table, tmp_path)})["table"]
    assert status == 0, text
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    from zbus import codecs

    # A mixed transfer's chunks go by these: it has no speed of its own.
    names = [name for name in codecs.available() if name in codecs.SINGLE]
    assert [row for row in rows if row != "codec"] == names * 3
    assert text.count("refused: no image") == sum(codecs.CODECS[name].pictures for name in names)
