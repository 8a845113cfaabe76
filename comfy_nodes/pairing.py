"""Pairing by ComfyUI's page: what ``zbus-pair`` does in a terminal, as HTTP routes.

Whoever may use them decides whom this user trusts. So they answer this computer's own browser
alone: over a loopback socket, at a loopback name, for no page but ComfyUI's, and where nothing
looks like a proxy, which would bring others to that very socket. Everybody else is sent to the
terminal, and learns nothing.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ipaddress
import json
import logging
import math
import re
import threading
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from aiohttp import web

from zbus.accepting import accept
from zbus.cli import pair as terminal
from zbus.errors import InputError, PairingFailed, ZBusError
from zbus.invitation import LIFETIME
from zbus.inviting import Inviting
from zbus.nudging import nudge
from zbus.principals import EVERY_HOST
from zbus.tokens import Token
from zbus.trust import Principal, Trust

logger = logging.getLogger(__name__)

PATH = "/zbus/pair"
MAX_BODY = 8192  # bytes
BODY_TIME = 10.0  # seconds for all of it
THREADS = 4  # that work for the page at a time
END_TIME = 3.0  # seconds for an invitation to end
USE_TERMINAL = (
    "Here you cannot pair by this page: use the terminal of the computer on which this ComfyUI "
    "runs: zbus-pair --help"
)

# Each verb's fields: those that must be there, and those that may. A field has one type in all.
VERBS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "invite": ((), ("lan", "at", "name")),
    "cancel": ((), ()),
    "accept": (("token",), ("name",)),
    "rename": (("name", "new"), ()),
    "move": (("name", "addresses"), ("peer",)),
    "permit": (("name", "permissions"), ()),
    "forget": (("name",), ()),
    "lan": (("host",), ()),
    "require": (("flag",), ()),
}
FLAGS, LISTS = ("lan", "flag"), ("addresses", "permissions")  # all others are texts

FORWARDED = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip")
FORWARDED_PREFIXES = ("x-forwarded-", "cf-")
LOOPBACK_NAME = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.I)

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Pairing:
    """Answers the requests for `PATH` and what is under it. Each answer is the state of all, as
    ``zbus-pair list --json`` tells it, with the invitation that is or was open; or an "error".

    Args:
        trust: Gives the trust store that this process's peer goes by.
        multi_user: Whether ComfyUI serves several users, who are strangers to each other.
    """

    def __init__(self, trust: Callable[[], Trust], multi_user: bool = False) -> None:
        self._trust, self._multi_user = trust, multi_user
        self._threads = asyncio.Semaphore(THREADS)
        self._offer: _Offer | None = None
        self._offering, self._accepting = threading.Lock(), threading.Lock()
        self._closing = threading.Event()

    def routes(self) -> list[tuple[str, str, Handler]]:
        """What to register: method, path, handler."""
        atexit.register(self.close)
        posts = [("POST", f"{PATH}/{verb}", self._handler(verb)) for verb in VERBS]
        return [("GET", PATH, self._handler("")), *posts]

    def close(self) -> None:
        """End the invitation that is open, and an acceptance under way."""
        self._closing.set()
        if self._offer is not None:
            self._offer.cancel()
        if self._accepting.acquire(timeout=END_TIME):
            self._accepting.release()

    def _handler(self, verb: str) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            why = "--multi-user" if self._multi_user else _why_not(request)
            if why:
                logger.debug("pairing by the page is refused: %s", why)
                return _answer(403, _error("UseTerminal", USE_TERMINAL))
            try:
                given = _fields(verb, await _body(request)) if verb else {}
                async with self._threads:
                    return _answer(200, await _aside(lambda: self._done(verb, given)))
            except ZBusError as error:
                status = 400 if isinstance(error, InputError) else 409
                return _answer(status, _error(type(error).__name__, str(error)))

        return handle

    # --- in a thread of its own -------------------------------------------------------------------

    def _done(self, verb: str, given: dict[str, Any]) -> dict[str, Any]:
        trust = self._trust()
        more: dict[str, Any] = {}
        if verb == "invite":
            more = {"token": self._invite(trust, **given)}
        elif verb == "accept":
            more = {"principal": terminal._as_json(self._accept(trust, **given))}
        elif verb == "cancel":
            if self._offer is not None:
                self._offer.cancel()
        elif verb:
            _change(trust, verb, given)
            nudge(trust)
        return {**self._state(trust), **more}

    def _state(self, trust: Trust) -> dict[str, Any]:
        trust.reload()  # a terminal may have changed it
        return {
            **terminal._own(trust),
            "principals": [terminal._as_json(one) for one in trust.principals()],
            "invitation": self._offer.told() if self._offer is not None else None,
        }

    def _invite(
        self, trust: Trust, lan: bool = False, at: str | None = None, name: str = ""
    ) -> str:
        if lan and at is not None:
            raise InputError('"lan" and "at" are two ways: give one of them')
        with self._offering:
            if self._offer is not None and self._offer.is_open:
                raise PairingFailed("an invitation is open already", remedy="Cancel it first")
            offer = self._offer = _Offer(trust, Namespace(lan=lan, at=at, port=0), name)
        return offer.open()

    def _accept(self, trust: Trust, token: str, name: str = "") -> Principal:
        if not self._accepting.acquire(blocking=False):
            raise PairingFailed("another token is being taken", remedy="Wait for that")
        try:
            own_name = terminal._own_name(all(h.is_loopback for h in Token.read(token).hints))
            paired = accept(trust, token, name=name, own_name=own_name, cancelled=self._closing)
        finally:
            self._accepting.release()
        nudge(trust)
        return paired


def _change(trust: Trust, verb: str, given: dict[str, Any]) -> None:
    if verb == "rename":
        trust.rename(given["name"], given["new"])
    elif verb == "move":
        trust.move(given["name"], given["addresses"], given.get("peer", ""))
    elif verb == "permit":
        trust.permit(given["name"], given["permissions"])
    elif verb == "forget":
        trust.forget(given["name"])
    elif verb == "lan":
        trust.set_lan(given["host"])
    else:
        trust.set_require_pairing(given["flag"])


# --- an invitation --------------------------------------------------------------------------------


class _Offer:
    """One invitation, in a thread of its own, from its token to its end."""

    def __init__(self, trust: Trust, where: Namespace, name: str) -> None:
        self._trust, self._where, self._name = trust, where, name
        self._until = time.monotonic() + LIFETIME
        self._hints: list[str] = []
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None
        self._outcome: Principal | ZBusError | None = None
        self._confirmed = False

    @property
    def is_open(self) -> bool:
        return self._outcome is None

    def open(self) -> str:
        """Begin to wait; returns the token, which is told this once.

        Raises:
            ZBusError: It cannot be opened.
        """
        token: Future[str] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(token,), name="zbus-inviting", daemon=True
        )
        self._thread.start()
        return token.result()

    def cancel(self) -> None:
        """End it if it waits, and wait for that."""
        self._cancelled.set()
        if self._thread is not None:
            self._thread.join(END_TIME)

    def told(self) -> dict[str, Any]:
        """How it stands. Nothing secret."""
        if isinstance(self._outcome, Principal):
            paired = terminal._as_json(self._outcome)
            return {"state": "paired", "principal": paired, "confirmed": self._confirmed}
        if self._outcome is not None:
            return {
                "state": "failed",
                **_error(type(self._outcome).__name__, str(self._outcome)),
            }
        left = max(0, math.ceil(self._until - time.monotonic()))
        return {"state": "waiting", "seconds_left": left, "hints": self._hints}

    def _run(self, token: Future[str]) -> None:
        outcome: Principal | ZBusError
        try:
            outcome = self._served(token)
        except ZBusError as error:
            outcome = error
        except Exception:
            logger.exception("an invitation to pair ended")
            outcome = PairingFailed("something unforeseen happened: ComfyUI's log says what")
        self._outcome = outcome
        if isinstance(outcome, ZBusError) and not token.done():
            token.set_exception(outcome)

    def _served(self, token: Future[str]) -> Principal:
        where, trust = self._where, self._trust
        is_public = where.lan or (where.at is not None and not terminal._is_own_loopback(where.at))
        with _in_network(trust, is_public):
            reach, own_name = terminal._reach(where, trust), terminal._own_name(not is_public)
            with Inviting(trust, reach, self._name, own_name) as inviting:
                self._until = time.monotonic() + LIFETIME
                self._hints = [str(hint) for hint in Token.read(inviting.token).hints]
                token.set_result(inviting.token)
                paired = inviting.serve(self._cancelled)
                self._confirmed = inviting.confirmed
        nudge(trust)
        return paired


@contextlib.contextmanager
def _in_network(trust: Trust, wanted: bool) -> Iterator[None]:
    """This user's ComfyUIs listen in the network if that is wanted; no longer if what is under it
    fails, and they did not before."""
    opened = wanted and not trust.lan
    if opened:
        trust.set_lan(EVERY_HOST)
        nudge(trust)
    try:
        yield
    except BaseException:
        if opened:
            trust.set_lan("")
            nudge(trust)
        raise


# --- requests -------------------------------------------------------------------------------------


def _why_not(request: web.Request) -> str:
    """Why a request may be of somebody else than this computer's own user at ComfyUI's own page;
    "" if it is not. The words hold nothing that the request says."""
    headers = request.headers
    if not all(_is_loopback(request.get_extra_info(end)) for end in ("peername", "sockname")):
        return "not over the loopback"
    for name in map(str.lower, headers):
        if name in FORWARDED or name.startswith(FORWARDED_PREFIXES):
            return "it came through a proxy"
    hosts, origins = headers.getall("Host", []), headers.getall("Origin", [])
    if len(hosts) != 1 or not LOOPBACK_NAME.fullmatch(hosts[0]):
        return "the address in the browser is not this computer's own"  # DNS can lead it here
    if any(origin.lower() != f"{request.scheme}://{hosts[0].lower()}" for origin in origins):
        return "it is of another page"
    # Without asking first, a browser lets other pages send forms and texts, but not this.
    if request.method == "POST" and request.content_type != "application/json":
        return "it is not JSON"
    return ""


def _is_loopback(end: Any) -> bool:
    """Whether that end of a socket is the loopback's; of no other family than IP's."""
    try:
        host = str(end[0]).removeprefix("::ffff:") if isinstance(end, (tuple, list)) else ""
        return ipaddress.ip_address(host).is_loopback
    except (ValueError, IndexError):
        return False


async def _body(request: web.Request) -> Any:
    """The JSON in it.

    Raises:
        InputError: There is none, it is too large, or does not come.
    """
    try:
        data = await asyncio.wait_for(_read(request), BODY_TIME)
        return json.loads(data)
    except asyncio.TimeoutError:
        raise InputError("the rest of the request did not come") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the request is not JSON") from None


async def _read(request: web.Request) -> bytes:
    data = b""
    async for piece in request.content.iter_any():
        data += piece
        if len(data) > MAX_BODY:
            raise InputError(f"the request is larger than {MAX_BODY} bytes")
    return data


def _fields(verb: str, body: Any) -> dict[str, Any]:
    """The verb's fields, of the right types.

    Raises:
        InputError: The body has others, or lacks one.
    """
    needed, optional = VERBS[verb]
    if not isinstance(body, dict) or not set(needed) <= set(body) <= {*needed, *optional}:
        raise InputError(
            f"{verb} takes a JSON object with: {', '.join(needed) or 'nothing'}"
            + (f"; and if you like: {', '.join(optional)}" if optional else "")
        )
    for name, value in body.items():
        if not _fits(name, value):
            kind = "true or false" if name in FLAGS else "texts" if name in LISTS else "a text"
            raise InputError(f'"{name}" is {kind}')
    return body


def _fits(name: str, value: Any) -> bool:
    if name in FLAGS:
        return isinstance(value, bool)
    if name in LISTS:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return isinstance(value, str)


def _error(kind: str, text: str) -> dict[str, Any]:
    return {"error": {"class": kind, "text": text}}


def _answer(status: int, values: dict[str, Any]) -> web.Response:
    return web.json_response(values, status=status, headers={"Cache-Control": "no-store"})


async def _aside(work: Callable[[], T]) -> T:
    """What `work` returns or raises, in a thread that nobody waits for: the end of a prompt waits
    for those of asyncio's own pool."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="zbus-pairing", daemon=True).start()
    return await asyncio.wrap_future(future)
