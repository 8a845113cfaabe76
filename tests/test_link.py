"""zbus-link over a real ssh, to an sshd of the test's own: up, kept up, and taken down whole."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from children import ROOT, Child, until
from linked import LINK, Cloud
from sshd import missing

from zbus import Peer, discovery
from zbus.address import parse
from zbus.cli import link
from zbus.cli.linking import book, far, reasons
from zbus.cli.linking.ssh import Result
from zbus.cli.linking.telling import Teller
from zbus.cli.linking.there import There
from zbus.discovery import Entry
from zbus.errors import (
    ConnectError,
    InputError,
    KeyChanged,
    NameNotResolved,
    PairingFailed,
    PortInUse,
    Unreachable,
)
from zbus.job import Request
from zbus.keys import generate, to_text
from zbus.resolver import Resolver
from zbus.trust import EXCHANGE, JOBS, Trust

MIB = 1 << 20
MISSING = missing()
if MISSING:
    print(f"test_link: skipped in part: {MISSING}")
NEEDS_SSHD = pytest.mark.skipif(bool(MISSING), reason=MISSING)
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
NEEDS_SH = pytest.mark.skipif(not Path("/bin/sh").exists(), reason="no /bin/sh")


def made() -> torch.Tensor:
    return torch.rand(12 << 20, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


@pytest.fixture
def make_cloud(tmp_path: Path, here: Path, there: Path) -> Iterator[Callable[..., Cloud]]:
    made: list[Cloud] = []

    def make(*more: str) -> Cloud:
        made.append(Cloud(tmp_path, here, there, *more))
        return made[-1]

    yield make
    for cloud in made:
        cloud.close()


@pytest.fixture
def cloud(make_cloud: Callable[..., Cloud]) -> Cloud:
    return make_cloud()


def port_of(trust: Trust, name: str = "cloud", peer: str = "box-8188") -> int:
    (address,) = dict(trust.named(name).peers)[peer]
    return parse(address).port


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


# --- up and down --------------------------------------------------------------------------------


@NEEDS_SSHD
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_and_down(cloud: Cloud, number: int) -> None:
    cloud.comfyui()
    linking = cloud.up()
    port = port_of(cloud.trust)
    assert port >= book.FIRST_PORT
    # What each may do: values here, jobs there.
    (one,) = cloud.trust.principals()
    assert one.permissions == {EXCHANGE}
    (other,) = Trust(cloud.home).principals()
    assert other.permissions == {EXCHANGE, JOBS} and other.key == cloud.trust.keys.public
    assert other.name == socket.gethostname().split(".")[0] and not other.peers
    # The name works at once.
    remote = Resolver(cloud.trust).named("cloud")
    assert remote.address == f"127.0.0.1:{port}"
    with Peer("home", trust=cloud.trust) as home:
        assert home.enquire(remote).result(20)["jobs"] is True
    assert len(cloud.processes()) == 2
    linking.signal(number)
    said = linking.rest()
    assert linking.process.returncode == 0, said
    assert said.endswith("zbus-link: the link is down")
    assert f"cloud  127.0.0.1:{port}  box-8188" in said
    assert not cloud.processes() and not is_open(port)
    until(lambda: not cloud.sshd.sessions(), what="nobody is logged in")


@NEEDS_SSHD
@pytest.mark.parametrize("whom", ["zbus-link", "all but ssh"])
def test_killed_it_leaves_no_ssh(cloud: Cloud, whom: str) -> None:
    cloud.comfyui()
    linking = cloud.up()
    port, running = port_of(cloud.trust), cloud.processes()
    assert len(running) == 2
    ssh = cloud.ssh()
    if whom != "zbus-link":  # its keeper first
        os.kill(next(pid for pid in running if pid != ssh), signal.SIGKILL)
        linking.line("link lost")
    linking.signal(signal.SIGKILL)
    until(lambda: not cloud.processes() and not is_open(port), 15, "all gone")


@NEEDS_SSHD
def test_killed_while_it_logs_in(cloud: Cloud) -> None:
    """A server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        linking = cloud.link("-p", str(deaf.getsockname()[1]))
        until(lambda: len(cloud.processes()) == 2, what="ssh waits")
        linking.signal(signal.SIGKILL)
        until(lambda: not cloud.processes(), what="all gone")
        linking = cloud.link("-p", str(deaf.getsockname()[1]))
        until(lambda: len(cloud.processes()) == 2, what="ssh waits")
        linking.signal(signal.SIGINT)
        linking.rest()
        assert linking.process.returncode == 1
        assert not cloud.processes()


