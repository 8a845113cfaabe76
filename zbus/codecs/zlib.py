"""zlib, level 1, of the plain bytes."""

from __future__ import annotations

import zlib

from ..errors import RemoteProtocolError
from ..values.layout import Layout


def encode(view: memoryview, layout: Layout) -> bytes | None:
    """Compressed, or None where that is not shorter."""
    packed = zlib.compress(view, 1)
    return packed if len(packed) < len(view) else None


def decode(data: bytes | memoryview, size: int, layout: Layout) -> bytes:
    """Exactly ``size`` bytes.

    Raises:
        RemoteProtocolError: It is not zlib, or of another size; no more than that is inflated.
    """
    stream = zlib.decompressobj()
    try:
        # One more than wanted: without it the checksum at the end would stay unread.
        plain = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise RemoteProtocolError(f"a zlib chunk cannot be read ({error})") from error
    if len(plain) != size or not stream.eof or stream.unused_data:
        raise RemoteProtocolError(f"a zlib chunk does not hold exactly {size} bytes")
    return plain
