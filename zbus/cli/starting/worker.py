"""One ComfyUI that zbus-up has started, with its keeper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...discovery import Entry
from ...printable import shown
from ..starting import keeper
from .devices import Device

LAST_LINES = 15  # of a log that a person gets to see
LAST_BYTES = 32 * 1024
MAX_LINE = 300
FIRST_DELAY, MAX_DELAY = 1.0, 60.0  # seconds before it is started again
STEADY = 60.0  # seconds after which an end is not one of a row

Tell = Callable[["Worker", str], None]


@dataclass(eq=False)
class Worker:
    """One ComfyUI, and how far it is: not running, starting, up.

    Attributes:
        port: Of its page.
        device: What it computes with.
        command, variables: How it is started.
        folder: Its own.
        entry: How it is found, once it is.
        asked: The question that it must answer to be up.
        facts: What it has answered; it is up. None: it is not.
        why: Why it is being ended, or will not come again.
        again: When it is to be started again; None: not.
    """

    port: int
    device: Device
    command: list[str]
    variables: Mapping[str, str]
    folder: Path
    entry: Entry | None = None
    asked: Future[dict[str, Any]] | None = None
    facts: dict[str, Any] | None = None
    why: str = ""
    again: float | None = None
    pid: int = 0
    was_up: bool = False
    _began: float = 0.0
    _status: int | None = None
    _delay: float = FIRST_DELAY
    _keeper: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        name = self.entry.name if self.entry else "ComfyUI"
        return f"{name} (port {self.port}, {self.device})"

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    @property
    def runs(self) -> bool:
        """Whether its process is there, or has not been seen to end."""
        return self._keeper is not None

    @property
    def age(self) -> float:
        """Seconds since it was started last."""
        return time.monotonic() - self._began

    def start(self, tell: Tell) -> None:
        """Start it. `tell` is called in another thread with each word of the keeper, for
        `heard`."""
        self.entry = self.asked = self.facts = self.again = self._status = None
        self.why, self.pid, self._began = "", 0, time.monotonic()
        self._keeper = subprocess.Popen(
            # By its path, and apart from the user's site: it needs nothing but Python.
            [sys.executable, "-I", "-B", keeper.__file__, str(self.log), *self.command],
            stdin=subprocess.PIPE,  # never written to: its end is what the keeper waits for
            stdout=subprocess.PIPE,
            env={**os.environ, **self.variables},
            start_new_session=True,  # a terminal's Ctrl-C is for zbus-up alone
            creationflags=keeper.DETACHED if os.name == "nt" else 0,
        )
        reader = threading.Thread(target=self._read, args=(self._keeper, tell), daemon=True)
        reader.start()

    def heard(self, line: str) -> bool:
        """The keeper has said this; "" at its end. Whether ComfyUI has ended."""
        word, _, number = line.partition(" ")
        if word == "pid":
            self.pid = int(number)
        elif word == "ended":
            self._status = int(number) if number != "None" else None
        elif not line and self._keeper is not None:
            if self._status is None and self.pid:  # the keeper was killed: nobody else is left
                keeper.kill(self.pid)
            self.end()
            self._keeper.wait()
            self._keeper = None
            return True
        return False

    def end(self) -> None:
        """Have it ended: Ctrl-C, and killed where that does not help."""
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        if self.runs and self.pid:
            keeper.kill(self.pid)

    def start_later(self) -> float:
        """Have it started again, after a while: longer each time that it ends soon. Returns the
        seconds until then."""
        if self.age > STEADY:
            self._delay = FIRST_DELAY
        delay, self._delay = self._delay, min(2 * self._delay, MAX_DELAY)
        self.again = time.monotonic() + delay
        return delay

    def ended(self) -> str:
        """How it has ended, in words."""
        if self._status is None:
            return "was ended, since its keeper was killed"
        if self._status >= 0:
            return f"ended with exit status {self._status}"
        try:
            return f"was killed by {signal.Signals(-self._status).name}"
        except ValueError:
            return f"was killed by signal {-self._status}"

    def last_lines(self) -> list[str]:
        """The end of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        lines = [shown(line, MAX_LINE) for line in text.splitlines()]
        return [line for line in lines if line][-LAST_LINES:]

    def _read(self, process: subprocess.Popen[bytes], tell: Tell) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                tell(self, line.decode(errors="replace").strip())
        tell(self, "")
