"""Two computers with a ComfyUI each, on one cable: seen, paired while both run, at work, parted."""

from __future__ import annotations

import json
import time
import uuid

import pytest
from chains import node, own, run_both
from children import slowness, until
from comfyui import ComfyUI, start_all
from netns import pair, permitted, raw_rate, two_machines
from test_run_on_peers import at_peer, digests, failure, good, part, ran
from test_two_machines import PEER

MIB = 1 << 20
SIZE = 192 * MIB
NOISE = {"batch": 4, "height": 2048, "width": 2048, "channels": 3}  # of that size
SOON = 5.0  # seconds in which a session has ended
# Tells what it likes, and asks nobody whether the name is free.
SPOOFS = """
    import socket, sys
    from zeroconf import ServiceInfo, Zeroconf
    name, port, short, host = sys.argv[1:]
    kind = "_zbus._tcp.local."
    there = {"port": int(port), "server": "elsewhere.local.", "parsed_addresses": [host]}
    info = ServiceInfo(kind, f"{name}.{kind}", properties={"v": "1", "fp": short}, **there)
    zeroconf = Zeroconf(interfaces=[host])
    zeroconf.register_service(info, cooperating_responders=True)
    print("told", flush=True)
    sys.stdin.read()
"""


class Box(ComfyUI):
    """A ComfyUI on one of the machines, driven from that machine."""

    def __init__(self, comfyui_dir, machine, home, **how):
        super().__init__(comfyui_dir, env={"ZBUS_HOME": str(home)}, **how)
        self.machine, self.home = machine, home

    def launch(self):
        return self.machine.within(super().launch)

    @property
    def events(self):
        return self.machine.within(lambda: super(Box, self).events)

    def _request(self, request, timeout):
        return self.machine.within(lambda: ComfyUI._request(request, timeout))

    def zbus(self, *arguments, status=0):
        """What that command prints there."""
        return self.machine.zbus(self.home, *arguments, status=status)


@pytest.fixture(scope="module")
def boxes(comfyui_dir, tmp_path_factory):
    """a and b: nothing but the cable is between them."""
    pytest.importorskip("zeroconf", reason="the package zeroconf is not installed")
    if why := permitted():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("two")
    with two_machines() as machines:
        made = [
            Box(comfyui_dir, machine, folder / name, name=name, port=port)
            for name, machine, port in zip("ab", machines, (8188, 8189), strict=True)
        ]
        try:
            start_all(*made)
            assert all(box.events is not None for box in made)
            yield made
        finally:
            for box in made:
                box.kill()


@pytest.fixture
def strangers(boxes):
    """The two, not paired any more afterwards and with their LAN listeners closed."""
    yield boxes
    for box in boxes:
        box.clear()
        for one in json.loads(box.zbus("pair", "list", "--json"))["principals"]:
            box.zbus("pair", "forget", one["name"])
        box.zbus("pair", "lan", "off")


@pytest.fixture(params=[False, True], ids=["b only dials", "b is open too"])
def is_open(request):
    return request.param


@pytest.fixture
def friends(strangers):
    """``friends(is_open)``: pairs them, while both run: for b, a is "desk"; for a, b is "lap"."""

    def make(is_open=False):
        a, b = strangers
        if is_open:
            b.zbus("pair", "lan", "on")
        return pair(a.machine, a.home, b.machine, b.home)

    return make


def on_desk(port, text="", seconds=0.0):
    """A prompt whose part runs at "desk", on that port alone."""
    text = text or uuid.uuid4().hex  # nowhere cached
    return part(only=port, text=text) | {
        "slow": node("TestSlow", value=["at", 0], seconds=seconds),
        "run": at_peer(("slow", 0), "desk"),
        "digest": node("TestDigest", value=["run", 0]),
        "report": node("PreviewAny", source=["run", 1]),
    }


def moved(sender, sees, receiver, its):
    """Seconds from node to node for `SIZE` bytes, which arrive as they were.

    Args:
        sees: What the sender calls the receiver.
        its: What the receiver calls the sender.
    """
    here, there = own(sees), own(its)
    made = here.add(node("TestNoise", seed=time.time_ns() % 1000, **NOISE))
    go = here.add(node("TestStamp", value=here.order, after=[made, 0]))
    here.order = [go, 0]
    passed = here.digest(here.step("ZBusSend", value=[made, 0], quality="exact"))
    got = there.step("ZBusReceive", expect="image", timeout=60)
    come = there.add(node("TestStamp", value=[got, 0]))
    arrived = there.digest(come)
    received, sent = run_both(receiver, there.prompt, sender, here.prompt, 120)
    assert receiver.ui(received, arrived, "digest") == sender.ui(sent, passed, "digest")
    assert receiver.ui(received, arrived, "bytes") == SIZE
    return (receiver.ui(received, come, "time_ns") - sender.ui(sent, go, "time_ns")) / 1e9


def receives(peer):
    chain = own(peer)
    chain.digest(chain.step("ZBusReceive", expect="any", timeout=30))
    return chain.prompt


def fingerprint(box):
    return box.zbus("pair", "fingerprint").split()[1]


# --- discovery ------------------------------------------------------------------------------------


def test_one_sees_the_other_as_long_as_it_is_open(strangers):
    a, b = strangers
    short = fingerprint(a)[:7]
    seen = f"  {a.peer}  {a.machine.address}:18188  {short}  not paired"
    assert seen not in b.zbus("ping", "--discover").splitlines()
    for _ in range(2):
        a.zbus("pair", "lan", "on")
        until(lambda: seen in b.zbus("ping", "--discover").splitlines(), 30, "a is seen")
        a.zbus("pair", "lan", "off")
        until(lambda: a.peer not in b.zbus("ping", "--discover"), 30, "a is gone")


