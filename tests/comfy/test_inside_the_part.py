"""Previews and saves inside the part that Run on Peers runs elsewhere, on real ComfyUIs."""

from __future__ import annotations

import json
import uuid

import numpy as np
from chains import node
from PIL import Image
from test_run_on_peers import at_peer, digests, files, good, part, ran, texts


def folder(comfyui, kind):
    return [path for path, _ in files(comfyui) if f"/{kind}/" in path.replace("\\", "/")]


def test_they_show_and_save_here_what_the_peer_makes(pair):
    mark = uuid.uuid4().hex
    prompt = part(only=pair.b.port, text=mark) | {
        "run": at_peer(("at", 0), pair.b.peer),
        "preview": node("PreviewImage", images=["at", 0]),
        "save": node("SaveImage", images=["at", 0], filename_prefix=mark),
        "span": node("PreviewAny", source=["at", 1]),
        "digest": node("TestDigest", value=["run", 0]),
    }
    before = files(pair.b)
    entry = good(pair.a, prompt)
    assert ran(pair.a, mark) == 0 and ran(pair.b, mark) == 1
    assert files(pair.b) == before, "nothing is saved there"
    assert json.loads(texts(entry, "span")[0])["port"] == pair.b.port
    assert len(entry["outputs"]["preview"]["images"]) == 1
    (path,) = (p for p in folder(pair.a, "output") if mark in p)
    with Image.open(path) as saved:
        held = json.loads(saved.text["prompt"])
        assert np.asarray(saved).shape == (16, 16, 3)
    for n in held.values():
        n.pop("is_changed", None)  # ComfyUI's own
    assert held == prompt, "as its user made it"


def test_what_is_still_known_here_is_not_made_again(pair, keeps_results):
    mark = uuid.uuid4().hex
    prompt = part(only=pair.b.port, text=mark) | {
        "run": at_peer(("at", 0), pair.b.peer),
        "preview": node("PreviewImage", images=["at", 0]),
        "digest": node("TestDigest", value=["run", 0]),
    }
    entry, again = good(pair.a, prompt), good(pair.a, prompt)
    assert ran(pair.b, mark) == 1
    assert again["outputs"]["preview"] == entry["outputs"]["preview"]


def test_one_that_hands_on_what_it_shows_runs_in_both_places(pair):
    mark = uuid.uuid4().hex
    prompt = part(only=pair.b.port, text=mark) | {
        "digest": node("TestDigest", value=["at", 1]),
        "join": node("StringConcatenate", string_a=["digest", 0], string_b="!", delimiter=""),
        "run": at_peer(("join", 0), pair.b.peer),
        "text": node("PreviewAny", source=["run", 0]),
    }
    prompt["at"]["inputs"]["value"] = ["noise", 0]
    entry = good(pair.a, prompt)
    assert ran(pair.a, mark) == 0 and ran(pair.b, mark) == 1
    assert json.loads(texts(entry, "text")[0].removesuffix("!"))["port"] == pair.b.port
    assert len(digests(entry)) == 1, "it shows its value here"


def test_all_peers_pictures_are_shown(trio):
    mark = uuid.uuid4().hex
    prompt = part(never=trio.a.port, text=mark) | {
        "run": at_peer(("at", 0), f"{trio.b.peer},{trio.c.peer}"),
        "preview": node("PreviewImage", images=["at", 0]),
        "digest": node("TestDigest", value=["run", 0]),
    }
    entry = good(trio.a, prompt)
    assert len(entry["outputs"]["preview"]["images"]) == 2
    assert ran(trio.a, mark) == 0


def test_an_unused_branch_of_an_unknown_class_refuses_nothing(pair):
    prompt = part(only=pair.b.port) | {
        "run": at_peer(("at", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
        "unknown": node("TestOnlyElsewhere", image=["at", 0]),
    }
    good(pair.a, prompt)
    assert "TestOnlyElsewhere #unknown is not installed here" in pair.a.log()
