"""The only file that touches ComfyUI's internals: what the host tells, and what it is told."""

from __future__ import annotations

import getpass
import logging
import socket
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import folder_paths
import nodes
from comfy.cli_args import args
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from server import PromptServer

from zbus import Peer

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
    """Sits among the server's WebSockets, and hears what is said to all of them.

    An exception here would end ComfyUI's publish loop: there is none.
    """

    def __init__(self, on_status: Callable[[], None]) -> None:
        self._on_status = on_status

    async def send_json(self, message: Any) -> None:
        try:
            if message.get("type") == "status":
                self._on_status()
        except Exception:
            logger.exception("a status of the queue was missed")

    async def send_bytes(self, data: Any) -> None:
        """Previews: not for this one."""


def watch_queue(on_status: Callable[[], None]) -> None:
    """Call `on_status`, on the server's loop, whenever a prompt is queued, starts or ends."""
    server = _server()
    if server is None:
        return
    server.sockets[f"zbus-{uuid.uuid4().hex}"] = _StandIn(on_status)

    # Statuses wait for a page that is slow to read: a prompt that comes by HTTP is seen here.
    def on_prompt(json: Any) -> Any:
        on_status()
        return json

    server.add_on_prompt_handler(on_prompt)


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


def outcome(prompt_id: str) -> tuple[str, str]:
    """How a prompt ended: ("ok" | "failed" | "cancelled", why), as the history says."""
    history = _server().prompt_queue.get_history(prompt_id=prompt_id)
    status = (history.get(prompt_id) or {}).get("status") or {}
    for kind, data in status.get("messages") or ():
        if kind == "execution_interrupted":
            return "cancelled", ""
        if kind == "execution_error":
            prompt = history[prompt_id]["prompt"][2]
            return "failed", _describe_error(data, prompt)
    if status.get("completed"):
        return "ok", ""
    return "failed", "it ended without saying why; its log may tell"


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


def check_interrupt() -> None:
    """Raises `Interrupted` where the user has pressed the X."""
    comfy.model_management.throw_exception_if_processing_interrupted()


# --- nodes --------------------------------------------------------------------------------------


class Here(NamedTuple):
    """The node that is being executed."""

    prompt_id: str
    node_id: str
    node: Mapping[str, Any]


def executing() -> Here:
    """The node that this coroutine executes."""
    context = get_executing_context()
    if context is None:
        raise RuntimeError("called outside of a node's execution")
    graph = get_progress_state().dynprompt
    node = graph.get_node(context.node_id) if graph.has_node(context.node_id) else {}
    return Here(context.prompt_id, context.node_id, node)


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
    """What ComfyUI knows of node classes: see `plan.Classes`."""

    def is_lazy(self, class_type: str, name: str) -> bool:
        for inputs in self._inputs(class_type).values():
            if isinstance(inputs, Mapping) and name in inputs:
                info = inputs[name]
                return len(info) > 1 and bool(info[1].get("lazy"))
        return False

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

    def _inputs(self, class_type: str) -> Mapping[str, Any]:
        try:
            return class_of(class_type).INPUT_TYPES()  # type: ignore
        except Exception:  # a foreign node's own code
            return {}


# --- the page -----------------------------------------------------------------------------------


# The page takes a text on a node for HTML, and parts of ours are the other side's words.
_NO_MARKUP = str.maketrans("<>", "\u2039\u203a")


def show(text: str, node_id: str, client: str | None) -> None:
    """Put a line of text on a node. Without a page it only goes to the log."""
    logger.debug("node %s: %s", node_id, text)
    if client is not None:  # None would reach every tab
        shown = get_progress_state().dynprompt.get_display_node_id(node_id)
        _server().send_progress_text(text.translate(_NO_MARKUP), shown, client)


def notice(text: str, client: str | None, **more: Any) -> None:
    """Tell the page something that no node can say; the log has it as well."""
    if client is not None:
        _server().send_sync("zbus.notice", {"text": text, **more}, client)
