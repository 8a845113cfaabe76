"""The checks of single fields that come off the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..printable import clean

MAX_TEXT = 2000  # characters of a text for people

Check = Callable[[Any], Any]
"""Takes a raw value, returns the checked one, raises ValueError."""


def number(low: int = 0, high: int = (1 << 63) - 1) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"not a whole number from {low} to {high}")
        return value

    return check


def text(limit: int = MAX_TEXT) -> Check:
    """A text for people, or a name. What cannot be printed becomes a space, here, where every text
    of the wire passes: it ends up in logs and on terminals, where it could forge a line."""

    def check(value: Any) -> str:
        if type(value) is not str or len(value) > limit:
            raise ValueError(f"not a text of at most {limit} characters")
        return clean(value)

    return check


def blob(low: int, high: int) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or not low <= len(value) <= high:
            raise ValueError(f"not {low} to {high} bytes")
        return value

    return check


def flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("not true or false")
    return value


def size(value: Any) -> tuple[str, int]:
    if type(value) not in (list, tuple) or len(value) != 2:
        raise ValueError("not a name and a size")
    return text(20)(value[0]), number()(value[1])


def piece(value: Any) -> tuple[int, int]:
    """A piece of memory: its address and its length."""
    if type(value) not in (list, tuple) or len(value) != 2:
        raise ValueError("not an address and a length")
    return number(1)(value[0]), number(1)(value[1])


def one_of(*allowed: str) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str or value not in allowed:
            raise ValueError(f"not one of {', '.join(allowed)}")
        return value

    return check


def optional(inner: Check) -> Check:
    return lambda value: None if value is None else inner(value)


def each(inner: Check, limit: int) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) not in (list, tuple) or len(value) > limit:
            raise ValueError(f"not a list of at most {limit} items")
        return tuple(inner(item) for item in value)

    return check


def clip(words: str, limit: int = MAX_TEXT) -> str:
    """The text as it can travel: without lone surrogates, and not longer than `limit`."""
    words = words.encode("utf-8", "replace").decode()
    return words if len(words) <= limit else words[: limit - 1] + "…"
