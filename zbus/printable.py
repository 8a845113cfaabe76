"""Words of another machine, as texts and terminals may get them."""

from __future__ import annotations


def shown(text: str, limit: int = 2000) -> str:
    """Without control characters, and on one line."""
    visible = "".join(c if c.isprintable() else " " for c in text[:limit])
    return " ".join(visible.split())
