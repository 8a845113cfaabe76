"""Many senders into one receiver."""

from __future__ import annotations

import time

from ..processes import START, STEP, Pairs, Process, WayFailed
from ..rows import Row
from ..ways import WAYS
from .measured import WARM, Measured, Plan, label, short_of_memory

AHEAD = 0.05  # seconds from the word to the start, which all keep


def many(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The seconds from the first one's start until the last one's value is stored. The row's count
    is that of the senders, its value is what each sends."""
    measured, taken = Measured(row), dict[str, list[float]]()
    if why := short_of_memory(row, 2 * row.count):
        measured.skipped = why
        return measured
    folder = pairs.folder()
    receiver = Process("many", "receiver", folder)
    senders = [Process("many", f"sender {n + 1}", folder) for n in range(row.count)]
    everybody = [receiver, *senders]
    try:
        for process in everybody:
            process.tell("load")
        for process in everybody:
            process.answer(within=START)
        names = [entry.way for entry in row.of(plan.quick)]
        for name in names:
            _join(name, receiver, senders)
        for process in senders:
            process.tell("prepare", value=row.value)
        for process in senders:
            process.answer()
        for number in range(-WARM, plan.of(row)):
            for entry in row.of(plan.quick):
                seconds = _all_at_once(entry.way, row.value, receiver, senders)
                if number >= 0:
                    taken.setdefault(label(entry), []).append(seconds)
        measured.take(taken)
    except WayFailed as error:
        measured.notes.append(str(error))
    finally:
        for process in everybody:
            process.kill()
    return measured


def _join(name: str, receiver: Process, senders: list[Process]) -> None:
    given = {"name": name, "kind": WAYS[name].kind, "count": len(senders)}
    told = receiver.ask("call", method="serve", given=given)
    receiver.tell("call", method="gather", given={"name": name})
    for number, process in enumerate(senders):
        place = {"name": name, "kind": WAYS[name].kind, "number": number, "told": told}
        process.tell("call", method="dial", given=place)
    for process in (*senders, receiver):
        process.answer()


def _all_at_once(name: str, value: str, receiver: Process, senders: list[Process]) -> float:
    for process in (receiver, *senders):
        process.tell("call", method="use", given={"name": name})
    for process in (receiver, *senders):
        process.answer()
    receiver.tell("receive", count=1, memory="again", value=value, keep=False)
    receiver.answer("ready")
    at = time.monotonic() + AHEAD
    for process in senders:
        process.tell("send", count=1, at=at)
    ends = [process.answer(within=STEP) for process in senders]
    receiver.answer()
    return float(max(end["ended"] for end in ends) - min(end["began"] for end in ends))
