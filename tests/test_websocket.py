"""The WebSocket lane: `zbus.net.websocket` dials, `page.websocket_door` answers. No ComfyUI."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import socket
import ssl
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import children
import pytest
import zmq
from aiohttp import web
from webproxy import PASSWORD as SECRET
from webproxy import make_certificate, nginx
from website import PATIENCE, Site, door

from zbus.errors import (
    ConnectError,
    InvalidAddress,
    NameNotResolved,
    NobodyBehind,
    NotZBus,
    Unreachable,
)
from zbus.net import websocket

MIB = 1 << 20
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def until(met: Callable[[], Any], what: str = "") -> Any:
    """What `met` gives, once that is something."""
    return children.until(met, PATIENCE, what)


# --- the far side: a listener, and an HTTP server with the door


class Far:
    """In the listener's place: `serve` is run for each connection, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._server.accept()
                self.accepted += 1
                threading.Thread(target=self._run, args=(link,), daemon=True).start()

    def _run(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError), link:
            self._serve(link)

    def __enter__(self) -> Far:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._server.close()
        self._thread.join(PATIENCE)


def echo(link: socket.socket) -> None:
    while data := link.recv(1 << 16):
        link.sendall(data)


@contextlib.contextmanager
def lane_to(url: str) -> Iterator[websocket.Lane]:
    lane = websocket.open_lane(url)
    try:
        yield lane
    finally:
        lane.close()


@contextlib.contextmanager
def whole(serve: Callable[[socket.socket], None]) -> Iterator[tuple[websocket.Lane, Far]]:
    """A lane, the door at its end and a listener behind that."""
    with Far(serve) as far, Site(door.Door(lambda: far.address).handle) as site:
        with lane_to(site.url) as lane:
            yield lane, far


def dial(lane: websocket.Lane) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", lane.port), timeout=PATIENCE)
    link.settimeout(PATIENCE)
    return link


