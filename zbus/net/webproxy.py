"""The proxy that the environment names for a web address. Without ~/.netrc, from which aiohttp's
own `trust_env` would take passwords along: for the proxy, and for whatever host is asked.
"""

from __future__ import annotations

import re
import urllib.parse
import urllib.request

from ..address import is_loopback_host
from ..errors import Unreachable


def by_environment(scheme: str, host: str) -> str | None:
    """The URL of the proxy to ask for that host, perhaps with a login; None: ask the host itself,
    as always on this machine's own loopback.

    Args:
        scheme: http or https, of what is asked for.
        host: Of what is asked for.

    Raises:
        Unreachable: It is a proxy of a kind that cannot be asked, or no address of one.
    """
    # Of IPv6 people write either into no_proxy: curl knows both.
    names = (host, f"[{host}]") if ":" in host else (host,)
    if is_loopback_host(host) or any(map(urllib.request.proxy_bypass, names)):
        return None
    named = urllib.request.getproxies().get(scheme, "").strip()
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


def _is_address(url: str) -> bool:
    """Whether aiohttp will not stumble over it: what it says then holds the login, or is taken for
    a fault of the page."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        return parts.scheme == "http" and host != b"" and parts.port != 0
    except ValueError:
        return False
