"""The only file that touches ComfyUI's internals: what the host tells, and what it is told."""

from __future__ import annotations

import asyncio
import getpass
import inspect
import json
import logging
import os
import platform
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import comfyui_version
import execution
import folder_paths
import latent_preview
import nodes
from aiohttp import web
from comfy.cli_args import args
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from server import PromptServer

from zbus import Peer
from zbus.errors import InputError

from . import preflight
from .plan import title

logger = logging.getLogger(__name__)

Interrupted = comfy.model_management.InterruptProcessingException
ProgressBar = comfy.utils.ProgressBar
KINDS = {
    **{"IMAGE": "image", "MASK": "mask", "LATENT": "latent", "AUDIO": "audio"},
    **{"CONDITIONING": "conditioning", "STRING": "text"},
    **dict.fromkeys(("INT", "FLOAT", "BOOLEAN"), "number"),
}

_lock = threading.Lock()
_peer: Peer | None = None


# --- this process -------------------------------------------------------------------------------


def peer() -> Peer:
    """This process's peer; the first call starts it."""
    global _peer
    with _lock:
        if _peer is None:
            host = socket.gethostname().split(".")[0]
            try:
                user = getpass.getuser()
            except (OSError, KeyError, ImportError):  # a container's nameless user
                user = "?"
            instance = "\n".join((host, user, folder_paths.base_path, _base(), str(args.port)))
            _peer = Peer(f"{host}-{args.port}", instance=instance)
        return _peer


def port() -> int:
    """Where ComfyUI's page is."""
    return int(args.port)


def _base() -> str:
    return str(folder_paths.get_user_directory())


def at_start(call: Callable[[], None]) -> None:
    """Have `call` run when ComfyUI's server starts. What it raises is logged."""

    async def started(app: object) -> None:
        try:
            call()
        except Exception:
            logger.exception("zbus could not start; the first node that needs it tries again")

    server = _server()
    if server is not None and not server.app.frozen:
        server.app.on_startup.append(started)


def _server() -> Any:
    return getattr(PromptServer, "instance", None)


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
            preview = preflight.read_preview(data)
            if preview is not None:
                self._on_event("preview", preview)
        except Exception:
            logger.exception("a preview was missed")


def watch_queue(on_status: Callable[[], None]) -> None:
    """Call `on_status`, on the server's loop, whenever a prompt is queued, starts or ends."""
    server = _server()
    if server is None:
        return

    def on_event(kind: str, data: Any) -> None:
        if kind == "status":
            on_status()

    server.sockets[f"zbus-{uuid.uuid4().hex}"] = _StandIn(on_event)

    # Statuses wait for a page that is slow to read: a prompt that comes by HTTP is seen here.
    def on_prompt(json: Any) -> Any:
        on_status()
        return json

    server.add_on_prompt_handler(on_prompt)


def on_loop(call: Callable[[], None]) -> None:
    """Have `call` run on the server's loop; at once, if the loop is not busy. From any thread."""
    _server().loop.call_soon_threadsafe(call)


def on_prompt(change: Callable[[Any], Any]) -> None:
    """Have `change` see, and change, the body of every prompt that comes by HTTP, before it is
    validated. What it raises is logged by ComfyUI, and the body stays as it was."""
    server = _server()
    if server is not None:
        server.add_on_prompt_handler(change)


def answer(path: str, tell: Callable[[], dict[str, Any]]) -> None:
    """Answer GET requests for that path with JSON. Only while ComfyUI loads its nodes."""
    server = _server()
    if server is None:
        return

    async def handle(_: web.Request) -> web.Response:
        return web.json_response(tell())

    server.routes.get(path)(handle)


# --- prompts ------------------------------------------------------------------------------------


class Running(NamedTuple):
    """A prompt that is being executed."""

    id: str
    prompt: Mapping[str, Any]
    client: str | None  # the page that queued it
    outputs: tuple[str, ...]


