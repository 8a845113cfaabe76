"""Whatever comes in on the port of a listening peer: it goes on serving, and does not grow."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
import torch
import zmq
from children import Child, child, until

from zbus import Peer
from zbus.protocol.messages import (
    MAX_CHUNK,
    MAX_HEADER,
    VERSION,
    Ack,
    Announce,
    Await,
    Bound,
    BoundOk,
    Bye,
    Cancel,
    Chunk,
    Finish,
    Grant,
    Hello,
    Measure,
    Message,
    NotBound,
    Offer,
    Ping,
    Ready,
    Refused,
    Reject,
    Stored,
    Withdraw,
    decode,
    encode,
)
from zbus.values import payload

MIB = 1 << 20

# A peer that answers each run on its address: receives a number, sends the next one. It prints
# its log, and the lines that a test asks for.
SERVER = """
    import logging, sys, threading, time
    import torch  # whose import is not growth
    from zbus import Peer, ZBusError
    logging.basicConfig(level=logging.ERROR, format="LOG %(levelname)s %(created).3f %(message)s",
                        stream=sys.stdout)
    peer = Peer("server")
    channel = peer.listen("127.0.0.1:0")
    address = channel.address
    print("listening", address, flush=True)
    def serve(channel):
        while True:
            try:
                with channel:
                    channel.send(channel.receive() + 1)
            except ZBusError as error:
                print("RUN", error, flush=True)
            if peer._engine.closed:
                return
            channel = peer.listen(address)
    threading.Thread(target=serve, args=(channel,), daemon=True).start()
    for line in sys.stdin:
        engine = peer._engine
        links = engine.links
        print("STATE", engine._thread.is_alive(), len(links.peerings),
              len(links._greetings._under_way), len(links._peerings),
              sum(len(p.listener.by_id) for p in links.places if p.kind == "listen"),
              len(engine.transfers), flush=True)
"""


class Target:
    """A serving peer in another process, and a good client of it."""

    def __init__(self, process: Child) -> None:
        self.process = process
        self.sessions = 0  # as of the last `state`
        self.address = process.line("listening").split()[1]
        self.host, port = self.address.split(":")
        self.port = int(port)
        self.endpoint = f"tcp://{self.address}"

    def serves(self) -> None:
        """A run of a good client gets its answer."""
        with Peer("good") as peer, peer.connect(self.address) as channel:
            channel.send(41, timeout=10)
            assert channel.receive(timeout=10) == 42

    def state(self) -> dict[str, int]:
        self.process.tell("state")
        _, alive, sessions, *counts = self.process.line("STATE ").split()
        assert alive == "True"
        self.sessions = int(sessions)
        names = ("handshakes", "peerings", "connections", "transfers")
        return dict(zip(names, map(int, counts), strict=True))

    def errors(self) -> list[float]:
        """The times of the errors in its log so far."""
        return [float(line.split()[2]) for line in self.log() if line.startswith("LOG ERROR")]

    def log(self) -> list[str]:
        self.state()  # and so all lines before it are read
        lines = self.process.lines
        assert not [line for line in lines if "Traceback" in line or "CRITICAL" in line], lines
        return lines

    def raw(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=10)


@pytest.fixture(scope="module")
def shared() -> Iterator[Target]:
    with child(SERVER) as process:
        target = Target(process)
        target.serves()
        yield target


@pytest.fixture
def target(shared: Target) -> Iterator[Target]:
    """Serves before and after, holds no more memory, and has logged at most once a second."""
    shared.serves()
    before = shared.process.rss()
    yield shared
    shared.serves()
    assert shared.process.rss() - before < 24 * MIB
    times = shared.errors()
    assert all(b - a > 0.9 for a, b in itertools.pairwise(times)), times
    until(lambda: not any(shared.state().values()), 15, "all connections gone")


@contextlib.contextmanager
def dealer(target: Target) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as made:
        made.linger = 200
        made.connect(target.endpoint)
        yield made


def hello(**told: Any) -> Hello:
    given: dict[str, Any] = {
        "versions": (VERSION, VERSION),
        "incarnation": os.urandom(16),
        "instance": os.urandom(16),
        "name": "bad",
        "nonce": os.urandom(16),
        "session": os.urandom(16),
        "codecs": ("raw", "lz4"),
    }
    return Hello(**{**given, **told})


def answer(link: zmq.Socket[bytes], within: float = 5.0) -> Message:
    assert link.poll(within * 1000), "no answer"
    header, *body = link.recv_multipart()
    return decode(header, bool(body))[1]


def shake(link: zmq.Socket[bytes]) -> Hello:
    """A good handshake."""
    link.send(encode(hello()))
    theirs = answer(link)
    assert isinstance(theirs, Hello)
    link.send(encode(Ready(theirs.nonce)))
    return theirs


def rejected(link: zmq.Socket[bytes], within: float = 5.0) -> str:
    """Why it was rejected."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        message = answer(link, deadline - time.monotonic())
        if isinstance(message, Reject):
            return message.why
    raise AssertionError("not rejected")


