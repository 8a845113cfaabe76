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
workers. A job that fails is tried once on another worker. Exit status: 0 only if all is done, 1
if not, 2 if nothing could begin.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import re
import shutil
import string
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from ..errors import (
    Cancelled,
    ConnectError,
    InputError,
    JobError,
    LinkError,
    NotPermitted,
    PeerClosed,
    PeerRestarted,
    UnknownPeer,
    Unreachable,
    ZBusError,
)
from ..job import Job, Remote, Request
from ..kinds import LIST, describe
from ..peer import Peer
from ..tensors import torch_module
from .report import printable, shown
from .target import Page, Target, read

NAME = "farm"
HELP = "run a workflow many times, on every ComfyUI that is free"

KEYS = ("workflow", "job_start", "job_end", "workers", "replacement")
MAX_JOBS = 1_000_000
PICTURES = ("SaveImage", "PreviewImage")
COMPRESSION = 4  # of PNG, as ComfyUI's Save Image
MAX_TRIES = 2  # workers that a job may fail on
MAX_LOST = 3  # workers that may go away while they run the same job
MAX_STRIKES = 3  # jobs in a row that fail on one worker, and that others then do
LOOK_EVERY = 0.2  # seconds between status lines
STOPPING = 5.0  # seconds for the workers to hear that they are to stop

Prompt = dict[str, dict[str, Any]]


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parser.add_argument(
        "--conf", metavar="FILE", type=Path, required=True, help="what to do: YAML, or .json"
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("output"),
        help="where the pictures go (output)",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--resume", action="store_true", help="leave out the jobs whose pictures are there"
    )
    either.add_argument(
        "--overwrite", action="store_true", help="replace the pictures that are there"
    )


def run(given: argparse.Namespace) -> int:
    """Do the jobs, print, and return the exit status."""
    screen = Screen()
    try:
        config = read_config(given.conf)
        recipe = Recipe(read_workflow(config.workflow), config.swaps, config.workflow)
        folder = Folder(given.output, may_replace=given.resume or given.overwrite)
        numbers = folder.missing(config.jobs) if given.resume else list(config.jobs)
        if not given.resume and not given.overwrite:
            folder.demand_none(config.jobs)
        _demand_torch()
        folder.make()
    except ZBusError as error:
        screen.complain(str(error))
        return 2
    for note in (*config.notes, *recipe.notes):
        screen.complain(note)
    if not numbers:
        screen.line(f"all {len(config.jobs)} jobs are there already, in {folder.path}")
        return 0
    return Farm(config, recipe, folder, numbers, screen).run()


def _demand_torch() -> None:
    """Now, and not when the first picture has been computed and cannot be taken.

    Raises:
        InputError: This Python has none.
    """
    try:
        torch_module()
    except ImportError as error:
        raise InputError(
            f"this Python ({sys.executable}) has no torch, in which pictures come",
            remedy="Run zbus-farm with the Python of your ComfyUI",
        ) from error


# --- the file that says what to do --------------------------------------------------------------


@dataclass(frozen=True)
class Swap:
    """In every input that is exactly `source`, `target` takes its place."""

    source: str | int | float
    target: str

    def value(self, number: int) -> str | int | float:
        """What stands there in that job: of a number a number."""
        text = render(self.target, number)
        return text if isinstance(self.source, str) else _number(text)

    def is_for(self, value: object) -> bool:
        return not isinstance(value, (bool, list, dict)) and value == self.source


@dataclass(frozen=True)
class Config:
    """What to do, checked.

    Attributes:
        workflow: Its file.
        jobs: The numbers of the jobs.
        workers: What each is called here -> where it is, as written.
        swaps: What to replace.
        notes: What is odd in it, for people.
    """

    workflow: Path
    jobs: range
    workers: dict[str, str]
    swaps: tuple[Swap, ...] = ()
    notes: tuple[str, ...] = ()


