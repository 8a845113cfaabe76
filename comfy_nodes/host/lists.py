"""How ComfyUI's lists travel as one value."""

from __future__ import annotations

from typing import Any

from zbus.values.kinds import LIST

from .videos import packed, unpacked


def wrap(values: list[Any]) -> Any:
    """One value travels as itself, so that any zbus peer can take it; several as {LIST: [...]}."""
    values = [packed(value) for value in values]
    return values[0] if len(values) == 1 else {LIST: values}


def unwrap(value: Any) -> list[Any]:
    """A ComfyUI list output: what `wrap` was given."""
    return [unpacked(item) for item in as_come(value)]


def as_come(value: Any) -> list[Any]:
    """The same as it travels: a video not made yet, which may fail."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get(LIST), list):
        return list(value[LIST])
    return [value]
