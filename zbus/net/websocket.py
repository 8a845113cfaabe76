"""The WebSocket lane: the bytes of a connection through the HTTP port of a ComfyUI.

Where only ComfyUI's page can be reached (an HTTP proxy, a tunnel of 8188 alone), zbus dials a port
on this machine's loopback; each connection there opens one WebSocket to ``<page>/zbus/ws``, and
the ComfyUI behind it connects that to its own CURVE listener. Both ends pass bytes on and nothing
more: encrypted and proved by keys from end to end, which the lane itself has no part in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import webproxy
from ..errors import (
    CERTIFICATE,
    ConnectError,
    InvalidAddress,
    NameNotResolved,
    NobodyBehind,
    NotZBus,
    Unreachable,
)
from ..in_time import in_time
from ..protocol.fields import clip

if TYPE_CHECKING:  # where aiohttp is not installed, all but the lane works
    import aiohttp
    from aiohttp import web
    from yarl import URL

logger = logging.getLogger(__name__)

PATH = "zbus/ws"  # below the address of a ComfyUI's page
PIECE = 1 << 18  # bytes of one message
TURN = 1 << 20  # bytes after which others have their turn
MAX_MESSAGE = 1 << 20  # bytes that are taken of one
KEEP_OPEN = 25.0  # seconds between pings: many a proxy cuts what is silent for 60
DEAF_TIME = 120.0  # seconds of unacknowledged bytes: as `transport`
CONNECT_TIME = 15.0  # seconds until a WebSocket must stand
CLOSE_TIME = 2.0  # seconds for its goodbye
MAX_RELAYS = 16  # at once on a lane: one is used, the others are dials that are about to end
NOT_LISTENING = 1013  # the code a WebSocket is closed with where there is no listener behind it

STAGE = "WebSocket lane"
EXAMPLE = 'Write it in full, for example "https://host.example/comfy"'
CHECK = "Check the address, and that ComfyUI runs there"
INSTALL = (
    "Install zbus in that ComfyUI and restart it; and give the address that its page has, "
    "with the path"
)
UPGRADE = (
    "What stands before that ComfyUI must pass WebSockets on (nginx: proxy_http_version 1.1, and "
    'the headers "Upgrade" and "Connection")'
)
LOGIN = "Write the login into the address: https://user:password@host/"
LATER = "It is tried again; if it stays, look for peers that redial all the time"


def open_lane(url: str) -> Lane:
    """Make a ComfyUI dialable of which only the page can be reached. Returns at once: whether it
    is there shows when the lane's port is dialled.

    Args:
        url: The page's, http or https. A user and password in it are sent as basic
            authentication and, like a query, shown nowhere.

    Raises:
        InvalidAddress: That is no such URL.
        ConnectError: aiohttp is not installed.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise ConnectError(
            "a web address needs aiohttp, which is not installed",
            stage=STAGE,
            remedy="Install it (pip install aiohttp), or give a host:port",
        ) from None
    return Lane(_page(url))


class Lane:
    """A port on this machine's loopback that leads to another ComfyUI's own listener. Made by
    `open_lane`.

    Attributes:
        port: Where to dial, on 127.0.0.1.
        problem: Why the last connection came to nothing; None before there was one, and once
            the other side has answered.
    """

    def __init__(self, page: URL) -> None:
        self.problem: ConnectError | None = None
        self._page = page
        self._server = socket.create_server(("127.0.0.1", 0), backlog=MAX_RELAYS)
        self._server.setblocking(False)
        self.port = int(self._server.getsockname()[1])
        _the_loop().call_soon_threadsafe(self._start)

    def close(self) -> None:
        """End it and all that goes through it. For any thread; does not wait for the end."""
        _the_loop().call_soon_threadsafe(lambda: self._serving.cancel())

    # --- on the loop

    def _start(self) -> None:
        self._serving = asyncio.ensure_future(self._serve())
        self._serving.add_done_callback(self._ended)

    def _ended(self, serving: asyncio.Task[None]) -> None:
        self._server.close()
        if not serving.cancelled():
            logger.error("%s: it ended by a fault", STAGE, exc_info=serving.exception())

    async def _serve(self) -> None:
        import aiohttp

        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=CONNECT_TIME),
            trace_configs=[_no_redirects()],
        ) as session:
            await self._accept_all(session)

    async def _accept_all(self, session: aiohttp.ClientSession) -> None:
        # Not aiohttp's own, which is as old as its import: SSL_CERT_FILE may be newer.
        tls = ssl.create_default_context() if self._page.scheme == "https" else True
        relays: set[asyncio.Task[None]] = set()
        try:
            while True:
                link = await self._accept()
                if len(relays) >= MAX_RELAYS:
                    link.close()
                    continue
                relay = asyncio.ensure_future(self._pass_on(session, tls, link))
                relays.add(relay)
                relay.add_done_callback(relays.discard)
        finally:
            self._server.close()  # nobody new while these end
            await _end(relays)

    async def _accept(self) -> socket.socket:
        while True:
            try:
                link, _ = await asyncio.get_running_loop().sock_accept(self._server)
            except OSError as error:  # too many open files; some will be closed
                logger.warning("%s: %s", STAGE, error)
                await asyncio.sleep(1.0)
            else:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return link

    async def _pass_on(
        self, session: aiohttp.ClientSession, tls: ssl.SSLContext | bool, link: socket.socket
    ) -> None:
        import aiohttp

        answered = False

        def heard() -> None:
            nonlocal answered
            answered, self.problem = True, None

        with contextlib.closing(link):
            try:
                ws = await session.ws_connect(
                    (self._page / PATH).with_query(self._page.query),
                    proxy=_proxy(self._page),
                    ssl=tls,
                    max_msg_size=MAX_MESSAGE,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIME),
                )
            except ConnectError as error:
                self.problem = error
                return
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError, _Redirected) as error:
                self.problem = _explained(error, self._page)
                return

            def leaving() -> None:
                if not answered:
                    self.problem = _unanswered(ws.close_code, self._page)

            await relay(ws, link, heard, leaving)


