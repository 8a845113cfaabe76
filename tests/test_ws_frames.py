"""WebSocket frames in place: `zbus.net.ws_frames`, beside aiohttp's own."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbus.errors import RemoteProtocolError
from zbus.net.ws_frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    Control,
    Frames,
    control,
    fresh_key,
    header,
    mask,
)

LARGEST = 1 << 20
SIZES = (0, 1, 7, 8, 9, 125, 126, 65535, 65536, 70001)


def frame(opcode: int, payload: bytes, masks: bool, *, is_last: bool = True) -> bytes:
    key, data = fresh_key(masks), bytearray(payload)
    mask(memoryview(data), key)
    head = bytearray(header(opcode, len(data), key))
    head[0] &= 0xFF if is_last else 0x7F
    return bytes(head + data)


def taken(stream: bytes, masked: bool, cuts: list[int]) -> tuple[bytes, list[Control]]:
    """What comes of a stream that arrives in those pieces: payload, control frames."""
    frames, payload, controls = Frames(masked, LARGEST), bytearray(), []
    for begin, end in pairwise([0, *sorted(cuts), len(stream)]):
        for part in frames.take(memoryview(bytearray(stream[begin:end]))):
            if isinstance(part, Control):
                controls.append(part)
            else:
                payload += part
    assert frames.due == 0
    return bytes(payload), controls


@given(st.booleans(), st.data())
def test_whatever_the_pieces_are_that_come(masked: bool, data: Any) -> None:
    chance = random.Random(data.draw(st.integers(0, 99)))
    payloads = [chance.randbytes(size) for size in data.draw(st.lists(st.sampled_from(SIZES)))]
    said = [Control(PING, b"one"), Control(PONG, b""), Control(CLOSE, b"\x03\xe8")]
    stream = b""
    for payload in payloads:
        middle = data.draw(st.integers(0, len(payload)))
        stream += frame(BINARY, payload[:middle], masked, is_last=False)
        stream += control(PING, b"one", masked)
        stream += frame(CONTINUATION, payload[middle:], masked)
    stream += control(PONG, b"", masked) + control(CLOSE, b"\x03\xe8", masked)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    payload, controls = taken(stream, masked, cuts)
    assert payload == b"".join(payloads)
    assert controls == [said[0]] * len(payloads) + said[1:]


def test_a_stream_that_comes_byte_by_byte() -> None:
    data, ping = bytes(range(200)), Control(PING, b"?")
    stream = frame(BINARY, data, True) + control(PING, b"?", True)
    assert taken(stream, True, list(range(len(stream)))) == (data, [ping])


@pytest.mark.parametrize("begin", range(9))
@pytest.mark.parametrize("at", range(5))
def test_a_mask_undoes_itself_wherever_the_bytes_lie(begin: int, at: int) -> None:
    plain, key = random.Random(at).randbytes(61), b"\x01\x20\x33\xf4"
    data = bytearray(9 + len(plain))
    view = memoryview(data)[begin : begin + len(plain)]
    view[:] = plain
    mask(view, key, at)
    assert bytes(view) == bytes(byte ^ key[(at + n) % 4] for n, byte in enumerate(plain))
    assert not any(data[:begin]) and not any(data[begin + len(plain) :])
    mask(view, key, at)
    assert bytes(view) == plain


@pytest.mark.parametrize(
    ("stream", "masked"),
    [
        (frame(BINARY, b"x", False), True),  # a client has to mask
        (frame(BINARY, b"x", True), False),  # and a server must not
        (frame(0x1, b"text", True), True),
        (frame(0x3, b"?", True), True),
        (frame(CONTINUATION, b"of nothing", True), True),
        (frame(BINARY, b"x", True, is_last=False) + frame(BINARY, b"x", True), True),
        (frame(PING, b"x", True, is_last=False), True),
        (b"\x89\xfe\x00\x7e" + bytes(4), True),  # a ping of 126 bytes
        (b"\xc2\x81" + bytes(5), True),  # compressed
        (b"\x82\xff" + (LARGEST + 1).to_bytes(8, "big") + bytes(4), True),
        (b"\x82\xff" + b"\xff" * 8 + bytes(4), True),
    ],
)
def test_what_may_not_come(stream: bytes, masked: bool) -> None:
    with pytest.raises(RemoteProtocolError, match="WebSocket"):
        list(Frames(masked, LARGEST).take(memoryview(bytearray(stream))))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_frames_or_an_error(data: bytes, masked: bool) -> None:
    try:
        parts = list(Frames(masked, LARGEST).take(memoryview(bytearray(data))))
    except RemoteProtocolError:
        return
    assert sum(len(p.payload) if isinstance(p, Control) else len(p) for p in parts) <= len(data)


def test_keys_are_fresh() -> None:
    assert len({fresh_key(True) for _ in range(50)}) == 50
    assert fresh_key(False) == b""
