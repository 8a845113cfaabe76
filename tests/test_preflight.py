"""Whether a peer's prompt can run here: `comfy_nodes.prompt.preflight`, without a ComfyUI."""

from __future__ import annotations

import importlib
import json
import struct
import sys
import time
import types
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "comfy_nodes"
LORAS = ["foo_v2.safetensors", "styles\\anime.safetensors", "zebra.safetensors"]
CLASSES = {
    "LoraLoader": (
        {
            "model": ("MODEL",),
            "lora_name": (LORAS, {"tooltip": "which"}),
            "strength": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0}),
        },
        2,
    ),
    "Scale": (
        {
            "image": ("IMAGE",),
            "method": ("COMBO", {"options": ["nearest", "area"]}),
            "width": ("INT", {"min": 0, "max": 16384}),
        },
        1,
    ),
    "Remote": ({"choice": ("COMBO", {"remote": {"route": "/x"}})}, 1),
    "Many": ({"tags": ("COMBO", {"options": ["a", "b", "c"], "multiselect": True})}, 1),
    "Grows": ({"images": ("COMFY_AUTOGROW_V3", {})}, 1),
    "LoadImage": ({"image": (["a.png", "b.png"], {"image_upload": True})}, 2),
    "LoadOutput": ({"image": ("COMBO", {"image_upload": True, "image_folder": "output"})}, 2),
    "LoadLatent": ({"latent": [["x.latent"]]}, 1),
    "Batch": (
        {
            "images": (
                "COMFY_AUTOGROW_V3",
                {
                    "template": {
                        "input": {"required": {"image": ("IMAGE", {"lazy": True})}},
                        "prefix": "image",
                        "min": 2,
                        "max": 50,
                    }
                },
            )
        },
        1,
    ),
    "Resize": (
        {
            "input": ("COMFY_MATCHTYPE_V3", {"template": {"allowed_types": "IMAGE,MASK"}}),
            "mode": (
                "COMFY_DYNAMICCOMBO_V3",
                {
                    "options": [
                        {
                            "key": "by size",
                            "inputs": {"required": {"width": ("INT", {"min": 0, "max": 512})}},
                        },
                        {
                            "key": "by model",
                            "inputs": {
                                "required": {"model": (LORAS, {})},
                                "optional": {
                                    "picture": (["a.png"], {"image_upload": True}),
                                    "masks": (
                                        "COMFY_AUTOGROW_V3",
                                        {
                                            "template": {
                                                "input": {"optional": {"mask": ("MASK", {})}},
                                                "names": ["a", "b"],
                                                "min": 1,
                                            }
                                        },
                                    ),
                                },
                            },
                        },
                    ]
                },
            ),
            "slot": (
                "COMFY_DYNAMICSLOT_V3",
                {"slotType": "IMAGE", "inputs": {"required": {"times": ("INT", {"max": 3})}}},
            ),
        },
        1,
    ),
    "Odd": ({"a": "IMAGE", "b": ()}, None),
    "Out": ({"images": ("IMAGE",)}, 0),
}
OUTPUTS = {("LoraLoader", 0): "MODEL", ("LoraLoader", 1): "CLIP", ("Scale", 0): "IMAGE"}
OUTPUTS |= {("Odd", 0): "*", ("LoadLatent", 0): "LATENT", ("Switch", 0): "COMFY_MATCHTYPE_V3"}


@pytest.fixture(scope="module")
def preflight():
    """The module, in a package whose own __init__ (which needs ComfyUI) is not run."""
    name = "zbus_preflight_under_test"
    package = types.ModuleType(name)
    package.__path__ = [str(FOLDER)]
    sys.modules[name] = package
    yield importlib.import_module(f"{name}.prompt.preflight")
    for loaded in [n for n in sys.modules if n.partition(".")[0] == name]:
        del sys.modules[loaded]


@pytest.fixture
def beside(preflight):
    """``beside(name)``: another module of that room."""
    room = preflight.__name__.rpartition(".")[0]
    return lambda name: importlib.import_module(f"{room}.{name}")


@pytest.fixture
def classes(preflight, beside):
    class Classes:
        own = {("LoadImage", "image")}

        def names(self):
            return CLASSES.keys()

        def inputs(self, class_type, given):
            declared = CLASSES.get(class_type, ({}, 0))[0]
            return beside("class_inputs").expanded({"required": declared}, given)

        def slots(self, class_type):
            return CLASSES.get(class_type, ({}, None))[1]

        def judges(self, class_type, name):
            return (class_type, name) in self.own

        def returned(self, class_type, slot):
            return OUTPUTS.get((class_type, slot), "")

        def matched(self, class_type, slot):
            return ("on_true", "on_false") if class_type == "Switch" else ()

    return Classes()


