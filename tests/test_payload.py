"""Values to bytes and back: bit-exact, refused by name, and hostile specs."""

from __future__ import annotations

import math
import re
import struct
import subprocess
import sys
import tracemalloc
from collections import OrderedDict, namedtuple
from enum import IntEnum

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zbus.errors import (
    CodecRefused,
    InputError,
    LocalProtocolError,
    NotTransferable,
    RemoteProtocolError,
    TransferRefused,
)
from zbus.values import spec as wire
from zbus.values.kinds import LIST, VIDEO
from zbus.values.payload import (
    KINDS,
    Layout,
    Map,
    NestedTensor,
    Unpacker,
    check_choice,
    describe,
    fits,
    flatten,
    pack,
)
from zbus.values.tensors import TENSOR_ITEMSIZE


def deliver(packed, chunk=1 << 20):
    """What the wire does: the concatenation, scattered by the receiver's own map."""
    sent = b"".join(buffer.view for buffer in packed.buffers)
    unpacker = Unpacker(packed.spec)
    assert unpacker.total == packed.total == len(sent)
    assert unpacker.memory >= unpacker.total
    assert unpacker.layouts == [(len(b.view), b.layout) for b in packed.buffers]
    assert all(b.view.format == "B" and b.view.ndim == 1 and len(b.view) for b in packed.buffers)
    views = unpacker.allocate()
    assert [len(view) for view in views] == [len(b.view) for b in packed.buffers]
    over = Map(unpacker.layouts)
    at = 0
    while at < over.total:
        size = over.cut(at, chunk, False)
        for index, start, length in over.pieces(at, size):
            views[index][start : start + length] = sent[at : at + length]
            at += length
    return unpacker.value()


def trip(value, eight_bit="never"):
    return deliver(pack(flatten(value), eight_bit))


def bits(tensor):
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def same(a, b):
    """Equal in types, shapes, dtypes and bits."""
    if isinstance(a, torch.Tensor):
        return type(b) is torch.Tensor and (
            a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
        )
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return a == b


DTYPES = [name for name in TENSOR_ITEMSIZE if hasattr(torch, name)]


def filled(name, shape):
    """A tensor of random bits: NaN payloads, -0.0 and infinities among them."""
    tensor = torch.empty(shape, dtype=getattr(torch, name))
    raw = torch.randint(0, 256, (tensor.numel() * tensor.element_size(),), dtype=torch.uint8)
    if name == "bool":
        raw &= 1
    return raw.view(tensor.dtype).reshape(shape)


def test_the_table_has_every_ordinary_dtype_of_this_torch():
    odd = {"bit", "quint8", "qint8", "qint32", "quint4x2", "quint2x4"}
    real = {
        str(d).removeprefix("torch.")
        for d in vars(torch).values()
        if isinstance(d, torch.dtype) and "bits" not in str(d)
    }
    small = {f"{sign}int{n}" for sign in ("", "u") for n in range(1, 8)}
    assert real - odd - small == set(TENSOR_ITEMSIZE)
    assert all(getattr(torch, n).itemsize == size for n, size in TENSOR_ITEMSIZE.items())


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 5, 3), (1, 9, 11, 3)])
def test_every_dtype_is_bit_exact(name, shape):
    value = filled(name, shape)
    assert same(value, trip(value))
    assert same(value, trip(value, "if exact"))


@pytest.mark.parametrize("name", DTYPES)
def test_non_contiguous(name):
    base = filled(name, (6, 8))
    value = base.view(torch.uint8 if base.element_size() == 1 else base.dtype).t()[1::2]
    value = value.view(base.dtype)
    assert not value.is_contiguous()
    got = trip(value)
    index = torch.int64 if value.element_size() == 8 else torch.uint8
    if value.element_size() in (1, 8):
        assert torch.equal(got.view(index), value.view(index).contiguous())
    else:
        assert same(value, got)


def test_contiguous_tensors_are_not_copied():
    value = torch.zeros(1000)
    (buffer,) = pack(flatten(value), "never").buffers
    buffer.view[:4] = struct.pack("f", 2.5)
    assert value[0] == 2.5