# --- paired ---------------------------------------------------------------------------------------


def test_a_job_and_192_mib_each_way(strangers, friends, is_open, measured):
    a, b = strangers
    since = time.monotonic()
    invited, accepted = friends(is_open)
    took = time.monotonic() - since
    assert f"{a.peer}: {a.machine.address}:18188" in accepted
    there = f"{b.machine.address}:18189" if is_open else "connects to this computer"
    assert f"{b.peer}: {there}" in invited

    entry = good(b, on_desk(a.port))
    here = part(only=b.port, text="here") | {"digest": node("TestDigest", value=["at", 0])}
    assert digests(entry) == digests(good(b, here))
    assert entry["outputs"]["report"]["text"][0].startswith("desk: done in ")

    up = min(moved(b, "desk", a, "lap") for _ in range(2))
    down = min(moved(a, "lap", b, "desk") for _ in range(2))
    raw = raw_rate(b.machine, a.machine)
    measured(
        f"paired after {took:.1f} s; 192 MiB node to node: {SIZE / up / 1e6:.0f} MB/s "
        f"b to a, {SIZE / down / 1e6:.0f} back; a raw socket {raw / 1e6:.0f} MB/s"
    )


def test_who_may_only_exchange_runs_nothing(strangers, friends):
    """a invited b: b may run things at a, and not the other way round."""
    a, b = strangers
    friends(is_open=True)
    prompt = on_desk(b.port)
    prompt["run"]["inputs"]["peer"] = "lap"
    assert "permit" in failure(a, prompt)["exception_message"]


@pytest.mark.parametrize("under_way", ["a job", "an exchange"])
def test_who_is_forgotten_is_out_at_once(strangers, friends, under_way, measured):
    a, b = strangers
    friends()
    good(b, on_desk(a.port))  # a session stands
    text = uuid.uuid4().hex
    if under_way == "a job":
        prompt_id = b.prompt(on_desk(a.port, text, seconds=60.0))
        until(lambda: ran(a, text), 20, "it runs there")
    else:
        prompt_id = b.prompt(receives("desk"))
        b.wait_running(prompt_id)

    since = time.monotonic()
    assert '"lap"' in a.zbus("pair", "forget", "lap")
    commanded = time.monotonic() - since
    entry = b.wait(prompt_id, 20)
    took = time.monotonic() - since
    assert "not paired" in b.errors(entry)
    assert took < SOON * slowness()
    measured(
        f"{under_way}: failed {took:.2f} s after the command was given, which itself "
        f"took {commanded:.2f} s"
    )
    for prompt in (on_desk(a.port), receives("desk")):
        error = failure(b, prompt)
        assert "not paired there with this computer" in error["exception_message"]
    assert a.machine.address in b.zbus("ping", "desk", status=1)
    until(lambda: a.queue() == ([], []), 5, "nothing of b's is left at a")
    friends()  # once more
    good(b, on_desk(a.port))


def part_for_a_moment(a):
    """The session of the two ends; both still trust each other."""
    a.zbus("pair", "permit", "lap", "none")
    a.zbus("pair", "permit", "lap", "exchange,jobs")


def test_who_has_another_address_now_is_found_by_its_announcement(strangers, friends):
    """As after a night, when the router gives out others. And b, who was closed, is seen by a."""
    a, b = strangers
    friends()
    b.zbus("pair", "move", "desk", f"{a.machine.address}:9")
    b.zbus("pair", "permit", "desk", "exchange,jobs")
    b.zbus("pair", "lan", "on")
    part_for_a_moment(a)
    entry = until(lambda: succeeded(b, on_desk(a.port)), 30, "a is found")
    assert entry["outputs"]["report"]["text"][0].startswith("desk: done in ")
    part_for_a_moment(a)
    prompt = on_desk(b.port)
    prompt["run"]["inputs"]["peer"] = "lap"
    until(lambda: succeeded(a, prompt), 30, "b is found")


def succeeded(box, prompt):
    """What has come of it, if all went well."""
    entry = box.run(prompt)
    return entry if box.outcome(entry) == "success" else None


# --- a liar on the cable --------------------------------------------------------------------------


def test_a_spoofed_announcement_redirects_nothing(strangers, friends):
    """What is meant for a comes to a, or to nobody."""
    a, b = strangers
    friends(is_open=True)
    a.machine.add_address("10.77.0.9/24")
    elsewhere = a.home.with_name("stranger")
    a.machine.zbus(elsewhere, "pair", "lan", "10.77.0.9")
    stranger = a.machine.start(elsewhere, PEER, a.peer, 18199)
    stranger.line("lan: 10.77.0.9")
    lie = (a.peer, 18199, fingerprint(a)[:7], "10.77.0.9")
    spoofs = a.machine.start(elsewhere, SPOOFS, *lie)
    spoofs.line("told", 30)
    try:
        until(lambda: "10.77.0.9:18199" in b.zbus("ping", "--discover"), 30, "it is seen")
        good(b, on_desk(a.port))

        # The stored address is nobody's now, and no session stands.
        b.zbus("pair", "move", "desk", f"{a.machine.address}:9")
        part_for_a_moment(a)
        text = uuid.uuid4().hex
        entry = b.run(on_desk(a.port, text))
        assert ran(a, text) == (b.outcome(entry) == "success")
    finally:
        spoofs.kill()
        stranger.kill()
    assert "works" not in stranger.rest()
