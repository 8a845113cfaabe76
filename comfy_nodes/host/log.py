"""Whose lines in ComfyUI's log are zbus's: ComfyUI writes what is said, and not by whom."""

from __future__ import annotations

import copy
import logging

NAME = "zbus"


class _Naming(logging.Handler):
    """Hands each record on to the root's handlers, its text headed by the name."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not text.startswith(NAME):
            record = copy.copy(record)  # others may hold it
            record.msg, record.args = f"{NAME}: {text}", None
        logging.getLogger().handle(record)


def name_lines(*loggers: str) -> None:
    """Have these loggers, and those below them, say the name before each line."""
    for logger in map(logging.getLogger, loggers):
        if not any(isinstance(handler, _Naming) for handler in logger.handlers):
            logger.addHandler(_Naming())
        logger.propagate = False
