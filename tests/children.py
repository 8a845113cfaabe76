"""Other processes for tests: peers that can be stopped and killed, and what is known of them."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import spilled

ROOT = Path(__file__).resolve().parent.parent


def slowness() -> float:
    """How many times as long as on an idle machine things may take, beside what else this one
    does: a factor of at least 1, for bounds of what is promised."""
    if not hasattr(os, "getloadavg"):
        return 1.0  # Windows
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def until(
    condition: Callable[[], Any], within: float = 10.0, what: str | Callable[[], object] = ""
) -> Any:
    """Poll until `condition` is true; its value. Fails after `within` seconds (more on a machine
    that is busy), and says `what`.

    For what happens in another thread or process, which has nothing that could be awaited.
    """
    started = time.monotonic()
    while not (value := condition()):
        if time.monotonic() > started + within * slowness():
            raise AssertionError(f"not in {within} s: {what() if callable(what) else what}")
        time.sleep(0.005)
    return value


class Child:
    """A Python process that runs `code`, with zbus and the tests' folder importable.

    Each line that it prints can be waited for with `line`.
    """

    def __init__(self, code: str, *arguments: object, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-c", textwrap.dedent(code), *map(str, arguments)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
                **(env or {}),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        self.pid = self.process.pid
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def line(self, contains: str = "", within: float = 60.0) -> str:
        """The next line with `contains` in it. Beside other tests a process starts slowly."""
        deadline = time.monotonic() + within
        while True:
            left = deadline - time.monotonic()
            try:
                line = self._queue.get(timeout=max(0.0, left))
            except queue.Empty:
                line = None
            assert line is not None, f"no {contains!r} from the child, but: {self.lines[-20:]}"
            self.lines.append(line)
            if contains in line:
                return line

    def rest(self, within: float = 20.0) -> str:
        """All it prints until it ends."""
        self.process.wait(within)
        self._reader.join(within)
        while (line := self._queue.get()) is not None:
            self.lines.append(line)
        return "\n".join(self.lines)

    def tell(self, line: str) -> None:
        """Write a line to its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def cpu(self) -> float:
        """Seconds of processor time that it has used."""
        stat = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Bytes of memory that it holds."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        """SIGSTOP, and wait until every thread of it stands."""
        self.signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        until(lambda: all(_state(task) == "T" for task in tasks.iterdir()), what="stopped")

    def kill_alone(self) -> None:
        """As `kill`, where children of it may hold its output open."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(10)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(10)
        self._reader.join(10)
        spilled.check("\n".join(self.lines), "what a child has said")
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def child(code: str, *arguments: object, env: dict[str, str] | None = None) -> Iterator[Child]:
    """A `Child` that is gone afterwards, whatever happens."""
    made = Child(code, *arguments, env=env)
    try:
        yield made
    finally:
        made.kill()


LISTENER = """
    import sys
    from zbus import Peer
    peer = Peer("listener")
    channel = peer.listen(sys.argv[1])
    print("listening", channel.address, flush=True)
    sys.stdin.read()
"""
