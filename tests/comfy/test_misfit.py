"""Two workflows that do not fit, or of which one ends early: each is told so, and at once."""

from __future__ import annotations

import socket
import time

import pytest
import workflows
from chains import jumper, node, own, run_both, wait_both
from children import slowness, until
from comfyui import PromptRefused, free_port

SOON = 2.5  # seconds; the promise is 1 s from when it can be known


def both_fail(pair, here, there):
    """Queue both; the errors of both, which come soon after the second has begun to run.

    By what the two tell the page: how long a busy machine takes to accept a prompt, and to answer
    whoever asks what became of it, is no time of theirs.
    """
    since = [c.events.mark() for c in pair]
    first = pair.a.prompt(here)
    pair.a.wait_running(first)
    ids = first, pair.b.prompt(there)
    entries = wait_both(pair.a, ids[0], pair.b, ids[1], 10)
    texts = [c.errors(e) for c, e in zip(pair, entries, strict=True)]
    began = pair.b.events.wait_for(of(ids[1], "execution_start"), since=since[1])
    ends = [
        c.events.wait_for(of(i, "executing", node=None), since=s)
        for c, i, s in zip(pair, ids, since, strict=True)
    ]
    took = (max(end.time_ns for end in ends) - began.time_ns) / 1e9
    assert took < SOON * slowness(), texts
    return texts


def of(prompt_id, kind, **told):
    """Whether an event is that of the prompt."""
    wanted = {"prompt_id": prompt_id, **told}
    return lambda event: event.kind == kind and wanted.items() <= event.data.items()


def test_a_failing_node_ends_the_others_wait(pair, addr):
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    here.then("TestSlow", seconds=0.5)
    here.then("TestRaise", text="no such thing")
    here.step("Send String", string="x")
    there.step("Receive String")
    mine, theirs = both_fail(pair, here.end(), there.end())
    assert "no such thing" in mine
    assert "the other workflow failed: TestRaise #3: ValueError: no such thing" in theirs


def test_a_node_that_fails_beside_a_waiting_one(pair, addr):
    """The waiting node is torn down with its prompt: still the first error is what is told."""
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    waits = here.step("Receive String", title="Get it")
    made = here.add(node("TestMake", kind="int", seed=1))
    slow = here.add(node("TestSlow", value=[made, 0], seconds=1.0))
    fails = here.add(node("TestRaise", value=[slow, 0], text="beside"))
    here.digest(fails)
    there.then("TestSlow", seconds=30.0)
    there.step("Send String", string="x")
    since = pair.b.events.mark()
    _, theirs = both_fail(pair, here.end(), there.end())
    assert theirs == ""  # interrupted while it computed
    notice = pair.b.events.wait_for(lambda e: e.kind == "zbus.notice", since=since)
    assert "ValueError: beside" in notice.data["text"]
    assert waits


@pytest.mark.parametrize(
    "mine, theirs, words",
    [
        (["Send String"], ["Send Images"], "operation 1 of the chain is Send"),
        (["Receive Images"], ["Receive String"], "operation 1 of the chain is Receive"),
        (["Send String"], ["Receive Images"], "operation 1 of the chain is Send String"),
        (
            ["Send String"] * 3,
            ["Receive String"] * 2,
            "the chain has 3 operations here and 2 there",
        ),
        (["Send String", "Receive String"], ["Receive String"], "has no partner"),
    ],
)
def test_chains_that_do_not_fit_are_told_before_anything_is_computed(
    pair, addr, mine, theirs, words
):
    prompts = []
    for mode, steps in (("Client", mine), ("Server", theirs)):
        chain = jumper(addr, mode)
        chain.then("TestSlow", seconds=30.0)
        for kind in steps:
            value = {"string": "x"} if kind == "Send String" else {}
            if kind == "Send Images":
                value = {"images": [chain.add(workflows.noise_node()), 0], "send_as": "raw"}
            chain.step(kind, **value)
        prompts.append(chain.end())
    since = [c.events.mark() for c in pair]
    both_fail(pair, *prompts)
    told = [
        c.events.wait_for(lambda e: e.kind == "zbus.notice", since=s).data["text"]
        for c, s in zip(pair, since, strict=True)
    ]
    assert words in told[0], told
    for text in told:
        assert "Make the two chains mirror each other" in text