@NEEDS_SSHD
def test_the_same_port_again_unless_it_is_taken(cloud: Cloud) -> None:
    cloud.comfyui()
    ports = []
    for _ in range(2):
        linking = cloud.up()
        ports.append(port_of(cloud.trust))
        linking.signal(signal.SIGINT)
        linking.rest()
    with socket.create_server(("127.0.0.1", ports[0])):
        cloud.up()
        first, second = dict(cloud.trust.named("cloud").peers)["box-8188"]
    # Who holds the old port may be another zbus-link: it stays, as the second way.
    assert ports[0] == ports[1] and second == f"127.0.0.1:{ports[0]}" != first


@NEEDS_SSHD
def test_two_there(cloud: Cloud) -> None:
    cloud.comfyui("box-8188")
    cloud.comfyui("box-8189")
    linking = cloud.link("--name", "gpus")
    for name in ("gpus/box-8188", "gpus/box-8189"):
        assert Resolver(until(lambda: cloud.trust.principals() and cloud.trust)).named(name)
    linking.line("gpus/box-8189 answers")
    text = "\n".join(linking.lines)
    assert "gpus/box-8188 answers" in text and "gpus/box-8189  127.0.0.1:" in text


@NEEDS_SSHD
def test_json(cloud: Cloud) -> None:
    cloud.comfyui()
    linking = cloud.link("--json", "--name", "gpu", "--forget")
    linking.line('"state"')
    linking.signal(signal.SIGTERM)
    said = linking.rest()
    told = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [one["event"] for one in told] == ["connecting", "paired", "up", "state", "ended"]
    assert told[3] | {"ms": 0, "address": ""} == {
        **dict(event="state", name="gpu", address="", there="box-8188"),
        **dict(ok=True, jobs=True, ms=0, error=None),
    }
    assert cloud.trust.principals() == []  # --forget
    secret = (cloud.here / "secret.key").read_text().splitlines()[-1]
    assert secret not in said


# --- kept up ------------------------------------------------------------------------------------


@NEEDS_SSHD
@pytest.mark.parametrize("how", ["ssh killed", "session killed"])
def test_a_job_goes_on_when_the_link_is_back(cloud: Cloud, how: str) -> None:
    cloud.comfyui()
    linking = cloud.up()
    with Peer("home", trust=cloud.trust) as home:
        prompt = {"1": {"class_type": "X", "inputs": {}}}
        remote = Resolver(cloud.trust).named("cloud")
        job = home.submit(remote, Request(prompt, quality="raw"))
        until(lambda: job.done() or job.progress.received > 8 * MIB, 30, "a part of it")
        if how == "ssh killed":
            os.kill(cloud.ssh(), signal.SIGKILL)
        else:
            cloud.sshd.cut()
        linking.line("link lost, trying again in 0.5 s: ")
        assert not job.done()
        linking.line("link up again")
        assert torch.equal(job.result()["made"], made())
    linking.line("cloud answers")


@NEEDS_SSHD
def test_it_waits_longer_each_time_and_comes_back(cloud: Cloud) -> None:
    cloud.comfyui()
    linking = cloud.up()
    port = port_of(cloud.trust)
    cloud.sshd.close()
    linking.line("link lost, trying again in 0.5 s: ")
    for seconds in (1, 2):
        refused = "nobody listens there: connection refused"
        assert linking.line("lost").endswith(f"trying again in {seconds} s: {refused}")
    cloud.sshd.start()
    linking.line("link up again")
    assert port_of(cloud.trust) == port


@NEEDS_SSHD
def test_a_comfyui_that_comes_later_or_elsewhere(cloud: Cloud) -> None:
    first = cloud.comfyui()
    linking = cloud.up()
    first.kill()
    linking.line("cloud does not answer: ")
    assert not any("open failed" in line for line in linking.lines)
    cloud.comfyui()  # at another port there
    linking.line("cloud answers")
    cloud.comfyui("box-8189")
    cloud.sshd.cut()
    linking.line("link up again")
    linking.line("cloud/box-8189 answers")


