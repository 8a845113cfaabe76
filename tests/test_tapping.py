"""Previews and saves inside a part that runs elsewhere: `comfy_nodes.prompt.tapping`, and what
becomes of a whole prompt that comes in: `comfy_nodes.prompt.admitting`."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompts import CLASSES, admitting, cutting, dags, elsewhere, graph, node, passing, text, wiring

cut, as_made = cutting.cut, wiring.as_made
TYPES = {
    "CheckpointLoaderSimple": (("MODEL", "CLIP", "VAE"), {}),
    "CLIPTextEncode": (("CONDITIONING",), {"clip": "CLIP", "text": "STRING"}),
    "EmptyLatentImage": (("LATENT",), {}),
    "PrimitiveString": (("STRING",), {}),
    "Caption": (("STRING",), {"image": "IMAGE"}),
    "LoadImage": (("IMAGE", "MASK"), {}),
    "KSampler": (("LATENT",), {"model": "MODEL", "positive": "CONDITIONING", "latent": "LATENT"}),
    "VAEDecode": (("IMAGE",), {"samples": "LATENT", "vae": "VAE"}),
    "VAEEncode": (("LATENT",), {"pixels": "IMAGE", "vae": "VAE"}),
    "ImageScale": (("IMAGE",), {"image": "IMAGE"}),
    "Switch": (("*",), {"value": "*"}),
    "Match": (("COMFY_MATCHTYPE_V3",), {"input": "*", "times": "INT"}),
    "A": (("IMAGE", "IMAGE", "IMAGE"), {}),
    "B": (("*", "*", "*"), {}),
    "ZBusRun": (("*", "STRING"), {"value": "*"}),
    "ZBusHere": (("*",), {"value": "*"}),
    # Output nodes; Shown hands on what it shows, and SamplerShown samples by itself.
    "PreviewImage": ((), {"images": "IMAGE"}),
    "SaveImage": ((), {"images": "IMAGE"}),
    "PreviewAny": (("STRING",), {"source": "*"}),
    "Save": ((), {}),
    "SaveText": (("STRING",), {"text": "STRING"}),
    "ModelSave": ((), {"model": "MODEL"}),
    "Shown": (("IMAGE",), {"images": "IMAGE"}),
    "ShownAndSaved": (("IMAGE",), {"images": "IMAGE"}),
    "SamplerShown": (("IMAGE",), {"model": "MODEL"}),
    "ZBusSend": (("*", "INT"), {"value": "*"}),
}
OUTPUTS = {"PreviewImage", "SaveImage", "PreviewAny", "ModelSave", "Shown", "SamplerShown"}
OUTPUTS |= {"Save", "SaveText", "ZBusSend", "ShownAndSaved"}


class Classes:
    def is_output(self, class_type):
        return class_type in OUTPUTS

    def is_core(self, class_type):
        return True

    def returned(self, class_type, slot):
        found = TYPES.get(class_type, ((), {}))[0]
        return found[slot] if slot < len(found) else ""

    def matched(self, class_type, slot):
        return ["input"] if class_type == "Match" else []

    def accepted(self, class_type, name):
        return TYPES.get(class_type, ((), {}))[1].get(name, "")

    def names(self):
        return TYPES.keys()

    def loop_boundary(self, class_type):
        return {"StartLoop": "start", "EndLoop": "end"}.get(class_type, "")

    def is_file_input(self, class_type, name):
        return (class_type, name) == ("LoadImage", "image")

    def is_path_input(self, class_type, name):
        return False

    def is_here(self, path):
        return False


def picture(**more):
    """Sampled in two steps, and decoded, elsewhere."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="sdxl.safetensors"),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a cat"),
        "3": node("EmptyLatentImage", width=64),
        "4": node("KSampler", model=["1", 0], positive=["2", 0], latent=["3", 0]),
        "5": node("KSampler", model=["1", 0], positive=["2", 0], latent=["4", 0]),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("ZBusRun", value=["6", 0], peer="cloud", here="no"),
        "8": node("SaveImage", images=["7", 0]),
        **more,
    }


def admit(prompt, targets=None, bad=()):
    found = admitting.admit(prompt, targets, Classes(), lambda i, n: i in bad)
    assert text(as_made(found.prompt)) == text(prompt)
    return found


