"""Memory of large tensors that came in and were dropped again, kept a while for the next ones.

Fresh memory is slow: the system clears and maps it page by page while it is filled, which takes
longer than the bytes do. A workflow that runs again wants the same sizes again.

Nothing is kept while memory is short: a host that gives up its results for want of memory looks
whether that has helped, and would go on with others.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..machine import FreeMemory

if TYPE_CHECKING:
    import torch

LARGE = 1 << 20  # bytes; smaller ones are not worth it
MOST = 512 << 20  # bytes kept, all together
KEPT = 60.0  # seconds
SWEEP_EVERY = 5.0
LOOK_EVERY = 1.0  # while some is kept
RESERVE = 2 << 30  # bytes that are to be free beside what is kept
SLACK = 1.25  # how much larger than asked for a kept one may be


class Recycler:
    """Hands out memory, and takes it back when the last tensor on it is gone.

    Args:
        free: Tells the bytes of memory that are free.

    Attributes:
        reserve: The bytes under which memory is short.
    """

    def __init__(self, free: Callable[[], int] | None = None) -> None:
        self.reserve = RESERVE
        self._free = free or FreeMemory()
        self._closed_until = 0.0
        self._lock = threading.Lock()
        self._kept: list[tuple[float, torch.Tensor]] = []  # (since, memory), the oldest first
        # What comes back comes from the garbage collector, at any moment and in any thread: it is
        # only put down here.
        self._returned: deque[torch.Tensor] = deque()
        self._lent = 0  # pieces
        self._now = 0.0

    def take(self, module: Any, nbytes: int) -> torch.Tensor:
        """A uint8 tensor of so many bytes, whatever they are. `module` is torch."""
        memory = self._find(nbytes)
        if memory is None:
            try:
                memory = module.empty(nbytes, dtype=module.uint8)
            except BaseException:
                self._lent -= 1
                raise
        view = memory.numpy()[:nbytes]  # lives as long as any tensor on it
        weakref.finalize(view, self._give_back, memory).atexit = False
        made: torch.Tensor = module.from_numpy(view)
        return made

    def _give_back(self, memory: torch.Tensor) -> None:
        self._lent -= 1
        if sys.is_finalizing():  # what would tell how much is free may be gone already
            return
        waiting = sum(piece.numel() for piece in list(self._returned))
        if waiting < MOST and time.monotonic() >= self._closed_until and not self._is_short():
            self._returned.append(memory)

    def _is_short(self) -> bool:
        return self._free() < self.reserve

    def relieve(self) -> None:
        """Let go of all that is kept, if memory is short."""
        if (self._kept or self._returned) and self._is_short():
            self.let_go()

    def let_go(self, seconds: float = 0.0) -> None:
        """Let go of all that is kept, and keep nothing for so long."""
        self._closed_until = max(self._closed_until, time.monotonic() + seconds)
        with self._lock:
            self._kept.clear()
            self._returned.clear()

    def _find(self, nbytes: int) -> torch.Tensor | None:
        with self._lock:
            self._lent += 1
            self._collect()
            fitting = [m for _, m in self._kept if nbytes <= m.numel() <= nbytes * SLACK]
            if not fitting:
                return None
            best = min(fitting, key=lambda memory: memory.numel())
            self._kept = [kept for kept in self._kept if kept[1] is not best]
            return best

    def _collect(self) -> None:
        while self._returned:
            self._kept.append((self._now, self._returned.popleft()))
        while sum(memory.numel() for _, memory in self._kept) > MOST:
            del self._kept[0]

    def sweep(self, now: float) -> float | None:
        """Let go of what nobody wanted, and of all where memory is short; returns when to look
        again."""
        self.relieve()
        with self._lock:
            self._now = now
            self._collect()
            self._kept = [kept for kept in self._kept if now - kept[0] < KEPT]
            if self._kept:
                return now + LOOK_EVERY
            return now + SWEEP_EVERY if self._lent > 0 else None


RECYCLER = Recycler()