# --- without ControlMaster ----------------------------------------------------------------------


@NEEDS_SSHD
def test_where_ssh_cannot_share_a_connection(cloud: Cloud, tmp_path: Path) -> None:
    """As on Windows: every command logs in. Here a name too long for a socket has that effect."""
    folder = tmp_path / ("a folder with a long name " * 4)
    folder.mkdir()
    cloud.comfyui()
    linking = cloud.up(env={"TMPDIR": str(folder)})
    assert not any("-M" in words.split("\0") for words in cloud.processes().values())
    port = port_of(cloud.trust)
    cloud.sshd.cut()
    linking.line("link lost")
    linking.line("link up again")
    linking.line("cloud answers")
    assert port_of(cloud.trust) == port
    cloud.comfyui("box-8189")
    cloud.sshd.cut()
    linking.line("cloud/box-8189 answers")
    linking.signal(signal.SIGKILL)
    until(lambda: not cloud.processes() and not is_open(port), 15, "all gone")


# --- what does not work -------------------------------------------------------------------------


@NEEDS_SSHD
def test_nobody_is_there(cloud: Cloud) -> None:
    linking = cloud.link()
    said = linking.rest()
    assert linking.process.returncode == 1
    assert "no running ComfyUI with zbus was found there. Put zbus into custom_nodes" in said
    cloud.comfyui().kill()  # and one that was there
    assert "no running ComfyUI with zbus was found there" in cloud.link().rest()
    assert not cloud.processes() and not cloud.trust.principals()


@NEEDS_SSHD
def test_its_own_computer(cloud: Cloud) -> None:
    cloud.comfyui()
    cloud.here = cloud.home
    said = cloud.link().rest()
    assert "the zbus there has this user's own key: it is this computer, or a copy of it" in said
    assert not cloud.trust.principals()


@NEEDS_SSHD
def test_a_server_that_forwards_nothing(make_cloud: Callable[..., Cloud]) -> None:
    cloud = make_cloud("AllowTcpForwarding no")
    cloud.comfyui()
    linking = cloud.link()
    said = linking.rest()
    assert linking.process.returncode == 1
    assert "forwarding: its SSH server forbids to forward ports. Have AllowTcpForwarding" in said
    assert not cloud.processes()


@NEEDS_SSHD
def test_refused_logins(cloud: Cloud, tmp_path: Path) -> None:
    key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")]
    subprocess.run(key, check=True, stdin=subprocess.DEVNULL)
    (cloud.sshd.folder / "authorized").write_text((tmp_path / "other.pub").read_text())
    linking = cloud.link()
    said = linking.rest()
    assert linking.process.returncode == 1
    assert (
        "logging in: it does not let you in: " in said and "Permission denied (publickey)" in said
    )
    assert f"Try by hand: ssh -p {cloud.sshd.port} {cloud.sshd.user}@127.0.0.1" in said


@NEEDS_SSHD
def test_another_host_key(cloud: Cloud, tmp_path: Path) -> None:
    name, known = f"[127.0.0.1]:{cloud.sshd.port}", tmp_path / "known"
    kind, key = (cloud.sshd.folder / "user.pub").read_text().split()[:2]
    known.write_text(f"{name} {kind} {key}\n")
    strict = ("-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=ask")
    words = [*strict, *cloud.sshd.options, f"{cloud.sshd.user}@127.0.0.1"]
    linking = Child(LINK, *words, env={"ZBUS_HOME": str(cloud.here)})
    said = linking.rest()
    linking.kill()
    assert linking.process.returncode == 1
    assert "host key: it is not the machine that you knew" in said
    assert f"ssh-keygen -R '{name}'" in said


