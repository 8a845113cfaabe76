"""Whom this peer lets in, and to what: the trust store, as the links ask for it.

Runs in the I/O thread. Nothing here ends a session: `links` does, when `changed` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..address import Address
from ..errors import ListenRefused, NotPaired, TrustError
from ..keys import KeyPair, fingerprint
from ..protocol.ways import PAIR
from ..trust import EXCHANGE, JOBS, Trust

logger = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between looks whether somebody is not trusted any more
PAIRED_ONLY = "only paired peers are wanted here (require_pairing)"
NAME_IT = "Give the name of a paired peer (zbus-pair list), or allow it: zbus-pair require off"


class Admission:
    """The trust store of one peer.

    Args:
        trust: The store.
        changed: Called when it says something else than before.
    """

    def __init__(self, trust: Trust, changed: Callable[[], None]) -> None:
        self._trust, self._changed = trust, changed
        self._look_at = 0.0
        self.takes_jobs = False  # from anybody

    @property
    def keys(self) -> KeyPair:
        """This user's.

        Raises:
            TrustError: There are none to be had.
        """
        return self._trust.keys

    @property
    def lan(self) -> str:
        """The host to listen on beyond the loopback; "": none."""
        return self._trust.lan

    @property
    def is_lan_lent(self) -> bool:
        """Whether that lasts only as long as an invitation to pair does."""
        return self._trust.is_lan_lent

    @property
    def plain(self) -> bool:
        """Whether plain addresses on the loopback may be used."""
        return not self._trust.require_pairing

    def check_listen(self, address: Address) -> None:
        """Raises ListenRefused where only paired peers are wanted."""
        if not self.plain:
            raise ListenRefused(f"cannot listen on {address}: {PAIRED_ONLY}", remedy=NAME_IT)

    def check_dial(self, address: Address) -> None:
        """Raises NotPaired where only paired peers are wanted."""
        if not self.plain:
            raise NotPaired(f"will not dial {address}: {PAIRED_ONLY}", remedy=NAME_IT)

    def check_key(self, who: str, key: bytes) -> None:
        """Raises NotPaired for a key that is none of this side's."""
        self.refresh()
        if not self.knows(key):
            raise not_paired(who, key)

    def admits(self, key: bytes) -> bool:
        """Whether the owner of a key may come to this peer's own listener; looks at the store."""
        self.refresh()
        return self.knows(key)

    def knows(self, key: bytes) -> bool:
        """The same, as the store said when it was last looked at."""
        try:
            return self._trust.of(key) is not None
        except TrustError as error:
            logger.error("nobody is let in: %s", error)
            return False

    def permitted(self, key: bytes) -> frozenset[str]:
        """What the owner of that key, or with none whoever comes to a plain address, may do."""
        if not key:
            return frozenset({EXCHANGE})
        principal = self._trust.of(key) if self.knows(key) else None
        allowed = principal.permissions if principal is not None else frozenset()
        return allowed if self.takes_jobs else allowed - {JOBS}

    # --- time ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the store."""
        try:
            if self._trust.refresh():
                self._changed()
        except TrustError as error:
            logger.error("%s. What was known until now counts", error)

    def tick(self, now: float) -> None:
        """Look at the store if it is time."""
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self.refresh()

    @property
    def deadline(self) -> float:
        """When it is, as long as anybody is there who could be sent away, or the LAN is lent."""
        return self._look_at


def not_paired(who: str, key: bytes) -> NotPaired:
    """This side does not trust whoever has that key."""
    return NotPaired(
        f"this computer is not paired with it (the fingerprint that it shows: {fingerprint(key)})",
        peer=who,
        remedy=PAIR,
    )
