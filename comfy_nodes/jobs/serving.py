"""The jobs of other peers, on this ComfyUI: checked, queued, followed to their end, forgotten.

All that is decided here is decided on the server's loop, so that nothing needs a lock; zbus's I/O
thread, which calls, only leaves word there. A job's end is read from the queue and the history:
events may be missed, and the queue is never wrong.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zbus.given import switch
from zbus.job import JobHost, Taken
from zbus.protocol.fields import clip
from zbus.protocol.outcomes import runs_no_prompts
from zbus.reasons import Reason, lines

from .. import host
from ..prompt import preflight
from ..prompt.graph import title
from .examining import examine
from .in_prompts import JOBS

logger = logging.getLogger(__name__)

KEEP_HISTORY = "ZBUS_KEEP_HISTORY"  # "1": jobs of others stay in this ComfyUI's history
TICK = 0.25  # seconds between looks at the queue while a job is open
PREVIEW_EVERY = 0.1
MAX_MESSAGE, MAX_TRACEBACK = 4_000, 20_000  # characters of what a node raised
GRACE = 1.0  # seconds that an end waits for the events that came before it
ECHO = "zbus.echo"
ENDS = ("execution_success", "execution_error", "execution_interrupted")


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
            reasons, served.prompt, outputs = await examine(job)
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
