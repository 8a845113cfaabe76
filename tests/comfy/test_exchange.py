"""Send to Peer and Receive from Peer between two real ComfyUIs."""

from __future__ import annotations

import time

import pytest
from chains import node, own, run_both
from children import slowness
from comfyui import PromptRefused
from hosts import make_or_skip
from testpack import values

EXPECTED = {
    "image": "image",
    "mask": "mask",
    "latent with mask": "latent",
    "latent nested": "latent",
    "audio": "audio",
    "conditioning": "conditioning",
    "int": "number",
    "float": "number",
    "text": "text",
    "sigmas": "any",
    "bfloat16": "any",
    "float8_e4m3fn": "any",
    "none": "any",
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_value_arrives_as_it_was(pair, addr, kind):
    here, there = own(addr), own(f"listen:{addr}")
    made = here.add(node("TestMake", kind=make_or_skip(kind, *pair), seed=4))
    sends = here.step("ZBusSend", value=[made, 0], quality="exact")
    passed = here.digest(sends)
    got = there.digest(there.step("ZBusReceive", expect=EXPECTED[kind], timeout=20))
    sent, received = run_both(pair.a, here.prompt, pair.b, there.prompt)
    wanted = pair.a.ui(sent, passed, "digest")
    assert pair.b.ui(received, got, "digest") == wanted
    if kind != "latent nested":  # needs ComfyUI's own class
        assert wanted == values.digest(values.make(kind, 4))


def test_a_list_arrives_as_a_list(pair, addr):
    here, there = own(addr), own(f"listen:{addr}")
    made = here.add(node("TestList", kind="image", count=3, seed=1))
    passed = here.digest(here.step("ZBusSend", value=[made, 0], quality="exact"))
    got = there.digest(there.step("ZBusReceive", expect="image", timeout=20))
    sent, received = run_both(pair.a, here.prompt, pair.b, there.prompt)
    wanted = [values.digest(values.make("image", 1 + i)) for i in range(3)]
    assert pair.a.ui(sent, passed, "digest") == wanted
    assert pair.b.ui(received, got, "digest") == wanted


def test_they_pair_by_order(pair, addr):
    """The chains' numbers go 3, 4 and back 5; the types fit, and the text says what was sent."""
    here, there = own(addr, start=3), own(f"listen:{addr}", start=3)
    for text in ("three", "four"):
        value = here.add(node("PrimitiveString", value=text))
        here.step("ZBusSend", value=[value, 0], quality="exact")
    back = here.digest(here.step("ZBusReceive", expect="latent", timeout=0))
    got = [there.step("ZBusReceive", expect="text", timeout=0) for _ in range(2)]
    shown = [there.add(node("PreviewAny", source=[i, 0])) for i in got]
    latent = there.add(node("TestMake", kind="latent", seed=2))
    there.step("ZBusSend", value=[latent, 0], quality="lz4")
    first, second = run_both(pair.a, here.end(), pair.b, there.end())
    assert [pair.b.ui(second, i, "text") for i in shown] == ["three", "four"]
    assert pair.a.ui(first, back, "digest") == values.digest(values.make("latent", 2))


def test_orders_that_do_not_fit(pair, addr):
    here, there = own(addr, start=0), own(f"listen:{addr}", start=1)
    value = here.add(node("PrimitiveString", value="x"))
    here.step("ZBusSend", value=[value, 0], quality="exact")
    there.digest(there.step("ZBusReceive", expect="text", timeout=0))
    ids = pair.a.prompt(here.prompt), pair.b.prompt(there.prompt)
    for comfyui, prompt_id in zip(pair, ids, strict=True):
        errors = comfyui.errors(comfyui.wait(prompt_id, 5))
        assert "(order 0) has no partner" in errors or "(order 1) has no partner" in errors


@pytest.mark.parametrize("quality", ["8-bit", "png", "webp"])
def test_eight_bit_of_a_picture_from_a_file_is_exact(pair, addr, quality):
    here, there = own(f"listen:{addr}"), own(addr)
    made = here.add(node("TestMake", kind="image 8-bit", seed=4))
    here.step("ZBusSend", value=[made, 0], quality=quality)
    got = there.digest(there.step("ZBusReceive", expect="image", timeout=0))
    _, received = run_both(pair.a, here.prompt, pair.b, there.prompt)
    assert pair.b.ui(received, got, "digest") == values.digest(values.make("image 8-bit", 4))


def test_clipped_values_are_told(pair, addr):
    here, there = own(f"listen:{addr}"), own(addr)
    made = here.add(node("TestMakeImage", kind="image out of range", seed=4))
    sends = here.step("ZBusSend", value=[made, 0], quality="8-bit")
    there.digest(there.step("ZBusReceive", expect="image", timeout=0))
    since = pair.a.events.mark()
    run_both(pair.a, here.prompt, pair.b, there.prompt)
    pair.a.events.wait_text("clipped", sends, since=since)


@pytest.mark.parametrize(
    "kind, quality, words",
    [
        ("model", "exact", "LiveObject"),
        ("conditioning live", "exact", "LiveObject"),
        ("latent", "8-bit", "8-bit is for images and masks only"),
        ("image nan", "png", "NaN"),
    ],
)
def test_what_cannot_be_sent(pair, addr, kind, quality, words):
    """An error at once where the value alone tells it; the other side's wait ends with it."""
    here, there = own(f"listen:{addr}"), own(addr)
    maker = "TestMakeImage" if kind.startswith("image") else "TestMake"
    made = here.add(node(maker, kind=kind, seed=4))
    here.step("ZBusSend", value=[made, 0], quality=quality)
    there.digest(there.step("ZBusReceive", expect="any", timeout=0))
    ids = pair.a.prompt(here.prompt), pair.b.prompt(there.prompt)
    errors = pair.a.errors(pair.a.wait(ids[0], 5))
    assert words in errors
    # A run that failed before the two met has left nothing: the other one waits for the next.
    pair.b.interrupt(ids[1])
    pair.b.wait(ids[1], 5)


def test_a_quality_that_there_is_not(pair, addr):
    """From 0.30 on ComfyUI itself holds a choice against its list, before anything runs."""
    chain = own(f"listen:{addr}")
    made = chain.add(node("TestMake", kind="image", seed=4))
    chain.step("ZBusSend", value=[made, 0], quality="gzip")
    try:
        said = pair.a.errors(pair.a.run(chain.prompt))
    except PromptRefused as refused:
        said = str(refused)
    assert "gzip" in said and "lz4" in said, said


def test_an_order_below_zero(pair, addr):
    chain = own(f"listen:{addr}", start=-1)
    chain.digest(chain.step("ZBusReceive", expect="any", timeout=0))
    assert "whole number from 0 up" in pair.a.errors(pair.a.run(chain.prompt, 5))


def test_a_timeout(pair, addr):
    chain = own(f"listen:{addr}")
    chain.digest(chain.step("ZBusReceive", expect="any", timeout=0.5))
    started = time.monotonic()
    errors = pair.a.errors(pair.a.run(chain.prompt, 5))
    assert time.monotonic() - started < 2 * slowness()
    assert "TimedOut" in errors and "on the other side" in errors


def test_the_only_connected_peer_needs_no_name(pair, addr):
    """An empty peer meets over a link that stands: here the one of the run's first operation."""
    here, there = own(addr), own(f"listen:{addr}")
    value = here.add(node("PrimitiveString", value="x"))
    here.step("ZBusSend", value=[value, 0], quality="exact")
    here.step("ZBusSend", value=[value, 0], quality="exact", peer="", channel="other")
    there.step("ZBusReceive", expect="text", timeout=0)
    got = there.digest(there.step("ZBusReceive", expect="text", timeout=0, channel="other"))
    _, entry = run_both(pair.a, here.end(), pair.b, there.end())
    assert pair.b.ui(entry, got, "digest") == values.digest("x")


def test_a_library_peer_and_the_nodes(pair, addr):
    zbus, torch = pytest.importorskip("zbus"), pytest.importorskip("torch")
    chain = own(f"listen:{addr}")
    got = chain.step("ZBusReceive", expect="image", timeout=0)
    chain.step("ZBusSend", value=[got, 0], quality="exact")
    made = chain.add(node("TestList", kind="int", count=2, seed=7))
    chain.step("ZBusSend", value=[made, 0], quality="exact")
    prompt_id = pair.a.prompt(chain.prompt)
    value = torch.rand(1, 8, 8, 3)
    with zbus.Peer() as peer, peer.connect(addr) as channel:
        channel.send(value, order=0, timeout=10)
        assert torch.equal(channel.receive(order=1, timeout=10), value)
        assert channel.receive(order=2, timeout=10) == {"zbus.list": [7, 8]}
        assert pair.a.outcome(pair.a.wait(prompt_id, 5)) == "success"
