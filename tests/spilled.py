"""No secret key in any log, output or JSON of the whole test run: all of it is searched."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path
from typing import Any

from zmq.utils import z85

_secrets: set[str] = set()  # each in all the forms that it could be written in


def note(secret: bytes) -> None:
    """A secret key is in use."""
    text = base64.b32encode(secret).decode().rstrip("=")
    _secrets.update((text, text.lower(), secret.hex(), z85.encode(secret).decode(), repr(secret)))
    _secrets.add(base64.b64encode(secret).decode().rstrip("="))


def note_home(home: Path) -> None:
    """So is the one of that ZBUS_HOME, if it has one by now."""
    with contextlib.suppress(OSError):
        for line in (home / "secret.key").read_text().splitlines():
            if line and not line.startswith("#"):
                note(base64.b32decode(line.strip().upper() + "===="))


def check(text: str, where: str) -> None:
    """Fails if a secret is in it; without showing it."""
    for secret in _secrets:
        assert secret not in text, f"a secret key stands in {where}"


def watch() -> None:
    """Note every key pair of this process."""
    from zbus import trust

    load = trust._key_pair

    def noted(folder: Path) -> Any:
        pair = load(folder)
        note(pair.secret)
        return pair

    trust._key_pair = noted
