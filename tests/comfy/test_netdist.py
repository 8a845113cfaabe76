"""ComfyUI_NetDist's queue and fetch nodes on real ComfyUIs, with prompts as its users have them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import workflows
from chains import Node, Prompt, node
from children import slowness, until
from comfyui import ROOT, ComfyUI, free_port, start_all
from hosts import made_here
from paired import home_of, paired
from PIL import Image
from testpack import values

SEED = 7
URL = {"default": "http://127.0.0.1:8288/"}
TRIGGER = (["on_change", "always"], {})
ENABLED = (["true", "false", "remote"], {"default": "true"})
SEEDS = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1})
BATCH = ("INT", {"default": 1, "min": 1, "max": 8})
OVERRIDE = ("INT", {"default": 0, "min": 0, "max": 8})
# id -> category, inputs in order with what matters of their options, outputs (type, name)
NODES: dict[str, tuple[str, dict[str, Any], list[tuple[str, str]]]] = {
    "RemoteQueueSimple": (
        "remote",
        {
            "remote_url": ("STRING", URL),
            "batch_local": BATCH,
            "batch_remote": BATCH,
            "trigger": TRIGGER,
            "enabled": ENABLED,
            "seed": SEEDS,
        },
        [("INT", "seed"), ("INT", "batch"), ("REMINFO", "remote_info")],
    ),
    "FetchRemote": (
        "remote",
        {"final_image": ("IMAGE", {}), "remote_info": ("REMINFO,REMOTE", {})},
        [("IMAGE", "IMAGE")],
    ),
    "RemoteChainStart": (
        "remote/advanced",
        {"workflow": ("JSON", {}), "trigger": TRIGGER, "batch": BATCH, "seed": SEEDS},
        [("REMCHAIN", "remote_chain")],
    ),
    "RemoteQueueWorker": (
        "remote/advanced",
        {
            "remote_chain": ("REMCHAIN", {}),
            "remote_url": ("STRING", URL),
            "batch_override": OVERRIDE,
            "enabled": ENABLED,
            "outputs": (["final_image", "any"], {"default": "final_image"}),
        },
        [("REMCHAIN", "remote_chain"), ("REMINFO", "remote_info")],
    ),
    "RemoteChainEnd": (
        "remote/advanced",
        {"remote_chain": ("REMCHAIN", {})},
        [("INT", "seed"), ("INT", "batch")],
    ),
    # Its widgets are in the order of 2023; the chain of the rewrite is a socket.
    "QueueRemote": (
        "remote",
        {
            "remote_url": ("STRING", {"default": "http://127.0.0.1:8188/"}),
            "seed": SEEDS,
            "batch_override": OVERRIDE,
            "system": (["windows", "posix"], {}),
            "enabled": ENABLED,
            "node_id": ("INT", {"default": 1, "min": 1, "max": 64}),
            "remote_chain": ("REMCHAIN", {}),
        },
        [("*", "seed"), ("*", "remote_info")],
    ),
}


# --- prompts ------------------------------------------------------------------------------------


def queue(url: str, **changes: Any) -> Node:
    inputs = {"batch_local": 2, "batch_remote": 3, "trigger": "on_change", "enabled": "true"}
    return node("RemoteQueueSimple", **{"remote_url": url, **inputs, "seed": SEED, **changes})


def noise(seed: Any, batch: Any = 1, height: int = 64) -> Node:
    return node("TestNoise", batch=batch, height=height, width=64, channels=3, seed=seed)


def simple(url: str, *, height: int = 64, **changes: Any) -> Prompt:
    """NetDist's own example; noise is in place of the sampling, and digests show all images."""
    return {
        "1": queue(url, **changes),
        "2": noise(["1", 0], ["1", 1], height),
        "3": node("FetchRemote", final_image=["2", 0], remote_info=["1", 2]),
        "4": node("CombineImageBatch", images_a=["2", 0], images_b=["3", 0]),
        "5": node("PreviewImage", images=["4", 0]),
        "6": node("SaveImage", images=["2", 0], filename_prefix="local"),
        "7": node("SaveImage", images=["3", 0], filename_prefix="fetched"),
        "here": node("TestDigest", value=["2", 0]),
        "there": node("TestDigest", value=["3", 0]),
        "both": node("TestDigest", value=["4", 0]),
    }


def slow_there(url: str, **changes: Any) -> Prompt:
    """Takes no time here, where the seed is 0, and `batch_local` seconds there."""
    return {
        "1": queue(url, seed=0, **{"batch_local": 8, **changes}),
        "any": node("TestSlow", value=["1", 0], seconds=0.0),
        "2": noise(["1", 0]),
        "slow": node("TestSlow", value=["2", 0], seconds=["any", 0]),
        "3": node("FetchRemote", final_image=["slow", 0], remote_info=["1", 2]),
        "there": node("TestDigest", value=["3", 0]),
        "here": node("TestDigest", value=["slow", 0]),
    }


