"""Sans-IO: what `jobs` keeps of each job, on either side, and what it wants done."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..errors import ZBusError
from ..printable import clean
from .identity import Identity, SessionKey
from .messages import Message

SUBMIT, RESULT, END = "submit", "result:", "end"  # the parts that a job's parcels carry
MAX_NOTES, MAX_NOTE = 8, 300  # of one job; characters of one


class GivenState(Enum):
    """Where a job is that another peer runs for this one."""

    SUBMITTED = "its request is on its way, or looked at there"
    QUEUED = "it waits in the queue there"
    RUNNING = "it runs there"
    LOST = "its session broke, another one is waited for"
    ENDED = "done, refused, failed or cancelled"


class TakenState(Enum):
    """Where a job is that this peer runs for another one."""

    ARRIVING = "its request is on its way"
    CHECKING = "its host looks whether it can run"
    QUEUED = "it waits in the queue here"
    RUNNING = "it runs here"
    STOPPING = "its host has been asked to stop it"
    ENDED = "its results and its end are kept until they are stored"
    FORGOTTEN = "nothing of it is left"


def wait_token(job: str) -> str:
    """What names a job to those who must not learn its id: only who knows the id, which is random,
    recognises it. See `queue_deadlock`."""
    told = job.encode("utf-8", "replace")
    return hashlib.blake2b(told, digest_size=16, person=b"zbus-waits").hexdigest()


@dataclass(eq=False)
class GivenJob:
    """A job that another peer runs for this one."""

    id: str
    what: Any  # the request; opaque here
    peer: str  # its name
    runner: Identity
    title: str = ""
    wanted: frozenset[str] | None = None  # names of the results that are asked for; None: any
    session: SessionKey | None = None
    state: GivenState = GivenState.SUBMITTED
    place: int = 0  # in the queue there
    waits: tuple[str, ...] = ()  # tokens: what the prompt that runs there waits for
    awaited: str = ""  # what waits for it here, in words; "": nothing does yet
    results: dict[str, Any] = field(default_factory=dict)
    coming: set[str] = field(default_factory=set)  # parts on their way in
    end: dict[str, Any] | None = None  # as told; the results may still be on their way
    lost_at: float = 0.0  # when its session ended, while it may come back
    token: str = field(init=False)

    def __post_init__(self) -> None:
        self.token = wait_token(self.id)

    @property
    def named(self) -> list[str]:
        """The results that its end names."""
        names = (self.end or {}).get("results")
        return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []

    @property
    def notes(self) -> tuple[str, ...]:
        """What its runner says of the results: "values outside 0..1 were clipped"."""
        told = (self.end or {}).get("notes")  # an older peer tells none
        texts = [n for n in told if isinstance(n, str)] if isinstance(told, list) else []
        return tuple(clean(text[:MAX_NOTE]) for text in texts[:MAX_NOTES])


@dataclass(eq=False)
class TakenJob:
    """A job that this peer runs for another one."""

    id: str
    session: SessionKey | None
    owner: Identity
    client: str  # the peer's name
    what: Any = None
    title: str = ""
    group: str = ""
    state: TakenState = TakenState.ARRIVING
    place: int = 0
    told: tuple[str, int, tuple[str, ...]] | None = None
    parts: dict[str, Any] = field(default_factory=dict)  # part -> value, until it is stored
    end_is_new: bool = False  # an older one is on its way, and this one goes after it
    gave: list[str] = field(default_factory=list)  # names of the results
    notes: list[str] = field(default_factory=list)  # for its owner, of the results
    unwanted: bool = False  # its client has cancelled it, or is gone
    why: str = ""  # it was stopped
    spoiled: dict[str, Any] | None = None  # how it ends, whatever its host says of it
    is_end_plain: bool = False  # the end as it was could not travel
    kept_until: float | None = None  # while its session is gone
    token: str = field(init=False)

    def __post_init__(self) -> None:
        self.token = wait_token(self.id)

    @property
    def is_in_queue(self) -> bool:
        """Whether it waits in the queue here, or runs."""
        return self.state in (TakenState.QUEUED, TakenState.RUNNING)


# --- what is to be done -------------------------------------------------------------------------


@dataclass(frozen=True)
class Say:
    """Put `message` on the session."""

    session: SessionKey
    message: Message


@dataclass(frozen=True)
class Unsaid:
    """What the peer waits for on that session cannot be told to it: the session is to end."""

    session: SessionKey
    error: ZBusError


@dataclass(frozen=True)
class Deliver:
    """Send that value as a parcel; say `delivered` or `undeliverable` in the end."""

    session: SessionKey
    job: str
    part: str
    value: Any


@dataclass(frozen=True)
class Drop:
    """Whatever of that job is on its way, in either direction, is not wanted any more; where
    `session` says one, only what goes over that."""

    job: str
    session: SessionKey | None = None


@dataclass(frozen=True)
class Submitted:
    """A job has come: check it and queue it."""

    taken: TakenJob


@dataclass(frozen=True)
class Stop:
    """Stop exactly that job, and say `ended` when it has."""

    taken: TakenJob
    why: str


@dataclass(frozen=True)
class Forget:
    """Its results are delivered or dropped: remove every trace of it."""

    taken: TakenJob


@dataclass(frozen=True)
class Changed:
    """Something about that given job is new, for people."""

    given: GivenJob


@dataclass(frozen=True)
class Ended:
    """The given job has come to its end: well, or for `error`."""

    given: GivenJob
    error: ZBusError | None


Event = Say | Deliver | Drop | Unsaid | Submitted | Stop | Forget | Changed | Ended
