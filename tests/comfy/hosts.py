"""What not every version of ComfyUI has: each a fact of the host, and the reason of a skip."""

from __future__ import annotations

import os

import pytest
import torch
from comfyui import ComfyUI


def has_nested_latents(*comfyuis: ComfyUI) -> bool:
    """Latents of several parts of different shapes: all of those ComfyUIs know them."""
    return all((c.comfyui_dir / "comfy" / "nested_tensor.py").is_file() for c in comfyuis)


def make_or_skip(kind: str, *comfyuis: ComfyUI) -> str:
    """That kind of value of the test pack; skips where one of those ComfyUIs has no such class."""
    if kind == "latent nested" and not has_nested_latents(*comfyuis):
        pytest.skip("this ComfyUI has no nested latents (comfy.nested_tensor came after 0.3.64)")
    return kind


def skip_without_folder_loaders(comfyui: ComfyUI) -> None:
    """For tests of the core's data-set loaders, which take a folder's name."""
    if not (comfyui.comfyui_dir / "comfy_extras" / "nodes_dataset.py").is_file():
        pytest.skip("this ComfyUI has no data-set loaders (they came after 0.3.64)")


def made_here(tensor: torch.Tensor) -> torch.Tensor:
    """An image or latent as the host's own nodes make it, started as it was for this run."""
    halves = "--fp16-intermediates" in os.environ.get("COMFYUI_ARGS", "")
    return tensor.half() if halves else tensor


def skip_if_expanding_needs_a_cache(comfyui: ComfyUI) -> None:
    """For tests with --cache-none of nodes that become several, as Run on Peers does."""
    caching = comfyui.comfyui_dir / "comfy_execution" / "caching.py"
    if "class NullCache" not in caching.read_text(encoding="utf-8"):
        pytest.skip(
            "with --cache-none this ComfyUI fails at any node that becomes several (0.3.64: "
            "KeyError in its DependencyAwareCache, which later ones have not)"
        )
