"""Whom names, addresses and URLs mean: this user's, the paired, and what the network says."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from webproxy import make_certificate

from zbus import discovery
from zbus.address import Address
from zbus.card import Card, Page, page
from zbus.errors import InvalidAddress, NotPaired, TimedOut, UnknownPeer, Unreachable
from zbus.keys import fingerprint, generate, short, to_text
from zbus.lan import Announcement
from zbus.remote import Remote
from zbus.resolver import BY_ADDRESS, Resolver
from zbus.trust import EXCHANGE, Peers, Trust

CLOUD, STUDIO, STRANGER = (generate().public for _ in range(3))
FAR = "203.0.113.5:18188"
LAN = "192.168.1.20"
EVIL = "192.168.1.66"


@pytest.fixture(autouse=True)
def zbus_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZBUS_HOME", str(tmp_path / "zbus-home"))
    monkeypatch.delenv("ZBUS_TRUST", raising=False)


@pytest.fixture
def trust() -> Trust:
    return Trust()


def pair(trust: Trust, name: str, key: bytes = CLOUD, **peers: tuple[str, ...]) -> None:
    told: Peers = tuple((peer.replace("_", "-"), there) for peer, there in peers.items())
    trust.pair(key, name, (EXCHANGE,), told)


def local(name: str, address: str = "127.0.0.1:18188", instance: str = "", key: str = "") -> Remote:
    """A ComfyUI of this user's, in the registry; what its name means."""
    id = instance or f"{name.encode().hex():0<32}"[:32]
    discovery.register(discovery.Entry.of_this_process(id, name, address, key=key))
    return Remote(address, id, name, Trust().keys.public)


def seen(
    name: str, key: bytes = CLOUD, hosts: tuple[str, ...] = (LAN,), port: int = 18188
) -> Announcement:
    """What somebody in the local network says."""
    return Announcement(name, hosts, port, short(key))


def failure(trust: Trust, name: str, *announced: Announcement) -> str:
    with pytest.raises(UnknownPeer) as raised:
        Resolver(trust, seen=announced).named(name)
    return str(raised.value)


# --- names ----------------------------------------------------------------------------------------


def test_this_users_by_name(trust: Trust) -> None:
    desk, other = local("Desk-8188"), local("desk-8189", "127.0.0.1:18189")
    resolver = Resolver(trust, instance=other.instance)
    assert resolver.named(" desk-8188 ") == resolver.read("DESK-8188") == desk
    assert resolver.find("Desk-8188") == desk
    assert resolver.named("desk-8189") == other, "naming oneself is told by who dials"
    assert resolver.local() == [desk], "not oneself"


def test_upper_and_lower_case_count_where_two_differ_by_them(trust: Trust) -> None:
    one, two = local("Desk", "127.0.0.1:1"), local("desk", "127.0.0.1:2")
    assert (Resolver(trust).named("Desk"), Resolver(trust).named("desk")) == (one, two)
    assert "'DESK' could be 2 peers: Desk at 127.0.0.1:1, desk at 127.0.0.1:2" in failure(
        trust, "DESK"
    )


def test_a_paired_one_with_one_comfyui(trust: Trust) -> None:
    pair(trust, "cloud", gpu_8188=(FAR, "https://cloud.example/comfy"))
    its = Remote(FAR, name="cloud", key=CLOUD, others=("https://cloud.example/comfy",))
    resolver = Resolver(trust)
    assert resolver.paired() == [its]
    assert resolver.named("cloud") == resolver.find("CLOUD") == its
    # Also by what it calls itself, alone or behind the name of the machine.
    for name in ("gpu-8188", "cloud/gpu-8188"):
        assert resolver.named(name) == replace(its, name=name)
    assert resolver.named("Cloud/GPU-8188").peer == "", "who has one may call it as it likes"


def test_a_paired_one_with_several(trust: Trust) -> None:
    pair(trust, "cloud", a=(FAR,), b=("203.0.113.5:18189",))
    resolver = Resolver(trust)
    a = Remote(FAR, name="cloud/a", key=CLOUD, peer="a")
    b = Remote("203.0.113.5:18189", name="cloud/b", key=CLOUD, peer="b")
    assert resolver.paired() == [a, b]
    assert resolver.named("cloud/a") == a and resolver.named("CLOUD/B") == b
    assert resolver.named("b") == replace(b, name="b")
    # Any of them that comes by itself.
    assert resolver.named("cloud") == Remote("", name="cloud", key=CLOUD)


