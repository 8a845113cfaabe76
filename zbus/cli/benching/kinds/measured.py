"""What comes out of a row, and how much is done for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ....machine import free_memory
from ..figures import Figure
from ..processes import Absent, Pair, Pairs, WayFailed
from ..rows import Entry, Row
from ..values import size_of
from ..ways import WAYS

WARM = 2  # rounds that do not count
RESERVE = 2 << 30  # bytes that are to stay free


@dataclass
class Measured:
    """What came out of one row: a figure of each entry, by its label, zbus first."""

    row: Row
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""  # why there is nothing
    took: float = 0.0  # seconds

    def take(self, samples: dict[str, list[float]]) -> None:
        """The figures of what was sampled, in the order of their first samples."""
        self.figures = {name: Figure(tuple(found)) for name, found in samples.items() if found}


@dataclass
class Plan:
    """How much is done, and with what.

    Attributes:
        rounds: Samples of each figure.
        photo: A picture file; None: there is none.
        comfyuis: The URLs of two ComfyUIs' pages: of the one that gives jobs, and of the other.
    """

    rounds: int
    quick: bool
    photo: Path | None = None
    comfyuis: tuple[str, str] | None = None

    def of(self, row: Row) -> int:
        return min(self.rounds, row.rounds)


Kind = Callable[[Row, Pairs, Plan], Measured]


def label(entry: Entry) -> str:
    return entry.label or WAYS[entry.way].label


def short_of_memory(row: Row, sides: int) -> str:
    """A sentence where so many times its value are more than there is; else ""."""
    need, free = size_of(row.value) * sides + RESERVE, free_memory()
    if not size_of(row.value) or need <= free:
        return ""
    return f"it needs {need / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} GiB are free"


@contextmanager
def pair_of(way: str, pairs: Pairs, measured: Measured) -> Iterator[Pair | None]:
    """The pair of that way, cleared afterwards; None where it cannot be had. What fails in the
    block is told in the row, and ends the pair."""
    pairs.start([way])
    pair = pairs.get(way)
    try:
        yield pair
        if pair is not None:
            pair.clear()
    except Absent as error:
        measured.skipped = str(error)
    except WayFailed as error:
        measured.notes.append(str(error))
        pairs.drop(way)
    if pair is None:
        measured.skipped = measured.skipped or f"{WAYS[way].label}: {pairs.absent.get(way, '')}"
