"""The rows: what is measured, beside which yardsticks, and what it must reach."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Entry(NamedTuple):
    """One way in a row: a name of `ways.WAYS`, the memory that it receives into, and what to call
    it where that is not the way's own label."""

    way: str
    memory: str = "again"
    label: str = ""
    full: bool = False  # left out of a quick run


class Goal(NamedTuple):
    """At most so many times as much as that yardstick ("best": the least of all; "": the figure
    itself). `guard` is the generous bound of `scripts/test --bench`; 0: none."""

    against: str
    most: float
    guard: float = 0.0


@dataclass(frozen=True)
class Row:
    """What one row compares.

    Attributes:
        name: To choose it by.
        title: For the table.
        value: What is sent; see `values.make`.
        entries: zbus first; the others are the yardsticks.
        goals: What zbus must reach.
        kind: Which function of `measuring.KINDS` does it.
        unit: See `figures.UNITS`.
        count: Values in one go; their mean is one sample.
        quick: It is part of a quick run.
        group: Rows of one are one line of the picture: the sizes of their values against the rate.
        rounds: How many there are at most.
    """

    name: str
    title: str
    value: str
    entries: tuple[Entry, ...]
    goals: tuple[Goal, ...] = ()
    kind: str = "transfer"
    unit: str = "s"
    count: int = 1
    quick: bool = True
    rounds: int = 1000
    group: str = ""

    def of(self, quick: bool) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if not (quick and entry.full))


E = Entry
SOCKET = (
    E("zbus-socket"),
    E("zmq"),
    E("socket"),
    E("gloo", full=True),
    E("tensorpipe-tcp", full=True),
)
HOST = (
    E("zbus-lane"),
    E("tensorpipe"),
    E("shared"),
    E("iceoryx", full=True),
    E("socket"),
    E("memcpy", full=True),
)
SMALL = (E("zbus-lane"), E("tensorpipe"), E("pickle"))
PARTS = (E("zbus-lane"), E("tensorpipe"), E("pickle", full=True))

