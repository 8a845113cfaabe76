"""The texts for a peer that answers and is not the one that was meant."""

from __future__ import annotations

from .errors import WrongPeer
from .remote import Remote


def wrong_peer(remote: Remote, name: str) -> WrongPeer:
    """`name` answers in its place."""
    port = remote.address.rpartition(":")[2]
    is_port = port.isdigit()
    return WrongPeer(
        f"{name} answers there, and not {remote.name or 'the peer that was meant'}",
        peer=remote.where,
        remedy="If that ComfyUI is reached through a tunnel, forward its zbus port too, to a port "
        "that is free here (ssh -N -L 127.0.0.1:18190:127.0.0.1:"
        f"{port if is_port else 18188} USER@HOST), and say so: "
        "zbus-pair move NAME 127.0.0.1:18190; or give the URL of its page",
    )
