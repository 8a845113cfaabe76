"""Who a node's `peer`, `addr` or `remote_url` means: names, addresses and URLs."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

from zbus.address import several
from zbus.errors import UnknownPeer, ZBusError
from zbus.remote import Remote
from zbus.resolver import Resolver

from .. import host
from .in_a_thread import in_a_thread
from .lan_presence import LAN_PRESENCE

logger = logging.getLogger(__name__)

ANY, ALL = "any free", "all"
ANSWER = 3.0  # seconds for a peer to say how busy it is

_TURN = itertools.count(1)
_TURNS: dict[Remote, int] = {}  # when it was chosen last


def resolver() -> Resolver:
    """Looks names up as this ComfyUI sees them now."""
    peer = host.peer()
    return Resolver(peer.trust, peer.own.instance.hex(), LAN_PRESENCE.now())


def known() -> list[Remote]:
    """The other peers of this user on this machine that are alive, and the paired that a way is
    known to; each by name."""
    look = resolver()
    return [*look.local(), *look.paired()]


def find(text: str) -> Remote:
    """The one peer of that name, "host:port" or URL. A URL blocks, for seconds at most.

    Raises:
        ZBusError: There is no such peer; the text says why.
    """
    return resolver().find(text)


def is_url(text: str) -> bool:
    """Whether `find` would have to ask a page."""
    return "://" in text


async def resolve(text: str) -> Remote:
    """As `find`, for coroutines."""
    return await in_a_thread(lambda: find(text))


async def chosen(text: str) -> list[Remote]:
    """The peers that a `peer` field means, in a fixed order.

    Args:
        text: "any free", "all", a name, "host:port", a ComfyUI's URL, or several with commas.

    Raises:
        UnknownPeer: There is none such; the text says which are known.
        ZBusError: A URL does not tell who its peer is.
    """
    text = text.strip()
    if text.lower() in (ANY, ALL, ""):
        others = await in_a_thread(known)
        if not others:
            raise UnknownPeer(
                "no other ComfyUI with zbus runs on this computer, and none is paired",
                remedy="Start one (another --port, and with --base-directory its own folders; or "
                "zbus-up), pair with another computer (zbus-pair invite there, zbus-pair accept "
                "here), or give the URL of its page",
            )
        return await everybody(others) if text.lower() == ALL else [await freest(others)]
    found = [await resolve(name) for name in several(text)]
    return list({remote.instance or remote.where: remote for remote in found}.values())


async def everybody(remotes: list[Remote]) -> list[Remote]:
    """All that run jobs, of this machine's also those that do not say so at once; of the paired
    only those that answer: a second computer may well be off.

    Raises:
        UnknownPeer: That is nobody.
    """
    own = host.peer().trust.keys.public
    told = await asyncio.gather(*(_facts(remote) for remote in remotes))
    kept, away = [], []
    for remote, facts in zip(remotes, told, strict=True):
        is_in = facts.get("jobs") is True or (not facts and remote.key == own)
        (kept if is_in else away).append(remote)
    for remote in away:
        logger.warning("%s is left out of 'all': it does not answer, or runs no jobs", remote)
    if not kept:
        names = ", ".join(str(remote) for remote in away)
        raise UnknownPeer(
            f"none of those that are known answers and runs jobs: {names}",
            remedy=f"Look at them: zbus-ping {away[0].name} --jobs",
        )
    return kept


async def freest(remotes: list[Remote]) -> Remote:
    """The one with the shortest queue; of those that are equal the one whose turn is longest ago:
    two nodes that ask at the same time get two peers."""
    load = await asyncio.gather(*(_load(remote) for remote in remotes))
    best = min(range(len(remotes)), key=lambda i: (load[i], _TURNS.get(remotes[i], 0), i))
    _TURNS[remotes[best]] = next(_TURN)
    return remotes[best]


async def _load(remote: Remote) -> float:
    """How many prompts it has running and waiting; infinity where it does not answer."""
    facts = await _facts(remote)
    queue = facts.get("queue")
    counts = queue.values() if isinstance(queue, dict) else ()
    total = sum(n for n in counts if isinstance(n, (int, float)))
    return total if facts.get("jobs") is True else float("inf")


async def _facts(remote: Remote) -> dict[str, Any]:
    """What it tells of itself; nothing where it does not answer in time."""
    try:
        question = asyncio.wrap_future(host.peer().enquire(remote))
        return await asyncio.wait_for(question, ANSWER)
    except (ZBusError, asyncio.TimeoutError):
        return {}
