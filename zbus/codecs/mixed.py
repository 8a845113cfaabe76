"""Each chunk of a transfer by the codec that suits it: a byte in front says which one that is.

So a sender may change its mind in mid-way, when it has seen what the link delivers. For the wire it
is one more codec, named in HELLO and OFFER like the others: a peer that does not know it is never
offered it. A chunk that goes as it is has no such byte.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..codecs import lz4, png, webp, zlib
from ..errors import RemoteProtocolError
from ..values.layout import Layout

_MODULES: dict[str, ModuleType] = {"lz4": lz4, "zlib": zlib, "png": png, "webp": webp}
_MARKS = {"lz4": b"l", "zlib": b"z", "png": b"p", "webp": b"w"}
_NAMES = {mark: name for name, mark in _MARKS.items()}


def encode(view: memoryview, layout: Layout, name: str = "zlib") -> bytes | None:
    """By the codec of that name, behind its mark; None where that is not shorter."""
    packed = _MODULES[name].encode(view, layout)
    if packed is None or len(packed) + 1 >= len(view):
        return None
    return _MARKS[name] + bytes(packed)


def decode(data: bytes | memoryview, size: int, layout: Layout) -> Any:
    """Exactly ``size`` bytes.

    Raises:
        RemoteProtocolError: The mark is unknown, or that codec cannot read it.
    """
    name = _NAMES.get(bytes(data[:1]))
    if name is None or (name == "lz4" and not lz4.HERE):
        raise RemoteProtocolError(f"a chunk by no codec that is known here ({bytes(data[:1])!r})")
    return _MODULES[name].decode(memoryview(data)[1:], size, layout)
