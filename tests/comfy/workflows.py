"""Workflows as the page saves them, turned into prompts as the server takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "data" / "jumper-examples"
MUTED, BYPASSED = 2, 4
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
# What stands for Jumper's remote example's sampling, which would need a checkpoint.
_SAMPLING = ("CheckpointLoaderSimple", "EmptyLatentImage", "KSampler")

Api = dict[str, dict[str, Any]]


def to_api(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> Api:
    """The page's "Export (API)".

    Args:
        workflow: The page's format: nodes with widgets_values, and links.
        object_info: The server's ``/object_info``: which inputs are widgets, in which order.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    api: Api = {}
    for node in nodes.values():
        if node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        inputs = _widgets(node, object_info[node["type"]])
        for slot in node.get("inputs", []):
            source = _source(slot.get("link"), nodes, links)
            if source:
                inputs[slot["name"]] = [str(source[0]), source[1]]
        api[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return api


def jumper_examples(
    object_info: Mapping[str, Any],
    *,
    addr: str | None = None,
    image: dict[str, Any] | None = None,
    send_as: str | None = None,
) -> tuple[Api, Api]:
    """Jumper's two examples (local, remote) as prompts that need no checkpoint.

    The nodes keep the examples' ids: local 9 and 7 send the texts, 8 receives the image, 12 shows
    it; remote 12 and 13 receive the texts, 14 sends the image. In place of the text encoders, 6
    and 7 show the texts (UI: text); in place of VAEDecode, 8 is the given image node.

    Args:
        addr: In place of 127.0.0.1:8282 in all the nodes.
        image: The node that makes the picture; default noise.
        send_as: In place of "png".
    """
    local, remote = (to_api(load_example(name), object_info) for name in ("local", "remote"))
    remote = {i: node for i, node in remote.items() if node["class_type"] not in _SAMPLING}
    for node_id, node in remote.items():
        if node["class_type"] == "CLIPTextEncode":
            shown = {"source": node["inputs"]["text"]}
            remote[node_id] = {"class_type": "PreviewAny", "inputs": shown}
        elif node["class_type"] == "VAEDecode":
            remote[node_id] = image or noise_node()
    for node in (*local.values(), *remote.values()):
        if addr and "addr" in node["inputs"]:
            node["inputs"]["addr"] = addr
        if send_as and "send_as" in node["inputs"]:
            node["inputs"]["send_as"] = send_as
    return local, remote


def load_example(name: str) -> dict[str, Any]:
    """Jumper's example "local" or "remote", as the page saved it."""
    return dict(json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8")))


def noise_node(
    batch: int = 1, height: int = 64, width: int = 64, channels: int = 3, seed: int = 0
) -> dict[str, Any]:
    inputs = dict(batch=batch, height=height, width=width, channels=channels, seed=seed)
    return {"class_type": "TestNoise", "inputs": inputs}


def _widgets(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> value of the node's widgets; the page saves them as a list in input order."""
    given = list(node.get("widgets_values") or [])
    found: dict[str, Any] = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            is_widget = isinstance(kind, list) or kind in _WIDGETS
            if not is_widget or options.get("forceInput") or not given:
                continue
            found[name] = given.pop(0)
            # The page adds a widget of its own: fixed, increment, randomize.
            seedlike = kind == "INT" and name in ("seed", "noise_seed")
            if given and (options.get("control_after_generate") or seedlike):
                given.pop(0)
    return found


def _source(
    link: int | None, nodes: Mapping[int, Any], links: Mapping[int, tuple[int, int]]
) -> tuple[int, int] | None:
    """The (node, slot) a link comes from; through a bypassed node, as the page resolves it."""
    while link is not None and link in links:
        origin, slot = links[link]
        node = nodes[origin]
        mode = node.get("mode", 0)
        if mode == MUTED:
            return None
        if mode != BYPASSED:
            return origin, slot
        link = _through(node, slot)
    return None


def _through(node: Mapping[str, Any], slot: int) -> int | None:
    """The link into a bypassed node that goes on as its output ``slot``: the type decides."""
    wanted = node["outputs"][slot]["type"]
    inputs = node.get("inputs", [])
    candidates = [inputs[slot], *inputs] if slot < len(inputs) else inputs
    for candidate in candidates:
        if candidate["type"] == wanted or "*" in (candidate["type"], wanted):
            link = candidate.get("link")
            return None if link is None else int(link)
    return None
