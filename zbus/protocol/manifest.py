"""Sans-IO: what a run is going to do on a channel, and whether two such lists fit together.

A manifest is a tuple of planned operations, in the chain's order where there is one. Two are
compared before anything is computed, so that a chain that does not match is told at once and not
after twenty minutes of sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

from .messages import Planned

JUMPER = "jumper"
"""The channel of ComfyUI-Jumper's nodes. There operations pair in the chain's sequence, whatever
their numbers; on every other channel they pair by equal order."""

Manifest = Sequence[Planned]

_OPPOSITE = {"send": "receive", "receive": "send"}


def accepts(expect: str, kind: str) -> bool:
    """Whether a receive that expects `expect` takes a value of `kind`."""
    return expect in ("any", kind)


def fits(ours: tuple[str, str], theirs: tuple[str, str]) -> bool:
    """Whether two operations (direction, type) can be the two ends of one item."""
    (direction, kind), (other, other_kind) = ours, theirs
    if _OPPOSITE[direction] != other:
        return False
    # A planned send may not know its type before it runs.
    return "any" in (kind, other_kind) or kind == other_kind


def compare(channel: str, ours: Manifest, theirs: Manifest) -> str | None:
    """Why the two cannot work together, with both halves; None if they can.

    Only operations that are certain to run are held against the other side.
    """
    if channel == JUMPER:
        return _compare_sequence(ours, theirs)
    return _compare_orders(ours, theirs)


def _compare_sequence(ours: Manifest, theirs: Manifest) -> str | None:
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if not (mine[3] and other[3]):
            return None  # from here on the sequence is not known
        if not fits(mine[:2], other[:2]):
            pair = f"{_name(mine)} here and {_name(other)} there{_types(mine, other)}"
            return f"operation {place} of the chain is {pair}"
    if len(ours) == len(theirs) or not all(op[3] for op in (*ours, *theirs)):
        return None
    longer, side, short = (
        (ours, "here", "there") if len(ours) > len(theirs) else (theirs, "there", "here")
    )
    extra = longer[min(len(ours), len(theirs))]
    return (
        f"the chain has {len(ours)} operations here and {len(theirs)} there: "
        f"{_name(extra)} {side} has no partner {short}"
    )


def _compare_orders(ours: Manifest, theirs: Manifest) -> str | None:
    for mine, others, side, short in (
        *((op, theirs, "here", "there") for op in ours),
        *((op, ours, "there", "here") for op in theirs),
    ):
        if mine[2] is None or not mine[3] or any(op[2] is None for op in others):
            continue
        partners = [op for op in others if op[2] == mine[2]]
        if not partners:
            return f"{_name(mine)} {side} (order {mine[2]}) has no partner {short}"
        if not any(fits(mine[:2], op[:2]) for op in partners):
            pair = f"{_name(mine)} {side} and {_name(partners[0])} {short}"
            return f"order {mine[2]} is {pair}{_types(mine, partners[0])}"
    return None


def _types(mine: Planned, other: Planned) -> str:
    """What does not fit, where it is a send and a receive: their types."""
    if _OPPOSITE[mine[0]] != other[0]:
        return ""
    sent, expected = (mine, other) if mine[0] == "send" else (other, mine)
    return f": {expected[1]} is expected, {sent[1]} is sent"


def _name(op: Planned) -> str:
    direction, kind, _, _, node = op
    return node or f"{direction} of {kind}"
