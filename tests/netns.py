"""Two machines in one: two network namespaces of Linux, joined by a cable (a veth pair).

Each has a loopback of its own and one address in a network that only the two are in; multicast
passes. A namespace belongs to a thread, and to what that thread starts: sockets, further threads,
processes. So whatever runs by `Machine.within` is on that machine::

    with two_machines() as (a, b):
        listener = a.within(lambda: Child(LISTENER, "10.77.0.1:8282"))
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from children import Child

CLONE_NEWNET = 0x40000000  # of <linux/sched.h>
CABLE = "lan0"  # what the interface is called on both sides
ZBUS = "import sys; from zbus.__main__ import main; sys.exit(main(sys.argv[1:]))"
T = TypeVar("T")


class NotMade(Exception):
    """The machines could not be made; the text says why."""


@dataclass(frozen=True)
class Machine:
    """One of the two."""

    namespace: str
    address: str

    def within(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, run on this machine."""
        done: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                _enter(self.namespace)
                done.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, name=f"on {self.namespace}")
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return done[0]

    def start(self, home: Path, code: str, *arguments: object) -> Child:
        """A Python process there, with that home of zbus. End it with `kill`."""
        env = {"ZBUS_HOME": str(home)}
        return self.within(lambda: Child(code, *arguments, env=env))

    def zbus(self, home: Path, *arguments: str, status: int = 0) -> str:
        """What ``python -m zbus`` prints there. Fails if it does not end with that status."""
        child = self.start(home, ZBUS, *arguments)
        try:
            printed = child.rest(60)
        finally:
            child.kill()
        assert child.process.returncode == status, printed
        return printed

    def add_address(self, address: str) -> None:
        """Give it one more: "10.78.0.1/24"."""
        _ip("-n", self.namespace, "address", "add", address, "dev", CABLE)

    def pull(self) -> None:
        """Take the cable out."""
        _ip("-n", self.namespace, "link", "set", CABLE, "down")

    def plug(self) -> None:
        """Put it in."""
        _ip("-n", self.namespace, "link", "set", CABLE, "up")
        _ip("-n", self.namespace, "route", "replace", "224.0.0.0/4", "dev", CABLE)

    def received(self) -> int:
        """Bytes that have come over the cable."""
        told = json.loads(_ip("-n", self.namespace, "-s", "-j", "link", "show", CABLE))
        return int(told[0]["stats64"]["rx"]["bytes"])


@functools.cache
def permitted() -> str:
    """Why two machines cannot be made here, by a try; "" if they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are there on Linux only"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    try:
        with two_machines() as (a, _):
            a.within(lambda: None)
    except (NotMade, OSError) as error:
        return f"network namespaces cannot be made here: {error}"
    return ""


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """They are gone afterwards, with every process on them, whatever happens.

    Raises:
        NotMade: They cannot be made here.
    """
    unique = secrets.token_hex(3)
    a = Machine(f"zbus-{unique}-a", "10.77.0.1")
    b = Machine(f"zbus-{unique}-b", "10.77.0.2")
    try:
        for machine in (a, b):
            _ip("netns", "add", machine.namespace)
        cable = ("type", "veth", "peer", "name", CABLE, "netns", b.namespace)
        _ip("-n", a.namespace, "link", "add", CABLE, *cable)
        for machine in (a, b):
            _ip("-n", machine.namespace, "link", "set", "lo", "up")
            machine.add_address(f"{machine.address}/24")
            machine.plug()
        yield a, b
    finally:
        for machine in (a, b):
            _remove(machine)


def pair(a: Machine, a_home: Path, b: Machine, b_home: Path) -> tuple[str, str]:
    """As their users would over the LAN: `a` invites `b` as "lap", which accepts it as "desk";
    what each of the two commands has said."""
    invites = a.start(a_home, ZBUS, "pair", "invite", "--lan", "--name", "lap")
    try:
        token = invites.line("zbus-a").strip()
        accepted = b.zbus(b_home, "pair", "accept", token, "--name", "desk")
        return invites.rest(), accepted
    finally:
        invites.kill()


def raw_rate(sender: Machine, receiver: Machine, size: int = 192 << 20) -> float:
    """Bytes per second from one to the other through a bare TCP socket: the yardstick."""
    with receiver.within(lambda: socket.create_server((receiver.address, 0))) as listener:
        where = listener.getsockname()
        source = sender.within(lambda: socket.create_connection(where, 20))
        sink, _ = listener.accept()
    with source, sink:
        block, buffer = memoryview(bytes(1 << 20)), bytearray(1 << 20)
        sending = threading.Thread(
            target=lambda: [source.sendall(block) for _ in range(size >> 20)]
        )
        began, left = time.monotonic(), size
        sending.start()
        while left and (got := sink.recv_into(buffer)):
            left -= got
        sending.join()
    return size / (time.monotonic() - began)


def _remove(machine: Machine) -> None:
    if not Path("/run/netns", machine.namespace).exists():
        return
    for pid in _ip("netns", "pids", machine.namespace).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", machine.namespace)


def _enter(namespace: str) -> None:
    """Move this thread to that namespace."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on only
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError as error:
        raise NotMade(f"{command[0]}: {error}") from error
    if done.returncode:
        raise NotMade(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
