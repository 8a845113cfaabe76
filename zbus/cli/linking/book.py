"""Which port here leads to which ComfyUI there, and what the trust store is told of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ...address import Address, parse_route
from ...errors import InputError
from ...principals import EXCHANGE, MAX_ADDRESSES, MAX_PEERS, Principal
from ...trust import Trust
from .ssh import is_free

FIRST_PORT = 28188  # 18188 is this computer's own
LAST_PORT = 65535
NAME = "cloud"


def ports(
    trust: Trust, key: bytes, names: Iterable[str], held: Mapping[str, int], taken: Collection[int]
) -> dict[str, int]:
    """A port for each of a principal's ComfyUIs: the one that it has, else the one of the last
    link, else one that is free.

    Args:
        held: What they have now.
        taken: Ports that will not do.

    Raises:
        InputError: There is none.
    """
    trust.reload()
    known = trust.of(key)
    stored = dict(known.peers) if known is not None else {}
    found: dict[str, int] = {}
    for name in names:
        last = [at.port for at in map(parse_route, stored.get(name, ())) if _is_link(at)]
        wanted = [port for port in last if port >= FIRST_PORT]
        avoided = {*taken, *found.values(), *held.values()}
        port = held.get(name)
        if port is None or port in taken:
            port = next((one for one in wanted if one not in avoided and is_free(one)), None)
        found[name] = port or _free_port(avoided)
    return found


def enter(
    trust: Trust, key: bytes, name: str, links: Mapping[str, int], replaces: Principal | None = None
) -> Principal:
    """Put into the store who is there, and that these ports lead to its ComfyUIs. What it may do
    here, and other ways there, stay; tunnels that stand no more go.

    Args:
        name: What to call it; "": what it is called already, or NAME.
        links: Its ComfyUIs -> the port here.
        replaces: Whose name it gets, and who is trusted no longer.
    """
    trust.reload()
    known = trust.of(key)
    known = known if known is not None and known.paired else None
    if replaces is not None:
        trust.forget(replaces.name)
    peers = {peer: (str(Address("127.0.0.1", port)),) for peer, port in links.items()}
    ours = {address for addresses in peers.values() for address in addresses}
    _withdraw(trust, key, ours)
    for peer, addresses in known.peers if known is not None else ():
        there = tuple(at for at in addresses if at not in ours and _stands(at))
        if peer in peers or there or not addresses:
            peers[peer] = (*peers.get(peer, ()), *there)[:MAX_ADDRESSES]
    permissions = (known.permissions if known is not None else frozenset()) | {EXCHANGE}
    called = name or (known.name if known is not None else NAME)
    return trust.pair(key, called, permissions, tuple(peers.items())[:MAX_PEERS])


def holder(trust: Trust, name: str, keys: Collection[bytes]) -> Principal | None:
    """Who else has that name."""
    trust.reload()
    return next(
        (
            one
            for one in trust.principals()
            if one.name.casefold() == name.casefold() and one.key not in keys
        ),
        None,
    )


def _withdraw(trust: Trust, key: bytes, ours: Collection[str]) -> None:
    """Those addresses lead to nobody else any more: an old link of another machine may have had
    them."""
    for one in trust.principals():
        for peer, addresses in one.peers if one.key != key else ():
            left = [address for address in addresses if address not in ours]
            if len(left) < len(addresses):
                trust.move(one.name, left, peer)


def _is_link(address: Address) -> bool:
    return address.is_loopback and not address.url


def _stands(written: str) -> bool:
    """Whether that way may lead there: of a tunnel, whether somebody holds its port."""
    address = parse_route(written)
    return not (_is_link(address) and is_free(address.port))


def _free_port(avoided: Collection[int]) -> int:
    for port in range(FIRST_PORT, LAST_PORT + 1):
        if port not in avoided and is_free(port):
            return port
    raise InputError(
        f"no port from {FIRST_PORT} up is free on this computer",
        remedy="End what holds them: each zbus-link that runs holds one for each ComfyUI",
    )
