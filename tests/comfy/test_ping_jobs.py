"""zbus-ping, as a process, against a running ComfyUI."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from comfyui import ROOT, ComfyUI


def _ping(comfyui: ComfyUI, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As its user would start it: with the same home, so that the names are known."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "zbus-ping"), *arguments],
        env={**os.environ, "ZBUS_HOME": str(comfyui._env["ZBUS_HOME"])},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("by", ["name", "page"])
def test_a_comfyui_tells_how_it_is(pair, measured, by):
    target = pair.b.peer if by == "name" else pair.b.url
    ended = _ping(pair.b, target, "--jobs", "--size", "4M")
    measured(ended.stdout.rstrip())
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "FAIL" not in ended.stdout
    assert "  identity    ok    the one meant, by its key\n" in ended.stdout
    assert "  jobs        ok    permitted; queue: 0 running, 0 pending\n" in ended.stdout


def test_the_same_for_a_program(pair):
    told = json.loads(_ping(pair.b, pair.b.peer, "--jobs", "--size", "0", "--json").stdout)
    stats = pair.b.get("/system_stats")["system"]
    jobs = told["jobs"]
    assert jobs["comfyui"] == stats["comfyui_version"]
    assert jobs["torch"] == stats["pytorch_version"]
    assert jobs["zbus"] == pair.b.get("/zbus/peer")["version"]
    assert [device["type"] for device in jobs["devices"]] == ["cpu"]
    assert 0 < jobs["devices"][0]["free"] < jobs["devices"][0]["total"]


def test_its_queue(pair):
    slow = {"1": {"class_type": "TestSlow", "inputs": {"seconds": 30.0, "value": "x"}}}
    slow["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    first, _ = pair.b.prompt(slow), pair.b.prompt({**slow, "3": {**slow["2"]}})
    pair.b.wait_running(first)
    told = json.loads(_ping(pair.b, pair.b.peer, "--jobs", "--size", "0", "--json").stdout)
    assert told["jobs"]["queue"] == {"running": 1, "pending": 1}


def test_without_a_name_it_lists_them(pair):
    ended = _ping(pair.a)
    assert (ended.returncode, ended.stdout) == (2, "")
    listed = {line.split()[0] for line in ended.stderr.splitlines()[1:]}
    assert {pair.a.peer, pair.b.peer} <= listed
    ended = _ping(pair.a, "nobody")
    assert ended.returncode == 2
    assert "no peer named 'nobody' here; known: " in ended.stderr
    assert pair.a.peer in ended.stderr and pair.b.peer in ended.stderr
