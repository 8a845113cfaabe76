"""What a value looks like to people: image, latent, text..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .tensors import QUANTISABLE, is_nested, is_tensor, tensor_dtype

KINDS = ("any", "image", "mask", "latent", "audio", "text", "number", "conditioning")

LIST = "zbus.list"
"""How ComfyUI's lists travel: {LIST: [item, ...]}. Its kind is that of its items."""

VIDEO = "zbus.video"
"""How ComfyUI's VIDEO values travel: {VIDEO: {...}}. Their kind is "any"."""

VIDEO_PICTURES = ("images", "alpha")
"""What of a VIDEO is pictures: its frames [B, H, W, C], and their alpha [B, H, W]."""


def describe(value: object) -> str:
    """What a value is to ComfyUI, told by its structure.

    Returns:
        "image" for a float tensor [B, H, W, 1 to 4], "mask" for a float tensor [B, H, W] or
        [H, W], "latent" for a dict with "samples", "audio" for one with "waveform" and
        "sample_rate", "conditioning" for a list of [tensor, dict], "text", "number", else "any".
    """
    if is_tensor(value):
        return _describe_tensor(value)
    if isinstance(value, str):
        return "text"
    if isinstance(value, (bool, int, float)):
        return "number"
    if isinstance(value, Mapping):
        return _describe_dict(value)
    if isinstance(value, list) and value and all(map(_is_condition, value)):
        return "conditioning"
    return "any"


def fits(value_kind_expected: str, value: object) -> bool:
    """Whether a value may go where this kind (one of KINDS) is expected.

    Raises:
        InputError: There is no such kind.
    """
    if value_kind_expected not in KINDS:
        raise InputError(
            f"there is no kind of value {value_kind_expected!r}",
            remedy=f"Choose one of: {', '.join(KINDS)}.",
        )
    return value_kind_expected in ("any", describe(value))


def _describe_tensor(tensor: Any) -> str:
    if tensor_dtype(tensor) not in QUANTISABLE:
        return "any"
    shape = tuple(tensor.shape)
    if len(shape) == 4 and 1 <= shape[3] <= 4:
        return "image"
    return "mask" if len(shape) in (2, 3) else "any"


def is_marked(value: Mapping[Any, Any], mark: str) -> bool:
    """Whether it is {mark: what is meant}."""
    return len(value) == 1 and isinstance(value.get(mark), list if mark == LIST else dict)


def _describe_dict(value: Mapping[Any, Any]) -> str:
    if is_marked(value, LIST):
        kinds = {describe(item) for item in value[LIST]}
        return kinds.pop() if len(kinds) == 1 else "any"
    samples = value.get("samples")
    if is_tensor(samples) or is_nested(samples):
        return "latent"
    return "audio" if is_tensor(value.get("waveform")) and "sample_rate" in value else "any"


def _is_condition(item: object) -> bool:
    return (
        isinstance(item, (list, tuple))
        and len(item) == 2
        and is_tensor(item[0])
        and isinstance(item[1], dict)
    )
