"""zbus-ping against all that can be behind an address, on real sockets."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp.web
import pytest
from children import LISTENER, ROOT, child, until
from website import Site, door

from zbus import Peer, discovery, probe
from zbus.__main__ import main
from zbus.keys import fingerprint, short, to_text
from zbus.protocol import handshake
from zbus.protocol.messages import VERSION
from zbus.trust import EXCHANGE, PERMISSIONS, Trust

SCRIPT = ROOT / "scripts" / "zbus-ping"
LEGS = ["name", "tcp", "greeting", "handshake", "version", "round trip", "up", "down"]

JSON_KEYS = ["address", "ok", "legs", "peer", "round_trip", "throughput", "jobs"]
JOB_KEYS = [
    "permitted",
    "runs_prompts",
    "queue",
    "devices",
    "ram",
    "comfyui",
    "zbus",
    "torch",
    "python",
    "os",
]
GIB = 1 << 30
FACTS = {
    "comfyui": "0.3.75",
    "python": "3.12.3",
    "torch": "2.9.0",
    "os": "Linux-6.8",
    "runs_prompts": True,
    "queue": {"running": 1, "pending": 2},
    "devices": [{"name": "cuda:0 Card", "type": "cuda", "total": 24 * GIB, "free": 20 * GIB}],
    "ram": {"name": "x86_64", "type": "cpu", "total": 64 * GIB, "free": 32 * GIB},
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def zbus_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of names of its own."""
    home = tmp_path / "zbus-home"
    monkeypatch.setenv("ZBUS_HOME", str(home))
    return home


