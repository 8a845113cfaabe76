"""The workflows that come with the pack: each loads, and those that need no model run as they are
(with the tests' own names, addresses and files in them)."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import workflows
from chains import node, run_both
from comfyui import ROOT, ComfyUI
from hosts import made_here
from paired import away, home_of
from testpack import values

FOLDER = ROOT / "example_workflows"
PHOTO = ROOT / "tests" / "data" / "rocket.jpg"
EXAMPLES = sorted(FOLDER.glob("*.json"))
OURS = {"zbus-run-part", "zbus-run-all-seeds", "zbus-render-farm"}
NETDISTS = {"netdist-simple", "netdist-chain", "netdist-saved-workflow"}
TITLE, LEAST = 30, 225  # pixels, as the page draws its nodes
NOTE = "MarkdownNote"  # the page's own: no server knows it


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


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_its_nodes_have_room(path):
    """The nodes of HTML ("Nodes 2.0") are no narrower than `LEAST`; and no title is covered."""
    if path.stem.startswith("jumper"):
        pytest.skip("they are ComfyUI-Jumper's, left as they are")
    places = [
        (x, y - TITLE, x + max(width, LEAST), y + height)
        for one in json.loads(path.read_text("utf-8"))["nodes"]
        for (x, y), (width, height) in [(one["pos"], one["size"])]
    ]
    for one, other in itertools.combinations(places, 2):
        apart = one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
        assert apart, (one, other)


def test_there_are_examples_of_all_families():
    names = {path.stem for path in EXAMPLES}
    pairs = {"jumper_local", "jumper_remote", "zbus-send", "zbus-receive"}
    assert names == pairs | OURS | NETDISTS


@pytest.mark.parametrize("name", sorted(OURS | NETDISTS))
def test_a_note_says_what_it_does(name):
    saved = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    (note,) = (made for made in saved["nodes"] if made["type"] == NOTE)
    assert len(note["widgets_values"][0]) > 100


def test_a_part_runs_on_the_other(pair):
    prompt = api(pair.a, "zbus-run-part")
    only(prompt, "LoadImage")["inputs"]["image"] = pair.a.put_input(PHOTO, "only-here.jpg")
    run = only(prompt, "ZBusRun")["inputs"]
    assert run["peer"] == "any free"
    run["peer"] = pair.b.peer
    scaled, inverted = name_of(prompt, "ImageScale"), name_of(prompt, "ImageInvert")
    prompt["got"] = node("TestDigest", value=[name_of(prompt, "ZBusRun"), 0])
    since = pair.a.events.mark()
    entry = succeeded(pair.a, prompt)
    assert report(entry, prompt).startswith(f"{pair.b.peer}: done in ")
    ran = {event.data.get("node") for event in pair.a.events.all("executing", since)}
    assert name_of(prompt, "ZBusHere") in ran
    assert not ran & {scaled, inverted}
    here = {i: prompt[i] for i in prompt if prompt[i]["class_type"] in ("LoadImage", "ZBusHere")}
    here |= {i: prompt[i] for i in (scaled, inverted)}
    here["got"] = node("TestDigest", value=[inverted, 0])
    expected = succeeded(pair.a, here)
    assert pair.a.ui(entry, "got", "digest") == pair.a.ui(expected, "got", "digest")


def test_all_make_one_with_different_seeds(trio):
    prompt = api(trio.a, "zbus-run-all-seeds")
    vary, run = only(prompt, "ZBusVary")["inputs"], name_of(prompt, "ZBusRun")
    prompt["got"] = node("TestDigest", value=[run, 0])
    entry = succeeded(trio.a, prompt)
    who = [line.partition(":")[0] for line in report(entry, prompt).splitlines()]
    assert who == ["this computer", *sorted((trio.b.peer, trio.c.peer))]
    colours = [vary["seed"] + k * vary["step"] for k in range(3)]
    assert trio.a.ui(entry, "got", "digest") == values.digest(torch.cat([*map(plain, colours)]))
    assert len(shown(entry, prompt)) == 3


def test_the_farm_makes_every_prompt_on_every_other_machine(trio):
    prompt = api(trio.a, "zbus-render-farm")
    vary, run = only(prompt, "ZBusVary")["inputs"], only(prompt, "ZBusRun")["inputs"]
    assert run["peer"] == "all"
    prompt["got"] = node("TestDigest", value=[name_of(prompt, "ZBusRun"), 0])
    entry = succeeded(trio.a, prompt)
    colours = [vary["seed"] + k * vary["step"] for k in range(2)]
    each = [torch.cat((plain(colour), 1 - plain(colour))) for colour in colours]
    assert trio.a.ui(entry, "got", "digest") == values.digest(torch.cat(each))
    saved = entry["outputs"][name_of(prompt, "SaveImage")]["images"]
    assert [image["filename"][:5] for image in saved] == ["farm_"] * 4


def test_the_farm_does_without_a_machine_that_fails(trio):
    prompt = api(trio.a, "zbus-render-farm")
    with away(home_of(trio.a), "127.0.0.1:1") as absent:
        only(prompt, "ZBusRun")["inputs"]["peer"] = f"{trio.b.peer},{absent}"
        entry = succeeded(trio.a, prompt)
    done, failed = report(entry, prompt).splitlines()
    assert done.startswith(f"{trio.b.peer}: done in ")
    assert failed.startswith(f"failed: {absent} at 127.0.0.1:1, connecting: ")
    assert len(entry["outputs"][name_of(prompt, "SaveImage")]["images"]) == 2


@pytest.mark.parametrize("how", ["url", "bare", "name"])
def test_netdists_simple_form(pair, how):
    url = f"{pair.b.url}/"
    where = {"url": url, "bare": url.removeprefix("http://"), "name": pair.b.peer}
    prompt = api(pair.a, "netdist-simple")
    queue = only(prompt, "RemoteQueueSimple")["inputs"]
    queue |= {"remote_url": where[how], "batch_local": 2, "seed": 1000}
    prompt["got"] = node("TestDigest", value=[name_of(prompt, "CombineImageBatch"), 0])
    entry = succeeded(pair.a, prompt)
    expected = torch.cat((plain(1000), plain(1000), plain(1002)))
    assert pair.a.ui(entry, "got", "digest") == values.digest(expected)
    assert len(shown(entry, prompt)) == 3


def test_netdists_chain(trio):
    prompt = api(trio.a, "netdist-chain")
    only(prompt, "RemoteChainStart")["inputs"]["seed"] = 1000
    workers = [made["inputs"] for made in prompt.values() if "remote_url" in made["inputs"]]
    for worker, comfyui in zip(workers, (trio.b, trio.c), strict=True):
        worker["remote_url"] = f"{comfyui.url}/"
    last = only(prompt, "PreviewImage")["inputs"]["images"]
    prompt["got"] = node("TestDigest", value=last)
    entry = succeeded(trio.a, prompt)
    expected = torch.cat([plain(1000 + k) for k in range(3)])
    assert trio.a.ui(entry, "got", "digest") == values.digest(expected)
    assert len(shown(entry, prompt)) == 3


def test_netdists_saved_workflow(pair):
    saved = {
        "1": node("EmptyImage", width=512, height=512, batch_size=1, color=4242),
        "2": node("SaveImage", images=["1", 0], filename_prefix="saved-there"),
    }
    name = pair.a.put_input(json.dumps(saved).encode(), "example-of-saved.json")
    prompt = api(pair.a, "netdist-saved-workflow")
    only(prompt, "LoadDiskWorkflowJSON")["inputs"]["workflow"] = name
    only(prompt, "RemoteQueueWorker")["inputs"]["remote_url"] = f"{pair.b.url}/"
    prompt["got"] = node("TestDigest", value=[name_of(prompt, "FetchRemote"), 0])
    entry = succeeded(pair.a, prompt)
    assert pair.a.ui(entry, "got", "digest") == values.digest(plain(4242))
    assert [*(pair.b.base / "output").glob("saved-there*.png")]  # outputs is "any"
    assert not [*(pair.a.base / "output").glob("saved-there*.png")]


def test_every_node_has_its_help_in_both_languages(pair):
    """The pages of ComfyUI's help panel, and the Japanese texts: of what there really is."""
    texts = json.loads((ROOT / "locales" / "ja" / "nodeDefs.json").read_text(encoding="utf-8"))
    info = pair.a.object_info()
    ours = {
        name: told
        for name, told in info.items()
        if told["python_module"] == "custom_nodes.zbus" and told["category"] != "zbus/internal"
    }
    assert len(ours) == 24
    assert texts.keys() == ours.keys()
    pages = ROOT / "web" / "docs"
    assert {path.stem for path in pages.glob("*.md")} == ours.keys()
    for name, told in ours.items():
        english = (pages / f"{name}.md").read_text(encoding="utf-8")
        japanese = (pages / name / "ja.md").read_text(encoding="utf-8")
        inputs = {i for group in ("required", "optional") for i in told["input"].get(group, {})}
        assert texts[name].get("inputs", {}).keys() == inputs, name
        assert {i for i in inputs if f"**{i}**" not in english} == set(), name
        assert {i for i in inputs if f"**{i}**" not in japanese} == set(), name
        slots = {int(slot) for slot in texts[name].get("outputs", {})}
        assert slots <= set(range(len(told["output"]))), name


