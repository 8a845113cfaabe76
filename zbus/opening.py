"""The LAN is open for as long as an invitation to pair is: a loan, which ends with its process.

Whoever invites holds the lock of a file of its own, beside the trust store. The system gives the
lock back however that process ends, SIGKILL too; peers that listen look every second.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from . import private
from .errors import TrustError

logger = logging.getLogger(__name__)

AT_MOST = 15 * 60.0  # seconds: a forked child of a process that was killed holds its locks, too
YOUNG = 60.0  # seconds in which who has made the file may not have the lock yet
FORKS = os.name == "posix"  # and so a lock may outlive who has taken it
_FILES = "lan-*.lease"


@contextlib.contextmanager
def lent(folder: Path) -> Iterator[None]:
    """Hold a loan in that folder, which is made if need be.

    Raises:
        TrustError: The folder or the lock cannot be had.
    """
    name = f"{int(_since_boot())}-{secrets.token_hex(8)}"
    file = private.make_folder(folder) / _FILES.replace("*", name)
    try:
        with private.locked(file):
            yield
    finally:
        _remove(file)  # and so it is over, even where a forked child still has the lock


def is_lent(folder: Path) -> bool:
    """Whether anybody holds one. What is left of those who were killed is removed."""
    return any([_is_held(file) for file in _files(folder)])


def take_back(folder: Path) -> None:
    """End all that there are."""
    for file in _files(folder):
        _remove(file)


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob(_FILES))
    except OSError as error:
        logger.debug("no loans of the LAN can be seen: %s", error)
        return []


def _is_held(file: Path) -> bool:
    try:
        is_locked = private.is_locked(file)
    except (OSError, TrustError) as error:
        logger.debug("a loan of the LAN does not count: %s", error)
        return False
    age = _age(file)
    if not is_locked and not 0 <= age <= YOUNG:
        _remove(file)
    return is_locked and (0 <= age <= AT_MOST or not FORKS)


def _age(file: Path) -> float:
    """Seconds since that loan was made; less than 0 or many where this machine was not up then, or
    it is another's, in a folder that several share."""
    made = file.name.split("-")[1]
    return _since_boot() - int(made) if made.isdecimal() else math.inf


def _since_boot() -> float:
    """Seconds since this machine was started, its sleep included, where the system says: the same
    for all processes, and unlike the time of day set by nobody."""
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW"):  # Linux; macOS
        if hasattr(time, name):
            with contextlib.suppress(OSError):
                return time.clock_gettime(getattr(time, name))
    return time.monotonic()


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # Windows: somebody has it open
        file.unlink(missing_ok=True)