@pytest.fixture
def ping(capsys: pytest.CaptureFixture[str]) -> Run:
    """``ping(arguments...)`` -> exit status, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(["ping", *arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@contextlib.contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server that calls `handle` with each connection, then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link, contextlib.suppress(OSError):
                    handle(link)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        ended.set()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def failed_leg(out: str) -> str:
    """The name of the one leg that failed, by its line."""
    lines = [line for line in out.splitlines() if "  FAIL  " in line]
    assert len(lines) == 1, out
    return lines[0].split("FAIL")[0].strip()


# --- what works ---------------------------------------------------------------------------------


def test_every_leg_works(ping: Run) -> None:
    with Peer("desk-8188") as peer, peer.listen("127.0.0.1:0") as channel:
        status, out, err = ping(channel.address, "--size", "3M", "-n", "7")
    assert (status, err) == (0, "")
    assert [line[2:12].strip() for line in out.splitlines()[1:]] == LEGS
    assert out.count("  ok    ") == len(LEGS)
    assert "desk-8188, zbus " in out and "(7 pings)" in out
    assert out.count("3.0 MiB in ") == out.count(", verified") == 2


def test_json_has_the_same_keys_whatever_came_out(ping: Run, addr: str) -> None:
    with Peer("desk-8188") as peer, peer.listen("127.0.0.1:0") as channel:
        status, out, _ = ping(channel.address, "--size", "3M", "-n", "7", "--json")
    good = json.loads(out)
    refused_status, out, _ = ping(addr, "--json")
    bad = json.loads(out)
    assert (status, refused_status) == (0, 1)
    assert list(good) == list(bad)
    assert list(good) == JSON_KEYS
    assert (good["ok"], bad["ok"]) == (True, False)
    keys = {"name", "ok", "text", "seconds", "remedy", "error"}
    assert all(set(leg) == keys for leg in [*good["legs"], *bad["legs"]])
    assert [leg["name"] for leg in good["legs"]] == LEGS
    assert good["peer"]["name"] == "desk-8188"
    trip = good["round_trip"]
    assert trip["count"] == 7 and 0 < trip["min"] <= trip["median"] <= trip["p99"] < 5
    assert good["throughput"]["size"] == 3 << 20
    for way in ("up", "down"):
        measured = good["throughput"][way]
        assert measured["bytes_per_second"] == pytest.approx((3 << 20) / measured["seconds"])
    assert [(leg["name"], leg["ok"]) for leg in bad["legs"]] == [("name", True), ("tcp", False)]
    assert bad["legs"][1]["error"] == "Unreachable"
    assert bad["peer"] is bad["round_trip"] is bad["throughput"] is bad["jobs"] is None
    assert good["jobs"] is None  # not asked


def test_all_addresses_of_a_name_are_looked_at(
    ping: Run, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "resolve_all", lambda _: ["127.0.0.2", "127.0.0.3"])
    with Peer("there") as there, there.listen(f"127.0.0.3:{free_port}"):
        status, out, _ = ping(f"two.example:{free_port}", "--size", "0")
    assert status == 0 and "127.0.0.2, 127.0.0.3" in out
    status, out, _ = ping(f"two.example:{free_port}")
    assert (status, failed_leg(out)) == (1, "tcp") and "refused" in out


def test_size_0_leaves_the_block_out(ping: Run) -> None:
    with Peer() as peer, peer.listen("127.0.0.1:0") as channel:
        status, out, _ = ping(channel.address, "--size", "0")
    assert status == 0
    assert "up  " not in out and "round trip" in out


def test_it_disturbs_no_run(ping: Run) -> None:
    with Peer() as here, Peer() as there, here.listen("127.0.0.1:0") as listening:
        with there.connect(listening.address) as dialled:
            receive = listening.start_receive(0)
            assert ping(listening.address, "--size", "1M")[0] == 0
            dialled.send("still there", 0, timeout=10)
            assert receive.result() == "still there"


@pytest.mark.parametrize("command", ["script", "module"])
def test_it_runs_without_torch(command: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    module = [sys.executable, "-m", "zbus", "ping"]
    start = [sys.executable, str(SCRIPT)] if command == "script" else module
    with child(LISTENER, "127.0.0.1:0", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as listener:
        address = listener.line("listening").split()[1]
        ended = subprocess.run(
            [*start, address, "--size", "2M"],
            env=env,
            # The script finds zbus by itself, from anywhere.
            cwd=tmp_path if command == "script" else ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("  ok  ") == len(LEGS)


# --- what does not ------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["8282", "localhost", "h:0", "h:70000", "h:8188/x", "::1"])
def test_an_address_that_is_none(ping: Run, address: str) -> None:
    status, out, err = ping(address)
    assert (status, out) == (2, "")
    assert err.startswith("zbus-ping: ") and 'Write it as "host:port"' in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "wrong", [("--size", "lots"), ("--size", "-1"), ("-n", "0"), ("--timeout", "0"), ("--size", "")]
)
def test_an_argument_that_is_none(ping: Run, wrong: tuple[str, str]) -> None:
    status, out, err = ping("127.0.0.1:8282", *wrong)
    assert (status, out) == (2, "")
    assert wrong[0] in err


@pytest.mark.parametrize(
    ("written", "size"),
    [("64M", 64 << 20), ("1G", 1 << 30), ("1.5KiB", 1536), ("7", 7), ("2mb", 2 << 20)],
)
def test_sizes(written: str, size: int) -> None:
    from zbus.cli.ping import _size

    assert _size(written) == size


def test_a_name_that_is_not_known(ping: Run) -> None:
    status, out, _ = ping("no-such-host.invalid:8282")
    assert (status, failed_leg(out)) == (1, "name")
    assert '"no-such-host.invalid" is not known' in out and "spelling" in out


def test_nobody_listens(ping: Run, addr: str) -> None:
    status, out, _ = ping(addr)
    assert (status, failed_leg(out)) == (1, "tcp")
    assert "connection refused" in out and "No Server node has run there yet" in out


def test_a_tunnel_with_nobody_behind(ping: Run) -> None:
    with serving(lambda link: None) as address:
        status, out, _ = ping(address)
    assert (status, failed_leg(out)) == (1, "greeting")
    assert "a tunnel whose far end has nobody listening" in out
    assert "No Server node has run there yet" in out


def test_a_web_server(ping: Run) -> None:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        began = time.monotonic()
        status, out, _ = ping(f"127.0.0.1:{server.server_address[1]}", "--timeout", "2")
        took = time.monotonic() - began
        server.shutdown()
    assert (status, failed_leg(out)) == (1, "greeting")
    assert "a web server answers there, not a zbus peer" in out and "8282" in out
    assert took < 5


@pytest.mark.parametrize(
    ("banner", "guess"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "an SSH server"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a web server"),
        (b"220 mail ready\r\n", "another program"),
    ],
)
def test_a_program_that_speaks_first(ping: Run, banner: bytes, guess: str) -> None:
    with serving(lambda link: (link.sendall(banner), link.recv(100))[0]) as address:
        status, out, _ = ping(address)
    assert (status, failed_leg(out)) == (1, "greeting")
    assert f"{guess} answers there, not a zbus peer" in out


def test_an_original_jumper(ping: Run) -> None:
    """Its Server reads, and raises unless it has read what its own Client says."""

    def jumper(link: socket.socket) -> None:
        if link.recv(1024) == b"jumper_client":
            link.sendall(b"jumper_server")

    with serving(jumper) as address:
        status, out, _ = ping(address)
    assert (status, failed_leg(out)) == (1, "greeting")
    assert "not a zbus peer" in out and "ComfyUI-Jumper" in out and "install zbus there" in out


def test_a_port_that_says_nothing(ping: Run) -> None:
    with serving(lambda link: (link.settimeout(20), link.recv(100), link.recv(100))[0]) as address:
        began = time.monotonic()
        status, out, _ = ping(address, "--timeout", "0.5")
        took = time.monotonic() - began
    assert (status, failed_leg(out)) == (1, "greeting")
    assert "says nothing" in out and took < 5


def test_zeromq_that_is_not_zbus(ping: Run) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.ROUTER) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        status, out, _ = ping(f"127.0.0.1:{port}", "--timeout", "0.5")
    assert (status, failed_leg(out)) == (1, "handshake")
    assert "no answer to HELLO in 0.5 s" in out and "has not answered" in out


def test_zeromq_that_answers_nonsense(ping: Run) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.ROUTER) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        stop = threading.Event()

        def answer() -> None:
            while not stop.is_set():
                if other.poll(20):
                    identity, *_ = other.recv_multipart()
                    other.send_multipart([identity, b"hello yourself"])

        thread = threading.Thread(target=answer)
        thread.start()
        began = time.monotonic()
        status, out, _ = ping(f"127.0.0.1:{port}", "--timeout", "8")
        took = time.monotonic() - began
        stop.set()
        thread.join()
    assert (status, failed_leg(out)) == (1, "handshake")
    assert "not a message" in out or "not msgpack" in out
    assert took < 5  # it is sure, and does not wait for the time to be over


@pytest.mark.parametrize("theirs", [(VERSION + 1, VERSION + 2), (7, 7)])
def test_versions_that_do_not_fit(
    ping: Run, theirs: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Peer("newer") as peer, peer.listen("127.0.0.1:0") as channel:
        links = peer._engine.links
        links._greetings._own = replace(links._greetings._own, versions=theirs)
        monkeypatch.setattr(
            handshake.Handshake,
            "_check",
            _check_on_the_dialling_side_only(handshake.Handshake._check),
        )
        status, out, _ = ping(channel.address, "--timeout", "3")
    assert (status, failed_leg(out)) == (1, "version")
    assert f"speaks protocol {theirs[0]} to {theirs[1]}" in out
    assert "Update zbus on " in out


def _check_on_the_dialling_side_only(check: Callable[..., None]) -> Callable[..., None]:
    return lambda self, peer: check(self, peer) if self.dialled else None


def test_a_version_that_the_other_side_rejects(ping: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener sees the old version first, and its words are read on the other side."""
    with Peer("newer") as peer, peer.listen("127.0.0.1:0") as channel:
        monkeypatch.setattr(
            handshake,
            "VERSION",
            5,
        )
        status, out, _ = ping(channel.address, "--timeout", "3")
    assert (status, failed_leg(out)) == (1, "version")
    assert " speaks 5" in out and "Update zbus on " in out


