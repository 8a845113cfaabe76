"""Run on Peers, Send, Receive and NetDist's nodes in ComfyUI's own loops, and after them.

Start Loop and End Loop came with ComfyUI 0.37: on one that lacks them there is nothing to run;
what a prompt is then, tests/test_looping.py tells of any.
"""

from __future__ import annotations

import json
import uuid

import pytest
from chains import node, run_both
from test_run_on_peers import at_peer, digests, failure, good, ran, texts


@pytest.fixture
def looping(pair):
    if "StartLoop" not in pair.a.object_info():
        pytest.skip("this ComfyUI has no Start Loop: it came with 0.37")
    return pair


def start(count=3, **more):
    modes = {"mode": "simple", "mode.num_iterations": count, "cache_iterations": False}
    return node("StartLoop", **modes | more)


def in_turns(pair, mark, **end):
    """A picture of each turn, made at the peer."""
    return {
        "start": start(),
        "noise": node("TestNoise", batch=1, height=8, width=8, channels=3, seed=["start", 0]),
        "at": node("TestAt", value=["noise", 0], only=pair.b.port, text=mark),
        "run": at_peer(("at", 0), pair.b.peer),
        "end": node("EndLoop", output_value=["run", 0], **{"accumulate": True} | end),
        "digest": node("TestDigest", value=["end", 0]),
    }


def noises(pair, *seeds):
    found = []
    for seed in seeds:
        prompt = {
            "noise": node("TestNoise", batch=1, height=8, width=8, channels=3, seed=seed),
            "digest": node("TestDigest", value=["noise", 0]),
        }
        found += digests(good(pair.a, prompt))
    return found


def test_each_turn_is_a_job_of_its_own(looping):
    mark = uuid.uuid4().hex
    entry = good(looping.a, in_turns(looping, mark))
    assert digests(entry) == noises(looping, 0, 1, 2)
    assert (ran(looping.a, mark), ran(looping.b, mark)) == (0, 3)
    last = good(looping.a, in_turns(looping, mark + "last", accumulate=False))
    assert digests(last) == noises(looping, 2)


def test_one_turn_none_and_a_list(looping):
    mark = uuid.uuid4().hex
    prompt = in_turns(looping, mark) | {"start": start(1)}
    assert len(digests(good(looping.a, prompt))) == 1
    listed = in_turns(looping, mark + "list") | {
        "list": node("TestList", kind="int", count=2, seed=4),
        "start": start(mode="List", **{"mode.list": ["list", 0]}),
    }
    listed["at"]["inputs"]["value"] = ["start", 3]
    listed["local"] = node("TestDigest", value=["list", 0])
    entry = good(looping.a, listed)
    assert digests(entry) == digests(entry, "local")


def test_what_is_carried_from_turn_to_turn(looping):
    mark = uuid.uuid4().hex
    prompt = {
        "start": start(3, initial_iteration_value=["first", 0]),
        "first": node("PrimitiveString", value="x"),
        "more": node("StringConcatenate", string_a=["start", 4], string_b=".", delimiter=""),
        "at": node("TestAt", value=["more", 0], only=looping.b.port, text=mark),
        "run": at_peer(("at", 0), looping.b.peer),
        "end": node(
            "EndLoop",
            output_value=["run", 0],
            next_iteration_value=["run", 0],
            accumulate=True,
        ),
        "text": node("PreviewAny", source=["end", 0]),
    }
    entry = good(looping.a, prompt)
    assert texts(entry, "text") == ["x.", "x..", "x..."]
    assert (ran(looping.a, mark), ran(looping.b, mark)) == (0, 3)


def test_what_is_shown_in_each_turn_is_the_peers(looping):
    mark = uuid.uuid4().hex
    prompt = in_turns(looping, mark, **{"terminations.termination0": ["seen", 0]})
    prompt["seen"] = node("TestDigest", value=["at", 1])
    entry = good(looping.a, prompt)
    assert (ran(looping.a, mark), ran(looping.b, mark)) == (0, 3)
    assert digests(entry) == noises(looping, 0, 1, 2)


def test_a_part_after_a_loop_has_all_of_the_loop_in_it(looping):
    mark = uuid.uuid4().hex
    prompt = in_turns(looping, mark)
    prompt["end"]["inputs"]["output_value"] = ["at", 0]
    prompt["run"] = at_peer(("end", 0), looping.b.peer)
    prompt["digest"] = node("TestDigest", value=["run", 0])
    entry = good(looping.a, prompt)
    assert digests(entry) == noises(looping, 0, 1, 2)
    assert (ran(looping.a, mark), ran(looping.b, mark)) == (0, 3)


def test_a_part_after_a_loop_that_has_run_here_as_well(looping):
    """ComfyUI takes the links away from an End Loop whose loop has begun."""
    mark = uuid.uuid4().hex
    prompt = in_turns(looping, mark, accumulate=False) | {
        "at": node("TestAt", value=["noise", 0], text=mark),
        "name": node("PrimitiveString", value=looping.b.peer),
        "then": node("TestStamp", value=["name", 0], after=["end", 0]),
        "run": at_peer(("end", 0), ["then", 0]),
        "digest": node("TestDigest", value=["run", 0]),
    }
    prompt["end"]["inputs"]["output_value"] = ["at", 0]
    assert digests(good(looping.a, prompt)) == noises(looping, 2)
    assert (ran(looping.a, mark), ran(looping.b, mark)) == (3, 3)


