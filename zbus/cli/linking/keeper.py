"""Keeps one ssh for as long as zbus-link lives: ``python keeper.py FOLDER COMMAND...``.

A process of its own, run by its path, with the standard library alone. Its input is a pipe whose
other end only zbus-link holds: what stands there up to a NUL is given to ssh, and whatever ends
zbus-link, SIGKILL too, ends that pipe, and this ends ssh. ssh's output and errors are this one's.
It says the process id of ssh in its first line, and ends with ssh's exit status. FOLDER is removed
then, unless it is "": ssh's socket was in it.

Unlike the keeper of zbus-up it stays in the terminal's session: ssh may have to ask for a password.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

GRACE = 2.0  # seconds that ssh has to take its socket away
NOT_FOUND = 127  # as shells say it
END = b"\0"


def main(arguments: list[str]) -> int:
    """Run ssh until it ends or zbus-link does; returns its exit status."""
    folder, *command = arguments
    try:
        return _keep(command)
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _keep(command: list[str]) -> int:
    # Not an Event: only this kind of queue may be put to in a signal handler.
    happened: SimpleQueue[str] = SimpleQueue()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: happened.put("told to end"))
    given = _given()
    if given is None:
        return 0
    try:
        ssh = subprocess.Popen(command, stdin=subprocess.PIPE if given else subprocess.DEVNULL)
    except OSError as error:
        _say(1, "0")
        _say(2, f"{command[0]} cannot be run: {error.strerror}")
        return NOT_FOUND
    _say(1, str(ssh.pid))
    # Each in a thread of its own: an ssh that does not read holds nothing else up.
    for work in (ssh.wait, _input_ends):
        threading.Thread(target=_then, args=(work, happened), daemon=True).start()
    if given:
        threading.Thread(target=_give, args=(ssh, given), daemon=True).start()
    happened.get()
    return _end(ssh)


def _given() -> bytes | None:
    """What ssh is to read; None if zbus-link has ended by now."""
    given = b""
    while END not in given:
        more = os.read(0, 65536)
        if not more:
            return None
        given += more
    return given.partition(END)[0]


def _give(ssh: subprocess.Popen[bytes], given: bytes) -> None:
    assert ssh.stdin is not None
    with contextlib.suppress(OSError):
        ssh.stdin.write(given)
    with contextlib.suppress(OSError):
        ssh.stdin.close()


def _input_ends() -> None:
    # Not sys.stdin: a reader blocked in its buffer would hold up the interpreter's shutdown.
    while os.read(0, 4096):
        pass


def _then(wait: Callable[[], object], happened: SimpleQueue[str]) -> None:
    wait()
    happened.put("")


def _say(where: int, text: str) -> None:
    with contextlib.suppress(OSError):  # nobody is left who listens
        os.write(where, f"{text}\n".encode())


def _end(ssh: subprocess.Popen[bytes]) -> int:
    if ssh.poll() is None:
        ssh.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            ssh.wait(GRACE)
        ssh.kill()
    status = ssh.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
