"""VIDEO values on their way: `comfy_nodes/host/videos.py` with ComfyUIs of several ages, played by
stand-ins of the same names and fields. (Real ones: tests/comfy/test_films.py.)
"""

from __future__ import annotations

import importlib.util
import io
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from zbus.errors import InputError, NotTransferable
from zbus.values.payload import Unpacker, flatten, pack

MODULE = Path(__file__).resolve().parent.parent / "comfy_nodes" / "host" / "videos.py"
LONG = b"long"  # a file whose frames are too many to travel
DEEP = b"deep"  # one of 10 bits


@dataclass
class Components:
    images: Any
    frame_rate: Fraction
    audio: Any = None
    metadata: Any = None
    alpha: Any = None


@dataclass
class OldComponents:
    images: Any
    frame_rate: Fraction
    audio: Any = None


class Video:
    def get_components(self) -> Any:
        raise NotImplementedError


class FromComponents(Video):
    def __init__(self, components: Any, bit_depth: int = 8, color_space: str | None = "sRGB"):
        self.__components, self.__bit_depth = components, bit_depth
        self.__color_space = color_space

    def get_components(self) -> Any:
        return self.__components

    def get_bit_depth(self) -> int:
        return self.__bit_depth

    def get_color_space(self) -> str:
        return self.__color_space or "auto"


class OldFromComponents(Video):
    def __init__(self, components: Any):
        self.__components = components

    def get_components(self) -> Any:
        return self.__components


def frames_of(data: bytes) -> torch.Tensor:
    count = 2_000 if data == LONG else 12
    return torch.arange(count * 8 * 8 * 3, dtype=torch.float32).reshape(count, 8, 8, 3) / 1e5


def cut(images: torch.Tensor, start: float, duration: float) -> torch.Tensor:
    first = int(start * 6)
    return images[first : first + int(duration * 6) if duration else None]