def run_here(prompt, targets=None):
    """What ComfyUI would execute, as its user knows it."""
    outputs = [i for i, n in prompt.items() if n["class_type"] in OUTPUTS]
    wanted = [i for i in outputs if targets is None or i in targets]
    lazy = ("ZBusRun", "ZBusRunTapped")
    found = graph.reach(
        prompt, wanted, lambda i, name: prompt[i]["class_type"] not in lazy or name != "value"
    )
    assert not {"ZBusWanted", "ZBusThere"} & {prompt[i]["class_type"] for i in found}
    return {i for i in found if prompt[i]["class_type"] != "ZBusTap"}


def seen(prompt, value):
    """What a link leads to: through a tap, the link within the part."""
    if prompt[value[0]]["class_type"] != "ZBusTap":
        return None
    tap = prompt[value[0]]["inputs"]
    run, slot = tap["tapped"]
    assert slot == wiring.TAPPED and prompt[run]["class_type"] == "ZBusRunTapped"
    return prompt[prompt[run]["inputs"]["value"][0]]["inputs"][tap["name"]]


def job(prompt, run="7"):
    return cut(prompt, tuple(prompt[run]["inputs"]["value"]))


# --- what is inside -----------------------------------------------------------------------------


@pytest.mark.parametrize("class_type", ["PreviewImage", "SaveImage"])
def test_a_preview_or_save_inside_the_part_gets_what_the_peer_made(class_type):
    prompt = picture(**{"9": node(class_type, images=["6", 0])})
    made = admit(prompt)
    assert made.notes == ()
    assert run_here(made.prompt) == {"7", "8", "9"}
    assert seen(made.prompt, made.prompt["9"]["inputs"]["images"]) == ["6", 0]
    part = job(made.prompt)
    results = [n["inputs"]["value"] for n in part.prompt.values() if "job" in n["inputs"]]
    assert results == [["6", 0]] and part.boundaries == {}, "it travels once"
    assert len(part.outputs) == 1 and part.brought == {"tap0": "value"}
    assert not {"7", "8", "9"} & part.prompt.keys()


def test_a_prompt_with_nothing_inside_stays_the_very_same():
    prompt = picture()
    made = admit(prompt)
    assert made.prompt is prompt and as_made(prompt) is prompt and made.notes == ()


def test_a_branch_that_only_shows_takes_what_it_needs_from_there():
    prompt = picture(
        **{"9": node("ImageScale", image=["6", 0]), "10": node("PreviewImage", images=["9", 0])}
    )
    made = admit(prompt)
    assert run_here(made.prompt) == {"7", "8", "9", "10"}
    assert seen(made.prompt, made.prompt["9"]["inputs"]["image"]) == ["6", 0]


def test_a_picture_of_the_first_step_is_decoded_there():
    """Its VAE cannot travel: what takes it runs where it is."""
    prompt = picture(
        **{
            "9": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
            "10": node("ImageScale", image=["9", 0]),
            "11": node("SaveImage", images=["10", 0]),
        }
    )
    made = admit(prompt)
    assert made.notes == () and run_here(made.prompt) == {"7", "8", "10", "11"}
    assert seen(made.prompt, made.prompt["10"]["inputs"]["image"]) == ["9", 0]
    assert {"4", "9"} <= job(made.prompt).prompt.keys()


def test_one_value_for_all_that_show_it():
    prompt = picture(
        **{
            "9": node("PreviewImage", images=["6", 0]),
            "10": node("SaveImage", images=["6", 0]),
            "11": node("PreviewAny", source=["4", 0]),
        }
    )
    made = admit(prompt)
    assert run_here(made.prompt) == {"7", "8", "9", "10", "11"}
    assert made.prompt["9"]["inputs"]["images"] == made.prompt["10"]["inputs"]["images"]
    assert seen(made.prompt, made.prompt["11"]["inputs"]["source"]) == ["4", 0]
    assert cutting.result_names(job(made.prompt).prompt) == {"value", "tap1"}


