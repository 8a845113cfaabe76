"""Pairing by ComfyUI's page: what ``zbus-pair`` does in a terminal, as HTTP routes.

Whoever may use them decides whom this user trusts. So they answer this computer's own browser
alone: over a loopback socket, at a loopback name, for no page but ComfyUI's, and where nothing
looks like a proxy, which would bring others to that very socket. Everybody else is sent to the
terminal, and learns nothing.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from aiohttp import web

from zbus.errors import InputError, PairingFailed, ZBusError
from zbus.in_a_thread import in_a_thread
from zbus.in_time import in_time
from zbus.nudging import nudge
from zbus.pairing.accepting import accept
from zbus.pairing.invitation import LIFETIME
from zbus.pairing.inviting import Inviting
from zbus.pairing.offers import Offer, as_json, own_as_json, own_name
from zbus.pairing.tokens import Token
from zbus.trust import Principal, Trust

from .own_browser import why_not

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
        self._invited: _Invited | None = None
        self._inviting, self._accepting = threading.Lock(), threading.Lock()
        self._closing = threading.Event()

    def routes(self) -> list[tuple[str, str, Handler]]:
        """What to register: method, path, handler."""
        atexit.register(self.close)
        posts = [("POST", f"{PATH}/{verb}", self._handler(verb)) for verb in VERBS]
        return [("GET", PATH, self._handler("")), *posts]

    def close(self) -> None:
        """End the invitation that is open, and an acceptance under way."""
        self._closing.set()
        if self._invited is not None:
            self._invited.cancel()
        if self._accepting.acquire(timeout=END_TIME):
            self._accepting.release()

    def _handler(self, verb: str) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            why = "--multi-user" if self._multi_user else why_not(request)
            if why:
                logger.debug("pairing by the page is refused: %s", why)
                return _answer(403, _error("UseTerminal", USE_TERMINAL))
            try:
                given = _fields(verb, await _body(request)) if verb else {}
                async with self._threads:
                    return _answer(200, await in_a_thread(lambda: self._done(verb, given)))
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
            more = {"principal": as_json(self._accept(trust, **given))}
        elif verb == "cancel":
            if self._invited is not None:
                self._invited.cancel()
        elif verb:
            _change(trust, verb, given)
            nudge(trust)
        return {**self._state(trust), **more}

    def _state(self, trust: Trust) -> dict[str, Any]:
        trust.reload()  # a terminal may have changed it
        return {
            **own_as_json(trust),
            "principals": [as_json(one) for one in trust.principals()],
            "invitation": self._invited.told() if self._invited is not None else None,
        }

    def _invite(
        self, trust: Trust, lan: bool = False, at: str | None = None, name: str = ""
    ) -> str:
        if lan and at is not None:
            raise InputError('"lan" and "at" are two ways: give one of them')
        with self._inviting:
            if self._invited is not None and self._invited.is_open:
                raise PairingFailed("an invitation is open already", remedy="Cancel it first")
            invited = self._invited = _Invited(trust, Offer(lan, at), name)
        return invited.open()

    def _accept(self, trust: Trust, token: str, name: str = "") -> Principal:
        if not self._accepting.acquire(blocking=False):
            raise PairingFailed("another token is being taken", remedy="Wait for that")
        try:
            own = own_name(all(hint.is_loopback for hint in Token.read(token).hints))
            paired = accept(trust, token, name=name, own_name=own, cancelled=self._closing)
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


class _Invited:
    """One invitation, in a thread of its own, from its token to its end."""

    def __init__(self, trust: Trust, offer: Offer, name: str) -> None:
        self._trust, self._offer, self._name = trust, offer, name
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
            paired = as_json(self._outcome)
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
        trust, offer = self._trust, self._offer
        with offer.opened(trust) as where:
            own = own_name(not offer.is_public)
            with Inviting(trust, where, self._name, own) as inviting:
                self._until = time.monotonic() + LIFETIME
                self._hints = [str(hint) for hint in Token.read(inviting.token).hints]
                token.set_result(inviting.token)
                paired = inviting.serve(self._cancelled)
                self._confirmed = inviting.confirmed
        nudge(trust)
        return paired


# --- requests -------------------------------------------------------------------------------------


async def _body(request: web.Request) -> Any:
    """The JSON in it.

    Raises:
        InputError: There is none, it is too large, or does not come.
    """
    try:
        data = await in_time(_read(request), BODY_TIME)
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
