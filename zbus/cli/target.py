"""Who the TARGET of a command means: "host:port", a peer's name, or the URL of a ComfyUI's page."""

from __future__ import annotations

import base64
import http.client
import json
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # not the builtin one before 3.11
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .. import discovery
from ..address import EXAMPLE, Address, parse_dial
from ..errors import FetchError, InvalidAddress, TimedOut, UnknownPeer, Unreachable, ZBusError
from .report import shown

CARD = "/zbus/peer"  # where a ComfyUI tells who its peer is
CARD_LIMIT = 64 * 1024
PATIENCE = 5.0  # seconds for the whole answer
MAX_NAME = 80  # characters, as in HELLO
MAX_ADDRESS = 300
MAX_URL = 150  # characters of one that a text shows

INSTALL = "Install zbus in that ComfyUI and restart it, or give host:port of a zbus listener"
NOT_RUNNING = "Look whether that ComfyUI still runs, with zbus in it: start it again"
T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A peer to dial.

    Attributes:
        address: Where it listens.
        instance: Who must answer there, as 32 hexadecimal digits; "": whoever does.
        name: What it is called, where that is known before it says so.
        version: Of its zbus, in its own words, or "".
        remedy: What to do where nobody listens there; "": what `probe` says.
    """

    address: Address
    instance: str = ""
    name: str = ""
    version: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.name} at {self.address}" if self.name else str(self.address)


def read(text: str) -> Target | Page:
    """What a person has written.

    Raises:
        UnknownPeer: A name that no peer here has, or more than one.
        InvalidAddress: Not "host:port", or not a URL.
    """
    text = text.strip()
    if "://" in text:
        return page(text)
    try:
        entry = discovery.find(text)
    except UnknownPeer:
        if ":" not in text:
            raise
        return Target(parse_dial(text))
    return Target(parse_dial(entry.address), entry.instance, entry.name, remedy=NOT_RUNNING)


def known() -> str:
    """The peers that a name could mean, for who has named none."""
    entries = discovery.peers()
    if not entries:
        return (
            "which peer? None is known on this machine: start a ComfyUI with zbus here, or give "
            f"the URL of its page or an address. {EXAMPLE}"
        )
    width = max(len(entry.name) for entry in entries)
    lines = [f"  {entry.name:<{width}}  {entry.address}" for entry in entries]
    ask = 'which peer? Give "host:port", the URL of a ComfyUI\'s page, or a name. Known here:'
    return "\n".join([ask, *lines])


# --- a ComfyUI's page ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """The page of a ComfyUI, which tells where its peer listens.

    Attributes:
        url: Without user, password, query and fragment: texts may show it.
        is_loopback: Whether it is on this machine: no proxy is asked then.
    """

    url: str
    is_loopback: bool
    _login: str = field(default="", repr=False)

    def __str__(self) -> str:
        return shown(self.url, MAX_URL)

    def ask(self, timeout: float = PATIENCE) -> Target:
        """The peer of that ComfyUI.

        Raises:
            Unreachable, TimedOut: Nothing answers.
            UnknownPeer: What answers has no zbus.
            FetchError: The answer cannot be used.
        """
        try:
            body = _within(timeout, lambda: self._get(timeout))
        except (FutureTimeout, TimeoutError) as error:
            raise TimedOut(
                f"no answer in {timeout:g} s",
                peer=str(self),
                remedy="That ComfyUI hangs or is very busy: look at its console, then try again",
            ) from error
        return self._target(body)

    def _get(self, timeout: float) -> bytes:
        request = urllib.request.Request(self.url + CARD, headers={"User-Agent": "zbus-ping"})
        if self._login:
            request.add_header("Authorization", f"Basic {self._login}")
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if self.is_loopback:
            handlers.append(urllib.request.ProxyHandler({}))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as reply:
                body: bytes = reply.read(CARD_LIMIT + 1)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refused(error.code) from error
        except OSError as error:
            raise self._unreachable(error) from error
        except (ValueError, http.client.HTTPException) as error:
            raise self._strange("no web server answers there") from error
        if len(body) > CARD_LIMIT:
            raise self._strange(f"more than {CARD_LIMIT // 1024} KiB where its card should be")
        return body

    def _refused(self, status: int) -> ZBusError:
        if 300 <= status < 400:
            remedy = "Give the URL that the browser shows once the page is open"
            return FetchError(f"redirects elsewhere ({status})", peer=str(self), remedy=remedy)
        if status in (401, 403):
            remedy = "Give a user and password in the URL: https://USER:PASSWORD@HOST"
            return FetchError(f"wants a login ({status})", peer=str(self), remedy=remedy)
        if status >= 500:
            remedy = "Look at that ComfyUI's console, or whether its tunnel or proxy stands"
            return FetchError(f"fails there ({status})", peer=str(self), remedy=remedy)
        return self._no_zbus(f"no zbus there, or an older one ({status})")

    def _unreachable(self, error: OSError) -> Exception:
        why: Any = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(why, TimeoutError):
            return why  # of one step: `ask` says the same of it as of the whole
        refused = isinstance(why, ConnectionRefusedError)
        words = shown(str(getattr(why, "strerror", None) or why).lower(), 200)
        return Unreachable(
            "nobody listens there: connection refused" if refused else words,
            peer=str(self),
            remedy="Look whether that ComfyUI runs, whether its tunnel stands, and the port",
        )

    def _no_zbus(self, what: str) -> UnknownPeer:
        return UnknownPeer(what, peer=str(self), remedy=INSTALL)

    def _strange(self, what: str) -> FetchError:
        remedy = "Check that the URL is the one of ComfyUI's page, for example http://HOST:8188"
        return FetchError(what, peer=str(self), remedy=remedy)

    def _target(self, body: bytes) -> Target:
        try:
            card: Any = json.loads(body)
        except (ValueError, RecursionError):
            card = None
        instance, name, version, endpoints = (
            card.get(key) if isinstance(card, dict) else None
            for key in ("id", "name", "version", "endpoints")
        )
        if not isinstance(instance, str) or not re.fullmatch("[0-9a-f]{32}", instance):
            raise self._no_zbus("what answers there is no zbus")
        address = _first_usable(endpoints)
        if address is None:
            raise FetchError(
                "has zbus, which listens nowhere",
                peer=str(self),
                remedy="Jobs are turned off there (ZBUS_JOBS=0), or its listener could not be "
                "opened: look at that ComfyUI's console",
            )
        return Target(
            address,
            instance,
            shown(name, MAX_NAME) if isinstance(name, str) else "",
            shown(version, 40) if isinstance(version, str) else "",
            f"That ComfyUI's zbus is at {address} on its own machine. If its page is reached "
            f"through a tunnel, forward that port too (ssh -L {address.port}:127.0.0.1:"
            f"{address.port} ...)",
        )


def page(written: str) -> Page:
    """The page at a URL.

    Raises:
        InvalidAddress: It is no http or https URL. The text holds no password.
    """
    try:
        parts = urllib.parse.urlsplit(written)
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    except ValueError:
        scheme = host = ""
        port = None
    if scheme not in ("http", "https") or not host or not written.isprintable():
        raise InvalidAddress(
            "that is not the URL of a web page",
            remedy='Write it as "http://host:port", for example "http://127.0.0.1:8188"',
        )
    where = f"[{host}]" if ":" in host else host
    where = where if port is None else f"{where}:{port}"
    path = urllib.parse.quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    login = ""
    if parts.username is not None:
        user, password = (urllib.parse.unquote(p or "") for p in (parts.username, parts.password))
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
    is_loopback = host == "localhost" or Address(host, port or 80).is_loopback
    return Page(f"{scheme}://{where}{path}", is_loopback, login)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An answer that leads elsewhere is an answer: a login must not go there too."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _first_usable(endpoints: object) -> Address | None:
    for endpoint in endpoints if isinstance(endpoints, list) else ():
        if isinstance(endpoint, str) and len(endpoint) <= MAX_ADDRESS and endpoint.isprintable():
            try:
                return parse_dial(endpoint)
            except InvalidAddress:
                continue
    return None


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises. A socket's own time limit starts anew with each byte that
    comes, so it does not bound the whole.

    Raises:
        concurrent.futures.TimeoutError: It takes longer; it goes on alone.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="zbus-page", daemon=True).start()
    return future.result(seconds)