def test_views_expanded_gradient_conjugate_and_parameter():
    assert same(torch.ones(4, 5), trip(torch.ones(1).expand(4, 5)))
    assert same(torch.arange(3.0), trip(torch.arange(3.0, requires_grad=True)))
    z = torch.tensor([1 + 2j, 3 - 4j])
    assert same(torch.tensor([1 - 2j, 3 + 4j]), trip(z.conj()))
    assert same(torch.tensor([-2.0, 4.0]), trip(z.conj().imag))
    assert same(torch.ones(3), trip(torch.nn.Parameter(torch.ones(3))))
    with torch.inference_mode():
        assert same(torch.ones(2, 2), trip(torch.ones(2, 2)))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**63,
        2**64 - 1,
        2**64,
        -(2**63) - 1,
        2**4096 - 1,
        -(2**4095),
        0.1,
        -0.0,
        math.inf,
        struct.unpack("d", b"\x01\0\0\0\0\0\xf8\x7f")[0],
        complex(-0.0, 2),
        "",
        "s",
        "[",
        "ÿ\U0001f600",
        "\ud800 alone",
        "x" * 1024,
        "x" * 1025,
        "é\ud800" * 4000,
        b"",
        b"a\0",
        b"b" * 5000,
        [],
        (),
        {},
        [1, (2, [3.5, None]), {"a": {"b": b"c"}}],
        {1: "i", 1.5: "f", None: "n", b"b": "b", (1, ("x", None)): "t", 2**70: "big", False: 0},
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_python_values(value):
    assert same(value, trip(value))


def test_plain_subclasses_arrive_as_what_they_are():
    class Text(str):
        pass

    class Colour(IntEnum):
        RED = 3

    assert same("hi", trip(Text("hi")))
    assert same(3, trip(Colour.RED))
    assert same({"a": 1}, trip(OrderedDict(a=1)))
    assert same((2, 3), trip(torch.zeros(2, 3).shape))
    assert same([1.5, 7, True], trip([np.float32(1.5), np.int8(7), np.bool_(True)]))
    assert same(b"z" * 2000, trip(bytearray(b"z" * 2000)))


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "u2", "?", "c16", ">f4", ">i8"])
def test_numpy_arrays(dtype):
    value = (np.arange(24).reshape(4, 6) % 2).astype(dtype)[:, ::2]
    native = value.astype(value.dtype.newbyteorder("="))
    assert same(native, trip(value))
    assert same(native[:0], trip(value[:0]))
    assert same(np.array(native[0, 0]), trip(np.array(value[0, 0])))


def test_comfyui_values():
    latent = {
        "samples": torch.randn(2, 16, 8, 4).to(torch.bfloat16),
        "noise_mask": torch.rand(1, 64, 32),
        "batch_index": [0, 3],
    }
    audio = {"waveform": torch.randn(1, 2, 999), "sample_rate": 44100}
    conditioning = [[torch.randn(1, 77, 8), {"pooled_output": torch.randn(1, 8), "area": (1, 2)}]]
    for kind, value in [
        ("image", torch.rand(1, 8, 8, 3)),
        ("mask", torch.rand(1, 8, 8)),
        ("mask", torch.rand(8, 8)),
        ("latent", latent),
        ("audio", audio),
        ("conditioning", conditioning),
        ("text", "a"),
        ("number", 1.0),
        ("number", True),
        ("any", torch.rand(9)),
        ("any", torch.zeros(1, 8, 8, 3, dtype=torch.int64)),
        ("any", []),
        ("any", [[torch.zeros(1), 5]]),
    ]:
        assert describe(value) == flatten(value).kind == kind
        assert [k for k in KINDS if fits(k, value)] == sorted({"any", kind}, key=KINDS.index)
        assert same(value, trip(value))
    with pytest.raises(InputError, match="'picture'.*image"):
        fits("picture", 1)


def test_nested_tensors():
    samples = NestedTensor([torch.rand(1, 4, 3), torch.rand(2, 5)])
    value = {
        "samples": samples,
        "noise_mask": NestedTensor([torch.rand(1, 1, 3), torch.ones(2, 5)]),
    }
    assert describe(value) == "latent"
    got = trip(value | {"batch_index": [2]})
    assert got.keys() == {"samples", "noise_mask", "batch_index"}
    for part, sent in value.items():
        assert type(got[part]) is NestedTensor
        assert same(sent.tensors, got[part].tensors)