def test_the_documents_list_every_node_with_its_inputs(pair):
    info = pair.a.object_info()
    ours = {
        told["display_name"] or told["name"]: told
        for told in info.values()
        if told["python_module"] == "custom_nodes.zbus" and told["category"] != "zbus/internal"
    }
    text = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.partition("## Codecs")[0].splitlines()]
    rows = [row for row in rows if len(row) == 3 and row[0].strip() not in ("node", "---")]
    told = {name.strip(): cells for cells in rows for name in names(cells[0])}
    assert told.keys() == ours.keys()
    for name, (first, inputs, _) in told.items():
        if "," in first or not inputs.strip():
            continue  # several in one row, whose inputs are told in words
        wanted = ours[name]["input"]
        wanted = [*wanted.get("required", {}), *wanted.get("optional", {})]
        given = re.sub(r" \(optional\)| \[.*?\]", "", inputs).split(", ")
        assert [one.strip() for one in given] == wanted, name
        node_id = re.search(r"`(\w+)`", first)
        assert node_id is None or node_id[1] == ours[name]["name"]
    kinds = ours["Receive from Peer"]["input"]["required"]["expect"]
    choices = kinds[1]["options"] if kinds[0] == "COMBO" else kinds[0]
    assert f"({', '.join(choices)})" in " ".join(text.split())


