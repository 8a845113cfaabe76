"""The LAN is open for as long as an invitation to pair is: a loan, which ends with its process.

Whoever invites holds the lock of a file of its own, beside the trust store. The system gives the
lock back however that process ends, SIGKILL too; peers that listen look every second.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from . import private
from .errors import TrustError

logger = logging.getLogger(__name__)

AT_MOST = 15 * 60.0  # seconds: a forked child of a process that was killed holds its locks, too
YOUNG = 60.0  # seconds in which who has made the file may not have the lock yet
_FILES = "lan-*.lease"


@contextlib.contextmanager
def lent(folder: Path) -> Iterator[None]:
    """Hold a loan in that folder, which is made if need be.

    Raises:
        TrustError: The folder or the lock cannot be had.
    """
    file = private.make_folder(folder) / _FILES.replace("*", secrets.token_hex(8))
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
        age = time.time() - file.lstat().st_mtime
        if age <= AT_MOST and private.is_locked(file):
            return True
    except (OSError, TrustError) as error:
        logger.debug("a loan of the LAN does not count: %s", error)
        return False
    if age > YOUNG:
        _remove(file)
    return False


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # Windows: somebody has it open
        file.unlink(missing_ok=True)
