"""Work that blocks, for coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_a_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises, in a thread that nobody waits for: the end of a prompt waits
    for those of asyncio's own pool, and so a user's X would."""
    future: Future[T] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=run, name="zbus-in-a-thread", daemon=True).start()
    return await asyncio.wrap_future(future)
