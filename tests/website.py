"""An HTTP server for tests, and the WebSocket lane's far end without the ComfyUI around it."""

from __future__ import annotations

import asyncio
import importlib
import ssl
import sys
import threading
import types
from pathlib import Path
from typing import Any

from aiohttp import web

PATIENCE = 20.0  # seconds
ALONE = "comfy_nodes_alone"


def load(name: str) -> Any:
    """`comfy_nodes.<name>`, without the package around it (which needs ComfyUI)."""
    package = sys.modules.setdefault(ALONE, types.ModuleType(ALONE))
    package.__path__ = [str(Path(__file__).resolve().parent.parent / "comfy_nodes")]
    return importlib.import_module(f"{ALONE}.{name}")


door = load("page.websocket_door")


class Site:
    """An HTTP server in a thread of its own: `handle` answers for `path`."""

    def __init__(
        self, handle: Any, path: str = door.PATH, tls: ssl.SSLContext | None = None
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._handle, self._path, self._tls = handle, path, tls
        self.port = self.call(self._open())
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    async def _open(self) -> int:
        app = web.Application()
        app.router.add_get(self._path, self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        return int(self._runner.addresses[0][1])

    def tasks(self) -> int:
        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return int(self.call(count()))

    def __enter__(self) -> Site:
        return self

    async def _close(self) -> None:
        await self._runner.cleanup()
        # What it has cancelled still closes its connections: a closed loop would leave it hanging.
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(left, timeout=PATIENCE / 2)

    def __exit__(self, *_: object) -> None:
        self.call(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()
