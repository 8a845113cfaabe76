"""The jobs of other peers, on this ComfyUI: checked, queued, followed to their end, forgotten.

All that is decided here is decided on the server's loop, so that nothing needs a lock; zbus's I/O
thread, which calls, only leaves word there. A job's end is read from the queue and the history:
events may be missed, and the queue is never wrong.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zbus.errors import JobError
from zbus.given import switch
from zbus.job import JobHost, Taken
from zbus.protocol.fields import clip
from zbus.protocol.outcomes import runs_no_prompts
from zbus.reasons import Reason, lines
from zbus.values import payload

from .. import host, node_ids
from ..prompt import preflight
from ..prompt.cutting import value_names, with_digests, with_job
from ..prompt.graph import ancestors, class_type_of, clean, inputs_of, title

logger = logging.getLogger(__name__)

KEEP_HISTORY = "ZBUS_KEEP_HISTORY"  # "1": jobs of others stay in this ComfyUI's history
TICK = 0.25  # seconds between looks at the queue while a job is open
PREVIEW_EVERY = 0.1
MAX_MESSAGE, MAX_TRACEBACK = 4_000, 20_000  # characters of what a node raised
GRACE = 1.0  # seconds that an end waits for the events that came before it
ECHO = "zbus.echo"
ENDS = ("execution_success", "execution_error", "execution_interrupted")


# --- what the nodes in a job's prompt see -------------------------------------------------------


class Jobs:
    """The jobs whose prompts are queued or run here, by prompt id. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Taken] = {}

    def add(self, job: Taken) -> None:
        with self._lock:
            self._jobs[job.id] = job

    def drop(self, prompt_id: str) -> None:
        with self._lock:
            self._jobs.pop(prompt_id, None)

    def __len__(self) -> int:
        return len(self._jobs)

    def value(self, prompt_id: str, name: str) -> Any:
        """A value that came with the job.

        Raises:
            JobError: No such value came, or this prompt is no job.
        """
        values = self._of(prompt_id).request.values
        if name not in values:
            raise JobError(
                f'the job brought no value "{name}"',
                stage="reading what came with it",
                remedy="Run it again from the workflow that has Run on Peers in it",
            )
        return values[name]

    def let_go(self, prompt_id: str, node_id: str, name: str) -> None:
        """The node that gives this value will not be computed again. (One that another node of
        the prompt gives as well stays until the job ends.)"""
        with self._lock:
            job = self._jobs.get(prompt_id)
        if job is not None and _givers(job.request.prompt, name) == {node_id}:
            job.request.values.pop(name, None)

    def result(self, prompt_id: str, name: str, value: Any, declared: str = "") -> None:
        """Hand a result to the peer that gave the job. Returns at once; `declared` is as in
        `Taken.result`.

        Raises:
            NotTransferable: It holds something that cannot travel.
            JobError: This prompt is no job.
        """
        self._of(prompt_id).result(name, value, declared)

    def _of(self, prompt_id: str) -> Taken:
        with self._lock:
            job = self._jobs.get(prompt_id)
        if job is None:
            raise JobError(
                "this prompt was not given by a peer",
                remedy="This node is made by zbus itself: remove it from the workflow",
            )
        return job


JOBS = Jobs()


# --- their life ---------------------------------------------------------------------------------


@dataclass(eq=False)
class _Served:
    """A job that has come and has not been forgotten."""

    job: Taken
    prompt: dict[str, dict[str, Any]] = field(default_factory=dict)
    sid: str = ""  # where its events come in; "" before it is queued and after its end
    task: asyncio.Task[None] | None = None  # the check
    why: str | None = None  # why it is to be stopped
    place: int | None = None
    started: bool = False
    gone: float | None = None  # since when it is neither waiting nor running
    last: str = ""  # the event with which its execution ended
    blocked: Mapping[str, Any] | None = None
    told: dict[str, tuple[int, int]] = field(default_factory=dict)  # node -> its progress
    preview: Mapping[str, Any] | None = None  # not told yet: the one before is too fresh
    previewed: float = 0.0


