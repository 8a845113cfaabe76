"""Lossless WebP, its fastest setting, of strips of an 8-bit picture."""

from __future__ import annotations

import io

# Registered here: where it is not, the first picture has Pillow look at every plugin that it has.
from PIL import (
    Image,
    WebPImagePlugin,  # noqa: F401
)

from ..codecs import pictures
from ..values.layout import MOST_ROWS, Layout


def encode(view: memoryview, layout: Layout) -> bytes | None:
    """A WebP, or zlib of what is no picture or too wide; None where that is not shorter."""
    return pictures.encode(view, layout, MOST_ROWS, _save)


def decode(data: memoryview, size: int, layout: Layout) -> bytes:
    """Exactly ``size`` bytes.

    Raises:
        RemoteProtocolError: It cannot be read, or is another picture.
    """
    return pictures.decode(data, size, layout, "WEBP", MOST_ROWS, _check)


def _save(image: Image.Image, out: io.BytesIO) -> None:
    if image.mode == "L":
        image = image.convert("RGB")
    # exact: or the colours under a transparent alpha would be changed.
    image.save(out, "WEBP", lossless=True, method=0, quality=0, exact=True)


def _check(data: bytes, width: int, height: int, channels: int) -> bool:
    # RFC 9649, 2.5 and 3.4: "RIFF" size "WEBP" "VP8L" size 0x2f, then width - 1 and height - 1
    # in 14 bits each. A simple file, so no animation and no profile.
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8L" or data[20:21] != b"\x2f":
        return False
    bits = int.from_bytes(data[21:25], "little")
    return (bits & 0x3FFF) + 1 == width and (bits >> 14 & 0x3FFF) + 1 == height
