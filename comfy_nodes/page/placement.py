"""Where a job is best placed: which of several ComfyUIs is the freest, and who is there at all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from zbus.errors import ZBusError
from zbus.in_time import in_time
from zbus.remote import Remote

from .. import host

ANSWER = 3.0  # seconds for a peer to say how busy it is
TCP_ANSWER = (
    1.0  # seconds in which a machine takes a connection, be its process as busy as it likes
)
BUSIEST = float("inf")


def key_of(remote: Remote) -> str:
    """What is the same for one peer under whichever name."""
    return remote.instance or remote.where


class Placed:
    """A job that is to go to `remote`, and counts there until it is released: that is, until it
    stands in the queue there, which tells of it."""

    def __init__(self, remote: Remote, release: Callable[[Placed], None]) -> None:
        self.remote, self._release = remote, release

    def release(self) -> None:
        """It counts no more; from any thread, and as often as one likes."""
        self._release(self)


class OnTheWay:
    """The jobs of this process that are placed, and in no queue yet. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._placed: weakref.WeakSet[Placed] = weakref.WeakSet()  # no run that broke off counts
        self._turn = itertools.count(1)
        self._turns: dict[str, int] = {}  # when each was chosen last

    def counts(self) -> Counter[str]:
        """How many are on their way to each."""
        with self._lock:
            return self._counts()

    def _counts(self) -> Counter[str]:
        return Counter(key_of(placed.remote) for placed in self._placed)

    def place(
        self, remotes: Sequence[Remote], loads: Sequence[float], before: Counter[str], most: float
    ) -> Placed | None:
        """At the one with the least to do; of those that are equal at the one whose turn is longest
        ago. None where each has more than `most`.

        Args:
            loads: What each has said of itself,
            before: and what was on its way there when it was asked: it may have come since.
        """
        with self._lock:
            now, keys = self._counts(), [key_of(remote) for remote in remotes]
            busy = [load + max(before[k], now[k]) for k, load in zip(keys, loads, strict=True)]
            best = min(range(len(keys)), key=lambda i: (busy[i], self._turns.get(keys[i], 0), i))
            if busy[best] > most:
                return None
            placed = Placed(remotes[best], self._release)
            self._turns[keys[best]] = next(self._turn)
            self._placed.add(placed)
            return placed

    def _release(self, placed: Placed) -> None:
        with self._lock:
            self._placed.discard(placed)


ON_THE_WAY = OnTheWay()


async def freest(remotes: Sequence[Remote]) -> Placed:
    """A place at the one with the shortest queue, be it long."""
    placed = await _placed(remotes, BUSIEST)
    assert placed is not None, "none is busier than that"
    return placed


async def idle(remotes: Sequence[Remote]) -> Placed | None:
    """A place at one that has nothing to do; None if there is none."""
    return await _placed(remotes, 0) if remotes else None


async def _placed(remotes: Sequence[Remote], most: float) -> Placed | None:
    before = ON_THE_WAY.counts()
    loads = await asyncio.gather(*(_load(remote) for remote in remotes))
    return ON_THE_WAY.place(remotes, loads, before, most)


async def _load(remote: Remote) -> float:
    """How many prompts it has running and waiting; infinity where it does not answer."""
    told = await facts(remote)
    queue = told.get("queue")
    counts = queue.values() if isinstance(queue, dict) else ()
    total = sum(n for n in counts if isinstance(n, (int, float)))
    return total if runs_jobs(told) else BUSIEST


async def facts(remote: Remote) -> dict[str, Any]:
    """What it tells of itself; nothing where it does not answer in time."""
    try:
        question = asyncio.wrap_future(host.peer().enquire(remote))
        return await in_time(question, ANSWER)
    except (ZBusError, asyncio.TimeoutError):
        return {}


def runs_jobs(told: dict[str, Any]) -> bool:
    """Whether one that tells this of itself runs jobs of this computer, and can."""
    return told.get("jobs") is True and told.get("runs_prompts") is not False


async def is_there(remote: Remote) -> bool:
    """Whether its listener takes connections: also of a process that is too busy to answer, and
    not of one that is being restarted."""
    for route in remote.routes():
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            connecting = asyncio.open_connection(route.host, route.port)
            _, writer = await in_time(connecting, TCP_ANSWER)
            writer.close()
            return True
    return False