def test_a_text_that_the_part_makes_is_shown_but_a_text_that_was_typed_is_here():
    prompt = {
        "1": node("LoadImage", image="x.png"),
        "2": node("Caption", image=["1", 0]),
        "3": node("PrimitiveString", value="y"),
        "4": node("Caption", image=["1", 0], a=["2", 0], b=["3", 0]),
        "7": node("ZBusRun", value=["4", 0], peer="cloud", here="no"),
        "8": node("PreviewAny", source=["7", 0]),
        "9": node("PreviewAny", source=["2", 0]),
        "10": node("PreviewAny", source=["3", 0]),
        "11": node("PreviewImage", images=["1", 0]),
    }
    made = admit(prompt)
    assert run_here(made.prompt) == {"1", "3", "7", "8", "9", "10", "11"}
    assert seen(made.prompt, made.prompt["9"]["inputs"]["source"]) == ["2", 0]
    assert seen(admit(prompt, bad="1").prompt, made.prompt["9"]["inputs"]["source"]) == ["2", 0]


def test_only_what_is_asked_for_is_brought():
    prompt = picture(
        **{"9": node("PreviewImage", images=["6", 0]), "10": node("PreviewAny", source=["4", 0])}
    )
    assert admit(prompt, ["8"]).prompt is prompt
    made = admit(prompt, ["9"])
    assert run_here(made.prompt, ["9"]) == {"7", "9"}
    assert made.prompt["10"] == prompt["10"]
    assert job(made.prompt).brought == {"tap0": "value"}


def test_what_one_that_sends_gives_away_is_what_the_peer_made():
    made = admit(picture(**{"9": node("ZBusSend", value=["6", 0])}))
    assert run_here(made.prompt) == {"7", "8", "9"}


# --- nodes that hand on what they show ----------------------------------------------------------


def handing_on(**more):
    prompt = picture(**{"9": node("Shown", images=["6", 0]), **more})
    prompt["7"]["inputs"]["value"] = ["9", 0]
    return prompt


def test_one_in_the_middle_runs_in_both_places():
    prompt = handing_on()
    made = admit(prompt)
    assert made.notes == () and run_here(made.prompt) == {"7", "8", "9"}
    assert seen(made.prompt, made.prompt["9"]["inputs"]["images"]) == ["6", 0]
    part = job(made.prompt)
    classes = [n["class_type"] for n in part.prompt.values()]
    assert classes.count("Shown") == 1 and "ZBusThere" not in classes and "9" not in part.prompt
    assert part.boundaries == {}


@pytest.mark.parametrize("first", ["9", "10"])
def test_two_in_the_middle_and_one_after_them(first):
    more = {
        "9": node("Shown", images=["6", 0]),
        "10": node("Shown", images=["9", 0]),
        "11": node("PreviewImage", images=["9", 0]),
    }
    prompt = picture(**{first: more[first]}, **{i: n for i, n in more.items() if i != first})
    prompt["7"]["inputs"]["value"] = ["10", 0]
    made = admit(prompt)
    assert made.notes == () and run_here(made.prompt) == {"7", "8", "9", "10", "11"}
    part = job(made.prompt)
    assert [n["class_type"] for n in part.prompt.values()].count("Shown") == 2


def test_one_that_samples_by_itself_runs_there_alone_and_says_so():
    prompt = picture(**{"9": node("SamplerShown", model=["1", 0])})
    prompt["7"]["inputs"]["value"] = ["9", 0]
    made = admit(prompt)
    assert run_here(made.prompt) == {"7", "8"}
    (note,) = made.notes
    alone = "runs on the other ComfyUI alone: what it shows or saves is there"
    assert note == f"SamplerShown #9 {alone}"
    assert job(made.prompt).prompt["9"] == prompt["9"]


def test_one_that_samples_runs_there_alone_though_what_is_made_of_it_is_shown():
    """The node between takes what cannot travel, so it runs there as well."""
    prompt = picture(
        **{
            "9": node("SamplerShown", model=["1", 0]),
            "10": node("VAEEncode", pixels=["9", 0], vae=["1", 2]),
            "11": node("PreviewAny", source=["10", 0]),
        }
    )
    prompt["7"]["inputs"]["value"] = ["9", 0]
    made = admit(prompt)
    assert run_here(made.prompt) == {"7", "8", "11"}
    assert seen(made.prompt, made.prompt["11"]["inputs"]["source"]) == ["10", 0]
    assert {"9", "10"} <= job(made.prompt).prompt.keys() and not stood_in_here(made.prompt)