def chain(*workers: Node, batch: int = 2, workflow: Node | None = None, **image: Any) -> Prompt:
    """NetDist's advanced example: these workers in a row, and a fetch node for each."""
    prompt = {
        "json": workflow or node("LoadCurrentWorkflowJSON"),
        "start": node(
            "RemoteChainStart", workflow=["json", 0], trigger="on_change", batch=batch, seed=10
        ),
    }
    before = "start"
    for number, worker in enumerate(workers, 1):
        name = f"worker {number}"
        prompt[name] = with_chain(worker, before)
        info = [name, 1]
        prompt[f"fetch {number}"] = node("FetchRemote", final_image=["image", 0], remote_info=info)
        prompt[f"there {number}"] = node("TestDigest", value=[f"fetch {number}", 0])
        before = name
    prompt["end"] = node("RemoteChainEnd", remote_chain=[before, 0])
    prompt["image"] = noise(["end", 0], ["end", 1], **image)
    prompt["here"] = node("TestDigest", value=["image", 0])
    return prompt


def with_chain(made: Node, before: str) -> Node:
    return {**made, "inputs": {"remote_chain": [before, 0], **made["inputs"]}}


def worker(url: str, batch_override: int = 0, **changes: Any) -> Node:
    inputs = {"enabled": "true", "outputs": "final_image", **changes}
    return node("RemoteQueueWorker", remote_url=url, batch_override=batch_override, **inputs)


def picture(seed: int, batch: int = 1, height: int = 64) -> str:
    """The digest of what `noise` makes."""
    return values.digest(values.noise((batch, height, 64, 3), seed))


def with_ids(prompt: Prompt, rename: Callable[[str], str]) -> Prompt:
    """The same prompt with other node ids."""

    def renamed(value: Any) -> Any:
        is_link = isinstance(value, list) and len(value) == 2
        return [rename(value[0]), value[1]] if is_link else value

    return {
        rename(i): {**n, "inputs": {name: renamed(v) for name, v in n["inputs"].items()}}
        for i, n in prompt.items()
    }


# --- what came of them --------------------------------------------------------------------------


def run(comfyui: ComfyUI, prompt: Prompt) -> dict[str, Any]:
    """The history entry of a prompt that has run well."""
    entry = comfyui.run(prompt)
    assert comfyui.outcome(entry) == "success", comfyui.errors(entry)
    return entry


def digest(entry: dict[str, Any], name: str) -> str:
    return str(ComfyUI.ui(entry, name, "digest"))


def fails(comfyui: ComfyUI, prompt: Prompt) -> str:
    """The errors of a prompt that has failed."""
    entry = comfyui.run(prompt)
    assert comfyui.outcome(entry) == "error"
    return comfyui.errors(entry)


def cached(entry: dict[str, Any]) -> set[str]:
    """The nodes that did not run again."""
    said = [data for kind, data in entry["status"]["messages"] if kind == "execution_cached"]
    return {str(i) for data in said for i in data["nodes"]}


def files(comfyui: ComfyUI) -> dict[str, tuple[int, int]]:
    """What lies on its disk: path -> size and time."""
    found = [p for name in ("input", "output", "temp") for p in (comfyui.base / name).rglob("*")]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


def executed(comfyui: ComfyUI) -> int:
    """How many prompts it has executed, jobs among them, before this one of ours."""
    prompt = {
        "1": node("TestSlow", value="x", seconds=0.2),
        "2": node("PreviewAny", source=["1", 0]),
    }
    prompt_id = comfyui.prompt(prompt)
    comfyui.wait_running(prompt_id)  # so that the log has all that was before
    count = comfyui.log().count("Prompt executed in")
    comfyui.wait(prompt_id)
    return count


@contextmanager
def executing(comfyui: ComfyUI, count: int) -> Iterator[None]:
    """Meanwhile it executes so many prompts."""
    before = executed(comfyui) + 1
    yield
    assert executed(comfyui) - before == count


@contextmanager
def without_a_trace(comfyui: ComfyUI) -> Iterator[None]:
    """What happens meanwhile leaves nothing on its disk or in its history."""
    before, history = files(comfyui), set(comfyui.get("/history"))
    yield
    assert files(comfyui) == before
    until(lambda: set(comfyui.get("/history")) == history)


