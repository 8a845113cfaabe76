"""The same-host lane: another process's memory, read with one copy and no socket.

Linux has a call for it, process_vm_readv. Its own rules say who may read whom: processes of one
user may, unless a container or the system's policy forbids it. Whatever is forbidden is an OSError
here, and those bytes go over the socket.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

LANE = "lease"  # as HELLO names it; "memory" was one that asked before and after each value
PR_SET_PTRACER, ANYBODY = 0x59616D61, 2**64 - 1  # prctl(2)
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_ONLY_WHO_IS_NAMED = "1"


class _Range(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    libc.process_vm_readv.argtypes = [
        ctypes.c_int,
        *(ctypes.POINTER(_Range), ctypes.c_ulong) * 2,
        ctypes.c_ulong,
    ]
    libc.prctl.argtypes = [ctypes.c_int, *(ctypes.c_ulong,) * 4]
    return libc


@cache
def is_possible() -> bool:
    """Whether this system has such a call, and lets this process use it on itself."""
    if sys.platform != "linux":
        return False
    word = memoryview(bytearray(b"zbus"))
    got = memoryview(bytearray(len(word)))
    try:
        read(os.getpid(), [(address_of(word), len(word))], [got])
    except (OSError, AttributeError):  # no such call in this libc, or a container forbids it
        return False
    return got == word


def address_of(view: memoryview) -> int:
    """Where in this process the bytes of a contiguous view lie."""
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def read(pid: int, pieces: Sequence[tuple[int, int]], into: Sequence[memoryview]) -> None:
    """Fill the views with what lies in those pieces, (address, length), of that process's memory,
    all in one go. Each view is as long as its piece. Other threads run meanwhile.

    Raises:
        OSError: The system forbids it, or there is no such memory.
    """
    libc, left = _libc(), [(address, view) for (address, _), view in zip(pieces, into, strict=True)]
    while left:
        mine = [_Range(address_of(view), len(view)) for _, view in left]
        theirs = [_Range(address, len(view)) for address, view in left]
        ranges = _Range * len(left)
        got = libc.process_vm_readv(pid, ranges(*mine), len(left), ranges(*theirs), len(left), 0)
        if got <= 0:
            number = ctypes.get_errno() if got < 0 else errno.EFAULT
            raise OSError(number, os.strerror(number))
        left = _rest(left, got)


def _rest(left: list[tuple[int, memoryview]], got: int) -> list[tuple[int, memoryview]]:
    """What is still to be read, once so many bytes were."""
    for at, (address, view) in enumerate(left):
        if got < len(view):
            return [(address + got, view[got:]), *left[at + 1 :]]
        got -= len(view)
    return []


def permit(pids: Set[int]) -> None:
    """Let those processes of this user read this one's memory, and no others any more. There is
    something to do only where the system has Yama and it asks for that: it takes one name."""
    if not _asks_for_names():
        return
    named = [pid for pid in pids if _is_own(pid)]
    _libc().prctl(PR_SET_PTRACER, (*named, 0)[0] if len(named) < 2 else ANYBODY, 0, 0, 0)


@cache
def _asks_for_names() -> bool:
    try:
        return _YAMA.read_text().strip() == _ONLY_WHO_IS_NAMED
    except OSError:
        return False


def _is_own(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False
