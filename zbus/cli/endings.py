"""The signals that end a program: what it has opened is closed again, however it ends."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # not every system has all


@contextlib.contextmanager
def signals(handler: Any) -> Iterator[None]:
    """Have it handle the signals that end a program."""
    before = {}
    for name in ENDINGS:
        number = getattr(signal, name, None)
        # nohup has had SIGHUP ignored; a shell's & does that to SIGINT, and is not meant.
        nohup = name == "SIGHUP" and number and signal.getsignal(number) == signal.SIG_IGN
        if number and not nohup:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            if signal.getsignal(number) is handler:  # not where the end has begun, see below
                signal.signal(number, former)


def interrupt(*_: object) -> NoReturn:
    """As Ctrl-C."""
    raise KeyboardInterrupt


def interrupt_once(*_: object) -> NoReturn:
    """As Ctrl-C; what comes after it must not keep anything from being closed, or said."""
    for name in ENDINGS:
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
