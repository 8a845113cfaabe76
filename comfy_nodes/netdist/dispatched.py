"""The job of one of NetDist's queue nodes: given, given again, and what it brings."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io

from zbus.errors import InputError, JobError

from .. import host
from ..exchange.queue_watcher import QUEUE_WATCHER
from ..exchange.runs import RUNS, Run
from ..exchange.waiting import WHO, interruptible
from ..host.lists import unwrap
from ..jobs.batching import join, widening
from ..jobs.expanding import expand
from ..jobs.planned import JobPlan
from ..jobs.submitting import SubmittedJobs
from ..page import peers
from ..prompt import own_paths
from ..prompt.dispatching import Dispatch, clean_url, dispatch, first_result
from ..prompt.graph import Graph, title, whole

Edit = Callable[[Graph], None]


class Dispatched(SubmittedJobs):
    """The job of one queue node: a REMINFO.

    Attributes:
        queue_id: The queue node.
        url: The remote's.
        workflow: The saved workflow that was sent; None: the prompt that gave it.
    """

    piece: Dispatch

    def __init__(
        self,
        plan: JobPlan,
        node_id: str,
        queue_id: str,
        url: str,
        workflow: Mapping[str, Any] | None,
        everything: bool,
        edit: Edit | None,
    ) -> None:
        super().__init__(plan, RUNS.of(host.executing().prompt_id), node_id)
        self.queue_id, self.url, self.workflow = queue_id, url, workflow
        self.everything, self.edit = everything, edit
        self._started: asyncio.Task[None] | None = None
        self._later: tuple[Run, asyncio.Task[Dispatched]] | None = None  # a run, and its job

    async def again(self) -> Dispatched:
        """The same job once more, of the prompt that is being executed now: one for all of that
        prompt's fetch nodes."""
        now = RUNS.of(host.executing().prompt_id)
        if self._later is None or self._later[0] is not now:
            work = _dispatch(
                self.queue_id, self.url, self.workflow, everything=self.everything, edit=self.edit
            )
            self._later = now, asyncio.ensure_future(work)
        return await asyncio.shield(self._later[1])

    async def start(self, values: dict[str, Any]) -> None:
        if self._started is None:  # else another fetch node has
            self._started = asyncio.ensure_future(super().start(values))
        await self.started()

    async def started(self) -> None:
        """Wait until the jobs are given, if another node gives them just now."""
        if self._started is not None:
            await asyncio.shield(self._started)


async def _dispatch(
    queue_id: str,
    remote_url: str,
    workflow: Mapping[str, Any] | None,
    *,
    everything: bool,
    edit: Edit | None = None,
) -> Dispatched:
    """Give a queue node's job, from the node that is being executed."""
    QUEUE_WATCHER.start()
    here = host.executing()
    url = clean_url(remote_url)
    if not url:
        raise InputError("remote_url is empty", remedy='Write it like "http://127.0.0.1:8288/"')
    # Here, unlike in the `peer` of our own nodes, host:port is that of a page, too.
    is_bare = ":" in url and "://" not in url
    remote = await interruptible(peers.resolve(f"http://{url}" if is_bare else url), WHO)
    prompt = workflow if workflow is not None else host.current_prompt()
    if workflow is None and here.node_id not in prompt:  # it is one of a turn of a loop
        prompt = host.graph()

    # A saved workflow's files are those of the remote: it was made for that one.
    attach = () if workflow is not None else own_paths.attached(prompt, host.Classes())
    made = dispatch(prompt, queue_id, url, everything=everything, attach=attach)
    if made.boundaries and workflow is not None:
        names = ", ".join(title(i, prompt[i]) for i, _ in made.boundaries.values())
        raise InputError(
            f"the saved workflow needs from here what only a running one has: {names}",
            remedy="Remove those nodes from it, or load the workflow here and use "
            "Load workflow (current)",
        )
    if edit is not None:
        edit(made.prompt)
    plan = JobPlan(
        made,
        title(queue_id, prompt.get(queue_id, here.node)),
        [peers.Choice(remote)],
        group=f"{queue_id} {here.list_index or 0}",
    )
    jobs = Dispatched(plan, here.node_id, queue_id, url, workflow, everything, edit)
    await jobs.begin()
    return jobs


async def queued(
    first: list[Any], remote_url: str, workflow: Any, *, everything: bool = False, **more: Any
) -> Any:
    """What a queue node returns: `first`, and the job as REMINFO."""
    here = host.executing()
    once = RUNS.of(here.prompt_id).once
    before = once.find(here.key)
    if before is not None:  # ComfyUI computes this node again, for a reader that comes late
        jobs: Dispatched = before.value
    else:
        jobs = await _dispatch(here.node_id, remote_url, workflow, everything=everything, **more)
        once.keep(here.key, jobs)
    made = expand(jobs, here.node_id, collect=False)
    if made.started is None:
        return io.NodeOutput(*first, jobs)
    return io.NodeOutput(*first, list(made.started), expand=made.nodes)


def saved(workflow: Any) -> Any:
    """The workflow, if it is a saved one; None if it is the prompt that is being executed."""
    now = json.dumps(whole(host.current_prompt()), sort_keys=True)  # as text NaN equals NaN
    same = now == json.dumps(workflow, sort_keys=True)
    return None if same else copy.deepcopy(workflow)


async def fetched(jobs: Dispatched, here: host.Here) -> Any:
    """The images that the fetch node which is being executed takes of it, as one batch."""
    shown = host.shown_as(here.node_id)
    name = first_result(shown, jobs.piece.results)
    await jobs.started()
    jobs.shown_here.move_to(shown)
    await jobs.collect(f"the prompt with {title(shown, here.node)}")
    share = jobs.shares[0]
    if name is None:
        raise JobError(
            "that job has no image to fetch",
            peer=share.who,
            remedy="Wire an image to final_image, and queue it again",
        )
    parts = [[image] for image in unwrap(share.result(name))]
    images = join(parts)
    if len(images) != 1:
        raise InputError(
            f"the remote made {len(images)} pictures of different sizes, which are no batch",
            peer=share.who,
            remedy="Scale them to one size before the fetch node, or use Run on Peers",
        )
    count = len(images[0])
    plural = "s" * (count != 1)
    said = f"{count} image{plural} from {share.who} in {share.seconds:.2f} s"
    jobs.shown_here.say("\n".join(filter(None, (said, widening(parts)))))
    return images[0]
