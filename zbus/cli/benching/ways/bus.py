"""zbus itself, by its public API: over each kind of link."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
import time
from pathlib import Path
from typing import Any

import zbus

from .... import peer as peer_module
from ....peer import Peer, Probe
from ....remote import Remote
from ....run import Channel
from ....settings import Settings
from .way import LIMIT, Way

DOOR = Path(zbus.__file__).resolve().parent.parent / "comfy_nodes" / "page" / "websocket_door.py"


class Bus(Way):
    """`kind` is "socket", "lane" (the same-host lane), "curve", "web" (the page's door), or "away":
    as a socket, between peers that say they are on two machines."""

    with_torch = True
    channel: Channel

    def __init__(self, kind: str, folder: Path) -> None:
        super().__init__(kind, folder)
        if kind == "away":
            # There is but one machine here: each side believes that it is on one of its own.
            setattr(peer_module, "boot_id", lambda: f"{os.getpid():032x}")  # noqa: B010

    def _make(self) -> None:
        settings = Settings(share_memory=self.kind == "lane")
        self.peer = Peer(f"bench {self.kind}", settings=settings)

    def open(self) -> dict[str, Any]:
        self._make()
        if self.kind in ("curve", "web"):
            return {"address": self.peer.serve(None), "instance": self.peer.own.instance.hex()}
        self.channel = self.peer.listen("127.0.0.1:0")
        return {"address": self.channel.address, "port": int(self.channel.address.split(":")[1])}

    def join(self, told: dict[str, Any]) -> dict[str, Any]:
        self._told = told
        self._make()
        if self.kind not in ("curve", "web"):
            at = f"{told['host']}:{told['port']}" if "host" in told else told["address"]
            self.channel = self.peer.connect(at)
            return {}
        own = self.peer.serve(None)
        answer = {"address": "", "instance": self.peer.own.instance.hex()}
        if self.kind == "web":
            answer["address"] = f"http://127.0.0.1:{_open_door(own)}"
            told = {**told, "address": ""}
        self.channel = self.peer.meet(Remote(**told))
        return answer

    def meet(self, told: dict[str, Any]) -> None:
        if self.kind in ("curve", "web"):
            self.channel = self.peer.meet(Remote(**told))

    def do_accept(self) -> dict[str, Any]:
        limit = time.monotonic() + LIMIT
        while not self.channel.peer and time.monotonic() < limit:
            time.sleep(0.002)
        return {}

    def probe(self) -> Probe:
        """From the receiver to the sender, on the link that carries the values."""
        if self.kind == "curve":
            return self.peer.probe(Remote(**self._told))
        return self.peer.probe(self._told["address"])

    def send(self) -> None:
        self.channel.send(self.value, timeout=LIMIT)

    def receive(self, memory: str) -> Any:
        return self.channel.receive(timeout=LIMIT)

    def close(self) -> None:
        self.peer.close()


def door_is_missing() -> str:
    if not DOOR.is_file():
        return "the page's door, which is in a clone of zbus"
    return "" if importlib.util.find_spec("aiohttp") else "aiohttp"


def _open_door(address: str) -> int:
    """The WebSocket lane's far end, without a ComfyUI around it: its port."""
    from aiohttp import web

    spec = importlib.util.spec_from_file_location("zbus_bench_door", DOOR)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="page", daemon=True).start()

    async def serve() -> int:
        app = web.Application()
        app.router.add_get(module.PATH, module.Door(lambda: address).handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    return asyncio.run_coroutine_threadsafe(serve(), loop).result(LIMIT)
