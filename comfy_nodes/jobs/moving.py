"""A job that waits in a queue, and that any peer may run, goes to one that becomes free.

It is asked first whether it could run the part: who is free may lack a model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Protocol, TypeVar

from zbus.errors import JobRefused, NotPermitted, ZBusError
from zbus.in_time import in_time
from zbus.job import Request
from zbus.remote import Remote

from .. import host

logger = logging.getLogger(__name__)

LOOK_EVERY = 2.0  # seconds
ANSWER = 20.0  # seconds in which one that is free says whether it could run it


class _Movable(Protocol):
    @property
    def may_move(self) -> bool: ...


M = TypeVar("M", bound=_Movable)


async def take_back(shares: Iterable[M], move: Callable[[M], Awaitable[None]]) -> None:
    """Until it is cancelled: try to `move` each share that waits, one after the other."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        for share in [share for share in shares if share.may_move]:
            try:
                await move(share)
            except Exception:  # it waits where it is
                logger.exception("a job that waits could not be taken back")


async def could_run(remote: Remote, request: Request) -> bool | None:
    """What that peer says to a request that only asks; None where it does not answer."""
    try:
        # Of no group: it stops none of the same node's that waits there.
        job = host.peer().submit(remote, replace(request, group=""))
        await in_time(job, ANSWER)
    except (JobRefused, NotPermitted):
        return False
    except (ZBusError, asyncio.TimeoutError):
        return None
    return True
