"""Announcements in the local network: what is told, what is believed, and what never is."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import operator
import random
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from children import ROOT, until

from zbus import discovery, keys, lan
from zbus.cli.pinging import discover
from zbus.lan import Announcement, Announcer, Browser
from zbus.protocol.messages import VERSION
from zbus.resolver import Resolver
from zbus.trust import EXCHANGE, Principal, Trust

MDNS = ("224.0.0.251", 5353)
SHORT = "ABCDEF2"


def principal(name: str, key: bytes | None = None) -> Principal:
    key = key or keys.generate().public
    return Principal(key, name, frozenset([EXCHANGE]), ((name, ("10.0.0.5:18188",)),))


def announcement(name: str = "desk-8188", short: str = SHORT, port: int = 18188) -> Announcement:
    return Announcement(name, ("192.168.1.20",), port, short)


# --- whom an announcement may be of ---------------------------------------------------------------


def test_a_fingerprint_matches_its_principal_and_no_other() -> None:
    cloud, desk = principal("cloud"), principal("desk")
    of_cloud = announcement("whatever", keys.short(cloud.key))
    stranger = announcement("stranger", SHORT)
    assert lan.matched([of_cloud, stranger], [cloud, desk]) == [(cloud, of_cloud)]


def test_a_name_alone_matches_nobody() -> None:
    cloud = principal("cloud")
    assert lan.matched([announcement("cloud")], [cloud]) == []


def test_a_forged_beginning_is_a_hint_beside_the_true_one_and_changes_nothing_of_the_pair() -> None:
    """It costs a minute to make a key whose fingerprint begins alike. So what is stored stays
    what it is, and whoever dials takes the key from the principal, never from the network."""
    cloud = principal("cloud")
    before = repr(cloud), cloud.key, cloud.peers
    true = announcement("cloud", keys.short(cloud.key))
    forged = announcement("cloud", keys.short(cloud.key), port=6666)
    found = lan.matched([forged, true], [cloud])
    assert found == [(cloud, forged), (cloud, true)]
    assert (repr(cloud), cloud.key, cloud.peers) == before
    assert all(one is cloud for one, _ in found)


@pytest.mark.parametrize("name", ["cloud", "cloud-8188", "evil"])
@pytest.mark.parametrize("copied", [True, False])
def test_a_spoofed_announcement_redirects_no_pair(tmp_path: Path, name: str, copied: bool) -> None:
    """Its name may be anybody's, and a fingerprint's beginning is there to be copied."""
    trust = Trust(tmp_path / "home")
    key, way = keys.generate().public, "10.0.0.5:18188"
    trust.pair(key, "cloud", [EXCHANGE], (("cloud-8188", (way,)),))
    before = Resolver(trust).named("cloud")
    spoofed = announcement(name, keys.short(key) if copied else SHORT, port=6666)
    for known_as in ("cloud", "cloud-8188", "cloud/cloud-8188"):
        now = Resolver(trust, seen=[spoofed]).named(known_as)
        assert (now.address, now.key) == (way, key), known_as
    now = Resolver(trust, seen=[spoofed]).named("cloud")
    assert (now.address, now.peer, now.instance) == (before.address, before.peer, before.instance)


def test_nothing_in_an_announcement_is_a_key() -> None:
    assert {"name", "hosts", "port", "short"} == set(vars(announcement()))


# --- what is believed -----------------------------------------------------------------------------


def heard(**changes: Any) -> SimpleNamespace:
    """What zeroconf says of somebody."""
    said = {"port": 18188, "properties": {b"fp": SHORT.encode(), b"v": b"1"}}
    hosts = changes.pop("hosts", ["192.168.1.20"])
    return SimpleNamespace(**{**said, **changes}, parsed_addresses=lambda: hosts)


def checked(name: str = "desk-8188", **changes: Any) -> Announcement | None:
    info: Any = heard(**changes)
    return lan._checked(f"{name}.{lan.TYPE}", info)


def test_a_good_one_is_taken() -> None:
    assert checked() == announcement()
    assert checked("Büro 2") == announcement("Büro 2")
    assert checked("x" * 80) is not None


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a\nb", "a\x1b[31m", "a\u202eb", "a\ud800"])
def test_a_bad_name_is_not(name: str) -> None:
    assert checked(name) is None


@pytest.mark.parametrize("port", [None, 0, -1, 65536])
def test_a_bad_port_is_not(port: int | None) -> None:
    assert checked(port=port) is None


@pytest.mark.parametrize(
    "said",
    [
        None,
        b"",
        b"abcdef2",
        b"ABCDEF",
        b"ABCDEF22",
        b"ABCDEF1",
        b"ABCDEF2\n",
        b"\xff" * 7,
        b"A" * 250,
    ],
)
def test_a_bad_fingerprint_is_not(said: bytes | None) -> None:
    assert checked(properties={b"fp": said}) is None
    assert checked(properties={}) is None


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "224.0.0.251", "ff02::fb", "fe80::1"],
)
def test_an_address_that_is_no_other_machines_is_not(host: str) -> None:
    assert checked(hosts=[host]) is None
    there = checked(hosts=[host, "192.168.1.20"])
    assert there is not None and there.hosts == ("192.168.1.20",)


def test_eight_addresses_are_taken_at_most() -> None:
    there = checked(hosts=[f"10.0.0.{n}" for n in range(1, 200)])
    assert there is not None and there.hosts == tuple(f"10.0.0.{n}" for n in range(1, 9))


def test_addresses_are_written_for_dialling() -> None:
    there = Announcement("x", ("10.0.0.1", "2001:db8::1"), 18188, SHORT)
    assert there.addresses == ("10.0.0.1:18188", "[2001:db8::1]:18188")


def test_a_name_is_made_fit_for_dns() -> None:
    assert lan.announced("desk-8188") == "desk-8188"
    assert lan.announced("desk.home\n") == "desk-home"
    assert lan.announced("\x00") == "zbus"
    assert lan.announced("ü" * 80) == "ü" * 21  # 42 bytes: a label has 63, mark and number 20
    whole = f"{lan.announced('x' * 80)}{lan._mark(SHORT, 65535)}-999"
    assert len(whole) == 63


def test_a_name_is_shown_without_the_mark_that_makes_it_unique() -> None:
    assert checked(f"desk-8188{lan._mark(SHORT, 18188)}") == announcement()
    assert checked(f"desk-8188{lan._mark(SHORT, 18188)}-2") == announcement()
    kept = f"desk-8188{lan._mark('BBBBBB2', 18188)}"
    assert checked(kept) == announcement(kept), "another one's is no mark"
    assert checked(lan._mark(SHORT, 18188)) is None, "nothing is left of it"


# --- this machine's addresses ---------------------------------------------------------------------


def adapters(**interfaces: list[Any]) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(name=name, nice_name=name, ips=[SimpleNamespace(ip=ip) for ip in ips])
        for name, ips in interfaces.items()
    ]


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    ifaddr = pytest.importorskip("ifaddr", reason="the package zeroconf is not installed")

    def have(**found: list[Any]) -> None:
        monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters(**found))

    return have


def test_the_loopback_and_bridges_to_containers_are_left_out(
    interfaces: Callable[..., None],
) -> None:
    interfaces(
        lo=["127.0.0.1", ("::1", 0, 0)],
        docker0=["172.17.0.1"],
        veth12=["172.18.0.1"],
        eth0=["192.168.1.20", ("2001:db8::1", 0, 0)],
        wlan0=["192.168.1.21"],
    )
    assert lan.lan_hosts() == lan.lan_hosts("0.0.0.0") == ["192.168.1.20", "192.168.1.21"]


def test_a_bridge_counts_where_there_is_nothing_else(interfaces: Callable[..., None]) -> None:
    interfaces(lo=["127.0.0.1"], virbr0=["192.168.122.1"])
    assert lan.lan_hosts() == ["192.168.122.1"]


def test_a_listener_on_one_interface_is_announced_there_alone(
    interfaces: Callable[..., None],
) -> None:
    interfaces(eth0=["192.168.1.20"], wlan0=["192.168.1.21"])
    assert lan.lan_hosts("192.168.1.21") == ["192.168.1.21"]
    assert lan.lan_hosts("10.9.9.9") == lan.lan_hosts("127.0.0.1") == []


def test_no_network_is_said(interfaces: Callable[..., None]) -> None:
    interfaces(lo=["127.0.0.1"])
    assert lan.problem() == "this machine is in no local network"


# --- without the package --------------------------------------------------------------------------


def test_without_zeroconf_there_is_a_line_in_the_log_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "zeroconf" else found(name)
    )
    began = time.monotonic()
    assert lan.browse(60) == []
    assert time.monotonic() - began < 30, "it waited for what cannot come"
    assert lan.MISSING in caplog.text
    caplog.clear()
    announcer = Announcer()
    announcer.announce("desk-8188", 18188, SHORT)
    announcer.close(wait=20)
    assert caplog.text.count(lan.MISSING) == 1
    assert lan.problem().startswith(lan.MISSING) and "pip install zeroconf" in lan.problem()


def test_importing_it_imports_no_zeroconf() -> None:
    code = "import sys, zbus.lan, zbus.cli.pinging.discover; print('zeroconf' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"


# --- on a real network of one machine -------------------------------------------------------------


@pytest.fixture(scope="session")
def multicast() -> None:
    """Skips where no multicast passes on the loopback."""
    pytest.importorskip("zeroconf", reason="the package zeroconf is not installed")
    try:
        with _listener() as hears, Foreign("_none") as speaks:
            hears.settimeout(5)
            mark = secrets.token_bytes(8)
            speaks.send(mark)
            while mark not in hears.recv(9000):
                pass
    except OSError as error:
        pytest.skip(f"no multicast on the loopback here: {error}")


@contextlib.contextmanager
def _listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hears:
        hears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            hears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        hears.bind(("", MDNS[1]))
        group = socket.inet_aton(MDNS[0]) + socket.inet_aton("127.0.0.1")
        hears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        yield hears


@pytest.fixture
def loopback(multicast: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The loopback as the LAN, with a service type of this test's own, which it returns."""
    kind = f"_zbus{secrets.token_hex(4)}._tcp.local."
    monkeypatch.setattr(lan, "TYPE", kind)
    monkeypatch.setattr(lan, "lan_hosts", lambda host="": ["127.0.0.1"])
    return kind