def test_a_part_after_a_loop_with_one_in_it(looping):
    mark = uuid.uuid4().hex
    prompt = in_turns(looping, mark) | {
        "after": node("TestAt", value=["end", 0], only=looping.b.port, text=f"after {mark}"),
        "again": at_peer(("after", 0), looping.b.peer),
        "digest": node("TestDigest", value=["again", 0]),
    }
    entry = good(looping.a, prompt)
    assert digests(entry) == noises(looping, 0, 1, 2)
    assert ran(looping.a, mark) == ran(looping.a, f"after {mark}") == 0


def test_a_loop_in_a_loop(looping):
    prompt = {
        "outer": start(2),
        "inner": start(2, parent_iteration=["outer", 0]),
        "sum": node("TestAt", value=["inner", 0], only=looping.b.port, text=uuid.uuid4().hex),
        "run": at_peer(("sum", 1), looping.b.peer),
        "end": node("EndLoop", output_value=["run", 0], accumulate=True),
        "last": node("EndLoop", output_value=["end", 0], accumulate=True),
        "text": node("PreviewAny", source=["last", 0]),
    }
    found = texts(good(looping.a, prompt), "text")
    assert [json.loads(text)["port"] for text in found] == [looping.b.port] * 4


# --- channels, and NetDist ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["zbus", "jumper"])
def test_two_loops_send_and_receive_in_each_turn(looping, family, addr):
    a, b = looping
    if family == "zbus":
        to, of = {"peer": b.peer, "channel": "turns"}, {"peer": a.peer, "channel": "turns"}
        first = node("ZBusSend", value=["noise", 0], quality="exact", order=["start", 0], **to)
        second = node("ZBusReceive", expect="any", timeout=0, order=["start", 0], **of)
        sent = ["send", 0]
    else:
        to, of = {"addr": addr, "mode": "Server"}, {"addr": addr, "mode": "Client"}
        first = node("Send Images", images=["noise", 0], send_as="raw", order=["start", 0], **to)
        second = node("Receive Images", order=["start", 0], **of)
        sent = ["noise", 0]
    ends = {"accumulate": True, "terminations.termination0": ["send", 0]}
    sending = {
        "start": start(),
        "noise": node("TestNoise", batch=1, height=8, width=8, channels=3, seed=["start", 0]),
        "send": first,
        "end": node("EndLoop", output_value=sent, **ends),
        "digest": node("TestDigest", value=["end", 0]),
    }
    receiving = {
        "start": start(),
        "receive": second,
        "end": node("EndLoop", output_value=["receive", 0], accumulate=True),
        "digest": node("TestDigest", value=["end", 0]),
    }
    found = run_both(a, sending, b, receiving, 60.0)
    assert digests(found[0]) == digests(found[1]) and len(digests(found[0])) == 3


def queued(pair, seed):
    return {
        "start": start(),
        "queue": node(
            "RemoteQueueSimple",
            remote_url=pair.b.url,
            batch_local=1,
            batch_remote=1,
            trigger="always",
            enabled="true",
            seed=seed,
        ),
        "noise": node("TestNoise", batch=1, height=8, width=8, channels=3, seed=["queue", 0]),
        "fetch": node("FetchRemote", final_image=["noise", 0], remote_info=["queue", 2]),
    }


def test_netdist_in_a_loop_sends_each_turn(looping):
    prompt = queued(looping, ["start", 0]) | {
        "end": node("EndLoop", output_value=["fetch", 0], accumulate=True),
        "digest": node("TestDigest", value=["end", 0]),
    }
    assert digests(good(looping.a, prompt)) == noises(looping, 1, 2, 3)


def test_netdist_after_a_loop_sends_all_of_it(looping):
    prompt = queued(looping, 5) | {
        "at": node("TestAt", value=["start", 0]),
        "end": node("EndLoop", output_value=["at", 0], accumulate=False),
        "digest": node("TestDigest", value=["fetch", 0]),
    }
    prompt["noise"]["inputs"]["batch"] = ["end", 0]
    prompt["noise"]["inputs"]["height"] = 8
    local = {
        "noise": node("TestNoise", batch=2, height=8, width=8, channels=3, seed=6),
        "digest": node("TestDigest", value=["noise", 0]),
    }
    assert digests(good(looping.a, prompt)) == digests(good(looping.a, local))


def test_netdist_before_a_loop_cannot_be_fetched_in_it(looping):
    prompt = queued(looping, 5) | {
        "end": node("EndLoop", output_value=["fetch", 0], accumulate=False),
        "digest": node("TestDigest", value=["end", 0]),
    }
    prompt["noise"]["inputs"] |= {"seed": ["start", 0], "batch": ["queue", 1]}
    error = failure(looping.a, prompt)
    assert "is in a loop that would run on the remote" in error["exception_message"]