@pytest.fixture(scope="module")
def without(comfyui_dir: Path) -> Iterator[tuple[ComfyUI, ComfyUI]]:
    """A ComfyUI without zbus, and one that has zbus but not the test nodes."""
    bare = ComfyUI(comfyui_dir, name="bare", packs={})
    plain = ComfyUI(comfyui_dir, name="plain", packs={"zbus": ROOT})
    start_all(bare, plain)
    yield bare, plain
    bare.kill()
    plain.kill()


# --- the nodes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NODES)
def test_a_node_has_exactly_netdists_inputs_and_outputs(pair, name):
    category, inputs, outputs = NODES[name]
    info = pair.a.object_info(name)[name]
    assert info["category"] == category
    assert list(zip(info["output"], info["output_name"], strict=True)) == outputs
    shown = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert list(shown) == list(inputs)
    for key, (kind, options) in inputs.items():
        given = shown[key]
        if isinstance(kind, list):
            assert (given[0] if isinstance(given[0], list) else given[1]["options"]) == kind
        else:
            assert given[0] == kind
        told = given[1] if len(given) > 1 else {}
        first = {"default": kind[0]} if isinstance(kind, list) else {}
        facts = {k: v for k, v in told.items() if k in ("default", "min", "max")}
        assert first | facts == first | options
    assert info.get("deprecated", False) == (name == "QueueRemote")


# As the page saved them; "fixed" is of a widget that the page adds to every seed.
SAVED = {
    "RemoteQueueSimple": ["http://a:1/", 2, 3, "always", "false", 4, "fixed"],
    "RemoteChainStart": ["always", 2, 3, "fixed"],
    "RemoteQueueWorker": ["http://a:1/", 2, "false", "any"],
    "QueueRemote": ["http://a:1/", 4, "fixed", 5, "posix", "false", 6],
}


@pytest.mark.parametrize("name", SAVED)
def test_the_widgets_of_a_saved_workflow_go_where_they_belong(pair, name):
    saved = {"nodes": [{"id": 1, "type": name, "widgets_values": SAVED[name]}], "links": []}
    widgets = [k for k, (kind, _) in NODES[name][1].items() if kind not in ("REMCHAIN", "JSON")]
    values_ = [value for value in SAVED[name] if value != "fixed"]
    made = workflows.to_api(saved, pair.a.object_info())
    assert made["1"]["inputs"] == dict(zip(widgets, values_, strict=True))


# --- single -------------------------------------------------------------------------------------


def test_the_remote_makes_other_seeds_and_leaves_no_trace(pair):
    a, b = pair
    with without_a_trace(b):
        entry = run(a, simple(b.url + "/"))
    assert digest(entry, "here") == picture(SEED, 2)
    assert digest(entry, "there") == picture(SEED + 2, 3)
    parts = values.noise((2, 64, 64, 3), SEED), values.noise((3, 64, 64, 3), SEED + 2)
    assert digest(entry, "both") == values.digest(torch.cat(parts))
    assert len(entry["outputs"]["5"]["images"]) == 5
    assert [len(list((a.base / "output").glob(f"{n}*"))) for n in ("local", "fetched")] == [2, 3]


@pytest.mark.parametrize(
    "enabled, seed, batch", [("false", SEED, 2), ("remote", SEED + 2, 3)], ids=["false", "remote"]
)
def test_one_that_is_not_enabled_passes_through(pair, enabled, seed, batch):
    nobody = f"http://127.0.0.1:{free_port()}/"
    entry = run(pair.a, simple(nobody, enabled=enabled))
    assert digest(entry, "here") == digest(entry, "there") == picture(seed, batch)


@pytest.mark.usefixtures("keeps_results")
def test_on_change_runs_again_only_for_a_change(pair):
    a, b = pair
    run(a, simple(b.url, seed=100))
    with executing(b, 1):
        again = run(a, simple(b.url, seed=100))
        assert {"1", "2", "3", "4"} <= cached(again)
        other = run(a, simple(b.url, seed=101))
        assert not {"1", "2", "3", "4"} & cached(other)
        assert digest(other, "there") == picture(103, 3)


def test_always_runs_each_time(pair):
    a, b = pair
    with executing(b, 2):
        for _ in range(2):
            entry = run(a, simple(b.url, seed=200, trigger="always"))
            assert not {"1", "3"} & cached(entry)
            assert digest(entry, "there") == picture(202, 3)


def test_several_fetch_nodes_of_one_queue_node(pair):
    a, b = pair
    prompt = simple(b.url, seed=300) | {
        "20": noise(["1", 0], ["1", 1], 32),
        "30": node("FetchRemote", final_image=["20", 0], remote_info=["1", 2]),
        "there too": node("TestDigest", value=["30", 0]),
    }
    with executing(b, 1):
        entry = run(a, prompt)
        assert digest(entry, "there") == picture(302, 3)
        assert digest(entry, "there too") == picture(302, 3, 32)


