"""Pure: what a server packed, unpacked in bounded memory: aiohttp's own may know no bound."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

PIECE = 1 << 16  # bytes that are unpacked at once, at most


class Plain:
    """What comes unpacked. aiohttp itself notices where such an answer is too short."""

    complete = True

    def feed(self, piece: bytes) -> Iterator[bytes]:
        yield piece


class Inflate:
    """Unpacks gzip and zlib, never much at once: a few KiB may unpack to many MiB."""

    def __init__(self) -> None:
        self._stream = self._new()

    @staticmethod
    def _new() -> Any:
        return zlib.decompressobj(zlib.MAX_WBITS | 32)  # either, as its header says

    @property
    def complete(self) -> bool:
        return bool(self._stream.eof)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Raises zlib.error."""
        part = b""
        while piece or len(part) == PIECE:  # a full part: the stream may hold more of it
            if piece and self._stream.eof:  # gzip allows one after the other
                self._stream = self._new()
            part = self._stream.decompress(piece, PIECE)
            yield part
            piece = self._stream.unconsumed_tail or self._stream.unused_data


def unpacker(encoding: str) -> Plain | Inflate | None:
    """For that Content-Encoding; None: it is none that was asked for."""
    packed = encoding.strip().lower()
    if packed in ("", "identity"):
        return Plain()
    return Inflate() if packed in ("gzip", "x-gzip", "deflate") else None
