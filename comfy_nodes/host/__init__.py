"""The only room that touches ComfyUI's internals: what the host tells, and what it is told."""

from __future__ import annotations

from .classes import Classes, class_of
from .facts import facts
from .files import input_file, input_files, output_file
from .node import Here, ProgressBar, current_prompt, doing, executing, graph, shown_as
from .page import notice, preview_at, show, show_at
from .process import answer, at_start, handle, metadata_wanted, on_loop, on_prompt, peer, port
from .queue import (
    Interrupted,
    Running,
    Validation,
    cancel,
    check_interrupt,
    echo,
    ending,
    enqueue,
    follow,
    forget,
    interrupt,
    interrupted,
    outcome,
    place,
    queue,
    running,
    unfollow,
    validate,
    watch_queue,
)

__all__ = [
    "Classes",
    "Here",
    "Interrupted",
    "ProgressBar",
    "Running",
    "Validation",
    "answer",
    "at_start",
    "cancel",
    "check_interrupt",
    "class_of",
    "current_prompt",
    "doing",
    "echo",
    "ending",
    "enqueue",
    "executing",
    "facts",
    "follow",
    "forget",
    "graph",
    "handle",
    "input_file",
    "input_files",
    "interrupt",
    "interrupted",
    "metadata_wanted",
    "notice",
    "on_loop",
    "on_prompt",
    "outcome",
    "output_file",
    "peer",
    "place",
    "port",
    "preview_at",
    "queue",
    "running",
    "show",
    "show_at",
    "shown_as",
    "unfollow",
    "validate",
    "watch_queue",
]
