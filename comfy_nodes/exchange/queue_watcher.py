"""A thread that follows ComfyUI's queue: runs begin and end, and peers hear what is being done."""

from __future__ import annotations

import logging
import threading
import time

from zbus.protocol.outcomes import NO_PROMPTS
from zbus.values.recycling import RECYCLER

from .. import host
from ..page.own_listener import OWN_LISTENER
from .activity import IDLE, describe
from .runs import RUNS

logger = logging.getLogger(__name__)

TICK = 0.25  # seconds, while a prompt is being executed; without one it sleeps,
FREEING = 5.0  # seconds that ComfyUI may take to free what it was asked to
STAY = 2.0  # but not for so long after news: what they announce may not have happened yet


class QueueWatcher:
    """Started with ComfyUI's server, or by the first node that runs."""

    def __init__(self) -> None:
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._looked = False
        self.jumper: dict[str, type] = {}  # the nodes whose ids the original pack may hold

    def start(self) -> None:
        """Start the peer and follow the queue; once."""
        with self._lock:
            if self._thread is not None:
                return
            RECYCLER.reserve = host.memory_reserve()
            OWN_LISTENER.open()
            host.watch_queue(self._news.set)
            self._thread = threading.Thread(target=self._run, name="zbus-runs", daemon=True)
            self._thread.start()

    def free(self) -> None:
        """ComfyUI is asked to free memory."""
        RECYCLER.let_go(FREEING)

    def _run(self) -> None:
        awake_until = time.monotonic()
        while True:
            now = time.monotonic()
            if self._news.wait(TICK if now < awake_until else None):
                awake_until = time.monotonic() + STAY
            self._news.clear()
            try:
                if self._turn():
                    awake_until = time.monotonic() + STAY
            except Exception:  # the next turn is another chance
                logger.exception("the queue could not be followed")

    def _turn(self) -> bool:
        OWN_LISTENER.refresh()
        busy = RUNS.sync()
        if busy:
            RUNS.stop_broken()
            RUNS.let_go()
            RECYCLER.relieve()
            self._look_for_jumper()
        idle = IDLE if host.runs_prompts() else NO_PROMPTS
        host.peer().set_activity(describe() if busy else idle)
        return busy

    def _look_for_jumper(self) -> None:
        """The original pack, if it was loaded after this one, has taken its ids back."""
        if self._looked:
            return
        self._looked = True
        lost = [i for i, ours in self.jumper.items() if host.node_class(i) is not ours]
        if lost:
            text = f"ComfyUI-Jumper is also installed and owns {', '.join(lost)}: remove it"
            logger.warning(text)
            for item in host.running():
                host.notice(text, item.client, level="warning")


QUEUE_WATCHER = QueueWatcher()