ROWS = (
    Row(
        "192m-socket",
        "192 MiB, socket, memory used again",
        "floats:192M",
        SOCKET,
        (Goal("ZeroMQ chunks", 1.1, 3.5), Goal("gloo", 1.0, 3.0), Goal("raw socket", 1.0, 3.5)),
        group="socket",
    ),
    Row(
        "192m-socket-fresh",
        "192 MiB, socket, fresh memory",
        "floats:192M",
        (
            E("zbus-socket", "fresh"),
            E("socket", "huge", "raw socket, huge pages"),
            E("socket", "fresh", "raw socket"),
            E("zmq", "fresh"),
            E("zmq", "huge", "ZeroMQ, huge pages", full=True),
        ),
        (Goal("raw socket, huge pages", 1.2, 3.0),),
        quick=False,
    ),
    Row(
        "192m-host",
        "192 MiB, same host, memory used again",
        "floats:192M",
        HOST,
        (Goal("shared memory", 0.9, 2.0),),
        group="same host",
    ),
    Row(
        "192m-host-fresh",
        "192 MiB, same host, fresh memory",
        "floats:192M",
        (
            E("zbus-lane", "fresh"),
            E("memcpy-huge", label="memcpy, huge pages"),
            E("memcpy-fresh"),
            E("tensorpipe", "fresh"),
            E("shared", "fresh"),
        ),
        (Goal("memcpy, huge pages", 2.0, 6.0),),
        quick=False,
    ),
    Row(
        "192m-curve",
        "192 MiB, CURVE",
        "floats:192M",
        (E("zbus-curve"), E("zmq-curve"), E("tls", full=True)),
        (Goal("CURVE chunks", 1.1, 2.0),),
    ),
    Row(
        "192m-web",
        "192 MiB, through the page (WebSocket)",
        "floats:192M",
        (E("zbus-web"), E("websocket")),
        (Goal("aiohttp", 1.3, 3.5),),
        quick=False,
    ),
    Row("16m-socket", "16 MiB, socket", "floats:16M", SOCKET, (Goal("best", 1.2),), group="socket"),
    Row(
        "16m-host",
        "16 MiB, same host",
        "floats:16M",
        HOST,
        (Goal("TensorPipe", 1.2, 6.0),),
        group="same host",
    ),
    Row(
        "1m-socket",
        "1 MiB, socket",
        "floats:1M",
        SOCKET,
        (Goal("raw socket", 1.5, 25.0),),
        count=5,
        group="socket",
    ),
    Row(
        "1m-host",
        "1 MiB, same host",
        "floats:1M",
        HOST,
        (Goal("raw socket", 1.5),),
        count=5,
        group="same host",
    ),
    Row(
        "dict",
        "small dict, values a second",
        "dict",
        SMALL,
        (Goal("ZeroMQ + pickle", 1.5, 40.0),),
        unit="/s",
        count=200,
    ),
    Row(
        "dict-p50",
        "small dict, p50",
        "dict",
        SMALL,
        (Goal("ZeroMQ + pickle", 1.5, 40.0),),
        kind="middle",
        count=200,
    ),
    Row(
        "ints",
        "list of 60,000 ints",
        "ints:60000",
        (E("zbus-lane"), E("pickle"), E("tensorpipe", full=True)),
        (Goal("ZeroMQ + pickle", 3.0, 10.0),),
    ),
    Row(
        "tensors",
        "10,000 tensors of 64 B in a dict",
        "tensors:10000",
        PARTS,
        (Goal("TensorPipe", 1.2, 3.0),),
    ),
    Row(
        "conditioning",
        "conditioning of 1,000 entries",
        "conditioning:1000",
        PARTS,
        (Goal("TensorPipe", 1.5, 5.0),),
    ),
    *(
        Row(
            f"growth-{kind}",
            f"growth from 100 to 10,000 {parts}, 1 is linear",
            kind,
            (E("zbus-lane"),),
            (Goal("", 1.2, 3.0),),
            kind="growth",
            unit="x",
        )
        for kind, parts in (
            ("ints", "ints"),
            ("tensors", "tensors"),
            ("conditioning", "parts of a conditioning"),
        )
    ),
    Row(
        "2g-socket",
        "2 GiB, socket",
        "floats:2G",
        (E("zbus-socket"), E("zmq"), E("tensorpipe-tcp")),
        (Goal("best", 1.1),),
        quick=False,
        rounds=7,
        group="socket",
    ),
    Row(
        "2g-host",
        "2 GiB, same host",
        "floats:2G",
        (E("zbus-lane"), E("memcpy"), E("tensorpipe")),
        (Goal("memcpy", 2.0),),
        quick=False,
        rounds=7,
        group="same host",
    ),
    Row(
        "2g-memory",
        "memory beyond the tensor, 2 GiB by the socket",
        "floats:2G",
        (E("zbus-socket"), E("zmq")),
        (Goal("", 16 << 20),),
        kind="memory",
        unit="B",
        quick=False,
        rounds=3,
    ),
    Row(
        "2g-memory-host",
        "memory beyond the tensor, 2 GiB, same host",
        "floats:2G",
        (E("zbus-lane"),),
        (Goal("", 16 << 20),),
        kind="memory",
        unit="B",
        quick=False,
        rounds=3,
    ),
    Row(
        "ping",
        "ping p99 beside 2 GiB, plain",
        "floats:2G",
        (E("zbus-socket"),),
        (Goal("", 0.003),),
        kind="ping",
        quick=False,
        rounds=7,
    ),
    Row(
        "ping-curve",
        "ping p99 beside 2 GiB, CURVE",
        "floats:2G",
        (E("zbus-curve"),),
        (Goal("", 0.006),),
        kind="ping",
        quick=False,
        rounds=7,
    ),
    *(
        Row(
            f"deaf-{name}",
            f"I/O thread deaf, {title}",
            value,
            (E(way),),
            (Goal("", 0.010),),
            kind="deaf",
            quick=False,
            rounds=7,
        )
        for name, title, value, way in (
            ("ints", "list of 60,000 ints", "ints:60000", "zbus-lane"),
            ("tensors", "10,000 tensors", "tensors:10000", "zbus-lane"),
            ("conditioning", "conditioning of 5,000", "conditioning:5000", "zbus-lane"),
            ("2g", "2 GiB by the socket", "floats:2G", "zbus-socket"),
            ("2g-host", "2 GiB, same host", "floats:2G", "zbus-lane"),
        )
    ),
    *(
        Row(
            f"photo-{rate}",
            f"exact, photograph, first of a link of {rate:,} Mbit/s",
            str(rate),
            (
                E("away-zbus"),
                E("webp"),
                E("webp-small"),
                E("png"),
                E("floats"),
            ),
            (Goal("best", 1.1),),
            kind="slow",
            quick=False,
        )
        for rate in (10, 100, 1000, 10000)
    ),
    Row(
        "photo-tunnel",
        "exact, photograph, 10 Mbit/s tunnel back to this machine",
        "10",
        (E("here-zbus"), E("webp"), E("png")),
        (Goal("best", 1.1),),
        kind="slow",
        quick=False,
    ),
    Row(
        "many",
        "16 senders into one, 12 MiB each, socket",
        "floats:12M",
        (E("many-zbus"), E("many-socket"), E("many-gloo")),
        (Goal("raw socket", 1.5),),
        kind="many",
        count=16,
        quick=False,
    ),
    Row(
        "many-host",
        "16 senders into one, 12 MiB each, same host",
        "floats:12M",
        (E("many-lane"), E("many-socket")),
        (Goal("raw socket", 1.5),),
        kind="many",
        count=16,
        quick=False,
    ),
    Row(
        "busy-192m",
        "192 MiB, socket, a busy Python thread on each side",
        "floats:192M",
        (E("zbus-socket"), E("zmq"), E("socket", full=True)),
        (Goal("ZeroMQ chunks", 1.3, 3.5),),
        kind="busy",
        quick=False,
    ),
    Row(
        "busy-1k",
        "1 KiB, socket, a busy Python thread on each side",
        "text:1024",
        (E("zbus-socket"), E("pickle")),
        (Goal("ZeroMQ + pickle", 1.3, 6.0),),
        kind="busy",
        count=5,
    ),
    Row(
        "first",
        "first 16 MiB of a new link, same host",
        "floats:16M",
        (E("new-zbus"), E("new-tensorpipe"), E("new-socket", "fresh"), E("new-zmq", "fresh")),
        (Goal("best", 1.2),),
        kind="first",
        quick=False,
    ),
    Row(
        "cuts",
        "sent again for each of 50 cuts within 192 MiB",
        "floats:192M",
        (E("here-zbus"),),
        kind="cuts",
        unit="B",
        quick=False,
    ),
    Row(
        "idle",
        "part of a core, nothing sent",
        "dict",
        (E("zbus-socket"), E("waking"), E("tensorpipe")),
        (Goal("", 1.0),),
        kind="idle",
        unit="%",
        quick=False,
        rounds=3,
    ),
    Row(
        "job",
        "job of a trivial workflow: longer than here by",
        "1x64",
        (),
        (Goal("", 0.006),),
        kind="job",
        quick=False,
    ),
    Row(
        "job-8",
        "job of 8 images 1024x1024: longer than here by",
        "8x1024",
        (),
        (Goal("", 0.040),),
        kind="job",
        quick=False,
    ),
)


def chosen(patterns: Sequence[str], quick: bool) -> list[Row]:
    """The rows of those names or patterns ("192m*"), in the table's order; all without one.

    Raises:
        ValueError: A pattern fits none.
    """
    if not patterns:
        return [row for row in ROWS if row.quick or not quick]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row.name, pattern) for row in ROWS):
            raise ValueError(f'no row is called "{pattern}"')
    return [row for row in ROWS if any(fnmatch.fnmatchcase(row.name, p) for p in patterns)]
