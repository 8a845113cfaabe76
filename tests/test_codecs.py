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
from zbus.codecs import CHOICES, CODECS, SINGLE, mixed
from zbus.codecs.weighing import RAW, SAMPLE, STARVED, Ahead, Sight, Weighing, samples
from zbus.errors import CodecRefused, RemoteProtocolError, UnknownCodec
from zbus.values.layout import MOST_ROWS, Buffer, Layout, Map
from zbus.values.payload import Packed, flatten, pack

ALL = tuple(CODECS)
BEFORE = SINGLE  # the codecs of a peer that knows no mixed transfers


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
    assert ALL == ("raw", "lz4", "zlib", "png", "webp", "mixed")
    assert ("exact", "8-bit", *SINGLE) == CHOICES
    assert (*SINGLE, "mixed") == ALL
    assert all(codec.name == name for name, codec in CODECS.items())
    assert [n for n, c in CODECS.items() if c.pictures] == ["png", "webp", "mixed"]
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
        (1e8, True, "never"),
        (1e8, False, "if exact"),
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
        ("lz4", NOISE, BEFORE, 1e9, True, {"lz4"}),
        ("png", FILE, BEFORE, None, False, {"png"}),
        ("8-bit", FILE, BEFORE, None, False, {"webp"}),
        ("8-bit", FILE, BEFORE, None, True, {"raw"}),
        ("8-bit", FILE, BEFORE, 5e9, False, {"raw"}),
        ("8-bit", FILE, ("raw", "png"), None, False, {"png"}),
        ("8-bit", FILE, ("raw", "lz4"), None, False, {"raw"}),
        ("exact", FILE, BEFORE, None, True, {"raw"}),
        ("exact", FILE, BEFORE, 700e6, False, {"raw"}),
        ("exact", FILE, BEFORE, 1e6, False, {"png", "webp"}),
        ("exact", FILE, BEFORE, 1e6, True, {"raw"}),  # it is slow for want of CPU time
        ("exact", FILE, ALL, 1e6, True, {"raw"}),
        ("exact", FILE, ALL, 1e6, False, {"mixed"}),
        ("exact", FILE, ALL, None, False, {"mixed"}),
        ("exact", FILE, ALL, 5e9, False, {"mixed"}),  # that may have changed
        ("exact", packed_of("short"), ALL, None, False, {"raw"}),
        ("exact", FILE, ("raw",), 1e6, False, {"raw"}),
        ("exact", FILE, ("raw", "lz4"), 1e3, False, {"lz4"}),
        ("exact", NOISE, ("raw", "lz4", "png"), 1e3, False, {"lz4"}),
        ("exact", WORDS, BEFORE, 1e6, False, {"lz4", "zlib"}),
        ("exact", packed_of("short"), BEFORE, 1e3, False, {"raw"}),
        ("exact", Packed(b"", [], 0, "any"), BEFORE, 1e3, False, {"raw"}),
        ("exact", FILE, ("something newer",), 1e6, False, {"raw"}),
    ],
)
def test_choose(choice, packed, theirs, rate, local, wanted):
    assert codecs.choose(choice, packed, theirs, rate, local) in wanted


def test_choose_noise_that_nothing_shrinks():
    noise = memoryview(os.urandom(500_000))
    packed = Packed(b"", [Buffer(noise, Layout())], len(noise), "any")
    assert codecs.choose("exact", packed, BEFORE, 1e3, False) == "raw"


def test_choose_samples_a_narrow_tall_picture():
    tall = view(np.zeros((400_000, 1, 1), np.uint8))
    packed = Packed(b"", [Buffer(tall, Layout(1, 1, 1))], len(tall), "mask")
    assert codecs.choose("exact", packed, BEFORE, 1e3, False) != "raw"
    assert MOST_ROWS < 400_000


def test_a_codec_that_one_side_lacks(monkeypatch):
    with pytest.raises(CodecRefused, match=r"the peer cannot do the codec webp.*raw, lz4"):
        codecs.choose("webp", FILE, ("raw", "lz4"), None, False)
    monkeypatch.setattr(codecs, "available", lambda: ("raw", "lz4", "zlib", "png"))
    with pytest.raises(CodecRefused, match="this side cannot do the codec webp"):
        codecs.choose("webp", FILE, BEFORE, None, False)
    assert codecs.choose("8-bit", FILE, BEFORE, None, False) == "png"


def test_available():
    assert set(ALL) - {"webp"} <= set(codecs.available()) <= set(ALL)


@pytest.fixture
def without_lz4(monkeypatch):
    """As where the package is missing: `codecs.lz4` is still there, and says so."""
    monkeypatch.setattr(codecs.lz4, "HERE", False)
    codecs.available.cache_clear()
    yield
    codecs.available.cache_clear()


def test_a_side_without_lz4_neither_offers_nor_chooses_it(without_lz4):
    assert "lz4" not in codecs.available()
    assert codecs.choose("exact", WORDS, BEFORE, 1e5, False) != "lz4"
    with pytest.raises(
        CodecRefused, match=r"this side cannot.*lz4.*install it here,.*: pip install lz4"
    ):
        codecs.choose("lz4", FILE, BEFORE, None, False)


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


# chunks that go by several codecs


