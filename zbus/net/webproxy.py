"""The proxy that the environment names for a web address. Without ~/.netrc, from which aiohttp's
own `trust_env` would take passwords along: for the proxy, and for whatever host is asked.
"""

from __future__ import annotations

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
        Unreachable: It is a proxy of a kind that cannot be asked.
    """
    if is_loopback_host(host) or urllib.request.proxy_bypass(host):
        return None
    named = urllib.request.getproxies().get(scheme, "").strip()
    if not named:
        return None
    kind, separator, rest = named.partition("://")
    if not separator:
        return f"http://{named}"
    if kind.lower() == "http" and rest:
        return named
    raise Unreachable(
        f"the environment names a proxy for it that is not one of http, but of {kind[:20]!r}",
        peer=host,
        remedy=f"Name an http:// one ({scheme}_proxy), or put this host into no_proxy",
    )