def read_config(path: Path) -> Config:
    """The file that says what to do.

    Raises:
        InputError: It cannot be read or used; the text names the file and the key.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {_why(error)}", peer=str(path)) from error
    return check_config(_parsed(text, path), path)


def _parsed(text: str, path: Path) -> object:
    try:
        told: object = json.loads(text) if path.suffix.lower() == ".json" else _yaml(text, path)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot be read: {shown(str(error))}", peer=str(path)) from error
    return told


def _yaml(text: str, path: Path) -> object:
    try:
        import yaml  # type: ignore[import-untyped,unused-ignore]  # ComfyUI brings it
    except ImportError as error:
        raise InputError(
            f"this Python ({sys.executable}) cannot read YAML",
            peer=str(path),
            remedy="Run zbus-farm with the Python of your ComfyUI, or: pip install pyyaml",
        ) from error
    try:
        told: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"is no YAML: {shown(str(error))}", peer=str(path)) from error
    return told


def check_config(told: object, path: Path) -> Config:
    """What the file tells, as a `Config`.

    Raises:
        InputError: A key is missing or wrong; the text names the file and the key.
    """
    if not isinstance(told, dict):
        raise InputError(f"is no map of {', '.join(KEYS)}", peer=str(path))
    at = _At(path)
    workflow = at.text("workflow", told.get("workflow"))
    first, end = (at.whole(key, told.get(key)) for key in ("job_start", "job_end"))
    if end <= first:
        raise at.error(
            "job_end", f"must be above job_start, {first}: the job before it is the last"
        )
    if end - first > MAX_JOBS:
        raise at.error("job_end", f"makes more than {MAX_JOBS} jobs")
    notes = [f'{path}: the key "{key}" is unknown here' for key in told if key not in KEYS]
    swaps = told.get("replacement")
    return Config(
        _near(Path(workflow).expanduser(), path),
        range(first, end),
        _workers(at, told.get("workers")),
        tuple(_swaps(at, swaps, first) if swaps is not None else ()),
        tuple(notes),
    )


@dataclass(frozen=True)
class _At:
    """Checks the values of a file."""

    path: Path

    def error(self, key: str, what: str, remedy: str = "") -> InputError:
        return InputError(what, peer=str(self.path), stage=key, remedy=remedy)

    def text(self, key: str, value: object) -> str:
        if value is None:
            raise self.error(key, "is missing")
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"is no text: {_shown(value)}")
        return value

    def whole(self, key: str, value: object) -> int:
        if value is None:
            raise self.error(key, "is missing")
        if type(value) is not int:
            raise self.error(key, f"is no whole number: {_shown(value)}")
        return value


def _near(workflow: Path, path: Path) -> Path:
    """As it is written, or beside the file that names it."""
    beside = path.parent / workflow
    return beside if not workflow.exists() and beside.exists() else workflow


def _workers(at: _At, told: object) -> dict[str, str]:
    if told is None:
        raise at.error("workers", "is missing")
    if not isinstance(told, dict) or not told:
        raise at.error("workers", f"is no map of workers, each with its url: {_shown(told)}")
    workers: dict[str, str] = {}
    for name, how in told.items():
        key = f"workers.{name}"
        if not isinstance(how, dict):
            raise at.error(key, f"is no map with url in it: {_shown(how)}")
        # `system` is for files of NetDist: the workers mend separators themselves.
        url = at.text(f"{key}.url", how.get("url")).strip()
        if shown(str(name)) in workers:
            raise at.error(key, "is there twice")
        try:
            read(url)
        except UnknownPeer:
            pass  # not there now: the others may do it all
        except InputError as error:
            raise at.error(f"{key}.url", error.what, error.remedy) from error
        workers[shown(str(name))] = url
    return workers


def _swaps(at: _At, told: object, first: int) -> Iterator[Swap]:
    if not isinstance(told, list):
        raise at.error("replacement", f"is no list of src and dst: {_shown(told)}")
    for place, swap in enumerate(told):
        key = f"replacement[{place}]"
        if not isinstance(swap, dict):
            raise at.error(key, f"is no map of src and dst: {_shown(swap)}")
        source = swap.get("src")
        if source is None:
            raise at.error(f"{key}.src", "is missing")
        if isinstance(source, bool) or not isinstance(source, (str, int, float)):
            raise at.error(f"{key}.src", f"is no text and no number: {_shown(source)}")
        made = Swap(source, at.text(f"{key}.dst", swap.get("dst")))
        try:
            made.value(first)
        except ValueError as error:
            raise at.error(f"{key}.dst", str(error)) from error
        yield made


# Alignment, sign, zeros, width, base: no field inside it, and no width that fills the memory.
_FORM = re.compile(r"(?:[^{}]?[<>=^])?\+?0?[0-9]{0,3}[dxXob]?")


def render(text: str, number: int) -> str:
    """The text with the job's number where {job_num} or {job_num:04} stands. Nothing else of
    `str.format`, which would read attributes of anything.

    Raises:
        ValueError: Something else is in braces.
    """
    made = []
    try:
        for literal, name, form, conversion in string.Formatter().parse(text):
            made.append(literal)
            if name is not None:
                if name != "job_num" or conversion or not _FORM.fullmatch(form or ""):
                    raise ValueError("in braces")
                made.append(format(number, form or ""))
    except ValueError:
        raise ValueError(
            f"only {{job_num}}, or a form of it such as {{job_num:04}}, can be in braces, with "
            f"{{{{ and }}}} for braces themselves: {_shown(text)}"
        ) from None
    return "".join(made)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"makes no number, as src is one: {_shown(text)}")
    return value


def _shown(value: object) -> str:
    return shown(repr(value), 100)


def _why(error: Exception) -> str:
    return shown(str(getattr(error, "strerror", None) or error), 300)


# --- the workflow -------------------------------------------------------------------------------


# What Pillow and json raise for files that are broken.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    RecursionError,
    SyntaxError,
    Image.DecompressionBombError,
)


def read_workflow(path: Path) -> Prompt:
    """The prompt in a PNG that ComfyUI has saved, or in a file in API format.

    Raises:
        InputError: There is none in it.
    """
    kind = path.suffix.lower()
    if kind not in (".png", ".json"):
        raise InputError("is neither .png nor .json", peer=str(path), stage="workflow")
    try:
        text = _prompt_of(path) if kind == ".png" else path.read_text(encoding="utf-8-sig")
        told: Any = json.loads(text)
    except InputError:
        raise
    except _UNREADABLE as error:
        what = f"cannot be read: {_why(error)}"
        raise InputError(what, peer=str(path), stage="workflow") from error
    if not _is_prompt(told):
        raise InputError(
            "holds no workflow in API format",
            peer=str(path),
            stage="workflow",
            remedy="Save it with File > Export (API), or name a PNG that Save Image has written",
        )
    return {str(i): node for i, node in told.items()}


def _prompt_of(path: Path) -> str:
    with Image.open(path, formats=["PNG"]) as image:
        assert isinstance(image, PngImageFile)
        found = image.text.get("prompt")
    if found is None:
        raise InputError(
            "is a picture without a workflow",
            peer=str(path),
            stage="workflow",
            remedy="Name one that ComfyUI's Save Image has written, with its metadata",
        )
    return str(found)


def _is_prompt(told: object) -> bool:
    return (
        isinstance(told, dict)
        and bool(told)
        and all(
            isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs", {}), dict)
            for node in told.values()
        )
    )


class Recipe:
    """Makes the prompt of each job.

    Attributes:
        output: The id of the node whose pictures are wanted.
        notes: What is odd, for people.

    Raises:
        InputError: The workflow has no picture at its end.
    """

    def __init__(self, prompt: Prompt, swaps: Sequence[Swap], path: Path) -> None:
        self._prompt, self._swaps = prompt, swaps
        found = [node for node in prompt if _picture(prompt[node]) is not None]
        if not found:
            raise InputError(
                "has no Save Image or Preview Image with a picture wired to it",
                peer=str(path),
                stage="workflow",
            )
        self.output = found[-1]
        self.notes = [
            f"{path}: no input is exactly {_shown(swap.source)}, so nothing is replaced there"
            for swap in swaps
            if not any(
                swap.is_for(v) for n in prompt.values() for v in n.get("inputs", {}).values()
            )
        ]
        if len(found) > 1:
            chosen, others = self._title(self.output), ", ".join(map(self._title, found[:-1]))
            self.notes.append(f"{path}: only the pictures of {chosen} are made, not of {others}")

    def _title(self, node_id: str) -> str:
        node = self._prompt[node_id]
        meta = node.get("_meta")
        title = meta.get("title") if isinstance(meta, Mapping) else None
        return shown(f"{title or node['class_type']} #{node_id}", 100)

    def plain(self, number: int) -> Prompt:
        """That job's prompt as its own ComfyUI would run it."""
        made = copy.deepcopy(self._prompt)
        for node in made.values():
            inputs = node.setdefault("inputs", {})
            for name, value in inputs.items():
                swap = next((swap for swap in self._swaps if swap.is_for(value)), None)
                if swap is not None:
                    inputs[name] = swap.value(number)
        return made

    def prompt(self, number: int) -> Prompt:
        """That job's prompt for a worker: what would be shown or saved there comes here."""
        made = self.plain(number)
        for node_id, node in made.items():
            images = _picture(node)
            if images is not None:
                inputs = {"value": images, "name": node_id, "job": ""}
                made[node_id] = {"class_type": "ZBusResult", "inputs": inputs}
        return made