def test_a_bypassed_send(pair, addr):
    info = pair.a.object_info()
    local, remote = (workflows.load_example(name) for name in ("local", "remote"))
    for made in local["nodes"]:
        if made["id"] == 9:
            made["mode"] = workflows.BYPASSED
    here = workflows.to_api(local, info)
    _, there = workflows.jumper_examples(info, addr=addr, send_as="raw")
    for made in here.values():
        if "addr" in made["inputs"]:
            made["inputs"]["addr"] = addr
    mine, theirs = both_fail(pair, here, there)
    assert remote
    assert "Receive Images #8" in mine and "Receive String #13" in mine
    assert "Receive Images #8" in theirs and "Receive String #13" in theirs


def test_what_only_the_run_can_tell(pair, addr):
    """The types do not fit, and no manifest knew: each side has both halves in its text."""
    here, there = own(addr), own(f"listen:{addr}")
    value = here.add(node("TestMake", kind="text", seed=1))
    here.step("ZBusSend", value=[value, 0], quality="exact")
    got = there.step("ZBusReceive", expect="image", timeout=0)
    there.digest(got)
    mine, theirs = both_fail(pair, here.end(), there.end())
    for text in (mine, theirs):
        assert "ZBusSend #3" in text and "ZBusReceive #2" in text
        assert "image is expected, text is sent" in text


def test_both_server(pair, addr):
    here, there = jumper(addr, "Server"), jumper(addr, "Server")
    waits = here.step("Receive String")
    there.step("Send String", string="x")
    since = pair.a.events.mark()
    prompt_id = pair.a.prompt(here.end())
    pair.a.events.wait_text("press Run on the other side", waits, since=since)
    entry = pair.b.run(there.end(), 5)
    assert "both sides are Server: set one to Client" in pair.b.errors(entry)
    assert str(pair.a.pid) in pair.b.errors(entry)
    pair.a.interrupt(prompt_id)
    pair.a.wait(prompt_id, 5)


def test_both_client(pair, addr):
    here, there = jumper(addr, "Client"), jumper(addr, "Client")
    nodes = here.step("Receive String"), there.step("Send String", string="x")
    since = [c.events.mark() for c in pair]
    ids = pair.a.prompt(here.end()), pair.b.prompt(there.end())
    for comfyui, waits, mark in zip(pair, nodes, since, strict=True):
        comfyui.events.wait_text("one of the two has to listen: as Server", waits, 3, mark)
    for comfyui, prompt_id in zip(pair, ids, strict=True):
        comfyui.interrupt()
        assert comfyui.outcome(comfyui.wait(prompt_id, 5)) == "interrupted"


def test_one_side_queued_twice(pair, addr):
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    sends = here.step("Send String", string="x")
    there.step("Receive String")
    second_copy = dict(here.prompt)
    twice = [pair.a.prompt(p) for p in (here.end(), {**second_copy, "9": here.prompt["3"]})]
    since = pair.a.events.mark()
    assert pair.b.outcome(pair.b.run(there.end(), 10)) == "success"
    assert pair.a.outcome(pair.a.wait(twice[0], 5)) == "success"
    pair.a.events.wait_text("it is connected and idle", sends, 5, since)
    assert pair.b.outcome(pair.b.run(there.prompt, 10)) == "success"
    assert pair.a.outcome(pair.a.wait(twice[1], 5)) == "success"


def test_two_clients_on_one_server(pair, addr):
    zbus = pytest.importorskip("zbus")
    here, there = jumper(addr, "Server"), jumper(addr, "Client")
    here.then("TestSlow", seconds=2.0)
    here.step("Send String", string="for b")
    there.step("Receive String")
    ids = pair.a.prompt(here.end()), pair.b.prompt(there.end())
    since = pair.b.events.mark()
    pair.b.events.wait_text("has not come to this yet", since=since)
    with zbus.Peer() as peer, peer.connect(addr, channel="jumper") as channel:
        third = channel.start_receive(expect="text")
        until(lambda: "busy with the run of" in third.note, SOON, lambda: third.note)
        third.cancel()
    for comfyui, entry in zip(pair, wait_both(pair.a, ids[0], pair.b, ids[1]), strict=True):
        assert comfyui.outcome(entry) == "success"


