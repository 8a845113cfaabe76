"""A receive, a send and a job happen once in a run, also where ComfyUI keeps no results."""

from __future__ import annotations

import pytest
from chains import jumper, node, own, wait_both
from comfyui import ComfyUI, free_port
from hosts import skip_if_expanding_needs_a_cache

# Both make ComfyUI compute a node again for whoever reads it later. So much memory is never free.
FLAGS = [("--cache-none",), ("--cache-ram", "1000000")]


@pytest.fixture(scope="module", params=FLAGS, ids=" ".join)
def forgetful(request, comfyui_dir, _shared):
    """A ComfyUI that gives up results as soon as it can, beside one that keeps them."""
    declared = (comfyui_dir / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    if "--cache-ram" in request.param and "\"--cache-ram\", nargs='*'" not in declared:
        pytest.skip("before 0.23 --cache-ram collects garbage for each result: a second a node")
    (keeps,) = _shared.get("a")
    env = {"ZBUS_HOME": str(keeps.zbus_home)}
    comfyui = ComfyUI(comfyui_dir, name="forgetful", env=env, args=request.param)
    if "--cache-none" in request.param:
        skip_if_expanding_needs_a_cache(comfyui)
    with comfyui:
        yield comfyui


def late(chain, source, slot=0):
    """Shows what is read from there only when all else has been done; returns the node's id."""
    now = chain.add(node("TestSlow", value=chain.order, seconds=0.05))
    return chain.add(node("PreviewAny", source=[chain.add(_late(now, source, slot)), 0]))


def _late(now, source, slot=0):
    return node("TestLate", now=[now, 0], late=[source, slot])


def jobs_of(comfyui):
    """How many prompts it has run."""
    return comfyui.log().count("Prompt executed in")


def run(a, first, b, second):
    entries = wait_both(a, a.prompt(first), b, b.prompt(second))
    for comfyui, entry in zip((a, b), entries, strict=True):
        assert comfyui.outcome(entry) == "success", f"{comfyui.name}: {comfyui.errors(entry)}"
    return entries


def test_jumpers_nodes(forgetful, pair):
    """The second reader of a text got the next text of the chain."""
    addr = f"127.0.0.1:{free_port()}"
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    texts = ["one", "two", "three"]
    for text in texts:
        there.step("Send String", string=text)
    back = there.digest(there.step("Receive Images"))
    got = [here.step("Receive String") for _ in texts]
    noise = here.add(node("TestNoise", batch=1, height=32, width=32, channels=3, seed=3))
    sends = here.step("Send Images", images=[noise, 0], send_as="raw")
    shown = [here.add(node("PreviewAny", source=[i, 0])) for i in got]
    again = [late(here, i) for i in got]
    order = late(here, sends)
    sent, received = run(pair.a, there.end(), forgetful, here.end())
    assert [forgetful.ui(received, i, "text") for i in shown] == texts
    assert [forgetful.ui(received, i, "text") for i in again] == texts
    assert forgetful.ui(received, order, "text") == "4"
    assert pair.a.ui(sent, back, "bytes") == 32 * 32 * 3 * 4


def test_send_and_receive(forgetful, pair):
    """They failed with "make the two chains mirror each other"."""
    addr = f"127.0.0.1:{free_port()}"
    here, there = own(addr), own(f"listen:{addr}")
    made = there.add(node("TestNoise", batch=2, height=512, width=512, channels=3, seed=5))
    sent = there.digest(there.step("ZBusSend", value=[made, 0], quality="exact"))
    back = there.digest(there.step("ZBusReceive", expect="any", timeout=20))
    receives = here.step("ZBusReceive", expect="image", timeout=20)
    got = here.digest(receives)
    sends = here.step("ZBusSend", value=[receives, 0], quality="exact")
    now = here.add(node("TestSlow", value=here.order, seconds=0.05))
    digests = [here.digest(here.add(_late(now, i))) for i in (receives, sends)]
    there_entry, here_entry = run(pair.a, there.end(), forgetful, here.end())
    wanted = pair.a.ui(there_entry, sent, "digest")
    assert pair.a.ui(there_entry, back, "digest") == wanted
    assert [forgetful.ui(here_entry, i, "digest") for i in (got, *digests)] == [wanted] * 3


@pytest.mark.parametrize("boundary", [False, True])
def test_run_on_peers(forgetful, pair, boundary):
    """The job ran twice."""
    prompt = {
        "noise": node("TestNoise", batch=1, height=16, width=16, channels=3, seed=7),
        "here": node("ZBusHere", value=["noise", 0]),
        "at": node("TestAt", value=["here" if boundary else "noise", 0]),
        "run": node(
            "ZBusRun",
            value=["at", 0],
            peer=pair.a.url,
            here="no",
            on_failure="stop",
            quality="exact",
        ),
        "first": node("TestDigest", value=["run", 0]),
        "now": node("TestSlow", value=["first", 0], seconds=0.05),
        "late": node("TestLate", now=["now", 0], late=["run", 0]),
        "second": node("TestDigest", value=["late", 0]),
        "report": node("TestLate", now=["now", 0], late=["run", 1]),
        "shown": node("PreviewAny", source=["report", 0]),
    }
    since = jobs_of(pair.a)
    entry = forgetful.run(prompt)
    assert forgetful.outcome(entry) == "success", forgetful.errors(entry)
    assert forgetful.ui(entry, "first", "digest") == forgetful.ui(entry, "second", "digest")
    assert "done in" in forgetful.ui(entry, "shown", "text")
    assert jobs_of(pair.a) == since + 1


def test_jobs_for_a_forgetful_one(forgetful, pair):
    """It runs the part, which reads what came with the job early and late."""
    prompt = {
        "noise": node("TestNoise", batch=1, height=16, width=16, channels=3, seed=8),
        "here": node("ZBusHere", value=["noise", 0]),
        "now": node("TestSlow", value=["here", 0], seconds=0.05),
        "late": node("TestLate", now=["now", 0], late=["here", 0]),
        "run": node(
            "ZBusRun",
            value=["late", 0],
            peer=forgetful.url,
            here="no",
            on_failure="stop",
            quality="exact",
        ),
        "got": node("TestDigest", value=["run", 0]),
        "made": node("TestDigest", value=["noise", 0]),
    }
    entry = pair.a.run(prompt)
    assert pair.a.outcome(entry) == "success", pair.a.errors(entry)
    assert pair.a.ui(entry, "got", "digest") == pair.a.ui(entry, "made", "digest")


def test_netdist(forgetful, pair):
    """Its queue node gave the job again for a fetch node that came late."""
    prompt = {
        "queue": node(
            "RemoteQueueSimple",
            remote_url=pair.a.url,
            batch_local=1,
            batch_remote=1,
            trigger="always",
            enabled="true",
            seed=5,
        ),
        "noise": node("TestNoise", batch=1, height=16, width=16, channels=3, seed=["queue", 0]),
        "fetch": node("FetchRemote", final_image=["noise", 0], remote_info=["queue", 2]),
        "first": node("TestDigest", value=["fetch", 0]),
        "now": node("TestSlow", value=["first", 0], seconds=0.05),
        "late": node("TestLate", now=["now", 0], late=["fetch", 0]),
        "second": node("TestDigest", value=["late", 0]),
    }
    since = jobs_of(pair.a)
    entry = forgetful.run(prompt)
    assert forgetful.outcome(entry) == "success", forgetful.errors(entry)
    assert forgetful.ui(entry, "first", "digest") == forgetful.ui(entry, "second", "digest")
    assert jobs_of(pair.a) == since + 1
