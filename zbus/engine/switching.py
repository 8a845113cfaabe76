"""While values are on their way, the threads of this process give way to each other sooner.

The I/O thread needs Python's lock after each chunk. A thread that computes in Python, as one that
samples does, gives it up every 5 ms if nobody says otherwise: a chunk takes a tenth of that. Who
wants no lock waits for nobody, so while nothing is on its way this costs nothing, and the interval
is as it was.
"""

from __future__ import annotations

import sys
import threading

INTERVAL = 0.0005  # seconds


class Switching:
    """One process's interval, for as many peers as it has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0.0

    def begin(self) -> None:
        """Something is on its way. `end` it once."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = sys.getswitchinterval()
                if self._before > INTERVAL:
                    sys.setswitchinterval(INTERVAL)

    def end(self) -> None:
        """Nothing is any more. An interval that somebody else has set meanwhile stays."""
        with self._lock:
            self._users -= 1
            is_ours = abs(sys.getswitchinterval() - INTERVAL) < 1e-6
            if not self._users and is_ours:
                sys.setswitchinterval(max(self._before, INTERVAL))


SWITCHING = Switching()
