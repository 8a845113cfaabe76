"""NetDist's `fetching` against a hostile server, its `decoding` against hostile files; without a
ComfyUI.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib
import io
import itertools
import json
import struct
import sys
import tracemalloc
import types
import warnings
import zipfile
import zlib
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy
from PIL import Image

from zbus.errors import FetchError, InvalidAddress, Unreachable, ZBusError

FOLDER = Path(__file__).resolve().parent.parent / "comfy_nodes"
NAME = "zbus_fetching_under_test"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
MIB = 1 << 20


def _load():
    """The pure modules, in a package whose own __init__ (which needs ComfyUI) is not run."""
    package = types.ModuleType(NAME)
    package.__path__ = [str(FOLDER)]
    sys.modules[NAME] = package
    names = ("fetching", "decoding", "nearness", "resolving", "urls")
    return [importlib.import_module(f"{NAME}.netdist.{name}") for name in names]


fetching, decoding, near, resolving, urls = _load()
Undecodable = decoding.Undecodable
BRIEF = fetching.Times(connect=2.0, silence=0.3, whole=0.8)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- a server that does what it is told


class Server:
    """`answers`: path -> bytes to write, or an async function of (request, writer)."""

    def __init__(self, answers, host="127.0.0.1"):
        self.answers, self.requests, self.host = answers, [], host

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks = set()
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, path, userinfo=""):
        return f"http://{userinfo}{self.host}:{self.port}{path}"

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, target, _ = lines[0].split(" ")
            headers = dict(line.split(": ", 1) for line in lines[1:] if line)
            body = await reader.readexactly(int(headers.get("Content-Length", 0)))
            request = SimpleNamespace(method=method, target=target, headers=headers, body=body)
            self.requests.append(request)
            answer = self.answers[target.partition("?")[0]]
            if callable(answer):
                await answer(request, writer)
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()


def answer(body=b"", status="200 OK", **headers):
    headers = {"Content_Length": len(body), "Connection": "close", **headers}
    lines = [f"{k.replace('_', '-')}: {v}" for k, v in headers.items() if v is not None]
    return f"HTTP/1.1 {status}\r\n{chr(10).join(lines)}\r\n\r\n".encode() + body


def redirect(where, status="302 Found"):
    return answer(status=status, Location=where)


def fetch(path, answers, **more):
    """What `get` makes of it: (bytes or the error, the server)."""

    async def go():
        async with Server(answers) as server:
            filled = {p: a(server) if isinstance(a, Lazily) else a for p, a in answers.items()}
            server.answers = filled
            try:
                got = await fetching.get(server.url(path, more.pop("userinfo", "")), **more)
            except ZBusError as error:
                got = error
            return got, server

    return asyncio.run(go())


class Lazily:
    """An answer that needs the server's port."""

    def __init__(self, make):
        self._make = make

    def __call__(self, server):
        return self._make(server)


def fails(kind, words, path, answers, **more):
    got, server = fetch(path, answers, **more)
    assert type(got) is kind, got
    assert words in str(got)
    assert got.__suppress_context__ or got.__context__ is None  # aiohttp's texts hold the URL
    return server


# --- what works


def test_it_gets_the_body_and_asks_for_it_unpacked():
    got, server = fetch("/a", {"/a": answer(b"\0body")})
    assert got == b"\0body"
    assert server.requests[0].headers["Accept-Encoding"] == "identity"
    assert server.requests[0].headers["User-Agent"].startswith("comfyui-bus/")


def test_without_content_length_the_end_of_the_connection_is_the_end():
    got, _ = fetch("/a", {"/a": answer(b"x" * 300_000, Content_Length=None)})
    assert got == b"x" * 300_000


