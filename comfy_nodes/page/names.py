"""The names that a `peer` field takes, for the drop-down that our page draws (web/peers.js)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from zbus.errors import ZBusError
from zbus.in_a_thread import in_a_thread

from .. import host
from .own_browser import is_of_another_user
from .peers import ALL, ANY, resolver

logger = logging.getLogger(__name__)

PATH = "/zbus/peers"
MAX_NAMES = 500

_FEW = asyncio.Semaphore(2)  # threads that look at a time


async def handle(request: web.Request) -> web.Response:
    """Names only, for whoever sees this page: a way there or a key is none of its business. Other
    users of this computer can see the page too, and whom this one knows is not for them."""
    if is_of_another_user(request):
        return web.json_response({"error": "another user of this computer"}, status=403)
    try:
        async with _FEW:
            names = await in_a_thread(_names)
    except (ZBusError, OSError) as error:
        logger.warning("the names of peers cannot be told: %s", error)
        return web.json_response({"error": "ComfyUI's log says why"}, status=503)
    # Not kept by the browser: a peer may start at any time.
    headers = {"Cache-Control": "no-store"}
    return web.json_response({"peers": names, "words": [ANY, ALL]}, headers=headers)


def _names() -> list[dict[str, Any]]:
    """Whom a name means, each name once.

    kind: "here", of this user on this machine; "paired"; "seen", paired, and only the local
    network tells where. online: true of those that live; null where that is not known.
    """
    look = resolver()
    paired = look.paired()
    reached = {remote.key for remote in paired}
    found = [(remote.name, "here") for remote in look.local()]
    found += [(remote.name, "paired" if remote.address else "seen") for remote in paired]
    # Who listens nowhere that is known here may come by itself.
    others = (one for one in host.peer().trust.principals() if one.key not in reached)
    found += [(one.name, "paired") for one in others]
    kinds: dict[str, str] = {}
    for name, kind in found[:MAX_NAMES]:
        kinds.setdefault(name, kind)
    return [
        {"name": name, "kind": kind, "online": True if kind == "here" else None}
        for name, kind in kinds.items()
    ]
