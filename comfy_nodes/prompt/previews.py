"""Pure: the pictures that ComfyUI sends to a page while it computes."""

from __future__ import annotations

import json
import struct
from typing import Any

_PREVIEW, _PREVIEW_WITH_METADATA = 1, 4
_IMAGES = {1: "image/jpeg", 2: "image/png"}


def read_preview(message: bytes) -> dict[str, Any] | None:
    """A preview out of a binary message to the page: node and prompt_id ("" where it is not
    said), kind, data. None for any other message.

    Raises:
        ValueError, struct.error: It is cut short.
    """
    event, number = struct.unpack_from(">II", message) if len(message) >= 8 else (0, 0)
    if event == _PREVIEW:
        kind = _IMAGES.get(number, "image/jpeg")
        return {"node": "", "prompt_id": "", "kind": kind, "data": bytes(message[8:])}
    if event == _PREVIEW_WITH_METADATA:
        said = json.loads(bytes(message[8 : 8 + number]))
        node = str(said.get("display_node_id") or said.get("node_id") or "")
        kind = str(said.get("image_type", "image/jpeg"))
        prompt_id, data = str(said.get("prompt_id") or ""), bytes(message[8 + number :])
        return {"node": node, "prompt_id": prompt_id, "kind": kind, "data": data}
    return None