def _picture(node: Mapping[str, Any]) -> list[Any] | None:
    """The link of what it shows or saves; None if it is no such node, or nothing is wired."""
    images = node.get("inputs", {}).get("images")
    is_link = isinstance(images, list) and len(images) == 2 and isinstance(images[0], str)
    return images if is_link and node["class_type"] in PICTURES else None


# --- the pictures -------------------------------------------------------------------------------


def pictures(value: object) -> list[Any]:
    """Images as they came, each as 8-bit pixels, in the way of ComfyUI's Save Image.

    Raises:
        JobError: They are none.
    """
    is_list = isinstance(value, dict) and value.keys() == {LIST}
    batches = value[LIST] if is_list else [value]  # type: ignore[index]
    if not isinstance(batches, list) or any(describe(batch) != "image" for batch in batches):
        raise JobError("what came is no image", stage="saving")
    made = [_pixels(image) for batch in batches for image in batch]
    if not made or not all(pixels.size for pixels in made):
        raise JobError("no image came, or an empty one", stage="saving")
    return made


def _pixels(image: Any) -> Any:
    scaled = 255.0 * image.float().cpu().numpy()
    pixels = np.clip(np.nan_to_num(scaled), 0, 255).astype(np.uint8)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


class Folder:
    """Where the pictures go.

    Args:
        path: The folder.
        may_replace: Whether what is there may be replaced.
    """

    def __init__(self, path: Path, may_replace: bool = False) -> None:
        self.path, self._may_replace = path, may_replace
        self._before = self._found()

    def make(self) -> None:
        """Make it, if it is not there.

        Raises:
            InputError: It cannot be.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot be made: {_why(error)}", peer=str(self.path)) from error

    def _found(self) -> dict[int, set[str]]:
        """The pictures of each job that are there."""
        found: dict[int, set[str]] = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(self.path):
                match = re.fullmatch(r"(-?[0-9]+)(?:\.[0-9]+)?\.png", name, re.ASCII)
                if match and str(int(match[1])) == match[1]:
                    found.setdefault(int(match[1]), set()).add(name)
        return found

    def missing(self, jobs: Iterable[int]) -> list[int]:
        """The jobs whose pictures are not all there."""
        # Of several the first is put there last: see `save`.
        return [n for n in jobs if not {f"{n}.png", f"{n}.0.png"} & self._before.get(n, set())]

    def demand_none(self, jobs: range) -> None:
        """
        Raises:
            InputError: There are pictures of some of these jobs.
        """
        names = [n for job, found in sorted(self._before.items()) if job in jobs for n in found]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"would overwrite {', '.join(names[:3])}{more}",
                peer=str(self.path),
                remedy="Give another --output, --resume to do only the jobs that are missing, or "
                "--overwrite",
            )

    def save(self, job: int, images: Sequence[Any], prompt: Prompt) -> None:
        """Save the pictures of a job, with the prompt that makes them: all, or none that counts.

        Raises:
            OSError: They cannot be saved.
        """
        info = PngInfo()
        info.add_text("prompt", json.dumps(prompt))
        single = len(images) == 1
        names = [f"{job}.png" if single else f"{job}.{i}.png" for i in range(len(images))]
        paths = [self.path / name for name in names]
        parts = [path.with_name(f"{path.name}.part") for path in paths]
        try:
            for part, image in zip(parts, images, strict=True):
                Image.fromarray(image).save(part, "PNG", pnginfo=info, compress_level=COMPRESSION)
            for part, path in reversed(list(zip(parts, paths, strict=True))):
                if not self._may_replace and path.exists():
                    raise FileExistsError(f"{path} has come there meanwhile")
                os.replace(part, path)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        if self._may_replace:  # of an earlier run with more or fewer images
            for name in self._before.get(job, set()).difference(names):
                (self.path / name).unlink(missing_ok=True)


# --- who does what ------------------------------------------------------------------------------


@dataclass(eq=False)
class Task:
    """One job of the farm.

    Attributes:
        number: Its number.
        failed_on: The workers on which it has failed, and why.
        lost: How many workers have gone while they ran it.
    """

    number: int
    failed_on: dict[str, str] = field(default_factory=dict)
    lost: int = 0


class Board:
    """Which jobs are open, and who may take which. Usable from any thread.

    A worker on which a job has failed takes no new one until another worker has tried that job:
    then it shows which of the two is at fault. Otherwise a worker that lacks a model would go
    through all jobs in a moment.

    Attributes:
        total: Of jobs.
        live: The workers that can be given jobs.
        done: The jobs that are done, and by whom.
        failed: Those that have failed for good, and why.
        stopped: Why no more are given; "" while they are.
    """

    def __init__(self, numbers: Iterable[int], workers: Iterable[str]) -> None:
        self._changed = threading.Condition()
        self._new = deque(Task(number) for number in numbers)
        self._again: list[Task] = []  # failed on one worker
        self._running: dict[str, Task] = {}
        self._strikes: Counter[str] = Counter()
        self.total = len(self._new)
        self.live = set(workers)
        self.done: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self.stopped = ""

    def take(self, worker: str) -> Task | None:
        """The next job for that worker; waits while there may be one. None: it can go home."""
        with self._changed:
            while not self._is_over() and worker in self.live:
                task = self._next(worker)
                if task is not None:
                    self._running[worker] = task
                    return task
                self._changed.wait()
            return None

    def _next(self, worker: str) -> Task | None:
        for task in self._again:
            if worker not in task.failed_on:
                self._again.remove(task)
                return task
        in_doubt = any(worker in t.failed_on for t in (*self._again, *self._running.values()))
        return self._new.popleft() if self._new and not in_doubt else None

    def finish(self, worker: str, task: Task) -> list[str]:
        """It is done. Returns the workers that by this have failed too often to be of use."""
        with self._changed:
            self._end(worker)
            self.done[task.number] = worker
            self._strikes[worker] = 0
            self._strikes.update(task.failed_on.keys())
            useless = [w for w in task.failed_on if self._strikes[w] >= MAX_STRIKES]
            return [w for w in useless if w in self.live]

    def fail(self, worker: str, task: Task, why: str) -> bool:
        """It has failed on that worker. Whether another one tries it."""
        with self._changed:
            self._end(worker)
            task.failed_on[worker] = why
            again = len(task.failed_on) < MAX_TRIES and not self.live <= task.failed_on.keys()
            if again:
                self._again.append(task)
            else:
                self._give_up(task)
            return again

    def lose(self, worker: str, task: Task) -> bool:
        """That worker has gone or begun anew while it ran it. Whether it is done once more."""
        with self._changed:
            self._end(worker)
            task.lost += 1
            if task.lost >= MAX_LOST:
                task.failed_on[worker] = f"{task.lost} workers went away while they ran it"
                self._give_up(task)
                return False
            self._put_back(task)
            return True

    def put_back(self, worker: str, task: Task) -> None:
        """It was not done, through no fault of anybody."""
        with self._changed:
            self._end(worker)
            self._put_back(task)

    def drop(self, worker: str) -> None:
        """That worker takes no more jobs."""
        with self._changed:
            self.live.discard(worker)
            for task in [t for t in self._again if self.live <= t.failed_on.keys()]:
                self._again.remove(task)
                self._give_up(task)
            self._changed.notify_all()

    def stop(self, why: str) -> None:
        """Give no more jobs."""
        with self._changed:
            self.stopped = self.stopped or why
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until all has ended; whether it has."""
        with self._changed:
            return self._changed.wait_for(self._is_over, seconds)

    def left(self) -> list[int]:
        """The jobs that are neither done nor failed."""
        with self._changed:
            tasks = (*self._new, *self._again, *self._running.values())
            return sorted(task.number for task in tasks)

    def _is_over(self) -> bool:
        is_left = self.live and (self._new or self._again)
        return bool(self.stopped) or not (is_left or self._running)

    def _end(self, worker: str) -> None:
        del self._running[worker]
        self._changed.notify_all()

    def _put_back(self, task: Task) -> None:
        if task.failed_on:
            self._again.append(task)
        else:
            self._new.appendleft(task)

    def _give_up(self, task: Task) -> None:
        self.failed[task.number] = "; ".join(task.failed_on.values())


