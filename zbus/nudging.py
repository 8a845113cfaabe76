"""Tells this user's running peers that the trust store has changed: they look at it at once.

A peer looks at the store whenever somebody comes to its own listener. So coming there is enough.
"""

from __future__ import annotations

import contextlib
import time

from . import discovery
from .address import parse_dial
from .errors import TrustError
from .net.frames import Closed, Connected
from .net.transport import Transport
from .trust import Trust

WITHIN = 2.0  # seconds: a peer that loads a model looks by itself when it is done


def nudge(trust: Trust) -> int:
    """Come to the own listener of each; returns how many have looked."""
    seen = 0
    with contextlib.suppress(TrustError):
        transport = Transport(trust.keys)
        try:
            waiting = set()
            for entry in discovery.peers():
                address = parse_dial(entry.address)
                waiting.add(transport.dial(address.host, address.port, server=trust.keys.public))
            deadline = time.monotonic() + WITHIN
            while waiting and time.monotonic() < deadline:
                for event in transport.poll(deadline - time.monotonic()):
                    if isinstance(event, (Connected, Closed)):
                        waiting.discard(event.connection)
                        # One that has opened or closed its LAN listener hangs up on everybody.
                        seen += isinstance(event, Connected) or event.stage != "connect"
        finally:
            transport.close()
    return seen
