"""Prompts for two workflows that meet, and what comes of them."""

from __future__ import annotations

from typing import Any

from children import until
from comfyui import ComfyUI

Node = dict[str, Any]
Prompt = dict[str, Node]


def node(class_type: str, title: str = "", **inputs: Any) -> Node:
    made: Node = {"class_type": class_type, "inputs": inputs}
    if title:
        made["_meta"] = {"title": title}
    return made


class Chain:
    """A chain of our nodes, in one prompt: each step is wired to the one before by its order.

    ``chain.prompt`` is what ComfyUI takes; ids count from 1.
    """

    def __init__(self, start: int | None = 0, **where: Any) -> None:
        self.prompt: Prompt = {}
        self.where = where
        self.order: list[Any] | None = None
        if start is not None:
            self.order = [self.add(node("PrimitiveInt", value=start)), 0]

    def add(self, made: Node) -> str:
        node_id = str(len(self.prompt) + 1)
        self.prompt[node_id] = made
        return node_id

    def step(self, class_type: str, title: str = "", **inputs: Any) -> str:
        """One of our nodes; returns its id."""
        inputs = {**self.where, **inputs}
        if self.order is not None:
            inputs.setdefault("order", self.order)
        node_id = self.add(node(class_type, title, **inputs))
        first = class_type in ("Send String", "Send Images")
        self.order = [node_id, 0 if first else 1]
        return node_id

    def then(self, class_type: str, **inputs: Any) -> str:
        """A foreign node that the order passes through: it runs between two operations."""
        assert self.order is not None
        node_id = self.add(node(class_type, value=self.order, **inputs))
        self.order = [node_id, 0]
        return node_id

    def digest(self, source: str, slot: int = 0) -> str:
        return self.add(node("TestDigest", value=[source, slot]))

    def end(self) -> Prompt:
        """Something that wants the last order, as Jumper's examples have."""
        self.add(node("PreviewAny", source=self.order))
        return self.prompt


def jumper(addr: str, mode: str, start: int | None = 0) -> Chain:
    return Chain(start, addr=addr, mode=mode)


def own(peer: str, channel: str = "main", start: int | None = 0) -> Chain:
    return Chain(start, peer=peer, channel=channel)


def wait_both(
    a: ComfyUI, a_id: str, b: ComfyUI, b_id: str, timeout: float = 30.0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both history entries. Fails as soon as one has failed and the other goes on."""

    def ended() -> tuple[dict[str, Any], dict[str, Any]] | None:
        first, second = a.ended(a_id), b.ended(b_id)
        return (first, second) if first and second else None

    def said() -> object:
        return [
            (c.name, bool(c.ended(i)), c.events.texts()[-5:]) for c, i in ((a, a_id), (b, b_id))
        ]

    entries: tuple[dict[str, Any], dict[str, Any]] = until(ended, timeout, said)
    return entries


def run_both(
    a: ComfyUI, first: Prompt, b: ComfyUI, second: Prompt, timeout: float = 30.0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Queue one on `a`, then one on `b`; both must succeed."""
    entries = wait_both(a, a.prompt(first), b, b.prompt(second), timeout)
    for comfyui, entry in zip((a, b), entries, strict=True):
        assert comfyui.outcome(entry) == "success", f"{comfyui.name}: {comfyui.errors(entry)}"
    return entries
