"""One thing that is wrong with a prompt, as a peer tells it before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .printable import clean

MAX_REASONS = 256  # in one refusal
MAX_FIELD = 500  # characters of one field
MAX_NEAR = 5


@dataclass(frozen=True)
class Reason:
    """Why a prompt cannot run.

    Attributes:
        kind: "class" (that node is not installed), "choice" (a combo lacks the value), "value"
            (out of range, wrong type), "input" (missing, or a link to nowhere), "output" (nothing
            to execute), "permission", "worker" (nothing runs there any more), or "other".
        node: The node's id.
        title: Its title and id, for people.
        class_type: Its class.
        input: Which of its inputs.
        value: What was given there.
        near: The nearest that there are.
        text: The whole, in one line for people.
    """

    kind: str
    node: str = ""
    title: str = ""
    class_type: str = ""
    input: str = ""
    value: str = ""
    near: tuple[str, ...] = ()
    text: str = ""

    def told(self) -> dict[str, Any]:
        """As it travels."""
        told: dict[str, Any] = {name: _text(getattr(self, name)) for name in _NAMES}
        return told | {"near": [_text(near) for near in self.near[:MAX_NEAR]]}

    @classmethod
    def read(cls, told: object) -> Reason:
        """From the wire. What is missing or of another type is left empty."""
        given = told if isinstance(told, Mapping) else {}
        near = given.get("near")
        texts = {name: _text(given.get(name)) for name in _NAMES if name != "near"}
        return cls(
            **(texts | {"kind": texts["kind"] or "other"}),
            near=tuple(_text(n) for n in near[:MAX_NEAR]) if isinstance(near, list) else (),
        )


_NAMES = tuple(f.name for f in fields(Reason))


def _text(value: object) -> str:
    return clean(value[:MAX_FIELD]) if isinstance(value, str) else ""


def lines(reasons: Iterable[Reason], most: int = 20) -> str:
    """A refusal for people: one line for each, and how many more there are."""
    texts = [reason.text or f"{reason.kind} {reason.title}".strip() for reason in reasons]
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return "\n".join((*texts[:most], *more))
