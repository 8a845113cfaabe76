"""ComfyUI's door: ``comfy_entrypoint`` and ``WEB_DIRECTORY``, nothing else.

Importing this decides which ``zbus`` the process uses (see ``_locate``) and has no other effect:
the peer starts with ComfyUI's server or on first use.
"""

from __future__ import annotations

from pathlib import Path as _Path
from typing import TYPE_CHECKING

from . import _locate

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

WEB_DIRECTORY = "./web"

_ROOT = _Path(__file__).resolve().parent
_locate.load(_ROOT)


async def comfy_entrypoint() -> ComfyExtension:
    """Called by ComfyUI once, at its start."""
    with _locate.explain_missing(_ROOT):
        # Relative: a top-level "comfy_nodes" could be another pack's.
        from .comfy_nodes import ZBusExtension
    return ZBusExtension()