@NEEDS_SSHD
@NEEDS_PROC
def test_a_passphrase_is_asked_for_once_at_the_terminal(cloud: Cloud, tmp_path: Path) -> None:
    import pty

    key = str(cloud.sshd.folder / "user")
    change = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", key]
    subprocess.run(change, check=True, stdin=subprocess.DEVNULL)
    cloud.comfyui()
    command = [
        sys.executable,
        "-B",
        "-c",
        textwrap.dedent(LINK),
        *cloud.sshd.login,
        f"{cloud.sshd.user}@127.0.0.1",
    ]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(ZBUS_HOME=str(cloud.here), PYTHONPATH=str(ROOT))
        os.execv(command[0], command)
    said = ""

    def read() -> str:
        nonlocal said
        with contextlib.suppress(OSError):
            if select.select([terminal], [], [], 0.05)[0]:
                said += os.read(terminal, 65536).decode(errors="replace")
        return said

    try:
        until(lambda: "Enter passphrase for key" in read(), 20, "it is asked for")
        os.write(terminal, b"open sesame\n")
        until(lambda: "up 0:00:0" in read(), 30, said)
        assert said.count("Enter passphrase") == 1
        # Once it is lost nobody is asked, and it says so.
        cloud.sshd.cut()
        until(lambda: "it does not let you in" in read(), 20, said)
        os.write(terminal, b"\x03")
        until(lambda: "the link is down" in read(), 20, said)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
    assert not cloud.processes()


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("-oProxyCommand=touch x", "is no host"),
        ("", "is no host"),
        ("a b", "is no host"),
        ("a\nb", "is no host"),
        ("me@ssh.runpod.io", 'Take "SSH over exposed TCP"'),
    ],
)
def test_hosts_that_cannot_be(host: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        reasons.check_host(host)


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        ("ssh: Could not resolve hostname x: Name or service not known", NameNotResolved, "spell"),
        ("ssh: connect to host x port 22: Connection refused", Unreachable, "Check the port"),
        ("ssh: connect to host x port 22: Connection timed out", Unreachable, "timed out"),
        ("Connection timed out during banner exchange", Unreachable, "timed out"),
        ("x\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
         KeyChanged, r"ssh-keygen -R '\[h\]:2022'"),
        ("No ED25519 host key is known\nHost key verification failed.", ConnectError, "answer yes"),
        ("@ WARNING: UNPROTECTED PRIVATE KEY FILE! @\nu@h: Permission denied (publickey).",
         ConnectError, "chmod 600"),
        ("u@h: Permission denied (publickey).", ConnectError, r"ssh -p 2022 u@h"),
        ("Error: Your SSH client doesn't support PTY", ConnectError, "exposed TCP"),
        ("channel 2: open failed: connect failed: Connection refused\nWarning: Permanently added x",
         Unreachable, "ssh has ended without a word"),
        ("Connection to h closed by remote host.", Unreachable, "closed by remote host"),
        ("", Unreachable, "without a word"),
    ],
)  # fmt: skip
def test_words_of_ssh(said: str, kind: type[ConnectError], text: str) -> None:
    error = reasons.reason(said.split("\n"), "u@h", 2022)
    assert type(error) is kind
    with pytest.raises(kind, match=text):
        raise error


def test_arguments_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    link.arguments(parser)
    for words, text in (
        (["-i", str(tmp_path / "none"), "h"], "which is no file"),
        (["--name", "a/b", "h"], "cannot be a name"),
        (["--", "-h"], "is no host"),
    ):
        assert link.run(parser.parse_args(words)) == 2
        assert text in capsys.readouterr().err
    for words in (["-p", "0", "h"], ["-p", "x", "h"], []):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(words)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    parser = argparse.ArgumentParser()
    link.arguments(parser)
    assert link.run(parser.parse_args(["h"])) == 2
    assert "there is no ssh on this computer. Install OpenSSH" in capsys.readouterr().err


# --- the look, there ----------------------------------------------------------------------------


def entry_of(pid: int, home: Path, name: str = "box-8188", **more: Any) -> Entry:
    started = discovery._start(pid) or ""
    made = Entry("0" * 31 + "1", name, "127.0.0.1:18188", pid, started, "boot", **more)
    discovery.register(made, home)
    return made


class Local:
    """A shell on this machine, with an environment of its own."""

    def __init__(self, **environment: object) -> None:
        self.environment = {"PATH": os.environ["PATH"]} | {
            k: str(v) for k, v in environment.items()
        }

    def ask(self, script: str) -> Result:
        done = subprocess.run(
            ["/bin/sh", "-s"],
            input=script,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr.splitlines())


