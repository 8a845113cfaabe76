"""How ComfyUI's lists travel as one value."""

from __future__ import annotations

from typing import Any

from zbus.kinds import LIST


def wrap(values: list[Any]) -> Any:
    """One value travels as itself, so that any zbus peer can take it; several as {LIST: [...]}."""
    return values[0] if len(values) == 1 else {LIST: values}


def unwrap(value: Any) -> list[Any]:
    """A ComfyUI list output: what `wrap` was given."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get(LIST), list):
        return list(value[LIST])
    return [value]
