"""This ComfyUI as others find it: its own listener, its entry in the registry, its card."""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable
from typing import Any

from zbus import __version__, discovery
from zbus.errors import ZBusError
from zbus.given import switch
from zbus.job import JobHost
from zbus.keys import to_text

from .. import host
from .lan_presence import LAN_PRESENCE

logger = logging.getLogger(__name__)

JOBS = "ZBUS_JOBS"  # "0": this ComfyUI takes no jobs at all, from nobody
PORT_OFFSET = 10000  # ComfyUI's port 8188 -> 18188
REGISTER_EVERY = 6 * 3600.0  # seconds: entries of others' reckoning must not look old


class OwnListener:
    """Opened once, when ComfyUI's server starts."""

    def __init__(self) -> None:
        self.address = ""
        # Makes what takes jobs, of this peer's name. `jobs/` stands above this room: the extension
        # sets it.
        self.job_host: Callable[[str], JobHost] | None = None
        self._registered = 0.0
        self._lan = ""

    def open(self) -> None:
        """Listen for this user's other ComfyUIs and for the paired, and be found."""
        if self.address:
            return
        peer = host.peer()
        taken = self.job_host is not None and switch(JOBS, otherwise=True, wary=False)
        serving = self.job_host(peer.name) if self.job_host is not None and taken else None
        try:
            port = host.port() + PORT_OFFSET
            self.address = peer.serve(serving, port, on_lan=self._lan_changed)
        except ZBusError:
            logger.exception("this ComfyUI takes no jobs: its listener could not be opened")
            return
        self.register()
        atexit.register(discovery.unregister, peer.own.instance.hex())
        atexit.register(LAN_PRESENCE.close)

    def _lan_changed(self, lan: str, port: int) -> None:
        self._lan = lan
        LAN_PRESENCE.follow(lan, port)

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
                    key=to_text(peer.trust.keys.public),
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
        peer = host.peer()
        return {
            "id": peer.own.instance.hex(),
            "name": peer.name,
            "version": __version__,
            "key": to_text(peer.trust.keys.public) if self.address else "",
            "endpoints": [self.address] if self.address else [],
            "lan": bool(self._lan),
            "ws": bool(self.address),
        }


OWN_LISTENER = OwnListener()
