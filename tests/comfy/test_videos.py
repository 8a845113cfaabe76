"""VIDEO values, in jobs and between two workflows."""

from __future__ import annotations

import hashlib

import av
import numpy as np
from chains import node, own, run_both


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
