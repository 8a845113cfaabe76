"""What callers give is checked where they give it, and the error names the argument."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest

from zbus import Channel, Peer, Remote, Request, Run, Settings, given
from zbus.errors import (
    InputError,
    InvalidAddress,
    InvalidOrder,
    NotTransferable,
    RemoteProtocolError,
    UnknownCodec,
)
from zbus.job import Taken
from zbus.operation import rate_text

NO_TIMES = [
    math.nan,
    math.inf,
    -math.inf,
    -0.001,
    1e300,
    1 << 4000,
    "5",
    True,
    b"",
    [1.0],
    object(),
]
NO_NAMES = [None, 5, b"x", "", "   ", "x" * 81, "a\nb", "a\x1b[31m", "a\u202eb", "\ud800", ["main"]]


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer("desk-8188") as made:
        yield made


@pytest.fixture
def channel(peer: Peer) -> Iterator[Channel]:
    with peer.listen("127.0.0.1:0") as made:
        yield made


def refused(call: Callable[[], object], *words: str, kind: type[InputError] = InputError) -> None:
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [*NO_TIMES, None])
@pytest.mark.parametrize("name", ["reconnect_wait", "linger", "nobody_wait"])
def test_a_time_of_the_settings_is_finite(name: str, value: Any) -> None:
    refused(lambda: Settings(**{name: value}), name, "from 0 to 2592000")


@pytest.mark.parametrize("value", [0, -1, 0.5, 1e9, math.nan, True, "1", 1 << 63, 1 << 4000])
def test_the_memory_of_the_settings_is_a_number_of_bytes(value: Any) -> None:
    refused(lambda: Settings(memory=value), "memory", "from 1 to")


@pytest.mark.parametrize("value", [0, 1, "no", None])
def test_a_switch_of_the_settings_is_one(value: Any) -> None:
    refused(lambda: Settings(share_memory=value), "share_memory", "True or False")


def test_good_settings() -> None:
    Settings(0, 0.0, Fraction(1, 2), 1, False)  # type: ignore[arg-type]
    Settings(2_592_000, memory=None)


@pytest.mark.parametrize(
    ("said", "expected"),
    [("", False), ("0", False), (" No", False), ("1", True), ("ON ", True), ("yes", True)],
)
def test_a_switch_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, said: str, expected: bool
) -> None:
    monkeypatch.setenv("ZBUS_TRIED", said)
    assert given.switch("ZBUS_TRIED", otherwise=False, wary=True) is expected


def test_a_switch_that_says_neither_is_taken_as_the_safe_one_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ZBUS_TRIED", "enabled\n")
    given._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        for wary in (True, True):
            assert given.switch("ZBUS_TRIED", otherwise=False, wary=wary) is wary
    assert len(caplog.records) == 1 and "ZBUS_TRIED" in caplog.text


# --- a peer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 5, b"x", "   ", "\n", "x" * 81])
def test_the_name_of_a_peer(value: Any) -> None:
    refused(lambda: Peer(value), "name")


def test_a_peer_takes_settings_and_no_dict() -> None:
    refused(lambda: Peer("a", settings={}), "settings", "Settings")  # type: ignore[arg-type]
    refused(lambda: Peer("a", instance=5), "instance")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", NO_NAMES)
def test_the_name_of_a_channel(peer: Peer, value: Any) -> None:
    remote = Remote("127.0.0.1:9")
    for open_it in (
        lambda: peer.listen("127.0.0.1:0", channel=value),
        lambda: peer.connect("127.0.0.1:9", channel=value),
        lambda: peer.meet(remote, channel=value),
        lambda: peer.anyone(channel=value),
    ):
        refused(open_it, "channel", "1 to 80")


@pytest.mark.parametrize("value", [None, 5, b"127.0.0.1:1", "", "a b:1", "a\x1b:1", "h:1" * 999])
def test_the_address_of_a_channel(peer: Peer, value: Any) -> None:
    for open_it in (peer.listen, peer.connect, peer.probe):
        refused(lambda call=open_it: call(value), kind=InvalidAddress)  # type: ignore[misc]


def test_what_a_run_is(peer: Peer) -> None:
    refused(lambda: peer.listen("127.0.0.1:0", run="r"), "run", "Run")  # type: ignore[arg-type]
    for value in NO_NAMES:
        refused(lambda value=value: Run(id=value), "id")  # type: ignore[misc]
    refused(lambda: Run(since="x" * 21), "since")
    refused(lambda: Run(on_broken=5), "on_broken")  # type: ignore[arg-type]
    for wrong in (("send",), ("give", "image", 0, True, ""), ("send", "image", -1, True, "")):
        refused(lambda wrong=wrong: Run(manifest=[wrong]), "manifest")  # type: ignore[misc, list-item]


def test_other_arguments_of_a_peer(peer: Peer) -> None:
    remote = Remote("127.0.0.1:9")
    refused(lambda: peer.serve(None, -1), "port", "from 0")
    refused(lambda: peer.serve(None, "1"), "port")  # type: ignore[arg-type]
    refused(lambda: peer.submit(remote, {}), "request")  # type: ignore[arg-type]
    refused(lambda: peer.submit("x", Request({})), "remote")  # type: ignore[arg-type]
    refused(lambda: peer.enquire("x"), "remote")  # type: ignore[arg-type]
    refused(lambda: peer.set_activity(5), "activity")  # type: ignore[arg-type]
    refused(lambda: Remote(5), "address")  # type: ignore[arg-type]
    refused(lambda: Remote("", instance="x"), "instance")
    refused(lambda: Remote("", key=b"short"), "key")
    refused(lambda: Remote("", others=["a:1"]), "others")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", NO_TIMES)
def test_the_time_of_a_probe(peer: Peer, value: Any) -> None:
    probe = peer.probe("127.0.0.1:9")
    refused(lambda: probe.hello(value), "timeout")
    refused(lambda: probe.ping(value), "timeout")
    refused(lambda: probe.block("up", 1, value), "timeout")
    refused(lambda: probe.block("across", 1, 1.0), "direction", "up, down")
    refused(lambda: probe.block("up", -1, 1.0), "size")
    probe.close()


# --- a channel ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", NO_TIMES)
def test_a_time_limit_that_is_none(channel: Channel, value: Any) -> None:
    refused(lambda: channel.start_send("x", 0, timeout=value), "timeout", "None waits")
    refused(lambda: channel.start_receive(0, timeout=value), "timeout", "from 0 to 2592000")


def test_other_arguments_of_a_channel(channel: Channel) -> None:
    for value in (-1, 0.0, True, "0", 1 << 63, 10**5000):
        for begin in (lambda v: channel.start_send("x", v), channel.start_receive):
            refused(lambda b=begin, v=value: b(v), "order", kind=InvalidOrder)  # type: ignore[misc]
    for value in ("best", "", None, 8, ["exact"]):
        refused(lambda v=value: channel.send("x", quality=v), "codec", kind=UnknownCodec)  # type: ignore[misc]
        refused(lambda v=value: channel.receive(expect=v), "expect", "image, mask")  # type: ignore[misc]
    refused(lambda: channel.start_send("x", kind="a\nb"), "kind")
    refused(lambda: channel.start_send("x", node=5), "node")  # type: ignore[arg-type]
    refused(lambda: channel.start_send("x", progress=5), "progress")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["error", "", None, "OK", 5])
def test_a_run_ends_in_one_of_three_ways(channel: Channel, value: Any) -> None:
    """An unknown one would never come to the other side, which would wait for ever."""
    refused(lambda: channel.close(value, "boom"), "outcome", "ok, failed, cancelled")
    refused(lambda: channel.close("failed", 5), "why")  # type: ignore[arg-type]
    waiting = channel.start_receive(0)
    channel.close("failed", "boom")  # it was not closed by the wrong word
    with pytest.raises(Exception, match="has ended"):
        waiting.result()


# --- a job ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("prompt", value) for value in (None, [], "{}", {"1": 5})),
        *(("outputs", value) for value in ("12", None, (1,), {"1"})),
        *(("values", value) for value in (None, [], {1: 2}, {str(n): n for n in range(1025)})),
        *(("title", value) for value in (None, 5)),
        *(("group", value) for value in (None, 5)),
        *(("check", value) for value in (None, 1)),
        *(("types", value) for value in ("MESH", ["MESH"], frozenset({5}))),
    ],
)
def test_what_a_request_is(name: str, value: Any) -> None:
    refused(lambda: Request(**{"prompt": {}, name: value}), name)


@pytest.mark.parametrize("types", [None, frozenset(), frozenset({"MESH", "SVG"})])
def test_the_types_of_a_request_travel(types: frozenset[str] | None) -> None:
    told = Request({}, types=types).told()
    assert Request.read(told).types == types
    for bad in (5, "MESH", {"MESH": 1}, [5]):
        with pytest.raises(RemoteProtocolError, match="types are no names"):
            Request.read(told | {"types": bad})


def test_what_a_taken_job_tells() -> None:
    told: list[Any] = []

    class Desk:
        def progressed(self, *given: Any) -> None:
            told.append(given)

    job = Taken("id", "desk", Request({}), lambda tell: tell(Desk()))  # type: ignore[arg-type]
    for value in (math.nan, math.inf, -5, None, "x"):
        job.progress("1", "KSampler", value, 20)  # type: ignore[arg-type]
    job.progress("1", "KSampler", 7.5, 1 << 70)  # type: ignore[arg-type]
    assert [(at, most) for *_, at, most in told] == [(0, 20)] * 5 + [(7, (1 << 63) - 1)]
    refused(lambda: job.queued("x"), "place")  # type: ignore[arg-type]
    job.preview("1", "image/gif", b"")  # left out: the desk above has no previews
    refused(lambda: job.stopped(None), "why")  # type: ignore[arg-type]
    refused(lambda: job.result("a\nb", 1), "name", kind=NotTransferable)


# --- what texts tell of it ------------------------------------------------------------------------


def test_a_value_is_shown_short_and_never_as_a_whole() -> None:
    class Loud:
        def __repr__(self) -> str:
            raise RuntimeError

    for value in ("x" * 10_000, "\x1b[2J", 10**5000, Loud(), [0] * 10_000, -(10**30)):
        assert len(given.said(value)) < 80 and given.said(value).isprintable()


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0 B/s"),
        (999, "999 B/s"),
        (1_000, "1.0 kB/s"),
        (4_900, "4.9 kB/s"),
        (976_600, "976.6 kB/s"),
        (999_990, "1.0 MB/s"),
        (4_000_000, "4.0 MB/s"),
        (999_960_000, "1.00 GB/s"),
        (2_345_000_000, "2.35 GB/s"),
    ],
)
def test_a_rate_tells_something_however_slow(rate: float, text: str) -> None:
    assert rate_text(rate) == text
