"""zbus-farm on real ComfyUIs: its pictures are those that each would have saved itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chains import node
from children import ROOT, until
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SCRIPT = ROOT / "scripts" / "zbus-farm"
SEED = 4711


def noise(batch=1, **more):
    """A workflow that saves noise; jobs vary its seed, of which 4711 stands in it."""
    return {
        "57:1": node("TestNoise", batch=batch, height=16, width=24, channels=3, seed=SEED),
        **more,
        "9": node("SaveImage", images=[next(reversed(more), "57:1"), 0], filename_prefix="made"),
    }


def seeded(prompt, seed):
    return prompt | {"57:1": node("TestNoise", **prompt["57:1"]["inputs"] | {"seed": seed})}


@pytest.fixture
def farm(tmp_path):
    """``farm(prompt, {name: url}, env, **keys of the file)`` -> a zbus-farm that has begun."""
    begun = []

    def begin(prompt, urls, home, *arguments, start=5, end=11):
        info = PngInfo()
        info.add_text("prompt", json.dumps(prompt))
        Image.new("RGB", (8, 8)).save(tmp_path / "job.png", pnginfo=info)
        workers = "".join(
            f'  "{n}":\n    url: "{u}"\n    system: windows\n' for n, u in urls.items()
        )
        (tmp_path / "job.yaml").write_text(
            f'workflow: "job.png"  # beside this\njob_start: {start}\njob_end: {end}\n'
            f'workers:\n{workers}replacement:\n  -\n    src: {SEED}\n    dst: "{{job_num}}"\n'
        )
        command = [sys.executable, str(SCRIPT), "--conf", "job.yaml", "--output", "out", *arguments]
        begun.append(
            subprocess.Popen(
                command,
                cwd=tmp_path,
                env=home,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def home_of(comfyui):
    """The environment in which names mean what they mean to that ComfyUI."""
    return {**os.environ, "ZBUS_HOME": comfyui._env["ZBUS_HOME"]}


def pixels(path: Path):
    with Image.open(path) as image:
        return np.asarray(image)


def saved_by(comfyui, prompt):
    """What that ComfyUI itself saves."""
    entry = comfyui.run(prompt)
    assert comfyui.outcome(entry) == "success", comfyui.errors(entry)
    return [
        pixels(comfyui.base / "output" / i["filename"]) for i in entry["outputs"]["9"]["images"]
    ]


def outputs(comfyui):
    return {p for folder in ("output", "temp", "input") for p in (comfyui.base / folder).rglob("*")}


def address(comfyui):
    return comfyui.get("/zbus/peer")["endpoints"][0]


def test_pictures_are_those_of_a_local_run(trio, farm, tmp_path):
    before = [outputs(comfyui) for comfyui in trio]
    slow = {"slow": node("TestSlow", value=["57:1", 0], seconds=0.3)}
    urls = {"page": f"{trio.a.url}/", "name": trio.b.peer, "listener": address(trio.c)}
    prompt = noise(**slow)
    process = farm(prompt, urls, home_of(trio.a))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "6 of 6 jobs done" in out and all(f"  {name}: " in out for name in urls), out
    assert [outputs(comfyui) for comfyui in trio] == before, "nothing is written there"
    found = sorted((tmp_path / "out").iterdir(), key=lambda path: int(path.stem))
    assert [path.name for path in found] == [f"{n}.png" for n in range(5, 11)]
    for path in found:
        (local,) = saved_by(trio.a, seeded(prompt, int(path.stem)))
        assert (pixels(path) == local).all()
    with Image.open(found[0]) as image:
        again = json.loads(image.text["prompt"])
    assert again == seeded(prompt, 5), "the page can load it"


def test_batches_and_resume(pair, farm, tmp_path):
    prompt, home = noise(batch=3), home_of(pair.a)
    first = farm(prompt, {"a": pair.a.url}, home, start=0, end=1)
    assert first.wait(120) == 0, first.communicate()
    refused = farm(prompt, {"a": pair.a.url}, home, start=0, end=2)
    assert (
        refused.wait(120) == 2
        and "pictures of 1 of the jobs are there already" in refused.communicate()[1]
    )
    rest = farm(prompt, {"a": pair.a.url}, home, "--resume", start=0, end=2)
    out, err = rest.communicate(timeout=120)
    assert rest.returncode == 0 and "1 of 1 jobs done" in out, err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{job}.{i}.png" for job in (0, 1) for i in (0, 1, 2)]
    for job in (0, 1):
        local = saved_by(pair.b, seeded(prompt, job))
        assert all(
            (pixels(tmp_path / "out" / f"{job}.{i}.png") == image).all()
            for i, image in enumerate(local)
        )


def test_what_one_cannot_do_another_does(pair, farm):
    never = {"at": node("TestAt", value=["57:1", 0], never=pair.b.port)}
    urls = {"good": pair.a.url, "bad": pair.b.url}
    process = farm(noise(**never), urls, home_of(pair.a), end=15)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "10 of 10 jobs done" in out and "good: 10" in out, err
    assert "failed on bad; it is tried on another worker" in err
    assert f"this must not run on port {pair.b.port}" in err


def test_what_nobody_can_do_is_told_with_its_reasons(pair, farm):
    missing = {"x": node("NoSuchNode", value=["57:1", 0])}
    urls = {"a": pair.a.url, "b": pair.b.url}
    process = farm(noise(**missing), urls, home_of(pair.a), end=7)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "failed: 5, 6" in out
    assert err.count('node class "NoSuchNode" is not installed') >= 3, err


def test_one_is_killed_and_the_others_do_its_job(fresh_pair, farm, tmp_path):
    slow = {"slow": node("TestSlow", value=["57:1", 0], seconds=0.7)}
    urls = {"a": fresh_pair.a.url, "b": fresh_pair.b.url}
    process = farm(noise(**slow), urls, home_of(fresh_pair.a), end=10)
    until(lambda: fresh_pair.b.queue()[0], 60, "a job runs there")
    fresh_pair.b.kill(keep_base=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "5 of 5 jobs done" in out, err
    assert "b is gone, and job" in err and "goes back into the queue" in err
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_ctrl_c_stops_what_runs_there(pair, farm):
    slow = {"slow": node("TestSlow", value=["57:1", 0], seconds=300.0)}
    urls = {"a": pair.a.url, "b": pair.b.url}
    process = farm(noise(**slow), urls, home_of(pair.a))
    for comfyui in pair:
        until(lambda c=comfyui: c.queue()[0], 60, "a job runs there")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "stopped by Ctrl-C" in err and "6 are missing" in out
    for comfyui in pair:
        until(lambda c=comfyui: not any(c.queue()), 10, "nothing runs or waits there")
