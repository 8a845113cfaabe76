"""Run one workflow many times on every ComfyUI that is free, and save the picture of each job.

The file names the workflow (a PNG that ComfyUI has saved, or JSON in API format), the jobs, and
the ComfyUIs, each with zbus: by its page's URL, its name, or host:port of its zbus. In each job
the inputs that are exactly `src` become `dst`, with the job's number in it::

    workflow: "job.png"
    job_start: 1                    # the first job,
    job_end: 100                    # and the one before which it ends
    workers:
      "desk":
        url: "http://127.0.0.1:8188/"
    replacement:
      - src: "http://127.0.0.1:8080/0000.png"
        dst: "http://127.0.0.1:8080/{job_num:04}.png"

Pictures are saved as FOLDER/JOB.png, of several images as FOLDER/JOB.0.png, FOLDER/JOB.1.png...:
those of the workflow's last Save Image or Preview Image, of which nothing is written on the
workers. A job that fails is tried once on another worker; a worker on which 3 in a row fail is
not used any more. One that is not there, or is lost, joins as soon as it is there; a job over which
3 were lost has failed. Exit status: 0 only if all is done, 1 if not, 2 if nothing could begin.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import (
    ConnectError,
    InputError,
    LinkError,
    NotPermitted,
    RunsNoPrompts,
    ZBusError,
)
from ..in_a_thread import in_a_thread
from ..job import Request
from ..peer import Peer
from ..printable import printable
from ..remote import Remote
from ..resolver import looking_around
from ..trust import Trust
from ..values.tensors import torch_module
from .farming.board import MAX_IN_A_ROW, MAX_LOST, Board, Task
from .farming.config import Config, read_config
from .farming.pictures import Folder, pixels
from .farming.workflow import Recipe, read_recipe

NAME = "farm"
WAIT = 60.0  # seconds without a worker, once some job was begun
AGAIN = 5.0  # seconds between looks for one that is away
LOOK_EVERY = 0.5  # seconds in which one that has come is given a job
HELP = "run a workflow many times, on every ComfyUI that is free"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parser.add_argument("--conf", metavar="FILE", type=Path, required=True, help="what to do: YAML")
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, default="output", help="for the pictures (output)"
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=_seconds,
        help=f"for a worker when none is there ({WAIT:g}; at the start: not at all)",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="leave out the jobs that are there")
    either.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(given: argparse.Namespace) -> int:
    """Do the jobs, print, and return the exit status."""
    try:
        farm = _prepared(given)
    except ZBusError as error:
        complain(str(error))
        return 2
    board, status, began = farm.board, 1, time.monotonic()
    total = len(board.open)
    with Peer("zbus-farm") as peer:
        try:
            asyncio.run(farm.run(peer))
        except KeyboardInterrupt:
            complain("stopped by Ctrl-C")
            status = 130
        except ZBusError as error:
            complain(f"stopped: {error}")
    say(f"{len(board.done)} of {total} jobs done in {time.monotonic() - began:.1f} s")
    for name, count in Counter(board.done.values()).most_common():
        say(f"  {name}: {count}")
    if board.failed:
        say(f"failed: {', '.join(map(str, sorted(board.failed)))}")
    if len(board.done) == total:
        return 0
    say(f"{total - len(board.done)} are missing; --resume does only those")
    return status


def _prepared(given: argparse.Namespace) -> Farm:
    try:
        torch_module()  # now, and not when the first picture has come and cannot be taken
        config = read_config(given.conf)
    except ImportError as error:
        raise InputError(
            f"this Python ({sys.executable}) cannot do it: {error}",
            remedy="Run zbus-farm with the Python of your ComfyUI",
        ) from error
    recipe = read_recipe(config.workflow, config.swaps)
    folder = Folder(given.output, may_replace=given.resume or given.overwrite)
    missing = folder.missing(config.jobs)
    there = len(config.jobs) - len(missing)
    if there and not given.resume and not given.overwrite:
        raise InputError(
            f"pictures of {there} of the jobs are there already",
            peer=str(folder.path),
            remedy="Give another --output, --resume to leave out those jobs, or --overwrite",
        )
    if there and given.resume:
        say(f"{there} of {len(config.jobs)} jobs are there already")
    board = Board(config.jobs if given.overwrite else missing, config.workers)
    return Farm(config, board, recipe, folder, given.wait)


def _seconds(written: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(written)) <= 86400:
            return seconds
    raise argparse.ArgumentTypeError(f'"{written}" is not a time up to 86400 seconds')


@dataclass
class Farm:
    """All workers at work. Cancelled, it cancels what runs there.

    Attributes:
        wait: Seconds for which it waits for a worker when none is there; None: `WAIT`, and at the
            start not at all.
    """

    config: Config
    board: Board
    recipe: Recipe
    folder: Folder
    wait: float | None = None
    _began: bool = False  # some worker has taken a job

    async def run(self, peer: Peer) -> None:
        """Do all that can be done.

        Raises:
            InputError: A picture cannot be saved.
        """
        patience = asyncio.ensure_future(self._give_up_in_time())
        try:
            await asyncio.gather(
                *(self._work(peer, name, url) for name, url in self.config.workers.items())
            )
        finally:
            patience.cancel()

    async def _give_up_in_time(self) -> None:
        since: float | None = None
        while not self.board.is_over:
            now = time.monotonic()
            since = (since or now) if self.board.is_stuck else None
            wait = WAIT if self._began and self.wait is None else self.wait or 0.0
            if since is not None and now >= since + wait:
                self.board.give_up()
            await self.board.changed(AGAIN if since is None else since + wait - now)

    async def _work(self, peer: Peer, name: str, url: str) -> None:
        """One worker: it takes a job whenever it is free, and joins again when it was lost."""
        remote = await self._found(name, url)
        while True:
            while remote is not None and (task := await self.board.take(name)) is not None:
                await self._try(peer, name, remote, task)
            if name not in self.board.away or self.board.is_over:
                return
            remote = await self._found_again(peer, name, url)

    async def _found(self, name: str, url: str) -> Remote | None:
        try:
            return await in_a_thread(lambda: looking_around(Trust(), url).find(url))
        except ZBusError as error:
            self._leave(name, f"is not used: {error}")
            return None

    async def _found_again(self, peer: Peer, name: str, url: str) -> Remote | None:
        """None after a while in which it was not to be had. It has said once why."""
        looking = asyncio.ensure_future(_answering(peer, url))
        resting = asyncio.ensure_future(asyncio.sleep(AGAIN))
        try:
            while not self.board.is_over and name in self.board.away:
                await self.board.changed(LOOK_EVERY)
                remote = looking.result() if looking.done() else None
                if remote is not None:
                    self.board.join(name)
                    say(f"{name} joins")
                    return remote
                if looking.done() and resting.done():
                    return None
            return None
        finally:
            looking.cancel()
            resting.cancel()

    async def _try(self, peer: Peer, name: str, remote: Remote, task: Task) -> None:
        number, began = task.number, time.monotonic()
        try:
            images = await self._images(peer, remote, number)
        except (ConnectError, NotPermitted) as error:  # it has not begun
            self._leave(name, f"is not used: {error}", task)
            return
        except RunsNoPrompts as error:
            self._leave(name, f"is gone, and job {number} goes back into the queue: {error}", task)
        except LinkError as error:
            self._lost(name, task, error)
        except ZBusError as error:
            self._failed(name, task, error)
        else:
            await asyncio.to_thread(self.folder.save, number, images, self.recipe.prompt(number))
            self.board.finish(name, task)
            say(f"job {number}  {name}  {time.monotonic() - began:.1f} s")
        self._began = True

    async def _images(self, peer: Peer, remote: Remote, number: int) -> list[Any]:
        output, title = self.recipe.output, f"{self.config.workflow.stem} {number}"
        request = Request(self.recipe.sent(number), outputs=(output,), title=title)
        results = await peer.submit(remote, request)
        return await asyncio.to_thread(pixels, results.get(output))

    def _leave(self, name: str, why: str, task: Task | None = None) -> None:
        complain(f"{name} {why}")
        self.board.leave(name, task)

    def _lost(self, name: str, task: Task, error: ZBusError) -> None:
        if self.board.lose(name, task):
            then = "goes back into the queue"
        else:
            then = f"has failed: workers were lost over it {MAX_LOST} times"
        complain(f"{name} is gone, and job {task.number} {then}: {error}")

    def _failed(self, name: str, task: Task, error: ZBusError) -> None:
        again = "; it is tried on another worker" if self.board.fail(name, task) else ""
        complain(f"job {task.number} failed on {name}{again}: {error}")
        if name not in self.board.live:
            complain(f"{name} is not used any more: {MAX_IN_A_ROW} jobs in a row failed on it")


async def _answering(peer: Peer, url: str) -> Remote | None:
    """Whom that means, if that one answers now, and runs jobs."""
    try:
        remote = await in_a_thread(lambda: looking_around(Trust(), url).find(url))
        told = await asyncio.wrap_future(peer.enquire(remote))
    except ZBusError:
        return None
    runs = told.get("jobs") is True and told.get("runs_prompts") is not False
    return remote if runs else None


def say(text: str) -> None:
    print(printable(text, sys.stdout), flush=True)


def complain(text: str) -> None:
    print(printable(f"zbus-farm: {text}", sys.stderr), file=sys.stderr, flush=True)
