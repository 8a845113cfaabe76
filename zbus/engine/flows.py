"""One value on its way out or in, as `bulk` keeps it: its transfer, its codec, and its memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import xxhash

from ..codecs import Codec
from ..errors import ZBusError
from ..net.places import Peering
from ..protocol.transfer import Incoming, Outgoing
from ..values.layout import Layout


class Source(Protocol):
    """The plain bytes of a value to send."""

    total: int

    @property
    def pieces(self) -> Sequence[memoryview]:
        """The memory itself, in order; none where there is none."""

    def read(self, offset: int, size: int) -> memoryview: ...
    def layout(self, offset: int, size: int) -> Layout: ...
    def cut(self, offset: int, want: int) -> int: ...


class Sink(Protocol):
    """Where the plain bytes of a value go."""

    def view(self, offset: int, size: int) -> memoryview | None:
        """That range's own memory; None if it lies in several pieces."""

    def write(self, offset: int, data: memoryview) -> None: ...
    def layout(self, offset: int, size: int) -> Layout: ...

    def digest(self, offset: int, size: int, hasher: Any) -> None:
        """Feed the stored range to the hasher."""


@dataclass(eq=False)
class Outflow:
    """One value on its way out."""

    peering: Peering
    outgoing: Outgoing
    source: Source
    codec: Codec
    on_progress: Callable[[int], None]  # bytes the peer has
    on_stored: Callable[[], None]
    on_failed: Callable[[ZBusError], None]
    hasher: Any = field(default_factory=xxhash.xxh3_128)
    hashed: int = 0
    finished: bool = False  # FINISH is said
    wire: int = 0  # bytes sent
    may_share: bool = False  # the peer could read it itself,
    shared: bool = False  # and does
    dropped: bool = False
    encoding: deque[Encoding] = field(default_factory=deque)


@dataclass(frozen=True)
class Encoding:
    """One chunk in the worker pool."""

    epoch: int
    offset: int
    plain: memoryview
    future: Future[Any]


@dataclass(eq=False)
class Inflow:
    """One value on its way in."""

    peering: Peering
    incoming: Incoming
    sink: Sink
    codec: Codec
    on_progress: Callable[[int], None]
    on_complete: Callable[[], None]  # every byte is there and the digest is right
    on_failed: Callable[[ZBusError], None]
    hasher: Any = field(default_factory=xxhash.xxh3_128)
    digest: bytes | None = None
    head: int = 0  # bytes of a spec in front; then `on_head` opens the rest
    on_head: Callable[[], None] | None = None
    reading: bool = False  # it is, or was, read out of the sender's memory
    dropped: bool = False
