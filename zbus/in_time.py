"""A deadline that loses no cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def in_time(work: Awaitable[T], seconds: float) -> T:
    """Wait for `work`, and cancel it once it has taken so long.

    For `asyncio.wait_for`, which before Python 3.12 returns what has come when it is cancelled at
    that very moment: who waits in a loop then goes on for ever.

    Raises:
        asyncio.TimeoutError: It took longer.
    """
    task = asyncio.ensure_future(work)
    try:
        if not (await asyncio.wait((task,), timeout=seconds))[0]:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
