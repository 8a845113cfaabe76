"""Who gets in where, and to what: keys, listeners and permissions, on real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from children import Child, child, until
from jobpair import Host
from proxy import Proxy
from website import Site, door

from zbus import Peer, Settings, ZBusError, discovery
from zbus.errors import (
    KeyChanged,
    ListenRefused,
    NotPaired,
    NotPermitted,
    PeerGone,
    WrongPeer,
)
from zbus.job import Job, Request, Taken
from zbus.keys import from_text, generate, to_text
from zbus.net.websocket import open_lane
from zbus.nudging import nudge
from zbus.operation import Operation
from zbus.protocol.channel import Channels
from zbus.protocol.registrations import Endpoint, Link
from zbus.remote import Remote
from zbus.trust import EXCHANGE, JOBS, Trust

BOTH = (EXCHANGE, JOBS)
PROMPT: dict[str, Any] = {"1": {"class_type": "Number", "inputs": {"value": 3}}}
PLAIN_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL".ljust(55, b"\0")
KEYS = ("no key", "unknown key", "revoked key", "right key")
LISTENERS = ("plain loopback", "own listener", "LAN listener", "WebSocket lane")


def answered(job: Taken) -> None:
    job.queued(0)
    job.started()
    job.result("1", [1, 2, 3])
    job.done()


def error(what: Operation[Any] | Job, within: float = 15.0) -> ZBusError:
    until(what.done, within, f"an end of what says {what.note!r}")
    with pytest.raises(ZBusError) as raised:
        what.result()
    return raised.value


def own_address() -> str:
    """An address of this machine that is not the loopback's own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
    return "127.0.0.2"


@dataclass
class World:
    """A peer that serves all four kinds of listener, and one that wants to get in."""

    there: Peer
    here: Peer
    host: Host
    addresses: dict[str, str]

    def pair(self, may: tuple[str, ...] = BOTH, back: tuple[str, ...] = (EXCHANGE,)) -> None:
        self.there.trust.pair(self.here.trust.keys.public, "here", may)
        self.know(back)

    def know(self, back: tuple[str, ...] = (EXCHANGE,)) -> None:
        self.here.trust.pair(self.there.trust.keys.public, "there", back)

    def remote(self, listener: str) -> Remote:
        return Remote(self.addresses[listener], name="there", key=self.there.trust.keys.public)

    @property
    def back(self) -> Remote:
        """Who is here, for those there: it can only come by itself."""
        return Remote("", name="here", key=self.here.trust.keys.public)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    host = Host(answered)
    trusts = {name: Trust(tmp_path / name) for name in ("there", "here")}
    trusts["there"].set_lan("on")
    wait = Settings(reconnect_wait=20.0)
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(Peer("there", trust=trusts["there"], settings=wait))
        here = stack.enter_context(Peer("here", trust=trusts["here"], settings=wait))
        own = there.serve(host)
        plain = stack.enter_context(there.listen("127.0.0.1:0", channel="unused"))
        site = stack.enter_context(Site(door.Door(lambda: own).handle))
        port = own.rpartition(":")[2]
        yield World(
            there,
            here,
            host,
            {
                "plain loopback": plain.address,
                "own listener": own,
                "LAN listener": f"{own_address()}:{port}",
                "WebSocket lane": site.url,
            },
        )


# --- the matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["exchange", "job"])
@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("key", KEYS)
def test_only_what_is_allowed_happens(world: World, key: str, listener: str, what: str) -> None:
    if key == "unknown key":
        world.know()
    elif key in ("revoked key", "right key"):
        world.pair()
    if key == "revoked key":
        world.there.trust.forget("here")
    # Over a plain address nobody proves a key: values pass, jobs do not, whoever comes.
    if listener == "plain loopback":
        _plain(world, what)
    elif key == "no key":
        _without_a_key(world, listener, what)
    elif key == "right key":
        _right(world, listener, what)
    else:
        said = str(error(_begin(world, listener, what)))
        assert "not paired" in said and "zbus-pair invite" in said
        # A stranger learns no more than that: no name but what it called the address itself.
        assert "vm" not in said and world.there.own.software not in said
    allowed = listener == "plain loopback" or key == "right key"
    assert bool(world.host.said) is (
        what == "job" and key == "right key" and allowed and listener != "plain loopback"
    )