def test_one_that_samples_and_is_looked_at():
    prompt = picture(
        **{"9": node("SamplerShown", model=["1", 0]), "10": node("SaveImage", images=["9", 0])}
    )
    prompt["7"]["inputs"]["value"] = ["9", 0]
    made = admit(prompt)
    assert run_here(made.prompt) == {"7", "8", "10"} and len(made.notes) == 1


# --- what cannot be had -------------------------------------------------------------------------


def test_another_picture_of_the_same_model_is_made_here():
    """It shares the part's loader: the user's own work beside the part, not a look into it."""
    prompt = picture(
        **{
            "9": node("KSampler", model=["1", 0], positive=["2", 0], latent=["3", 0]),
            "10": node("VAEDecode", samples=["9", 0], vae=["1", 2]),
            "11": node("SaveImage", images=["10", 0]),
        }
    )
    made = admit(prompt)
    assert made.prompt is prompt and made.notes == ()
    prompt["9"]["inputs"]["latent"] = ["4", 0]  # and now it needs what the part computes
    made = admit(prompt)
    assert made.prompt is prompt
    (note,) = made.notes
    assert note == (
        "SaveImage #11 needs a MODEL, which cannot travel, from CheckpointLoaderSimple #1: so that "
        'part of "Run on Peers" runs here as well'
    )


def test_a_value_of_an_unknown_kind_is_left_where_it_is():
    shown = {"9": node("PreviewAny", source=["6", 0])}
    prompt = picture(**{"6": node("Switch", value=["5", 0])}, **shown)
    made = admit(prompt)
    (note,) = made.notes
    assert made.prompt is prompt and "of a kind that cannot be told, from Switch #6" in note
    prompt["9"] = node("PreviewImage", images=["6", 0])  # the one that takes it tells
    assert run_here(admit(prompt).prompt) == {"7", "8", "9"}


def test_a_value_of_a_type_that_an_input_decides_is_of_that_type():
    prompt = picture(
        **{
            "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
            "9": node("Match", input=["6", 0], times=["2", 0]),
            "10": node("Match", input=["9", 0]),
            "11": node("PreviewAny", source=["10", 0]),
        }
    )
    prompt["7"]["inputs"]["value"] = ["10", 0]
    assert run_here(admit(prompt).prompt) == {"7", "8", "11"}
    prompt["10"] = node("Match", input=["10", 0])  # a circle is no type
    assert admit(prompt).prompt is prompt


def test_what_is_before_the_part_at_once_is_not_taken_from_it():
    prompt = picture(
        **{
            "9": node("Shown", images=["6", 0]),
            "10": node("ZBusHere", value=["9", 0]),
            "11": node("ImageScale", image=["10", 0], other=["6", 0]),
        }
    )
    prompt["7"]["inputs"]["value"] = ["11", 0]
    made = admit(prompt)
    assert made.prompt is prompt and "before it at once" in made.notes[0]


@pytest.mark.parametrize(
    "how",
    [
        {"here": "also run here"},
        {"here": ["8", 0]},
        {"peer": "this computer"},
        {"peer": "desk, This Computer"},
        {"peer": ["2", 0]},
    ],
)
def test_nothing_changes_where_the_part_runs_here_or_may_do(how):
    prompt = picture(**{"9": node("PreviewImage", images=["6", 0])})
    prompt["7"]["inputs"] |= how
    assert admit(prompt).prompt is prompt


def test_a_name_behind_a_primitive_is_known():
    prompt = picture(
        **{"9": node("PreviewImage", images=["6", 0]), "p": node("PrimitiveString", value="desk")}
    )
    prompt["7"]["inputs"]["peer"] = ["p", 0]
    assert run_here(admit(prompt).prompt) == {"7", "8", "9", "p"}
    prompt["p"]["inputs"]["value"] = "this computer"
    assert admit(prompt).prompt is prompt


def stood_in_here(prompt):
    """Those that would be executed here and never are to be."""
    return {
        i for i in run_here_or_bad(prompt) if prompt[i]["class_type"] in ("ZBusThere", "ZBusWanted")
    }