@pytest.mark.parametrize("name", SINGLE[1:])
@pytest.mark.parametrize("layout", [Layout(), Layout(4), Layout(1, 64, 3)])
def test_a_mixed_chunk_says_which_codec_it_is_by(name, layout):
    data = view(photo(64, 64, 3))
    packed = mixed.encode(data, layout, name)
    alone = CODECS[name].encode(data, layout)
    assert packed is None or packed[1:] == alone
    if packed is not None:
        assert bytes(mixed.decode(memoryview(packed), len(data), layout)) == bytes(data)
    assert name == "lz4" or packed is not None


@pytest.mark.parametrize("mark", [b"", b"r", b"m", b"\0", b"\xff"])
def test_a_mixed_chunk_by_no_codec_there_is(mark):
    with pytest.raises(RemoteProtocolError, match="no codec that is known here"):
        mixed.decode(memoryview(mark + b"x" * bool(mark)), 100, Layout())


def test_a_mixed_chunk_by_a_codec_that_is_missing_here(without_lz4):
    packed = mixed.encode(memoryview(bytes(1000)), Layout(), "lz4")
    with pytest.raises(RemoteProtocolError, match="no codec that is known here"):
        mixed.decode(memoryview(packed), 1000, Layout())
    assert "lz4" not in [codec.name for codec in codecs.usable(ALL)]


def test_what_a_mixed_transfer_may_be_made_of():
    def names(theirs):
        return [codec.name for codec in codecs.usable(theirs)]

    assert names(ALL) == ["lz4", "zlib", "webp"]
    assert names(("raw", "png", "mixed", "something newer")) == ["png"]
    assert names(()) == []


ROWS = Layout(1, 640, 3)
FAST_WEBP = Sight("webp", ROWS, 1000, 300, 1000 / 100e6)
LZ4 = Sight("lz4", ROWS, 1000, 600, 1000 / 1e9)


def weighing(*names, threads=2, **more):
    made = Weighing([CODECS[name] for name in names], threads=threads, **more)
    made.saw(FAST_WEBP)
    made.saw(LZ4)
    return made


@pytest.mark.parametrize(
    ("rate", "wanted"), [(None, "webp"), (1.25e6, "webp"), (12.5e6, "webp"), (1.25e9, RAW)]
)
def test_a_slow_link_is_worth_the_time_of_a_codec(rate, wanted):
    assert weighing("lz4", "webp").best(ROWS, 128 * 1024, rate) == wanted


def test_a_link_that_is_busy_anyhow_gives_a_codec_time():
    made = weighing("webp")
    assert made.best(ROWS, 128 * 1024, 125e6) == RAW
    assert made.best(ROWS, 128 * 1024, 125e6, Ahead(wire=0.01)) == "webp"
    behind = Ahead(wire=0.01, encoding=0.05, chunks=8)
    assert made.best(ROWS, 128 * 1024, 125e6, behind) == RAW, "its threads have no time"


def test_what_is_seen_counts_and_a_delay_of_others_does_not():
    made = weighing("webp")
    size = 128 * 1024
    made.saw(FAST_WEBP._replace(seconds=5.0))  # a thread has waited for something
    assert made.best(ROWS, size, 1.25e6) == "webp"
    for _ in range(40):  # but it goes on and on
        made.saw(FAST_WEBP._replace(seconds=5.0))
    assert made.best(ROWS, size, 1.25e6) == RAW
    made = weighing("webp")
    for _ in range(20):
        made.saw(FAST_WEBP._replace(packed=1000))
    assert made.best(ROWS, size, 1.25e6) == RAW, "it saves nothing there"


def test_pictures_are_for_picture_codecs_only():
    made = Weighing([CODECS["webp"]])
    assert made.best(Layout(4), 128 * 1024, 1e3) == RAW
    assert [s.layout for s in Weighing([CODECS["webp"]], samples(FILE.buffers)).sample()]


def test_samples_are_one_of_each_kind():
    value = packed_of([torch.rand(100_000), torch.rand(50_000), "words " * 50_000])
    taken = samples(value.buffers)
    assert [(len(s.view), s.layout.itemsize) for s in taken] == [(SAMPLE, 4), (SAMPLE, 1)]
    sights = Weighing([CODECS["lz4"], CODECS["webp"]], taken).sample()
    assert [(s.name, s.plain) for s in sights] == [("lz4", SAMPLE)] * 2


def test_a_link_that_has_nothing_to_do_is_looked_at_anew():
    made = weighing("webp")
    picked = []
    for _ in range(2 * STARVED + 2):
        picked.append(made.pick(ROWS, 128 * 1024, 1e6, Ahead()))
        made.starved()
    assert picked.count(RAW) == 2 and picked[0] == "webp"


def test_a_chunk_that_is_there_sooner_as_it_is():
    made = weighing("webp")
    size = 128 * 1024  # 1.3 ms to encode
    assert made.is_late(ROWS, size, "webp", 1e9, waits=0.0)
    assert not made.is_late(ROWS, size, "webp", 1e9, waits=0.002), "it is there any moment"
    assert not made.is_late(ROWS, size, "webp", 1e6, waits=0.0)


def test_the_only_codec_takes_every_chunk():
    made = weighing("webp", is_free=False)
    assert made.best(ROWS, 1000, 1e10) == "webp"
    assert not made.is_late(ROWS, 1000, "webp", 1e10, 0.0)
    assert made.failed("webp") and not made.failed("webp")
    assert made.best(ROWS, 1000, 1e3) == RAW
