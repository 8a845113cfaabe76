"""Looks at an address with bare sockets, leg by leg: name, TCP port, ZMTP greeting.

ZeroMQ itself says only that a connection did not come about. These functions say why. They block,
each for a bounded time: call them off the I/O thread.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from .address import Address
from .errors import (
    ConnectError,
    NameNotResolved,
    NobodyBehind,
    NotPaired,
    NotZBus,
    Unreachable,
    ValuesOnly,
)

TIMEOUT = 5.0  # seconds for TCP
LISTEN_FIRST = 1.0  # seconds for the other side to speak before we do
GREETING_TIMEOUT = 3.0  # seconds for its first bytes after that
SIGNATURE = 10  # bytes that a ZMTP 3 peer says first, RFC 23; the first of them is FF
GREETING = 64  # bytes of a whole one, RFC 23
VERSION = b"\xff" + bytes(8) + b"\x7f\x03\x01"  # our signature and version: what it waits for
QUESTION = b"GET / HTTP/1.0\r\n\r\n"  # what makes most others speak

NO_SERVER = (
    "No Server node has run there yet: press Run on the Server side "
    "(or, if both sides are Client, set one to Server)"
)
CHECK_PORT = "Check the port; or does the original ComfyUI-Jumper run there? Install zbus there"
WEB_PORT = (
    "If that is ComfyUI's own page: give the port in the Server node's addr (8282), not the page's"
)
BY_NAME = (
    "Give the peer's name in place of the address (zbus-ping lists them); or, for a plain "
    "exchange, the Server node's addr (8282)"
)
OWN_PORT = "Give the peer's name, or its page's URL, or its own listener's port (zbus-ping URL)"
MAY_BE_STOPPED = f"{CHECK_PORT}. If it is zbus, its process is stopped or hangs"


def resolve(address: Address) -> str:
    """The first of `resolve_all`."""
    return resolve_all(address)[0]


def resolve_all(address: Address) -> list[str]:
    """The numeric addresses of a host, IPv4 before IPv6; of a link-local one with its zone.

    Raises:
        NameNotResolved: The name is unknown.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        # Of the whole tuple: its text alone has lost the zone.
        return list(dict.fromkeys(_numeric(entry[4]) for entry in found))
    except (OSError, UnicodeError, ValueError) as error:
        raise NameNotResolved(
            f'the name "{address.host}" is not known ({_reason(error)})',
            peer=str(address),
            remedy="Check its spelling, or write the numeric address",
        ) from error


def _numeric(end: tuple[Any, ...]) -> str:
    return socket.getnameinfo(end, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]


def connect(address: Address, numeric: str, timeout: float = TIMEOUT) -> socket.socket:
    """A TCP connection.

    Raises:
        Unreachable: With the system's reason, and what to do.
    """
    try:
        return socket.create_connection((numeric, address.port), timeout=timeout)
    except OSError as error:
        refused = isinstance(error, ConnectionRefusedError)
        raise Unreachable(
            "nobody listens there: connection refused" if refused else _reason(error),
            peer=str(address),
            remedy=NO_SERVER if refused else "Check that the machine is on and the address right",
        ) from error


def greeting(address: Address, numeric: str, key: bytes = b"", timeout: float = TIMEOUT) -> None:
    """Whether ZMTP answers there, encrypted if a `key` is to answer, and else plain.

    A ZMTP peer speaks first, and a tunnel with nobody behind closes first: so listen before
    speaking, or neither can be told from a program that hangs up on what it does not understand.

    Raises:
        Unreachable: TCP does not connect.
        NobodyBehind: It accepts and closes.
        NotZBus: Something else answers, or nothing does.
        NotPaired: The listener there is for paired peers.
        ValuesOnly: The listener there is a plain one.
    """
    mechanism = b""
    with connect(address, numeric, timeout) as link:
        first = _first_bytes(link, min(timeout, LISTEN_FIRST))
        if first is None:
            with contextlib.suppress(OSError):
                link.sendall(QUESTION)
            first = _first_bytes(link, min(timeout, GREETING_TIMEOUT))
            if first is None:
                raise _not_zbus(address, "accepts, but says nothing", MAY_BE_STOPPED)
            if not first:
                raise _hangs_up(address)
        if first[:1] == b"\xff":
            mechanism = _mechanism(link, first, min(timeout, GREETING_TIMEOUT))
    if not first:
        raise nobody_behind(address)
    if first[0] != 0xFF:
        is_web = first.startswith(b"HTTP")
        remedy = WEB_PORT if is_web else CHECK_PORT
        raise _not_zbus(address, f"{_guess(first)} answers there", remedy)
    if mechanism == b"CURVE" and not key:
        raise NotPaired("that listener is for paired peers", peer=str(address), remedy=BY_NAME)
    if mechanism == b"NULL" and key:
        what = "a plain listener answers there, which is for values only"
        raise ValuesOnly(what, peer=str(address), remedy=OWN_PORT)


def _mechanism(link: socket.socket, first: bytes, timeout: float) -> bytes:
    """How a ZMTP peer wants to talk, by the rest of its greeting; b"" if it does not say."""
    link.settimeout(timeout)
    said = first
    try:
        link.sendall(VERSION)  # not our mechanism: it would hang up before it tells its own
        while len(said) < GREETING:
            more = link.recv(GREETING - len(said))
            if not more:
                return b""
            said += more
    except OSError:
        return b""
    return said[12:32].rstrip(b"\0")


def _first_bytes(link: socket.socket, timeout: float) -> bytes | None:
    """What the other side says; empty if it closes, None if it says nothing."""
    link.settimeout(timeout)
    try:
        return link.recv(SIGNATURE)
    except TimeoutError:
        return None
    except OSError:
        return b""  # reset: the same as closed


def diagnose(address: Address, numeric: str, key: bytes = b"") -> ConnectError | None:
    """Why a connection to this address does not come about; None: it does."""
    try:
        greeting(address, numeric, key)
    except ConnectError as error:
        return error
    return None


def nobody_behind(address: Address) -> NobodyBehind:
    """The port accepts and closes at once."""
    return NobodyBehind(
        "the port accepts and closes at once: a tunnel whose far end has nobody listening",
        peer=str(address),
        remedy=f"{NO_SERVER}. If that side runs the original ComfyUI-Jumper, install zbus there",
    )


def _hangs_up(address: Address) -> NobodyBehind:
    """It closes once spoken to. Over a slow link that can be a tunnel with nobody behind, too,
    for which a run must go on waiting: so it is no `NotZBus`, which ends it."""
    return NobodyBehind(
        "the port accepts, and closes when spoken to: not a zbus peer, or a slow tunnel",
        peer=str(address),
        remedy="If the original ComfyUI-Jumper runs there, install zbus there. "
        f"If it is a tunnel: {NO_SERVER}",
    )


def _not_zbus(address: Address, what: str, remedy: str = CHECK_PORT) -> NotZBus:
    return NotZBus(f"{what}, not a zbus peer", peer=str(address), remedy=remedy)


def _guess(first: bytes) -> str:
    if first.startswith(b"HTTP"):
        return "a web server"
    if first[0] == 0x15:  # an alert
        return "a TLS server"
    if first.startswith(b"SSH-"):
        return "an SSH server"
    if first.startswith(b"jumper"):
        return "the original ComfyUI-Jumper"
    return "another program"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer: timed out"
    return (getattr(error, "strerror", None) or str(error)).lower()
