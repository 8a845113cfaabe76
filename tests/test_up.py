"""zbus-up with a stand-in for ComfyUI: what it starts, what it says, and that nothing is left."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from children import ROOT, Child, until

from zbus import discovery
from zbus.cli import up
from zbus.cli.starting import devices, keeper, places, worker
from zbus.errors import InputError

NEEDS_POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and process groups")
NEEDS_SH = pytest.mark.skipif(not Path("/bin/sh").exists(), reason="no /bin/sh")
GIB = 1 << 30

ONE = "GPU 0: NVIDIA H200 (UUID: GPU-0c3f8f4b-2a65-3b7e-6d29-3e1f7a9d0c11)\n"
TWO = (
    "GPU 0: NVIDIA GeForce RTX 3060 (UUID: GPU-d2a0a9c1-6b0c-8a5f-5f10-8c1b6f5d9a02)\n"
    "GPU 1: NVIDIA GeForce RTX 4090 (UUID: GPU-31c2b9a8-95d1-0f6e-4b77-27f0c3e8d1aa)\n"
)
CUT = (
    "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)\n"
    "  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)\n"
    "  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/1/0)\n"
    "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-3af3bb2e-5f0f-7a5b-4a57-1f4e3c5f8b21)\n"
)
NO_DRIVER = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"

FACTS = {
    "devices": [{"name": "cuda:0 Card", "type": "cuda", "total": 24 * GIB, "free": 20 * GIB}],
    "jobs": True,
}

# What zbus-up expects of ComfyUI. A file "behave" in its own folder makes it another one. What
# hangs does so for a quarter of an hour: whatever a test has left behind ends by itself some day.
FAKE = """
    import argparse, signal, socket, subprocess, sys, time
    from pathlib import Path

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--temp-directory", type=Path)
    parser.add_argument("--user-directory", type=Path)
    given, more = parser.parse_known_args()
    folder = given.temp_directory
    behave = (folder / "behave").read_text() if (folder / "behave").exists() else ""
    assert given.user_directory.is_dir()
    print("fake ComfyUI begins", *more)
    wait = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(900)"
    subprocess.Popen([sys.executable, "-S", "-c", wait, str(folder)])
    if "stubborn" in behave:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "crash" in behave:
        print("loading\\r50%\\rRuntimeError: \\x1b[31mthe card is on fire")
        sys.exit(3)
    if "hang" in behave:
        time.sleep(900)
    if "without" not in behave:
        from zbus import Peer, discovery

        class Host:
            def facts(self):
                return {"devices": [{"name": "fake", "type": "cpu", "total": 4096, "free": 1024}]}

        peer = Peer(f"fake-{given.port}", instance=str(folder))
        address = peer.serve(Host(), given.port + 10000)
        instance, url = peer.own.instance.hex(), f"http://127.0.0.1:{given.port}"
        discovery.register(discovery.Entry.of_this_process(instance, peer.name, address, url=url))
    with socket.create_server(("127.0.0.1", given.port)) as page:
        print("fake ComfyUI is there")
        while True:
            page.accept()[0].close()