def test_nested_tensors_become_comfyuis_own(monkeypatch):
    class Theirs:
        def __init__(self, tensors):
            self.tensors = list(tensors)

    Theirs.__name__ = "NestedTensor"
    fake = type(sys)("comfy.nested_tensor")
    fake.NestedTensor = Theirs
    monkeypatch.setitem(sys.modules, "comfy", type(sys)("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.nested_tensor", fake)
    got = trip(Theirs([torch.ones(2)]))
    assert type(got) is Theirs and same([torch.ones(2)], got.tensors)


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def cyclic():
    value = {}
    value["me"] = value
    return value


class Wrapper(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError


Point = namedtuple("Point", "x")


@pytest.mark.parametrize(
    ("value", "place", "what"),
    [
        (object(), "value", "object"),
        ([[torch.zeros(1), {"control": object()}]], "value[0][1]['control']", "object"),
        ({"model": [torch.nn.Identity()]}, "value['model'][0]", "Identity"),
        ([Point(1)], "value[0]", "Point"),
        ([{1, 2}], "value[0]", "set"),
        ({"f": len}, "value['f']", "builtin_function"),
        ({frozenset(): 1}, "value[a frozenset]", "key"),
        ([torch.zeros(3).to_sparse()], "value[0]", "sparse_coo"),
        ([torch.empty(3, device="meta")], "value[0]", "meta"),
        ([torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)], "value[0]", "qint8"),
        ([torch.zeros(2).as_subclass(Wrapper)], "value[0]", "Wrapper"),
        ([torch.nn.UninitializedParameter()], "value[0]", "UninitializedParameter"),
        ([np.array(["a"])], "value[0]", "dtype str"),
        ([np.array([object()])], "value[0]", "dtype object"),
        ([np.datetime64("2020")], "value[0]", "date"),
        (NestedTensor(["x"]), "value.tensors[0]", "str"),
        ([1 << 4096], "value[0]", "4097 bits"),
        ({1 << 40_000: 1}, "value[a large int]", "40001 bits"),
        ({(1, object()): 1}, "value[a tuple]", "key of type object"),
        (deep(40), "value[0][0]", "32 levels"),
        (cyclic(), "value['me']['me']", "holds itself"),
        ([None] * 70000, "value", "65536"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_refusals_name_type_and_place(value, place, what):
    with pytest.raises(NotTransferable) as caught:
        flatten(value)
    assert str(caught.value).startswith(place) and what in str(caught.value)


def test_fake_tensors_are_refused():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.zeros(2))
    with pytest.raises(NotTransferable, match="FakeTensor"):
        flatten(fake)


def test_the_deepest_value_and_the_most_items_pass():
    assert same(deep(32), trip(deep(32)))
    most = [None] * wire.MAX_ITEMS
    assert same(most, trip(most))


def of_few(shape, numbers, dtype="float32"):
    made = torch.tensor(numbers, dtype=torch.float64).to(getattr(torch, dtype))
    return made[torch.randint(0, len(numbers), shape, generator=torch.Generator().manual_seed(3))]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize(
    "numbers",
    [
        [k / 256 for k in range(256)],  # the frames of a film, where white is 0.9961
        [k * 257 / 65536 for k in range(256)],
        [-1.5, -0.0, 0.0, math.inf, math.nan, 1e-7],
        [0.3],
    ],
    ids=["256", "65536", "odd", "one"],
)
def test_pictures_of_few_numbers_are_a_byte_an_element(numbers, dtype):
    value = of_few((2, 40, 50, 3), numbers, dtype)
    packed = pack(flatten(value), "if exact")
    assert packed.total == value.numel()
    assert same(value, deliver(packed))
    assert pack(flatten(value), "never").total == value.numel() * value.element_size()


def test_what_the_sample_has_missed_takes_its_place_among_the_numbers():
    value = of_few((1, 600, 600, 1), [0.25, 0.75])
    value[0, 555, 555, 0], value[0, 3, 3, 0], value[0, 599, 599, 0] = 0.5, 0.1, 0.9
    packed = pack(flatten(value), "if exact")
    assert packed.total == value.numel()
    assert same(value, deliver(packed))


def test_a_picture_of_more_than_256_numbers_stays_plain():
    value = of_few((1, 64, 64, 3), [k / 257 for k in range(257)])
    assert pack(flatten(value), "if exact").total == value.numel() * 4
    rare = of_few((1, 600, 600, 1), [k / 256 for k in range(256)])
    rare[0, 599, 598, 0] = 0.9999
    assert pack(flatten(rare), "if exact").total == rare.numel() * 4


# Many parts


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize(
    ("numbers", "itemsize"),
    [
        (range(-128, 128), 1),
        (range(129), 2),
        ([-129] * 20, 2),
        ([0] * 20 + [2**31 - 1], 4),
        ([0] * 20 + [2**31], 8),
        ([-(2**63), 2**63 - 1] * 8, 8),
        ([True, False] * 8, 1),
        ([0.0, -0.0, math.inf, 1e-310, 0.1] * 4, 8),
        (
            [
                struct.unpack("<d", struct.pack("<Q", 0x7FF0_0000_0000_0001 + n))[0]
                for n in range(16)
            ],
            8,
        ),
    ],
    ids=str,
)
def test_numbers_of_one_type_are_one_buffer(kind, numbers, itemsize):
    value = kind(numbers)
    packed = pack(flatten([value, "x"]), "if exact")
    assert [len(buffer.view) for buffer in packed.buffers] == [len(value) * itemsize]
    got = deliver(packed)[0]
    assert same(value, got) and set(map(type, got)) == {type(value[0])}
    if type(value[0]) is float:
        assert struct.pack(f"{len(value)}d", *value) == struct.pack(f"{len(got)}d", *got)


@pytest.mark.parametrize(
    "value",
    [
        [1] * 15,
        [1] * 20 + [True],
        [1] * 20 + [1.0],
        [1] * 20 + [None],
        [1] * 20 + [2**63],
        [IntEnum("Number", "one")(1)] * 20,
        [np.float32(0.1)] * 20,
    ],
    ids=ascii,
)
def test_other_lists_of_numbers_are_named_one_by_one(value):
    packed = pack(flatten(value), "never")
    assert packed.total == 0
    plain = [v.item() if isinstance(v, np.generic) else v for v in value]
    assert same([int(v) if isinstance(v, IntEnum) else v for v in plain], deliver(packed))


def test_more_numbers_than_would_ever_be_taken_are_refused_here(monkeypatch):
    monkeypatch.setattr(wire, "MAX_NUMBERS", 100)
    flatten([[0] * 50, [0.5] * 50])
    with pytest.raises(NotTransferable, match="more than 100 numbers in lists"):
        flatten([[0] * 50, [0.5] * 50, [True] * 16])


@pytest.mark.parametrize("dtype", TENSOR_ITEMSIZE)
def test_small_tensors_share_one_buffer_and_no_memory(dtype):
    item = TENSOR_ITEMSIZE[dtype]
    raw = torch.randint(0, 2 if dtype == "bool" else 256, (item * 64,), dtype=torch.uint8)
    whole = raw.view(getattr(torch, dtype))
    shapes = [(64,), (), (4, 16), (1, 64, 1), (3,), (4, 16)]
    value = [whole[: math.prod(shape)].view(shape) for shape in shapes]
    for sent in (value, value[:1] * 5):
        packed = pack(flatten(sent), "if exact")
        assert len(packed.buffers) == 1
        got = deliver(packed)
        assert same(sent, got)
        assert len({tensor.untyped_storage().data_ptr() for tensor in got}) == len(got)
        assert all(t.untyped_storage().nbytes() == t.numel() * item for t in got)


def test_small_tensors_of_every_make():
    grown = torch.ones(4, requires_grad=True) * 2
    turned = torch.arange(12.0).view(3, 4).t()
    mirror = torch.tensor([1 + 2j, 3 - 4j]).conj()
    value = {
        "grown": grown,
        "parameter": torch.nn.Parameter(torch.rand(4)),
        "turned": turned,
        "spread": torch.rand(1).expand(5),
        "conj": mirror,
        "neg": mirror.imag,
        "empty": torch.zeros(0, 3),
        "large": torch.rand(wire.MAX_POOLED // 4 + 1),
        "half": torch.rand(4).half(),
        "two": NestedTensor([torch.rand(2), torch.rand(3)]),
    }
    packed = pack(flatten(value), "never")
    assert len(packed.buffers) == 4  # float32, complex64, float16, and the large one
    got = deliver(packed)
    got["grown"].resize_(100).resize_(4)  # it is an ordinary tensor
    two = got.pop("two").tensors
    assert same(value.pop("two").tensors, two)
    assert same({k: v.detach().resolve_conj().resolve_neg() for k, v in value.items()}, got)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 4, 4, 6)])
def test_an_element_taken_out_of_a_row_travels(shape):
    last = torch.rand(shape)[..., :: shape[-1]]
    one = last[tuple(slice(0, 1) for _ in shape)]
    assert one.stride(-1) != 1 and one.is_contiguous()
    plain = one.clone(memory_format=torch.contiguous_format)
    assert same(plain, trip(one, "if exact"))
    assert same([plain], trip([one], "if exact"))
    assert same([plain, plain], trip([one, one], "if exact"))


def test_parts_on_one_device_leave_it_as_one():
    class Copies(torch.overrides.TorchFunctionMode):
        made = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.made += func is torch.Tensor.cpu
            return func(*args, **(kwargs or {}))

    mirror = torch.tensor([1 + 2j, 3 - 4j]).conj()
    alike = [torch.nn.Parameter(torch.rand(2)), torch.rand(2), mirror.imag, torch.rand(2)]
    flat = flatten(alike)
    # A part that is copied from there by itself lies elsewhere than those that it is joined with.
    with Copies() as copies:
        packed = pack(flat, "never")
    assert copies.made == 1
    assert same([tensor.detach().resolve_neg() for tensor in alike], deliver(packed))


def test_what_changes_its_size_on_the_way_is_refused_here():
    def retype(value):
        value[1].data = torch.rand(4, dtype=torch.float64)

    def swap(value):  # as many bytes as before, cut elsewhere
        value[0].resize_(4)
        value[1].resize_(3)

    changes = {
        "value[0]": [swap, lambda value: value[0].resize_(9), lambda value: value[0].resize_(1, 3)],
        "value[1]": [retype],
        "value[2]": [lambda value: value[2].extend(b"more")],
    }
    for place, ways in changes.items():
        for change in ways:
            value = [torch.rand(3), torch.rand(4), bytearray(2000)]
            flat = flatten(value)
            change(value)
            with pytest.raises(NotTransferable, match=re.escape(f"{place} has changed its size")):
                pack(flat, "never")


@pytest.mark.parametrize("lengths", [(3,), (3, 3), (3, 4)])
def test_one_may_learn_with_what_has_come(lengths):
    for got in trip([torch.ones(n) for n in lengths]):
        weight = torch.full((len(got),), 2.0, requires_grad=True)
        got.mul_(weight)
        got.sum().backward()
        assert weight.grad.tolist() == [1.0] * len(got)


@pytest.mark.parametrize(
    "value",
    [
        tuple(range(2**62, 2**62 + 50_000)),
        list(range(2**62, 2**62 + 50_000)),
        tuple(n + 0.5 for n in range(50_000)),
        [torch.zeros(1, dtype=torch.int8) for _ in range(5000)],
        [torch.zeros(1, dtype=torch.int8)] + [torch.zeros(0) for _ in range(5000)],
        [np.zeros(1) for _ in range(5000)],
    ],
    ids=lambda value: f"{type(value).__name__} of {type(value[-1]).__name__}",
)
def test_what_it_takes_is_told_before(value):
    packed = pack(flatten(value), "never")
    tracemalloc.start()
    unpacker = Unpacker(packed.spec)
    for view, buffer in zip(unpacker.allocate(), packed.buffers, strict=True):
        view[:] = buffer.view
    got = unpacker.value()
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(got) == len(value)
    assert taken < unpacker.memory + 256 * 1024


def test_ten_thousand_parts_are_one_buffer_and_one_description():
    value = {str(n): torch.full((2, 2), float(n)) for n in range(10_000)}
    packed = pack(flatten(value), "if exact")
    assert len(packed.buffers) == 1
    assert len(packed.spec) < 10_000 * 12
    assert same(value, deliver(packed))


def test_no_place_is_written_out_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("zbus.values.flatten._short", lambda key: pytest.fail("nobody asked"))
    pack(flatten({"a": [torch.ones(2), {"b": (1, None)}], "c": {1: "x"}}), "if exact")


def test_no_torch_without_a_tensor():
    code = (
        "import sys; from zbus.values.payload import *; from zbus import codecs\n"
        "v = {'a': [1, 'x' * 3000]}; p = pack(flatten(v), 'always'); u = Unpacker(p.spec)\n"
        "u.allocate()[0][:] = p.buffers[0].view; assert u.value() == v\n"
        "assert describe(v) == 'any' and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


# 8 bits


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"samples": torch.zeros(1, 4, 8, 8)}, "value['samples'] is part of a latent"),
        ([{"samples": torch.zeros(1, 4, 8, 3)}], "value[0]['samples'] is part of a latent"),
        ({"waveform": torch.zeros(1, 2, 9), "sample_rate": 1}, "part of an audio"),
        ([[torch.zeros(1, 7, 8), {}]], "value[0][0] is part of a conditioning"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "value is a uint8 tensor"),
        (torch.zeros(20), "value is a float32 tensor of shape [20]"),
        ([torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 5)], "value[0] is in a list with value[1]"),
        (({"samples": torch.zeros(1, 4, 8, 3)}, torch.zeros(1, 2, 2)), "part of a latent"),
        ({"track_path": torch.zeros(9, 5, 2)}, "value['track_path'] is part of a dict"),
        ({VIDEO: {"audio": {"waveform": torch.zeros(1, 2, 9)}}}, "['waveform'] is part of a video"),
        ({VIDEO: {"audio": {"images": torch.zeros(1, 2, 9)}}}, "['images'] is part of a video"),
        (np.zeros((1, 8, 8, 3), np.float32), "numpy array"),
    ],
)
def test_8_bit_is_refused_where_it_would_do_harm(value, what):
    with pytest.raises(CodecRefused) as caught:
        check_choice(flatten(value), True)
    assert what in str(caught.value) and "exact" in str(caught.value)
    check_choice(flatten(value), False)


