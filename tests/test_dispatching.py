"""What NetDist's queue nodes send to their remote: `comfy_nodes.prompt.dispatching`."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompts import (
    CLASSES,
    NAN,
    REMOTE,
    assert_closed,
    cutting,
    dags,
    dispatching,
    graph,
    node,
    node_ids,
    text,
)

from zbus.errors import InputError

dispatch, clean_url = dispatching.dispatch, dispatching.clean_url
A, B = "http://a:8288", "http://b:8288"


def simple(prefix="", url=A):
    """One remote, as in NetDist's own example: both make pictures, all are saved here."""
    p = prefix
    return {
        f"{p}1": node("CheckpointLoaderSimple", ckpt_name="x.safetensors"),
        f"{p}2": node("RemoteQueueSimple", remote_url=url, batch_local=1, batch_remote=2)
        | {"_meta": {"title": "My cloud"}},
        f"{p}3": node("EmptyLatentImage", batch_size=[f"{p}2", 1]),
        f"{p}4": node("KSampler", model=[f"{p}1", 0], seed=[f"{p}2", 0], latent=[f"{p}3", 0]),
        f"{p}5": node("VAEDecode", samples=[f"{p}4", 0], vae=[f"{p}1", 2]),
        f"{p}6": node("FetchRemote", final_image=[f"{p}5", 0], remote_info=[f"{p}2", 2]),
        f"{p}7": node("ImageBatch", image1=[f"{p}5", 0], image2=[f"{p}6", 0]),
        f"{p}8": node("OnlyHere", image=[f"{p}7", 0]),
        f"{p}9": node("SaveImage", images=[f"{p}8", 0]),
        f"{p}10": node("PreviewImage", images=[f"{p}5", 0]),
    }


def chain():
    """Two workers in a chain, and a third queue node that has nothing to do with it."""
    return {
        "0": node("LoadDiskWorkflowJSON", workflow="mine.json"),
        "1": node("RemoteChainStart", workflow=["0", 0], trigger="on_change", batch=1, seed=5),
        "2": node("RemoteQueueWorker", remote_chain=["1", 0], remote_url=A, enabled="true"),
        "3": node("RemoteQueueWorker", remote_chain=["2", 0], remote_url=B, enabled=["13", 0]),
        "4": node("RemoteChainEnd", remote_chain=["3", 0]),
        "5": node("KSampler", seed=["4", 0], cfg=NAN),
        "6": node("VAEDecode", samples=["5", 0]),
        "7": node("FetchRemote", final_image=["6", 0], remote_info=["2", 1]),
        "8": node("FetchRemote", final_image=["6", 0], remote_info=["3", 1]),
        "9": node("CombineImageBatch", images_a=["7", 0], images_b=["8", 0]),
        "10": node("SaveImage", images=["9", 0]),
        "11": node("SaveImage", images=["6", 0]),
        "12": node("QueueRemote", remote_url=A, node_id=1),
        "13": node("PrimitiveString", value="true"),
        "14": node("OnlyHere", x=["9", 0], y=["15", 0]),
        "15": node("OnlyHereToo"),
    }


def enabled(prompt):
    return {
        i: n["inputs"]["enabled"] for i, n in prompt.items() if n["class_type"] in node_ids.QUEUES
    }


# --- URLs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw, url",
    [
        ("http://HOST:8288/", "http://host:8288"),
        (" HTTP://host:8288// \n", "http://host:8288"),
        ("https://Me:Secret@Host/Some/Path/", "https://Me:Secret@host/Some/Path"),
        ("Host:8288", "host:8288"),
        ("http://a:1/, http://b:2/", "http://a:1"),
        ("http://a:1/ http://b:2", "http://a:1"),
        ("http://a:1\nhttp://b:2", "http://a:1"),
        (",\thttp://a:1", "http://a:1"),
        ("http://[::1]:8288/", "http://[::1]:8288"),
        ("http://h/?next=http://X/Y", "http://h/?next=http://X/Y"),
        ("", ""),
        (" , ", ""),
    ],
)
def test_urls(raw, url):
    assert clean_url(raw) == url == clean_url(url)