"""

UP = 'import sys; from zbus.__main__ import main; sys.exit(main(["up", *sys.argv[1:]]))'


NOHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); " + UP


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own, and nothing that says which ComfyUI or GPU."""
    monkeypatch.setenv("ZBUS_HOME", str(tmp_path / "zbus-home"))
    for name in (*devices.VISIBLE, places.COMFYUI_DIR, "ZBUS_JOBS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    folder = tmp_path / "ComfyUI"
    folder.mkdir()
    (folder / "main.py").write_text(textwrap.dedent(FAKE))
    return folder


@pytest.fixture
def port() -> int:
    """The first of three that are free, and with those of the bus below what systems hand out."""
    return places.free_ports(random.randrange(11000, 22000), 3)[0]


def lives(pid: int) -> bool:
    return discovery._start(pid) is not None


class Up(Child):
    """A zbus-up of fake ComfyUIs, and all processes that it has started."""

    def __init__(self, comfyui: Path, port: int, count: int, *arguments: str, code: str) -> None:
        self.ports = places.free_ports(port, count)
        self.folder = comfyui.parent / "up"
        super().__init__(
            code,
            *("--cpu", count, "--port", port, "--comfyui", comfyui, "--python", sys.executable),
            *("--folder", self.folder, *arguments),
        )

    def pids(self, count: int) -> set[int]:
        """Waits until that many run: for each worker a keeper, a ComfyUI, and what that has
        started."""
        until(lambda: len(self.left()) == count, 20, f"{count} processes")
        return self.left()

    def left(self) -> set[int]:
        """All that have the folder of this test in their command lines, but zbus-up itself."""
        return with_words(str(self.folder)) - {self.pid}

    def ready(self) -> dict[int, int]:
        """Wait until all are; port -> pid."""
        self.line("Ctrl-C ends", within=60)
        entries = discovery.peers()
        return {int(entry.url.rpartition(":")[2]): entry.pid for entry in entries}


def with_words(text: str) -> set[int]:
    """The processes that have it in their command line."""
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and text.encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


Begin = Callable[..., Up]


@pytest.fixture
def begin(comfyui: Path, port: int) -> Iterator[Begin]:
    """``begin(count, arguments..., behave={index: text})`` -> a zbus-up."""
    begun: list[Up] = []

    def start(
        count: int, *arguments: str, behave: dict[int, str] | None = None, code: str = UP
    ) -> Up:
        for index, text in (behave or {}).items():
            folder = comfyui.parent / "up" / str(places.free_ports(port, count)[index])
            folder.mkdir(parents=True)
            (folder / "behave").write_text(text)
        begun.append(Up(comfyui, port, count, *arguments, code=code))
        return begun[-1]

    yield start
    for one in begun:
        one.kill()
        for pid in one.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def all_gone(pids: set[int], within: float = 15.0) -> None:
    assert pids
    until(lambda: not any(map(lives, pids)), within, "all processes gone")


# --- which GPUs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        (ONE, ["GPU 0: NVIDIA H200"]),
        (TWO, ["GPU 0: NVIDIA GeForce RTX 3060", "GPU 1: NVIDIA GeForce RTX 4090"]),
        (ONE.replace("\n", "\r\n"), ["GPU 0: NVIDIA H200"]),
        (CUT, ["GPU 0:0: MIG 1g.5gb", "GPU 0:1: MIG 3g.20gb", "GPU 1: NVIDIA A100-SXM4-40GB"]),
        (NO_DRIVER, []),
        ("No devices were found\n", []),
        ("", []),
        ("  MIG 1g.5gb Device 0: (UUID: MIG-1)\n", []),
    ],
)
def test_what_nvidia_smi_prints(printed: str, found: list[str]) -> None:
    assert [str(device) for device in devices.parse_nvidia_smi(printed)] == found


def test_a_gpu_is_told_by_its_uuid() -> None:
    told = [dict(device.variables) for device in devices.parse_nvidia_smi(CUT)]
    assert told == [
        {"CUDA_VISIBLE_DEVICES": "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"},
        {"CUDA_VISIBLE_DEVICES": "MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/1/0"},
        {"CUDA_VISIBLE_DEVICES": "GPU-3af3bb2e-5f0f-7a5b-4a57-1f4e3c5f8b21"},
    ]


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ('["AMD Radeon RX 7900 XTX"]\n', ["GPU 0: AMD Radeon RX 7900 XTX"]),
        ('a warning of torch\n["A", "B"]\n', ["GPU 0: A", "GPU 1: B"]),
        ("[]", []),
        ("{}", []),
        ("nothing", []),
        ("", []),
        ("[" * 100_000, []),
    ],
)
def test_what_torch_prints(printed: str, found: list[str]) -> None:
    told = devices.parse_torch(printed)
    assert [str(device) for device in told] == found
    flags = [("--cuda-device", str(number)) for number in range(len(found))]
    assert [device.arguments for device in told] == flags
    assert all(device.variables == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} for device in told)


