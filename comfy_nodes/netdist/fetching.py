"""Pure: HTTP for nodes that take a URL. Whatever a server does, it ends, in bounded memory, and
reaches through us nothing that is nearer than itself.

Errors show a URL without its user, password and query: those may hold secrets. The exceptions of
aiohttp hold them as well, so none is chained to ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import aiohttp
from yarl import URL

from zbus import __version__, webproxy
from zbus.errors import FetchError, InvalidAddress, Unreachable, ZBusError
from zbus.in_time import in_time
from zbus.operation import size_text
from zbus.protocol.fields import clip

from .nearness import Nearness
from .resolving import Resolver, TooNear, numeric_form
from .unpacking import PIECE, unpacker
from .urls import EXAMPLE, parsed, redacted, secrets, shown, web_address

LIMIT = 512 << 20  # bytes of an answer, unpacked
MAX_REDIRECTS = 5
MAX_REASON = 200  # characters of what a server says about a failure
CHECK = "Check the URL, and that the server runs"
ITSELF = "If that is meant, give the URL to which it leads"
_HEADERS = {"User-Agent": f"comfyui-bus/{__version__}", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Times:
    """How long to wait, in seconds: for a connection, for the next bytes, and for all of it."""

    connect: float = 10.0
    silence: float = 30.0
    whole: float = 600.0


TIMES = Times()


async def get(url: str, *, limit: int = LIMIT, what: str = "", times: Times = TIMES) -> bytes:
    """The body of what is at that URL, unpacked.

    Args:
        url: http or https. A user and password in it are sent as basic authentication.
        limit: The most bytes to take.
        what: What is being done, for the texts of errors ("loading the picture").
        times: How long to wait.

    Raises:
        InvalidAddress: That is no URL.
        Unreachable: No connection, or no answer in time.
        FetchError: An answer that cannot be used.
    """
    return await _Exchange("GET", web_address(url), None, what, times).run(limit)


async def post_json(url: str, obj: Any, *, what: str = "", times: Times = TIMES) -> None:
    """Post `obj` as JSON. What the server answers to it is not read, unless it is a failure.

    Raises:
        InvalidAddress: That is no URL.
        Unreachable: No connection, or no answer in time.
        FetchError: The server answered with a failure.
    """
    body = json.dumps(obj).encode()
    await _Exchange("POST", web_address(url), body, what, times).run(None)


class _Exchange:
    """One request, and those that redirects make of it."""

    def __init__(self, method: str, url: URL, body: bytes | None, what: str, times: Times) -> None:
        self._method, self._url, self._body = method, url, body
        self._what, self._times = what, times
        self._nearest = Nearness.LOOPBACK  # that may be asked: what the user wrote may be anywhere

    async def run(self, limit: int | None) -> bytes:
        """The answer's body of at most `limit` bytes; None does not read it."""
        try:
            return await in_time(self._follow(limit), self._times.whole)
        except asyncio.TimeoutError:
            said = f"it was not done within {self._times.whole:g} s"
            raise self._unreachable(said) from None

    async def _follow(self, limit: int | None) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            try:
                target, body = await self._ask(limit)
            except (aiohttp.ClientError, OSError) as error:
                raise self._explained(error) from None
            except TooNear as error:
                raise self._unusable(str(error), remedy=ITSELF) from None
            if target is None:
                return body
            self._go_to(target)
        raise self._unusable(f"it redirects more than {MAX_REDIRECTS} times")

    async def _ask(self, limit: int | None) -> tuple[str | None, bytes]:
        """(where it redirects to, body) of one request."""
        headers, data = dict(_HEADERS), None
        if self._body is not None:
            headers["Content-Type"], data = "application/json", BytesIO(self._body)
        host = self._url.host or ""
        proxy = webproxy.by_environment(self._url.scheme, host, self._url.port or 0)
        names = Resolver(self._nearest)
        await self._look_at_once(host, names, proxy is not None)
        async with self._session(Resolver() if proxy else names) as session:
            asked = session.request(
                self._method,
                self._url,
                data=data,
                headers=headers,
                allow_redirects=False,
                proxy=proxy,
            )
            async with asked as response:
                target = response.headers.get("Location")
                if target and response.status in (301, 302, 303, 307, 308):
                    if response.status < 307:  # as browsers do
                        self._method, self._body = "GET", None
                    self._nearest = names.farthest
                    return target, b""
                if response.status >= 300:
                    raise await self._refused(response)
                return None, b"" if limit is None else await self._read(response, limit)

    async def _look_at_once(self, host: str, names: Resolver, is_proxied: bool) -> None:
        """What aiohttp does not ask the resolver for: numeric hosts, and those behind a proxy."""
        numeric = numeric_form(host)
        if numeric:
            names.note([numeric])
        elif is_proxied:
            names.farthest = Nearness.OUTSIDE  # if this computer does not know the name
            with contextlib.suppress(OSError):
                await in_time(names.resolve(host), self._times.connect)

    def _session(self, names: Resolver) -> aiohttp.ClientSession:
        # One a request, since what may be reached depends on who has sent us there.
        wait = aiohttp.ClientTimeout(
            total=None, connect=self._times.connect, sock_read=self._times.silence
        )
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=names), timeout=wait, auto_decompress=False
        )

    def _go_to(self, target: str) -> None:
        try:
            url = self._url.join(parsed(target))
        except ValueError:
            raise self._unusable("it redirects to what is not a URL") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise self._unusable(f'it redirects to "{redacted(target)}", which is not followed')
        if url.user is None and _server(url) == _server(self._url):
            url = url.with_user(self._url.user).with_password(self._url.password)
        self._url = url

    async def _read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        if (response.content_length or 0) > limit:
            raise self._too_large(f"{size_text(response.content_length or 0)} is", limit)
        unpack = unpacker(response.headers.get("Content-Encoding", ""))
        if unpack is None:
            packed = response.headers.get("Content-Encoding", "")
            raise self._unusable(f"the answer is packed as {clip(packed, 30)!r}")
        body = bytearray()
        try:
            async for piece in response.content.iter_chunked(PIECE):
                for part in unpack.feed(piece):
                    body += part
                    if len(body) > limit:
                        raise self._too_large("it is", limit)
        except zlib.error:
            raise self._unusable("the packed answer is damaged") from None
        if not unpack.complete:
            raise self._unusable("the answer ends too early")
        return bytes(body)

    async def _refused(self, response: aiohttp.ClientResponse) -> FetchError:
        reason = _first_line((response.reason or "").encode())
        said = f"the server answered {response.status} {reason}".rstrip()
        line = ""
        if "html" not in response.content_type:  # a page for people, with nothing in its 1st line
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, zlib.error):
                unpack = unpacker(response.headers.get("Content-Encoding", ""))
                packed = await response.content.read(PIECE)
                body = next(unpack.feed(packed), b"") if unpack else b""
                line = _first_line(body)
        for secret in secrets(self._url):
            line = line.replace(secret, "***")
        return self._unusable(f"{said}: {line}" if line else said)

    # --- errors

    def _too_large(self, size: str, limit: int) -> FetchError:
        return self._unusable(f"{size} more than the {size_text(limit)} that are taken")

    def _unusable(self, said: str, remedy: str = "") -> FetchError:
        return FetchError(said, peer=shown(self._url), stage=self._what, remedy=remedy)

    def _unreachable(self, said: str) -> Unreachable:
        return Unreachable(said, peer=shown(self._url), stage=self._what, remedy=CHECK)

    def _explained(self, error: Exception) -> ZBusError:
        """What an exception of aiohttp means."""
        if isinstance(error, aiohttp.InvalidURL):
            return InvalidAddress(f'"{shown(self._url)}" is not a URL', remedy=EXAMPLE)
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return self._unreachable(f"no connection within {self._times.connect:g} s")
        if isinstance(error, asyncio.TimeoutError):
            return self._unreachable(f"the server was silent for {self._times.silence:g} s")
        if isinstance(error, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)):
            return self._unreachable("the proxy that the environment names did not let it through")
        if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError)):
            return self._unreachable("no secure connection (TLS) could be made")
        if isinstance(error, aiohttp.ClientConnectorError):
            if isinstance(error.os_error, socket.gaierror):
                return self._unreachable(f"the name {self._url.host} is not known")
            why = clip(error.os_error.strerror or "", 100) or "nothing answers there"
            return self._unreachable(f"no connection ({why})")
        if isinstance(error, (aiohttp.ServerConnectionError, aiohttp.ClientOSError)):
            return self._unreachable("the connection was closed without an answer")
        if isinstance(error, aiohttp.ClientPayloadError):
            return self._unusable("the answer broke off")
        return self._unusable("the answer is not HTTP")


def _server(url: URL) -> tuple[Any, ...]:
    return url.scheme, url.host, url.port


def _first_line(body: bytes) -> str:
    lines = body.decode("utf-8", "replace").splitlines()
    line = next((line.strip() for line in lines if line.strip()), "")
    return clip("".join(c for c in line if c.isprintable()), MAX_REASON)