# --- the current prompt -------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "57:", "4.0.0."])
def test_one_remote(prefix):
    prompt = simple(prefix)
    before = copy.deepcopy(prompt)
    sent = dispatch(prompt, f"{prefix}2", A)
    (output,) = sent.outputs
    p = prefix
    result = node("ZBusResult", value=[f"{p}5", 0], name=f"{p}6", job="")
    assert sent.prompt.pop(output) == result
    expected = {f"{p}{i}": prompt[f"{p}{i}"] for i in "12345"}
    queue = expected[f"{p}2"]
    expected[f"{p}2"] = {**queue, "inputs": {**queue["inputs"], "enabled": "remote"}}
    assert sent.prompt == expected
    assert sent.results == (f"{p}6",) and sent.boundaries == {}
    assert prompt == before


def test_a_chain_of_workers():
    prompt = chain()
    before = text(prompt)
    first, second = dispatch(prompt, "2", A), dispatch(prompt, "3", B)
    assert first.results == ("7",) and second.results == ("8",)
    assert enabled(first.prompt) == {"2": "remote", "3": "false"}
    assert enabled(second.prompt) == {"2": "false", "3": "remote"}
    for sent in (first, second):
        assert sent.prompt.keys() - sent.outputs == set("123456")
        assert sent.prompt["1"]["inputs"]["workflow"] == {}  # and not a file that it may lack
        assert sent.prompt["1"]["inputs"]["seed"] == 5
        assert_closed(sent.prompt)
    assert text(first.prompt["5"]) == text(prompt["5"])  # with its NaN
    assert text(prompt) == before


def test_everything():
    sent = dispatch(chain(), "2", A, everything=True)
    assert sent.outputs == () and sent.results == ("7",)
    classes = {i: n["class_type"] for i, n in sent.prompt.items()}
    assert classes.pop("zbus-result-7") == "ZBusResult"
    # 13 gave a value to enabled, which is fixed now; 15 served what stays behind.
    assert set(classes) == {*"123456", "11", "12"}
    assert enabled(sent.prompt) == {"2": "remote", "3": "false", "12": "false"}
    assert_closed(sent.prompt)


def test_several_fetch_nodes_of_one_queue_node():
    prompt = simple()
    fetch = node("FetchRemote", final_image=["3", 0], remote_info=["2", 2])
    prompt = {"20": fetch, **prompt, "19": fetch}
    sent = dispatch(prompt, "2", A)
    assert sent.results == ("20", "6", "19")
    assert [sent.prompt[o]["inputs"]["name"] for o in sent.outputs] == ["20", "6", "19"]


def test_two_queue_nodes_of_one_remote():
    prompt = simple() | {
        "11": node("RemoteQueueSimple", remote_url="HTTP://A:8288/", enabled="true"),
        "12": node("KSampler", seed=["11", 0], also=["2", 0]),
        "13": node("FetchRemote", final_image=["12", 0], remote_info=["11", 2]),
    }
    assert dispatch(prompt, "2", A).results == ("6",)
    sent = dispatch(prompt, "11", A)
    assert sent.results == ("13",)
    assert enabled(sent.prompt) == {"2": "false", "11": "remote"}


def test_pictures_are_results_where_there_is_no_fetch():
    prompt = chain() | {"16": node("PreviewImage", images=["6", 0]), "17": node("SaveImage")}
    del prompt["7"]
    sent = dispatch(prompt, "2", A, everything=True)
    assert sent.results == ("11", "16")
    assert {n["inputs"]["name"] for n in sent.prompt.values() if "name" in n["inputs"]} == {
        "11",
        "16",
    }
    assert "10" not in sent.prompt  # what it saves comes after a fetch


# --- saved workflows ----------------------------------------------------------------------------


