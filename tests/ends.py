"""Two peers of this process, joined through a proxy, with a channel at each end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from proxy import Proxy

from zbus import Channel, Peer, Settings
from zbus.trust import Trust


class Ends(NamedTuple):
    """A channel at each end of a link, and what carries it."""

    listening: Channel
    dialled: Channel
    proxy: Proxy
    server: Peer
    client: Peer


@contextlib.contextmanager
def linked(
    server: Settings | None = None, client: Settings | None = None, other: Trust | None = None
) -> Iterator[Ends]:
    """Open until the block ends. `other` is another user's, for the client."""
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(Peer("server", settings=server))
        listening = stack.enter_context(there.listen("127.0.0.1:0"))
        proxy = stack.enter_context(Proxy(listening.address))
        here = stack.enter_context(Peer("client", settings=client, trust=other))
        dialled = stack.enter_context(here.connect(proxy.address))
        yield Ends(listening, dialled, proxy, there, here)