def closed(link: socket.socket) -> bytes:
    """Reads until the other side closes; what it said."""
    said = b""
    with contextlib.suppress(OSError):
        while data := link.recv(65536):
            said += data
    return said


# --- not ZeroMQ ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100000,
        b"\0" * 5000,
        b"\xff" * 5000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\n",
        b"",
    ],
)
def test_other_protocols(target: Target, request_bytes: bytes) -> None:
    with target.raw() as link:
        with contextlib.suppress(OSError):
            link.sendall(request_bytes)
            link.shutdown(socket.SHUT_WR)
        closed(link)


def test_a_tls_client(target: Target) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with target.raw() as link:
        link.settimeout(2)
        with pytest.raises(OSError):
            context.wrap_socket(link)


def test_random_bytes(target: Target) -> None:
    rng = random.Random(1)
    for _ in range(40):
        with target.raw() as link, contextlib.suppress(ConnectionError):
            link.sendall(rng.randbytes(rng.randrange(1, 20000)))


def test_random_bytes_after_a_greeting(target: Target) -> None:
    rng = random.Random(2)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(12, b"\0")
    greeting = greeting.ljust(64, b"\0")
    ready = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
    for i in range(40):
        with target.raw() as link, contextlib.suppress(ConnectionError):
            noise = rng.randbytes(rng.randrange(1, 5000))
            link.sendall(greeting + (ready if i % 2 else b"") + noise)


def _zmtp1(*frames: bytes) -> bytes:
    """Frames in ZMTP 1.0: length (flags and body), flags, body."""
    made = b""
    for i, frame in enumerate(frames):
        size = len(frame) + 1
        head = bytes([size]) if size < 255 else b"\xff" + struct.pack(">Q", size)
        made += head + bytes([i < len(frames) - 1]) + frame
    return made


@pytest.mark.parametrize("path", [b"/", b""])
def test_a_web_page_cannot_inject(target: Target, path: bytes) -> None:
    """An HTTP POST whose body is valid messages in ZMTP 1.0 framing gets nothing in.

    Its first line is itself read as frames there: "P" is the length of the first. So the body is
    put where that frame ends.
    """
    spoken = [hello(), Ready(bytes(16)), Measure(1, "down", 1 << 30), Ping(1)]
    body = _zmtp1(b"identity") + b"".join(_zmtp1(encode(m, int(m.SEQUENCED))) for m in spoken)
    for filler in range(0, 90, 3):
        head = b"POST " + path + b"x" * filler + b" HTTP/1.1\r\n"
        with target.raw() as link:
            link.settimeout(0.3)
            with contextlib.suppress(ConnectionError, TimeoutError):
                link.sendall(head + b"\r\n" + body)
                said = link.recv(4096)
                # Its greeting at most: never a HELLO of its own, nor a block.
                assert b"incarnation" not in said and len(said) <= 64
    state = target.state()
    assert state["peerings"] == state["handshakes"] == 0


def test_plain_zmtp_1_is_not_let_in(target: Target) -> None:
    with target.raw() as link:
        link.settimeout(0.5)
        with contextlib.suppress(ConnectionError, TimeoutError):
            link.sendall(_zmtp1(b"me") + _zmtp1(encode(hello())))
            said = b""
            while data := link.recv(4096):
                said += data
            assert b"incarnation" not in said
    assert target.state()["handshakes"] == 0


