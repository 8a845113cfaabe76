"""Addresses as people write them: "host:port", the URL of a ComfyUI, and where each may be used."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from .errors import InvalidAddress, ListenRefused
from .given import kind_of

MAX_ADDRESS = 2000  # characters; of a URL, too, which may hold a long login
EXAMPLE = 'Write it as "host:port", for example "127.0.0.1:8282"'


@dataclass(frozen=True)
class Address:
    """A host, as a name or a numeric address, and a port.

    Attributes:
        url: Of the ComfyUI whose WebSocket lane leads there; it may hold a password, and is shown
            without.
    """

    host: str
    port: int
    url: str = field(default="", repr=False)

    def __str__(self) -> str:
        if self.url:
            parts = urlsplit(self.url)
            return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is certain that this address is this machine's own loopback."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def several(written: str) -> list[str]:
    """What is written with commas or on lines of its own: "desk-8189, gpu-pc" are two."""
    return [one.strip() for one in re.split(r"[,\n]", written) if one.strip()]


def is_loopback_host(host: str) -> bool:
    """Whether a host, as web addresses name it, is this machine's own loopback."""
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost") or Address(name, 0).is_loopback


def parse(written: str) -> Address:
    """The address in a text such as "127.0.0.1:8282", "cloud.example:8282" or "[::1]:8282".

    "localhost" becomes 127.0.0.1, so that both spellings are one place.

    Raises:
        InvalidAddress: It is none; the text says what is missing.
    """
    cleaned = _text(written)
    host, colon, port = cleaned.rpartition(":")
    if not colon or not host:
        raise InvalidAddress(f'"{cleaned[:100]}" has no port', remedy=EXAMPLE)
    if "/" in cleaned:
        raise InvalidAddress(f'"{cleaned[:100]}" is a web address', remedy=EXAMPLE)
    if any(c.isspace() for c in host):
        raise InvalidAddress(f'"{cleaned[:100]}" has a space in it', remedy=EXAMPLE)
    # Python refuses to read, or print, a number of some thousand digits.
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        shown = f'"{port[:40]}" in "{cleaned[:100]}"'
        raise InvalidAddress(f"{shown} is not a port (0 to 65535)", remedy=EXAMPLE)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidAddress(f'"{cleaned[:100]}" has too many colons', remedy=EXAMPLE)
    name, percent, zone = host.partition("%")  # an interface is called Eth0, and not eth0
    host = name.lower() + percent + zone
    return Address("127.0.0.1" if host == "localhost" else host, int(port))


def _text(written: object) -> str:
    """What a person has written, if it can be an address.

    Raises:
        InvalidAddress: It is no text, or too long, or holds what no keyboard writes.
    """
    if isinstance(written, str) and len(written) <= MAX_ADDRESS and written.strip().isprintable():
        return written.strip()
    raise InvalidAddress(
        f"an address is a text of up to {MAX_ADDRESS} printable characters, not {kind_of(written)}",
        remedy=EXAMPLE,
    )


def parse_dial(written: str) -> Address:
    """An address to dial: as `parse`, and port 0 is none.

    Raises:
        InvalidAddress: It cannot be dialled.
    """
    address = parse(written)
    if address.port == 0:
        raise InvalidAddress(f'"{written.strip()[:100]}" has port 0', remedy=EXAMPLE)
    return address


def parse_page(written: str) -> Address:
    """The URL of a ComfyUI's page, as the WebSocket lane there.

    Raises:
        InvalidAddress: It is no http or https URL. The text holds no password.
    """
    try:
        written = _text(written)
        parts = urlsplit(written)
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    except ValueError:
        scheme = host = ""
        port = None
    if scheme not in ("http", "https") or not host:
        raise InvalidAddress(
            "that is not the URL of a web page",
            remedy='Write it as "http://host:port", for example "http://127.0.0.1:8188"',
        )
    host = host.replace("%25", "%", 1)  # a zone, as URLs have it (RFC 6874)
    return Address(host, port or (443 if scheme == "https" else 80), written.rstrip("/"))


def parse_route(written: str) -> Address:
    """A way to a peer's own listener: "host:port", or the URL of its ComfyUI.

    Raises:
        InvalidAddress: It is neither.
    """
    return parse_page(written) if "://" in _text(written) else parse_dial(written)


def parse_listen(written: str) -> Address:
    """An address for a plain listener: numeric, and on the loopback.

    Raises:
        InvalidAddress: It is no address.
        ListenRefused: It is not on the loopback.
    """
    address = parse(_text(written).removeprefix("listen:"))
    if not address.is_loopback:
        raise ListenRefused(
            f"a plain listener on {address} would be open to everybody who reaches that interface",
            remedy=f"Listen on 127.0.0.1:{address.port} and reach it through an SSH tunnel "
            f"(ssh -N -L 127.0.0.1:{address.port}:127.0.0.1:{address.port} USER@HOST)",
        )
    return address
