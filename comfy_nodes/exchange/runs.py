"""The life of a run: its channels open when its prompt starts and close when that has ended.

A prompt's start and end are seen in the queue (`sync`), by a watcher as they happen, and once more
when a node is reached, in case that came first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import zbus
from zbus import Channel
from zbus.errors import ZBusError
from zbus.printable import shown
from zbus.remote import Remote
from zbus.resolver import BY_ADDRESS

from .. import host
from ..page import peers
from ..prompt import late_readers
from .calling import call_each
from .meeting import Meeting
from .once import Once
from .plans import OPERATIONS, MeetingPlan, plan_meetings

logger = logging.getLogger(__name__)

NOT_YET = "not reached yet"


@dataclass
class Run:
    """One prompt that is being executed, and its channels."""

    id: str
    client: str | None = None
    in_queue: bool = True  # else a program of its own executes it, and its end cannot be seen
    number: int = 0  # of its turn in the queue
    execution: object = None  # where it is not in the queue: what no other one has
    outputs: tuple[str, ...] = ()  # the nodes that are wanted; none: every output node
    plans: dict[Meeting, MeetingPlan] = field(default_factory=dict)
    since: str = field(default_factory=lambda: datetime.now().strftime("%H:%M"))
    channels: dict[Meeting, Channel] = field(default_factory=dict)
    broken: ZBusError | None = None  # the other side's end, for which this run is stopped
    done: set[str] = field(default_factory=set)  # nodes of ours that have ended
    remotes: dict[Meeting, Remote] = field(default_factory=dict)  # whom URLs mean, once asked
    at_end: list[Callable[[str], None]] = field(default_factory=list)  # told "ok", "failed"...
    once: Once = field(default_factory=Once)  # what its nodes have done
    _classes: host.Classes = field(default_factory=host.Classes)

    def close(self, outcome: str, why: str = "") -> None:
        """Tell the other sides how this run has ended. The first word counts."""
        call_each(partial(channel.close, outcome, why) for channel in self.channels.values())

    def show(self, text: str, nodes: tuple[str, ...]) -> None:
        """Put a text on those of the nodes that have not ended."""
        for node in nodes:
            if node not in self.done:
                host.show(text, node, self.client)

    def is_wanted(self, node: str) -> bool:
        """Whether ComfyUI may compute that node again."""
        execution = host.how_far(self.id, self.outputs)
        return execution is None or late_readers.may_come(node, execution, self._classes)

    def let_go(self) -> None:
        """Give the host's memory back what nobody can ask for any more."""
        if not self.once.is_holding:
            return
        execution = host.how_far(self.id, self.outputs)
        if execution is not None:
            self.once.let_go(
                lambda node: (
                    node not in execution.finished
                    or late_readers.may_come(node, execution, self._classes)
                )
            )


