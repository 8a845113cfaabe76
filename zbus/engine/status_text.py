"""The line of text on a step that waits: for whom, and why."""

from __future__ import annotations

from ..job import Job
from ..net.places import Peering
from ..operation import size_text
from ..protocol.channel import MAX_REMOTE_RUNS
from ..protocol.delivery import SendState
from ..protocol.registrations import Link, State
from .context import Context
from .inflow import Inflow
from .outflow import Outflow
from .running import Running


def explain(context: Context, running: Running, now: float) -> str:
    """Whom this operation waits for and why; "" where the line that stands says more."""
    registration = running.registration
    if registration.link is not None and registration.state is State.BOUND:
        peering = context.peering(registration.link.key)
        return "" if peering is None else _bound(context, running, peering, now)
    covered = [
        link for link in context.channels.links.values() if registration.endpoint.covers(link)
    ]
    known = [(link, peering) for link in covered if (peering := context.peering(link.key))]
    # A session whose link stands says more than one that is lost.
    for link, peering in sorted(known, key=lambda pair: not pair[1].session.is_linked):
        return _waiting(context, running, link, peering, now)
    if running.place is not None:
        return context.links.addresses.explain(running.place, now)
    if registration.endpoint.kind == "peer":
        return (
            f"{registration.endpoint} is not connected, and no address of it is known here: "
            "run there too"
        )
    return "press Run on the other side, or name a peer here: none is connected yet"


def _waiting(context: Context, running: Running, link: Link, peering: Peering, now: float) -> str:
    """There is a session, and no run on it that would be for us."""
    troubled = _trouble(context, peering, now)
    if troubled:
        return troubled
    busy = link.busy.get(running.registration.channel)
    if busy:
        return f"{peering.name}: {busy}"
    if running.registration in link.held:
        ahead = f"{MAX_REMOTE_RUNS} runs of this computer wait for {peering.name} already"
        return f"{ahead}: this one's turn comes"
    others = sorted({channel for _, channel in link.remote})
    if others and running.registration.channel not in others:
        return (
            f'{peering.name} waits on channel "{others[0]}", not "{running.registration.channel}"'
        )
    if peering.activity not in ("", "idle"):
        return f"{peering.name} is connected and busy: {peering.activity}"
    return f"press Run on {peering.name}: it is connected and idle"


def _bound(context: Context, running: Running, peering: Peering, now: float) -> str:
    troubled = _trouble(context, peering, now)
    if troubled:
        return troubled
    if running.registration.cancelling is not None:
        return f"{peering.name} has not answered yet that the operation before was cancelled"
    of_value = _of_value(context, running.flow, peering)
    if of_value is not None:
        return of_value
    if running.step.matched:
        return f"{peering.name}: {running.step} begins"
    doing = peering.activity if peering.activity not in ("", "idle") else "computing"
    return f"{peering.name} has not come to this yet: {doing}"


def _of_value(context: Context, flow: Outflow | Inflow | None, peering: Peering) -> str | None:
    """How far its value is; "" where the line that stands says so, None where nothing moves."""
    if isinstance(flow, Outflow):
        if flow.delivery.held:
            return f"{peering.name} waits for memory for it: values on their way there take it"
        is_busy = flow.delivery.state is SendState.PACKING or flow.delivery.received > 0
        return "" if is_busy else None
    if flow is None:
        return None
    if flow.delivery.waits_for_memory:
        budget, lost = context.budget, ", ".join(context.transfers.holders_without_link())
        whose = f" (one from {lost}, whose link is lost)" if lost else ""
        taken, cap = size_text(budget.taken), size_text(budget.cap)
        return f"waiting for memory: values on their way take {taken} of {cap}{whose}"
    return "" if flow.delivery.incoming.received or flow.delivery.is_whole else None


def explain_job(
    context: Context, job: Job, peering: Peering | None, lost_at: float | None, now: float
) -> str:
    """Where a job of this side is; `lost_at`: when its session broke, while another may come."""
    if peering is None and lost_at is not None:
        return _lost(context, job.peer, now - lost_at)
    if peering is None:
        return f"connecting to {job.remote}"
    troubled = _trouble(context, peering, now)
    if troubled:
        return troubled
    at, who = job.progress, peering.name
    if at.state == "sending":
        sent = f": {size_text(at.received)} of {size_text(at.total)}" if at.total else ""
        return f"sending to {who}{sent}"
    if at.state == "queued":
        ahead = f"{at.place} before it" if at.place else "next"
        doing = f": {peering.activity}" if peering.activity not in ("", "idle") else ""
        return f"queued on {who}, {ahead}{doing}"
    if at.total and at.received < at.total:
        return f"receiving from {who}: {size_text(at.received)} of {size_text(at.total)}"
    step = f" {at.value}/{at.maximum}" if at.maximum > 1 else ""
    return f"{who}: {at.title}{step}" if at.title else f"running on {who}"


def _trouble(context: Context, peering: Peering, now: float) -> str:
    lost = peering.session.lost_for(now)
    if lost > 0:
        return _lost(context, peering.name, lost)
    return f"{peering.name} is not answering for {peering.silent:.0f} s" if peering.silent else ""


def _lost(context: Context, name: str, seconds: float) -> str:
    minutes, rest = divmod(int(context.settings.reconnect_wait), 60)
    return f"link to {name} lost {seconds:.0f} s ago, trying, gives up at {minutes}:{rest:02d}"
