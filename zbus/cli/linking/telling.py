"""What zbus-link says: lines and a state for people, or JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from ...errors import ZBusError
from ...printable import printable, shown

ERASE = "\r\x1b[K"


class Teller:
    """Says it.

    Args:
        as_json: One JSON object a line, and nothing else on the standard output.
    """

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._live = not as_json and sys.stdout.isatty()
        self._shows = False  # a state stands in the terminal's last line
        self._lock = threading.Lock()  # ssh is heard in threads of its own
        self._since = 0.0
        self._noted = ""

    def say(self, event: str, text: str, **more: Any) -> None:
        """Something has happened."""
        if self._json:
            print(json.dumps({"event": event, **more}), flush=True)
        else:
            self._line(text, sys.stdout)

    def hear(self, line: str) -> None:
        """A word of ssh, which may ask."""
        with self._lock:
            print(printable(line, sys.stderr), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self._line(text, sys.stderr)

    def note(self, text: str) -> None:
        """As `warn`, but the same only once."""
        if text != self._noted:
            self._noted = text
            self.warn(text)

    def fail(self, error: ZBusError) -> None:
        if self._json:
            kind = type(error).__name__
            self.say("failed", "", error=kind, what=error.what, remedy=error.remedy)
        self.warn(str(error))

    def up(self, peers: Sequence[dict[str, Any]], first: bool) -> None:
        """The link stands."""
        self._since, self._noted = time.monotonic(), ""
        told = [{key: peer[key] for key in ("name", "address", "there")} for peer in peers]
        self.say("up", "link up" if first else "link up again", peers=told)
        if self._json or not first:
            return
        rows = [("name", "address", "there"), *(tuple(peer.values()) for peer in told)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        print(printable("\n".join(["", *lines, ""]), sys.stdout), flush=True)
        self._line("in nodes give the name as peer; Ctrl-C ends the link", sys.stdout)

    def lost(self, problem: ZBusError, delay: float) -> None:
        """It is to be made anew."""
        what = shown(problem.what)
        text = f"link lost, trying again in {delay:g} s: {what}"
        self.say("lost", text, error=what, remedy=problem.remedy, again=delay)

    def status(self, peers: Sequence[tuple[str, float | None]]) -> None:
        """How it is now, in one line that changes."""
        if not self._live:
            return
        seconds = int(time.monotonic() - self._since)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        states = [f"{name} {'...' if ms is None else f'{ms * 1000:.0f} ms'}" for name, ms in peers]
        text = f"up {clock}  {',  '.join(states)}"
        with self._lock:
            width = shutil.get_terminal_size().columns - 1
            print(ERASE + printable(text, sys.stdout)[:width], end="", flush=True)
            self._shows = True

    def _line(self, text: str, file: Any) -> None:
        with self._lock:
            if self._shows:
                print(ERASE, end="", flush=True)
                self._shows = False
            print(printable(f"zbus-link: {text}", file), file=file, flush=True)
