"""Bare ZeroMQ: chunks of 1 MiB into one preallocated buffer, plain or with CURVE; or pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zmq

from ..buffers import Buffers
from ..values import plain
from .way import LIMIT, Way

CHUNK = 1 << 20  # bytes
WINDOW = 16  # chunks that wait in each side's queue


class Chunks(Way):
    """`kind` is "plain" or "curve"."""

    def __init__(self, kind: str, folder: Path) -> None:
        super().__init__(kind, folder)
        self._buffers = Buffers()

    def _make(self) -> None:
        self._socket: Any = zmq.Context.instance().socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        for option in (zmq.SNDHWM, zmq.RCVHWM):
            self._socket.setsockopt(option, WINDOW)
        for option in (zmq.SNDTIMEO, zmq.RCVTIMEO):
            self._socket.setsockopt(option, int(LIMIT * 1000))

    def open(self) -> dict[str, Any]:
        self._make()
        told: dict[str, Any] = {}
        if self.kind == "curve":
            public, secret = zmq.curve_keypair()
            self._socket.curve_secretkey, self._socket.curve_publickey = secret, public
            self._socket.curve_server = True
            told["key"] = public.decode()
        told["port"] = self._socket.bind_to_random_port("tcp://127.0.0.1")
        return told

    def join(self, told: dict[str, Any]) -> dict[str, Any]:
        self._make()
        if self.kind == "curve":
            self._socket.curve_publickey, self._socket.curve_secretkey = zmq.curve_keypair()
            self._socket.curve_serverkey = told["key"].encode()
        self._socket.connect(f"tcp://127.0.0.1:{told['port']}")
        return {}

    def do_dial(self, **told: Any) -> dict[str, Any]:
        self.join(told)
        self._socket.send(b"here")
        return {}

    def do_accept(self) -> dict[str, Any]:
        self._socket.recv()
        return {}

    def prepare(self, value: Any) -> None:
        self.value = plain(value)

    def send(self) -> None:
        view, size = self.value, len(self.value)
        self._socket.send(size.to_bytes(8, "little"))
        for offset in range(0, size, CHUNK):
            self._socket.send(view[offset : offset + CHUNK], copy=False)
        self._socket.recv()

    def receive(self, memory: str) -> Any:
        size = int.from_bytes(self._socket.recv(), "little")
        into, done = self._buffers.take(size, memory), 0
        while done < size:
            done += self._socket.recv_into(into[done : done + CHUNK])
        self._socket.send(b"")
        return into

    def clear(self) -> None:
        super().clear()
        self._buffers.drop()

    def close(self) -> None:
        self._socket.close()


class Pickled(Chunks):
    """What pyzmq itself offers for objects. It unpickles what its own sibling has sent, and nobody
    else can: the receiver is the one that dials."""

    with_torch = True

    def prepare(self, value: Any) -> None:
        self.value = value

    def send(self) -> None:
        self._socket.send_pyobj(self.value, protocol=5)
        self._socket.recv()

    def receive(self, memory: str) -> Any:
        value = self._socket.recv_pyobj()
        self._socket.send(b"")
        return value