class File(Video):
    """What all of them have: a file of 12 frames 8 x 8, 6 a second."""

    source: Any

    def get_stream_source(self) -> Any:
        return self.source

    def data(self) -> bytes:
        source = self.get_stream_source()
        return source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()

    def edited(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def get_components(self) -> Any:
        return Components(self.edited(frames_of(self.data())), Fraction(6))

    def get_dimensions(self) -> tuple[int, int]:
        return 8, 8

    def get_duration(self) -> float:
        return len(frames_of(self.data())) / 6

    def get_frame_rate(self) -> Fraction:
        return Fraction(6)


class Newer(File):
    def get_bit_depth(self) -> int:
        return 10 if self.data() == DEEP else 8

    def get_color_space(self) -> str:
        return "sRGB"


def build_cropping() -> type[File]:
    """Keeps a cut and a crop, as released in 2026."""

    class VideoFromFile(Newer):
        def __init__(
            self, file: Any, *, start_time: float = 0, duration: float = 0, crop: Any = None
        ):
            self.__file, self.__start_time, self.__duration = file, start_time, duration
            self.__crop = crop

        def get_stream_source(self) -> Any:
            return self.__file

        def get_active_trim_window(self) -> tuple[float, float]:
            return float(self.__start_time), float(self.__duration)

        def has_pending_frame_edits(self) -> bool:
            return self.__crop is not None

        def edited(self, images: torch.Tensor) -> torch.Tensor:
            images = cut(images, self.__start_time, self.__duration)
            x, y, w, h = self.__crop or (0, 0, 8, 8)
            return images[:, y : y + h, x : x + w]

    return VideoFromFile


def build_scaling() -> type[File]:
    """Keeps a list of steps in place of the crop."""

    class VideoFromFile(Newer):
        def __init__(
            self, file: Any, *, start_time: float = 0, duration: float = 0, crop: Any = None
        ):
            self.__file, self.__start_time, self.__duration = file, start_time, duration
            self.__spatial_ops = [("crop_aligned", *crop)] if crop is not None else []

        def get_stream_source(self) -> Any:
            return self.__file

        def has_pending_frame_edits(self) -> bool:
            return bool(self.__spatial_ops)

        def _with(self, steps: list[Any]) -> Any:
            made = VideoFromFile(
                self.__file, start_time=self.__start_time, duration=self.__duration
            )
            made.__spatial_ops = steps
            return made

        def as_cropped(self, x: int = 0, y: int = 0, width: int = 0, height: int = 0) -> Any:
            even = [number - number % 2 for number in (x, y, width, height)]
            return self._with([*self.__spatial_ops, ("crop", *even)])

        def as_resized(
            self,
            width: int,
            height: int,
            method: str,
            crop: str = "disabled",
            post_crop: Any = None,
        ) -> Any:
            steps = [*self.__spatial_ops, ("scale", width, height, method, crop)]
            return self._with(steps if post_crop is None else [*steps, ("crop", *post_crop)])

        def edited(self, images: torch.Tensor) -> torch.Tensor:
            images = cut(images, self.__start_time, self.__duration)
            for kind, *how in self.__spatial_ops:
                if kind == "scale":
                    images = images[:, :: 8 // how[1], :: 8 // how[0]]
                else:
                    x, y, w, h = how
                    images = images[:, y : y + h, x : x + w]
            return images

    return VideoFromFile


class FromList(Video):
    def __init__(self, videos: list[Any], complete_audio: Any = None):
        self.videos, self.complete_audio = videos, complete_audio
        self.__buffer = None

    def get_components(self) -> Any:
        made = [video.get_components() for video in self.videos]
        return Components(torch.cat([part.images for part in made]), Fraction(6))

    def get_bit_depth(self) -> int:
        return int(self.videos[0].get_bit_depth())

    def get_color_space(self) -> str:
        return "sRGB"

    def get_dimensions(self) -> tuple[int, int]:
        return 8, 8

    def get_duration(self) -> float:
        return float(sum(video.get_duration() for video in self.videos))

    def get_frame_rate(self) -> Fraction:
        return Fraction(6)


FromList.__name__ = "VideoFromList"
FromComponents.__name__ = OldFromComponents.__name__ = "VideoFromComponents"


def build_old() -> type[File]:
    class VideoFromFile(File):
        def __init__(self, file: Any):
            self.__file = file

        def get_stream_source(self) -> Any:
            return self.__file

    return VideoFromFile


class Host:
    """One ComfyUI's film classes, and the module under test beside them."""

    def __init__(self, build: Callable[[], type[File]], *, with_list: bool, old: bool) -> None:
        self.file: Any = build()
        self.components: Any = OldComponents if old else Components
        self.from_components: Any = OldFromComponents if old else FromComponents
        made = types.SimpleNamespace(
            VideoFromFile=self.file, VideoFromComponents=self.from_components
        )
        if with_list:
            made.VideoFromList = FromList
        latest = types.ModuleType("comfy_api.latest")
        parts = types.SimpleNamespace(VideoComponents=self.components)
        latest.__dict__.update(
            Input=types.SimpleNamespace(Video=Video), InputImpl=made, Types=parts
        )
        modules = {"comfy_api": types.ModuleType("comfy_api"), "comfy_api.latest": latest}
        with mock.patch.dict(sys.modules, modules):
            spec = importlib.util.spec_from_file_location("zbus_videos_under_test", MODULE)
            assert spec is not None and spec.loader is not None
            self.videos = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self.videos)
        self.videos.FEW = 1 << 20

    def film(self, data: bytes = b"short", **edits: Any) -> Any:
        return self.file(io.BytesIO(data), **edits)


OLD = Host(build_old, with_list=False, old=True)
CROPPING = Host(build_cropping, with_list=False, old=False)
SCALING = Host(build_scaling, with_list=True, old=False)
NEW = pytest.mark.parametrize("host", [CROPPING, SCALING], ids=["cropping", "scaling"])


def over_the_wire(value: Any) -> Any:
    sent = pack(flatten(value), "never")
    unpacker = Unpacker(sent.spec)
    for view, buffer in zip(unpacker.allocate(), sent.buffers, strict=True):
        view[:] = buffer.view
    return unpacker.value()


def trip(video: Any, host: Host, to: Host | None = None) -> Any:
    return (to or host).videos.unpacked(over_the_wire(host.videos.packed(video)))


def told(video: Any, host: Host) -> Any:
    return host.videos.packed(video)[host.videos.MARK]


def same_frames(video: Any, other: Any) -> bool:
    return torch.equal(video.get_components().images, other.get_components().images)


# --- files, and what is still to be done to them


@pytest.mark.parametrize("host", [OLD, CROPPING, SCALING], ids=["old", "cropping", "scaling"])
@pytest.mark.parametrize("to", [OLD, CROPPING, SCALING], ids=["old", "cropping", "scaling"])
def test_an_untouched_film_is_its_file(host: Host, to: Host, tmp_path: Path) -> None:
    (tmp_path / "film.mkv").write_bytes(DEEP)
    for film in (host.film(DEEP), host.file(str(tmp_path / "film.mkv"))):
        arrived = trip(film, host, to)
        assert type(arrived) is to.file and arrived.data() == DEEP


@NEW
@pytest.mark.parametrize("data", [DEEP, LONG])
@pytest.mark.parametrize(
    "edits", [{"start_time": 0.5, "duration": 1.0}, {"start_time": 1.0}, {"crop": (2, 0, 4, 4)}]
)
def test_an_edited_film_of_more_than_plain_frames_is_its_file_and_its_edits(
    host: Host, data: bytes, edits: dict[str, Any]
) -> None:
    film = host.film(data, **edits)
    arrived = trip(film, host)
    assert type(arrived) is host.file and arrived.data() == data
    assert same_frames(arrived, film) and not same_frames(arrived, host.film(data))
    assert arrived.get_bit_depth() == film.get_bit_depth()


@NEW
def test_a_short_plain_one_is_its_frames_which_every_comfyui_can_take(host: Host) -> None:
    film = host.film(start_time=0.5, crop=(2, 2, 4, 4))
    assert same_frames(trip(film, host, OLD), film)
    assert len(trip(film, host, OLD).get_components().images) == 9


@pytest.mark.parametrize("data", [b"short", DEEP])
def test_crops_and_sizes_in_their_order(data: bytes) -> None:
    film = SCALING.film(data, crop=(0, 0, 8, 8)).as_resized(4, 4, "area", post_crop=(1, 1, 3, 3))
    film = film.as_cropped(0, 0, 2, 2).as_resized(8, 8, "lanczos", "center")
    arrived = trip(film, SCALING)
    assert same_frames(arrived, film)
    if data == DEEP:
        assert SCALING.videos._edits(arrived) == SCALING.videos._edits(film)


def test_where_they_would_come_out_otherwise_it_is_refused() -> None:
    """A crop to odd pixels that is no part of a new size: as_cropped would move it."""
    film = SCALING.film(DEEP)._with([("crop", 1, 1, 3, 3)])
    with pytest.raises(InputError, match="would show another picture.*Get Video Components"):
        trip(film, SCALING)


@pytest.mark.parametrize("edits", [{"duration": 1.0}, {"crop": (0, 0, 4, 4)}])
def test_an_older_comfyui_refuses_what_it_could_only_show_otherwise(edits: Any) -> None:
    with pytest.raises(InputError, match="a (cut|crop) that is still to be made.*cannot keep"):
        trip(CROPPING.film(DEEP, **edits), CROPPING, OLD)


def test_a_crop_between_two_that_keep_it_otherwise() -> None:
    for host, to in ((CROPPING, SCALING), (SCALING, CROPPING)):
        film = host.film(DEEP, crop=(2, 0, 4, 4), duration=1.0)
        assert same_frames(trip(film, host, to), film)
    with pytest.raises(InputError, match="a crop or a new size that is still to be made"):
        trip(SCALING.film(DEEP).as_resized(4, 4, "area"), SCALING, CROPPING)


@pytest.mark.parametrize("name", ["_VideoFromFile__speed", "grain"])
def test_an_edit_that_nobody_knows_goes_as_frames(name: str) -> None:
    film = CROPPING.film(DEEP, start_time=0.5)
    setattr(film, name, 2.0)
    arrived = trip(film, CROPPING)
    assert type(arrived) is CROPPING.from_components
    assert same_frames(arrived, film) and arrived.get_bit_depth() == 10


def test_an_edit_that_is_told_and_not_seen_goes_as_frames() -> None:
    film = CROPPING.film(DEEP)
    film.get_active_trim_window = lambda: (1.0, 0.0)
    assert "images" in told(film, CROPPING)
    film = CROPPING.film(DEEP, duration=1.0)
    film.has_pending_frame_edits = lambda: True
    assert "images" in told(film, CROPPING)


def test_a_file_that_is_gone_is_told_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(NotTransferable, match="cannot be read") as raised:
        OLD.videos.packed(OLD.file(str(tmp_path / "secret.mkv")))
    assert "secret" not in str(raised.value)


# --- several in one


@pytest.mark.parametrize("data", [b"short", DEEP, LONG])
def test_joined_films(data: bytes) -> None:
    sound = {"waveform": torch.ones(1, 1, 9) * 3, "sample_rate": 8000}
    film = FromList([SCALING.film(data, duration=1.0), SCALING.film(data)], sound)
    arrived = trip(film, SCALING)
    assert same_frames(arrived, film)
    if data != b"short":
        assert [part.data() for part in arrived.videos] == [data, data]
        assert torch.equal(arrived.complete_audio["waveform"], sound["waveform"])
        with pytest.raises(InputError, match="several films in one"):
            trip(film, SCALING, CROPPING)


def test_what_has_no_frames_is_refused_by_name() -> None:
    class Stream(Video):
        pass

    with pytest.raises(NotTransferable, match=r"a video \(Stream\) has no frames to send"):
        CROPPING.videos.packed(Stream())


def test_an_interrupt_is_none_of_its_failures() -> None:
    class Interrupt(Exception):
        pass

    class Long(Video):
        def get_components(self) -> Any:
            raise Interrupt

    with pytest.raises(Interrupt):
        CROPPING.videos.packed(Long())


# --- frames


class Lazy(Mapping[str, Any]):
    """As the most used video pack hands AUDIO on."""

    def __init__(self) -> None:
        self.made = {"waveform": torch.randn(1, 2, 50) * 3, "sample_rate": 44100}

    def __getitem__(self, key: str) -> Any:
        return self.made[key]

    def __iter__(self) -> Any:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)


