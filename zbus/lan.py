"""Peers of the local network, which tell of themselves by mDNS, where the LAN listener is open.

An announcement says a peer's name, where it listens, the first group of its key's fingerprint and
the protocol's version, and nothing more. Whoever is in that network can send one, with any name
and any fingerprint: so it grants nothing and proves nothing. It is a hint where a paired peer may
be found (`matched`); which peer answers there, its key alone decides.

Needs the zeroconf package. Without it nobody is announced or seen, the log says so, and all else
works.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import logging
import re
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .address import Address
from .in_time import in_time
from .keys import short
from .protocol.messages import VERSION
from .trust import Principal

if TYPE_CHECKING:
    from zeroconf import Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

logger = logging.getLogger(__name__)

TYPE = "_zbus._tcp.local."
MAX_SEEN = 256  # announcements
MAX_NAME = 80  # characters, as in HELLO
MAX_HOSTS = 8  # addresses of one announcement
MAX_LABEL = 63 - 4  # bytes of a DNS label, and room for a number where the name is taken
MAX_MARK = len(" (ABCDEFG-65535)")  # see `_mark`
LOOK = 30.0  # seconds between two looks at this machine's addresses, and at what is due anew
REGISTER = 30.0  # seconds in which a free name must be found
ASK = 3.0  # seconds for an announcement whose parts did not come together
ASKED_AT_ONCE = 16
EVERY_HOST = ("", "0.0.0.0", "::")
MISSING = "the package zeroconf is not installed"

_SHORT = re.compile(r"[A-Z2-7]{7}")  # a group of `keys.fingerprint`
# Interfaces to containers and virtual machines: their addresses lead elsewhere on other machines.
_VIRTUAL = re.compile(r"^(docker|podman|cni|br-|veth|virbr|lxc)|vmnet|vboxnet|host-only", re.I)


@dataclass(frozen=True)
class Announcement:
    """What something in the local network says of itself. Nothing of it is proved.

    Attributes:
        name: 1 to 80 printable characters.
        hosts: Numeric addresses, 1 to 8.
        port: Where it listens.
        short: The first group of its key's fingerprint.
    """

    name: str
    hosts: tuple[str, ...]
    port: int
    short: str

    @property
    def addresses(self) -> tuple[str, ...]:
        """Each as "host:port"."""
        return tuple(str(Address(host, self.port)) for host in self.hosts)


def matched(
    announcements: Iterable[Announcement], principals: Sequence[Principal]
) -> list[tuple[Principal, Announcement]]:
    """Those that may be of a paired principal: whose fingerprint begins as its key's does.

    A hint, and not more: names do not count, and a beginning can be forged. It never redirects a
    pair that exists. The store's addresses are to be tried first, these after them, and at each
    the principal's own key must answer: with another, no connection comes about.
    """
    beginnings = [(principal, short(principal.key)) for principal in principals]
    return [
        (principal, announcement)
        for announcement in announcements
        for principal, beginning in beginnings
        if announcement.short == beginning
    ]


def browse(seconds: float) -> list[Announcement]:
    """Who announces itself within so many seconds. Blocks."""
    browser = Browser()
    try:
        browser.wait(seconds)
        return browser.now()
    finally:
        browser.close()


def problem() -> str:
    """Why this machine can neither announce nor see anybody; "" if nothing is known against it."""
    if importlib.util.find_spec("zeroconf") is None:
        return f"{MISSING}. Install it where zbus runs: pip install zeroconf"
    return "" if lan_hosts() else "this machine is in no local network"


def lan_hosts(host: str = "") -> list[str]:
    """This machine's IPv4 addresses in local networks that a listener on `host` hears; at most 8.

    Needs ifaddr, which comes with zeroconf.
    """
    import ifaddr

    found = {
        address.ip: bool(_VIRTUAL.search(adapter.nice_name) or _VIRTUAL.search(adapter.name))
        for adapter in ifaddr.get_adapters()
        for address in adapter.ips
        if isinstance(address.ip, str) and _can_be_dialled(address.ip)
    }
    if host not in EVERY_HOST:
        return [host] if host in found else []
    real = [ip for ip, is_virtual in found.items() if not is_virtual]
    return sorted(real or found)[:MAX_HOSTS]


# --- a thread in the network ----------------------------------------------------------------------


class _Member:
    """Takes part in mDNS on a thread of its own, anew whenever this machine's addresses change.

    Args:
        host: Where the listener in question listens.
        after: One whose end is awaited first.
    """

    def __init__(self, host: str = "", after: _Member | None = None) -> None:
        self._host, self._after = host, after
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="zbus-lan", daemon=True)

    async def _begin(self, zeroconf: AsyncZeroconf, hosts: list[str]) -> None:
        raise NotImplementedError

    def _look(self, zeroconf: AsyncZeroconf) -> None:
        """What is due every `LOOK` seconds."""

    @property
    def closing(self) -> bool:
        return self._closing.is_set()

    def wait(self, seconds: float) -> None:
        """Until it has ended, or so many seconds are over."""
        self._thread.join(seconds)

    def close(self) -> None:
        """Leave. Returns at once; the goodbyes go out within half a second (see `wait`)."""
        if self._closing.is_set():
            return
        self._closing.set()
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended by itself
                loop.call_soon_threadsafe(task.cancel)

    def _run(self) -> None:
        if self._after is not None:
            self._after._thread.join()
            self._after = None
        if importlib.util.find_spec("zeroconf") is None:
            logger.warning("%s: this process has no part in finding peers on the LAN", MISSING)
            return
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._stay())

    async def _stay(self) -> None:
        # In this order: `close` reads them in the other one, and sets its flag before.
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        while not self._closing.is_set():
            hosts = lan_hosts(self._host)
            try:
                if hosts:
                    await self._stay_on(hosts)
                    continue
            except Exception as error:  # whatever it is: this is a convenience, and tried again
                logger.warning("finding peers on the LAN failed, tried again: %r", error)
            await asyncio.sleep(LOOK)

    async def _stay_on(self, hosts: list[str]) -> None:
        """Until the addresses have changed."""
        from zeroconf.asyncio import AsyncZeroconf

        zeroconf = AsyncZeroconf(interfaces=hosts)
        try:
            await self._begin(zeroconf, hosts)
            # By the flag, too: what lies between here and the network may swallow a cancel.
            while not self._closing.is_set() and lan_hosts(self._host) == hosts:
                await asyncio.sleep(LOOK)
                self._look(zeroconf)
        finally:
            await zeroconf.async_close()  # with the goodbyes


# --- to be seen -----------------------------------------------------------------------------------


class Announcer:
    """Tells the local network of this peer, from `announce` to `close`. Neither of them blocks."""

    def __init__(self) -> None:
        self._now: _Announcing | None = None

    def announce(self, name: str, port: int, key_short: str, host: str = "") -> None:
        """Tell of this, in place of what was told before.

        Args:
            name: The peer's. Others of the network may have it too.
            port: Of its own listener.
            key_short: `keys.short` of this user's public key.
            host: Where that listener listens; "" is every interface.
        """
        told = (name, port, key_short, host)
        if self._now is None or self._now.closing or self._now.told != told:
            self.close()
            self._now = _Announcing(*told, after=self._now)

    def close(self, wait: float = 0.0) -> None:
        """Tell of it no longer.

        Args:
            wait: Seconds for the goodbyes, where the process is about to end.
        """
        if self._now is not None:
            self._now.close()
            self._now.wait(wait)


class _Announcing(_Member):
    def __init__(
        self, name: str, port: int, key_short: str, host: str, after: _Member | None
    ) -> None:
        super().__init__(host, after)
        self.told = (name, port, key_short, host)
        self._thread.start()

    async def _begin(self, zeroconf: AsyncZeroconf, hosts: list[str]) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        name, port, key_short, _ = self.told
        info = AsyncServiceInfo(
            TYPE,
            f"{announced(name)}{_mark(key_short, port)}.{TYPE}",
            port=port,
            properties={"v": str(VERSION), "fp": key_short},
            # Nobody else's: two hosts of one name would overwrite each other's addresses.
            server=f"zbus-{secrets.token_hex(8)}.local.",
            parsed_addresses=hosts,
        )
        registering = zeroconf.async_register_service(info, allow_name_change=True)
        await (await in_time(registering, REGISTER))
        said = info.name.removesuffix(f".{TYPE}")
        logger.info("announced on the LAN as %r at %s, port %d", said, ", ".join(hosts), port)


def announced(name: str) -> str:
    """A name as DNS can take it, with its mark: zeroconf would take one with a dot apart."""
    printable = "".join(c for c in name if c.isprintable()).replace(".", "-")
    room = MAX_LABEL - MAX_MARK
    return printable.encode("utf-8", "ignore")[:room].decode("utf-8", "ignore").strip() or "zbus"


def _mark(key_short: str, port: int) -> str:
    """What makes an announcement's name unique by itself. Its name is its identity in mDNS, where
    upper and lower case do not count: of two machines that are called alike one would be hidden
    by the other. zeroconf numbers a name that is taken only where it is spelled alike, and not
    where both come at once."""
    return f" ({key_short}-{port})"


def _unmarked(name: str, key_short: str) -> str:
    """The name that people know, of the one that is announced."""
    mark = re.escape(f" ({key_short}-") + r"[0-9]{1,5}\)(-[0-9]+)?"
    return re.sub(f"{mark}$", "", name)


# --- to see others --------------------------------------------------------------------------------


class Browser(_Member):
    """Sees who announces itself, from when it is made until `close`."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, Announcement | None] = {}  # None: being asked for the rest
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._few = asyncio.Semaphore(ASKED_AT_ONCE)
        self._now: tuple[Announcement, ...] = ()
        self._thread.start()

    def now(self) -> list[Announcement]:
        """Who is there, this machine's own too, by name. One that went without a word stays for
        some minutes."""
        return sorted(self._now, key=lambda one: (one.name, one.hosts, one.port))

    async def _begin(self, zeroconf: AsyncZeroconf, hosts: list[str]) -> None:
        from zeroconf.asyncio import AsyncServiceBrowser

        for task in self._asking.values():
            task.cancel()
        self._asking.clear()
        self._seen.clear()
        AsyncServiceBrowser(zeroconf.zeroconf, TYPE, handlers=[self._changed])

    def _look(self, zeroconf: AsyncZeroconf) -> None:
        for name in list(self._seen):
            self._see(zeroconf.zeroconf, name)

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: Any) -> None:
        """zeroconf's word, on the loop; the names are its own."""
        if state_change.name == "Removed":
            self._put(name, None)
        elif name in self._seen or len(self._seen) < MAX_SEEN:
            self._see(zeroconf, name)

    def _see(self, zeroconf: Zeroconf, name: str) -> None:
        """Take what has come of that one, or ask for what is missing or too old."""
        info = _info(name)
        if info is None:
            return
        if info.load_from_cache(zeroconf):
            self._put(name, _checked(name, info))
        elif name not in self._asking:
            self._seen.setdefault(name, None)
            task = asyncio.get_running_loop().create_task(self._ask(zeroconf, name, info))
            self._asking[name] = task
            task.add_done_callback(lambda _: self._asked(name, task))

    async def _ask(self, zeroconf: Zeroconf, name: str, info: AsyncServiceInfo) -> None:
        from zeroconf import Error

        found = None
        with contextlib.suppress(Error, OSError, asyncio.TimeoutError):
            async with self._few:
                if await info.async_request(zeroconf, ASK * 1000):
                    found = _checked(name, info)
        self._put(name, found)

    def _asked(self, name: str, task: asyncio.Task[None]) -> None:
        if self._asking.get(name) is task:
            del self._asking[name]

    def _put(self, name: str, announcement: Announcement | None) -> None:
        if announcement is None:
            self._seen.pop(name, None)
        else:
            self._seen[name] = announcement
        self._now = tuple(one for one in self._seen.values() if one is not None)


