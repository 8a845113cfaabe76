"""Sans-IO: who somebody is, and which session is meant: types, so that nothing less is compared.

A HELLO may claim any incarnation, instance, name and session. What it claims counts only together
with the key that CURVE has proved for its connection. So what belongs to a peer (a job, its
results, its cancel) is held with an `Identity`, and what belongs to a session with a `SessionKey`;
both are made in `net.proving` alone, where that key is at hand. Whoever holds bare bytes cannot ask
for either: mypy says so.
"""

from __future__ import annotations

from typing import NamedTuple


class Identity(NamedTuple):
    """One process of one principal, whose key is proved."""

    key: bytes
    incarnation: bytes


class SessionKey(NamedTuple):
    """Names one session among all of this process. Opaque: to be compared and hashed.

    Attributes:
        principal: The peer's proved key; none on a plain link.
        theirs, ours: The two incarnations.
        where: The listener that accepted it, or what was dialled.
        id: What the dialler calls it on the wire.
    """

    principal: bytes
    theirs: bytes
    ours: bytes
    where: str
    id: bytes