def _begin(world: World, listener: str, what: str) -> Operation[Any] | Job:
    remote = world.remote(listener)
    if what == "job":
        return world.here.submit(remote, Request(PROMPT))
    return world.here.meet(remote).start_send("a value", 0)


def _plain(world: World, what: str) -> None:
    address = world.addresses["plain loopback"]
    if what == "job":
        failed = error(world.here.submit(Remote(address), Request(PROMPT)))
        assert isinstance(failed, NotPermitted) and "for values only" in str(failed)
        return
    with world.there.listen(address) as listening, world.here.connect(address) as dialled:
        send = dialled.start_send("a value", 0)
        assert listening.receive(0, timeout=10) == "a value"
        send.result()


def _without_a_key(world: World, listener: str, what: str) -> None:
    """Plain ZMTP to an encrypted listener."""
    if listener == "WebSocket lane":
        with contextlib.closing(open_lane(world.addresses[listener])) as lane:
            with socket.create_connection(("127.0.0.1", lane.port), 10) as link:
                link.sendall(PLAIN_GREETING)
                told = b"".join(iter(lambda: link.recv(4096), b""))
                assert len(told) <= len(PLAIN_GREETING)  # it hangs up, before any message
    else:
        failed = _connect(world, world.addresses[listener])
        assert isinstance(failed, NotPaired) and "for paired peers" in str(failed)
    if what == "job":  # nor with the key of this user, which is not the one there
        lone = Remote(world.addresses[listener])
        assert isinstance(error(world.here.submit(lone, Request(PROMPT)), 60), KeyChanged)


def _connect(world: World, address: str) -> ZBusError:
    with world.here.connect(address) as channel:
        return error(channel.start_send("a value", 0))


def _right(world: World, listener: str, what: str) -> None:
    begun = _begin(world, listener, what)
    if isinstance(begun, Job):
        assert begun.result()["1"] == [1, 2, 3]
        return
    assert world.there.meet(world.back).receive(0, timeout=10) == "a value"
    begun.result()


# --- permissions ----------------------------------------------------------------------------------


def test_exchange_alone(world: World) -> None:
    world.pair((EXCHANGE,))
    failed = error(world.here.submit(world.remote("own listener"), Request(PROMPT)))
    assert isinstance(failed, NotPermitted), failed
    assert "zbus-pair permit" in str(failed)
    _right(world, "own listener", "exchange")
    assert world.here.enquire(world.remote("own listener")).result(10) == {"jobs": False}


def test_jobs_alone(world: World) -> None:
    world.pair((JOBS,))
    _right(world, "own listener", "job")
    failed = error(_begin(world, "own listener", "exchange"))
    assert isinstance(failed, NotPermitted) and "zbus-pair permit" in str(failed)
    with world.there.meet(world.back) as channel:
        failed = error(channel.start_receive(0))
    assert isinstance(failed, NotPermitted) and "this computer does not let it" in str(failed)


@pytest.mark.parametrize("may", [(EXCHANGE,), BOTH])
def test_one_connection_carries_jobs_back_where_that_is_permitted(
    world: World, may: tuple[str, ...]
) -> None:
    """Who has dialled out can also be given jobs: if its own store says so."""
    mine = Host(answered)
    world.here.serve(mine)
    world.pair(back=may)
    _right(world, "own listener", "job")
    job = world.there.submit(world.back, Request(PROMPT))
    if JOBS in may:
        assert job.result()["1"] == [1, 2, 3]
    else:
        assert isinstance(error(job), NotPermitted) and not mine.said


def test_a_peer_that_takes_no_jobs_from_anybody(tmp_path: Path) -> None:
    trust = Trust(tmp_path)
    with Peer("there", trust=trust) as there, Peer("here", trust=trust) as here:
        address = there.serve(None)
        assert isinstance(error(here.submit(Remote(address), Request(PROMPT))), NotPermitted)
        send = here.meet(Remote(address)).start_send("a value", 0)
        back = Remote("", instance=here.own.instance.hex())
        assert there.meet(back).receive(0, timeout=10) == "a value"
        send.result()


# --- changes --------------------------------------------------------------------------------------