@pytest.fixture
def browser(loopback: str) -> Iterator[Browser]:
    made = Browser()
    with Foreign(loopback) as foreign:
        until(lambda: foreign.announce("first") or made.now(), 20, "it takes part")
        until(lambda: foreign.announce("first", ttl=0) or not made._seen, 20, "nobody is left")
    yield made
    made.close()
    made.wait(20)
    assert not made._thread.is_alive()


@pytest.fixture
def announcer() -> Iterator[Announcer]:
    made = Announcer()
    yield made
    made.close(wait=20)
    assert made._now is None or not made._now._thread.is_alive()


class Foreign:
    """Another mDNS program, which says what it likes: RFC 1035's records, written by hand."""

    def __init__(self, kind: str) -> None:
        self.kind = kind.rstrip(".")
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
        )

    def __enter__(self) -> Foreign:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendto(data, MDNS)

    def announce(self, name: str, **changes: Any) -> None:
        self.send(self.packet(name, **changes))

    def packet(
        self,
        name: str,
        port: int = 18188,
        text: bytes = b"\x0afp=" + SHORT.encode() + b"\x03v=1",
        hosts: tuple[str, ...] = ("10.1.2.3",),
        ttl: int = 120,
        parts: str = "PTR SRV TXT A",
    ) -> bytes:
        full, server = f"{name}.{self.kind}", f"{secrets.token_hex(4)}.local"
        records = []
        if "PTR" in parts:
            records.append(_record(self.kind, 12, ttl, _name(full)))
        if "SRV" in parts:
            records.append(_record(full, 33, ttl, struct.pack(">3H", 0, 0, port) + _name(server)))
        if "TXT" in parts:
            records.append(_record(full, 16, ttl, text))
        if "A" in parts.split():
            records += [_record(server, 1, ttl, socket.inet_aton(host)) for host in hosts]
        return struct.pack(">6H", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def _name(full: str) -> bytes:
    labels = [label.encode() for label in full.split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _record(name: str, kind: int, ttl: int, data: bytes) -> bytes:
    return _name(name) + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def test_what_is_told_is_name_port_and_the_beginning_of_the_fingerprint(
    loopback: str, announcer: Announcer
) -> None:
    """Seen with zeroconf's own browser, as any program would."""
    announcer.announce("desk.home-8188", 18188, SHORT)
    with seen_by_zeroconf(loopback) as infos:
        until(lambda: infos, 30, "the announcement")
        (info,) = infos.values()
    assert info.name == f"desk-home-8188 ({SHORT}-18188).{loopback}"
    assert info.port == 18188
    assert info.properties == {b"v": str(VERSION).encode(), b"fp": SHORT.encode()}
    assert info.parsed_addresses() == ["127.0.0.1"]
    assert socket.gethostname() not in str(info.server)


@contextlib.contextmanager
def seen_by_zeroconf(kind: str) -> Iterator[dict[str, Any]]:
    from zeroconf import ServiceBrowser, ServiceInfo, Zeroconf

    infos: dict[str, ServiceInfo] = {}

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: Any) -> None:
        info = ServiceInfo(service_type, name)
        if state_change.name != "Removed" and info.request(zeroconf, 3000):
            infos[name] = info
        elif state_change.name == "Removed":
            infos.pop(name, None)

    watching = Zeroconf(interfaces=["127.0.0.1"])
    try:
        ServiceBrowser(watching, kind, handlers=[changed])
        yield infos
    finally:
        watching.close()


class Looking(Browser):
    """Looks at all it has seen all the time, and counts that."""

    looks = 0

    def _look(self, zeroconf: Any) -> None:
        super()._look(zeroconf)
        self.looks += 1


@pytest.mark.parametrize("second", ["desk", "DESK", "Desk"])
def test_two_of_one_name_in_any_case_are_both_seen_with_their_own_address(
    loopback: str, announcer: Announcer, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    """mDNS looks names up without regard to case: one of them would hide the other."""
    monkeypatch.setattr(lan, "LOOK", 0.05)
    monkeypatch.setattr(lan, "_can_be_dialled", bool)  # the loopback, too
    other, browser = Announcer(), Looking()
    by_port = operator.attrgetter("port")
    want = [("desk", 18188, SHORT), (second, 18189, "BBBBBB2")]

    def found() -> list[tuple[str, int, str]]:
        return [(one.name, one.port, one.short) for one in sorted(browser.now(), key=by_port)]

    try:
        with seen_by_zeroconf(loopback) as infos:
            announcer.announce("desk", 18188, SHORT)
            other.announce(second, 18189, "BBBBBB2")
            until(lambda: found() == want, 30, "both")
            until(lambda: len(infos) == 2, 30, "both, in another program")
            servers = {info.server for info in infos.values()}
            before = browser.looks
            until(lambda: browser.looks > before + 2, 30, "it has looked again")
            assert found() == want
    finally:
        for one in (other, browser):
            one.close()
    assert len(servers) == 2, "of one name they would overwrite each other's addresses"


def test_it_goes_with_a_goodbye_and_can_come_again(loopback: str, announcer: Announcer) -> None:
    with seen_by_zeroconf(loopback) as infos:
        announcer.announce("desk", 18188, SHORT)
        until(lambda: infos, 30, "the announcement")
        announcer.close()
        until(lambda: not infos, 30, "the goodbye")
        announcer.announce("desk", 18188, SHORT)
        same = [f"desk ({SHORT}-18188).{loopback}"]
        until(lambda: list(infos) == same, 30, "the same name again")


def test_what_is_told_anew_replaces_what_was(loopback: str, announcer: Announcer) -> None:
    with seen_by_zeroconf(loopback) as infos:
        announcer.announce("desk", 18188, SHORT)
        until(lambda: infos, 30, "the announcement")
        announcer.announce("desk", 18190, SHORT)
        until(lambda: [i.port for i in infos.values()] == [18190], 30, "the new port")
        assert list(infos) == [f"desk ({SHORT}-18190).{loopback}"], "and no number"


def test_neither_beginning_nor_end_waits_for_the_network(
    loopback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, asked = threading.Event(), threading.Event()

    def slow(host: str = "") -> list[str]:
        asked.set()
        held.wait(60)
        return []

    monkeypatch.setattr(lan, "lan_hosts", slow)
    announcer = Announcer()
    announcer.announce("desk", 18188, SHORT)
    assert asked.wait(20)
    announcer.announce("desk", 18189, SHORT)
    announcer.close()
    assert not held.is_set()
    held.set()
    announcer.close(wait=20)
    assert not [t for t in threading.enumerate() if t.name == "zbus-lan" and t.is_alive()]


def test_what_fails_in_it_is_tried_again(
    loopback: str,
    announcer: Announcer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[int] = []
    begin = lan._Announcing._begin

    async def failing(self: Any, *given: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("the network is away")
        await begin(self, *given)

    monkeypatch.setattr(lan, "LOOK", 0.05)
    monkeypatch.setattr(lan._Announcing, "_begin", failing)
    caplog.set_level(logging.INFO)
    announcer.announce("desk", 18188, SHORT)
    until(lambda: "announced on the LAN" in caplog.text, 30)
    assert "tried again: OSError('the network is away')" in caplog.text


# --- hostile words --------------------------------------------------------------------------------


def names(browser: Browser) -> list[str]:
    return [one.name for one in browser.now()]


def test_a_foreign_announcement_is_seen(browser: Browser, loopback: str) -> None:
    with Foreign(loopback) as foreign:
        foreign.announce("Büro 2", hosts=("10.1.2.3", "127.0.0.1", "10.1.2.4"))
        until(lambda: browser.now(), 20, "the announcement")
    (seen,) = browser.now()
    assert (seen.name, seen.port, seen.short) == ("Büro 2", 18188, SHORT)
    assert sorted(seen.hosts) == ["10.1.2.3", "10.1.2.4"]


def test_what_cannot_be_is_not_listed(browser: Browser, loopback: str) -> None:
    with Foreign(loopback) as foreign:
        foreign.announce("port", port=0)
        foreign.announce("bell\a")
        foreign.announce("long." + ".".join(["x" * 40] * 3))
        foreign.announce("mute", text=b"")
        foreign.announce("shy", text=b"\x02fp")
        foreign.announce("self", hosts=("127.0.0.1",))
        foreign.announce("good")
        until(lambda: "good" in names(browser), 20, "the good one")
        until(lambda: list(browser._seen) == [f"good.{loopback}"], 20, "the others' slots are free")
    assert names(browser) == ["good"]


def test_a_flood_is_bounded_and_leaves_with_its_goodbyes(browser: Browser, loopback: str) -> None:
    flood = [f"x{n}" for n in range(lan.MAX_SEEN * 2)]
    with Foreign(loopback) as foreign:
        # Again and again: a socket's buffer may lose some of so many.
        def full() -> bool:
            for name in flood:
                foreign.announce(name)
            return len(browser.now()) >= lan.MAX_SEEN

        until(full, 60, "as many as may be")
        assert len(browser.now()) == len(browser._seen) == lan.MAX_SEEN

        def gone() -> bool:
            for name in flood:
                foreign.announce(name, ttl=0)
            return len(browser.now()) < lan.MAX_SEEN

        until(gone, 60, "free places")
        until(lambda: foreign.announce("good") or "good" in names(browser), 60, "a good one")


def test_names_with_nothing_behind_them_hold_no_place(
    browser: Browser, loopback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lan, "ASK", 0.2)
    with Foreign(loopback) as foreign:
        for n in range(50):
            foreign.announce(f"empty{n}", parts="PTR")
        until(lambda: browser._seen, 20, "some are asked for")
        until(lambda: not browser._seen and not browser._asking, 60, "nobody has answered")
        foreign.announce("good")
        until(lambda: names(browser) == ["good"], 20)


def test_what_comes_in_pieces_is_put_together(browser: Browser, loopback: str) -> None:
    with Foreign(loopback) as foreign:
        foreign.announce("slow", parts="PTR")
        until(lambda: f"slow.{loopback}" in browser._seen, 20, "it is asked for")
        assert browser.now() == []
        foreign.announce("slow", parts="SRV TXT A")
        until(lambda: names(browser) == ["slow"], 20)


def test_garbage_changes_nothing(browser: Browser, loopback: str) -> None:
    dice = random.Random(1)
    with Foreign(loopback) as foreign:
        for _ in range(300):
            foreign.send(dice.randbytes(dice.randrange(1, 1400)))
        whole = foreign.packet("torn")
        for _ in range(300):
            torn = bytearray(whole)
            for _ in range(dice.randrange(1, 6)):
                torn[dice.randrange(len(torn))] = dice.randrange(256)
            foreign.send(bytes(torn[: dice.randrange(len(torn))]))
        until(lambda: foreign.announce("good") or "good" in names(browser), 20, "the good one")


# --- what zbus-ping --discover says ---------------------------------------------------------------


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trust:
    """A machine with one peer, paired with "cloud" at an address with a login; nobody in the LAN
    so far."""
    monkeypatch.setenv("ZBUS_HOME", str(tmp_path / "home"))
    for name in ("ZBUS_TRUST", "ZBUS_LISTEN"):
        monkeypatch.delenv(name, raising=False)
    discovery.register(
        discovery.Entry.of_this_process("0" * 32, "desk-8188", "127.0.0.1:18188", url="http://x:1")
    )
    trust = Trust()
    there = ("10.0.0.5:18188", "https://user:geheim@cloud.example//")
    trust.pair(keys.generate().public, "cloud", [EXCHANGE], (("cloud-8188", there),))
    hear(monkeypatch)
    return trust


def hear(monkeypatch: pytest.MonkeyPatch, *announcements: Announcement, why: str = "") -> None:
    monkeypatch.setattr(lan, "browse", lambda seconds: list(announcements))
    monkeypatch.setattr(lan, "problem", lambda: why)


def said(as_json: bool = False) -> tuple[str, int]:
    out = io.StringIO()
    status = discover.discover(3.0, as_json, out)
    return out.getvalue(), status


def test_it_lists_this_machine_the_paired_and_the_lan(
    known: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cloud,) = known.principals()
    hear(
        monkeypatch,
        announcement("desk-8188", keys.short(known.keys.public)),
        announcement("other-8188"),
        announcement("render", keys.short(cloud.key), port=18190),
    )
    text, status = said()
    assert status == 0
    assert text.splitlines() == [
        "On this machine:",
        "  desk-8188  127.0.0.1:18188  http://x:1",
        "Paired:",
        f"  cloud  {keys.short(cloud.key)}  may here: exchange  "
        "cloud-8188 at 10.0.0.5:18188, https://cloud.example",
        "In the local network:",
        f"  desk-8188   192.168.1.20:18188  {keys.short(known.keys.public)}  your own",
        f"  other-8188  192.168.1.20:18188  {SHORT}  not paired",
        f"  render      192.168.1.20:18190  {keys.short(cloud.key)}  paired as cloud",
        f"{discover.TO_PAIR}.",
        f"{discover.CLOSED}.",
    ]


def test_the_same_as_json(known: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    (cloud,) = known.principals()
    hear(monkeypatch, announcement(), announcement("render", keys.short(cloud.key)))
    text, status = said(as_json=True)
    assert status == 0
    assert json.loads(text) == {
        "own": keys.short(known.keys.public),
        "listens_on_lan": False,
        "problems": [],
        "local": [
            {
                "name": "desk-8188",
                "address": "127.0.0.1:18188",
                "url": "http://x:1",
                "software": "",
            }
        ],
        "paired": [
            {
                "name": "cloud",
                "fingerprint": keys.fingerprint(cloud.key),
                "permissions": ["exchange"],
                "peers": {"cloud-8188": ["10.0.0.5:18188", "https://cloud.example"]},
            }
        ],
        "lan": [
            {
                "name": "desk-8188",
                "addresses": ["192.168.1.20:18188"],
                "fingerprint": SHORT,
                "own": False,
                "paired_as": [],
            },
            {
                "name": "render",
                "addresses": ["192.168.1.20:18188"],
                "fingerprint": keys.short(cloud.key),
                "own": False,
                "paired_as": ["cloud"],
            },
        ],
    }


def test_nobody_is_said_and_so_is_why(known: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    known.forget("cloud")
    known.set_lan("on")
    hear(monkeypatch, why=f"{lan.MISSING}. Install it")
    text, status = said()
    assert status == 0
    assert text.splitlines()[2:] == [
        "Paired:",
        "  nobody",
        "In the local network:",
        f"  {lan.MISSING}. Install it",
    ]


def test_a_broken_store_is_said_and_the_rest_is_shown(
    known: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.file.write_text("{")
    hear(monkeypatch, announcement())
    text, status = said()
    assert status == 1
    assert "desk-8188  127.0.0.1:18188" in text and "not JSON" in text and "not paired" in text
    data = json.loads(said(as_json=True)[0])
    assert "not JSON" in data["problems"][0] and data["lan"] and data["local"]