def test_two_remotes_work_at_the_same_time(trio):
    """Two queue nodes in a row, as NetDist's users scale it up: the seeds may be equal."""
    a, b, c = trio
    prompt = {
        "1": queue(b.url, seed=0, batch_local=2),
        "11": queue(c.url, seed=["1", 0], batch_local=3, batch_remote=1),
        "any": node("TestSlow", value=["11", 0], seconds=0.0),
        "2": noise(["11", 0], ["11", 1]),
        "slow": node("TestSlow", value=["2", 0], seconds=["any", 0]),
        "3": node("FetchRemote", final_image=["slow", 0], remote_info=["1", 2]),
        "13": node("FetchRemote", final_image=["slow", 0], remote_info=["11", 2]),
        "there": node("TestDigest", value=["3", 0]),
        "there too": node("TestDigest", value=["13", 0]),
    }
    prompt_id = a.prompt(prompt)
    until(lambda: b.queue()[0] and c.queue()[0])  # 2 s there, and 3 s there
    entry = a.wait(prompt_id)
    assert a.outcome(entry) == "success", a.errors(entry)
    assert digest(entry, "there") == picture(2, 3)
    assert digest(entry, "there too") == picture(3, 1)


@pytest.mark.parametrize(
    "form", ["{}", "{}/", " {}// ", "HTTP://LOCALHOST:{port}/", "localhost:{port}"]
)
def test_ways_to_write_a_url(pair, form):
    a, b = pair
    entry = run(a, simple(form.format(b.url, port=b.port), seed=400 + len(form)))
    assert digest(entry, "there") == picture(402 + len(form), 3)


def test_a_url_that_comes_over_a_link(pair):
    a, b = pair
    prompt = simple(["url", 0], seed=450) | {"url": node("PrimitiveString", value=b.url + "/")}
    assert digest(run(a, prompt), "there") == picture(452, 3)


def test_a_url_of_a_chain_may_be_written_otherwise_in_the_saved_workflow(pair):
    a, b = pair
    saved = chain(worker(f"HTTP://LOCALHOST:{b.port}"), batch=1)
    entry = run(a, from_disk(a, saved, f"http://localhost:{b.port}/"))
    assert digest(entry, "there") == picture(11)


# --- a change between queue and fetch -----------------------------------------------------------


@pytest.mark.usefixtures("keeps_results")
def test_a_cached_queue_node_brings_new_images_after_a_change(pair):
    """NetDist returned the old ones."""
    a, b = pair
    run(a, simple(b.url, seed=500))
    with executing(b, 2):
        changed = run(a, simple(b.url, seed=500, height=128))
        assert "1" in cached(changed)
        assert digest(changed, "here") == picture(500, 2, 128)
        assert digest(changed, "there") == picture(502, 3, 128)
        back = run(a, simple(b.url, seed=500))
        assert digest(back, "there") == picture(502, 3)


@pytest.mark.usefixtures("keeps_results")
@pytest.mark.parametrize("name", ["", "photo.png"], ids=["", "with a file from here"])
def test_after_a_change_two_fetch_nodes_share_one_new_job(pair, name):
    a, b = pair
    seed = 600 + len(name)

    def prompt(height):
        made = simple(b.url, seed=seed, height=height) | {
            "20": noise(["1", 0], 1, 2 * height),
            "21": node("TestStamp", value=["20", 0]),
            "22": node("TestSlow", value=["21", 0], seconds=0.3),  # the one comes later
            "30": node("FetchRemote", final_image=["22", 0], remote_info=["1", 2]),
            "there too": node("TestDigest", value=["30", 0]),
        }
        if name:
            image_file(a, name)
            made["40"] = node("LoadImage", image=name)
            made["21"]["inputs"]["after"] = ["40", 0]
        return made

    run(a, prompt(32))
    with executing(b, 1):
        entry = run(a, prompt(48))
        assert "1" in cached(entry)
        assert digest(entry, "there") == picture(seed + 2, 3, 48)
        assert digest(entry, "there too") == picture(seed + 2, 1, 96)


# --- chain --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("keeps_results")
@pytest.mark.parametrize(
    "overrides, there",
    [
        ((0, 0), (picture(12, 2), picture(13, 2))),
        ((3, 1), (picture(12, 3), picture(15, 1))),
    ],
    ids=["as it is", "batch_override"],
)
def test_a_chain_of_workers(trio, overrides, there):
    a, b, c = trio
    urls = (b.url, c.url + "/")
    prompt = chain(*(worker(url, over) for url, over in zip(urls, overrides, strict=True)))
    with without_a_trace(b), without_a_trace(c):
        entry = run(a, prompt)
    assert digest(entry, "here") == picture(10, 2)
    assert (digest(entry, "there 1"), digest(entry, "there 2")) == there
    assert {"start", "worker 1", "worker 2", "fetch 1", "fetch 2"} <= cached(run(a, prompt))