def _proxy(page: URL) -> str | None:
    return webproxy.by_environment(page.scheme, page.host or "", page.port or 0)


# --- passing on, at both ends ---------------------------------------------------------------------


async def relay(
    ws: aiohttp.ClientWebSocketResponse | web.WebSocketResponse,
    link: socket.socket,
    heard: Callable[[], None] = lambda: None,
    leaving: Callable[[], None] = lambda: None,
) -> None:
    """Pass bytes on, both ways, until either side ends; then both are closed.

    Holds a few pieces at most: a side that reads slowly slows the other down.

    Args:
        ws: An open WebSocket.
        link: A connected socket that does not block.
        heard: Called for each message that comes by the WebSocket.
        leaving: Called before `link` is closed: who dialled asks why at once.
    """
    _give_up_after(ws, DEAF_TIME)
    work = (_from_link(link, ws), _to_link(ws, link, heard), _keep_open(ws))
    parts = {asyncio.ensure_future(part) for part in work}
    try:
        await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Not before they have let go of the socket: its number may be another's at once.
        await _end(parts)
        leaving()
        link.close()
        await _close(ws)


def _give_up_after(ws: Any, seconds: float) -> None:
    """Have the system end a connection whose other machine is gone: pings remain unacknowledged.
    Where it cannot be told so, that takes it a quarter of an hour."""
    with contextlib.suppress(AttributeError, OSError):
        option = socket.TCP_USER_TIMEOUT
        ws.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


async def _from_link(link: socket.socket, ws: Any) -> None:
    loop, passed = asyncio.get_running_loop(), 0
    while piece := await loop.sock_recv(link, PIECE):
        await ws.send_bytes(piece)
        # Neither of the two gives way to others while both sides are fast, and on a server's loop
        # there are others. Not at each piece: a turn of the loop costs as much as the bytes.
        passed += len(piece)
        if passed >= TURN:
            passed = 0
            await asyncio.sleep(0)


async def _to_link(ws: Any, link: socket.socket, heard: Callable[[], None]) -> None:
    from aiohttp import WSMsgType

    loop = asyncio.get_running_loop()
    while (message := await ws.receive()).type is WSMsgType.BINARY:
        heard()
        await loop.sock_sendall(link, message.data)


async def _keep_open(ws: Any) -> None:
    # Not aiohttp's heartbeat, which cuts where no pong comes for half its time: a process that
    # loads a model, or a side that reads slowly, may well be silent for longer.
    while True:
        await asyncio.sleep(KEEP_OPEN)
        await ws.ping()


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception) and not isinstance(result, OSError):
            logger.warning("%s: a connection ended by a fault", STAGE, exc_info=result)


async def _close(ws: Any) -> None:
    end = ws.get_extra_info("socket")  # afterwards it is not told any more
    try:
        await in_time(ws.close(), CLOSE_TIME)
    except (asyncio.TimeoutError, OSError):
        # What is not taken yet never will be: without this the socket would wait for it.
        with contextlib.suppress(AttributeError, OSError):
            end.shutdown(socket.SHUT_RDWR)


