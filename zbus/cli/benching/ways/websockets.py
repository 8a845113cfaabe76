"""A bare aiohttp WebSocket: binary messages of the lane's own size, into one buffer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from pathlib import Path
from typing import Any

from ..buffers import Buffers
from ..values import plain
from .way import LIMIT, Way

# A lane of bytes in pieces such as one would choose.
PIECE = 1 << 18
MAX_MESSAGE = 1 << 20


class WebSocket(Way):
    """The sender is the client, as one who dials a page is."""

    def __init__(self, kind: str, folder: Path) -> None:
        super().__init__(kind, folder)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._buffers = Buffers()
        self._come: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._memory = "again"

    def _call(self, work: Any) -> Any:
        future: concurrent.futures.Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(LIMIT)

    def join(self, told: dict[str, Any]) -> dict[str, Any]:
        return {"port": self._call(self._serve())}

    def meet(self, told: dict[str, Any]) -> None:
        self._call(self._dial(told["port"]))

    async def _serve(self) -> int:
        from aiohttp import web

        async def handle(request: web.Request) -> web.WebSocketResponse:
            ws = web.WebSocketResponse(max_msg_size=MAX_MESSAGE, compress=False)
            await ws.prepare(request)
            await self._take(ws)
            return ws

        app = web.Application()
        app.router.add_get("/", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    async def _take(self, ws: Any) -> None:
        while True:
            size = int(await ws.receive_str())
            into, done = self._buffers.take(size, self._memory), 0
            while done < size:
                data = await ws.receive_bytes()
                into[done : done + len(data)] = data
                done += len(data)
            await ws.send_str("stored")
            self._come.put(into)

    async def _dial(self, port: int) -> None:
        import aiohttp

        self._session = aiohttp.ClientSession()
        url = f"http://127.0.0.1:{port}/"
        self._ws = await self._session.ws_connect(url, max_msg_size=MAX_MESSAGE, compress=0)

    def prepare(self, value: Any) -> None:
        self.value = plain(value)

    async def _send(self) -> None:
        await self._ws.send_str(str(len(self.value)))
        for offset in range(0, len(self.value), PIECE):
            await self._ws.send_bytes(self.value[offset : offset + PIECE])
        await self._ws.receive_str()

    def send(self) -> None:
        self._call(self._send())

    def receive(self, memory: str) -> Any:
        self._memory = memory
        return self._come.get(timeout=LIMIT)

    def clear(self) -> None:
        super().clear()
        self._buffers.drop()
