"""Values of every kind that ComfyUI passes between nodes, and a digest of any of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


class LazyAudio(Mapping[str, Any]):
    """As the most used video pack gives it: decoded when somebody looks."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _now(self) -> dict[str, Any]:
        return {"waveform": noise((1, 2, 4800), self._seed) * 2 - 1, "sample_rate": 44100}

    def __getitem__(self, key: str) -> Any:
        return self._now()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


class LiveObject:
    """Stands for a MODEL, a SAMPLER...: an object that cannot travel."""


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _latent(seed: int) -> dict[str, Any]:
    samples, mask = noise((2, 4, 16, 16), seed), noise((2, 1, 128, 128), seed + 1)
    return {"samples": samples, "noise_mask": mask, "batch_index": [0, 1]}


def _nested(seed: int) -> dict[str, Any]:
    from comfy.nested_tensor import NestedTensor

    samples = NestedTensor([noise((1, 4, 8, 8), seed), noise((1, 8, 20), seed + 1)])
    masks = NestedTensor([noise((1, 1, 1, 64, 64), seed + 2), noise((1, 1, 20, 1), seed + 3)])
    more = {"batch_index": [3], "type": "audio", "sample_rate": 16000}
    return {"samples": samples, "noise_mask": masks, **more}


def _conditioning(seed: int) -> list[Any]:
    extra = {"pooled_output": noise((1, 32), seed + 1), "width": 64, "area": (1, 2, 3, 4)}
    return [[noise((1, 7, 32), seed), extra | {"none": None, "flag": True}]]


def _live_conditioning(seed: int) -> list[Any]:
    return [[noise((1, 7, 32), seed), {"control": LiveObject()}]]


def _tensor(dtype: str) -> Callable[[int], torch.Tensor]:
    return lambda seed: noise((3, 5, 7), seed).mul(100).to(getattr(torch, dtype))


KINDS: dict[str, Callable[[int], Any]] = {
    "image": lambda seed: noise((2, 32, 48, 3), seed),
    "image 8-bit": lambda seed: noise((2, 32, 48, 3), seed).mul(255).round().div(255),
    "image out of range": lambda seed: noise((1, 16, 16, 3), seed) * 1.6 - 0.3,
    "image nan": lambda seed: noise((1, 4, 4, 3), seed).fill_(float("nan")),
    "mask": lambda seed: noise((2, 32, 48), seed),
    "latent": lambda seed: {"samples": noise((1, 4, 16, 16), seed)},
    "latent with mask": _latent,
    "latent nested": _nested,
    "audio": lambda seed: {"waveform": noise((1, 2, 4800), seed), "sample_rate": 48000},
    "audio that decodes": LazyAudio,
    "conditioning": _conditioning,
    "conditioning live": _live_conditioning,
    "sigmas": lambda seed: torch.linspace(14.6, 0.0, 21),
    "text": lambda seed: f"text {seed}: \u65e5\u672c\u8a9e, \U0001f680\n",
    "int": lambda seed: seed,
    "float": lambda seed: seed + 0.1,
    "bool": lambda seed: bool(seed % 2),
    "none": lambda seed: None,
    "bytes": lambda seed: bytes(range(256)),
    "list": lambda seed: [noise((1, 8, 8, 3), seed), "a", 1, 2.5, None, (1, "b")],
    "dict": lambda seed: {"a": {"b": [noise((3,), seed)]}, "c": "d"},
    "empty": lambda seed: torch.empty((0, 4, 4, 3)),
    "scalar": lambda seed: torch.tensor(seed + 0.5),
    "strided": lambda seed: noise((2, 3, 16, 16), seed).movedim(1, -1)[:, ::2],
    "model": lambda seed: LiveObject(),
    **{
        name: _tensor(name)
        for name in (
            *("float64", "float32", "float16", "bfloat16", "complex64", "bool"),
            *("float8_e4m3fn", "float8_e5m2", "uint8", "int8", "int16", "int32", "int64"),
        )
    },
}


def make(kind: str, seed: int) -> Any:
    return KINDS[kind](seed)


def digest(value: Any) -> str:
    """sha256 over the types, dtypes, shapes and bytes of a value and all that it holds."""
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def describe(value: Any) -> str:
    """The value in one line, tensors as dtype[shape]."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        inner = ", ".join(describe(item) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if tensors := getattr(value, "tensors", None):
        return f"{type(value).__name__}({describe(list(tensors))})"
    return repr(value)


def size(value: Any) -> int:
    """The bytes of the tensors and texts in it."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(size, value))
    if tensors := getattr(value, "tensors", None):
        return size(list(tensors))
    return len(value.encode()) if isinstance(value, str) else 0


def _feed(state: Any, value: Any) -> None:
    """Each part with its type and count first, so that no two values feed the same bytes."""
    if isinstance(value, torch.Tensor):
        state.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        if plain.numel():
            state.update(memoryview(plain.view(torch.uint8).numpy()))
    elif isinstance(value, Mapping):
        state.update(f"dict {len(value)} ".encode())
        for key, item in value.items():
            _feed(state, key)
            _feed(state, item)
    elif isinstance(value, list | tuple):
        state.update(f"{type(value).__name__} {len(value)} ".encode())
        for item in value:
            _feed(state, item)
    elif tensors := getattr(value, "tensors", None):
        state.update(type(value).__name__.encode())
        _feed(state, list(tensors))
    else:
        text = repr(value).encode()
        state.update(f"{type(value).__name__} {len(text)} ".encode() + text)
