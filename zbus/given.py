"""The checks of what callers give: each argument, where it is given.

What is wrong would else be seen much later, in the I/O thread and without its name: a time limit
that is not a number never passes, and a name that is too long is cut to another one's.
"""

from __future__ import annotations

import logging
import math
import numbers
import os
from collections.abc import Callable, Collection
from functools import lru_cache

from .errors import InputError

logger = logging.getLogger(__name__)

LONGEST = 30 * 24 * 3600.0  # seconds of any wait; past it, a caller means "for ever"
SHOWN = 60  # characters of a value that a text shows

NO, YES = ("0", "false", "no", "off"), ("1", "true", "yes", "on")


def seconds(name: str, value: object, low: float = 0.0, high: float = LONGEST) -> float:
    """A time.

    Raises:
        InputError: It is no number of seconds from `low` to `high`.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # a whole number of some hundred digits
            number = math.inf
        if low <= number <= high:  # NaN is in no range
            return number
    raise InputError(f"{name} is a number of seconds from {low:g} to {high:.0f}, not {said(value)}")


def time_limit(name: str, value: object) -> float | None:
    """As `seconds`, or None: as long as it takes.

    Raises:
        InputError: It is neither.
    """
    try:
        return None if value is None else seconds(name, value)
    except InputError as error:
        raise InputError(error.what, remedy="None waits as long as it takes") from None


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number.

    Raises:
        InputError: It is none from `low` to `high`.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if low <= number <= high:
            return number
    raise InputError(f"{name} is a whole number from {low} to {high}, not {said(value)}")


def label(name: str, value: object, most: int, *, empty: bool = False) -> str:
    """A name that both sides go by: it is taken as it is, or not at all.

    Args:
        empty: Whether it may be "".

    Raises:
        InputError: It is no text of 1 to `most` printable characters.
    """
    if isinstance(value, str) and len(value) <= most and value.isprintable():
        is_there = bool(value.strip())
        if is_there or (empty and not value):
            return value
    low = 0 if empty else 1
    raise InputError(f"{name} is a text of {low} to {most} printable characters, not {said(value)}")


def text(name: str, value: object) -> str:
    """Words for people, however long: they are shortened where they travel.

    Raises:
        InputError: It is no text.
    """
    if isinstance(value, str):
        return value
    raise InputError(f"{name} is a text, not {said(value)}")


def one_of(name: str, value: object, allowed: Collection[str]) -> str:
    """A word of a closed list.

    Raises:
        InputError: It is none of them.
    """
    if isinstance(value, str) and value in allowed:
        return value
    raise InputError(f"{name} is one of {', '.join(allowed)}, not {said(value)}")


def flag(name: str, value: object) -> bool:
    """True or False, and nothing that only looks like it.

    Raises:
        InputError: It is neither.
    """
    if isinstance(value, bool):
        return value
    raise InputError(f"{name} is True or False, not {said(value)}")


def callback(name: str, value: Callable[..., object] | None) -> None:
    """Something to call, or None.

    Raises:
        InputError: It is neither.
    """
    if value is not None and not callable(value):
        raise InputError(f"{name} is a function or None, not {said(value)}")


def a(name: str, value: object, kind: type) -> None:
    """An object of that class.

    Raises:
        InputError: It is of another.
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} is a {kind.__name__}, not {said(value)}")


def switch(name: str, *, otherwise: bool, wary: bool) -> bool:
    """What an environment variable says that turns something on or off.

    Args:
        otherwise: What counts where it is not set.
        wary: What counts where it says something else than yes or no, which is logged once: the
            safe one of the two.
    """
    word = os.environ.get(name, "").strip().lower()
    if not word:
        return otherwise
    if word in NO or word in YES:
        return word in YES
    _warn(name, word[:SHOWN], wary)
    return wary


@lru_cache(maxsize=16)  # so that it is logged once
def _warn(name: str, word: str, wary: bool) -> None:
    told = "%s is %a, which is neither yes nor no: taken as %d. Set it to 1 or 0"
    logger.warning(told, name, word, wary)


def kind_of(value: object) -> str:
    """What sort of thing a value is that must not be shown: it might hold a login."""
    if isinstance(value, str):
        return f"one of {len(value)} characters" + ("" if value.isprintable() else ", some hidden")
    return f"a {type(value).__name__}"


def said(value: object) -> str:
    """A value for a text: short, on one line, and never that of something large. Writing one down
    may fail, or take long: a tensor's is thousands of numbers, a large number's is refused."""
    if isinstance(value, str):
        return ascii(value[:SHOWN]) + ("..." if len(value) > SHOWN else "")
    if isinstance(value, float) or value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        return str(value) if -(1 << 64) < value < 1 << 64 else "a number of many digits"
    return f"a {type(value).__name__}"
