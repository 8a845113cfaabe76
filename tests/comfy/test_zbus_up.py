"""zbus-up with real ComfyUIs: they work, one dies and its work is done by another, none is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chains import node
from children import ROOT, until
from comfyui import HERE, PACKS, ComfyUI, host_python, place_pack

from zbus import discovery
from zbus.cli.starting import places

ASSETS = "--enable-assets"
SCRIPT = ROOT / "scripts" / "zbus-up"
# ComfyUI's main.py, with what `runner` does for torch's other packages.
MAIN = """
import runpy, sys
sys.path.insert(0, {here!r})
import runner
runner.make_importable()
sys.path[0] = {folder!r}
sys.argv[0] = {folder!r} + "/main.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def part(peer, text, seconds=0.0, **how):
    """A prompt whose part tells on which port it has run."""
    run = {"here": "no", "on_failure": "stop", "quality": "exact"} | how
    return {
        "noise": node("TestNoise", batch=1, height=16, width=16, channels=3, seed=7),
        "at": node("TestAt", value=["noise", 0], text=text, seconds=seconds),
        "run": node("ZBusRun", value=["at", 1], peer=peer, **run),
        "spans": node("PreviewAny", source=["run", 0]),
        "report": node("PreviewAny", source=["run", 1]),
    }


def ports(comfyui, entry):
    assert comfyui.outcome(entry) == "success", comfyui.errors(entry)
    return sorted(json.loads(text)["port"] for text in entry["outputs"]["spans"]["text"])


def processes(text):
    """Those that have it in their command line."""
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and text.encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


@pytest.fixture
def home(tmp_path):
    return {"ZBUS_HOME": str(tmp_path / "zbus-home")}


@pytest.fixture
def zbus_up(comfyui_dir, tmp_path, home):
    """A zbus-up of three ComfyUIs on the CPU that is starting, and the file of what it says."""
    comfyui, base = tmp_path / "ComfyUI", tmp_path / "base"
    for folder in (comfyui, *(base / name for name in ("custom_nodes", "models", "input"))):
        folder.mkdir(parents=True)
    for name, pack in PACKS.items():
        place_pack(pack, base / "custom_nodes" / name)
    (comfyui / "main.py").write_text(MAIN.format(here=str(HERE), folder=str(comfyui_dir)))
    command = [sys.executable, str(SCRIPT), "--cpu", "3", "--comfyui", str(comfyui), "--json"]
    command += ["--python", host_python()]
    command += ["--port", "12189", "--folder", str(tmp_path / "up")]
    command += ["--", "--base-directory", str(base), "--disable-api-nodes"]
    command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", *PACKS]
    # On by default in the newest: two ComfyUIs that share a database of assets do not both start.
    if places.knows(comfyui_dir / "main.py", ASSETS):
        command.append(ASSETS)
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            command, env={**os.environ, **home}, stdout=subprocess.PIPE, stderr=said
        )
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    for pid in processes(str(tmp_path / "up")):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_three_workers(zbus_up, make_comfyui, tmp_path, home, monkeypatch, measured):
    monkeypatch.setenv("ZBUS_HOME", home["ZBUS_HOME"])
    began = time.monotonic()
    told, _ = json.JSONDecoder().raw_decode(whole_json(zbus_up.stdout))
    took = time.monotonic() - began
    workers = told["workers"]
    assert told["ok"] and len(workers) == 3
    assert all(worker["memory"]["type"] == "cpu" for worker in workers)
    all_ports = sorted(worker["port"] for worker in workers)
    running = processes(str(tmp_path / "up")) - {zbus_up.pid}
    assert {worker["pid"] for worker in workers} < running and len(running) == 6
    names = {(worker["name"], worker["address"]) for worker in workers}
    assert {(entry.name, entry.address) for entry in discovery.peers()} == names

    client = make_comfyui(name="client", env=home).start()
    assert ports(client, client.run(part("all", "on all"))) == all_ports

    victim = workers[1]
    prompt = part(victim["name"], "on one", 3.0, on_failure="try another")
    prompt_id = client.prompt(prompt)
    worker = ComfyUI("", name="victim", base=tmp_path, port=victim["port"])
    until(lambda: worker.queue()[0], 20, "the job runs there")
    os.kill(victim["pid"], signal.SIGKILL)
    died = time.monotonic()
    entry = client.wait(prompt_id, 30)
    (port,) = ports(client, entry)
    again = time.monotonic() - died
    assert port in all_ports and port != victim["port"]
    (report,) = entry["outputs"]["report"]["text"]
    first, *_, last = report.splitlines()
    assert first.startswith("failed: ") and victim["name"] in first and ": done in " in last
    said = tmp_path / "said"
    until(lambda: "was killed by SIGKILL. The end of" in said.read_text(), what="it is told")
    rest = [port for port in all_ports if port != victim["port"]]
    assert ports(client, client.run(part("all", "on the rest"))) == rest

    began = time.monotonic()
    zbus_up.send_signal(signal.SIGTERM)
    assert zbus_up.wait(20) == 0
    ending = time.monotonic() - began
    assert not processes(str(tmp_path / "up"))
    assert said.read_text().endswith("zbus-up: all ended\n")
    assert [entry.url for entry in discovery.peers()] == [client.url]
    measured(
        f"three ComfyUIs ready after {took:.1f} s; work of a killed one done elsewhere "
        f"after {again:.1f} s; all ended in {ending:.1f} s"
    )


def whole_json(stream):
    """One JSON object that a process prints, which goes on then."""
    lines = []
    while not lines or lines[-1] != "}\n":
        line = stream.readline().decode()
        assert line, lines
        lines.append(line)
    return "".join(lines)


@pytest.mark.parametrize("when", ["at once", "once it says something"])
def test_no_orphan_when_killed_during_the_start(zbus_up, tmp_path, when):
    up = tmp_path / "up"
    until(lambda: len(processes(str(up)) - {zbus_up.pid}) == 6, what="all have begun")
    if when != "at once":
        until(lambda: any(log.stat().st_size for log in up.glob("*/worker.log")), 60)
    zbus_up.kill()
    zbus_up.wait()
    until(lambda: not processes(str(up)), 15, "all gone")
    assert not discovery.peers(tmp_path / "zbus-home")
