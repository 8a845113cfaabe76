"""`exact` over a link whose rate nobody knows yet: its own first chunks measure it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from proxy import Proxy

import zbus.codecs
import zbus.peer
from zbus import Peer
from zbus.codecs import CODECS, SINGLE
from zbus.engine import outflow
from zbus.engine.shm_lane import ShmLane
from zbus.net import peerings


def picture(height: int = 300) -> torch.Tensor:
    """Of a file: smooth, with a little noise, [1, H, 640, 3]."""
    made = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 6, 640)[None, :, None] + torch.linspace(0, 4, height)[:, None, None]
    noise = torch.randint(0, 3, (height, 640, 3), generator=made)
    return ((x.sin() * 100 + 120 + noise).round().clamp(0, 255) / 255)[None]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """(codec of the transfer, plain bytes, encoded) of each chunk."""
    chunks: list[tuple[str, int, bool]] = []
    put = outflow.Outflow._put

    def watch(self: outflow.Outflow, offset: int, plain: memoryview, encoded: object, now: float):
        chunks.append((self._codec, len(plain), encoded is not None))
        put(self, offset, plain, encoded, now)

    monkeypatch.setattr(outflow.Outflow, "_put", watch)
    monkeypatch.setattr(ShmLane, "serves", lambda *_: False)  # which would go round any link
    return chunks


@contextmanager
def pair(
    rate: float, far: bool = True, knows: Sequence[str] = tuple(CODECS)
) -> Iterator[tuple[Any, Any, Proxy]]:
    """Two peers, the second behind a link of so many bytes per second, on another machine."""
    with pytest.MonkeyPatch.context() as patched, Peer("near") as near:
        if far:
            patched.setattr(zbus.peer, "boot_id", lambda: "another machine")
        patched.setattr(zbus.peer, "codecs", SimpleNamespace(available=lambda: tuple(knows)))
        with Peer("far") as other, other.listen("127.0.0.1:0") as listened:
            with Proxy(listened.address) as proxy, near.connect(proxy.address) as dialled:
                proxy.rate = rate
                yield dialled, listened, proxy


def through(dialled, listened, value, order: int = 0):
    receive = listened.start_receive(order, timeout=60)
    dialled.send(value, order, timeout=60)
    return receive.result()


def test_a_slow_link_is_measured_by_the_first_chunk_and_the_rest_is_packed(sent) -> None:
    value = picture()
    with pair(rate=2e6) as (dialled, listened, _):
        assert torch.equal(through(dialled, listened, value), value)
    assert {codec for codec, _, _ in sent} == {"mixed"}
    assert not sent[0][2] and sent[0][1] <= 16 * 1024
    packed = sum(size for _, size, encoded in sent if encoded)
    assert packed > 0.6 * sum(size for _, size, _ in sent)


@pytest.mark.parametrize("scale", [255 / 256, 254 / 256])
def test_pictures_of_newer_hosts_change_their_codec_too(sent, scale: float) -> None:
    value = picture() * 255 / 256 if scale == 255 / 256 else (picture() * 254).round() / 256
    with pair(rate=2e6) as (dialled, listened, _):
        assert torch.equal(through(dialled, listened, value), value)
    assert sum(size for _, size, _ in sent) == value.numel(), "one byte an element"
    assert any(encoded for _, _, encoded in sent) and not sent[0][2]


def test_a_cut_in_mid_way(sent) -> None:
    value = picture(900)
    with pair(rate=4e6) as (dialled, listened, proxy):
        proxy.cut_after = 200_000
        assert torch.equal(through(dialled, listened, value), value)
        assert proxy.cuts == 1


def test_what_holds_a_picture_and_numbers(sent) -> None:
    value = {"image": picture(), "samples": torch.randn(1, 4, 96, 96), "text": "words " * 20_000}
    with pair(rate=4e6) as (dialled, listened, _):
        got = through(dialled, listened, value)
    assert got["text"] == value["text"]
    assert torch.equal(got["image"], value["image"])
    assert torch.equal(got["samples"], value["samples"])


def test_a_peer_of_the_version_before_gets_what_it_knows(
    sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not name mixed transfers in its HELLO: one codec for the whole is chosen by
    samples, which here take no time, however busy this machine is."""
    look = zbus.codecs.look
    monkeypatch.setattr(zbus.codecs, "look", lambda *given: look(*given)._replace(seconds=0.0))
    value = picture()
    with pair(rate=20e6, knows=SINGLE) as (dialled, listened, _):
        assert torch.equal(through(dialled, listened, value), value)
    assert {codec for codec, _, _ in sent} <= set(SINGLE) - {"raw"}


def test_a_proxy_that_ends_on_this_machine_is_no_local_link(sent) -> None:
    """The same boot, and another port than the listener's: as slow as it likes."""
    value = picture()
    with pair(rate=2e6, far=False) as (dialled, listened, _):
        assert torch.equal(through(dialled, listened, value), value)
    assert {codec for codec, _, _ in sent} == {"mixed"}
    assert any(encoded for _, _, encoded in sent)


def test_on_this_machine_nothing_is_packed(sent) -> None:
    value = picture()
    with Peer("near") as near, Peer("other") as other, other.listen("127.0.0.1:0") as listened:
        with near.connect(listened.address) as dialled:
            assert torch.equal(through(dialled, listened, value), value)
    assert sent and {(codec, encoded) for codec, _, encoded in sent} == {("raw", False)}


@pytest.mark.parametrize(("mine", "theirs", "direct"), [(1, 1, True), (1, 2, False), (1, 0, True)])
def test_what_was_dialled_tells_a_proxy(mine: int, theirs: int, direct: bool) -> None:
    class Greeting:
        class shake:
            own = type("", (), {"port": mine})

        peer = type("", (), {"port": theirs})

    assert peerings._is_direct(Greeting) is direct  # type: ignore[arg-type]
