"""A slow link between two processes, and one that is cut: bytes passed on, at a rate."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

from .way import LIMIT, Way

READ = 1 << 16
BUFFER = 64 << 10  # bytes that the kernel holds for it: a queue as that of a router, no more
TURN = 0.005  # seconds; a shorter sleep is no more exact


class Throttle(Way):
    """Not a way by itself: what stands between the two sides of one."""

    def __init__(self, kind: str, folder: Any) -> None:
        super().__init__(kind, folder)
        self._left = self._size = self._times = 0
        self._forwarded = self._cuts = 0
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()

    def do_stand_between(self, port: int, rate: float, host: str) -> dict[str, Any]:
        """A place whose connections go on to that port of the loopback, `rate` bytes a second."""
        server = socket.socket()
        # Before it listens: what a connection's window may grow to is settled as it is accepted.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        server.bind((host, 0))
        server.listen()
        threading.Thread(target=self._serve, args=(server, port, rate), daemon=True).start()
        return {"host": host, "port": server.getsockname()[1]}

    def do_cut_each(self, size: int, times: int) -> dict[str, Any]:
        """Cut all connections whenever so many bytes more have gone through; begin to count."""
        with self._lock:
            self._left, self._size, self._times = size, size, times
            self._forwarded = self._cuts = 0
        return {}

    def do_counts(self) -> dict[str, Any]:
        return {"forwarded": self._forwarded, "cuts": self._cuts}

    def _serve(self, server: socket.socket, port: int, rate: float) -> None:
        while True:
            near, _ = server.accept()
            far = socket.socket()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            far.settimeout(LIMIT)
            try:
                far.connect(("127.0.0.1", port))
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ends += [near, far]
            for source, target in ((near, far), (far, near)):
                given = (source, target, rate)
                threading.Thread(target=self._pump, args=given, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, rate: float) -> None:
        free_at = time.monotonic()
        most = max(1500, min(READ, int(rate * TURN)))
        buffer = memoryview(bytearray(most))
        with contextlib.suppress(OSError):
            while got := source.recv_into(buffer):
                free_at = max(free_at, time.monotonic() - TURN) + got / rate
                if (wait := free_at - time.monotonic()) > TURN / 5:
                    time.sleep(wait)
                target.sendall(buffer[:got])
                self._count(got)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count(self, size: int) -> None:
        with self._lock:
            self._forwarded += size
            if self._cuts >= self._times:
                return
            self._left -= size
            if self._left > 0:
                return
            self._left, self._cuts = self._size, self._cuts + 1
            ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