def test_a_saved_workflow_is_searched_for_its_queue_node():
    prompt = simple("s", url="HTTP://A:8288/")
    assert dispatch(prompt, "2", A + "/").results == ("s6",)
    assert dispatch(prompt, None, A).results == ("s6",)
    two = simple("s", url=B) | simple("t")
    assert dispatch(two, None, A).results == ("t6",)
    # Whose id is by chance that of the node which sends it:
    assert dispatch(two, "s2", A).results == ("t6",)
    with pytest.raises(InputError, match='no "Fetch from remote".*a queue node of this URL'):
        dispatch(prompt, None, "http://c:8288")


def test_a_url_from_another_node():
    prompt = simple(url=["20", 0]) | {"20": node("PrimitiveString", value=A)}
    assert dispatch(prompt, None, A).results == ("6",)
    prompt["20"] = node("Computed")
    assert dispatch(prompt | simple("t"), "2", A).results == ("6",)
    assert dispatch(prompt | simple("t"), None, A).results == ("t6",)


def test_a_saved_workflow_without_any_node_of_netdist():
    prompt = {"1": node("EmptyImage"), "2": node("SaveImage", images=["1", 0])}
    sent = dispatch(prompt, "7", A, everything=True)
    assert sent.results == ("2",) and {"1", "2"} < set(sent.prompt)


@pytest.mark.parametrize("saved", [[], "x", {"nodes": [], "links": []}, {"1": {"inputs": {}}}])
def test_a_workflow_that_is_not_in_api_format(saved):
    with pytest.raises(InputError, match=r"not in API format.*Export \(API\)"):
        dispatch(saved, None, A)


def test_which_result_a_fetch_node_takes():
    assert dispatching.first_result("6", ("5", "6", "7")) == "6"
    assert dispatching.first_result("9", {"5": 1, "7": 1}) == "7"
    assert dispatching.first_result("9", ()) is None


# --- what stays here ----------------------------------------------------------------------------


def test_loaders_and_our_nodes_run_here():
    prompt = simple() | {
        "3": node("VAEEncode", pixels=["11", 0], mask=["11", 1], text=["13", 0], gone=["99", 0]),
        "11": node("LoadImage", image="cat.png"),
        "12": node("OnlyHere"),
        "13": node("ZBusHere", value=["12", 0]),
    }
    sent = dispatch(prompt, "2", A, attach={"11"})
    assert sent.boundaries == {"11.0": ("11", 0), "11.1": ("11", 1), "13.0": ("13", 0)}
    inputs = sent.prompt["3"]["inputs"]
    assert set(inputs) == {"pixels", "mask", "text"}
    names = [sent.prompt[to]["inputs"]["name"] for to, _ in inputs.values()]
    assert names == ["11.0", "11.1", "13.0"]
    assert not {"11", "12", "13"} & set(sent.prompt)
    everything = dispatch(prompt, "2", A, everything=True, attach={"11"})
    assert everything.boundaries == sent.boundaries
    assert not {"11", "12", "13"} & set(everything.prompt)


def test_a_part_that_runs_on_a_peer_is_a_value_too():
    prompt = simple() | {
        "11": node("ZBusThere", class_type="Missing", inputs="{}"),
        "12": node("ZBusRun", value=["11", 0], here="no"),
    }
    prompt["4"]["inputs"]["extra"] = ["12", 0]
    for everything in (False, True):
        sent = dispatch(prompt, "2", A, everything=everything)
        assert sent.boundaries == {"12.0": ("12", 0)} and "11" not in sent.prompt


@pytest.mark.parametrize("everything", [False, True])
def test_what_runs_here_cannot_wait_for_the_queue_node(everything):
    prompt = simple() | {"11": node("ZBusHere", value=["4", 0])}
    prompt["5"]["inputs"]["samples"] = ["11", 0]
    with pytest.raises(InputError, match=r"ZBusHere #11 .*needs what .*My cloud #2"):
        dispatch(prompt, "2", A, everything=everything)


# --- what cannot be done ------------------------------------------------------------------------


def test_no_fetch_node():
    prompt = simple()
    del prompt["6"]
    with pytest.raises(InputError, match=r'no "Fetch from remote".*My cloud #2.*Wire its rem'):
        dispatch(prompt, "2", A)
    prompt["6"] = node("FetchRemote", remote_info=["2", 2], final_image=["muted", 0])
    with pytest.raises(InputError, match='no "Fetch from remote" with an image'):
        dispatch(prompt, "2", A)


