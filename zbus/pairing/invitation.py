"""An invitation to pair: the whole protocol of pairing, without a socket or a clock.

The inviter shows a token: its public key, a one-time secret, and where it listens. The accepter
dials with CURVE, to that key, so nobody can stand in between; and whoever knows the secret is the
one that was invited. Four messages, each a msgpack map of less than 4 KiB::

    accepter                                        inviter
    ask(mac, hello)                  ->
                                     <-             ok(hello)   or   refused(why)
    (stores the inviter)  stored     ->
                                     <-             done        (has stored the accepter)
    thanks                           ->

`mac` is a hash keyed with the secret, over both public keys and the hello. The accepter's key is
the authenticated one of the connection. The inviter, who grants more, stores last; an accepter who
does not hear `done` asks again, as whom it was bound to, and in the end takes back what it stored.
An invitation counts for ten minutes, for one key, and until five wrong macs have come.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

import msgpack

from ..errors import InputError, PairingFailed, RemoteProtocolError
from ..principals import check_name
from .tokens import MAX_HINTS, Token, host_address

LIFETIME = 600.0  # seconds
TRIES = 5
MAX_MESSAGE = 4096  # bytes
MAX_HELLO = 3072
MAX_PEERS = 16
MAX_BOOT = 80

# Why an invitation is refused, as the wire says it; what a person gets to read, and to do.
WRONG, USED, LATE, VOID, FAILED = "wrong", "used", "late", "void", "failed"
_INVITE = "Make a new one there: zbus-pair invite"
_WHY = {
    WRONG: ("that token is not of the invitation that is open there", _INVITE),
    USED: (
        "that invitation has been used",
        "If not by you: zbus-pair list there says by whom; forget it, and make a new one",
    ),
    LATE: ("that invitation's ten minutes are over", _INVITE),
    VOID: (f"that invitation is void: {TRIES} wrong tries have come", _INVITE),
    FAILED: ("the other side could not store the pairing", "Look at what zbus-pair says there"),
}


# --- what the two tell each other -----------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """One side, as it tells of itself.

    Attributes:
        name: What it would be called.
        peers: Its ComfyUIs' names, and the port under which each is reached; 0: none.
        hosts: Where it is reached, as far as it knows.
        is_open: Whether its ComfyUIs listen beyond the loopback.
        boot: Names its machine's loopback (`machine.boot_id`); "" if it cannot.
    """

    name: str
    peers: tuple[tuple[str, int], ...] = ()
    hosts: tuple[str, ...] = ()
    is_open: bool = False
    boot: str = ""

    def pack(self) -> bytes:
        """As it is sent: as many of its peers as fit."""
        for most in range(min(len(self.peers), MAX_PEERS), -1, -1):
            peers = [list(peer) for peer in self.peers[:most]]
            data: bytes = msgpack.packb({**vars(self), "peers": peers})
            if len(data) <= MAX_HELLO:
                break
        return data

    @classmethod
    def unpack(cls, data: bytes) -> Hello:
        """The other side's.

        Raises:
            RemoteProtocolError: It is none.
        """
        if len(data) > MAX_HELLO:
            raise RemoteProtocolError("a hello that is too large")
        given = _unpack(data)
        try:
            return cls._checked(**{name: given[name] for name in cls.__dataclass_fields__})
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError("a hello that cannot be used") from error

    @classmethod
    def _checked(cls, name: Any, peers: Any, hosts: Any, is_open: Any, boot: Any) -> Hello:
        if not (isinstance(peers, list) and isinstance(hosts, list) and type(is_open) is bool):
            raise TypeError
        if len(peers) > MAX_PEERS or len(hosts) > MAX_HINTS:
            raise ValueError
        for peer, port in peers:
            check_name(peer)
            if type(port) is not int or not 0 <= port <= 65535:
                raise ValueError
        if not isinstance(boot, str) or len(boot) > MAX_BOOT or not all(map(_is_text, hosts)):
            raise ValueError
        check_name(name)
        told = tuple(host_address(host, 1).host for host in hosts)
        return cls(name, tuple((peer, port) for peer, port in peers), told, is_open, boot)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _mac(secret: bytes, inviter: bytes, accepter: bytes, hello: bytes) -> bytes:
    """Keyed BLAKE2b (RFC 7693): it needs no HMAC around it. All but the hello has a fixed size."""
    key = hashlib.blake2b(key=secret, person=b"zbus-pairing")
    key.update(inviter + accepter + hello)
    return key.digest()


def _unpack(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_MESSAGE:
        raise RemoteProtocolError("a message that is too large")
    try:
        given = msgpack.unpackb(data, use_list=True, raw=False, strict_map_key=True, max_ext_len=0)
    # msgpack has many ways to say "not msgpack", and no base class for them.
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, MemoryError) as error:
        raise RemoteProtocolError("a message that is not msgpack") from error
    except msgpack.exceptions.UnpackException as error:
        raise RemoteProtocolError("a message that is not msgpack") from error
    if not isinstance(given, dict):
        raise RemoteProtocolError("a message that is not a map")
    return given


def _bytes(given: dict[str, Any], key: str) -> bytes:
    value = given.get(key)
    if not isinstance(value, bytes):
        raise RemoteProtocolError(f"a message without {key}")
    return value


def _message(kind: str, **fields: Any) -> bytes:
    data: bytes = msgpack.packb({"kind": kind, **fields})
    return data


# --- the inviter's side ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What the inviter does next: answer, store, end the connection; in this order."""

    reply: bytes = b""
    store: Hello | None = None  # then say so with `Invitation.stored`
    ends: bool = False


