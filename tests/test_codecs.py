"""Codecs: exact both ways, hostile data refused, and the choice among them."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib

import lz4.block
import numpy as np
import pytest
import torch
from children import child
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from zbus import Peer, codecs
from zbus.codecs import CHOICES, CODECS
from zbus.errors import CodecRefused, RemoteProtocolError, UnknownCodec
from zbus.values.layout import MOST_ROWS, Buffer, Layout, Map
from zbus.values.payload import Packed, flatten, pack

ALL = tuple(CODECS)


def photo(height, width, channels):
    """Smooth, with a little noise, as pictures are."""
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    noise = np.random.default_rng(0).integers(0, 3, y.shape)
    return ((np.sin(x / 40) + np.cos(y / 30)) * 50 + 120 + 9 * c + noise).astype(np.uint8)


def view(array):
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def trip(codec, data, layout):
    """(what came back, whether it was encoded)."""
    packed = codec.encode(data, layout)
    if packed is None:
        return data, False
    assert len(packed) < len(data)
    got = codec.decode(memoryview(packed), len(data), layout)
    assert memoryview(got).format == "B" and memoryview(got).contiguous
    return got, True


def test_the_table():
    assert ALL == ("raw", "lz4", "zlib", "png", "webp")
    assert ("exact", "8-bit", *ALL) == CHOICES
    assert all(codec.name == name for name, codec in CODECS.items())
    assert [n for n, c in CODECS.items() if c.pictures] == ["png", "webp"]
    assert [n for n, c in CODECS.items() if c.eight_bit] == ["png", "webp"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 300), (37, 61), (200, 1)])
def test_pictures(name, channels, size):
    pixels = photo(*size, channels)
    got, _ = trip(CODECS[name], view(pixels), Layout(1, size[1], channels))
    assert bytes(got) == pixels.tobytes()


@pytest.mark.parametrize("name", ["png", "webp"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_sent_as_pictures(name, channels):
    packed = CODECS[name].encode(view(photo(64, 64, channels)), Layout(1, 64, channels))
    assert Image.open(io.BytesIO(packed)).format == name.upper()


@pytest.mark.parametrize("name", ["png", "webp"])
@pytest.mark.parametrize("alpha", [0, 255, None])
def test_alpha_and_the_colours_under_it(name, alpha):
    pixels = photo(64, 64, 4)
    if alpha is not None:
        pixels[..., 3] = alpha
    got, encoded = trip(CODECS[name], view(pixels), Layout(1, 64, 4))
    assert encoded and bytes(got) == pixels.tobytes()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8, 16])
def test_plain_bytes(name, itemsize):
    data = view(np.linspace(0, 1, 4096, dtype=np.float32))
    got, encoded = trip(CODECS[name], data, Layout(itemsize))
    assert bytes(got) == bytes(data)
    assert encoded or name in ("raw", "lz4") or itemsize == 1


def test_shuffling_helps_floats():
    data = view(np.linspace(0, 1, 4096, dtype=np.float32))
    assert CODECS["lz4"].encode(data, Layout(1)) is None
    assert len(CODECS["lz4"].encode(data, Layout(4))) < 0.8 * len(data)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layout", [Layout(), Layout(4), Layout(1, 32, 4)])
def test_noise_goes_plain(name, layout):
    assert CODECS[name].encode(memoryview(os.urandom(4096)), layout) is None


def test_wider_than_webp_can_be():
    pixels = photo(3, 17000, 3)
    packed = CODECS["webp"].encode(view(pixels), Layout(1, 17000, 3))
    assert packed[:1] == b"z"
    got = CODECS["webp"].decode(memoryview(packed), pixels.size, Layout(1, 17000, 3))
    assert bytes(got) == pixels.tobytes()


@pytest.mark.parametrize(
    ("name", "want"),
    # Byte by byte would be slow with pictures, whose chunks are whole rows anyhow.
    [
        (name, want)
        for name in ALL
        for want in (1, 1000, 50_000, 1 << 20)
        if want > 1 or not CODECS[name].pictures
    ],
)
def test_a_whole_value_chunk_by_chunk(name, want):
    """As the engine does it: each side has its own map of the same parts."""
    codec = CODECS[name]
    rng = np.random.default_rng(3)
    arrays = [
        photo(150, 70, 3),
        rng.normal(size=500 if want == 1 else 30_000).astype(np.float32),
        photo(40, 40, 1),
        np.zeros(33, np.uint8),
    ]
    layouts = [Layout(1, 70, 3), Layout(4), Layout(1, 40, 1), Layout()]
    sent = b"".join(array.tobytes() for array in arrays)
    over = Map([(array.nbytes, layout) for array, layout in zip(arrays, layouts, strict=True)])
    got = bytearray(len(sent))
    at = 0
    while at < over.total:
        size = over.cut(at, max(want, 64), codec.pictures)
        chunk = memoryview(sent)[at : at + size]
        got[at : at + size], _ = trip(codec, chunk, over.layout(at, size))
        at += size
    assert bytes(got) == sent


# hostile data


def png(mode="RGB", size=(8, 8), **how):
    out = io.BytesIO()
    Image.new(mode, size).save(out, "PNG", **how)
    return out.getvalue()


def webp(size=(8, 8), mode="RGB", **how):
    out = io.BytesIO()
    Image.new(mode, size).save(out, "WEBP", **({"lossless": True} | how))
    return out.getvalue()


def text_png():
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b" * 1000, zip=True)
    return png(pnginfo=info)


def claims(width, height):
    """A PNG whose header says this, for 8 x 8 pixels."""
    data = bytearray(png())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


SMALL = Layout(1, 8, 3)  # 8 rows of it: 192 bytes
GOOD = view(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layout", [Layout(), Layout(4), SMALL])
@pytest.mark.parametrize("size", [1, 192, 191, 196])
def test_garbage(name, layout, size):
    if size % (layout.row or layout.itemsize):
        layout = Layout()  # what Map.layout says of such a range
    for data in (b"", b"zz", b"\0" * 50, os.urandom(500), b"zz" * 30, b"RIFF" * 9, b"\x89PNG"):
        with pytest.raises(RemoteProtocolError):
            CODECS[name].decode(memoryview(data), size, layout)


@pytest.mark.parametrize("name", ["lz4", "zlib", "png", "webp"])
@pytest.mark.parametrize("layout", [Layout(), Layout(4), SMALL])
def test_truncated_lengthened_and_of_another_size(name, layout):
    codec = CODECS[name]
    packed = bytes(codec.encode(GOOD, layout))
    assert bytes(codec.decode(memoryview(packed), 192, layout)) == bytes(GOOD)
    wrong = [(packed[:cut], 192) for cut in range(len(packed))]
    wrong += [(packed, 168), (packed, 216), (packed, 24)]
    if name != "webp" or not layout.row:  # RIFF says its own length
        wrong.append((packed + b"\0", 192))
    for data, size in wrong:
        with pytest.raises(RemoteProtocolError):
            got = codec.decode(memoryview(data), size, layout)
            # libwebp needs not its very last bits; whatever it gives then must be right
            if name == "webp" and bytes(got) == bytes(GOOD):
                raise RemoteProtocolError("as good")


@pytest.mark.parametrize(
    "data",
    [
        png(size=(8, 9)),
        png(size=(9, 8)),
        png("L"),
        png("RGBA"),
        png("P"),
        png("1"),
        png("I;16"),
        text_png(),
        claims(100_000, 100_000),
        claims(2**31 - 1, 2**31 - 1),
        claims(8, 9),
        webp(),
    ],
)
def test_other_pngs(data):
    with pytest.raises(RemoteProtocolError):
        CODECS["png"].decode(memoryview(data), 192, SMALL)


@pytest.mark.parametrize(
    "data",
    [
        webp((8, 9)),
        webp((9, 8)),
        webp(lossless=False),
        webp(exif=b"x" * 10),
        webp(save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]),
        png(),
    ],
)
def test_other_webps(data):
    with pytest.raises(RemoteProtocolError):
        CODECS["webp"].decode(memoryview(data), 192, SMALL)


def test_a_webp_with_alpha_where_there_is_none():
    data = io.BytesIO()
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(data, "WEBP", lossless=True, exact=True)
    with pytest.raises(RemoteProtocolError):
        CODECS["webp"].decode(memoryview(data.getvalue()), 192, SMALL)


@pytest.mark.parametrize("name", ["lz4", "zlib", "png", "webp"])
def test_bombs_inflate_no_further_than_told(name):
    size = 64 << 20
    if name == "lz4":
        bomb = lz4.block.compress(bytes(size), store_size=False)
    else:
        bomb = (b"z" if name in ("png", "webp") else b"") + zlib.compress(bytes(size), 1)
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        CODECS[name].decode(memoryview(bomb), 1000, Layout())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(bomb) + 200_000  # a copy of the input at most


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(["lz4", "zlib", "png", "webp"]), st.sampled_from([1, 3, 4]))
def test_mutated_data(data, name, channels):
    layout = Layout(1, 8, channels)
    pixels = view(np.tile(photo(8, 8, channels), (4, 1, 1)))
    packed = bytearray(CODECS[name].encode(pixels, layout) or b"z")
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        got = CODECS[name].decode(memoryview(packed), len(pixels), layout)
    except RemoteProtocolError:
        return
    assert len(got) == len(pixels)


# choices


def test_check():
    for choice in CHOICES:
        codecs.check(choice)
    with pytest.raises(UnknownCodec, match=r"'jpeg'.*exact, 8-bit, raw, lz4, zlib, png, webp"):
        codecs.check("jpeg")


def test_eight_bit_and_pack_mode():
    modes = {choice: codecs.eight_bit(choice) for choice in CHOICES}
    assert modes == {
        "exact": "if exact",
        "8-bit": "always",
        "raw": "never",
        "lz4": "never",
        "zlib": "never",
        "png": "always",
        "webp": "always",
    }
    for rate, local, exact in [
        (None, True, "never"),
        (None, False, "if exact"),
        (1e9, False, "never"),
        (1e8, True, "if exact"),
    ]:
        for choice in CHOICES:
            wanted = exact if choice == "exact" else modes[choice]
            assert codecs.pack_mode(choice, rate, local) == wanted


def packed_of(value, mode="if exact"):
    return pack(flatten(value), mode)


NOISE = packed_of(torch.rand(1, 200, 200, 3))
FILE = packed_of(torch.from_numpy(photo(300, 300, 3).astype(np.float32) / 255.0)[None])
WORDS = packed_of("the quick brown fox " * 20_000)


@pytest.mark.parametrize(
    ("choice", "packed", "theirs", "rate", "local", "wanted"),
    [
        ("raw", NOISE, (), None, False, {"raw"}),
        ("lz4", NOISE, ALL, 1e9, True, {"lz4"}),
        ("png", FILE, ALL, None, False, {"png"}),
        ("8-bit", FILE, ALL, None, False, {"webp"}),
        ("8-bit", FILE, ALL, None, True, {"raw"}),
        ("8-bit", FILE, ALL, 5e9, False, {"raw"}),
        ("8-bit", FILE, ("raw", "png"), None, False, {"png"}),
        ("8-bit", FILE, ("raw", "lz4"), None, False, {"raw"}),
        ("exact", FILE, ALL, None, True, {"raw"}),
        ("exact", FILE, ALL, 700e6, False, {"raw"}),
        ("exact", FILE, ALL, 1e6, False, {"png", "webp"}),
        ("exact", FILE, ALL, 1e6, True, {"png", "webp"}),
        ("exact", FILE, ("raw",), 1e6, False, {"raw"}),
        ("exact", FILE, ("raw", "lz4"), 1e3, False, {"lz4"}),
        ("exact", NOISE, ("raw", "lz4", "png"), 1e3, False, {"lz4"}),
        ("exact", WORDS, ALL, 1e6, False, {"lz4", "zlib"}),
        ("exact", packed_of("short"), ALL, 1e3, False, {"raw"}),
        ("exact", Packed(b"", [], 0, "any"), ALL, 1e3, False, {"raw"}),
        ("exact", FILE, ("something newer",), 1e6, False, {"raw"}),
    ],
)
def test_choose(choice, packed, theirs, rate, local, wanted):
    assert codecs.choose(choice, packed, theirs, rate, local) in wanted


def test_choose_noise_that_nothing_shrinks():
    noise = memoryview(os.urandom(500_000))
    packed = Packed(b"", [Buffer(noise, Layout())], len(noise), "any")
    assert codecs.choose("exact", packed, ALL, 1e3, False) == "raw"


def test_choose_samples_a_narrow_tall_picture():
    tall = view(np.zeros((400_000, 1, 1), np.uint8))
    packed = Packed(b"", [Buffer(tall, Layout(1, 1, 1))], len(tall), "mask")
    assert codecs.choose("exact", packed, ALL, 1e3, False) != "raw"
    assert MOST_ROWS < 400_000


def test_a_codec_that_one_side_lacks(monkeypatch):
    with pytest.raises(CodecRefused, match=r"the peer cannot do the codec webp.*raw, lz4"):
        codecs.choose("webp", FILE, ("raw", "lz4"), None, False)
    monkeypatch.setattr(codecs, "available", lambda: ("raw", "lz4", "zlib", "png"))
    with pytest.raises(CodecRefused, match="this side cannot do the codec webp"):
        codecs.choose("webp", FILE, ALL, None, False)
    assert codecs.choose("8-bit", FILE, ALL, None, False) == "png"


def test_available():
    assert codecs.available() in (ALL, ALL[:-1])


@pytest.fixture
def without_lz4(monkeypatch):
    """As where the package is missing: `codecs.lz4` is still there, and says so."""
    monkeypatch.setattr(codecs.lz4, "HERE", False)
    codecs.available.cache_clear()
    yield
    codecs.available.cache_clear()


def test_a_side_without_lz4_neither_offers_nor_chooses_it(without_lz4):
    assert "lz4" not in codecs.available()
    assert codecs.choose("exact", WORDS, ALL, 1e5, False) != "lz4"
    with pytest.raises(
        CodecRefused, match=r"this side cannot.*lz4.*install it here,.*: pip install lz4"
    ):
        codecs.choose("lz4", FILE, ALL, None, False)


WITHOUT = """
    import sys
    sys.modules["lz4"] = None  # as where it is not installed
    from zbus import Peer
    with Peer("without") as peer, peer.listen("127.0.0.1:0") as channel:
        print("at", channel.address, flush=True)
        for number in range(2):
            print("got", len(channel.receive(number, timeout=60)), flush=True)
        channel.send(b"x" * 200_000, timeout=60)
"""


def test_a_peer_without_lz4_gets_what_both_can(monkeypatch):
    """Whoever has it sends it in no such chunks, and says so if it is told to."""
    monkeypatch.setattr(codecs, "_is_fast", lambda *_: False)  # so that codecs are weighed
    value = b"compressible " * 20_000
    with child(WITHOUT) as other, Peer("with") as peer:
        with peer.connect(other.line("at ").split()[1]) as channel:
            with pytest.raises(CodecRefused, match=r"peer cannot.*lz4.*install .* lz4"):
                channel.send(value, 0, quality="lz4", timeout=60)
            for number, quality in enumerate(("exact", "zlib")):
                channel.send(value, number, quality=quality, timeout=60)
                other.line(f"got {len(value)}")
            assert channel.receive(timeout=60) == b"x" * 200_000