def test_our_own_pair_runs(pair, addr):
    send, receive = api(pair.a, "zbus-send"), api(pair.a, "zbus-receive")
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
    size = 3.1 if made_here(torch.zeros(1)).dtype == torch.float32 else 1.6
    assert text.startswith(f"received {size} MiB in ")


# --- details


def names(cell: str) -> list[str]:
    """The display names in the first cell of a row."""
    return re.sub(r" \(`\w+`\)", "", cell).split(", ")


def load(path: Path) -> dict[str, Any]:
    """A workflow as the page saves it, without its notes."""
    saved = dict(json.loads(path.read_text(encoding="utf-8")))
    return saved | {"nodes": [made for made in saved["nodes"] if made["type"] != NOTE]}


def api(comfyui: ComfyUI, name: str) -> workflows.Api:
    return workflows.to_api(load(FOLDER / f"{name}.json"), comfyui.object_info())


def succeeded(comfyui: ComfyUI, prompt: workflows.Api) -> dict[str, Any]:
    entry = comfyui.run(prompt)
    assert comfyui.outcome(entry) == "success", comfyui.errors(entry)
    return entry


def report(entry: dict[str, Any], prompt: workflows.Api) -> str:
    return "\n".join(entry["outputs"][name_of(prompt, "PreviewAny")]["text"])


def shown(entry: dict[str, Any], prompt: workflows.Api) -> list[Any]:
    return list(entry["outputs"][name_of(prompt, "PreviewImage")]["images"])


def plain(colour: int) -> torch.Tensor:
    """What the examples' EmptyImage makes of a colour."""
    shades = [((colour >> shift) & 0xFF) / 0xFF for shift in (16, 8, 0)]
    return made_here(torch.tensor(shades)).expand(1, 512, 512, 3)


def name_of(prompt: workflows.Api, class_type: str) -> str:
    (found,) = (i for i, made in prompt.items() if made["class_type"] == class_type)
    return found


def only(prompt: workflows.Api, class_type: str) -> dict[str, Any]:
    return prompt[name_of(prompt, class_type)]