# --- a peer that stops in the middle -------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_peer_that_stops_in_the_middle_of_the_block(how: str) -> None:
    pinging = """
        import sys
        from zbus.__main__ import main
        sys.exit(main(["ping", *sys.argv[1:]]))
    """
    with child(LISTENER, "127.0.0.1:0") as listener:
        address = listener.line("listening").split()[1]
        with child(pinging, address, "--size", "1T", "--timeout", "1.5") as ping:
            ping.line("round trip")
            busy = listener.cpu() + 0.2
            until(lambda: listener.cpu() > busy, what="a block under way")
            listener.signal(signal.SIGSTOP if how == "stop" else signal.SIGKILL)
            began = time.monotonic()
            if how == "kill":
                listener.process.wait(10)
            out = ping.rest(within=15)
            took = time.monotonic() - began
    assert (ping.process.returncode, failed_leg(out)) == (1, "up")
    assert "listener: " in out
    if how == "stop":
        assert "stopped answering in the middle of the block (up): nothing for 1.5 s" in out
        assert took < 6
    else:
        assert "its process (pid " in out and took < 3


def test_a_peer_that_is_stopped_from_the_start(ping: Run) -> None:
    with child(LISTENER, "127.0.0.1:0") as listener:
        address = listener.line("listening").split()[1]
        listener.stop()
        status, out, _ = ping(address, "--timeout", "0.5")
    assert (status, failed_leg(out)) == (1, "greeting")
    assert "says nothing" in out and "stopped or hangs" in out


def test_the_pipe_is_closed_early(addr: str) -> None:
    ended = subprocess.run(
        f"{sys.executable} {SCRIPT} {addr} | true", shell=True, capture_output=True, timeout=30
    )
    assert b"Traceback" not in ended.stderr


# --- names ---------------------------------------------------------------------------------------


class Host:
    """Runs no job, and tells `facts`."""

    def __init__(self, facts: Any = FACTS) -> None:
        self._facts = facts

    def submitted(self, job: Any) -> None:
        raise AssertionError("a ping gives no jobs")

    cancel = forget = submitted

    def facts(self) -> Any:
        return self._facts() if callable(self._facts) else self._facts


def register(peer: Peer, address: str, instance: str = "", name: str = "") -> None:
    entry = discovery.Entry.of_this_process(
        instance or peer.own.instance.hex(),
        name or peer.name,
        address,
        key=to_text(peer.trust.keys.public),
    )
    discovery.register(entry)


def serve(peer: Peer, host: Any = None) -> str:
    """Have it take jobs, and this user's others know it; its address."""
    address = peer.serve(host or Host())
    register(peer, address)
    return address


def legs(out: str) -> list[tuple[str, str]]:
    """(leg, ok or FAIL) of each."""
    lines = [line for line in out.splitlines()[1:] if line[2:3].strip()]
    return [(line[2:12].strip(), line[14:18].strip()) for line in lines]


def test_a_peer_by_its_name(ping: Run) -> None:
    with Peer("Desk-8188") as peer:
        address = serve(peer)
        status, out, err = ping("desk-8188", "--size", "0")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"zbus-ping Desk-8188 at {address}"
    assert legs(out) == [(leg, "ok") for leg in [*LEGS[:5], "identity", "round trip"]]


def test_another_peer_of_this_user_answers_at_the_address_of_that_name(ping: Run) -> None:
    with Peer("stranger") as peer:
        register(peer, peer.serve(Host()), "a" * 32, "desk-8188")
        status, out, _ = ping("desk-8188", "--jobs")
    assert (status, failed_leg(out)) == (1, "identity")
    assert "stranger answers there, and not desk-8188" in out and "ssh -N -L 127.0.0.1:" in out


def test_nobody_listens_where_the_name_says(ping: Run, addr: str) -> None:
    with Peer("desk-8188") as peer:
        register(peer, addr)
        status, out, _ = ping("desk-8188")
    assert (status, failed_leg(out)) == (1, "tcp")
    assert "whether that ComfyUI still runs" in out and "Server node" not in out


def test_an_unknown_name_tells_the_known_ones(ping: Run, addr: str) -> None:
    with Peer("desk-8188") as peer, Peer("cloud-8188") as other:
        register(peer, addr)
        register(other, addr)
        status, out, err = ping("dsk-8188")
    assert (status, out) == (2, "")
    assert "no peer named 'dsk-8188' here; known: cloud-8188, desk-8188" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("nothing", [(), ("",), ("  ", "--jobs")])
def test_no_target_lists_the_known_ones(ping: Run, addr: str, nothing: tuple[str, ...]) -> None:
    status, out, err = ping(*nothing)
    assert (status, out) == (2, "")
    assert err.startswith("zbus-ping: which peer? None is known on this machine")
    with Peer("desk-8188") as peer, Peer("cloud") as other:
        register(peer, addr)
        register(other, addr)
        status, out, err = ping(*nothing)
    assert (status, out) == (2, "")
    assert err.startswith("zbus-ping: which peer? Give ")
    assert err.splitlines()[1:] == [f"  cloud      {addr}", f"  desk-8188  {addr}"]


