"""Inputs of nodes that take whole lists, where only one value makes sense."""

from __future__ import annotations

from typing import Any

from zbus.errors import InputError


def only(name: str, given: Any, remedy: str = "") -> Any:
    """The one value of an input.

    Raises:
        InputError: It is a list of several.
    """
    values = given if isinstance(given, (list, tuple)) else [given]
    if len(values) != 1:
        raise InputError(f"{name} is a list of {len(values)}, and takes one value", remedy=remedy)
    return values[0]
