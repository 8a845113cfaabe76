"""Runs of numbers: a long list of ints, of floats or of bools as one buffer, and back.

The types stay: a list of ints arrives as one of ints, and every bit of a float is kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

LEAST = 16  # numbers from which a buffer is shorter than naming each, and sooner read
DTYPES = ("bool", "float64", "int8", "int16", "int32", "int64")

# What a number takes on the receiving side, beside its buffer: an object (48 bytes where it is an
# int beyond 60 bits), and while a tuple is made of a list two pointers to it.
OBJECT = 64


def packed(values: Sequence[Any]) -> np.ndarray[Any, Any] | None:
    """The numbers as an array of one of `DTYPES`; None where they are too few, of several types,
    or beyond 64 bits."""
    if len(values) < LEAST or len(kinds := set(map(type, values))) != 1:
        return None
    (kind,) = kinds
    if kind is float:
        return np.frombuffer(array("d", values))
    if kind is bool:
        return np.frombuffer(bytes(values), np.bool_)
    return _narrow(values) if kind is int else None


def _narrow(values: Sequence[int]) -> np.ndarray[Any, Any] | None:
    try:
        wide = np.frombuffer(array("q", values), np.int64)
    except OverflowError:
        return None
    low, high = int(wide.min()), int(wide.max())
    for dtype in (np.int8, np.int16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return wide.astype(dtype)
    return wide