def _info(name: str) -> AsyncServiceInfo | None:
    from zeroconf import Error
    from zeroconf.asyncio import AsyncServiceInfo

    try:
        return AsyncServiceInfo(TYPE, name) if name.endswith(f".{TYPE}") else None
    except Error:
        return None


def _checked(full_name: str, info: AsyncServiceInfo) -> Announcement | None:
    """What somebody in the network says, if it can be what it says."""
    port, said = info.port, info.properties.get(b"fp") or b""
    beginning = said[:20].decode("ascii", "replace")
    name = _unmarked(full_name.removesuffix(f".{TYPE}"), beginning)
    hosts = tuple(ip for ip in info.parsed_addresses() if _can_be_dialled(ip))[:MAX_HOSTS]
    if not (name.strip() and len(name) <= MAX_NAME and name.isprintable()):
        return None
    if not (isinstance(port, int) and 0 < port <= 65535 and hosts):
        return None
    return Announcement(name, hosts, port, beginning) if _SHORT.fullmatch(beginning) else None


def _can_be_dialled(ip: str) -> bool:
    """Whether that numeric address can be another machine's."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and (
        address.is_link_local or address.ipv4_mapped is not None
    ):
        return False  # means nothing without an interface, or hides another address
    return not (
        address.is_loopback or address.is_multicast or address.is_unspecified or address.is_reserved
    )