def test_words_of_the_peer_do_not_command_the_terminal(ping: Run) -> None:
    with Peer("desk\x1b[31m\r\nred\x9b2J\u202e") as peer, peer.listen("127.0.0.1:0") as channel:
        status, out, _ = ping(channel.address, "--size", "0")
        json_out = json.loads(ping(channel.address, "--size", "0", "--json")[1])
    assert status == 0
    assert "  ok    desk [31m red 2J, zbus " in out
    assert out.replace("\n", "").isprintable()
    assert json_out["peer"]["name"].isprintable()


def test_a_name_that_the_terminal_cannot_show() -> None:
    with Peer("\u673a-8188") as peer, peer.listen("127.0.0.1:0") as channel:
        ended = subprocess.run(
            [sys.executable, str(SCRIPT), channel.address, "--size", "0"],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            timeout=60,
        )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"\\u673a-8188" in ended.stdout


# --- jobs ----------------------------------------------------------------------------------------


def test_jobs(ping: Run) -> None:
    with Peer("desk-8188") as peer:
        status, out, err = ping(serve(peer), "--jobs", "--size", "1M")
    assert (status, err) == (0, "")
    expected = [*LEGS[:5], "identity", *LEGS[5:], "jobs"]
    assert legs(out) == [(leg, "ok") for leg in expected]
    version = peer.own.software.split()[1]
    assert [line[20:] for line in out.splitlines()[-4:]] == [
        "permitted; queue: 1 running, 2 pending",
        f"ComfyUI 0.3.75, zbus {version}, torch 2.9.0, Python 3.12.3, Linux-6.8",
        "cuda:0 Card: 20.00 GiB of 24.00 GiB free",
        "RAM: 32.00 GiB of 64.00 GiB free",
    ]


def test_jobs_where_no_prompts_run_any_more(ping: Run) -> None:
    with Peer("desk-8188") as peer:
        serve(peer, Host({**FACTS, "runs_prompts": False}))
        status, out, _ = ping("desk-8188", "--jobs", "--size", "0")
        told = json.loads(ping("desk-8188", "--jobs", "--size", "0", "--json")[1])
    assert (status, failed_leg(out)) == (1, "jobs")
    assert "desk-8188: runs no prompts any more: start it again\n" in out
    assert told["legs"][-1]["error"] == "RunsNoPrompts" and not told["jobs"]["runs_prompts"]


def test_one_where_no_prompts_run_any_more_is_told_unasked(ping: Run) -> None:
    with Peer("desk-8188") as peer:
        serve(peer, Host({**FACTS, "runs_prompts": False}))
        status, out, _ = ping("desk-8188", "--size", "0")
        told = json.loads(ping("desk-8188", "--size", "1M", "--json")[1])
    assert (status, failed_leg(out)) == (1, "prompts")
    assert out.endswith("desk-8188: runs no prompts any more: start it again\n")
    assert (told["ok"], told["legs"][-1]["error"], told["jobs"]) == (False, "RunsNoPrompts", None)


@pytest.mark.parametrize("facts", [FACTS, {}, {**FACTS, "runs_prompts": None}])
def test_nothing_is_said_of_prompts_that_run_or_may_run(ping: Run, facts: dict[str, Any]) -> None:
    with Peer("desk-8188") as peer:
        serve(peer, Host(facts))
        status, out, _ = ping("desk-8188", "--size", "0", "-n", "1")
    assert (status, legs(out)[-1]) == (0, ("round trip", "ok"))