def test_8_bit_passes_pictures_and_what_has_no_tensor():
    image, mask = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2)
    film = {VIDEO: {"images": image, "rate": [24, 1], "alpha": mask}}
    for value in ("text", 5, [image, (mask, [image])], {LIST: [mask, image]}, {LIST: [film]}, film):
        check_choice(flatten(value), True)


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn"])
def test_8_bit_is_the_nearest_step(name):
    value = torch.rand(2, 33, 17, 3).to(getattr(torch, name))
    packed = pack(flatten(value), "always")
    assert packed.notes == ()
    assert packed.total == value.numel()
    (buffer,) = packed.buffers
    assert buffer.layout == Layout(1, 17, 3)
    exact = value.double() * 255
    sent = torch.from_numpy(np.frombuffer(buffer.view, np.uint8).copy()).reshape(value.shape)
    assert (sent - exact).abs().max() <= 0.5 + 1e-4
    got = deliver(packed)
    assert got.dtype == value.dtype
    assert torch.equal(got.float(), (sent.float() / 255).to(value.dtype).float())


def test_8_bit_clips_and_says_so():
    value = [torch.tensor([[[-0.31, 0.5]]]), torch.tensor([[[1.28, 1.0]]])]
    packed = pack(flatten(value), "always")
    assert packed.notes == ("values outside 0..1 were clipped (min -0.31, max 1.28)",)
    got = [t.reshape(-1).tolist() for t in deliver(packed)]
    assert got == [[0.0, float(np.float32(128) / np.float32(255))], [1.0, 1.0]]
    assert value[0].reshape(-1)[0] == np.float32(-0.31)  # the sender's own is left alone


