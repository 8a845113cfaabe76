"""zbus-ping against all that can be behind an address, on real sockets."""

from __future__ import annotations

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

import pytest
from children import LISTENER, ROOT, child, until

from zbus import Peer, handshake
from zbus.__main__ import main

SCRIPT = ROOT / "scripts" / "zbus-ping"
LEGS = ["name", "tcp", "greeting", "handshake", "version", "round trip", "up", "down"]

Run = Callable[..., tuple[int, str, str]]


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
    assert list(good) == ["address", "ok", "legs", "peer", "round_trip", "throughput"]
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
    assert bad["peer"] is bad["round_trip"] is bad["throughput"] is None


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


@pytest.mark.parametrize(
    "address", ["8282", "localhost", "h:0", "h:70000", "http://h:8188/", "::1"]
)
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


@pytest.mark.parametrize("theirs", [(2, 3), (7, 7)])
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
