"""ComfyUI's own containers on their way through zbus, with a real ComfyUI's classes and no server.

``python container_trips.py COMFYUI_DIR`` prints, as JSON, for each kind what it held here and what
arrived, or why it is not there: ``test_container_trips.py`` compares. ``--give FILE`` and ``--take
FILE`` do one half each, for two ComfyUIs of different versions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

from runner import make_importable

ROOT = Path(__file__).resolve().parents[2]
Parcel = dict[str, tuple[bytes, bytes]]


def load(comfyui: Path) -> None:
    """That ComfyUI's classes, and zbus's table of them, without a server."""
    sys.path[:0] = [str(comfyui), str(ROOT)]
    sys.argv = [sys.argv[0], "--cpu"]
    make_importable()
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.clip_vision
    import utils.install_util  # noqa: F401  # before nodes.py puts comfy/utils.py in front of it

    # As ComfyUI loads the files of comfy_extras: by path, under the path's name.
    for name in ("nodes_images", "nodes_hunyuan3d"):
        path = comfyui / "comfy_extras" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(str(path.with_suffix("")), path)
        assert spec is not None and spec.loader is not None
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    package = types.ModuleType("zbus_host")
    package.__path__ = [str(ROOT / "comfy_nodes" / "host")]
    sys.modules["zbus_host"] = package
    from zbus_host.containers import HostTypes  # type: ignore[import-not-found]

    from zbus.values import containers

    containers.use(HostTypes())


def made(folder: Path) -> dict[str, Any]:
    """One value of each kind that this ComfyUI has."""
    import torch
    from zbus_host.containers import TYPES, HostTypes

    def cls(kind: str) -> Any:
        return HostTypes()._class(kind)

    box = torch.rand(1, 5, 3), torch.randint(0, 5, (1, 4, 3))
    found: dict[str, Any] = {
        "MESH": cls("MESH")(*box),
        "VOXEL": cls("VOXEL")(torch.rand(1, 4, 4, 4)),
    }
    takes = cls("MESH").__init__.__annotations__  # one more with each version
    if "texture" in takes:
        more = {"uvs": torch.rand(1, 5, 2), "unlit": True, "material": {"roughness": 0.5}}
        more = {name: value for name, value in more.items() if name in takes}
        counts = dict.fromkeys(("vertex_counts", "face_counts"), torch.tensor([3]))
        found["MESH, whole"] = cls("MESH")(*box, texture=torch.rand(1, 4, 4, 3), **more, **counts)
    if cls("SPLAT"):
        found["SPLAT"] = cls("SPLAT")(*(torch.rand(1, 6, n) for n in (3, 3, 4, 1, 3)))
    if cls("FILE_3D"):
        (folder / "a.glb").write_bytes(b"glTF" + bytes(3000))
        found["FILE_3D"] = cls("FILE_3D")(io.BytesIO(b"ply" * 900), "ply")
        found["FILE_3D, of a disk"] = cls("FILE_3D")(str(folder / "a.glb"))
    found["SVG"] = cls("SVG")([io.BytesIO(b"<svg/>"), io.BytesIO(b"<svg>2</svg>")])
    if cls("CURVE"):
        found["CURVE"] = cls("CURVE")([(1.0, 0.5), (0.0, 0.25)])
        found["CURVE_LINEAR"] = cls("CURVE_LINEAR")([(0, 0), (1, 1)])
        found["RANGE"] = cls("RANGE")(0.1, 0.9, None)
    vision = found["CLIP_VISION_OUTPUT"] = cls("CLIP_VISION_OUTPUT")()
    vision["last_hidden_state"], vision["mm_projected"] = torch.rand(1, 7, 8), None
    vision["image_sizes"] = [torch.rand(3, 2, 2).shape]
    found["in a conditioning"] = [[torch.rand(1, 7, 8), {"clip_vision_output": vision}]]
    assert {name.partition(",")[0] for name in found} - {"in a conditioning"} == {
        kind for kind in TYPES if cls(kind)
    }
    return found


def described(value: Any) -> Any:
    """A value down to its bits, and its class's name."""
    import torch

    if isinstance(value, torch.Tensor):
        held = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()[:16]
        return [str(value.dtype), list(value.shape), held]
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if isinstance(value, dict):
        return {key: described(item) for key, item in value.items()}
    if isinstance(value, io.BytesIO):
        return hashlib.sha256(value.getvalue()).hexdigest()[:16]
    if hasattr(value, "get_bytes"):
        return ["File3D", value.format, hashlib.sha256(value.get_bytes()).hexdigest()[:16]]
    if hasattr(value, "__dict__"):
        return [type(value).__name__, described(dict(sorted(vars(value).items())))]
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)


def give(folder: Path) -> tuple[dict[str, Any], Parcel]:
    from zbus.values.payload import flatten, pack

    told, parcels = {}, {}
    for name, value in made(folder).items():
        told[name] = described(value)
        packed = pack(flatten(value), "always")
        parcels[name] = packed.spec, b"".join(buffer.view for buffer in packed.buffers)
    return told, parcels


def take(spec: bytes, data: bytes) -> Any:
    from zbus.errors import RemoteProtocolError
    from zbus.values.payload import Unpacker

    try:
        unpacker = Unpacker(spec)
    except RemoteProtocolError as error:
        return {"refused": str(error)}
    at = 0
    for view in unpacker.allocate():
        view[:] = data[at : at + len(view)]
        at += len(view)
    return described(unpacker.value())


def main() -> None:
    comfyui, *more = sys.argv[1:]
    load(Path(comfyui))
    if more[:1] == ["--take"]:
        given = json.loads(Path(more[1]).read_text())
        print(json.dumps({n: [t, take(*map(bytes.fromhex, p))] for n, (t, p) in given.items()}))
        return
    told, parcels = give(Path.cwd())
    if more[:1] == ["--give"]:
        held = {n: [told[n], [part.hex() for part in parcels[n]]] for n in told}
        Path(more[1]).write_text(json.dumps(held))
        return
    print(json.dumps({name: [told[name], take(*parcels[name])] for name in told}))


if __name__ == "__main__":
    main()
