"""One side of a comparison: a process that does what it is told, one line of JSON each.

It ends when its input does: with whoever has started it, however that ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ...values.tensors import torch_module
from . import values, ways
from .ways.way import LIMIT, Way

PR_SET_PDEATHSIG = 1  # prctl(2)
EVERY = 0.002  # seconds between samples


class Side:
    """What the lines ask for. `say` writes an answer."""

    def __init__(self, name: str, folder: Path, say: Callable[[dict[str, Any]], None]) -> None:
        self._name, self._folder, self._say = name, folder, say
        self._way: Any = None
        self._kept: list[Any] = []
        self._busy: threading.Event | None = None
        self._with_torch = False

    @property
    def way(self) -> Any:
        """A `ways.way.Way`; some can do more."""
        assert isinstance(self._way, Way)
        return self._way

    # --- the link

    def op_load(self) -> dict[str, Any]:
        """{"absent": why} where there is no such way here."""
        if why := ways.missing(self._name):
            return {"absent": why}
        self._way = ways.load(self._name, self._folder)
        self._with_torch = self._way.with_torch and _has_torch()
        return {}

    def op_open(self) -> dict[str, Any]:
        return dict(self.way.open())

    def op_join(self, told: dict[str, Any]) -> dict[str, Any]:
        return dict(self.way.join(told))

    def op_meet(self, told: dict[str, Any]) -> dict[str, Any]:
        self.way.meet(told)
        return {}

    def op_begin(self, rank: int) -> dict[str, Any]:
        self.way.begin(rank)
        return {}

    # --- values

    def op_prepare(self, value: str) -> dict[str, Any]:
        """Make the value that is sent from now on."""
        self._value = values.make(value, self._with_torch)
        self.way.prepare(self._value)
        gc.collect()
        return {}

    def op_send(self, count: int, at: float | None = None) -> dict[str, Any]:
        """Send it so often; the seconds of each, and by the machine's clock the begin and end."""
        seconds, send, clock = [], self.way.send, time.perf_counter
        if at is not None:
            time.sleep(max(0.0, at - time.monotonic()))
        began = time.monotonic()
        for _ in range(count):
            start = clock()
            send()
            seconds.append(clock() - start)
        return {"seconds": seconds, "began": began, "ended": time.monotonic()}

    def op_receive(self, count: int, memory: str, value: str, keep: bool) -> dict[str, Any]:
        """Receive it so often. What is kept stays until `op_clear`."""
        self.way.expected = value
        receive, got = self.way.receive, None
        if not keep:
            self._kept.clear()
        self._say({"ready": True})
        for _ in range(count):
            got = None  # or a bus that uses memory again could not
            got = receive(memory)
        self._kept.append(got)
        return {}

    def op_digest(self, sent: bool) -> dict[str, Any]:
        return {"digest": values.digest(self._value if sent else self._kept[-1])}

    def op_drop(self) -> dict[str, Any]:
        """Give up what has come, or giving it up would count with what comes next: 2 GiB take the
        system 60 ms, under the GIL."""
        self._kept.clear()
        return {}

    def op_clear(self) -> dict[str, Any]:
        self._kept.clear()
        self._value = None
        self.way.clear()
        gc.collect()
        return {}

    def op_call(self, method: str, given: dict[str, Any]) -> Any:
        """What this way alone can do."""
        return getattr(self.way, f"do_{method}")(**given)

    # --- beside them

    def op_watch(self, what: str) -> dict[str, Any]:
        """Have a thread take samples: "pings" (seconds), "turns" (seconds that the I/O thread takes
        to answer), "memory" (bytes that this process holds)."""
        self._watch = Watch(getattr(self, f"_{what}")())
        return {}

    def op_seen(self) -> list[float]:
        """What it has seen since."""
        return self._watch.end()

    def _pings(self) -> Callable[[], float]:
        probe = self.way.probe()
        return lambda: float(probe.ping(LIMIT))

    def _turns(self) -> Callable[[], float]:
        counters = self.way.peer.counters

        def turn() -> float:
            began = time.perf_counter()
            counters()
            return time.perf_counter() - began

        return turn

    def _memory(self) -> Callable[[], float]:
        return resident

    def op_busy(self, on: bool) -> dict[str, Any]:
        """A thread that computes in Python, and holds the GIL as any does."""
        if self._busy is not None:
            self._busy.set()
            self._busy = None
        if on:
            self._busy = threading.Event()
            threading.Thread(target=_compute, args=(self._busy,), daemon=True).start()
        return {}

    def op_usage(self) -> dict[str, Any]:
        """Seconds of processor time so far, and the bytes of memory that it holds."""
        return {"cpu": time.process_time(), "resident": resident()}


class Watch:
    """A thread that takes a sample every 2 ms."""

    def __init__(self, look: Callable[[], float]) -> None:
        self._look, self._ended = look, threading.Event()
        self._seen: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(EVERY):
            self._seen.append(self._look())

    def end(self) -> list[float]:
        """What was seen: once at least."""
        self._ended.set()
        self._thread.join(LIMIT)
        return self._seen or [self._look()]


def resident() -> float:
    """Bytes of memory that this process holds; 0 where the system does not tell in /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _has_torch() -> bool:
    try:
        torch_module()
    except ImportError:
        return False
    return True


def _compute(stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        for _ in range(10_000):
            number = (number * 7 + 1) % 1_000_003


def main() -> None:
    """`python -m zbus.cli.benching.side WAY FOLDER`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    _end_with_parent()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, lines), daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    side = Side(sys.argv[1], Path(sys.argv[2]), say)
    while True:
        asked = json.loads(lines.get())
        try:
            say({"done": getattr(side, f"op_{asked.pop('op')}")(**asked)})
        except Exception as error:
            traceback.print_exc()
            say({"failed": f"{type(error).__name__}: {error}"})


def _read(source: TextIO, lines: queue.SimpleQueue[str]) -> None:
    for line in source:
        lines.put(line)
    os._exit(0)  # whatever it does, or waits for


def _end_with_parent() -> None:
    """Also where this process is stopped at that moment, and would not see its input end."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    main()
