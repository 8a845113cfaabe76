"""This ComfyUI as others find it: its own listener, its entry in the registry, its card."""

from __future__ import annotations

import atexit
import logging
import time
from typing import Any

from zbus import __version__, discovery
from zbus.errors import ZBusError
from zbus.given import switch
from zbus.keys import to_text

from .. import host
from ..seen import SEEN
from .serving import Serving

logger = logging.getLogger(__name__)

JOBS = "ZBUS_JOBS"  # "0": this ComfyUI takes no jobs at all, from nobody
PORT_OFFSET = 10000  # ComfyUI's port 8188 -> 18188
REGISTER_EVERY = 6 * 3600.0  # seconds: entries of others' reckoning must not look old


class Presence:
    """Opened once, when ComfyUI's server starts."""

    def __init__(self) -> None:
        self.address = ""
        self._registered = 0.0
        self._lan = ""

    def open(self) -> None:
        """Listen for this user's other ComfyUIs and for the paired, and be found."""
        if self.address:
            return
        peer = host.peer()
        serving = Serving(peer.name) if switch(JOBS, otherwise=True, wary=False) else None
        try:
            port = host.port() + PORT_OFFSET
            self.address = peer.serve(serving, port, on_lan=self._lan_changed)
        except ZBusError:
            logger.exception("this ComfyUI takes no jobs: its listener could not be opened")
            return
        self.register()
        atexit.register(discovery.unregister, peer.own.instance.hex())
        atexit.register(SEEN.close)

    def _lan_changed(self, lan: str, port: int) -> None:
        self._lan = lan
        SEEN.follow(lan, port)

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


PRESENCE = Presence()