@pytest.mark.parametrize("packing, pack", [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_what_is_packed_unasked_is_unpacked(packing, pack):
    data = bytes(range(256)) * 4096 + b"\0" * 3_000_001
    got, _ = fetch("/a", {"/a": answer(pack(data), Content_Encoding=packing)})
    assert got == data


def test_gzip_in_several_members():
    packed = gzip.compress(b"one ") + gzip.compress(b"two")
    got, _ = fetch("/a", {"/a": answer(packed, Content_Encoding="gzip")})
    assert got == b"one two"


def test_the_limit_itself_is_allowed():
    got, _ = fetch("/a", {"/a": answer(b"x" * 1000)}, limit=1000)
    assert len(got) == 1000


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 T", "308 P"])
def test_redirects_are_followed(status):
    got, server = fetch("/a", {"/a": redirect("b?x=1", status), "/b": answer(b"here")})
    assert got == b"here"
    assert [r.target for r in server.requests] == ["/a", "/b?x=1"]


def test_five_redirects_are_followed():
    answers = {f"/{i}": redirect(f"/{i + 1}") for i in range(5)}
    got, _ = fetch("/0", answers | {"/5": answer(b"end")})
    assert got == b"end"


def test_user_and_password_go_to_their_own_server_only():
    async def go():
        async with Server({"/x": answer(b"there")}) as other:
            answers = {"/a": redirect("/b"), "/b": redirect(other.url("/x"))}
            async with Server(answers) as server:
                got = await fetching.get(server.url("/a", "me:secret@"))
                return got, server.requests, other.requests

    got, first, second = asyncio.run(go())
    assert got == b"there"
    expected = "Basic " + b64encode(b"me:secret").decode()
    assert [r.headers.get("Authorization") for r in first] == [expected] * 2
    assert [r.headers.get("Authorization") for r in second] == [None]


def test_post_json_and_its_redirects():
    async def go(status):
        answers = {"/a": redirect("/b", status), "/b": answer(b"never mind")}
        async with Server(answers) as server:
            await fetching.post_json(server.url("/a"), {"a.png": "x" * 2_000_000})
            return [(r.method, r.headers.get("Content-Type"), r.body) for r in server.requests]

    body = json.dumps({"a.png": "x" * 2_000_000}).encode()
    posted = ("POST", "application/json", body)
    assert asyncio.run(go("307 Temporary")) == [posted, posted]
    assert asyncio.run(go("303 See Other")) == [posted, ("GET", None, b"")]


def test_proxies_of_the_environment_but_not_for_the_loopback(monkeypatch):
    async def go():
        there = "http://pictures.invalid/a.png"
        async with Server({there: answer(b"through"), "/a": answer(b"direct")}) as server:
            monkeypatch.setenv("http_proxy", server.url(""))
            got = await fetching.get(there), await fetching.get(server.url("/a"))
            return got, [r.target for r in server.requests]

    assert asyncio.run(go()) == ((b"through", b"direct"), ["http://pictures.invalid/a.png", "/a"])


def test_no_password_of_netrc_goes_anywhere(monkeypatch, tmp_path):
    """Neither to a server, nor to a proxy; nor where a redirect leads."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login alice password netrc-secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setattr(fetching.webproxy, "is_loopback_host", lambda _: False)

    async def go():
        there = "http://pictures.invalid/a.png"
        answers = {"/a": redirect("/b"), "/b": answer(b"direct"), there: answer(b"through")}
        async with Server(answers) as server:
            got = [await fetching.get(server.url("/a"))]
            monkeypatch.setenv("http_proxy", server.url(""))
            got.append(await fetching.get(there))
            monkeypatch.setenv("http_proxy", server.url("", "bob:own@"))
            got.append(await fetching.get(there))
            return got, server.requests

    got, asked = asyncio.run(go())
    assert got == [b"direct", b"through", b"through"]
    assert [r.headers.get("Authorization") for r in asked] == [None] * 4
    own = "Basic " + b64encode(b"bob:own").decode()
    assert [r.headers.get("Proxy-Authorization") for r in asked] == [None] * 3 + [own]


def test_a_proxy_that_cannot_be_asked_is_not_passed_by(monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://me:secret@127.0.0.1:1080")
    with pytest.raises(Unreachable, match=r"not one of http, but of 'socks5'.*no_proxy") as caught:
        asyncio.run(fetching.get("http://pictures.invalid/a.png"))
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("http_proxy", "proxy.invalid:3128")
    assert fetching.webproxy.by_environment("http", "a.invalid", 80) == "http://proxy.invalid:3128"


@pytest.mark.parametrize(
    "no_proxy, spared, others",
    [
        ("*", ["http://a.invalid/", "http://[2001:db8::1]/"], []),
        ("b.invalid, *", ["http://a.invalid/"], []),
        ("a.invalid", ["http://a.invalid/", "http://x.A.invalid./"], ["http://xa.invalid/"]),
        (".a.invalid", ["http://a.invalid/", "http://x.a.invalid/"], ["http://xa.invalid/"]),
        (
            "*.a.invalid b.invalid",
            ["http://x.a.invalid/", "http://b.invalid"],
            ["http://c.invalid"],
        ),
        ("a.invalid:81", ["http://a.invalid:81/", "http://x.a.invalid:81/"], ["http://a.invalid/"]),
        ("a.invalid:80", ["http://a.invalid/"], ["https://a.invalid/", "http://a.invalid:8080/"]),
        ("10.0.0.0/8", ["http://10.1.2.3:8188/"], ["http://11.0.0.1/", "http://a10.0.0.0/"]),
        ("10.1.2.3/8", ["http://10.9.9.9/"], ["http://11.0.0.1/"]),
        ("192.168.1.5", ["http://192.168.1.5:8188/"], ["http://192.168.1.50/", "http://5/"]),
        ("192.168.1.5:81", ["http://192.168.1.5:81/"], ["http://192.168.1.5/"]),
        ("2001:db8::1", ["http://[2001:db8::1]:8188/"], ["http://[2001:db8::2]/"]),
        ("2001:DB8:0::1", ["http://[2001:db8::1]/"], ["http://[2001:db8::]/"]),
        ("[2001:db8::1]", ["http://[2001:db8::1]/"], ["http://[2001:db8::2]/"]),
        ("[2001:db8::1]:81", ["http://[2001:db8::1]:81/"], ["http://[2001:db8::1]/"]),
        ("2001:db8::/32", ["http://[2001:db8::1]/"], ["http://[2001:db9::1]/", "http://32.0.0.1/"]),
        ("[fd00::]/8", ["http://[fd12::1]/"], ["http://[2001:db8::1]/"]),
        ("a.invalid:x,:80,.,//,10.0.0.0/99,[", [], ["http://b.invalid/", "http://10.0.0.0/"]),
        ("", [], ["http://a.invalid/"]),
    ],
)
def test_no_proxy_is_read_as_people_write_it(monkeypatch, no_proxy, spared, others):
    """Names, ports, addresses and networks: curl, requests and Go know a part of these each."""
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", no_proxy)

    def is_spared(written):
        url = urls.web_address(written)
        return fetching.webproxy.by_environment(url.scheme, url.host, url.port) is None

    assert [url for url in [*spared, *others] if is_spared(url)] == spared


@pytest.mark.parametrize(
    "written",
    [
        *("http://me:secret@[proxy", "http://me:secret@proxy.invalid:312800", "http://"),
        *(f"http://me:secret@{'a' * 64}.invalid:3128", "me:secret//x://@proxy.invalid", "//p:1"),
    ],
)
def test_what_is_no_proxys_address_is_told_as_such_and_without_the_login(monkeypatch, written):
    monkeypatch.setenv("http_proxy", written)
    with pytest.raises(Unreachable, match=r"no address of one.*http://HOST:PORT") as caught:
        fetching.webproxy.by_environment("http", "pictures.invalid", 80)
    assert "secret" not in str(caught.value)


# --- who may send us where


@pytest.mark.parametrize(
    "address, expected",
    [
        *((loopback, "LOOPBACK") for loopback in ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0")),
        *((loopback, "LOOPBACK") for loopback in ("::", "::ffff:127.0.0.1", "2002:7f00:1::")),
        *((link, "LINK") for link in ("169.254.169.254", "fe80::1", "fe80::1%eth0")),
        *((own, "PRIVATE") for own in ("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1")),
        *((own, "PRIVATE") for own in ("fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1")),
        *((out, "OUTSIDE") for out in ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808")),
        ("198.18.0.7", "OUTSIDE"),  # of a fake-IP tunnel
    ],
)
def test_how_near_an_address_is(address, expected):
    assert near.nearness(address) is near.Nearness[expected]


@pytest.fixture
def places(monkeypatch):
    """Addresses of this machine that pass for others, further away."""
    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8 without asking")
    table = {"127.0.0.2": near.Nearness.OUTSIDE, "127.0.0.3": near.Nearness.PRIVATE}
    real = near.nearness
    monkeypatch.setattr(resolving, "nearness", lambda at: table.get(at) or table.get(at, real(at)))


@pytest.mark.parametrize(
    "source, target, name, follows",
    [
        ("127.0.0.2", "127.0.0.1", "127.0.0.1", False),
        ("127.0.0.2", "127.0.0.1", "localhost", False),
        ("127.0.0.2", "127.0.0.1", "127.1", False),
        ("127.0.0.2", "127.0.0.1", "2130706433", False),
        ("127.0.0.2", "127.0.0.1", "0x7f.1", False),
        ("127.0.0.2", "127.0.0.1", "0.0.0.0", False),
        ("127.0.0.2", "127.0.0.3", "127.0.0.3", False),
        ("127.0.0.3", "127.0.0.1", "127.0.0.1", False),
        ("127.0.0.3", "127.0.0.2", "127.0.0.2", True),
        ("127.0.0.2", "127.0.0.2", "127.0.0.2", True),
        ("127.0.0.1", "127.0.0.2", "127.0.0.2", True),
    ],
)
@pytest.mark.parametrize("status", ["302 Found", "307 Temporary"])
def test_no_redirect_leads_to_what_is_nearer(places, source, target, name, follows, status):
    """Whichever way its address is written; and so no body is posted there either."""

    async def go():
        async with Server({"/b": answer(b"near")}, target) as near_one:
            where = f"http://{name}:{near_one.port}/b"
            async with Server({"/a": redirect(where, status)}, source) as server:
                for work in (fetching.get(server.url("/a")), post(server.url("/a"))):
                    try:
                        await work
                    except FetchError as error:
                        yield str(error)
            yield [r.method for r in near_one.requests]

    async def post(url):
        await fetching.post_json(url, {"a.png": "..."})

    async def collect():
        return [one async for one in go()]

    *errors, asked = asyncio.run(collect())
    if follows:
        assert (errors, asked) == ([], ["GET", "POST" if status[:3] == "307" else "GET"])
    else:
        assert asked == [] and len(errors) == 2
        # Some versions of aiohttp take no odd spellings in the first place.
        assert all("a redirect from elsewhere leads to" in error for error in errors)


def test_once_outside_no_later_redirect_comes_back(places):
    """Not by way of a third one, either."""

    async def go():
        async with Server({"/c": answer(b"near")}) as home:
            async with Server({"/b": redirect(home.url("/c"))}, "127.0.0.2") as outside:
                home.answers["/a"] = redirect(outside.url("/b"))
                with pytest.raises(FetchError, match="this computer itself.*give the URL"):
                    await fetching.get(home.url("/a"))
            return [r.target for r in home.requests]

    assert asyncio.run(go()) == ["/a"]


def test_a_name_that_a_proxy_asks_for_is_looked_at_too(places, monkeypatch):
    import socket

    real = socket.getaddrinfo
    table = {"outside.invalid": "127.0.0.2", "inside.invalid": "127.0.0.3"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more: real(table.get(host, host), *more)
    )

    async def go(first):
        async with Server({}) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url(""))
            proxy.answers[first] = redirect("http://inside.invalid/b")
            proxy.answers["http://inside.invalid/b"] = answer(b"inside")
            return await fetching.get(first)

    assert asyncio.run(go("http://inside.invalid/a")) == b"inside"
    for first in ("http://outside.invalid/a", "http://unknown.invalid/a"):
        with pytest.raises(FetchError, match="leads to an address of a private network"):
            asyncio.run(go(first))


def test_a_url_goes_out_as_it_was_written():
    """Signed ones would not hold otherwise; what no URL can hold is quoted."""
    target = "/a%2Fb;c?sig=x%2Fy%3D%2B&e=/=+%7E"
    got, server = fetch(target, {"/a%2Fb;c": answer(b"")})
    assert [r.target for r in server.requests] == [target]
    got, server = fetch("/a", {"/a": redirect(target), "/a%2Fb;c": answer(b"")})
    assert [r.target for r in server.requests] == ["/a", target]
    got, server = fetch("/ü x", {"/%C3%BC%20x": answer(b"quoted")})
    assert got == b"quoted"


# --- what fails


@pytest.mark.parametrize(
    "url",
    [
        *("", "  ", "example.com/a.png", "ftp://h/a", "file:///etc/passwd", "http:///a", "//h/a"),
        *("http://h:99999/", "http://h:x/", "http://[::1/", "data:image/png;base64,AAAA"),
    ],
)
def test_bad_urls(url):
    with pytest.raises(InvalidAddress, match="http"):
        asyncio.run(fetching.get(url))


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://me:secret@h/a?token=secret", "http://me:secret@h:99999/a", "me:secret@h/a"),
        *("http://me:se/secret@h/", "http://me:secret@[::1/#secret", "//u:secret@h?secret"),
    ],
)
def test_bad_urls_keep_their_secrets(url):
    with pytest.raises(InvalidAddress) as caught:
        asyncio.run(fetching.get(url))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("where", ["/a", "/b"])
def test_redirects_without_end(where):
    answers = {"/a": redirect(where), "/b": redirect("/a")}
    server = fails(FetchError, "redirects more than 5 times", "/a", answers)
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "where",
    [
        *("file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://x/", "javascript:alert(1)"),
        *("http://h:99999/", "data:,x"),
    ],
)
def test_redirects_to_elsewhere(where):
    server = fails(FetchError, "it redirects to", "/a", {"/a": redirect(where)})
    assert len(server.requests) == 1


def test_a_redirect_to_a_port_where_nobody_is(free_port):
    where = f"http://127.0.0.1:{free_port}/x?key=secret"
    got, _ = fetch("/a", {"/a": redirect(where)})
    assert type(got) is Unreachable
    assert f"127.0.0.1:{free_port}/x: no connection" in str(got)
    assert "secret" not in str(got)


def test_too_large_by_its_content_length():
    async def endless(_, writer):
        writer.write(answer(Content_Length=10**15))
        await asyncio.Event().wait()

    fails(FetchError, "more than the 1.0 MiB that are taken", "/a", {"/a": endless}, limit=MIB)


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_without_content_length(chunked):
    async def endless(_, writer):
        coding = "chunked" if chunked else None
        writer.write(answer(Content_Length=None, Transfer_Encoding=coding))
        while True:
            writer.write(b"10000\r\n" * chunked + b"x" * 65536 + b"\r\n" * chunked)
            await writer.drain()

    said = "it is more than the 1.0 MiB that are taken"
    fails(FetchError, said, "/a", {"/a": endless}, limit=MIB)


def test_a_gzip_bomb_is_not_unpacked():
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(squeeze.compress(bytes(MIB)) for _ in range(400)) + squeeze.flush()
    assert len(bomb) < MIB
    tracemalloc.start()
    try:
        answers = {"/a": answer(bomb, Content_Encoding="gzip")}
        fails(FetchError, "more than the 4.0 MiB", "/a", answers, limit=4 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 30 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body, packing, words",
    [
        (gzip.compress(b"x" * 9999, mtime=0)[:-12], "gzip", "ends too early"),
        (b"no gzip at all", "gzip", "damaged"),
        (b"?", "br", "packed as 'br'"),
        (b"?", "gzip, gzip", "packed as"),
    ],
)
def test_packed_answers_that_cannot_be_used(body, packing, words):
    fails(FetchError, words, "/a", {"/a": answer(body, Content_Encoding=packing)})


def test_an_answer_that_breaks_off():
    fails(FetchError, "broke off", "/a", {"/a": answer(b"half", Content_Length=8)})


@pytest.mark.parametrize(
    "data, kind, words",
    [
        (b"", Unreachable, "closed without an answer"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", FetchError, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n", FetchError, "not HTTP"),
    ],
)
def test_what_is_no_answer(data, kind, words):
    fails(kind, words, "/a", {"/a": data})


def test_a_server_that_says_nothing():
    async def deaf(_, writer):
        await asyncio.Event().wait()

    fails(Unreachable, "silent for 0.3 s", "/a", {"/a": deaf}, times=BRIEF)


@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\nX-Slow: ", answer(Content_Length=10**6)])
def test_drops_that_never_end(begun):
    """Each byte comes in time, and all of it never: in the header, and in the body."""

    async def drip(_, writer):
        for piece in itertools.chain([begun], itertools.repeat(b"x")):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)  # what the test is about

    fails(Unreachable, "not done within 0.8 s", "/a", {"/a": drip}, times=BRIEF)


def test_a_body_that_stops():
    async def stops(_, writer):
        writer.write(answer(b"begun", Content_Length=10))
        await asyncio.Event().wait()

    fails(Unreachable, "silent for 0.3 s", "/a", {"/a": stops}, times=BRIEF)


def test_no_connection_in_time():
    """A listener whose queue is full: the system drops what more comes."""

    async def go():
        import socket

        with socket.socket() as listener, contextlib.ExitStack() as waiting:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(4):
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(listener.getsockname())
            times = fetching.Times(connect=0.3, silence=0.5, whole=5)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            await fetching.get(url, times=times)

    # Where the system takes the connection all the same, the silence is what ends it.
    with pytest.raises(Unreachable, match=r"no connection within 0.3 s|silent for 0.5 s"):
        asyncio.run(go())


def test_refused(addr):
    with pytest.raises(Unreachable, match="no connection .*Check the URL") as caught:
        asyncio.run(fetching.get(f"http://{addr}/a", what="loading the picture"))
    assert str(caught.value).startswith(f"http://{addr}/a, loading the picture: ")


def test_a_name_that_is_not_known():
    with pytest.raises(Unreachable, match=r"the name nobody\.invalid is not known"):
        asyncio.run(fetching.get("http://nobody.invalid/"))


def test_an_unencrypted_server_behind_https():
    async def go():
        async with Server({}) as server:
            await fetching.get(server.url("/").replace("http:", "https:"), times=BRIEF)

    with pytest.raises(Unreachable):
        asyncio.run(go())


@pytest.mark.parametrize(
    "made, said",
    [
        (answer(b"\n  no such picture\nmore", "404 Not Found"), "404 Not Found: no such picture"),
        (answer(b"x" * 10**6, "500 No"), "500 No: " + "x" * 199 + "…"),
        (answer(b"bell\x07\x1b[2J", "403 Forbidden"), "403 Forbidden: bell[2J"),
        (answer(b"<!DOCTYPE html>", "404 Gone", Content_Type="text/html"), "answered 404 Gone"),
        (answer(gzip.compress(b"packed"), "410 X", Content_Encoding="gzip"), "410 X: packed"),
        (answer(b"", "304 Not Modified"), "answered 304 Not Modified"),
        (answer(b"", "300 Choices"), "answered 300 Choices"),
    ],
)
def test_a_failure_and_what_the_server_says_of_it(made, said):
    got, _ = fetch("/a", {"/a": made})
    assert type(got) is FetchError
    assert str(got).endswith(said)


def test_post_json_tells_a_failure():
    async def go():
        async with Server({"/a": answer(b"disk full", "507 Insufficient Storage")}) as server:
            await fetching.post_json(server.url("/a"), {}, what="posting the pictures")

    with pytest.raises(FetchError, match="posting the pictures: .*507 .*: disk full"):
        asyncio.run(go())


def test_texts_show_no_secret_of_the_url():
    """Not ours, and not the server's own, decoded or not."""

    async def echo(request, writer):
        said = f"no {request.target} for me, s3:cr3t, topsecret or top%2Fsecret / top/secret"
        writer.write(answer(said.encode(), "404 Not Found"))

    path = "/a.png?token=topsecret&key=top%2Fsecret&n=1#frag"
    got, server = fetch(path, {"/a.png": echo}, userinfo="admin:s3:cr3t@")
    assert "Authorization" in server.requests[0].headers
    text = str(got)
    assert text.startswith(f"http://127.0.0.1:{server.port}/a.png: the server answered 404")
    for secret in ("topsecret", "top%2F", "top/secret", "admin", "cr3t"):
        assert secret not in text, text


def test_a_cancelled_wait_ends_at_once():
    asked = asyncio.Event()

    async def deaf(_, writer):
        asked.set()
        await asyncio.Event().wait()

    async def go():
        async with Server({"/a": deaf}) as server:
            task = asyncio.create_task(fetching.get(server.url("/a")))
            await asked.wait()
            task.cancel()
            begun = asyncio.get_running_loop().time()
            with pytest.raises(asyncio.CancelledError):
                await task
            return asyncio.get_running_loop().time() - begun

    assert asyncio.run(go()) < 0.1


def test_a_slow_name_server_holds_up_nobody(monkeypatch):
    """The lookup goes on in its thread, and the loop ends without it."""
    import socket
    import threading
    import time

    release = threading.Event()

    def slow(*_, **__):
        release.wait(20)
        raise socket.gaierror("late")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="no connection within 0.2 s"):
        asyncio.run(fetching.get("http://slow.invalid/", times=fetching.Times(connect=0.2)))
    assert time.monotonic() - begun < 2
    release.set()


# --- pictures


def packed(image, kind, **more):
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


GRADIENT = np.arange(20 * 30 * 4, dtype=np.uint32).reshape(20, 30, 4).astype(np.uint8)
RGBA = Image.fromarray(GRADIENT)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_picture_with_alpha(kind):
    more = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image, mask = decoding.picture(packed(RGBA, kind, **more))
    expected = torch.from_numpy(GRADIENT.astype(np.float32) / 255.0)
    assert image.dtype == mask.dtype == torch.float32
    assert torch.equal(image, expected[None, ..., :3])
    assert torch.equal(mask, 1.0 - expected[None, ..., 3])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_picture_without_alpha(kind):
    image, mask = decoding.picture(packed(RGBA.convert("RGB"), kind))
    assert image.shape == (1, 20, 30, 3)
    assert image.min() >= 0 and image.max() <= 1
    assert torch.equal(mask, torch.zeros(1, 64, 64))


def test_a_palette_with_a_transparent_colour():
    paletted = Image.fromarray((GRADIENT[..., 0] % 4).astype(np.uint8), "P")
    paletted.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image, mask = decoding.picture(packed(paletted, "PNG", transparency=2))
    see_through = torch.from_numpy(GRADIENT[..., 0] % 4 == 2)
    assert torch.equal(mask[0], see_through.float())
    assert torch.equal(image[0, 0, 0], torch.tensor([10, 20, 30], dtype=torch.float32) / 255.0)


def test_it_is_turned_as_the_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image, _ = decoding.picture(packed(RGBA.convert("RGB"), "PNG", exif=exif))
    assert image.shape == (1, 30, 20, 3)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        data = packed(frames[0], kind, save_all=True, append_images=frames[1:])
        image, _ = decoding.picture(data)
        assert image.shape == (1, 8, 8, 3)
        assert image[0, 0, 0].tolist() == pytest.approx([1, 0, 0], abs=0.02), kind


def test_grey_of_16_bits_is_not_clipped():
    grey = Image.fromarray(np.array([[0, 0x1000, 0x4000, 0x8000, 0xFFFF]], np.uint16))
    for made, kind in ((grey, "PNG"), (grey.convert("I"), "TIFF")):
        image, _ = decoding.picture(packed(made, kind))
        assert image[0, 0, :, 0].tolist() == pytest.approx([0, 1 / 16, 1 / 4, 1 / 2, 1], abs=1e-4)
        assert torch.equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_the_format_of_a_picture(kind):
    assert decoding.picture_format(packed(RGBA.convert("RGB"), kind)) == kind
    with pytest.raises(Undecodable, match="30 x 20 pixels"):
        decoding.picture_format(packed(RGBA.convert("RGB"), kind), pixels=599)
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = packed(Image.fromarray(noise), kind)
    with pytest.raises(Undecodable):
        decoding.picture_format(whole[: len(whole) // 2])


def test_the_frames_of_an_animation_count_together():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        data = packed(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decoding.picture_format(data, pixels=192) == kind
        with pytest.raises(Undecodable, match="3 frames, which together are more"):
            decoding.picture_format(data, pixels=191)


def test_pages_of_different_sizes_count_together():
    pages = [Image.new("RGB", (8, 8)), Image.new("RGB", (100, 100))]
    data = packed(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decoding.picture_format(data, pixels=10_064) == "TIFF"
    with pytest.raises(Undecodable, match="2 frames, which together"):
        decoding.picture_format(data, pixels=10_063)


def png_of(width, height, *chunks):
    """A PNG that declares a size, with whatever chunks after it."""

    def chunk(name, data):
        whole = name + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*c) for c in chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [13_378, 60_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_before_it_takes_memory(side):
    bomb = png_of(side, side, (b"IDAT", zlib.compress(bytes(MIB))))
    tracemalloc.start()
    try:
        with warnings.catch_warnings(), pytest.raises(Undecodable, match=r"pixels"):
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            decoding.picture(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_our_own_limit_says_the_size(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some packs do
    with pytest.raises(Undecodable, match="60000 x 60000 pixels, more than the 179 million"):
        decoding.picture(png_of(60_000, 60_000))
    with pytest.raises(Undecodable, match="30 x 20 pixels"):
        decoding.picture(packed(RGBA, "PNG"), pixels=599)
    assert decoding.picture(packed(RGBA, "PNG"), pixels=600)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_picture_that_is_cut_short(kind):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = packed(Image.fromarray(noise), kind)
    for part in (0.05, 0.5, 0.9):
        with pytest.raises(Undecodable):
            decoding.picture(whole[: int(len(whole) * part)])


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"<html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
        packed(RGBA.convert("RGB"), "PPM"),
        packed(RGBA.convert("RGB"), "PDF"),
    ],
)
def test_what_is_no_common_picture(data):
    with pytest.raises(Undecodable, match="no picture of a known format"):
        decoding.picture(data)


def test_png_of_an_image_and_back():
    image = torch.from_numpy(GRADIENT.astype(np.float32) / 255.0)
    texts = {"prompt": json.dumps({"1": float("nan")}), "workflow": "{}"}
    data = decoding.png(image, texts)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.text == texts
        assert np.abs(np.asarray(opened).astype(int) - GRADIENT).max() <= 1  # cut, as SaveImage
    grey = decoding.png(torch.tensor([[[-3.0], [9.0], [0.5]]]), {})
    assert np.asarray(Image.open(io.BytesIO(grey))).tolist() == [[0, 255, 127]]
    with pytest.raises(Undecodable, match="5 channels"):
        decoding.png(torch.zeros(2, 2, 5), {})


# --- latents

SAMPLES = torch.rand((2, 4, 8, 6), generator=torch.Generator().manual_seed(1))


def npy_of(array, **more):
    buffer = io.BytesIO()
    np.save(buffer, array, **more)
    return buffer.getvalue()


def npz_of(save=np.savez, **arrays):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def header_of(shape, descr="<f4", numbers=b""):
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + numbers


def test_comfyuis_latents_of_both_ages():
    old = {"latent_tensor": SAMPLES}
    new = {"latent_tensor": SAMPLES.half(), "latent_format_version_0": torch.tensor([])}
    got = decoding.latent(safetensors.torch.save(old))
    assert torch.equal(got, SAMPLES * (1.0 / 0.18215))
    got = decoding.latent(safetensors.torch.save(new))
    assert got.dtype == torch.float32
    assert torch.equal(got, SAMPLES.half().float())


def test_what_lies_beside_a_latent_is_not_read():
    """safetensors 0.8 cannot load the types of block-scaled weights."""
    scales = torch.ones(4).to(torch.float8_e8m0fnu)
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int16):
        told = {"latent_tensor": SAMPLES.to(dtype), "scales": scales}
        told["latent_format_version_0"] = torch.tensor([])
        got = decoding.latent(safetensors.torch.save(told))
        assert torch.equal(got, SAMPLES.to(dtype).float())


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "u1", ">i2", "<u4", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_plain_number(dtype, order):
    array = np.asarray(np.arange(2 * 4 * 8 * 6).reshape(2, 4, 8, 6) % 100, dtype, order=order)
    for data in (npy_of(array), npz_of(latents=array), npz_of(np.savez_compressed, a=array)):
        got = decoding.latent(data)
        assert got.dtype == torch.float32
        assert torch.equal(got, torch.from_numpy(array.astype(np.float32)))
        assert got.is_contiguous()


def test_three_dimensions_become_four():
    assert torch.equal(decoding.latent(npy_of(SAMPLES[0].numpy())), SAMPLES[:1])
    assert decoding.latent(npy_of(np.zeros((1, 16, 3, 8, 8)))).shape == (1, 16, 3, 8, 8)


def test_which_array_of_an_archive():
    small, first, second = np.zeros((3, 3)), np.ones((4, 8, 6)), np.full((4, 8, 6), 2.0)
    names = np.array(["a", "b"])
    data = npz_of(original_size=small, names=names, first=first, second=second)
    assert torch.all(decoding.latent(data) == 1)
    assert torch.all(decoding.latent(npz_of(a=first, latents=second)) == 2)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "neither a latent"),
        (b"<html>not found</html>", "neither a latent"),
        (struct.pack("<Q", 1 << 60) + b"{}", "neither a latent"),
        (safetensors.torch.save({"weight": torch.zeros(4, 4)}), "it has weight"),
        (safetensors.torch.save({"latent_tensor": torch.zeros(1, 2, 3).bool()}), "BOOL is no type"),
        (safetensors.torch.save({"latent_tensor": torch.zeros(0, 4, 4)}), "no latent"),
        (safetensors.torch.save({"latent_tensor": torch.zeros(4, 4)}), "shape [4, 4] is no"),
        (npy_of(np.zeros((4, 4))), "shape [4, 4] is no latent"),
        (npy_of(np.zeros((0, 4, 4, 4))), "no latent"),
        (npy_of(np.array([[{}]]), allow_pickle=True), "holds object"),
        (npy_of(np.array([[["text"]]])), "not plain numbers"),
        (npy_of(np.zeros((1, 2, 3), complex)), "not plain numbers"),
        (npy_of(np.zeros((1, 2, 3), bool)), "not plain numbers"),
        (npy_of(np.zeros((1, 2, 3), [("a", "f4")])), "not plain numbers"),
        (npy_of(np.zeros((1, 2, 3)))[:-1], "it declares 48 B of numbers and has 47 B"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "header cannot be read"),
        (b"\x93NUMPY\x09\x00", "header cannot be read"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "header cannot be read"),
        (header_of((-1, 4, 4)), "no latent"),
        (header_of((1,) * 60), "no latent"),
        (npz_of(a=np.zeros((4, 4))), "it has a.npy"),
        (npz_of(latents=np.zeros((4, 4))), "shape [4, 4] is no latent"),
        (npz_of(latents=np.array([[[{}]]])), "holds object"),
        (npz_of(latents=np.zeros((1, 2, 3)))[:-30], "damaged"),
        (b"PK\x05\x06" + bytes(18), "it has no array"),
    ],
)
def test_latents_that_cannot_be_used(data, words):
    with pytest.raises(Undecodable) as caught:
        decoding.latent(data)
    assert words in str(caught.value)


@pytest.mark.parametrize("shape", [(10, 10**6, 10**6), (2**40, 2**40, 2**40)])
def test_an_array_that_declares_terabytes(shape):
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable, match="more than the 1.00 GiB"):
            decoding.latent(header_of(shape, numbers=bytes(1000)))
        with pytest.raises(Undecodable, match="has 1000 B"):
            decoding.latent(header_of((4, 512, 512), numbers=bytes(1000)))
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def bomb_of(method=zipfile.ZIP_DEFLATED, declared=None):
    """An archive of under 1 MiB that unpacks to 100 MiB, and may declare less."""
    buffer = io.BytesIO()
    whole = header_of((1, 25, 1 << 20), numbers=bytes(100 * MIB))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("latents.npy", whole)
    data = bytearray(buffer.getvalue())
    if declared is not None:
        at = data.rindex(b"PK\x01\x02")
        data[at + 24 : at + 28] = struct.pack("<I", declared)
    assert len(data) < MIB
    return bytes(data)


