"""The test nodes; ComfyUI itself is imported only inside the functions that need it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from . import values


class AnyType(str):
    """The wildcard of V1 nodes: a type that no comparison finds different."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = AnyType("*")
NODE_CLASS_MAPPINGS: dict[str, type] = {}


def node(*, output: bool = False, returns: tuple[str, ...] = (ANY,), as_list: bool = False) -> Any:
    """Register a class as a node whose function is ``run``."""

    def register(cls: type) -> type:
        cls.CATEGORY, cls.FUNCTION = "zbus tests", "run"  # type: ignore[attr-defined]
        cls.OUTPUT_NODE, cls.RETURN_TYPES = output, returns  # type: ignore[attr-defined]
        if as_list:
            cls.OUTPUT_IS_LIST = (True,)  # type: ignore[attr-defined]
        NODE_CLASS_MAPPINGS[cls.__name__] = cls
        return cls

    return register


class Always:
    """Runs each time: what it tells is of this run."""

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")


@node()
class TestSlow(Always):
    """Takes `seconds`, in steps that look for the interrupt; passes the value through. `preview`
    shows a red picture at each step."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        seconds = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 3600.0, "step": 0.01})
        step = ("FLOAT", {"default": 0.05, "min": 0.001, "max": 60.0, "step": 0.001})
        more = {"step": step, "preview": ("BOOLEAN", {"default": False})}
        return {"required": {"value": (ANY,), "seconds": seconds}, "optional": more}

    def run(
        self, value: Any, seconds: float, step: float = 0.05, preview: bool = False
    ) -> tuple[Any]:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar

        steps = max(1, round(seconds / step))
        bar = ProgressBar(steps)
        picture = ("JPEG", Image.new("RGB", (64, 64), "red"), 64) if preview else None
        for at in range(1, steps + 1):
            time.sleep(seconds / steps)
            throw_exception_if_processing_interrupted()
            bar.update_absolute(at, steps, picture)
        return (value,)


@node()
class TestDeaf(Always):
    """Sleeps without looking for the interrupt, as a checkpoint load does."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (ANY,), "seconds": ("FLOAT", {"default": 1.0})}}

    def run(self, value: Any, seconds: float) -> tuple[Any]:
        time.sleep(seconds)
        return (value,)


@node()
class TestRaise(Always):
    """Raises ValueError(text), or passes the value through where the text is empty. With `exits`,
    the port of a ComfyUI, the thread that runs prompts there is not to be found any more."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text, exits = ("STRING", {"default": "test error"}), ("INT", {"default": 0, "max": 65535})
        return {"required": {"value": (ANY,), "text": text}, "optional": {"exits": exits}}

    def run(self, value: Any, text: str, exits: int = 0) -> tuple[Any]:
        from comfy.cli_args import args

        if exits == args.port:
            threading.current_thread().name = "of no prompts"
            time.sleep(120)  # that ComfyUI is killed by whoever asks for it
        if text:
            raise ValueError(text)
        return (value,)


@node(returns=("IMAGE",))
class TestNoise:
    """An IMAGE of float32 noise from 0 to 1, the same for the same inputs anywhere."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def size(default: int) -> tuple[str, dict[str, int]]:
            return ("INT", {"default": default, "min": 0, "max": 1 << 16})

        names = {"batch": 1, "height": 64, "width": 64, "channels": 3, "seed": 0}
        return {"required": {name: size(default) for name, default in names.items()}}

    def run(self, batch: int, height: int, width: int, channels: int, seed: int) -> tuple[Any]:
        return (values.noise((batch, height, width, channels), seed),)


@node()
class TestMake:
    """Makes a value of a kind; see values.KINDS."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"kind": (list(values.KINDS),), "seed": ("INT", {"default": 0})}}

    def run(self, kind: str, seed: int) -> tuple[Any]:
        return (values.make(kind, seed),)


@node(returns=("IMAGE",))
class TestMakeImage(TestMake):
    """The same, and says that it is a picture."""


@node(returns=("IMAGE", "VHS_INFO"))
class TestLoadPath(Always):
    """A loader of any path, as VideoHelperSuite has them: one pixel, as grey as the first byte."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"video": ("STRING", {"vhs_path_extensions": ["mp4"]})}}

    @classmethod
    def VALIDATE_INPUTS(cls, video: str) -> bool | str:
        return Path(video).is_file() or f"no such file: {video}"

    def run(self, video: str) -> tuple[Any, dict[str, str]]:
        print(f"TestLoadPath ran {Path(video).name}", flush=True)
        return torch.full((1, 1, 1, 3), Path(video).read_bytes()[0] / 255), {"from": video}


