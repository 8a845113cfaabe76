"""Run on Peers, Send, Receive and NetDist's nodes in ComfyUI's own loops, and after them.

Start Loop and End Loop came with ComfyUI 0.37: on one that lacks them there is nothing to run;
what a prompt is then, tests/test_looping.py tells of any.
"""

from __future__ import annotations

import json
import uuid

import pytest
from chains import node
from test_run_on_peers import at_peer, digests, good, ran, texts


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
        "more": node(
            "StringConcatenate", string_a=["start", 4], string_b=".", delimiter=""
        ),
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
