"""VIDEO values, in jobs and between two workflows."""

from __future__ import annotations

import hashlib
import io

import av
import numpy as np
import pytest
from chains import node, own, run_both
from PIL import Image


def there(peer, value):
    return node("ZBusRun", value=value, peer=peer, here="no", on_failure="stop", quality="exact")


def noise(seed=3):
    return node("TestNoise", batch=5, height=32, width=48, channels=3, seed=seed)


def film(path):
    """A short film of five frames; its bytes."""
    with av.open(str(path), "w") as made:
        stream = made.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(5):
            pixels = np.full((48, 64, 3), 40 * shade, np.uint8)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        made.mux(stream.encode())
    return path.read_bytes()


def lacking(comfyui, class_type):
    if not comfyui.object_info(class_type):
        pytest.skip(f"this ComfyUI has no {class_type}")


def digest_of(comfyui, prompt):
    prompt["parts"] = node("GetVideoComponents", video=["out", 0])
    prompt["digest"] = node("TestDigest", value=["parts", 0])
    prompt["rate"] = node("TestDigest", value=["parts", 2])
    entry = comfyui.run(prompt, 30)
    assert comfyui.outcome(entry) == "success", comfyui.errors(entry)
    return [comfyui.ui(entry, i, "digest") for i in ("digest", "rate")]


def test_a_video_made_there_comes_back(pair):
    a, b = pair
    made = {"1": noise(), "2": node("CreateVideo", images=["1", 0], fps=12.5)}
    here = digest_of(a, {**made, "out": node("TestSlow", value=["2", 0], seconds=0.0)})
    assert digest_of(a, {**made, "out": there(b.peer, ["2", 0])}) == here


def test_a_film_from_here_is_worked_on_there(pair, tmp_path):
    """The peer has no such file. It comes back as the very file."""
    a, b = pair
    data = film(tmp_path / "film.mp4")
    name = a.put_input(data, f"film-{hashlib.sha256(data).hexdigest()[:8]}.mp4")
    load = {"1": node("LoadVideo", file=name)}
    here = digest_of(a, {**load, "out": node("TestSlow", value=["1", 0], seconds=0.0)})
    middle = {**load, "2": node("TestSlow", value=["1", 0], seconds=0.01)}
    assert digest_of(a, {**middle, "out": there(b.peer, ["2", 0])}) == here
    assert not (b.base / "input" / name).exists()


def test_a_film_is_cut_here_and_worked_on_there(pair, tmp_path):
    a, b = pair
    lacking(a, "Video Slice")
    data = film(tmp_path / "film.mp4")
    name = a.put_input(data, f"film-{hashlib.sha256(data).hexdigest()[:8]}.mp4")
    load = {"1": node("LoadVideo", file=name)}
    load["2"] = node("ZBusHere", value=["cut", 0])
    how = {"start_time": 0.1, "duration": 0.3, "strict_duration": False}
    load["cut"] = node("Video Slice", video=["1", 0], **how)
    whole = digest_of(a, {**load, "out": node("TestSlow", value=["1", 0], seconds=0.0)})
    here = digest_of(a, {**load, "out": node("TestSlow", value=["2", 0], seconds=0.0)})
    middle = {**load, "3": node("TestSlow", value=["2", 0], seconds=0.01)}
    assert digest_of(a, {**middle, "out": there(b.peer, ["3", 0])}) == here != whole


def test_a_painters_mask_is_painted_here(pair):
    """A loader with a link beside its file's name: there is no such mask on the other side."""
    a, b = pair
    lacking(a, "Painter")
    mask = io.BytesIO()
    Image.fromarray(np.arange(32 * 48 * 4, dtype=np.uint8).reshape(32, 48, 4)).save(mask, "png")
    name = a.put_input(mask.getvalue(), "painted-here.png")
    made = {"1": noise()}
    how = {"width": 64, "height": 64, "bg_color": "#000000"}
    made["2"] = node("Painter", image=["1", 0], mask=name, **how)
    made["3"] = node("ImageInvert", image=["2", 0])
    made["4"] = there(b.peer, ["3", 0])
    made |= {f"digest {i}": node("TestDigest", value=[i, 0]) for i in ("3", "4")}
    entry = a.run(made, 30)
    assert a.outcome(entry) == "success", a.errors(entry)
    assert a.ui(entry, "digest 3", "digest") == a.ui(entry, "digest 4", "digest")


def test_a_video_between_two_workflows(pair, addr):
    a, b = pair
    sender, receiver = own(f"listen:{addr}"), own(addr)
    frames = sender.add(noise(9))
    video = sender.add(node("CreateVideo", images=[frames, 0], fps=25.0))
    sender.digest(frames)
    sender.step("ZBusSend", value=[video, 0], quality="exact")
    got = receiver.step("ZBusReceive", expect="any", timeout=0.0)
    parts = receiver.add(node("GetVideoComponents", video=[got, 0]))
    shown = receiver.digest(parts)
    first, second = run_both(a, sender.end(), b, receiver.end())
    assert b.ui(second, shown, "digest") == a.ui(first, str(int(video) + 1), "digest")
