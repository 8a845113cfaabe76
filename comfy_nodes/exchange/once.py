"""What a run's nodes have done: each does it once, however often ComfyUI computes the node.

A host that keeps no results, or gives them up when memory is short, computes a node again for
whoever reads it late. What has been received does not come twice, and a job is not given twice:
so what came of it is kept here, until nobody can ask for it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from zbus.errors import TransferRefused
from zbus.machine import free_memory
from zbus.operation import size_text

from .calling import call_each

SMALL = 1 << 20  # bytes: such a value is kept until the run ends, whatever comes
SHARE = 0.8  # of the memory that would be free without them: what larger ones may hold

Key = tuple[str, "int | None"]  # a node's id, and its place in a list that it runs for


class Came(NamedTuple):
    """What came of a node: a value, or that it is done."""

    value: Any


@dataclass
class _Kept:
    came: Came | None  # None: it has been given back
    nbytes: int | None
    give_back: Callable[[], None] | None

    @property
    def is_large(self) -> bool:
        return self.came is not None and (self.nbytes is None or self.nbytes > SMALL)


class Once:
    """What has been done in one run. Usable from any thread.

    Args:
        free: Tells the bytes of memory that are free.
    """

    def __init__(self, free: Callable[[], int] = free_memory) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._kept: dict[Key, _Kept] = {}

    def find(self, key: Key) -> Came | None:
        """What came of that node before in this run; None: it has not been computed yet.

        Raises:
            TransferRefused: Something came of it, and is kept no longer.
        """
        with self._lock:
            kept = self._kept.get(key)
        if kept is None or kept.came is not None:
            return kept and kept.came
        size = f" of {size_text(kept.nbytes)}" if kept.nbytes else ""
        raise TransferRefused(
            f"ComfyUI asks this node for its value{size} again, which could not be kept so long",
            remedy="Free memory on this side, or start this ComfyUI with --cache-classic",
        )

    def keep(
        self,
        key: Key,
        value: Any,
        nbytes: int | None = 0,
        *,
        is_wanted: Callable[[], bool] = lambda: True,
        give_back: Callable[[], None] | None = None,
    ) -> None:
        """Keep what came of a node.

        Args:
            nbytes: What it holds in memory; None: much, and it counts elsewhere.
            is_wanted: Tells, of a value that is not small, whether anybody may ask for it again.
            give_back: Called when it is kept no longer, before the run's end or at it.
        """
        fits = not nbytes or nbytes <= SMALL or (self._fits(nbytes) and is_wanted())
        with self._lock:
            self._kept[key] = _Kept(Came(value) if fits else None, nbytes, give_back)

    def _fits(self, nbytes: int) -> bool:
        held = nbytes + self.held
        return held <= SHARE * (self._free() + held)

    @property
    def held(self) -> int:
        """The bytes of the values that are kept."""
        with self._lock:
            return sum(kept.nbytes or 0 for kept in self._kept.values() if kept.came is not None)

    def let_go(self, is_wanted: Callable[[str], bool]) -> None:
        """Give back what is not small, of each node that nobody can ask for any more."""
        with self._lock:
            large = [(key, kept) for key, kept in self._kept.items() if kept.is_large]
        call_each(partial(self._drop, kept) for key, kept in large if not is_wanted(key[0]))

    def end(self) -> None:
        """The run has ended: give back everything."""
        with self._lock:
            kept, self._kept = list(self._kept.values()), {}
        call_each(partial(self._drop, each) for each in kept)

    def _drop(self, kept: _Kept) -> None:
        with self._lock:
            call, kept.came, kept.give_back = kept.give_back, None, None
        if call is not None:
            call()

    @property
    def is_holding(self) -> bool:
        """Whether there is anything that `let_go` could give back."""
        with self._lock:
            return any(kept.is_large for kept in self._kept.values())
