"""Pure: what several here ask the host about node classes. What one alone asks stands beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from .class_inputs import ClassInput


class Names(Protocol):
    """Which there are."""

    def names(self) -> Collection[str]:
        """The classes that there are."""


class Inputs(Protocol):
    """What they take."""

    def inputs(self, class_type: str, given: Mapping[str, Any]) -> Mapping[str, ClassInput]:
        """What it declares for a node with these inputs; empty where it cannot be told."""


class Readers(Protocol):
    """What is wired to their nodes, and whether something must be."""

    def is_output(self, class_type: str) -> bool:
        """Whether it is an output node."""

    def accepted(self, class_type: str, name: str) -> str:
        """The type of that input ("IMAGE", "IMAGE,MASK"...), "" where it cannot be told."""
