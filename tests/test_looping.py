"""ComfyUI's own loops (Start Loop, End Loop): which nodes lie in them, what a part is within one
and after one, and what is told of channels in one: `comfy_nodes.prompt.loops` and who uses it.

The prompts are of the shape that ComfyUI gives them: before a loop runs, and with its turns.
"""

from __future__ import annotations

import pytest
from prompts import admitting, cutting, dispatching, graph, loops, node, tapping
from test_tapping import Classes, run_here

from zbus.errors import InputError

cut = cutting.cut


def looped(**more):
    """Three turns; in each a picture is made elsewhere, and carried on to the next."""
    return {
        "0": node("EmptyImage"),
        "s": node("StartLoop", mode="simple", initial_iteration_value=["0", 0])
        | {"inputs": {"mode": "simple", "mode.num_iterations": 3, "initial": ["0", 0]}},
        "n": node("A", seed=["s", 0], image=["s", 4]),
        "m": node("A", model="x"),
        "a": node("ImageScale", image=["n", 0], other=["m", 0]),
        "r": node("ZBusRun", value=["a", 0], peer="cloud", here="no"),
        "e": node("EndLoop", output_value=["r", 0], next_iteration_value=["r", 0]),
        "8": node("SaveImage", images=["e", 0]),
        **more,
    }


def turns(prompt, count=3):
    """The prompt as it is when the Start Loop has been executed: its own nodes as they were, with
    what ComfyUI writes into them, and a copy of the loop's for each turn."""
    body = loops.paired(prompt, ["s"], ["e"])["s"].body
    made = {i: dict(n) for i, n in prompt.items()}
    made["s"] |= {"_loop_body": sorted(body), "_loop_end": "e"}
    carried, waits = prompt["s"]["inputs"]["initial"], []
    for turn in range(count):
        at, inner = f"s.0.0.iteration_{turn}", {i: f"s.0.0.{turn}_{i}" for i in body}
        held = {f"dependency{k}": link for k, link in enumerate(waits)}
        made[at] = node("LoopIteration", iteration_index=turn, current=carried, **held)

        def copied(value, at=at, inner=inner):
            found = graph.link(value)
            if found is None:
                return value
            return [{"s": at, **inner}.get(found[0], found[0]), found[1]]

        for i in body:
            inputs = {name: copied(value) for name, value in prompt[i]["inputs"].items()}
            made[inner[i]] = {"class_type": prompt[i]["class_type"], "inputs": inputs}
        given = {name: copied(value) for name, value in prompt["e"]["inputs"].items()}
        carried, waits = given["next_iteration_value"], [given["output_value"]]
    return made


# --- which nodes ----------------------------------------------------------------------------------


def test_what_lies_in_a_loop():
    assert loops.paired(looped(), ["s"], ["e"]) == {"s": ("e", {"n", "a", "r"})}
    assert loops.paired(looped(), ["s"], []) == loops.paired(looped(), [], ["e"]) == {}


def test_loops_in_loops_and_one_after_the_other():
    prompt = {
        "s1": node("StartLoop"),
        "a": node("A", x=["s1", 0]),
        "s2": node("StartLoop", parent_iteration=["s1", 0]),
        "b": node("A", x=["s2", 0], y=["a", 0]),
        "e2": node("EndLoop", output_value=["b", 0]),
        "s3": node("StartLoop", parent_iteration=["s1", 0], initial=["e2", 0]),
        "c": node("A", x=["s3", 0]),
        "e3": node("EndLoop", output_value=["c", 0]),
        "e1": node("EndLoop", output_value=["e3", 0], x=["a", 0]),
        "s4": node("StartLoop", initial=["e1", 0]),
        "d": node("A", x=["s4", 0]),
        "e4": node("EndLoop", output_value=["d", 0]),
    }
    starts, ends = (["s1", "s2", "s3", "s4"], ["e4", "e3", "e2", "e1"])
    found = loops.paired(prompt, starts, ends)
    assert found == {
        "s1": ("e1", {"a", "s2", "b", "e2", "s3", "c", "e3"}),
        "s2": ("e2", {"b"}),
        "s3": ("e3", {"c"}),
        "s4": ("e4", {"d"}),
    }
    assert loops.around(found, "c") == {"s1", "s3"} and loops.around(found, "e1") == set()