def test_8_bit_refuses_nan_and_counts_them():
    value = [torch.zeros(1, 700, 700, 1)]
    value[0].view(-1)[[3, 400_000]] = math.nan
    with pytest.raises(CodecRefused, match=r"value\[0\] holds 2 NaN values"):
        pack(flatten(value), "always")


def from_file(shape, dtype=torch.float32):
    """As LoadImage makes it."""
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    pixels.reshape(-1)[:256] = np.arange(256)
    return torch.from_numpy(pixels.astype(np.float32) / 255.0).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_pictures_from_files_go_as_8_bits_exactly(dtype):
    for value in (from_file((2, 300, 500, 3), dtype), from_file((1, 300, 500), dtype)):
        packed = pack(flatten(value), "if exact")
        assert packed.total == value.numel()
        assert same(value, deliver(packed))
        assert pack(flatten(value), "never").total == value.numel() * value.element_size()


@pytest.mark.parametrize("change", ["one ulp", "negative zero", "nan", "below", "above"])
def test_one_other_element_makes_it_plain(change):
    value = from_file((1, 600, 500, 3))
    flat = value.view(-1)
    at = 777_777
    flat[at] = {
        "one ulp": torch.nextafter(flat[at], torch.tensor(2.0)),
        "negative zero": -0.0,
        "nan": math.nan,
        "below": -1 / 255,
        "above": 256 / 255,
    }[change]
    before = value.clone()
    packed = pack(flatten(value), "if exact")
    assert packed.total == value.numel() * 4
    assert same(before, deliver(packed)) and same(before, value)


