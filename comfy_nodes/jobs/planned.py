"""What shall run elsewhere, and each peer's part in it.

A `JobPlan` says what and where; a `Share` is what has become of one place in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from zbus.errors import JobError, JobFailed, ZBusError
from zbus.job import Job
from zbus.operation import Operation
from zbus.remote import Remote

from ..page.peers import Choice
from ..prompt.graph import Graph, Link

STOP, ANOTHER, REST = "stop", "try another", "return the rest"
ON_FAILURE = [STOP, ANOTHER, REST]


class Piece(Protocol):
    """What is sent: a `cutting.Part` or a `dispatching.Dispatch`."""

    @property
    def prompt(self) -> Graph: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def boundaries(self) -> dict[str, Link]: ...


@dataclass(eq=False)
class JobPlan:
    """What shall run elsewhere.

    Attributes:
        piece: What is sent.
        title: What it is called there.
        choices: Where, in order.
        first: The position of the first of them: 1 where this machine takes part itself.
        group: See `Request`.
        left_out: Whom "all" does without, and what the others do not have from here, in words.
        notes: What else its user should know, in words.
        brought: What comes along with the value: for each name the result that it is.
        shown_by: For each result that other nodes show, those nodes, as the page knows them.
    """

    piece: Piece
    title: str
    choices: list[Choice]
    first: int = 0
    on_failure: str = STOP
    quality: str = "exact"
    group: str = ""
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    brought: dict[str, str] = field(default_factory=dict)
    shown_by: dict[str, list[str]] = field(default_factory=dict)


@dataclass(eq=False)
class Share:
    """One peer's part in a plan.

    Attributes:
        position: Its place among all that take part, this machine included.
        seconds: How long its last job took.
        failures: What went wrong before, here and at others.
        left: Where it waited before another one became free.
        unfit: The keys of those that are free and cannot run it.
        is_moving: Another job is about to take the place of this one, whatever becomes of this.
    """

    choice: Choice
    position: int
    job: Job | None = None
    began: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unfit: set[str] = field(default_factory=set)
    is_moving: bool = False

    @property
    def remote(self) -> Remote:
        return self.choice.remote

    @property
    def who(self) -> str:
        return self.job.peer if self.job is not None else str(self.remote)

    @property
    def is_done(self) -> bool:
        return self.job is not None and self.job.done() and not self.is_moving

    @property
    def is_accepted(self) -> bool:
        """Also if a node has failed there since: who collects is told that."""
        accepted = self.job is not None and self.job.accepted
        return accepted or isinstance(self.error, JobFailed)

    @property
    def error(self) -> ZBusError | None:
        """Why its job has failed, if it has; or why there is none."""
        if self.is_moving:
            return None
        return self.job.error() if self.job is not None else self.choice.problem

    @property
    def may_move(self) -> bool:
        """Whether its job only waits in a queue, and any other one would do."""
        job = self.job
        waits = job is not None and not job.done() and job.progress.state == "queued"
        return waits and self.choice.is_any

    def result(self, name: str) -> Any:
        """That output of its job.

        Raises:
            JobError: It ended without: a node before it blocked what comes after, in silence.
        """
        results = self.job.results if self.job is not None else {}
        if name not in results:
            raise JobError(
                "the job has ended there without this result: a node before it blocks it",
                peer=self.who,
                remedy="Look at the switches and blockers of the part that runs there",
            )
        return results[name]

    def end(self, job: Operation[Any]) -> None:
        """That job has ended, which may be one of before."""
        if job is self.job:
            self.seconds = time.monotonic() - self.began
