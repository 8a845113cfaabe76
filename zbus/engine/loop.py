"""The I/O thread: joins transport, links, channels and transfers.

All state lives in this one thread. Other threads hand in calls with `post`, and get their answers
through operations and futures. Each turn of the loop: input, calls, timers, what the channels
want done, control messages, then bulk: so nothing that controls ever waits for what is big.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ..errors import LocalProtocolError, PeerClosed, RemoteProtocolError, TransferRefused, ZBusError
from ..machine import free_memory
from ..net.frames import Body, Closed, Connected, Received
from ..net.links import Links
from ..net.places import DialTarget, Peering, Settings
from ..net.transport import Transport
from ..protocol.channel import Channels
from ..protocol.fields import clip
from ..protocol.messages import (
    Chunk,
    Finish,
    Grant,
    Hello,
    Measure,
    Message,
    Pong,
    Refused,
    ShmDecline,
    ShmOffer,
    ShmReady,
    Status,
    Stored,
)
from ..protocol.registrations import (
    Endpoint,
    Failed,
    Link,
    Matched,
    Registration,
    RegistrationBound,
    RunBroken,
    Send,
)
from ..protocol.registrations import Event as ChannelEvent
from ..trust import EXCHANGE, Trust
from ..values.recycling import RECYCLER
from ..values.streams import Budget
from .context import Context
from .job_service import JobService
from .measure import Measuring
from .meetings import Meetings
from .operations import Operations
from .shm_lane import ShmLane
from .transfers import Transfers

logger = logging.getLogger(__name__)

T = TypeVar("T")

FAULT = "a fault in zbus itself; please report it"
MEMORY_SHARE = 0.8  # of what is free, for values on their way in
GOODBYE = 0.3  # seconds that the peers have to hang up, once they are told to
WORKERS = max(4, min(8, os.cpu_count() or 4))


class Engine:
    """One peer's I/O thread and all that runs in it."""

    def __init__(self, own: Hello, settings: Settings, trust: Trust) -> None:
        self.own, self.settings = own, settings
        self.transport = Transport(admit=lambda key: self.links.admission.admits(key))
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="zbus-work")
        self.links = Links(self.transport, own, settings, self, trust)
        self.channels = Channels()
        self.shm_lane = ShmLane(own, trust)
        self.transfers = Transfers(self.transport, self.pool, self.post, self.shm_lane)
        self.budget = Budget(self._memory)
        self.context = Context(
            settings, self.links, self.channels, self.transfers, self.budget, self.in_pool
        )
        self.operations = Operations(self.context)
        self.measuring = Measuring(self.context)
        self.meetings = Meetings(self.links, self.channels)
        self.job_service = JobService(self.context, own.instance, self.post)
        self.activity = ""
        self.on_broken: dict[Registration, Callable[[ZBusError], None]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._closing = False
        self._sweep_at: float | None = None
        self._more = False  # bulk that could go at once
        self._thread = threading.Thread(target=self._run, name="zbus-io", daemon=True)
        self._thread.start()

    def _memory(self) -> int:
        given = self.settings.memory
        return int(free_memory() * MEMORY_SHARE) if given is None else given

    @property
    def closed(self) -> bool:
        """Whether nothing will be done any more."""
        return self._closing or not self._thread.is_alive()

    # --- from other threads -------------------------------------------------------------------

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` done in the I/O thread, soon."""
        self._calls.append(call)
        self.transport.wake()

    def ask(self, call: Callable[[], T]) -> T:
        """Have `call` done in the I/O thread and wait for what it returns or raises.

        Raises:
            PeerClosed: The peer is closed.
        """
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)

        if self.closed:
            raise PeerClosed("this Peer is closed")
        if threading.current_thread() is self._thread:
            raise LocalProtocolError("a call that waits, from the I/O thread itself")
        self.post(run)
        return answer.result()

    def close(self, why: str) -> None:
        """Say goodbye, close every socket, and wait for the thread: under a second."""
        if not self._closing:
            self._closing = True
            self.post(lambda: self._goodbye(why))
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2.0)
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _goodbye(self, why: str) -> None:
        error = PeerClosed(f"this side closes: {why}")
        self.operations.close(error)
        self.measuring.close(error)
        self.job_service.close(error)
        self._flush()
        self.links.say_goodbye(why)
        self._let_them_hang_up()
        self.links.close(why)

    def _let_them_hang_up(self) -> None:
        until = time.monotonic() + GOODBYE
        while any(peering.connection for peering in self.links.peerings):
            left = until - time.monotonic()
            if left <= 0:
                return
            for event in self.transport.poll(left):
                if isinstance(event, Closed):
                    self.links.closed(event, time.monotonic())

    # --- the loop -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            busy = False
            while not self._closing or self._calls:
                busy = self._turn(busy)
        except Exception:
            logger.critical("the I/O thread has failed; this Peer is closed", exc_info=True)
            self._closing = True
            self.operations.close(PeerClosed("the I/O thread has failed; the log says why"))
        finally:
            self._answer_late_calls()
            self.transport.close()

    def _answer_late_calls(self) -> None:
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                logger.debug("a call after the end", exc_info=True)

    def _turn(self, busy: bool) -> bool:
        before = time.monotonic()
        deadline = self._deadline(before)
        timeout = None if deadline is None else max(0.0, deadline - before)
        if busy or self._calls:
            timeout = 0.0
        woke = None
        for event in self.transport.poll(timeout):
            now = time.monotonic()
            woke = woke or now
            self._guard(partial(self._handle, event, now))
        now = time.monotonic()
        due = before + (timeout or 0.0)
        late = now - (woke or now) + max(0.0, (woke or now) - due if timeout is not None else 0.0)
        for _ in range(len(self._calls)):
            self._guard(self._calls.popleft())
        self._guard(lambda: self.links.tick(now, late))
        self._guard(lambda: self.operations.tick(now))
        self._guard(lambda: self.job_service.tick(now))
        self._guard(lambda: self._sweep(now))
        self._guard(self.transfers.grants)
        self._flush()
        self._more = False
        self._guard(self._pump)
        self._flush()
        return self._more

    def _sweep(self, now: float) -> None:
        # Memory is lent while values come in, and asked back for some time after.
        if self._sweep_at is None or now >= self._sweep_at:
            self._sweep_at = RECYCLER.sweep(now)

    def _pump(self) -> None:
        self._more = self.transfers.pump(time.monotonic())

    def _guard(self, call: Callable[[], None]) -> None:
        """Do one thing, and what the channels want done for it. A bug in it ends that one thing,
        and not every link of this process."""
        try:
            call()
        except Exception:
            logger.exception(FAULT)
        self._settle()

    def _deadline(self, now: float) -> float | None:
        times = (
            *(
                self.links.deadline(now),
                self.operations.deadline(now),
                self.job_service.deadline(now),
            ),
            self._sweep_at,
        )
        return min((t for t in times if t is not None), default=None)

    def _handle(self, event: Received | Connected | Closed, now: float) -> None:
        if isinstance(event, Received):
            self.links.received(event, now)
        elif isinstance(event, Connected):
            self.links.connected(event, now)
        else:
            self.links.closed(event, now)

    def _flush(self) -> None:
        for peering in self.links.peerings:
            self.links.flush(peering)

    def _settle(self) -> None:
        """Do what the channels and the jobs want done."""
        self.job_service.settle()
        while events := self.channels.drain():
            for event in events:
                try:
                    self._do(event)
                except Exception:
                    logger.exception(FAULT)

    def _do(self, event: ChannelEvent) -> None:
        match event:
            case Send():
                peering = self.context.peering(event.session)
                if peering is not None:
                    peering.session.send(event.message, event.body)
            case RegistrationBound():
                self.operations.bound(event.registration)
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
            try:
                tell(event.error)
            except Exception:  # the caller's own code
                logger.exception("a callback of a broken run failed")

    # --- told by the links --------------------------------------------------------------------

    def session_up(self, peering: Peering) -> None:
        place, peer = peering.place, peering.session.peer
        peering.shares = self.shm_lane.serves(peering)
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
        self.transfers.session_down(peering, error)
        self.measuring.session_down(peering, error)
        self.job_service.session_down(peering, error)
        self.channels.session_down(peering.key, error)
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

    def in_pool(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Run `work` in the worker pool and `then` with its result here."""

        def done(future: Future[Any]) -> None:
            if not future.cancelled():
                self.post(lambda: then(future.result()))

        self.pool.submit(work).add_done_callback(done)

    def in_thread(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """As `in_pool`, for what may block long: a process's end waits for the pool's threads,
        and not for this one."""

        def run() -> None:
            result = work()
            self.post(lambda: then(result))

        threading.Thread(target=run, name="zbus-look", daemon=True).start()

    def message(self, peering: Peering, message: Message, body: Body | None) -> None:
        """A message for channels or transfers has come.

        Raises:
            RemoteProtocolError: It breaks the protocol.
        """
        match message:
            case Chunk():
                self.transfers.chunk(peering, message, body)
            case Grant():
                self.transfers.grant(peering, message, time.monotonic())
            case ShmReady():
                self.transfers.near(peering, message)
            case ShmOffer():
                self.transfers.shared(peering, message)
            case ShmDecline():
                self.transfers.unshared(peering, message)
            case Finish():
                self.transfers.finish(peering, message)
            case Stored():
                self.transfers.stored(peering, message.transfer)
                self.operations.stored(peering, message.transfer)
                self.job_service.job_transfers.stored(peering, message.transfer)
            case Refused():
                error = TransferRefused(message.why, peer=peering.name)
                self.transfers.refused(peering, message.transfer, error)
                self.operations.refused(peering, message.transfer, error)
                self.job_service.job_transfers.refused(peering, message.transfer, error)
            case Pong():
                self.measuring.pong(peering, message.token)
            case Measure():
                self.measuring.asked(peering, message)
            case _:
                data = _body(message, body)
                if not self.job_service.message(peering, message, data):
                    self.channels.receive(peering.key, message, data)

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


def _body(message: Message, body: Body | None) -> bytes:
    data = body.take() if body is not None else b""
    if len(data) > message.BODY:
        kind = type(message).__name__.upper()
        raise RemoteProtocolError(f"a message of kind {kind} with {len(data)} bytes inside")
    return data
