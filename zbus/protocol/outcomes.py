"""Sans-IO: how a job ended, as it is told ("end") and as it is raised."""

from __future__ import annotations

from typing import Any

from ..errors import (
    JobCancelled,
    JobError,
    JobFailed,
    JobRefused,
    NotPermitted,
    QueueDeadlock,
    RemoteProtocolError,
    RunsNoPrompts,
    ZBusError,
)
from ..printable import clean_lines
from ..reasons import MAX_REASONS, Reason, lines
from .job_records import GivenJob

MAX_TOLD = 200_000  # characters of a text, a traceback above all

PLAIN = "jobs are not permitted over this link: it is for values only"
NOBODY = "it runs workflows for nobody"
NOT_YOU = "it lets this computer pass values, and run no workflows"
MISSING_CLASS = "Install the node packs that are missing there, and start that ComfyUI again"
NO_PROMPTS = "runs no prompts any more: start it again"
DENIALS = {  # what the side that denies says, and what the other can do
    PLAIN: "Give the peer's name or the address of its own listener, not that of a Server",
    NOBODY: "Start that ComfyUI without ZBUS_JOBS=0",
    NOT_YOU: "Allow it there: zbus-pair permit NAME exchange,jobs (zbus-pair list shows the names)",
}


def refused(reasons: list[Reason]) -> dict[str, Any]:
    """How a job ends that cannot run."""
    return {"outcome": "refused", "reasons": [r.told() for r in reasons[:MAX_REASONS]]}


def refused_for(why: str) -> dict[str, Any]:
    """The same, for one reason that is none of the prompt's."""
    return refused([Reason("other", text=why)])


def not_permitted(why: str) -> dict[str, Any]:
    """How a job ends that may not be given: one of `DENIALS`."""
    return refused([Reason("permission", text=why)])


def runs_no_prompts() -> Reason:
    """Why a job ends, wherever it is, of a ComfyUI whose prompts do not run any more."""
    return Reason("worker", text=f"that ComfyUI {NO_PROMPTS}")


def deadlock(title: str) -> dict[str, Any]:
    """How a job ends that would wait in the queue for its own giver: `title` is the job for which
    the prompt that runs before it waits."""
    return {"outcome": "deadlock", "title": title}


def unsendable(result: str, error: ZBusError) -> dict[str, Any]:
    """How a job ends of which a result cannot travel, or with "" its own end."""
    return {
        "outcome": "failed",
        "title": "sending the result" if result else "sending the end",
        "exception_type": type(error).__name__,
        "message": f"its {f'result {result}' if result else 'end'} cannot be sent: {error}",
    }


def stage(given: GivenJob) -> str:
    """What texts call it."""
    return f"job {given.title}".strip()


def outcome(given: GivenJob, end: dict[str, Any]) -> ZBusError | None:
    """How the given has ended, by what was told; None: well."""
    kind, where = end.get("outcome"), {"peer": given.peer, "stage": stage(given)}
    if kind == "done":
        return None
    if kind == "refused":
        return _refused_error(end.get("reasons"), where)
    if kind == "failed":
        return _failed_error(end, where)
    if kind == "deadlock":
        return deadlock_error(given, _text(end.get("title")))
    if kind == "cancelled":
        return JobCancelled(_text(end.get("why")) or "stopped there", **where)
    return RemoteProtocolError("the job ended in no known way", **where)


def deadlock_error(given: GivenJob, other: str) -> QueueDeadlock:
    """That job, and `other` in the queue here, wait for each other."""
    return QueueDeadlock(
        f"{given.awaited or 'a prompt'} here waits for the job {given.title} there, and the prompt "
        f"that runs there waits for its job {other} in the queue here",
        peer=given.peer,
        stage=stage(given),
        remedy="Run the two workflows one after the other, or let only one of the two "
        "machines give jobs to the other",
    )


def _refused_error(told: object, where: dict[str, str]) -> JobError:
    given = told[:MAX_REASONS] if isinstance(told, list) else []
    reasons = tuple(Reason.read(reason) for reason in given)
    if any(reason.kind == "permission" for reason in reasons):
        what = lines(reasons)
        return NotPermitted(what, **where, remedy=DENIALS.get(what, ""))
    if any(reason.kind == "worker" for reason in reasons):
        return RunsNoPrompts(NO_PROMPTS, **where)
    text = lines(reasons) or "it does not say why"
    told_all = f"cannot run there:\n{text}" if len(reasons) > 1 else text
    lacks = {reason.kind for reason in reasons}
    error = JobRefused(told_all, **where, remedy=MISSING_CLASS if "class" in lacks else "")
    error.reasons = reasons
    return error


def _failed_error(end: dict[str, Any], where: dict[str, str]) -> JobFailed:
    names = ("node_id", "class_type", "exception_type", "message", "traceback")
    told = {name: _text(end.get(name)) for name in names}
    title = _text(end.get("title")) or told["class_type"] or "a node"
    said = told["message"].strip() or told["exception_type"] or "it failed without a word"
    kind, class_type = told["exception_type"].rpartition(".")[2], told["class_type"]
    more = [] if kind in said else [kind]
    more += [] if title.startswith(class_type) else [f"in {class_type}"]
    of = f" ({' '.join(more)})" if more else ""
    error = JobFailed(f"{title} failed there: {said}{of}", **where)
    for name, value in told.items():
        setattr(error, name, value)
    return error


def _text(value: object) -> str:
    return clean_lines(value[:MAX_TOLD]) if isinstance(value, str) else ""
