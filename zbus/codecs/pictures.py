"""What the picture codecs share: strips of 8-bit rows as Pillow images, and bytes that are none.

Bytes that are not rows of a picture go through zlib, behind the marker "z", which begins
neither a PNG nor a WebP. Pillow sees only data whose header was read here and has the expected
format, mode and size: it allocates by the header.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from ..codecs import zlib
from ..errors import RemoteProtocolError
from ..values.layout import Layout

_MARKER = b"z"
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def encode(
    view: memoryview, layout: Layout, largest: int, save: Callable[[Image.Image, io.BytesIO], None]
) -> bytes | None:
    """The strip as a picture, or zlib behind the marker; None where that is not shorter.

    Args:
        largest: The longest side that the format can have.
    """
    if not _is_picture(len(view), layout, largest):
        packed = zlib.encode(view, layout)
        return None if packed is None or len(packed) + 1 >= len(view) else _MARKER + packed
    size = (layout.width, len(view) // layout.row)
    mode = MODES[layout.channels]
    out = io.BytesIO()
    pixels: Any = view  # Pillow takes any buffer, its annotations only some
    save(Image.frombuffer(mode, size, pixels, "raw", mode, 0, 1), out)
    return out.getvalue() if out.tell() < len(view) else None


def decode(
    data: bytes | memoryview,
    size: int,
    layout: Layout,
    format: str,
    largest: int,
    check: Callable[[bytes, int, int, int], bool],
) -> bytes:
    """Exactly ``size`` bytes.

    Args:
        check: Whether the data's header says (width, height, channels), and nothing else is in
            it that Pillow would act on.

    Raises:
        RemoteProtocolError: It cannot be read, or is another picture.
    """
    if data[:1] == _MARKER:
        return zlib.decode(data[1:], size, layout)
    if not _is_picture(size, layout, largest):
        raise RemoteProtocolError(f"a {format} chunk where no picture is")
    width, height = layout.width, size // layout.row
    data = bytes(data)
    if not check(data, width, height, layout.channels):
        raise RemoteProtocolError(
            f"a {format} chunk is not one of {width}x{height}x{layout.channels}"
        )
    plain = _load(data, format, layout.channels)
    if len(plain) != size:
        raise RemoteProtocolError(f"a {format} chunk has {len(plain)} bytes in place of {size}")
    return plain


def _is_picture(size: int, layout: Layout, largest: int) -> bool:
    row = layout.row
    return row > 0 and size % row == 0 and max(layout.width, size // row) <= largest


def _load(data: bytes, format: str, channels: int) -> bytes:
    try:
        with Image.open(io.BytesIO(data), formats=(format,)) as image:
            return _channels(image, channels).tobytes()
    except Exception as error:  # Pillow's: OSError, SyntaxError, ValueError, EOFError, ...
        raise RemoteProtocolError(f"a {format} chunk cannot be read ({error})") from error


def _channels(image: Image.Image, channels: int) -> Image.Image:
    # WebP has no grey, and drops an alpha that is opaque everywhere.
    if channels == 1 and image.mode == "RGB":
        return image.getchannel(0)
    if channels == 4 and image.mode == "RGB":
        return image.convert("RGBA")
    if image.mode != MODES[channels]:
        raise ValueError(f"mode {image.mode} in place of {MODES[channels]}")
    return image
