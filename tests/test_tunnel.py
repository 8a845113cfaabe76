"""Through a real ``ssh -NL`` tunnel, to an sshd of the test's own on the loopback."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from children import child, until
from jobpair import Host

from zbus import Peer, Settings
from zbus.__main__ import main
from zbus.job import Remote, Request, Taken

MIB = 1 << 20


def _missing() -> str:
    if os.name != "posix":
        return "no POSIX system"
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
    found = {"sshd": sshd, "ssh": shutil.which("ssh"), "ssh-keygen": shutil.which("ssh-keygen")}
    absent = [name for name, path in found.items() if not path]
    return f"no {', '.join(absent)} on this machine (apt-get install openssh-server)" * bool(absent)


MISSING = _missing()
if MISSING:
    print(f"test_tunnel: skipped: {MISSING}")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Sshd:
    """An sshd with keys of its own, for this user and one key only."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, _free_port()
        for name in ("host", "user"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(key, check=True, stdin=subprocess.DEVNULL, timeout=30)
        shutil.copy(folder / "user.pub", folder / "authorized")
        (folder / "authorized").chmod(0o600)
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\nPidFile {folder}/pid\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
            "PermitRootLogin yes\nAllowTcpForwarding yes\nMaxStartups 100\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # it will not start without
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ["PATH"])
        self._log = folder / "sshd.log"
        self._process = subprocess.Popen(
            [str(sshd), "-D", "-e", "-f", str(folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stderr=self._log.open("wb"),
        )
        until(lambda: _accepts(self.port) or self._process.poll() is not None, 15, "sshd")
        assert self._process.poll() is None, self._log.read_text()

    def tunnel(self, local: int, remote: int) -> subprocess.Popen[bytes]:
        """``ssh -NL local:localhost:remote``, up."""
        words = (
            f"ssh -N -L 127.0.0.1:{local}:127.0.0.1:{remote} -p {self.port} -i {self._folder}/user "
            "-F none -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o BatchMode=yes "
            f"-o UserKnownHostsFile={os.devnull} -o ExitOnForwardFailure=yes -o LogLevel=ERROR "
            f"{getpass.getuser()}@127.0.0.1"
        )
        made = subprocess.Popen(words.split(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        up = until(lambda: _listens(made, local) or made.poll() is not None, 20, "the tunnel")
        assert up and made.poll() is None, self._log.read_text()
        return made

    def close(self) -> None:
        _end(self._process)


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Without connecting: what lies behind would see that."""
    wanted = f"0100007F:{port:04X}"
    lines = (
        Path("/proc/net/tcp").read_text().splitlines()[1:] if Path("/proc/net/tcp").exists() else []
    )
    return any(line.split()[1] == wanted and line.split()[3] == "0A" for line in lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(10)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    made = Sshd(tmp_path_factory.mktemp("sshd"))
    yield made
    made.close()


@pytest.fixture
def ports() -> tuple[int, int]:
    return _free_port(), _free_port()


def test_values_both_ways(sshd: Sshd, ports: tuple[int, int]) -> None:
    local, remote = ports
    tunnel = sshd.tunnel(local, remote)
    try:
        with Peer("cloud") as cloud, Peer("home") as home:
            with (
                cloud.listen(f"127.0.0.1:{remote}") as far,
                home.connect(f"127.0.0.1:{local}") as near,
            ):
                value = torch.rand(6 * MIB)
                receive = far.start_receive(timeout=30)
                near.send(value, timeout=30)
                assert torch.equal(receive.result(), value)
                receive = near.start_receive(timeout=30)
                far.send({"prompt": "a cat"}, timeout=30)
                assert receive.result() == {"prompt": "a cat"}
    finally:
        _end(tunnel)


@pytest.mark.parametrize("sender", ["near", "far"])
def test_killed_and_started_again_in_mid_transfer(
    sshd: Sshd, ports: tuple[int, int], sender: str
) -> None:
    local, remote = ports
    tunnel = sshd.tunnel(local, remote)
    try:
        with Peer("cloud") as cloud, Peer("home") as home:
            with (
                cloud.listen(f"127.0.0.1:{remote}") as far,
                home.connect(f"127.0.0.1:{local}") as near,
            ):
                value = torch.rand(48 * MIB)
                pair = (near, far) if sender == "near" else (far, near)
                receive = pair[1].start_receive(timeout=60)
                send = pair[0].start_send(value, quality="raw", timeout=60)
                until(lambda: receive.done_bytes > 16 * MIB, 30, "a third of it")
                _end(tunnel)
                assert not receive.done()
                until(lambda: "lost" in receive.note and "gives up at 5:00" in receive.note, 10)
                stood = receive.done_bytes
                tunnel = sshd.tunnel(local, remote)
                until(lambda: receive.done_bytes > stood, 20, "it goes on")
                assert torch.equal(receive.result(), value)
                send.result()
    finally:
        _end(tunnel)


def test_a_job_and_the_tunnel_killed_in_mid_result(sshd: Sshd, ports: tuple[int, int]) -> None:
    local, remote = ports
    value, made = torch.rand(4 * MIB), torch.rand(48 * MIB)

    def work(job: Taken) -> None:
        assert torch.equal(job.request.values["x"], value)
        job.started()
        job.result("made", made)
        job.done()

    tunnel = sshd.tunnel(local, remote)
    try:
        with Peer("cloud") as cloud, Peer("home") as home:
            assert cloud.serve(Host(work), remote) == f"127.0.0.1:{remote}"
            prompt = {"1": {"class_type": "X", "inputs": {}}}
            request = Request(prompt, values={"x": value}, quality="raw")
            job = home.submit(Remote(f"127.0.0.1:{local}", cloud.own.instance.hex()), request)
            until(lambda: job.done() or job.progress.received > 32 * MIB, 30, "a part of it")
            _end(tunnel)
            until(lambda: "lost" in job.note, 10, "the loss is told")
            assert not job.done()
            tunnel = sshd.tunnel(local, remote)
            assert torch.equal(job.result()["made"], made)
    finally:
        _end(tunnel)


def test_up_with_nobody_behind(
    sshd: Sshd, ports: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    local, remote = ports
    tunnel = sshd.tunnel(local, remote)
    try:
        assert main(["ping", f"127.0.0.1:{local}"]) == 1
        said = capsys.readouterr().out
        assert "a tunnel whose far end has nobody listening" in said
        with Peer("home") as home, home.connect(f"127.0.0.1:{local}") as near:
            receive = near.start_receive(timeout=30)
            until(lambda: "a tunnel with nobody at its far end" in receive.note, 10)
            assert "press Run on the other side" in receive.note
            # And when somebody is there, it goes on.
            with Peer("cloud") as cloud, cloud.listen(f"127.0.0.1:{remote}") as far:
                far.send("at last", timeout=20)
                assert receive.result() == "at last"
                assert main(["ping", f"127.0.0.1:{local}", "--size", "4M"]) == 0
    finally:
        _end(tunnel)


def test_the_far_side_ends_and_the_tunnel_stays(sshd: Sshd, ports: tuple[int, int]) -> None:
    """The other process is gone without a word: each redial is accepted and closed."""
    local, remote = ports
    tunnel = sshd.tunnel(local, remote)
    code = """
        import sys, zbus.machine, zbus.peer
        zbus.peer.boot_id = lambda: "another machine"
        peer = zbus.Peer("cloud")
        channel = peer.listen(sys.argv[1])
        channel.send("hello")
        sys.stdin.read()
    """
    try:
        with child(code, f"127.0.0.1:{remote}") as cloud:
            with Peer("home", settings=Settings(nobody_wait=1.5)) as home:
                with home.connect(f"127.0.0.1:{local}") as near:
                    assert near.receive(timeout=30) == "hello"
                    receive = near.start_receive(timeout=60)
                    cloud.kill()
                    until(receive.done, 15, "an end")
                    with pytest.raises(Exception, match=r"link was lost, and for . s .*tunnel"):
                        receive.result()
    finally:
        _end(tunnel)