@NEEDS_SH
def test_torch_counts_as_nvidia_smi_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both when it is asked and when ComfyUI runs: CUDA's own order is the fastest first."""
    for name in (*devices.VISIBLE, "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "_nvidia_smi", lambda: "")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho [\\"$CUDA_DEVICE_ORDER\\"]\n')
    python.chmod(0o755)
    (found,) = devices.gpus("0", str(python))
    assert (found.name, found.variables["CUDA_DEVICE_ORDER"]) == ("PCI_BUS_ID", "PCI_BUS_ID")


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """``nvidia_smi(text, status)`` puts one that prints that first on the path."""

    def put(text: str, status: int = 0) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return put


@pytest.fixture
def torch_of(tmp_path: Path) -> Callable[[str], str]:
    """``torch_of(text)`` -> a Python whose torch makes it print that."""

    def make(text: str) -> str:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\necho '{text}'\n")
        program.chmod(0o755)
        return str(program)

    return make


@NEEDS_SH
def test_gpus_are_chosen_by_number(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(TWO)

    def chosen(wanted: str) -> list[str]:
        return [device.number for device in devices.gpus(wanted, "python of no use")]

    assert [chosen(w) for w in ("all", "ALL", "1", "1, 0")] == [["0", "1"]] * 2 + [
        ["1"],
        ["1", "0"],
    ]
    with pytest.raises(InputError, match='no GPU "2" here. There are: GPU 0: NVIDIA GeForce RTX 3'):
        chosen("0,2")
    with pytest.raises(InputError, match="GPU 1 is named twice"):
        chosen("1,1")
    with pytest.raises(InputError, match='no GPU "" here'):
        chosen("")


@NEEDS_SH
@pytest.mark.parametrize("broken", [(NO_DRIVER, 9), (TWO, 9), ("No devices were found\n", 0)])
def test_torch_is_asked_where_nvidia_smi_does_not_work(
    broken: tuple[str, int], nvidia_smi: Callable[..., None], torch_of: Callable[[str], str]
) -> None:
    nvidia_smi(*broken)
    (found,) = devices.gpus("all", torch_of('["Radeon"]'))
    assert (found.name, found.arguments) == ("Radeon", ("--cuda-device", "0"))
    with pytest.raises(InputError, match="no GPU was found here, .* Give --cpu N"):
        devices.gpus("all", torch_of("[]"))
    with pytest.raises(InputError, match="no GPU was found here"):
        devices.gpus("all", "/no/such/python")


@NEEDS_SH
@pytest.mark.parametrize("name", devices.VISIBLE)
def test_only_the_visible_gpus_are_used(
    name: str, nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(TWO)
    monkeypatch.setenv(name, "3, GPU-31c2,-1,1")
    found = devices.gpus("all", "")
    assert [dict(device.variables) for device in found] == [{name: "3"}, {name: "GPU-31c2"}]
    assert devices.gpus("3", "") == found[:1]
    with pytest.raises(InputError, match='no GPU "0" here'):
        devices.gpus("0", "")
    monkeypatch.setenv(name, "")
    with pytest.raises(InputError, match=f'{name} is "", which leaves no GPU'):
        devices.gpus("all", "")


# --- where --------------------------------------------------------------------------------------


def test_ports_that_are_taken_are_passed_over(port: int) -> None:
    with contextlib.ExitStack() as taken:
        for number, host in ((port, "127.0.0.1"), (port + 1 + places.BUS, "0.0.0.0")):
            taken.enter_context(socket.create_server((host, number)))
        found = places.free_ports(port, 2)
    assert found[0] >= port + 2 and found == sorted(set(found))


def test_names_of_other_ports_than_the_first_are_told() -> None:
    assert list(up._other_names(8189, [8189, 8190])) == []
    (said,) = up._other_names(8189, [8190, 8192])
    assert said.startswith("in use: 8189, 8191. ") and "...-8190, ...-8192" in said


def test_above_the_last_port_there_is_none() -> None:
    with pytest.raises(InputError, match="ports are free from 65535 up, not 2. Give a lower"):
        places.free_ports(65535, 2)


def test_the_command_line(tmp_path: Path) -> None:
    device = devices.parse_torch('["Radeon"]')[0]
    main = tmp_path / "main.py"
    assert places.command("python", main, 8189, tmp_path / "8189", device, ["--lowvram"]) == [
        *("python", str(main), "--port", "8189"),
        *("--user-directory", str(tmp_path / "8189" / "user")),
        *("--database-url", f"sqlite:///{tmp_path.as_posix()}/8189/user/comfyui.db"),
        *("--temp-directory", str(tmp_path / "8189")),
        *("--output-directory", str(tmp_path / "8189" / "output")),
        *("--disable-auto-launch", "--cuda-device", "0", "--lowvram"),
    ]


@pytest.mark.parametrize(
    ("declared", "is_known"),
    [
        ('parser.add_argument("--database-url", type=str, default=None)', True),
        ("parser.add_argument('--database-url', type=str)", True),
        ('parser.add_argument("--port")  # there is no "--database-url-of-old"', False),
    ],
)
def test_a_flag_that_comfyui_does_not_know_is_left_out(
    tmp_path: Path, declared: str, is_known: bool
) -> None:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "cli_args.py").write_text(declared)
    made = places.command("python", tmp_path / "main.py", 8189, tmp_path, devices.CPU, [])
    assert ("--database-url" in made) == is_known
    assert made[-2:] == ["--disable-auto-launch", "--cpu"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--port", "1"], "--port cannot be given to all"),
        (["--lowvram", "--temp-directory=/x"], "--temp-directory cannot be given to all"),
        (["1"], '"1" is no argument of zbus-up'),
    ],
)
def test_arguments_that_comfyui_cannot_have(more: list[str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        places.check(more)


def test_which_comfyui(tmp_path: Path, comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["zbus-up"])
    monkeypatch.setattr(places, "__file__", str(tmp_path / "zbus" / "places.py"))
    with pytest.raises(InputError, match="which ComfyUI.* --comfyui DIR, or COMFYUI_DIR=DIR"):
        places.comfyui("")
    script = comfyui / "custom_nodes" / "zbus" / "scripts" / "zbus-up"
    monkeypatch.setattr(sys, "argv", [str(script)])  # not resolved, and need not be there
    assert places.comfyui("") == comfyui
    monkeypatch.setenv(places.COMFYUI_DIR, str(tmp_path))
    with pytest.raises(InputError, match="COMFYUI_DIR names .*, which has no main.py"):
        places.comfyui("")
    assert places.comfyui(str(comfyui)) == comfyui


def test_which_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.python(sys.executable) == os.path.abspath(sys.executable)
    with pytest.raises(InputError, match="names /no/such, which is no program"):
        places.python("/no/such")
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="has no torch. .* --python PYTHON"):
        places.python("")


@pytest.mark.parametrize(
    "wrong",
    [("--cpu", "0"), ("--cpu", "x"), ("--port", "0"), ("--port", "70000"), ("--timeout", "-1")],
)
def test_an_argument_that_is_none(wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(*wrong)
    assert end.value.code == 2


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    up.arguments(parser)
    return parser.parse_args(arguments)


def test_what_follows_two_dashes_is_for_comfyui() -> None:
    given = parsed("--cpu", "2", "--json", "--", "--lowvram", "--preview-method", "auto")
    assert (given.cpu, given.json) == (2, True)
    assert given.more == ["--lowvram", "--preview-method", "auto"]


def test_nothing_begins_with_wrong_arguments(
    tmp_path: Path, comfyui: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for wrong in (["--folder", str(tmp_path / "file")], ["--", "--port", "1"], ["--gpus", "none"]):
        cpu = [] if "--gpus" in wrong else ["--cpu", "1"]
        known = ["--comfyui", str(comfyui), "--python", sys.executable]
        assert up.run(parsed(*known, *cpu, *wrong)) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("zbus-up: ") and len(err.splitlines()) == 1


# --- what it says -------------------------------------------------------------------------------


def one(tmp_path: Path, device: devices.Device = devices.CPU, port: int = 8189) -> worker.Worker:
    folder = tmp_path / str(port)
    folder.mkdir()
    made = worker.Worker(port, device, ["python"], {}, folder)
    made.entry = discovery.Entry("a" * 32, f"desk-{port}", f"127.0.0.1:{port + 10000}", 1, "", "")
    return made


def test_the_table_and_the_json(tmp_path: Path) -> None:
    ready = one(tmp_path, devices.parse_nvidia_smi(ONE)[0])
    ready.facts, ready.pid = FACTS, 77
    nameless = one(tmp_path, devices.Device("3"), 8190)
    nameless.facts = FACTS
    odd = one(tmp_path, port=8191)
    odd.facts = {"devices": "\x1b[31m"}
    assert up.table([ready, nameless, odd]).splitlines() == [
        "name       port  device              memory",
        "desk-8189  8189  GPU 0: NVIDIA H200  20.00 GiB of 24.00 GiB free",
        "desk-8190  8190  GPU 3: cuda:0 Card  20.00 GiB of 24.00 GiB free",
        "desk-8191  8191  CPU                 ?",
    ]
    dead = one(tmp_path, port=8192)
    dead.entry, dead.why = None, "ended with exit status 3"
    told = up.as_json([ready, dead])
    assert told["ok"] is False and up.as_json([ready])["ok"] is True
    assert [list(entry) for entry in told["workers"]] == [list(told["workers"][0])] * 2
    assert told["workers"][0] == {
        "name": "desk-8189",
        "port": 8189,
        "url": "http://127.0.0.1:8189",
        "address": "127.0.0.1:18189",
        "device": "GPU 0: NVIDIA H200",
        "memory": FACTS["devices"][0],
        "pid": 77,
        "folder": str(tmp_path / "8189"),
        "log": str(tmp_path / "8189" / "worker.log"),
        "ok": True,
        "error": None,
    }
    assert (told["workers"][1]["name"], told["workers"][1]["error"]) == (None, dead.why)
    json.dumps(told)


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    made = one(tmp_path)
    assert made.last_lines() == []
    made.log.write_bytes(b"x" * 100_000 + b"\n" + b"".join(b"%d\n" % n for n in range(99)))
    assert made.last_lines() == [str(n) for n in range(99 - worker.LAST_LINES, 99)]
    made.log.write_bytes(b" 10%\r 20%\n\n\x1b[2J\xff\n")
    assert made.last_lines() == ["10%", "20%", "[2J\ufffd"]


def test_it_waits_longer_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = one(tmp_path)
    now = 0.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now)
    assert [made.start_later() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert made.again == 60.0
    now = worker.STEADY + 1
    assert made.start_later() == 1


# --- processes ----------------------------------------------------------------------------------


@NEEDS_POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_all_come_up_and_all_end(begin: Begin, number: int) -> None:
    zbus_up = begin(2, "--", "--lowvram")
    found = zbus_up.ready()
    assert sorted(found) == zbus_up.ports
    pids = zbus_up.pids(6)
    assert set(found.values()) < pids
    zbus_up.signal(number)
    said = zbus_up.rest()
    assert zbus_up.process.returncode == 0, said
    assert not any(map(lives, pids))
    first, second = zbus_up.ports
    assert f"fake-{first}  {first}  CPU     1.0 KiB of 4.0 KiB free" in said
    assert f"fake-{second} (port {second}, CPU) is ready" in said
    assert said.endswith("zbus-up: ending 2 ComfyUIs\nzbus-up: all ended")
    log = (zbus_up.folder / str(first) / "worker.log").read_text()
    assert "fake ComfyUI begins" in log and "--cpu --lowvram" in log
    assert discovery.peers() == []
    mine = [zbus_up.folder, zbus_up.folder / str(first), zbus_up.folder / str(first) / "user"]
    assert [folder.stat().st_mode & 0o777 for folder in mine] == [0o700] * 3


@NEEDS_POSIX
def test_nohup(begin: Begin) -> None:
    zbus_up = begin(1, code=NOHUP)
    ((port, pid),) = zbus_up.ready().items()
    zbus_up.signal(signal.SIGHUP)
    os.kill(pid, signal.SIGKILL)  # it still says what happens
    zbus_up.line(f"fake-{port} (port {port}, CPU) was killed by SIGKILL")


@NEEDS_POSIX
@pytest.mark.parametrize("behave", ["", "hang", "stubborn", "stubborn hang"])
def test_no_orphan_when_it_is_killed(begin: Begin, behave: str) -> None:
    zbus_up = begin(2, behave={0: behave, 1: behave})
    if "hang" not in behave:
        zbus_up.ready()
    pids = zbus_up.pids(6)
    zbus_up.signal(signal.SIGKILL)
    all_gone(pids)


@NEEDS_POSIX
def test_no_orphan_when_it_is_killed_at_once(begin: Begin) -> None:
    zbus_up = begin(3)
    until(lambda: list(zbus_up.folder.glob("*/worker.log")))
    zbus_up.signal(signal.SIGKILL)
    zbus_up.process.wait(10)
    # A keeper that had just been started may still start its ComfyUI, and ends it then.
    until(lambda: not zbus_up.left(), 15, "all gone")


@NEEDS_POSIX
def test_a_second_ctrl_c_does_not_wait(begin: Begin) -> None:
    zbus_up = begin(1, behave={0: "stubborn"})
    zbus_up.ready()
    pids = zbus_up.pids(3)
    zbus_up.signal(signal.SIGINT)
    zbus_up.line("ending 1 ComfyUI")
    zbus_up.signal(signal.SIGINT)
    assert zbus_up.rest(keeper.GRACE - 1).endswith("all ended")
    assert zbus_up.process.returncode == 0
    assert not any(map(lives, pids))


@NEEDS_POSIX
def test_one_that_dies_is_told_and_the_others_go_on(begin: Begin) -> None:
    zbus_up = begin(2)
    found = zbus_up.ready()
    dead, other = zbus_up.ports
    os.kill(found[dead], signal.SIGKILL)
    line = zbus_up.line("killed")
    log = zbus_up.folder / str(dead) / "worker.log"
    name = f"zbus-up: fake-{dead} (port {dead}, CPU)"
    assert line == f"{name} was killed by SIGKILL. The end of {log}:"
    assert zbus_up.line().startswith("    fake ComfyUI begins --database-url")
    assert zbus_up.line() == "    fake ComfyUI is there"
    zbus_up.pids(3)  # what the dead one had started is gone too
    assert lives(found[other])
    zbus_up.signal(signal.SIGTERM)
    zbus_up.rest()
    assert zbus_up.process.returncode == 0


@NEEDS_POSIX
def test_it_is_over_when_none_is_left(begin: Begin) -> None:
    zbus_up = begin(1)
    os.kill(*zbus_up.ready().values(), signal.SIGKILL)
    assert "was killed by SIGKILL" in zbus_up.rest()
    assert zbus_up.process.returncode == 1  # nobody has asked for that


@NEEDS_POSIX
def test_restart(begin: Begin) -> None:
    zbus_up = begin(1, "--restart")
    ((port, pid),) = zbus_up.ready().items()
    for seconds in (1, 2):
        os.kill(pid, signal.SIGKILL)
        zbus_up.line(f"port {port} is started again in {seconds} s")
        zbus_up.line(f"fake-{port} (port {port}, CPU) is back after ")
        (entry,) = discovery.peers()
        assert entry.pid != pid
        pid = entry.pid
    os.kill(pid, signal.SIGKILL)
    zbus_up.line("is started again in 4 s")
    zbus_up.signal(signal.SIGTERM)  # while none runs
    zbus_up.rest(3)
    assert zbus_up.process.returncode == 0


@NEEDS_POSIX
def test_a_killed_keeper_leaves_nothing(begin: Begin) -> None:
    zbus_up = begin(1)
    (pid,) = zbus_up.ready().values()
    pids = zbus_up.pids(3)
    (keeping,) = pids & with_words("keeper.py")
    os.kill(keeping, signal.SIGKILL)
    zbus_up.line("was ended, since its keeper was killed")
    all_gone(pids)


@NEEDS_POSIX
def test_one_that_does_not_come_up(begin: Begin) -> None:
    zbus_up = begin(2, "--json", behave={1: "crash"})
    zbus_up.line("Ctrl-C ends it")
    text = "\n".join(zbus_up.lines)
    told = json.loads(text[text.index("{\n") : text.rindex("\n}") + 2])
    first, second = told["workers"]
    assert (told["ok"], first["ok"], second["ok"]) == (False, True, False)
    assert (first["memory"]["total"], second["memory"]) == (4096, None)
    assert second["error"] == "ended with exit status 3"
    port = zbus_up.ports[1]
    assert f"zbus-up: ComfyUI (port {port}, CPU) ended with exit status 3. The end of" in text
    assert "\n    50%\n    RuntimeError: [31mthe card is on fire\n" in text
    assert "zbus-up: 1 of 2 ComfyUIs came up\n" in text
    zbus_up.signal(signal.SIGINT)
    zbus_up.rest()
    assert zbus_up.process.returncode == 1


@NEEDS_POSIX
@pytest.mark.parametrize(
    ("behave", "why"),
    [
        ("crash", "ended with exit status 3"),
        ("hang", "is ended: has not come up in 3 s"),
        ("stubborn hang", "is ended: has not come up in 3 s"),
    ],
)
def test_it_is_over_when_none_comes_up(begin: Begin, behave: str, why: str) -> None:
    # --restart is for those that came up once.
    zbus_up = begin(1, "--timeout", "3", "--restart", behave={0: behave})
    said = zbus_up.rest()
    assert zbus_up.process.returncode == 1
    assert f"(port {zbus_up.ports[0]}, CPU) {why}" in said
    assert said.endswith("zbus-up: 0 of 1 ComfyUI came up")
    assert not zbus_up.left()


@NEEDS_POSIX
def test_a_comfyui_without_zbus(begin: Begin) -> None:
    zbus_up = begin(1, behave={0: "without"})
    line = zbus_up.line("is ended")
    assert "is ended: that ComfyUI runs without zbus. Put zbus into its custom_nodes" in line
    zbus_up.rest()
    assert zbus_up.process.returncode == 1


@NEEDS_POSIX
def test_ended_before_all_are_up(begin: Begin) -> None:
    zbus_up = begin(1, behave={0: "hang"})
    pids = zbus_up.pids(3)
    zbus_up.signal(signal.SIGINT)
    said = zbus_up.rest()
    assert zbus_up.process.returncode == 1 and said.endswith("all ended")
    assert not any(map(lives, pids))


@NEEDS_POSIX
def test_two_of_them_side_by_side(begin: Begin) -> None:
    first = begin(1)
    first.ready()
    second = begin(1)
    second.ready()
    assert first.ports != second.ports
    first.signal(signal.SIGINT)
    first.rest()
    (entry,) = discovery.peers()
    assert entry.url.endswith(str(second.ports[0]))


def test_the_script_says_how_it_is_used() -> None:
    import subprocess

    script = ROOT / "scripts" / "zbus-up"
    ended = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0 and "--cpu N" in ended.stdout


def test_facts_of_any_kind_do_no_harm(tmp_path: Path) -> None:
    for facts in ({}, {"devices": []}, {"devices": [1]}, {"devices": [{"total": -1}]}):
        made: Any = one(tmp_path, port=8190 + len(list(tmp_path.iterdir())))
        made.facts = facts
        assert up.as_json([made])["workers"][0]["memory"] is None