def test_a_worker_that_is_not_enabled_is_passed_over_and_counts(trio):
    a, _, c = trio
    nobody = f"http://127.0.0.1:{free_port()}"
    entry = run(a, chain(worker(nobody, 4, enabled="false"), worker(c.url), height=32))
    assert digest(entry, "there 1") == digest(entry, "here") == picture(10, 2, 32)
    assert digest(entry, "there 2") == picture(16, 2, 32)


def test_any_runs_every_output_node_there(pair):
    a, b = pair
    prompt = chain(worker(b.url, outputs="any"), height=16) | {
        "save": node("SaveImage", images=["image", 0], filename_prefix="there"),
        "late": node("SaveImage", images=["fetch 1", 0], filename_prefix="only-here"),
    }
    entry = run(a, prompt)
    assert digest(entry, "there 1") == picture(12, 2, 16)
    saved = until(lambda: list((b.base / "output").glob("there*")))
    assert len(saved) == 2
    assert not list((b.base / "output").glob("only-here*"))


def from_disk(comfyui: ComfyUI, saved: Prompt, url: str, **more: Any) -> Prompt:
    """NetDist's example of a saved workflow, with its blank image as the trigger."""
    text = json.dumps(saved).encode()
    name = comfyui.put_input(text, f"saved-{abs(hash(text))}.json")
    return {
        "1": node("LoadDiskWorkflowJSON", workflow=name),
        "2": node("RemoteChainStart", workflow=["1", 0], trigger="always", batch=1, seed=0),
        "3": with_chain(worker(url, **more), "2"),
        "4": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "5": node("FetchRemote", final_image=["4", 0], remote_info=["3", 1]),
        "there": node("TestDigest", value=["5", 0]),
    }


def test_a_saved_workflow_without_netdist_gives_its_pictures(pair):
    a, b = pair
    saved = {
        "57:8": noise(3, 2),
        "9": node("SaveImage", images=["57:8", 0], filename_prefix="from-disk"),
    }
    entry = run(a, from_disk(a, saved, b.url, outputs="any"))
    assert digest(entry, "there") == picture(3, 2)
    assert len(list((b.base / "output").glob("from-disk*"))) == 2


def test_a_saved_workflow_with_netdists_nodes(trio):
    """The worker of that URL in it is the remote one; its ids are others."""
    a, b, c = trio
    saved = chain(worker(b.url), worker(c.url), height=24)
    with without_a_trace(c):
        entry = run(a, from_disk(a, saved, c.url))
    assert digest(entry, "there") == picture(13, 2, 24)


def test_a_saved_workflow_with_the_same_nodes_is_not_the_current_one(pair):
    a, b = pair
    name = "same-nodes.json"
    load = node("LoadDiskWorkflowJSON", workflow=name)
    saved = chain(worker(b.url), workflow=load, height=8)
    a.put_input(json.dumps(saved).encode(), name)
    entry = run(a, chain(worker(b.url), workflow=load, height=40))
    assert digest(entry, "here") == picture(10, 2, 40)
    assert digest(entry, "there 1") == picture(12, 2, 8)


def test_a_saved_workflow_without_fetch_needs_any(pair):
    a, b = pair
    saved = {"1": noise(3), "2": node("SaveImage", images=["1", 0], filename_prefix="x")}
    assert 'no "Fetch from remote"' in fails(a, from_disk(a, saved, b.url))


def test_a_saved_workflow_whose_muted_nodes_are_linked_to(pair):
    a, b = pair
    saved = {
        "1": noise(4),
        "2": node("TestStamp", value=["1", 0], after=["muted", 0]),
        "9": node("SaveImage", images=["2", 0], filename_prefix="muted"),
    }
    entry = run(a, from_disk(a, saved, b.url, outputs="any"))
    assert digest(entry, "there") == picture(4)


def test_separators_of_another_system(pair):
    """A workflow saved on Windows names a file in a folder."""
    a, b = pair
    lora(b, "sub/style.safetensors")
    saved = {"1": noise(5), **loras("1", "sub\\style.safetensors")}
    saved["9"] = node("SaveImage", images=["out", 0], filename_prefix="separators")
    entry = run(a, from_disk(a, saved, b.url, outputs="any"))
    assert digest(entry, "there") == picture(5)


