"""What of a value may go as 8 bits where that loses something: pictures alone.

A float tensor in the shape of a picture may be anything: sound is [B, C, T], points are [N, 2],
embeddings [B, T, C]. So only what is known to be a picture is: the value itself, where its shape is
that of an IMAGE or a MASK, unless its maker declares another type or may give anything; the frames
of a VIDEO; and lists of these. What lies in any other dict, or in a host's own type, stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .kinds import LIST, VIDEO, VIDEO_PICTURES, describe, is_marked
from .spec import MAX_DEPTH, MAX_ITEMS
from .tensors import is_tensor

_AN = "AEIOU"
FILM = "a video"  # in which there are pictures
ANY = "*"
UNKNOWN = "of a type that nobody declares"  # it may be a picture, and nobody says so
OPEN = ("", UNKNOWN)  # roles of what its shape tells of


def declared(kind: str) -> str:
    """The role of a value whose maker declares that type, or that it may give anything (ANY); ""
    where there is nobody to declare it."""
    return UNKNOWN if kind == ANY else f"of the type {kind}" if kind else ""


def within(holder: str, role: str) -> str:
    """The role of what lies in that, which has a role itself."""
    return inside(holder) if role in OPEN else role


def inside(holder: str) -> str:
    """The role of what lies in that."""
    return f"part of {'an' if holder[:1].upper() in _AN else 'a'} {holder}"


CONDITIONING = inside("conditioning")
# Of these nothing is worth looking at, to see whether 8 bits would keep every bit.
_NUMBERS = frozenset(map(inside, ("latent", "audio", "conditioning", "nested tensor")))


def in_film(key: object) -> str:
    """The role of that item of a dict whose own role is FILM; see `in_dict`."""
    return "" if key in VIDEO_PICTURES else inside("video")


def in_dict(value: Mapping[Any, Any], role: str) -> str:
    """The role of the items of a dict that has a role itself: why they are no pictures, "" if they
    may be. Where it is FILM, see `in_film`."""
    if role not in OPEN or is_marked(value, LIST):
        return role
    if is_marked(value, VIDEO):
        return FILM
    kind = describe(value)
    return inside(kind if kind in ("latent", "audio") else "dict")


def in_list(value: Sequence[Any], place: Callable[[], str], role: str) -> str:
    """The role of the items of a list or tuple that are no dicts; see `in_dict`."""
    if role not in OPEN:
        return role
    if describe(value) == "conditioning":
        return CONDITIONING
    look = _Look()
    other = next((index for index, item in enumerate(value) if not look.is_shown(item)), None)
    return role if other is None else f"in a list with {place()}[{other}], which is no picture"


class _Look:
    """One look at the items of a list. It ends where the value is one that cannot travel: a list
    may hold itself, or hold one list twice, which holds another twice, and so on."""

    def __init__(self) -> None:
        self._items = 0

    def is_shown(self, value: object, depth: int = 0) -> bool:
        """Whether it is a picture, a video, or a list of these."""
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            return False
        if is_tensor(value):
            return looks_like_picture(value)
        if isinstance(value, (list, tuple)):
            return all(self.is_shown(item, depth + 1) for item in value)
        if not isinstance(value, dict):  # another mapping may be costly to look at
            return False
        if is_marked(value, LIST):
            return self.is_shown(value[LIST], depth + 1)
        return is_marked(value, VIDEO)


def may_shrink(tensor: object, role: str) -> bool:
    """Whether it is to be looked at for whether it comes back from 8 bits bit for bit."""
    return role not in _NUMBERS and looks_like_picture(tensor)


def looks_like_picture(tensor: object) -> bool:
    """Whether it has the shape and dtype of an image or a mask."""
    return describe(tensor) in ("image", "mask")
