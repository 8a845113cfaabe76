"""What a dialled or listened address can meet, with real sockets: each ends in its time."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from children import child, until
from comfyui import free_port as free_port_
from netns import permitted
from proxy import Proxy

from zbus import Peer, Settings, probe
from zbus.address import Address, parse_dial
from zbus.errors import (
    LocalProtocolError,
    NameNotResolved,
    PeerGone,
    RemoteProtocolError,
    TransferRefused,
    Unreachable,
)
from zbus.keys import generate
from zbus.net import addresses, cutting, widening
from zbus.net.frames import Closed, Listener
from zbus.net.places import DialTarget, ListenedAddress
from zbus.net.transport import Transport
from zbus.protocol import ways
from zbus.protocol.messages import Hello, Ready, Reject, decode, encode
from zbus.protocol.pace import MIN_CHUNK
from zbus.remote import Remote
from zbus.trust import Trust

FAST = Settings(linger=0.5)


@pytest.fixture
def here() -> Iterator[Peer]:
    with Peer("here", settings=FAST) as peer:
        yield peer


@pytest.fixture
def there() -> Iterator[Peer]:
    with Peer("there", settings=FAST) as peer:
        yield peer


def targets(peer: Peer) -> list[DialTarget]:
    return [place for place in peer._engine.links.places if isinstance(place, DialTarget)]


# --- wrong answers --------------------------------------------------------------------------------

Answer = Callable[[Hello], Any]
WRONG: dict[str, Answer] = {
    "goes on with what never was": lambda hello: stranger(hello, resumed=True),
    "has received what was never sent": lambda hello: stranger(hello, received=7),
    "does not know the nonce": lambda hello: stranger(hello, echo=os.urandom(16)),
    "rejects": lambda hello: Reject("protocol", "64 peers are connected here"),
    "says no HELLO": lambda hello: Ready(hello.nonce, 0),
}


def stranger(hello: Hello, **told: Any) -> Hello:
    """An answer to that HELLO by another program."""
    unknown = {"incarnation": os.urandom(16), "instance": os.urandom(16), "nonce": os.urandom(16)}
    return replace(hello, **{"name": "evil", "echo": hello.nonce, "boot": "", **unknown, **told})


@contextlib.contextmanager
def answering(port: int, answer: Answer) -> Iterator[list[Hello]]:
    """Somebody who listens there and answers each HELLO like that; those that have come."""
    heard: list[Hello] = []
    ended = threading.Event()

    def serve() -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.linger = 0
            router.bind(f"tcp://127.0.0.1:{port}")
            while not ended.is_set():
                if router.poll(20):
                    who, header, *_ = router.recv_multipart()
                    message = decode(header, False)[1]
                    if isinstance(message, Hello):
                        heard.append(message)
                        router.send_multipart([who, encode(answer(message))])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield heard
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_answers_do_not_keep_the_right_peer_out(
    here: Peer, there: Peer, free_port: int, kind: str
) -> None:
    address = f"127.0.0.1:{free_port}"
    with here.connect(address) as dialled:
        receive = dialled.start_receive(0)
        with answering(free_port, WRONG[kind]) as heard:
            until(lambda: len(heard) >= 4, 10, "it dials again")
            until(lambda: "dialling again" in receive.note, 5)
            assert not receive.done()
        began = time.monotonic()
        with there.listen(address) as listening:
            listening.send("from the right one", 0, timeout=10)
            assert receive.result() == "from the right one"
        assert time.monotonic() - began < 3


def test_who_speaks_first_is_wrong_and_keeps_nobody_out(
    here: Peer, there: Peer, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A bound DEALER has a word for whoever connects, before that one has said any."""
    address = f"127.0.0.1:{free_port}"
    with here.connect(address) as dialled:
        receive = dialled.start_receive(0)
        with zmq.Context() as context, context.socket(zmq.DEALER) as eager:
            eager.linger = 0
            eager.bind(f"tcp://127.0.0.1:{free_port}")
            eager.send_multipart([b"at once"])
            until(lambda: "not msgpack" in caplog.text, 10)
        with there.listen(address) as listening:
            listening.send("from the right one", 0, timeout=10)
            assert receive.result() == "from the right one"
    assert "a fault in zbus itself" not in caplog.text