# --- ZeroMQ that says nonsense -------------------------------------------------------------------

DEEP = b"\x91" * 60000
HUGE = [
    b"\xdd\xff\xff\xff\xff",  # an array of 4 G items
    b"\xdf\xff\xff\xff\xff",  # a map
    b"\xc6\xff\xff\xff\xff",  # 4 GiB of bytes
    b"\xdb\xff\xff\xff\xff",  # of text
    b"\xc9\xff\xff\xff\xff\x01",  # of an extension
    b"\x93\x00\x00\xdf\xff\xff\xff\xff",
    DEEP,
]


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"hello",
        *HUGE,
        msgpack.packb([]),
        msgpack.packb([99, 0]),
        msgpack.packb([-1, 0]),
        msgpack.packb([1 << 63, 0]),
        msgpack.packb(["0", 0]),
        msgpack.packb([0, 0, {}]),
        msgpack.packb([0, 0, {"versions": [VERSION, VERSION]}]),
        msgpack.packb([0, 0, {b"x": 1}]),
        encode(Ping(1)),
        encode(Ready(bytes(16))),
        encode(Announce("r", "main", "now", ("main",)), 1),
        encode(Bye("bye")),
        encode(Measure(1, "down", 1 << 40), 1),
        encode(Chunk(1, 0, 100, False)),
        bytes(MAX_HEADER + 1),
        bytes(MAX_CHUNK),
    ],
    ids=lambda header: repr(header[:12]) + f"x{len(header)}",
)
def test_no_hello(target: Target, header: bytes) -> None:
    with dealer(target) as link:
        link.send(header)
        assert rejected(link)


def test_the_reason_of_a_rejection_is_told(target: Target) -> None:
    with dealer(target) as link:
        link.send(encode(Ping(1)))
        assert "does not begin with HELLO" in rejected(link)


def test_what_comes_in_many_frames(target: Target) -> None:
    for count in (3, 4, 100):
        with dealer(target) as link:
            link.send_multipart([encode(hello()), *([b"x" * 1000] * (count - 1))])
            assert "HELLO with a body" in rejected(link)


def test_a_third_frame_of_a_good_message(target: Target) -> None:
    """What follows the body is not taken for anything."""
    with dealer(target) as link:
        shake(link)
        link.send_multipart([encode(Chunk(1, 0, 100, False)), bytes(100), encode(Bye("x")), b""])
        link.send(encode(Ping(77)))
        until(lambda: getattr(answer(link), "token", None) == 77, 5)


def test_a_frame_that_is_too_large(target: Target) -> None:
    with dealer(target) as link:
        shake(link)
        link.send_multipart([encode(Chunk(1, 0, MAX_CHUNK, False)), bytes(8 * MIB)])
        until(lambda: target.state()["peerings"] == 0, 10)


