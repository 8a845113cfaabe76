"""The processes of a run: two for each way, which are asked, waited for, and gone at the end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zbus

from .ways import WAYS

ROOT = Path(zbus.__file__).resolve().parent.parent
START = 90.0  # seconds for a process to be there: torch is slow where the disk is
STEP = 75.0  # for anything that it is asked: a little more than it gives itself
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
SETTLE = 0.003  # seconds from a receiver that is about to wait to one that waits
LAST = 2000  # characters of what it has said


class WayFailed(Exception):
    """A way does not work here: the text says why."""


class Absent(WayFailed):
    """What it needs is not installed."""


class Process:
    """One side, by what is asked of it."""

    def __init__(self, way: str, role: str, folder: Path) -> None:
        self.name = f"{WAYS[way].label}, {role}" if role else WAYS[way].label
        self._log = folder / f"{way}-{role}.log"
        own = {"ZBUS_HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
        own |= {"GLOO_SOCKET_IFNAME": LOOPBACK, "TP_SOCKET_IFNAME": LOOPBACK}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-B", "-m", "zbus.cli.benching.side", way, str(folder)],
                cwd=ROOT,
                env={**os.environ, **own},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C is for the one that started it
            )
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put(None)

    def tell(self, op: str, **given: Any) -> None:
        """Ask, and do not wait."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **given}).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # it has ended, or was ended
            raise WayFailed(f"{self.name}: has ended: {self._last()}") from error

    def answer(self, key: str = "done", within: float = STEP) -> Any:
        """What it answers.

        Raises:
            WayFailed: It has failed, has ended, or says nothing for so many seconds.
        """
        try:
            answer = self._answers.get(timeout=within)
        except queue.Empty:
            raise WayFailed(f"{self.name}: no answer in {within:.0f} s") from None
        if answer is None:
            raise WayFailed(f"{self.name}: has ended: {self._last()}")
        if "failed" in answer:
            raise WayFailed(f"{self.name}: {answer['failed']}")
        return answer[key]

    def ask(self, op: str, within: float = STEP, **given: Any) -> Any:
        self.tell(op, **given)
        return self.answer(within=within)

    def stop(self, on: bool) -> None:
        """Have it stand still, or go on."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, AttributeError):
                pipe.close()  # type: ignore[union-attr]

    def _last(self) -> str:
        text = self._log.read_bytes()[-LAST:].decode(errors="replace").strip()
        return text.splitlines()[-1] if text else "it said nothing"


class Pair:
    """A sender and a receiver that one way joins."""

    def __init__(self, way: str, folder: Path) -> None:
        self.way, self.known = way, WAYS[way]
        self._folder = folder
        roles = ("sender",) if self.known.alone else ("sender", "receiver")
        self._all = [Process(way, role, folder) for role in roles]
        self.sender, self.receiver = self._all[0], self._all[-1]
        self._stands = self.is_open = False
        for process in self._all:
            process.tell("load")

    def open(self) -> None:
        """Join the two.

        Raises:
            Absent: It cannot be had here.
            WayFailed: It does not work.
        """
        for process in self._all:
            if why := process.answer(within=START).get("absent"):
                raise Absent(why)
        told = {} if self.known.links else self.sender.ask("open")
        if not self.known.alone and not self.known.links:
            self.sender.tell("meet", told=self.receiver.ask("join", told=told))
            self.sender.answer()
        if self.known.together:
            for rank, process in enumerate(self._all):
                process.tell("begin", rank=rank)
            for process in self._all:
                process.answer()
        self.rest()

    def rest(self) -> None:
        """Between its own turns: one that keeps a core busy stands still."""
        if self.known.spins and hasattr(signal, "SIGSTOP"):
            self._stand(True)

    def _stand(self, on: bool) -> None:
        if self._stands != on:
            for process in self._all:
                process.stop(on)
            self._stands = on

    def wake(self) -> None:
        self._stand(False)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Meanwhile a thread on each side computes in Python."""
        for process in self._all:
            process.ask("busy", on=True)
        try:
            yield
        finally:
            for process in self._all:
                process.ask("busy", on=False)

    def prepare(self, value: str) -> None:
        self.wake()
        self.sender.ask("prepare", value=value)
        self.rest()

    def pass_on(
        self, value: str, count: int = 1, memory: str = "again", keep: bool = False
    ) -> list[float]:
        """Send it so often: the seconds of each."""
        self.wake()
        if not self.known.alone:
            given = {"count": count, "memory": memory, "value": value, "keep": keep}
            self.receiver.tell("receive", **given)
            self.receiver.answer("ready")
            time.sleep(SETTLE)
        seconds: list[float] = self.sender.ask("send", count=count)["seconds"]
        if not self.known.alone:
            self.receiver.answer()
        self.rest()
        return seconds

    def check(self) -> None:
        """That what came last is what was sent.

        Raises:
            WayFailed: It is not.
        """
        if self.known.alone:
            return
        self.wake()
        sent = self.sender.ask("digest", sent=True)["digest"]
        come = self.receiver.ask("digest", sent=False)["digest"]
        self.rest()
        if sent != come:
            raise WayFailed(f"{self.known.label}: what came is not what was sent")

    def clear(self) -> None:
        self.wake()
        for process in self._all:
            process.ask("clear")
        self.rest()

    def kill(self) -> None:
        for process in self._all:
            process.kill()


class Pairs:
    """All pairs of a run, each made when it is first needed. None outlives its block."""

    def __init__(self) -> None:
        self._made: dict[str, Pair] = {}
        self._without: dict[str, str] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="zbus-bench-")
        self._count = 0

    @property
    def absent(self) -> dict[str, str]:
        """The ways that cannot be had here, and why."""
        return dict(self._without)

    def start(self, ways: list[str]) -> None:
        """Have those that are not there yet begin, all at once."""
        for way in ways:
            if way not in self._made and way not in self._without:
                self._made[way] = Pair(way, self.folder())

        for way in ways:
            pair = self._made.get(way)
            if pair is not None and not pair.is_open:
                try:
                    pair.open()
                    pair.is_open = True
                except WayFailed as error:
                    self._without[way] = str(error)
                    self.drop(way)

    def folder(self) -> Path:
        """A new one, of this run alone."""
        self._count += 1
        made = Path(self._folder.name) / str(self._count)
        made.mkdir()
        return made

    def get(self, way: str) -> Pair | None:
        """None where that way cannot be had."""
        return self._made.get(way)

    def drop(self, way: str) -> None:
        """End that pair: the next row has a new one."""
        if (pair := self._made.pop(way, None)) is not None:
            pair.kill()

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, *_: object) -> None:
        for way in list(self._made):
            self.drop(way)
        self._folder.cleanup()
