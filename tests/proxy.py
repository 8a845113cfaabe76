"""A TCP proxy that is as bad as a test wants it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

READ = 1 << 18
KEEP = 1 << 20  # bytes of one direction held here at most, as a kernel's buffers would


@dataclass(eq=False)
class _Pipe:
    """One direction of one connection."""

    source: socket.socket
    target: socket.socket
    pair: _Pair
    waiting: list[tuple[float, bytes]] = field(default_factory=list)  # (not before, bytes)
    held: int = 0
    ready_at: float = 0.0  # throttled until then
    ended: bool = False  # the source has said all


@dataclass(eq=False)
class _Pair:
    client: socket.socket
    server: socket.socket
    pipes: tuple[_Pipe, ...] = ()


class Proxy:
    """Forwards 127.0.0.1:port to `target` ("host:port"), in a thread of its own.

    Attributes (set them at any time):
        accepting: "forward"; "close": accept and close at once, as a tunnel does with nobody
            behind; "refuse": not listening at all (by `refuse` and `accept`).
        black_hole: Nothing is read or forwarded; the connections stand.
        delay: Seconds that everything is held.
        rate: Bytes per second of each direction; None: as fast as it goes.
        cut_after: Cut everything once so many bytes more have gone through; then None again.
    Counts:
        forwarded: Bytes, both directions, all connections.
        accepted: Connections.
        cuts: Connections cut.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.accepting = "forward"
        self.black_hole = False
        self.delay = 0.0
        self.rate: float | None = None
        self.cut_after: int | None = None
        self.forwarded = self.accepted = self.cuts = 0
        self._pairs: list[_Pair] = []
        self._selector = selectors.DefaultSelector()
        self._lock = threading.RLock()
        self._closing = False
        self._server: socket.socket | None = None
        self._listen(0)
        assert self._server is not None
        self.port = int(self._server.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    # --- from the test ----------------------------------------------------------------------------

    def cut(self) -> int:
        """Cut all connections now; how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            for pair in pairs:
                self.cuts += 1
                for end in (pair.client, pair.server):
                    with contextlib.suppress(OSError):
                        end.close()
            return len(pairs)

    def refuse(self) -> None:
        """Stop listening: who dials is refused. What stands goes on."""
        with self._lock:
            if self._server is not None:
                self._selector.unregister(self._server)
                self._server.close()
                self._server = None

    def accept(self) -> None:
        """Listen again, on the same port."""
        with self._lock:
            if self._server is None:
                self._listen(self.port)

    def close(self) -> None:
        self._closing = True
        self._thread.join(10)
        self.cut()
        self.refuse()
        self._selector.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- in the thread ----------------------------------------------------------------------------

    def _listen(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", port), backlog=64)
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ)

    def _run(self) -> None:
        while not self._closing:
            with self._lock:
                moved = self._accept()
                now = time.monotonic()
                for pair in list(self._pairs):
                    for pipe in pair.pipes:
                        moved = self._move(pipe, now) or moved
            if not moved:
                self._wait()

    def _wait(self) -> None:
        """Until there is something to read, but never long: rates and delays need the clock."""
        with self._lock:
            watched = [p.source for pair in self._pairs for p in pair.pipes if self._may_read(p)]
            held = any(p.waiting for pair in self._pairs for p in pair.pipes)
        with selectors.DefaultSelector() as selector:
            for end in {*watched, *([self._server] if self._server else [])}:
                with contextlib.suppress(ValueError, KeyError, OSError):
                    selector.register(end, selectors.EVENT_READ)
            selector.select(0.001 if held else 0.01)

    def _may_read(self, pipe: _Pipe) -> bool:
        return not (self.black_hole or pipe.ended or pipe.held >= KEEP)

    def _accept(self) -> bool:
        if self._server is None:
            return False
        try:
            client, _ = self._server.accept()
        except OSError:
            return False
        self.accepted += 1
        if self.accepting == "close":
            client.close()
            return True
        try:
            server = socket.create_connection(self._target, timeout=2)
        except OSError:
            client.close()
            return True
        pair = _Pair(client, server)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(False)
        pair.pipes = (_Pipe(client, server, pair), _Pipe(server, client, pair))
        self._pairs.append(pair)
        return True

    def _move(self, pipe: _Pipe, now: float) -> bool:
        if pipe.pair not in self._pairs or self.black_hole:
            return False
        try:
            moved = self._read(pipe, now)
            return self._write(pipe, now) or moved
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._drop(pipe.pair)
            return True

    def _read(self, pipe: _Pipe, now: float) -> bool:
        if not self._may_read(pipe):
            return False
        try:
            data = pipe.source.recv(READ)
        except BlockingIOError:
            return False
        if data:
            pipe.waiting.append((now + self.delay, data))
            pipe.held += len(data)
        else:
            pipe.ended = True
        return True

    def _write(self, pipe: _Pipe, now: float) -> bool:
        if not pipe.waiting:
            if pipe.ended:
                self._drop(pipe.pair)
                return True
            return False
        due, data = pipe.waiting[0]
        if now < due or now < pipe.ready_at:
            return False
        most = READ if self.rate is None else max(1, int(self.rate * 0.01))
        if self.cut_after is not None:
            most = min(most, self.cut_after)
        sent = pipe.target.send(data[:most]) if most else 0
        pipe.waiting[0:1] = [(due, data[sent:])] if sent < len(data) else []
        pipe.held -= sent
        self.forwarded += sent
        if self.rate is not None:
            pipe.ready_at = max(now - 0.02, pipe.ready_at) + sent / self.rate
        if self.cut_after is not None:
            self.cut_after -= sent
            if self.cut_after <= 0:
                self.cut_after = None
                self.cut()
        return True

    def _drop(self, pair: _Pair) -> None:
        if pair in self._pairs:
            self._pairs.remove(pair)
        for end in (pair.client, pair.server):
            end.close()
