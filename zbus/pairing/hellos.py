"""What the two sides of a pairing tell each other, and what each stores of the other."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from .. import discovery, machine
from ..address import Address, parse_dial
from ..principals import MAX_ADDRESSES, MAX_NAME, MAX_PEERS, Peers
from ..trust import EXCHANGE, JOBS, Principal, Trust
from . import reach
from .invitation import Hello
from .reach import OWN_PORT, Reach

INVITER_GRANTS = frozenset((EXCHANGE, JOBS))
ACCEPTER_GRANTS = frozenset((EXCHANGE,))


def own_hello(trust: Trust, where: Reach | None = None, name: str = "") -> Hello:
    """What this side tells of itself.

    Args:
        trust: Says whether this user's ComfyUIs listen beyond the loopback.
        where: How others reach this machine; None: what can be found out.
        name: What it would be called; "": as the machine.
    """
    is_open = bool(trust.lan) and not is_loopback(trust.lan)
    where = where if where is not None else reach.own(trust.lan)
    hosts, ports = where.hosts if is_open else (), where.ports
    name = usable_name(name or socket.gethostname().split(".")[0])
    peers = []
    for entry in discovery.peers():
        port = parse_dial(entry.address).port
        outside = port if ports is None else ports.get(port, 0)
        peers.append((usable_name(entry.name), outside))
    if is_open and not peers:  # it will most likely be there
        outside = OWN_PORT if ports is None else ports.get(OWN_PORT, 0)
        peers.append((usable_name(f"{name}-{OWN_PORT - 10_000}"), outside))
    return Hello(name, tuple(dict(peers).items()), hosts, is_open, machine.boot_id())


def usable_name(text: str) -> str:
    """A text as a name that `principals.check_name` lets pass."""
    clean = "".join("-" if c in "/,:" else c for c in text if c.isprintable())
    return clean.strip()[:MAX_NAME].strip() or "computer"


# --- what is stored of the other ------------------------------------------------------------------


def store(
    trust: Trust, key: bytes, hello: Hello, name: str, grants: Iterable[str], went: str
) -> Principal:
    """Put the other into the store. Who is there already keeps its name, what it may do, and the
    addresses of what is not told of.

    Args:
        name: What to call it; "": what it is called already, or calls itself.
        went: The host by which the pairing went, or "".
    """
    trust.reload()
    known = trust.of(key)
    if known is None or not known.paired:
        known = Principal(key, "new")
        name = name or hello.name
    peers = dict(known.peers)
    for peer, addresses in _addresses(hello, went):
        peers[peer] = addresses or peers.get(peer, ())
    permissions = known.permissions | frozenset(grants)
    if len(peers) > MAX_PEERS:
        peers = dict(_addresses(hello, went))
    return trust.pair(key, name or known.name, permissions, tuple(peers.items()))


def _addresses(hello: Hello, went: str) -> Peers:
    """Each ComfyUI of the other, and where it is reached from here."""
    is_here = is_loopback(went) and hello.boot == machine.boot_id() != ""
    hosts = [went] if is_here or (hello.is_open and went and not is_loopback(went)) else []
    if hello.is_open:
        hosts += [host for host in hello.hosts if not is_loopback(host)]
    hosts = list(dict.fromkeys(hosts))[:MAX_ADDRESSES]
    return tuple(
        (peer, tuple(str(Address(host, port)) for host in hosts) if port else ())
        for peer, port in hello.peers
    )


def is_loopback(host: str) -> bool:
    """Whether a host is certainly this machine's loopback."""
    return Address(host, 1).is_loopback