# --- older --------------------------------------------------------------------------------------


@pytest.mark.parametrize("override, seed, batch", [(0, 5 + 2 * 2, 2), (3, 5 + 2 * 3, 3)])
def test_queue_remote_of_2023(pair, override, seed, batch):
    a, b = pair
    prompt = {
        "1": node(
            "QueueRemote",
            **{"remote_url": b.url + "/", "seed": 5, "batch_override": override},
            **{"system": "posix", "enabled": "true", "node_id": 2},
        ),
        "2": node("EmptyLatentImage", width=64, height=64, batch_size=2),
        "3": noise(["1", 0]),
        "4": node("TestStamp", value=["3", 0], after=["2", 0]),
        "5": node("FetchRemote", final_image=["4", 0], remote_info=["1", 1]),
        "6": node("PreviewImage", images=["5", 0]),
        "7": node("TestSlow", value=["2", 0], seconds=0.0),
        "8": node("FetchRemote", final_image=["7", 0], remote_info=["1", 1]),
        "here": node("TestDigest", value=["4", 0]),
        "there": node("TestDigest", value=["5", 0]),
        "latent": node("TestDigest", value=["8", 0]),
    }
    entry = run(a, prompt)
    assert digest(entry, "here") == picture(5)
    assert digest(entry, "there") == picture(seed)
    dtype = str(made_here(torch.zeros(1)).dtype).removeprefix("torch.")
    assert f"{dtype}[{batch}, 4, 8, 8]" in a.ui(entry, "latent", "description")


def test_queue_remote_of_the_rewrite(trio):
    a, b, c = trio
    older = [
        node("QueueRemote", remote_url=url, batch_override=over, enabled="true")
        for url, over in ((b.url, 2), (c.url, 0))
    ]
    entry = run(a, chain(*older, batch=1, height=56))
    assert digest(entry, "here") == picture(10, 1, 56)
    assert digest(entry, "there 1") == picture(11, 2, 56)
    assert digest(entry, "there 2") == picture(13, 1, 56)


# --- what prompts may hold ----------------------------------------------------------------------


def image_file(comfyui: ComfyUI, name: str) -> tuple[str, torch.Tensor]:
    """Put a picture into its input folder: the name, and what LoadImage makes of it."""
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    comfyui.put_input(buffer.getvalue(), name)
    return name, made_here(torch.from_numpy(pixels.astype(np.float32) / 255.0)[None])


@pytest.mark.usefixtures("keeps_results")
def test_img2img_with_a_file_that_only_this_side_has(pair):
    a, b = pair
    name, loaded = image_file(a, "only-here.png")

    def prompt(height):
        return simple(b.url, seed=700, height=64) | {
            "20": node("LoadImage", image=name),
            "21": node("CombineImageBatch", images_a=["20", 0], images_b=["2", 0]),
            "22": node("ImageCrop", image=["21", 0], width=64, height=height, x=0, y=0),
            "3": node("FetchRemote", final_image=["22", 0], remote_info=["1", 2]),
            "4": node("CombineImageBatch", images_a=["22", 0], images_b=["3", 0]),
        }

    def wanted(height):
        made = torch.cat((loaded, values.noise((3, 64, 64, 3), 702)))
        return values.digest(made[:, :height].contiguous())

    with without_a_trace(b):
        assert digest(run(a, prompt(64)), "there") == wanted(64)
        assert {"1", "3"} <= cached(run(a, prompt(64)))
        changed = run(a, prompt(32))
    assert "1" in cached(changed)
    assert digest(changed, "there") == wanted(32)