def read(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while len(data) < size and (piece := link.recv(min(size - len(data), 1 << 16))):
            data += piece
    return bytes(data)


def read_all(link: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := link.recv(1 << 16):
            data += piece
    return bytes(data)


# --- bytes


def test_bytes_of_all_sizes_come_through_both_ways_unchanged() -> None:
    chance = random.Random(4)
    sizes = [0, 1, 2, 125, 126, 65535, 65536, websocket.PIECE, websocket.PIECE + 1, 3 * MIB]
    sizes += [chance.randrange(1, 1 << chance.randrange(1, 21)) for _ in range(60)]
    pieces = [b"\xff"] + [chance.randbytes(size) for size in sizes]
    data = b"".join(pieces)
    with whole(echo) as (lane, _), dial(lane) as link:
        sender = threading.Thread(target=lambda: [link.sendall(piece) for piece in pieces])
        sender.start()
        got = read(link, len(data))
        sender.join(PATIENCE)
        assert got == data
        assert lane.problem is None


def test_several_at_once_do_not_mix() -> None:
    with whole(echo) as (lane, far):
        links = [dial(lane) for _ in range(8)]
        for n, link in enumerate(links):
            link.sendall(b"\xff" + bytes([n]) * 100_000)
        for n, link in enumerate(links):
            assert read(link, 100_001) == b"\xff" + bytes([n]) * 100_000
            link.close()
        assert far.accepted == 8


def test_curve_goes_through_it_and_who_stops_in_its_handshake_is_ended() -> None:
    public, secret = zmq.curve_keypair()
    mine = zmq.curve_keypair()
    context = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.curve_server, router.curve_secretkey = True, secret
    router.setsockopt(zmq.HANDSHAKE_IVL, 500)
    dealer.curve_serverkey, (dealer.curve_publickey, dealer.curve_secretkey) = public, mine
    try:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with Site(door.Door(lambda: f"127.0.0.1:{port}").handle) as site:
            with lane_to(site.url) as lane:
                dealer.connect(f"tcp://127.0.0.1:{lane.port}")
                value = os.urandom(5 * MIB)
                dealer.send(value)
                assert router.poll(PATIENCE * 1000)
                name, got = router.recv_multipart()
                assert got == value
                router.send_multipart([name, got[::-1]])
                assert dealer.poll(PATIENCE * 1000)
                assert dealer.recv() == value[::-1]
                with dial(lane) as link:
                    link.sendall(b"\xff" + bytes(8) + b"\x7f")
                    assert read_all(link)[:1] == b"\xff"  # and then the end
    finally:
        context.destroy(linger=0)


# --- ends


def test_all_that_was_said_before_the_end_arrives_and_the_end_too() -> None:
    got: list[bytes] = []
    data = b"\xff" + os.urandom(3 * MIB)
    with whole(lambda link: got.append(read_all(link))) as (lane, _):
        with dial(lane) as link:
            link.sendall(data)
        until(lambda: got)
        assert got[0] == data


def test_the_listeners_end_arrives_after_its_last_byte() -> None:
    data = os.urandom(3 * MIB)

    def speak(link: socket.socket) -> None:
        link.recv(1)
        link.sendall(data)

    with whole(speak) as (lane, _), dial(lane) as link:
        link.sendall(b"\xff")
        assert read_all(link) == data
        assert lane.problem is None


def test_closing_the_lane_ends_what_goes_through_it_and_its_port() -> None:
    ended = threading.Event()

    def serve(link: socket.socket) -> None:
        try:
            echo(link)
        finally:
            ended.set()

    with whole(serve) as (lane, _), dial(lane) as link:
        link.sendall(b"\xff")
        assert link.recv(1) == b"\xff"
        lane.close()
        assert read_all(link) == b""
        assert ended.wait(PATIENCE)
        until(lambda: _is_refused(lane.port))
        lane.close()  # once more harms nothing


def test_a_lane_may_be_closed_before_it_has_begun() -> None:
    lanes = [websocket.open_lane("https://127.0.0.1:1/") for _ in range(5)]
    for lane in lanes:
        lane.close()
    until(lambda: all(_is_refused(lane.port) for lane in lanes))
    until(lambda: _lane_tasks() == 0)


def test_the_end_of_the_http_server_ends_it() -> None:
    with Far(echo) as far, Site(door.Door(lambda: far.address).handle) as site:
        with lane_to(site.url) as lane, dial(lane) as link:
            link.sendall(b"\xff")
            assert link.recv(1) == b"\xff"
            site.call(site._runner.cleanup())
            assert read_all(link) == b""
            with dial(lane) as again:
                assert read_all(again) == b""
            assert isinstance(lane.problem, Unreachable)


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


def test_nothing_is_left_of_200_connections() -> None:
    with Far(echo) as far:
        opened = door.Door(lambda: far.address)
        opened._tokens = 1e9  # the rate has its own test
        with Site(opened.handle) as site, lane_to(site.url) as lane:

            def once(n: int) -> None:
                with dial(lane) as link:
                    link.sendall(b"\xff" + bytes(n))
                    assert len(read(link, n + 1)) == n + 1

            once(1)
            until(lambda: site.tasks() <= 1 and _lane_tasks() <= 1)
            before = _descriptors()
            for n in range(200):
                opened._tokens = 1e9
                once(n)
            until(lambda: site.tasks() <= 1 and _lane_tasks() <= 1, "tasks are left")
            until(lambda: _descriptors() <= before + 2, "sockets are left")
            assert opened._open == 0
    until(lambda: _lane_tasks() == 0, "the lane's own task is left")


def _lane_tasks() -> int:
    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return asyncio.run_coroutine_threadsafe(count(), websocket._the_loop()).result(PATIENCE)


def _descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


# --- a side that reads slowly


@pytest.mark.parametrize("slow", ["listener", "dialler"])
def test_a_side_that_does_not_read_stops_the_other_and_no_memory_grows(slow: str) -> None:
    """What the kernel holds is its own; Python's heap, of all three parties here, stays small."""
    go, counts = threading.Event(), {"in": 0, "out": 0}
    piece, most = os.urandom(MIB), 256

    def flood(link: socket.socket) -> None:
        for _ in range(most):
            link.sendall(piece)
            counts["in"] += 1

    def drain(link: socket.socket) -> None:
        assert go.wait(PATIENCE)
        while data := link.recv(1 << 16):
            counts["out"] += len(data)
            if counts["out"] >= most * MIB:
                return

    def serve(link: socket.socket) -> None:
        assert link.recv(1) == b"\xff"
        (drain if slow == "listener" else flood)(link)
        with contextlib.suppress(OSError):
            link.recv(1)

    tracemalloc.start()
    try:
        with whole(serve) as (lane, _), dial(lane) as link:
            link.sendall(b"\xff")
            near = flood if slow == "listener" else drain
            thread = threading.Thread(target=near, args=(link,), daemon=True)
            thread.start()
            until(lambda: _stands_still(counts))
            assert 0 < counts["in"] < most // 2
            assert tracemalloc.get_traced_memory()[0] < 16 * MIB
            go.set()
            until(lambda: counts["out"] == most * MIB)
            thread.join(PATIENCE)
            assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        go.set()
        tracemalloc.stop()


def _stands_still(counts: dict[str, int]) -> bool:
    before = counts["in"]
    time.sleep(0.3)  # that nothing moves has no event
    return 0 < before == counts["in"]


def test_closing_the_lane_is_not_held_up_by_a_side_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIME", 0.3)
    stop = threading.Event()

    def serve(link: socket.socket) -> None:
        link.recv(1)
        stop.wait(PATIENCE)

    with Far(serve) as far:
        opened = door.Door(lambda: far.address)
        with Site(opened.handle) as site, lane_to(site.url) as lane, dial(lane) as link:
            link.sendall(b"\xff")
            link.settimeout(0.7)
            with contextlib.suppress(TimeoutError):
                while True:
                    link.sendall(bytes(MIB))
            started = time.monotonic()
            lane.close()
            until(lambda: _lane_tasks() == 0, "the lane still holds it")
            assert time.monotonic() - started < PATIENCE / 2
            stop.set()
            until(lambda: opened._open == 0)


# --- who is turned away at the door


async def _knock(url: str, *says: bytes | str, **more: Any) -> tuple[int, int | None]:
    """(HTTP status, close code) of what a WebSocket with these messages comes to."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.ws_connect(url + door.PATH, **more) as ws:
                for say in says:
                    await (ws.send_str(say) if isinstance(say, str) else ws.send_bytes(say))
                while (message := await ws.receive(PATIENCE)).type is aiohttp.WSMsgType.BINARY:
                    assert message.data
                return 101, ws.close_code
        except aiohttp.WSServerHandshakeError as error:
            return error.status, None


@pytest.mark.parametrize("origin", ["http://127.0.0.1", "https://evil.example", "null", ""])
def test_a_page_in_a_browser_is_refused(origin: str) -> None:
    with Far(echo) as far, Site(door.Door(lambda: far.address).handle) as site:
        assert asyncio.run(_knock(site.url, b"\xff", headers={"Origin": origin})) == (403, None)
        assert far.accepted == 0


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"", b"\x00\xff", "\xff", None])
def test_what_does_not_begin_like_zmtp_never_reaches_the_listener(
    first: bytes | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "FIRST_TIME", 0.3)
    with Far(echo) as far, Site(door.Door(lambda: far.address).handle) as site:
        says = () if first is None else (first,)
        assert asyncio.run(_knock(site.url, *says)) == (101, aiohttp.WSCloseCode.POLICY_VIOLATION)
        assert far.accepted == 0
        until(lambda: site.tasks() <= 1)


def test_pings_alone_hold_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "FIRST_TIME", 0.5)

    async def ping_on(url: str) -> int:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(url + door.PATH) as ws:
                for pings in range(100):
                    await ws.ping()
                    with contextlib.suppress(asyncio.TimeoutError):
                        await ws.receive(0.1)
                        return pings
                return 100

    with Far(echo) as far, Site(door.Door(lambda: far.address).handle) as site:
        assert asyncio.run(ping_on(site.url)) < 50


@pytest.mark.parametrize("later", ["words", bytes(websocket.MAX_MESSAGE + 1)])
def test_text_or_too_much_at_once_ends_the_relay(later: bytes | str) -> None:
    ended = threading.Event()

    def serve(link: socket.socket) -> None:
        try:
            echo(link)
        finally:
            ended.set()

    with Far(serve) as far, Site(door.Door(lambda: far.address).handle) as site:
        status, _ = asyncio.run(_knock(site.url, b"\xff", later))
        assert status == 101
        assert ended.wait(PATIENCE)


UPGRADE = (
    f"GET {door.PATH} HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n"
)


@pytest.mark.parametrize("begin", [b"\x82", b"\x02"], ids=["whole", "fragment"])
def test_a_frame_that_says_it_is_huge_is_not_gathered(begin: bytes) -> None:
    """In an aiohttp that looks at it: with one that does not, ComfyUI's own /ws gathers it too."""
    if tuple(map(int, aiohttp.__version__.split(".")[:3])) < (3, 14, 3):
        pytest.skip(f"aiohttp {aiohttp.__version__} takes frames of any size")
    with Far(echo) as far, Site(door.Door(lambda: far.address).handle) as site:
        with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as link:
            link.sendall(UPGRADE.encode())
            assert link.recv(1 << 16).startswith(b"HTTP/1.1 101")
            link.sendall(begin + b"\xff" + (1 << 30).to_bytes(8, "big") + bytes(4))
            with pytest.raises(OSError):
                for _ in range(64):
                    link.sendall(bytes(MIB))
        until(lambda: site.tasks() <= 1)


def test_a_plain_request_is_no_websocket() -> None:
    async def get(url: str) -> int:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status

    with Far(echo) as far, Site(door.Door(lambda: far.address).handle) as site:
        assert asyncio.run(get(site.url + door.PATH)) == 400


def test_only_so_many_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MAX_OPEN", 3)
    with whole(echo) as (lane, far):
        links = [dial(lane) for _ in range(3)]
        for link in links:
            link.sendall(b"\xff")
            assert link.recv(1) == b"\xff"
        with dial(lane) as fourth:
            assert read_all(fourth) == b""
        assert "too many connections" in str(lane.problem)
        assert far.accepted == 3
        links.pop().close()

        def works_again() -> bool:
            with dial(lane) as link:
                link.sendall(b"\xff")
                return read(link, 1) == b"\xff"

        until(works_again)
        assert lane.problem is None
        for link in links:
            link.close()


def test_only_so_many_come_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "BURST", 5)
    monkeypatch.setattr(door, "PER_SECOND", 0.001)

    async def knock_often(url: str) -> list[int]:
        return [(await _knock(url, b"?"))[0] for _ in range(8)]

    with Far(echo) as far, Site(door.Door(lambda: far.address).handle) as site:
        assert asyncio.run(knock_often(site.url)) == [101] * 5 + [429] * 3


# --- what a lane says when there is nothing to say


def problem_of(url: str, kind: type[ConnectError], *words: str) -> ConnectError:
    """What a lane tells after one dial."""
    with lane_to(url) as lane, dial(lane) as link:
        with contextlib.suppress(OSError):
            link.sendall(b"\xff")
        assert read_all(link) == b""
        problem = until(lambda: lane.problem)
    assert type(problem) is kind
    for word in words:
        assert word in str(problem)
    assert SECRET not in str(problem) + repr(problem) + repr(problem.__dict__)
    return problem


def answering(head: str) -> Callable[[socket.socket], None]:
    def serve(link: socket.socket) -> None:
        link.recv(1 << 16)
        link.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")

    return serve


@pytest.mark.parametrize(
    ("head", "kind", "words"),
    [
        ("HTTP/1.1 400 Bad", NotZBus, "no WebSocket (400)"),
        ("HTTP/1.1 401 No\nWWW-Authenticate: Basic", ConnectError, "wants a login"),
        ("HTTP/1.1 403 No", ConnectError, "forbidden there (403)"),
        ("HTTP/1.1 404 No", NotZBus, "Install zbus in that ComfyUI"),
        ("HTTP/1.1 429 No", ConnectError, "too many connections"),
        ("HTTP/1.1 502 No", Unreachable, "does not reach ComfyUI"),
        ("HTTP/1.1 503 No", NobodyBehind, "takes no peers now"),
        ("HTTP/1.1 200 OK\nContent-Length: 0", NotZBus, "no WebSocket (200)"),
        ("HTTP/1.1 418 Tea\nContent-Length: 0", NotZBus, "no WebSocket (418)"),
        ("HTTP/1.1 101 Yes\nUpgrade: websocket\nConnection: upgrade", NotZBus, "no WebSocket"),
        ("SSH-2.0-OpenSSH_9.2", NotZBus, "not HTTP"),
        ("HTTP/1.1 302 Go\nLocation: /login?next=s3cret", NotZBus, "Is a login wanted there"),
        ("HTTP/1.1 301 Go\nLocation: http://[", NotZBus, "it redirects"),
        (
            "HTTP/1.1 308 Go\nLocation: https://me:s3cret@other.example/comfy/zbus/ws?t=s3cret",
            NotZBus,
            "Give https://other.example/comfy/ in its place",
        ),
    ],
)
def test_answers_that_are_no_websocket(head: str, kind: type[ConnectError], words: str) -> None:
    with Far(answering(head)) as far:
        problem = problem_of(f"http://user:{SECRET}@{far.address}/?t={SECRET}", kind, words)
        assert problem.peer == f"http://{far.address}/"
        assert problem.remedy


def test_nobody_listens_there() -> None:
    with Far(echo) as far:
        pass
    problem_of(f"http://{far.address}", Unreachable, "refused")


def test_it_closes_without_an_answer() -> None:
    with Far(lambda link: None) as far:
        problem_of(f"http://{far.address}", NobodyBehind, "closes without an answer")


def test_it_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CONNECT_TIME", 0.5)
    with Far(read_all) as far:  # type: ignore[arg-type]
        problem_of(f"http://{far.address}", Unreachable, "no answer within 0.5 s")


def test_the_time_to_connect_ends_no_link_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CONNECT_TIME", 0.4)
    with whole(echo) as (lane, _), dial(lane) as link:
        link.sendall(b"\xff")
        assert link.recv(1) == b"\xff"
        time.sleep(0.8)  # twice that time: that nothing happens has no event
        link.sendall(b"\xff")
        assert link.recv(1) == b"\xff"


def test_the_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def unknown(host: Any, *more: Any, **named: Any) -> Any:
        if host == "nowhere.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    problem_of("http://nowhere.example/", NameNotResolved, "nowhere.example is not known")


def test_no_listener_behind_the_door() -> None:
    with Site(door.Door(lambda: "").handle) as site:
        problem_of(site.url, NobodyBehind, "takes no peers now")
    with socket.socket() as held:  # its port is nobody else's meanwhile, and nobody listens
        held.bind(("127.0.0.1", 0))
        with Site(door.Door(lambda: f"127.0.0.1:{held.getsockname()[1]}").handle) as site:
            problem_of(site.url, NobodyBehind, "zbus there does not listen now")
    with Far(lambda link: None) as far, Site(door.Door(lambda: far.address).handle) as site:
        problem_of(site.url, NobodyBehind, "nothing came through it")


def test_a_problem_is_over_once_there_is_an_answer() -> None:
    there = [""]
    with Far(echo) as far, Site(door.Door(lambda: there[0]).handle) as site:
        with lane_to(site.url) as lane:
            with dial(lane) as link:
                assert read_all(link) == b""
            assert until(lambda: lane.problem)
            there[0] = far.address
            with dial(lane) as link:
                link.sendall(b"\xff")
                assert link.recv(1) == b"\xff"
                assert lane.problem is None


@pytest.mark.parametrize(
    "url", ["", "8188", "127.0.0.1:8188", "ftp://host/", "http://", f"http://u:{SECRET}@h:99999/"]
)
def test_what_is_no_address_of_a_page(url: str) -> None:
    with pytest.raises(InvalidAddress) as raised:
        websocket.open_lane(url)
    assert SECRET not in str(raised.value)
    assert "https://host.example/comfy" in str(raised.value)


def test_without_aiohttp_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConnectError, match="pip install aiohttp"):
        websocket.open_lane("http://127.0.0.1:8188")


