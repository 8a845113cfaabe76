"""Passes bytes on between a WebSocket and a TCP connection, both ways, on an asyncio loop.

aiohttp makes the WebSocket; from then on the two connections are this module's: what is read from
one is written to the other out of the very buffer that it was read into, in one turn of the loop.
A buffer is read into again only when the other side has taken all of it, so a side that reads
slowly slows the other down, and each relay holds two buffers and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from asyncio import FIRST_COMPLETED
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import RemoteProtocolError
from .ws_frames import (
    BINARY,
    CLOSE,
    LARGEST_HEADER,
    PING,
    PONG,
    Control,
    Frames,
    control,
    fresh_key,
    header,
    mask,
)

logger = logging.getLogger(__name__)

PIECE = 1 << 19  # bytes of one message, and of what one turn of the loop moves
MAX_FRAME = 1 << 20  # bytes that are taken of one
KEEP_OPEN = 25.0  # seconds between pings: many a proxy cuts what is silent for 60
DEAF_TIME = 120.0  # seconds of unacknowledged bytes: as `transport`
CLOSE_TIME = 2.0  # seconds for its goodbye

NORMAL, PROTOCOL_ERROR, NO_CODE = 1000, 1002, 1005  # RFC 6455, 7.4.1

_ALIGNED = 16  # a payload that lies so is masked twice as fast


class _End(asyncio.BufferedProtocol):
    """One of the two connections."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self.is_full = False  # not all that was written is with the system yet
        self.is_gone = asyncio.get_running_loop().create_future()
        self._transport: Any = None
        # Not a bytearray, which is zeroed: of those that only shake hands no page is touched.
        self._memory = np.empty(_ALIGNED + PIECE + LARGEST_HEADER, np.uint8).data

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        # By this a buffer is not read into before all of it is sent. TLS copies, and would take 0
        # for always full.
        is_tls = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(int(is_tls))

    def write(self, data: bytes | memoryview) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def look(self) -> None:
        """Read on if the other side has taken all of it, else do not."""
        if self.other is not None and not self.other.is_full:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self.is_full = True
        if self.other is not None:
            self.other.look()

    def resume_writing(self) -> None:
        self.is_full = False
        if self.other is not None:
            self.other.look()

    def connection_lost(self, _: Exception | None) -> None:
        self.is_full = False  # nothing waits for it any more
        if not self.is_gone.done():
            self.is_gone.set_result(None)

    def abort(self) -> None:
        """End it now."""
        self._transport.abort()

    async def close(self) -> None:
        """End it. What is written goes first, if it is taken soon."""
        self._transport.close()
        try:
            await asyncio.wait((self.is_gone,), timeout=CLOSE_TIME)
        finally:
            self._transport.abort()


class LinkEnd(_End):
    """The TCP connection: what it says becomes messages. A protocol for `create_connection` and
    the like.

    Args:
        ws: The other one, where this is joined as soon as it stands.
    """

    def __init__(self, ws: WebSocketEnd) -> None:
        super().__init__()
        self._ws = ws

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.other = self._ws
        self._ws.join(self)

    def get_buffer(self, _: int) -> memoryview:
        return self._memory[_ALIGNED : _ALIGNED + PIECE]

    def buffer_updated(self, size: int) -> None:
        end = _ALIGNED + size
        key = fresh_key(self._ws.is_client)
        head = header(BINARY, size, key)
        mask(self._memory[_ALIGNED:end], key)
        begin = _ALIGNED - len(head)
        self._memory[begin:_ALIGNED] = head
        self._ws.write(self._memory[begin:end])

    def eof_received(self) -> None:
        self._ws.end()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._ws.end()


