"""Through a real ``ssh -N -L`` tunnel, to an sshd of the test's own on the loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from children import child, until
from comfyui import free_port
from jobpair import Host
from sshd import Sshd, end, missing

from zbus import Peer, Settings
from zbus.__main__ import main
from zbus.job import Remote, Request, Taken

MIB = 1 << 20


MISSING = missing()
if MISSING:
    print(f"test_tunnel: skipped: {MISSING}")
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.usefixtures("by_socket"),
]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    made = Sshd(tmp_path_factory.mktemp("sshd"))
    yield made
    made.close()


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


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
        end(tunnel)


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
                end(tunnel)
                assert not receive.done()
                until(lambda: "lost" in receive.note and "gives up at 5:00" in receive.note, 10)
                stood = receive.done_bytes
                tunnel = sshd.tunnel(local, remote)
                until(lambda: receive.done_bytes > stood, 20, "it goes on")
                assert torch.equal(receive.result(), value)
                send.result()
    finally:
        end(tunnel)


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
            end(tunnel)
            until(lambda: "lost" in job.note, 10, "the loss is told")
            assert not job.done()
            tunnel = sshd.tunnel(local, remote)
            assert torch.equal(job.result()["made"], made)
    finally:
        end(tunnel)


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
        end(tunnel)


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
        end(tunnel)
