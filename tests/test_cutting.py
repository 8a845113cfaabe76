"""Cutting out the part of a prompt that another ComfyUI runs: `comfy_nodes.prompt.cutting`."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompts import (
    CLASSES,
    NAN,
    assert_closed,
    cutting,
    dags,
    elsewhere,
    graph,
    node,
    own_files,
    text,
)

from zbus.errors import InputError

cut, stand_in = cutting.cut, elsewhere.stand_in


def picture(prefix=""):
    """Loader, text, sampler, decoder, and a ZBusRun before a preview."""
    p = prefix
    return {
        f"{p}1": node("CheckpointLoaderSimple", ckpt_name="sdxl.safetensors"),
        f"{p}2": node("CLIPTextEncode", clip=[f"{p}1", 1], text="a cat"),
        f"{p}3": node("LoadImage", image="cat.png"),
        f"{p}4": node("VAEEncode", pixels=[f"{p}3", 0], vae=[f"{p}1", 2]),
        f"{p}5": node("KSampler", model=[f"{p}1", 0], positive=[f"{p}2", 0], latent=[f"{p}4", 0]),
        f"{p}6": node("VAEDecode", samples=[f"{p}5", 0], vae=[f"{p}1", 2]),
        f"{p}7": node("ZBusRun", value=[f"{p}6", 0], peer="cloud", here="no"),
        f"{p}8": node("PreviewImage", images=[f"{p}7", 0]),
        f"{p}9": node("SaveImage", images=[f"{p}3", 0]),
    }


# --- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, found",
    [
        (["57:8", 0], ("57:8", 0)),
        (["4.0.0.1", 2.0], ("4.0.0.1", 2)),
        (["1", "0"], None),
        ([1, 0], None),
        (["1"], None),
        (["1", 0, 0], None),
        (["1", NAN], None),
        (("1", 0), None),
        ("10", None),
        ({"__value__": ["1", 0]}, None),
    ],
)
def test_what_a_link_is(value, found):
    assert graph.link(value) == found


def test_a_clean_node_is_as_a_browser_would_send_it():
    dirty = node("A", image=["1", 0], names=["a", "b", "c"], pair=[1, 2], deep={"x": [NAN]})
    dirty |= {"_meta": {"title": "t"}, "is_changed": [NAN], "_loop_body": ["3"], "_loop_end": "4"}
    before = text(dirty)
    cleaned = graph.clean(dirty)
    assert cleaned["_meta"] == {"title": "t"} and set(cleaned) == {"class_type", "inputs", "_meta"}
    assert cleaned["inputs"]["image"] == ["1", 0]
    assert cleaned["inputs"]["names"] == {"__value__": ["a", "b", "c"]}  # validation unwrapped it
    assert cleaned["inputs"]["pair"] == {"__value__": [1, 2]}
    cleaned["inputs"]["deep"]["x"].append(1)
    cleaned["_meta"]["title"] = "u"
    assert text(dirty) == before
    assert graph.clean({"class_type": "A"}) == node("A")


def test_ancestors_and_descendants():
    prompt = picture()
    assert list(graph.ancestors(prompt, ["4", "gone"])) == ["4", "1", "3"]
    assert set(graph.descendants(prompt, ["4"])) == {"4", "5", "6", "7", "8"}
    loop = {"1": node("A", x=["2", 0]), "2": node("A", x=["1", 0]), "3": node("A", x=["3", 0])}
    assert set(graph.ancestors(loop, ["1"])) == set(graph.descendants(loop, ["1"])) == {"1", "2"}
    assert set(graph.ancestors(loop, ["3"])) == {"3"}


def test_fresh_ids():
    assert graph.fresh_id({}, "zbus") == "zbus"
    assert graph.fresh_id({"zbus": 1, "zbus-2": 1}, "zbus") == "zbus-3"


# --- cutting by hand ----------------------------------------------------------------------------


def test_a_part_is_what_the_value_needs():
    prompt = picture()
    part = cut(prompt, ("6", 0))
    (output,) = part.outputs
    assert part.prompt[output] == node("ZBusResult", value=["6", 0], name="value", job="")
    assert {i: n for i, n in part.prompt.items() if i != output} == {i: prompt[i] for i in "123456"}
    assert list(part.prompt)[:6] == list("123456")
    assert part.boundaries == {} and not part.varies


def test_an_attached_loader_is_a_boundary():
    part = cut(picture("57:"), ("57:6", 0), attach={"57:3", "not there"})
    assert part.boundaries == {"57:3.0": ("57:3", 0)}
    source = part.prompt["57:4"]["inputs"]["pixels"]
    assert part.prompt[source[0]] == node("ZBusValue", name="57:3.0", digest="") and source[1] == 0
    assert "57:3" not in part.prompt


def test_one_value_for_each_slot_however_often_it_is_used():
    prompt = {
        "1": node("LoadImage", image="x.png"),
        "2": node("A", a=["1", 0], b=["1", 1], c=["1", 0]),
        "3": node("A", a=["1", 0], b=["2", 0]),
    }
    part = cut(prompt, ("3", 0), attach=["1"])
    assert part.boundaries == {"1.0": ("1", 0), "1.1": ("1", 1)}
    first, second = part.prompt["2"]["inputs"], part.prompt["3"]["inputs"]
    assert first["a"] == first["c"] == second["a"] != first["b"]
    assert len(part.prompt) == 5


@pytest.mark.parametrize(
    "class_type",
    [
        *("ZBusHere", "ZBusRun", "FetchRemote", "ZBusReceive", "ZBusSend", "ZBusValue"),
        *("Receive String", "Receive Images", "Send String", "Send Images"),
        *("RemoteQueueSimple", "RemoteQueueWorker", "QueueRemote", "RemoteChainEnd"),
    ],
)
def test_these_run_here(class_type):
    prompt = {
        "1": node("A"),
        "2": node(class_type, value=["1", 0], order=["1", 1]),
        "3": node("A", x=["2", 1]),
    }
    part = cut(prompt, ("3", 0))
    assert part.boundaries == {"2.1": ("2", 1)}
    assert [n["class_type"] for n in part.prompt.values()] == ["A", "ZBusResult", "ZBusValue"]
    at_once = cut(prompt, ("2", 0))
    assert at_once.boundaries == {"2.0": ("2", 0)}
    assert [n["class_type"] for n in at_once.prompt.values()] == ["ZBusResult", "ZBusValue"]


def test_runs_in_series_and_in_parallel():
    prompt = {
        "1": node("A"),
        "2": node("ZBusRun", value=["1", 0], here="no"),
        "3": node("B", x=["2", 0]),
        "4": node("ZBusRun", value=["3", 0], here="no"),
        "5": node("ZBusRun", value=["3", 0], here="no"),
        "6": node("B", x=["4", 0], y=["5", 0]),
        "7": node("ZBusRun", value=["6", 0], here="no"),
    }
    assert set(cut(prompt, ("1", 0)).prompt) == {"1", "zbus-result"}
    for _ in ("4", "5"):
        part = cut(prompt, ("3", 0))
        assert part.boundaries == {"2.0": ("2", 0)} and "1" not in part.prompt
    assert cut(prompt, ("6", 0)).boundaries == {"4.0": ("4", 0), "5.0": ("5", 0)}


def test_a_run_inside_an_expanded_graph():
    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name="x"),
        "9": node("LoopEnd", value=["1", 0]),
        "9.0.0.3": node("A", model=["1", 0], x=["9.0.0.2", 0]),
        "9.0.0.2": node("ZBusHere", value=["9.0.0.1", 0]),
        "9.0.0.1": node("A"),
        "9.0.0.4": node("ZBusRun", value=["9.0.0.3", 1], here="no"),
    }
    part = cut(prompt, ("9.0.0.3", 1))
    assert part.boundaries == {"9.0.0.2.0": ("9.0.0.2", 0)}
    assert {"1", "9.0.0.3"} < set(part.prompt) and "9" not in part.prompt
    assert_closed(part.prompt)


def test_links_to_muted_nodes_are_dropped_and_bypassed_nodes_are_not_there_at_all():
    prompt = {"5": node("A", image=["3", 0], mask=["4", 1], size=7), "3": node("B")}
    part = cut(prompt, ("5", 0))
    assert part.prompt["5"] == node("A", image=["3", 0], size=7)
    with pytest.raises(InputError, match="nothing arrives at its value input.*Un-mute"):
        cut(prompt, ("4", 0))


def test_a_loop_does_not_hang():
    prompt = {"1": node("A", x=["2", 0]), "2": node("A", x=["1", 0])}
    assert set(cut(prompt, ("1", 0)).prompt) == {"1", "2", "zbus-result"}


def test_new_ids_are_new():
    prompt = {
        "zbus-result": node("A", x=["zbus-value-1.0", 0], y=["1", 0]),
        "zbus-value-1.0": node("A"),
        "1": node("ZBusHere"),
    }
    part = cut(prompt, ("zbus-result", 0))
    assert part.outputs == ("zbus-result-2",)
    assert part.prompt["zbus-result"]["inputs"]["y"] == ["zbus-value-1.0-2", 0]
    assert_closed(part.prompt)


# --- filling in ---------------------------------------------------------------------------------


def test_positions_digests_and_the_job():
    prompt = {
        "1": node("ZBusVary", seed=7, step=["2", 0]) | {"_meta": {"title": "seed"}},
        "2": node("PrimitiveInt", value=3),
        "3": node("ZBusHere"),
        "4": node("KSampler", seed=["1", 0], a=["3", 0], b=["3", 1], cfg=NAN),
    }
    part = cut(prompt, ("4", 0))
    before = text(part.prompt)
    assert part.varies
    third = cutting.for_position(part.prompt, 2)
    vary_at = node("ZBusVaryAt", seed=7, step=["2", 0], position=2)
    assert third["1"] == vary_at | {"_meta": {"title": "seed"}}
    assert text({**third, "1": 0}) == text({**part.prompt, "1": 0})
    filled = cutting.with_digests(part.prompt, {"3.0": "d0", "other": "x"})
    values = {i: n["inputs"] for i, n in filled.items() if n["class_type"] == "ZBusValue"}
    assert list(values.values()) == [
        {"name": "3.0", "digest": "d0"},
        {"name": "3.1", "digest": ""},
    ]
    assert cutting.value_names(filled) == {"3.0", "3.1"}
    assert len(cutting.result_names(filled)) == 1
    claimed = cutting.with_digests(filled, {"3.1": "d1"})  # what it said before counts no more
    digests = [n["inputs"]["digest"] for n in claimed.values() if n["class_type"] == "ZBusValue"]
    assert digests == ["", "d1"]
    mine = cutting.with_job(filled, "a-job")
    assert mine[part.outputs[0]]["inputs"]["job"] == "a-job"
    for changed in (third, filled, mine):
        changed["4"]["inputs"]["cfg"] = 1
    assert text(part.prompt) == before


def test_a_seed_behind_a_boundary_does_not_vary():
    prompt = {
        "1": node("ZBusVary"),
        "2": node("ZBusHere", value=["1", 0]),
        "3": node("A", x=["2", 0]),
    }
    assert not cut(prompt, ("3", 0)).varies
    assert cut(prompt, ("1", 0)).varies


# --- stand-ins ----------------------------------------------------------------------------------


def bad(*ids):
    return lambda i, n: i in ids


def changed(prompt, after):
    return {i for i in prompt if after[i] != prompt[i]}


def test_only_what_nothing_here_needs_is_stood_in_for():
    prompt = picture()
    assert stand_in(prompt, bad()) is prompt
    after = stand_in(prompt, lambda i, n: True)
    assert changed(prompt, after) == {"1", "2", "4", "5", "6"}  # 3 is saved here
    assert after["5"] == node(
        "ZBusThere",
        class_type="KSampler",
        inputs="{}",
        model=["1", 0],
        positive=["2", 0],
        latent=["4", 0],
    )
    assert after["1"]["inputs"]["inputs"] == '{"ckpt_name": "sdxl.safetensors"}'
    assert stand_in(prompt, bad("3", "7", "8")) is prompt
    assert stand_in(after, lambda i, n: True) is after


@pytest.mark.parametrize("here", ["also run here", "only here", ["9", 0]])
def test_nothing_is_stood_in_for_what_also_runs_here(here):
    prompt = picture()
    prompt["7"]["inputs"]["here"] = here
    assert stand_in(prompt, lambda i, n: True) is prompt


@pytest.mark.parametrize("peer", ["this computer", "desk-8189, This Computer"])
def test_nothing_is_stood_in_where_this_computer_is_named(peer):
    prompt = picture()
    prompt["7"]["inputs"]["peer"] = peer
    assert stand_in(prompt, lambda i, n: True) is prompt


def test_one_of_two_runs_also_here():
    prompt = picture() | {"10": node("ZBusRun", value=["4", 0], here="also run here")}
    assert changed(prompt, stand_in(prompt, lambda i, n: True)) == {"2", "5", "6"}


def test_the_name_of_a_peer_is_needed_here():
    prompt = picture()
    prompt["7"]["inputs"]["peer"] = ["2", 0]
    assert changed(prompt, stand_in(prompt, lambda i, n: True)) == {"4", "5", "6"}


def test_what_is_before_a_boundary_runs_here():
    prompt = {
        "1": node("Local"),
        "2": node("ZBusHere", value=["1", 0]),
        "3": node("There", x=["2", 0], y=["4", 0]),
        "4": node("There"),
        "5": node("ZBusRun", value=["3", 0], here="no"),
        "6": node("There", x=["5", 0]),
        "7": node("ZBusRun", value=["6", 0], here="no"),
    }
    assert changed(prompt, stand_in(prompt, lambda i, n: True)) == {"3", "4", "6"}


def test_stand_ins_go_back_to_what_they_stand_for():
    meta = {"_meta": {"title": "My node"}}
    odd = node(
        "NotInstalledHere",
        a=NAN,
        b=float("-inf"),
        c={"__value__": ["x", 1]},
        d=None,
        e="é\ud800",
        inputs=["1", 0],
        class_type=["1", 1],
        f=["1", 2],
    )
    prompt = {
        "1": node("Missing", class_type="a text", inputs=5),
        "2": odd | meta,
        "3": node("ZBusRun", value=["2", 0], here="no"),
    }
    before = copy.deepcopy(prompt)
    after = stand_in(prompt, lambda i, n: True)
    assert {after[i]["class_type"] for i in "12"} == {"ZBusThere"}
    assert after["2"]["_meta"] == meta["_meta"] and after["2"]["inputs"]["f"] == ["1", 2]
    part = cut(after, ("2", 0))
    assert text({i: part.prompt[i] for i in "12"}) == text({i: before[i] for i in "12"})
    assert text(prompt) == text(before)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"inputs": "{}"},
        {"class_type": "A"},
        {"class_type": "A", "inputs": "[1]"},
        {"class_type": "A", "inputs": "{"},
        {"class_type": ["2", 0], "inputs": "{}"},
    ],
)
def test_a_stand_in_that_says_nothing(inputs):
    with pytest.raises(InputError, match="#1 .*does not say which node"):
        cut({"1": node("ZBusThere", **inputs)}, ("1", 0))


# --- files of this side -------------------------------------------------------------------------


def test_a_folder_is_this_sides_however_it_is_named():
    prompt = {
        "1": node("LoadImageDataSetFromFolder", folder="set"),
        "2": node("LoadTrainingDataset", folder_name=["3", 0]),
        "3": node("Concatenate", a="x", b="y"),
        "4": node("SaveImageDataSetToFolder", folder="set", images=["1", 0]),
    }
    assert own_files.loaders(prompt, lambda *of: False) == {"1", "2"}


def test_loaders_of_this_sides_files_are_told_by_their_inputs():
    prompt = picture() | {
        "10": node("LoadImage", image=["2", 0]),  # its name is computed
        "11": node("ZBusThere", class_type="LoadImage", inputs='{"image": "nowhere.png"}'),
        "12": node("LoadImage", image="x.png", gone=["not there", 0]),
        "13": node("LoadImage", channel="red"),
        "14": {"class_type": "LoadImage"},
        "15": node("LoadImage", image="film.mp4", frame_load_cap=["2", 0]),
        "16": node("LoadImage", image=" ", base=["2", 0]),  # a painter without a mask
        "17": node("LoadImage", image="", base=["2", 0]),
        "18": node("LoadImage", image=None),
        "19": node("PrimitiveString", value="y.png"),
        "20": node("LoadImage", image=["19", 0]),
    }
    told = own_files.loaders(prompt, lambda *of: of == ("LoadImage", "image"))
    assert told == {"3", "12", "15", "20"}
    assert own_files.loaders(prompt, lambda *of: False) == set()


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://127.0.0.1:8188/view?filename=a.png", True),
        (" http://LOCALHOST:8188/view", True),
        ("http://user:pass@[::1]/a.png", True),
        ("https://example.com/127.0.0.1/a.png", False),
        ("http://192.168.1.5:8188/view", False),
        ("http://[::1/a.png", False),
        ("", False),
    ],
)
def test_a_url_of_this_very_machine_is_loaded_here(url, is_here):
    """On the other one it would lead to that machine's own ComfyUI."""
    for name in ("LoadImageUrl", "LoadLatentUrl"):
        prompt = {"1": node(name, url=url), "2": node("Other", url=url)}
        assert own_files.loaders(prompt, lambda *of: False) == ({"1"} if is_here else set())


