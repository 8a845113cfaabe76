"""An sshd of the test's own on the loopback, with keys of its own, for this user alone."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from children import until
from comfyui import free_port


def missing() -> str:
    """What is not there to run one; "" if all is."""
    if os.name != "posix":
        return "no POSIX system"
    found = {"sshd": _sshd(), "ssh": shutil.which("ssh"), "ssh-keygen": shutil.which("ssh-keygen")}
    absent = [name for name, path in found.items() if not path]
    return f"no {', '.join(absent)} on this machine (apt-get install openssh-server)" * bool(absent)


class Sshd:
    """It runs until `close`.

    Args:
        folder: For its files.
        more: More lines of its configuration; the first of two that set the same counts.
    """

    user = getpass.getuser()

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder, self.port = folder, free_port()
        for name in ("host", "user"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(key, check=True, stdin=subprocess.DEVNULL, timeout=30)
        shutil.copy(folder / "user.pub", folder / "authorized")
        (folder / "authorized").chmod(0o600)
        lines = [
            *more,
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host",
            f"AuthorizedKeysFile {folder}/authorized\nPidFile {folder}/pid\nStrictModes no",
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no",
            "PermitRootLogin yes\nAllowTcpForwarding yes\nMaxStartups 100",
        ]
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # it will not start without
        self.log = folder / "sshd.log"
        self.start()

    def start(self) -> None:
        """Start it, or start it again after `close`."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(_sshd()), "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        until(lambda: _accepts(self.port) or self._process.poll() is not None, 15, "sshd")
        assert self._process.poll() is None, self.log.read_text()

    @property
    def login(self) -> list[str]:
        """The words with which ssh logs in there."""
        words = (
            f"-p {self.port} -i {self.folder}/user -o IdentitiesOnly=yes -o IdentityAgent=none "
            f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={os.devnull}"
        )
        return words.split()

    @property
    def options(self) -> list[str]:
        """The same, and nobody is asked."""
        return [*self.login, "-o", "BatchMode=yes"]

    def tunnel(self, local: int, remote: int) -> subprocess.Popen[bytes]:
        """``ssh -N -L 127.0.0.1:local:127.0.0.1:remote``, up."""
        words = (
            f"ssh -N -L 127.0.0.1:{local}:127.0.0.1:{remote} -F none "
            f"-o ExitOnForwardFailure=yes -o LogLevel=ERROR {' '.join(self.options)} "
            f"{self.user}@127.0.0.1"
        )
        made = subprocess.Popen(words.split(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        up = until(lambda: _listens(local) or made.poll() is not None, 20, "the tunnel")
        assert up and made.poll() is None, self.log.read_text()
        return made

    def sessions(self) -> list[int]:
        """The processes that serve those who are logged in."""
        return _children(self._process.pid)

    def cut(self) -> None:
        """End all logins, as a lost network does."""
        _kill(self.sessions())

    def close(self) -> None:
        """End it, and all logins."""
        sessions = self.sessions()
        end(self._process)
        _kill(sessions)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)


def _sshd() -> str | None:
    path = "/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", "")
    return shutil.which("sshd", path=path)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _listens(port: int) -> bool:
    """Without connecting: what lies behind would see that."""
    wanted = f"0100007F:{port:04X}"
    table = Path("/proc/net/tcp")
    lines = table.read_text().splitlines()[1:] if table.exists() else []
    return any(line.split()[1] == wanted and line.split()[3] == "0A" for line in lines)


def _kill(sessions: list[int]) -> None:
    for pid in sessions:
        for one in (*_children(pid), pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            if folder.name.isdigit():
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                found += [int(folder.name)] if int(parent) == pid else []
    return found
