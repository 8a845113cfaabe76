"""What goes on beside a transfer: pings, the I/O thread's turns, memory; and beside none."""

from __future__ import annotations

import time

from ..figures import percentile
from ..processes import Pair, Pairs
from ..rows import Row
from ..values import size_of
from .measured import Measured, Plan, label, pair_of, short_of_memory

IDLE_PINGS = 1.0  # seconds
IDLE = 5.0  # seconds


def ping(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The 99th percentile of the pings from the receiver to the sender, on the link that carries
    the value; and that of an idle link."""
    measured = Measured(row, skipped=short_of_memory(row, 2))
    if measured.skipped:
        return measured
    taken: dict[str, list[float]] = {"zbus": [], "idle": []}
    with pair_of(row.entries[0].way, pairs, measured) as pair:
        if pair is None:
            return measured
        pair.prepare(row.value)
        pair.pass_on(row.value)
        for _ in range(plan.of(row)):
            pair.receiver.ask("drop")
            pair.receiver.ask("watch", what="pings")
            time.sleep(IDLE_PINGS)
            taken["idle"].append(percentile(pair.receiver.ask("seen"), 0.99))
            pair.receiver.ask("watch", what="pings")
            pair.pass_on(row.value)
            taken["zbus"].append(percentile(pair.receiver.ask("seen"), 0.99))
        measured.take(taken)
    return measured


def deaf(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The longest that either I/O thread takes to answer while the value goes."""
    measured = Measured(row, skipped=short_of_memory(row, 2))
    if measured.skipped:
        return measured
    with pair_of(row.entries[0].way, pairs, measured) as pair:
        if pair is None:
            return measured
        pair.prepare(row.value)
        pair.pass_on(row.value)
        taken: dict[str, list[float]] = {"zbus": [], "sender": [], "receiver": []}
        for _ in range(plan.of(row)):
            pair.receiver.ask("drop")
            for side in (pair.sender, pair.receiver):
                side.ask("watch", what="turns")
            pair.pass_on(row.value)
            longest = [max(side.ask("seen")) for side in (pair.sender, pair.receiver)]
            taken["sender"].append(longest[0])
            taken["receiver"].append(longest[1])
            taken["zbus"].append(max(longest))
        measured.take(taken)
    return measured


def memory(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The bytes of memory that the side which takes more takes beyond the value."""
    measured = Measured(row, skipped=short_of_memory(row, 2))
    if measured.skipped:
        return measured
    taken: dict[str, list[float]] = {}
    for entry in row.of(plan.quick):
        with pair_of(entry.way, pairs, measured) as pair:
            if pair is not None:
                taken[label(entry)] = _extra(pair, row.value, plan.of(row))
    measured.take(taken)
    return measured


def _extra(pair: Pair, value: str, rounds: int) -> list[float]:
    pair.prepare("floats:16M")  # what is set up once is not counted
    for _ in range(3):
        pair.pass_on("floats:16M")
    found = []
    for _ in range(rounds):
        pair.clear()
        pair.prepare(value)
        sides = (pair.sender, pair.receiver)
        before = [side.ask("usage")["resident"] for side in sides]
        for side in sides:
            side.ask("watch", what="memory")
        pair.pass_on(value)
        most = [max(side.ask("seen")) for side in sides]
        sent, got = (after - b for after, b in zip(most, before, strict=True))
        found.append(float(max(sent, got - size_of(value), 0)))
    return found


def idle(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The part of a core that the busier side takes while a run is open and nothing is sent."""
    measured = Measured(row)
    taken: dict[str, list[float]] = {}
    for entry in row.of(plan.quick):
        with pair_of(entry.way, pairs, measured) as pair:
            if pair is not None:
                pair.prepare("dict")
                pair.pass_on("dict")
                pair.wake()
                time.sleep(1.0)  # what comes after a value is no part of it
                taken[label(entry)] = [_used(pair) for _ in range(plan.of(row))]
                pair.rest()
    measured.take(taken)
    return measured


def _used(pair: Pair) -> float:
    sides = {pair.sender, pair.receiver}
    before = [float(side.ask("usage")["cpu"]) for side in sides]
    time.sleep(IDLE)
    after = [float(side.ask("usage")["cpu"]) for side in sides]
    return 100.0 * max(a - b for a, b in zip(after, before, strict=True)) / IDLE
