"""ComfyUI's VIDEO values, which are live objects, as what can travel, and back.

A film travels as the bytes of its file, with the edits that ComfyUI has still to make in it (a cut,
a crop, a new size); one that has no file, as its frames, sound and rate. What arrives shows the
same frames, of the same depth, colours and transparency; where that cannot be had, it is refused.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import Input, InputImpl, Types

from zbus.errors import InputError, NotTransferable, ZBusError
from zbus.values.kinds import VIDEO as MARK

# An edited film goes as its frames up to so many bytes of them: any ComfyUI can take those, also
# one that knows no such edit. A longer one goes as its file and its edits, a fraction of that.
FEW = 64 << 20

# What a VideoFromFile keeps beside its file. One with anything else in it goes as its frames.
_EDITS = {"start_time", "duration", "spatial_ops"}
_LATER = "that is still to be made"
_LIST = {"videos", "complete_audio", "buffer"}  # the last is made of the others
_LARGEST = 16384  # pixels of a side: what ComfyUI's own nodes allow
_PLAIN_DEPTH, _PLAIN_SPACES = 8, ("sRGB", "auto")
# A version that has been seen to keep that; the others are in later ones.
_KEPT_BY = "0.28"
# What the getters of foreign classes raise. Not Exception: an interrupt is one in older ComfyUIs.
_FAILURES = (
    *(ArithmeticError, AttributeError, LookupError, OSError, RuntimeError),
    *(TypeError, ValueError),
)


# --- to the peer ----------------------------------------------------------------------------------


def packed(value: Any) -> Any:
    """A VIDEO as {MARK: ...}; anything else as it is.

    Raises:
        NotTransferable: Neither its file nor its frames can be had.
    """
    if not isinstance(value, Input.Video):
        return value
    if type(value) is InputImpl.VideoFromFile:
        return {MARK: _of_file(value)}
    if type(value) is getattr(InputImpl, "VideoFromList", None):
        return {MARK: _of_list(value)}
    return {MARK: _frames(value)}


def _of_file(video: Any) -> dict[str, Any]:
    edits = _edits(video)
    if edits == {}:
        return {"file": _file(video)}
    if edits is None:
        return _frames(video)
    return _few_plain_frames(video) or {"file": _file(video), "edits": edits}


def _of_list(video: Any) -> dict[str, Any]:
    """Several films, one after the other."""
    few = _few_plain_frames(video)
    if few is not None:
        return few
    parts = [(film, _edits(film)) for film in video.videos]
    if (
        any(edits is None for _, edits in parts)
        or not _kept(video, "VideoFromList").keys() <= _LIST
    ):
        return _frames(video)
    told: dict[str, Any] = {"films": [{"file": _file(f), "edits": edits} for f, edits in parts]}
    if video.complete_audio is not None:
        told["audio"] = dict(video.complete_audio)
    return told


def _edits(video: Any) -> dict[str, Any] | None:
    """What is still to be done to the frames of its file; None where this cannot be told."""
    told = {name: v for name, v in _kept(video, "VideoFromFile").items() if name != "file"}
    if "crop" in told and "spatial_ops" not in told:  # as the newest keep it
        told["spatial_ops"] = [("crop_aligned", *told.pop("crop"))]
    # Should a newer ComfyUI keep them otherwise, it would still say that there are some.
    is_cut = tuple(_ask(video, "get_active_trim_window", (0.0, 0.0))) != (0.0, 0.0)
    is_edited = bool(_ask(video, "has_pending_frame_edits", False))
    is_seen = (not is_cut or told.keys() & {"start_time", "duration"}) and (
        not is_edited or "spatial_ops" in told
    )
    return told if told.keys() <= _EDITS and is_seen else None


def _kept(video: Any, name: str) -> dict[str, Any]:
    """What an object of that class holds, by its private names too, but for what is empty."""
    kept = getattr(video, "__dict__", {"": ...})
    return {key.removeprefix(f"_{name}__"): v for key, v in kept.items() if _is_set(v)}


def _is_set(value: Any) -> bool:
    plain = isinstance(value, (int, float, str, list, tuple, dict))
    return bool(value) if plain else value is not None


def _file(video: Any) -> bytes:
    try:
        source = video.get_stream_source()
        if isinstance(source, (str, os.PathLike)):
            return Path(source).read_bytes()
        if isinstance(source, BytesIO):
            return source.getvalue()
        source.seek(0)
        return bytes(source.read())
    except OSError as error:  # its text has a path of this computer
        why = error.strerror or type(error).__name__
        raise NotTransferable(
            f"the file of a video cannot be read: {why}", remedy="Load the video again"
        ) from error


def _few_plain_frames(video: Any) -> dict[str, Any] | None:
    """The frames of a short film, where they tell all that there is of its picture."""
    try:
        space = _ask(video, "get_color_space", _PLAIN_SPACES[0])  # what is not so has more bits
        if video.get_bit_depth() != _PLAIN_DEPTH or space not in _PLAIN_SPACES:
            return None
        width, height = video.get_dimensions()
        if width * height * 12 * video.get_duration() * float(video.get_frame_rate()) > FEW:
            return None
        told = _frames(video)
    except (*_FAILURES, ZBusError):
        return None
    return None if "alpha" in told else told


def _frames(video: Any) -> dict[str, Any]:
    """Its frames, float [N, H, W, C], as this ComfyUI gives them, and all that belongs to them."""
    try:
        made = video.get_components()
        rate = Fraction(made.frame_rate)
        audio = None if made.audio is None else dict(made.audio)
    except _FAILURES as error:
        said = f"a video ({type(video).__name__}) has no frames to send: {type(error).__name__}"
        raise NotTransferable(said, remedy="Save it, load that file, and send that") from error
    told = {
        "images": made.images,
        "rate": [rate.numerator, rate.denominator],
        "bits": int(_ask(video, "get_bit_depth", _PLAIN_DEPTH)),
        "space": str(_ask(video, "get_color_space", _PLAIN_SPACES[0])),
    }
    more = {"audio": audio, "alpha": getattr(made, "alpha", None), "metadata": _metadata(made)}
    return told | {name: value for name, value in more.items() if value is not None}


def _metadata(made: Any) -> dict[str, str] | None:
    """The texts of the film's file; not what a pack may have put beside them."""
    kept = getattr(made, "metadata", None)
    if not isinstance(kept, Mapping):
        return None
    return {k: v for k, v in kept.items() if isinstance(k, str) and isinstance(v, str)} or None


