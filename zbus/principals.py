"""Who may be trusted, and trust.json, the file that says who is.

The file is for people too: JSON, one object. What it says is checked like anything that comes from
outside; one principal that cannot be used is passed over, and kept as it is.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import private
from .address import parse_route
from .errors import InputError, InvalidAddress, TrustError
from .keys import from_text, to_text
from .private import broken

logger = logging.getLogger(__name__)

EXCHANGE, JOBS = "exchange", "jobs"  # pass values to workflows here; run workflows here
PERMISSIONS = frozenset((EXCHANGE, JOBS))

VERSION = 1  # of trust.json
MAX_FILE = 1 << 20  # bytes
MAX_PRINCIPALS = 1000
MAX_PEERS = 64  # of one principal
MAX_ADDRESSES = 8  # of one peer
MAX_NAME = 80
MAX_ADDRESS = 300
EVERY_HOST = "0.0.0.0"

Peers = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Principal:
    """A user on a machine, as known here. Whoever holds one holds a checked one.

    Attributes:
        key: The public key that proves it: 32 bytes.
        name: What it is called here: unique, 1 to 80 printable characters without "/", "," or ":".
        permissions: What it may do here: of `PERMISSIONS`.
        peers: Its ComfyUIs: name -> addresses in the order of preference, each "host:port" or the
            URL of its page, which may hold a login.
        paired: Since when: ISO 8601, UTC; "" if it is not in the store.

    Raises:
        InputError: A field cannot be used.
    """

    key: bytes
    name: str
    permissions: frozenset[str] = frozenset()
    peers: Peers = field(default=(), repr=False)
    paired: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.key, bytes) or len(self.key) != 32:
            raise InputError("a public key is 32 bytes")
        check_name(self.name)
        if not self.permissions <= PERMISSIONS:
            raise InputError(f"permissions are {EXCHANGE} and {JOBS}")
        if len(self.peers) > MAX_PEERS:
            raise InputError(f"more than {MAX_PEERS} ComfyUIs of one principal")
        for name, addresses in self.peers:
            check_name(name)
            if len(addresses) > MAX_ADDRESSES:
                raise InputError(f"more than {MAX_ADDRESSES} addresses of {name}")
            for address in addresses:
                check_address(address)
        if len({name for name, _ in self.peers}) != len(self.peers):
            raise InputError("two ComfyUIs of one name")
        if len(self.paired) > 40 or not self.paired.isprintable():
            raise InputError("that is no time")


@dataclass(frozen=True)
class Store:
    """What trust.json says. `odd` are the principals that cannot be used, kept as they are."""

    principals: tuple[Principal, ...] = ()
    lan: str = ""
    require_pairing: bool = False
    odd: tuple[Any, ...] = ()


# --- what people and files may say ----------------------------------------------------------------


def check_name(name: object) -> None:
    """Let a name pass that can be used.

    Raises:
        InputError: It cannot.
    """
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
        raise InputError(f"a name is 1 to {MAX_NAME} characters")
    if not name.isprintable() or name != name.strip() or any(mark in name for mark in "/,:"):
        raise InputError(f'{name!r} cannot be a name: printable characters without "/", "," or ":"')


def check_address(address: object) -> None:
    """Let an address pass that can be dialled.

    Raises:
        InvalidAddress: Neither "host:port" nor the URL of a page, which is not repeated.
    """
    if not isinstance(address, str) or len(address) > MAX_ADDRESS or not address.isprintable():
        raise InvalidAddress(f"an address is a text of up to {MAX_ADDRESS} printable characters")
    parse_route(address)


def listen_host(written: str) -> str:
    """The host to listen on in "on", "off" or a numeric address; "" for none.

    Raises:
        InvalidAddress: None of these.
    """
    cleaned = written.strip().lower()
    if cleaned in ("", "off"):
        return ""
    if cleaned == "on":
        return EVERY_HOST
    try:
        return str(ipaddress.ip_address(cleaned.strip("[]")))
    except ValueError:
        raise InvalidAddress(
            f"{written[:MAX_NAME]!r} is not the address of a network interface",
            remedy='Give "on" (all of them), "off", or a numeric address such as 192.168.1.20',
        ) from None


# --- trust.json -----------------------------------------------------------------------------------


def read_store(file: Path) -> Store:
    data = private.read(file, MAX_FILE, closes=0o055)
    if data is None:
        return Store()
    try:
        values: Any = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise broken(file, "it is not JSON") from error
    if not isinstance(values, dict):
        raise broken(file, "it is not a JSON object")
    version = values.get("version")
    if type(version) is int and version > VERSION:
        raise TrustError(f"{file} was written by a newer zbus", remedy="Update this zbus")
    if type(version) is not int or version < 1:
        raise broken(file, '"version" is not 1')
    written, lan, require = (
        values.get(key, default)
        for key, default in (("principals", []), ("lan", ""), ("require_pairing", False))
    )
    if not isinstance(written, list) or len(written) > MAX_PRINCIPALS:
        raise broken(file, f'"principals" is not a list of up to {MAX_PRINCIPALS}')
    if not isinstance(lan, str) or not isinstance(require, bool):
        raise broken(file, '"lan" is not a text, or "require_pairing" not true or false')
    try:
        lan = listen_host(lan)
    except InvalidAddress as error:
        raise broken(file, '"lan" is not a numeric address') from error
    good, odd = _principals(file, written)
    return Store(good, lan, require, odd)


def _principals(file: Path, written: list[Any]) -> tuple[tuple[Principal, ...], tuple[Any, ...]]:
    good: list[Principal] = []
    odd = []
    keys, names = set(), set()
    for place, values in enumerate(written, 1):
        try:
            one = _principal(values)
            if one.key in keys or one.name.casefold() in names:
                raise InputError("its key or its name is there twice")
        except (KeyError, TypeError, ValueError) as error:
            what = (
                error.what
                if isinstance(error, InputError)
                else "a field is missing or of a wrong type"
            )
            logger.warning("%s: the principal at place %d is passed over: %s", file, place, what)
            odd.append(values)
            continue
        good.append(one)
        keys.add(one.key)
        names.add(one.name.casefold())
    return tuple(good), tuple(odd)


def _principal(values: Any) -> Principal:
    """One entry, checked.

    Raises:
        KeyError, TypeError, ValueError: It cannot be used.
    """
    permissions, peers = values["permissions"], values.get("peers", {})
    if not (isinstance(permissions, list) and isinstance(peers, dict)):
        raise TypeError
    if not all(isinstance(there, list) for there in peers.values()):
        raise TypeError
    key, name, paired = values["key"], values["name"], values.get("paired", "")
    if not (isinstance(key, str) and isinstance(paired, str)):
        raise TypeError
    # A permission that is not known here, of a newer zbus, is none.
    known = frozenset(word for word in permissions if isinstance(word, str)) & PERMISSIONS
    there = tuple((peer, tuple(addresses)) for peer, addresses in peers.items())
    return Principal(from_text(key), name, known, there, paired)


def to_json(file: Path, store: Store) -> bytes:
    """What `read_store` reads; `file` is for the text of an error.

    Raises:
        TrustError: It cannot be written so that it can be read again.
    """
    principals: list[Any] = [
        {
            "name": one.name,
            "key": to_text(one.key),
            "permissions": sorted(one.permissions),
            "peers": {name: list(addresses) for name, addresses in one.peers},
            "paired": one.paired,
        }
        for one in store.principals
    ]
    values = {
        "version": VERSION,
        "lan": store.lan,
        "require_pairing": store.require_pairing,
        "principals": principals + list(store.odd),
    }
    try:
        data = json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"
    except (ValueError, RecursionError) as error:  # what was passed over, half a character in it
        raise broken(file, "a principal in it cannot be written again") from error
    if len(data) > MAX_FILE:
        raise TrustError(
            f"{file} would be larger than {MAX_FILE >> 20} MiB",
            remedy="Forget some: zbus-pair forget",
        )
    return data
