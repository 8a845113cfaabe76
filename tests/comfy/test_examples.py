"""The workflows that come with the pack: each loads, and zbus's own pair runs as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import workflows
from chains import node, run_both
from comfyui import ROOT

FOLDER = ROOT / "example_workflows"
PHOTO = ROOT / "tests" / "data" / "rocket.jpg"
EXAMPLES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_example_is_a_prompt(pair, path):
    info = pair.a.object_info()
    prompt = workflows.to_api(load(path), info)
    assert prompt
    for made in prompt.values():
        assert made["class_type"] in info
        needed = set(info[made["class_type"]]["input"].get("required", {}))
        assert needed <= set(made["inputs"]), made


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_example_has_a_picture(path):
    """ComfyUI's template browser shows the JPEG of the same name."""
    data = path.with_suffix(".jpg").read_bytes()
    assert data.startswith(b"\xff\xd8\xff")
    assert len(data) < 60_000


def test_there_are_examples_of_both_families():
    names = {path.stem for path in EXAMPLES}
    assert names == {"jumper_local", "jumper_remote", "zbus-send", "zbus-receive"}


def test_our_own_pair_runs(pair, addr):
    info = pair.a.object_info()
    send, receive = (
        workflows.to_api(load(FOLDER / f"{name}.json"), info)
        for name in ("zbus-send", "zbus-receive")
    )
    image = pair.a.put_input(PHOTO)
    for made in (*send.values(), *receive.values()):
        if "peer" in made["inputs"]:
            made["inputs"]["peer"] = made["inputs"]["peer"].replace("127.0.0.1:8282", addr)
        if made["class_type"] == "LoadImage":
            made["inputs"]["image"] = image
    source = only(send, "ZBusSend")["inputs"]["value"]
    target = only(receive, "PreviewImage")["inputs"]["images"]
    send["sent"] = node("TestDigest", value=source)
    receive["got"] = node("TestDigest", value=target)
    since = pair.b.events.mark()
    there, here = run_both(pair.b, receive, pair.a, send)
    assert pair.a.ui(here, "sent", "digest") == pair.b.ui(there, "got", "digest")
    assert len(pair.b.ui(there, name_of(receive, "PreviewImage"), "images")) > 0
    text = pair.b.events.wait_text("received", name_of(receive, "ZBusReceive"), since=since)
    assert text.startswith("received 3.1 MiB in ")


# --- details


def load(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def name_of(prompt: workflows.Api, class_type: str) -> str:
    (found,) = (i for i, made in prompt.items() if made["class_type"] == class_type)
    return found


def only(prompt: workflows.Api, class_type: str) -> dict[str, object]:
    return prompt[name_of(prompt, class_type)]