def painted(**base):
    """A picture, painted over with a mask of this computer's, goes on to the other ComfyUI."""
    prompt = {
        "1": node("ZBusVary", seed=3, step=1),
        "2": node("EmptyImage", color=5, **base),
        "3": node("Painter", image=["2", 0], mask="mine.png"),
        "4": node("ImageInvert", image=["3", 0]),
        "5": node("ZBusRun", value=["4", 0], peer="cloud", here="no"),
    }
    return prompt, own_files.loaders(prompt, lambda *of: of == ("Painter", "mask"))


def test_a_loader_with_a_link_runs_here_with_what_it_comes_from():
    prompt, attach = painted()
    part = cut(prompt, ("4", 0), attach=attach)
    assert part.boundaries == {"3.0": ("3", 0)}
    assert {n["class_type"] for n in part.prompt.values()} == {
        *("ImageInvert", "ZBusValue", "ZBusResult")
    }


def test_what_differs_on_each_cannot_come_before_a_loader():
    prompt, attach = painted(width=["1", 0])
    with pytest.raises(InputError, match=r"Painter #3 loads a file.*once.*ZBusVary #1.*after"):
        cut(prompt, ("4", 0), attach=attach)
    assert cut(prompt, ("2", 0), attach=attach).varies  # it is not in this part
    prompt["2.5"] = node("ZBusHere", value=["2", 0])  # it is wished to be computed here
    prompt["3"]["inputs"]["image"] = ["2.5", 0]
    assert cut(prompt, ("4", 0), attach=attach).boundaries == {"3.0": ("3", 0)}


