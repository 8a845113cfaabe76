"""Pure: the types that outputs declare, and what follows of them before anything is computed: that
a value cannot travel, or not be held by who gets it, and that it is no picture, whatever its shape.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from .. import node_ids
from .graph import Link, Prompt, class_type_of, inputs_of, link, sources

PICTURES = frozenset({"IMAGE", "MASK", "VIDEO"})
PARAMETERS = frozenset({"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO"})

# The core's types whose values live in one process: models, and what holds functions.
LIVE = frozenset(
    {
        *("MODEL", "CLIP", "VAE", "CONTROL_NET", "CLIP_VISION", "STYLE_MODEL", "GLIGEN"),
        *("UPSCALE_MODEL", "LATENT_UPSCALE_MODEL", "MODEL_PATCH", "BACKGROUND_REMOVAL"),
        *("AUDIO_ENCODER", "PHOTOMAKER", "SAMPLER", "GUIDER", "NOISE", "LATENT_OPERATION"),
        *("HOOKS", "HOOK_KEYFRAMES"),
    }
)

# What a ComfyUI may lack: for the types of outputs the kinds of `zbus.values.containers`, any one
# of which a value of that type is of.
HELD_AS = {kind: frozenset({kind}) for kind in ("MESH", "VOXEL", "SPLAT", "SVG", "RANGE")} | {
    "CURVE": frozenset({"CURVE", "CURVE_LINEAR"}),
    "CLIP_VISION_OUTPUT": frozenset({"CLIP_VISION_OUTPUT"}),
}
_FILE = "FILE_3D"  # and FILE_3D_GLB, FILE_3D_PLY...

# Nodes of ours that hand on what comes in: the input of each output.
_HANDED_ON = {(node_ids.COMPUTE_HERE, 0): "value", (node_ids.SEND, 0): "value"} | {
    **{(node_ids.RUN, 0): "value", (node_ids.RUN_TAPPED, 0): "value"},
    (node_ids.WANTED, 0): "value",
}


class Outputs(Protocol):
    """What the host knows of node classes."""

    def returned(self, class_type: str, slot: int) -> str:
        """The type that output declares; "" where that cannot be told."""

    def matched(self, class_type: str, slot: int) -> Sequence[str]:
        """The inputs whose type that output takes on; none for most."""


class Untransferable(NamedTuple):
    """An output whose value cannot travel."""

    node: str
    type: str


def declared(prompt: Prompt, source: Link, outputs: Outputs) -> str:
    """The type of the value that comes from there, as its maker declares it; "" where it declares
    none. Looked for through nodes that hand on what they are given."""
    return next(_declared(prompt, source, outputs, set()), "")


def _declared(prompt: Prompt, source: Link, outputs: Outputs, seen: set[Link]) -> Iterator[str]:
    node, slot = source
    if source in seen or node not in prompt:
        return
    seen.add(source)
    class_type = class_type_of(prompt[node])
    handed = _HANDED_ON.get((class_type, slot))
    names = (handed,) if handed else outputs.matched(class_type, slot)
    if not names:
        found = outputs.returned(class_type, slot)
        if found and found != "*" and not found.startswith("COMFY_"):
            yield found
    for name in names:
        before = link(inputs_of(prompt[node]).get(name))
        if before is not None:
            yield from _declared(prompt, before, outputs, seen)


def no_picture(prompt: Prompt, source: Link, outputs: Outputs) -> str:
    """What to tell of the value that comes from there, where 8 bits are for pictures alone.

    Returns:
        "" if it is a picture, or one of several types with pictures among them; the type that its
        maker declares, if that is no picture; "*" if nothing tells what it is. Of a node that may
        give anything, as the switches of packs do, it is told by what is wired to that: a picture
        where nothing but pictures is, whatever numbers and texts are beside them.
    """
    kind = declared(prompt, source, outputs)
    if kind:
        return "" if PICTURES.intersection(kind.split(",")) else kind
    return "" if _has_pictures_before(prompt, source[0], outputs, set()) else "*"


def _has_pictures_before(prompt: Prompt, node: str, outputs: Outputs, seen: set[str]) -> bool:
    """Whether all that is wired to that node, but for numbers and texts, are pictures."""
    if node in seen or node not in prompt:
        return False
    seen.add(node)
    found = []
    for _, before in sources(prompt, node):
        kind = declared(prompt, before, outputs)
        if kind not in PARAMETERS:
            is_known = bool(kind) and PICTURES.issuperset(kind.split(","))
            found.append(
                is_known or (not kind and _has_pictures_before(prompt, before[0], outputs, seen))
            )
    return bool(found) and all(found)


def untransferable(
    prompt: Prompt, wanted: Iterable[Link], outputs: Outputs
) -> list[Untransferable]:
    """Which of these values cannot travel, as far as their types tell."""
    kinds = ((source[0], declared(prompt, source, outputs)) for source in wanted)
    return [Untransferable(node, kind) for node, kind in kinds if kind in LIVE]


def unheld(
    prompt: Prompt, wanted: Iterable[Link], outputs: Outputs, types: Collection[str]
) -> list[Untransferable]:
    """Which of these values are certainly of kinds that are not among those `types`."""
    kinds = ((source[0], declared(prompt, source, outputs)) for source in wanted)
    return [
        Untransferable(node, kind)
        for node, kind in kinds
        if kind and all(_is_unheld(part, types) for part in kind.split(","))
    ]


def _is_unheld(kind: str, types: Collection[str]) -> bool:
    kind = kind.strip()
    is_file = kind == _FILE or kind.startswith(f"{_FILE}_")
    held_as = frozenset({_FILE}) if is_file else HELD_AS.get(kind, frozenset())
    return bool(held_as) and held_as.isdisjoint(types)


def results(prompt: Mapping[str, Mapping[str, object]]) -> list[Link]:
    """Where the results of a job come from."""
    found = [
        link(inputs_of(node).get("value"))
        for node in prompt.values()
        if class_type_of(node) == node_ids.RESULT
    ]
    return [source for source in found if source is not None]
