"""Two machines, each with its own user: they see each other, pair, and work for each other."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import avahi
import pytest
from children import Child, until
from netns import Machine, pair, permitted, raw_rate, two_machines

from zbus.protocol.messages import VERSION

MIB = 1 << 20
SIZE = 192 * MIB
NAMES = ("desk", "lap")  # what the two call each other
SHORT = "ABCDEF2"

ANNOUNCES = """
    import logging, sys
    from zbus import lan
    logging.basicConfig(level=logging.INFO)
    lan.LOOK = 0.2
    announcer = lan.Announcer()
    for line in sys.stdin:  # name port fingerprint; an empty one is the end of it
        if line.strip():
            name, port, short = line.split()
            announcer.announce(name, int(port), short)
        else:
            announcer.close()
"""
BROWSES = """
    import json, sys
    from zbus import lan
    browser = lan.Browser()
    for line in sys.stdin:
        print(json.dumps([vars(one) for one in browser.now()]), flush=True)
"""
PEER = """
    import hashlib, random, sys, time
    from jobpair import Host
    from zbus import Peer, ZBusError, discovery, lan
    from zbus.job import Request
    from zbus.keys import to_text
    from zbus.resolver import Resolver

    def say(*words):
        print(*words, flush=True)

    def work(job):
        say("works")
        job.started()
        job.result("reversed", job.request.values["text"][::-1])
        job.done()

    def do(what, name="", seconds=60.0):
        if what == "seen":
            return [(one.name, one.short, one.port) for one in browser.now()]
        remote = Resolver(peer.trust, peer.own.instance.hex(), browser.now()).named(name)
        if what == "job":
            request = Request({}, values={"text": "a text"})
            return peer.submit(remote, request).result()["reversed"]
        with peer.meet(remote) as channel:
            if what == "send":
                value = random.Random(name).randbytes(int(sys.argv[3]))
                channel.receive(order=0, timeout=float(seconds))  # it is there
                began = time.monotonic()
                channel.send(value, order=1, timeout=float(seconds))
                took = time.monotonic() - began
            else:
                channel.send("here", order=0, timeout=float(seconds))
                value, took = channel.receive(order=1, timeout=float(seconds)), 0.0
        return hashlib.sha256(value).hexdigest(), took

    peer = Peer(sys.argv[1])
    own = peer.serve(Host(work), int(sys.argv[2]), on_lan=lambda host, _: say("lan:", host or "-"))
    entry = (peer.own.instance.hex(), peer.name, own)
    entry = discovery.Entry.of_this_process(*entry, key=to_text(peer.trust.keys.public))
    discovery.register(entry)
    browser = lan.Browser()
    say("ready")
    for line in sys.stdin:
        try:
            say("done:", do(*line.split()))
        except ZBusError as error:
            say("failed:", type(error).__name__, str(error))
