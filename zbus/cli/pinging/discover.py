"""What `zbus-ping --discover` prints: the peers of this machine, the paired, and those of the LAN.

Being on the list grants nothing, and what the LAN says of itself is not proved: "paired as X"
means that the beginning of its key's fingerprint is X's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TextIO

from ... import discovery, lan
from ...address import parse_route
from ...discovery import Entry
from ...errors import ZBusError
from ...keys import fingerprint, short
from ...lan import Announcement
from ...printable import printable
from ...trust import Principal, Trust

SECONDS = 3.0  # in which whoever is there has answered
TO_PAIR = (
    "To pair: zbus-pair invite --lan on one machine, zbus-pair accept on the other. "
    "Compare the fingerprints that both show"
)
CLOSED = "This machine does not announce itself. To open it to the LAN: zbus-pair lan on"


@dataclass(frozen=True)
class Found:
    """Everybody who is known.

    Attributes:
        own: The first group of this user's own fingerprint; "" if that cannot be told.
        is_open: Whether this user's peers listen in the LAN.
        trouble: Why the store of the paired cannot be read, or "".
        lan_trouble: Why nobody of the LAN can be seen, or "".
    """

    local: list[Entry]
    paired: list[Principal]
    announced: list[Announcement]
    own: str = ""
    is_open: bool = False
    trouble: str = ""
    lan_trouble: str = ""

    def names_of(self, announcement: Announcement) -> list[str]:
        """The paired that it may be of."""
        return [principal.name for principal, _ in lan.matched([announcement], self.paired)]


def discover(seconds: float, as_json: bool, out: TextIO) -> int:
    """Print who is there; returns the exit status: 1 if the store of the paired is unusable.

    Args:
        seconds: How long to listen in the LAN.
        as_json: Print one JSON object.
    """
    found = _look(seconds)
    text = json.dumps(_as_json(found), indent=2) if as_json else "\n".join(_lines(found))
    print(printable(text, out), file=out, flush=True)
    return 1 if found.trouble else 0


def _look(seconds: float) -> Found:
    local, lan_trouble = discovery.peers(), lan.problem()
    announced = [] if lan_trouble else lan.browse(seconds)
    trust = Trust()
    try:
        own, paired, is_open = short(trust.keys.public), trust.principals(), bool(trust.lan)
    except ZBusError as error:
        return Found(local, [], announced, trouble=str(error), lan_trouble=lan_trouble)
    return Found(local, paired, announced, own, is_open, lan_trouble=lan_trouble)


# --- for programs ---------------------------------------------------------------------------------


def _as_json(found: Found) -> dict[str, Any]:
    return {
        "own": found.own,
        "listens_on_lan": found.is_open,
        "problems": [text for text in (found.trouble, found.lan_trouble) if text],
        "local": [
            {"name": one.name, "address": one.address, "url": one.url, "software": one.software}
            for one in found.local
        ],
        "paired": [
            {
                "name": one.name,
                "fingerprint": fingerprint(one.key),
                "permissions": sorted(one.permissions),
                "peers": {name: list(map(_shown, there)) for name, there in one.peers},
            }
            for one in found.paired
        ],
        "lan": [
            {
                "name": one.name,
                "addresses": list(one.addresses),
                "fingerprint": one.short,
                "own": one.short == found.own,
                "paired_as": found.names_of(one),
            }
            for one in found.announced
        ],
    }


# --- for people -----------------------------------------------------------------------------------


def _lines(found: Found) -> list[str]:
    lines = ["On this machine:"]
    lines += _table([[one.name, one.address, one.url] for one in found.local])
    lines.append("Paired:")
    lines += [f"  {found.trouble}"] if found.trouble else _table(_paired_rows(found))
    lines.append("In the local network:")
    lines += [f"  {found.lan_trouble}"] if found.lan_trouble else _table(_lan_rows(found))
    notes = []
    if any(one.short != found.own and not found.names_of(one) for one in found.announced):
        notes.append(f"{TO_PAIR}.")
    if not found.is_open:
        notes.append(f"{CLOSED}.")
    return [*lines, *notes]


def _paired_rows(found: Found) -> list[list[str]]:
    rows = []
    for one in found.paired:
        may = f"may here: {', '.join(sorted(one.permissions)) or 'nothing'}"
        there = [f"{name} at {', '.join(map(_shown, at))}" for name, at in one.peers if at]
        rows.append([one.name, short(one.key), may, "; ".join(there)])
    return rows


def _lan_rows(found: Found) -> list[list[str]]:
    return [
        [one.name, ", ".join(one.addresses), one.short, _relation(one, found)]
        for one in found.announced
    ]


def _relation(one: Announcement, found: Found) -> str:
    if one.short == found.own:
        return "your own"
    names = found.names_of(one)
    return f"paired as {' or '.join(names)}" if names else "not paired"


def _shown(address: str) -> str:
    return str(parse_route(address))  # of a URL, without its login


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [f"  {line}" for line in lines] or ["  nobody"]