def test_nobody_waits_for_what_was_not_asked_for(
    ping: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zbus.cli.ping.ASIDE", 0.0)
    go = threading.Event()
    with Peer("hangs") as peer:
        serve(peer, Host(lambda: go.wait(20) and {**FACTS, "runs_prompts": False}))
        status, out, _ = ping("hangs", "--size", "0", "-n", "1")
        go.set()
    assert (status, legs(out)[-1]) == (0, ("round trip", "ok"))


def test_jobs_as_json(ping: Run) -> None:
    with Peer("desk-8188") as peer:
        serve(peer, Host({**FACTS, "more": "not asked for"}))
        status, out, _ = ping("desk-8188", "--jobs", "--size", "0", "--json")
    told = json.loads(out)
    assert (status, list(told), told["ok"]) == (0, JSON_KEYS, True)
    assert list(told["jobs"]) == JOB_KEYS
    version = peer.own.software.split()[1]
    assert told["jobs"] == {**FACTS, "permitted": True, "zbus": version}


def test_jobs_at_an_address_for_values_only(ping: Run) -> None:
    with Peer("desk-8188") as peer, peer.listen("127.0.0.1:0") as channel:
        peer.serve(Host())  # elsewhere
        status, out, _ = ping(channel.address, "--jobs", "--size", "0")
        told = json.loads(ping(channel.address, "--jobs", "--size", "0", "--json")[1])
    assert (status, failed_leg(out)) == (1, "jobs")
    assert "  not permitted: this address is for values only\n" in out
    assert legs(out)[:-1] == [(leg, "ok") for leg in LEGS[:6]]
    assert list(told["jobs"]) == JOB_KEYS
    assert (told["ok"], told["jobs"]["permitted"], told["jobs"]["queue"]) == (False, False, None)
    assert told["legs"][-1]["error"] == "NotPermitted"


def test_jobs_that_the_own_listener_of_a_peer_refuses() -> None:
    from zbus.cli.pinging.jobs import refusal

    with Peer("desk") as peer:
        error = refusal(replace(peer.own, listener="own"))
    assert "runs no jobs of this machine" in str(error) and "values only" not in str(error)


ODD = [None, True, -1, 1.5, float("nan"), 1 << 70, "", "\x1b[2J\ud800", "x" * 5000, [], [[]], {}]


@pytest.mark.parametrize(
    "facts",
    [
        {},
        *[dict.fromkeys(FACTS, odd) for odd in ODD],
        {"queue": {"running": "1", "pending": 2}},
        {"queue": {"running": 1}},
        {"queue": {"running": True, "pending": 1 << 60}},
        *[{"devices": [dict.fromkeys(("name", "type", "free", "total"), odd)]} for odd in ODD],
        {"devices": [None, 7, "cuda"], "ram": [1]},
        {"devices": [{"total": GIB, "free": 0}] * 200},
        {"jobs": "no", "permitted": False, "\x1b[2J": "\x1b[2J"},
    ],
)
def test_facts_of_the_wrong_kind_count_as_not_told(ping: Run, facts: dict[str, Any]) -> None:
    with Peer("odd") as peer:
        address = serve(peer, Host(facts))
        status, out, err = ping(address, "--jobs", "--size", "0", "-n", "1")
        told = json.loads(ping(address, "--jobs", "--size", "0", "-n", "1", "--json")[1])
    assert (status, err) == (0, "")
    assert "jobs        ok    permitted\n" in out
    assert out.replace("\n", "").isprintable() and len(out) < 3000
    assert list(told["jobs"]) == JOB_KEYS and told["jobs"]["queue"] is None
    devices = told["jobs"]["devices"]
    assert len(devices) <= 16
    assert all(type(device[key]) is int for device in devices for key in ("free", "total"))


def test_facts_that_cannot_be_had(ping: Run, caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise RuntimeError("no driver")

    with Peer("desk") as peer:
        status, out, _ = ping(serve(peer, Host(fails)), "--jobs", "--size", "0")
    assert status == 0
    assert "jobs        ok    permitted\n" in out and "no driver" not in out


def test_facts_that_do_not_come(ping: Run) -> None:
    go = threading.Event()
    with Peer("desk") as peer:
        address = serve(peer, Host(lambda: go.wait(20) and FACTS))
        began = time.monotonic()
        status, out, _ = ping(address, "--jobs", "--size", "0", "--timeout", "0.5")
        took = time.monotonic() - began
        go.set()
    assert (status, failed_leg(out)) == (1, "jobs")
    assert "has not said in 0.5 s whether it runs jobs" in out and took < 5


# --- a ComfyUI's page ----------------------------------------------------------------------------

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def web(answer: Answer) -> Iterator[str]:
    """A web server whose pages `answer` writes; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def says(body: Any, status: int = 200, **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status if request.path == "/zbus/peer" else 404)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    return answer


def card(peer: Peer, *endpoints: object, **other: object) -> dict[str, object]:
    told: dict[str, object] = {"id": peer.own.instance.hex(), "name": peer.name, "version": "0.9"}
    key = to_text(peer.trust.keys.public)
    return {**told, "key": key, "endpoints": list(endpoints), "lan": False, "ws": False, **other}


@pytest.mark.parametrize("tail", ["", "/", "/?workflow=1#top"])
def test_a_page(ping: Run, tail: str, addr: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{addr}")  # not asked for the loopback
    monkeypatch.delenv("no_proxy", raising=False)
    with Peer("desk-8188") as peer:
        address = serve(peer)
        with web(says(card(peer, "127.0.0.1:1", ws=True))) as url:  # the registry knows better
            status, out, err = ping(url + tail, "--jobs", "--size", "0")
            told = json.loads(ping(url + tail, "--size", "0", "--json")[1])
    assert (status, err) == (0, "")
    assert out.splitlines()[:3] == [
        f"zbus-ping {url}",
        "  page        ok    desk-8188, zbus 0.9",
        f"  paired      ok    its key is trusted here; the way there: {address}",
    ]
    expected = ["page", "paired", *LEGS[:5], "identity", "round trip", "jobs"]
    assert legs(out) == [(leg, "ok") for leg in expected]
    assert (told["ok"], told["address"]) == (True, address)


def test_a_page_without_the_lane_whose_peer_is_not_reached(ping: Run, addr: str) -> None:
    with Peer("cloud") as far, web(says(card(far, addr))) as url:
        status, out, _ = ping(url)
    assert (status, failed_leg(out)) == (1, "tcp")
    assert "whether the tunnel to it stands" in out and "Server node" not in out


@pytest.mark.parametrize("spares", ["127.0.0.0/8", "127.0.0.1:PORT", "*", "10.0.0.0/8", ""])
def test_a_page_is_asked_through_the_proxy_unless_no_proxy_has_it(
    ping: Run, spares: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zbus.webproxy.is_loopback_host", lambda _: False)
    asked: list[str] = []

    def proxy(request: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        request.send_error(407)

    with web(says(b"", 401)) as url, web(proxy) as through:
        monkeypatch.setenv("http_proxy", through)
        monkeypatch.setenv("no_proxy", spares.replace("PORT", url.rpartition(":")[2]))
        status, out, _ = ping(url)
    is_spared = spares in ("127.0.0.0/8", "127.0.0.1:PORT", "*")
    assert (status, asked) == (1, [] if is_spared else [f"{url}/zbus/peer"])
    assert ("wants a login (401)" if is_spared else "wants a login (407)") in out


def test_a_proxy_of_another_kind_for_a_page(ping: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://me:secret@127.0.0.1:1080")
    status, out, _ = ping("https://gpu.invalid/")
    assert (status, failed_leg(out)) == (1, "page")
    assert "not one of http, but of 'socks5'" in out and "secret" not in out


# --- paired peers -------------------------------------------------------------------------------


@contextlib.contextmanager
def cloud(
    home: Path, *addresses: str, permissions: frozenset[str] = PERMISSIONS, **settings: Any
) -> Iterator[tuple[Peer, str]]:
    """A peer of another user, which is paired with this one, and the address of its own listener.

    Args:
        addresses: Where this side looks for it; "" stands for where it is.
        permissions: What this side may do there.
    """
    there, here = Trust(home.with_name("cloud-home")), Trust()
    there.pair(here.keys.public, "home", permissions)
    with Peer("gpu-8188", trust=there, **settings) as peer:
        address = peer.serve(Host())
        ways = tuple(written or address for written in addresses)
        here.pair(there.keys.public, "cloud", [EXCHANGE], (("gpu-8188", ways),))
        yield peer, address


def test_a_paired_peer_over_its_second_address(ping: Run, addr: str, zbus_home: Path) -> None:
    with cloud(zbus_home, addr, "") as (_, address):
        status, out, err = ping("cloud", "--jobs", "--size", "1M")
        told = json.loads(ping("Cloud/GPU-8188", "--size", "0", "--json")[1])
    assert (status, err) == (0, ""), out
    lines = out.splitlines()
    assert lines[0] == f"zbus-ping cloud at {addr}"
    assert "nobody listens there: connection refused" in lines[2]
    assert lines[4].strip() == f"Another way is tried: {address}"
    dead, alive = [("name", "ok"), ("tcp", "FAIL")], [*LEGS[:5], "identity", *LEGS[5:], "jobs"]
    assert legs(out) == [*dead, *((leg, "ok") for leg in alive)]
    assert "greeting    ok    speaks ZMTP, encrypted\n" in out
    assert (told["ok"], told["address"], told["peer"]["name"]) == (True, address, "gpu-8188")


def test_a_paired_peer_that_is_nowhere(ping: Run, addr: str, zbus_home: Path) -> None:
    with cloud(zbus_home, addr, "no-such-host.invalid:1") as (peer, _):
        status, out, _ = ping("cloud")
        Trust().move("cloud", [])
        nowhere = ping("cloud")
        Trust().pair(
            peer.trust.keys.public, "cloud", (), (("a", (addr,)), ("b", (addr,)), ("c", ()))
        )
        several, unknown = ping("cloud"), ping("cloud/c", "--json")
    assert status == 1 and out.count("  FAIL  ") == 2
    assert '"no-such-host.invalid" is not known' in out.splitlines()[-2]
    assert (nowhere[0], failed_leg(nowhere[1])) == (1, "name")
    assert "can only come by itself" in nowhere[1] and "zbus-pair move NAME" in nowhere[1]
    assert (several[0], failed_leg(several[1])) == (1, "name")
    assert "which of its ComfyUIs? Known here: cloud/a, cloud/b\n" in several[1]
    (leg,) = json.loads(unknown[1])["legs"]
    assert (leg["ok"], leg["error"]) == (False, "Unreachable")
    assert leg["text"] == "no address of it is known here; known: cloud/a, cloud/b"


def test_the_address_of_a_listener_that_nobody_here_knows(ping: Run) -> None:
    with Peer("desk-8188") as peer:
        address = peer.serve(Host())
        status, out, _ = ping(address, "--jobs")
        leg = json.loads(ping(address, "--json")[1])["legs"][-1]
    assert (status, failed_leg(out)) == (1, "greeting")
    assert "  that listener is for paired peers\n" in out
    assert "Give its name" in out and "zbus-pair invite" in out and "its page's URL" in out
    assert (leg["name"], leg["error"]) == ("greeting", "NotPaired")


def test_a_plain_listener_in_the_place_of_a_paired_peer(ping: Run, zbus_home: Path) -> None:
    with Peer("jumper") as other, other.listen("127.0.0.1:0") as channel:
        with cloud(zbus_home, channel.address):
            status, out, _ = ping("cloud")
    assert (status, failed_leg(out)) == (1, "greeting")
    assert "a plain listener answers there, which is for values only" in out


def test_another_key_answers_for_a_paired_peer(ping: Run, zbus_home: Path) -> None:
    with Peer("stranger", trust=Trust(zbus_home.with_name("third"))) as stranger:
        stranger.trust.pair(Trust().keys.public, "home", PERMISSIONS)
        with cloud(zbus_home, stranger.serve(Host())):
            status, out, _ = ping("cloud", "--jobs")
    assert (status, failed_leg(out)) == (1, "handshake")
    assert "does not prove the key that it was paired with" in out and "stranger" not in out


def test_a_peer_that_has_forgotten_this_side(ping: Run, zbus_home: Path) -> None:
    with cloud(zbus_home, "") as (peer, _):
        peer.trust.forget("home")
        status, out, _ = ping("cloud")
        leg = json.loads(ping("cloud", "--json")[1])["legs"][-1]
    assert (status, failed_leg(out)) == (1, "handshake")
    assert "not paired there with this computer" in out and "zbus-pair invite" in out
    assert (leg["name"], leg["error"]) == ("handshake", "NotPaired")


def test_jobs_that_a_paired_peer_does_not_permit(ping: Run, zbus_home: Path) -> None:
    with cloud(zbus_home, "", permissions=frozenset({EXCHANGE})):
        status, out, _ = ping("cloud", "--jobs", "--size", "0")
    assert (status, failed_leg(out)) == (1, "jobs")
    assert "runs no jobs of this machine" in out and "zbus-pair permit NAME exchange,jobs" in out


def test_discover(ping: Run, zbus_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zbus import lan

    heard: list[float] = []
    monkeypatch.setattr(lan, "problem", lambda: "")
    monkeypatch.setattr(lan, "browse", lambda seconds: heard.append(seconds) or [])
    with cloud(zbus_home, "127.0.0.1:9") as (peer, _), Peer("desk-8188") as desk:
        address = serve(desk)
        status, out, err = ping("--discover", "--timeout", "0.25")
        told = json.loads(ping("--discover", "--json")[1])
        own, its = Trust().keys.public, peer.trust.keys.public
    assert (status, err) == (0, "") and heard[0] == 0.25 and heard[1] > 1
    assert f"  desk-8188  {address}" in out
    assert f"  cloud  {short(its)}  may here: exchange  gpu-8188 at 127.0.0.1:9" in out
    assert told["own"] == short(own) and told["lan"] == []
    assert [one["name"] for one in told["local"]] == ["desk-8188"]
    assert [one["fingerprint"] for one in told["paired"]] == [fingerprint(its)]


# --- the WebSocket lane -------------------------------------------------------------------------


@contextlib.contextmanager
def site(told: dict[str, object], listener: str) -> Iterator[str]:
    """An HTTP server as a ComfyUI's, with its card and its door to `listener`; its URL."""
    lane = door.Door(lambda: listener)

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        if request.match_info["what"] == "peer":
            return aiohttp.web.json_response(told)
        if not listener:
            raise aiohttp.web.HTTPNotFound
        return await lane.handle(request)

    with Site(answer, "/comfy/zbus/{what}") as made:
        yield f"{made.url}/comfy"


LANE = [*("page", "paired", "websocket", "handshake", "version", "identity"), *LEGS[5:], "jobs"]


def test_a_page_through_the_websocket_lane(ping: Run, zbus_home: Path) -> None:
    """As through a tunnel of the page alone: the loopback that the card tells is another one."""
    came: list[object] = []
    with cloud(zbus_home) as (far, address), serving(came.append) as elsewhere:
        with site(card(far, elsewhere, ws=True), address) as url:
            login = url.replace("//", "//me:s3cret@")
            status, out, err = ping(f"{login}?token=s3cret", "--jobs", "--size", "3M")
            told = json.loads(ping(login, "--size", "0", "--json")[1])
    assert (status, err) == (0, ""), out
    assert not came, "what listens on that port of this machine is left alone"
    assert legs(out) == [(leg, "ok") for leg in LANE]
    assert out.splitlines()[:4] == [
        f"zbus-ping {url}",
        "  page        ok    gpu-8188, zbus 0.9",
        f"  paired      ok    its key is trusted here; the way there: {url}",
        "  websocket   ok    stands, speaks ZMTP",
    ]
    assert (told["ok"], told["address"], told["peer"]["name"]) == (True, url, "gpu-8188")
    assert "s3cret" not in out + json.dumps(told)


def test_a_paired_peer_whose_address_is_a_page(ping: Run, addr: str, zbus_home: Path) -> None:
    with cloud(zbus_home) as (far, address), site(card(far), address) as url:
        Trust().move("cloud", [addr, url])
        status, out, err = ping("cloud", "--jobs", "--size", "0")
    assert (status, err) == (0, ""), out
    assert out.splitlines()[4].strip() == f"Another way is tried: {url}"
    expected = [*LANE[2:6], "round trip", "jobs"]
    assert legs(out)[2:] == [(leg, "ok") for leg in expected]


def test_a_page_without_its_lane(ping: Run, zbus_home: Path) -> None:
    with cloud(zbus_home) as (far, _), site(card(far, "127.0.0.1:1", ws=True), "") as url:
        status, out, _ = ping(url)
    assert (status, failed_leg(out)) == (1, "websocket")
    assert "there is no zbus (404)" in out and len(out.splitlines()) == 5


def test_a_lane_that_leads_to_another_peer(ping: Run, zbus_home: Path) -> None:
    with Peer("stray", trust=Trust(zbus_home.with_name("third"))) as other:
        other.trust.pair(Trust().keys.public, "home", PERMISSIONS)
        address = other.serve(Host())
        with cloud(zbus_home) as (far, _):
            with site(card(far, address, ws=True), address) as url:
                status, out, _ = ping(url, "--timeout", "5")
    assert (status, failed_leg(out)) == (1, "handshake")
    assert "does not prove the key" in out and "stray" not in out


def test_a_lane_with_nobody_behind(ping: Run, addr: str, zbus_home: Path) -> None:
    with cloud(zbus_home) as (far, _), site(card(far, addr, ws=True), addr) as url:
        status, out, _ = ping(url)
    assert (status, failed_leg(out)) == (1, "websocket")
    assert "zbus there does not listen now" in out


def test_a_lane_behind_which_nothing_speaks_zmtp(ping: Run, zbus_home: Path) -> None:
    def deaf(link: socket.socket) -> None:
        link.settimeout(20)
        while link.recv(100):
            pass

    with cloud(zbus_home) as (far, _), serving(deaf) as silent:
        with site(card(far, silent, ws=True), silent) as url:
            began = time.monotonic()
            nothing = ping(url, "--timeout", "0.5")
            took = time.monotonic() - began
        with serving(lambda link: link.sendall(b"SSH-2.0-x\r\n")) as other:
            with site(card(far, other, ws=True), other) as url:
                nonsense = ping(url)
    for (status, out, _), words in (
        (nothing, "no answer in 0.5 s"),
        (nonsense, "does not speak ZMTP"),
    ):
        assert (status, failed_leg(out)) == (1, "websocket")
        assert words in out
    assert took < 5


def test_a_page_of_a_stranger(ping: Run, zbus_home: Path) -> None:
    with Peer("stranger", trust=Trust(zbus_home.with_name("third"))) as far:
        address = far.serve(Host())
        with site(card(far, address, ws=True), address) as url:
            status, out, _ = ping(url)
            leg = json.loads(ping(url, "--json")[1])["legs"][-1]
        key = far.trust.keys.public
    assert (status, failed_leg(out)) == (1, "paired")
    assert f"not paired with stranger, whose key's fingerprint begins with {short(key)}\n" in out
    assert "zbus-pair invite" in out
    assert (leg["name"], leg["error"]) == ("paired", "NotPaired")


# --- pages of no use ----------------------------------------------------------------------------


def drip(request: http.server.BaseHTTPRequestHandler) -> None:
    """Less than the time limit between two bytes, and no end."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b" ")
        request.wfile.flush()
        time.sleep(0.05)  # what the test is about


ID = "a" * 32
KEY = to_text(bytes(range(32)))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (says(b"", 404), "no zbus there, or an older one (404)"),
        (says(b"", 302, Location="http://127.0.0.1:1/zbus/peer"), "redirects elsewhere (302)"),
        (says(b"", 308, Location="http://127.0.0.1:1/zbus/peer"), "Give http://127.0.0.1:1 in its"),
        (says(b"", 401), "wants a login (401)"),
        (says(b"", 403), "wants a login (403)"),
        (says(b"", 407), "Write it into HTTP_PROXY"),
        (says(b"", 429), "has had too many requests and takes none for a while (429)"),
        (says(b"", 502), "fails there (502)"),
        (says(b" " * 70_000), "more than 64 KiB"),
        (says(b"\n <html>"), "shows a page of its own where zbus should answer: a login may be"),
        (says(b"[" * 60_000), "what answers there is no zbus"),
        (says(b"\xff\xfe\x00"), "what answers there is no zbus"),
        (says([]), "what answers there is no zbus"),
        (says({"id": "A" * 32, "endpoints": ["h:1"]}), "what answers there is no zbus"),
        (says({"id": ID}), "has zbus, which listens nowhere"),
        (says({"id": ID, "endpoints": "h:1"}), "has zbus, which listens nowhere"),
        (
            says({"id": ID, "endpoints": [None, 7, "h", "h:0", "\x1b:1", "h:" + "1" * 5000]}),
            "has zbus, which listens nowhere",
        ),
        (says({"id": ID, "endpoints": ["h:1"]}), "has an older zbus, without keys"),
        *[
            (says({"id": ID, "endpoints": ["h:1"], "key": key}), "has an older zbus, without keys")
            for key in (7, "", KEY[:-1], KEY[:-1] + "b", "1" * 52, "\x1b" * 52, "ä" * 52)
        ],
        (drip, "no answer in 0.5 s"),
    ],
)
def test_a_page_that_is_of_no_use(ping: Run, answer: Answer, words: str) -> None:
    with web(answer) as url:
        began = time.monotonic()
        status, out, _ = ping(url, "--timeout", "0.5")
        took = time.monotonic() - began
    assert (status, failed_leg(out)) == (1, "page")
    assert words in out and took < 5
    assert len(out.splitlines()) == 3  # the title, the leg, and what to do


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://me:s3cret@sso.example/start?rd=s3cret#s3cret", " to https://sso.example/start"),
        ("/login?next=s3cret", " to {url}/login"),
        ("//sso.example/s", " to http://sso.example/s"),
        ("", ""),
        ("/zbus/peer", " to {url}/zbus/peer"),  # with a cookie that only a browser keeps
        *((odd, "") for odd in ("javascript:s3cret", "http://[s3cret", "file:///s3cret")),
    ],
)
def test_a_page_behind_a_login(ping: Run, location: str, shown: str) -> None:
    """A browser that is logged in shows this very URL: the text must not ask for that."""
    with web(says(b"", 302, Location=location)) as url:
        status, out, _ = ping(url, "--timeout", "2")
        told = f"redirects{shown.format(url=url)} (302): a login seems to be wanted there\n"
    assert (status, failed_leg(out)) == (1, "page")
    assert told in out and "s3cret" not in out


def test_a_card_with_odd_words(ping: Run, addr: str) -> None:
    words = {"id": ID, "name": "\x1b[2J", "version": ["\x1b"], "ws": 1, "lan": "yes"}
    with Peer() as peer, web(says(card(peer, addr, **words))) as url:
        status, out, _ = ping(url)
    assert (status, failed_leg(out)) == (1, "tcp")
    assert "page        ok    [2J, zbus ?\n" in out
    assert out.replace("\n", "").isprintable()


def test_a_page_where_nobody_listens(ping: Run, addr: str) -> None:
    status, out, _ = ping(f"http://{addr}", "--json")
    told = json.loads(out)
    assert (status, list(told), told["address"]) == (1, JSON_KEYS, f"http://{addr}")
    assert [leg["name"] for leg in told["legs"]] == ["page"]
    assert told["legs"][0]["text"] == "nobody listens there: connection refused"


def test_a_page_that_is_no_web_server(ping: Run) -> None:
    with serving(lambda link: (link.recv(500), link.sendall(b"SSH-2.0-x\r\n"))[1]) as address:
        status, out, _ = ping(f"http://{address}")
    assert (status, failed_leg(out)) == (1, "page")
    assert "no web server answers there" in out


def test_a_login_is_sent_and_not_shown(ping: Run) -> None:
    seen = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Authorization"])
        says(b"", 403)(request)

    with web(answer) as url:
        given = url.replace("//", "//me:s%C3%BC%20cret@") + "/?token=s3"
        outputs = [*ping(given), *ping(given, "--json")]
    assert [base64.b64decode(text.split()[1]).decode() for text in seen] == ["me:sü cret"] * 2
    assert "wants a login (403)" in outputs[1]
    assert not [out for out in map(str, outputs) if "cret" in out or "s3" in out or "@1" in out]


@pytest.mark.parametrize(
    "url", ["ftp://h/", "http://", "http://h:99999", "http://[::1", "file:///etc", "http://a\x1b:1"]
)
def test_a_url_that_is_none(ping: Run, url: str) -> None:
    status, out, err = ping(url)
    assert (status, out) == (2, "")
    assert err.startswith("zbus-ping: that is not the URL of a web page. Write it as ")
