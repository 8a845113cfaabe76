"""Looks at an address with bare sockets, leg by leg: name, TCP port, ZMTP greeting.

ZeroMQ itself says only that a connection did not come about. These functions say why. They block,
each for a bounded time: call them off the I/O thread.
"""

from __future__ import annotations

import socket
import time

from .address import Address
from .errors import ConnectError, NameNotResolved, NobodyBehind, NotZBus, Unreachable

TIMEOUT = 5.0  # seconds for TCP
GREETING_TIMEOUT = 3.0  # seconds for the first bytes of the other side
SIGNATURE = b"\xff\0\0\0\0\0\0\0\1\x7f"  # the first ten bytes of ZMTP 3, RFC 23

NO_SERVER = (
    "No Server node has run there yet: press Run on the Server side "
    "(or, if both sides are Client, set one to Server)"
)


def resolve(address: Address) -> str:
    """The numeric address of a host, IPv4 before IPv6.

    Raises:
        NameNotResolved: The name is unknown.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NameNotResolved(
            f'the name "{address.host}" is not known ({_reason(error)})',
            peer=str(address),
            remedy="Check its spelling, or write the numeric address",
        ) from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0])


def connect(address: Address, numeric: str) -> socket.socket:
    """A TCP connection.

    Raises:
        Unreachable: With the system's reason, and what to do.
    """
    try:
        return socket.create_connection((numeric, address.port), timeout=TIMEOUT)
    except OSError as error:
        refused = isinstance(error, ConnectionRefusedError)
        raise Unreachable(
            "nobody listens there: connection refused" if refused else _reason(error),
            peer=str(address),
            remedy=NO_SERVER if refused else "Check that the machine is on and the address right",
        ) from error


def greeting(address: Address, numeric: str) -> float:
    """Whether ZMTP answers there; returns the seconds that TCP took.

    Raises:
        Unreachable: TCP does not connect.
        NobodyBehind: It accepts and closes without a word.
        NotZBus: Something else answers, or nothing does.
    """
    start = time.monotonic()
    with connect(address, numeric) as link:
        took = time.monotonic() - start
        link.settimeout(GREETING_TIMEOUT)
        first = b""
        try:
            link.sendall(SIGNATURE)
            first = link.recv(len(SIGNATURE))
        except TimeoutError as error:
            raise _not_zbus(address, "accepts, but says nothing") from error
        except OSError:
            pass  # reset: the same as closed
    if not first:
        raise nobody_behind(address)
    if first[0] != 0xFF:
        raise _not_zbus(address, f"{_guess(first)} answers there")
    return took


def diagnose(address: Address, numeric: str) -> ConnectError | None:
    """Why a connection to this address does not come about; None: it does."""
    try:
        greeting(address, numeric)
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


def _not_zbus(address: Address, what: str) -> NotZBus:
    return NotZBus(
        f"{what}, not a zbus peer",
        peer=str(address),
        remedy="Check the port; or does the original ComfyUI-Jumper run there? Install zbus there",
    )


def _guess(first: bytes) -> str:
    if first.startswith(b"HTTP"):
        return "a web server"
    if first.startswith(b"SSH-"):
        return "an SSH server"
    if first.startswith(b"jumper"):
        return "the original ComfyUI-Jumper"
    return "another program"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer: timed out"
    return (getattr(error, "strerror", None) or str(error)).lower()