def _ask(video: Any, getter: str, otherwise: Any) -> Any:
    """What that method says; older ComfyUIs have none of these."""
    method = getattr(video, getter, None)
    try:
        return otherwise if method is None else method()
    except _FAILURES:
        return otherwise


# --- from the peer --------------------------------------------------------------------------------


def unpacked(value: Any) -> Any:
    """What `packed` was given: a VIDEO of the same frames and sound.

    Raises:
        InputError: It is marked as a VIDEO, and is none; or this ComfyUI could only make another
            picture of it.
    """
    if not isinstance(value, dict) or set(value) != {MARK}:
        return value
    told = value[MARK]
    try:
        if "file" in told:
            return _from_file(told)
        return _from_films(told) if "films" in told else _from_frames(told)
    except ZBusError:
        raise
    except _FAILURES as error:
        raise InputError(
            f"what came as a video is none: {error}", remedy="Update zbus on both sides"
        ) from error


def _from_file(told: Any) -> Any:
    file, edits = told["file"], told.get("edits", {})
    if not isinstance(file, bytes):
        raise TypeError("its file is not of bytes")
    if not isinstance(edits, dict) or not edits.keys() <= _EDITS:
        raise ValueError("its edits are not known")
    once = {name: v for name, v in edits.items() if name != "spatial_ops"}
    steps = list(edits.get("spatial_ops", ()))
    _check(once, steps)
    if steps and steps[0][0] == "crop_aligned":
        once["crop"] = tuple(steps.pop(0)[1:])
    for name in once:
        what, by = ("a crop", "") if name == "crop" else ("a cut", _KEPT_BY)
        _want(InputImpl.VideoFromFile, name, f"{what} {_LATER}", by)
    video = _with_steps(InputImpl.VideoFromFile(BytesIO(file), **once), steps)
    if _edits(video) != edits:
        raise _another_picture(f"a crop or a new size {_LATER}")
    return video


