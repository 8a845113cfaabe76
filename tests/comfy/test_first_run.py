"""README's four steps, as a newcomer types them: install, zbus-up, load this, Run.

The commands are those of README, word for word. The one thing that is put in their place is what
this machine lacks: a CPU for the second GPU.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time

import pytest
import workflows
from children import ROOT
from comfyui import HERE, host_python
from paired import home_of

REPOSITORY = "https://github.com/comfyui-bus/comfyui-bus"
EXAMPLE = "zbus-run-part.json"
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)
NAME = "desk-8189"  # README's second ComfyUI
# ComfyUI's main.py, with a base folder of its own and what `runner` does for torchvision.
MAIN = """
import runpy, sys
sys.path.insert(0, {here!r})
import runner
runner.make_importable()
sys.path[0] = {folder!r}
sys.argv[:1] = [{folder!r} + "/main.py", "--base-directory", {base!r}, "--disable-api-nodes"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def place(tmp_path, comfyui_dir, pair):
    """A folder with a ComfyUI in it, and an environment in which README's commands run as they
    are: `python` is this one, the repository is this working tree, pip asks no network."""
    if os.name == "nt":
        pytest.skip("README's commands are a shell's; the Windows ones are in docs/guide.md")
    base = tmp_path / "ComfyUI"
    for name in ("custom_nodes", "models", "input"):
        (base / name).mkdir(parents=True)
    main = MAIN.format(here=str(HERE), folder=str(comfyui_dir), base=str(base))
    (base / "main.py").write_text(main)
    programs = tmp_path / "bin"
    programs.mkdir()
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(host_python())} "$@"\n')
    python.chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if name != "COMFYUI_DIR"}
    return tmp_path, {
        **environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "ZBUS_HOME": str(home_of(pair.a)),
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{repository(tmp_path)}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
    }


def test_four_steps(place, pair, measured):
    folder, env = place
    install, start, ask = commands()
    began = time.monotonic()
    do(install, folder, env)
    installed = time.monotonic() - began
    there = folder / "ComfyUI"
    assert "--gpus 1" in start
    with Running(start.replace("--gpus 1", "--cpu 1"), there, env) as second:
        name = second.first_name()
        up = time.monotonic() - began - installed
        example = there / "custom_nodes" / "comfyui-bus" / "example_workflows" / EXAMPLE
        saved = json.loads(example.read_text(encoding="utf-8"))
        # The note is the page's own.
        saved["nodes"] = [made for made in saved["nodes"] if made["type"] != "MarkdownNote"]
        prompt = workflows.to_api(saved, pair.a.object_info())
        (picture,) = (made for made in prompt.values() if made["class_type"] == "LoadImage")
        photo = ROOT / "tests" / "data" / "rocket.jpg"
        picture["inputs"]["image"] = pair.a.put_input(photo, "first-run.jpg")
        (run,) = (made for made in prompt.values() if made["class_type"] == "ZBusRun")
        assert run["inputs"]["peer"] == "any free"
        run["inputs"]["peer"] = name  # the tests' own second one is free, too
        entry = pair.a.run(prompt)
        assert pair.a.outcome(entry) == "success", pair.a.errors(entry)
        (report,) = (out["text"][0] for out in entry["outputs"].values() if "text" in out)
        assert report.startswith(f"{name}: done in ")
        assert NAME in ask
        told = do(ask.replace(NAME, name), there, env)
    assert name in told.partition("Paired:")[0]
    assert "FAIL" not in told and re.search(r"^  down +ok ", told, re.M), told
    measured(f"README's four steps: install {installed:.1f} s, the second is up {up:.1f} s later")


def test_the_workflow_of_readme_is_the_one_that_is_run():
    assert f"(example_workflows/{EXAMPLE})" in (ROOT / "README.md").read_text(encoding="utf-8")


# --- details


def commands():
    return SHELL.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def repository(folder):
    """This working tree, as a clone would get it, in a repository of its own."""
    made = folder / "origin.git"
    git = ["git", "--git-dir", str(made), "--work-tree", str(ROOT)]
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "init", "-q", "--bare", str(made)], check=True)
    subprocess.run([*git, "add", "-A"], check=True, cwd=ROOT)
    subprocess.run([*git, *who, "commit", "-q", "-m", "as it is"], check=True)
    return made.as_uri()


def do(lines, folder, env):
    """Those lines in a shell; what it prints."""
    done = subprocess.run(
        ["sh", "-e", "-c", lines],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Running:
    """A command that goes on until it is ended."""

    def __init__(self, line, folder, env):
        self._process = subprocess.Popen(
            shlex.split(line),
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self):
        return self

    def first_name(self):
        """That of the first ComfyUI in zbus-up's table."""
        watchdog = threading.Timer(120, self._process.kill)
        watchdog.start()
        said = []
        try:
            for line in self._process.stdout:
                said.append(line)
                if said[-2:-1] and said[-2].split() == ["name", "port", "device", "memory"]:
                    return line.split()[0]
        finally:
            watchdog.cancel()
        raise AssertionError("".join(said))

    def __exit__(self, *_):
        self._process.send_signal(signal.SIGTERM)
        rest, _ = self._process.communicate(timeout=40)
        assert self._process.returncode == 0 and rest.endswith("all ended\n"), rest
