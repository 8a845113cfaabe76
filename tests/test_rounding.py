"""What of a value may go as 8 bits: what is known to be a picture, whatever else looks like one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from zbus.errors import CodecRefused, NotTransferable
from zbus.values.kinds import LIST, VIDEO
from zbus.values.payload import Container, Unpacker, check_choice, clipped, flatten, pack

SOUND = torch.linspace(-1, 1, 18).reshape(1, 2, 9)
POINTS = torch.linspace(0, 900, 18).reshape(9, 2)
IMAGE, MASK = torch.rand(1, 4, 5, 3), torch.rand(2, 4, 5)


def trip(value: Any, declared: str = "", mode: Any = "always") -> Any:
    packed = pack(flatten(value, declared), mode)
    unpacker = Unpacker(packed.spec)
    for view, buffer in zip(unpacker.allocate(), packed.buffers, strict=True):
        view[:] = buffer.view
    return unpacker.value()


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Container):
        value = value.fields
    held = value.values() if isinstance(value, Mapping) else value
    return [t for item in held if not isinstance(item, (str, int)) for t in tensors(item)]


@pytest.mark.parametrize(
    "value",
    [
        {VIDEO: {"file": b"", "audio": {"waveform": SOUND, "sample_rate": 8000}}},
        {VIDEO: {"rate": [24, 1], "audio": {"waveform": SOUND, "rate": 8000}}},
        {VIDEO: {"audio": {"images": SOUND, "alpha": SOUND}}},
        {"waveform": SOUND, "sample_rate": 8000},
        {"track_path": POINTS, "track_visibility": torch.rand(9, 1) + 3},
        {"layers": [{"image": IMAGE + 1, "mask": MASK}]},
        {"anything": [POINTS]},
        {VIDEO: {"images": POINTS}, "and more": POINTS},
        [POINTS, 7],
        (SOUND, {"of": "a pack"}),
        [[SOUND, SOUND], "x"],
        [[POINTS, {"pooled_output": POINTS}]],
        {"samples": SOUND, "noise_mask": SOUND},
        {LIST: [{"samples": SOUND}, {"samples": SOUND}]},
        Container("MESH", {"vertices": SOUND, "texture": IMAGE + 1}),
        Container("FILE", {"held": {VIDEO: {"images": IMAGE + 1}}}),
    ],
    ids=lambda value: str(tuple(value) if isinstance(value, dict) else type(value).__name__),
)
def test_what_is_no_picture_for_certain_stays_exact(value: Any) -> None:
    got = trip(value)
    assert all(map(torch.equal, tensors(value), tensors(got)))
    assert clipped(flatten(value)) == pack(flatten(value), "always").notes == ()
    with pytest.raises(CodecRefused, match="8-bit is for images and masks only"):
        check_choice(flatten(value), True)


@pytest.mark.parametrize(
    "value",
    [
        IMAGE,
        MASK,
        [IMAGE, MASK],
        (IMAGE, [MASK, (IMAGE,)]),
        {LIST: [IMAGE, MASK]},
        {VIDEO: {"images": IMAGE, "alpha": MASK, "rate": [24, 1]}},
        {LIST: [{VIDEO: {"images": IMAGE}}, {VIDEO: {"images": IMAGE}}]},
    ],
    ids=lambda value: str(tuple(value) if isinstance(value, dict) else type(value).__name__),
)
def test_what_is_known_to_be_pictures_is_rounded(value: Any) -> None:
    expected = [(t * 255).round() / 255 for t in tensors(value)]
    assert all(map(torch.equal, expected, tensors(trip(value))))
    assert not all(map(torch.equal, tensors(value), tensors(trip(value))))


@pytest.mark.parametrize("value", [IMAGE + 1, SOUND, [SOUND], {LIST: [SOUND]}])
def test_what_is_declared_counts_and_not_the_shape(value: Any) -> None:
    assert all(map(torch.equal, tensors(value), tensors(trip(value, "EMBEDS"))))
    with pytest.raises(CodecRefused, match="value.* is of the type EMBEDS"):
        check_choice(flatten(value, "EMBEDS"), True)


@pytest.mark.parametrize(
    "value", [IMAGE + 1, SOUND, MASK, [SOUND], {LIST: [SOUND, [MASK]]}], ids=lambda v: str(type(v))
)
def test_what_nobody_says_is_a_picture_stays_exact_and_that_is_said(value: Any) -> None:
    assert all(map(torch.equal, tensors(value), tensors(trip(value, "*"))))
    flat = flatten(value, "*")
    check_choice(flat, True)  # what it is, a user cannot know either
    assert clipped(flat) == pack(flat, "always").notes
    assert "sent bit for bit" in clipped(flat)[0]
    assert pack(flat, "if exact").notes == ()


@pytest.mark.parametrize(
    "value",
    [
        {"samples": SOUND},
        {"waveform": SOUND, "sample_rate": 8000},
        [IMAGE, 7],
        torch.zeros(5),
        Container("MESH", {"vertices": SOUND}),
    ],
    ids=lambda v: str(type(v)),
)
def test_what_is_no_picture_whoever_makes_it_is_refused_in_8_bit(value: Any) -> None:
    assert all(map(torch.equal, tensors(value), tensors(trip(value, "*"))))
    with pytest.raises(CodecRefused, match="8-bit is for images and masks only"):
        check_choice(flatten(value, "*"), True)


def test_a_film_is_one_whoever_makes_it() -> None:
    value = {LIST: [{VIDEO: {"images": IMAGE, "audio": {"waveform": SOUND, "sample_rate": 1}}}]}
    (film,) = trip(value, "*")[LIST]
    assert torch.equal(film[VIDEO]["images"], (IMAGE * 255).round() / 255)
    assert torch.equal(film[VIDEO]["audio"]["waveform"], SOUND)
    assert clipped(flatten(value, "*")) == ()


def test_a_sound_beside_frames_is_exact_and_the_frames_are_not() -> None:
    sound = {"waveform": SOUND, "sample_rate": 8000}
    got = trip({VIDEO: {"images": IMAGE, "audio": sound}})[VIDEO]
    assert torch.equal(got["audio"]["waveform"], SOUND)
    assert not torch.equal(got["images"], IMAGE)


def test_exact_still_shortens_what_comes_back_bit_for_bit() -> None:
    """It loses nothing: so it may look like a picture only."""
    value = {"layers": [{"image": torch.arange(256).reshape(1, 16, 16, 1).float() / 255}]}
    assert pack(flatten(value), "if exact").total == 256
    assert torch.equal(tensors(trip(value, mode="if exact"))[0], tensors(value)[0])
    assert pack(flatten(value), "always").total == 256


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float8_e5m2"])
def test_what_will_be_clipped_is_known_before_it_is_packed(name: str) -> None:
    value = [torch.tensor([[[-0.25, 0.5]]]), torch.tensor([[[1.5, 1.0]]])]
    flat = flatten([t.to(getattr(torch, name)) for t in value])
    assert clipped(flat) == pack(flat, "always").notes
    assert clipped(flat) == ("values outside 0..1 were clipped (min -0.25, max 1.5)",)
    with pytest.raises(CodecRefused, match="2 NaN"):
        clipped(flatten(torch.tensor([[[0.0, float("nan"), float("nan")]]])))
    assert clipped(flatten(torch.zeros(0, 4, 4, 3))) == ()


def test_a_list_that_holds_itself_is_refused_and_looked_at_once() -> None:
    holds_itself: list[Any] = [IMAGE]
    holds_itself.append(holds_itself)
    with pytest.raises(NotTransferable, match="or holds itself"):
        flatten(holds_itself)
    doubled: list[Any] = []
    for _ in range(31):  # two thousand million items, if each is counted
        doubled = [doubled, doubled]
    with pytest.raises(NotTransferable, match="more than 65536 items"):
        flatten(doubled)
