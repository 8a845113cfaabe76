"""Inputs that grow (Autogrow, DynamicCombo) and classes that are gone, in a part that runs on
another ComfyUI: what came with ComfyUI 0.4 and 0.14. On an older one there is nothing to run."""

from __future__ import annotations

import urllib.error

import pytest
from chains import node
from test_run_on_peers import at_peer, digests, failure, good


@pytest.fixture
def newer(pair):
    lacking = {"BatchImagesNode", "ResizeImageMaskNode"} - pair.a.object_info().keys()
    if lacking:
        pytest.skip("this ComfyUI has no node whose inputs grow: they came with 0.4")
    return pair


def picture(seed):
    return node("TestNoise", batch=1, height=16, width=16, channels=3, seed=seed)


def grown(**mode):
    return {
        "one": picture(1),
        "two": picture(2),
        "batch": node(
            "BatchImagesNode", **{"images.image0": ["one", 0], "images.image1": ["two", 0]}
        ),
        "size": node("ResizeImageMaskNode", input=["batch", 0], scale_method="area", **mode),
    }


BY = {"resize_type": "scale by multiplier", "resize_type.multiplier": 0.5}


def test_a_part_of_them_runs_there(newer):
    local = grown(**BY) | {"digest": node("TestDigest", value=["size", 0])}
    away = grown(**BY) | {
        "run": at_peer(("size", 0), newer.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
        "preview": node("PreviewImage", images=["batch", 0]),
    }
    entry = good(newer.a, away)
    assert digests(entry) == digests(good(newer.a, local))
    assert len(entry["outputs"]["preview"]["images"]) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resize_type.multiplier": 99.0}, "resize_type.multiplier 99.0 is more than"),
        ({"resize_type": "no such"}, 'resize_type "no such" is not there'),
        ({"scale_method": "areas"}, 'scale_method "areas" is not there; nearest: "area"'),
    ],
)
def test_what_is_wrong_with_them_is_told_by_name(newer, change, said):
    prompt = grown(**BY) | {
        "run": at_peer(("size", 0), newer.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
    }
    prompt["size"]["inputs"] |= change
    assert said in failure(newer.a, prompt)["exception_message"]


def test_a_class_that_is_gone_is_what_stands_in_its_place(newer):
    gone = "T2IAdapterLoader"
    try:
        replaced = newer.a.get("/node_replacements")
    except urllib.error.HTTPError:
        replaced = {}
    if gone not in replaced:
        pytest.skip("this ComfyUI replaces no classes: that came with 0.14")
    prompt = {
        "load": node(gone, t2i_adapter_name="no-such.safetensors"),
        "at": node("TestAt", value=["load", 0]),
        "run": at_peer(("at", 1), newer.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
    }
    said = failure(newer.a, prompt)["exception_message"]
    assert "ControlNetLoader" in said and "is not installed" not in said
