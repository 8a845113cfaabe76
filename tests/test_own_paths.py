"""Nodes that are given a path of this computer: `comfy_nodes.prompt.own_paths`."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from prompts import PACKAGE, cutting, node

own_paths = importlib.import_module(f"{PACKAGE}.prompt.own_paths")
class_inputs = importlib.import_module(f"{PACKAGE}.prompt.class_inputs")

HERE = {"/home/bob/set", "/home/bob/film.mp4", "C:\\sets\\a"}
GIVES = {
    "VHS_LoadVideoPath": ["IMAGE", "INT", "AUDIO", "VHS_VIDEOINFO"],
    "LoadFolder": ["IMAGE", "MASK", "INT", "STRING"],
    "LoadLoraPath": ["MODEL"],
    "LoadCheckpointPath": ["MODEL", "CLIP", "VAE"],
    "LoadAny": ["*"],
    "Text": ["STRING"],
    "Scale": ["IMAGE"],
    "SaveTo": ["IMAGE"],
}


class Classes:
    def is_file_input(self, class_type: str, name: str) -> bool:
        return (class_type, name) == ("LoadImage", "image")

    def is_path_input(self, class_type: str, name: str) -> bool:
        return (class_type, name) == ("VHS_LoadVideoPath", "video")

    def accepted(self, class_type: str, name: str) -> str:
        return "COMBO" if name == "choice" else "STRING" if class_type in GIVES else ""

    def outputs(self, class_type: str) -> list[str]:
        return GIVES.get(class_type, [])

    def is_output(self, class_type: str) -> bool:
        return class_type == "SaveTo"

    def is_here(self, path: str) -> bool:
        return path in HERE


def attached(made: dict[str, Any], /, **more: Any) -> bool:
    prompt = {"1": made, "text": node("PrimitiveString", value="/home/bob/set"), **more}
    found = own_paths.attached(prompt, Classes())
    assert found <= {"1"}
    return bool(found)


@pytest.mark.parametrize(
    ("video", "is_here"),
    [
        ("/home/bob/film.mp4", True),
        (" /home/bob/film.mp4 ", True),
        ("input/film.mp4", True),  # of a folder that ComfyUI was started in
        (["text", 0], True),
        ("/mnt/there/film.mp4", False),  # only the other can have it
        ("D:\\film.mp4", False),
        ("https://films.example/a.mp4", False),
        ("http://127.0.0.1:8000/a.mp4", True),
        ("", False),
        (None, False),
        (["made", 0], False),  # the part may have made it
    ],
)
def test_a_declared_path_is_this_computers(video: Any, is_here: bool) -> None:
    made = node("VHS_LoadVideoPath", video=video, vae=["vae", 0])
    assert attached(made, made=node("Made"), vae=node("VAELoader")) is is_here
    is_elsewhere = own_paths.is_elsewhere("VHS_LoadVideoPath", "video", video, Classes())
    assert is_elsewhere is (video in ("/mnt/there/film.mp4", "D:\\film.mp4"))
    assert not own_paths.is_elsewhere("LoadFolder", "folder", video, Classes())


@pytest.mark.parametrize(
    ("made", "is_here"),
    [
        (node("LoadFolder", folder="/home/bob/set"), True),
        (node("LoadFolder", folder="C:\\sets\\a"), True),
        (node("LoadFolder", folder=["text", 0], cap=["number", 0]), True),
        (node("LoadFolder", folder="/home/bob/none"), False),
        (node("LoadFolder", folder="set"), False),
        (node("LoadFolder", choice="/home/bob/set"), False),
        (node("LoadFolder", folder="/home/bob/set", skip=["made", 0]), False),
        (node("LoadCheckpointPath", path="/home/bob/set"), False),
        (node("LoadAny", path="/home/bob/set"), False),
        (node("Scale", image=["made", 0], note="/home/bob/set"), False),
        (node("SaveTo", folder="/home/bob/set"), False),
        (node("NotInstalled", folder="/home/bob/set"), False),
        (node("LoadFolder", folder="/home/bob/set\nand more"), False),
        (node("LoadImage", image="x.png"), True),
    ],
)
def test_any_other_path_that_is_there_is_a_sources(made: Any, is_here: bool) -> None:
    more = {"made": node("Made"), "number": node("PrimitiveInt", value=3)}
    assert attached(made, **more) is is_here


def test_what_runs_elsewhere_with_a_path_of_this_computer_is_told() -> None:
    prompt = {
        "load": node("LoadFolder", folder="/home/bob/set"),
        "lora": node("LoadLoraPath", model=["m", 0], path="/home/bob/film.mp4"),
        "m": node("Made"),
        "scale": node("Scale", image=["load", 0], note="/home/bob/none", model=["lora", 0]),
        "run": node("ZBusRun", value=["scale", 0]),
    }
    part = cutting.cut(prompt, ("scale", 0), attach=own_paths.attached(prompt, Classes()))
    assert "load.0" in part.boundaries
    (told,) = own_paths.left(part.prompt, Classes())
    assert told.startswith('LoadLoraPath #lora is given "/home/bob/film.mp4", a path of this')
    long = node("LoadLoraPath", path="/home/bob/set")
    assert own_paths.left({"1": long | {"inputs": {"path": "/" + 5000 * "x"}}}, Classes()) == []


@pytest.mark.parametrize(
    ("class_type", "name", "info", "is_path"),
    [
        ("VHS_LoadVideoPath", "video", ("STRING", {"vhs_path_extensions": ["mp4"]}), True),
        ("VHS_LoadImagesPath", "directory", ("STRING", {"vhs_path_extensions": []}), True),
        ("LoadImagesFromFolderKJ", "folder", ("STRING", {"default": ""}), True),
        ("LoadImagesFromFolderKJ", "image_load_cap", ("INT", {}), False),
        ("CLIPTextEncode", "text", ("STRING", {"multiline": True}), False),
    ],
)
def test_how_a_path_is_declared(class_type: str, name: str, info: Any, is_path: bool) -> None:
    declared = class_inputs.ClassInput.read(info, "required")
    assert class_inputs.names_path(class_type, name, declared) is is_path