class Serving(JobHost):
    """What zbus calls when a peer gives a job.

    Args:
        name: This peer's, for texts.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._served: dict[str, _Served] = {}
        self._watched = self._ticking = False

    # --- called in a thread of zbus's own, one call after the other -------------------------------

    def submitted(self, job: Taken) -> None:
        self._post(lambda: self._begin(job))

    def cancel(self, job: Taken, why: str) -> None:
        self._post(lambda: self._cancel(job, why))

    def forget(self, job: Taken) -> None:
        self._post(lambda: self._forget(job))

    def facts(self) -> dict[str, Any]:
        return host.facts()

    def _post(self, call: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                call()
            except Exception:
                logger.exception("a job could not be served")

        host.on_loop(guarded)

    # --- from here on, on the server's loop -------------------------------------------------------

    def _begin(self, job: Taken) -> None:
        served = self._served[job.id] = _Served(job)
        served.task = asyncio.get_running_loop().create_task(self._check(served))

    async def _check(self, served: _Served) -> None:
        job = served.job
        try:
            reasons, outputs = await self._examine(served)
            if served.why is not None:
                job.stopped(served.why)
            elif reasons:
                logger.info("a job of %s is refused:\n%s", job.client, lines(reasons))
                job.refuse(reasons)
            elif job.request.check:
                job.passed()
            else:
                self._queue(served, outputs)
        except host.FOREIGN as error:  # nodes' own code, and theirs to fail
            logger.exception("a job of %s could not be checked", job.client)
            self._release(served)
            told = host.without_paths(str(error))
            job.refuse([Reason("other", text=f"it could not be checked: {clip(told)}")])
        finally:
            served.task = None

    async def _examine(self, served: _Served) -> tuple[list[Reason], tuple[str, ...]]:
        """What is wrong with it; and the outputs to execute."""
        if not host.runs_prompts():
            return [runs_no_prompts()], ()
        given, wanted = served.job.request.prompt, served.job.request.outputs
        needed = ancestors(given, wanted) if wanted else given
        classes = host.Classes()
        prompt = host.replaced({i: clean(node) for i, node in given.items() if i in needed})
        prompt = with_job(preflight.separators(prompt, classes), served.job.id)
        prompt = await _with_digests(prompt, served.job.request.values)
        served.prompt = prompt
        found = [
            Reason("output", i, text=f"node #{i}, which was asked for, is not in the prompt")
            for i in wanted
            if i not in prompt
        ]
        found += preflight.look(prompt, classes, served.job.request.types)
        outputs: tuple[str, ...] = ()
        if not any(reason.kind in ("class", "output") for reason in found):
            said = await host.validate(served.job.id, prompt, wanted)
            outputs = said.outputs
            found += preflight.from_host(
                prompt, said.error, said.node_errors, classes, host.without_paths
            )
            dropped = [i for i in wanted if i not in outputs]
            if not found:
                text = "{} was asked for, and is not an output node"
                found += [
                    Reason("output", i, text=text.format(title(i, prompt[i]))) for i in dropped
                ]
        return preflight.unique(found), outputs

    def _queue(self, served: _Served, outputs: tuple[str, ...]) -> None:
        job = served.job
        if not self._watched:
            self._watched = True
            host.watch_queue(self._sync)
        served.sid = host.follow(job.id, lambda kind, data: self._event(served, kind, data))
        JOBS.add(job)
        host.enqueue(job.id, served.prompt, {"client_id": served.sid}, outputs)
        self._sync()
        if not self._ticking:
            self._ticking = True
            self._tick()

    def _tick(self) -> None:
        """Statuses wait for a page that is slow to read: look even so."""
        self._sync()
        self._ticking = any(served.sid for served in self._served.values())
        if self._ticking:
            asyncio.get_running_loop().call_later(TICK, self._tick)

    def _sync(self) -> None:
        """See where in the queue each job is."""
        open_ones = [served for served in self._served.values() if served.sid]
        if not open_ones:
            return
        running, waiting = host.queue()
        places = {prompt_id: place for place, prompt_id in enumerate(waiting)}
        for served in open_ones:
            try:
                self._see(served, served.job.id in running, places.get(served.job.id))
            except Exception:
                logger.exception("a job of %s could not be followed", served.job.client)

    def _see(self, served: _Served, runs: bool, place: int | None) -> None:
        if (runs or place is not None) and not host.runs_prompts():
            self._stranded(served)
        elif runs:
            self._start(served)
            self._interrupt(served)
        elif place is None:
            self._gone(served)
        elif place != served.place:
            served.place = place
            served.job.queued(place)

    def _gone(self, served: _Served) -> None:
        """It has ended; but its events wait in a line, and ours goes behind them."""
        now = time.monotonic()
        if served.gone is None:
            served.gone = now
            host.echo(ECHO, served.job.id, served.sid)
        elif now - served.gone > GRACE:  # a page that is slow to read holds up the line
            self._end(served)

    def _stranded(self, served: _Served) -> None:
        """The queue will never come to it, or never be through with it."""
        logger.error("a job of %s ends: this ComfyUI runs no prompts", served.job.client)
        host.cancel(served.job.id)
        self._release(served)
        served.job.refuse([runs_no_prompts()])

    def _start(self, served: _Served) -> None:
        if not served.started:
            served.started = True
            served.job.started()

    def _interrupt(self, served: _Served) -> None:
        """Once more, until it ends: one that comes before its prompt has begun is lost."""
        if served.why is not None and not served.last:
            host.interrupt(served.job.id)

    def _cancel(self, job: Taken, why: str) -> None:
        served = self._served.get(job.id)
        if served is None:
            return
        served.why = served.why or why
        if served.sid:
            host.cancel(job.id)
            self._sync()  # one that waited has ended by this

    def _end(self, served: _Served) -> None:
        """Its prompt is neither waiting nor running: tell how it ended, once."""
        job, end = served.job, host.ending(served.job.id)
        self._release(served)
        if served.why is not None:
            job.stopped(served.why)
        elif end is None and not served.started:
            job.stopped("deleted from the queue there")
        elif end is None and served.last == "execution_success":
            job.done()  # and the history has been cleared since
        elif end is None:
            job.failed(self._detail(served, {}))
        elif end.kind == "cancelled":
            job.stopped("interrupted there")
        elif end.kind == "failed":
            job.failed(self._detail(served, end.error))
        elif served.blocked is not None:
            job.failed(self._detail(served, served.blocked))
        else:
            job.done()

    def _release(self, served: _Served) -> None:
        """Nothing more is heard or held for it."""
        if served.sid:
            host.unfollow(served.sid)
        served.sid, served.preview = "", None
        JOBS.drop(served.job.id)

    def _forget(self, job: Taken) -> None:
        served = self._served.pop(job.id, None)
        if served is None:
            return
        if served.sid:  # never left to run unseen
            host.cancel(job.id)
        self._release(served)
        if not switch(KEEP_HISTORY, otherwise=False, wary=False):
            host.forget(job.id)

    # --- what its prompt tells --------------------------------------------------------------------

    def _event(self, served: _Served, kind: str, data: Any) -> None:
        # What is said to every page is heard here, too.
        if not served.sid or not isinstance(data, Mapping):
            return
        if kind == "preview":
            if served.started and data["prompt_id"] in ("", served.job.id):
                self._preview(served, data)
        elif data.get("prompt_id") == served.job.id:
            self._heard(served, kind, data)

    def _heard(self, served: _Served, kind: str, data: Mapping[str, Any]) -> None:
        if kind == ECHO:
            self._end(served)
            return
        if kind in ENDS:
            self._ending(served, kind, data)
            return
        self._start(served)
        if kind == "progress_state":
            for state in data["nodes"].values():
                if state["state"] == "running":
                    node = str(state.get("display_node_id") or state["node_id"])
                    self._progress(served, node, state["value"], state["max"])
        elif kind == "executing" and data.get("node") is not None:
            node = str(data.get("display_node") or data["node"])
            if node not in served.told:
                self._progress(served, node, 0, 1)
        self._interrupt(served)

    def _ending(self, served: _Served, kind: str, data: Mapping[str, Any]) -> None:
        # A blocked node is told as an error, and the rest of the prompt goes on.
        if data.get("exception_type") == "ExecutionBlocked":
            served.blocked = data
        else:
            served.last = kind

    def _progress(self, served: _Served, node: str, value: float, maximum: float) -> None:
        at = (int(value), int(maximum))
        if served.told.get(node) != at:
            served.told[node] = at
            name = title(node, served.prompt.get(node, {}))
            served.job.progress(node, name, *at)

    def _preview(self, served: _Served, preview: Mapping[str, Any]) -> None:
        """The latest, and not more often than anybody can see."""
        waits = served.preview is not None
        served.preview = preview
        left = served.previewed + PREVIEW_EVERY - time.monotonic()
        if left <= 0:
            self._tell_preview(served)
        elif not waits:
            asyncio.get_running_loop().call_later(left, self._tell_preview, served)

    def _tell_preview(self, served: _Served) -> None:
        preview, served.preview = served.preview, None
        if preview is not None:
            served.previewed = time.monotonic()
            node = preview["node"] or next(reversed(served.told), "")
            served.job.preview(node, preview["kind"], preview["data"])

    def _detail(self, served: _Served, error: Mapping[str, Any]) -> dict[str, str]:
        """How a node has failed, for the other user: without the paths of this computer."""
        hide = host.without_paths
        node_id = str(error.get("node_id", ""))
        kind = hide(str(error.get("exception_type", "")))  # in a module called by its path
        said = hide(str(error.get("exception_message", "it ended without saying why")))
        raised = error.get("traceback") or ()
        traceback = raised if isinstance(raised, str) else "".join(map(str, raised))
        node = served.prompt.get(node_id) or {"class_type": error.get("node_type", "?")}
        return {
            "node_id": node_id,
            "title": title(node_id, node) if node_id else "",
            "class_type": str(error.get("node_type", "")),
            "exception_type": kind,
            "message": clip(preflight.in_words(kind, said, self._name), MAX_MESSAGE),
            "traceback": clip(hide(traceback), MAX_TRACEBACK),
        }


def _givers(prompt: Mapping[str, Mapping[str, Any]], name: str) -> set[str]:
    """The nodes that give that value."""
    return {
        node_id
        for node_id, node in prompt.items()
        if class_type_of(node) == node_ids.VALUE and inputs_of(node).get("name", "") == name
    }


async def _with_digests(
    prompt: dict[str, dict[str, Any]], values: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The prompt with the digests of what has come with it: by them ComfyUI runs again only what
    has changed. Those that it brings itself count for nothing: they are another's word."""
    names = value_names(prompt) & values.keys()
    if not names:
        return with_digests(prompt, {})

    def look() -> dict[str, str]:
        return {name: digest(values[name]) for name in names}

    return with_digests(prompt, await asyncio.to_thread(look))


def digest(value: Any) -> str:
    """Names a value by its content; nobody can make another one of the same digest."""
    packed = payload.pack(payload.flatten(value), "never")
    hasher = hashlib.blake2b(len(packed.spec).to_bytes(8, "big"), digest_size=20)
    hasher.update(packed.spec)
    for buffer in packed.buffers:
        hasher.update(buffer.view)
    return hasher.hexdigest()
