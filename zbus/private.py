"""Files of this user alone: read only where others cannot have written, written whole or not at
all, changed under a lock."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from .errors import TrustError

LOCK_WITHIN, LOCK_EVERY = 10.0, 0.02  # seconds
T = TypeVar("T")


def make_folder(folder: Path) -> Path:
    """The folder, made if need be.

    Raises:
        TrustError: It cannot be made, or others may write in it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        raise _failed(folder, "made", error) from error
    if os.name == "posix" and mode & 0o022:
        raise TrustError(
            f"other users of this machine may write in {folder}",
            remedy=f"Run: chmod 700 '{folder}', or set ZBUS_HOME to another folder",
        )
    return folder


def read(file: Path, most: int, others_may: int) -> bytes | None:
    """What a small regular file holds; None if there is none.

    Raises:
        TrustError: It cannot be read, or other users may do more with it than `others_may`.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = _patiently(lambda: os.open(file, flags))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(file, "read", error) from error
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size > most:
            raise broken(file, f"it is not a file of up to {most >> 10} KiB")
        if os.name == "posix" and info.st_mode & 0o077 & ~others_may:
            raise TrustError(
                f"other users of this machine may {'write' if others_may else 'read'} {file}",
                remedy=f"Run: chmod 600 '{file}'. If somebody may have used that: delete it, and "
                "pair anew",
            )
        return os.read(descriptor, most)
    except OSError as error:
        raise _failed(file, "read", error) from error
    finally:
        os.close(descriptor)


def write(file: Path, data: bytes) -> None:
    """Put a file of this user's alone in place, whole or not at all."""
    temporary = file.with_name(f".{file.name}-{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            _patiently(lambda: os.replace(temporary, file))
        finally:
            with contextlib.suppress(OSError):  # it is there only if something above has failed
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _failed(file, "written", error) from error


def stamp(file: Path) -> tuple[int, ...]:
    """What changes with the file; its replacement is another inode."""
    try:
        info = file.stat()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise _failed(file, "read", error) from error
    return (info.st_mtime_ns, info.st_size, info.st_ino)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock of that file: it keeps out other processes and other threads.

    Raises:
        TrustError: Somebody else holds it for long, or it cannot be had.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _failed(file, "opened", error) from error
    try:
        deadline = time.monotonic() + LOCK_WITHIN
        while not _lock(file, descriptor):
            if time.monotonic() > deadline:
                raise TrustError(
                    f"another program holds {file}",
                    remedy="Look whether a zbus-pair hangs, and end it",
                )
            time.sleep(LOCK_EVERY)
        yield
    finally:
        os.close(descriptor)  # which gives the lock back


def _lock(file: Path, descriptor: int) -> bool:
    """Try to get the lock."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise TrustError(
            f"{file} cannot be locked: {error.strerror}",
            remedy="Set ZBUS_HOME to a folder on a disk of this machine",
        ) from error
    return True


def _patiently(work: Callable[[], T]) -> T:
    """On Windows nobody can open or replace a file in the moment that another has it open."""
    for _ in range(50 if sys.platform == "win32" else 0):
        try:
            return work()
        except PermissionError:
            time.sleep(LOCK_EVERY)
    return work()


def _failed(file: Path, what: str, error: OSError) -> TrustError:
    return TrustError(
        f"{file} cannot be {what}: {error.strerror or error}",
        remedy="Look at that folder's owner and free space, or set ZBUS_HOME to another",
    )


def broken(file: Path, why: str) -> TrustError:
    return TrustError(
        f"{file} is broken: {why}",
        remedy="Mend it, or delete it and pair anew; a ComfyUI that runs keeps what it knew",
    )
