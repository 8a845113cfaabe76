"""Which jobs are open, and which worker does which."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_TRIES = 2  # workers that a job may fail on
MAX_IN_A_ROW = 3  # jobs that may fail on one worker, one after the other


@dataclass(eq=False)
class Task:
    """One job of the farm, and the workers on which it has failed."""

    number: int
    failed_on: set[str] = field(default_factory=set)


class Board:
    """The jobs, for workers that each take the next one when they are free.

    A worker on which several jobs in a row fail is dropped: else one that lacks a model would go
    through them all in a moment. The last one stays, for then the jobs may be at fault.

    Attributes:
        live: The workers that can be given jobs.
        done: The jobs that are done, and by whom.
        failed: Those that have failed for good.
        open: Those that nobody does now.
        running: Those that somebody does now.
    """

    def __init__(self, numbers: Iterable[int], workers: Iterable[str]) -> None:
        self.live = set(workers)
        self.open = deque(Task(number) for number in numbers)
        self.running: set[Task] = set()
        self.done: dict[int, str] = {}
        self.failed: list[int] = []
        self._in_a_row: Counter[str] = Counter()
        self._changed = asyncio.Event()

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
        again = len(task.failed_on) < MAX_TRIES and not self.live <= task.failed_on
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
        self.live.discard(worker)
        if task is not None:
            self.running.remove(task)
            self.open.appendleft(task)
        for stuck in [t for t in self.open if t.failed_on and self.live <= t.failed_on]:
            self.open.remove(stuck)
            self.failed.append(stuck.number)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
