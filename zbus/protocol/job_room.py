"""Sans-IO: how much of its jobs one peer may have kept here, whatever it says and claims to be."""

from __future__ import annotations

from collections.abc import Iterable

from .identity import Identity

MAX_TAKEN = 256  # jobs of one process
MAX_OF_PRINCIPAL = 1024  # of all that show one key, however many processes they claim to be
REMEMBERED = 512  # ids of a principal's forgotten jobs, so that none is run twice


def is_full(owners: Iterable[Identity], owner: Identity) -> bool:
    """Whether there is no room for one more job of that process."""
    of_key = [other for other in owners if other.key == owner.key]
    return len(of_key) >= MAX_OF_PRINCIPAL or of_key.count(owner) >= MAX_TAKEN


class Forgotten:
    """The last jobs that were forgotten, and why each has ended: of each principal so many."""

    def __init__(self) -> None:
        self._why: dict[tuple[Identity, str], str] = {}

    def __len__(self) -> int:
        return len(self._why)

    def add(self, owner: Identity, job: str, why: str) -> None:
        """One more."""
        self._why[owner, job] = why
        of_key = [known for known in self._why if known[0].key == owner.key]
        for oldest in of_key[:-REMEMBERED]:
            del self._why[oldest]

    def why(self, owner: Identity, job: str) -> str | None:
        """Why that job has ended, if it was that process's."""
        return self._why.get((owner, job))
