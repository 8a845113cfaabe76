"""Where others reach this machine: on the loopback, in local networks, or as a cloud maps it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..address import Address, parse_dial
from ..errors import InputError
from ..lan import lan_hosts
from ..principals import EVERY_HOST
from .tokens import MAX_HINTS

PORT = 18187  # of the pairing socket
OWN_PORT = 18188  # where the first ComfyUI's own listener is
LOOPBACK = "127.0.0.1"
MAX_PORT = 65535
# The public address's variable, and what the ports' begin with; each is followed by the port
# inside. RunPod: https://docs.runpod.io/pods/configuration/expose-ports
# vast.ai: https://docs.vast.ai/guides/instances/connect/networking
CLOUDS = (("RUNPOD_PUBLIC_IP", "RUNPOD_TCP_PORT_"), ("PUBLIC_IPADDR", "VAST_TCP_PORT_"))
TOWARDS = "192.0.2.1"  # an address for documentation, RFC 5737: nothing is sent there


@dataclass(frozen=True)
class Mapped:
    """What a cloud says of this container: its public address, and port inside -> port outside."""

    host: str
    ports: Mapping[int, int] = field(default_factory=dict)

    def inside(self, outside: int) -> int | None:
        """The port here that is reached under `outside`."""
        return next((port for port, other in self.ports.items() if other == outside), None)


def mapped(environment: Mapping[str, str] = os.environ) -> Mapped | None:
    """What the environment says; None outside the clouds that are known, or without a mapping."""
    for host_name, prefix in CLOUDS:
        host = environment.get(host_name, "").strip()
        ports = {}
        for name, value in environment.items():
            inside, outside = _number(name.removeprefix(prefix)), _number(value)
            if name.startswith(prefix) and inside and 0 < outside <= MAX_PORT:
                # Above the range of ports it only numbers a port that is the same on both sides.
                ports[inside if inside <= MAX_PORT else outside] = outside
        if ports and _is_numeric(host):
            return Mapped(host, ports)
    return None


def hosts(listens_on: str = "") -> list[str]:
    """This machine's addresses in local networks that a listener on that host hears."""
    try:
        return lan_hosts(listens_on)
    except ImportError:  # of zeroconf's, which is missing
        if listens_on and not ipaddress.ip_address(listens_on).is_unspecified:
            return [listens_on]
        return _by_route()


@dataclass(frozen=True)
class Reach:
    """Where the pairing socket listens, and what others are told.

    Attributes:
        host: To listen on.
        port: To listen on.
        fixed: Whether no other port will do.
        hints: Where the accepter may reach it; port 0: the one that is listened on.
        hosts: Where this machine's ComfyUIs are reached.
        ports: As `Mapped.ports`, or None where ports are the same on both sides.
    """

    host: str = LOOPBACK
    port: int = PORT
    fixed: bool = False
    hints: tuple[Address, ...] = (Address(LOOPBACK, 0),)
    hosts: tuple[str, ...] = ()
    ports: dict[int, int] | None = field(default=None)


def own(lan: str) -> Reach:
    """What can be found out of a machine that listens on `lan`; that listens nowhere itself."""
    cloud = mapped()
    if cloud is not None:
        return Reach(hosts=(cloud.host,), ports=dict(cloud.ports))
    return Reach(hosts=tuple(hosts(lan)[:MAX_HINTS]) if lan else ())


def on_loopback(port: int = 0) -> Reach:
    """For other users of this machine, and through a tunnel."""
    return Reach(port=port or PORT, fixed=bool(port))


def in_lan(lan: str, port: int = 0) -> Reach:
    """For the local networks that a listener on `lan` hears.

    Raises:
        InputError: There is none.
    """
    found = hosts(lan)[:MAX_HINTS]
    if not found:
        raise InputError(
            "this machine is in no local network",
            remedy="Give the address under which the other one reaches it: --at HOST:PORT",
        )
    hints = tuple(Address(host, 0) for host in found)
    return Reach(lan, port or PORT, bool(port), hints, tuple(found))


def at(written: str, port: int = 0) -> Reach:
    """Under an address that leads here from elsewhere: "host:port"; or "", as the cloud says.

    Raises:
        InputError: It is no address; or the environment does not say which.
    """
    cloud = mapped()
    if not written:
        return _as_the_cloud_says(cloud, port or PORT)
    address = parse_dial(written)
    if cloud is not None and cloud.host != address.host:
        cloud = None  # it leads here in some other way
    inside = cloud.inside(address.port) if cloud is not None else None
    return Reach(
        LOOPBACK if address.is_loopback else EVERY_HOST,
        port or inside or address.port,
        True,
        (address,),
        () if address.is_loopback else (address.host,),
        dict(cloud.ports) if cloud is not None else None,
    )


def _as_the_cloud_says(mapped: Mapped | None, port: int) -> Reach:
    if mapped is None:
        raise InputError(
            "the environment does not say under which address this machine is reached",
            remedy="Give it: --at HOST:PORT",
        )
    if port not in mapped.ports:
        ports = ", ".join(str(inside) for inside in sorted(mapped.ports))
        raise InputError(
            f"port {port} of this machine is not reached from elsewhere; these are: {ports}",
            remedy=f"Have the TCP ports {port} and {OWN_PORT} exposed; or give one of these that "
            "is free: --port N; or pair through SSH: zbus-link, on the other machine",
        )
    hint = Address(mapped.host, mapped.ports[port])
    return Reach(EVERY_HOST, port, True, (hint,), (mapped.host,), dict(mapped.ports))


def _by_route() -> list[str]:
    """The address with which this machine speaks to the world."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((TOWARDS, 9))  # of UDP: sends nothing
        return [str(probe.getsockname()[0])]
    return []


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