# --- logins, paths, proxies, silence


def test_login_path_and_query_go_along() -> None:
    seen: list[web.Request] = []

    async def look(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(status=404)

    with Site(look, path="/{all:.*}") as site:
        host = site.url.removeprefix("http://")
        problem_of(f"http://me:{SECRET}%2F@{host}/comfy/?token={SECRET}", NotZBus, "no zbus")
    assert seen[0].path_qs == f"/comfy/zbus/ws?token={SECRET}"
    login = base64.b64decode(seen[0].headers["Authorization"].removeprefix("Basic "))
    assert login.decode() == f"me:{SECRET}/"
    assert "Origin" not in seen[0].headers


def test_a_proxy_of_the_environment_counts_but_never_for_the_loopback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And no password of netrc goes to it, or to the page."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login alice password netrc-secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    asked: list[bytes] = []

    def proxy(link: socket.socket) -> None:
        asked.append(link.recv(1 << 16))
        link.sendall(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n")

    with Far(proxy) as far:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://{far.address}")
        with whole(echo) as (lane, _), dial(lane) as link:
            link.sendall(b"\xff")
            assert link.recv(1) == b"\xff"
        assert asked == []
        monkeypatch.setenv("no_proxy", "spared.example:80,spared.invalid:8188,10.0.0.0/8")
        problem_of("http://spared.invalid:8188/", NameNotResolved)
        assert asked == []
        problem_of("http://peer.example:8188/", Unreachable, "does not reach")
        problem_of("https://peer.example/", Unreachable, "proxy", "HTTPS_PROXY")
    assert asked[0].startswith(b"GET http://peer.example:8188/zbus/ws HTTP/1.1")
    assert asked[1].startswith(b"CONNECT peer.example:443")
    assert all(b"authorization:" not in said.lower() for said in asked)


def test_a_proxy_that_cannot_be_asked_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1080")
    problem_of("http://peer.example:8188/", Unreachable, "not one of http", "no_proxy")


def test_pings_keep_a_silent_link_open_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "KEEP_OPEN", 0.05)
    kinds: list[aiohttp.WSMsgType] = []

    async def listen(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(autoping=False)
        await ws.prepare(request)
        while (message := await ws.receive()).type in (
            aiohttp.WSMsgType.PING,
            aiohttp.WSMsgType.BINARY,
        ):
            kinds.append(message.type)
        return ws

    with Site(listen) as site, lane_to(site.url) as lane, dial(lane):
        until(lambda: kinds.count(aiohttp.WSMsgType.PING) >= 3)

    async def count_pings(url: str) -> int:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(url + door.PATH, autoping=False) as ws:
                await ws.send_bytes(b"\xff")
                got = [(await ws.receive(PATIENCE)).type for _ in range(4)]
                return got.count(aiohttp.WSMsgType.PING)

    with Far(echo) as far, Site(door.Door(lambda: far.address).handle) as site:
        assert asyncio.run(count_pings(site.url)) == 3


# --- TLS, and a real reverse proxy


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_a_certificate_is_verified_and_one_of_ones_own_can_be_named(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    with Far(echo) as far, Site(door.Door(lambda: far.address).handle, tls=context) as site:
        problem_of(site.url, ConnectError, "not trusted here: self", "SSL_CERT_FILE")
        problem_of(site.url.replace("https", "http"), NobodyBehind)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with lane_to(site.url) as lane, dial(lane) as link:
            link.sendall(b"\xff" + bytes(MIB))
            assert read(link, MIB + 1) == b"\xff" + bytes(MIB)
    with Site(door.Door(lambda: "").handle) as site:
        problem_of(site.url.replace("http", "https"), ConnectError, "https or http")


def test_through_nginx_with_tls_login_and_path(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    data = b"\xff" + os.urandom(20 * MIB)
    with Far(echo) as far, Site(door.Door(lambda: far.address).handle) as site:
        with nginx(tmp_path, site.port, certificate) as host:
            with lane_to(f"https://me:{SECRET}@{host}/comfy/") as lane, dial(lane) as link:
                threading.Thread(target=link.sendall, args=(data,), daemon=True).start()
                assert read(link, len(data)) == data
                assert lane.problem is None
            problem_of(f"https://{host}/comfy/", ConnectError, "wants a login")
            problem_of(f"https://me:no{SECRET}@{host}/comfy/", ConnectError, "wants a login")
            problem_of(f"https://{host}/plain/", NotZBus, "must pass WebSockets on")
            problem_of(f"https://{host}/gone/", Unreachable, "does not reach ComfyUI")
            problem_of(f"https://{host}/", NotZBus, "there is no zbus (404)")
            problem_of(f"http://{host}/comfy/", NotZBus, "no WebSocket (400)")


def test_nginx_does_not_cut_a_silent_lane(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(websocket, "KEEP_OPEN", 0.3)
    with Far(echo) as far, Site(door.Door(lambda: far.address).handle) as site:
        with nginx(tmp_path, site.port, certificate, silence=1) as host:
            with lane_to(f"https://me:{SECRET}@{host}/comfy") as lane, dial(lane) as link:
                link.sendall(b"\xff")
                assert link.recv(1) == b"\xff"
                time.sleep(2.0)  # twice what nginx allows: that nothing happens has no event
                link.sendall(b"\xff")
                assert link.recv(1) == b"\xff"