def test_paired_ones_without_a_way(trust: Trust) -> None:
    pair(trust, "cloud")
    pair(trust, "studio", STUDIO, gpu=())
    resolver = Resolver(trust)
    assert resolver.paired() == []
    assert resolver.named("cloud") == Remote("", name="cloud", key=CLOUD)
    assert resolver.named("studio") == Remote("", name="studio", key=STUDIO)
    # One that was started after the pairing may come by itself, too.
    its = Remote("", name="Studio/new-8189", key=STUDIO, peer="new-8189")
    assert resolver.named("Studio/new-8189") == its


def test_nobody_is_offered_to_itself(trust: Trust) -> None:
    desk = local("desk-8188")
    other = local("desk-8189", "127.0.0.1:18189")
    pair(trust, "DESK-8188", gpu=(FAR,))
    resolver = Resolver(trust, instance=desk.instance)
    with pytest.raises(UnknownPeer) as raised:
        resolver.named("dsk")
    assert "known: desk-8189, DESK-8188, DESK-8188/gpu" in str(raised.value)
    its = Remote(FAR, name="DESK-8188", key=CLOUD)
    assert resolver.named("Desk-8188") == its, "of two that are called so it means the other"
    assert resolver.named("desk-8188") == desk, "which is told by who dials"
    assert resolver.named("desk-8189") == other


def test_an_unknown_name_is_told_what_else_can_be_given_there(trust: Trust) -> None:
    resolver, plain = Resolver(trust), 'Write it as "host:port"'
    with pytest.raises(UnknownPeer, match=plain):
        resolver.named("x")
    with pytest.raises(UnknownPeer, match=plain):
        resolver.find("x", BY_ADDRESS)
    with pytest.raises(UnknownPeer, match="or give the URL of its page") as for_a_job:
        resolver.find("x")
    assert plain not in str(for_a_job.value)


def test_unknown_names_tell_the_known_ones(trust: Trust) -> None:
    assert "no peer named 'x' here; known: none. Start that ComfyUI" in failure(trust, "x")
    local("desk")
    pair(trust, "cloud", gpu=(FAR,))
    assert "no peer named 'clod' here; known: desk, cloud, cloud/gpu, gpu. " in failure(
        trust, "clod"
    )
    for name in ("clod/gpu", "cloud/", "/", "/gpu", ""):
        assert f"no peer named '{name}' here" in failure(trust, name)
    for number in range(20):
        local(f"many-{number:02}", f"127.0.0.1:{number + 1}")
    assert "many-08 and 14 more" in failure(trust, "x"), "and not a screenful"


def test_a_local_name_that_is_a_paired_ones_too(trust: Trust) -> None:
    local("cloud", "127.0.0.1:18190")
    pair(trust, "Cloud", gpu=(FAR,))
    text = failure(trust, "CLOUD")
    assert f"'CLOUD' could be 2 peers: cloud at 127.0.0.1:18190, Cloud/gpu at {FAR}. " in text
    assert "(NAME/PEER)" in text and "zbus-pair rename" in text
    assert Resolver(trust).named("cloud").address == "127.0.0.1:18190"
    assert Resolver(trust).named("Cloud").address == FAR
    assert Resolver(trust).named("cloud/GPU").address == FAR, "what the text says to give"
    trust.rename("Cloud", "cloud")
    assert "'cloud' could be 2 peers" in failure(trust, "cloud"), "the same to the letter"
    trust.rename("cloud", "rented")
    assert Resolver(trust).named("cloud").address == "127.0.0.1:18190"


def test_what_a_comfyui_calls_itself_takes_nobodys_name(trust: Trust) -> None:
    desk = local("desk")
    pair(trust, "studio", STUDIO, gpu=("198.51.100.7:18188",))
    pair(trust, "cloud", desk=(FAR,), studio=("203.0.113.5:18189",), DESK=("203.0.113.5:1",))
    resolver = Resolver(trust)
    assert resolver.named("desk") == resolver.named("DESK") == desk
    assert resolver.named("studio").key == STUDIO
    assert resolver.named("cloud/desk").address == FAR


def test_two_machines_whose_comfyuis_call_themselves_the_same(trust: Trust) -> None:
    pair(trust, "cloud", gpu=(FAR,))
    pair(trust, "studio", STUDIO, gpu=("198.51.100.7:18188",), cpu=())
    told = f"'gpu' could be 2 peers: cloud/gpu at {FAR}, studio/gpu at 198.51.100.7:18188. "
    assert told in failure(trust, "gpu")
    assert Resolver(trust).named("studio/gpu").key == STUDIO


