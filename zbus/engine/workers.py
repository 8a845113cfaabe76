"""The worker pool: what computes for long runs there, and its result comes back to the I/O thread.

Work handed out comes back as `T | ZBusError`, always and once: whatever else it raises becomes an
`InternalError`, which the log has in full.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from ..errors import InternalError, ZBusError

logger = logging.getLogger(__name__)

T = TypeVar("T")

CORES = os.cpu_count() or 4
COUNT = max(4, min(8, CORES))


class Workers:
    """One peer's pool.

    Args:
        post: Hands a call to the I/O thread, from any thread; False once that has ended.
    """

    def __init__(self, post: Callable[[Callable[[], None]], bool]) -> None:
        self._post = post
        self._pool = ThreadPoolExecutor(COUNT, thread_name_prefix="zbus-work")

    def run(self, work: Callable[[], T], then: Callable[[T | ZBusError], None]) -> None:
        """Run `work` in the pool and `then` with its result in the I/O thread. Call it there."""

        def do() -> None:
            result = outcome(work)
            self._post(lambda: then(result))

        try:
            self._pool.submit(do)
        except RuntimeError:  # the interpreter is ending; some thread still waits for this
            do()

    def share(self, work: Callable[[], None], most: int) -> None:
        """Run `work` in this thread, one of the pool or not, and at once in those of the pool that
        are free, `most` of them with this one and no more than there are cores; until all have
        returned. Raises what one of them has raised."""
        helpers: list[Future[None]] = []
        with contextlib.suppress(RuntimeError):  # the interpreter is ending: this thread does it
            for _ in range(min(most, CORES) - 1):
                helpers.append(self._pool.submit(work))
        try:
            work()
        finally:  # they write where this thread's caller lets go of the memory
            begun = [helper for helper in helpers if not helper.cancel()]
            wait(begun)
        for helper in begun:
            helper.result()

    def close(self) -> None:
        """Nothing more is run."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def outcome(work: Callable[[], T]) -> T | ZBusError:
    """What `work` returns, or the error that it raises as one of ours."""
    try:
        return work()
    except ZBusError as error:
        return error
    except BaseException as error:  # also an interrupt of ComfyUI's, or sys.exit in foreign code
        made = InternalError.of(error)
        logger.exception("a fault in zbus: %s. %s", made.what, made.remedy)
        return made
