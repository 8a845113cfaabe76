"""Where two runs meet: what the nodes' `addr`, `mode`, `peer` and `channel` widgets mean."""

from __future__ import annotations

from typing import NamedTuple

from zbus.address import parse_dial, parse_listen
from zbus.errors import InputError
from zbus.printable import clean
from zbus.protocol.manifest import JUMPER

MODES = ("Client", "Server")
LISTEN = "listen:"


class Meeting(NamedTuple):
    """An endpoint and a channel on it. kind: "listen", "dial", "any", or "peer" with a name or the
    URL of a ComfyUI as its address."""

    kind: str
    address: str
    channel: str


def at_addr(addr: str, mode: str) -> Meeting:
    """Where Jumper's nodes meet. With a peer's name or a URL for an address, the mode makes no
    difference: either side may be the one that dials.

    Raises:
        InputError: The address or the mode cannot be used.
    """
    if mode not in MODES:
        raise InputError(f"mode is Client or Server, not {mode!r}")
    if _is_name(addr):
        return Meeting("peer", addr.strip(), JUMPER)
    if mode == "Server":
        return Meeting("listen", str(parse_listen(addr)), JUMPER)
    return Meeting("dial", str(parse_dial(addr)), JUMPER)


def at_peer(peer: str, channel: str) -> Meeting:
    """Where zbus's own nodes meet.

    Raises:
        InputError: The peer or the channel cannot be used.
    """
    peer, channel = peer.strip(), clean(channel).strip()  # a wide space, say, is a space
    if not channel or len(channel) > 80:
        raise InputError("a channel has a name of 1 to 80 characters", remedy='Write "main"')
    if channel == JUMPER:
        raise InputError(
            f'the channel "{JUMPER}" belongs to ComfyUI-Jumper\'s nodes',
            remedy="Use another name on both sides, or Jumper's nodes on both",
        )
    if not peer:
        return Meeting("any", "", channel)
    if peer.startswith(LISTEN):
        return Meeting("listen", str(parse_listen(peer)), channel)
    if _is_name(peer):
        return Meeting("peer", peer, channel)
    return Meeting("dial", str(parse_dial(peer)), channel)


def _is_name(written: str) -> bool:
    """Whether that is no "host:port", which is a plain address for ever: names hold no colon."""
    cleaned = written.strip()
    if not cleaned or "://" in cleaned:
        return bool(cleaned)
    is_host = cleaned.lower() == "localhost" or cleaned.replace(".", "").isdigit()
    return ":" not in cleaned and not is_host  # a host's port was forgotten: it is told