def test_a_login_in_an_address_is_not_told(trust: Trust) -> None:
    pair(trust, "cloud", gpu=("https://me:s3cret@cloud.example/comfy?token=s3cret",))
    pair(trust, "studio", STUDIO, gpu=("http://me:s3cret@studio.example",))
    text = failure(trust, "gpu")
    assert "cloud/gpu at https://cloud.example/comfy, studio/gpu at http://studio.example" in text
    assert "s3cret" not in text
    assert "s3cret" not in Resolver(trust).named("cloud").where


def test_a_broken_entry_of_the_registry_loses_nobody_else(trust: Trust) -> None:
    desk = local("desk")
    local("broken", "127.0.0.1:2", key="not a key")
    resolver = Resolver(trust)
    assert resolver.named("desk") == desk and resolver.local() == [desk]
    assert resolver.read("127.0.0.1:2") == Address("127.0.0.1", 2)


def test_the_key_of_an_entry_is_the_one_that_must_answer(trust: Trust) -> None:
    local("mine")
    local("shared", "127.0.0.1:2", key=to_text(STRANGER))  # of another machine, in a shared folder
    assert Resolver(trust).named("mine").key == trust.keys.public
    assert Resolver(trust).named("shared").key == STRANGER


def test_what_is_paired_later_is_known_to_the_next_resolver(trust: Trust) -> None:
    failure(trust, "cloud")
    pair(Trust(), "cloud", gpu=(FAR,))
    assert Resolver(trust).named("cloud").address == FAR
    Trust().forget("cloud")
    failure(trust, "cloud")


# --- addresses ------------------------------------------------------------------------------------


def test_an_address_that_nobody_known_has(trust: Trust) -> None:
    local("desk")
    pair(trust, "cloud", gpu=(FAR,))
    resolver = Resolver(trust)
    for written in ("127.0.0.1:8282", "203.0.113.5:8282", "127.0.0.2:18188", "[::1]:18188"):
        meant = resolver.read(written)
        assert isinstance(meant, Address) and str(meant) == written
    with pytest.raises(UnknownPeer, match=r"listens on 127.0.0.1:8282\. .*zbus-pair move NAME"):
        resolver.find("127.0.0.1:8282")
    for wrong in ("127.0.0.1:0", "h:70000", "a:b:c"):
        with pytest.raises(InvalidAddress):
            resolver.read(wrong)


def test_an_address_in_the_registry_or_the_store(trust: Trust) -> None:
    desk = local("desk")
    pair(trust, "cloud", a=(FAR, "Cloud.Example:18188"), b=("203.0.113.5:18189",))
    pair(trust, "studio", STUDIO, gpu=("127.0.0.1:18190",))  # through a tunnel
    resolver = Resolver(trust)
    assert resolver.read("127.0.0.1:18188") == resolver.read("localhost:18188") == desk
    assert resolver.find(FAR) == Remote(FAR, name="cloud/a", key=CLOUD, peer="a")
    its = resolver.read("CLOUD.example:18188")
    assert its == Remote("cloud.example:18188", name="cloud/a", key=CLOUD, peer="a")
    assert resolver.read("203.0.113.5:18189") == resolver.named("cloud/b")
    assert resolver.read("127.0.0.1:18190") == resolver.named("studio")


# --- the local network ----------------------------------------------------------------------------


def test_an_announcement_adds_ways_after_those_of_the_store(trust: Trust) -> None:
    pair(trust, "cloud", gpu=(FAR,))
    pair(trust, "studio", STUDIO, gpu=())
    resolver = Resolver(
        trust, seen=[seen("gpu", hosts=(LAN, "fd00::7")), seen("gpu", STUDIO, ("192.168.1.30",))]
    )
    its = resolver.named("cloud")
    assert (its.address, its.others) == (FAR, ())
    assert its.hints == (f"{LAN}:18188", "[fd00::7]:18188")
    assert (its.key, its.peer, its.instance) == (CLOUD, "", "")
    assert resolver.named("studio").hints == ("192.168.1.30:18188",)
    many = Resolver(trust, seen=[seen("gpu", hosts=tuple(f"192.168.1.{n}" for n in range(8)))])
    assert len(many.named("cloud").hints) == 3, "who announces much does not hide the store's"
    renamed = Resolver(trust, seen=[seen("gpu-2")]).named("cloud")
    assert renamed.hints == (f"{LAN}:18188",), "its name was taken in the network"
    again = Resolver(trust, seen=[seen("gpu", hosts=(FAR.partition(":")[0],))]).named("cloud")
    assert again.hints == (), "the same address is tried once"


