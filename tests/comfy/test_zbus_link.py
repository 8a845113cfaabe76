"""zbus-link between two real ComfyUIs: a job over it, and the link lost in mid-job."""

from __future__ import annotations

import os
import signal
import time

import pytest
from chains import node
from children import until
from comfyui import start_all
from linked import Cloud
from sshd import missing

MISSING = missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def job(peer, seconds, seed):
    """Noise of 24 MiB, made here, that goes there, takes its time, and comes back; and a digest of
    the same noise here."""
    return {
        "noise": node("TestNoise", batch=2, height=1024, width=1024, channels=3, seed=seed),
        "at": node("TestAt", value=["noise", 0], text=f"job {seed}", seconds=seconds),
        "run": node(
            "ZBusRun", value=["at", 0], peer=peer, here="no", on_failure="stop", quality="exact"
        ),
        "digest": node("TestDigest", value=["run", 0]),
        "local": node("TestDigest", value=["noise", 0]),
        "report": node("PreviewAny", source=["run", 1]),
    }


def check(here, entry):
    assert here.outcome(entry) == "success", here.errors(entry)
    shown = entry["outputs"]
    assert shown["digest"]["digest"] == shown["local"]["digest"]
    (report,) = shown["report"]["text"]
    assert report.endswith(" s") and ": done in " in report


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path, tmp_path / "here", tmp_path / "there")
    yield made
    made.close()


def test_a_job_over_it(make_comfyui, cloud, measured):
    here = make_comfyui(name="here", env={"ZBUS_HOME": str(cloud.here)})
    there = make_comfyui(name="there", env={"ZBUS_HOME": str(cloud.home)})
    start_all(here, there)
    began = time.monotonic()
    linking = cloud.up("--name", "cloud")
    took = time.monotonic() - began
    assert f"  {there.peer}" in "\n".join(linking.lines)

    check(here, here.run(job("cloud", 0.0, 1)))
    assert there.queue() == ([], [])

    back = []
    for seed, lose in (
        (2, lambda: os.kill(cloud.ssh(), signal.SIGKILL)),
        (3, cloud.sshd.cut),
    ):
        prompt_id = here.prompt(job("cloud", 3.0, seed))
        until(lambda: there.queue()[0], 30, "the job runs there")
        lose()
        lost = time.monotonic()
        linking.line("link lost")
        linking.line("link up again", 60)
        back.append(time.monotonic() - lost)
        check(here, here.wait(prompt_id, 60))

    linking.signal(signal.SIGINT)
    linking.rest()
    assert linking.process.returncode == 0 and not cloud.processes()
    assert "connection refused" in refused(here)
    times = " and ".join(f"{seconds:.1f}" for seconds in back)
    measured(f"link up and answering after {took:.1f} s; lost, and up again in {times} s")


def refused(here):
    """What a job says whose link is down."""
    entry = here.run(job("cloud", 0.0, 4))
    assert here.outcome(entry) == "error"
    return here.errors(entry)