"""


class Two(NamedTuple):
    a: Machine
    b: Machine


@pytest.fixture
def two() -> Iterator[Two]:
    """Two machines on one cable."""
    if why := permitted():
        pytest.skip(why)
    with two_machines() as (a, b):
        yield Two(a, b)


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """``on(machine, code)`` -> a Python process there, with a home of zbus for each machine
    and user."""
    made: list[Child] = []

    def start(machine: Machine, code: str, *arguments: object, user: str = "") -> Child:
        made.append(machine.start(home(tmp_path, machine, user), code, *arguments))
        return made[-1]

    yield start
    for child in made:
        child.kill()


@pytest.fixture
def zbus(tmp_path: Path) -> Callable[..., str]:
    """``zbus(machine, "pair", "list")`` -> what that prints there; `status` is how it must end."""

    def run(machine: Machine, *arguments: str, user: str = "", status: int = 0) -> str:
        return machine.zbus(home(tmp_path, machine, user), *arguments, status=status)

    return run


@pytest.fixture
def paired(two: Two, tmp_path: Path) -> Callable[[], tuple[str, str]]:
    """``paired()``: as `netns.pair`."""
    return lambda: pair(two.a, home(tmp_path, two.a), two.b, home(tmp_path, two.b))


def home(folder: Path, machine: Machine, user: str = "") -> Path:
    return folder / f"home-{machine.namespace[-1]}{user}"


def seen(browser: Child) -> list[dict[str, Any]]:
    browser.tell("?")
    found: list[dict[str, Any]] = json.loads(browser.line("["))
    return found


def announced(machine: Machine, name: str = "desk-8188", port: int = 18188) -> dict[str, Any]:
    return {"name": name, "hosts": [machine.address], "port": port, "short": SHORT}


@pytest.fixture
def needs_zeroconf() -> None:
    pytest.importorskip("zeroconf", reason="the package zeroconf is not installed")


# --- who is there ---------------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("needs_zeroconf")


def test_one_sees_the_other_come_and_go(two: Two, on: Callable[..., Child]) -> None:
    announces, browses = on(two.a, ANNOUNCES), on(two.b, BROWSES)
    announces.tell(f"desk-8188 18188 {SHORT}")
    until(lambda: seen(browses), 30, "the announcement")
    assert seen(browses) == [announced(two.a)]
    announces.tell("")
    until(lambda: not seen(browses), 30, "the goodbye")


def test_a_browser_that_comes_later_sees_who_is_there(two: Two, on: Callable[..., Child]) -> None:
    announces = on(two.a, ANNOUNCES)
    announces.tell(f"desk-8188 18188 {SHORT}")
    announces.line("announced on the LAN", 30)
    browses = on(two.b, BROWSES)
    until(lambda: seen(browses), 30, "the announcement")
    assert seen(browses) == [announced(two.a)]


def test_a_changed_address_is_told(two: Two, on: Callable[..., Child]) -> None:
    announces, browses = on(two.a, ANNOUNCES), on(two.b, BROWSES)
    announces.tell(f"desk-8188 18188 {SHORT}")
    until(lambda: seen(browses), 30, "the announcement")
    two.a.add_address("10.77.0.9/24")
    both = [("desk-8188", ["10.77.0.1", "10.77.0.9"])]
    until(lambda: [(o["name"], sorted(o["hosts"])) for o in seen(browses)] == both, 30, "both")


def test_another_mdns_program_sees_it(two: Two, on: Callable[..., Child], tmp_path: Path) -> None:
    if missing := avahi.missing():
        pytest.skip(f"not installed: {missing}")
    announces = on(two.a, ANNOUNCES)
    announces.tell(f"desk-8188 18188 {SHORT}")
    announces.line("announced on the LAN", 30)
    command = ["unshare", "--mount", sys.executable, str(Path(avahi.__file__)), str(tmp_path)]
    foreign = two.b.within(
        lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    assert foreign.stdin is not None and foreign.stdout is not None
    with foreign:

        def resolved() -> list[list[str]]:
            print(file=foreign.stdin, flush=True)
            lines = list(iter(lambda: foreign.stdout.readline().strip(), ""))
            return [line.split(";") for line in lines if line.startswith("=")]

        (line,) = until(resolved, 60, "avahi resolves it")
        foreign.stdin.close()
        assert foreign.wait(20) == 0
    _, interface, protocol, name, kind, domain, host, address, port, text = line
    # avahi writes spaces and brackets by their numbers.
    plain = re.sub(r"\\([0-9]{3})", lambda code: chr(int(code[1])), name)
    assert (plain, kind, domain) == (f"desk-8188 ({SHORT}-18188)", "_zbus._tcp", "local")
    assert (interface, protocol, address, port) == ("lan0", "IPv4", two.a.address, "18188")
    assert sorted(text.split()) == [f'"fp={SHORT}"', f'"v={VERSION}"']
    assert host.startswith("zbus-"), "not the machine's own name"


def test_what_zbus_ping_lists(two: Two, on: Callable[..., Child]) -> None:
    announces = on(two.a, ANNOUNCES)
    announces.tell(f"desk-8188 18188 {SHORT}")
    announces.line("announced on the LAN", 30)
    code = (
        "import sys; from zbus.cli.pinging.discover import discover; "
        "discover(3.0, False, sys.stdout)"
    )
    listed = on(two.b, code).rest(60).splitlines()
    there = listed.index("In the local network:") + 1
    assert listed[there] == f"  desk-8188  {two.a.address}:18188  {SHORT}  not paired"


# --- paired ---------------------------------------------------------------------------------------


def exchanged(sender: Child, its_name: str, receiver: Child, other_name: str) -> float:
    """Seconds for `SIZE` bytes that arrive as they were."""
    receiver.tell(f"receive {its_name}")
    sender.tell(f"send {other_name}")
    sent, got = (child.line("done:", 60).partition(": ")[2] for child in (sender, receiver))
    (digest, took), (arrived, _) = ast.literal_eval(sent), ast.literal_eval(got)
    assert arrived == digest
    return float(took)


@pytest.mark.parametrize("lap_is_open", [False, True], ids=["lap only dials", "lap is open too"])
def test_pair_work_and_part(
    two: Two,
    on: Callable[..., Child],
    zbus: Callable[..., str],
    paired: Callable[[], tuple[str, str]],
    measured: Callable[[str], None],
    lap_is_open: bool,
) -> None:
    """As two users would: desk invites, lap accepts, both work, desk forgets lap."""
    desk, lap = (
        on(at, PEER, f"{name}-8188", 18188, SIZE) for at, name in zip(two, NAMES, strict=True)
    )
    for child in (desk, lap):
        child.line("ready")
    if lap_is_open:
        zbus(two.b, "pair", "lan", "on")
    invited, accepted = paired()
    assert desk.line("lan:") == "lan: 0.0.0.0", "it is open already, without a restart"
    assert f"desk-8188: {two.a.address}:18188" in accepted
    there = f"{two.b.address}:18188" if lap_is_open else "connects to this computer"
    assert f"lap-8188: {there}" in invited

    pinged = zbus(two.b, "ping", "desk", "--size", "16M", "--jobs")
    assert f"desk at {two.a.address}:18188" in pinged and pinged.count("verified") == 2
    assert "jobs        ok    permitted" in pinged
    if lap_is_open:
        assert zbus(two.a, "ping", "lap", "--size", "16M").count("verified") == 2
    else:
        assert "it can only come by itself" in zbus(two.a, "ping", "lap", status=1)

    lap.tell("job desk")
    assert lap.line("done:") == "done: txet a"
    desk.tell("job lap")
    assert "NotPermitted" in desk.line("failed:")

    up = exchanged(lap, "lap", desk, "desk")
    down = exchanged(desk, "desk", lap, "lap")
    raw = raw_rate(two.a, two.b)

    lap.tell("receive desk")  # over the session that stands
    began = time.monotonic()
    zbus(two.a, "pair", "forget", "lap")
    told = lap.line("failed")
    gone = time.monotonic() - began
    assert gone < 15  # in truth under a second; a link that is only lost is waited for longer
    assert "not paired" in told
    for what in ("job", "receive"):
        lap.tell(f"{what} desk")
        refused = lap.line("failed")
        assert "NotPaired" in refused and "not paired there with this computer" in refused
    assert "not paired there" in zbus(two.b, "ping", "desk", status=1)
    measured(
        f"192 MiB between two machines: {SIZE / up / 1e6:.0f} MB/s to who invited, "
        f"{SIZE / down / 1e6:.0f} back; a raw socket {raw / 1e6:.0f} MB/s; forgotten, the "
        f"other one knows {gone:.2f} s after the command was given"
    )


def test_the_cable_is_out_for_a_while(
    two: Two, on: Callable[..., Child], paired: Callable[[], tuple[str, str]]
) -> None:
    """Neither side hears that the other is gone; what was under way arrives as it was."""
    desk, lap = (on(at, PEER, name, 18188, SIZE) for at, name in zip(two, NAMES, strict=True))
    for child in (desk, lap):
        child.line("ready")
    paired()
    desk.tell("receive lap")
    lap.tell("send desk")
    until(lambda: two.a.received() > 2 * MIB, 20, "it is under way")
    two.a.pull()
    time.sleep(3.0)  # what the test is about
    two.a.plug()
    (digest, took), (arrived, _) = (
        ast.literal_eval(child.line("done:", 60).partition(": ")[2]) for child in (lap, desk)
    )
    assert took > 3 and arrived == digest


def test_a_spoofed_announcement_redirects_nothing(
    two: Two,
    on: Callable[..., Child],
    zbus: Callable[..., str],
    paired: Callable[[], tuple[str, str]],
) -> None:
    """Somebody with the name, and the beginning of the fingerprint, of a paired peer: what was
    meant for that one comes to it, or to nobody."""
    two.a.add_address("10.77.0.9/24")
    zbus(two.a, "pair", "lan", "10.77.0.9", user="-stranger")
    stranger = on(two.a, PEER, "desk-8188", 18199, user="-stranger")
    stranger.line("lan: 10.77.0.9")
    desk, lap = on(two.a, PEER, "desk-8188", 18188), on(two.b, PEER, "lap-8188", 18188)
    for child in (desk, lap):
        child.line("ready")
    paired()
    own = json.loads(zbus(two.a, "pair", "fingerprint", "--json"))["fingerprint"]
    spoofs = on(two.a, ANNOUNCES)
    spoofs.tell(f"desk-8188 18199 {own[:7]}")
    spoofs.line("announced on the LAN", 30)

    def sees_it(child: Child) -> bool:
        child.tell("seen")
        return str(("desk-8188", own[:7], 18199)) in child.line("done: ")

    until(lambda: sees_it(lap), 30, "the spoofed announcement")
    for name in ("desk", "desk/desk-8188"):
        lap.tell(f"job {name}")
        desk.line("works")
        assert lap.line("done:") == "done: txet a"
    lap.kill()  # and its session
    zbus(two.b, "pair", "move", "desk", f"{two.a.address}:9")  # where nobody is
    for what in ("job desk", "receive desk 3"):
        lap = on(two.b, PEER, "lap-8188", 18188)
        until(lambda: sees_it(lap), 30, "the spoofed announcement")  # noqa: B023
        lap.tell(what)
        lap.line("failed:", 60)
    stranger.kill()
    assert "works" not in stranger.rest()
