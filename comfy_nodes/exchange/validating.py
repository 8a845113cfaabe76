"""What can be told of a node's inputs before anything runs."""

from __future__ import annotations

from ..page.peers import resolver
from .meeting import Meeting


def check(meeting: Meeting) -> None:
    """Whether the name of a meeting means somebody; a URL is not asked.

    Raises:
        InputError: It does not.
    """
    if meeting.kind == "peer":
        resolver().read(meeting.address)
