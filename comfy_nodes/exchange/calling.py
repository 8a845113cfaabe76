"""Several who are to be called, each whatever another one raises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)


def call_each(calls: Iterable[Callable[[], object]]) -> None:
    """Call them, in order. What one raises is logged: an interrupt too, which is no `Exception`."""
    for call in calls:
        try:
            call()
        except BaseException:
            logger.exception("one of several could not be told")
