"""The work of `scripts/demo`: set up, then run the exchange in the environment made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import _setup
from _setup import SetupError, say

USAGE = """usage: scripts/demo [PHOTO]

Starts two real ComfyUI processes on the CPU and passes texts and a photograph (PHOTO, or the one
that comes with the tests) between two running workflows; then one runs jobs on the other. Leaves
nothing running.
"""


def main(arguments: list[str]) -> int:
    if any(a.startswith("-") for a in arguments) or len(arguments) > 1:
        print(USAGE)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    os.environ["ZBUS_REQUIRE_COMFYUI"] = "1"
    try:
        env = _setup.prepare()
    except SetupError as error:
        say(f"set-up failed: {error}")
        return 2
    exchange = Path(__file__).with_name("_exchange.py")
    command = [str(env.python), "-B", str(exchange), *arguments]
    if os.name == "nt":
        return subprocess.call(command, env=env.variables())
    # In this process's place, so that a Ctrl-C or a kill meets the one that cleans up.
    return os.execve(command[0], command, env.variables())


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
