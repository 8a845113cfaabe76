"""Pure: the names nearest to one that is not there, so that one look mends a workflow."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from typing import Any

from zbus.reasons import MAX_NEAR

from .discreet import is_absolute

MAX_LOOKED_UP = 20  # refused values of one prompt whose nearest are looked for: it takes time
MAX_POOL = 1000  # names among which the nearest are looked for


class Near:
    """The names nearest to one that is not there; for so many only, since it takes time."""

    def __init__(self) -> None:
        self._left = MAX_LOOKED_UP

    def of(self, value: Any, choices: Iterable[Any]) -> tuple[str, ...]:
        """At most MAX_NEAR of the choices; all of them, if they are so few."""
        names = [choice for choice in choices if isinstance(choice, str)]
        if self._left <= 0 or not isinstance(value, str):
            return ()
        self._left -= 1
        found = near(value, names) or (names if len(names) <= MAX_NEAR else ())
        return tuple(name for name in found if not is_absolute(name))


def near(value: str, names: Collection[str]) -> tuple[str, ...]:
    """The names most like a value, at most MAX_NEAR: first those of the same file elsewhere."""
    pool = list(dict.fromkeys(names))
    if len(pool) > MAX_POOL:  # at least those that begin alike
        pool = [name for name in pool if _stem(name)[:2] == _stem(value)[:2]][:MAX_POOL]
    same = [name for name in pool if _file(name) == _file(value)]
    by_stem: dict[str, list[str]] = {}
    for name in pool:
        by_stem.setdefault(_stem(name), []).append(name)
    like = difflib.get_close_matches(_stem(value), by_stem, n=MAX_NEAR, cutoff=0.6)
    ranked = [*same, *(name for stem in like for name in by_stem[stem])]
    return tuple(dict.fromkeys(ranked))[:MAX_NEAR]


def _file(name: str) -> str:
    return re.split(r"[\\/]", name)[-1].casefold()


def _stem(name: str) -> str:
    return re.sub(r"\.[a-z0-9]{1,12}$", "", _file(name))
