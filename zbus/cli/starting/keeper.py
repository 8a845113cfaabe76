"""Keeps one ComfyUI for as long as zbus-up lives: ``python keeper.py LOG COMMAND...``.

A process of its own, run by its path, with the standard library alone. Its input is a pipe whose
other end only zbus-up holds: whatever ends zbus-up, SIGKILL too, ends that pipe, and this ends
the ComfyUI and what that has started. It says "pid N" once, and "ended STATUS" at last.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

GRACE = 5.0  # seconds that ComfyUI has after a Ctrl-C
KILL_TIME = 5.0  # seconds that a killed process may take to go
NOT_FOUND = 127  # as shells say it
DETACHED = 0x00000200  # Windows: CREATE_NEW_PROCESS_GROUP, which no Ctrl-C reaches
NO_WINDOW = 0x08000000  # Windows: CREATE_NO_WINDOW


def main(arguments: list[str]) -> int:
    """Run the command until it ends or zbus-up does; returns 0."""
    log, *command = arguments
    # Not an Event: only this kind of queue may be put to in a signal handler.
    happened: SimpleQueue[str] = SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        # A handler, and not "ignore": what is ignored here stays so in the command.
        signal.signal(number, lambda *_: happened.put("told to end"))
    try:
        worker = _start(command, log)
    except OSError as error:
        _note(log, f"{command[0]} cannot be run: {error}")
        _say(f"ended {NOT_FOUND}")
        return 0
    _say(f"pid {worker.pid}")
    for wait in (worker.wait, _input_ends):
        threading.Thread(target=_then, args=(wait, happened), daemon=True).start()
    happened.get()
    _say(f"ended {_end(worker)}")
    return 0


def kill(pid: int) -> None:
    """End that process, which leads its group, and all that is left of the group."""
    if sys.platform == "win32":
        command = ["taskkill", "/T", "/F", "/PID", str(pid)]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=KILL_TIME, creationflags=NO_WINDOW)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _start(command: list[str], log: str) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(worker: subprocess.Popen[bytes]) -> int | None:
    """Ctrl-C first, of which ComfyUI says goodbye to its peers. Its exit status."""
    if worker.poll() is None and os.name == "posix":
        worker.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(GRACE)
    kill(worker.pid)
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(KILL_TIME)
    return worker.returncode


def _input_ends() -> None:
    # Not sys.stdin: a reader blocked in its buffer would hold up the interpreter's shutdown.
    while os.read(0, 4096):
        pass


def _then(wait: Callable[[], object], happened: SimpleQueue[str]) -> None:
    wait()
    happened.put("")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody is left who listens
        os.write(1, f"{text}\n".encode())


def _note(log: str, text: str) -> None:
    with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