def test_another_process_does_not_get_a_session_that_is_lost(here: Peer, there: Peer) -> None:
    """It knows the session's id: it has just been told."""
    with there.listen("127.0.0.1:0") as listening, Proxy(listening.address) as proxy:
        with here.connect(proxy.address) as dialled:
            receive = dialled.start_receive(0)
            until(lambda: dialled.peer == "there" and listening.peer == "here", 5)
            right, port = proxy._target, free_port_()
            with answering(port, WRONG["goes on with what never was"]) as heard:
                proxy._target = "127.0.0.1", port
                proxy.cut()
                until(lambda: len(heard) >= 4, 10)
                assert all(hello.resumed for hello in heard) and not receive.done()
            proxy._target = right
            proxy.cut()
            listening.send("of the same session", 0, timeout=10)
            assert receive.result() == "of the same session"


def test_nothing_but_wrong_answers_is_an_error(
    here: Peer, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "FAULTY_TIME", 1.0)
    address = f"127.0.0.1:{free_port}"
    with answering(free_port, WRONG["says no HELLO"]), here.connect(address) as dialled:
        operation = dialled.start_receive(0)
        until(operation.done, 10)
        with pytest.raises(RemoteProtocolError, match=address):
            operation.result()
        probe_ = here.probe(address)
        with pytest.raises(RemoteProtocolError):
            probe_.hello(5)


def test_who_only_looks_is_told_of_wrong_answers_at_once(here: Peer, free_port: int) -> None:
    with answering(free_port, WRONG["says no HELLO"]):
        began = time.monotonic()
        with pytest.raises(RemoteProtocolError, match="no answer to HELLO"):
            here.probe(f"127.0.0.1:{free_port}").hello(10)
        assert time.monotonic() - began < 3


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 2])
def test_all_addresses_of_a_name_are_tried(
    here: Peer, there: Peer, free_port: int, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    names = ["127.0.0.2", "127.0.0.3", "::1"]
    with contextlib.suppress(OSError):
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        names = names if at != 2 else ["127.0.0.2", "127.0.0.3", "::1"]
    if at == 2 and not _has_ipv6():
        pytest.skip("no IPv6 on this machine")
    monkeypatch.setattr(probe, "resolve_all", lambda _: names)
    host = f"[{names[at]}]" if at == 2 else names[at]
    with there.listen(f"{host}:{free_port}") as listening:
        with here.connect(f"three.example:{free_port}") as dialled:
            receive = dialled.start_receive(0)
            listening.send("found", 0, timeout=10)
            assert receive.result() == "found"


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_a_name_with_several_addresses_is_resolved_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 1, 0, 0))
    four = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 1)) for n in (1, 2, 1)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [six, *four])
    found = probe.resolve_all(Address("many.example", 1))
    assert found == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    assert probe.resolve(Address("many.example", 1)) == "192.0.2.1"


@pytest.mark.parametrize("host", ["no.such.invalid", "a\0b", "x" * 300, "."])
def test_a_host_that_leads_nowhere(host: str) -> None:
    with pytest.raises(NameNotResolved):
        probe.resolve_all(Address(host, 1))


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 on this machine")
def test_a_zone_that_is_not_known_ends_a_dial() -> None:
    transport = Transport()
    try:
        transport.dial("fe80::1%nosuch0", 8282)
        began, events = time.monotonic(), []
        while not events:
            assert time.monotonic() - began < 3, "it would hang for ever"
            events += list(transport.poll(0.1))
        assert isinstance(events[0], Closed) and events[0].stage == "connect"
    finally:
        transport.close()