@pytest.fixture
def alive() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    with process:
        yield process
        process.kill()


@NEEDS_SH
@NEEDS_PROC
def test_where_it_looks(tmp_path: Path, alive: subprocess.Popen[bytes]) -> None:
    folders = {
        "HOME": tmp_path / "it's home" / ".local/share/zbus",
        "XDG_DATA_HOME": tmp_path / "xdg/zbus",
        "ZBUS_HOME": tmp_path / "named",
    }
    variables = {"HOME": tmp_path / "it's home", "XDG_DATA_HOME": tmp_path / "xdg"}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        entry_of(alive.pid, folder, name)
    lines = far._ours(Local(**variables).ask(far.FIND).output)
    found = {home.path: [entry.name for entry in home.entries] for home in far.parse(lines)}
    # There may be more: of programs that run here now.
    assert found[str(folders["HOME"])] == ["HOME"]
    assert found[str(folders["XDG_DATA_HOME"])] == ["XDG_DATA_HOME"]
    # One that is named counts alone.
    (home,) = far.find(Local(**variables, ZBUS_HOME=folders["ZBUS_HOME"]))
    assert (home.path, home.entries[0].name) == (str(folders["ZBUS_HOME"]), "ZBUS_HOME")


@NEEDS_SH
@NEEDS_PROC
@pytest.mark.parametrize("variable", ["ZBUS_HOME", "XDG_DATA_HOME", "HOME"])
def test_the_folders_of_running_programs_count(tmp_path: Path, variable: str) -> None:
    where = {"ZBUS_HOME": "", "XDG_DATA_HOME": "zbus", "HOME": ".local/share/zbus"}[variable]
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-S", "-c", "input()"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, env={variable: str(tmp_path)}) as process:
        entry_of(process.pid, tmp_path / where)
        lines = far._ours(Local(HOME="/nonexistent").ask(far.FIND).output)
        process.kill()
    assert str(tmp_path / where) in [home.path.rstrip("/") for home in far.parse(lines)]


@NEEDS_SH
@NEEDS_PROC
def test_what_is_passed_over(tmp_path: Path, alive: subprocess.Popen[bytes]) -> None:
    peers = tmp_path / "peers"
    good = entry_of(alive.pid, tmp_path)
    text = json.dumps(asdict(good))

    def put(name: str, change: dict[str, Any] | str) -> None:
        said = change if isinstance(change, str) else json.dumps(asdict(good) | change)
        (peers / f"{name}.json").write_text(said)

    put("dead", {"instance": "2" * 32, "pid": 2**31, "name": "dead"})
    put("another process", {"instance": "3" * 32, "started": "1", "name": "another"})
    put("large", {"instance": "4" * 32, "name": "large"} | {"more": "x" * 9000})
    put("far off", {"instance": "5" * 32, "address": "10.0.0.1:18188", "name": "off"})
    put("no json", f"{{ {text}")
    put("deep", f'"pid": {alive.pid}' + "[" * 8000)
    put("empty", "")
    put("unasked", f'{{"pid": {alive.pid}}}\nzbus-link: home /etc\nzbus-link: foreign me\n')
    (peers / "linked.json").symlink_to(peers / "dead.json")
    os.mkfifo(peers / "pipe.json")
    (home,) = far.find(Local(ZBUS_HOME=tmp_path))
    assert home.entries == (good,)


@NEEDS_SH
def test_another_users_folders_are_not_used(tmp_path: Path, alive: subprocess.Popen[bytes]) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can make files of another user")
    entry_of(alive.pid, tmp_path / "zbus")
    for path in (tmp_path / "zbus", tmp_path / "zbus/peers"):
        os.chown(path, 65534, 65534)
        with pytest.raises(ConnectError, match=r"other users have zbus: .*Log in as the user"):
            far.find(Local(ZBUS_HOME=tmp_path / "zbus"))
    os.chown(tmp_path / "zbus", 0, 0)
    # Nor one of this user that is linked into theirs.
    (tmp_path / "mine").mkdir()
    entry_of(alive.pid, tmp_path / "mine")
    (tmp_path / "bait").mkdir()
    (tmp_path / "bait/peers").symlink_to(tmp_path / "mine/peers")
    with pytest.raises(ConnectError, match="no running ComfyUI"):
        far.find(Local(ZBUS_HOME=tmp_path / "bait"))


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Result(1, "", ["'exec' is not recognized as an internal or external command"]), "Windows"),
        (Result(0, "zbus-link: begin MINGW64_NT\nzbus-link: end\n", []), "that is Windows"),
        (Result(0, "zbus-link: begin Linux\n", []), "has not come to its end"),
        (Result(0, "motd\nzbus-link: begin Linux\nzbus-link: end\n", []), "no running ComfyUI"),
        (Result(0, "zbus-link: \n\0\xff", []), "no POSIX shell"),
    ],
)
def test_answers_that_are_none(result: Result, text: str) -> None:
    class Shell:
        def ask(self, script: str) -> Result:
            return result

    with pytest.raises(ConnectError, match=text):
        far.find(Shell())


