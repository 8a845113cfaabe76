"""ComfyUI's history, where prompts are told as their users made them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from .process import the_server
from .queue import watch_queue

logger = logging.getLogger(__name__)


def tell_history_as(change: Callable[[Any], Any]) -> None:
    """Have the history tell, of each prompt that has ended, what `change` makes of it. Only while
    ComfyUI loads its nodes.

    It is executed as it is in the queue, so there it stays as it is.
    """
    if the_server() is not None:
        watch_queue(_Retold(change).look)


class _Retold:
    def __init__(self, change: Callable[[Any], Any]) -> None:
        self._change = change
        self._seen: dict[str, bool] = {}  # prompts in the queue: whether there is a change to make

    def look(self) -> None:
        """See what is in the queue, and what has left it. On the server's loop: before anybody who
        is told of an end can ask for it."""
        try:
            self._look()
        except Exception:  # of a prompt that may have nothing to do with us
            logger.exception("a prompt is told as it was executed")

    def _look(self) -> None:
        queue = the_server().prompt_queue
        with queue.mutex:
            items = [*queue.currently_running.values(), *queue.queue]
            prompts = {item[1]: item[2] for item in items}
            for prompt_id in [one for one in self._seen if one not in prompts]:
                entry = queue.history.get(prompt_id)
                if self._seen.pop(prompt_id) and entry is not None:
                    number, same_id, prompt, *more = entry["prompt"]
                    entry["prompt"] = (number, same_id, self._change(prompt), *more)
            for prompt_id, prompt in prompts.items():
                if prompt_id not in self._seen:
                    self._seen[prompt_id] = self._change(prompt) is not prompt
