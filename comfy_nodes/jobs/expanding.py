"""What `Run on Peers` and NetDist's queue nodes expand into: nodes that no user sees.

``ZBusStart`` gives the jobs of a plan as soon as what they need from here has been computed;
``ZBusCollect`` waits for their results, and only then asks for this machine's own share: so that
the others work at the same time.
"""

from __future__ import annotations

import uuid
import weakref
from typing import Any, NamedTuple

from comfy_api.latest import io

from zbus.errors import LocalProtocolError

from .. import host, node_ids
from ..host.lists import unwrap, wrap
from ..prompt.elsewhere import THIS
from ..prompt.graph import Link, title
from ..prompt.single import only
from .batching import join, widening
from .planned import Share
from .submitting import SubmittedJobs

INTERNAL = "zbus/internal"

# Nodes get numbers for live objects; those live as long as the run that gave the jobs.
_SUBMITTED: weakref.WeakValueDictionary[str, SubmittedJobs] = weakref.WeakValueDictionary()


class Expansion(NamedTuple):
    """Nodes to add to the prompt that is being executed."""

    nodes: dict[str, dict[str, Any]]
    started: Link | None  # where `SubmittedJobs` that are given come out; None: they are already
    collected: Link | None  # where [values], the report and what was tapped come out


def expand(
    jobs: SubmittedJobs, node_id: str, local: Link | None = None, *, collect: bool
) -> Expansion:
    """The nodes that finish what `SubmittedJobs.begin` has begun.

    Args:
        node_id: The node that expands.
        local: The same value computed here, if this machine takes part.
        collect: Whether to wait for the results.
    """
    ticket = uuid.uuid4().hex
    _SUBMITTED[ticket] = jobs
    nodes: dict[str, dict[str, Any]] = {}
    started = collected = None
    if not jobs.is_given:
        started = (f"{node_id}.zbus-start", 0)
        links = {f"b{i}": list(link) for i, link in enumerate(jobs.boundaries.values())}
        nodes[started[0]] = {"class_type": node_ids.START, "inputs": {"ticket": ticket, **links}}
    if collect:
        collected = (f"{node_id}.zbus-collect", 0)
        inputs: dict[str, Any] = {"ticket": ticket}
        if started is not None:
            inputs["started"] = list(started)
        if local is not None:
            inputs["local"] = list(local)
        nodes[collected[0]] = {"class_type": node_ids.COLLECT, "inputs": inputs}
    return Expansion(nodes, started, collected)


def _submitted(ticket: Any) -> SubmittedJobs:
    jobs = _SUBMITTED.get(only("ticket", ticket))
    if jobs is None or jobs.is_over:
        raise LocalProtocolError(
            "its run has ended", remedy="This node is made by zbus itself: remove it"
        )
    return jobs


class Start(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.START,
            display_name="(zbus) give jobs",
            category=INTERNAL,
            inputs=[io.String.Input("ticket")],
            outputs=[io.AnyType.Output("given")],
            is_input_list=True,
            is_deprecated=True,  # hides it from the search
            not_idempotent=True,
        )

    @classmethod
    async def execute(cls, ticket: Any, **values: Any) -> Any:
        jobs = _submitted(ticket)
        names = list(jobs.boundaries)
        await jobs.start({name: wrap(values[f"b{i}"]) for i, name in enumerate(names)})
        return io.NodeOutput(jobs)


class Collect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.COLLECT,
            display_name="(zbus) collect results",
            category=INTERNAL,
            inputs=[
                io.String.Input("ticket"),
                io.AnyType.Input("started", optional=True),
                io.AnyType.Input("local", optional=True, lazy=True),
            ],
            outputs=[
                io.AnyType.Output("values"),
                io.String.Output("report"),
                io.AnyType.Output("tapped"),
            ],
            is_input_list=True,
            is_deprecated=True,
            not_idempotent=True,
        )

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        if "local" not in inputs:
            return []
        # Asked again when it is there. Only now that the jobs are given; and not if they failed.
        jobs = _submitted(inputs["ticket"])
        return ["local"] if jobs.begin_here(not _is_missing(inputs["local"])) else []

    @classmethod
    async def execute(cls, ticket: Any, started: Any = None, local: Any = None) -> Any:
        jobs, here = _submitted(ticket), host.executing()
        at_home = None if local is None else jobs.end_here()
        shown = jobs.shown_here.node_id
        await jobs.collect(f"the prompt with {title(shown, host.graph().get(shown, here.node))}")
        results = [] if local is None else [list(local)]
        results += [unwrap(share.result("value")) for share in jobs.shares]
        report = "\n".join(filter(None, (_report(jobs, at_home), widening(results))))
        jobs.shown_here.say(report)
        return io.NodeOutput(join(results), report, _tapped(jobs))


def _tapped(jobs: SubmittedJobs) -> dict[str, list[Any]]:
    """What came along with the value, by name; nothing under one that was blocked there."""
    found = {}
    for result in sorted(set(jobs.plan.brought.values())):
        came = [unwrap(s.result(result)) for s in jobs.shares if s.job and result in s.job.results]
        if came:
            found[result] = join(came)
    brought = jobs.plan.brought.items()
    return {name: found[result] for name, result in brought if result in found}


def _is_missing(local: Any) -> bool:
    """Whether that lazy input is not there: the host gives nothing, or a list of None."""
    return local is None or (len(local) == 1 and local[0] is None)


def _report(jobs: SubmittedJobs, at_home: float | None) -> str:
    done = "it was there already" if jobs.was_here else f"done in {at_home or 0.0:.2f} s"
    lines = [*jobs.plan.left_out, *([] if at_home is None else [f"{THIS}: {done}"])]
    for share in sorted((*jobs.shares, *jobs.lost), key=lambda share: share.position):
        lines += [f"failed: {text}" for text in share.failures]
        if share not in jobs.lost:
            lines.append(f"{share.who}: done in {share.seconds:.2f} s{_notes(share)}")
    return "\n".join([*lines, *jobs.plan.notes])


def _notes(share: Share) -> str:
    notes = [f"taken back from {who}, where it waited" for who in share.left]
    notes += share.job.notes if share.job is not None else ()
    return "".join(f"; {note}" for note in notes)


NODES: dict[str, type[io.ComfyNode]] = {node_ids.START: Start, node_ids.COLLECT: Collect}