@pytest.mark.parametrize("class_type", ["Shown", "SamplerShown"])
def test_one_in_the_middle_after_which_something_runs_here_runs_here_too(class_type):
    """Two that hand on; of the second something is needed here that cannot travel."""
    prompt = handing_on(
        **{
            "9": node(class_type, images=["6", 0], model=["1", 0]),
            "10": node("Switch", value=["9", 0]),
            "11": node("PreviewAny", source=["10", 0]),
        }
    )
    prompt["7"]["inputs"]["value"] = ["10", 0]
    made = admit(prompt)
    assert not stood_in_here(made.prompt)
    assert {"9", "10", "11"} <= run_here(made.prompt)
    assert any("runs here as well" in note for note in made.notes)


def test_one_in_the_middle_of_two_parts_one_of_which_runs_here_too():
    prompt = picture(
        **{
            "9": node("Shown", images=["6", 0]),
            "10": node("ZBusRun", value=["9", 0], peer="desk", here="also run here"),
            "11": node("SaveImage", images=["10", 0]),
        }
    )
    prompt["7"]["inputs"]["value"] = ["9", 0]
    made = admit(prompt)
    assert not stood_in_here(made.prompt)
    assert job(made.prompt, "10").prompt.keys() >= {"9", "6"}
    assert any("Shown #9" in note and "runs here as well" in note for note in made.notes)


def test_no_part_takes_along_what_another_one_brings():
    prompt = {
        "0": node("A"),
        "1": node("CLIPTextEncode", text=["0", 0]),
        "3": node("ZBusRun", value=["1", 1], peer="b", here="no"),
        "4": node("Save", images=["0", 0]),
        "5": node("A", clip=["4", 0]),
        "7": node("Save", latent=["5", 1]),
        "8": node("A", positive=["4", 0]),
        "9": node("ZBusRun", value=["8", 1], peer="a", here="no"),
    }
    made = admit(prompt).prompt
    assert "ZBusTap" not in {n["class_type"] for n in job(made, "9").prompt.values()}


# --- back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"here": "also run here"}, {"peer": "cloud,this computer"}])
def test_neither_one_that_also_runs_here(more):
    prompt = handing_on(**{"10": node("SaveImage", images=["9", 0])})
    given = {"value": ["10", 0], "peer": "b", "here": "no", **more}
    prompt |= {"11": node("ZBusRun", **given), "12": node("SaveImage", images=["11", 0])}
    found = admit(prompt)
    part = job(found.prompt, "11")
    assert "ZBusTap" not in {n["class_type"] for n in part.prompt.values()}
    assert part.boundaries == {}


def test_a_prompt_that_was_changed_once_may_come_again():
    prompt = picture(
        **{"9": node("PreviewImage", images=["6", 0]), "10": node("Shown", images=["4", 0])}
    )
    prompt["5"]["inputs"]["latent"] = ["10", 0]
    once = admit(prompt).prompt
    again = admitting.admit(once, None, Classes(), lambda i, n: False)
    assert again.prompt is once and as_made(again.prompt) == prompt


def test_ids_of_its_own_are_of_no_subgraph():
    prompt = {f"57:{i}": n for i, n in picture(**{"9": node("Shown", images=["6", 0])}).items()}
    for n in prompt.values():
        for name, value in n["inputs"].items():
            if graph.link(value):
                n["inputs"][name] = [f"57:{value[0]}", value[1]]
    prompt["57:7"]["inputs"]["value"] = ["57:9", 0]
    new = admit(prompt).prompt.keys() - prompt.keys()
    assert new == {"zbus-there-57.9", "zbus-wanted-57.7", "zbus-tap0-57.7"}


@pytest.mark.parametrize(
    "odd",
    [
        *(node("ZBusTap"), node("ZBusTap", tapped=["1", 2], name="x"), node("ZBusThere")),
        *(node("ZBusWanted"), node("ZBusTap", tapped=["2", 0], name=7)),
        {"class_type": "ZBusTap", "inputs": None},
        node("ZBusThere", of="1", class_type="A", inputs="{}"),
        node("ZBusRunTapped", value=["1", 0]),
    ],
)
def test_nodes_that_only_bear_those_names_break_nothing(odd):
    prompt = {
        "1": odd,
        "2": node("A", x=["1", 0]),
        "3": node("ZBusThere", class_type="A", inputs="{}"),
    }
    assert as_made(prompt).keys() <= {"1", "2", "3"}