@pytest.mark.parametrize(
    "bomb, words",
    [
        (bomb_of(), "unpacks to 100.0 MiB, more than the 10.0 MiB"),
        (bomb_of(declared=1000), "unpacks to 100.0 MiB|damaged"),
        (bomb_of(zipfile.ZIP_BZIP2, 1000), "packed in a way"),
        (bomb_of(zipfile.ZIP_LZMA, 1000), "packed in a way"),
    ],
    ids=["deflate", "a liar", "bzip2", "lzma"],
)
def test_an_archive_that_is_a_bomb(bomb, words):
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable, match=words):
            decoding.latent(bomb, most=10 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


def test_numbers_that_grow_are_counted_as_they_will_be():
    data = npy_of(np.zeros((4, 1024, 1024), np.uint8))
    with pytest.raises(Undecodable, match=r"unpacks to 16.0 MiB"):
        decoding.latent(data, most=10 * MIB)


WHOLE = [
    packed(RGBA, "PNG"),
    packed(RGBA.convert("RGB"), "JPEG"),
    packed(RGBA, "WEBP"),
    packed(RGBA.convert("P"), "GIF"),
    packed(RGBA, "TIFF"),
    npy_of(SAMPLES.numpy()),
    npz_of(np.savez_compressed, latents=SAMPLES.numpy()),
    safetensors.torch.save({"latent_tensor": SAMPLES}),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255))))
@pytest.mark.filterwarnings("ignore")
def test_whatever_comes_is_decoded_or_told(whole, changes):
    data = bytearray(whole)
    for at, value in changes:
        data[at % len(data)] = value
    for decode in (decoding.picture, decoding.latent):
        with contextlib.suppress(Undecodable):
            decode(bytes(data))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int32])
def test_npy_file_keeps_what_numpy_knows(dtype):
    got = np.load(io.BytesIO(decoding.npy_file(SAMPLES.to(dtype))), allow_pickle=False)
    assert torch.equal(torch.from_numpy(got), SAMPLES.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_npy_file_widens_what_numpy_does_not_know(dtype):
    got = np.load(io.BytesIO(decoding.npy_file(SAMPLES.to(dtype))), allow_pickle=False)
    assert torch.equal(torch.from_numpy(got), SAMPLES.to(dtype).float())
