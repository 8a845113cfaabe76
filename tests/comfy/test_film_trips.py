"""VIDEO values of this ComfyUI's own classes on their way: see film_trips.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from comfyui import host_python

WORKER = Path(__file__).with_name("film_trips.py")


@pytest.fixture(scope="module")
def trips(comfyui_dir, tmp_path_factory):
    """For each kind of film: [what it shows here, what arrived shows]."""
    command = [host_python(), "-B", str(WORKER), str(comfyui_dir)]
    ran = subprocess.run(
        command, cwd=tmp_path_factory.mktemp("films"), capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


def test_every_kind_of_film_shows_what_it_showed(trips):
    """Frames, alpha, sound, rate, depth and colours, bit for bit."""
    assert len(trips) >= 8
    for name, (here, there) in trips.items():
        assert "refused" not in there, name
        # A short plain film that was edited comes as its frames.
        same = here.keys() - {"class", "file"}
        assert {key: there.get(key) for key in same} == {key: here[key] for key in same}, name


def test_an_untouched_film_is_its_very_file(trips):
    for name in ("plain", "deep", "hdr", "alpha", "voices"):
        here, there = trips[name]
        assert there["class"] == "VideoFromFile" and there["file"] == here["file"], name


def test_one_of_more_than_plain_frames_stays_a_file_when_it_is_cut(trips):
    if "deep, cut" not in trips:
        pytest.skip("this ComfyUI has no Trim Video (as_trimmed)")
    for kind in ("deep", "hdr", "alpha"):
        for edit in ("cut", "its end"):
            here, there = trips[f"{kind}, {edit}"]
            assert there["class"] == "VideoFromFile" and there["file"] == here["file"]
            assert here["images"] != trips[kind][0]["images"], "it is not cut"