# --- branches that lead nowhere -----------------------------------------------------------------


def test_an_unused_branch_that_only_the_peer_could_run_refuses_nothing():
    prompt = picture(
        **{
            "9": node("Unknown", image=["6", 0], x=["10", 0]),
            "10": node("UnknownLoader"),
            "11": node("Elsewhere"),
        }
    )
    bad = {"1", "2", "6", "9", "10", "11"}
    made = admit(prompt, bad=bad)
    stood = {i for i, n in made.prompt.items() if n["class_type"] == "ZBusThere"}
    assert stood == {"1", "2", "6", "9", "10"}  # 11 has nothing to do with the part
    assert made.notes == (
        "Unknown #9 is not installed here, and nothing takes what it gives: it is left out",
    )


def test_what_a_used_branch_needs_is_still_refused():
    prompt = picture(**{"9": node("ModelSave", model=["1", 0])})
    made = admit(prompt, bad={"1", "2"})
    assert {i for i, n in made.prompt.items() if n["class_type"] == "ZBusThere"} == {"2"}
    assert made.notes == ()  # ComfyUI itself refuses it


# --- any at all ---------------------------------------------------------------------------------

NAMED = [*CLASSES, "ZBusRun", "PreviewImage", "Shown", "Shown", "KSampler", "VAEDecode"]


@given(dags(NAMED), st.data())
def test_any_prompt(prompt, data):
    before = text(prompt)
    bad = data.draw(st.sets(st.sampled_from(list(prompt))))
    made = admit(prompt, bad=bad).prompt
    assert text(prompt) == before
    assert admit(prompt, bad=bad).prompt == made or "NaN" in text(made)
    for run in elsewhere.elsewhere_runs(prompt):
        part = job(made, run)
        assert not {"ZBusTap", "ZBusWanted", "ZBusThere"} & {
            n["class_type"] for n in part.prompt.values()
        }
        assert run not in graph.ancestors(made, [s for _, (s, _) in graph.sources(made, run)])
        plain = cut(prompt, tuple(prompt[run]["inputs"]["value"]))
        assert len(part.prompt) >= len(plain.prompt)
        assert part.boundaries.items() >= plain.boundaries.items()
    assert not stood_in_here(admit(prompt).prompt)
    here = run_here_or_bad(made)
    for i in here & made.keys() & prompt.keys():  # what runs here is what the user put there
        assert made[i]["class_type"].removesuffix("Tapped") == prompt[i]["class_type"]


def run_here_or_bad(prompt):
    lazy = ("ZBusRun", "ZBusRunTapped")
    outputs = [i for i, n in prompt.items() if n["class_type"] in OUTPUTS]
    return set(
        graph.reach(
            prompt,
            outputs,
            lambda i, name: (
                prompt[i]["class_type"] not in lazy
                or name != "value"
                or prompt[i]["inputs"]["here"] != "no"
            ),
        )
    )


# --- what hands on the very value that it takes -------------------------------------------------


def test_a_save_that_hands_on_what_it_takes_is_left_out_of_the_part():
    prompt = picture(
        **{
            "9": node("SaveImage", images=["6", 0], filename_prefix="x"),
            "10": node("PreviewImage", images=["9", 0]),
            "11": node("ImageScale", image=["10", 0]),
        }
    )
    prompt["7"]["inputs"]["value"] = ["11", 0]
    made = admit(prompt)
    assert made.notes == () and run_here(made.prompt) == {"7", "8", "9", "10"}
    part = job(made.prompt)
    assert part.prompt["11"]["inputs"]["image"] == ["6", 0]
    assert not {"SaveImage", "PreviewImage"} & {n["class_type"] for n in part.prompt.values()}
    assert not list(passing.told(made.prompt, part.prompt, Classes().is_output))
    prompt["7"]["inputs"]["value"] = ["10", 0]
    made = admit(prompt)
    part = job(made.prompt)
    (value,) = (n["inputs"]["value"] for n in part.prompt.values() if "job" in n["inputs"])
    assert value == ["6", 0] and set(part.brought.values()) == {"value"}


@pytest.mark.parametrize("link", [["9", 1], ["9", 0]])
def test_another_output_than_what_it_takes_is_not_had_without_it(link):
    prompt = picture(**{"9": node("SaveImage", images=["6", 0])})
    prompt["7"]["inputs"]["value"] = link
    classes = [n["class_type"] for n in job(admit(prompt).prompt).prompt.values()]
    assert classes.count("SaveImage") == (link[1] == 1)