LINK_LOCAL = """
    import subprocess, sys
    from zbus import Peer
    from zbus.net.transport import Transport
    def ip(*words):
        return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
    ip("link", "set", "lo", "up")
    ip("link", "add", "Eth0", "type", "veth", "peer", "name", "v1")
    ip("link", "set", "v1", "up")
    ip("link", "set", "Eth0", "addrgenmode", "eui64", "up")
    while "tentative" in (told := ip("-6", "address", "show", "dev", "Eth0", "scope", "link")):
        pass
    while "inet6" not in told:
        told = ip("-6", "address", "show", "dev", "Eth0", "scope", "link")
    own = told.split("inet6 ")[1].split("/")[0]
    while "tentative" in ip("-6", "address", "show", "dev", "Eth0", "scope", "link"):
        pass
    there, here = Peer("there"), Peer("here")
    # A plain listener is for the loopback alone: bound where no user can have it bound.
    from zbus import address
    address.Address.is_loopback = property(lambda _: True)
    for zone in ("Eth0", __import__("socket").if_nametoindex("Eth0")):
        with here.connect(f"[{own}%{zone}]:18282") as dialled:
            receive = dialled.start_receive(0)
            with there.listen(f"[{own}%Eth0]:18282") as channel:
                channel.send("over the zone", 0, timeout=10)
            print("got", receive.result(), flush=True)
    here.close()
    there.close()
"""


@pytest.mark.skipif(bool(permitted()), reason=permitted() or "-")
def test_a_link_local_address_is_dialled() -> None:
    code = f"import ctypes; ctypes.CDLL(None).unshare(0x40000000)\n{_flat(LINK_LOCAL)}"
    with child(code) as process:
        for _ in range(2):
            assert process.line("got") == "got over the zone"


def _flat(code: str) -> str:
    import textwrap

    return textwrap.dedent(code)


# --- probes and leases ----------------------------------------------------------------------------


def test_a_probe_closed_twice_takes_nothing_of_others(here: Peer, there: Peer) -> None:
    with there.listen("127.0.0.1:0") as listening, here.connect(listening.address) as channel:
        receive = channel.start_receive(0)
        link = here.probe(listening.address)
        link.hello(5)
        for _ in range(3):
            link.close()
        until(lambda: [t.users for t in targets(here)] == [1], 5)
        with pytest.raises(LocalProtocolError, match="this Probe is closed"):
            link.hello(1)
        listening.send("still there", 0, timeout=10)
        assert receive.result() == "still there"
    channel.close()
    until(lambda: [t.users for t in targets(here)] in ([0], []), 5)


def test_a_released_lease_is_released_once(here: Peer, addr: str) -> None:
    links = here._engine.links

    def twice() -> list[int]:
        first, second = (links.addresses.listen(parse_dial(addr)) for _ in range(2))
        counts = [first.place.users]
        for lease in (first, first, second, second):
            lease.release()
            counts.append(first.place.users)
        return counts

    assert here._engine.ask(twice) == [2, 1, 1, 0, 0]


def test_a_probe_measures_while_many_values_wait(here: Peer, there: Peer) -> None:
    """What waits on a session is no measurement."""
    big = b"x" * 300_000
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(there.listen("127.0.0.1:0", channel="0"))
        names = [str(number) for number in range(1, 6)]
        ours = [first] + [
            stack.enter_context(there.listen(first.address, channel=n)) for n in names
        ]
        theirs = [
            stack.enter_context(here.connect(first.address, channel=n)) for n in ("0", *names)
        ]
        sends = [channel.start_send(big, 0) for channel in ours]
        until(lambda: all(channel.peer for channel in theirs), 5)
        link = here.probe(first.address)
        for direction in ("up", "down", "up", "down", "up"):
            assert link.block(direction, 1 << 20, 10) > 0
        assert not any(send.done() for send in sends)
        for channel in theirs:
            assert channel.receive(0, timeout=10) == big


