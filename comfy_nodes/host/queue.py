"""ComfyUI's queue: what runs and waits in it, what is put into it, how it ends, its interrupts."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import comfy.model_management
import execution
import latent_preview
import nodes

from zbus.protocol.outcomes import NO_PROMPTS

from ..prompt.graph import title
from ..prompt.previews import read_preview
from .process import the_server

logger = logging.getLogger(__name__)

# An Exception in older hosts, and a BaseException since 0.20.
Interrupted = comfy.model_management.InterruptProcessingException
FOREIGN = (Exception, Interrupted)  # what the code of other packs may raise


class _StandIn:
    """Sits among the server's WebSockets, and hears what is said to it or to all of them.

    An exception here would end ComfyUI's publish loop: there is none.
    """

    def __init__(self, on_event: Callable[[str, Any], None]) -> None:
        self._on_event = on_event

    async def send_json(self, message: Any) -> None:
        try:
            self._on_event(message.get("type"), message.get("data"))
        except Exception:
            logger.exception("an event of the queue was missed")

    async def send_bytes(self, data: Any) -> None:
        try:
            preview = read_preview(data)
            if preview is not None:
                self._on_event("preview", preview)
        except Exception:
            logger.exception("a preview was missed")


def watch_queue(on_status: Callable[[], None]) -> None:
    """Call `on_status`, on the server's loop, whenever a prompt is queued, starts or ends."""
    server = the_server()
    if server is None:
        return
    runs_prompts()  # to have seen it while it lives

    def on_event(kind: str, data: Any) -> None:
        if kind == "status":
            _tell_failures()
            on_status()

    server.sockets[f"zbus-{uuid.uuid4().hex}"] = _StandIn(on_event)

    # Statuses wait for a page that is slow to read: a prompt that comes by HTTP is seen here.
    def on_prompt(json: Any) -> Any:
        on_status()
        return json

    server.add_on_prompt_handler(on_prompt)


WORKER = "(prompt_worker)"  # how the thread's name ends in which ComfyUI executes prompts

_worker_seen = False


def runs_prompts() -> bool:
    """Whether the thread lives in which ComfyUI executes prompts. The page answers on where
    it has ended.

    Where no such thread was ever seen it cannot be told, and counts as yes.
    """
    global _worker_seen
    lives = any(thread.name.endswith(WORKER) for thread in threading.enumerate())
    _worker_seen = _worker_seen or lives
    return lives or not _worker_seen


class Running(NamedTuple):
    """A prompt that is being executed."""

    id: str
    prompt: Mapping[str, Any]
    client: str | None  # the page that queued it
    outputs: tuple[str, ...]
    number: int = 0  # of its turn: a later prompt may have the same id


def running() -> list[Running]:
    """The prompts that are being executed. Where none are any more, none is, though the queue
    still holds the last one."""
    queue = getattr(the_server(), "prompt_queue", None)
    if queue is None or not runs_prompts():
        return []
    with queue.mutex:
        items = list(queue.currently_running.items())
    return [Running(i[1], i[2], i[3].get("client_id"), tuple(i[4]), number) for number, i in items]


class Ending(NamedTuple):
    """How a prompt ended: `kind` is "ok", "failed" or "cancelled"."""

    kind: str
    error: Mapping[str, Any]  # of the node that failed, as ComfyUI tells it; else empty
    prompt: Mapping[str, Any]


def ending(prompt_id: str) -> Ending | None:
    """How a prompt ended, as the history says; None where that has no word of it."""
    entry = the_server().prompt_queue.get_history(prompt_id=prompt_id).get(prompt_id)
    if not entry:
        return None
    status, prompt = entry.get("status") or {}, entry["prompt"][2]
    for kind, data in status.get("messages") or ():
        if kind == "execution_interrupted":
            return Ending("cancelled", {}, prompt)
        if kind == "execution_error":
            return Ending("failed", data, prompt)
    return Ending("ok" if status.get("completed") else "failed", {}, prompt)


def outcome(prompt_id: str) -> tuple[str, str]:
    """How a prompt ended: ("ok" | "failed" | "cancelled", why), as the history says."""
    end = ending(prompt_id)
    if end is None and not runs_prompts():
        return "failed", f"this ComfyUI {NO_PROMPTS}"
    if end is None or (end.kind == "failed" and not end.error):
        return "failed", "it ended without saying why; its log may tell"
    return end.kind, _describe_error(end.error, end.prompt) if end.error else ""


def _describe_error(data: Mapping[str, Any], prompt: Mapping[str, Any]) -> str:
    node_id, class_type = str(data.get("node_id")), str(data.get("node_type"))
    name = title(node_id, prompt.get(node_id) or {"class_type": class_type})
    said = str(data.get("exception_message", "")).strip()
    kind = str(data.get("exception_type", "")).rpartition(".")[2]
    shown = name if name.startswith(class_type) else f"{name} ({class_type})"
    return f"{shown}: {kind}: {said}"


def interrupt(prompt_id: str) -> None:
    """Interrupt exactly this prompt, if it is being executed."""
    queue = the_server().prompt_queue
    exactly = getattr(queue, "interrupt_if_running", None)
    if exactly is not None:
        exactly(prompt_id)
        return
    with queue.mutex:  # held, so that the prompt cannot end and the next one be hit
        if any(item[1] == prompt_id for item in queue.currently_running.values()):
            nodes.interrupt_processing()


_FAILURES: dict[str, dict[str, Any]] = {}  # of prompts that were stopped for them


