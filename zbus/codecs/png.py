"""PNG, level 1, of strips of an 8-bit picture."""

from __future__ import annotations

import io
import struct

from PIL import Image

from ..codecs import pictures
from ..values.layout import Layout

_LARGEST = 2**31 - 1
_START = b"\x89PNG\r\n\x1a\n"
_COLOUR = {1: 0, 3: 2, 4: 6}  # PNG specification, 11.2.2: grey, RGB, RGBA


def encode(view: memoryview, layout: Layout) -> bytes | None:
    """A PNG, or zlib of what is no picture; None where that is not shorter."""
    return pictures.encode(view, layout, _LARGEST, _save)


def decode(data: memoryview, size: int, layout: Layout) -> bytes:
    """Exactly ``size`` bytes.

    Raises:
        RemoteProtocolError: It cannot be read, or is another picture.
    """
    return pictures.decode(data, size, layout, "PNG", _LARGEST, _check)


def _save(image: Image.Image, out: io.BytesIO) -> None:
    image.save(out, "PNG", compress_level=1)


def _check(data: bytes, width: int, height: int, channels: int) -> bool:
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR[channels], 0, 0, 0)
    if data[:8] != _START or data[8:16] != b"\0\0\0\rIHDR" or data[16:29] != header:
        return False
    # Pixels and the end: text and colour profiles are compressed, and a bomb could be in them.
    at = 33
    while data[at + 4 : at + 8] == b"IDAT":
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return at + 12 == len(data) and data[at : at + 8] == b"\0\0\0\0IEND"
