"""Several machines' results as one list of values."""

from __future__ import annotations

from typing import Any

import torch


def join(results: list[list[Any]]) -> list[Any]:
    """The results of several runs of one part, in their order.

    Args:
        results: For each run its list of values.

    Returns:
        One batch, where every value is a tensor (images [B, H, W, C], masks [B, H, W]) of one
        dtype and of one size but for the batch; else all values, as a list.
    """
    values = [value for result in results for value in result]
    if len(results) > 1 and all(_alike(values[0], value) for value in values):
        return [torch.cat([value.to(values[0].device) for value in values])]
    return values


def _alike(first: Any, other: Any) -> bool:
    return (
        isinstance(first, torch.Tensor)
        and isinstance(other, torch.Tensor)
        and first.dim() >= 3
        and (first.dtype, first.shape[1:]) == (other.dtype, other.shape[1:])
    )
