"""Several machines' results as one list of values."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch


def join(results: list[list[Any]]) -> list[Any]:
    """The results of several runs of one part, in their order.

    Args:
        results: For each run its list of values.

    Returns:
        One batch, where every value is a tensor (images [B, H, W, C], masks [B, H, W]) of one
        size but for the batch, in the widest of their floating dtypes; else all values, as a list.
    """
    values = _values(results)
    if not _is_batch(results, values):
        return values
    dtype, device = _widest(values), values[0].device
    return [torch.cat([value.to(device, dtype) for value in values])]


def widening(results: list[list[Any]]) -> str:
    """What `join` changes of their dtypes, in words; "" where it changes none."""
    values = _values(results)
    if not _is_batch(results, values) or len({value.dtype for value in values}) == 1:
        return ""
    came = " and ".join(sorted({_name(value.dtype) for value in values}))
    return f"one batch of {_name(_widest(values))}: {came} came"


def _values(results: list[list[Any]]) -> list[Any]:
    return [value for result in results for value in result]


def _is_batch(results: list[list[Any]], values: list[Any]) -> bool:
    return bool(values) and len(results) > 1 and all(_alike(values[0], value) for value in values)


def _alike(first: Any, other: Any) -> bool:
    return (
        isinstance(first, torch.Tensor)
        and isinstance(other, torch.Tensor)
        and first.dim() >= 3
        and first.shape[1:] == other.shape[1:]
        and (first.dtype == other.dtype or (_is_float(first) and _is_float(other)))
    )


def _is_float(value: torch.Tensor) -> bool:
    """Of those that torch has a wider one for: of float8 it has not."""
    return value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _widest(values: list[Any]) -> torch.dtype:
    return reduce(torch.promote_types, (value.dtype for value in values))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
