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

    def of(self, quick: bool) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if not (quick and entry.full))


E = Entry
SOCKET = (
    E("zbus-socket"),
    E("zmq"),
    E("socket"),
    E("gloo"),
    E("tensorpipe-tcp", full=True),
)
HOST = (E("zbus-lane"), E("tensorpipe"), E("shared"), E("socket", full=True), E("memcpy"))
PARTS = (E("zbus-lane"), E("tensorpipe"), E("pickle"))

ROWS = (
    Row(
        "192m-socket",
        "192 MiB, socket, memory used again",
        "floats:192M",
        SOCKET,
        (Goal("ZeroMQ chunks", 1.1, 2.5), Goal("gloo", 1.0), Goal("raw socket", 1.0, 2.5)),
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
    ),
    Row(
        "192m-host",
        "192 MiB, same host, memory used again",
        "floats:192M",
        HOST,
        (Goal("shared memory", 0.9, 2.0),),
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
    ),
    Row(
        "192m-curve",
        "192 MiB, CURVE",
        "floats:192M",
        (E("zbus-curve"), E("zmq-curve"), E("tls")),
        (Goal("CURVE chunks", 1.1, 2.0),),
    ),
    Row(
        "192m-web",
        "192 MiB, through the page (WebSocket)",
        "floats:192M",
        (E("zbus-web"), E("websocket")),
        (Goal("aiohttp", 1.3, 3.5),),
    ),
    Row("16m-socket", "16 MiB, socket", "floats:16M", SOCKET, (Goal("best", 1.2),)),
    Row("16m-host", "16 MiB, same host", "floats:16M", HOST, (Goal("TensorPipe", 1.2, 6.0),)),
    Row(
        "1m-socket", "1 MiB, socket", "floats:1M", SOCKET, (Goal("raw socket", 1.5, 8.0),), count=5
    ),
    Row("1m-host", "1 MiB, same host", "floats:1M", HOST, (Goal("raw socket", 1.5),), count=5),
    Row(
        "dict",
        "small dict, values a second",
        "dict",
        PARTS,
        (Goal("ZeroMQ + pickle", 1.5, 5.0),),
        unit="/s",
        count=200,
    ),
    Row(
        "dict-p50",
        "small dict, p50",
        "dict",
        PARTS,
        (Goal("ZeroMQ + pickle", 1.5, 5.0),),
        kind="middle",
        count=200,
    ),
    Row(
        "ints",
        "list of 60,000 ints",
        "ints:60000",
        (E("zbus-lane"), E("pickle"), E("tensorpipe", full=True)),
        (Goal("ZeroMQ + pickle", 3.0, 100.0),),
    ),
    Row(
        "tensors",
        "10,000 tensors of 64 B in a dict",
        "tensors:10000",
        PARTS,
        (Goal("TensorPipe", 1.2, 12.0),),
    ),
    Row(
        "conditioning",
        "conditioning of 1,000 entries",
        "conditioning:1000",
        PARTS,
        (Goal("TensorPipe", 1.5, 16.0),),
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
