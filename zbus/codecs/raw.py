"""The plain bytes."""

from __future__ import annotations

from ..errors import RemoteProtocolError
from ..values.layout import Layout


def encode(view: memoryview, layout: Layout) -> None:
    """Never shrinks."""
    return


def decode(data: memoryview, size: int, layout: Layout) -> memoryview:
    """The data itself.

    Raises:
        RemoteProtocolError: It is not ``size`` bytes.
    """
    if len(data) != size:
        raise RemoteProtocolError(f"a raw chunk has {len(data)} bytes in place of {size}")
    return data
