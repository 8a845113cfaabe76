"""What this machine can tell: its boot, whether a process lives, free memory, who holds a port."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any

ESTABLISHED = "01"  # a state in /proc/net/tcp
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
GROUPS_AGE = 0.25  # seconds
FALLBACK_MEMORY = 4 << 30  # where the system does not say


def boot_id() -> str:
    """Names this boot of this machine and the pid namespace in it; "" where it cannot be told.

    Two processes with equal names can look at each other's pid.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:32]


def process_start(pid: int) -> str | None:
    """Something that two processes with one pid do not share; None: no such process lives."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZXx" else rest[18]


def free_memory() -> int:
    """Bytes of memory that this process may still take without swapping, and without being killed:
    a rented machine is often a container, whose limit /proc/meminfo does not tell."""
    return max(0, min([_free_in_all(), *_free_in_groups()]))


class FreeMemory:
    """`free_memory` for whoever asks often: what control groups leave takes milliseconds to read,
    and is read anew only after a while."""

    def __init__(self) -> None:
        self._in_groups, self._until = 0, 0.0

    def __call__(self) -> int:
        now = time.monotonic()
        if now >= self._until:
            self._in_groups = min(_free_in_groups(), default=sys.maxsize)
            self._until = now + GROUPS_AGE
        return max(0, min(_free_in_all(), self._in_groups))


def _free_in_groups() -> list[int]:
    """What the limit of each control group that this process is in leaves free; Linux's cgroups,
    version 1 and 2. One that cannot be read, or has no limit, is left out."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                bases, names = (GROUPS, GROUPS / "unified"), ("memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                bases = (GROUPS / "memory", GROUPS / controllers)
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            for base in bases:
                # The limits of the groups above count too. In a container the path is often that
                # of the host, and the folder at the base is the container's own group.
                inner = PurePosixPath(path.lstrip("/"))
                steps = [] if ".." in inner.parts else [inner, *inner.parents]
                for folder in {base, *(base / step for step in steps)}:
                    free = _free_in_group(folder, *names)
                    found += [] if free is None else [free]
    return found


def _free_in_group(folder: Path, limit: str, usage: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # no such group here, or "max"
        free = int((folder / limit).read_text()) - int((folder / usage).read_text())
        # What files that were read occupy is given up as soon as it is needed, and as in
        # MemAvailable counts as free: else nothing would be, once a model has been loaded.
        told = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines() if line
        )
        for name in ("inactive_file", "active_file"):
            free += int(told.get(f"total_{name}", told.get(name, "0")))
        return free
    return None


def _free_in_all() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import psutil  # type: ignore[import-untyped]  # ComfyUI brings it

        return int(psutil.virtual_memory().available)
    return FALLBACK_MEMORY


def connection_owner(client: tuple[Any, ...], server: tuple[Any, ...]) -> int | None:
    """The user whose process holds the other end of a connection within this machine; None where
    that cannot be told: where there is no /proc, and when the other end is open no longer.

    Args:
        client, server: The addresses of its two ends, as sockets give them.
    """
    with contextlib.suppress(ValueError, IndexError):  # ends of no IP socket
        wanted = (_ends(client), _ends(server))
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                for line in Path(table).read_text().splitlines()[1:]:
                    fields = line.split()
                    ends = _ends_in_table(fields[1]), _ends_in_table(fields[2])
                    # One that its process has closed is nobody's: the kernel writes user 0 there.
                    if ends == wanted and fields[3] == ESTABLISHED:
                        return int(fields[7])
    return None


def _ends(address: tuple[Any, ...]) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    host = ipaddress.ip_address(str(address[0]))
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return mapped or host, int(address[1])


def _ends_in_table(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """The kernel writes each 32 bits of an address in this machine's order."""
    written, port = text.split(":")
    words = [bytes.fromhex(written[at : at + 8]) for at in range(0, len(written), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return _ends((ipaddress.ip_address(b"".join(words)), int(port, 16)))


def port_holder(port: int) -> str:
    """The program that listens on a TCP port here, as "name (pid N)"; "" if it cannot be told."""
    with contextlib.suppress(Exception):  # psutil raises its own AccessDenied, and more
        import psutil

        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == "LISTEN" and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return _port_holder_from_proc(port) if sys.platform == "linux" else ""


def _port_holder_from_proc(port: int) -> str:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                parts = line.split()
                if parts[3] == "0A" and int(parts[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{parts[9]}]")
    for process in Path("/proc").iterdir() if inodes else ():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                return f"{name} (pid {process.name})"
    return ""