# --- the loop -------------------------------------------------------------------------------------

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _the_loop() -> asyncio.AbstractEventLoop:
    """The one for all lanes of this process, in a thread of its own."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="zbus-lanes", daemon=True).start()
        return _loop


# --- the address ----------------------------------------------------------------------------------


def _page(written: str) -> URL:
    from yarl import URL

    try:
        page = URL(written.strip())
        usable = page.scheme in ("http", "https") and bool(page.host) and bool(page.port)
    except ValueError:
        usable = False
    if not usable:  # not shown: what cannot be taken apart may hold a password
        raise InvalidAddress("that is no address of a web page", stage=STAGE, remedy=EXAMPLE)
    return page


def _shown(url: URL) -> str:
    """Without user, password, query and fragment."""
    return clip(url.with_user(None).with_query(None).with_fragment(None).human_repr(), 150)


# --- what has gone wrong --------------------------------------------------------------------------


class _Redirected(Exception):
    """The answer names another address, which is not followed: a login would go along."""


def _no_redirects() -> aiohttp.TraceConfig:
    import aiohttp

    async def stop(_: object, __: object, asked: aiohttp.TraceRequestRedirectParams) -> None:
        asked.response.close()
        raise _Redirected(asked.response.headers.get("Location", ""))

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(stop)
    return config


_ANSWERS: dict[int, tuple[type[ConnectError], str, str]] = {
    400: (NotZBus, "what answers there takes no WebSocket", UPGRADE),
    401: (ConnectError, "it wants a login, or another one", LOGIN),
    403: (ConnectError, "it is forbidden there", LOGIN),
    404: (NotZBus, "there is no zbus", INSTALL),
    426: (NotZBus, "what answers there takes no WebSocket", UPGRADE),
    429: (ConnectError, "too many connections are open or tried there", LATER),
    502: (Unreachable, "the proxy there does not reach ComfyUI", CHECK),
    503: (NobodyBehind, "the ComfyUI there takes no peers now", CHECK),
    504: (Unreachable, "the proxy there does not reach ComfyUI", CHECK),
}


def _explained(error: Exception, page: URL) -> ConnectError:
    """What it means that there is no WebSocket. aiohttp's own texts can hold the login."""
    import aiohttp

    if isinstance(error, aiohttp.WSServerHandshakeError):
        other = (NotZBus, "what answers there takes no WebSocket", UPGRADE)
        kind, what, remedy = _ANSWERS.get(error.status, other)
        return kind(f"{what} ({error.status})", peer=_shown(page), stage=STAGE, remedy=remedy)
    kind, what, remedy = _unreachable(error, page)
    return kind(what, peer=_shown(page), stage=STAGE, remedy=remedy)


def _unreachable(error: Exception, page: URL) -> tuple[type[ConnectError], str, str]:
    import aiohttp

    if isinstance(error, _Redirected):
        return NotZBus, "it redirects", _redirect_remedy(str(error), page)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or "it cannot be verified"
        return ConnectError, f"its certificate is not trusted here: {clip(why, 100)}", CERTIFICATE
    if isinstance(error, aiohttp.ClientSSLError):
        return ConnectError, "no secure connection (TLS)", "Check whether it is https or http"
    if isinstance(error, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)):
        said = "the proxy that the environment names did not let it through"
        return Unreachable, said, "Check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, socket.gaierror):
            return NameNotResolved, f"the name {page.host} is not known", "Check its spelling"
        refused = isinstance(error.os_error, ConnectionRefusedError)
        why = "connection refused" if refused else os.strerror(error.os_error.errno or 0).lower()
        return Unreachable, f"no connection ({why})", CHECK
    if isinstance(error, asyncio.TimeoutError):
        return Unreachable, f"no answer within {CONNECT_TIME:g} s", CHECK
    if isinstance(error, (aiohttp.ServerConnectionError, aiohttp.ClientOSError)):
        return NobodyBehind, "it accepts, and closes without an answer", CHECK
    return NotZBus, "what answers there is not HTTP", CHECK


def _redirect_remedy(target: str, page: URL) -> str:
    from yarl import URL

    with contextlib.suppress(ValueError):
        there = page.join(URL(target))
        base = there.raw_path.removesuffix(PATH)
        if base != there.raw_path:
            return f"Give {_shown(there.with_path(base, encoded=True))} in its place"
    return "Is a login wanted there? Give an address that leads to ComfyUI itself"


def _unanswered(code: int | None, page: URL) -> ConnectError:
    what = "the WebSocket stood, but nothing came through it"
    if code == NOT_LISTENING:
        what = "zbus there does not listen now"
    return NobodyBehind(what, peer=_shown(page), stage=STAGE, remedy=CHECK)
