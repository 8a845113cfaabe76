"""The WebSocket lane's far end: from ComfyUI's own HTTP port to this process's listener.

It is open to whoever reaches that port, and passes bytes to one place only, which talks with
nobody whose key it does not know. What a stranger could use up here is counted.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from aiohttp import WSCloseCode, WSMsgType, web

from zbus.address import parse_dial
from zbus.in_time import in_time
from zbus.net import websocket
from zbus.net.websocket import CLOSE_TIME, MAX_MESSAGE, NOT_LISTENING, relay

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
            ws = web.WebSocketResponse(max_msg_size=MAX_MESSAGE, compress=False, timeout=CLOSE_TIME)
            await ws.prepare(request)
            await _serve(ws, address)
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


async def _serve(ws: web.WebSocketResponse, address: str) -> None:
    try:
        # Not by the time-out of `receive`, which each ping begins anew.
        first = await in_time(ws.receive(), FIRST_TIME)
    except asyncio.TimeoutError:
        first = None
    if first is None or first.type is not WSMsgType.BINARY or first.data[:1] != SIGNATURE:
        await ws.close(code=WSCloseCode.POLICY_VIOLATION)
        return
    loop, place = asyncio.get_running_loop(), parse_dial(address)
    link = socket.socket(socket.AF_INET6 if ":" in place.host else socket.AF_INET)
    try:
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(link, (place.host, place.port))
        await loop.sock_sendall(link, first.data)
    except OSError:
        await ws.close(code=NOT_LISTENING)
    else:
        await relay(ws, link)
    finally:
        link.close()
