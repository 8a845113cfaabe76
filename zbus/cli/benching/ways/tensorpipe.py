"""torch.distributed.rpc, which is TensorPipe: a call whose argument is the value."""

from __future__ import annotations

import queue
from typing import Any

from .way import LIMIT, Way

_come: queue.SimpleQueue[Any] = queue.SimpleQueue()


def take(value: Any) -> None:
    """What the sender calls over there."""
    _come.put(value)


class TensorPipe(Way):
    """`kind` is "any", by what it finds (shared memory, memory of the other process), or "tcp"."""

    with_torch = True

    _links = 0

    def open(self) -> dict[str, Any]:
        self._links += 1
        self._file = str(self.folder / f"tensorpipe-{self.kind}-{self._links}")
        return {"file": self._file}

    def join(self, told: dict[str, Any]) -> dict[str, Any]:
        self._file = told["file"]
        return told

    def meet(self, told: dict[str, Any]) -> None:
        self._file = told["file"]

    def begin(self, rank: int) -> None:
        """Both sides at once: it waits for the other."""
        import torch.distributed.rpc as rpc

        self._rpc = rpc
        more: dict[str, Any] = (
            {"_transports": ["uv"], "_channels": ["basic"]} if self.kind == "tcp" else {}
        )
        options = rpc.TensorPipeRpcBackendOptions(
            num_worker_threads=2,
            rpc_timeout=LIMIT,
            init_method=f"file://{self._file}",
            **more,
        )
        init: Any = rpc.init_rpc  # has no types
        init(f"side{rank}", rank=rank, world_size=2, rpc_backend_options=options)

    def do_dial(self, **told: Any) -> dict[str, Any]:
        self.join(told)
        self.begin(1)
        return {}

    def do_accept(self) -> dict[str, Any]:
        self.begin(0)
        return {}

    def close(self) -> None:
        self._rpc.shutdown()

    def send(self) -> None:
        self._rpc.rpc_sync("side1", take, args=(self.value,))

    def receive(self, memory: str) -> Any:
        return _come.get(timeout=LIMIT)
