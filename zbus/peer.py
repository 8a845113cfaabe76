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
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from . import codecs, given
from .address import Address, parse_dial, parse_listen
from .engine.loop import Engine
from .engine.meetings import endpoint
from .errors import Cancelled, LocalProtocolError, PeerClosed, PortInUse
from .job import Job, JobHost, Request
from .machine import boot_id
from .net import memory
from .net.places import DialTarget, Lease, Place
from .operation import Operation
from .printable import shown
from .protocol.messages import MAX_CHUNK, VERSION, Hello
from .protocol.registrations import Endpoint
from .remote import Remote
from .run import Channel, Run, fitting
from .settings import Settings
from .trust import Trust
from .values.payload import flatten

DEFAULT = "127.0.0.1:8282"  # ComfyUI-Jumper's
MAX_ACTIVITY = 300  # characters
MAX_BLOCK = 1 << 40  # bytes that are measured at a time
MAX_NAME = 80  # characters of a peer's name and of a channel's


T = TypeVar("T")


class Peer:
    """This process's end of the bus: one I/O thread, and all sockets in it.

    Args:
        name: What others call this peer, up to 80 characters; what cannot be printed in it becomes
            a space. By default the host's name and the process id.
        instance: Names this ComfyUI, the same after a restart (never random: a restart could not
            be told from a stranger). By default this process alone.
        settings: Times and limits.
        trust: This user's keys, and whom they trust; by default those in the user's folder.

    Raises:
        InputError: One of these cannot be used; the text names it.

    Usable from any thread. `close` it, or use it as a context manager. Each of its methods raises
    InputError, at once, for an argument that cannot be used.
    """

    def __init__(
        self,
        name: str = "",
        *,
        instance: str = "",
        settings: Settings | None = None,
        trust: Trust | None = None,
    ) -> None:
        from . import __version__  # not at import: the package imports this module

        self.name = given.label("name", _printable(name), MAX_NAME) if name != "" else _own_name()
        unique = given.text("instance", instance) or os.urandom(16).hex()
        settings = Settings() if settings is None else settings
        given.a("settings", settings, Settings)
        self.own = Hello(
            versions=(VERSION, VERSION),
            incarnation=os.urandom(16),
            instance=hashlib.sha256(unique.encode("utf-8", "replace")).digest()[:16],
            name=self.name,
            nonce=bytes(16),
            pid=os.getpid(),
            boot=boot_id(),
            codecs=codecs.available(),
            lanes=_lanes(settings),
            limits=(("chunk", MAX_CHUNK),),
            software=f"zbus {__version__}",
        )
        self.trust = trust or Trust()
        self._engine = Engine(self.own, settings, self.trust)
        atexit.register(self.close, "the process ends")

    def listen(
        self, address: str = DEFAULT, *, channel: str = "main", run: Run | None = None
    ) -> Channel:
        """A channel at an address that this peer listens on; the other side connects.

        Args:
            address: On the loopback; port 0 takes a free one (see `Channel.address`).
            channel: Two runs meet that name the same; 1 to 80 printable characters.
            run: What to tell the other side of this run; by default a fresh one.

        Raises:
            InputError: The channel or the run cannot be used.
            InvalidAddress, ListenRefused, PortInUse: The address cannot be listened on.
            PeerClosed: This peer is closed.
        """
        wanted = parse_listen(address)
        _check_channel(channel, run)

        def make() -> Channel:
            lease = self._engine.links.addresses.listen(wanted)
            return self._open(Endpoint("listen", str(lease.place.address)), lease, channel, run)

        return self._engine.ask(make)

    def connect(
        self, address: str = DEFAULT, *, channel: str = "main", run: Run | None = None
    ) -> Channel:
        """A channel at an address that this peer dials; the other side listens. Returns at once:
        whether somebody is there shows in the operations. Arguments as in `listen`.

        Raises:
            InvalidAddress: The address cannot be dialled.
            PeerClosed: This peer is closed.
        """
        wanted = parse_dial(address)
        _check_channel(channel, run)

        def make() -> Channel:
            lease = self._engine.links.addresses.dial(wanted, time.monotonic())
            return self._open(Endpoint("dial", str(wanted)), lease, channel, run)

        return self._engine.ask(make)

    def meet(self, remote: Remote, *, channel: str = "main", run: Run | None = None) -> Channel:
        """A channel to a certain peer, whichever side dials: to one of this user's on this machine,
        or to one that is paired. Returns at once, as `connect` does. Arguments as in `listen`.

        Raises:
            InvalidAddress: The address cannot be dialled.
            NotPaired: That peer's key is not one of those that are paired.
            TrustError: This user's keys cannot be read.
            PeerClosed: This peer is closed.
        """
        given.a("remote", remote, Remote)
        _check_channel(channel, run)

        def make() -> Channel:
            wanted = self._keyed(remote)
            lease = self._engine.meetings.way(wanted)
            return self._open(endpoint(wanted), lease, channel, run, wanted)

        return self._engine.ask(make)

    def _keyed(self, remote: Remote) -> Remote:
        return remote if remote.key else replace(remote, key=self.trust.keys.public)

    def anyone(self, *, channel: str = "main", run: Run | None = None) -> Channel:
        """A channel to the only connected peer; more than one is an error that names them.
        Arguments as in `listen`."""
        _check_channel(channel, run)
        return self._engine.ask(lambda: self._open(Endpoint("any"), None, channel, run))

    def _open(
        self,
        where: Endpoint,
        lease: Lease[Place] | None,
        channel: str,
        run: Run | None,
        remote: Remote | None = None,
    ) -> Channel:
        run = run or Run()
        registration = self._engine.channels.open(
            run.id,
            where,
            channel,
            run.since,
            fitting(run.manifest),
        )
        if run.on_broken is not None:
            self._engine.on_broken[registration] = run.on_broken
        if remote is not None:
            place = lease.place if lease is not None else None
            self._engine.meetings.begin(registration, remote, place)
        return Channel(self._engine, registration, lease)

    # --- jobs ---------------------------------------------------------------------------------

    def serve(
        self,
        host: JobHost | None,
        port: int = 0,
        *,
        on_lan: Callable[[str, int], None] | None = None,
    ) -> str:
        """Open this peer's own listener: on the loopback, and where the trust store says so on the
        LAN too. This user's other peers and those who are paired may come; each may do what it is
        permitted to.

        Args:
            host: Runs the jobs that come; None: none are taken, from nobody.
            port: Where; any free port where that is taken, or above 65535.
            on_lan: Called in a thread of its own with the host that is listened on beyond the
                loopback, "" for none, and the port, whenever that changes.

        Returns:
            The address on the loopback.

        Raises:
            InputError: The port is no whole number from 0 up.
            TrustError: This user's keys cannot be had.
        """
        port = given.whole("port", port, 0, 1 << 31)
        given.callback("on_lan", on_lan)

        def open_listener() -> str:
            links, wanted = self._engine.links, port if port < 65536 else 0
            self._engine.job_service.taking.host = host
            links.admission.takes_jobs, links.addresses.on_lan = host is not None, on_lan
            try:
                place = links.addresses.listen_always(Address("127.0.0.1", wanted))
            except PortInUse:
                place = links.addresses.listen_always(Address("127.0.0.1", 0))
            return str(place.address)

        return self._engine.ask(open_listener)

    def submit(
        self,
        remote: Remote,
        request: Request,
        *,
        on_change: Callable[[Job], None] | None = None,
        on_preview: Callable[[str, str, bytes], None] | None = None,
    ) -> Job:
        """Have another peer run a job. Returns at once: wait with the job's `result()`.

        Args:
            remote: Who, and where its own listener is.
            request: What. Its values must not change until the job has ended.
            on_change, on_preview: See `Job`.

        Raises:
            InputError: The request cannot travel.
            PeerClosed: This peer is closed.
        """
        given.a("remote", remote, Remote)
        given.a("request", request, Request)
        given.callback("on_change", on_change)
        given.callback("on_preview", on_preview)
        engine = self._engine
        flat = flatten(request.told())

        def cancel(operation: Operation[Any]) -> None:
            error = Cancelled("cancelled here", peer=job.peer, stage=f"job {request.title}".strip())
            engine.post(lambda: engine.job_service.giving.cancel(job, error))

        def awaits(who: str) -> None:
            engine.post(lambda: engine.job_service.giving.awaits(job, who))

        job = Job(str(uuid.uuid4()), self._keyed(remote), request, cancel, awaits, engine.callbacks)
        job.on_change, job.on_preview = on_change, on_preview
        if not engine.post(lambda: engine.job_service.giving.submit(job, flat)):
            raise PeerClosed("this Peer is closed")
        return job

    def enquire(self, remote: Remote) -> Future[dict[str, Any]]:
        """What that peer tells of itself: its queue, devices, free memory, versions, and as
        "jobs" whether it permits them. Nothing but that where it does not."""
        given.a("remote", remote, Remote)
        wanted = self._keyed(remote)
        return self._engine.ask(lambda: self._engine.job_service.enquiries.ask(wanted))

    def set_activity(self, activity: str) -> None:
        """Tell every peer what this process is doing ("KSampler 14/20"), for their texts."""
        told = shown(given.text("activity", activity), MAX_ACTIVITY)
        self._engine.post(lambda: self._engine.set_activity(told))

    def counters(self) -> dict[str, int]:
        """How much of what is open now: addresses, sessions, connections (sessions whose link
        stands, and is not lost for now), registrations (runs on channels), operations, transfers,
        memory (bytes taken by values on their way in), waiting for memory, bytes in flight, jobs
        given, jobs taken, job values. All but the first three go back to 0 when nothing is under
        way.

        Raises:
            PeerClosed: This peer is closed.
        """
        return self._engine.ask(self._engine.counters)

    def probe(self, address: str | Remote) -> Probe:
        """Look at a link without a run: to a plain address, or to a peer's own listener.

        Raises:
            InvalidAddress, NotPaired, TrustError: It cannot be dialled.
        """
        links = self._engine.links

        def dial() -> Lease[DialTarget]:
            if isinstance(address, Remote):
                key = self._keyed(address).key
                return links.addresses.dial_own(address.routes(), key, time.monotonic())
            return links.addresses.dial(parse_dial(address), time.monotonic())

        return Probe(self._engine, self._engine.ask(dial))

    def close(self, why: str = "this peer was closed") -> None:
        """Say goodbye and end, in under a second. What is open raises `PeerClosed`.

        Args:
            why: Told to the other sides.
        """
        given.text("why", why)
        with contextlib.suppress(Exception):
            atexit.unregister(self.close)
        self._engine.close(why)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Probe:
    """A link that is only measured: made by `Peer.probe`, for zbus-ping."""

    def __init__(self, engine: Engine, lease: Lease[DialTarget]) -> None:
        self._engine, self._lease = engine, lease
        self._closed = False
        self._asked: list[Future[Any]] = []

    def _target(self) -> DialTarget:
        if self._closed:
            raise LocalProtocolError("this Probe is closed")
        return self._lease.place

    def hello(self, timeout: float) -> Hello:
        """The peer's HELLO.

        Raises:
            ConnectError: Why there is none.
            TimeoutError: None has come in `timeout` seconds.
        """
        given.seconds("timeout", timeout)
        return self._wait(lambda: self._engine.measuring.meet(self._target()), timeout)

    def ping(self, timeout: float) -> float:
        """One round trip, in seconds. Raises as `hello` does."""
        given.seconds("timeout", timeout)
        return self._wait(lambda: self._engine.measuring.ping(self._target()), timeout)

    def block(self, direction: str, size: int, timeout: float | None) -> float:
        """The seconds that a verified block of `size` bytes takes, "up" or "down". Raises as
        `hello` does; what is still on its way then is dropped."""
        given.one_of("direction", direction, ("up", "down"))
        given.whole("size", size, 0, MAX_BLOCK)
        limit = given.time_limit("timeout", timeout)
        measuring = self._engine.measuring
        return self._wait(lambda: measuring.block(self._target(), direction, size), limit)

    def _wait(self, ask: Callable[[], Future[T]], timeout: float | None) -> T:
        future = self._engine.ask(ask)
        self._asked.append(future)
        if self._closed:  # meanwhile, by another thread
            self._give_up(future, "the measurement was closed")
        try:
            return future.result(timeout)
        finally:
            self._asked.remove(future)
            if not future.done():
                self._give_up(future, "its time is over")

    def _give_up(self, future: Future[Any], why: str) -> None:
        self._engine.post(lambda: self._engine.measuring.give_up(future, why))

    def problem(self) -> str:
        """Why there is no link, in words."""
        links = self._engine.links
        return self._engine.ask(lambda: links.addresses.explain(self._target(), time.monotonic()))

    def close(self) -> None:
        """Done with it; to call it again does no harm."""
        self._closed = True
        for future in list(self._asked):
            self._give_up(future, "the measurement was closed")
        self._engine.post(self._lease.release)


def _printable(name: object) -> object:
    return shown(name, len(name)) if isinstance(name, str) else name


def _own_name() -> str:
    return shown(f"{socket.gethostname().split('.')[0]}-{os.getpid()}", MAX_NAME)


def _check_channel(channel: object, run: object) -> None:
    given.label("channel", channel, MAX_NAME)
    if run is not None:
        given.a("run", run, Run)


def _lanes(settings: Settings) -> tuple[str, ...]:
    wanted = given.switch("ZBUS_SHARE_MEMORY", otherwise=True, wary=False)
    shares = settings.share_memory and wanted
    return ("tcp", memory.LANE) if shares and memory.is_possible() else ("tcp",)