def test_revoking_ends_live_sessions_at_once(world: World) -> None:
    world.pair()
    world.host.on_submitted = Taken.started
    job = world.here.submit(world.remote("LAN listener"), Request(PROMPT))
    send = _begin(world, "own listener", "exchange")
    until(lambda: job.progress.state == "running")
    until(lambda: "press Run" in send.note)
    Trust(world.there.trust.folder).forget("here")  # by another process, as it were
    began = time.monotonic()
    ends = error(job, 5), error(send, 5)
    took = time.monotonic() - began
    print(f"\na revoked key's sessions ended after {took:.2f} s")
    assert isinstance(ends[0], PeerGone) and "not paired any more" in str(ends[0]), ends[0]
    assert isinstance(ends[1], (PeerGone, NotPaired)), ends[1]
    until(lambda: ("cancel", job.id) in [said[:2] for said in world.host.said])
    again = error(_begin(world, "own listener", "job"))
    assert isinstance(again, NotPaired) and "not paired" in str(again)


def test_pairing_needs_no_restart(world: World) -> None:
    assert isinstance(error(_begin(world, "own listener", "job")), NotPaired)
    Trust(world.here.trust.folder).pair(world.there.trust.keys.public, "there", (EXCHANGE,))
    assert isinstance(error(_begin(world, "own listener", "job")), NotPaired)
    Trust(world.there.trust.folder).pair(world.here.trust.keys.public, "here", BOTH)
    _right(world, "own listener", "job")


@pytest.mark.parametrize(
    "before, after, ends",
    [(BOTH, (EXCHANGE,), True), ((JOBS,), BOTH, True), ((EXCHANGE,), BOTH, False)],
)
def test_a_changed_permission(
    world: World, before: tuple[str, ...], after: tuple[str, ...], ends: bool
) -> None:
    """What it may do no longer it does no longer, at once; a session that need not end goes on."""
    world.pair(before)
    world.here.enquire(world.remote("own listener")).result(10)
    links = world.there._engine.links
    (session,) = [p.key for p in links.peerings if p.principal]
    Trust(world.there.trust.folder).permit("here", after)
    if ends:
        until(lambda: session not in [p.key for p in links.peerings], 5)
    remote = world.remote("own listener")

    def may_give_jobs() -> bool | None:
        with contextlib.suppress(PeerGone):  # asked on the session that was about to end
            return bool(world.here.enquire(remote).result(10)["jobs"])
        return None

    until(lambda: may_give_jobs() is (JOBS in after), 5)
    assert (session in [p.key for p in links.peerings]) is not ends


def test_the_lan_listener_opens_and_closes_with_the_store(world: World, free_port: int) -> None:
    seen: list[str] = []
    trust = Trust(world.there.trust.folder.parent / "third")
    with Peer("third", trust=trust) as third:
        address = third.serve(Host(), free_port, on_lan=lambda lan, port: seen.append(lan))
        port = int(address.rpartition(":")[2])

        def is_open() -> bool:
            with contextlib.suppress(OSError):
                socket.create_connection((own_address(), port), 1).close()
                return True
            return False

        assert not is_open() and seen == []
        for lan, open_ in (("on", True), ("off", False), ("on", True)):
            Trust(trust.folder).set_lan(lan)
            with _registered(third, address, trust):
                assert nudge(trust) == 1
            until(lambda o=open_: is_open() is o, 5)
            with socket.create_connection(("127.0.0.1", port), 1):
                pass  # the loopback stays open
        assert seen == ["0.0.0.0", "", "0.0.0.0"]


@contextlib.contextmanager
def _registered(peer: Peer, address: str, trust: Trust) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ZBUS_HOME", str(trust.folder))
        instance = peer.own.instance.hex()
        discovery.register(discovery.Entry.of_this_process(instance, peer.name, address))
        yield
        discovery.unregister(instance)


def test_require_pairing_closes_the_plain_loopback_too(world: World, addr: str) -> None:
    world.pair()
    world.there.trust.set_require_pairing(True)
    with pytest.raises(ListenRefused, match="only paired peers"):
        world.there.listen(addr)
    world.here.trust.set_require_pairing(True)
    with pytest.raises(NotPaired, match="only paired peers"):
        world.here.connect(addr)
    _right(world, "own listener", "exchange")


def test_a_changed_key_is_a_loud_error(world: World) -> None:
    world.pair()
    other = generate().public
    world.here.trust.pair(other, "moved", BOTH)
    remote = Remote(world.addresses["own listener"], name="moved", key=other)
    for begun in (
        world.here.submit(remote, Request(PROMPT)),
        world.here.meet(remote).start_send(1, 0),
    ):
        failed = error(begun, 60)
        assert isinstance(failed, KeyChanged), failed
        assert "does not prove the key" in str(failed) and "zbus-pair forget" in str(failed)


