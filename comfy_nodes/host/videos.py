"""ComfyUI's VIDEO values, which are live objects, as what can travel, and back.

One that comes from a file travels as the file's own bytes; else as its frames, sound and rate.
"""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

from comfy_api.latest import Input, InputImpl, Types

from zbus.errors import InputError

MARK = "zbus.video"


def packed(value: Any) -> Any:
    """A VIDEO as {MARK: ...}; anything else as it is."""
    if not isinstance(value, Input.Video):
        return value
    if type(value) is InputImpl.VideoFromFile and not _is_trimmed(value):
        source = value.get_stream_source()
        data = Path(source).read_bytes() if isinstance(source, str) else source.getvalue()
        return {MARK: {"file": data}}
    made = value.get_components()
    rate = Fraction(made.frame_rate)
    told = {"images": made.images, "rate": [rate.numerator, rate.denominator]}
    if made.audio is not None:
        told["audio"] = {"waveform": made.audio["waveform"], "rate": made.audio["sample_rate"]}
    return {MARK: told}


def _is_trimmed(video: Any) -> bool:
    """Newer ComfyUIs keep in it which part of the file is meant."""
    names = ("start_time", "duration")
    return any(getattr(video, f"_{type(video).__name__}__{name}", 0) for name in names)


def unpacked(value: Any) -> Any:
    """What `packed` was given: a VIDEO of the same frames and sound.

    Raises:
        InputError: It is marked as a VIDEO, and is none.
    """
    if not isinstance(value, dict) or set(value) != {MARK}:
        return value
    told = value[MARK]
    try:
        if "file" in told:
            return InputImpl.VideoFromFile(BytesIO(told["file"]))
        audio = told.get("audio")
        if audio is not None:
            audio = {"waveform": audio["waveform"], "sample_rate": audio["rate"]}
        rate = Fraction(*told["rate"])
        return InputImpl.VideoFromComponents(
            Types.VideoComponents(images=told["images"], audio=audio, frame_rate=rate)
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"what came as a video is none: {error}", remedy="Update zbus on both sides"
        ) from error