def test_one_that_was_paired_without_a_name_of_its_comfyuis(trust: Trust) -> None:
    pair(trust, "cloud")
    one = Resolver(trust, seen=[seen("gpu-8188")])
    assert one.named("cloud") == Remote("", name="cloud", key=CLOUD, hints=(f"{LAN}:18188",))
    assert one.paired() == [one.named("cloud")]
    two = Resolver(trust, seen=[seen("gpu-8188"), seen("gpu-8189", port=18189)])
    names = [remote.name for remote in two.paired()]
    assert names == ["cloud/gpu-8188", "cloud/gpu-8189"]
    hints = (f"{LAN}:18189",)
    its = Remote("", name="cloud/gpu-8189", key=CLOUD, peer="gpu-8189", hints=hints)
    assert two.named("cloud/gpu-8189") == its
    assert two.named("cloud") == Remote("", name="cloud", key=CLOUD)


SPOOFS: dict[str, Announcement] = {
    "its name, another fingerprint": seen("gpu", STRANGER, (EVIL,)),
    "the principal's name, another fingerprint": seen("cloud", STRANGER, (EVIL,)),
    "all of it, another host": seen("gpu", CLOUD, (EVIL,)),
    "its fingerprint, another name": seen("other", CLOUD, (EVIL,)),
    "its fingerprint, the principal's name": seen("cloud", CLOUD, (EVIL,)),
    "its fingerprint, another principal's name": seen("studio", CLOUD, (EVIL,)),
    "its fingerprint, another one's own name": seen("render", CLOUD, (EVIL,)),
    "its fingerprint, the name of one here": seen("desk", CLOUD, (EVIL,)),
    "its fingerprint, an address for a name": seen("127.0.0.1:8282", CLOUD, (EVIL,)),
    "its fingerprint, a whole name": seen("cloud/gpu", CLOUD, (EVIL,)),
    "its fingerprint, two names": seen("gpu,studio", CLOUD, (EVIL,)),
    "its fingerprint, odd blanks": seen(" gpu ", CLOUD, (EVIL,)),
}


@pytest.mark.parametrize("spoof", SPOOFS.values(), ids=SPOOFS)
@pytest.mark.parametrize("first", [True, False])
def test_a_spoofed_announcement_redirects_nobody(
    trust: Trust, spoof: Announcement, first: bool
) -> None:
    local("desk")
    pair(trust, "cloud", gpu=(FAR,))
    pair(trust, "studio", STUDIO, render=("198.51.100.7:18188",), cpu=("198.51.100.7:18189",))
    names = [*("desk", "cloud", "gpu", "cloud/gpu", "render", "studio/render", "cpu", "studio")]
    addresses = ["127.0.0.1:8282", "127.0.0.1:18188", FAR, f"{EVIL}:18188"]
    real = seen("gpu")
    announced = [spoof, real] if first else [real, spoof]
    before, after = Resolver(trust), Resolver(trust, seen=announced)
    for name in names:
        meant, now = before.named(name), after.named(name)
        assert replace(now, hints=()) == meant, "what the network tells is a hint"
    for address in addresses:
        assert after.read(address) == before.read(address)
    for remote in after.paired():
        spoofed = any(EVIL in way for way in (remote.address, *remote.others, *remote.hints))
        assert not spoofed or remote.key == CLOUD, "and there the paired key must answer"
        # In a list of names with commas it is one, and it is no address.
        assert remote.name.count("/") <= 1 and not set(",:") & set(remote.name)
    with pytest.raises(UnknownPeer):
        after.named("other")  # its own name alone is not taken from the network


def test_what_strangers_announce_is_no_name(trust: Trust) -> None:
    text = failure(trust, "gpu", seen("gpu", STRANGER))
    assert "known: none" in text
    assert Resolver(trust, seen=[seen("gpu", STRANGER)]).paired() == []


# --- pages ----------------------------------------------------------------------------------------

ID = "c" * 32
OWN = "127.0.0.1:18188"


