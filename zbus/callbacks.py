"""Runs the caller's own code (progress, ends, a host's answers) off the I/O thread.

Foreign code may raise anything and may take its time: here it can neither end nor block the thread
that keeps the links. Callbacks run one after another, in the order in which they were due; of two
calls with the same key that both still wait only the later one runs.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from .errors import LocalProtocolError

logger = logging.getLogger(__name__)

IDLE = 5.0  # seconds that the thread waits for more before it ends

_here = threading.local()
_ALL: weakref.WeakSet[Callbacks] = weakref.WeakSet()


def forbid_waiting() -> None:
    """This thread may not wait for an operation: it is one that every operation needs."""
    _here.why = "a call that waits, from the I/O thread itself"


def check_waiting() -> None:
    """That this thread may wait for an operation.

    Raises:
        LocalProtocolError: It runs zbus itself or a callback of it, and what it would wait for
            might need just that.
    """
    why = getattr(_here, "why", "")
    if why:
        raise LocalProtocolError(
            why, remedy="Use start_send and start_receive there, or a thread of your own"
        )


class Callbacks:
    """One thread for callbacks, one after the other; it exists while there are any."""

    def __init__(self, name: str = "zbus-callbacks") -> None:
        self._name = name
        self.reset()
        _ALL.add(self)

    def reset(self) -> None:
        """Forget what is due, and the thread."""
        self._condition = threading.Condition()
        self._due: dict[object, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._thread: threading.Thread | None = None
        self._is_calling = False

    def call(self, call: Callable[..., Any], *args: Any, key: object = None) -> None:
        """Have `call(*args)` run soon.

        Args:
            key: Names the kind of call: one that still waits under the same key is replaced.
        """
        with self._condition:
            self._due[object() if key is None else key] = call, args
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter is ending: nobody is left to be told
                    self._thread = None
                    self._due.clear()
            else:
                self._condition.notify()

    @property
    def is_busy(self) -> bool:
        """Whether some call waits, or has not returned."""
        return bool(self._due) or self._is_calling

    def _run(self) -> None:
        _here.why = "a call that waits, from a callback"
        while (due := self._next()) is not None:
            guarded(due[0], *due[1])
            self._is_calling = False
            del due  # or the last one would be held while the thread waits

    def _next(self) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        with self._condition:
            self._condition.wait_for(lambda: bool(self._due), IDLE)
            if not self._due:
                self._thread = None
                return None
            self._is_calling = True
            return self._due.pop(next(iter(self._due)))


def guarded(call: Callable[..., Any], *args: Any) -> None:
    """Call foreign code: whatever it raises is logged, and ends nothing of ours."""
    try:
        call(*args)
    except BaseException:  # an interrupt of ComfyUI's is a BaseException, and so is sys.exit
        logger.exception("a callback has raised")


CALLBACKS = Callbacks()
"""Those that are of no certain peer. Each peer has its own: what blocks one holds up no other's."""


def _forked() -> None:
    """A child has none of its parent's threads."""
    for callbacks in _ALL:
        callbacks.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