def running() -> list[Running]:
    """The prompts that are being executed."""
    queue = getattr(_server(), "prompt_queue", None)
    if queue is None:
        return []
    with queue.mutex:
        items = list(queue.currently_running.values())
    return [Running(i[1], i[2], i[3].get("client_id"), tuple(i[4])) for i in items]


class Ending(NamedTuple):
    """How a prompt ended: `kind` is "ok", "failed" or "cancelled"."""

    kind: str
    error: Mapping[str, Any]  # of the node that failed, as ComfyUI tells it; else empty
    prompt: Mapping[str, Any]


def ending(prompt_id: str) -> Ending | None:
    """How a prompt ended, as the history says; None where that has no word of it."""
    entry = _server().prompt_queue.get_history(prompt_id=prompt_id).get(prompt_id)
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
    queue = _server().prompt_queue
    exactly = getattr(queue, "interrupt_if_running", None)
    if exactly is not None:
        exactly(prompt_id)
        return
    with queue.mutex:  # held, so that the prompt cannot end and the next one be hit
        if any(item[1] == prompt_id for item in queue.currently_running.values()):
            nodes.interrupt_processing()


def interrupted() -> bool:
    """Whether what is being executed is to stop, and has not seen it yet."""
    return bool(comfy.model_management.processing_interrupted())


def check_interrupt() -> None:
    """Raises `Interrupted` where the user has pressed the X."""
    comfy.model_management.throw_exception_if_processing_interrupted()