def test_too_many_measurements_are_refused_and_end_nothing(here: Peer, there: Peer) -> None:
    with there.listen("127.0.0.1:0") as listening, here.connect(listening.address) as channel:
        link = here.probe(listening.address)
        link.hello(5)
        (target,) = targets(here)
        measuring = here._engine.measuring

        def many() -> list[Any]:
            return [measuring.block(target, "up", 1 << 20) for _ in range(12)]

        futures = here._engine.ask(many)
        outcomes = [future.exception(10) for future in futures]
        assert outcomes[:4] == [None] * 4
        assert all(isinstance(outcome, TransferRefused) for outcome in outcomes[4:])
        assert link.block("down", 1 << 20, 10) > 0
        send = listening.start_send("a value", 0)
        assert channel.receive(0, timeout=10) == "a value"
        send.result()


def test_a_peers_chunks_are_not_tiny(here: Peer, there: Peer) -> None:
    here._engine.links._greetings._own = replace(here.own, limits=(("chunk", 1),))
    with there.listen("127.0.0.1:0") as listening, here.connect(listening.address) as dialled:
        send = listening.start_send(b"x" * 3_000_000, 0)
        assert len(dialled.receive(0, timeout=10)) == 3_000_000
        send.result()
        (peering,) = there._engine.links.peerings
        assert peering.largest_chunk == MIN_CHUNK


# --- strangers ------------------------------------------------------------------------------------


def _hello_of(peer: Peer, **told: Any) -> bytes:
    fresh = {"incarnation": os.urandom(16), "nonce": os.urandom(16), "session": os.urandom(16)}
    return encode(replace(peer.own, **{**fresh, **told}))


