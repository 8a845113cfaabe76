"""How jobs go elsewhere, shown on a node here: the place in the queue, steps, previews.

A synchronous node of this side blocks the coroutines of its prompt, so nothing here waits for
them: a thread of zbus hands texts and pictures to the server's loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from zbus.job import Job

from .. import host
from ..host.lists import as_come
from .early_pictures import KIND, picture


class ShownHere:
    """The jobs of one node.

    Args:
        node_id: The node, as the page knows it.
        client: The page that queued the prompt.
        shown_by: For each result that other nodes show, those nodes, likewise.
    """

    def __init__(
        self,
        node_id: str,
        prompt_id: str,
        client: str | None,
        shown_by: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.node_id, self.prompt_id, self.client = node_id, prompt_id, client
        self._shown_by = shown_by
        self._early: set[tuple[str, str]] = set()  # results whose pictures are shown: (job, name)
        self.jobs: list[Job] = []
        self.on_change: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._said = ""

    def changed(self, job: Job) -> None:
        """Something about a job is new. (In a thread of zbus.)"""
        if self.on_change is not None:
            self.on_change()
        self._show_early(job)
        with self._lock:
            # It changes no more often than zbus looks at each job, 4 times a second.
            text = "\n".join(filter(None, map(_line, self.jobs)))
            if not text or text == self._said:
                return
            self._said = text
            host.show_at(text, self.node_id, self.client)

    def _show_early(self, job: Job) -> None:
        """Pictures that have come while the job goes on, on the nodes that get them at its end."""
        if self.client is None or job not in self.jobs:  # nobody wants it any more
            return
        for name in self._shown_by:
            if not job.done() and name in job.results and (job.id, name) not in self._early:
                self._early.add((job.id, name))
                made = picture(as_come(job.results[name]))
                for node_id in self._shown_by[name] if made is not None else ():
                    if not job.done() and job in self.jobs:  # else the real one stays, or none
                        host.preview_at(KIND, made, node_id, self.prompt_id, self.client)

    def move_to(self, node_id: str) -> None:
        """From now on another node shows it."""
        with self._lock:
            if node_id != self.node_id:
                host.show_at(f"fetched by #{node_id}", self.node_id, self.client)
                self.node_id, self._said = node_id, ""

    def preview(self, node: str, kind: str, data: bytes) -> None:
        """What a node computes there. (In a thread of zbus.)"""
        host.preview_at(kind, data, self.node_id, self.prompt_id, self.client)

    def say(self, text: str) -> None:
        """The last word on it."""
        with self._lock:
            self.jobs, self._said = [], text
            host.show_at(text, self.node_id, self.client)

    def progress(self) -> tuple[int, int]:
        """(step, of how many), of all jobs together."""
        at = [job.progress for job in self.jobs if not job.done()]
        return sum(p.value for p in at), sum(p.maximum for p in at)


def _line(job: Job) -> str:
    if not job.done():
        return job.note
    error = job.error()
    return f"done on {job.peer}" if error is None else str(error)
