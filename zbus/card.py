"""A ComfyUI's card: what its page tells of its peer, who it is and where it listens.

What comes is a stranger's word until the key in it has been proved. Blocks, each time for a bounded
while: call it off the I/O thread.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import TimeoutError as FutureTimeout  # not the builtin one before 3.11
from dataclasses import dataclass, field
from typing import Any

from . import webproxy
from .address import Address, is_loopback_host, parse_dial, parse_page
from .errors import (
    CERTIFICATE,
    FetchError,
    InputError,
    TimedOut,
    UnknownPeer,
    Unreachable,
    ZBusError,
)
from .in_a_thread import begun
from .keys import from_text
from .printable import shown

CARD = "/zbus/peer"  # where a ComfyUI tells who its peer is
CARD_LIMIT = 64 * 1024
PATIENCE = 40.0  # seconds for the whole answer: a process can be deaf for half a minute,
CONNECT_TIME = 5.0  # but not its machine
REACH = "Look whether that ComfyUI runs, whether its tunnel stands, and the port"
MAX_NAME = 80  # characters, as in HELLO
MAX_ADDRESS = 300
MAX_ENDPOINTS = 8
MAX_URL = 150  # characters of one that a text shows

INSTALL = (
    "Install zbus there (in its custom_nodes folder: git clone this pack's repository; then "
    "pip install -r requirements.txt in its Python) and restart that ComfyUI"
)
LOGIN = (
    "Give a user and password in the URL: https://USER:PASSWORD@HOST; or an address that leads to "
    "ComfyUI itself, as an SSH tunnel to its port does"
)
AROUND = (
    "A browser's login does not count here: give an address that leads to ComfyUI itself, as an "
    "SSH tunnel to its port does"
)
PROXY_LOGIN = (
    "Write it into HTTP_PROXY or HTTPS_PROXY, http://USER:PASSWORD@PROXY:PORT; or put this host "
    "into NO_PROXY"
)
LATER = "Try again in a minute"


@dataclass(frozen=True)
class Card:
    """What a ComfyUI tells of its peer.

    Attributes:
        instance: Its id, as 32 hexadecimal digits.
        key: Its public key.
        name: What it calls itself; and
        version: the version of its zbus; in its own words, for people, or "".
        endpoints: Where its own listener is, on its own machine.
        lan: Whether that listener is open to its network too.
        ws: Whether its page leads there (the WebSocket lane).
    """

    instance: str
    key: bytes
    name: str
    version: str
    endpoints: tuple[Address, ...]
    lan: bool
    ws: bool


@dataclass(frozen=True)
class Page:
    """The page of a ComfyUI, which tells where its peer listens.

    Attributes:
        url: Without user, password, query and fragment: texts may show it.
        address: Of the WebSocket lane there, with what a login needs.
        is_loopback: Whether it is on this machine.
    """

    url: str
    address: Address
    is_loopback: bool
    _login: str = field(default="", repr=False)

    def __str__(self) -> str:
        return shown(self.url, MAX_URL)

    def ask(self, timeout: float = PATIENCE) -> Card:
        """The peer of that ComfyUI.

        Raises:
            Unreachable, TimedOut: Nothing answers.
            UnknownPeer: What answers has no zbus.
            FetchError: The answer cannot be used.
        """
        try:
            # A socket's own time limit starts anew with each byte that comes: it bounds no whole.
            body = begun(lambda: self._get(timeout)).result(timeout)
        except (FutureTimeout, TimeoutError) as error:
            raise TimedOut(
                f"no answer in {timeout:g} s",
                peer=str(self),
                remedy="That ComfyUI hangs or is very busy: look at its console, then try again",
            ) from error
        return self._card(body)

    def _get(self, timeout: float) -> bytes:
        request = urllib.request.Request(self.url + CARD, headers={"User-Agent": "zbus-ping"})
        if self._login:
            request.add_header("Authorization", f"Basic {self._login}")
        scheme = self.url.partition(":")[0]
        proxy = webproxy.by_environment(scheme, self.address.host, self.address.port)
        through = urllib.request.ProxyHandler({scheme: proxy} if proxy else {})
        try:
            if proxy is None:
                self._look(min(timeout, CONNECT_TIME))
            opener = urllib.request.build_opener(_NoRedirect(), through)
            with opener.open(request, timeout=timeout) as reply:
                body: bytes = reply.read(CARD_LIMIT + 1)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refused(error.code, error.headers.get("Location") or "") from error
        except OSError as error:
            raise self._unreachable(error) from error
        except (ValueError, http.client.HTTPException) as error:
            raise self._strange("no web server answers there") from error
        if len(body) > CARD_LIMIT:
            raise self._strange(f"more than {CARD_LIMIT // 1024} KiB where its card should be")
        return body

    def _look(self, timeout: float) -> None:
        """Whether somebody listens there at all."""
        try:
            socket.create_connection((self.address.host, self.address.port), timeout).close()
        except TimeoutError as error:
            what = f"nobody answers there: no connection in {timeout:g} s"
            raise Unreachable(what, peer=str(self), remedy=REACH) from error

    def _refused(self, status: int, leads_to: str) -> ZBusError:
        if 300 <= status < 400:
            return self._redirected(status, leads_to)
        if status in (401, 403):
            what, remedy = f"wants a login ({status})", LOGIN
        elif status == 407:
            what, remedy = "the proxy that the environment names wants a login (407)", PROXY_LOGIN
        elif status == 429:
            what, remedy = f"has had too many requests and takes none for a while ({status})", LATER
        elif status >= 500:
            remedy = "Look at that ComfyUI's console, or whether its tunnel or proxy stands"
            what = f"fails there ({status})"
        else:
            return self._no_zbus(f"no zbus there, or an older one ({status})")
        return FetchError(what, peer=str(self), remedy=remedy)

    def _redirected(self, status: int, leads_to: str) -> FetchError:
        """Where the same page is elsewhere, that is told. Anything else is a login as a rule; a
        browser that is logged in shows the very URL that was given here."""
        there = _without_secrets(self.url + CARD, leads_to) if leads_to else ""
        base = there.removesuffix(CARD)
        if base not in (there, self.url):
            what, remedy = f"redirects elsewhere ({status})", f"Give {base} in its place"
        else:
            to = f" to {shown(there, MAX_URL)}" if there else ""
            what, remedy = f"redirects{to} ({status}): a login seems to be wanted there", AROUND
        return FetchError(what, peer=str(self), remedy=shown(remedy, 2 * MAX_URL))

    def _unreachable(self, error: OSError) -> Exception:
        why: Any = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(why, TimeoutError):
            return why  # of one step: `ask` says the same of it as of the whole
        if isinstance(why, ssl.SSLCertVerificationError):
            said = f"its certificate is not trusted here: {shown(why.verify_message, 100)}"
            return Unreachable(said, peer=str(self), remedy=CERTIFICATE)
        refused = isinstance(why, ConnectionRefusedError)
        words = shown(str(getattr(why, "strerror", None) or why).lower(), 200)
        return Unreachable(
            "nobody listens there: connection refused" if refused else words,
            peer=str(self),
            remedy=REACH,
        )

    def _no_zbus(self, what: str) -> UnknownPeer:
        return UnknownPeer(what, peer=str(self), remedy=INSTALL)

    def _strange(self, what: str) -> FetchError:
        remedy = "Check that the URL is the one of ComfyUI's page, for example http://HOST:8188"
        return FetchError(what, peer=str(self), remedy=remedy)

    def _card(self, body: bytes) -> Card:
        try:
            told: Any = json.loads(body)
        except (ValueError, RecursionError):
            told = None
            if body.lstrip()[:1] == b"<":  # a ComfyUI without zbus has no page there at all
                what = "shows a page of its own where zbus should answer: a login may be wanted"
                raise FetchError(what, peer=str(self), remedy=AROUND) from None
        told = told if isinstance(told, dict) else {}
        instance, name, version = told.get("id"), told.get("name"), told.get("version")
        if not isinstance(instance, str) or not re.fullmatch("[0-9a-f]{32}", instance):
            raise self._no_zbus("what answers there is no zbus")
        key, endpoints = _key(told.get("key")), _usable(told.get("endpoints"))
        if not endpoints:
            raise FetchError(
                "has zbus, which listens nowhere",
                peer=str(self),
                remedy="Its listener could not be opened: look at that ComfyUI's console",
            )
        if not key:
            raise self._no_zbus("has an older zbus, without keys")
        return Card(
            instance,
            key,
            shown(name, MAX_NAME) if isinstance(name, str) else "",
            shown(version, 40) if isinstance(version, str) else "",
            endpoints,
            told.get("lan") is True,
            told.get("ws") is True,
        )


def page(written: str) -> Page:
    """The page at a URL.

    Raises:
        InvalidAddress: It is no http or https URL. The text holds no password.
    """
    address = parse_page(written)
    parts = urllib.parse.urlsplit(address.url)
    host = f"[{address.host}]" if ":" in address.host else address.host
    where = host if parts.port is None else f"{host}:{parts.port}"
    path = urllib.parse.quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    login = ""
    if parts.username is not None:
        user, password = (urllib.parse.unquote(p or "") for p in (parts.username, parts.password))
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
    is_loopback = is_loopback_host(address.host)
    return Page(f"{parts.scheme.lower()}://{where}{path}", address, is_loopback, login)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An answer that leads elsewhere is an answer: a login must not go there too. Nor is the
    place looked at, which need not be well written."""

    def http_error_302(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any
    ) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _without_secrets(base: str, location: str) -> str:
    """Where that leads, without user, password, query and fragment; "" if to no page."""
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(urllib.parse.urljoin(base, location))
        host = parts.netloc.rpartition("@")[2]
        if parts.scheme in ("http", "https") and host:
            return f"{parts.scheme}://{host}{parts.path}"
    return ""


def _key(told: object) -> bytes:
    with contextlib.suppress(InputError):
        return from_text(told) if isinstance(told, str) else b""
    return b""


def _usable(endpoints: object) -> tuple[Address, ...]:
    found = []
    for endpoint in endpoints[:MAX_ENDPOINTS] if isinstance(endpoints, list) else ():
        if isinstance(endpoint, str) and len(endpoint) <= MAX_ADDRESS and endpoint.isprintable():
            with contextlib.suppress(InputError):
                found.append(parse_dial(endpoint))
    return tuple(found)
