"""Sans-IO: two queues, or more, that wait for each other; found without telling whose jobs wait.

A prompt that runs here waits for a job given to another peer; that job waits there in the queue,
behind a prompt which waits for a job in the queue here. Neither ever goes on.

**What is told.** With each job's place its owner hears `waits`: what the prompt that runs here
waits for, and what those jobs wait for. They are tokens (`job_records.wait_token`), hashes of
random job ids: only the two that know an id, who gives the job and who runs it, recognise its
token; all others pass it on and learn nothing. A ring of any size shows itself to each of its sides
so: among the tokens that come with a job given away is that of a job taken.

**Who ends what.** In a ring each side sees two of its jobs: the one it gives, and the one it has
taken. Where ids differ, some side's given job is higher than its taken one, and never all are: the
job that is higher than the one before it in the ring goes, and the others go on.

**What a lie can do.** Only the side whose prompt waits can know that it does, so its word must be
taken; but for nothing that it could not do without:

- The peer that says it waits for *its own* job in the queue here (a ring of two) can have nothing
  but that very job ended, and by the side that runs it. A job of ours that it runs is not touched
  by its word: it alone can end that one, openly, as it can at any time.
- Where the job in the queue here is somebody else's (three and more), the word came through the
  peer that runs our job, and ends that job, which this peer could end anyway. The third one's job
  is never touched for it: who lies about others gains nothing.
- A token that was made up is nobody's. One that was heard before, and is said again, falls under
  the two above.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .job_records import GivenJob, TakenJob
from .messages import MAX_WAITS


class Ring(NamedTuple):
    """A ring of waits that goes through these two, of which this side ends one."""

    given: GivenJob
    taken: TakenJob
    ends_given: bool


def waits_of(given_jobs: Iterable[GivenJob]) -> tuple[str, ...]:
    """What the prompt that runs here waits for, and what those jobs wait for, as tokens."""
    found: dict[str, None] = {}
    for given in given_jobs:
        if given.awaited:
            found |= dict.fromkeys((given.token, *given.waits))
    return tuple(found)[:MAX_WAITS]


def rings(given_jobs: Iterable[GivenJob], taken_jobs: Iterable[TakenJob]) -> Iterator[Ring]:
    """Those in which it is for this side to end a job."""
    awaited = [given for given in given_jobs if given.awaited and given.waits]
    queued = [taken for taken in taken_jobs if taken.is_in_queue] if awaited else []
    for given in awaited:
        behind = [taken for taken in queued if taken.token in given.waits]
        others = [taken for taken in behind if taken.owner != given.runner]
        if others and all(given.id > taken.id for taken in behind):
            yield Ring(given, others[0], ends_given=True)
    for taken in queued:
        before = [given for given in awaited if taken.token in given.waits]
        its_own = [given for given in before if given.runner == taken.owner]
        if its_own and all(taken.id > given.id for given in its_own):
            yield Ring(its_own[0], taken, ends_given=False)
