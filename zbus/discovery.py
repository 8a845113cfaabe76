"""The live peers of this user on this machine, which find each other by name.

Each peer keeps one small file, ``<home>/peers/<instance>.json``. It counts for as long as the
process that wrote it lives; nobody has to clean up after a crash. What a file says is checked
like anything that comes from outside: a bad one is passed over, and no peer is lost by it.

Peers on the local network are another source of entries: `choose` picks from any.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from . import machine, private
from .address import EXAMPLE, parse_dial
from .errors import InputError, InvalidAddress, TrustError, UnknownPeer

MAX_FILE = 8192  # bytes
DAY = 24 * 3600.0  # seconds after which a file that nobody can vouch for is removed
SHOWN = 10  # names that an error tells

_INSTANCE = re.compile(r"[0-9a-f]{32}")
_MAX_PID = 2**32 - 1
_MAX_CHARACTERS = {
    "instance": 32,
    "name": 80,  # as in HELLO
    "address": 80,
    "started": 64,
    "boot": 80,
    "url": 400,
    "software": 100,
    "key": 52,
    "python": 400,
    "folder": 400,
}  # in UTF-8 and with JSON's own marks less than MAX_FILE
_MAY_BE_EMPTY = ("started", "boot", "url", "software", "key", "python", "folder")


@dataclass(frozen=True)
class Entry:
    """A peer as it tells of itself. Whoever holds one holds a checked one.

    Attributes:
        instance: Names that ComfyUI, the same after a restart: 32 hex digits.
        name: What others call it: 1 to 80 printable characters.
        address: Where it listens: "host:port" on the loopback.
        pid: Its process.
        started: What tells that process from a later one of the same pid; "" if nothing does.
        boot: The boot and pid namespace in which that pid counts; "" where it cannot be told.
        url: ComfyUI's own page, or "".
        software: What runs there, for people, or "".
        key: Its public key as text: this user's own; another one only where a folder is shared.
        python: The interpreter that runs it, and
        folder: where its `zbus` lies: how to run the commands of that installation.

    Raises:
        InputError: A field cannot be used; the text names it.
    """

    instance: str
    name: str
    address: str
    pid: int
    started: str
    boot: str
    url: str = ""
    software: str = ""
    key: str = ""
    python: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        for field, most in _MAX_CHARACTERS.items():
            _check_text(field, getattr(self, field), most)
        if not _INSTANCE.fullmatch(self.instance):
            raise InputError(f"instance {self.instance!r} is not 32 hex digits")
        if type(self.pid) is not int or not 0 < self.pid <= _MAX_PID:
            raise InputError(f"{self.pid!r} is no process id")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise InputError(f"{self.url!r} is not the address of a web page")
        if not parse_dial(self.address).is_loopback:
            raise InvalidAddress(f"{self.address} is not on this machine's loopback")

    @classmethod
    def of_this_process(
        cls,
        instance: str,
        name: str,
        address: str,
        *,
        url: str = "",
        software: str = "",
        key: str = "",
    ) -> Entry:
        """The entry of the peer in this process; on every system what `peers` compares with."""
        pid = os.getpid()
        boot = machine.boot_id()
        started, folder = _start(pid) or "", str(Path(__file__).resolve().parent.parent)
        here = (text if len(text) <= 400 else "" for text in (sys.executable, folder))
        return cls(instance, name, address, pid, started, boot, url, software, key, *here)


def home() -> Path:
    """The folder for what zbus keeps: ZBUS_HOME, else one in the user's data folder.

    Raises:
        OSError: The user has no home folder.
    """
    named = os.environ.get("ZBUS_HOME")
    try:
        return Path(named).expanduser().absolute() if named else _data_folder() / "zbus"
    except RuntimeError as error:  # pathlib's word for "no home folder"
        raise OSError(f"no folder for zbus: {error}; set ZBUS_HOME") from error


def register(entry: Entry, folder: Path | None = None) -> None:
    """Make this peer known, or known anew.

    To be repeated a few times a day: a container that shares the home cannot see whether this
    process lives, and removes its file when that has not been written for a day.

    Args:
        entry: This process's own.
        folder: In place of `home`.

    Raises:
        OSError: It cannot be written; this peer is then not found by name, and works otherwise.
    """
    place = _make_folder(folder or home())
    data = json.dumps(asdict(entry), ensure_ascii=False).encode()
    temporary = place / f".{entry.instance}-{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
        os.replace(temporary, _file(place, entry.instance))
    finally:
        with contextlib.suppress(OSError):  # it is there only if something above has failed
            temporary.unlink(missing_ok=True)


def unregister(instance: str, folder: Path | None = None) -> None:
    """Take this process's entry back; does nothing where it is not there or another's by now."""
    with contextlib.suppress(OSError):
        _check_owner(folder or home())
        file = _file(_folder(folder), instance)
        entry = _read(file)
        if entry is not None and (entry.pid, entry.boot) == (os.getpid(), machine.boot_id()):
            file.unlink()


def peers(folder: Path | None = None) -> list[Entry]:
    """All peers that live, this process's own too, by name. Files of dead ones are removed."""
    try:
        _check_owner(folder or home())
        files = list(_folder(folder).iterdir())
    except OSError:
        return []
    boot = machine.boot_id()
    found = []
    for file in files:
        entry = _read(file)
        if entry is None:
            if file.suffix == ".tmp":  # of a process that ended within `register`
                _remove_if_old(file)
        elif entry.boot == boot and _lives(entry):
            found.append(entry)
        elif entry.boot == boot != "":
            _remove(file, entry)
        else:
            _remove_if_old(file)
    return sorted(found, key=lambda entry: (entry.name, entry.address))