# --- claims ---------------------------------------------------------------------------------------


def test_who_claims_anothers_instance_and_name(world: World, tmp_path: Path) -> None:
    """Both are paired. What one says of itself counts within its own key, and nowhere else."""
    world.pair()
    trust = Trust(tmp_path / "liar")
    trust.pair(world.there.trust.keys.public, "there", (EXCHANGE,))
    world.there.trust.pair(trust.keys.public, "liar", (EXCHANGE,))
    with Peer("here", trust=trust) as liar:
        liar.own = replace(liar.own, instance=world.here.own.instance)
        liar._engine.links._greetings._own = liar.own
        world.here.enquire(world.remote("own listener")).result(10)
        links = world.there._engine.links
        (session,) = [p.key for p in links.peerings if p.principal]
        told = liar.enquire(world.remote("own listener")).result(10)
        assert told == {"jobs": False}
        assert len({p.principal for p in links.peerings if p.principal}) == 2
        assert session in [p.key for p in links.peerings]  # nobody has superseded it
        # A run for the right one is not met by the liar, which waits with one of the same name.
        lie = liar.meet(world.remote("own listener")).start_send("a lie", 0)
        receive = world.there.meet(replace(world.back, peer="here")).start_receive(0)
        until(lambda: "press Run" in lie.note)
        world.here.meet(world.remote("own listener")).send("the truth", 0, timeout=10)
        assert receive.result() == "the truth"
        lie.cancel()


def test_an_answer_by_another_comfyui_of_the_same_key(world: World) -> None:
    """Through a tunnel to its page, an address of this machine (or a shared home folder)."""
    world.pair()
    for remote in (
        replace(world.remote("own listener"), instance="ab" * 16),
        replace(world.remote("own listener"), peer="another"),
    ):
        for begun in (
            world.here.submit(remote, Request(PROMPT)),
            world.here.meet(remote).start_send(1, 0),
        ):
            failed = error(begun)
            assert isinstance(failed, WrongPeer), failed
            assert "there answers there, and not there" in str(failed)


# --- floods ---------------------------------------------------------------------------------------

SERVES = """
    import sys, time
    from pathlib import Path
    from jobpair import Host
    from zbus import Peer
    from zbus.trust import Trust
    from zbus.keys import from_text, to_text
    trust = Trust(Path(sys.argv[1]))
    trust.pair(from_text(sys.argv[2]), "here", ("exchange", "jobs"))
    peer = Peer("there", trust=trust)
    print("at", peer.serve(Host()), to_text(trust.keys.public), flush=True)
    sys.stdin.read()
"""
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE".ljust(55, b"\0")
FLOOD = 500
STANDING = 250  # at once: this process has a limit too


def command(size: int) -> bytes:
    """A ZMTP command that says it is that long, and some of it."""
    body = b"\x05HELLO".ljust(min(size, 300), b"\1")
    return (
        b"\x04" + bytes([size]) + body if size < 256 else b"\x06" + size.to_bytes(8, "big") + body
    )


class Serving(NamedTuple):
    """Another process, which the floods come to one after the other, and who may talk with it."""

    process: Child
    ours: Trust
    remote: Remote


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serving")
    ours = Trust(folder / "here")
    with child(SERVES, folder / "there", to_text(ours.keys.public)) as process:
        _, address, key = process.line("at").split()
        theirs = ours.pair(from_text(key), "there", (EXCHANGE,)).key
        yield Serving(process, ours, Remote(address, name="there", key=theirs))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
@pytest.mark.parametrize(
    "says",
    [
        b"",
        GREETING[:10],
        GREETING,
        *(GREETING + command(size) for size in (6, 200, 255, 256, 65_536, 1 << 20, 1 << 40)),
    ],
    ids=lambda says: f"{len(says)} bytes, {says[-300:][:9].hex()}",
)
def test_hundreds_of_strangers_cost_nothing(serving: Serving, says: bytes) -> None:
    """They stop in mid-handshake, having said commands of all sizes."""
    port = int(serving.remote.address.rpartition(":")[2])
    _flood(port, says, STANDING + 50)  # what the first ones bring with them is not the flood's
    before = serving.process.rss()
    standing = _flood(port, says, FLOOD)
    grown = serving.process.rss() - before
    began = time.monotonic()
    with Peer("here", trust=serving.ours) as here:
        assert here.enquire(serving.remote).result(20)["jobs"] is True
    print(f"\n+ {grown / 1024:.0f} KiB; served after {time.monotonic() - began:.2f} s")
    assert grown < 4 << 20
    for one in standing:
        one.close()