@NEEDS_SH
def test_pairing_there_quotes_what_is_variable(tmp_path: Path) -> None:
    folder = tmp_path / "it's; touch gone; $(touch gone) `touch gone`"
    folder.mkdir()
    (folder / "zbus").symlink_to(ROOT / "zbus")
    home, key = tmp_path / "a home\\", generate().public
    entry = Entry(
        "1" * 32, "box", "127.0.0.1:18188", 1, "", "", python=sys.executable, folder=str(folder)
    )
    shell = Local(HOME=tmp_path)
    found = far.pair(shell, far.Home(str(home), (entry,)), key, "-it's $HOME")
    assert found == Trust(home).keys.public
    (one,) = Trust(home).principals()
    assert (one.key, one.name, one.permissions) == (key, "-it's $HOME", {EXCHANGE, JOBS})
    assert not list(tmp_path.rglob("gone"))
    with pytest.raises(PairingFailed, match=r"could not pair: .*Look at it there: cd "):
        broken = replace(entry, folder=str(tmp_path))
        far.pair(shell, far.Home(str(home), (broken,)), key, "x")
    with pytest.raises(ConnectError, match="an older one"):
        far.pair(shell, far.Home(str(home), (replace(entry, python=""),)), key, "x")
    assert shlex.quote(str(folder)) != str(folder)


# --- the store, here ----------------------------------------------------------------------------


def test_what_the_store_is_told(here: Path) -> None:
    trust, key, other = Trust(here), generate().public, generate().public
    trust.pair(other, "cloud", {EXCHANGE}, (("old", ("127.0.0.1:28188", "10.0.0.2:18188")),))
    one = book.enter(trust, key, "cloud", {"box": 28188})
    assert (one.name, one.peers) == ("cloud-2", (("box", ("127.0.0.1:28188",)),))
    # An old link's port leads to nobody else now.
    assert trust.named("cloud").peers == (("old", ("10.0.0.2:18188",)),)
    # What was there before stays, but for tunnels that stand no more.
    with socket.create_server(("127.0.0.1", 0)) as tunnel:
        stands = f"127.0.0.1:{tunnel.getsockname()[1]}"
        ways = ("10.0.0.1:18188", "127.0.0.1:28190", stands, "http://127.0.0.1:8188")
        gone, comes = ("127.0.0.1:28191",), ()
        trust.pair(key, "mine", {JOBS}, (("box", ways), ("gone", gone), ("comes", comes)))
        one = book.enter(trust, key, "", {"box": 28189})
    assert (one.name, one.permissions) == ("mine", {EXCHANGE, JOBS})
    assert dict(one.peers) == {
        "box": ("127.0.0.1:28189", "10.0.0.1:18188", stands, "http://127.0.0.1:8188"),
        "comes": (),
    }
    holder = book.holder(trust, "CLOUD", [key])
    assert holder is not None and holder.key == other
    assert book.holder(trust, "cloud", [other]) is None
    assert book.enter(trust, key, "cloud", {"box": 28189}, holder).name == "cloud"
    assert [one.key for one in trust.principals()] == [key]