def made_of(host: Host, *how: Any, **parts: Any) -> Any:
    images = torch.rand(3, 4, 4, 3)
    return host.from_components(host.components(images, Fraction(30000, 1001), **parts), *how)


@pytest.mark.parametrize("host", [OLD, CROPPING], ids=["old", "new"])
@pytest.mark.parametrize("to", [OLD, CROPPING], ids=["old", "new"])
def test_frames_sound_and_rate(host: Host, to: Host) -> None:
    sound = Lazy()
    film = made_of(host, audio=sound)
    arrived = trip(film, host, to)
    made = arrived.get_components()
    assert same_frames(arrived, film) and made.frame_rate == Fraction(30000, 1001)
    assert torch.equal(made.audio["waveform"], sound["waveform"])
    assert made.audio["sample_rate"] == 44100


def test_the_sound_is_audio_and_so_stays_exact_where_pictures_do_not() -> None:
    from zbus.values.kinds import describe

    assert describe(told(made_of(CROPPING, audio=Lazy()), CROPPING)["audio"]) == "audio"


def test_depth_colours_transparency_and_texts() -> None:
    alpha, texts = torch.rand(3, 4, 4, 1), {"title": "a film", "odd": "x"}
    film = made_of(CROPPING, 10, "HDR PQ", alpha=alpha, metadata={**texts, "n": 5})
    arrived = trip(film, CROPPING)
    made = arrived.get_components()
    assert (arrived.get_bit_depth(), arrived.get_color_space()) == (10, "HDR PQ")
    assert torch.equal(made.alpha, alpha) and made.metadata == texts
    assert trip(made_of(CROPPING, 8, None), CROPPING).get_color_space() == "auto"