def _flood(port: int, says: bytes, count: int) -> list[socket.socket]:
    """So many connections, which all stay open on this side."""
    standing = []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", port), timeout=10)
        with contextlib.suppress(OSError):
            one.sendall(says)
        standing.append(one)
        if len(standing) > STANDING:
            standing.pop(0).close()
    return standing


def test_the_core_knows_no_other_way_in() -> None:
    """A run that waits for a certain peer is never met by a plain link, whatever that says."""
    channels = Channels()
    registration = channels.open(
        "r", Endpoint("peer", "there", b"k" * 32, b"i" * 16), "main", "now"
    )
    for link in (
        Link(b"1" * 16, "dial", "127.0.0.1:1", "there", b"x", instance=b"i" * 16),
        Link(b"2" * 16, "listen", "127.0.0.1:1", "there", b"y", b"q" * 32, b"i" * 16),
        Link(b"3" * 16, "listen", "a", "there", b"z", b"k" * 32, b"i" * 16, permitted=False),
        Link(b"4" * 16, "listen", "a", "there", b"w", b"k" * 32, b"j" * 16),
    ):
        channels.session_up(link)
        assert not registration.endpoint.covers(link)
    right = Link(b"5" * 16, "listen", "a", "there", b"v", b"k" * 32, b"i" * 16)
    assert registration.endpoint.covers(right)


def test_plain_addresses_need_no_keys_and_no_home(tmp_path: Path, addr: str) -> None:
    """Jumper's recipe works where nothing can be written, and writes nothing."""
    home = tmp_path / "none"
    with Peer("a", trust=Trust(home)) as a, Peer("b", trust=Trust(home)) as b:
        with a.listen(addr) as listening, b.connect(addr) as dialled:
            send = dialled.start_send("a value", 0)
            assert listening.receive(0, timeout=10) == "a value"
            send.result()
    assert not home.exists()


def test_waiting_for_a_certain_peer_says_why(world: World, addr: str) -> None:
    world.pair()
    gone = Remote(addr, name="there", key=world.there.trust.keys.public)
    send = world.here.meet(gone).start_send("a value", 0)
    until(lambda: "not reachable at" in send.note and "refused" in send.note)
    assert "by itself" in send.note and "Client" not in send.note
    receive = world.there.meet(world.back).start_receive(0)
    until(lambda: "here is not connected, and no address of it is known" in receive.note)
    # Now the other way leads there: the first run need not be started again.
    world.here.enquire(world.remote("own listener")).result(10)
    assert receive.result() == "a value"
    send.result()


DEAF = """
    import ctypes, sys
    from pathlib import Path
    from zbus import Peer
    from zbus.trust import Trust
    peer = Peer("deaf", trust=Trust(Path(sys.argv[1])))
    print("at", peer.serve(None), flush=True)
    sys.stdin.readline()
    print("deaf now", flush=True)
    ctypes.PyDLL(None).sleep(14)  # with the GIL held, as while a model loads
    print("back", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name == "nt", reason="sleeps in the C library with the GIL held")
def test_a_cut_while_the_peer_is_deaf_is_a_pause(tmp_path: Path) -> None:
    """No handshake with it comes about meanwhile: its trust store cannot be asked."""
    wait = Settings(nobody_wait=1.0)
    trust = Trust(tmp_path)
    with (
        child(DEAF, tmp_path) as there,
        Peer("here", trust=trust, settings=wait) as here,
        Peer("late", trust=trust) as late,
    ):
        _, address = there.line("at").split()
        with Proxy(address) as proxy:
            remote = Remote(proxy.address)
            here.enquire(remote).result(10)
            links = here._engine.links
            (session,) = [p.key for p in links.peerings]
            with here.meet(remote) as channel:
                send = channel.start_send("a value", 0)
                until(lambda: "press Run" in send.note)
                there.process.stdin.write("\n")
                there.process.stdin.flush()
                there.line("deaf now")
                first = late.enquire(remote)  # over a link that is yet to be made
                proxy.cut()
                until(lambda: "lost" in send.note)
                there.line("back", 30)
                until(lambda: "press Run" in send.note or send.done(), 20)
                assert not send.done() and [p.key for p in links.peerings] == [session]
                send.cancel()
                first.result(20)
