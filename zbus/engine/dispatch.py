"""Who hears of which message: one table of all kinds that are not for the links themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..net.frames import Body
from ..net.places import Peering
from ..protocol.channel import Channels
from ..protocol.messages import (
    Chunk,
    Enquire,
    Facts,
    Finish,
    Grant,
    JobCancel,
    JobOffer,
    JobPreview,
    JobProgress,
    JobState,
    Measure,
    Message,
    Pong,
    Refused,
    ShmDecline,
    ShmOffer,
    ShmReady,
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

    def channel(peering: Peering, message: Message, body: Body | None) -> None:
        channels.receive(peering.key, message, body.take() if body is not None else b"")

    def job(peering: Peering, message: Message, body: Body | None) -> None:
        jobs.message(peering, message, body.take() if body is not None else b"")

    return {
        Chunk: transfers.chunk,
        Grant: transfers.grant,
        Finish: transfers.finish,
        Stored: transfers.stored,
        Refused: transfers.refused,
        ShmReady: transfers.shm_ready,
        ShmOffer: transfers.shm_offer,
        ShmDecline: transfers.shm_decline,
        **dict.fromkeys(channels.kinds, channel),
        Pong: measuring.pong,
        Measure: measuring.asked,
        JobOffer: job,
        JobState: job,
        JobProgress: job,
        JobPreview: job,
        JobCancel: job,
        Enquire: job,
        Facts: job,
    }
