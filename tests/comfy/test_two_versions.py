"""Two versions of ComfyUI with each other, both ways: values, files, jobs.

The first is that of all tests; the second is COMFYUI_DIR_2, run by COMFYUI_PYTHON_2.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
from chains import jumper, node, own, run_both
from children import until
from comfyui import ComfyUI, start_all
from conftest import Pair
from hosts import has_nested_latents
from test_netfiles import loaded_here_and_worked_on_there
from test_run_on_peers import address, at_peer, good, png, ports, spans_of
from test_videos import digest_of, film
from testpack import values

TRAVELS = [k for k in values.KINDS if k not in ("model", "conditioning live", "image nan")]
NO_SECOND = (
    "COMFYUI_DIR_2 names no second ComfyUI: two versions are tried with each other only where it "
    "does (with COMFYUI_PYTHON_2 for the Python that runs it)"
)


@pytest.fixture(scope="module")
def versions(comfyui_dir, tmp_path_factory):
    """Both, running, that know each other by name."""
    folder = os.environ.get("COMFYUI_DIR_2", "")
    if not (Path(folder) / "main.py").is_file() or not folder:
        pytest.skip(NO_SECOND)
    home = {"ZBUS_HOME": str(tmp_path_factory.mktemp("versions"))}
    python = os.environ.get("COMFYUI_PYTHON_2", "")
    made = (
        ComfyUI(comfyui_dir, name="first", env=home),
        ComfyUI(folder, name="second", env=home, python=python),
    )
    try:
        start_all(*made)
        for comfyui in made:
            assert comfyui.events is not None
        yield made
    finally:
        for comfyui in made:
            comfyui.kill()


@pytest.fixture(params=["first to second", "second to first"])
def mixed(request, versions):
    """(giver or client, taker or peer), of two versions."""
    yield Pair(*(versions if request.param.startswith("first") else reversed(versions)))
    for comfyui in versions:
        assert comfyui.clear()


def travel(pair):
    """The kinds of value that both can make."""
    without = () if has_nested_latents(*pair) else ("latent nested",)
    return [kind for kind in TRAVELS if kind not in without]


def version(comfyui):
    return comfyui.get("/system_stats")["system"]["comfyui_version"]


def test_they_are_two(versions, measured):
    """And each says of the other what it is."""
    first, second = versions
    measured(f"ComfyUI {version(first)} and {version(second)}")
    assert version(first) != version(second)


def test_a_value_of_every_kind_arrives_as_it_was(mixed, addr):
    giver, taker = mixed
    here, there = own(addr), own(f"listen:{addr}")
    wanted, got = {}, {}
    for seed, kind in enumerate(travel(mixed)):
        made = here.add(node("TestMake", kind=kind, seed=seed))
        here.step("ZBusSend", value=[made, 0], quality="exact")
        wanted[kind] = here.digest(made)
        got[kind] = there.digest(there.step("ZBusReceive", expect="any", timeout=0))
    sent, received = run_both(giver, here.end(), taker, there.end())
    found = {kind: taker.ui(received, i, "digest") for kind, i in got.items()}
    assert found == {kind: giver.ui(sent, i, "digest") for kind, i in wanted.items()}


@pytest.mark.parametrize("quality", ["8-bit", "raw", "lz4", "zlib", "png", "webp"])
def test_a_picture_in_each_quality(mixed, addr, quality):
    here, there = own(addr), own(f"listen:{addr}")
    made = here.add(node("TestMake", kind="image 8-bit", seed=4))
    here.step("ZBusSend", value=[made, 0], quality=quality)
    got = there.digest(there.step("ZBusReceive", expect="image", timeout=0))
    _, received = run_both(mixed.a, here.prompt, mixed.b, there.prompt)
    assert mixed.b.ui(received, got, "digest") == values.digest(values.make("image 8-bit", 4))


def test_jumpers_nodes(mixed, addr):
    here, there = jumper(addr, "Client"), jumper(addr, "Server")
    made = there.add(node("TestMake", kind="image 8-bit", seed=3))
    here.step("Send String", string="\u732b, a cat")
    shown = there.add(node("PreviewAny", source=[there.step("Receive String"), 0]))
    there.step("Send Images", images=[made, 0], send_as="png")
    got = here.digest(here.step("Receive Images"))
    first, second = run_both(mixed.a, here.end(), mixed.b, there.end())
    assert mixed.b.ui(second, shown, "text") == "\u732b, a cat"
    assert mixed.a.ui(first, got, "digest") == values.digest(values.make("image 8-bit", 3))


def test_what_a_job_gives_back_is_what_it_would_be_here(mixed):
    """Made there; and made here, worked on there, given back."""
    client, peer = mixed
    prompt = {}
    for seed, kind in enumerate(travel(mixed)):
        prompt[f"make {kind}"] = node("TestMake", kind=kind, seed=seed)
        prompt[f"here {kind}"] = node("TestDigest", value=[f"make {kind}", 0])
        prompt[f"mark {kind}"] = node("ZBusHere", value=[f"make {kind}", 0])
        for way, source in (("make", f"make {kind}"), ("mark", f"mark {kind}")):
            run = f"run {way} {kind}"
            prompt[f"at {way} {kind}"] = node("TestAt", value=[source, 0], never=client.port)
            prompt[run] = at_peer((f"at {way} {kind}", 0), peer.peer)
            prompt[f"there {way} {kind}"] = node("TestDigest", value=[run, 0])
    entry = good(client, prompt, 120.0)
    for kind in travel(mixed):
        here = client.ui(entry, f"here {kind}", "digest")
        assert client.ui(entry, f"there make {kind}", "digest") == here, kind
        assert client.ui(entry, f"there mark {kind}", "digest") == here, kind


@pytest.mark.parametrize("by", ["name", "address", "url"])
def test_a_job_runs_there(mixed, by):
    client, peer = mixed
    named = {"name": peer.peer, "address": address(peer), "url": peer.url}[by]
    assert ports(good(client, spans_of(named))) == [peer.port]


def test_a_picture_from_a_file_here_is_loaded_there(mixed):
    client, peer = mixed
    name = client.put_input(png(client.port, "RGB"), f"only {client.name}.png")
    latents = {"latent_tensor": values.noise((1, 4, 8, 8), client.port)}
    latent = client.put_input(safetensors.torch.save(latents), f"only {client.name}.safetensors")
    prompt = {
        "load": node("LoadImage", image=name),
        "latent": node("LoadLatentNumpy", latent=latent),
        "at": node("TestAt", value=["load", 0], never=client.port),
        "at 2": node("TestAt", value=["latent", 0], never=client.port),
        "run": at_peer(("at", 0), peer.peer),
        "run 2": at_peer(("at 2", 0), peer.peer),
    }
    for source in ("load", "run", "latent", "run 2"):
        prompt[f"of {source}"] = node("TestDigest", value=[source, 0])
    entry = good(client, prompt)
    of = {i: client.ui(entry, f"of {i}", "digest") for i in ("load", "run", "latent", "run 2")}
    assert of["run"] == of["load"]
    assert of["run 2"] == of["latent"]
    assert not (peer.base / "input" / name).exists()


def test_every_kind_of_picture_is_seen_there_as_it_is_loaded_here(mixed):
    loaded_here_and_worked_on_there(mixed)


def test_a_film_goes_there_and_comes_back(mixed, tmp_path):
    client, peer = mixed
    name = client.put_input(film(tmp_path / "film.mp4"), f"only {client.name}.mp4")
    load = {"1": node("LoadVideo", file=name)}
    here = digest_of(client, {**load, "out": node("TestSlow", value=["1", 0], seconds=0.0)})
    middle = {**load, "2": node("TestAt", value=["1", 0], never=client.port)}
    assert digest_of(client, {**middle, "out": at_peer(("2", 0), peer.peer)}) == here


def test_what_fails_there_is_told_here(mixed):
    client, peer = mixed
    prompt = {
        "1": node("TestMake", kind="int", seed=1),
        "2": node("TestRaise", value=["1", 0], text="no such luck"),
        "3": at_peer(("2", 0), peer.peer),
        "4": node("PreviewAny", source=["3", 0]),
    }
    entry = client.run(prompt)
    assert client.outcome(entry) == "error"
    said = client.errors(entry)
    assert "no such luck" in said and peer.peer in said


def test_a_cancel_here_ends_the_job_there(mixed):
    client, peer = mixed
    prompt = {
        "1": node("TestMake", kind="int", seed=1),
        "2": node("TestSlow", value=["1", 0], seconds=120.0),
        "3": at_peer(("2", 0), peer.peer),
        "4": node("PreviewAny", source=["3", 0]),
    }
    prompt_id = client.prompt(prompt)
    until(lambda: peer.queue()[0], 30, "the job runs there")
    client.interrupt()
    assert client.outcome(client.wait(prompt_id, 20)) == "interrupted"
    until(lambda: not peer.queue()[0], 30, "it ends there")
