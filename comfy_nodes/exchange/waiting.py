"""How a node waits: for its operation, the interrupt, and the user's eye at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from zbus import Operation
from zbus.errors import Cancelled, ZBusError
from zbus.operation import rate_text, size_text

from .. import host
from ..page import peers
from ..prompt.graph import title
from .meeting import Meeting
from .queue_watcher import QUEUE_WATCHER
from .runs import RUNS, Run

logger = logging.getLogger(__name__)

POLL = 0.05  # seconds between looks for the interrupt
SHOW_EVERY = 0.25
LONG = 2  # seconds
WHO = "asking who that is"
T = TypeVar("T")
SMALL = 1024  # bytes under which the size of a value tells nobody anything


async def send(meeting: Meeting, value: Any, order: int | None, **more: Any) -> None:
    """Send a value from the node that is being executed; `more` as in `Channel.start_send`.

    Raises:
        ZBusError: It did not arrive, and why.
    """
    await _operate(meeting, "start_send", value, order, **more)


async def receive(meeting: Meeting, order: int | None, **more: Any) -> Any:
    """Receive a value into the node that is being executed; see `send`."""
    return await _operate(meeting, "start_receive", order, **more)


async def _operate(meeting: Meeting, start: str, *args: Any, **more: Any) -> Any:
    QUEUE_WATCHER.start()
    here = host.executing()
    run = RUNS.of(here.prompt_id)
    before = run.once.find(here.key)
    if before is not None:  # ComfyUI computes this node again, for a reader that comes late
        return before.value
    if RUNS.asks(run, meeting):
        RUNS.found(run, meeting, await interruptible(peers.resolve(meeting.address), WHO))
    channel = RUNS.channel(run, meeting)
    operation = getattr(channel, start)(*args, node=title(here.node_id, here.node), **more)
    try:
        value = await _finish(operation, run, here.node_id)
    except (ZBusError, host.Interrupted, asyncio.CancelledError) as error:
        host.show(_end(error, run), here.node_id, run.client)
        raise
    finally:
        run.done.add(here.node_id)
    is_sent = start == "start_send"
    nbytes = 0 if is_sent else operation.total_bytes
    run.once.keep(here.key, value, nbytes, is_wanted=lambda: run.is_wanted(here.node_id))
    passed = ("sent", args[0]) if is_sent else ("received", value)
    host.show(_summary(operation, *passed), here.node_id, run.client)
    return value


async def _finish(operation: Operation[Any], run: Run, node_id: str) -> Any:
    view = _View(operation, run, node_id)
    try:
        await until(when_done(operation), view.refresh, operation.done)
        return operation.result()
    except host.Interrupted:
        # The other side is told now, and not when this prompt has come to its end.
        run.close("cancelled")
        raise
    except Cancelled as error:  # by another node of this run, a moment ago
        raise host.Interrupted() from error
    # On CancelledError another node has failed: the end of the run tells the other side why.


async def until(
    ended: asyncio.Future[Any],
    refresh: Callable[[], None],
    is_done: Callable[[], bool] = lambda: False,
) -> None:
    """Wait for that end, or the interrupt; `refresh` shows meanwhile how it goes. `is_done` is
    asked too: the word of the end comes behind the callbacks of others, which may take long."""
    while not (await asyncio.wait((ended,), timeout=POLL))[0] and not is_done():
        host.check_interrupt()
        refresh()


async def interruptible(work: Coroutine[Any, Any, T], what: str = "") -> T:
    """Wait for `work` in the node that is being executed; the user's X ends it at once. The node
    shows `what` it is, if that takes long."""
    task = asyncio.ensure_future(work)
    here, began, shown = host.executing(), time.monotonic(), 0

    def refresh() -> None:
        nonlocal shown
        waited = int(time.monotonic() - began)
        if what and waited >= LONG and waited > shown:
            shown = waited
            text = f"{what} (no answer for {waited} s)"
            host.show(text, here.node_id, RUNS.of(here.prompt_id).client)

    try:
        await until(task, refresh)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class _Ends(Protocol):
    def add_done_callback(self, call: Callable[[Any], object], /) -> None: ...


def when_done(work: _Ends) -> asyncio.Future[None]:
    """The end of work that goes on elsewhere, for `until`."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def wake() -> None:
        if not ended.done():
            ended.set_result(None)

    def done(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the prompt has ended, and its loop with it
            loop.call_soon_threadsafe(wake)

    work.add_done_callback(done)
    return ended


class _View:
    """The progress bar and the line of text on one node."""

    def __init__(self, operation: Operation[Any], run: Run, node_id: str) -> None:
        self._operation, self._run, self._node_id = operation, run, node_id
        self._bar: Any = None
        self._done = -1
        self._said, self._said_at = "", 0.0

    def refresh(self) -> None:
        """Show what has changed. Only to be called from the node's own coroutine."""
        operation = self._operation
        if operation.total_bytes and operation.done_bytes != self._done:
            self._done = operation.done_bytes
            self._bar = self._bar or host.ProgressBar(operation.total_bytes)
            self._bar.update_absolute(self._done, operation.total_bytes)
        now = time.monotonic()
        if operation.note != self._said and now - self._said_at >= SHOW_EVERY:
            self._said, self._said_at = operation.note, now
            host.show(self._said, self._node_id, self._run.client)


def _end(error: BaseException, run: Run) -> str:
    """What stays on a node that did not come to its end."""
    if isinstance(error, ZBusError):
        return str(error)
    if run.broken is not None:
        return f"stopped: {run.broken}"
    if isinstance(error, host.Interrupted):
        return "cancelled"
    return "ended: another node of this workflow has failed"


def _summary(operation: Operation[Any], verb: str, value: Any) -> str:
    text, total = verb, operation.total_bytes
    if isinstance(value, str):
        text += f" a text of {len(value)} character{'s' * (len(value) != 1)}"
    elif total >= SMALL:
        text += f" {size_text(total)}"
    if total >= 1 << 20 and operation.seconds > 0:
        text += f" in {operation.seconds:.2f} s, {rate_text(total / operation.seconds)}"
    codec = "" if operation.codec in ("", "raw") else f", {operation.codec}"
    return "; ".join((text + codec, *operation.notes))
