"""Who a node's `peer` or `remote_url` means: names, addresses and URLs, to where jobs may go."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

from zbus import discovery
from zbus.address import parse_dial
from zbus.errors import FetchError, UnknownPeer, ZBusError
from zbus.job import Remote

from .. import fetching, host

ANY, ALL = "any free", "all"
CARD = "/zbus/peer"  # where a ComfyUI tells who its peer is
CARD_LIMIT = 64 * 1024
CARD_TIMES = fetching.Times(connect=5.0, silence=5.0, whole=10.0)
ANSWER = 3.0  # seconds for a peer to say how busy it is
INSTALL = (
    "Install zbus there (in its custom_nodes folder: git clone this pack's repository; then "
    "pip install -r requirements.txt in its Python) and restart that ComfyUI"
)

_TURN = itertools.count(1)
_TURNS: dict[str, int] = {}  # address -> when it was chosen last


def known() -> list[Remote]:
    """The other peers of this user on this machine that are alive, by name."""
    own = host.peer().own.instance.hex()
    return [
        Remote(entry.address, entry.instance, entry.name)
        for entry in discovery.peers()
        if entry.instance != own
    ]


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
        others = known()
        if not others:
            raise UnknownPeer(
                "no other ComfyUI with zbus runs on this computer",
                remedy="Start one (another --port, and with --base-directory its own folders), or "
                "give its address: host:port of its zbus listener, or its page's URL",
            )
        return others if text.lower() == ALL else [await freest(others)]
    names = [name for name in re.split(r"[,\n]", text) if name.strip()]
    found = [await resolve(name) for name in names]
    return list({remote.instance or remote.address: remote for remote in found}.values())


async def resolve(text: str) -> Remote:
    """The one peer of that name, "host:port" or URL."""
    text = text.strip()
    if "://" in text:
        return await of_url(text)
    try:
        entry = discovery.find(text)
        return Remote(entry.address, entry.instance, entry.name)
    except UnknownPeer:
        if ":" not in text:
            raise
    place = parse_dial(text)
    for entry in discovery.peers() if place.is_loopback else ():
        if parse_dial(entry.address).port == place.port:
            return Remote(entry.address, entry.instance, entry.name)
    return Remote(str(place))


async def of_url(url: str) -> Remote:
    """The peer of the ComfyUI whose page is at that URL.

    Raises:
        UnknownPeer: That ComfyUI has no zbus.
        ZBusError: Nothing answers there.
    """
    what = f"asking {fetching.shown(url)} for its zbus peer"
    card = url.rstrip("/") + CARD
    try:
        told = _json(await fetching.get(card, limit=CARD_LIMIT, what=what, times=CARD_TIMES))
    except FetchError as error:
        raise UnknownPeer(
            f"the ComfyUI at {fetching.shown(url)} has no zbus, or an older one", remedy=INSTALL
        ) from error
    address, instance = _card(told)
    if instance and not address:
        raise UnknownPeer(
            f"the ComfyUI at {fetching.shown(url)} has zbus, and takes no jobs",
            remedy="Start it without ZBUS_JOBS=0; its log says if its listener could not be opened",
        )
    if not address:
        raise UnknownPeer(f"what answers at {fetching.shown(url)} is no zbus", remedy=INSTALL)
    name = told.get("name")
    return Remote(address, instance, name[:80] if isinstance(name, str) else "")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _card(told: Any) -> tuple[str, str]:
    """The (address, instance) in a peer's own words; "" where it does not say."""
    endpoints = told.get("endpoints") if isinstance(told, dict) else None
    instance = told.get("id") if isinstance(told, dict) else None
    if not isinstance(instance, str) or not re.fullmatch("[0-9a-f]{32}", instance):
        return "", ""
    for endpoint in endpoints if isinstance(endpoints, list) else ():
        try:
            return str(parse_dial(endpoint)), instance
        except (ZBusError, TypeError, AttributeError):
            continue
    return "", instance


async def freest(remotes: list[Remote]) -> Remote:
    """The one with the shortest queue; of those that are equal the one whose turn is longest ago:
    two nodes that ask at the same time get two peers."""
    load = await asyncio.gather(*(_load(remote) for remote in remotes))
    best = min(range(len(remotes)), key=lambda i: (load[i], _TURNS.get(remotes[i].address, 0), i))
    _TURNS[remotes[best].address] = next(_TURN)
    return remotes[best]


async def _load(remote: Remote) -> float:
    """How many prompts it has running and waiting; infinity where it does not answer."""
    try:
        question = asyncio.wrap_future(host.peer().enquire(remote))
        facts = await asyncio.wait_for(question, ANSWER)
    except (ZBusError, asyncio.TimeoutError):
        return float("inf")
    queue = facts.get("queue")
    counts = queue.values() if isinstance(queue, dict) else ()
    total = sum(n for n in counts if isinstance(n, (int, float)))
    return total if facts.get("jobs") is True else float("inf")
