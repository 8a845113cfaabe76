"""The proxy that the environment names for a web address. Without ~/.netrc, from which aiohttp's
own `trust_env` would take passwords along: for the proxy, and for whatever host is asked.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import urllib.parse
import urllib.request

from .address import is_loopback_host
from .errors import Unreachable


def by_environment(scheme: str, host: str, port: int) -> str | None:
    """The URL of the proxy to ask for that host, perhaps with a login; None: ask the host itself,
    as always on this machine's own loopback.

    Args:
        scheme: http or https, of what is asked for.
        host, port: Of what is asked for.

    Raises:
        Unreachable: It is a proxy of a kind that cannot be asked, or no address of one.
    """
    proxies = urllib.request.getproxies()
    if is_loopback_host(host) or is_spared(proxies.get("no", ""), host, port):
        return None
    # What the system's own settings spare, on Windows and macOS.
    if urllib.request.proxy_bypass(f"[{host}]" if ":" in host else host):
        return None
    named = proxies.get(scheme, "").strip()
    if not named:
        return None
    kind, separator, _ = named.partition("://")
    # A login may stand where the kind should: only what can be a kind is told.
    if separator and re.fullmatch("[A-Za-z][A-Za-z0-9+.-]{0,19}", kind) and kind.lower() != "http":
        raise Unreachable(
            f"the environment names a proxy for it that is not one of http, but of {kind!r}",
            peer=host,
            remedy=f"Name an http:// one ({scheme}_proxy), or put this host into no_proxy",
        )
    url = named if separator else f"http://{named}"
    if not _is_address(url):
        raise Unreachable(
            "what the environment names as a proxy for it is no address of one",
            peer=host,
            remedy=f"Write it as http://HOST:PORT ({scheme}_proxy), or put this host into no_proxy",
        )
    return url


def is_spared(no_proxy: str, host: str, port: int) -> bool:
    """Whether that list has it: hosts with all that is below them, addresses and networks, each
    perhaps with a port, and * for all. curl, requests and Go know a part of these each, and urllib
    names alone.

    Args:
        no_proxy: Its entries, with commas or spaces between them.
    """
    entries = re.split(r"[,\s]+", no_proxy.lower())
    return any(_has(entry, host.lower().rstrip("."), port) for entry in entries if entry)


def _has(entry: str, host: str, port: int) -> bool:
    network = _network(entry)  # before a port is looked for: IPv6 is full of colons
    name, _, digits = entry.rpartition(":")
    if network is None and name and digits.isdecimal():
        if digits.lstrip("0") != str(port):
            return False
        entry, network = name, _network(name)
    if network is not None:
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(host.partition("%")[0]) in network
        return False
    name = entry.removeprefix("*").strip(".")
    return entry == "*" or (name != "" and f".{host}".endswith(f".{name}"))


def _network(written: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The addresses that are meant, [IPv6] too; None for a name."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_network(re.sub(r"^\[(.*)\](?=/|$)", r"\1", written), strict=False)
    return None


def _is_address(url: str) -> bool:
    """Whether aiohttp will not stumble over it: what it says then holds the login, or is taken for
    a fault of the page."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        return parts.scheme == "http" and host != b"" and parts.port != 0
    except ValueError:
        return False