def test_a_class_of_a_pack_that_has_such_a_name_is_not_led_past(monkeypatch):
    monkeypatch.setattr(Classes, "is_core", lambda self, class_type: class_type != "SaveText")
    prompt = picture(
        **{
            "9": node("Caption", image=["6", 0]),
            "10": node("SaveText", text=["9", 0]),  # gives where it has saved that
            "11": node("CLIPTextEncode", text=["10", 0]),
        }
    )
    prompt["7"]["inputs"]["value"] = ["11", 0]
    made = admit(prompt)
    part = cut(made.prompt, ("11", 0), is_core=Classes().is_core).prompt
    assert class_of(part, "11", "text") == "SaveText"
    assert any("saves there, too" in note for note in made.notes)


def class_of(prompt, i, name):
    return prompt[prompt[i]["inputs"][name][0]]["class_type"]


def test_one_that_saves_there_as_well_says_so():
    prompt = picture(
        **{"9": {**node("ShownAndSaved", images=["6", 0]), "_meta": {"title": "Keep"}}}
    )
    prompt["7"]["inputs"]["value"] = ["9", 0]
    made = admit(prompt)
    assert run_here(made.prompt) == {"7", "8", "9"}
    (note,) = made.notes
    assert note.startswith("Keep #9 hands on what it saves") and "saves there, too" in note
    told = list(passing.told(made.prompt, job(made.prompt).prompt, Classes().is_output))
    assert told == ["Keep #9 ran there: what it saves is saved there"]


def test_what_is_shown_early_and_by_whom():
    more = {
        "9": node("PreviewImage", images=["6", 0]),
        "10": node("SaveImage", images=["6", 0]),
        "11": node("ImageScale", image=["6", 0]),
        "12": node("PreviewImage", images=["11", 0]),
        "13": node("PreviewAny", source=["4", 0]),
    }
    made = admit(picture(**more)).prompt
    found = wiring.taps_shown_by(made, "7", Classes().is_output)
    assert sorted(found.values()) == [["13"], ["9", "10"]]
    assert wiring.taps_shown_by(made, "8", Classes().is_output) == {}


# --- how long it takes --------------------------------------------------------------------------


def steps(work):
    """How many functions of ours it calls."""
    called = 0

    def count(frame, event, _):
        nonlocal called
        called += event == "call" and "comfy_nodes" in frame.f_code.co_filename

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return called


def long(count, each):
    """A part in which so many pictures follow one another, each shown in some way."""
    prompt = {"0": node("LoadImage", image="x.png"), "c": node("CheckpointLoaderSimple")}
    for k in range(count):
        prompt[f"k{k}"] = node("ImageScale", image=[f"k{k - 1}" if k else "a", 0])
    prompt["a"] = node("A")
    for k in range(0, count, 7):
        prompt |= each(k)
    prompt["r"] = node("ZBusRun", value=[f"k{count - 1}", 0], peer="cloud", here="no")
    return prompt | {"s": node("SaveImage", images=["r", 0])}


def beside(k):
    return {f"p{k}": node("PreviewImage", images=[f"k{k}", 0])}


def decoded(k):
    encoded = node("VAEEncode", pixels=[f"k{k}", 0], vae=["c", 2])
    shown = node("VAEDecode", samples=[f"e{k}", 0], vae=["c", 2])
    return {f"e{k}": encoded, f"d{k}": shown, f"p{k}": node("PreviewImage", images=[f"d{k}", 0])}


def handed_on(k):
    shown = node("Shown", images=[f"k{k}", 0])
    return {f"p{k}": shown, f"k{k + 1}": node("ImageScale", image=[f"p{k}", 0])}


@pytest.mark.parametrize("each", [beside, decoded, handed_on])
def test_twice_as_many_take_twice_as_long(each):
    shorter, longer = (long(7 * count - 3, each) for count in (20, 40))
    assert len(admit(longer).prompt) > len(longer) + 40
    taken = [steps(lambda p=prompt: admit(p)) for prompt in (shorter, longer)]
    assert taken[1] < 2.3 * taken[0]