class WebSocketEnd(_End):
    """The WebSocket. Takes the transport over from the protocol that has shaken hands on it, at
    once and for good; that one is told of its end.

    Args:
        transport: On which nothing has come yet but the handshake.
        is_client: Whether this side has asked for it.
        on_first: Called as soon as there is a message, before any of it is passed on.

    Attributes:
        ended: Done as soon as either connection has ended, or is to end.
        close_code: Why the other side has closed it, in its words; None until it has.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        is_client: bool,
        on_first: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._on_first = on_first
        self.is_client = is_client
        self.close_code: int | None = None
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.heard: asyncio.Future[None] = loop.create_future()  # a message has come
        self.answered: asyncio.Future[None] = loop.create_future()  # its CLOSE has, or the end
        self._frames = Frames(masked=not is_client, largest=MAX_FRAME)
        self._early = bytearray()  # what has come before there is a link
        self._pong: bytes | None = None  # what is to be said of the last ping
        self._has_closed = False
        self._before: Any = transport.get_protocol()
        self.connection_made(transport)
        transport.set_protocol(self)
        _give_up_after(transport, DEAF_TIME)
        transport.resume_reading()
        if transport.is_closing():  # it may have told so to the one before
            self.end()

    async def first(self, seconds: float) -> bytes:
        """The first bytes, or none if there are none by then. They go to the link all the same."""
        await asyncio.wait((self.heard, self.ended), timeout=seconds, return_when=FIRST_COMPLETED)
        return bytes(self._early)

    def join(self, link: LinkEnd) -> None:
        """That one gets what has come, and what comes."""
        self.other = link
        if self._early:
            link.write(bytes(self._early))
        self.look()

    def end(self) -> None:
        """The two are to be closed."""
        if not self.ended.done():
            self.ended.set_result(None)

    # --- what comes -------------------------------------------------------------------------------

    def get_buffer(self, _: int) -> memoryview:
        if due := self._frames.due:
            return self._memory[_ALIGNED : _ALIGNED + min(due, PIECE)]
        return self._memory[_ALIGNED - LARGEST_HEADER :]

    def buffer_updated(self, size: int) -> None:
        begin = _ALIGNED if self._frames.due else _ALIGNED - LARGEST_HEADER
        try:
            for part in self._frames.take(self._memory[begin : begin + size]):
                if isinstance(part, Control):
                    self._controlled(part)
                else:
                    self._payload(part)
        except RemoteProtocolError as error:
            logger.info("a WebSocket is closed: %s", error)
            self._say_close(PROTOCOL_ERROR)
            self.close_code = PROTOCOL_ERROR  # what comes now is not waited for, and not read
            self._transport.pause_reading()
            self.end()

    def _payload(self, part: memoryview) -> None:
        if self.ended.done():
            return
        if not self.heard.done():
            self.heard.set_result(None)
            self._on_first()
        if self.other is not None:
            self.other.write(part)
        else:
            self._early += part
            self._transport.pause_reading()

    def _controlled(self, frame: Control) -> None:
        if frame.opcode == PING:
            self._pong = frame.payload
            if not self.is_full:
                self._say_pong()
        elif frame.opcode == CLOSE:
            code = int.from_bytes(frame.payload[:2], "big")
            self.close_code = code or NO_CODE
            self._answer()
            self._say_close(code)
            self.end()

    def _answer(self) -> None:
        if not self.answered.done():
            self.answered.set_result(None)

    def eof_received(self) -> None:
        self.end()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._answer()
        self.end()
        self._before.connection_lost(error)

    # --- what is said -----------------------------------------------------------------------------

    def resume_writing(self) -> None:
        super().resume_writing()
        self._say_pong()

    def _say_pong(self) -> None:
        # Of many pings the last is answered, once there is room: they fill no memory.
        payload, self._pong = self._pong, None
        if payload is not None and not self._has_closed:
            self.write(control(PONG, payload, self.is_client))

    def ping(self) -> None:
        if not self.is_full:  # or it is not silent
            self.write(control(PING, b"", self.is_client))

    def _say_close(self, code: int) -> None:
        if not self._has_closed:
            self._has_closed = True
            payload = code.to_bytes(2, "big") if code else b""
            self.write(control(CLOSE, payload, self.is_client))

    async def goodbye(self, code: int = NORMAL) -> None:
        """Say that code and close it, as soon as the other side has said so too."""
        self.end()
        self._say_close(code)
        self.other = None
        try:
            if self.close_code is None and not self._transport.is_closing():
                self._transport.resume_reading()
                await asyncio.wait((self.answered,), timeout=CLOSE_TIME)
        finally:
            await self.close()


async def relay(
    ws: WebSocketEnd, link: LinkEnd, leaving: Callable[[], None] = lambda: None
) -> None:
    """Wait until either side ends; then close both.

    Args:
        ws: The one,
        link: and the other.
        leaving: Called before `link` is closed: who dialled asks why at once.
    """
    try:
        while not ws.ended.done():
            await asyncio.wait((ws.ended,), timeout=KEEP_OPEN)
            ws.ping()
    finally:
        leaving()
        try:
            await link.close()
        finally:
            await ws.goodbye()


def _give_up_after(transport: asyncio.Transport, seconds: float) -> None:
    """Have the system end a connection whose other machine is gone: pings remain unacknowledged.
    Where it cannot be told so, that takes it a quarter of an hour."""
    with contextlib.suppress(AttributeError, OSError):
        option = socket.TCP_USER_TIMEOUT
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, option, int(seconds * 1000)
        )
