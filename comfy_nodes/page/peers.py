"""Who a node's `peer`, `addr` or `remote_url` means: names, addresses and URLs."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import NamedTuple

from zbus.address import several
from zbus.errors import UnknownPeer, ZBusError
from zbus.in_a_thread import in_a_thread
from zbus.remote import Remote
from zbus.resolver import BY_PAGE, Resolver

from .. import host
from .lan_presence import LAN_PRESENCE
from .placement import Placed, facts, freest, is_there, key_of, runs_jobs

logger = logging.getLogger(__name__)

ANY, ALL = "any free", "all"


def resolver() -> Resolver:
    """Looks names up as this ComfyUI sees them now."""
    peer = host.peer()
    return Resolver(peer.trust, peer.own.instance.hex(), LAN_PRESENCE.now())


def known() -> list[Remote]:
    """The other peers of this user on this machine that are alive, and the paired that a way is
    known to; each by name."""
    look = resolver()
    return [*look.local(), *look.paired()]


def find(text: str, way: str = BY_PAGE) -> Remote:
    """The one peer of that name, "host:port" or URL. A URL blocks, for seconds at most.
    `way` is what else could be given, for the text.

    Raises:
        ZBusError: There is no such peer; the text says why.
    """
    return resolver().find(text, way)


def is_elsewhere(remote: Remote) -> bool:
    """Whether it may be on another computer: it is not known as one of this user's on this one."""
    return not remote.instance or remote.key != host.peer().trust.keys.public


def is_url(text: str) -> bool:
    """Whether `find` would have to ask a page."""
    return "://" in text


async def resolve(text: str) -> Remote:
    """As `find`, for the coroutines of nodes. A name is read in a few small files, in less time
    than a thread takes to begin."""
    return await in_a_thread(lambda: find(text)) if is_url(text) else find(text)


@dataclass(frozen=True)
class Choice:
    """One that a `peer` field means.

    Attributes:
        remote: Who; where there is a `problem` only what was written.
        placed: Where this side has chosen, so that others that choose know of it.
        is_any: Whether any other one would do as well.
        problem: Why nobody is meant.
    """

    remote: Remote
    placed: Placed | None = None
    is_any: bool = False
    problem: ZBusError | None = None

    @classmethod
    def any(cls, placed: Placed) -> Choice:
        """The one that was free, of several."""
        return cls(placed.remote, placed, is_any=True)

    def release(self) -> None:
        """The job stands in its queue, or goes elsewhere."""
        if self.placed is not None:
            self.placed.release()


class Chosen(NamedTuple):
    """Those that a `peer` field means, in a fixed order; and what is to be told of the others."""

    choices: list[Choice]
    left_out: list[str] = []


async def chosen(text: str) -> Chosen:
    """The peers that a `peer` field means. What means nobody is a choice with a problem.

    Args:
        text: "any free", "all", a name, "host:port", a ComfyUI's URL, or several with commas.
    """
    text = text.strip()
    if text.lower() not in (ANY, ALL, ""):
        found = await asyncio.gather(*map(_named, several(text)))
        return Chosen(list({key_of(choice.remote): choice for choice in found}.values()))
    others = await in_a_thread(known)
    if not others:
        return Chosen([Choice(Remote("", name=text or ANY), problem=_nobody())])
    if text.lower() == ALL:
        return await _everybody(others)
    return Chosen([Choice.any(await freest(others))])


async def _named(name: str) -> Choice:
    try:
        return Choice(await resolve(name))
    except ZBusError as error:
        return Choice(Remote("", name=name), problem=error)


def _nobody() -> UnknownPeer:
    return UnknownPeer(
        "no other ComfyUI with zbus runs on this computer, and none is paired",
        remedy="Start one (another --port, and with --base-directory its own folders; or "
        "zbus-up), pair with another computer (zbus-pair invite there, zbus-pair accept "
        "here), or give the URL of its page",
    )


async def _everybody(remotes: list[Remote]) -> Chosen:
    """All that run jobs, of this machine's also those that are too busy to say so. Who does not
    answer is left out: a second computer may well be off, and one of this be restarting."""
    is_in = await asyncio.gather(*(_takes_part(remote) for remote in remotes))
    kept = [Choice(remote) for remote, is_kept in zip(remotes, is_in, strict=True) if is_kept]
    away = [remote for remote, is_kept in zip(remotes, is_in, strict=True) if not is_kept]
    left_out = [
        f"{remote}: left out of 'all': it does not answer, or runs no jobs" for remote in away
    ]
    for line in left_out:
        logger.warning(line)
    if kept:
        return Chosen(kept, left_out)
    names = ", ".join(str(remote) for remote in away)
    problem = UnknownPeer(
        f"none of those that are known answers and runs jobs: {names}",
        remedy=f"Look at them: zbus-ping {away[0].name} --jobs",
    )
    return Chosen([Choice(Remote("", name=ALL), problem=problem)])


async def _takes_part(remote: Remote) -> bool:
    told = await facts(remote)
    if told:
        return runs_jobs(told)
    return remote.key == host.peer().trust.keys.public and await is_there(remote)