@node(as_list=True)
class TestList:
    """Makes a list output of `count` values of a kind: what follows runs once per item."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        count, seed = ("INT", {"default": 2}), ("INT", {"default": 0})
        return {"required": {"kind": (list(values.KINDS),), "count": count, "seed": seed}}

    def run(self, kind: str, count: int, seed: int) -> tuple[list[Any]]:
        return ([values.make(kind, seed + i) for i in range(count)],)


@node(output=True)
class TestDigest(Always):
    """Shows a digest of any value: equal digests mean equal types, dtypes, shapes and bytes.

    UI: digest (sha256, hex), description (text), bytes (of tensors and texts), time_ns (when it
    ran).
    """

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (ANY,)}}

    def run(self, value: Any) -> dict[str, Any]:
        now = time.time_ns()
        shown = {"digest": values.digest(value), "description": values.describe(value)}
        shown |= {"bytes": values.size(value), "time_ns": now}
        return {"ui": {key: [item] for key, item in shown.items()}, "result": (value,)}


@node(output=True)
class TestStamp(Always):
    """Shows when it ran (UI: time_ns); passes the value through. `after` only puts it later."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (ANY,)}, "optional": {"after": (ANY,)}}

    def run(self, value: Any, after: Any = None) -> dict[str, Any]:
        return {"ui": {"time_ns": [time.time_ns()]}, "result": (value,)}


@node(returns=(ANY, "STRING"))
class TestAt:
    """Passes the value through, after `seconds`; is cached, and says so in the log when it runs.

    Raises where the ComfyUI's port is not `only`, or is `never` (0: any port will do). The second
    output is JSON: port, began_ns, ended_ns.
    """

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        port = ("INT", {"default": 0, "min": 0, "max": 65535})
        seconds, text = ("FLOAT", {"default": 0.0, "step": 0.01}), ("STRING", {"default": ""})
        more = {"only": port, "never": port, "seconds": seconds, "text": text}
        return {"required": {"value": (ANY,)}, "optional": more}

    def run(
        self, value: Any, only: int = 0, never: int = 0, seconds: float = 0.0, text: str = ""
    ) -> tuple[Any, str]:
        from comfy.cli_args import args

        began = time.time_ns()
        print(f"TestAt ran {text}", flush=True)
        if args.port == never or only not in (0, args.port):
            raise ValueError(f"this must not run on port {args.port}")
        time.sleep(seconds)
        span = {"port": args.port, "began_ns": began, "ended_ns": time.time_ns()}
        return (value, json.dumps(span))


@node(returns=("STRING",))
class TestModel:
    """Gives the name of a checkpoint that is there, without loading it."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        import folder_paths

        return {"required": {"name": (folder_paths.get_filename_list("checkpoints"),)}}

    def run(self, name: str) -> tuple[str]:
        return (name,)


@node()
class TestLate(Always):
    """Passes on `late`, which it asks for only when `now` is there: where ComfyUI does not keep
    results, what gives it is computed for this reader again."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"now": (ANY,), "late": (ANY, {"lazy": True})}}

    def check_lazy_status(self, now: Any = None, late: Any = None) -> list[str]:
        return ["late"] if late is None else []

    def run(self, now: Any, late: Any) -> tuple[Any]:
        return (late,)


@node(returns=("STRING",))
class TestToken(Always):
    """Tells what the page has sent along for nodes that cost money."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        hidden = {"token": "AUTH_TOKEN_COMFY_ORG", "key": "API_KEY_COMFY_ORG"}
        return {"required": {}, "hidden": hidden}

    def run(self, token: Any = None, key: Any = None) -> tuple[str]:
        return (f"token {token}, key {key}",)


@node()
class TestExpand:
    """Becomes a part that must run on the ComfyUI at `port`, and the ZBusRun that sees to it."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        texts = {"peer": ("STRING", {"default": ""}), "port": ("INT", {"default": 0})}
        return {"required": {"value": (ANY, {"rawLink": True}), **texts}}

    def run(self, value: Any, peer: str, port: int) -> dict[str, Any]:
        from comfy_execution.graph_utils import GraphBuilder

        graph = GraphBuilder()
        part = graph.node("TestAt", value=value, only=port)
        how = {"here": "no", "on_failure": "stop", "quality": "exact"}
        run = graph.node("ZBusRun", value=part.out(0), peer=peer, **how)
        return {"result": (run.out(0),), "expand": graph.finalize()}