class Invitation:
    """One invitation, from its token to `thanks`. `now` is any clock's seconds.

    Args:
        key: The inviter's public key.
        secret: 16 random bytes.
        hello: What the accepter learns of the inviter.
    """

    def __init__(self, key: bytes, secret: bytes, hello: Hello, now: float) -> None:
        self._key, self._secret, self._hello = key, secret, hello.pack()
        self._until = now + LIFETIME
        self._tries = TRIES
        self._guest: tuple[bytes, Hello] | None = None  # who has shown the secret
        self.is_used = False  # the guest is stored
        self.is_over = False  # and knows it

    def lapsed(self, now: float) -> str:
        """Why nobody can use it any more, as `PairingFailed` wants it: LATE, VOID, or ""."""
        if self.is_used:
            return ""
        if self._tries <= 0:
            return VOID
        return LATE if now >= self._until else ""

    def receive(self, key: bytes, data: bytes, now: float) -> Step:
        """Take one message of whoever has proved that it has `key`.

        Raises:
            RemoteProtocolError: It is none of ours: end that connection.
        """
        given = _unpack(data)
        kind = given.get("kind")
        if kind == "ask":
            return self._asked(key, _bytes(given, "mac"), _bytes(given, "hello"), now)
        if self._guest is None or self._guest[0] != key:
            raise RemoteProtocolError("a message of somebody who has not asked")
        if kind == "stored":
            return self._stored(now)
        if kind == "thanks" and self.is_used:
            self.is_over = True
            return Step(ends=True)
        raise RemoteProtocolError("a message of unknown kind")

    def _asked(self, key: bytes, mac: bytes, hello: bytes, now: float) -> Step:
        lapsed = self.lapsed(now)
        if lapsed:
            return _refusal(lapsed)
        if not hmac.compare_digest(mac, _mac(self._secret, self._key, key, hello)):
            if self.is_used:
                return _refusal(USED)
            self._tries -= 1
            return _refusal(WRONG)
        if self._guest is not None and self._guest[0] != key:
            return _refusal(USED)
        self._guest = (key, Hello.unpack(hello))
        return Step(_message("ok", hello=self._hello))

    def _stored(self, now: float) -> Step:
        assert self._guest is not None
        if self.is_used:  # it has not heard so, and asks again
            return Step(self.stored())
        lapsed = self.lapsed(now)
        return _refusal(lapsed) if lapsed else Step(store=self._guest[1])

    def stored(self) -> bytes:
        """The guest is in the store: what to tell it."""
        self.is_used = True
        return _message("done")

    def failed(self) -> bytes:
        """It could not be stored: what to tell it."""
        return _message("refused", why=FAILED)


def _refusal(why: str) -> Step:
    return Step(_message("refused", why=why), ends=True)


def refused(why: str) -> PairingFailed:
    """The error for one of the words above."""
    what, remedy = _WHY.get(why, ("the other side refused it", _INVITE))
    return PairingFailed(what, remedy=remedy)


# --- the accepter's side --------------------------------------------------------------------------


class Acceptance:
    """What the accepter says and hears, on one connection after another until it is done.

    Args:
        token: Of the invitation.
        key: The accepter's own public key.
        hello: What the inviter learns of the accepter.
    """

    def __init__(self, token: Token, key: bytes, hello: Hello) -> None:
        packed = hello.pack()
        mac = _mac(token.secret, token.key, key, packed)
        self.ask = _message("ask", mac=mac, hello=packed)
        self.stored = _message("stored")
        self.thanks = _message("thanks")
        self.is_done = False

    def receive(self, data: bytes) -> Hello | None:
        """Take one message: the inviter's hello, to be stored and answered with `stored`; or None,
        and `is_done` says that all is.

        Raises:
            PairingFailed: The invitation is refused; the text says why.
            RemoteProtocolError: It is none of ours.
        """
        given = _unpack(data)
        kind = given.get("kind")
        if kind == "ok":
            return Hello.unpack(_bytes(given, "hello"))
        if kind == "refused":
            why = given.get("why")
            raise refused(why if isinstance(why, str) else "")
        if kind != "done":
            raise RemoteProtocolError("a message of unknown kind")
        self.is_done = True
        return None