def node(class_type, title=None, **inputs):
    meta = {"_meta": {"title": title}} if title else {}
    return {"class_type": class_type, "inputs": inputs, **meta}


MODEL = node("Odd")


def lora(name="foo_v2.safetensors", title=None, **more):
    inputs = {"model": ["0", 0], "lora_name": name, "strength": 1.0, **more}
    return {"0": MODEL | {"inputs": {"a": 1, "b": 1}}, "12": node("LoraLoader", title, **inputs)}


def test_a_good_prompt_has_nothing_wrong(preflight, classes):
    assert preflight.look(lora(), classes) == []


def test_what_lives_in_one_comfyui_is_refused_before_it_is_computed(preflight, classes):
    handed = node("ZBusResult", value=["12", 1], name="value", job="")
    names = [*CLASSES, "ZBusResult"]
    classes.names = lambda: names
    (reason,) = preflight.look(lora() | {"result": handed}, classes)
    assert (reason.kind, reason.node) == ("output", "12")
    assert reason.text.startswith("LoraLoader #12: a CLIP lives in one ComfyUI")
    handed["inputs"]["value"] = ["0", 0]
    assert preflight.look(lora() | {"result": handed}, classes) == []


def test_what_the_asking_comfyui_has_no_type_for_is_refused_before_it_is_computed(
    preflight, classes
):
    handed = node("ZBusResult", value=["12", 0], name="value", job="")
    names = [*CLASSES, "ZBusResult"]
    classes.names = lambda: names
    classes.returned = lambda class_type, slot: "SPLAT" if class_type == "LoraLoader" else ""
    prompt = lora() | {"result": handed}
    assert preflight.look(prompt, classes) == []  # an older one does not say what it has
    assert preflight.look(prompt, classes, {"SPLAT"}) == []
    (reason,) = preflight.look(prompt, classes, {"MESH"})
    assert (reason.kind, reason.node) == ("output", "12")
    assert reason.text.startswith("LoraLoader #12: a SPLAT would come back, and the ComfyUI that")


def test_a_missing_choice_names_the_nearest(preflight, classes):
    (reason,) = preflight.look(lora("foo.safetensors", "My LoRA"), classes)
    assert reason.kind == "choice"
    assert (reason.node, reason.title, reason.class_type) == ("12", "My LoRA #12", "LoraLoader")
    assert (reason.input, reason.value) == ("lora_name", "foo.safetensors")
    assert reason.near[0] == "foo_v2.safetensors"
    assert reason.text == (
        'LoraLoader "My LoRA" #12: lora_name "foo.safetensors" is not there; '
        'nearest: "foo_v2.safetensors"'
    )


def test_the_same_file_elsewhere_is_the_nearest(beside):
    names = ["animee.safetensors", "b/ANIME.safetensors", "a\\anime.safetensors"]
    near = beside("nearest").near("sd/anime.safetensors", names)
    assert near[:2] == ("b/ANIME.safetensors", "a\\anime.safetensors")
    assert near[2] == "animee.safetensors"


def test_a_common_ending_is_no_likeness(beside):
    assert beside("nearest").near("wolf.safetensors", ["cat.safetensors", "dog.safetensors"]) == ()


def test_a_few_choices_are_all_named(preflight, classes):
    prompt = {"0": MODEL, "1": node("Scale", image=["0", 0], method="lanczos", width=1)}
    reasons = [r for r in preflight.look(prompt, classes) if r.node == "1"]
    assert [r.text for r in reasons] == [
        'Scale #1: method "lanczos" is not there; there are only: "nearest", "area"'
    ]


def test_everything_is_told_at_once(preflight, classes):
    prompt = {
        "1": node("SUPIR", "Upscale", x=1),
        "2": node("Scale", image=["1", 0], method="bad", width=99999),
        "3": node("Scale", image=["77", 0], method="area", width=-1),
        "4": node("Out", images=["2", 3]),
        "5": node("LoraLoader", strength=1.0, lora_name=LORAS[0]),
    }
    reasons = preflight.look(prompt, classes)
    assert [(r.kind, r.node, r.input) for r in reasons] == [
        ("class", "1", ""),
        ("choice", "2", "method"),
        ("value", "2", "width"),
        ("input", "3", "image"),
        ("value", "3", "width"),
        ("input", "4", "images"),
        ("input", "5", "model"),
    ]
    texts = "\n".join(r.text for r in reasons)
    assert 'node class "SUPIR" is not installed (used by #1 "Upscale")' in texts
    assert "Scale #3: image is linked to node #77, which is not in the prompt" in texts
    assert "Out #4: images is linked to output 3 of Scale #2, which has 1 here" in texts
    assert "Scale #2: width 99999 is more than 16384" in texts
    assert "LoraLoader #5: model is missing" in texts


