"""Code that is not zbus's own: the callbacks of callers, and what a host does with jobs.

Whatever it raises, `SystemExit` and `KeyboardInterrupt` too, is logged and ends nothing here. What
may block, a host's calls, runs in a thread beside the I/O thread.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def told(call: Callable[..., object], *args: Any) -> None:
    """Call it; for what must not block."""
    try:
        call(*args)
    except BaseException:  # the I/O thread is nobody's to end
        logger.exception("a callback of a job failed")


class InOrder:
    """Calls that may block, one after the other, in a thread that lives while there are any."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._runs = False

    def call(self, call: Callable[..., object], *args: Any) -> None:
        """Have it done, after all that were handed in before."""
        with self._lock:
            self._calls.append((call, args))
            if self._runs:
                return
            self._runs = True
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError:  # the interpreter is ending: nobody is left to be told
            with self._lock:
                self._runs = False
                self._calls.clear()

    @property
    def is_busy(self) -> bool:
        """Whether some call has not returned."""
        return self._runs

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._runs = False
                    return
                call, args = self._calls.popleft()
            told(call, *args)
            del call, args  # what they hold is let go of before the next one comes
