"""The local network, once its user opens it: this ComfyUI announces itself, and sees others."""

from __future__ import annotations

import threading

from zbus.keys import short
from zbus.lan import Announcement, Announcer, Browser

from .. import host


class LanPresence:
    """Follows the switch: nothing is sent or heard where the LAN is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._announcer: Announcer | None = None
        self._browser: Browser | None = None

    def follow(self, lan: str, port: int) -> None:
        """The own listener is open to that host's network now; "": to none."""
        with self._lock:
            if lan:
                peer, self._announcer = host.peer(), self._announcer or Announcer()
                self._announcer.announce(peer.name, port, short(peer.trust.keys.public), lan)
            elif self._announcer is not None:
                # Kept: opened again, it lets these goodbyes go out first.
                self._announcer.close()
            if lan and self._browser is None:
                self._browser = Browser()
            elif not lan and self._browser is not None:
                self._browser.close()
                self._browser = None

    def now(self) -> list[Announcement]:
        """Who announces itself."""
        with self._lock:
            return self._browser.now() if self._browser is not None else []

    def close(self) -> None:
        """The process ends: say so, where it has been announced."""
        with self._lock:
            if self._announcer is not None:
                self._announcer.close(0.5)
            if self._browser is not None:
                self._browser.close()


LAN_PRESENCE = LanPresence()
