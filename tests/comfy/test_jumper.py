"""ComfyUI-Jumper's nodes between two real ComfyUIs."""

from __future__ import annotations

import pytest
import workflows
from chains import jumper, node, run_both, wait_both
from children import slowness
from comfyui import free_port


@pytest.mark.parametrize("first", ["local", "remote"])
@pytest.mark.parametrize("send_as", ["raw", "zlib", "png"])
def test_jumpers_examples(pair, addr, send_as, first):
    eight_bit = send_as == "png"
    image = node("TestMake", kind="image 8-bit", seed=3) if eight_bit else None
    local, remote = workflows.jumper_examples(
        pair.a.object_info(), addr=addr, send_as=send_as, image=image
    )
    for prompt in (local, remote):
        prompt["20"] = node("TestDigest", value=["8", 0])
    if first == "local":
        here, there = run_both(pair.a, local, pair.b, remote)
    else:
        there, here = run_both(pair.b, remote, pair.a, local)
    assert pair.a.ui(here, 20, "digest") == pair.b.ui(there, 20, "digest")
    texts = [pair.b.ui(there, i, "text") for i in ("6", "7")]
    assert texts == [local[i]["inputs"]["string"] for i in ("9", "7")]


def test_png_is_within_half_a_step(pair, addr):
    zbus, torch = pytest.importorskip("zbus"), pytest.importorskip("torch")
    from testpack import values

    chain = jumper(addr, "Server")
    noise = chain.add(workflows.noise_node(2, 64, 48, seed=5))
    chain.step("Send Images", images=[noise, 0], send_as="png")
    prompt_id = pair.a.prompt(chain.end())
    with zbus.Peer() as peer, peer.connect(addr, channel="jumper") as channel:
        got = channel.receive(expect="image", timeout=20)
    assert pair.a.outcome(pair.a.wait(prompt_id)) == "success"
    assert got.dtype == torch.float32
    assert (got - values.noise((2, 64, 48, 3), 5)).abs().max() <= 0.5 / 255 + 1e-6


def test_chains_that_start_at_different_numbers(pair, addr):
    here, there = jumper(addr, "Client", start=0), jumper(addr, "Server", start=7)
    here.step("Send String", string="one")
    here.step("Send String", string="two")
    first = there.step("Receive String")
    second = there.step("Receive String")
    shown = [there.add(node("PreviewAny", source=[i, 0])) for i in (first, second)]
    _, entry = run_both(pair.a, here.end(), pair.b, there.end())
    assert [pair.b.ui(entry, i, "text") for i in shown] == ["one", "two"]


def test_nodes_without_an_order(pair, addr):
    here, there = jumper(addr, "Client", start=None), jumper(addr, "Server", start=None)
    here.add(node("PreviewAny", source=[here.step("Send String", string="alone"), 0]))
    shown = there.add(node("PreviewAny", source=[there.step("Receive String"), 0]))
    _, entry = run_both(pair.a, here.prompt, pair.b, there.prompt)
    assert pair.b.ui(entry, shown, "text") == "alone"


def test_one_chain_over_two_addresses(pair, addr):
    other = f"127.0.0.1:{free_port()}"
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    other_side = jumper(other, "Client")
    here.step("Send String", string="0")
    here.step("Send String", string="1", addr=other, mode="Server")
    back = here.step("Receive String")
    got = [there.step("Receive String")]
    there.step("Send String", string="2")
    # The third participant is a chain of its own in the second prompt's ComfyUI's queue: it would
    # wait behind the first. So both chains are one prompt there, not linked to each other.
    far = other_side.step("Receive String")
    merged = dict(there.end())
    for node_id, made in other_side.end().items():
        moved = {
            k: [f"x{v[0]}", v[1]] if isinstance(v, list) else v for k, v in made["inputs"].items()
        }
        merged[f"x{node_id}"] = {**made, "inputs": moved}
    merged["shown"] = node("PreviewAny", source=[got[0], 0])
    merged["far"] = node("PreviewAny", source=[f"x{far}", 0])
    shown = here.add(node("PreviewAny", source=[back, 0]))
    entry, other_entry = run_both(pair.a, here.end(), pair.b, merged)
    assert pair.a.ui(entry, shown, "text") == "2"
    assert pair.b.ui(other_entry, "shown", "text") == "0"
    assert pair.b.ui(other_entry, "far", "text") == "1"


def test_a_list_is_refused_before_anything_is_sent(pair, addr):
    chain = jumper(addr, "Server")
    made = chain.add(node("TestList", kind="image", count=3, seed=0))
    chain.step("Send Images", images=[made, 0], send_as="raw")
    entry = pair.a.run(chain.end(), 5)
    assert "images is a list of 3" in pair.a.errors(entry)
    assert "ZBusSend" in pair.a.errors(entry)


def test_the_sides_may_change_their_modes(pair, addr):
    for server, client in ((pair.a, pair.b), (pair.b, pair.a), (pair.a, pair.b)):
        here, there = jumper(addr, "Client"), jumper(addr, "Server")
        receives = here.step("Receive String")
        shown = here.add(node("PreviewAny", source=[receives, 0]))
        there.step("Send String", string="x")
        since = client.events.mark()
        prompt_id = client.prompt(here.end())
        client.events.wait_text("nobody listens", receives, since=since)  # there, nor here any more
        sent, got = wait_both(server, server.prompt(there.end()), client, prompt_id)
        assert server.outcome(sent) == "success", server.errors(sent)
        assert client.ui(got, shown, "text") == "x"


def test_speed(pair, addr, measured):
    """Node to node; the figures are printed, and the bounds are generous."""
    pictures = [_timed(pair, addr, "Images", _noise, send_as="raw") for _ in range(3)]
    texts = [_timed(pair, addr, "String", _text) for _ in range(5)]
    rate = 64 * 512 * 512 * 3 * 4 / min(pictures) / 1e9
    shown = ", ".join(f"{s * 1000:.1f}" for s in sorted(texts))
    measured(f"192 MiB raw: {min(pictures):.3f} s ({rate:.2f} GB/s), best of 3")
    measured(f"a text, send to receive: {shown} ms")
    assert min(pictures) < 0.47 * 2 * slowness()
    assert sorted(texts)[2] < 0.1 * slowness()


def _noise(chain):
    return {"images": [chain.add(workflows.noise_node(64, 512, 512)), 0]}


def _text(chain):
    return {"string": "a text"}


def _timed(pair, addr, kind, make, **more):
    """Seconds from just before the send to just after the receive, which waits already."""
    there = jumper(addr, "Server")
    got = there.step(f"Receive {kind}")
    come = there.add(node("TestStamp", value=[got, 0]))
    there.digest(come)
    waiting = pair.b.prompt(there.prompt)
    pair.b.wait_running(waiting)
    here = jumper(addr, "Client")
    value = make(here)
    go = here.add(node("TestStamp", value=here.order, after=next(iter(value.values()))))
    here.order = [go, 0]
    here.step(f"Send {kind}", **value, **more)
    sent = pair.a.run(here.end())
    received = pair.b.wait(waiting)
    assert pair.a.outcome(sent) == pair.b.outcome(received) == "success"
    return (pair.b.ui(received, come, "time_ns") - pair.a.ui(sent, go, "time_ns")) / 1e9