def test_a_frame_that_promises_terabytes(target: Target) -> None:
    """Its length is believed only up to what a frame may have."""
    greeting = (b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0")).ljust(64, b"\0")
    ready = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
    with target.raw() as link:
        link.settimeout(5)
        link.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
        link.sendall(b"\x02" + struct.pack(">Q", 1 << 42) + bytes(1000))
        closed(link)


@pytest.mark.parametrize("nonce", [bytes(16), None])
def test_a_ready_that_does_not_know_the_nonce(target: Target, nonce: bytes | None) -> None:
    with dealer(target) as link:
        mine = hello()
        link.send(encode(mine))
        theirs = answer(link)
        assert isinstance(theirs, Hello) and theirs.echo == mine.nonce
        link.send(encode(Ready(nonce or mine.nonce)))
        assert "does not know the nonce" in rejected(link)


def test_messages_between_hello_and_ready(target: Target) -> None:
    with dealer(target) as link:
        link.send(encode(hello()))
        answer(link)
        link.send(encode(Announce("r", "main", "now", ("main",)), 1))
        assert "no READY" in rejected(link)


def test_two_hellos(target: Target) -> None:
    with dealer(target) as link:
        link.send(encode(hello()))
        answer(link)
        link.send(encode(hello()))
        assert "no READY" in rejected(link)


def test_a_hello_that_resumes_what_never_was(target: Target) -> None:
    with dealer(target) as link:
        link.send(encode(hello(resumed=True, received=1000)))
        theirs = answer(link)
        assert isinstance(theirs, Hello) and not theirs.resumed and theirs.received == 0
        link.send(encode(Ready(theirs.nonce, 1000)))
        assert rejected(link)


def test_a_hello_of_the_peer_itself(target: Target) -> None:
    with dealer(target) as link:
        link.send(encode(hello()))
        theirs = answer(link)
        assert isinstance(theirs, Hello)
    with dealer(target) as link:
        link.send(encode(hello(incarnation=theirs.incarnation)))
        assert "very process" in rejected(link)


# --- a peer that breaks the rules after a good handshake -----------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        (Ack(1000), 0, None),
        (Announce("r", "main", "now", ("main",)), 7, None),
        (Bound(1, "main", "a", "b"), 1, None),
        (Hello(**vars(hello())), 0, None),
        (Ready(bytes(16)), 0, None),
        (Ping(1), 0, b"a body"),
    ],
    ids=lambda said: type(said[0]).__name__,
)
def test_rules_broken(target: Target, said: tuple[Message, int, bytes | None]) -> None:
    message, seq, body = said
    with dealer(target) as link:
        shake(link)
        link.send_multipart([encode(message, seq), *([body] if body is not None else [])])
        assert rejected(link)


