"""Which jobs are open, and which worker does which."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...in_time import in_time

MAX_TRIES = 2  # workers that a job may fail on
MAX_LOST = 3  # times that a worker may be lost over one job, which may be what ends it
MAX_IN_A_ROW = 3  # jobs that may fail on one worker, one after the other


@dataclass(eq=False)
class Task:
    """One job of the farm, the workers on which it has failed, and how often one was lost that
    did it."""

    number: int
    failed_on: set[str] = field(default_factory=set)
    lost: int = 0


class Board:
    """The jobs, for workers that each take the next one when they are free.

    A worker on which several jobs in a row fail is dropped: else one that lacks a model would go
    through them all in a moment. The last one stays, for then the jobs may be at fault. One that
    cannot be reached is away, and may join again.

    Attributes:
        live: The workers that can be given jobs.
        away: Those that cannot be now.
        done: The jobs that are done, and by whom.
        failed: Those that have failed for good.
        open: Those that nobody does now.
        running: Those that somebody does now.
    """

    def __init__(self, numbers: Iterable[int], workers: Iterable[str]) -> None:
        self.live = set(workers)
        self.away: set[str] = set()
        self.open = deque(Task(number) for number in numbers)
        self.running: set[Task] = set()
        self.done: dict[int, str] = {}
        self.failed: list[int] = []
        self._in_a_row: Counter[str] = Counter()
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be done."""
        return not (self.open or self.running) or not (self.live or self.away)

    @property
    def is_stuck(self) -> bool:
        """Whether all that is open waits for a worker that is away."""
        could = any(not self.live <= task.failed_on for task in self.open)
        return not self.is_over and not self.running and not could

    async def changed(self, seconds: float) -> None:
        """Wait for news of any kind, so long at most."""
        with contextlib.suppress(asyncio.TimeoutError):
            await in_time(self._changed.wait(), seconds)

    async def take(self, worker: str) -> Task | None:
        """The next job for that worker; waits while there may be one. None: it can go home."""
        while worker in self.live and (self.open or self.running):
            for task in self.open:
                if worker not in task.failed_on:
                    self.open.remove(task)
                    self.running.add(task)
                    return task
            await self._changed.wait()
        return None

    def finish(self, worker: str, task: Task) -> None:
        self.running.remove(task)
        self.done[task.number] = worker
        self._in_a_row[worker] = 0
        self._wake()

    def fail(self, worker: str, task: Task) -> bool:
        """It has failed on that worker. Whether another one tries it."""
        self.running.remove(task)
        task.failed_on.add(worker)
        self._in_a_row[worker] += 1
        others = (self.live | self.away) - task.failed_on
        again = len(task.failed_on) < MAX_TRIES and bool(others)
        if again:
            self.open.appendleft(task)
        else:
            self.failed.append(task.number)
        if self._in_a_row[worker] >= MAX_IN_A_ROW and len(self.live) > 1:
            self.drop(worker)
        self._wake()
        return again

    def drop(self, worker: str, task: Task | None = None) -> None:
        """That worker takes no more jobs; the one that it could not do goes back."""
        self.away.discard(worker)
        self._stop(worker, task)
        self._look_hopeless()

    def leave(self, worker: str, task: Task | None = None) -> None:
        """That worker cannot be reached; the job that it had goes back."""
        self.away.add(worker)
        self._stop(worker, task)

    def lose(self, worker: str, task: Task) -> bool:
        """That worker was lost while it did the job. Whether that is tried again: one that ends
        each ComfyUI (for want of memory) would do so for ever, where those are started again."""
        task.lost += 1
        if task.lost < MAX_LOST:
            self.leave(worker, task)
            return True
        self.running.remove(task)
        self.failed.append(task.number)
        self.leave(worker)
        return False

    def join(self, worker: str) -> None:
        """It can be reached again."""
        self.away.discard(worker)
        self.live.add(worker)
        self._wake()

    def give_up(self) -> None:
        """Nobody who is away is waited for any more."""
        self.away.clear()
        self._look_hopeless()

    def _stop(self, worker: str, task: Task | None) -> None:
        self.live.discard(worker)
        if task is not None:
            self.running.remove(task)
            self.open.appendleft(task)
        self._wake()

    def _look_hopeless(self) -> None:
        """What has failed on all that are left has failed for good."""
        left = self.live | self.away
        for stuck in [t for t in self.open if t.failed_on and left <= t.failed_on]:
            self.open.remove(stuck)
            self.failed.append(stuck.number)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
