"""Pure: how near an address is, so that no redirect leads from outside to what is near.

A server elsewhere may answer with "go on at http://127.0.0.1:8188/...": what then asks there is
this computer, which may do in its own network what that server may not.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum


class Nearness(IntEnum):
    """Who can be reached at an address: the nearer, the fewer others can ask there."""

    OUTSIDE = 0
    PRIVATE = 1  # networks of one's own, and what is nobody's
    LINK = 2  # this wire alone; at clouds, where a machine asks for its own credentials
    LOOPBACK = 3


# RFC 2544: in no network. Tunnels of the fake-IP kind give such addresses to names from outside.
_STAND_INS = ipaddress.ip_network("198.18.0.0/15")
# RFC 6052: IPv4 in IPv6, behind a translator.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def nearness(numeric: str) -> Nearness:
    """How near a numeric address is, whichever way IPv4 is written into IPv6.

    Raises:
        ValueError: It is no numeric address.
    """
    address = _unwrapped(ipaddress.ip_address(numeric.partition("%")[0]))
    if address.is_loopback or address.is_unspecified:  # to connect to 0.0.0.0 is to come home
        return Nearness.LOOPBACK
    if address.is_link_local:
        return Nearness.LINK
    if address.is_global or (address.version == 4 and address in _STAND_INS):
        return Nearness.OUTSIDE
    return Nearness.PRIVATE


def _unwrapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if address.version == 4:
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address
