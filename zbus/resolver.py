"""Whom people mean: a peer's name, "host:port", or the URL of a ComfyUI's page.

A name is looked up among this user's ComfyUIs on this machine and among those who are paired; who
announces itself on the local network adds ways to a paired one, and never a name that is taken.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from . import discovery
from .address import EXAMPLE, Address, parse_dial, parse_route
from .card import Card, Page, page
from .errors import InputError, NotPaired, UnknownPeer
from .keys import from_text, short
from .lan import Announcement, announced, browse, matched
from .principals import check_name
from .remote import Remote
from .trust import Principal, Trust

MAX_HINTS = 3  # addresses that the local network tells of one peer
LOOK = 1.0  # seconds
SHOWN = 10  # names that an error tells
# What else than a name a person can give: where values may go over a plain address, and where not.
BY_ADDRESS = f"give its address. {EXAMPLE}"
BY_PAGE = 'give the URL of its page, for example "http://127.0.0.1:8188"'
PAIR = "Pair the two, once: zbus-pair invite on one of them, zbus-pair accept on the other"


class _Known(NamedTuple):
    """A name that means somebody.

    Attributes:
        whole: What that one is called where `name` is not enough.
    """

    name: str
    remote: Remote
    whole: str

    @property
    def told(self) -> str:
        return replace(self.remote, name=self.whole).where


def looking_around(trust: Trust, text: str) -> Resolver:
    """A resolver for a command that is about to look `text` up: who announces itself counts, where
    this user has opened the local network. Blocks for a second then."""
    is_name = ":" not in text and bool(text.strip())
    return Resolver(trust, seen=browse(LOOK) if is_name and trust.lan else ())


class Resolver:
    """Looks names up.

    Args:
        trust: Who is paired.
        instance: Of whoever asks: it is not one of the others.
        seen: Who announces itself on the local network.
    """

    def __init__(self, trust: Trust, instance: str = "", seen: Sequence[Announcement] = ()) -> None:
        self._trust, self._instance = trust, instance
        trust.refresh()
        self._principals = trust.principals()
        self._seen = matched(seen, self._principals)

    def read(self, text: str, way: str = BY_ADDRESS) -> Address | Remote | Page:
        """What a person has written. "host:port" is an Address where nobody known has it.

        Raises:
            UnknownPeer: A name that no peer here has, or more than one.
            InvalidAddress: Not "host:port", or not a URL.
        """
        text = text.strip()
        if "://" in text:
            return page(text)
        try:
            return self.named(text, way)
        except UnknownPeer:
            if ":" not in text:
                raise
        address = parse_dial(text)
        return self._at(address) or address

    def find(self, text: str, way: str = BY_PAGE) -> Remote:
        """As `read`, for jobs: a page is asked, which blocks for some seconds at most.

        Args:
            way: What could be given in place of a name that nobody has, for the text.

        Raises:
            ZBusError: There is no such peer; the text says why.
        """
        meant = self.read(text, way)
        if isinstance(meant, Page):
            return self.of_card(meant, meant.ask())
        if isinstance(meant, Address):
            raise UnknownPeer(
                f"no peer that is known here listens on {meant}",
                remedy="Give its name (zbus-ping lists them) or its page's URL; or pair with it, "
                f"and say where it is: zbus-pair move NAME {meant}",
            )
        return meant

    # --- names --------------------------------------------------------------------------------

    def local(self) -> list[Remote]:
        """The other ComfyUIs of this user on this machine, by name."""
        return [remote for remote in self._here() if remote.instance != self._instance]

    def paired(self) -> list[Remote]:
        """The ComfyUIs of those who are paired, as far as a way to each is known."""
        found = (remote for one in self._principals for _, remote in self._of(one))
        return [remote for remote in found if remote.routes()]

    def named(self, name: str, way: str = BY_ADDRESS) -> Remote:
        """The peer of that name; upper and lower case count only where two differ by them.

        Raises:
            UnknownPeer: There is none, or more than one; the text says which there are.
        """
        wanted, known = name.strip(), self._names()
        same = [one for one in known if one.name == wanted]
        same = same or [one for one in known if one.name.casefold() == wanted.casefold()]
        # Whoever asks never means itself where that name means another one, too.
        same = [one for one in same if not self._is_own(one)] or same
        if len(same) == 1:
            return replace(same[0].remote, name=same[0].name)
        if same:
            raise UnknownPeer(
                f"'{wanted}' could be {len(same)} peers: {_listed(one.told for one in same)}",
                remedy="Give the whole name of the one that is meant (NAME/PEER) or its address, "
                "or rename one: zbus-pair rename",
            )
        owner, _, peer = wanted.partition("/")
        for one in self._principals if peer else ():
            if one.name.casefold() == owner.casefold():
                # It may come by itself, though nothing here knows a way to it.
                return Remote("", name=wanted, key=one.key, peer=peer)
        others = (one.name for one in known if not self._is_own(one))
        names = _listed(dict.fromkeys(others)) or "none"
        raise UnknownPeer(
            f"no peer named '{wanted}' here; known: {names}",
            remedy="Start that ComfyUI on this machine under your own user, or pair with its "
            f"machine (zbus-pair invite, zbus-pair accept), or {way}",
        )

    def _is_own(self, known: _Known) -> bool:
        return bool(self._instance) and known.remote.instance == self._instance

    def _names(self) -> list[_Known]:
        """Every name that means somebody. One that only the local network tells is always a whole
        one, NAME/PEER: what anybody can send there takes no name away."""
        names = [_Known(remote.name, remote, remote.name) for remote in self._here()]
        taken = {known.name.casefold() for known in names}
        taken |= {one.name.casefold() for one in self._principals}
        own_names = []
        for one in self._principals:
            its = [(peer, remote, f"{one.name}/{peer}") for peer, remote in self._of(one)]
            nobody = (one.name, Remote("", name=one.name, key=one.key), one.name)
            only = next((known for known in its if known[1].name == one.name), nobody)
            names.append(_Known(one.name, *only[1:]))
            names += [_Known(whole, remote, whole) for _, remote, whole in its]
            stored = its[: len(one.peers)]
            own_names += [_Known(*known) for known in stored if known[0].casefold() not in taken]
        return names + own_names

    def _of(self, one: Principal) -> list[tuple[str, Remote]]:
        """The ComfyUIs of a principal, by what they call themselves: those that the store knows,
        then those seen. Who is seen adds ways to those of the store, after their own; it changes
        neither what they are called nor which of them is meant."""
        ways = {name: tuple(addresses) for name, addresses in one.peers}
        hints: dict[str, list[str]] = {}
        for principal, seen in self._seen:
            if principal.key == one.key and _can_be_named(seen.name):
                name = next((known for known in ways if _announces(known, seen.name)), seen.name)
                hints.setdefault(name, []).extend(seen.addresses)
        names = list(dict.fromkeys((*ways, *hints)))
        # Who has one may call it as it likes: the store's, or else the one that is seen.
        only = names[0] if len(one.peers or names) == 1 else None
        made = []
        for name in names:
            stored = ways.get(name, ())
            address, *others = stored or ("",)
            remote = Remote(
                address,
                name=one.name if name == only else f"{one.name}/{name}",
                key=one.key,
                peer="" if name == only else name,
                others=tuple(others),
                hints=tuple(way for way in hints.get(name, ()) if way not in stored)[:MAX_HINTS],
            )
            made.append((name, remote))
        return made

    def _at(self, address: Address) -> Remote | None:
        """Whoever is known to have its own listener there. What the local network tells does not
        count: an address for a plain exchange must remain one."""
        for remote in self._here() if address.is_loopback else ():
            if parse_dial(remote.address) == address:
                return remote
        for one in self._principals:
            stored = dict(one.peers)
            for peer, remote in self._of(one):
                if address in map(parse_route, stored.get(peer, ())):
                    return replace(remote, address=str(address), others=(), hints=())
        return None

    def _here(self) -> list[Remote]:
        """This user's ComfyUIs on this machine."""
        found = []
        for entry in discovery.peers():
            with contextlib.suppress(InputError):  # its file is broken: no other is lost by it
                key = from_text(entry.key) if entry.key else self._trust.keys.public
                found.append(Remote(entry.address, entry.instance, entry.name, key))
        return found

    # --- pages --------------------------------------------------------------------------------

    def of_card(self, asked: Page, card: Card) -> Remote:
        """The peer of a ComfyUI whose page was asked, and the ways to it.

        Raises:
            NotPaired: Its key is none that this side trusts.
        """
        if self._trust.of(card.key) is None:
            raise NotPaired(
                f"not paired with {card.name or 'that ComfyUI'}, whose key's fingerprint begins "
                f"with {short(card.key)}",
                peer=str(asked),
                remedy=PAIR,
            )
        ways = self._ways(asked, card)
        return Remote(ways[0], card.instance, card.name, card.key, others=tuple(ways[1:]))

    def _ways(self, asked: Page, card: Card) -> list[str]:
        # What that ComfyUI calls its loopback is this machine's only if its peer is known here:
        # through a tunnel to its page, "127.0.0.1:18188" would be somebody else's.
        known = (card.instance, card.key)
        ways = [one.address for one in self._here() if (one.instance, one.key) == known]
        if card.lan and not asked.is_loopback:
            ways += [str(Address(asked.address.host, endpoint.port)) for endpoint in card.endpoints]
        if card.ws:
            ways.append(asked.address.url)
        return ways or [str(card.endpoints[0])]


def _can_be_named(name: str) -> bool:
    """Whether a name that anybody can send may be part of one: it must look neither like several
    names nor like an address."""
    try:
        check_name(name)
    except InputError:
        return False
    return True


def _listed(texts: Iterable[str]) -> str:
    listed = list(texts)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _announces(name: str, seen: str) -> bool:
    """Whether a ComfyUI of that name may be the one seen: where its name was taken on the network,
    perhaps by a liar, it announces itself with a number."""
    return re.fullmatch(re.escape(announced(name)) + "(-[0-9]+)?", seen) is not None