def test_ports(here: Path) -> None:
    trust, key = Trust(here), generate().public
    first = book.ports(trust, key, ["a", "b"], {}, set())
    assert first["a"] != first["b"] and min(first.values()) >= book.FIRST_PORT
    taken = set(first.values())
    second = book.ports(trust, key, ["a", "b"], {}, taken)
    assert not taken & set(second.values())
    book.enter(trust, key, "cloud", second)
    assert book.ports(trust, key, ["a", "b"], {}, set()) == second  # the last ones
    held = {"a": first["a"]}
    assert book.ports(trust, key, ["a"], held, set()) == held
    with socket.create_server(("127.0.0.1", second["a"])):
        assert book.ports(trust, key, ["a"], {}, set())["a"] != second["a"]
    # This computer's own port is none, whatever the store says.
    trust.move("cloud", ["127.0.0.1:18188"], "a")
    assert book.ports(trust, key, ["a"], {}, set())["a"] >= book.FIRST_PORT


def test_the_script_says_how_it_is_used() -> None:
    script = ROOT / "scripts" / "zbus-link"
    ended = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0 and "vast.ai" in ended.stdout


class Canned:
    """What stands in for ssh: two users' ComfyUIs there; `refused` ports are taken."""

    def __init__(self, *refused: int) -> None:
        self.keys = {"/a": generate().public, "/b": generate().public}
        self.names = {"/a": ["one", "two"], "/b": ["one"]}
        self.refused, self.forwards = set(refused), dict[int, Any]()
        self.asked: list[str] = []

    def ask(self, script: str) -> Result:
        if script == far.FIND:
            lines = ["begin Linux"]
            for home, names in self.names.items():
                for number, name in enumerate(names):
                    made = Entry(
                        f"{number}" * 32, name, f"127.0.0.1:{18188 + number}", 7, "", "",
                        python="/python", folder="/zbus",
                    )  # fmt: skip
                    lines += [f"home {home}", "stat alive", f"entry {json.dumps(asdict(made))}"]
            return Result(0, "".join(f"zbus-link: {line}\n" for line in [*lines, "end"]), [])
        home = "/a" if "ZBUS_HOME=/a " in script else "/b"
        self.asked.append(home)
        told = json.dumps({"key": to_text(self.keys[home]), "name": "far"})
        return Result(0, f"noise\nzbus-link: begin\n{told}", [])

    def forward(self, wanted: dict[int, Any]) -> None:
        for port in wanted:
            if port in self.refused:
                raise PortInUse("taken", peer=str(port))
        self.forwards = dict(wanted)


def test_two_users_there_and_ports_that_turn_out_to_be_taken(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust, ssh = Trust(here), Canned(28188, 28190)
    there = There(ssh, trust, Teller(False), "", False)  # type: ignore[arg-type]
    there.look()
    assert {one.name for one in trust.principals()} == {"cloud", "cloud-2"}
    ports = {one.name: one.port for one in there.all}
    assert set(ports) == {"cloud/one", "cloud/two", "cloud-2"}
    assert {str(ssh.forwards[port]) for port in ports.values()} == {
        "127.0.0.1:18188",
        "127.0.0.1:18189",
    }
    assert not ssh.refused & set(ports.values()) and len(set(ports.values())) == 3
    for name, port in ports.items():
        assert Resolver(trust).named(name).address == f"127.0.0.1:{port}"
    # Nothing has changed: nobody is paired anew, and all stays.
    before = there.all
    there.look()
    assert there.all == before and ssh.asked == ["/a", "/b"]
    # One is gone for now, and another comes.
    ssh.names["/b"] = ["three"]
    there.look()
    assert {one.name for one in there.all} >= {"cloud-2/three", "cloud-2/one"}
    capsys.readouterr()
    there.forget()
    assert trust.principals() == []


def test_a_name_that_means_others_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZBUS_HOME", str(here))
    trust, ssh = Trust(here), Canned()
    ssh.names = {"/b": ["one"]}
    trust.pair(generate().public, "gpu", {EXCHANGE}, ())
    discovery.register(Entry.of_this_process("5" * 32, "gpu-2", "127.0.0.1:18188"), here)
    There(ssh, trust, Teller(False), "gpu", False).look()  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert 'it is "gpu-2" here' in said.out
    assert 'another machine is called "gpu" here' in said.err
    assert "'gpu-2' could be 2 peers: " in said.err
    There(ssh, trust, Teller(False), "gpu", True).look()  # type: ignore[arg-type]
    assert [one.name for one in trust.principals()] == ["gpu"]