@pytest.mark.parametrize(
    "message",
    [
        Chunk(5, 1 << 40, MAX_CHUNK, False),
        Chunk(5, 0, 1, True),
        Grant(5, 1 << 46, 1 << 46),
        Finish(5, bytes(16)),
        Stored(5),
        Cancel(1, 5, "x"),
        BoundOk(5),
        NotBound(5, "x"),
        Withdraw("r", "main", "x"),
        Await(1 << 60, 6, 0, "any", "n"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_belongs_to_nothing_is_ignored(target: Target, message: Message) -> None:
    with dealer(target) as link:
        shake(link)
        frames = [encode(message, int(message.SEQUENCED))]
        link.send_multipart([*frames, b"x"] if message.BODY else frames)
        link.send(encode(Ping(77)))
        until(lambda: getattr(answer(link), "token", None) == 77, 5)


class Bad:
    """A bad client that has met the server's run: sequence numbers, and its binding."""

    def __init__(self, link: zmq.Socket[bytes]) -> None:
        self.link, self._seq = link, 0
        shake(link)
        self.say(Announce("bad", "main", "now", ("main",)))
        self.binding = self.hear(Bound).binding
        self.say(BoundOk(self.binding))
        self.hear(Await)

    def say(self, message: Message, body: bytes | None = None) -> None:
        seq = 0
        if message.SEQUENCED:
            self._seq += 1
            seq = self._seq
        self.link.send_multipart([encode(message, seq), *([body] if body is not None else [])])

    def hear(self, kind: Any, within: float = 5.0) -> Any:
        deadline = time.monotonic() + within
        while True:
            message = answer(self.link, max(0.01, deadline - time.monotonic()))
            if isinstance(message, kind):
                return message

    def offer(self, **told: Any) -> None:
        given: dict[str, Any] = {
            "binding": self.binding,
            "operation": 2,
            "key": 0,
            "kind": "image",
            "node": "n",
            "total": 4,
            "codec": "raw",
            "spec": b"",
            "head": 0,
            "inline": False,
        }
        body = told.pop("body", None)
        self.say(Offer(**{**given, **told}), body)


@contextlib.contextmanager
def bad(target: Target) -> Iterator[Bad]:
    with dealer(target) as link:
        yield Bad(link)


@pytest.mark.parametrize(
    "offer",
    [
        {"spec": b"", "total": 4},
        {"spec": DEEP[:16000], "total": 4},
        {"spec": b"\xdd\xff\xff\xff\xff", "total": 1 << 46},
        {"codec": "no such codec"},
        {"total": 1 << 46, "head": 16 << 20},
        {"total": 4, "inline": True, "body": b"much more than four"},
        {"total": 1 << 46, "inline": True, "body": b""},
        {"total": 0, "inline": True, "body": b""},
    ],
    ids=str,
)
def test_offers_that_lie(target: Target, offer: dict[str, Any]) -> None:
    with bad(target) as peer:
        peer.offer(**offer)
        if offer.get("head"):
            grant = peer.hear(Grant)
            assert grant.received == 0
            peer.say(Cancel(1, 2, "enough"))
            return
        assert peer.hear((Refused, Reject)).why


def test_a_spec_of_terabytes_takes_no_memory(target: Target) -> None:
    packed = payload.pack(payload.flatten(torch.zeros(100, 100)), "never")
    assert packed.spec.endswith(b"\x02dd")  # dimensions, shape
    side = b"\xce\x00\x40\x00\x00"  # 2**22
    with bad(target) as peer:
        before = target.process.rss()
        peer.offer(spec=packed.spec[:-2] + side * 2, total=1 << 46)
        assert "may be taken here" in peer.hear(Refused).why
        assert target.process.rss() - before < 16 * MIB


# --- many ----------------------------------------------------------------------------------------


def test_thousands_of_bad_messages_are_one_error_a_second(target: Target) -> None:
    before = len(target.errors())
    began, sent = time.time(), 0
    # For longer than the second that an error before this test may keep the log silent.
    while sent < 150 or time.time() - began < 2.5:
        sent += 1
        with dealer(target) as link:
            for _ in range(10):
                link.send(b"nonsense")
            assert rejected(link)
    took = time.time() - began
    count = len(target.errors()) - before
    assert 1 <= count <= took + 2


def test_a_thousand_connections_that_do_nothing(target: Target) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1000 if hard < 0 or hard >= 2500 else 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2500)), hard))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(wanted):
                stack.enter_context(target.raw())
            target.serves()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_handshakes_that_are_never_ended(target: Target) -> None:
    """More of them than may be under way: a good client is served as soon as they are gone."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        links = []
        for _ in range(280):
            link = stack.enter_context(context.socket(zmq.DEALER))
            link.linger = 0
            link.connect(target.endpoint)
            link.send(encode(hello()))
            links.append(link)
        answers = [type(answer(link)).__name__ for link in links]
        assert answers.count("Hello") == 256 and answers.count("Reject") == 24
        assert target.state()["handshakes"] == 256


def test_good_clients_are_served_while_others_attack(target: Target) -> None:
    stop = threading.Event()
    rng = random.Random(3)

    def attack(how: Callable[[], None]) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, zmq.ZMQError):
                how()

    def noise() -> None:
        with target.raw() as link:
            link.sendall(rng.randbytes(3000))

    def nonsense() -> None:
        with dealer(target) as link:
            link.send(rng.choice(HUGE))
            link.poll(200)

    threads = [threading.Thread(target=attack, args=(how,)) for how in (noise, nonsense)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            target.serves()
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


def test_sessions_that_are_left_behind_are_bounded(target: Target) -> None:
    """Anybody may open sessions at a plain listener: the oldest lost ones make room."""
    for _ in range(100):
        with dealer(target) as link:
            shake(link)
            link.send(encode(Ping(1)))
            until(lambda link=link: getattr(answer(link), "token", None) == 1, 5)
    target.state()
    assert 0 < target.sessions <= 65  # one more while a good client is there


@pytest.mark.parametrize("told", [{"received": 5}, {"resumed": True}])
def test_a_session_that_nobody_knows_is_not_gone_on_with(
    target: Target, told: dict[str, Any]
) -> None:
    target.state()
    before = target.sessions
    with dealer(target) as link:
        link.send(encode(hello(**told)))
        theirs = answer(link)
        assert isinstance(theirs, Hello) and not theirs.resumed
        link.send(encode(Ready(theirs.nonce)))
        assert "not known here" in rejected(link)
    target.state()
    assert target.sessions <= before
