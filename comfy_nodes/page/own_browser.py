"""Who may use a route that decides whom this user trusts: this computer's own browser, at ComfyUI's
own page. Nothing that looks like a proxy, which would bring others to the very same socket."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from typing import Any

from aiohttp import web

from zbus.machine import connection_owner

FORWARDED = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip")
FORWARDED_PREFIXES = ("x-forwarded-", "cf-")
LOOPBACK_NAME = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.I)


def why_not(request: web.Request) -> str:
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
    if is_of_another_user(request):
        return "another user of this computer sent it"  # a proxy's user, perhaps
    return ""


def is_of_another_user(request: web.Request) -> bool:
    """Whether it has come over the loopback, and not certainly from a program of this user's.

    On Linux what cannot be told is a no: who has sent a whole request and left at once is in the
    system's table no longer. Other systems have no such table, and every program counts there.
    """
    ends = [request.get_extra_info(end) for end in ("peername", "sockname")]
    if not all(map(_is_loopback, ends)):
        return False
    owner = connection_owner(*ends)
    return owner != os.geteuid() if owner is not None else sys.platform == "linux"


def _is_loopback(end: Any) -> bool:
    """Whether that end of a socket is the loopback's; of no other family than IP's."""
    try:
        host = str(end[0]).removeprefix("::ffff:") if isinstance(end, (tuple, list)) else ""
        return ipaddress.ip_address(host).is_loopback
    except (ValueError, IndexError):
        return False