def test_ends_in_a_circle_are_comfyuis_to_refuse():
    prompt = {
        "s": node("StartLoop"),
        "e1": node("EndLoop", x=["e2", 0], y=["s", 0]),
        "e2": node("EndLoop", x=["e1", 0]),
    }
    assert loops.paired(prompt, ["s"], ["e1", "e2"]) == {}


# --- before it runs -------------------------------------------------------------------------------


def test_a_run_in_a_loop_waits_for_it_and_its_start_is_executed_here():
    prompt = looped()
    made = admitting.admit(prompt, None, Classes(), lambda i, n: i in ("n", "a"))
    held = made.prompt["r"]["inputs"]
    assert held["zbus_after0"] == ["s", 0] and made.notes == ()
    assert run_here(made.prompt) == {"0", "s", "r", "e", "8"}
    assert {i for i, n in made.prompt.items() if n["class_type"] == "ZBusThere"} == {"n", "a"}
    assert tapping.as_made(made.prompt) == prompt


def test_a_run_after_a_loop_waits_for_nothing():
    prompt = looped(r=node("A", x=["a", 0]), q=node("ZBusRun", value=["e", 0], here="no"))
    prompt["8"]["inputs"]["images"] = ["q", 0]
    made = admitting.admit(prompt, None, Classes(), lambda i, n: False)
    assert made.prompt is prompt
    assert cut(prompt, ("e", 0)).prompt.keys() == {*"0snmare", "zbus-result"}


def test_what_is_carried_on_from_within_the_part_is_the_peers():
    prompt = looped()
    prompt["e"]["inputs"]["next_iteration_value"] = ["n", 0]
    made = admitting.admit(prompt, None, Classes(), lambda i, n: False)
    assert run_here(made.prompt) == {"0", "s", "r", "e", "8"}
    assert tapping.as_made(made.prompt) == prompt
    now = turns({**made.prompt}, 2)
    part = cut(now, tuple(now["s.0.0.1_r"]["inputs"]["value"]))
    assert cutting.result_names(part.prompt) == {"value", "tap0"}


# --- in its turns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_the_part_of_one_turn(turn):
    now = turns(looped())
    part = cut(now, (f"s.0.0.{turn}_a", 0))
    assert part.boundaries == {
        f"s.0.0.iteration_{turn}.{slot}": (f"s.0.0.iteration_{turn}", slot) for slot in (0, 4)
    }
    taken = {i for i in part.prompt if not i.startswith("zbus-")}
    assert taken == {"m", f"s.0.0.{turn}_n", f"s.0.0.{turn}_a"}


def test_a_part_after_a_loop_that_has_run_here_too_is_the_loop_as_it_was():
    prompt = looped(r=node("A", x=["a", 0]), q=node("ZBusRun", value=["e", 0], here="no"))
    part = cut(turns(prompt), ("e", 0))
    assert part.prompt["e"]["inputs"] == prompt["e"]["inputs"]
    assert set(part.prompt["s"]) == {"class_type", "inputs"}
    assert part.prompt.keys() == {*"0snmare", "zbus-result"} and part.boundaries == {}


@pytest.mark.parametrize("class_type", ["ZBusHere", "ZBusReceive", "ZBusRun", "Receive Images"])
def test_a_loop_in_which_something_runs_here_runs_here(class_type):
    prompt = looped(r=node(class_type, value=["a", 0]))
    after = {"q": node("ZBusRun", value=["t", 0], here="no"), "t": node("A", x=["e", 0])}
    part = cut(turns({**prompt, **after}), ("t", 0))
    assert part.boundaries == {"e.0": ("e", 0)}
    assert {i for i in part.prompt if not i.startswith("zbus-")} == {"t"}
    before = looped(r=node("A", x=["h", 0], y=["a", 0]), h=node("ZBusHere", value=["m", 0]))
    assert cut(turns(before), ("e", 0)).boundaries == {"h.0": ("h", 0)}