def test_a_saved_workflow_cannot_have_files_that_only_this_side_has(pair):
    a, b = pair
    name, _ = image_file(a, "only-here-too.png")
    saved = {
        "1": node("LoadImage", "My photo", image=name),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    text = fails(a, from_disk(a, saved, b.url, outputs="any"))
    assert text.startswith("RemoteQueueWorker: ")
    assert f'LoadImage "My photo" #1: image "{name}" is not there' in text


def test_ids_of_a_subgraph(pair):
    a, b = pair
    prompt = with_ids(simple(b.url, seed=800), lambda i: f"57:{i}")
    entry = run(a, prompt)
    assert digest(entry, "57:there") == picture(802, 3)


def test_nan_in_a_widget(pair):
    """And ComfyUI's own NaN, which it writes into a node that always runs."""
    a, b = pair
    prompt = simple(b.url, seed=900) | {
        "20": node("TestSlow", value="x", seconds=0.0),
        "21": node("TestNoise", batch=["1", 1], height=64, width=64, channels=3, seed=1),
        "22": node(
            "ImageBlend",
            **{"image1": ["2", 0], "image2": ["21", 0]},
            **{"blend_factor": float("nan"), "blend_mode": "normal"},
        ),
        "23": node("TestStamp", value=["2", 0], after=["22", 0]),
        "24": node("TestStamp", value=["23", 0], after=["20", 0]),
        "3": node("FetchRemote", final_image=["24", 0], remote_info=["1", 2]),
    }
    assert digest(run(a, prompt), "there") == picture(902, 3)


def test_links_to_muted_nodes_where_nothing_asks_for_them(pair):
    a, b = pair
    prompt = simple(b.url, seed=1000) | {"20": node("TestSlow", value=["muted", 0], seconds=1.0)}
    assert digest(run(a, prompt), "there") == picture(1002, 3)


def blank(url: str, seed: int) -> Prompt:
    """Nothing before the fetch node but what ComfyUI has; seeds are colours."""
    return simple(url, seed=seed) | {
        "2": node("EmptyImage", width=8, height=8, batch_size=["1", 1], color=["1", 0])
    }


def test_nodes_that_only_this_side_has_after_the_fetch(pair, without):
    _, plain = without
    with paired(home_of(pair.a), home_of(plain)):
        entry = run(pair.a, blank(plain.url, 1100))
    made = made_here(torch.tensor([1102 >> 16, 1102 >> 8 & 255, 1102 & 255]) / 255)
    assert digest(entry, "there") == values.digest(made.expand(3, 8, 8, 3).contiguous())


def test_a_node_that_only_this_side_has_before_the_fetch_is_named(pair, without):
    _, plain = without
    prompt = blank(plain.url, 1101) | {
        "20": node("TestSlow", "Polish", value=["2", 0], seconds=0.1),
        "3": node("FetchRemote", final_image=["20", 0], remote_info=["1", 2]),
    }
    with paired(home_of(pair.a), home_of(plain)):
        text = fails(pair.a, prompt)
    assert text.startswith("RemoteQueueSimple: ")
    assert 'node class "TestSlow" is not installed (used by #20 "Polish")' in text
    assert f"-{plain.port}" in text


# --- failures -----------------------------------------------------------------------------------


def test_a_remote_that_does_not_run(pair):
    nobody = f"http://127.0.0.1:{free_port()}"
    text = fails(pair.a, simple(nobody))
    assert text.startswith("RemoteQueueSimple: ")
    assert nobody in text and "Look whether that ComfyUI runs" in text


def test_a_remote_without_zbus(pair, without):
    bare, _ = without
    text = fails(pair.a, simple(bare.url))
    assert f"{bare.url}: no zbus there" in text
    assert "Install zbus there" in text and "git clone" in text


@pytest.mark.parametrize(
    "url, said",
    [
        ("", 'remote_url is empty. Write it like "http://127.0.0.1:8288/"'),
        (" ,", "remote_url is empty"),
        ("desk", "no peer named 'desk' here; known: "),
        ("{0.port}", "no peer named"),
    ],
)
def test_a_url_that_is_none(pair, url, said):
    text = fails(pair.a, simple(url.format(pair.b)))
    assert text.startswith("RemoteQueueSimple: ")
    assert said in text


def test_a_zbus_name_will_do(pair):
    a, b = pair
    assert digest(run(a, simple(b.peer, seed=460)), "there") == picture(462, 3)


def lora(comfyui: ComfyUI, name: str) -> None:
    path = comfyui.base / "models" / "loras" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def loras(image: str, *names: str) -> Prompt:
    """Loaders of strength 0, which need no real file; "out" is the image after them."""
    made: Prompt = {"model": node("TestMake", kind="model", seed=0)}
    before = ("model", 0), ("model", 0)
    for number, name in enumerate(names, 1):
        model, clip = ([*link] for link in before)
        strength = {"strength_model": 0.0, "strength_clip": 0.0}
        made[f"lora{number}"] = node(
            "LoraLoader", f"Style {number}", model=model, clip=clip, lora_name=name, **strength
        )
        before = (f"lora{number}", 0), (f"lora{number}", 1)
    made["out"] = node("TestStamp", value=[image, 0], after=[*before[0]])
    return made


@pytest.mark.parametrize("name", ["", "sketch.png"], ids=["", "with a file from here"])
def test_models_that_the_remote_lacks_are_listed_before_any_sampling(pair, name):
    a, b = pair
    missing = "mine-one.safetensors", "mine-two.safetensors"
    for file in missing:
        lora(a, file)
    lora(b, "mine-0ne.safetensors")
    prompt = simple(b.url, seed=1200) | loras("2", *missing)
    if name:
        image_file(a, name)
        prompt["photo"] = node("LoadImage", image=name)
        prompt["2"] = node("CombineImageBatch", images_a=["photo", 0], images_b=["photo", 0])
    prompt["3"] = node("FetchRemote", final_image=["out", 0], remote_info=["1", 2])
    prompt["sampling"] = node("TestSlow", value=["1", 0], seconds=20.0)
    prompt["last"] = node("TestStamp", value=["sampling", 0], after=["3", 0])
    began = time.monotonic()
    text = fails(a, prompt)
    assert time.monotonic() - began < 15 * slowness()
    assert text.startswith("RemoteQueueSimple: ")
    assert 'LoraLoader "Style 1" #lora1: lora_name "mine-one.safetensors" is not there' in text
    assert 'LoraLoader "Style 2" #lora2: lora_name "mine-two.safetensors" is not there' in text
    assert "mine-0ne.safetensors" in text
    assert b.queue() == ([], [])


def test_a_node_that_raises_there_is_the_fetch_nodes_error(pair):
    a, b = pair
    prompt = slow_there(b.url, batch_local=3)
    prompt["2"] = noise(["1", 0])
    prompt["slow"] = node("TestRaise", "Upscale", value=["2", 0], text=["any", 0])
    with without_a_trace(b):
        text = fails(a, prompt)
    assert text.startswith("FetchRemote: ")
    assert "Upscale #slow failed there: 3 (ValueError" in text and b.peer in text


@pytest.mark.parametrize("while_", ["fetching", "sampling here"])
def test_an_interrupt_stops_the_remote_job_at_once(pair, while_):
    a, b = pair
    prompt, busy = slow_there(b.url), "3"
    if while_ == "sampling here":
        # Another queue node than the one before: a cached one has the job placed by the fetch node.
        prompt = slow_there(b.url, batch_local=7)
        prompt["any"], busy = node("TestMake", kind="int", seed=30), "slow"
    mark = a.events.mark()
    prompt_id = a.prompt(prompt)
    job = until(lambda: b.queue()[0])
    behind = b.prompt({"1": noise(1), "digest": node("TestDigest", value=["1", 0])})
    a.events.wait_for(lambda e: e.kind == "executing" and e.data["node"] == busy, since=mark)
    a.interrupt()
    # It would run for 7 seconds more. That half a second is enough: test_cancels, of many cancels.
    until(lambda: job[0] not in b.queue()[0], 3)
    assert a.outcome(a.wait(prompt_id)) == "interrupted"
    assert b.outcome(b.wait(behind)) == "success"
    entry = run(a, simple(b.url, seed=1300 + len(while_)))
    assert digest(entry, "there") == picture(1302 + len(while_), 3)


def test_an_interrupt_there_is_the_fetch_nodes_error(pair):
    a, b = pair
    mark = a.events.mark()
    prompt_id = a.prompt(slow_there(b.url))
    # One that ends before the queue node has handed it on is that one's error.
    a.events.wait_for(lambda e: e.kind == "executing" and e.data["node"] == "3", since=mark)
    job = until(lambda: b.queue()[0])
    until(lambda: b.interrupt(job[0]) or not b.queue()[0])
    entry = a.wait(prompt_id, 5)
    assert a.errors(entry).startswith("FetchRemote: ")
    assert "interrupted there" in a.errors(entry) and b.peer in a.errors(entry)


def test_a_url_that_is_this_comfyuis_own(pair):
    text = fails(pair.a, simple(pair.a.url))
    assert text.startswith("RemoteQueueSimple: ")
    assert "that is this very ComfyUI" in text


def test_a_new_job_clears_the_older_ones_of_its_own_queue_node_only(trio):
    a, b, c = trio

    def give(comfyui, queue_id):
        """A job that nobody here waits for: only what is local is asked for."""
        prompt = with_ids(
            slow_there(b.url, trigger="always"), lambda i: queue_id if i == "1" else i
        )
        before = {i for ids in b.queue() for i in ids}
        prompt_id = comfyui.prompt(prompt, partial_execution_targets=["here"])
        entry = comfyui.wait(prompt_id)
        assert comfyui.outcome(entry) == "success", comfyui.errors(entry)
        new = {i for ids in b.queue() for i in ids} - before
        assert len(new) == 1
        return new.pop()

    first = give(a, "1")
    until(lambda: b.queue()[0] == [first])
    another_node, another_comfyui = give(a, "99"), give(c, "1")
    assert b.queue() == ([first], [another_node, another_comfyui])
    second = give(a, "1")
    until(lambda: b.queue() == ([another_node], [another_comfyui, second]))
    third = give(a, "1")
    until(lambda: b.queue() == ([another_node], [another_comfyui, third]))
