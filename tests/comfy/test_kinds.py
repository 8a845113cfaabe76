"""What a value is decides: what may be rounded, what cannot travel, whose folder is meant."""

from __future__ import annotations

import io

import numpy as np
import pytest
from chains import node
from comfyui import PromptRefused
from hosts import skip_without_folder_loaders
from PIL import Image
from test_run_on_peers import at_peer, digests, failure, good, texts


def test_what_was_clipped_is_said_in_the_report(pair):
    prompt = {
        "make": node("TestMakeImage", kind="image out of range", seed=3),
        "run": at_peer(("make", 0), pair.b.peer, quality="8-bit"),
        "report": node("PreviewAny", source=["run", 1]),
    }
    (report,) = texts(good(pair.a, prompt), "report")
    assert f"{pair.b.peer}: done in" in report
    assert "; values outside 0..1 were clipped (min -0.298, max 1.3)" in report


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("image out of range", "; sent bit for bit: the node before does not say"),
        ("audio that decodes", "done in"),
    ],
)
def test_what_is_not_known_to_be_a_picture_is_exact_in_8_bit(pair, kind, says):
    prompt = {
        "make": node("TestMake", kind=kind, seed=3),
        "run": at_peer(("make", 0), pair.b.peer, quality="8-bit"),
        "digest": node("TestDigest", value=["run", 0]),
        "local": node("TestDigest", value=["make", 0]),
        "report": node("PreviewAny", source=["run", 1]),
    }
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local")
    (report,) = texts(entry, "report")
    assert says in report and "clipped" not in report


@pytest.mark.parametrize("where", ["there", "here"])
def test_what_lives_in_one_comfyui_is_told_before_anything_is_computed(pair, where):
    """Its type tells: a SAMPLER, as what comes back and as what goes there."""
    prompt = {
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "mark": node("ZBusHere", value=["sampler", 0]),
        "at": node("TestAt", value=["mark", 0], text=f"never, {where}"),
        "run": at_peer(("at" if where == "here" else "sampler", 0), pair.b.peer),
        "show": node("PreviewAny", source=["run", 1]),
    }
    error = failure(pair.a, prompt)
    assert error["node_id"] == "run"
    named = "#mark" if where == "here" else "#sampler"
    assert f"{named}: a SAMPLER lives in one ComfyUI" in error["exception_message"]
    assert "TestAt ran never" not in pair.b.log()


def folder(comfyui, name, *shades):
    (comfyui.base / "input" / name).mkdir(exist_ok=True)
    for shade in shades:
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(buffer, "png")
        comfyui.put_input(buffer.getvalue(), f"{name}/{shade}.png")


def of_folder(pair, name):
    return {
        "load": node("LoadImageDataSetFromFolder", folder=name),
        "at": node("TestAt", value=["load", 0], only=pair.b.port),
        "run": at_peer(("at", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
    }


def test_a_folder_of_pictures_is_this_computers(pair):
    skip_without_folder_loaders(pair.a)
    folder(pair.a, "set", 10, 20)
    folder(pair.b, "set", 30, 40, 50)
    prompt = of_folder(pair, "set")
    prompt["local"] = node("TestDigest", value=["load", 0])
    entry = good(pair.a, prompt)
    assert len(digests(entry)) == 2 and digests(entry) == digests(entry, "local")


def test_a_folder_that_only_the_peer_has_is_not_meant(pair):
    skip_without_folder_loaders(pair.a)
    folder(pair.a, "mine", 10)
    folder(pair.b, "theirs", 30)
    prompt = of_folder(pair, "theirs")
    prompt["at"]["inputs"]["text"] = "never of theirs"
    try:
        assert failure(pair.a, prompt)["node_id"] == "load"
    except PromptRefused as refused:  # from 0.30 on ComfyUI looks before it runs
        assert "theirs" in str(refused)
    assert "TestAt ran never of theirs" not in pair.b.log()


def of_path(pair, path):
    return {
        "load": node("TestLoadPath", video=str(path)),
        "at": node("TestAt", value=["load", 0], only=pair.b.port),
        "run": at_peer(("at", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
    }


def test_a_file_at_a_path_of_this_computer_is_sent_along(pair, tmp_path):
    (tmp_path / "mine.mp4").write_bytes(b"\x80")
    prompt = of_path(pair, tmp_path / "mine.mp4")
    prompt["local"] = node("TestDigest", value=["load", 0])
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local")
    assert "TestLoadPath ran mine.mp4" in pair.a.log()
    assert "TestLoadPath ran mine.mp4" not in pair.b.log()


def test_a_path_that_is_not_here_is_the_peers(pair, tmp_path):
    """Which says without its folders that it is not there either."""
    said = failure(pair.a, of_path(pair, tmp_path / "theirs.mp4"))["exception_message"]
    assert f"{pair.b.peer}" in said and "no such file: theirs.mp4" in said, said
    assert str(tmp_path) not in said
