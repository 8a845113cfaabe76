"""ComfyUI's classes that are no more than tensors, bytes and numbers under one name: MESH, VOXEL,
SPLAT, FILE_3D, SVG, curves and ranges, and what a CLIP vision model puts out.

The table is closed: `zbus.values.containers` builds only what is in it, and only with fields that
this ComfyUI's own class has. Versions differ: an older MESH has no texture, and is refused one
rather than given a mesh without; what is None or off there needs no field.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from io import BytesIO
from typing import Any, NamedTuple

from zbus.values.containers import Container


class _Type(NamedTuple):
    """A class of ComfyUI.

    Attributes:
        name: The class's own.
        modules: Where versions have it, the newest first.
        take: A value's fields; raises ValueError for what cannot travel.
        make: From the class and the fields; may raise anything.
        names: The fields that the class has; None: the parameters of its constructor.
    """

    name: str
    modules: tuple[str, ...]
    take: Callable[[Any], dict[str, Any]]
    make: Callable[[Any, dict[str, Any]], Any]
    names: frozenset[str] | None = None


# --- plain ones: their attributes are the parameters of their constructor ------------------------


def _attributes(value: Any) -> dict[str, Any]:
    known = _parameters(type(value))
    # Absent where it is off: a version without that field can take it.
    held = {
        name: item
        for name, item in vars(value).items()
        if item is not None and not (item is False and known.get(name, item) is False)
    }
    unknown = sorted(held.keys() - known.keys())
    if unknown:
        raise ValueError(f"it also holds {', '.join(unknown)}, which its class does not know")
    return held


def _parameters(cls: type) -> dict[str, Any]:
    """Their defaults, by name."""
    parameters = inspect.signature(cls).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def _construct(cls: Any, fields: dict[str, Any]) -> Any:
    return cls(**fields)


# --- the others ---------------------------------------------------------------------------------

_FORMAT = re.compile(r"[A-Za-z0-9_+-]{0,20}(\.[A-Za-z0-9_+-]{1,20})?")


def _take_file(value: Any) -> dict[str, Any]:
    """Its bytes, wherever they are; never where that is."""
    return {"data": value.get_bytes(), "format": _format(value.format)}


def _make_file(cls: Any, fields: dict[str, Any]) -> Any:
    return cls(BytesIO(_bytes(fields["data"])), file_format=_format(fields["format"]))


def _format(given: Any) -> str:
    """What it is saved under: never a piece of a path."""
    if not isinstance(given, str) or not _FORMAT.fullmatch(given):
        raise ValueError("its format is no name of one")
    return given


def _take_svg(value: Any) -> dict[str, Any]:
    return {"data": [one.getvalue() for one in value.data]}


def _make_svg(cls: Any, fields: dict[str, Any]) -> Any:
    return cls([BytesIO(_bytes(one)) for one in fields["data"]])


def _bytes(given: Any) -> bytes:
    if not isinstance(given, bytes):
        raise TypeError("no bytes")
    return given


def _take_curve(value: Any) -> dict[str, Any]:
    return {"points": [list(point) for point in value.points]}


def _make_curve(cls: Any, fields: dict[str, Any]) -> Any:
    return cls([(float(x), float(y)) for x, y in fields["points"]])


_VISION = frozenset({"last_hidden_state", "image_embeds", "image_sizes", "mm_projected"}) | {
    *("penultimate_hidden_states", "all_hidden_states")
}


def _take_vision(value: Any) -> dict[str, Any]:
    """With what is None in it: who reads it asks for that by name."""
    unknown = sorted(name for name in vars(value) if name not in _VISION)
    if unknown:
        raise ValueError(f"it also holds {', '.join(unknown)}, which zbus does not know")
    return dict(vars(value))


def _make_vision(cls: Any, fields: dict[str, Any]) -> Any:
    made = cls()
    for name, item in fields.items():  # `check` has let only those of the table pass
        setattr(made, name, item)
    return made


EXTRAS = "comfy_extras."  # ComfyUI loads these files by path
_UTIL, _INPUT = "comfy_api.latest._util", "comfy_api.latest._input"
_GEOMETRY = (f"{_UTIL}.geometry_types", "comfy_extras.nodes_hunyuan3d")
_IMAGES = (f"{_UTIL}.image_types", "comfy_extras.nodes_images")
_CURVES = (f"{_INPUT}.curve_types",)
_FILE, _POINTS, _DATA = frozenset({"data", "format"}), frozenset({"points"}), frozenset({"data"})

TYPES: Mapping[str, _Type] = {
    "MESH": _Type("MESH", _GEOMETRY, _attributes, _construct),
    "VOXEL": _Type("VOXEL", _GEOMETRY, _attributes, _construct),
    "SPLAT": _Type("SPLAT", _GEOMETRY, _attributes, _construct),
    "FILE_3D": _Type("File3D", _GEOMETRY, _take_file, _make_file, _FILE),
    "SVG": _Type("SVG", _IMAGES, _take_svg, _make_svg, _DATA),
    "CURVE": _Type("MonotoneCubicCurve", _CURVES, _take_curve, _make_curve, _POINTS),
    "CURVE_LINEAR": _Type("LinearCurve", _CURVES, _take_curve, _make_curve, _POINTS),
    "RANGE": _Type("RangeInput", (f"{_INPUT}.range_types",), _attributes, _construct),
    "CLIP_VISION_OUTPUT": _Type(
        "Output", ("comfy.clip_vision",), _take_vision, _make_vision, _VISION
    ),
}
_NAMED: dict[str, list[str]] = {}
for _kind, _type in TYPES.items():
    _NAMED.setdefault(_type.name, []).append(_kind)


class HostTypes:
    """See `zbus.values.containers.Host`."""

    def __init__(self) -> None:
        # One spec may name a type 65536 times, and thousands of modules lie before its own.
        self._found: dict[str, tuple[Any, Collection[str]]] = {}
        self._extras: dict[str, list[str]] = {}  # what modules of comfy_extras are called

    def taken(self, value: object) -> Container | None:
        for kind in _NAMED.get(type(value).__name__, ()):
            if any(_is_module(type(value).__module__, name) for name in TYPES[kind].modules):
                return Container(kind, TYPES[kind].take(value))
        return None

    def here(self) -> frozenset[str]:
        """The kinds that this ComfyUI has."""
        return frozenset(kind for kind in TYPES if self._known(kind)[0] is not None)

    def check(self, kind: str, fields: Collection[str]) -> None:
        cls, names = self._known(kind)
        if cls is None:
            raise ValueError(f"a {kind}, which this ComfyUI does not have")
        lacking = sorted(set(fields).difference(names))
        if lacking:
            raise ValueError(f"a {kind} with {', '.join(lacking)}, which this ComfyUI's has not")

    def made(self, kind: str, fields: dict[str, Any]) -> Any:
        return TYPES[kind].make(self._known(kind)[0], fields)

    def _known(self, kind: str) -> tuple[Any, Collection[str]]:
        """This ComfyUI's class, and the fields that it has; (None, ()) where it has none."""
        if kind not in self._found:
            cls = self._class(kind)
            if cls is None:  # a module that is loaded later may have it
                return None, ()
            names = TYPES[kind].names
            self._found[kind] = cls, frozenset(_parameters(cls)) if names is None else names
        return self._found[kind]

    def _class(self, kind: str) -> Any:
        """This ComfyUI's; None where it has none."""
        found = TYPES.get(kind)
        for wanted in found.modules if found is not None else ():
            for name in self._names(wanted):
                module = sys.modules.get(name)
                if found is not None and hasattr(module, found.name):
                    return getattr(module, found.name)
        return None

    def _names(self, wanted: str) -> Collection[str]:
        """What that module is called here. Only what ComfyUI itself has loaded, and as often as it
        has: of the files in comfy_extras a second import would make classes that its nodes do not
        know."""
        if not wanted.startswith(EXTRAS):
            return (wanted,)
        if wanted not in self._extras:
            tail = wanted.rpartition(".")[2]
            # A copy in one go: a list of it lets other threads run, and they may import.
            loaded = sys.modules.copy()
            names = [n for n in loaded if n.endswith(tail) and _is_module(n, wanted)]
            if not names:  # perhaps later
                return ()
            self._extras[wanted] = names
        return self._extras[wanted]


HOST_TYPES = HostTypes()


def _is_module(name: str, wanted: str) -> bool:
    """ComfyUI loads the files of comfy_extras by path, and names their modules by that."""
    if name == wanted:
        return True
    is_extra = wanted.startswith(EXTRAS) and name.endswith(wanted.partition(".")[2])
    return is_extra and re.split(r"[\\/.]", name)[-2:] == wanted.split(".")
