"""Words of another machine, as texts and terminals may get them."""

from __future__ import annotations

from typing import Any, TextIO


def clean(text: str) -> str:
    """With a space for each character that cannot be printed, as long as before."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def clean_lines(text: str) -> str:
    """As `clean`, for a text of several lines such as a traceback."""
    return "\n".join(map(clean, text.split("\n")))


def clean_all(value: Any) -> Any:
    """What JSON holds, each text in it as `clean` makes it: JSON has marks for what cannot be
    printed."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [clean_all(item) for item in value]
    if isinstance(value, dict):
        return {clean(name): clean_all(item) for name, item in value.items()}
    return value


def shown(text: str, limit: int = 2000) -> str:
    """Without control characters, and on one line."""
    return " ".join(clean(text[:limit]).split())


def printable(text: str, file: TextIO) -> str:
    """A text as that file can take it; an error may hold words of the other side."""
    clean = "\n".join("".join(c for c in line if c.isprintable()) for line in text.split("\n"))
    encoding = file.encoding or "utf-8"
    return clean.encode(encoding, "backslashreplace").decode(encoding)
