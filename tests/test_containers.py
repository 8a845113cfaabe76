"""Mappings, numpy's scalars, and types of the host's own on their way."""

from __future__ import annotations

import collections
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from zbus.errors import NotTransferable, RemoteProtocolError
from zbus.values import containers
from zbus.values.containers import MAX_FIELDS
from zbus.values.payload import Container, Unpacker, describe, flatten, pack


def trip(value: Any) -> Any:
    packed = pack(flatten(value), "never")
    unpacker = Unpacker(packed.spec)
    for view, buffer in zip(unpacker.allocate(), packed.buffers, strict=True):
        view[:] = buffer.view
    return unpacker.value()


def spec(*atoms: object) -> bytes:
    return b"".join(msgpack.packb(atom) for atom in (1, *atoms))


# --- mappings


class Lazy(Mapping[str, Any]):
    """Decodes its file when somebody looks."""

    def __init__(self, decode: Any) -> None:
        self.decode, self.looked = decode, 0

    def _now(self) -> dict[str, Any]:
        self.looked += 1
        made: dict[str, Any] = self.decode()
        return made

    def __getitem__(self, key: str) -> Any:
        return self._now()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


def sound() -> dict[str, Any]:
    return {"waveform": torch.arange(8.0).reshape(1, 2, 4), "sample_rate": 44100}


def test_a_mapping_that_decodes_travels_as_the_dict_that_it_stands_for() -> None:
    for value, at in ((Lazy(sound), ()), ([Lazy(sound)], (0,)), ({"a": Lazy(sound)}, ("a",))):
        got = trip(value)
        for key in at:
            got = got[key]
        assert type(got) is dict and got["sample_rate"] == 44100
        assert torch.equal(got["waveform"], sound()["waveform"])
    assert describe(Lazy(sound)) == flatten(Lazy(sound)).kind == "audio"
    latent = Lazy(lambda: {"samples": torch.zeros(1, 4, 8, 8)})
    assert flatten(latent).kind == "latent"


@pytest.mark.parametrize(
    "value",
    [
        types.MappingProxyType({"a": 1}),
        collections.ChainMap({"a": 1}, {"a": 2}),
        collections.UserDict(a=1),
        collections.defaultdict(int, a=1),
        type("Own", (dict,), {})(a=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_mapping_arrives_as_a_dict(value: Any) -> None:
    got = trip({"x": value})["x"]
    assert type(got) is dict and got == {"a": 1}


def test_a_mapping_that_cannot_be_read_is_refused_without_its_path() -> None:
    def gone() -> dict[str, Any]:
        raise FileNotFoundError("/home/somebody/film.mp4")

    with pytest.raises(
        NotTransferable, match=r"value\[0\] is a Lazy that cannot be read"
    ) as failed:
        flatten([Lazy(gone)])
    assert "FileNotFoundError" in str(failed.value) and "somebody" not in str(failed.value)

    class Interrupted(BaseException):
        pass

    def stop() -> dict[str, Any]:
        raise Interrupted

    with pytest.raises(Interrupted):
        flatten(Lazy(stop))


# --- numpy's scalars


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("2020-01-01", "ns"),
        np.datetime64("2020-01-01", "D"),
        np.timedelta64(5, "ns"),
        np.timedelta64(5, "D"),
        np.void(b"abc"),
        np.zeros(1, [("a", "f4")])[0],
    ],
    ids=repr,
)
def test_scalars_that_are_no_numbers_are_refused(value: Any) -> None:
    """A time in nanoseconds arrived as a bare int."""
    for where in (value, [value], {"x": value}):
        with pytest.raises(NotTransferable, match=f"a numpy {type(value).__name__}"):
            flatten(where)
    if not isinstance(value, np.void):  # these have no hash
        with pytest.raises(NotTransferable, match=r"timedelta64|a key of type"):
            flatten({value: 1})


def test_numbers_of_numpy_are_keys_as_they_are_values() -> None:
    value = {
        np.int64(3): 1,
        np.uint8(4): 2,
        np.bool_(False): 3,
        np.float32(0.5): 4,
        np.str_("s"): 5,
    }
    got = trip({**value, np.float64(1.5): 6, (np.int16(1), "x"): np.bytes_(b"b")})
    assert got == {3: 1, 4: 2, False: 3, 0.5: 4, "s": 5, 1.5: 6, (1, "x"): b"b"}
    kinds = [type(key) for key in got]
    assert kinds == [int, int, bool, float, str, float, tuple]


def test_a_tensor_that_came_in_can_be_resized() -> None:
    """A node that computes into it (out=) may need more."""
    got = trip({"a": torch.zeros(1000), "b": torch.zeros(2, 2, dtype=torch.bfloat16)})
    for tensor in got.values():
        assert tensor.resize_(3000).numel() == 3000


def test_a_large_tensor_that_came_in_takes_results_up_to_its_size() -> None:
    """Its memory is zbus's, to be used again: torch cannot make it larger."""
    got = trip(torch.zeros(1 << 20))
    torch.add(torch.ones(1 << 20), 1, out=got)
    assert got.unique().tolist() == [2]
    assert got.clone().resize_(1 << 21).numel() == 1 << 21
    assert got.resize_(5).numel() == 5
    with pytest.raises(RuntimeError, match="not resizable"):
        got.untyped_storage().resize_(1 << 23)


# --- without a host


MESH = {"vertices": torch.rand(1, 3, 3), "faces": torch.zeros(1, 1, 3, dtype=torch.int64)}


def test_without_a_host_it_is_a_plain_container_and_travels_on() -> None:
    for value in (Container("MESH", MESH), trip(Container("MESH", MESH))):
        got = trip([{"mesh": value}])[0]["mesh"]
        assert type(got) is Container and got.kind == "MESH" and list(got.fields) == list(MESH)
        assert all(torch.equal(got.fields[name], MESH[name]) for name in MESH)
        assert repr(got) == "Container('MESH', ['faces', 'vertices'])"
    assert describe(Container("MESH", MESH)) == "any"
    assert trip(Container("X", {"in": Container("Y", {})})).fields["in"].kind == "Y"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((kind, {}) for kind in ("", "a b", "_x", "\xe9", "A" * 61, 3)),
        *(("A", fields) for fields in ({"__class__": 1}, {1: 1}, {f"f{i}": 1 for i in range(99)})),
    ],
)
def test_names_that_are_none_are_refused_before_they_leave(kind: Any, fields: Any) -> None:
    with pytest.raises(NotTransferable, match="no usable names"):
        flatten(Container(kind, fields))