@pytest.mark.parametrize(
    ("how", "parts", "said", "newer"),
    [
        ((10,), {}, "10 bits", "to 0.28 or later"),
        ((8, "HDR"), {}, "the colours 'HDR'", "to one later than 0.33"),
        ((), {"alpha": torch.rand(3, 4, 4, 1)}, "transparency", "to 0.28 or later"),
    ],
)
def test_an_older_comfyui_refuses_frames_that_it_would_save_otherwise(
    how: Any, parts: Any, said: str, newer: str
) -> None:
    with pytest.raises(
        InputError,
        match=f"a video came with {said}.*, which the ComfyUI that takes it cannot.*{newer}, or",
    ):
        trip(made_of(CROPPING, *how, **parts), CROPPING, OLD)


# --- what a peer may make up

FRAMES = torch.zeros(2, 4, 4, 3)
SPOILT: list[Any] = [
    *("abc", None, 5, [], {}),
    *({"file": "text"}, {"file": None}, {"file": b"x", "edits": [1]}),
    {"file": b"x", "edits": {"file": b"other"}},
    {"file": b"x", "edits": {"start_time": "soon"}},
    {"file": b"x", "edits": {"duration": float("inf")}},
    {"file": b"x", "edits": {"duration": float("nan")}},
    {"file": b"x", "edits": {"crop": (0, 0, 4, 4)}},
    {"file": b"x", "edits": {"spatial_ops": 5}},
    {"file": b"x", "edits": {"spatial_ops": [5]}},
    {"file": b"x", "edits": {"spatial_ops": [()]}},
    {"file": b"x", "edits": {"spatial_ops": [("scale", 10**6, 10**6, "area", "disabled")]}},
    {"file": b"x", "edits": {"spatial_ops": [("__class__", 1)]}},
    *({"films": 5}, {"films": [{}]}, {"films": [{"file": "text"}]}),
    *({"rate": [1, 0], "images": None}, {"images": None, "rate": [25, 1], "audio": "x"}),
    *({"images": FRAMES, "rate": [1, 0]}, {"images": FRAMES, "rate": [-1, 1]}),
    *({"images": FRAMES, "rate": 25}, {"images": FRAMES, "rate": ["25", "1"]}),
    {"images": FRAMES[0], "rate": [25, 1]},
    {"images": FRAMES, "rate": [25, 1], "audio": {"waveform": 5, "sample_rate": 8000}},
    {"images": FRAMES, "rate": [25, 1], "audio": {"waveform": FRAMES, "sample_rate": 0}},
    {"images": FRAMES, "rate": [25, 1], "audio": {"waveform": FRAMES, "sample_rate": "x"}},
    {"images": FRAMES, "rate": [25, 1], "alpha": FRAMES[:1]},
    {"images": FRAMES, "rate": [25, 1], "alpha": "x"},
    {"images": FRAMES, "rate": [25, 1], "bits": "10"},
    {"images": FRAMES, "rate": [25, 1], "space": 5},
]


@pytest.mark.parametrize("host", [OLD, CROPPING, SCALING], ids=["old", "cropping", "scaling"])
@pytest.mark.parametrize("said", SPOILT, ids=range(len(SPOILT)))
def test_what_is_marked_as_a_video_and_is_none(host: Host, said: Any) -> None:
    with pytest.raises(InputError, match="what came as a video is none|another picture"):
        host.videos.unpacked({host.videos.MARK: said})


def test_other_values_are_left_alone() -> None:
    for value in (5, {"zbus.video": 1, "more": 2}, "zbus.video", FRAMES):
        assert CROPPING.videos.unpacked(value) is value
        assert CROPPING.videos.packed(value) is value
