"""Jobs given to other peers by the nodes of a run: begun, placed anew where one fails, awaited.

A `JobPlan` says what shall run elsewhere and where. `begin` gives its jobs. What a part needs from
here (boundaries) must be computed first: then `begin` only asks the peers whether the part could
run there, and `start` gives the jobs once the values are there. `collect` waits for the results.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from zbus.errors import JobError, JobFailed, NotTransferable, ZBusError
from zbus.job import Job, Request
from zbus.reasons import lines
from zbus.remote import Remote

from .. import host
from ..exchange import waiting
from ..exchange.runs import Run
from ..page import peers
from ..prompt.cutting import for_position, result_names
from ..prompt.graph import Graph, Link
from ..prompt.output_types import results
from ..prompt.preflight import cannot_travel, unique
from .shown_here import ShownHere

logger = logging.getLogger(__name__)

STOP, ANOTHER, REST = "stop", "try another", "return the rest"
ON_FAILURE = [STOP, ANOTHER, REST]


class Piece(Protocol):
    """What is sent: a `cutting.Part` or a `dispatching.Dispatch`."""

    @property
    def prompt(self) -> Graph: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def boundaries(self) -> dict[str, Link]: ...


@dataclass(eq=False)
class JobPlan:
    """What shall run elsewhere.

    Attributes:
        piece: What is sent.
        title: What it is called there.
        remotes: Where, in order.
        first: The position of the first of them: 1 where this machine takes part itself.
        group: See `Request`.
    """

    piece: Piece
    title: str
    remotes: list[Remote]
    first: int = 0
    on_failure: str = STOP
    quality: str = "exact"
    group: str = ""


@dataclass(eq=False)
class Share:
    """One peer's part in a plan.

    Attributes:
        position: Its place among all that take part, this machine included.
        seconds: How long its last job took.
        failures: What went wrong before, here and at others.
    """

    remote: Remote
    position: int
    job: Job | None = None
    began: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def who(self) -> str:
        return self.job.peer if self.job is not None else str(self.remote)

    @property
    def is_done(self) -> bool:
        return self.job is not None and self.job.done()

    @property
    def error(self) -> ZBusError | None:
        """Why its job has failed, if it has."""
        return self.job.error() if self.job is not None else None

    def result(self, name: str) -> Any:
        """That output of its job.

        Raises:
            JobError: It ended without: a node before it blocked what comes after, in silence.
        """
        results = self.job.results if self.job is not None else {}
        if name not in results:
            raise JobError(
                "the job has ended there without this result: a node before it blocks it",
                peer=self.who,
                remedy="Look at the switches and blockers of the part that runs there",
            )
        return results[name]

    def end(self) -> None:
        self.seconds = time.monotonic() - self.began


class SubmittedJobs:
    """The jobs of one plan, given in one run. Nodes pass it on, as REMINFO or a handle.

    Attributes:
        prompt_id: The run that gave them.
        piece: What is sent.
        shares: One for each peer that takes part, in order.
        lost: Those that failed and are done without.
        at_home: When this machine's own share began.
        is_given: Whether the peers have the jobs, or get them now, and not only the question.
        is_over: The results have been let go.
    """

    def __init__(self, plan: JobPlan, run: Run, node_id: str) -> None:
        self.plan, self.prompt_id = plan, run.id
        self.shown_here = ShownHere(host.shown_as(node_id), run.id, run.client)
        self.piece = plan.piece
        self._prompt = plan.piece.prompt
        self.shares: list[Share] = []
        self.lost: list[Share] = []
        self.at_home = 0.0
        self._values: dict[str, Any] | None = None  # of the boundaries, once they are there
        self._who = ""  # what waits for the results, in words
        self._tried: set[str] = set()
        self.is_given = not plan.piece.boundaries
        self.is_over = False
        run.at_end.append(self._ended)

    def _ended(self, outcome: str) -> None:
        if outcome != "ok":
            self.cancel()
        self.forget()

    def forget(self) -> None:
        """Nobody asks for the results any more. This object may be cached with its node's outputs,
        and would hold them in memory."""
        self.is_over = True
        for share in (*self.shares, *self.lost):
            share.job = None

    def cancel(self) -> None:
        """Nobody wants the results any more."""
        self.shown_here.jobs = []  # nor word of them
        for share in self.shares:
            if share.job is not None:
                share.job.cancel()

    @property
    def boundaries(self) -> dict[str, Link]:
        """What must be computed here before the jobs can be given: name -> where."""
        return self.piece.boundaries

    # --- giving -------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Give the jobs; where there are boundaries, only ask whether they could run.

        Raises:
            ZBusError: They cannot, and everything that is wrong.
        """
        plan, classes = self.plan, host.Classes()
        boundaries = cannot_travel(host.graph(), self.boundaries.values(), classes)
        stays = boundaries + cannot_travel(self._prompt, results(self._prompt), classes)
        if stays:
            raise NotTransferable(lines(unique(stays)))
        self.shares = [Share(r, plan.first + k) for k, r in enumerate(plan.remotes)]
        for share in self.shares:
            self._give(share)
        await self._until_all(_is_accepted)

    async def start(self, values: dict[str, Any]) -> None:
        """The values of the boundaries are there: give the jobs, once. Raises as `begin`."""
        if self.is_given:
            return
        self.is_given, self._values = True, values
        for share in self.shares:
            self._give(share)
        await self._until_all(_is_accepted)

    async def collect(self, who: str) -> None:
        """Wait until every share has its results; `who`, in words, does so.

        Raises:
            ZBusError: One failed, and there was no other way.
        """
        self._who = who
        for share in self.shares:
            if share.job is not None:
                share.job.awaited_by(who)
        await self._until_all(lambda share: share.is_done and share.error is None)
        self._values = None  # this object may be cached with its node's outputs

    def _give(self, share: Share) -> None:
        plan, piece, values = self.plan, self.piece, self._values or {}
        prompt = for_position(self._prompt, share.position)
        check = bool(piece.boundaries) and self._values is None
        # One peer may have two shares, under two addresses.
        group = f"{plan.group} {share.position}" if plan.group else ""
        wanted = result_names(prompt)
        request = Request(
            prompt, piece.outputs, values, plan.title, group, check, plan.quality, wanted
        )
        shown = self.shown_here
        job = host.peer().submit(
            share.remote, request, on_change=shown.changed, on_preview=shown.preview
        )
        share.job, share.began = job, time.monotonic()
        shown.jobs = [s.job for s in self.shares if s.job is not None]
        job.add_done_callback(lambda _: share.end())
        job.add_done_callback(lambda _: shown.changed(job))
        if self._who:
            job.awaited_by(self._who)

    # --- waiting, and what to do with failures ------------------------------------------------

    async def _until_all(self, reached: Callable[[Share], bool]) -> None:
        """Wait until each share has reached that, with failures dealt with as the user wishes."""

        def failed() -> list[Share]:
            return [s for s in self.shares if s.error is not None and not reached(s)]

        while True:
            await self._wait(
                lambda: bool(failed()) or all(reached(s) or s.is_done for s in self.shares)
            )
            if not failed():
                return
            for share in failed():
                await self._failed(share)

    async def _failed(self, share: Share) -> None:
        error, choice = share.error, self.plan.on_failure
        assert error is not None
        if isinstance(error, JobFailed):
            logger.error("%s\n%s", error, error.traceback)
        share.failures.append(str(error))
        if choice == REST and len(self.shares) + self.plan.first > 1:
            self.shares.remove(share)
            self.lost.append(share)
            return
        other = await self._another() if choice == ANOTHER else None
        if other is None:
            self.cancel()
            self.shown_here.say(str(error))
            raise error
        share.remote = other
        self._give(share)

    async def _another(self) -> Remote | None:
        """The freest peer that has not been tried here."""
        self._tried |= {_key(share.remote) for share in self.shares}
        left = [remote for remote in peers.known() if _key(remote) not in self._tried]
        return await waiting.interruptible(peers.freest(left)) if left else None

    async def _wait(self, reached: Callable[[], bool]) -> None:
        """Wait for that, or the interrupt; in the coroutine of the node that is executed."""
        loop = asyncio.get_running_loop()
        bar: Any = None
        news = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the prompt has ended, and its loop with it
                loop.call_soon_threadsafe(news.set)

        self.shown_here.on_change = wake
        try:
            while not reached():
                await _news(news)
                host.check_interrupt()
                value, maximum = self.shown_here.progress()
                if maximum > 1:
                    bar = bar or host.ProgressBar(maximum)
                    bar.update_absolute(value, maximum)
        except (host.Interrupted, asyncio.CancelledError):
            self.cancel()
            self.shown_here.say("cancelled")
            raise
        finally:
            self.shown_here.on_change = None


async def _news(news: asyncio.Event) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(news.wait(), waiting.POLL)
    news.clear()


def _is_accepted(share: Share) -> bool:
    """Also if a node has failed there since: who collects is told that."""
    accepted = share.job is not None and share.job.accepted
    return accepted or isinstance(share.error, JobFailed)


def _key(remote: Remote) -> str:
    return remote.instance or remote.where