def test_what_it_holds_is_named_where_it_cannot_travel() -> None:
    with pytest.raises(NotTransferable, match=r"value\[0\]\.material\['x'\] is a live object"):
        flatten([Container("MESH", {"material": {"x": object()}})])


@pytest.mark.parametrize(
    "data",
    [
        spec("o"),
        spec("o", 3, 0),
        spec("o", "MESH"),
        spec("o", "MESH", -1),
        spec("o", "MESH", MAX_FIELDS + 1),
        spec("o", "MESH", 1, 3, 1),
        spec("o", "MESH", 1, "a"),
        spec("o", "MESH", 2, "a", 1, "a", 1),
        spec("o", "MESH", 1, "__class__", 1),
        spec("o", "MESH", 1, "a.b", 1),
        spec("o", "os.system", 0),
        spec("o", "../x", 0),
        spec("o", "M" * 61, 0),
        spec("{", 1, "o", "MESH", 0, 1),
        spec("n", 1, "o", "MESH", 0),
        spec(*["o", "A", 1, "a"] * 40, 1),
    ],
    ids=range(16),
)
def test_bad_containers_are_the_peers_fault(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Unpacker(data)


# --- with one


class Mesh:
    def __init__(self, vertices: Any, faces: Any) -> None:
        if faces is None:
            raise AssertionError("/home/somebody")
        self.vertices, self.faces = vertices, faces


class Table:
    """The table of a host that has meshes."""

    def taken(self, value: object) -> Container | None:
        if type(value) is not Mesh:
            return None
        if value.vertices == "gone":
            raise OSError("/home/somebody/mesh.glb")
        if value.vertices == "more":
            raise ValueError("it also holds bones")
        return Container("MESH", vars(value))

    def check(self, kind: str, fields: Collection[str]) -> None:
        if kind != "MESH" or not set(fields) <= {"vertices", "faces"}:
            raise ValueError(f"a {kind} of {sorted(fields)}")

    def made(self, kind: str, fields: dict[str, Any]) -> Any:
        assert kind == "MESH"
        return Mesh(**fields)


@pytest.fixture
def table() -> Iterator[None]:
    containers.use(Table())
    yield
    containers.use(None)


@pytest.mark.usefixtures("table")
def test_a_host_builds_what_is_in_its_table() -> None:
    got = trip({"x": [Mesh(**MESH)]})["x"][0]
    assert type(got) is Mesh and torch.equal(got.vertices, MESH["vertices"])
    assert type(trip(Container("MESH", MESH))) is Mesh, "as a script may send one"


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("value", [Container("SPLAT", {}), Container("MESH", {"texture": 1})])
def test_what_its_table_has_not_is_refused_before_anything_is_taken(value: Any) -> None:
    packed = pack(flatten({"a": torch.zeros(9), "b": value}), "never")
    with pytest.raises(RemoteProtocolError, match=r"holds a \w+ of .*Update the ComfyUI"):
        Unpacker(packed.spec)


@pytest.mark.usefixtures("table")
def test_fields_that_make_none_are_the_peers_fault() -> None:
    for fields in ({}, {"vertices": 1}, {"vertices": 1, "faces": None}):
        with pytest.raises(RemoteProtocolError, match="a MESH that is none") as failed:
            trip(Container("MESH", fields))
        assert "somebody" not in str(failed.value)


@pytest.mark.usefixtures("table")
def test_what_cannot_be_taken_apart_is_refused_by_its_place() -> None:
    with pytest.raises(NotTransferable, match=r"value\[0\] is a Mesh that .*: it also holds bones"):
        flatten([Mesh("more", 1)])
    with pytest.raises(NotTransferable, match=r"cannot travel: OSError") as failed:
        flatten(Mesh("gone", 1))
    assert "somebody" not in str(failed.value)
