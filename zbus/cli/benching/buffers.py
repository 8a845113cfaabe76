"""Memory to receive into: used again, fresh, or fresh and backed with huge pages."""

from __future__ import annotations

import contextlib
import mmap

MEMORIES = ("again", "fresh", "huge")


class Buffers:
    """Hands out memory for one value after the other; the last one's is given up with the next."""

    def __init__(self) -> None:
        self._last: memoryview | None = None

    def take(self, size: int, memory: str) -> memoryview:
        """`size` writable bytes. `memory` is one of `MEMORIES`."""
        last = self._last
        if memory == "again" and last is not None and len(last) == size:
            return last
        self._last = last = None
        self._last = mapped(size, memory == "huge")
        return self._last

    def drop(self) -> None:
        self._last = None


def mapped(size: int, huge: bool) -> memoryview:
    """Fresh memory of the system's; huge pages are asked for only where the system has them."""
    made = mmap.mmap(-1, max(1, size))
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if huge and advice is not None:
        with contextlib.suppress(OSError):
            made.madvise(advice)
    return memoryview(made)[:size]


def has_huge_pages() -> bool:
    return hasattr(mmap, "MADV_HUGEPAGE")
