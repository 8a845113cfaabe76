"""A thread that wakes twice a second and does nothing: what that alone costs on a machine."""

from __future__ import annotations

import threading
from typing import Any

from .way import Way

EVERY = 0.5  # seconds


class Waking(Way):
    def open(self) -> dict[str, Any]:
        threading.Thread(target=self._run, daemon=True).start()
        return {}

    def _run(self) -> None:
        while not threading.Event().wait(EVERY):
            pass

    def send(self) -> None:
        pass
