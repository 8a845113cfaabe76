"""The public API: a Peer in this process, and Channels on it.

::

    with Peer() as peer, peer.connect("127.0.0.1:8282") as channel:
        channel.send(tensor, order=0)
        answer = channel.receive(order=1)
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any

from . import codecs, payload
from .address import parse_dial, parse_listen
from .engine import Engine
from .errors import InvalidOrder, PeerClosed, ZBusError
from .machine import boot_id
from .manifest import Manifest
from .messages import MAX_CHUNK, MAX_HEADER, MAX_PLANNED, VERSION, Hello, clip
from .operation import Operation, Progress
from .parts import Running
from .places import Place, Settings
from .seats import Endpoint, Seat, Step

EXPECT = ("any", "image", "mask", "latent", "audio", "text", "number", "conditioning")


class Channel:
    """One run's place on a channel: made by `Peer.listen`, `connect` or `anyone`.

    One operation at a time is open on it. It is one run: close it when the run ends, so that the
    other side hears of the end, and make another for the next. Usable from any thread.
    """

    def __init__(self, engine: Engine, seat: Seat, place: Place | None) -> None:
        self._engine, self._seat, self._place = engine, seat, place
        self._closed = False

    @property
    def address(self) -> str:
        """The address listened on or dialled; "" on a channel to anyone."""
        return str(self._place.address) if self._place is not None else ""

    @property
    def peer(self) -> str:
        """The name of the peer whose run this one has met; "" before."""
        link = self._seat.link
        return link.peer if link is not None else ""

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
        step = Step("send", clip(kind or flat.kind, 20), clip(node, 120), _order(order))
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
        step = Step("receive", expect, clip(node, 120), _order(order))
        return self._start(step, timeout, progress)

    def _start(
        self,
        step: Step,
        timeout: float | None,
        progress: Progress | None,
        flat: payload.Flat | None = None,
        quality: str = "exact",
    ) -> Operation[Any]:
        engine = self._engine
        deadline = None if timeout is None else time.monotonic() + timeout
        operation: Operation[Any] = Operation(
            lambda op: engine.post(lambda: engine.steps.cancel(op)), progress
        )
        running = Running(operation, self._seat, step, self._place, deadline, flat, quality)
        if engine.closed:
            operation.fail(PeerClosed("this Peer is closed"))
        engine.post(lambda: engine.steps.begin(running))
        return operation

    def cancel(self) -> None:
        """End the operation that is open here, from any thread; the channel stays usable."""

        def cancel() -> None:
            for running in self._engine.steps.on(self._seat):
                self._engine.steps.cancel(running.operation)

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
            if self._place is not None:
                self._engine.links.release(self._place, time.monotonic())

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


class Peer:
    """This process's end of the bus: one I/O thread, and all sockets in it.

    Args:
        name: What others call this peer; by default the host's name and the process id.
        instance: Names this ComfyUI, the same after a restart (never random: a restart could not
            be told from a stranger). By default this process alone.
        settings: Times and limits.

    Usable from any thread. `close` it, or use it as a context manager.
    """

    def __init__(
        self, name: str = "", *, instance: str = "", settings: Settings | None = None
    ) -> None:
        from . import __version__  # not at import: the package imports this module

        host = socket.gethostname().split(".")[0]
        self.name = clip(name or f"{host}-{os.getpid()}", 80)
        unique = instance or os.urandom(16).hex()
        self.own = Hello(
            versions=(VERSION, VERSION),
            incarnation=os.urandom(16),
            instance=hashlib.sha256(unique.encode("utf-8", "replace")).digest()[:16],
            name=self.name,
            nonce=bytes(16),
            pid=os.getpid(),
            boot=boot_id(),
            codecs=codecs.available(),
            limits=(("chunk", MAX_CHUNK),),
            software=f"zbus {__version__}",
        )
        self._engine = Engine(self.own, settings or Settings())
        atexit.register(self.close, "the process ends")

    def listen(
        self,
        address: str = "127.0.0.1:8282",
        *,
        channel: str = "main",
        run: str = "",
        manifest: Manifest | None = None,
        since: str = "",
        on_broken: Callable[[ZBusError], None] | None = None,
    ) -> Channel:
        """A channel at an address that this peer listens on; the other side connects.

        Args:
            address: On the loopback; port 0 takes a free one (see `Channel.address`).
            channel: Two runs meet that name the same.
            run: Names the run; by default a fresh name.
            manifest: What the run will do here, where it is known: compared with the other
                side's before anything is sent.
            since: When the run began, for people; by default now.
            on_broken: Called in the I/O thread if the other run ends while this one, by its
                manifest, still needs it and no operation is open that could raise.

        Raises:
            InvalidAddress, ListenRefused, PortInUse: The address cannot be listened on.
            PeerClosed: This peer is closed.
        """
        wanted = parse_listen(address)

        def make() -> Channel:
            place = self._engine.links.listen(wanted)
            endpoint = Endpoint("listen", str(place.address))
            return self._open(endpoint, place, channel, run, manifest, since, on_broken)

        return self._engine.ask(make)

    def connect(
        self,
        address: str = "127.0.0.1:8282",
        *,
        channel: str = "main",
        run: str = "",
        manifest: Manifest | None = None,
        since: str = "",
        on_broken: Callable[[ZBusError], None] | None = None,
    ) -> Channel:
        """A channel at an address that this peer dials; the other side listens. Returns at once:
        whether somebody is there shows in the operations. Arguments as in `listen`.

        Raises:
            InvalidAddress: The address cannot be dialled.
            PeerClosed: This peer is closed.
        """
        wanted = parse_dial(address)

        def make() -> Channel:
            place = self._engine.links.dial(wanted, time.monotonic())
            endpoint = Endpoint("dial", str(wanted))
            return self._open(endpoint, place, channel, run, manifest, since, on_broken)

        return self._engine.ask(make)

    def anyone(
        self,
        *,
        channel: str = "main",
        run: str = "",
        manifest: Manifest | None = None,
        since: str = "",
        on_broken: Callable[[ZBusError], None] | None = None,
    ) -> Channel:
        """A channel to the only connected peer; more than one is an error that names them.
        Arguments as in `listen`."""
        return self._engine.ask(
            lambda: self._open(Endpoint("any"), None, channel, run, manifest, since, on_broken)
        )

    def _open(
        self,
        endpoint: Endpoint,
        place: Place | None,
        channel: str,
        run: str,
        manifest: Manifest | None,
        since: str,
        on_broken: Callable[[ZBusError], None] | None,
    ) -> Channel:
        seat = self._engine.channels.open(
            clip(run or os.urandom(8).hex(), 80),
            endpoint,
            clip(channel, 80),
            clip(since or datetime.now().strftime("%H:%M"), 20),
            _fitting(manifest),
        )
        if on_broken is not None:
            self._engine.on_broken[seat] = on_broken
        return Channel(self._engine, seat, place)

    def set_activity(self, activity: str) -> None:
        """Tell every peer what this process is doing ("KSampler 14/20"), for their texts."""
        self._engine.post(lambda: self._engine.set_activity(activity))

    def probe(self, address: str) -> Probe:
        """Look at a link without a run: see `Probe`."""
        wanted = parse_dial(address)
        links = self._engine.links
        return Probe(self._engine, self._engine.ask(lambda: links.dial(wanted, time.monotonic())))

    def close(self, why: str = "this peer was closed") -> None:
        """Say goodbye and end, in under a second. What is open raises `PeerClosed`."""
        with contextlib.suppress(Exception):
            atexit.unregister(self.close)
        self._engine.close(why)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Probe:
    """A link that is only measured: made by `Peer.probe`, for zbus-ping."""

    def __init__(self, engine: Engine, place: Place) -> None:
        self._engine, self._place = engine, place

    def hello(self, timeout: float) -> Hello:
        """The peer's HELLO.

        Raises:
            ConnectError: Why there is none.
            TimeoutError: None has come in `timeout` seconds.
        """
        return self._engine.ask(lambda: self._engine.measuring.meet(self._place)).result(timeout)

    def ping(self, timeout: float) -> float:
        """One round trip, in seconds."""
        return self._engine.ask(lambda: self._engine.measuring.ping(self._place)).result(timeout)

    def block(self, direction: str, size: int, timeout: float) -> float:
        """The seconds that a verified block of `size` bytes takes, "up" or "down"."""
        measuring = self._engine.measuring
        return self._engine.ask(lambda: measuring.block(self._place, direction, size)).result(
            timeout
        )

    def problem(self) -> str:
        """Why there is no link, in words."""
        links = self._engine.links
        return self._engine.ask(lambda: links.explain(self._place, time.monotonic()))

    def close(self) -> None:
        """Done with it."""
        self._engine.post(lambda: self._engine.links.release(self._place, time.monotonic()))


def _fitting(manifest: Manifest | None) -> Manifest | None:
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