class Farm:
    """All workers at work."""

    def __init__(
        self,
        config: Config,
        recipe: Recipe,
        folder: Folder,
        numbers: Sequence[int],
        screen: Screen,
    ) -> None:
        self.recipe, self.folder, self.screen = recipe, folder, screen
        self.title = config.workflow.stem
        self.board = Board(numbers, config.workers)
        self._skipped = len(config.jobs) - len(numbers)
        self._workers = [Worker(name, url, self) for name, url in config.workers.items()]

    def run(self) -> int:
        """Do it all, or stop at Ctrl-C; the exit status."""
        began, status = time.monotonic(), 1
        with Peer("zbus-farm") as peer:
            try:
                for worker in self._workers:
                    worker.start(peer)
                while not self.board.wait(LOOK_EVERY):
                    self.screen.status(self._status())
            except KeyboardInterrupt:
                self.board.stop("stopped by Ctrl-C")
                status = 130
            finally:
                self._stop()
        self._sum_up(time.monotonic() - began)
        return 0 if len(self.board.done) == self.board.total else status

    def _stop(self) -> None:
        """End what still runs, here and there."""
        self.screen.status("")
        for worker in self._workers:
            worker.cancel()
        deadline = time.monotonic() + STOPPING
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def _status(self) -> str:
        doing = [worker.doing() for worker in self._workers if worker.name in self.board.live]
        ended = len(self.board.done) + len(self.board.failed)
        return "  |  ".join([f"{ended}/{self.board.total}", *doing])

    def _sum_up(self, seconds: float) -> None:
        board, say = self.board, self.screen.line
        if board.stopped:
            say(board.stopped)
        say(
            f"{len(board.done)} of {board.total} jobs done in {seconds:.1f} s"
            + (f", {self._skipped} were there already" if self._skipped else "")
            + f"; pictures in {self.folder.path}"
        )
        for name, count in Counter(board.done.values()).most_common():
            say(f"  {name}: {count}")
        if board.failed:
            say(f"failed: {spans(board.failed)}")
        if left := board.left():
            say(f"not done: {spans(left)}")
        if board.failed or left:
            say("--resume does only what is missing")