def test_a_missing_class_is_told_once_with_its_users_and_the_nearest(preflight, classes):
    prompt = {str(i): node("LoraLoade") for i in range(5)} | {"9": {"inputs": {}}}
    first, second = preflight.look(prompt, classes)
    assert first.near == ("LoraLoader",)
    assert first.text == (
        'node class "LoraLoade" is not installed (used by #0, #1, #2, and 2 more); '
        "nearest: LoraLoader"
    )
    assert second.kind == "class" and second.text.startswith("a node of no class (used by #9")


@pytest.mark.parametrize(
    "prompt",
    [
        {"1": node("Remote", choice="anything")},  # only the page knows its choices
        {"1": node("Many", tags={"__value__": ["a", "c"]})},
        {"1": node("Many", tags=["a", "b", "c"])},
        {"1": node("Grows", **{"images.image0": 1})},  # its parts are in the prompt, and not it
        {"1": node("LoadImage", image="sub/a.png [output]")},  # it judges that itself
        {"1": node("Odd", a=1, b=2), "2": node("Scale", image=["1", 40], method="area", width=3)},
        {"1": node("Scale", image=1, method="area", width="12")},  # the host casts it
    ],
)
def test_what_the_host_would_take_is_not_refused(preflight, classes, prompt):
    assert preflight.look(prompt, classes) == []


@pytest.mark.parametrize("width", ["x", None, [1, 2, 3], float("nan"), float("inf")])
def test_no_value_breaks_the_look(preflight, classes, width):
    prompt = {"1": node("Scale", image=1, method="area", width=width)}
    assert [r.kind for r in preflight.look(prompt, classes)] == ["value"]


def test_a_wrong_item_of_several_is_a_wrong_choice(preflight, classes):
    prompt = {"1": node("Many", tags={"__value__": ["a", "x", "y"]})}
    assert [r.kind for r in preflight.look(prompt, classes)] == ["choice"]


def test_a_great_many_wrong_choices_do_not_take_long(preflight, classes, monkeypatch):
    names = [f"folder/model-{i:05}-with-a-name.safetensors" for i in range(20_000)]
    monkeypatch.setitem(CLASSES, "Big", ({"name": (names,)}, 1))
    prompt = {str(i): node("Big", name=f"folder/model-x{i}.safetensors") for i in range(200)}
    started = time.monotonic()
    assert len(preflight.look(prompt, classes)) == 200
    assert time.monotonic() - started < 10


# --- separators


def test_the_separators_of_this_system_are_used(preflight, beside, classes):
    prompt = lora("styles/anime.safetensors")
    changed = beside("separators").separators(prompt, classes)
    assert changed["12"]["inputs"]["lora_name"] == "styles\\anime.safetensors"
    assert prompt["12"]["inputs"]["lora_name"] == "styles/anime.safetensors"
    assert preflight.look(changed, classes) == []


@pytest.mark.parametrize("value", ["styles\\anime.safetensors", "styles/other.safetensors", 3])
def test_what_is_there_or_nowhere_is_left(beside, classes, value):
    assert beside("separators").separators(lora(value), classes)["12"] == lora(value)["12"]


def test_a_text_with_a_slash_is_left(beside, classes):
    prompt = {"1": node("Scale", image=1, method="area", width=1, note="a/b")}
    assert beside("separators").separators(prompt, classes) == prompt


# --- what ComfyUI says


def said(kind, name="", **more):
    info = {"input_name": name} if name else {}
    return {
        "type": kind,
        "message": "Value bad",
        "details": f"{name}: x",
        "extra_info": info,
        **more,
    }


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [
        ("value_not_in_list", "choice"),
        ("required_input_missing", "input"),
        ("bad_linked_input", "input"),
        ("return_type_mismatch", "input"),
        ("invalid_input_type", "value"),
        ("value_smaller_than_min", "value"),
        ("value_bigger_than_max", "value"),
        ("custom_validation_failed", "value"),
        ("exception_during_validation", "other"),
        ("of a later version", "other"),
    ],
)
def test_every_error_of_comfyui_becomes_a_reason(preflight, kind, becomes):
    prompt = {"3": node("Scale", "Big", width=5)}
    whole = {"type": "prompt_outputs_failed_validation", "message": "m", "details": "d"}
    (reason,) = preflight.from_host(prompt, whole, {"3": {"errors": [said(kind, "width")]}})
    assert (reason.kind, reason.node, reason.input, reason.value) == (becomes, "3", "width", "5")
    assert reason.text == 'Scale "Big" #3: width (Value bad: x)'


