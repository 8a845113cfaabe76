"""What this ComfyUI is doing, in a few words: shown on the nodes of a peer that waits for it."""

from __future__ import annotations

from zbus.protocol.fields import clip

from .. import host, node_ids
from ..prompt.graph import title
from .plans import OPERATIONS

IDLE = "idle"
# For a peer.
WAITING = (*OPERATIONS, *node_ids.RUNS, node_ids.START, node_ids.COLLECT, node_ids.FETCH)


def describe() -> str:
    """The node that computes, with its progress; else the node of ours that waits."""
    ours: list[str] = []
    others: list[str] = []
    for node_id, node, value, maximum in host.doing():
        if node.get("class_type") in WAITING:
            shown = host.shown_as(node_id)  # the node that the user knows
            ours.append(f"waits in {title(shown, host.graph().get(shown, node))}")
        else:
            progress = f" {value:.0f}/{maximum:.0f}" if maximum > 1 else ""
            others.append(title(node_id, node) + progress)
    what = ["running", *ours, *others][-1]
    # A checkpoint load or a VAE decode does not look for the interrupt before it has ended.
    return clip(f"stopping: {what}" if host.interrupted() else what, 300)
