"""One ssh, and the keeper that ends it when this program ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO

from ...printable import shown
from ..linking import keeper

ENDING = keeper.GRACE + 3.0
MAX_OUTPUT = 1 << 20  # bytes of one command
KEPT_LINES = 40  # of what ssh complains of
MAX_LINE = 300


class Process:
    """One ssh, and the keeper that ends it when this program ends.

    Args:
        command: Its words.
        given: What it is to read.
        hear: Told each line of its complaints, in another thread.
        folder: Removed when it has ended, whatever ends this program; "": none.
    """

    def __init__(
        self,
        command: Sequence[str],
        given: str = "",
        hear: Callable[[str], None] | None = None,
        folder: str = "",
    ) -> None:
        self.hears = hear is not None
        self._hear = hear
        self._output, self._lines = bytearray(), deque[str](maxlen=KEPT_LINES)
        self._process = subprocess.Popen(
            # By its path, and apart from the user's site: it needs nothing but Python.
            [sys.executable, "-I", "-B", keeper.__file__, folder, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._readers = [
            threading.Thread(target=work, args=(pipe,), daemon=True)
            for work, pipe in (
                (self._read_output, self._process.stdout),
                (self._read_errors, self._process.stderr),
            )
        ]
        for reader in self._readers:
            reader.start()
        with contextlib.suppress(OSError):
            self._process.stdin.write(given.encode() + keeper.END)
            self._process.stdin.flush()  # and not closed: its end would end ssh

    @property
    def status(self) -> int:
        """Its exit status, once it has ended."""
        return self._process.returncode

    def wait(self, within: float) -> bool:
        """Wait for that time at most; whether it has ended."""
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        if self.status < 0:  # the keeper was killed, and could not end it
            self._kill()
        for reader in self._readers:
            reader.join(1.0)
        return True

    def output(self) -> str:
        """What it has said, up to a limit."""
        return bytes(self._output).partition(b"\n")[2].decode(errors="replace")

    def lines(self) -> list[str]:
        """What it has complained of."""
        return list(self._lines)

    def end(self) -> None:
        """End it, if it has not."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if not self.wait(ENDING):
            self._process.kill()
            self.wait(ENDING)

    close = end

    def _kill(self) -> None:
        first = bytes(self._output[:20]).partition(b"\n")[0]
        if os.name == "posix" and first.isdigit() and int(first):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(first), signal.SIGKILL)

    def _read_output(self, pipe: IO[bytes]) -> None:
        with pipe:
            while more := pipe.read1(65536):  # type: ignore[attr-defined]
                self._output += more[: MAX_OUTPUT - len(self._output)]

    def _read_errors(self, pipe: IO[bytes]) -> None:
        with pipe:
            while line := pipe.readline(4096):
                text = shown(line.decode(errors="replace"), MAX_LINE)
                if text:
                    self._lines.append(text)
                    if self._hear is not None:
                        self._hear(text)
