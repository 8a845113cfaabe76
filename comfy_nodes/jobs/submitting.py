"""Jobs given to other peers by the nodes of a run: begun, placed anew where one fails, awaited.

`begin` gives the jobs of a `JobPlan`. What a part needs from here (boundaries) must be computed
first: then `begin` only asks the peers whether the part could run there, and `start` gives the jobs
once the values are there. `collect` waits for the results.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from typing import Any

from zbus.errors import JobFailed, NotTransferable, ZBusError
from zbus.in_a_thread import in_a_thread
from zbus.in_time import in_time
from zbus.job import Job, Request
from zbus.reasons import lines

from .. import host
from ..exchange import waiting
from ..exchange.runs import RUNS, Run
from ..page import peers
from ..page.peers import Choice
from ..page.placement import Placed, freest, idle, key_of
from ..prompt.cutting import for_position, result_names
from ..prompt.graph import Link
from ..prompt.output_types import results
from ..prompt.preflight import cannot_travel, unique
from .moving import could_run, take_back
from .planned import ANOTHER, REST, JobPlan, Share
from .shown_here import ShownHere

logger = logging.getLogger(__name__)

LOOK_EVERY = 0.25  # seconds: the word of an end comes behind others', which may take long


class SubmittedJobs:
    """The jobs of one plan, given in one run. Nodes pass it on, as REMINFO or a handle.

    Attributes:
        prompt_id: The run that gave them.
        piece: What is sent.
        shares: One for each peer that takes part, in order.
        lost: Those that failed and are done without.
        at_home: When this machine's own share began; 0: it has not.
        was_here: Whether that was there before, since other nodes need it too.
        is_given: Whether the peers have the jobs, or get them now, and not only the question.
        is_over: The results have been let go.
    """

    def __init__(self, plan: JobPlan, run: Run, node_id: str) -> None:
        self.plan, self.prompt_id = plan, run.id
        self.shown_here = ShownHere(host.shown_as(node_id), run.id, run.client, plan.shown_by)
        self.piece = plan.piece
        self._prompt = plan.piece.prompt
        self.shares: list[Share] = []
        self.lost: list[Share] = []
        self.at_home, self.was_here = 0.0, False
        self._took_here: float | None = None
        self._run = run
        self._given: Future[None] | None = None  # all that follows once the jobs are given
        self._failure: ZBusError | None = None  # for good
        self._is_collected = self._is_unwanted = False
        self._placing = asyncio.Lock()  # a share goes to one place at a time
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
        if self._given is not None:
            self._given.cancel()
        for share in (*self.shares, *self.lost):
            share.job = None

    def cancel(self) -> None:
        """Nobody wants the results any more."""
        if self._given is not None:
            self._given.cancel()
        self._cancel_jobs()

    def _cancel_jobs(self) -> None:
        self._is_unwanted = True
        self.shown_here.jobs = []  # nor word of them
        for choice in self.plan.choices:
            choice.release()
        for share in self.shares:
            share.choice.release()
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
        self.shares = [Share(c, plan.first + k) for k, c in enumerate(plan.choices)]
        await self._follow(host.spawn(self._begin()))
        if not self.boundaries:
            self._given = host.spawn(self._see_through())

    async def start(self, values: dict[str, Any]) -> None:
        """The values of the boundaries are there: give the jobs, once. Raises as `begin`."""
        if self.is_given:
            return
        self.is_given, self._values = True, values
        for share in self.shares:
            self._give(share)
        await self._follow(host.spawn(self._until_all(lambda share: share.is_accepted)))
        self._given = host.spawn(self._see_through())

    async def collect(self, who: str) -> None:
        """Wait until every share has its results; `who`, in words, does so.

        Raises:
            ZBusError: One failed, and there was no other way.
        """
        self._who, self._is_collected = who, True
        for share in self.shares:
            if share.job is not None:
                share.job.awaited_by(who)
        assert self._given is not None, "begun, and started where it has boundaries"
        await self._follow(self._given)
        self._values = None  # this object may be cached with its node's outputs

    def begin_here(self, is_there: bool) -> bool:
        """This machine's own share is to be computed now, if that is not there already; whether
        it makes sense still."""
        if not self.at_home:
            self.at_home, self.was_here = time.monotonic(), is_there
        return self._failure is None

    def end_here(self) -> float:
        """Seconds that this machine's own share took, until this was asked first."""
        if self._took_here is None:
            self._took_here = time.monotonic() - self.at_home
        return self._took_here

    def _give(self, share: Share) -> None:
        check = bool(self.boundaries) and self._values is None
        choice, shown = share.choice, self.shown_here

        def changed(job: Job) -> None:
            if not check and (job.accepted or job.done()):
                choice.release()
            shown.changed(job)

        job = host.peer().submit(
            share.remote,
            self._request(share, check),
            on_change=changed,
            on_preview=shown.preview,
        )
        share.began, share.job = time.monotonic(), job
        shown.jobs = [s.job for s in self.shares if s.job is not None]
        job.add_done_callback(share.end)
        job.add_done_callback(lambda _: changed(job))
        if self._who:
            job.awaited_by(self._who)
        if self._is_unwanted:
            job.cancel()

    def _request(self, share: Share, check: bool) -> Request:
        plan, piece, values = self.plan, self.piece, {} if check else self._values or {}
        prompt = for_position(self._prompt, share.position)
        # One peer may have two shares, under two addresses.
        group = f"{plan.group} {share.position}" if plan.group else ""
        wanted = result_names(prompt)
        how = (plan.title, group, check, plan.quality)
        types = host.HOST_TYPES.here()
        return Request(prompt, piece.outputs, values, *how, wanted, types)

    # --- in the coroutine of a node -----------------------------------------------------------

    async def _follow(self, work: Future[None]) -> None:
        """Wait for that in the node that is being executed, or for the interrupt."""
        bar: Any = None

        def refresh() -> None:
            nonlocal bar
            value, maximum = self.shown_here.progress()
            if maximum > 1:
                bar = bar or host.ProgressBar(maximum)
                bar.update_absolute(value, maximum)

        try:
            await waiting.until(waiting.when_done(work), refresh, work.done)
        except BaseException as error:  # whatever it is, nobody waits any more
            work.cancel()
            self.cancel()
            is_asked = isinstance(error, (host.Interrupted, asyncio.CancelledError))
            self.shown_here.say("cancelled" if is_asked else str(error))
            raise
        try:
            work.result()
        except FutureCancelled as error:  # the run has ended meanwhile
            raise host.Interrupted() from error

    # --- on the server's loop: it goes on while nodes of this prompt compute ------------------

    async def _begin(self) -> None:
        for share in [s for s in self.shares if s.error is not None]:
            await self._failed(share)
        for share in [s for s in self.shares if s.job is None]:
            self._give(share)
        await self._until_all(lambda share: share.is_accepted)

    async def _see_through(self) -> None:
        """All that there is to do until each share has its results."""
        mover = asyncio.ensure_future(take_back(self.shares, self._move))
        try:
            await self._until_all(lambda share: share.is_done and share.error is None)
        except ZBusError as error:
            self._failure = error
            if self.at_home and not self._is_collected:
                # What is computed here meanwhile is of no use any more, and may take long.
                RUNS.stop(self._run, self.shown_here.node_id, error)
            raise
        finally:
            mover.cancel()

    async def _until_all(self, reached: Callable[[Share], bool]) -> None:
        """Wait until each share has reached that, with failures dealt with as the user wishes."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # ComfyUI ends
                loop.call_soon_threadsafe(news.set)

        self.shown_here.on_change = wake
        while not all(reached(s) or (s.is_done and s.error is None) for s in self.shares):
            failed = [s for s in self.shares if s.error is not None and not reached(s)]
            for share in failed:
                async with self._placing:
                    await self._failed(share)
            if not failed:
                await _news(news)

    async def _failed(self, share: Share) -> None:
        error, choice = share.error, self.plan.on_failure
        assert error is not None
        if isinstance(error, JobFailed):
            logger.error("%s\n%s", error, error.traceback)
        share.failures.append(str(error))
        share.choice.release()
        if choice == REST and len(self.shares) + self.plan.first > 1:
            self.shares.remove(share)
            self.lost.append(share)
            return
        placed = await self._another() if choice == ANOTHER else None
        if placed is None:
            self._cancel_jobs()
            self.shown_here.say(str(error))
            raise error
        await self._give_anew(share, placed)

    async def _give_anew(self, share: Share, placed: Placed) -> None:
        share.choice = Choice.any(placed)
        share.is_moving = True
        try:
            # What goes along may have to come from a GPU: the page answers meanwhile.
            await in_a_thread(lambda: self._give(share))
        finally:
            share.is_moving = False

    async def _another(self) -> Placed | None:
        """The freest peer that has not been tried here."""
        self._tried |= {key_of(share.remote) for share in self.shares}
        others = await in_a_thread(peers.known)
        left = [remote for remote in others if key_of(remote) not in self._tried]
        return await freest(left) if left else None

    async def _move(self, share: Share) -> None:
        """To another peer, if one is free that could run it."""
        waits = share.job
        tried = self._tried | share.unfit | {key_of(share.remote)}
        others = await in_a_thread(peers.known)
        placed = await idle([remote for remote in others if key_of(remote) not in tried])
        if placed is None or waits is None:
            return
        could = await could_run(placed.remote, self._request(share, check=True))
        if could is False:
            share.unfit.add(key_of(placed.remote))
        async with self._placing:
            if not could or share.job is not waits or not share.may_move:
                placed.release()
                return
            share.left.append(share.who)
            try:
                await self._give_anew(share, placed)
            finally:  # also where the end of all comes in between
                if share.job is not waits:
                    waits.cancel()


async def _news(news: asyncio.Event) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await in_time(news.wait(), LOOK_EVERY)
    news.clear()
