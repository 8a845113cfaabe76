"""torch.distributed with gloo: send and recv between two ranks. Both know the shape beforehand."""

from __future__ import annotations

import datetime
from typing import Any

from ..buffers import Buffers
from ..values import size_of
from .way import LIMIT, Way


class Gloo(Way):
    with_torch = True

    def open(self) -> dict[str, Any]:
        return {"file": str(self.folder / "gloo")}

    def join(self, told: dict[str, Any]) -> dict[str, Any]:
        self._file = told["file"]
        return told

    def meet(self, told: dict[str, Any]) -> None:
        self._file = told["file"]

    def begin(self, rank: int) -> None:
        """Both sides at once: it waits for the other."""
        import torch
        import torch.distributed as distributed

        self._torch, self._distributed, self._rank = torch, distributed, rank
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{self._file}",
            rank=rank,
            world_size=2,
            timeout=datetime.timedelta(seconds=LIMIT),
        )
        self._word = torch.zeros(1, dtype=torch.uint8)
        self._buffers = Buffers()

    def send(self) -> None:
        self._distributed.send(self.value, 1)
        self._distributed.recv(self._word, 1)

    def receive(self, memory: str) -> Any:
        buffer = self._buffers.take(size_of(self.expected), memory)
        into = self._torch.frombuffer(buffer, dtype=self._torch.float32)
        self._distributed.recv(into, 0)
        self._distributed.send(self._word, 0)
        return buffer

    def clear(self) -> None:
        super().clear()
        self._buffers.drop()
