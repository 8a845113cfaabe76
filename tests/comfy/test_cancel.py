"""Cancel on either side, in each state; and both can run the next prompt on the same address."""

from __future__ import annotations

import time

import pytest
from chains import jumper, node, run_both, wait_both
from children import slowness

BOUND = 1.5  # the promise is 0.5 s; the machines that test are slow


@pytest.fixture
def cancel(pair, addr, measured):
    """``cancel(waits, other, who)``: cancels that side's prompt, then runs a good pair."""

    def cancel(ids, who, what):
        canceller, other = (pair.a, pair.b) if who == "a" else (pair.b, pair.a)
        started = time.monotonic()
        canceller.interrupt()
        first, second = wait_both(pair.a, ids[0], pair.b, ids[1], 10)
        took = time.monotonic() - started
        measured(f"cancel by {who}, {what}: both ended after {took:.3f} s")
        mine, theirs = (first, second) if who == "a" else (second, first)
        assert canceller.outcome(mine) == "interrupted", canceller.errors(mine)
        assert took < BOUND * slowness()
        _next_pair(pair, addr)
        return other, theirs

    return cancel


def _next_pair(pair, addr):
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    here.step("Send String", string="next")
    there.step("Receive String")
    started = time.monotonic()
    run_both(pair.a, here.end(), pair.b, there.end(), 10)
    assert time.monotonic() - started < 3 * slowness()


@pytest.mark.parametrize("mode", ["Client", "Server"])
def test_while_it_waits_for_the_peer(pair, addr, mode):
    chain = jumper(addr, mode)
    waits = chain.step("Receive String")
    events, since = pair.a.events, pair.a.events.mark()
    prompt_id = pair.a.prompt(chain.end())
    words = "nobody listens" if mode == "Client" else "nobody has connected"
    events.wait_text(words, waits, since=since)
    started = time.monotonic()
    pair.a.interrupt()
    assert pair.a.outcome(pair.a.wait(prompt_id, 5)) == "interrupted"
    assert time.monotonic() - started < BOUND * slowness()
    pair.a.events.wait_text("cancelled", waits, since=since)
    if mode == "Client":
        _next_pair(pair, addr)
    else:
        _next_pair(type(pair)(pair.b, pair.a), addr)


@pytest.mark.parametrize("who", ["a", "b"])
def test_while_one_waits_for_the_order_and_the_other_computes(pair, addr, cancel, who):
    """A waits for its second item; B computes between its two operations."""
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    here.step("Send String", string="begin")
    waits = here.step("Receive String")
    there.step("Receive String")
    there.then("TestSlow", seconds=60.0)
    there.step("Send String", string="end")
    since = pair.a.events.mark()
    ids = pair.a.prompt(here.end()), pair.b.prompt(there.end())
    pair.a.events.wait_text("has not come to this yet: TestSlow", waits, since=since)
    since = pair.b.events.mark()
    other, entry = cancel(ids, who, "waiting for the order")
    if other is pair.a:
        assert "the other workflow was cancelled" in pair.a.errors(entry)
    else:
        assert other.outcome(entry) == "interrupted"
        notice = pair.b.events.wait_for(lambda e: e.kind == "zbus.notice", since=since)
        assert "the other workflow was cancelled" in notice.data["text"]
        assert "the other workflow was cancelled" in pair.b.log()


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("send_as", ["zlib", "png"])
def test_in_mid_transfer(pair, addr, cancel, who, send_as):
    """By codecs that take seconds; as raw, which is read out of memory, it is over too soon."""
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    noise = node("TestNoise", batch=64, height=512, width=512, channels=3, seed=1)
    images = here.add(noise)
    sends = here.step("Send Images", images=[images, 0], send_as=send_as)
    receives = there.step("Receive Images")
    there.digest(receives)
    since = pair.b.events.mark()
    ids = pair.a.prompt(here.end()), pair.b.prompt(there.end())

    def moving(event):
        if event.kind != "progress_state" or receives not in event.data["nodes"]:
            return False
        return 0 < event.data["nodes"][receives]["value"] < event.data["nodes"][receives]["max"]

    pair.b.events.wait_for(moving, 30, since)
    other, entry = cancel(ids, who, f"in mid-transfer of {send_as}")
    assert "cancelled" in other.errors(entry), other.errors(entry)
    assert sends in str(other.errors(entry)) or "Images" in other.errors(entry)


def test_one_address_of_two(pair, addr, other_addr):
    """The run that is cancelled tells both addresses."""
    here = jumper(addr, "Server")
    here.step("Receive String")
    here.step("Receive String", addr=other_addr)
    there = jumper(other_addr, "Client")
    there.step("Send String", string="x")
    since = pair.b.events.mark()
    ids = pair.a.prompt(here.end()), pair.b.prompt(there.end())
    pair.b.events.wait_text("has not come to this yet", since=since)
    pair.a.interrupt()
    first, second = wait_both(pair.a, ids[0], pair.b, ids[1], 5)
    assert pair.a.outcome(first) == "interrupted"
    assert "the other workflow was cancelled" in pair.b.errors(second)


def test_an_interrupted_foreign_node_ends_the_others_wait(pair, addr):
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    here.then("TestSlow", seconds=60.0)
    here.step("Send String", string="x")
    there.step("Receive String")
    since = pair.b.events.mark()
    ids = pair.a.prompt(here.end()), pair.b.prompt(there.end())
    pair.b.events.wait_text("has not come to this yet: TestSlow", since=since)
    started = time.monotonic()
    pair.a.interrupt()
    first, second = wait_both(pair.a, ids[0], pair.b, ids[1], 5)
    assert time.monotonic() - started < BOUND * slowness()
    assert "the other workflow was cancelled" in pair.b.errors(second)


def test_a_pending_prompt_of_another_is_not_touched(pair, addr):
    """What the peer's end interrupts is exactly its partner, and never what runs after it."""
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    here.step("Receive String")
    there.then("TestSlow", seconds=60.0)
    there.step("Send String", string="x")
    innocent = {
        "1": node("TestMake", kind="int", seed=1),
        "2": node("TestSlow", value=["1", 0], seconds=1.0),
        "3": node("TestDigest", value=["2", 0]),
    }
    since = pair.a.events.mark()
    ids = pair.a.prompt(here.end()), pair.b.prompt(there.end())
    after = pair.b.prompt(innocent)
    pair.a.events.wait_text("has not come to this yet: TestSlow", since=since)
    pair.a.interrupt()
    wait_both(pair.a, ids[0], pair.b, ids[1], 5)
    assert pair.b.outcome(pair.b.wait(after, 10)) == "success"