def fail(prompt_id: str, node_id: str, error: Exception) -> None:
    """Stop a prompt since a node of it has failed, though another one computes: that one is
    interrupted, and for the page and the history the prompt ends with the failure. From any thread.
    """
    for item in running():
        if item.id == prompt_id:
            told = _failure(item, node_id, error)
            if prompt_id not in _FAILURES and item.client is not None:
                the_server().send_sync("execution_error", told, item.client)
            _FAILURES[prompt_id] = told
    interrupt(prompt_id)


def _failure(item: Running, node_id: str, error: Exception) -> dict[str, Any]:
    """As the executor itself tells it."""
    kind = type(error)
    return {
        "prompt_id": item.id,
        "node_id": node_id,
        "node_type": item.prompt.get(node_id, {}).get("class_type", ""),
        "executed": [],
        "exception_message": f"{error}\n",
        "exception_type": f"{kind.__module__}.{kind.__qualname__}",
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
        "timestamp": int(time.time() * 1000),
    }


def _tell_failures() -> None:
    """In the history, where the executor has told of an interrupt. On the server's loop: before
    anybody can ask for it."""
    queue = the_server().prompt_queue
    with queue.mutex:
        runs = {item[1] for item in queue.currently_running.values()}
        for prompt_id in [one for one in _FAILURES if one not in runs]:
            failure = _FAILURES.pop(prompt_id)
            status = (queue.history.get(prompt_id) or {}).get("status") or {}
            messages = status.get("messages") or []
            for at, (kind, _) in enumerate(messages):
                if kind == "execution_interrupted":
                    messages[at] = ("execution_error", failure)


def interrupted() -> bool:
    """Whether what is being executed is to stop, and has not seen it yet."""
    return bool(comfy.model_management.processing_interrupted())


def check_interrupt() -> None:
    """Raises `Interrupted` where the user has pressed the X."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class Validation(NamedTuple):
    """What ComfyUI thinks of a prompt."""

    ok: bool
    outputs: tuple[str, ...]  # the outputs that can be executed
    error: Mapping[str, Any] | None
    node_errors: Mapping[str, Any]


async def validate(
    prompt_id: str, prompt: Mapping[str, Any], wanted: Collection[str]
) -> Validation:
    """Validate a prompt, as POST /prompt does. Values in it are cast in place.

    Args:
        wanted: The outputs that are asked for; none means all.
    """
    given = {"prompt_id": prompt_id, "prompt": prompt}
    given["partial_execution_list"] = list(wanted) or None
    names = inspect.signature(execution.validate_prompt).parameters  # they differ by version
    said = execution.validate_prompt(**{n: v for n, v in given.items() if n in names})
    if inspect.isawaitable(said):
        said = await said
    ok, error, outputs, node_errors = said
    return Validation(bool(ok), tuple(outputs), error, node_errors or {})


def enqueue(
    prompt_id: str, prompt: Mapping[str, Any], extra: Mapping[str, Any], outputs: Iterable[str]
) -> None:
    """Put a validated prompt at the queue's end, as POST /prompt does. On the server's loop."""
    server = the_server()
    data = {"create_time": int(time.time() * 1000), **extra}
    if hasattr(latent_preview, "set_preview_method"):  # per prompt; before, the command line's
        data.setdefault("preview_method", "auto")
    item: tuple[Any, ...] = (server.number, prompt_id, prompt, data, list(outputs))
    if "process_item" in inspect.signature(execution.PromptQueue.task_done).parameters:
        item += ({},)  # what is secret in `extra`: nothing
    server.number += 1
    server.prompt_queue.put(item)


def follow(prompt_id: str, on_event: Callable[[str, Any], None]) -> str:
    """Hear a prompt's events on the server's loop: (kind, data), also "preview" (see
    `previews.read_preview`). Returns the client_id that it is to be queued with."""
    server, sid = the_server(), f"zbus-{prompt_id}"
    server.sockets_metadata[sid] = {"feature_flags": {"supports_preview_metadata": True}}
    server.sockets[sid] = _StandIn(on_event)
    return sid


def unfollow(sid: str) -> None:
    """No more events."""
    server = the_server()
    server.sockets.pop(sid, None)
    server.sockets_metadata.pop(sid, None)


def echo(kind: str, prompt_id: str, sid: str) -> None:
    """Have an event come to a follower behind all that are on their way to it."""
    the_server().send_sync(kind, {"prompt_id": prompt_id}, sid)


def queue() -> tuple[set[str], list[str]]:
    """The ids of the prompts that are executed, and of those that wait, the next one first."""
    queue = the_server().prompt_queue
    with queue.mutex:
        running = {item[1] for item in queue.currently_running.values()}
        waiting = [(item[0], item[1]) for item in queue.queue]
    return running, [prompt_id for _, prompt_id in sorted(waiting)]


def place(prompt_id: str) -> int | None:
    """How many prompts wait before this one; None if it does not wait."""
    waiting = queue()[1]
    return waiting.index(prompt_id) if prompt_id in waiting else None


def cancel(prompt_id: str) -> str:
    """Stop exactly this prompt: "deleted" from the queue, "interrupting", or "unknown".

    An interrupt that comes before its prompt has really begun is lost: repeat it.
    """
    queue = the_server().prompt_queue
    with queue.mutex:
        if queue.delete_queue_item(lambda item: item[1] == prompt_id):
            return "deleted"
        if all(item[1] != prompt_id for item in queue.currently_running.values()):
            return "unknown"
        interrupt(prompt_id)
        return "interrupting"


def forget(prompt_id: str) -> None:
    """Remove a prompt that has ended from the history."""
    the_server().prompt_queue.delete_history_item(prompt_id)