def test_a_run_after_a_loop_with_a_run_in_it():
    prompt = looped(
        t=node("A", x=["e", 0]),
        q=node("ZBusRun", value=["t", 0], here="no"),
        p=node("SaveImage", images=["t", 0]),
    )
    prompt["8"]["inputs"]["images"] = ["q", 0]
    made = admitting.admit(prompt, None, Classes(), lambda i, n: i in ("n", "a", "t"))
    assert run_here(made.prompt) == {"q", "p", "8"}  # and the loop when q asks for it
    assert made.prompt["r"]["inputs"]["zbus_after0"] == ["s", 0]
    assert "zbus_after0" not in made.prompt["q"]["inputs"]
    stood = {i for i, n in made.prompt.items() if n["class_type"] == "ZBusThere"}
    assert stood == {"n", "a", "t"}


# --- NetDist --------------------------------------------------------------------------------------

URL = "http://a:8288"


def queued(seed):
    return looped(
        q=node("RemoteQueueSimple", remote_url=URL, seed=seed),
        a=node("KSampler", seed=["q", 0], image=["n", 0]),
        r=node("FetchRemote", final_image=["a", 0], remote_info=["q", 2]),
    )


@pytest.mark.parametrize("turn", [0, 2])
def test_a_queue_node_in_a_loop_sends_its_own_turn(turn):
    now = turns(queued(["s", 0]))
    made = dispatching.dispatch(now, f"s.0.0.{turn}_q", URL)
    assert made.results == (f"s.0.0.{turn}_r",)
    assert set(made.boundaries.values()) == {(f"s.0.0.iteration_{turn}", k) for k in (0, 4)}
    kept = {i for i in made.prompt if not i.startswith("zbus-")}
    assert kept == {f"s.0.0.{turn}_{i}" for i in "qna"}
    assert made.prompt[f"s.0.0.{turn}_q"]["inputs"]["enabled"] == "remote"
    with pytest.raises(InputError, match="RemoteQueueSimple .* is in a loop, and its outputs"):
        dispatching.dispatch(now, f"s.0.0.{turn}_q", URL, everything=True)


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("taken", ["n", "o"])
def test_a_queue_node_in_a_loop_sends_nothing_of_ours(turn, taken):
    """What the fetch node needs is shown here as well, with a picture of a run's part in it."""
    prompt = looped(
        q=node("RemoteQueueSimple", remote_url=URL, seed=["s", 0]),
        o=node("Shown", images=["n", 0]),
        a=node("ImageScale", image=["o", 0]),
        b=node("KSampler", seed=["q", 0], image=[taken, 0]),
        f=node("FetchRemote", final_image=["b", 0], remote_info=["q", 2]),
        p=node("PreviewAny", source=["b", 0]),
    )
    prompt["e"]["inputs"] |= {"output_value": ["f", 0], "terminations.termination0": ["p", 0]}
    admitted = admitting.admit(prompt, None, Classes(), lambda i, n: False).prompt
    assert {"ZBusTap", "ZBusThere"} <= {n["class_type"] for n in admitted.values()}
    now = turns(admitted, 2)
    assert {**tapping.as_made(now), "s": {}} == {**turns(prompt, 2), "s": {}}
    made = dispatching.dispatch(now, f"s.0.0.{turn}_q", URL)
    assert made == dispatching.dispatch(turns(prompt, 2), f"s.0.0.{turn}_q", URL)
    ours = {n["class_type"] for n in made.prompt.values() if n["class_type"].startswith("ZBus")}
    assert ours == {"ZBusResult", "ZBusValue"}
    assert f"s.0.0.{turn}_n" in made.prompt
    assert {source for source, _ in made.boundaries.values()} == {f"s.0.0.iteration_{turn}"}


def test_a_queue_node_before_a_loop_cannot_be_fetched_in_it():
    prompt = queued(7)
    prompt["s"] |= {"_loop_body": ["a", "n", "r"], "_loop_end": "e"}
    with pytest.raises(InputError, match="KSampler #a is in a loop that would run on the remote"):
        dispatching.dispatch(prompt, "q", URL)