def test_nothing_to_run_at_all():
    prompt = {
        "1": node("RemoteChainStart"),
        "2": node("RemoteQueueWorker", remote_chain=["1", 0], remote_url=A),
        "3": node("FetchRemote", final_image=["4", 0]),
        "4": node("EmptyImage"),
        "5": node("SaveImage", images=["3", 0]),
    }
    with pytest.raises(InputError, match="nothing in this workflow would run.*add a Save Image"):
        dispatch(prompt, "2", A, everything=True)


@pytest.mark.parametrize("everything", [False, True])
def test_an_image_that_comes_from_another_remote(everything):
    prompt = chain()
    prompt["8"]["inputs"]["final_image"] = ["9", 0]
    del prompt["9"]["inputs"]["images_b"]
    assert dispatch(prompt, "2", A, everything=everything).results == ("7",)
    with pytest.raises(InputError, match="FetchRemote #8 is made from what another"):
        dispatch(prompt, "3", B, everything=everything)


def test_a_loop_does_not_hang():
    prompt = simple()
    prompt["3"]["inputs"]["x"] = ["5", 0]
    assert dispatch(prompt, "2", A).results == ("6",)
    assert dispatch(prompt, "2", A, everything=True).results == ("6",)


# --- any prompt ---------------------------------------------------------------------------------


@given(dags(CLASSES + REMOTE), st.booleans(), st.data())
def test_any_dispatch(prompt, everything, data):
    prompt = {"q": node("RemoteQueueSimple", remote_url=A), **prompt}
    for fetch in data.draw(st.sampled_from([[], ["f"], ["57:f", "f"]])):
        source = [data.draw(st.sampled_from(list(prompt))), 0]
        prompt[fetch] = node("FetchRemote", final_image=source, remote_info=["q", 2])
    before = text(prompt)
    queues = [i for i in prompt if prompt[i]["class_type"] in node_ids.QUEUES]
    queue = data.draw(st.sampled_from(["q", "q", *queues, None]))
    url = prompt[queue]["inputs"]["remote_url"] if queue else A
    attach = data.draw(st.sets(st.sampled_from([*prompt, "gone"]), max_size=2))
    try:
        sent = dispatch(prompt, queue, url, everything=everything, attach=attach)
    except InputError:
        assert text(prompt) == before
        return
    assert text(prompt) == before
    assert_closed(sent.prompt)
    made = {i: n for i, n in sent.prompt.items() if i not in prompt}
    taken = sent.prompt.keys() - made
    assert {n["class_type"] for n in made.values()} <= {"ZBusValue", "ZBusResult"}
    stays = graph.descendants(
        prompt, [i for i in prompt if prompt[i]["class_type"] == "FetchRemote"]
    )
    assert not taken & stays.keys() and not taken & attach
    assert not any(prompt[i]["class_type"] in cutting.HERE for i in taken)
    assert sum(state == "remote" for state in enabled(sent.prompt).values()) <= 1
    if queue:
        assert all((i == queue) == (e == "remote") for i, e in enabled(sent.prompt).items())
    results = [n["inputs"]["name"] for n in made.values() if n["class_type"] == "ZBusResult"]
    assert tuple(results) == sent.results and results == [i for i in prompt if i in results]
    needed = set(graph.ancestors(sent.prompt, sent.outputs))
    assert sent.outputs == () if everything else (sent.outputs and needed == set(sent.prompt))
    values = [n["inputs"]["name"] for n in made.values() if n["class_type"] == "ZBusValue"]
    assert sorted(values) == sorted(sent.boundaries)
    for source, _ in sent.boundaries.values():
        assert prompt[source]["class_type"] in cutting.HERE or source in attach
        assert queue not in graph.ancestors(prompt, [source])
    again = dispatch(prompt, queue, url, everything=everything, attach=attach)
    assert text(again) == text(sent)
