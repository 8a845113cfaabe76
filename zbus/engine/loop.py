"""The I/O thread: joins transport, links, channels and transfers.

All state lives in this one thread. Other threads hand in calls with `post`, and get their answers
through operations and futures. Each turn of the loop: input, calls, timers, what the channels
want done, control messages, then bulk: so nothing that controls ever waits for what is big.

It ends once, in `_end_everything`: by `close`, or because a turn of it has raised. Whatever is open
then ends with one and the same error, and what is handed in later is refused by `post`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from ..callbacks import Callbacks, check_waiting, forbid_waiting, guarded
from ..errors import InternalError, LocalProtocolError, PeerClosed, ZBusError
from ..machine import free_memory
from ..net.frames import Closed
from ..net.links import Links
from ..net.places import DialTarget, Peering, Settings
from ..net.transport import Transport
from ..protocol.budget import Budget
from ..protocol.channel import Channels
from ..protocol.fields import clip
from ..protocol.messages import Hello, Status
from ..protocol.registrations import (
    Endpoint,
    Failed,
    Link,
    Matched,
    MayOffer,
    Registration,
    RunBroken,
    Send,
)
from ..protocol.registrations import Event as ChannelEvent
from ..trust import EXCHANGE, Trust
from ..values.recycling import RECYCLER
from .context import Context
from .dispatch import handlers
from .job_service import JobService
from .measuring import Measuring
from .meetings import Meetings
from .operations import Operations
from .running import Running
from .shm_lane import ShmLane
from .switching import SWITCHING
from .transfers import Transfers
from .workers import Workers, outcome

logger = logging.getLogger(__name__)

T = TypeVar("T")

SWITCH_FOR = 1.0  # seconds after the last transfer: another may follow
FAULT = "a fault in zbus itself; please report it"
MEMORY_SHARE = 0.8  # of what is free, for values on their way in
MEMORY_LOOK = 1.0  # seconds that what was free is taken to be so
GOODBYE = 0.3  # seconds that the peers have to hang up, once they are told to
# Seconds after a message, or the begin of an operation, within which it is looked what is due: at
# once would be after each of thousands a second, and takes as long as they do.
TICK_WITHIN = 0.002


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """One peer's I/O thread and all that runs in it."""

    def __init__(self, own: Hello, settings: Settings, trust: Trust) -> None:
        self.own, self.settings = own, settings
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], None]] = deque()
        self._begun: deque[Running] = deque()
        self._ended: ZBusError | None = None  # guarded by the lock, as `_calls` is
        self._goodbye = ""  # why this peer closes, once it does
        self.transport = Transport(admit=lambda key: self.links.admission.admits(key))
        self.links = Links(self.transport, own, settings, self, trust)
        self.channels = Channels()
        self.workers = Workers(self.post)
        self.budget = Budget(self._memory)
        self.shm_lane = ShmLane(own, trust)
        self.transfers = Transfers(
            self.transport, self.workers, self.post, self.shm_lane, self.budget, self.links.unsaid
        )
        self.context = Context(
            settings, self.links, self.channels, self.transfers, self.budget, self.workers
        )
        self.operations = Operations(self.context)
        self.measuring = Measuring(self.context)
        self.meetings = Meetings(self.links, self.channels)
        self.job_service = JobService(self.context, own.instance, self.post)
        self.links.handlers.update(
            handlers(self.transfers, self.channels, self.measuring, self.job_service)
        )
        self.activity = ""
        self.callbacks = Callbacks()
        # A prompt is stopped by it: that may not wait behind somebody's progress.
        self.on_broken_callbacks = Callbacks("zbus-on-broken")
        self.on_broken: dict[Registration, Callable[[ZBusError], None]] = {}
        self._free, self._free_until = 0, 0.0
        self._sweep_at: float | None = None
        self._tick_at: float | None = 0.0
        self._switches_until: float | None = None  # while threads give way sooner for it
        self._late = 0.0  # the most that a turn since the last tick came late
        self._more = False  # bulk that could go at once
        self._thread = threading.Thread(target=self._run, name="zbus-io", daemon=True)
        self._thread.start()
        _ENGINES.add(self)

    def _memory(self) -> int:
        if self.settings.memory is not None:
            return self.settings.memory
        now = time.monotonic()
        if now >= self._free_until:  # asking the system takes longer than a small value does
            self._free, self._free_until = free_memory(), now + MEMORY_LOOK
        return int(self._free * MEMORY_SHARE)

    @property
    def closed(self) -> bool:
        """Whether nothing will be done any more."""
        return self._ended is not None or not self._thread.is_alive()

    # --- from other threads -------------------------------------------------------------------

    def post(self, call: Callable[[], None]) -> bool:
        """Have `call` done in the I/O thread, soon; False if that has ended, and it will not."""
        return self._hand_in(self._calls, call)

    def begin(self, running: Running) -> bool:
        """Have an operation begin, soon; False if the I/O thread has ended, and it will not."""
        return self._hand_in(self._begun, running)

    def _hand_in(self, row: deque[T], one: T) -> bool:
        with self._lock:
            if self._ended is not None:
                return False
            row.append(one)
        self.transport.wake()
        return True

    def ask(self, call: Callable[[], T]) -> T:
        """Have `call` done in the I/O thread and wait for what it returns or raises.

        Raises:
            PeerClosed: The peer is closed.
            LocalProtocolError: This is the I/O thread, or a callback.
        """
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)

        if threading.current_thread() is self._thread:
            raise LocalProtocolError("a call that waits, from the I/O thread itself")
        check_waiting()
        if not self.post(run):
            raise PeerClosed("this Peer is closed")
        return answer.result()

    def close(self, why: str) -> None:
        """Say goodbye, close every socket, and wait for the thread: under a second."""
        if not self._goodbye:
            self._goodbye = why or "closed"
            self.transport.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2.0)

    # --- the loop -----------------------------------------------------------------------------

    def _run(self) -> None:
        forbid_waiting()
        error: ZBusError = PeerClosed("this Peer is closed")
        try:
            busy = False
            while not self._goodbye or self._calls or self._begun:
                busy = self._turn(busy)
            error = PeerClosed(f"this side closes: {self._goodbye}")
        except BaseException as raised:
            logger.critical("the I/O thread has failed; this Peer is closed", exc_info=True)
            error = InternalError.of(raised)
            error = PeerClosed(f"the I/O thread has failed ({error.what}); the log says why")
        finally:
            self._end_everything(error)

    def _end_everything(self, error: ZBusError) -> None:
        """All that is open ends with that error, each of its owners told once; then the sockets
        go. Nothing of it may keep the rest from being done."""
        with self._lock:
            self._ended = error
        ends: tuple[Callable[[], None], ...] = (
            self._do_late_calls,
            lambda: self.operations.close(error),
            self.operations.tell,
            lambda: self.measuring.close(error),
            lambda: self.job_service.close(error),
            lambda: self.transfers.close(error),
            self._flush,
            self._say_goodbye,
            lambda: self.links.close(self._goodbye or error.what),
            self.workers.close,
            self.transport.close,
            self._stop_switching,
        )
        for end in ends:
            guarded(end)

    def _do_late_calls(self) -> None:
        while self._begun:
            guarded(self.operations.begin, self._begun.popleft())
        while self._calls:
            guarded(self._calls.popleft())

    def _say_goodbye(self) -> None:
        self.links.say_goodbye(self._goodbye or "its I/O thread has failed")
        until = time.monotonic() + GOODBYE
        while any(peering.connection for peering in self.links.peerings):
            left = until - time.monotonic()
            if left <= 0:
                return
            for event in self.transport.poll(left):
                if isinstance(event, Closed):
                    self.links.closed(event, time.monotonic())

    def _turn(self, busy: bool) -> bool:
        before = time.monotonic()
        self.transport.may_sleep = True  # before it is looked whether something is to be done
        if busy or self._calls or self._begun or self._goodbye:
            timeout: float | None = 0.0
        else:
            timeout = None if self._tick_at is None else max(0.0, self._tick_at - before)
        self._take_input(before, timeout)
        self._do_calls()
        now = time.monotonic()
        if self._tick_at is not None and now >= self._tick_at:
            self._tick(now)
        self._settle()
        self._guard(self.transfers.grants)
        self._flush()
        self._more = False
        if self.transfers.may_move:
            self._guard(self._pump)
            self._flush()
        # Last: whoever is told goes on at once, and would have what is due to the peer wait.
        self._safely(self.operations.tell)
        return self._more

    def _take_input(self, before: float, timeout: float | None) -> None:
        due = None if timeout is None else before + timeout
        woke = None
        for now, is_message in self.links.poll(timeout):
            woke = woke or now
            self._tick_by(now + TICK_WITHIN if is_message else now)
            self._settle()
        if woke is None:
            woke = time.monotonic()
        overslept = max(0.0, woke - due) if due is not None else 0.0
        self._late = max(self._late, overslept + time.monotonic() - woke)

    def _do_calls(self) -> None:
        for _ in range(len(self._begun)):
            running = self._begun.popleft()
            self._tick_by(time.monotonic() + TICK_WITHIN)
            self._guard(partial(self.operations.begin, running))
        for _ in range(len(self._calls)):
            self._tick_by(0.0)
            self._guard(self._calls.popleft())

    def _tick_by(self, at: float) -> None:
        if self._tick_at is None or at < self._tick_at:
            self._tick_at = at

    def _tick(self, now: float) -> None:
        """Do what is due, and look when something is due next: all that was said or done since the
        last time may have changed that."""
        late, self._late = self._late, 0.0
        self._safely(self.links.tick, now, late)
        self._safely(self.operations.tick, now)
        self._safely(self.job_service.tick, now)
        self._safely(self._sweep, now)
        self._safely(self._switch, now)
        self._tick_at = None
        self._settle()
        due = self._deadline(time.monotonic())
        if due is not None:
            self._tick_by(due)

    def _sweep(self, now: float) -> None:
        # Memory is lent while values come in, and asked back for some time after.
        if self._sweep_at is None or now >= self._sweep_at:
            self._sweep_at = RECYCLER.sweep(now)

    def _switch(self, now: float) -> None:
        if len(self.transfers):
            if self._switches_until is None:
                SWITCHING.begin()
            self._switches_until = now + SWITCH_FOR
        elif self._switches_until is not None and now >= self._switches_until:
            self._stop_switching()

    def _stop_switching(self) -> None:
        if self._switches_until is not None:
            self._switches_until = None
            SWITCHING.end()

    def _pump(self) -> None:
        self._more = self.transfers.pump(time.monotonic())

    def _guard(self, call: Callable[[], None]) -> None:
        """Do one thing, and what the channels want done for it. A bug in it ends that one thing,
        and not every link of this process."""
        self._safely(call)
        self._settle()

    def _safely(self, call: Callable[..., object], *args: object) -> None:
        try:
            call(*args)
        except BaseException:
            logger.exception(FAULT)

    def _deadline(self, now: float) -> float | None:
        times = (
            self.links.deadline(now),
            self.operations.deadline(now),
            self.job_service.deadline(now),
            self._sweep_at,
            self._switches_until,
        )
        return min((t for t in times if t is not None), default=None)

    def _flush(self) -> None:
        for peering in self.links.peerings:
            if peering.session.has_outgoing:
                self.links.flush(peering)

    def _settle(self) -> None:
        """Do what the channels and the jobs want done."""
        if self.job_service.is_unsettled:
            self.job_service.settle()
        while self.channels.out:
            for event in self.channels.drain():
                try:
                    self._do(event)
                except BaseException as error:
                    logger.exception(FAULT)
                    self._undone(event, InternalError.of(error))

    def _undone(self, event: ChannelEvent, error: InternalError) -> None:
        """Whoever waits for that hears that it will not be done; also the other side."""
        match event:
            case Send():
                peering = self.context.peering(event.session)
                if peering is not None:
                    self.links.unsaid(peering, error.at(peer=peering.name))
            case MayOffer() | Matched():
                named = error.at(peer=event.registration.who, stage=str(event.step))
                fail = self.channels.matching.fail
                fail(event.registration, event.step, named, tell=True)

    def _do(self, event: ChannelEvent) -> None:
        match event:
            case Send():
                peering = self.context.peering(event.session)
                if peering is not None:
                    peering.session.send(event.message, event.body)
            case MayOffer():
                self.operations.may_offer(event)
            case Matched():
                self.operations.matched(event)
            case Failed():
                self.operations.failed(event)
            case RunBroken():
                self._broken(event)

    def _broken(self, event: RunBroken) -> None:
        tell = self.on_broken.get(event.registration)
        logger.warning("run %s is stopped: %s", event.registration.run, event.error)
        if tell is not None:
            self.on_broken_callbacks.call(tell, event.error)

    # --- told by the links --------------------------------------------------------------------

    def session_up(self, peering: Peering) -> None:
        place, peer = peering.place, peering.session.peer
        peering.shares = self.shm_lane.serves(peering)
        if peering.shares:
            self.shm_lane.say_near(peering)
        link = Link(peering.key, place.kind, str(place.address), peer.name, peer.incarnation)
        link.permitted = EXCHANGE in peering.permissions
        if peering.principal:
            link.principal, link.instance = peering.principal, peer.instance
            link.proposes = self.own.instance < peer.instance
        self.channels.session_up(link)
        self._settle()

    def session_linked(self, peering: Peering) -> None:
        self._tell_activity(peering)
        # A break that this side did not notice is noticed now.
        self.transfers.unlinked(peering)
        self.transfers.linked(peering)
        self.measuring.linked(peering)
        self.meetings.linked(peering)
        self.job_service.linked(peering)

    def session_unlinked(self, peering: Peering) -> None:
        self.transfers.unlinked(peering)

    def session_down(self, peering: Peering, error: ZBusError) -> None:
        # Bindings end with it, and their operations; jobs may go on over another session, and
        # decide that before what is on its way for them ends.
        self.channels.session_down(peering.key, error)
        self._settle()
        self.job_service.session_down(peering, error)
        self.transfers.session_down(peering, error)
        self.measuring.session_down(peering, error)
        self._settle()

    def place_faulty(self, place: DialTarget, error: ZBusError) -> None:
        self.measuring.place_failed(place, error)

    def place_failed(self, place: DialTarget, error: ZBusError) -> None:
        if place.key:
            self.meetings.place_failed(place, error)
        else:
            self.channels.refuse(Endpoint(place.kind, str(place.address)), error)
        self.measuring.place_failed(place, error)
        self.job_service.place_failed(place, error)
        self._settle()

    def in_thread(self, work: Callable[[], T], then: Callable[[T | ZBusError], None]) -> None:
        """Run `work`, which may block long, in a thread of its own, and `then` with its result
        here, or with what it raised as one of our errors. A process's end waits for the pool's
        threads, and not for this one."""

        def run() -> None:
            result = outcome(work)
            self.post(lambda: then(result))

        try:
            threading.Thread(target=run, name="zbus-look", daemon=True).start()
        except RuntimeError as error:  # the interpreter is ending, or has too many threads
            then(InternalError.of(error))

    def counters(self) -> dict[str, int]:
        """How much of what is open: see `Peer.counters`."""
        return {
            "addresses": len(self.links.places),
            "sessions": len(self.links.peerings),
            "connections": sum(p.session.is_linked for p in self.links.peerings),
            "registrations": len(self.channels.registrations),
            "operations": len(self.operations),
            "transfers": len(self.transfers),
            "memory": self.budget.taken,
            "waiting for memory": self.budget.waiting,
            "bytes in flight": sum(p.pace.in_flight for p in self.links.peerings),
            **self.job_service.counters(),
        }

    # --- for people ---------------------------------------------------------------------------

    def set_activity(self, activity: str) -> None:
        """Tell every peer what this process is doing."""
        if activity != self.activity:
            self.activity = activity
            for peering in self.links.peerings:
                self._tell_activity(peering)

    def _tell_activity(self, peering: Peering) -> None:
        if peering.permissions:  # who may do nothing here need not know what is done
            peering.session.send(Status(clip(self.activity, 300)))

    def forked(self) -> None:
        """This is a child of the process that made it: its thread and its sockets are not here."""
        self._lock = threading.Lock()
        self._calls.clear()
        self._begun.clear()
        self._ended = PeerClosed(
            "this Peer belongs to the process that forked this one",
            remedy="Make a Peer in the child",
        )


def _forked() -> None:
    for engine in _ENGINES:
        engine.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
