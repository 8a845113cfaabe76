"""Copies of memory: within one process, and through memory that two share."""

from __future__ import annotations

import mmap
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np

from ..buffers import Buffers
from ..values import plain
from .way import LIMIT, Way


class Copy(Way):
    """One memcpy, in the sender; the receiver has no part in it. `kind` is the memory."""

    def __init__(self, kind: str, folder: Path) -> None:
        super().__init__(kind, folder)
        self._buffers = Buffers()

    def prepare(self, value: Any) -> None:
        self.value = np.frombuffer(plain(value), np.uint8)

    def send(self) -> None:
        into = self._buffers.take(len(self.value), self.kind)
        np.copyto(np.frombuffer(into, np.uint8), self.value)

    def clear(self) -> None:
        super().clear()
        self._buffers.drop()


class Shared(Way):
    """Copied into a file in memory that both have mapped, and out again."""

    def __init__(self, kind: str, folder: Path) -> None:
        super().__init__(kind, folder)
        self._buffers = Buffers()
        self._shared = np.empty(0, np.uint8)

    def open(self) -> dict[str, Any]:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(LIMIT)
        return {"port": self._server.getsockname()[1], "pid": os.getpid()}

    def join(self, told: dict[str, Any]) -> dict[str, Any]:
        self._pid = told["pid"]
        self._link = socket.create_connection(("127.0.0.1", told["port"]), LIMIT)
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return {}

    def meet(self, told: dict[str, Any]) -> None:
        self._link, _ = self._server.accept()
        self._link.settimeout(LIMIT)
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def prepare(self, value: Any) -> None:
        self.value = np.frombuffer(plain(value), np.uint8)
        self._file = os.memfd_create("zbus-bench")
        os.ftruncate(self._file, len(self.value))
        self._shared = np.frombuffer(mmap.mmap(self._file, len(self.value)), np.uint8)

    def send(self) -> None:
        np.copyto(self._shared, self.value)
        self._link.sendall(self._file.to_bytes(8, "little") + len(self.value).to_bytes(8, "little"))
        self._link.recv(1)

    def receive(self, memory: str) -> Any:
        said = self._link.recv(16, socket.MSG_WAITALL)
        number, size = (int.from_bytes(part, "little") for part in (said[:8], said[8:]))
        if len(self._shared) != size:
            with open(f"/proc/{self._pid}/fd/{number}", "r+b") as file:
                self._shared = np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
        into = self._buffers.take(size, memory)
        np.copyto(np.frombuffer(into, np.uint8), self._shared)
        self._link.sendall(b"\1")
        return into

    def clear(self) -> None:
        super().clear()
        self._shared = np.empty(0, np.uint8)
        self._buffers.drop()
        if hasattr(self, "_file"):
            os.close(self._file)
            del self._file