def test_jumpers_nodes_and_ours_do_not_meet(pair, addr):
    here, there = jumper(addr, "Client"), own(f"listen:{addr}")
    here.step("Send String", string="x")
    there.digest(there.step("ZBusReceive", expect="any", timeout=0))
    for text in both_fail(pair, here.end(), there.end()):
        assert "Send String" in text and "ZBusReceive" in text
        assert "Use the same kind of nodes on both sides" in text


def test_two_operations_at_once(pair, addr):
    chain = jumper(addr, "Server", start=None)
    for _ in range(2):
        chain.order = None
        chain.add(node("PreviewAny", source=[chain.step("Receive String"), 0]))
    entry = pair.a.run(chain.prompt, 5)
    errors = pair.a.errors(entry)
    assert "Receive String #1" in errors and "Receive String #3" in errors
    assert "Wire the order output" in errors


def test_a_port_held_by_another_program(pair):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        addr = f"127.0.0.1:{holder.getsockname()[1]}"
        chain = jumper(addr, "Server")
        waits = chain.step("Receive String")
        entry = pair.a.run(chain.end(), 5)
    assert f"cannot listen on {addr}" in pair.a.errors(entry)
    assert waits


@pytest.mark.parametrize(
    "addr, mode, words",
    [
        ("127.0.0.1", "Client", "has no port"),
        ("nonsense", "Server", "no peer named 'nonsense' here"),
        ("127.0.0.1:99999", "Client", "is not a port"),
        ("0.0.0.0:8282", "Server", "would be open to everybody"),
        ("127.0.0.1:8282", "Sideways", "mode is Client or Server|not in list"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_when_queued(pair, addr, mode, words):
    chain = jumper(addr, mode)
    chain.step("Receive String")
    with pytest.raises(PromptRefused, match=words):
        pair.a.prompt(chain.end())


def test_an_address_over_a_link(pair, addr):
    chain = jumper(["t", 0], "Client")
    chain.prompt["t"] = node("StringConcatenate", string_a="127.0.0.1", string_b="", delimiter="")
    chain.step("Receive String")
    entry = pair.a.run(chain.end(), 5)
    assert "has no port" in pair.a.errors(entry)
    here, there = jumper(["t", 0], "Client"), jumper(addr, "Server")
    here.prompt["t"] = node("StringConcatenate", string_a=addr, string_b="", delimiter="")
    here.step("Send String", string="x")
    there.step("Receive String")
    run_both(pair.a, here.end(), pair.b, there.end())


def test_a_name_that_does_not_resolve(pair):
    chain = jumper(f"no-such-host.invalid:{free_port()}", "Client")
    chain.step("Receive String")
    entry = pair.a.run(chain.end(), 20)
    # If that is known before the node is reached, the prompt is stopped, with the text in the log.
    said = pair.a.errors(entry) or pair.a.log()[-3000:]
    assert pair.a.outcome(entry) != "success" and "no-such-host.invalid" in said


def test_a_killed_comfyui_is_noticed_at_once(pair, make_comfyui, addr):
    victim = make_comfyui(name="victim").start()
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    here.step("Receive String")
    there.then("TestSlow", seconds=60.0)
    there.step("Send String", string="x")
    since = pair.a.events.mark()
    waiting = pair.a.prompt(here.end())
    victim.prompt(there.end())
    pair.a.events.wait_text("has not come to this yet", since=since)
    pid = victim.pid
    started = time.monotonic()
    victim.kill()
    entry = pair.a.wait(waiting, 10)
    assert time.monotonic() - started < SOON * slowness()
    assert f"its process (pid {pid}) has ended" in pair.a.errors(entry)


def test_the_other_sides_words_are_no_markup(pair, addr):
    """The page takes a text on a node for HTML, and a title is what the other side likes."""
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    waits = here.step("Receive String")
    slow = there.then("TestSlow", seconds=30.0)
    there.prompt[slow]["_meta"] = {"title": "<img src=x onerror=alert(1)>"}
    there.step("Send String", string="x")
    since = pair.a.events.mark()
    pair.a.prompt(here.end())
    pair.b.prompt(there.end())
    # Before that node, it says no more than that it runs.
    text = pair.a.events.wait_text("img src=x", waits, since=since)
    assert "has not come to this yet" in text
    assert "\u2039img src=x onerror=alert(1)\u203a" in text
    assert "<" not in text