# --- prompts of our own -------------------------------------------------------------------------


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
    server = _server()
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
    `preflight.read_preview`). Returns the client_id that it is to be queued with."""
    server, sid = _server(), f"zbus-{prompt_id}"
    server.sockets_metadata[sid] = {"feature_flags": {"supports_preview_metadata": True}}
    server.sockets[sid] = _StandIn(on_event)
    return sid


def unfollow(sid: str) -> None:
    """No more events."""
    server = _server()
    server.sockets.pop(sid, None)
    server.sockets_metadata.pop(sid, None)


def echo(kind: str, prompt_id: str, sid: str) -> None:
    """Have an event come to a follower behind all that are on their way to it."""
    _server().send_sync(kind, {"prompt_id": prompt_id}, sid)


def queue() -> tuple[set[str], list[str]]:
    """The ids of the prompts that are executed, and of those that wait, the next one first."""
    queue = _server().prompt_queue
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
    queue = _server().prompt_queue
    with queue.mutex:
        if queue.delete_queue_item(lambda item: item[1] == prompt_id):
            return "deleted"
        if all(item[1] != prompt_id for item in queue.currently_running.values()):
            return "unknown"
        interrupt(prompt_id)
        return "interrupting"


def forget(prompt_id: str) -> None:
    """Remove a prompt that has ended from the history."""
    _server().prompt_queue.delete_history_item(prompt_id)


def facts() -> dict[str, Any]:
    """What there is to know of this ComfyUI, as JSON."""
    manage = comfy.model_management
    running, waiting = queue()
    device = manage.get_torch_device()
    ram = manage.torch.device("cpu")
    return {
        "comfyui": comfyui_version.__version__,
        "python": platform.python_version(),
        "torch": str(manage.torch_version),
        "os": platform.platform(terse=True),
        "queue": {"running": len(running), "pending": len(waiting)},
        "devices": [_memory(manage.get_torch_device_name(device), device)],
        "ram": _memory(platform.machine(), ram),
    }


def _memory(name: str, device: Any) -> dict[str, Any]:
    manage = comfy.model_management
    total, free = manage.get_total_memory(device), manage.get_free_memory(device)
    return {"name": name, "type": device.type, "total": int(total), "free": int(free)}


# --- nodes --------------------------------------------------------------------------------------


class Here(NamedTuple):
    """The node that is being executed."""

    prompt_id: str
    node_id: str
    node: Mapping[str, Any]
    list_index: int | None = None  # where a list input runs it once for each item


def executing() -> Here:
    """The node that this coroutine executes."""
    context = get_executing_context()
    if context is None:
        raise RuntimeError("called outside of a node's execution")
    graph = get_progress_state().dynprompt
    node = graph.get_node(context.node_id) if graph.has_node(context.node_id) else {}
    return Here(context.prompt_id, context.node_id, node, context.list_index)


def graph() -> dict[str, Any]:
    """All nodes of the prompt that is being executed, those that nodes have added among them."""
    dynamic = get_progress_state().dynprompt
    return {node_id: dynamic.get_node(node_id) for node_id in dynamic.all_node_ids()}


def shown_as(node_id: str) -> str:
    """The node that the page knows, for one that it does not: it was added while running."""
    dynamic = get_progress_state().dynprompt
    return str(dynamic.get_display_node_id(node_id)) if dynamic.has_node(node_id) else node_id


def doing() -> list[tuple[str, Mapping[str, Any], float, float]]:
    """What is being executed: (node id, node, value, maximum) of each node that has begun."""
    registry = get_progress_state()
    found = []
    for node_id, state in list(registry.nodes.items()):
        if state["state"].value == "running" and registry.dynprompt.has_node(node_id):
            node = registry.dynprompt.get_node(node_id)
            found.append((node_id, node, state["value"], state["max"]))
    return found


def class_of(class_type: str) -> type | None:
    """The node class that ComfyUI has under that id."""
    found: type | None = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    return found


class Classes:
    """What ComfyUI knows of node classes: see `plan.Classes` and `preflight.Classes`.

    Looks at a class once: an instance is for one look at one prompt.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Mapping[str, Any]] = {}

    def is_lazy(self, class_type: str, name: str) -> bool:
        return bool(self.inputs(class_type).get(name, (None, {}, ""))[1].get("lazy"))

    def expands(self, class_type: str) -> bool:
        # To copy what is before it, a node must see the graph.
        hidden = self._inputs(class_type).get("hidden") or {}
        kinds = [kind[0] if isinstance(kind, tuple) else kind for kind in hidden.values()]
        return "DYNPROMPT" in kinds

    def kind(self, class_type: str, slot: int) -> str:
        try:
            found = class_of(class_type).RETURN_TYPES[slot]  # type: ignore[union-attr]
            return KINDS.get(found, "any")
        except (AttributeError, IndexError, TypeError):
            return "any"

    def names(self) -> Collection[str]:
        return nodes.NODE_CLASS_MAPPINGS.keys()

    def inputs(self, class_type: str) -> dict[str, preflight.Input]:
        groups = self._inputs(class_type)
        return {
            name: preflight.Input.read(info, group)
            for group in ("optional", "required")
            for name, info in dict(groups.get(group) or {}).items()
        }

    def slots(self, class_type: str) -> int | None:
        returns = getattr(class_of(class_type), "RETURN_TYPES", None)
        return len(returns) if type(returns) in (tuple, list) else None  # foreign ones have no end

    def judges(self, class_type: str, name: str) -> bool:
        found: Any = class_of(class_type)
        own = getattr(found, "VALIDATE_INPUTS", None)
        if hasattr(found, "GET_BASE_CLASS"):  # V3
            own, none = found.validate_inputs, found.GET_BASE_CLASS().validate_inputs
            own = None if own.__func__ is none.__func__ else own
        spec = None if own is None else inspect.getfullargspec(own)
        return spec is not None and (spec.varkw is not None or name in spec.args)

    def is_file_input(self, class_type: str, name: str) -> bool:
        found = self.inputs(class_type).get(name)
        return found is not None and preflight.names_file(class_type, name, found)

    def _inputs(self, class_type: str) -> Mapping[str, Any]:
        if class_type not in self._seen:
            try:
                self._seen[class_type] = class_of(class_type).INPUT_TYPES()  # type: ignore
            except Exception:  # a foreign node's own code
                self._seen[class_type] = {}
        return self._seen[class_type]


