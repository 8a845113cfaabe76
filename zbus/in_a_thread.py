"""Work that blocks, in a thread that nobody has to wait for: neither the end of a process, nor the
end of a prompt, which waits for the threads of asyncio's own pool, and so a user's X would.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begun(work: Callable[[], T]) -> Future[T]:
    """What `work` will return or raise."""
    future: Future[T] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=run, name="zbus-in-a-thread", daemon=True).start()
    return future


async def in_a_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises."""
    return await asyncio.wrap_future(begun(work))
