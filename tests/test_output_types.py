"""What the types of outputs tell before anything is computed: `comfy_nodes.prompt.output_types`."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from prompts import PACKAGE, node

output_types = importlib.import_module(f"{PACKAGE}.prompt.output_types")
preflight = importlib.import_module(f"{PACKAGE}.prompt.preflight")

OUTPUTS = {
    "Load": ("MODEL", "CLIP", "VAE"),
    "Decode": ("IMAGE",),
    "Encode": ("LATENT",),
    "Any": ("*",),
    "Embeds": ("EMBEDS",),
    "Numbers": ("INT", "STRING"),
    "Several": ("IMAGE,LATENT",),
    "Switch": ("COMFY_MATCHTYPE_V3",),
    "Grow": ("COMFY_AUTOGROW_V3",),
    "Splat": ("SPLAT", "FILE_3D_PLY", "CURVE", "MESH,VOXEL", "SPLAT,IMAGE"),
}


class Outputs:
    def returned(self, class_type: str, slot: int) -> str:
        declared = OUTPUTS.get(class_type, ())
        return declared[slot] if slot < len(declared) else ""

    def matched(self, class_type: str, slot: int) -> tuple[str, ...]:
        return ("off", "on") if class_type == "Switch" else ()


PROMPT = {
    "load": node("Load"),
    "image": node("Decode", samples=["latent", 0]),
    "latent": node("Encode"),
    "any": node("Any", value=["load", 0]),
    "here": node("ZBusHere", value=["load", 1]),
    "here2": node("ZBusHere", value=["here", 0]),
    "send": node("ZBusSend", value=["image", 0]),
    "run": node("ZBusRun", value=["switch", 0], peer="any free"),
    "switch": node("Switch", on=["here2", 0], off=["any", 0], which=True),
    "round": node("ZBusHere", value=["round", 0]),
    "loose": node("ZBusHere"),
    "grow": node("Grow"),
    "gone": node("ZBusHere", value=["no such", 0]),
}


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (("load", 0), "MODEL"),
        (("load", 2), "VAE"),
        (("load", 7), ""),
        (("any", 0), ""),
        (("here2", 0), "CLIP"),
        (("send", 0), "IMAGE"),
        (("send", 1), ""),
        (("switch", 0), "CLIP"),
        (("run", 0), "CLIP"),
        (("run", 1), ""),
        *(((name, 0), "") for name in ("round", "loose", "grow", "gone", "x")),
    ],
)
def test_the_type_of_what_comes_from_there(source: Any, kind: str) -> None:
    assert output_types.declared(PROMPT, source, Outputs()) == kind


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"a": ["image", 0], "b": ["image", 0], "which": 1}, ""),
        ({"a": ["image", 0], "b": ["numbers", 0], "c": ["numbers", 1]}, ""),
        ({"a": ["image", 0], "b": ["again", 0]}, ""),
        ({"a": ["again", 0]}, ""),
        ({"a": ["embeds", 0]}, "*"),  # it may make a picture of it
        ({"a": ["embeds", 0], "b": ["image", 0]}, "*"),
        ({"a": ["image", 0], "b": ["loose", 0]}, "*"),
        ({"a": ["image", 0], "b": ["several", 0]}, "*"),
        ({"a": ["numbers", 0]}, "*"),
        ({"a": ["self", 0]}, "*"),
        ({"a": ["no such", 0]}, "*"),
        ({}, "*"),
    ],
)
def test_a_switch_that_takes_anything_gives_what_is_wired_to_it(inputs: Any, told: str) -> None:
    prompt = PROMPT | {
        "embeds": node("Embeds"),
        "numbers": node("Numbers"),
        "several": node("Several"),
        "again": node("Any", x=["image", 0]),
        "self": node("Any", **inputs),
    }
    assert output_types.no_picture(prompt, ("self", 0), Outputs()) == told
    assert output_types.declared(prompt, ("self", 0), Outputs()) == "", "only a guess"
    assert output_types.no_picture(prompt, ("image", 0), Outputs()) == ""


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        *((kind, "") for kind in ("IMAGE", "MASK", "VIDEO", "IMAGE,LATENT")),
        *((kind, kind) for kind in ("LATENT", "EMBEDS", "AUDIO", "INT,FLOAT", "IMAGES")),
        *((kind, "*") for kind in ("", "*", "COMFY_MATCHTYPE_V3")),
    ],
)
def test_what_is_known_of_pictures(declared: str, told: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(OUTPUTS, "Any", (declared,))
    assert output_types.no_picture({"1": node("Any")}, ("1", 0), Outputs()) == told


def result(*source: Any) -> dict[str, Any]:
    return {"result": node("ZBusResult", value=list(source), name="value", job="")}


@pytest.mark.parametrize("source", [("load", 0), ("here2", 0), ("switch", 0)])
def test_a_result_that_cannot_travel_is_told_before_it_is_computed(source: Any) -> None:
    prompt = PROMPT | result(*source)
    wanted = output_types.results(prompt)
    (reason,) = preflight.cannot_travel(prompt, wanted, Outputs())
    assert reason.kind == "output" and reason.node == source[0]
    assert "cannot travel" in reason.text and f"#{source[0]}" in reason.text
    assert "a MODEL" in reason.text or "a CLIP" in reason.text


@pytest.mark.parametrize("source", [("image", 0), ("any", 0), ("latent", 0), ("no such", 0)])
def test_what_can_travel_or_is_not_known_is_no_reason(source: Any) -> None:
    prompt = PROMPT | result(*source)
    assert preflight.cannot_travel(prompt, output_types.results(prompt), Outputs()) == []


OLD = frozenset({"MESH", "CURVE_LINEAR"})


@pytest.mark.parametrize(
    ("slot", "types", "told"),
    [
        (0, OLD, "SPLAT"),
        (0, OLD | {"SPLAT"}, ""),
        (0, frozenset(), "SPLAT"),
        (1, OLD, "FILE_3D_PLY"),
        (1, OLD | {"FILE_3D"}, ""),
        (2, OLD, ""),  # which of the two kinds of curves it is, nobody knows
        (2, frozenset({"MESH"}), "CURVE"),
        (3, OLD, ""),
        (3, frozenset({"SPLAT"}), "MESH,VOXEL"),
        (4, OLD, ""),
    ],
)
def test_what_the_other_side_has_no_type_for_is_told_before_it_is_computed(
    slot: int, types: frozenset[str], told: str
) -> None:
    prompt = {"splat": node("Splat"), "here": node("ZBusHere", value=["splat", slot])}
    prompt |= result("here", 0)
    found = output_types.unheld(prompt, output_types.results(prompt), Outputs(), types)
    assert [kind for _, kind in found] == ([told] if told else [])
