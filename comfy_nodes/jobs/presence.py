"""This ComfyUI as others find it: its own listener, its entry in the registry, its card."""

from __future__ import annotations

import atexit
import logging
import os
import time
from typing import Any

from zbus import __version__, discovery
from zbus.errors import ZBusError

from .. import host
from .serving import Serving

logger = logging.getLogger(__name__)

JOBS = "ZBUS_JOBS"  # "0": this ComfyUI takes no jobs at all
PORT_OFFSET = 10000  # ComfyUI's port 8188 -> 18188
REGISTER_EVERY = 6 * 3600.0  # seconds: entries of others' reckoning must not look old


class Presence:
    """Opened once, when ComfyUI's server starts."""

    def __init__(self) -> None:
        self.address = ""
        self._registered = 0.0

    def open(self) -> None:
        """Listen for jobs, and be found."""
        if self.address or os.environ.get(JOBS) == "0":
            return
        try:
            self.address = host.peer().serve(Serving(host.peer().name), host.port() + PORT_OFFSET)
        except ZBusError:
            logger.exception("this ComfyUI takes no jobs: its listener could not be opened")
            return
        self.register()
        atexit.register(discovery.unregister, host.peer().own.instance.hex())

    def register(self) -> None:
        """Write the entry that other ComfyUIs of this user look up names in."""
        self._registered = time.monotonic()
        peer = host.peer()
        try:
            discovery.register(
                discovery.Entry.of_this_process(
                    peer.own.instance.hex(),
                    peer.name,
                    self.address,
                    url=f"http://127.0.0.1:{host.port()}",
                    software=peer.own.software,
                )
            )
        except (OSError, ZBusError) as error:
            logger.warning("other ComfyUIs will not find this one by name: %s", error)

    def refresh(self) -> None:
        """Called now and then: write the entry again before it looks old."""
        if self.address and time.monotonic() - self._registered >= REGISTER_EVERY:
            self.register()

    def card(self) -> dict[str, Any]:
        """What `/zbus/peer` tells: who this is and where it listens. Nothing secret."""
        own = host.peer().own
        return {
            "id": own.instance.hex(),
            "name": own.name,
            "version": __version__,
            "endpoints": [self.address] if self.address else [],
        }


PRESENCE = Presence()
