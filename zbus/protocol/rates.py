"""Sans-IO: what links have been found to deliver, for the sessions that come after.

It is kept as long as the process lives: where it has changed since, a session finds that out.
"""

from __future__ import annotations

from collections.abc import Hashable

MOST = 256  # links


class Rates:
    """Rates of links whose session is over, the latest ones. Who keeps one names the link by
    anything that is equal when it is the same link."""

    def __init__(self) -> None:
        self._rates: dict[Hashable, float] = {}

    def keep(self, link: Hashable, rate: float | None) -> None:
        """A session there has ended, and has shown so many bytes per second (None: nothing)."""
        if rate is None:
            return
        self._rates.pop(link, None)  # the latest stand at the end
        self._rates[link] = rate
        if len(self._rates) > MOST:
            del self._rates[next(iter(self._rates))]

    def of(self, link: Hashable) -> float | None:
        """Bytes per second, if that was seen."""
        return self._rates.get(link)