def test_a_loader_needs_what_only_the_other_has():
    prompt, attach = painted()
    prompt = stand_in(prompt, lambda i, node: i == "2")
    with pytest.raises(InputError, match=r"Painter #3 loads.*needs EmptyImage #2, which only the"):
        cut(prompt, ("4", 0), attach=attach)


# --- any prompt ---------------------------------------------------------------------------------


@given(dags(), st.data())
def test_any_part(prompt, data):
    before = text(prompt)
    value = (data.draw(st.sampled_from(list(prompt))), data.draw(st.integers(0, 2)))
    attach = data.draw(st.sets(st.sampled_from([*prompt, "gone"]), max_size=3))
    try:
        part = cut(prompt, value, attach=attach)
    except InputError as error:
        assert "is to differ on each" in str(error)
        return
    (output,) = part.outputs
    made = {i for i, n in part.prompt.items() if n["class_type"] in ("ZBusValue", "ZBusResult")}
    taken = part.prompt.keys() - made

    assert_closed(part.prompt)
    assert taken <= set(graph.ancestors(prompt, [value[0]]))
    assert set(graph.ancestors(part.prompt, [output])) == set(part.prompt)
    assert not any(prompt[i]["class_type"] in cutting.BOUNDARIES or i in attach for i in taken)
    for i in taken:
        whole, mine = graph.clean(prompt[i]), part.prompt[i]
        assert whole | {"inputs": 0} == mine | {"inputs": 0}
        for name, given_value in whole["inputs"].items():
            found = graph.link(given_value)
            if found is None or found[0] in taken:
                assert text(mine["inputs"][name]) == text(given_value)
            elif found[0] in prompt:  # across the boundary
                attached = part.prompt[mine["inputs"][name][0]]["inputs"]["name"]
                assert part.boundaries[attached] == found
            else:
                assert name not in mine["inputs"]
    for source, _ in part.boundaries.values():
        assert prompt[source]["class_type"] in cutting.BOUNDARIES or source in attach
    names = [n["inputs"]["name"] for n in part.prompt.values() if n["class_type"] == "ZBusValue"]
    assert sorted(names) == sorted(part.boundaries)
    assert part.varies == any(prompt[i]["class_type"] == "ZBusVary" for i in taken)
    assert text(cut(prompt, value, attach=attach)) == text(part)
    assert text(prompt) == before


def is_elsewhere(prompt, i):
    """As it is defined, for a prompt without loops."""
    if prompt[i]["class_type"] in cutting.BOUNDARIES:
        return False
    after = graph.consumers(prompt)[i]

    def is_run(to, name):
        run = prompt[to]
        is_ours = run["class_type"] == "ZBusRun" and run["inputs"]["here"] == "no"
        return is_ours and name == "value"

    return bool(after) and all(is_run(to, n) or is_elsewhere(prompt, to) for to, n in after)


@given(dags([*CLASSES, "ZBusRun", "ZBusRun"]), st.data())
def test_any_stand_ins(prompt, data):
    before = text(prompt)
    ids = data.draw(st.sets(st.sampled_from(list(prompt))))
    after = stand_in(prompt, bad(*ids))
    expected = {i for i in ids if is_elsewhere(prompt, i)}
    assert {i for i in after if after[i]["class_type"] == "ZBusThere"} == expected
    assert (after is prompt) == (not expected)
    assert stand_in(after, bad(*ids)) is after
    assert all(text(after[i]) == text(prompt[i]) for i in prompt.keys() - expected)
    for i in prompt:
        assert text(cut(after, (i, 0))) == text(cut(prompt, (i, 0)))
    assert text(prompt) == before