class Worker:
    """One ComfyUI of the farm, and the thread that gives it one job at a time.

    Args:
        name: What it is called here.
        url: Where it is: a page's URL, a peer's name, or "host:port".
    """

    def __init__(self, name: str, url: str, farm: Farm) -> None:
        self.name, self._url, self._farm = name, url, farm
        self._lock = threading.Lock()
        self._stopping = False
        self._job: Job | None = None
        self._task: Task | None = None
        self._thread: threading.Thread | None = None

    def start(self, peer: Peer) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(peer,), name=f"zbus-farm-{self.name}", daemon=True
        )
        self._thread.start()

    def cancel(self) -> None:
        """Stop what it runs, here and there."""
        with self._lock:
            self._stopping = True
            if self._job is not None:
                self._job.cancel()

    def join(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def doing(self) -> str:
        """What it does, in a few words."""
        job, task = self._job, self._task
        if task is None:
            return f"{self.name}: idle"
        at = job.progress if job is not None else None
        what = ""
        if at is not None and at.state == "running":
            step = f" {at.value}/{at.maximum}" if at.maximum > 1 else ""
            what = f" {at.title}{step}" if at.title else ""
        elif at is not None and at.state == "queued":
            what = f" queued, {at.place} before it" if at.place else " queued"
        return f"{self.name}: job {task.number}{what}"

    def _run(self, peer: Peer) -> None:
        farm = self._farm
        try:
            target = self._find()
            if target is not None:
                remote = Remote(str(target.address), target.instance, target.name)
                while (task := farm.board.take(self.name)) is not None:
                    self._task = task
                    self._try(peer, remote, target, task)
                    self._task = None
        except Exception as error:  # a fault here must not leave the others waiting for ever
            farm.board.stop(f"stopped by {self.name}: {type(error).__name__}: {error}")

    def _find(self) -> Target | None:
        try:
            wanted = read(self._url)
            return wanted.ask() if isinstance(wanted, Page) else wanted
        except ZBusError as error:
            self._drop(f"is not used: {error}")
            return None

    def _drop(self, why: str) -> None:
        self._farm.board.drop(self.name)
        self._farm.screen.complain(f"{self.name} {why}")

    def _try(self, peer: Peer, remote: Remote, target: Target, task: Task) -> None:
        board, began = self._farm.board, time.monotonic()
        try:
            images = pictures(self._result(peer, remote, task))
        except (Cancelled, PeerClosed):
            board.put_back(self.name, task)
        except (ConnectError, NotPermitted) as error:  # it has not begun
            board.put_back(self.name, task)
            self._drop(f"is not used: {_advised(error, target)}")
        except LinkError as error:
            self._lost(task, error)
        except ZBusError as error:
            self._failed(task, error)
        else:
            self._save(task, images, began)

    def _result(self, peer: Peer, remote: Remote, task: Task) -> object:
        """What the picture node of that job was given.

        Raises:
            ZBusError: It came to nothing.
        """
        recipe, title = self._farm.recipe, f"{self._farm.title} {task.number}"
        prompt = recipe.prompt(task.number)
        job = peer.submit(remote, Request(prompt, outputs=(recipe.output,), title=title))
        with self._lock:
            self._job = job
            if self._stopping:
                job.cancel()
        try:
            results = job.result()
        finally:
            with self._lock:
                self._job = None
        if recipe.output not in results:
            raise JobError("no pictures came", peer=job.peer, stage=title)
        return results[recipe.output]

    def _save(self, task: Task, images: list[Any], began: float) -> None:
        farm = self._farm
        try:
            farm.folder.save(task.number, images, farm.recipe.plain(task.number))
        except OSError as error:
            farm.board.put_back(self.name, task)
            farm.board.stop(f"stopped: job {task.number} cannot be saved: {_why(error)}")
            return
        for useless in farm.board.finish(self.name, task):
            farm.board.drop(useless)
            farm.screen.complain(
                f"{useless} is not used any more: {MAX_STRIKES} jobs in a row failed on it, and "
                "not on others"
            )
        farm.screen.line(f"job {task.number}  {self.name}  {time.monotonic() - began:.1f} s")

    def _failed(self, task: Task, error: ZBusError) -> None:
        again = self._farm.board.fail(self.name, task, f"{self.name}: {error}")
        then = "; it is tried on another worker" if again else ""
        self._farm.screen.complain(f"job {task.number} failed on {self.name}{then}: {error}")

    def _lost(self, task: Task, error: LinkError) -> None:
        again = self._farm.board.lose(self.name, task)
        then = "goes back into the queue" if again else f"is given up: {MAX_LOST} went with it"
        self._farm.screen.complain(f"{self.name} is gone, and job {task.number} {then}: {error}")
        if not isinstance(error, PeerRestarted):  # that one can be used again
            self._farm.board.drop(self.name)


def _advised(error: ZBusError, target: Target) -> ZBusError:
    """With what can be done about a listener that a page has told of."""
    if isinstance(error, Unreachable) and target.remedy:
        return Unreachable(error.what, peer=error.peer, stage=error.stage, remedy=target.remedy)
    return error


# --- for people ---------------------------------------------------------------------------------


class Screen:
    """What is printed: lines that stay, and on a terminal one below them that does not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_terminal = sys.stdout.isatty()
        self._drawn = ""

    def line(self, text: str) -> None:
        with self._lock:
            self._draw("")
            print(printable(text, sys.stdout), flush=True)

    def complain(self, text: str) -> None:
        with self._lock:
            self._draw("")
            print(printable(f"zbus-farm: {text}", sys.stderr), file=sys.stderr, flush=True)

    def status(self, text: str) -> None:
        """Show that below all lines, until the next one comes."""
        width = max(20, shutil.get_terminal_size().columns - 1)
        with self._lock:
            self._draw(printable(shown(text), sys.stdout)[:width])

    def _draw(self, text: str) -> None:
        if self._is_terminal and text != self._drawn:
            print(f"\r\x1b[K{text}", end="", flush=True)
            self._drawn = text


def spans(numbers: Iterable[int]) -> str:
    """Numbers for people: "1-3, 7"."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
