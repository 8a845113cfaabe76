"""Fresh memory in huge pages, where this machine is quicker to give those.

The system clears and maps fresh memory page by page, at the first write to each, and for large
tensors this takes longer than the bytes do. A huge page is one such step in place of 512. But one
may have to be put together first, or be fetched from a hypervisor; so it is measured, once.
"""

from __future__ import annotations

import mmap
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

HUGE = 2 << 20  # bytes
TRIED = 2 << 20  # bytes whose first writes are timed, a few milliseconds in all
TRIES = 2
WORTH = 0.8  # of the time that small ones take
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Memory = np.ndarray[Any, np.dtype[np.uint8]]


def allocate(nbytes: int) -> Memory | None:
    """So many bytes of fresh memory, in huge pages; None where those are not faster, and for less
    than one of them.

    Raises:
        MemoryError: The system does not give that much.
    """
    return _mapped(nbytes, huge=True) if nbytes >= HUGE and are_faster() else None


@cache
def are_faster() -> bool:
    """Whether huge pages are had sooner than small ones. Measured at the first call."""
    if sys.platform != "linux" or not _may_be_asked_for():
        return False
    try:
        took = [(_touch(huge=True), _touch(huge=False)) for _ in range(TRIES)]
    except (MemoryError, OSError):  # no such pages in this kernel
        return False
    return min(huge for huge, _ in took) < WORTH * min(small for _, small in took)


def _may_be_asked_for() -> bool:
    try:
        return "[never]" not in _ENABLED.read_text()
    except OSError:
        return False


def _touch(huge: bool) -> float:
    """The seconds that the first writes to fresh memory take."""
    memory = _mapped(TRIED, huge)
    begin = time.perf_counter()
    memory[:: mmap.PAGESIZE] = 1
    return time.perf_counter() - begin


def _mapped(nbytes: int, huge: bool) -> Memory:
    """A mapping of its own, which goes when the last view of it does. It begins where a huge page
    does, and consists of them up to what would not fill one: that lies in small ones, or it could
    take twice what was asked for."""
    try:
        # Private, or it would be a file in memory, which has no huge pages as a rule.
        mapped = mmap.mmap(-1, nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole: Memory = np.frombuffer(mapped, np.uint8)
        start = -whole.ctypes.data % HUGE
        advice = mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE
        mapped.madvise(advice, start, nbytes // HUGE * HUGE)
    except OSError as error:
        raise MemoryError(f"no {nbytes} bytes: {error.strerror}") from error
    return whole[start : start + nbytes]
