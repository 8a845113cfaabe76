"""What there is to know of this ComfyUI."""

from __future__ import annotations

import platform
from typing import Any

import comfy.model_management
import comfyui_version

from zbus.machine import free_memory

from .queue import queue, runs_prompts


def facts() -> dict[str, Any]:
    """What there is to know of this ComfyUI, as JSON."""
    manage = comfy.model_management
    running, waiting = queue()
    device = manage.get_torch_device()
    ram = _memory(platform.machine(), manage.torch.device("cpu"))
    return {
        "comfyui": comfyui_version.__version__,
        "python": platform.python_version(),
        "torch": str(manage.torch_version),
        "os": platform.platform(terse=True),
        "queue": {"running": len(running), "pending": len(waiting)},
        "devices": [_memory(manage.get_torch_device_name(device), device)],
        "ram": ram | {"free": min(ram["free"], free_memory())},  # of a container: its own
        "runs_prompts": runs_prompts(),
    }


def _memory(name: str, device: Any) -> dict[str, Any]:
    manage = comfy.model_management
    total, free = manage.get_total_memory(device), manage.get_free_memory(device)
    return {"name": name, "type": device.type, "total": int(total), "free": int(free)}
