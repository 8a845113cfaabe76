"""The pure modules that rewrite prompts, and prompts to rewrite: hand-made ones and any at all."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

# In a package whose own __init__ (which needs ComfyUI) is not run.
PACKAGE = "zbus_comfy_nodes_rewriting"
sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
sys.modules[PACKAGE].__path__ = [str(Path(__file__).resolve().parent.parent / "comfy_nodes")]
node_ids = importlib.import_module(f"{PACKAGE}.node_ids")
graph = importlib.import_module(f"{PACKAGE}.prompt.graph")
cutting = importlib.import_module(f"{PACKAGE}.prompt.cutting")
dispatching = importlib.import_module(f"{PACKAGE}.prompt.dispatching")
elsewhere = importlib.import_module(f"{PACKAGE}.prompt.elsewhere")
own_files = importlib.import_module(f"{PACKAGE}.prompt.own_files")
passing = importlib.import_module(f"{PACKAGE}.prompt.passing")
wiring = importlib.import_module(f"{PACKAGE}.prompt.wiring")
tapping = importlib.import_module(f"{PACKAGE}.prompt.tapping")
loops = importlib.import_module(f"{PACKAGE}.prompt.loops")
admitting = importlib.import_module(f"{PACKAGE}.prompt.admitting")

IDS = ["1", "10", "2", "57:8", "57:9", "4.0.0.12", "4.0.0.7:1", "loader", "é", "3", "0", "77"]
CLASSES = ["A", "B", "Save", "LoadImage", "ZBusHere", "ZBusRun", "ZBusVary", "ZBusSend"]
REMOTE = ["RemoteQueueSimple", "RemoteQueueWorker", "FetchRemote", "RemoteChainStart", "SaveImage"]
URLS = ["http://a:8288/", "HTTP://A:8288", "http://b:8288"]
NAN = float("nan")


def node(class_type: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def text(value: Any) -> str:
    """What to compare by: NaN equals NaN, and the order of a dict does not count."""
    return json.dumps(value, sort_keys=True)


def links(prompt: dict[str, Any]) -> list[list[Any]]:
    values = [value for n in prompt.values() for value in n["inputs"].values()]
    return [value for value in values if graph.link(value)]


def assert_closed(prompt: dict[str, Any]) -> None:
    assert all(to in prompt for to, _ in links(prompt))
    assert all(set(n) <= {"class_type", "inputs", "_meta"} for n in prompt.values())


constants = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([NAN, float("inf"), None, True, "x", "", [1, 2], [], ["a", "b", "c"]]),
    st.sampled_from([{"__value__": ["a", 1]}, {"a": [1, {"b": NAN}]}]),
)


@st.composite
def dags(draw: Any, classes: list[str] = CLASSES) -> dict[str, Any]:
    """A prompt without loops; some links lead to nodes that are not in it."""
    ids = draw(st.permutations(IDS))[: draw(st.integers(1, len(IDS)))]
    prompt: dict[str, Any] = {}
    for place, i in enumerate(ids):
        ends = st.sampled_from([*ids[:place], *ids[:place], *ids[:place], "muted"])
        link = st.tuples(ends, st.integers(0, 2)).map(list)
        names = st.sampled_from(["value", "images", "final_image", "remote_info", "x", "inputs"])
        inputs = draw(st.dictionaries(names, st.one_of(link, link, constants), max_size=4))
        made = node(draw(st.sampled_from(classes)), **inputs)
        if made["class_type"] == "ZBusRun":
            words = ["no", "no", "also run here", "only here"]
            made["inputs"]["here"] = draw(st.sampled_from(words))
        if made["class_type"].startswith("RemoteQueue"):
            made["inputs"] |= {"remote_url": draw(st.sampled_from(URLS)), "enabled": "true"}
        if draw(st.booleans()):
            made["_meta"] = {"title": f"title {i}"}
        if draw(st.booleans()):
            made["is_changed"] = [NAN]
        prompt[i] = made
    order = draw(st.permutations(ids))
    return {i: prompt[i] for i in order}
