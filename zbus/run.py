"""One run's place on a channel: what a caller sends and receives by."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any

from . import codecs
from .engine.context import Running
from .engine.loop import Engine
from .errors import InvalidOrder, PeerClosed, ZBusError
from .net.places import Lease, Place
from .operation import Operation, Progress
from .protocol.fields import clip
from .protocol.manifest import Manifest
from .protocol.messages import MAX_HEADER, MAX_PLANNED
from .protocol.registrations import ChannelOperation, Registration, State
from .values import payload

EXPECT = ("any", "image", "mask", "latent", "audio", "text", "number", "conditioning")


@dataclass(frozen=True)
class Run:
    """One execution of a workflow, as the other side may know it.

    Attributes:
        id: Names the run; by default a fresh name.
        since: When it began, for people; by default now.
        manifest: What it will do on the channel, where that is known: compared with the other
            side's before anything is sent.
        on_broken: Called in the I/O thread if the other run ends while this one, by its manifest,
            still needs it and no operation is open that could raise.
    """

    id: str = field(default_factory=lambda: os.urandom(8).hex())
    since: str = field(default_factory=lambda: datetime.now().strftime("%H:%M"))
    manifest: Manifest | None = None
    on_broken: Callable[[ZBusError], None] | None = None


class Channel:
    """One run's place on a channel: made by `Peer.listen`, `connect` or `anyone`.

    One operation at a time is open on it. It is one run: close it when the run ends, so that the
    other side hears of the end, and make another for the next. Usable from any thread.
    """

    def __init__(
        self, engine: Engine, registration: Registration, lease: Lease[Place] | None
    ) -> None:
        self._engine, self._seat, self._lease = engine, registration, lease
        self._place = lease.place if lease is not None else None
        self._closed = False

    @property
    def address(self) -> str:
        """The address listened on or dialled; "" on a channel to anyone."""
        return str(self._place.address) if self._place is not None else ""

    @property
    def peer(self) -> str:
        """The name of the peer whose run this one has met; "" before."""
        link, state = self._seat.link, self._seat.state
        # Proposed is not met: the other run may be gone by the time that it hears of it.
        return link.peer if link is not None and state is not State.PROPOSED else ""

    def send(
        self,
        value: Any,
        order: int | None = None,
        *,
        quality: str = "exact",
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Send a value; returns when the other side has received and verified it.

        Args:
            value: A tensor of any dtype and shape, or text, bytes, numbers, None, or lists,
                tuples and dicts of these. It must not change until this returns.
            order: The value's place in the chain: the other side receives with the same number.
                None: the next one.
            quality: "exact" or "8-bit", or a codec by name (`zbus.codecs.CHOICES`).
            timeout: Seconds; None waits for the other side as long as it takes.
            progress: Called with (bytes done, bytes in all).

        Raises:
            InputError: The value, order or quality cannot be used.
            ChannelError: The two runs do not fit together, or the other has ended.
            LinkError: The link ended.
            TransferError: The value did not arrive.
            Cancelled, TimedOut, PeerClosed: What they say.
        """
        self.start_send(value, order, quality=quality, timeout=timeout, progress=progress).result()

    def receive(
        self,
        order: int | None = None,
        *,
        expect: str = "any",
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Receive the value that the other side sends with the same order.

        Args:
            expect: The kind of value, one of `EXPECT`; another kind is an error on both sides.

        The other arguments and what it raises are those of `send`.
        """
        return self.start_receive(order, expect=expect, timeout=timeout, progress=progress).result()

    def start_send(
        self,
        value: Any,
        order: int | None = None,
        *,
        quality: str = "exact",
        timeout: float | None = None,
        progress: Progress | None = None,
        kind: str | None = None,
        node: str = "",
    ) -> Operation[None]:
        """As `send`, but returns at once: wait with `result()` or ``await``, end with `cancel()`.

        Args:
            kind: What to call the value, instead of what it looks like.
            node: What to call this step in texts for people.
        """
        codecs.check(quality)
        flat = payload.flatten(value)
        payload.check_choice(flat, codecs.eight_bit(quality) == "always")
        step = ChannelOperation("send", clip(kind or flat.kind, 20), clip(node, 120), _order(order))
        return self._start(step, timeout, progress, flat, quality)

    def start_receive(
        self,
        order: int | None = None,
        *,
        expect: str = "any",
        timeout: float | None = None,
        progress: Progress | None = None,
        node: str = "",
    ) -> Operation[Any]:
        """As `receive`, but returns at once: see `start_send`."""
        if expect not in EXPECT:
            raise ValueError(f"expect is one of {', '.join(EXPECT)}, not {expect!r}")
        step = ChannelOperation("receive", expect, clip(node, 120), _order(order))
        return self._start(step, timeout, progress)

    def _start(
        self,
        step: ChannelOperation,
        timeout: float | None,
        progress: Progress | None,
        flat: payload.Flat | None = None,
        quality: str = "exact",
    ) -> Operation[Any]:
        engine = self._engine
        deadline = None if timeout is None else time.monotonic() + timeout
        operation: Operation[Any] = Operation(
            lambda op: engine.post(lambda: engine.operations.cancel(op)), progress
        )
        running = Running(operation, self._seat, step, self._place, deadline, flat, quality)
        if engine.closed:
            operation.fail(PeerClosed("this Peer is closed"))
        engine.post(lambda: engine.operations.begin(running))
        return operation

    def cancel(self) -> None:
        """End the operation that is open here, from any thread; the channel stays usable."""

        def cancel() -> None:
            for running in self._engine.operations.on(self._seat):
                self._engine.operations.cancel(running.operation)

        self._engine.post(cancel)

    def close(self, outcome: str = "ok", why: str = "") -> None:
        """The run has ended: "ok", "failed" or "cancelled", and why. An operation of the other
        side that waits for this run ends at once with that text. Never waits for the peer."""
        if self._closed:
            return
        self._closed = True

        def close() -> None:
            self._engine.channels.close(self._seat, outcome, why)
            self._engine.on_broken.pop(self._seat, None)
            self._engine.meetings.end(self._seat)
            if self._lease is not None:
                self._lease.release()

        self._engine.post(close)

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.close("failed", f"{type(error).__name__}: {error}")


def fitting(manifest: Manifest | None) -> Manifest | None:
    """The manifest as it can travel; None, as if it were not known, where it is too long."""
    if manifest is None or len(manifest) > MAX_PLANNED:
        return None
    fitting = tuple(
        (d, clip(k, 20), key, certain, clip(n, 60)) for d, k, key, certain, n in manifest
    )
    return fitting if sum(len(op[4].encode()) for op in fitting) < MAX_HEADER // 2 else None


def _order(order: int | None) -> int | None:
    if order is None:
        return None
    if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order < 1 << 63:
        raise InvalidOrder(
            f"an order is a whole number from 0 up, not {order!r}",
            remedy="Start the chain at 0",
        )
    return order
