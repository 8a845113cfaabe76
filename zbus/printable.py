"""Words of another machine, as texts and terminals may get them."""

from __future__ import annotations

from typing import TextIO


def shown(text: str, limit: int = 2000) -> str:
    """Without control characters, and on one line."""
    visible = "".join(c if c.isprintable() else " " for c in text[:limit])
    return " ".join(visible.split())


def printable(text: str, file: TextIO) -> str:
    """A text as that file can take it; an error may hold words of the other side."""
    clean = "\n".join("".join(c for c in line if c.isprintable()) for line in text.split("\n"))
    encoding = file.encoding or "utf-8"
    return clean.encode(encoding, "backslashreplace").decode(encoding)
