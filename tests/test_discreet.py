"""Texts for another user, without the paths of this computer: `comfy_nodes.prompt.discreet`."""

from __future__ import annotations

import importlib

import pytest
from prompts import PACKAGE

discreet = importlib.import_module(f"{PACKAGE}.prompt.discreet")
preflight = importlib.import_module(f"{PACKAGE}.prompt.preflight")

FOLDERS = {
    "/home/bob smith": "~",
    "/home/bob smith/My ComfyUI": "ComfyUI",
    "/home/bob smith/My ComfyUI/input": "input",
    "/data": "user",
    "C:\\Users\\Bob Smith\\ComfyUI\\input": "input",
    "/": "root",
}
PROGRAMS = {
    "/home/bob smith/My ComfyUI": "ComfyUI",
    "/home/bob smith/My ComfyUI/custom_nodes": "custom_nodes",
    "/home/bob smith/venv/lib/python3.12/site-packages": "site-packages",
    "C:\\Users\\Bob Smith\\ComfyUI": "ComfyUI",
    "\\\\nas\\bob\\nodes": "custom_nodes",
}


def hide(text: str) -> str:
    return discreet.without_paths(text, FOLDERS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Invalid image file: /srv/bob/in/a.png", "Invalid image file: a.png"),
        ("no /srv/bob/in/a.png, /srv/bob/b.png", "no a.png, b.png"),
        (
            "[Errno 2] No such file or directory: '/home/bob smith/a b.png'",
            "[Errno 2] No such file or directory: 'a b.png'",
        ),
        (
            "'x': resolves outside of /home/bob smith/My ComfyUI/input",
            "'x': resolves outside of input",
        ),
        ("in /home/bob smith/My ComfyUI/models/a.pt.", "in a.pt."),
        ("(/home/bob smith)", "(~)"),
        ("/data and /database/bob", "user and bob"),
        (r"cannot open C:\Users\Bob Smith\ComfyUI\input\x.png", "cannot open x.png"),
        (r"cannot open 'C:\\Users\\Bob Smith\\ComfyUI\\input\\x y.png'", "cannot open 'x y.png'"),
        (r"cannot open D:\bob\x.png", "cannot open x.png"),
        (r"on \\nas\bob\x.png", "on x.png"),
        ("~/pictures/x.png is gone", "x.png is gone"),
        ('"/a/b/"', '"b"'),
    ],
)
def test_of_a_path_its_last_part_is_told(text: str, told: str) -> None:
    assert discreet.without_paths(text, FOLDERS) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            'File "/home/bob smith/My ComfyUI/custom_nodes/a pack/n.py", line 3, in f',
            'File "custom_nodes/a pack/n.py", line 3, in f',
        ),
        (
            'File "/home/bob smith/venv/lib/python3.12/site-packages/torch/a.py", line 3',
            'File "site-packages/torch/a.py", line 3',
        ),
        ("/home/bob smith/My ComfyUI/input/a/x.png is gone", "x.png is gone"),
        ("/home/bob smith/My ComfyUI/custom_nodes/p.nodes.Error", "custom_nodes/p.nodes.Error"),
        ('File "/home/bob smith/notes/n.py", line 3', 'File "n.py", line 3'),
        (
            r'File "C:\Users\Bob Smith\ComfyUI\custom_nodes\p\n.py", line 3',
            r'File "ComfyUI\custom_nodes\p\n.py", line 3',
        ),
        (r'File "c:/users/bob smith/comfyui\nodes.py", line 3', r'File "ComfyUI\nodes.py", line 3'),
        (r"'C:\\Users\\Bob Smith\\ComfyUI\\nodes.py'", r"'ComfyUI\\nodes.py'"),
        (r'File "\\nas\bob\nodes\p\n.py", line 3', r'File "custom_nodes\p\n.py", line 3'),
        ("see file:///home/bob/a.png or FILE:/C:/Users/Bob/b.png", "see a.png or b.png"),
    ],
)
def test_of_a_program_all_that_is_below_its_folder_is_told(text: str, told: str) -> None:
    assert discreet.without_paths(text, FOLDERS, PROGRAMS) == told


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ckpt_name: 'sd/xl\\a.safetensors' is not there",
        "width: Value 1/2 and 3 / 4, and/or image/png; 10:30",
        "see https://docs.example/a/b?c=d and http://h:8188/view",
        "Value not in list: sub/x.png not in ['a/b.png', './c', '../d']",
    ],
)
def test_what_is_no_path_of_a_computer_stays(text: str) -> None:
    assert discreet.without_paths(text, FOLDERS, PROGRAMS) == text


def test_a_refusal_tells_no_paths_of_the_other_user() -> None:
    class Classes:
        def inputs(self, *_: object) -> dict[str, object]:
            choices = ["/home/bob smith/a.pt", "C:\\bob\\a.pt", "sub/a.pt"]
            return {"name": preflight.ClassInput(choices, {}, "required")}

    prompt = {"1": {"class_type": "Load", "inputs": {"name": "a.pt", "folder": "x"}}}
    errors = [
        ("custom_validation_failed", "folder", "folder - no /home/bob smith/in/x"),
        ("value_not_in_list", "name", "name: 'a.pt' not in ['/home/bob smith/a.pt']"),
    ]
    for kind, name, details in errors:
        said = {"type": kind, "message": "m", "details": details}
        node = {"1": {"errors": [said | {"extra_info": {"input_name": name}}]}}
        (reason,) = preflight.from_host(prompt, None, node, Classes(), hide)
        assert "bob" not in str(reason.told()), reason
    assert reason.near == ("sub/a.pt",)
    whole = {"type": "x", "message": "failed", "details": "at /home/bob smith/x.py"}
    (reason,) = preflight.from_host(prompt, whole, {}, Classes(), hide)
    assert reason.text == "failed: at x.py"


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_text_of_nothing_but_separators_is_no_work(separator: str) -> None:
    # A node's words are as long as it likes: where each separator leads to a look at all that
    # follow, this would take many minutes.
    assert len(hide(separator * 300_000 + " at /home/bob smith/x.py")) < 300_020
    assert hide("at ///home//bob smith//x.py") == "at x.py"
