"""A thread that follows ComfyUI's queue: runs begin and end, and peers hear what is being done."""

from __future__ import annotations

import logging
import threading

from . import host
from .activity import IDLE, describe
from .runs import RUNS

logger = logging.getLogger(__name__)

TICK = 0.25  # seconds, while a prompt is being executed; without one it sleeps


class Watcher:
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
            host.peer()
            host.watch_queue(self._news.set)
            self._thread = threading.Thread(target=self._run, name="zbus-runs", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        busy = True
        while True:
            self._news.wait(TICK if busy else None)
            self._news.clear()
            try:
                busy = self._turn()
            except Exception:  # the next turn is another chance
                logger.exception("the queue could not be followed")

    def _turn(self) -> bool:
        busy = RUNS.sync()
        if busy:
            RUNS.stop_broken()
            self._look_for_jumper()
        host.peer().set_activity(describe() if busy else IDLE)
        return busy

    def _look_for_jumper(self) -> None:
        """The original pack, if it was loaded after this one, has taken its ids back."""
        if self._looked:
            return
        self._looked = True
        lost = [i for i, ours in self.jumper.items() if host.class_of(i) is not ours]
        if lost:
            text = f"ComfyUI-Jumper is also installed and owns {', '.join(lost)}: remove it"
            logger.warning(text)
            for item in host.running():
                host.notice(text, item.client, level="warning")


WATCHER = Watcher()
