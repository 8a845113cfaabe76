"""LZ4, after byte shuffling: the first bytes of all elements, then all second bytes, and so on.

The exponents of neighbouring floats are alike where their mantissas are noise, so shuffled they
make runs that LZ4 finds.

The package lz4 may be missing: it has no wheel for some Pythons (the free-threaded 3.14), and the
other codecs do without it. Then `HERE` is False, and nobody is told that this side can do it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import RemoteProtocolError
from ..values.layout import Layout

try:
    import lz4.block
except ImportError:
    HERE = False
else:
    HERE = True


def encode(view: memoryview, layout: Layout) -> bytes | None:
    """Compressed, or None where that is not shorter."""
    plain: Any = view
    if layout.itemsize > 1:
        items = np.frombuffer(view, np.uint8).reshape(-1, layout.itemsize)
        plain = np.ascontiguousarray(items.T).reshape(-1)
    packed: bytes = lz4.block.compress(plain, store_size=False)
    return packed if len(packed) < len(view) else None


def decode(data: memoryview, size: int, layout: Layout) -> bytes | memoryview:
    """Exactly ``size`` bytes.

    Raises:
        RemoteProtocolError: It is not LZ4, or of another size.
    """
    try:
        plain: bytes = lz4.block.decompress(data, uncompressed_size=size)
    except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
        raise RemoteProtocolError(f"an lz4 chunk cannot be read ({error})") from error
    if len(plain) != size:
        raise RemoteProtocolError(f"an lz4 chunk has {len(plain)} bytes in place of {size}")
    if layout.itemsize == 1:
        return plain
    planes = np.frombuffer(plain, np.uint8).reshape(layout.itemsize, -1)
    unshuffled: Any = np.ascontiguousarray(planes.T).reshape(-1)
    return memoryview(unshuffled)
