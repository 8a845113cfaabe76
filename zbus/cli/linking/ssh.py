"""The system's own ssh: one login, over which commands run and ports are forwarded.

Where ssh can share one connection (ControlMaster: not on Windows) it asks for a password once, and
ports come and go while it stands. Elsewhere each command, and the tunnel, is a login of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...address import Address
from ...errors import ConnectError, InputError, PortInUse, Unreachable
from ..linking import reasons
from .process import Process

PATIENCE = 60.0  # seconds for what asks nobody
CONNECT_TIMEOUT = 15  # seconds
LOOK_EVERY = 0.05
FAILED = 255  # ssh's own exit status, and no command's
MAX_FOLDER = 60  # characters: a socket's name has 104 at most, and ssh adds some

# What must hold whatever the user's configuration says, and what it or -o may change.
NEEDED = (
    *("-T", "-a", "-x"),  # no terminal, and none of this machine's keys for that one to use
    *("-o", "RemoteCommand=none"),
    *("-o", "PermitLocalCommand=no"),
    *("-o", "ControlPersist=no"),
    *("-o", "ExitOnForwardFailure=yes"),
    *("-o", "LogLevel=INFO"),  # or there would be no reason to tell
)
WANTED = (
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", f"ConnectTimeout={CONNECT_TIMEOUT}"),
)
# To be used with a connection that stands: without it, fail.
SHARED = ("-F", "none", "-T", "-a", "-x", "-o", "BatchMode=yes", "-o", "ProxyCommand=false")


class Result(NamedTuple):
    """What a command has left."""

    status: int
    output: str
    errors: list[str]


class Ssh:
    """A machine as ssh reaches it.

    Args:
        host: As ssh takes it: USER@HOST, or a name of its configuration.
        port: 0: ssh's own.
        options: What follows each -o.
        identity: The file of a key, or "".
        hear: Told each line that ssh says while it may ask.

    Attributes:
        may_ask: Whether ssh may ask at the terminal, for a password or about a host key.

    Raises:
        InputError: It cannot be used.
    """

    def __init__(
        self,
        host: str,
        port: int,
        options: Sequence[str] = (),
        identity: str = "",
        hear: Callable[[str], None] = lambda line: None,
    ) -> None:
        reasons.check_host(host)
        self._program = _program()
        self._host, self._port, self._hear = host, port, hear
        self._own = [*("-p", str(port))] if port else []
        if identity:
            self._own += ["-i", identity]
        for option in options:
            self._own += ["-o", option]
        self.may_ask = True
        self._shares = os.name == "posix" and len(tempfile.gettempdir()) <= MAX_FOLDER
        self._socket = Path()  # of the shared connection
        self._link: Process | None = None  # the shared connection, or the tunnel
        self._forwards: dict[int, Address] = {}

    def __str__(self) -> str:
        return reasons.shown_place(self._host, self._port)

    # --- the connection -----------------------------------------------------------------------

    def connect(self) -> None:
        """Log in.

        Raises:
            ConnectError: Why that comes to nothing.
        """
        self.disconnect()
        if self._shares:
            self._socket = Path(tempfile.mkdtemp(prefix="zbus-link-"), "s")
            alone = ("-N", "-M", "-S", self._control, "-o", "ClearAllForwardings=yes")
            self._link = self._login(*alone, folder=str(self._socket.parent))
            self._until(self._link, self._socket.exists)

    def ended(self, within: float) -> bool:
        """Wait for that time at most; whether the connection has ended."""
        if self._link is None:
            time.sleep(within)
            return False
        return self._link.wait(within)

    def lost(self) -> ConnectError:
        """Why it has ended."""
        lines = self._link.lines() if self._link is not None else []
        return self._reason(lines[-1:])

    def disconnect(self) -> None:
        """End it."""
        if self._link is not None:
            self._link.end()
            self._link = None
        self._forwards.clear()

    # --- commands -----------------------------------------------------------------------------

    def ask(self, script: str) -> Result:
        """Have a POSIX shell there run a script.

        Raises:
            ConnectError: It could not be run.
        """
        if self._shares:
            control = ("-o", "ControlMaster=no", "-S", self._control)
            command = [self._program, *SHARED, *control, "--", self._host, "exec sh -s"]
            process = Process(command, script)
        else:
            process = self._login(command="exec sh -s", given=script)
        with contextlib.closing(process):
            self._until(process, lambda: False, over=True)
            result = Result(process.status, process.output(), process.lines())
        if result.status == FAILED:
            raise self.lost() if self._link and self.ended(0.0) else self._reason(result.errors)
        return result

    def forward(self, wanted: Mapping[int, Address]) -> None:
        """Forward these ports of this machine's loopback to those addresses there; the others no
        longer.

        Raises:
            PortInUse: One is taken here: `peer` is its number.
            ConnectError: The connection has ended.
        """
        if dict(wanted) == self._forwards:
            return
        if not self._shares:
            self._tunnel(wanted)
            return
        for port, there in list(self._forwards.items()):
            if wanted.get(port) != there:
                self._control_forward("cancel", port, there)
                del self._forwards[port]
        for port, there in wanted.items():
            if port not in self._forwards:
                self._control_forward("forward", port, there)
                self._forwards[port] = there

    def check_forwarding(self) -> None:
        """
        Raises:
            ConnectError: The other side has refused to forward.
        """
        lines = self._link.lines() if self._link is not None else []
        error = reasons.forbidden(lines, self._host, self._port)
        if error is not None:
            raise error

    def _control_forward(self, verb: str, port: int, there: Address) -> None:
        assert self._link is not None
        command = [self._program, *SHARED, "-S", self._control, "-O", verb, *_local(port, there)]
        with contextlib.closing(Process([*command, "--", self._host])) as process:
            self._until(process, lambda: False, over=True)
            if process.status == 0 or verb == "cancel":
                return
        if self._link.wait(0.0):
            raise self.lost()
        raise PortInUse("that port is taken here", peer=str(port))

    def _tunnel(self, wanted: Mapping[int, Address]) -> None:
        self.disconnect()
        taken = next((port for port in wanted if not is_free(port)), None)
        if taken is not None:
            raise PortInUse("that port is taken here", peer=str(taken))
        flags = [flag for port, there in wanted.items() for flag in _local(port, there)]
        self._link = self._login("-N", *flags)
        self._until(self._link, lambda: not any(map(is_free, wanted)))
        self._forwards = dict(wanted)

    # --- processes ----------------------------------------------------------------------------

    @property
    def _control(self) -> str:
        return str(self._socket).replace("%", "%%")  # ssh has tokens there

    def _login(self, *flags: str, command: str = "", given: str = "", folder: str = "") -> Process:
        batch = () if self.may_ask else ("-o", "BatchMode=yes")
        alone = () if self._shares else ("-o", "ControlMaster=no", "-o", "ControlPath=none")
        words = [self._program, *NEEDED, *batch, *alone, *flags, *self._own, *WANTED]
        words += ["--", self._host, *([command] if command else [])]
        return Process(words, given, self._heard if self.may_ask else None, folder)

    def _heard(self, line: str) -> None:
        if self.may_ask:  # what it says later is for the reasons alone
            self._hear(line)

    def _until(self, process: Process, ready: Callable[[], bool], over: bool = False) -> None:
        """Wait until it is `ready`, or has ended if that is what is wanted.

        Raises:
            ConnectError: It ends before, or takes too long.
        """
        deadline = time.monotonic() + PATIENCE
        asks = self.may_ask and process.hears
        while not ready():
            if process.wait(LOOK_EVERY):
                if over:
                    return
                raise self._reason(process.lines())
            if not asks and time.monotonic() > deadline:
                process.end()
                raise Unreachable(
                    f"no answer in {PATIENCE:.0f} s",
                    peer=str(self),
                    remedy="Look whether the machine runs, and whether ssh reaches it by hand",
                )

    def _reason(self, lines: Sequence[str]) -> ConnectError:
        return reasons.reason(lines, self._host, self._port)


def is_free(port: int) -> bool:
    """Whether nobody listens on that port of the loopback."""
    with socket.socket() as probe:
        if os.name == "posix":  # a port whose connections have just ended can be had
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _program() -> str:
    found = shutil.which("ssh")
    if found is None:
        raise InputError(
            "there is no ssh on this computer",
            remedy="Install OpenSSH's client (Debian, Ubuntu: apt install openssh-client; Windows: "
            "Settings, Optional features, OpenSSH Client)",
        )
    return found


def _local(port: int, there: Address) -> tuple[str, str]:
    return "-L", f"127.0.0.1:{port}:{there}"
