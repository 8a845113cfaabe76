"""Many senders into one receiver: the same processes for each way, one way at a time."""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ....peer import Peer
from ....settings import Settings
from ..buffers import Buffers
from ..values import size_of
from .sockets import Socket
from .way import LIMIT, Way


class Crowd(Way):
    """One side of all of them. The receiver has served each, a sender dialled it."""

    with_torch = True

    def __init__(self, kind: str, folder: Any) -> None:
        super().__init__(kind, folder)
        self._all: dict[str, Any] = {}
        self._used: Any = None

    def _make(self, name: str, kind: str) -> Any:
        maker = {"many-socket": Sockets, "many-gloo": Gloos}.get(name, Buses)
        self._all[name] = maker(kind, self.folder)
        return self._all[name]

    def do_serve(self, name: str, kind: str, count: int) -> dict[str, Any]:
        told: dict[str, Any] = self._make(name, kind).serve(count)
        return told

    def do_dial(self, **told: Any) -> dict[str, Any]:
        self._make(told["name"], told["kind"]).dial(told["number"], told["told"])
        return {}

    def do_gather(self, name: str) -> dict[str, Any]:
        """In the receiver, while they dial: returns when all are there."""
        self._all[name].gather()
        return {}

    def do_use(self, name: str) -> dict[str, Any]:
        self._used = self._all[name]
        if self.value is not None:
            self._used.prepare(self.value)
        return {}

    def send(self) -> None:
        self._used.send()

    def receive(self, memory: str) -> Any:
        self._used.expected = self.expected
        return self._used.receive(memory)


class Buses(Way):
    """zbus: one peer that listens at one address, with a channel for each."""

    def _begin(self) -> Peer:
        self._peer = Peer("bench many", settings=Settings(share_memory=self.kind == "lane"))
        return self._peer

    def serve(self, count: int) -> dict[str, Any]:
        peer = self._begin()
        self._channels = [peer.listen("127.0.0.1:0", channel="0")]
        address = self._channels[0].address
        self._channels += [peer.listen(address, channel=str(n)) for n in range(1, count)]
        return {"address": address}

    def dial(self, number: int, told: dict[str, Any]) -> None:
        self._channels = [self._begin().connect(told["address"], channel=str(number))]

    def gather(self) -> None:
        pass

    def send(self) -> None:
        self._channels[0].send(self.value, timeout=LIMIT)

    def receive(self, memory: str) -> Any:
        under_way = [channel.start_receive(timeout=LIMIT) for channel in self._channels]
        return [operation.result() for operation in under_way]


class Sockets(Way):
    """A raw socket and a thread for each."""

    def serve(self, count: int) -> dict[str, Any]:
        self._links = [Socket("plain", self.folder) for _ in range(count)]
        self._pool = ThreadPoolExecutor(count)
        return {"ports": [link.open()["port"] for link in self._links]}

    def dial(self, number: int, told: dict[str, Any]) -> None:
        self._links = [Socket("plain", self.folder)]
        self._links[0].join({"port": told["ports"][number]})

    def gather(self) -> None:
        for link in self._links:
            link.meet({})

    def prepare(self, value: Any) -> None:
        self._links[0].prepare(value)

    def send(self) -> None:
        self._links[0].send()

    def receive(self, memory: str) -> Any:
        return list(self._pool.map(lambda link: link.receive(memory), self._links))


class Gloos(Way):
    """torch.distributed with gloo: rank 0 receives from all others."""

    def serve(self, count: int) -> dict[str, Any]:
        self._count, self._buffers = count, [Buffers() for _ in range(count)]
        return {"file": str(self.folder / "many-gloo"), "count": count}

    def dial(self, number: int, told: dict[str, Any]) -> None:
        self._begin(number + 1, told["count"])

    def gather(self) -> None:
        self._begin(0, self._count)

    def _begin(self, rank: int, count: int) -> None:
        import torch
        import torch.distributed as distributed

        self._torch, self._distributed = torch, distributed
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{self.folder / 'many-gloo'}",
            rank=rank,
            world_size=count + 1,
            timeout=datetime.timedelta(seconds=LIMIT),
        )
        self._word = torch.zeros(1, dtype=torch.uint8)

    def send(self) -> None:
        self._distributed.send(self.value, 0)
        self._distributed.recv(self._word, 0)

    def receive(self, memory: str) -> Any:
        size, torch = size_of(self.expected), self._torch
        into = [
            torch.frombuffer(buffers.take(size, memory), dtype=torch.float32)
            for buffers in self._buffers
        ]
        works: list[Any] = [self._distributed.irecv(t, n + 1) for n, t in enumerate(into)]
        for work in works:
            work.wait()
        for number in range(len(into)):
            self._distributed.send(self._word, number + 1)
        return into
