"""The ways of passing a value that are compared, by name; each is loaded where it is used."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

from .way import Way


class Known(NamedTuple):
    """A way.

    Attributes:
        label: For a table.
        module, maker, kind: Where it is, which class, which variant.
        needs: Packages without which there is none.
        spins: It keeps a core busy when nothing is sent: its processes stand still meanwhile.
        alone: The sender alone does it.
        together: Both sides open it at once (`begin`).
        links: Its rows give it one new link after the other: it begins with none.
    """

    label: str
    module: str
    maker: str
    kind: str = "plain"
    needs: tuple[str, ...] = ()
    spins: bool = False
    alone: bool = False
    together: bool = False
    links: bool = False


WAYS = {
    "zbus-socket": Known("zbus", "bus", "Bus", "socket"),
    "zbus-lane": Known("zbus", "bus", "Bus", "lane"),
    "zbus-curve": Known("zbus", "bus", "Bus", "curve"),
    "zbus-web": Known("zbus", "bus", "Bus", "web", ("aiohttp",)),
    "socket": Known("raw socket", "sockets", "Socket"),
    "tls": Known("TLS", "sockets", "Socket", "tls"),
    "zmq": Known("ZeroMQ chunks", "zeromq", "Chunks"),
    "zmq-curve": Known("CURVE chunks", "zeromq", "Chunks", "curve"),
    "pickle": Known("ZeroMQ + pickle", "zeromq", "Pickled"),
    "gloo": Known("gloo", "gloo", "Gloo", needs=("torch",), together=True),
    "tensorpipe": Known(
        "TensorPipe", "tensorpipe", "TensorPipe", "any", ("torch",), spins=True, together=True
    ),
    "tensorpipe-tcp": Known(
        "TensorPipe (TCP)", "tensorpipe", "TensorPipe", "tcp", ("torch",), spins=True, together=True
    ),
    "shared": Known("shared memory", "memories", "Shared"),
    "iceoryx": Known("iceoryx2", "iceoryx", "Iceoryx", needs=("iceoryx2",)),
    "memcpy": Known("memcpy", "memories", "Copy", "again", alone=True),
    "memcpy-fresh": Known("memcpy, fresh", "memories", "Copy", "fresh", alone=True),
    "memcpy-huge": Known("memcpy, huge", "memories", "Copy", "huge", alone=True),
    "new-zbus": Known("zbus", "bus", "Bus", "lane", links=True),
    "new-socket": Known("raw socket", "sockets", "Socket", links=True),
    "new-zmq": Known("ZeroMQ chunks", "zeromq", "Chunks", links=True),
    "new-tensorpipe": Known(
        "TensorPipe", "tensorpipe", "TensorPipe", "any", ("torch",), spins=True, links=True
    ),
    "away-zbus": Known("zbus", "bus", "Bus", "away", links=True),
    "here-zbus": Known("zbus", "bus", "Bus", "socket", links=True),
    "webp": Known("lossless WebP", "pictures", "Picture", "webp", links=True),
    "webp-small": Known("WebP, smaller", "pictures", "Picture", "webp-small", links=True),
    "png": Known("PNG", "pictures", "Picture", "png", links=True),
    "floats": Known("raw floats", "pictures", "Picture", "floats", links=True),
    "waking": Known("a thread, twice a second", "waking", "Waking", alone=True),
    "throttle": Known("throttle", "throttle", "Throttle", alone=True),
    "many": Known("many", "crowds", "Crowd", links=True),
    "many-zbus": Known("zbus", "crowds", "Buses", "socket"),
    "many-lane": Known("zbus", "crowds", "Buses", "lane"),
    "many-socket": Known("raw socket", "crowds", "Sockets"),
    "many-gloo": Known("gloo", "crowds", "Gloos", needs=("torch",)),
    "websocket": Known("aiohttp", "websockets", "WebSocket", needs=("aiohttp",)),
}


def load(name: str, folder: Path) -> Way:
    """That way's side in this process."""
    known = WAYS[name]
    module = importlib.import_module(f".{known.module}", __name__)
    made: Way = getattr(module, known.maker)(known.kind, folder)
    return made


def missing(name: str) -> str:
    """What is not there that it needs; "" where nothing is."""
    for package in WAYS[name].needs:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if name == "tls":
        from .sockets import tls_is_missing

        return _lacks(tls_is_missing())
    if name == "zbus-web":
        from .bus import door_is_missing

        return _lacks(door_is_missing())
    if name == "shared" and not sys.platform.startswith("linux"):
        return "is made for Linux here"
    if name.endswith(("gloo", "tensorpipe", "tensorpipe-tcp")):
        return _torch_lacks(name)
    return ""


def _lacks(what: str) -> str:
    return what and f"there is no {what}"


def _torch_lacks(name: str) -> str:
    distributed = importlib.import_module("torch.distributed")
    if not distributed.is_available():
        return "this torch was built without torch.distributed"
    if name.endswith("gloo"):
        return "" if distributed.is_gloo_available() else "this torch was built without gloo"
    rpc = importlib.import_module("torch.distributed.rpc")
    there = rpc.is_available() and hasattr(rpc, "TensorPipeRpcBackendOptions")
    return "" if there else "this torch was built without TensorPipe"
