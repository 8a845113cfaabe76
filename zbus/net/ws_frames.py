"""Sans-IO: WebSocket frames (RFC 6455) where they lie: made before their payload, undone in place.

aiohttp's own gather a message, copy it, and copy it again to mask it, which costs as much as moving
it. Here bytes are only passed on: nothing is gathered but a header, and masks are undone where the
bytes came to lie.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import RemoteProtocolError

CONTINUATION, BINARY, CLOSE, PING, PONG = 0x0, 0x2, 0x8, 0x9, 0xA
LARGEST_HEADER = 14  # bytes
MAX_CONTROL = 125  # bytes of a control frame's payload

_FIN, _RESERVED, _MASKED = 0x80, 0x70, 0x80


@dataclass(frozen=True)
class Control:
    """A whole control frame: its opcode and its payload."""

    opcode: int
    payload: bytes


def header(opcode: int, size: int, key: bytes) -> bytes:
    """What stands before `size` bytes of payload; with a key of 4 bytes, what says it is masked."""
    masked = _MASKED if key else 0
    if size <= MAX_CONTROL:
        return bytes((_FIN | opcode, masked | size)) + key
    if size < 1 << 16:
        return bytes((_FIN | opcode, masked | 126)) + size.to_bytes(2, "big") + key
    return bytes((_FIN | opcode, masked | 127)) + size.to_bytes(8, "big") + key


def fresh_key(masks: bool) -> bytes:
    """A key that nobody can foresee; none for a side that does not mask."""
    return os.urandom(4) if masks else b""


def control(opcode: int, payload: bytes, masks: bool) -> bytes:
    """A whole control frame."""
    data, key = bytearray(payload), fresh_key(masks)
    mask(memoryview(data), key)
    return header(opcode, len(data), key) + data


def mask(data: memoryview, key: bytes, at: int = 0) -> None:
    """Mask, or unmask, in place; `at`: how far into the frame's payload the data begins."""
    if not key:
        return
    key = key[at % 4 :] + key[: at % 4]
    whole = len(data) & ~7
    words = np.frombuffer(data[:whole], np.uint64)
    np.bitwise_xor(words, np.frombuffer(key * 2, np.uint64)[0], out=words)
    for place in range(whole, len(data)):
        data[place] ^= key[place % 4]


class Frames:
    """Takes what comes apart.

    Args:
        masked: Whether it must be masked: what a server gets is, what a client gets is not.
        largest: Bytes of the largest frame that may come.

    Attributes:
        due: Bytes of payload that come before the next header.
    """

    def __init__(self, masked: bool, largest: int) -> None:
        self._masked, self._largest = masked, largest
        self._head = bytearray()
        self._opcode, self._key, self._at = 0, b"", 0
        self._control = bytearray()
        self._is_whole = True  # no message is under way, whose last frame has not come
        self.due = 0

    def take(self, data: memoryview) -> Iterator[memoryview | Control]:
        """The payloads in what has come, in order, each unmasked and a part of `data`; and the
        control frames between them. Goes on where it has stopped the last time.

        Raises:
            RemoteProtocolError: That is no frame, or none that may come here.
        """
        while data:
            if not self.due:
                data, is_read = self._read_header(data)
                if not is_read:
                    return
            piece, data = data[: self.due], data[self.due :]
            mask(piece, self._key, self._at)
            self._at += len(piece)
            self.due -= len(piece)
            if self._opcode < CLOSE:
                if piece:
                    yield piece
                continue
            self._control += piece
            if not self.due:
                yield Control(self._opcode, bytes(self._control))
                self._control.clear()

    def _read_header(self, data: memoryview) -> tuple[memoryview, bool]:
        head = self._head
        while len(head) < (needed := _header_size(head)):
            if not data:
                return data, False
            more = needed - len(head)
            head += data[:more]
            data = data[more:]
        keyed = 4 if head[1] & _MASKED else 0
        end = len(head) - keyed
        size = int.from_bytes(head[2:end], "big") if end > 2 else head[1] & 0x7F
        self._begin(head[0], size, bytes(head[end:]))
        head.clear()
        return data, True

    def _begin(self, first: int, size: int, key: bytes) -> None:
        opcode, is_last = first & 0x0F, bool(first & _FIN)
        if first & _RESERVED or bool(key) is not self._masked:
            raise RemoteProtocolError("a WebSocket frame of another kind than was agreed")
        if opcode in (CLOSE, PING, PONG):
            if size > MAX_CONTROL or not is_last:
                raise RemoteProtocolError("a WebSocket control frame that is too long")
        elif opcode != (BINARY if self._is_whole else CONTINUATION):
            raise RemoteProtocolError(f"a WebSocket frame that is out of place (opcode {opcode})")
        else:
            self._is_whole = is_last
        if size > self._largest:
            raise RemoteProtocolError(f"a WebSocket frame of {size} bytes")
        self._opcode, self._key, self._at, self.due = opcode, key, 0, size


def _header_size(head: bytearray) -> int:
    if len(head) < 2:
        return 2
    length = {126: 2, 127: 8}.get(head[1] & 0x7F, 0)
    return 2 + length + (4 if head[1] & _MASKED else 0)
