"""Sans-IO: how many bytes may be under way on one link.

Control messages share the connection with the bulk, so what is in flight is what a cancel or a
ping waits behind. It is kept to what the link delivers in its round trip and a little more: enough
to keep the wire busy, and never seconds of data. The rate is taken as in BBR (draft-cardwell-iccrg
-bbr, delivery rate estimation): bytes delivered between a chunk's departure and its grant.
"""

from __future__ import annotations

from collections import deque

MIN_CHUNK = 16 * 1024
MAX_CHUNK = 1024 * 1024
CHUNK_TIME = 0.025  # a chunk is at most this many seconds of the rate
EXTRA_TIME = 0.050  # the window is the rate times (round trip + this)...
EXTRA_MAX = 12 * 1024 * 1024  # ...but beyond the round trip at most this many bytes
# Ciphers need no more under way, and are slow enough for it to be a wait that people see.
ENCRYPTED_EXTRA, ENCRYPTED_CHUNK = 2 * 1024 * 1024, 512 * 1024
SHORTEST = 0.010  # seconds: what passes in less may be the burst of a buffer, and no rate
START_RATE = 0.5e6  # bytes/s, until something is known: the first chunks must not take long
KEEP = 24  # rate samples that count
STEADY_TIME = 0.050  # seconds of a full window after which the link shows its own rate
STARTUP_GAIN = 2.0  # the window while the rate still grows, on links with a long round trip
STARTUP_TRIPS = 3  # round trips without growth that end the start
SHOWN = 6  # the latest samples that show what the link can do at least
FIRST = 128 * 1024  # bytes of a session, of which the round trip may be all that shows
VAGUE = 0.0005  # seconds: so much longer than a round trip is none that shows anything
VAGUE_PART = 0.25  # and such a part of it
LEAST_PART = 0.25  # of a sample's time, that is its bytes' own, and not the round trip's