class Runs:
    """The runs of this process. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}

    def sync(self) -> bool:
        """Begin and end runs as the queue says; whether any prompt is being executed."""
        with self._lock:
            return self._sync()

    def _sync(self) -> bool:
        running = {item.id: item for item in host.running()}
        turns = {item.number for item in running.values()}
        for run in [r for r in self._runs.values() if r.in_queue and r.number not in turns]:
            self._end(run)
        for item in running.values():
            if item.id not in self._runs:
                self._begin(item)
        return bool(running)

    def _begin(self, item: host.Running) -> None:
        run = Run(item.id, item.client, number=item.number, outputs=item.outputs)
        self._runs[item.id] = run
        if not any(node.get("class_type") in OPERATIONS for node in item.prompt.values()):
            return
        run.plans = plan_meetings(item.prompt, item.outputs, host.Classes())
        for meeting, planned in run.plans.items():
            run.show(NOT_YET, planned.nodes)  # in place of what the run before left there
            if meeting.kind == "peer" and peers.is_url(meeting.address):
                asking = (run, meeting, planned)
                threading.Thread(
                    target=self._ask, args=asking, name="zbus-asking", daemon=True
                ).start()
            else:
                self._open_early(run, meeting, planned)

    def _open_early(self, run: Run, meeting: Meeting, planned: MeetingPlan) -> None:
        try:
            self._open(run, meeting)
        except ZBusError as error:
            # Raised when the node is reached, if it is so still.
            logger.warning("%s", error)
            run.show(str(error), planned.nodes)

    def _ask(self, run: Run, meeting: Meeting, planned: MeetingPlan) -> None:
        """Ask a page who its peer is, while nobody waits for it."""
        try:
            remote = peers.find(meeting.address, BY_ADDRESS)
        except ZBusError as error:
            logger.warning("%s", error)
            run.show(str(error), planned.nodes)
            return
        with self._lock:
            run.remotes[meeting] = remote
            if self._runs.get(run.id) is run and meeting not in run.channels:
                self._open_early(run, meeting, planned)

    def _end(self, run: Run) -> None:
        del self._runs[run.id]
        outcome, why = self._outcome(run)
        run.close(outcome, why)
        call_each(partial(tell, outcome) for tell in run.at_end)
        run.once.end()

    def _outcome(self, run: Run) -> tuple[str, str]:
        """How it has ended, and why, as another user may read it."""
        if run.broken is None and not (run.in_queue and (run.channels or run.at_end)):
            return "ok", ""
        try:
            ended = host.outcome(run.id) if run.broken is None else ("failed", str(run.broken))
            return ended[0], host.without_paths(ended[1]) if ended[1] else ""
        except Exception:  # what the history and the lists of folders hold is not ours alone
            logger.exception("how prompt %s has ended could not be read", run.id)
            return "failed", "its end could not be read; its log may tell"

    def _open(self, run: Run, meeting: Meeting) -> Channel:
        peer, planned = host.peer(), run.plans.get(meeting)

        def broken(error: ZBusError) -> None:
            self._broken(run, planned, error)

        # A prompt's id is what its client likes it to be.
        told = zbus.Run(
            shown(run.id, 80) or "prompt", run.since, planned.manifest if planned else None, broken
        )
        if meeting.kind == "any":
            channel = peer.anyone(channel=meeting.channel, run=told)
        elif meeting.kind == "listen":
            channel = peer.listen(meeting.address, channel=meeting.channel, run=told)
        elif meeting.kind == "peer":
            remote = run.remotes.get(meeting) or peers.find(meeting.address, BY_ADDRESS)
            channel = peer.meet(remote, channel=meeting.channel, run=told)
        else:
            channel = peer.connect(meeting.address, channel=meeting.channel, run=told)
        run.channels[meeting] = channel
        return channel

    def _broken(self, run: Run, planned: MeetingPlan | None, error: ZBusError) -> None:
        """The other run has ended and this one still computes: stop it. (In a thread of zbus.)"""
        run.broken = error
        text = f"stopped: {error}"
        logger.error("prompt %s is %s", run.id, text)
        host.interrupt(run.id)
        host.notice(text, run.client, prompt_id=run.id, level="error")
        run.show(text, planned.nodes if planned else ())

    def stop(self, run: Run, node_id: str, error: ZBusError) -> None:
        """The run fails at that node, though another one computes. From any thread."""
        run.broken = error
        logger.error("prompt %s is stopped: %s", run.id, error)
        host.fail(run.id, node_id, error)

    def stop_broken(self) -> None:
        """Once more: an interrupt that came just before its prompt began was lost."""
        with self._lock:
            broken = [run.id for run in self._runs.values() if run.broken is not None]
        for prompt_id in broken:
            host.interrupt(prompt_id)

    # --- for the nodes ------------------------------------------------------------------------

    def of(self, prompt_id: str) -> Run:
        """The run of a prompt that is being executed."""
        with self._lock:
            self._sync()
            execution = host.execution()
            for before in [r for r in self._runs.values() if not r.in_queue]:
                if before.id != prompt_id or before.execution is not execution:
                    self._end(before)
            if prompt_id not in self._runs:
                self._runs[prompt_id] = Run(prompt_id, in_queue=False, execution=execution)
            return self._runs[prompt_id]

    def let_go(self) -> None:
        """Give the host's memory back what no run needs any more."""
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.let_go()

    def asks(self, run: Run, meeting: Meeting) -> bool:
        """Whether a page must be asked before `channel` can open: `find` its peer first."""
        with self._lock:
            is_url = meeting.kind == "peer" and peers.is_url(meeting.address)
            return is_url and meeting not in run.channels and meeting not in run.remotes

    def found(self, run: Run, meeting: Meeting, remote: Remote) -> None:
        """Whom that page means."""
        with self._lock:
            run.remotes.setdefault(meeting, remote)

    def channel(self, run: Run, meeting: Meeting) -> Channel:
        """The run's channel there; opened now if its place was not known before.

        Raises:
            ZBusError: It cannot be opened.
        """
        with self._lock:
            return run.channels.get(meeting) or self._open(run, meeting)


RUNS = Runs()