def find(name: str, folder: Path | None = None) -> Entry:
    """The live peer of that name; upper and lower case count only where two differ by them.

    Raises:
        UnknownPeer: There is none, or more than one; the text says which there are.
    """
    return choose(name, peers(folder))


def choose(name: str, known: Iterable[Entry]) -> Entry:
    """The one of `known` that `find` means by `name`.

    Raises:
        UnknownPeer: There is none, or more than one.
    """
    wanted, known = name.strip(), list(known)
    same = [entry for entry in known if entry.name == wanted]
    same = same or [entry for entry in known if entry.name.casefold() == wanted.casefold()]
    if len(same) == 1:
        return same[0]
    if same:
        raise UnknownPeer(
            f"{len(same)} peers here are named '{wanted}': {_listed(_places(same))}",
            remedy="Give the address of the one that is meant, or rename the others",
        )
    names = sorted({entry.name for entry in known})
    raise UnknownPeer(
        f"no peer named '{wanted}' here; known: {_listed(names) or 'none'}",
        remedy=f"Start that ComfyUI on this machine under your own user, or give its address. "
        f"{EXAMPLE}",
    )


def _places(entries: list[Entry]) -> list[str]:
    different = len({entry.name for entry in entries}) > 1  # in upper and lower case
    return [f"{entry.name} at {entry.address}" if different else entry.address for entry in entries]


def _listed(texts: list[str]) -> str:
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")


# --- folders and files ----------------------------------------------------------------------------


def _data_folder() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    named = Path(os.environ.get("XDG_DATA_HOME", ""))
    # The XDG base directory specification: a relative path is to be ignored.
    return named if named.is_absolute() else Path.home() / ".local" / "share"


def _folder(folder: Path | None) -> Path:
    return (folder or home()) / "peers"


def _check_owner(root: Path) -> None:
    """Whether the folder and what is in it can be this user's own.

    Raises:
        OSError: They are another user's, or that user has made a link that leads there.
    """
    try:
        private.check_owner(root)
        private.check_owner(_folder(root))
    except TrustError as error:
        raise PermissionError(str(error)) from error


def _file(place: Path, instance: str) -> Path:
    return place / f"{instance}.json"


def _make_folder(root: Path) -> Path:
    root.parent.mkdir(parents=True, exist_ok=True)
    root.mkdir(mode=0o700, exist_ok=True)
    # A home that was there before stays as it is: ZBUS_HOME may name a folder with other uses.
    place = _folder(root)
    place.mkdir(mode=0o700, exist_ok=True)
    _check_owner(root)
    if os.name == "posix" and place.stat().st_mode & 0o077:
        with contextlib.suppress(OSError):  # a file system without modes
            place.chmod(0o700)
    return place


def _read(file: Path) -> Entry | None:
    """The entry in a file of ours; None for anything else."""
    if file.suffix != ".json":
        return None
    # ValueError: InputError, no JSON, no UTF-8. RecursionError: JSON in too many brackets.
    with contextlib.suppress(OSError, ValueError, RecursionError, TypeError):
        data = _bytes(file)
        values: Any = json.loads(data.decode()) if data is not None else None
        if isinstance(values, dict):
            # A newer zbus may have more to tell: what is not known here is left out.
            known = {field.name for field in fields(Entry)} & values.keys()
            entry = Entry(**{name: values[name] for name in known})
            return entry if file.stem == entry.instance else None
    return None


def _bytes(file: Path) -> bytes | None:
    """What a small regular file of this user holds. A symlink or a pipe is never followed."""
    if file.is_symlink():  # where the system has no O_NOFOLLOW
        return None
    flags = os.O_RDONLY
    for more in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, more, 0)
    descriptor = os.open(file, flags)
    try:
        info = os.fstat(descriptor)
        foreign = os.name == "posix" and info.st_uid != os.geteuid()
        if foreign or not stat.S_ISREG(info.st_mode) or info.st_size > MAX_FILE:
            return None
        return os.read(descriptor, MAX_FILE)
    finally:
        os.close(descriptor)


def _remove(file: Path, dead: Entry) -> None:
    with contextlib.suppress(OSError):
        # Its ComfyUI may have been started again this moment, and written the same file anew.
        if _read(file) == dead:
            file.unlink()


def _remove_if_old(file: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - file.lstat().st_mtime > DAY:
            file.unlink()


def _check_text(field: str, text: object, most: int) -> None:
    if not isinstance(text, str):
        raise InputError(f"{field} is not a text")
    if len(text) > most or not text.isprintable():
        raise InputError(f"{field} is not a text of up to {most} printable characters")
    if not text.strip() and (text or field not in _MAY_BE_EMPTY):
        raise InputError(f"{field} is empty")


# --- processes ------------------------------------------------------------------------------------


def _lives(entry: Entry) -> bool:
    """Whether the process that wrote an entry of this boot is still there."""
    start = _start(entry.pid)
    if start is None:
        return False
    return start == entry.started or not (start and entry.started)


def _start(pid: int) -> str | None:
    """As `machine.process_start`, also where there is no /proc; "" if it cannot be told."""
    if Path("/proc/self/stat").is_file():
        try:
            return machine.process_start(pid)
        except ValueError:  # a program whose name is no UTF-8: none that wrote an entry
            return None
    with contextlib.suppress(ImportError):
        return _start_by_psutil(pid)
    if os.name == "posix":  # on Windows signal 0 is Ctrl-C
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except (OSError, OverflowError):
            return ""
    return ""


def _start_by_psutil(pid: int) -> str | None:
    import psutil  # type: ignore[import-untyped]  # ComfyUI brings it

    try:
        return str(int(psutil.Process(pid).create_time()))
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError, OverflowError):
        return ""
