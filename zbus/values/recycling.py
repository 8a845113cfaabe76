"""Memory of large tensors that came in and were dropped again, kept a while for the next ones.

Fresh memory is slow: the system clears and maps it page by page while it is filled, which takes
longer than the bytes do. A workflow that runs again wants the same sizes again.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LARGE = 4 << 20  # bytes; smaller ones are not worth it
MOST = 512 << 20  # bytes kept, all together
KEPT = 60.0  # seconds
SWEEP_EVERY = 30.0
SLACK = 1.25  # how much larger than asked for a kept one may be


class Recycler:
    """Hands out memory, and takes it back when the last tensor on it is gone."""

    def __init__(self) -> None:
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
            memory = module.empty(nbytes, dtype=module.uint8)
        view = memory.numpy()[:nbytes]  # lives as long as any tensor on it
        weakref.finalize(view, self._give_back, memory).atexit = False
        made: torch.Tensor = module.from_numpy(view)
        return made

    def _give_back(self, memory: torch.Tensor) -> None:
        self._lent -= 1
        if sum(waiting.numel() for waiting in list(self._returned)) < MOST:
            self._returned.append(memory)

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
        """Let go of what nobody wanted; returns when to look again."""
        with self._lock:
            self._now = now
            self._collect()
            self._kept = [kept for kept in self._kept if now - kept[0] < KEPT]
            return now + SWEEP_EVERY if self._kept or self._lent > 0 else None


RECYCLER = Recycler()
