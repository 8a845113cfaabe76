"""Who hears of which message: one table of all kinds that are not for the links themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import RemoteProtocolError
from ..net.frames import Body
from ..net.places import Peering
from ..protocol.channel import Channels
from ..protocol.messages import (
    Await,
    Chunk,
    Finish,
    Grant,
    JobOffer,
    Measure,
    Message,
    Offer,
    Pong,
    Refused,
    ShmDecline,
    ShmNear,
    Stored,
)
from .job_service import JobService
from .measuring import Measuring
from .transfers import Transfers

Handler = Callable[[Peering, Any, "Body | None"], None]


def handlers(
    transfers: Transfers, channels: Channels, measuring: Measuring, jobs: JobService
) -> dict[type[Message], Handler]:
    """The table. A handler may raise RemoteProtocolError: the message breaks the protocol."""

    def check_id(peering: Peering, message: Message, operation: int) -> None:
        # One that is ours to give would keep what this side sends next from being sent.
        link = channels.links.get(peering.key)
        if link is not None and not link.may_be_theirs(operation):
            raise RemoteProtocolError(f"{type(message).__name__.upper()} with an id of this side")

    def measure(peering: Peering, message: Measure, body: Body | None) -> None:
        check_id(peering, message, message.transfer)
        measuring.asked(peering, message, body)

    def operation(peering: Peering, message: Offer | Await, body: Body | None) -> None:
        check_id(peering, message, message.operation)
        channel(peering, message, body)

    def job_offer(peering: Peering, message: JobOffer, body: Body | None) -> None:
        check_id(peering, message, message.operation)
        job(peering, message, body)

    def channel(peering: Peering, message: Message, body: Body | None) -> None:
        channels.receive(peering.key, message, body.take() if body is not None else b"")

    def job(peering: Peering, message: Message, body: Body | None) -> None:
        jobs.receive(peering, message, body.take() if body is not None else b"")

    return {
        Chunk: transfers.chunk,
        Grant: transfers.grant,
        Finish: transfers.finish,
        Stored: transfers.stored,
        Refused: transfers.refused,
        ShmNear: transfers.shm_near,
        ShmDecline: transfers.shm_decline,
        **dict.fromkeys(channels.kinds, channel),
        Offer: operation,
        Await: operation,
        Pong: measuring.pong,
        Measure: measure,
        **dict.fromkeys(jobs.kinds, job),
        JobOffer: job_offer,
    }