def test_a_file_that_a_loader_does_not_find_is_a_missing_choice(preflight, classes):
    prompt = {"6": node("LoadImage", image="c.png")}
    errors = {"6": {"errors": [said("custom_validation_failed", "image")]}}
    (reason,) = preflight.from_host(prompt, None, errors, classes)
    assert (reason.kind, reason.input, reason.near) == ("choice", "image", ("a.png", "b.png"))
    assert 'image "c.png" is not there' in reason.text


@pytest.mark.parametrize(
    "error",
    [
        {"type": "invalid_prompt", "message": "Cannot execute because node Foo does not exist."},
        {"type": "missing_node_type", "message": "?", "extra_info": {"class_type": "Foo"}},
    ],
)
def test_a_missing_class_that_comfyui_tells(preflight, error):
    (reason,) = preflight.from_host({"1": node("Foo", "My foo")}, error, {})
    assert (reason.kind, reason.node, reason.class_type) == ("class", "1", "Foo")
    assert reason.text == 'node class "Foo" is not installed (used by #1 "My foo")'


def test_a_prompt_without_outputs(preflight):
    error = {"type": "prompt_no_outputs", "message": "Prompt has no outputs", "details": ""}
    (reason,) = preflight.from_host({}, error, {})
    assert reason.kind == "output" and "output node" in reason.text


def test_reasons_are_unique_and_not_without_end(preflight, classes):
    looked = preflight.look(lora("foo.safetensors"), classes)
    told = preflight.from_host(
        lora("foo.safetensors"), None, {"12": {"errors": [said("value_not_in_list", "lora_name")]}}
    )
    assert preflight.unique([*looked, *told]) == looked
    many = preflight.look({str(i): node("Scale") for i in range(200)}, classes)
    assert len(many) == 600 and len(preflight.unique(many)) == 64


def test_a_summary_has_twenty_lines_and_says_how_many_more(preflight, classes):
    reasons = preflight.look({str(i): node("Remote") for i in range(23)}, classes)
    lines = preflight.summary(reasons, "cloud").splitlines()
    assert lines[0] == "cloud cannot run this:"
    assert len(lines) == 22 and lines[-1] == "and 3 more"


# --- the rest


@pytest.mark.parametrize(
    ("class_type", "name", "is_file"),
    [
        ("LoadImage", "image", True),
        ("LoadOutput", "image", True),
        ("LoadLatent", "latent", True),
        ("LoraLoader", "lora_name", False),
    ],
)
def test_which_inputs_name_files_of_the_user(beside, classes, class_type, name, is_file):
    declared = classes.inputs(class_type, {})[name]
    assert beside("class_inputs").names_file(class_type, name, declared) is is_file


@pytest.mark.parametrize("kind", ["WEBCAM", "AUDIO_RECORD"])
def test_what_the_page_has_recorded_is_a_file_of_the_user(beside, kind):
    module = beside("class_inputs")
    assert module.names_file("Recorder", "audio", module.ClassInput.read((kind, {}), "required"))
    assert not module.names_file("Any", "audio", module.ClassInput.read(("STRING",), "required"))


def test_exceptions_in_words(preflight):
    words = preflight.in_words
    oom = "Allocation on device 0 failed\n\nTIPS: smaller"
    assert words("torch.OutOfMemoryError", oom, "cloud") == (
        "out of memory on cloud: Allocation on device 0 failed"
    )
    assert words("RuntimeError", "CUDA out of memory. Tried", "cloud").startswith(
        "out of memory on"
    )
    missing = "[Errno 2] No such file or directory: 'x'"
    assert words("FileNotFoundError", missing, "cloud") == f"a file is missing on cloud: {missing}"
    assert words("ValueError", "no\n", "cloud") == "no"


def test_previews_are_read(beside):
    read_preview = beside("previews").read_preview
    meta = {"node_id": "5.0.1", "display_node_id": "5", "prompt_id": "p", "image_type": "image/png"}
    text = json.dumps(meta).encode()
    new = struct.pack(">II", 4, len(text)) + text + b"png"
    assert read_preview(bytearray(new)) == {
        **{"node": "5", "prompt_id": "p", "kind": "image/png", "data": b"png"}
    }
    old = struct.pack(">II", 1, 2) + b"png"
    assert read_preview(old) == {
        **{"node": "", "prompt_id": "", "kind": "image/png", "data": b"png"}
    }
    assert read_preview(struct.pack(">II", 3, 1) + b"5text") is None
    assert read_preview(b"") is None


