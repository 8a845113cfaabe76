"""The WebSocket lane's far end: from ComfyUI's own HTTP port to this process's listener.

It is open to whoever reaches that port, and passes bytes to one place only, which talks with
nobody whose key it does not know. What a stranger could use up here is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import WSCloseCode, web

from zbus.address import parse_dial
from zbus.net import websocket
from zbus.net.relay import LinkEnd, WebSocketEnd, relay
from zbus.net.websocket import NOT_LISTENING

PATH = f"/{websocket.PATH}"
MAX_OPEN = 64
PER_SECOND = 20.0  # new ones
BURST = 40  # of them at once
FIRST_TIME = 10.0  # seconds for the first bytes: one who dials has them ready
SIGNATURE = b"\xff"  # what ZMTP begins with, RFC 23

NOT_FOR_PAGES = "This is for zbus in another ComfyUI, not for pages in a browser."
NOBODY = "zbus does not listen in this ComfyUI."
TOO_MANY = "Too many connections; try again later."


class Door:
    """Answers the requests for `PATH`.

    Args:
        listener: Tells where this process's own CURVE listener is: "host:port", or "" for none.
    """

    def __init__(self, listener: Callable[[], str]) -> None:
        self._listener = listener
        self._open = 0
        self._tokens, self._counted = float(BURST), time.monotonic()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """A request, to the end of its WebSocket."""
        address = self._listener()
        if "Origin" in request.headers:  # a browser always sends it
            return web.Response(status=403, text=NOT_FOR_PAGES)
        if not address:
            return web.Response(status=503, text=NOBODY)
        if self._open >= MAX_OPEN or not self._take_token():
            return web.Response(status=429, text=TOO_MANY, headers={"Retry-After": "5"})
        self._open += 1
        try:
            ws = web.WebSocketResponse(compress=False)
            transport = request.transport
            if transport is None:  # gone already
                return ws
            await _shake_hands(ws, request, transport)
            await _serve(WebSocketEnd(transport, is_client=False), address)
            return ws
        finally:
            self._open -= 1

    def _take_token(self) -> bool:
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._counted) * PER_SECOND)
        self._counted = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


async def _shake_hands(
    ws: web.WebSocketResponse, request: web.Request, transport: asyncio.Transport
) -> None:
    transport.pause_reading()  # what comes after that is for the relay, and not for aiohttp
    try:
        await ws.prepare(request)
    except BaseException:  # it wants no WebSocket, and may ask for something else
        transport.resume_reading()
        raise


async def _serve(ws: WebSocketEnd, address: str) -> None:
    try:
        first = await ws.first(FIRST_TIME)
        if first[:1] != SIGNATURE:
            await ws.goodbye(WSCloseCode.POLICY_VIOLATION)
            return
        loop, place = asyncio.get_running_loop(), parse_dial(address)
        try:
            _, link = await loop.create_connection(lambda: LinkEnd(ws), place.host, place.port)
        except OSError:
            await ws.goodbye(NOT_LISTENING)
            return
        await relay(ws, link)
    finally:
        ws.abort()
