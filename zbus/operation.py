"""The handle of one send or receive under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from .callbacks import CALLBACKS, Callbacks, check_waiting
from .errors import ZBusError

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), in a thread of its own, at most 20 times a second."""

PROGRESS_EVERY = 0.05  # seconds


class Operation(Generic[T]):
    """One send or receive under way. Wait for it with `result()`, or ``await`` it.

    Attributes:
        note: One line for people: whom it waits for and why, or size, rate and time left.
        done_bytes: Plain bytes that have arrived.
        total_bytes: Plain bytes in all; 0 until they are known.
        seconds: How long the bytes took, once it has ended well.
        notes: What the user should know of the value ("values outside 0..1 were clipped").
    """

    def __init__(
        self,
        cancel: Callable[[Operation[T]], None],
        progress: Progress | None,
        callbacks: Callbacks = CALLBACKS,
    ) -> None:
        self._note: str | None = ""  # None: how far the bytes are, put into words when it is asked
        self.notes: tuple[str, ...] = ()
        self.done_bytes = self.total_bytes = 0
        self.codec = ""
        self.seconds = 0.0
        self._cancel, self._progress, self.callbacks = cancel, progress, callbacks
        self._future: Future[T] = Future()
        self._future.set_running_or_notify_cancel()  # only `cancel` below ends it
        self._began = self._told = self._moved = 0.0

    @property
    def note(self) -> str:
        note = self._note  # once: the I/O thread may set it meanwhile
        return self._rate(self._moved) if note is None else note

    @note.setter
    def note(self, note: str) -> None:
        self._note = note

    def result(self) -> T:
        """Wait for the end. A send returns None, a receive the value.

        Raises:
            ZBusError: What went wrong; `Cancelled` and `TimedOut` among them.
            LocalProtocolError: It is not there yet, and this is a callback: what it would wait
                for may need just that thread.
        """
        if not self._future.done():
            check_waiting()
        return self._future.result()

    def error(self) -> ZBusError | None:
        """Why it has failed; None if it has not, or not yet."""
        error = self._future.exception() if self._future.done() else None
        return error if isinstance(error, ZBusError) else None

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._future.done()

    def cancel(self) -> None:
        """End it, from any thread. It raises `Cancelled`, and the other side is told."""
        self._cancel(self)

    def add_done_callback(self, call: Callable[[Operation[T]], None]) -> None:
        """Call `call` with this operation when it has ended, in a thread of its own, after the
        callbacks that were due before. What it raises is logged."""
        self._future.add_done_callback(lambda _: self.callbacks.call(call, self))

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        try:
            return await asyncio.wrap_future(self._future)
        except asyncio.CancelledError:
            self.cancel()
            raise

    # --- for the engine -----------------------------------------------------------------------

    def begin_bytes(self, total: int) -> None:
        """The value is known: `total` plain bytes will move."""
        self.total_bytes, self._began = total, time.monotonic()

    def progressed(self, done: int) -> None:
        """So many bytes have arrived."""
        now = time.monotonic()
        self.done_bytes, self._moved = done, now
        if done < self.total_bytes and now - self._told < PROGRESS_EVERY:
            return
        self._told = now
        self._note = None
        if self._progress is not None:  # the latest word counts, and the last one comes in any case
            self.callbacks.call(self._progress, done, self.total_bytes, key=(self, "progress"))

    def _rate(self, now: float) -> str:
        took = max(now - self._began, 1e-9)
        rate = self.done_bytes / took
        left = (self.total_bytes - self.done_bytes) / rate if rate else 0.0
        done, total = size_text(self.done_bytes), size_text(self.total_bytes)
        return f"{done} of {total}, {rate_text(rate)}, {left:.1f} s left"

    def succeed(self, value: T) -> None:
        if not self._future.done():
            self.seconds = time.monotonic() - self._began if self._began else 0.0
            self._future.set_result(value)

    def fail(self, error: ZBusError) -> None:
        if not self._future.done():
            self._future.set_exception(error)


def size_text(size: float) -> str:
    """A number of bytes, for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def rate_text(rate: float) -> str:
    """Bytes per second, for people: of a thin line, too, there is something to see."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if rate >= size * 0.9995:  # what would else be written as 1000.0 of the smaller unit
            return f"{rate / size:.2f} {unit}/s" if size == 1e9 else f"{rate / size:.1f} {unit}/s"
    return f"{rate:.0f} B/s"