def test_refused_hellos_are_cut_and_counted(
    here: Peer, addr: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger that hears that it is refused, and stays, is shut out soon."""
    links = here._engine.links
    with here.listen(addr) as channel, zmq.Context() as context, contextlib.ExitStack() as stack:
        caplog.set_level(logging.ERROR, "zbus.net.links")
        strangers = []
        for _ in range(100):
            stranger = stack.enter_context(context.socket(zmq.DEALER))
            stranger.linger, stranger.reconnect_ivl = 0, -1
            stranger.connect(f"tcp://{channel.address}")
            stranger.send(_hello_of(here, versions=(7, 9)))
            strangers.append(stranger)
        until(lambda: links.refused == 100, 5)
        (place,) = [p for p in links.places if isinstance(p, ListenedAddress)]
        began = time.monotonic()
        until(lambda: not place.listener.by_fd, 2, "all of them are cut")
        print(f"\n100 refused HELLOs were cut {time.monotonic() - began:.2f} s after the last")
        assert len(caplog.records) <= 5
        assert "Update zbus" in caplog.text
        with Peer("good") as good, good.connect(channel.address) as dialled:
            send = dialled.start_send("a value", 0)
            assert channel.receive(0, timeout=10) == "a value"
            send.result()


def test_who_never_says_a_word_is_cut(
    here: Peer, addr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SILENT_TIME", 0.5)
    with here.listen(addr) as channel, zmq.Context() as context:
        with context.socket(zmq.DEALER) as silent:
            silent.linger, silent.reconnect_ivl = 0, -1
            monitor = silent.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            silent.connect(f"tcp://{channel.address}")
            assert monitor.poll(3000), "it is cut"
            silent.disable_monitor()
            monitor.close(0)


# --- a process that is gone -----------------------------------------------------------------------

FORKS = """
    import os, sys
    from zbus import Peer
    peer = Peer("forks")
    channel = peer.listen(sys.argv[1])
    print("listening", flush=True)
    sys.stdin.readline()
    if os.fork() == 0:
        os.read(0, 1)
        os._exit(0)
    print("forked", flush=True)
    os.read(0, 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_process_that_is_gone_is_told_though_its_child_holds_the_link(
    here: Peer, addr: str
) -> None:
    with child(FORKS, addr) as other, here.connect(addr) as channel:
        other.line("listening")
        operation = channel.start_receive(0)
        until(lambda: channel.peer == "forks", 5)
        other.tell("fork")
        other.line("forked")
        group = _children(other.pid)
        try:
            other.kill_alone()
            began = time.monotonic()
            until(operation.done, 5)
            took = time.monotonic() - began
        finally:
            for pid in group:
                os.kill(pid, 9)
        with pytest.raises(PeerGone, match=rf"\(pid {other.pid}\) has ended"):
            operation.result()
        print(f"\ntold after {took:.1f} s")
        assert took < 3


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found]


# --- a listener that changes ----------------------------------------------------------------------


@pytest.mark.parametrize("is_taken", [False, True], ids=["free", "its port is taken elsewhere"])
def test_a_listener_that_opens_and_closes_rests_afterwards(tmp_path: Path, is_taken: bool) -> None:
    trust = Trust(tmp_path)
    with Peer("here", trust=trust) as here, contextlib.ExitStack() as stack:
        address = parse_dial(here.serve(None))
        if is_taken:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.9", address.port))
            taken.listen()
        engine, turns = here._engine, 0
        turn = engine._turn

        def counted(busy: bool) -> bool:
            nonlocal turns
            turns += 1
            return turn(busy)

        engine._turn = counted  # type: ignore[method-assign]
        for lan in ("on", "off") * 4:
            Trust(tmp_path).set_lan(lan)
            engine.ask(engine.links.admission.refresh)
        before = turns
        time.sleep(0.5)  # that nothing happens has no event
        assert turns - before < 15
        with Peer("there", trust=trust) as there:
            assert there.enquire(Remote(str(address))).result(10) == {"jobs": False}


def test_a_lan_that_was_refused_cuts_nobody_again(tmp_path: Path) -> None:
    """Whatever changes in the store, but for the LAN being closed and opened again."""
    trust = Trust(tmp_path)
    with Peer("here", trust=trust) as here, Peer("there", trust=trust) as there:
        address = parse_dial(here.serve(None))

        def change(work: Callable[[Trust], object]) -> set[str]:
            work(Trust(tmp_path))
            here._engine.ask(here._engine.links.admission.refresh)
            (place,) = here._engine.links.places
            assert isinstance(place, ListenedAddress)
            return place.listener.other_hosts

        with socket.socket() as taken:
            taken.bind(("127.0.0.9", address.port))
            taken.listen()
            assert change(lambda store: store.set_lan("on")) == set()
            with there.meet(Remote(str(address))) as channel:
                until(lambda: here.counters()["sessions"], 5)
                (session,) = here._engine.links.peerings
                link = session.connection
                change(lambda store: store.pair(generate().public, "other", ("exchange",)))
                assert session.connection is link is not None
                channel.start_receive(0).cancel()
        assert change(lambda store: store.set_lan("off")) == set()
        assert change(lambda store: store.set_lan("on")) == {"0.0.0.0"}


def test_an_own_listener_that_has_lost_its_port_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program has it the very moment when the LAN is closed."""
    monkeypatch.setattr(addresses, "STAND_AGAIN", 0.2)
    stand, tries = widening._stand, []

    def taken(listener: Listener) -> None:
        tries.append(listener)
        if len(tries) < 3:
            raise zmq.ZMQError(zmq.EADDRINUSE)
        stand(listener)

    monkeypatch.setattr(widening, "_stand", taken)
    trust = Trust(tmp_path)
    with Peer("here", trust=trust) as here, Peer("there", trust=trust) as there:
        address = here.serve(None)
        for lan in ("on", "off"):
            Trust(tmp_path).set_lan(lan)
            here._engine.ask(here._engine.links.admission.refresh)
        until(lambda: len(tries) == 3, 5, "it is tried again")
        assert there.enquire(Remote(address)).result(10) == {"jobs": False}
    assert len(tries) == 3 and "cannot listen on" in caplog.text


def test_a_dial_that_cannot_be_made_is_tried_again(
    here: Peer, there: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of this side's own, such as no descriptor left, leaves no dial without an end."""
    transport = here._engine.transport
    made = transport.dial

    def fails(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(transport, "dial", made)
        raise Unreachable("too many open files")

    monkeypatch.setattr(transport, "dial", fails)
    with there.listen("127.0.0.1:0") as listening:
        with here.connect(listening.address) as dialled:
            send = listening.start_send("a value", 0)
            assert dialled.receive(0, timeout=10) == "a value"
            send.result()