def _check(once: dict[str, Any], steps: list[Any]) -> None:
    """That they are of plain numbers, of sizes that a picture can have."""
    for name in ("start_time", "duration"):
        if not math.isfinite(once.get(name, 0)):
            raise ValueError(f"its {name} is no time")
    for part in (part for step in steps for part in step):
        if type(part) is not str and not abs(part) <= _LARGEST:
            raise ValueError("its edits are no sizes")


def _with_steps(video: Any, steps: list[Any]) -> Any:
    """Crop and scale its frames, in that order, once they are decoded."""
    while steps:
        kind, *how = steps.pop(0)
        if kind not in ("scale", "crop") or not hasattr(video, "as_resized"):
            raise _another_picture(f"a crop or a new size {_LATER}")
        if kind == "scale":
            after = tuple(steps.pop(0)[1:]) if steps and steps[0][0] == "crop" else None
            video = video.as_resized(*how, post_crop=after)
        else:
            video = video.as_cropped(*how)
    return video


def _from_films(told: Any) -> Any:
    made = getattr(InputImpl, "VideoFromList", None)
    if made is None:
        raise _another_picture("several films in one")
    films = [_from_file(film) for film in told["films"]]
    return made(films, complete_audio=_audio(told.get("audio")))


def _from_frames(told: Any) -> Any:
    images, rate, space = told["images"], Fraction(*told["rate"]), told.get("space", "sRGB")
    bits, alpha, metadata = told.get("bits", 8), told.get("alpha"), told.get("metadata")
    if not isinstance(images, torch.Tensor) or images.dim() != 4:
        raise TypeError("its frames are no pictures")
    if rate <= 0:
        raise ValueError("its rate is not above 0")
    parts: dict[str, Any] = {
        "images": images,
        "frame_rate": rate,
        "audio": _audio(told.get("audio")),
    }
    if alpha is not None:
        if not isinstance(alpha, torch.Tensor) or alpha.shape[:3] != images.shape[:3]:
            raise TypeError("its alpha is none of its frames")
        _want(Types.VideoComponents, "alpha", "transparency", _KEPT_BY)
        parts["alpha"] = alpha
    if isinstance(metadata, dict) and _takes(Types.VideoComponents, "metadata"):
        parts["metadata"] = metadata
    return InputImpl.VideoFromComponents(Types.VideoComponents(**parts), **_colours(bits, space))


def _colours(bits: Any, space: Any) -> dict[str, Any]:
    """What beside its frames says how a film is to be written."""
    if type(bits) is not int or type(space) is not str:
        raise TypeError("its depth or its colours are none")
    more: dict[str, Any] = {}
    if bits != _PLAIN_DEPTH:
        _want(InputImpl.VideoFromComponents, "bit_depth", f"{bits} bits a colour", _KEPT_BY)
        more["bit_depth"] = bits
    if space not in _PLAIN_SPACES:
        _want(InputImpl.VideoFromComponents, "color_space", f"the colours {space[:20]!r}")
        more["color_space"] = space
    elif space == "auto" and _takes(InputImpl.VideoFromComponents, "color_space"):
        more["color_space"] = None
    return more


def _audio(told: Any) -> Any:
    if told is None:
        return None
    if not isinstance(told, dict) or not isinstance(told.get("waveform"), torch.Tensor):
        raise TypeError("its sound is none")
    if not isinstance(told.get("sample_rate"), (int, float)) or told["sample_rate"] <= 0:
        raise ValueError("its sound has no sample rate")
    return told


def _takes(made: Any, name: str) -> bool:
    try:
        return name in inspect.signature(made).parameters
    except ValueError:  # what is not written in Python does not say
        return True


def _want(made: Any, name: str, what: str, by: str = "") -> None:
    if not _takes(made, name):
        raise _another_picture(what, by)


def _another_picture(what: str, by: str = "") -> InputError:
    """The refusal; `by` is a version that could keep it, none: one that is later than 0.33."""
    newer = f"to {by} or later" if by else "to one later than 0.33"
    return InputError(
        f"a video came with {what}, which the ComfyUI that takes it cannot keep: it would show "
        "another picture",
        remedy=f"Update that ComfyUI {newer}, or send the frames alone: put Get Video Components "
        "before",
    )