class Pace:
    """The window and chunk size of one session, learned from its grants. Bytes are wire bytes.

    Args:
        earlier: The rate that an earlier session over this link has shown, bytes per second. The
            window begins small all the same: what was true then may fill a queue now.
        encrypted: Whether the link encrypts what goes over it.
    """

    def __init__(self, earlier: float | None = None, *, encrypted: bool = False) -> None:
        self.in_flight = 0
        self._extra = ENCRYPTED_EXTRA if encrypted else EXTRA_MAX
        self._largest = ENCRYPTED_CHUNK if encrypted else MAX_CHUNK
        self._earlier = earlier
        self._rates: deque[float] = deque(maxlen=KEEP)
        self._steady: deque[float] = deque(maxlen=KEEP)  # those that the link itself set
        self._shown: deque[float] = deque(maxlen=SHOWN)
        self._full_since: float | None = None
        self._trip: float | None = None
        self._answer: float | None = None  # what a round trip takes that carries nothing
        self._best = 0.0
        self._grew_at = 0.0
        self._is_starting = True
        self._delivered = 0
        self._delivered_at = 0.0
        self._sent: deque[tuple[int, float, int, float, bool, bool]] = deque()
        self._was_idle = True  # when the oldest that is under way was sent

    @property
    def rate(self) -> float | None:
        """Bytes per second that the link delivers; None if nothing is known. What an earlier
        session found counts until this one has found it anew. A link that waited for its sender
        (for a codec), or for a window that only began to grow, has not shown what it can do."""
        return self._earlier if self.found is None else self.found

    @property
    def found(self) -> float | None:
        """The rate that this session has shown itself."""
        return max(self._steady, default=None)

    @property
    def likely(self) -> float | None:
        """What the next chunk may reckon with, sooner known than `rate` and less sure; None before
        anything has arrived."""
        shown = max(self._shown, default=None)
        return max((rate for rate in (shown, self.rate) if rate is not None), default=None)

    def answered(self, took: float) -> None:
        """A message without bulk has been answered in so many seconds."""
        self._answer = took if self._answer is None else min(self._answer, took)

    @property
    def answer(self) -> float:
        """Seconds of a round trip that carries nothing; 0 if it is not known. An answer may have
        waited for a person: a chunk that came back sooner says so."""
        took = self._answer or 0.0
        return took if self._trip is None or took <= self._trip else 0.0

    @property
    def probe(self) -> int:
        """The bytes that a chunk should have which is to show what the link can do: so few that it
        does not take long where that is little."""
        return min(max(MIN_CHUNK, 2 * self._delivered), self.window)

    def busy(self, rate: float, planned: int) -> float:
        """Seconds until the link has nothing to do, with so many bytes that are not sent yet."""
        return max(0.0, (self.in_flight + planned) / rate - self.answer)

    @property
    def is_new(self) -> bool:
        """Nothing has gone yet."""
        return not self._delivered and not self._sent

    def was_idle(self, now: float) -> bool:
        """Whether the link has had nothing to do, for longer than a round trip takes."""
        return not self._sent and now - self._delivered_at > (self._trip or 0.0)

    @property
    def _estimate(self) -> float:
        return max(self._rates, default=START_RATE)

    @property
    def chunk(self) -> int:
        """The plain bytes that one chunk should have."""
        size = int(self._estimate * CHUNK_TIME)
        return max(MIN_CHUNK, min(self._largest, size & ~0x3FFF))

    @property
    def window(self) -> int:
        """The wire bytes that may be under way."""
        rate = self._estimate
        trip = (self._trip or 0.0) * (STARTUP_GAIN if self._is_starting else 1.0)
        return max(2 * self.chunk, int(rate * trip + min(rate * EXTRA_TIME, self._extra)))

    def has_room(self, planned: int = 0) -> bool:
        """Whether another chunk may go, behind so many bytes that are not sent yet."""
        return self.in_flight + planned < self.window

    def sent(self, size: int, now: float) -> None:
        """A chunk of `size` wire bytes has gone."""
        if not self._sent:
            self._delivered_at, self._was_idle = now, True
        full = self.in_flight + size >= self.window // 2
        if not full:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        self.in_flight += size
        self._sent.append((size, now, self._delivered, self._delivered_at, full, self._was_idle))

    def delivered(self, count: int, now: float) -> None:
        """The oldest `count` chunks have arrived."""
        for _ in range(min(count, len(self._sent))):
            size, at, delivered, delivered_at, full, was_idle = self._sent.popleft()
            self.in_flight -= size
            self._delivered += size
        if count > 0:
            self._delivered_at, self._was_idle = now, False
            trip = now - at
            self._trip = trip if self._trip is None else min(self._trip, trip)
            if now > delivered_at:
                moved, took = self._delivered - delivered, now - delivered_at
                # A window that passes at once shows that there is room for some times of it.
                rate = moved / max(took, SHORTEST)
                self._look_at_what_it_shows(moved, took, full, was_idle)
                if full or not self._rates or rate > self._estimate:
                    self._rates.append(rate)
                since = self._full_since
                if full and since is not None and now - since >= STEADY_TIME:
                    self._steady.append(moved / took)
                self._look_whether_it_grows(rate, now)

    def _look_at_what_it_shows(self, moved: int, took: float, full: bool, was_idle: bool) -> None:
        beyond = took - self.answer if was_idle else took
        if self._delivered <= FIRST and beyond < VAGUE + VAGUE_PART * self.answer:
            return
        rate = moved / max(beyond, LEAST_PART * took)
        if full or rate > max(self._shown, default=0.0):
            self._shown.append(rate)

    def _look_whether_it_grows(self, rate: float, now: float) -> None:
        if rate > self._best * 1.1:
            self._best, self._grew_at = rate, now
        elif self._is_starting and now - self._grew_at > STARTUP_TRIPS * (self._trip or 0.0):
            self._is_starting = False

    def dropped(self, count: int) -> None:
        """`count` chunks will never be granted: their transfer was cancelled."""
        for _ in range(min(count, len(self._sent))):
            self.in_flight -= self._sent.popleft()[0]

    def reset(self) -> None:
        """The connection is gone, and what was under way with it."""
        self.in_flight = 0
        self._sent.clear()
        self._trip = self._full_since = None
        self._best, self._is_starting = 0.0, True
