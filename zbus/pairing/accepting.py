"""Takes an invitation to pair: dials the hints of a token, and stores who answers there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, NamedTuple, TypeVar

from .. import given, probe
from ..address import Address
from ..errors import (
    BadToken,
    Cancelled,
    ConnectError,
    PairingFailed,
    RemoteProtocolError,
    ZBusError,
)
from ..net.frames import Closed, Connected, Connection, Event, Received
from ..net.transport import Transport
from ..trust import Principal, Trust
from .hellos import ACCEPTER_GRANTS, own_hello, store
from .invitation import MAX_MESSAGE, Acceptance, Hello
from .tokens import Token

TIMEOUT = 30.0  # seconds for `accept`
ANSWER_WITHIN = 5.0  # seconds
LOOK_EVERY = 0.25  # seconds between two looks at `cancelled`
REDIAL_EVERY = 0.5
ROUNDS = 2  # of dials without a TCP connection, after which it is said why
LOOK_WITHIN = 5.0  # seconds for a name, and for a look why a hint does not answer

T = TypeVar("T")


class Way(NamedTuple):
    """A hint of the token, and one of the addresses that it means."""

    hint: Address
    numeric: str


H = TypeVar("H", Address, Way)


def accept(
    trust: Trust,
    token: str,
    *,
    name: str = "",
    own_name: str = "",
    timeout: float = TIMEOUT,
    cancelled: threading.Event | None = None,
) -> Principal:
    """Take an invitation: this side and the inviter's trust each other from then on.

    Args:
        trust: Where the inviter is put; as it was before, if this fails.
        token: As the inviter has it.
        name: What to call the inviter; "": as it calls itself.
        own_name: What this side would be called; "": as the machine.
        timeout: Seconds for all of it.

    Raises:
        InputError: The time is none.
        BadToken: The token cannot be used.
        PairingFailed: The invitation is refused, or nobody answers; the text says which and why.
        TrustError: The inviter cannot be stored.
        Cancelled: `cancelled` is set.
    """
    timeout = given.seconds("timeout", timeout)
    invited = Token.read(token)
    if invited.key == trust.keys.public:
        raise BadToken(
            "that is an invitation of this very user on this machine",
            remedy="Give it to zbus-pair accept on the other machine",
        )
    hello = own_hello(trust, name=own_name)
    accepting = _Accepting(trust, invited, hello, name, time.monotonic() + timeout, cancelled)
    try:
        return accepting.run()
    except BaseException:
        accepting.take_back()
        raise
    finally:
        accepting.close()


class _Accepting:
    """One `accept`."""

    def __init__(
        self,
        trust: Trust,
        token: Token,
        hello: Hello,
        name: str,
        deadline: float,
        cancelled: threading.Event | None,
    ) -> None:
        self._trust, self._token, self._name = trust, token, name
        self._deadline, self._cancelled = deadline, cancelled
        self._acceptance = Acceptance(token, trust.keys.public, hello)
        self._transport = Transport(trust.keys, max_frame=MAX_MESSAGE)
        self._dialled: dict[Connection, Way] = {}
        self._active: Connection | None = None  # the one that was asked
        self._asked_at = 0.0
        self._stages: dict[Way, str] = {}  # how the last dial of each ended
        self._before: Principal | None = None
        self._paired: Principal | None = None

    def close(self) -> None:
        self._transport.close()

    def run(self) -> Principal:
        ways, problems = self._resolved()
        rounds, redial_at = 0, 0.0
        while ways and time.monotonic() < self._deadline:
            now = time.monotonic()
            if self._cancelled is not None and self._cancelled.is_set():
                raise Cancelled("cancelled: nobody was paired")
            if not self._dialled and now >= redial_at:
                if rounds >= ROUNDS and set(self._stages.values()) == {"connect"}:
                    break
                for way in ways:
                    self._dial(way)
                rounds, redial_at = rounds + 1, now + REDIAL_EVERY
            if self._active is not None and now > self._asked_at + ANSWER_WITHIN:
                self._drop(self._active)
            for event in self._transport.poll(min(LOOK_EVERY, max(0.0, self._deadline - now))):
                self._take(event)
            if self._acceptance.is_done and self._paired is not None:
                return self._paired
        raise self._nobody(ways, problems)

    def take_back(self) -> None:
        """Have the store as it was: the other side has not stored this one, as far as is known."""
        paired, before = self._paired, self._before
        if paired is None or self._acceptance.is_done:
            return
        if before is None:
            self._trust.forget(paired.name)
        else:
            self._trust.pair(before.key, before.name, before.permissions, before.peers)

    def _resolved(self) -> tuple[list[Way], list[ConnectError]]:
        found = _each(self._token.hints, probe.resolve_all)
        known = [(hint, all_) for hint, all_ in found if not isinstance(all_, ConnectError)]
        ways = [Way(hint, numeric) for hint, all_ in known for numeric in all_]
        return ways, [why for _, why in found if isinstance(why, ConnectError)]

    def _dial(self, way: Way) -> None:
        connection = self._transport.dial(way.numeric, way.hint.port, server=self._token.key)
        self._dialled[connection] = way

    def _drop(self, connection: Connection) -> None:
        self._dialled.pop(connection, None)
        self._transport.end(connection)
        if connection is self._active:
            self._active = None

    def _take(self, event: Event) -> None:
        connection = event.connection
        if isinstance(event, Closed):
            self._stages[self._dialled.pop(connection)] = event.stage
            if connection is self._active:
                self._active = None
        elif isinstance(event, Connected):
            if self._active is None:
                self._active, self._asked_at = connection, time.monotonic()
                self._transport.send(connection, self._acceptance.ask)
            else:
                self._drop(connection)  # another way to the same inviter
        else:
            self._hear(event)

    def _hear(self, event: Received) -> None:
        try:
            if event.body is not None:
                raise RemoteProtocolError("a message with a body")
            hello = self._acceptance.receive(event.header)
        except RemoteProtocolError as error:
            raise PairingFailed(
                f"the other side says what cannot be understood: {error}",
                remedy="Update zbus on both sides",
            ) from error
        if hello is not None and self._paired is None:
            self._remember(hello, self._dialled[event.connection].hint.host)
        self._asked_at = time.monotonic()
        done = self._acceptance.is_done
        self._transport.send(
            event.connection, self._acceptance.thanks if done else self._acceptance.stored
        )

    def _remember(self, hello: Hello, went: str) -> None:
        self._trust.reload()
        before = self._trust.of(self._token.key)
        self._before = before if before is not None and before.paired else None
        self._paired = store(self._trust, self._token.key, hello, self._name, ACCEPTER_GRANTS, went)

    def _nobody(self, ways: Sequence[Way], problems: list[ConnectError]) -> ZBusError:
        if self._paired is not None:
            return PairingFailed(
                "the other side has not said that it stored the pairing: it was taken back here",
                remedy="If zbus-pair list there names this machine, forget it there; make a new "
                "invitation and try again",
            )
        looked = _each(ways, self._why)
        problems += [why for _, why in looked if isinstance(why, ConnectError)]
        return PairingFailed(
            "no invitation answers: " + "; ".join(f"{why.peer}: {why.what}" for why in problems),
            remedy="Look whether zbus-pair invite still waits there, and whether a firewall is "
            "between; over other networks: invite --at HOST:PORT, or zbus-link for SSH",
        )

    def _why(self, way: Way) -> ConnectError:
        why = probe.diagnose(way.hint, way.numeric, self._token.key)
        return why or PairingFailed(
            "what answers there does not have the key of the token: another machine has that "
            "address, or somebody is in between",
            peer=str(way.hint),
            remedy="Ask for a new invitation, and compare the fingerprints that both sides show",
        )


def _each(hints: Sequence[H], work: Callable[[H], T]) -> list[tuple[H, T | ConnectError]]:
    """What `work` says of each, side by side: names and silent hosts take their time."""
    futures: list[Future[T]] = [Future() for _ in hints]

    def run(hint: H, future: Future[T]) -> None:
        try:
            future.set_result(work(hint))
        except Exception as error:
            future.set_exception(error)

    for hint, future in zip(hints, futures, strict=True):
        threading.Thread(target=run, args=(hint, future), name="zbus-pair", daemon=True).start()
    wait(futures, LOOK_WITHIN)
    return [(hint, _outcome(hint, future)) for hint, future in zip(hints, futures, strict=True)]


def _outcome(hint: Address | Way, future: Future[Any]) -> Any:
    if not future.done():
        where = hint.hint if isinstance(hint, Way) else hint
        return ConnectError("no answer: timed out", peer=str(where))
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, ConnectError):
        return error
    raise error