def test_if_exact_leaves_latents_alone():
    value = {"samples": torch.zeros(1, 4, 8, 4)}
    assert pack(flatten(value), "if exact").total == 4 * 128


def test_8_bit_of_empty_and_of_odd_shapes():
    for shape in [(0, 4, 4, 3), (1, 4, 0, 3), (2, 3, 4, 2), (1, 2, 400_000, 3)]:
        value = torch.ones(shape)
        packed = pack(flatten(value), "always")
        assert all(b.layout == Layout() for b in packed.buffers)
        assert same(value, deliver(packed))


# hostile specs


def atoms(*parts):
    return b"".join(msgpack.packb(part) for part in (wire.VERSION, *parts))


@pytest.mark.parametrize(
    "spec",
    [
        b"",
        b"\x01",
        msgpack.packb(1) + msgpack.packb(None),
        msgpack.packb(True) + msgpack.packb(None),
        msgpack.packb([1, None]),
        atoms(1, 2),
        atoms({}),
        atoms([]),
        atoms([1]),
        atoms(msgpack.ExtType(5, b"")),
        atoms(msgpack.Timestamp(1)),
        atoms("x"),
        atoms("s"),
        atoms("s", 1),
        atoms("c", 1, 2),
        atoms("i", b"x" * 600),
        atoms("[", -1),
        atoms("[", True),
        atoms("[", 2**40),
        atoms(*["[", 1] * 40, 1),
        atoms("{", 1, "{", 0, 1),
        atoms("{", 2, 1, None, 1, None),
        atoms("{", 1, "t", 1),
        atoms("n", 1, 5),
        atoms("t", "float31", 0),
        atoms("t", "Tensor", 0),
        atoms("t", "float32", 33, *[1] * 33),
        atoms("t", "float32", 1, 2**47),
        atoms("t", "float32", 1, -1),
        atoms("t", "float32", 3, 2**40, 2**40, 0),
        atoms("[", 2, "t", "float64", 1, 2**43, "b", 2**43),
        atoms("q", "float32", 1, 4),
        atoms("q", "float32", 4, 1, 2, 2, 5),
        atoms("q", "int64", 3, 1, 2, 2),
        atoms("q", "float8_e8m0fnu", 3, 1, 2, 2),
        atoms("p", "float32", 2, 4, 4),
        atoms("p", "float32", 2, 4, 4, b""),
        atoms("p", "float32", 2, 4, 4, b"12345"),
        atoms("p", "float32", 2, 4, 4, bytes(4 * 257)),
        atoms("p", "int64", 2, 4, 4, bytes(8)),
        atoms("a", "bfloat16", 0),
        atoms("a", "object", 0),
        atoms("S", -5),
        atoms("=", 0),
        atoms("[", 2, "g", "float32", 1, 4, "=", 1),
        atoms("[", 2, "g", "float32", 1, 4, "=", -1),
        atoms("g", "float31", 1, 4),
        atoms("g", "float32", 1, 0),
        atoms("g", "float32", 1, wire.MAX_POOLED // 4 + 1),
        atoms("[#", "float32", 1, 4),
        atoms("[#", "object", 1, 4),
        atoms("[#", "int8", 2, 4, 4),
        atoms("(#", "int8", 0),
        atoms("[#", "int8", 1, wire.MAX_NUMBERS + 1),
        atoms("[", 2, *["[#", "int8", 1, wire.MAX_NUMBERS // 2 + 1] * 2),
        atoms("s") + b"\xa2\xff\xff",
        bytes([1]) + b"\x91" * 5000,
        b"\x01" + b"\xdd\xff\xff\xff\xff",
        b"\x01" + b"\xc1",
        b"\x01" + b"\xdb\xff\xff\xff\xff",
        bytes(wire.MAX_SPEC + 1),
    ],
    ids=lambda spec: ascii(spec[:12]),
)
def test_bad_specs_are_the_peers_fault(spec):
    with pytest.raises(RemoteProtocolError):
        Unpacker(spec)


@pytest.mark.parametrize("key", [np.int64(3), np.float64(0.5), np.str_("a"), np.bool_(True)])
def test_a_key_that_numpy_has_made_is_the_plain_one(key):
    (got,) = trip({key: 1})
    assert got == key and type(got) is type(key.item())


def test_colliding_keys_are_refused_at_once():
    keys = [part for n in range(20_000) for part in ("i", ((2**61 - 1) * n).to_bytes(16, "little"))]
    spec = [part for at in range(0, len(keys), 2) for part in (*keys[at : at + 2], None)]
    with pytest.raises(RemoteProtocolError, match="collide"):
        Unpacker(atoms("{", 20_000, *spec))


def test_a_dtype_that_this_torch_lacks(monkeypatch):
    monkeypatch.delattr(torch, "float8_e8m0fnu")
    with pytest.raises(RemoteProtocolError, match="this torch has no float8_e8m0fnu"):
        Unpacker(atoms("t", "float8_e8m0fnu", 0))


def test_bytes_that_are_no_such_value():
    for spec, data in [
        (atoms("S", 2), b"\xff\xff"),
        (atoms("t", "bool", 1, 2), b"\x01\x02"),
        (atoms("a", "bool", 1, 2), b"\x01\x02"),
        (atoms("g", "bool", 1, 2), b"\x01\x02"),
        (atoms("[#", "bool", 1, 2), b"\x01\x02"),
        (atoms("p", "float32", 2, 1, 4, bytes(8)), b"\x00\x01\x00\x02"),
    ]:
        unpacker = Unpacker(spec)
        unpacker.allocate()[0][:] = data
        with pytest.raises(RemoteProtocolError):
            unpacker.value()


def test_naming_a_terabyte_allocates_nothing():
    tracemalloc.start()
    unpacker = Unpacker(atoms("[", 2, "t", "float32", 2, 2**20, 2**20, "b", 2**40))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert unpacker.total == 5 * 2**40 and unpacker.memory == 6 * 2**40
    assert peak < 1_000_000
    with pytest.raises(LocalProtocolError):
        unpacker.value()


def test_no_memory_is_a_refusal():
    unpacker = Unpacker(atoms("t", "float32", 2, 2**22, 2**22))
    with pytest.raises(TransferRefused, match="no memory"):
        unpacker.allocate()


VALID = pack(
    flatten(
        {
            "samples": torch.ones(1, 4, 2, 2),
            "l": [1, (2.5, "x", None), 2**80, 1j, b"b", "y" * 2000, np.ones(3), {(1, "k"): True}],
            "n": NestedTensor([torch.ones(2)]),
            "i": from_file((1, 16, 16, 3)),
        }
    ),
    "if exact",
).spec


def attempt(spec):
    try:
        unpacker = Unpacker(spec)
    except RemoteProtocolError:
        return
    if unpacker.memory < 1 << 20:
        for view in unpacker.allocate():
            view[:] = bytes(len(view))
        unpacker.value()


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
@example(VALID)
def test_any_bytes_are_a_spec_or_refused(data):
    attempt(data)
    attempt(b"\x01" + data)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_mutated_specs(data):
    spec = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(spec) - 1))
        spec[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    attempt(bytes(spec))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.complex_numbers(),
)
pairs = st.tuples(st.text(), st.integers())
keys = st.one_of(st.none(), st.integers(), st.text(), st.binary(), pairs)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(keys, inner)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_any_value_comes_back(value):
    assert repr(trip(value)) == repr(value)


# ranges

parts = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 300_000), st.sampled_from([Layout(), Layout(4), Layout(16)])),
        st.builds(
            lambda rows, width, channels: (rows * width * channels, Layout(1, width, channels)),
            st.integers(1, 300),
            st.integers(1, 600),
            st.sampled_from([1, 3, 4]),
        ),
    ).map(lambda p: (-(-p[0] // p[1].itemsize) * p[1].itemsize, p[1])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(parts, st.integers(1, 200_000), st.booleans(), st.data())
def test_cuts_cover_everything_and_keep_their_layout(parts, want, rows, data):
    over = Map(parts)
    at = data.draw(st.sampled_from([0, 0, data.draw(st.integers(0, over.total - 1))]))
    first = True
    for _ in range(100):
        if at == over.total:
            break
        size = over.cut(at, want, rows)
        pieces = list(over.pieces(at, size))
        assert sum(length for _, _, length in pieces) == size >= 1
        index, start, _ = pieces[0]
        length, layout = parts[index]
        assert size <= max(want, layout.row if rows else 1)
        assert len(pieces) == 1 or all(parts[i][0] < 65536 for i, _, _ in pieces)
        assert all(s == 0 for _, s, _ in pieces[1:])
        picture = bool(rows and layout.row)
        aligned = start % (layout.row if picture else layout.itemsize) == 0
        if not first and not picture and want >= 64:
            assert aligned  # a transfer that goes on anywhere finds the items again
        if len(pieces) > 1:
            assert over.layout(at, size) == Layout()
        elif picture or (not layout.row and want >= 64):
            assert over.layout(at, size) == (layout if aligned else Layout())
        at += size
        first = False
    else:
        return  # cut very fine: the rest is more of the same
    assert at == over.total


def test_map_examples():
    small = [(100, Layout(4)), (60_000, Layout()), (30 * 1000, Layout(1, 10, 3))]
    over = Map([*small, (90_000, Layout(8))])
    assert over.total == 180_100
    assert over.cut(0, 1 << 20, False) == 100 + 60_000 + 30_000
    assert over.cut(0, 1 << 20, True) == 100 + 60_000
    assert over.layout(0, 60_100) == Layout()
    assert over.layout(0, 100) == Layout(4)
    assert over.layout(0, 98) == Layout()
    assert over.cut(60_100, 1000, True) == 990
    assert over.cut(60_100, 1, True) == 30
    assert over.cut(60_100, 1000, False) == 960
    assert over.layout(60_100, 990) == Layout(1, 10, 3)
    assert over.layout(60_101, 990) == Layout()
    assert over.cut(60_105, 1000, True) == 25
    assert over.cut(90_100, 80_001, False) == 80_000
    assert list(over.pieces(90, 20)) == [(0, 90, 10), (1, 0, 10)]
    tall = Map([(40_000, Layout(1, 1, 1))])
    assert tall.cut(0, 1 << 20, True) == 16383
    for wrong in [(-1, 1), (0, 0), (180_100, 1), (0, 180_101)]:
        with pytest.raises(LocalProtocolError):
            over.layout(*wrong)
