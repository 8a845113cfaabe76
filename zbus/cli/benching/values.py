"""The values that are sent, each by a name that tells how it is made."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from ...values.tensors import torch_module

SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
NOISE = 16 << 20  # floats
CHECKED = 64 << 20  # bytes at each end of a large array: more would take longer than the transfers


def size_of(name: str) -> int:
    """The bytes of a value "floats:192M"; of the others what is worth telling: 0."""
    kind, _, number = name.partition(":")
    return int(number[:-1]) * SIZES[number[-1]] if kind == "floats" else 0


def make(name: str, with_torch: bool) -> Any:
    """The value of that name. Arrays are tensors where `with_torch`.

    "floats:16M" noise, float32; "dict" a small one; "ints:N" a list; "tensors:N" of 64 bytes, in a
    dict; "conditioning:N" entries as ComfyUI has them, with small tensors; "text:N" characters;
    "photo:FILE" as LoadImage gives it: [1, height, width, 3], float32, each k/255.
    """
    kind, _, number = name.partition(":")
    random = np.random.default_rng(7)

    def array(*shape: int) -> Any:
        made = random.random(shape, np.float32)
        return torch_module().from_numpy(made) if with_torch else made

    if kind == "floats":
        return _noise(size_of(name) // 4, random, with_torch)
    if kind == "photo":
        made = loaded(number)
        return torch_module().from_numpy(made) if with_torch else made
    if kind == "dict":
        return {"seed": 42, "name": "a glass bottle", "strength": 0.75, "on": True}
    count = int(number)
    if kind == "ints":
        return list(range(count))
    if kind == "text":
        return "x" * count
    if kind == "tensors":
        return {f"t{i}": array(16) for i in range(count)}
    if kind == "conditioning":
        return [
            [array(4, 8), {"pooled_output": array(1, 8), "strength": 1.0, "start": i}]
            for i in range(count)
        ]
    raise ValueError(f"there is no value {name}")


def _noise(count: int, random: np.random.Generator, with_torch: bool) -> Any:
    """As much noise as no codec can gain from, and again: making it must not take longer than what
    is measured."""
    piece = random.random(min(count, NOISE), np.float32)
    if with_torch:
        return torch_module().from_numpy(piece).repeat(-(-count // len(piece)))[:count]
    return np.tile(piece, -(-count // len(piece)))[:count]


def loaded(file: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A picture as LoadImage gives it."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))[None].astype(np.float32) / 255.0


def plain(value: Any) -> memoryview:
    """The bytes of a tensor or array where they lie, writable."""
    if hasattr(value, "detach"):
        value = value.detach().numpy()
    return memoryview(value).cast("B")


def digest(value: Any) -> str:
    """Two values that are equal have the same; of a tensor, an array or a buffer it is that of the
    bytes."""
    if isinstance(value, (dict, list, tuple)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        text = ",".join(f"{key}={digest(part)}" for key, part in parts)
        return hashlib.sha256(text.encode()).hexdigest()[:32]
    if hasattr(value, "detach") or isinstance(value, (np.ndarray, memoryview, bytearray)):
        view = plain(value)
        ends = xxhash.xxh3_128(view[:CHECKED])
        ends.update(view[-CHECKED:])
        return f"{len(view)}:{ends.hexdigest()}"
    return repr(value)
