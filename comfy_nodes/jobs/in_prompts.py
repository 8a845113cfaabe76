"""The jobs of other peers, as the nodes in their prompts see them: what came along, and where what
comes out goes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from zbus.errors import JobError
from zbus.job import Taken

from .. import node_ids
from ..prompt.graph import class_type_of, inputs_of


class Jobs:
    """The jobs whose prompts are queued or run here, by prompt id. Usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Taken] = {}

    def add(self, job: Taken) -> None:
        with self._lock:
            self._jobs[job.id] = job

    def drop(self, prompt_id: str) -> None:
        with self._lock:
            self._jobs.pop(prompt_id, None)

    def __len__(self) -> int:
        return len(self._jobs)

    def value(self, prompt_id: str, name: str) -> Any:
        """A value that came with the job.

        Raises:
            JobError: No such value came, or this prompt is no job.
        """
        values = self._of(prompt_id).request.values
        if name not in values:
            raise JobError(
                f'the job brought no value "{name}"',
                stage="reading what came with it",
                remedy="Run it again from the workflow that has Run on Peers in it",
            )
        return values[name]

    def let_go(self, prompt_id: str, node_id: str, name: str) -> None:
        """The node that gives this value will not be computed again. (One that another node of
        the prompt gives as well stays until the job ends.)"""
        with self._lock:
            job = self._jobs.get(prompt_id)
        if job is not None and _givers(job.request.prompt, name) == {node_id}:
            job.request.values.pop(name, None)

    def result(self, prompt_id: str, name: str, value: Any, declared: str = "") -> None:
        """Hand a result to the peer that gave the job. Returns at once; `declared` is as in
        `Taken.result`.

        Raises:
            NotTransferable: It holds something that cannot travel.
            JobError: This prompt is no job.
        """
        self._of(prompt_id).result(name, value, declared)

    def _of(self, prompt_id: str) -> Taken:
        with self._lock:
            job = self._jobs.get(prompt_id)
        if job is None:
            raise JobError(
                "this prompt was not given by a peer",
                remedy="This node is made by zbus itself: remove it from the workflow",
            )
        return job


def _givers(prompt: Mapping[str, Mapping[str, Any]], name: str) -> set[str]:
    """The nodes that give that value."""
    return {
        node_id
        for node_id, node in prompt.items()
        if class_type_of(node) == node_ids.VALUE and inputs_of(node).get("name", "") == name
    }


JOBS = Jobs()