def card(key: bytes = CLOUD, **more: Any) -> Card:
    endpoints = (Address("127.0.0.1", 18188),)
    return replace(Card(ID, key, "gpu-8188", "0.9", endpoints, False, True), **more)


def ways(trust: Trust, url: str, told: Card) -> list[str]:
    remote = Resolver(trust).of_card(page(url), told)
    assert (remote.key, remote.instance, remote.name) == (told.key, ID, "gpu-8188")
    return [remote.address, *remote.others]


def test_a_url_is_a_page(trust: Trust) -> None:
    meant = Resolver(trust).read(" https://me:s3cret@cloud.example/comfy/ ")
    assert isinstance(meant, Page) and str(meant) == "https://cloud.example/comfy"
    with pytest.raises(InvalidAddress):
        Resolver(trust).read("ftp://cloud.example")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8188", "http://localhost:8188/"])
def test_a_tunnel_whose_page_tells_an_address_of_this_machine(trust: Trust, url: str) -> None:
    pair(trust, "cloud")
    local("desk", OWN)  # on the very address that the far side's own loopback has
    expected = [url.rstrip("/")]
    assert ways(trust, url, card()) == expected
    assert ways(trust, url, card(lan=True)) == expected, "nor is the tunnel's end in its network"
    # One that claims to be the peer here does not prove its key: it is not asked for it.
    local("desk", OWN, instance=ID)
    assert ways(trust, url, card()) == expected
    # That peer itself, of whom the registry says where it is.
    local("desk", "127.0.0.1:18195", instance=ID)
    mine = card(trust.keys.public, endpoints=(Address("127.0.0.1", 1),))
    assert ways(trust, url, mine) == ["127.0.0.1:18195", *expected]


def test_the_ways_to_the_peer_of_a_page_elsewhere(trust: Trust) -> None:
    pair(trust, "cloud")
    url = "https://me:s3cret@cloud.example/comfy"
    assert ways(trust, url, card()) == [url]
    assert ways(trust, url, card(lan=True)) == ["cloud.example:18188", url]
    assert ways(trust, url, card(lan=True, ws=False)) == ["cloud.example:18188"]
    six = "http://[fd00::7]:8188"
    assert ways(trust, six, card(lan=True)) == ["[fd00::7]:18188", six]
    assert ways(trust, url, card(ws=False)) == [OWN], "there is no other way"


def test_a_page_whose_key_is_not_known(trust: Trust) -> None:
    pair(trust, "gpu-8188")  # the name is taken by another one: that is of no account
    with pytest.raises(NotPaired) as raised:
        Resolver(trust).of_card(page("http://u:s3cret@cloud.example"), card(STRANGER))
    text = str(raised.value)
    assert text.startswith("http://cloud.example: not paired with gpu-8188, whose key's fingerp")
    assert f"begins with {short(STRANGER)}. Pair the two" in text
    assert fingerprint(STRANGER) not in text and to_text(STRANGER) not in text
    assert "zbus-pair invite" in text and "s3cret" not in text
    with pytest.raises(NotPaired, match="not paired with that ComfyUI"):
        Resolver(trust).of_card(page("http://cloud.example"), card(STRANGER, name=""))


def test_a_page_of_one_that_is_trusted_by_the_environment(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZBUS_TRUST", to_text(STRANGER))
    assert ways(trust, "http://cloud.example", card(STRANGER)) == ["http://cloud.example"]


def test_a_machine_that_does_not_answer_is_not_waited_for_like_a_busy_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its whole answer may take as long as a model loads; its TCP may not."""

    def silent(_: tuple[str, int], timeout: float) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(Unreachable, match="no connection in 5 s") as raised:
        page("http://127.0.0.1:8188").ask()
    assert "tunnel" in raised.value.remedy


def test_a_busy_page_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        asked = page(f"http://127.0.0.1:{busy.getsockname()[1]}")
        with pytest.raises(TimedOut, match=r"no answer in 0\.7 s") as raised:
            asked.ask(timeout=0.7)
    assert "very busy" in raised.value.remedy


def test_a_page_with_a_certificate_of_its_own_says_what_to_do_about_it(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, certificate.with_suffix(".key"))
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            with pytest.raises(Unreachable) as refused:
                page(f"https://127.0.0.1:{server.server_port}").ask(20)
        finally:
            server.shutdown()
            serving.join()
    assert "its certificate is not trusted here" in str(refused.value)
    assert "SSL_CERT_FILE" in refused.value.remedy