# --- the page -----------------------------------------------------------------------------------


# The page takes a text on a node for HTML, and parts of ours are the other side's words.
_NO_MARKUP = str.maketrans("<>", "\u2039\u203a")


def show(text: str, node_id: str, client: str | None) -> None:
    """Put a line of text on a node. Without a page it only goes to the log."""
    show_at(text, shown_as(node_id), client)


def show_at(text: str, shown: str, client: str | None) -> None:
    """As `show`, on a node that the page knows; from any thread."""
    logger.debug("node %s: %s", shown, text)
    if client is not None:  # None would reach every tab
        _server().send_progress_text(text.translate(_NO_MARKUP), shown, client)


def preview_at(kind: str, picture: bytes, shown: str, prompt_id: str, client: str | None) -> None:
    """Show a picture on a node that the page knows; `kind` is its MIME type. From any thread."""
    server = _server()
    if client is None or client not in server.sockets:
        return
    features = server.sockets_metadata.get(client, {}).get("feature_flags", {})
    if features.get("supports_preview_metadata"):
        told = {"node_id": shown, "display_node_id": shown, "real_node_id": shown}
        told |= {"prompt_id": prompt_id, "image_type": kind}
        head = json.dumps(told).encode()
        event, data = 4, struct.pack(">I", len(head)) + head + picture
    else:
        event, data = 1, struct.pack(">I", 2 if kind == "image/png" else 1) + picture
    asyncio.run_coroutine_threadsafe(server.send_bytes(event, data, client), server.loop)


def notice(text: str, client: str | None, **more: Any) -> None:
    """Tell the page something that no node can say; the log has it as well."""
    if client is not None:
        _server().send_sync("zbus.notice", {"text": text, **more}, client)


# --- files --------------------------------------------------------------------------------------


def input_files(*endings: str) -> list[str]:
    """The names of the files in the input folder that end so."""
    try:
        with os.scandir(folder_paths.get_input_directory()) as entries:
            return sorted(e.name for e in entries if e.is_file() and e.name.endswith(endings))
    except OSError:  # it would end the list of all nodes
        return []


def input_file(name: str) -> Path:
    """A file of the input folder; "name [output]" and "name [temp]" mean the other folders.

    Raises:
        InputError: It is not there, or not in that folder.
    """
    bare, folder = folder_paths.annotated_filepath(name)
    root = os.path.abspath(folder or folder_paths.get_input_directory())
    path = Path(os.path.abspath(os.path.join(root, bare)))
    if not path.is_relative_to(root):
        raise InputError(f'"{name}" leads out of the folder "{os.path.basename(root)}"')
    if not path.is_file():
        raise InputError(f'there is no file "{bare}" in the folder "{os.path.basename(root)}"')
    return path


def output_file(prefix: str, ending: str) -> Path:
    """The next free name in the output folder: prefix_00001_.ending. Makes its folder.

    Raises:
        InputError: The prefix leads out of the output folder.
    """
    root = os.path.abspath(folder_paths.get_output_directory())
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, root)
    except OSError:
        raise
    except Exception as error:  # a plain Exception, or ValueError of another drive
        remedy = "Use a name, or folders within it"
        said = f'filename_prefix "{prefix}" leads out of the output folder'
        raise InputError(said, remedy=remedy) from error
    return Path(folder) / f"{name}_{counter:05}_.{ending}"


def metadata_wanted() -> bool:
    """Whether workflows go into saved pictures (--disable-metadata)."""
    return not args.disable_metadata


def current_prompt() -> Mapping[str, Any]:
    """The prompt that is being executed, as it was queued."""
    prompt: Mapping[str, Any] = get_progress_state().dynprompt.get_original_prompt()
    return prompt
