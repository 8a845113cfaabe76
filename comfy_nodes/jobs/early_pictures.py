"""Pictures out of a part, shown here as soon as the other ComfyUI has made them: a Preview in the
part gets its value only when the whole job has ended.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image

LARGEST = 1024  # pixels a side: it is to be seen on a node, and the real one comes
KIND = "image/jpeg"


def picture(values: list[Any]) -> bytes | None:
    """The first of those values as a JPEG, where it is an image: [B, H, W, C] in 0..1, with a C of
    1, 3 or 4. None where it is something else."""
    batch = values[0] if values else None
    if not isinstance(batch, torch.Tensor) or batch.dim() != 4 or not batch.numel():
        return None
    if batch.shape[3] not in (1, 3, 4) or not batch.is_floating_point():
        return None
    first = batch[0]
    step = max(1, max(first.shape[:2]) // LARGEST)  # as much as is left to scale is little
    shown = first[::step, ::step, :3].float().nan_to_num(0.0).clamp(0.0, 1.0)
    pixels = (shown * 255.0).round().to(torch.uint8).cpu().numpy()
    made = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    made.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    made.save(out, "JPEG", quality=90)
    return out.getvalue()
