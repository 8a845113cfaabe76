"""Pure: output nodes in the middle of a part: they show or save what they take, and hand it on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from .. import node_ids
from .graph import Graph, Link, Prompt, class_type_of, inputs_of, link, title

# ComfyUI's own, from 0.33 on: each gives the very value of that input, as its first output. (In an
# older one a pack may have a class of such a name, which gives anything.)
HANDED_ON = {
    **dict.fromkeys(("SaveImage", "PreviewImage", "SaveImageAdvanced"), "images"),
    **dict.fromkeys(("SaveAnimatedPNG", "SaveAnimatedWEBP", "SaveWEBM"), "images"),
    **dict.fromkeys(("SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced"), "audio"),
    **{"PreviewAudio": "audio", "SaveVideo": "video", "MaskPreview": "mask"},
    **{"SaveLatent": "samples", "SaveText": "text", "SaveSVGNode": "svg"},
}
SAVE_NOTHING = frozenset({"PreviewImage", "PreviewAudio", "MaskPreview", "PreviewAny"})


def led_past(graph: Graph, nodes: Collection[str], wanted: Mapping[str, Link]) -> dict[str, Link]:
    """Lead what takes the first output of those nodes past them, where they hand on what they
    take: so they need not run. In place.

    Args:
        wanted: Links to lead past them, too, by name.

    Returns:
        Those.
    """

    def past(value: Any) -> Any:
        for _ in range(len(nodes)):
            found = link(value)
            if found is None or found[0] not in nodes or found[1] != 0:
                break
            node = graph[found[0]]
            before = inputs_of(node).get(HANDED_ON.get(class_type_of(node), ""))
            if link(before) is None:
                break
            value = before
        return value

    for node in graph.values() if nodes else ():
        node["inputs"] = {name: past(value) for name, value in inputs_of(node).items()}
    return {name: link(past(list(source))) or source for name, source in wanted.items()}


def told(prompt: Prompt, part: Prompt, is_output: Callable[[str], bool]) -> Iterator[str]:
    """What its user should know of the output nodes that run in the part, in words.

    Args:
        prompt: The whole prompt that the part was cut from.
    """
    for i, node in part.items():
        class_type = class_type_of(node)
        if is_output(class_type) and class_type not in SAVE_NOTHING | {*node_ids.ALL}:
            known = str(inputs_of(prompt.get(i, {})).get("of") or i)
            yield f"{title(known, node)} ran there: what it saves is saved there"
