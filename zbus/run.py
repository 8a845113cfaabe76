"""One run's place on a channel: what a caller sends and receives by."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any

from . import codecs, given
from .engine.loop import Engine
from .engine.running import Running
from .errors import InputError, InvalidOrder, PeerClosed, ZBusError
from .net.places import Lease, Place
from .operation import Operation, Progress
from .printable import shown
from .protocol.fields import clip
from .protocol.manifest import Manifest
from .protocol.messages import MAX_HEADER, MAX_PLANNED
from .protocol.registrations import ChannelOperation, Registration, State
from .values import payload

MAX_ID, MAX_SINCE, MAX_KIND, MAX_NODE = 80, 20, 20, 120  # characters
OUTCOMES = ("ok", "failed", "cancelled")
EXPECT = ("any", "image", "mask", "latent", "audio", "text", "number", "conditioning")


@dataclass(frozen=True)
class Run:
    """One execution of a workflow, as the other side may know it.

    Attributes:
        id: Names the run; by default a fresh name.
        since: When it began, for people; by default now.
        manifest: What it will do on the channel, where that is known: compared with the other
            side's before anything is sent.
        on_broken: Called, in a thread of its own, if the other run ends while this one, by its
            manifest, still needs it and no operation is open that could raise.

    Raises:
        InputError: A field cannot be used; the text names it.
    """

    id: str = field(default_factory=lambda: os.urandom(8).hex())
    since: str = field(default_factory=lambda: datetime.now().strftime("%H:%M"))
    manifest: Manifest | None = None
    on_broken: Callable[[ZBusError], None] | None = None

    def __post_init__(self) -> None:
        given.label("id", self.id, MAX_ID)
        given.label("since", self.since, MAX_SINCE, empty=True)
        given.callback("on_broken", self.on_broken)
        if self.manifest is not None and not all(map(_is_planned, self.manifest)):
            raise InputError(
                'manifest holds something else than ("send" or "receive", kind, order or None, '
                "whether it is certain, the node's title)"
            )


class Channel:
    """One run's place on a channel: made by `Peer.listen`, `connect` or `anyone`.

    One operation at a time is open on it. It is one run: close it when the run ends, so that the
    other side hears of the end, and make another for the next. Usable from any thread.
    """

    def __init__(
        self, engine: Engine, registration: Registration, lease: Lease[Place] | None
    ) -> None:
        self._engine, self._registration, self._lease = engine, registration, lease
        self._place = lease.place if lease is not None else None
        self._closed = False

    @property
    def address(self) -> str:
        """The address listened on or dialled; "" on a channel to anyone."""
        return str(self._place.address) if self._place is not None else ""

    @property
    def peer(self) -> str:
        """The name of the peer whose run this one has met; "" before."""
        link, state = self._registration.link, self._registration.state
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
                None: the one after the last that was done, or 0; so a chain without numbers counts
                from 0, and one with numbers goes on where it was.
            quality: "exact" or "8-bit", or a codec by name (`zbus.codecs.CHOICES`).
            timeout: Seconds, up to 30 days; None waits for the other side as long as it takes.
            progress: Called with (bytes done, bytes in all), in a thread of its own. It may not
                wait for another operation: that raises LocalProtocolError.

        Raises:
            InputError: The value or another argument cannot be used.
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
        declared: str = "",
        node: str = "",
    ) -> Operation[None]:
        """As `send`, but returns at once: wait with `result()` or ``await``, end with `cancel()`.

        Args:
            kind: What to call the value, instead of what it looks like.
            declared: The type that its maker declares, if that has no picture in it; "*" if that
                may give anything: nothing of it goes as 8 bits then, whatever its shape.
            node: What to call this step in texts for people.
        """
        codecs.check(quality)
        flat = payload.flatten(value, given.text("declared", declared))
        payload.check_choice(flat, codecs.eight_bit(quality) == "always")
        kind = flat.kind if kind is None else given.label("kind", kind, MAX_KIND)
        step = ChannelOperation("send", kind, _node(node), _order(order))
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
        given.one_of("expect", expect, EXPECT)
        step = ChannelOperation("receive", expect, _node(node), _order(order))
        return self._start(step, timeout, progress)

    def _start(
        self,
        step: ChannelOperation,
        timeout: float | None,
        progress: Progress | None,
        flat: payload.Flat | None = None,
        quality: str = "exact",
    ) -> Operation[Any]:
        engine, limit = self._engine, given.time_limit("timeout", timeout)
        given.callback("progress", progress)
        deadline = None if limit is None else time.monotonic() + limit

        def cancel(operation: Operation[Any]) -> None:
            engine.post(lambda: engine.operations.cancel(operation))

        operation: Operation[Any] = Operation(cancel, progress, engine.callbacks)
        running = Running(operation, self._registration, step, self._place, deadline, flat, quality)
        if not engine.begin(running):
            operation.fail(PeerClosed("this Peer is closed"))
        return operation

    def cancel(self) -> None:
        """End the operation that is open here, from any thread; the channel stays usable."""

        def cancel() -> None:
            for running in self._engine.operations.on(self._registration):
                self._engine.operations.cancel(running.handle)

        self._engine.post(cancel)

    def close(self, outcome: str = "ok", why: str = "") -> None:
        """The run has ended: "ok", "failed" or "cancelled", and why. An operation of the other
        side that waits for this run ends at once with that text. Never waits for the peer.

        Raises:
            InputError: There is no such outcome.
        """
        given.one_of("outcome", outcome, OUTCOMES)
        given.text("why", why)
        if self._closed:
            return
        self._closed = True

        def close() -> None:
            self._engine.channels.close(self._registration, outcome, why)
            self._engine.on_broken.pop(self._registration, None)
            self._engine.meetings.end(self._registration)
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


def _is_planned(operation: object) -> bool:
    if not isinstance(operation, (tuple, list)) or len(operation) != 5:
        return False
    direction, kind, key, certain, node = operation
    return (
        direction in ("send", "receive")
        and isinstance(kind, str)
        and (key is None or _is_order(key))
        and isinstance(certain, bool)
        and isinstance(node, str)
    )


def _node(title: str) -> str:
    """What a user has written on a node, for texts."""
    return shown(clip(given.text("node", title), MAX_NODE))


def _is_order(order: object) -> bool:
    return isinstance(order, int) and not isinstance(order, bool) and 0 <= order < 1 << 63


def _order(order: int | None) -> int | None:
    if order is None:
        return None
    if not _is_order(order):
        raise InvalidOrder(
            f"an order is a whole number from 0 up, not {given.said(order)}",
            remedy="Start the chain at 0",
        )
    return order
