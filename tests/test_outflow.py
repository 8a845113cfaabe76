"""One value on its way out, its workers and its link held by hand: nothing of it may stop where
nothing is left that would wake it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import xxhash

from zbus.codecs import CODECS, MIXED
from zbus.codecs.weighing import Sight, Weighing
from zbus.engine.outflow import ENCODED, ENCODES_AHEAD, Outflow
from zbus.engine.transfers import Transfers
from zbus.protocol.messages import MAX_CHUNK, Chunk, Grant, decode
from zbus.protocol.pace import MIN_CHUNK, Pace
from zbus.values.layout import PLAIN
from zbus.values.streams import PackedSource

TOTAL = 4 << 20


class End:
    """An `Outflow` of bytes that zlib makes a thousandth of, as far as is known."""

    def __init__(self, data: bytes) -> None:
        self.sent: list[tuple[Chunk, int]] = []  # and how many bytes went
        self.too_many: list[int] = []  # bytes under way, beyond the window
        self.told: list[Any] = []
        self.is_gone = False  # its connection, and nobody has told of it yet
        self.work: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []
        self.pace = Pace(1e5)  # a thin line, as an earlier session has found
        self.peering: Any = SimpleNamespace(
            pace=self.pace,
            connection=object(),
            key="session",
            name="far",
            transfers=0,
            largest_chunk=MAX_CHUNK,
            shares=False,
            session=SimpleNamespace(send=self.told.append),
        )
        lanes: Any = SimpleNamespace(
            transport=SimpleNamespace(send=self._send),
            workers=SimpleNamespace(run=lambda work, then: self.work.append((work, then))),
            ended=lambda _: None,
            permit=lambda: None,
        )
        giver: Any = SimpleNamespace(moved=lambda _: None)
        self.flow = Outflow(lanes, self.peering, 7, giver)
        self.flow._codec = MIXED
        self.flow._weighing = weighing = Weighing([CODECS["zlib"]])
        for _ in range(20):
            weighing.saw(Sight("zlib", PLAIN, 1 << 20, 1 << 10, 1e-5))
        self.total = len(data)
        self.flow.stream(PackedSource([memoryview(data)], [(len(data), PLAIN)], False))
        self.now = time.monotonic()

    def _send(self, _: object, header: bytes, body: Any) -> bool:
        _, message = decode(header, True)
        assert isinstance(message, Chunk)
        if not self.is_gone:
            self.sent.append((message, len(body)))
            self.too_many.append(self.pace.in_flight + len(body) - self.pace.window)
        return not self.is_gone

    def turn(self) -> None:
        self.now += 0.001
        self.flow.pump(self.now)

    def grant(self, received: int) -> None:
        self.now += 0.1
        self.flow.granted(Grant(7, received, self.total), self.now)

    def encode(self) -> None:
        """All that is in the pool comes back."""
        work, self.work = self.work, []
        for encode, then in work:
            then(encode())

    def begin(self) -> None:
        """The first chunk has shown what the link does; the next ones are in the pool."""
        self.grant(0)
        self.turn()
        [(first, _)] = self.sent
        self.grant(first.size)
        self.turn()
        assert self.work, "the rest goes by zlib"

    def finish(self) -> None:
        """Encode, send and grant all of the rest."""
        while self.received < self.total:
            self.encode()
            self.turn()
            assert self.work or self.pace.in_flight, "nothing would bring the next turn"
            self.grant(self.received)
            self.turn()

    @property
    def received(self) -> int:
        last, _ = self.sent[-1]
        return last.offset + last.size


def test_what_was_planned_before_a_cut_is_in_nobodys_way() -> None:
    end = End(bytes(TOTAL))
    end.begin()
    end.turn()
    assert len(end.flow._encoding) == ENCODES_AHEAD
    arrived, before = end.sent[-1][0].offset, len(end.sent)
    end.flow.unlinked()
    end.pace.reset()
    end.encode()  # while there is no connection
    end.grant(arrived)
    end.turn()
    # Only then is there something to come that would bring the next turn.
    assert end.work or len(end.sent) > before


def test_what_comes_out_larger_than_was_likely_waits_for_the_link() -> None:
    end = End(random.Random(0).randbytes(TOTAL))
    end.begin()
    end.finish()
    assert max(end.too_many) < ENCODED


def test_what_went_nowhere_is_digested_when_it_goes() -> None:
    data = random.Random(0).randbytes(2 * MIN_CHUNK)
    end = End(data)
    end.flow._weighing = None  # as they are
    end.grant(0)
    end.is_gone = True
    end.turn()
    assert end.flow.delivery.outgoing is not None
    assert end.flow.delivery.outgoing.next == len(data), "both were to go"
    end.is_gone = False
    end.flow.unlinked()
    end.grant(0)
    end.turn()
    assert end.received == len(data)
    [finish] = end.told
    assert finish.digest == xxhash.xxh3_128_digest(data)


def test_what_waited_behind_one_that_fails_goes_on() -> None:
    end = End(bytes(TOTAL))
    end.pace = end.peering.pace = Pace()  # of which nothing is known: one chunk at a time shows it
    lanes: Any = SimpleNamespace(send=end._send)
    nobody: Any = None
    transfers = Transfers(lanes, nobody, nobody, nobody, nobody, nobody)
    clients: Any = SimpleNamespace(moved=lambda _: None, undeliverable=lambda *_: None)
    first, second = (transfers.send(end.peering, number, clients) for number in (7, 8))
    for flow in (first, second):
        flow._codec, flow._weighing = MIXED, Weighing([CODECS["zlib"]])
        flow.stream(PackedSource([memoryview(bytes(TOTAL))], [(TOTAL, PLAIN)], False))
    second.granted(Grant(8, 0, TOTAL), end.now)
    assert not transfers.pump(end.now)
    first.granted(Grant(7, 0, TOTAL), end.now)
    assert not transfers.pump(end.now)
    assert [chunk.transfer for chunk, _ in end.sent] == [8]
    second._weighing = None
    second._source.read = broken  # type: ignore[union-attr, method-assign]
    assert transfers.pump(end.now), "nothing else would bring the next turn"
    transfers.pump(end.now)
    assert [chunk.transfer for chunk, _ in end.sent] == [8, 7]


def broken(offset: int, size: int) -> memoryview:
    raise OSError("the file is gone")
