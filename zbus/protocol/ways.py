"""Sans-IO: the ways to one peer, their addresses, and what is wrong with each.

A way is an address as people write it; a name may have several numeric ones, its spots. All are
tried in turn, and the ways one after the other. What can be wrong with a spot is a `Problem`. A
final one (another program answers there, or one with another key) ends the dialling once every way
that counts has one, since who waits there should hear of it. All others end nothing, for the peer
may come yet: they are told as the reason why one still waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..address import Address
from ..errors import KeyChanged, NotPaired, NotZBus, ValuesOnly, ZBusError

RESOLVE_AGAIN = 20  # failures after which a name is looked up anew
DOUBTS = 2  # handshakes in a row that must fail before a key is said to have changed
FAULTS = 3  # wrong answers in a row that are no accident;
FAULTY_TIME = 15.0  # seconds after which they are final
MAX_SPOTS = 8  # addresses of one name
PAIR = "Pair the two, once: zbus-pair invite on one of them, zbus-pair accept on the other"
FINAL = (NotZBus, KeyChanged, NotPaired, ValuesOnly)  # what a look can find: no use to try again


class Spot(NamedTuple):
    """A numeric address to dial."""

    host: str
    port: int


@dataclass(frozen=True)
class Problem:
    """What is wrong with an address. Final: trying it again cannot help."""

    error: ZBusError
    is_final: bool = False


@dataclass(eq=False)
class Way:
    """One of the ways to the peer, and what is known of it.

    Attributes:
        is_hint: Somebody claims it, and nobody vouches for it: a failure there says nothing.
        spots: Its addresses, in the order in which they are tried.
        is_fresh: They need not be looked up before they are dialled.
        is_sought: They are being looked up.
        unknown: Why it has none.
        problems: What is wrong with each of them.
        doubts: Handshakes of each that have failed in a row, for what may be another key.
        asked: Those that are being looked at.
        faults: Wrong answers to HELLO in a row,
        faulty_since: since when.
    """

    address: Address
    is_hint: bool = False
    spots: tuple[Spot, ...] = ()
    is_fresh: bool = False
    is_sought: bool = False
    unknown: Problem | None = None
    problems: dict[Spot, Problem] = field(default_factory=dict)
    doubts: dict[Spot, int] = field(default_factory=dict)
    asked: set[Spot] = field(default_factory=set)
    faults: int = 0
    faulty_since: float = 0.0

    @property
    def problem(self) -> Problem | None:
        """What is wrong with it, once all its addresses were tried; one that may pass counts
        before one that is final."""
        if self.unknown is not None:
            return self.unknown
        if not self.spots or not all(spot in self.problems for spot in self.spots):
            return None
        told = [self.problems[spot] for spot in self.spots]
        return next((one for one in told if not one.is_final), told[0])

    def found(self, spots: Iterable[Spot]) -> None:
        """Its addresses are known. What is known of those that it has kept stays."""
        self.spots = tuple(dict.fromkeys(spots))[:MAX_SPOTS]
        self.is_fresh, self.unknown = True, None
        self.problems = {s: self.problems[s] for s in self.spots if s in self.problems}
        self.doubts = {s: self.doubts[s] for s in self.spots if s in self.doubts}

    def not_found(self, error: ZBusError, *, is_final: bool) -> None:
        """A name that has been known leads where it led: perhaps it is this side's own network
        that is away."""
        if not self.spots:
            self.unknown = Problem(error, is_final)

    def look_up_again(self) -> None:
        """The name may mean other machines by now. (A page's lane asks for the name each time.)"""
        self.is_fresh = self.is_fresh and bool(self.address.url)

    def doubt(self, spot: Spot, in_doubt: bool) -> bool:
        """A handshake there has failed, perhaps for another key; whether to look now."""
        self.doubts[spot] = self.doubts.get(spot, 0) + 1 if in_doubt else 0
        return 0 < self.doubts[spot] <= DOUBTS

    def diagnosed(self, spot: Spot, error: ZBusError | None, *, may_end: bool) -> None:
        """What a look at one of its addresses has found. None: a connection should come about."""
        if spot not in self.spots:
            return
        if error is None and self.doubts.get(spot, 0) >= DOUBTS:
            error = key_changed()
        if error is None:
            self.problems.pop(spot, None)
        else:
            self.problems[spot] = Problem(error, may_end and isinstance(error, FINAL))

    def forget(self) -> None:
        """Whatever was wrong is to be found out anew."""
        self.unknown, self.faults = None, 0
        self.problems.clear()
        self.doubts.clear()


class Ways:
    """All ways to one peer, and the one that is tried now.

    Args:
        addresses: In the order in which they are tried; at least one.
        hints: Those of them that somebody claims, and nobody vouches for.
    """

    def __init__(self, addresses: Iterable[Address], hints: frozenset[Address]) -> None:
        self.all = [Way(address, address in hints) for address in dict.fromkeys(addresses)]
        self._at = 0  # the way that is tried now,
        self._spot_at = 0  # and the address of it

    @property
    def now(self) -> Way:
        """The way that is tried now."""
        return self.all[self._at]

    @property
    def spot(self) -> Spot | None:
        """The address of it that is; None before it is known."""
        return self.now.spots[self._spot_at] if self._spot_at < len(self.now.spots) else None

    @property
    def known(self) -> list[Way]:
        """Those that count: without hints, unless there is nothing else."""
        return [way for way in self.all if not way.is_hint] or self.all

    @property
    def count(self) -> int:
        """How many addresses there are to be tried, as far as is known."""
        return sum(max(1, len(way.spots)) for way in self.all)

    @property
    def problem(self) -> ZBusError | None:
        """Why nothing stands there, once every address of every way was tried; by the first way
        that counts."""
        if any(way.problem is None for way in self.all):  # hints come and go
            return None
        return self.first

    @property
    def first(self) -> ZBusError | None:
        """What is wrong with the first way that counts."""
        first = self.known[0].problem
        return first.error if first is not None else None

    @property
    def are_hopeless(self) -> bool:
        """Whether dialling again cannot help."""
        return all(way.problem is not None and way.problem.is_final for way in self.known)

    def named(self, address: Address) -> Way | None:
        """The way of that address."""
        return next((way for way in self.all if way.address == address), None)

    def take(
        self, addresses: tuple[Address, ...], hints: frozenset[Address], *, is_tried: bool
    ) -> None:
        """The ways as known now: hints come and go. One that is tried just now and is not among
        them stays, and all others with it, until its turn is over."""
        now, old = self.now.address, {way.address: way for way in self.all}
        if now not in addresses and is_tried:
            return
        self.all = [old.get(address, Way(address)) for address in dict.fromkeys(addresses)]
        for way in self.all:
            way.is_hint = way.address in hints
        if now in addresses:
            self._at = [way.address for way in self.all].index(now)
        else:
            self._at = self._spot_at = 0

    def wrong(self, error: ZBusError, *, is_final: bool) -> None:
        """Something is wrong with the address that is tried now."""
        if self.spot is not None:
            self.now.problems[self.spot] = Problem(error, is_final)

    def faulty(self, error: ZBusError, now: float, *, may_end: bool) -> None:
        """Its answer was. One says nothing: the right peer may be there next time."""
        way = self.now
        way.faulty_since = way.faulty_since if way.faults else now
        way.faults += 1
        if way.faults >= FAULTS:
            self.wrong(error, is_final=may_end and now - way.faulty_since >= FAULTY_TIME)

    def settle(self) -> Spot:
        """The address to dial now."""
        if self.spot is None:
            self._spot_at = 0
        return self.now.spots[self._spot_at]

    def turn(self, failures: int) -> None:
        """The next address; after the last of a way the next way, and after the last the first."""
        if failures and failures % RESOLVE_AGAIN == 0:
            self.now.look_up_again()
        self._spot_at += 1
        if self._spot_at < len(self.now.spots):
            return
        self._spot_at = 0
        if len(self.all) > 1:
            self.now.look_up_again()
            self._at = (self._at + 1) % len(self.all)

    def forget(self) -> None:
        """Whatever was wrong is to be found out anew."""
        for way in self.all:
            way.forget()


def refused() -> NotPaired:
    """The other side does not trust this one."""
    return NotPaired("not paired there with this computer", remedy=PAIR)


def key_changed() -> KeyChanged:
    """Whoever answers has another key than the one that was paired."""
    return KeyChanged(
        "it does not prove the key that it was paired with: another machine answers there, its "
        "zbus folder is a new one, or somebody pretends to be it",
        remedy="If you know why it has changed, pair anew (zbus-pair forget NAME; then zbus-pair "
        "invite and accept). If not, do not",
    )
