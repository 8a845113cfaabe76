"""iceoryx2: a slice of shared memory is lent, filled and published; and copied out over there."""

from __future__ import annotations

import ctypes
import importlib
import os
import socket
from pathlib import Path
from typing import Any

from ..buffers import Buffers
from ..values import plain
from .memories import Shared


class Iceoryx(Shared):
    """Who waits is woken by a byte on a socket, as `Shared` does it."""

    def __init__(self, kind: str, folder: Path) -> None:
        super().__init__(kind, folder)
        self._library: Any = importlib.import_module("iceoryx2")
        self._buffers = Buffers()

    def open(self) -> dict[str, Any]:
        name = f"zbus-bench/{os.getpid()}"
        self._service = self._made(name)
        return {**super().open(), "name": name}

    def join(self, told: dict[str, Any]) -> dict[str, Any]:
        self._subscriber = self._made(told["name"]).subscriber_builder().create()
        return super().join(told)

    def _made(self, name: str) -> Any:
        library = self._library
        self._node = library.NodeBuilder.new().create(library.ServiceType.Ipc)
        builder = self._node.service_builder(library.ServiceName.new(name))
        return builder.publish_subscribe(library.Slice[ctypes.c_uint8]).open_or_create()

    def prepare(self, value: Any) -> None:
        self.value = plain(value)
        self._publisher: Any = None  # the slices of one publisher are as large as was said at first
        builder = self._service.publisher_builder().initial_max_slice_len(len(self.value))
        self._publisher = builder.create()

    def send(self) -> None:
        size = len(self.value)
        sample = self._publisher.loan_slice_uninit(size)
        source = ctypes.addressof(ctypes.c_uint8.from_buffer(self.value))
        ctypes.memmove(sample.payload().as_ptr(), source, size)
        sample.assume_init().send()
        self._link.sendall(b"\1")
        self._link.recv(1)

    def receive(self, memory: str) -> Any:
        self._link.recv(1, socket.MSG_WAITALL)
        sample = self._subscriber.receive()
        payload = sample.payload()
        into = self._buffers.take(payload.len(), memory)
        target = ctypes.addressof(ctypes.c_uint8.from_buffer(into))
        ctypes.memmove(target, payload.as_ptr(), payload.len())
        sample.delete()
        self._link.sendall(b"\1")
        return into

    def clear(self) -> None:
        self.value = None
        self._buffers.drop()
