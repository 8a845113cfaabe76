"""This ComfyUI as a process: its peer, its server's loop and routes, what it is."""

from __future__ import annotations

import asyncio
import getpass
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import comfy.model_management
import folder_paths
from aiohttp import web
from comfy.cli_args import args
from server import PromptServer

from zbus import Peer
from zbus.printable import shown
from zbus.values import containers

from .containers import HOST_TYPES

logger = logging.getLogger(__name__)
T = TypeVar("T")

_lock = threading.Lock()
_peer: Peer | None = None


def peer() -> Peer:
    """This process's peer; the first call starts it."""
    global _peer
    with _lock:
        if _peer is None:
            host = shown(socket.gethostname().split(".")[0], 60) or "comfyui"
            try:
                user = getpass.getuser()
            except (OSError, KeyError, ImportError):  # a container's nameless user
                user = "?"
            containers.use(HOST_TYPES)
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

    server = the_server()
    if server is not None and not server.app.frozen:
        server.app.on_startup.append(started)


def the_server() -> Any:
    return getattr(PromptServer, "instance", None)


def on_loop(call: Callable[[], None]) -> None:
    """Have `call` run on the server's loop; at once, if the loop is not busy. From any thread."""
    the_server().loop.call_soon_threadsafe(call)


def spawn(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Have `work` go on whatever the nodes do: on the server's loop; a node that computes holds up
    that of the prompt, which takes its place only where no server runs. From a node."""
    loop = getattr(the_server(), "loop", None)
    if loop is None or not loop.is_running():
        loop = asyncio.get_running_loop()
    return asyncio.run_coroutine_threadsafe(work, loop)


def on_prompt(change: Callable[[Any], Any]) -> None:
    """Have `change` see, and change, the body of every prompt that comes by HTTP, before it is
    validated. What it raises is logged by ComfyUI, and the body stays as it was."""
    server = the_server()
    if server is not None:
        server.add_on_prompt_handler(change)


def answer(path: str, tell: Callable[[], dict[str, Any]]) -> None:
    """Answer GET requests for that path with JSON. Only while ComfyUI loads its nodes."""
    server = the_server()
    if server is None:
        return

    async def handle(_: web.Request) -> web.Response:
        return web.json_response(tell())

    server.routes.get(path)(handle)


def handle(
    method: str, path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> None:
    """Answer requests for that path by an aiohttp handler. Only while ComfyUI loads its nodes."""
    server = the_server()
    if server is not None:
        server.routes.route(method, path)(handler)


def on_free(call: Callable[[], None]) -> None:
    """Have `call` run, on the server's loop, when somebody asks ComfyUI to free memory. Only
    before its server starts."""

    async def answering(request: web.Request, _: web.StreamResponse) -> None:
        if request.method == "POST" and request.path in ("/free", "/api/free"):
            call()

    server = the_server()
    if server is not None and not server.app.frozen:
        server.app.on_response_prepare.append(answering)


def memory_reserve() -> int:
    """The bytes of memory that ComfyUI means to leave free: it gives up results for them."""
    told = getattr(args, "cache_ram", None)  # one number, or up to two
    wanted = [float(number) for number in (told if isinstance(told, list) else [told or 0.0])]
    if any(wanted):
        return int(max(wanted) * (1 << 30))
    tenth = comfy.model_management.total_ram * (1 << 20) // 10
    return int(min(10 << 30, max(2 << 30, tenth)))


def metadata_wanted() -> bool:
    """Whether workflows go into saved pictures (--disable-metadata)."""
    return not args.disable_metadata


def multi_user() -> bool:
    """Whether ComfyUI serves several users, each with files of its own (--multi-user)."""
    return bool(args.multi_user)
