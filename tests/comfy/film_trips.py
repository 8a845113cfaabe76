"""Films on their way through zbus, with a real ComfyUI's own classes and no server.

``python film_trips.py COMFYUI_DIR`` prints, as JSON, for each film what it showed here and what
arrived: ``test_films.py`` compares. ``--give FILE`` and ``--take FILE`` do one half each, for two
ComfyUIs of different versions.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import types
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from runner import make_importable

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64, 48
FRAMES = 12


class LazySound(Mapping[str, Any]):
    """As the most used video pack hands sound on: decoded when somebody looks."""

    def __init__(self, sound: Mapping[str, Any]) -> None:
        self._sound = sound

    def __getitem__(self, key: str) -> Any:
        return self._sound[key]

    def __iter__(self) -> Any:
        return iter(self._sound)

    def __len__(self) -> int:
        return len(self._sound)


def film(codec: str, pix_fmt: str, container: str, *, hdr: bool = False, sounds: int = 0) -> bytes:
    """A moving gradient of 12 frames at 6 a second, with as many sounds."""
    import av
    import numpy as np

    made = io.BytesIO()
    with av.open(made, "w", format=container) as output:
        stream = output.add_stream(codec, rate=6)
        stream.width, stream.height, stream.pix_fmt = *SIZE, pix_fmt
        if hdr:
            stream.codec_context.color_trc = 16  # SMPTE ST 2084: PQ
            stream.codec_context.color_primaries = stream.codec_context.colorspace = 9
        voices = [output.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(sounds)]
        ramp = np.linspace(0, 60000, SIZE[0], dtype=np.uint16)
        for number in range(FRAMES):
            pixels = np.zeros((SIZE[1], SIZE[0], 4), np.uint16)
            pixels[..., 0] = np.roll(ramp, number)
            pixels[..., 1] = 5000 * number
            pixels[..., 3] = ramp[::-1]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba64le").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 6)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        for number, voice in enumerate(voices):
            tone = np.full((1, 16000), 1000 * (number + 1), np.int16)
            sound = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            sound.sample_rate, sound.pts = 8000, 0
            output.mux(voice.encode(sound))
            output.mux(voice.encode(None))
    return made.getvalue()


def films() -> dict[str, Any]:
    """Each kind of film that this ComfyUI can hold."""
    import torch
    from comfy_api.latest import InputImpl, Types

    file = InputImpl.VideoFromFile
    data = {
        "plain": film("mpeg4", "yuv420p", "mp4"),
        "deep": film("ffv1", "yuv420p10le", "matroska"),
        "hdr": film("ffv1", "yuv420p10le", "matroska", hdr=True),
        "alpha": film("ffv1", "yuva420p", "matroska"),
        "voices": film("mpeg4", "yuv420p", "matroska", sounds=2),
    }
    made = {name: file(io.BytesIO(bytes_)) for name, bytes_ in data.items()}
    if hasattr(file, "as_trimmed"):
        made |= {f"{name}, cut": made[name].as_trimmed(0.5, 1.0) for name in data}
        made |= {f"{name}, its end": made[name].as_trimmed(-0.75, 0, False) for name in data}
    if hasattr(file, "as_cropped"):
        made |= {f"{name}, cropped": made[name].as_cropped(8, 4, 32, 24) for name in data}
    if hasattr(file, "as_resized"):
        made |= {f"{name}, small": made[name].as_resized(20, 10, "area") for name in data}
    torch.manual_seed(3)
    images = torch.rand(5, 16, 24, 3)
    sound = {"waveform": torch.randn(1, 2, 4000) * 3, "sample_rate": 8000}
    parts = Types.VideoComponents(images=images, audio=sound, frame_rate=Fraction(25, 2))
    made["of images"] = InputImpl.VideoFromComponents(parts)
    lazy = Types.VideoComponents(images=images, audio=LazySound(sound), frame_rate=Fraction(30))
    made["of images, lazy sound"] = InputImpl.VideoFromComponents(lazy)
    half = Types.VideoComponents(images=images.half(), audio=None, frame_rate=Fraction(24))
    made["of images, half"] = InputImpl.VideoFromComponents(half)
    if hasattr(InputImpl.VideoFromComponents, "get_bit_depth"):
        made["of images, deep"] = InputImpl.VideoFromComponents(parts, bit_depth=10)
    return made


def shown(video: Any) -> dict[str, Any]:
    """What a film shows, and how it would be saved."""
    made = video.get_components()
    told: dict[str, Any] = {"rate": str(made.frame_rate), "size": list(video.get_dimensions())}
    tensors = {"images": made.images, "alpha": getattr(made, "alpha", None)}
    if made.audio is not None:
        told["sample_rate"], tensors["sound"] = made.audio["sample_rate"], made.audio["waveform"]
    for name, tensor in tensors.items():
        if tensor is not None:
            data = tensor.contiguous().numpy().tobytes()
            digest = hashlib.sha256(data).hexdigest()[:16]
            told[name] = [str(tensor.dtype), list(tensor.shape), digest]
    told["class"] = type(video).__name__
    for name in ("get_bit_depth", "get_color_space"):
        if hasattr(video, name):
            told[name[4:]] = getattr(video, name)()
    if told["class"] == "VideoFromFile":
        data = video.get_stream_source()
        told["file"] = hashlib.sha256(data.getvalue()).hexdigest()[:16]
    return told


def _load(folder: str) -> Any:
    sys.path[:0] = [folder, str(ROOT)]
    sys.argv = [sys.argv[0], "--cpu"]
    make_importable()
    package = types.ModuleType("comfy_nodes")  # its own __init__ needs a server
    package.__path__ = [str(ROOT / "comfy_nodes")]
    sys.modules["comfy_nodes"] = package
    host = types.ModuleType("comfy_nodes.host")
    host.__path__ = [str(ROOT / "comfy_nodes" / "host")]
    sys.modules["comfy_nodes.host"] = host
    from comfy_nodes.host import videos

    return videos


def give(videos: Any) -> dict[str, Any]:
    """name -> (what it shows here, the spec, the buffers)."""
    from zbus.values import payload

    given = {}
    for name, video in films().items():
        packed = payload.pack(payload.flatten(videos.packed(video)), "never")
        here = shown(video)
        given[name] = here, packed.spec, [bytes(buffer.view) for buffer in packed.buffers]
    return given


def take(videos: Any, given: dict[str, Any]) -> dict[str, Any]:
    """name -> [what it showed where it came from, what it shows here or why it does not]."""
    from zbus.errors import InputError
    from zbus.values import payload

    taken = {}
    for name, (there, spec, buffers) in given.items():
        unpacker = payload.Unpacker(spec)
        for view, data in zip(unpacker.allocate(), buffers, strict=True):
            view[:] = data
        try:
            taken[name] = [there, shown(videos.unpacked(unpacker.value()))]
        except InputError as error:
            taken[name] = [there, {"refused": str(error)}]
    return taken


def main() -> None:
    import msgpack

    folder, *half = sys.argv[1:]
    videos = _load(folder)
    if half[:1] == ["--give"]:
        Path(half[1]).write_bytes(msgpack.packb(give(videos)))
        return
    if half[:1] == ["--take"]:
        given = msgpack.unpackb(Path(half[1]).read_bytes())
    else:
        given = give(videos)
    print(json.dumps(take(videos, given)))


if __name__ == "__main__":
    main()
