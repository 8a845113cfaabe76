"""The work of `scripts/test`: set up, then ruff, mypy and pytest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import _setup
from _setup import ROOT, Env, SetupError, say

USAGE = """usage: scripts/test [--fast] [--no-lint] [--stress] [--late=N] [pytest's own arguments]

  --fast      leave out the tests that need real ComfyUI processes
  --no-lint   leave out ruff and mypy
  --stress    what takes long, and nothing else (ZBUS_STRESS_SEED=N repeats a stress)
  --bench     nothing but this: zbus beside what one would take instead (zbus-bench --quick); fails
              where a ratio to a yardstick is far from what it was. Wants the machine for itself
  --late=N    zbus's threads come late, at random (seed N): who counts on being fast fails

The whole suite runs in two processes, one of which has all the tests on ComfyUIs; with --fast in
three. A part of it, or what pytest is to show as it goes (-s, --pdb), runs in one, and with "-n 0"
everything does.

COMFYUI_DIR=FOLDER takes that ComfyUI in place of a downloaded one, with the packages that it lists
or, with COMFYUI_PYTHON=PROGRAM, with its own Python as it is; what is missing there is told first.
COMFYUI_DIR_2 (and COMFYUI_PYTHON_2) names one of another version, to be tried with the first.

examples:  scripts/test -k session      scripts/test tests/test_links.py -x
"""
PROCESSES = {False: 2, True: 3}  # fast? Most of the time a test waits; ComfyUIs need much of a core
IN_ONE = ("--stress", "-s", "--capture=no", "--pdb", "--trace", "--collect-only", "--co")


def main(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(USAGE)
        return 0
    fast, lint = "--fast" in arguments, "--no-lint" not in arguments
    passed_on = [a for a in arguments if a not in ("--fast", "--no-lint")]
    try:
        env = _setup.prepare(with_comfyui=not fast and "--bench" not in arguments)
    except SetupError as error:
        say(f"set-up failed: {error}")
        return 2
    if "--bench" in arguments:
        return _bench(env, [a for a in passed_on if a != "--bench"])
    failed = _lint(env) if lint else []
    status = _pytest(env, fast, passed_on)
    if failed:
        # After pytest's closing lines, or a red lint would scroll away unseen.
        say(f"FAILED: {', '.join(failed)} (see above, before the tests)")
    return status or (1 if failed else 0)


def _bench(env: Env, arguments: Sequence[str]) -> int:
    """Compare ratios, never times."""
    return _step(env, ["zbus", "bench", "--quick", "--guard", *arguments])


def _lint(env: Env) -> list[str]:
    """Run the linters; return the names of those that failed."""
    cache = _setup.cache_root()
    checks = {
        "ruff": ["ruff", "check", "--cache-dir", str(cache / "ruff"), "."],
        "mypy": ["mypy", "--strict", "--cache-dir", str(cache / "mypy"), "zbus"],
    }
    return [name for name, command in checks.items() if _step(env, command)]


def _pytest(env: Env, fast: bool, arguments: Sequence[str]) -> int:
    tests = ROOT / "tests"
    command = ["pytest", "-c", str(tests / "pytest.ini"), "--rootdir", str(tests)]
    # pytest's own notes stay out of the source tree.
    command += ["-o", f"cache_dir={_setup.cache_root() / 'pytest'}"]
    if fast:
        command.append("--no-comfyui")
    if not any(_names_tests(a) for a in arguments):
        command.append("tests")
        if not any(_wants_one_process(a) for a in arguments):
            command += ["-n", str(PROCESSES[fast])]
    return _step(env, [*command, *arguments])


def _wants_one_process(argument: str) -> bool:
    return argument in IN_ONE or argument.startswith(("-k", "-m", "-n", "--numprocesses"))


def _names_tests(argument: str) -> bool:
    return not argument.startswith("-") and Path(ROOT, argument.partition("::")[0]).exists()


def _step(env: Env, command: Sequence[str]) -> int:
    say(" ".join(["python -m", *command]).replace(str(ROOT), "."))
    started = time.monotonic()
    status = subprocess.call(
        [str(env.python), "-m", *command],
        cwd=ROOT,
        env=env.variables(),
        stdin=subprocess.DEVNULL,
    )
    if command[0] in ("ruff", "mypy"):
        say(f"{command[0]}: {'FAILED' if status else 'clean'}, {time.monotonic() - started:.0f} s")
    return status


if __name__ == "__main__":
    # A terminated test run ends pytest as well, and with it the ComfyUIs that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        os._exit(130)
