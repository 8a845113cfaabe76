"""Files of this user alone: read only where others cannot have written, written whole or not at
all, changed under a lock.

Modes are not enough: in a folder that another user has made first, with the right modes, that
user's key would be taken for one's own. So everything here has to belong to this very user, for
root too, which may read what anybody has.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from .errors import TrustError
from .printable import shown

logger = logging.getLogger(__name__)

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
    except OSError as error:
        raise _failed(folder, "made", error) from error
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> bool:
    """Whether there is that folder. Where there is, it is this user's alone.

    Raises:
        TrustError: As `check_owner`; or others may write in it.
    """
    info = check_owner(folder)
    if info is None:
        return False
    if os.name == "posix" and info.st_mode & 0o022:
        raise TrustError(
            f"other users of this machine may write in {folder}",
            remedy=f"Run: chmod 700 '{folder}', or set ZBUS_HOME to another folder",
        )
    return True


def check_owner(folder: Path) -> os.stat_result | None:
    """What the system says of this user's folder; None if there is none.

    Raises:
        TrustError: It belongs to another user, or a link that another user has made leads there.
    """
    try:
        for place in (folder, *folder.parents):
            link = place.lstat()
            # One of root's is part of the system, such as macOS's /tmp.
            if stat.S_ISLNK(link.st_mode) and link.st_uid != 0:
                _check_owner(place, link, f"the link {place}")
        info = folder.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(folder, "read", error) from error
    if not stat.S_ISDIR(info.st_mode):
        raise TrustError(f"{folder} is not a folder", remedy="Set ZBUS_HOME to one, or remove it")
    _check_owner(folder, info, f"the folder {folder}")
    return info


def _check_owner(place: Path, info: os.stat_result, what: str) -> None:
    """Let pass what this user owns. Windows has no such owners: there the profile protects it.

    Raises:
        TrustError: Another user owns it.
    """
    if os.name == "posix" and info.st_uid != os.geteuid():
        raise TrustError(
            f"{what} belongs to {_user(info.st_uid)}, and this is {_user(os.geteuid())}",
            remedy="Run this as that user (without sudo), or set ZBUS_HOME to a folder of your "
            "own. If it is yours after all, and nobody else has put anything there: "
            f"chown -R {os.geteuid()} '{place}'",
        )


def _user(uid: int) -> str:
    """What people call a user of this machine."""
    if sys.platform != "win32":
        with contextlib.suppress(KeyError, ImportError):
            import pwd

            return f"user {shown(pwd.getpwuid(uid).pw_name, 40)}"
    return f"user {uid}"


def _open(file: Path, flags: int) -> int:
    """A descriptor of a regular file of this user's; a link is never followed.

    Raises:
        TrustError: It is something else, or another user's.
        FileNotFoundError: There is none.
    """
    check_folder(file.parent)
    if file.is_symlink():  # where the system has no O_NOFOLLOW
        raise broken(file, "it is a link to another place")
    for more in ("O_BINARY", "O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC"):
        flags |= getattr(os, more, 0)
    try:
        descriptor = _patiently(lambda: os.open(file, flags, 0o600))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _failed(file, "opened", error) from error
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise broken(file, "it is not a file")
        _check_owner(file, info, f"the file {file}")
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def read(file: Path, most: int, closes: int = 0) -> bytes | None:
    """What a small regular file of this user's alone holds; None if there is none.

    Args:
        closes: What other users may do with it until now, as an editor leaves it: it is closed
            to them then, and read.

    Raises:
        TrustError: It cannot be read, is another user's, or others may do more with it.
    """
    try:
        descriptor = _open(file, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        info = os.fstat(descriptor)
        if info.st_size > most:
            raise broken(file, f"it is not a file of up to {most >> 10} KiB")
        if os.name == "posix" and info.st_mode & 0o077:
            if info.st_mode & 0o077 & ~closes:
                raise TrustError(
                    f"other users of this machine may {'write' if closes else 'read'} {file}",
                    remedy=f"Run: chmod 600 '{file}'. If somebody may have used that: delete it, "
                    "and pair anew",
                )
            logger.info("other users of this machine could read %s: closed to them", file)
            with contextlib.suppress(OSError):  # a file system without modes
                os.fchmod(descriptor, 0o600)
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
        info = file.lstat()
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
        descriptor = _open(file, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError as error:  # its folder has gone
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


def is_locked(file: Path) -> bool:
    """Whether somebody, this process among them, holds the lock of that file. Who only looks is
    not taken for a holder by another who looks at that moment; but on Windows, which has no such
    locks.

    Raises:
        TrustError: That cannot be told, or it is another user's.
        FileNotFoundError: There is none.
    """
    descriptor = _open(file, os.O_RDWR)
    try:
        return not _lock(file, descriptor, shared=True)
    finally:
        os.close(descriptor)


def _lock(file: Path, descriptor: int, shared: bool = False) -> bool:
    """Try to get the lock."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
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
