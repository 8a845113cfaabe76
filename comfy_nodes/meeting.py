"""Where two runs meet: what the nodes' `addr`, `mode`, `peer` and `channel` widgets mean."""

from __future__ import annotations

from typing import NamedTuple

from zbus.address import parse_dial, parse_listen
from zbus.errors import InputError
from zbus.manifest import JUMPER

MODES = ("Client", "Server")
LISTEN = "listen:"


class Meeting(NamedTuple):
    """An endpoint and a channel on it. kind: "listen", "dial" or "any"."""

    kind: str
    address: str
    channel: str


def at_addr(addr: str, mode: str) -> Meeting:
    """Where Jumper's nodes meet.

    Raises:
        InputError: The address or the mode cannot be used.
    """
    if mode not in MODES:
        raise InputError(f"mode is Client or Server, not {mode!r}")
    if mode == "Server":
        return Meeting("listen", str(parse_listen(addr)), JUMPER)
    return Meeting("dial", str(parse_dial(addr)), JUMPER)


def at_peer(peer: str, channel: str) -> Meeting:
    """Where zbus's own nodes meet.

    Raises:
        InputError: The peer or the channel cannot be used.
    """
    peer, channel = peer.strip(), channel.strip()
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
    return Meeting("dial", str(parse_dial(peer)), channel)