# --- inputs that grow ---------------------------------------------------------------------------


def reasons(preflight, classes, *nodes):
    prompt = {str(i): n for i, n in enumerate(nodes)}
    return [(r.kind, r.input, r.near) for r in preflight.look(prompt, classes)]


def test_the_parts_of_an_autogrow(preflight, classes):
    good = node("Batch", **{f"images.image{i}": ["0", 0] for i in range(3)})
    assert reasons(preflight, classes, good) == []
    good["inputs"].pop("images.image1")
    assert reasons(preflight, classes, good) == [("input", "images.image1", ())]
    good["inputs"].pop("images.image2")  # it need not be there
    assert len(reasons(preflight, classes, good)) == 1


def test_what_a_choice_brings(preflight, classes):
    small = node("Resize", input=["0", 0], mode="by size", **{"mode.width": 100})
    assert reasons(preflight, classes, small) == []
    small["inputs"]["mode.width"] = 600
    assert reasons(preflight, classes, small) == [("value", "mode.width", ())]
    small["inputs"].pop("mode.width")
    assert reasons(preflight, classes, small) == [("input", "mode.width", ())]
    small["inputs"] |= {"mode": "by model", "mode.model": "foo.safetensors"}
    ((kind, name, near),) = reasons(preflight, classes, small)
    assert (kind, name, near[0]) == ("choice", "mode.model", "foo_v2.safetensors")
    small["inputs"]["mode"] = "by sizes"
    assert reasons(preflight, classes, small) == [("choice", "mode", ("by size",))]


def test_what_a_slot_brings(preflight, classes):
    plain = node("Resize", input=["0", 0], mode="by size", **{"mode.width": 1})
    assert reasons(preflight, classes, plain) == []
    plain["inputs"]["slot"] = ["0", 0]
    assert reasons(preflight, classes, plain) == [("input", "slot.times", ())]
    plain["inputs"]["slot.times"] = 4
    assert reasons(preflight, classes, plain) == [("value", "slot.times", ())]


def test_separators_in_what_a_choice_brings(beside, classes):
    given = {"input": ["0", 0], "mode": "by model", "mode.model": "styles/anime.safetensors"}
    prompt = {"0": node("Resize") | {"inputs": given}}
    made = beside("separators").separators(prompt, classes)["0"]["inputs"]
    assert made == given | {"mode.model": "styles\\anime.safetensors"}


def test_an_input_by_its_name_alone(beside):
    find, names_file = beside("class_inputs").find, beside("class_inputs").names_file
    batch, grown = ({"required": CLASSES[c][0]} for c in ("Batch", "Resize"))
    assert find(batch, "images.image49").options["lazy"]
    assert find(batch, "images.image50") is find(batch, "images.x") is find(batch, "image0") is None
    assert find(grown, "input").kind == "IMAGE,MASK" and find(grown, "slot").kind == "IMAGE"
    assert find(grown, "mode").choices == ["by size", "by model"]
    assert find(grown, "mode.width").kind == "INT" and find(grown, "slot.times").kind == "INT"
    assert find(grown, "mode.masks.b").kind == "MASK" and find(grown, "mode.masks.c") is None
    assert names_file("Resize", "mode.picture", find(grown, "mode.picture"))
    assert not names_file("Resize", "mode.model", find(grown, "mode.model"))


@pytest.mark.parametrize(
    "declared",
    [
        *(None, 7, [], {"required": 7}, {"required": {"a": None, 7: 8, "b": ()}}),
        {"required": {"a": ("COMFY_AUTOGROW_V3",)}},
        {"required": {"a": ("COMFY_AUTOGROW_V3", {"template": {"input": 7, "max": "x"}})}},
        {"required": {"a": ("COMFY_AUTOGROW_V3", {"template": {"input": {"required": {"i": 1}}}})}},
        {"required": {"a": ("COMFY_DYNAMICCOMBO_V3", {"options": [1, {"key": "k", "inputs": 7}]})}},
        {"required": {"a": ("COMFY_DYNAMICSLOT_V3", {"inputs": [1]})}},
        {"required": {"a": ("COMFY_MATCHTYPE_V3", {"template": None})}},
    ],
)
def test_whatever_foreign_code_has_declared(beside, declared):
    module = beside("class_inputs")
    assert isinstance(module.expanded(declared, {"a": "k"}), dict)
    assert module.find(declared, "a.b") is None
