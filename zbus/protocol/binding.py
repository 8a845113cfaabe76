"""Sans-IO: the operations of two bound runs, and whether they are two ends of one item.

On a bound seat one operation at a time is open on each side: a send OFFERs, a receive AWAITs.
They pair by their key: the order, or on Jumper's channel the place in the run's sequence. If each
side has one open and they do not pair, both fail at once, each with both halves in its text.
"""

from __future__ import annotations

from ..errors import (
    ChannelError,
    InvalidOrder,
    LinkError,
    Mismatch,
    OperationPending,
    RunEnded,
    ZBusError,
)
from .fields import clip
from .manifest import JUMPER, accepts
from .messages import Await, Cancel, Close, Offer
from .seats import Event, Failed, Link, Matched, RunBroken, Seat, Send, State, Step

MAX_ORDER = (1 << 63) - 1  # on the wire
MIRROR = "Make the two chains mirror each other"


class Pairing:
    """The operations of all seats.

    Args:
        out: Where what is to be done is left, in order.
    """

    def __init__(self, out: list[Event]) -> None:
        self._out = out

    # --- this side ----------------------------------------------------------------------------

    def begin(self, seat: Seat, step: Step) -> None:
        """A send or receive begins. A send is posted by `offer`, when its value is prepared.

        Raises:
            OperationPending: One is open here already.
            ZBusError: The seat has ended; its own error.
        """
        if seat.step is not None:
            raise OperationPending(
                f"{step} began while {seat.step} is still open on {seat.endpoint}",
                remedy="Wire the order output of the one into the order input of the other",
            )
        if seat.error is not None:
            raise _staged(seat.error, step)
        if seat.channel == JUMPER or step.order is None:
            step.key = seat.count
        else:
            step.key = step.order
        if step.key > MAX_ORDER:
            raise InvalidOrder(
                f"{step} has no order left: the one before had {MAX_ORDER}",
                remedy="Start the chain at 0",
            )
        step.before, seat.count = seat.count, step.key + 1
        seat.step = step
        if seat.state is State.BOUND:
            self.post(seat)

    def offer(self, seat: Seat, step: Step, body: bytes = b"", **told: object) -> Link | None:
        """The value of a send is prepared: offer it, a small one in `body`; `told` are the fields
        of OFFER that speak of the value. Returns the link, None if it is too late."""
        link = seat.link
        if seat.step is not step or seat.state is not State.BOUND or link is None:
            return None
        step.posted = True
        offer = Offer(
            binding=seat.binding,
            operation=step.id,
            key=step.key,
            kind=step.kind,
            node=clip(step.node, 120),
            **told,  # type: ignore[arg-type]
        )
        self._out.append(Send(link.key, offer, body))
        self._pair(seat)
        return link

    def complete(self, seat: Seat, step: Step) -> None:
        """The operation's value has been stored."""
        if seat.step is step:
            seat.step = seat.remote = None
            seat.remote_body = b""
            seat.finished += 1

    def fail(self, seat: Seat, step: Step, error: ZBusError, tell: bool) -> None:
        """The operation failed or was cancelled on this side; `tell` the other side."""
        if seat.step is not step:
            return
        if tell and step.posted and seat.link is not None and seat.state is State.BOUND:
            self._send(seat.link, Cancel(step.id, clip(str(error))))
        seat.step = None
        if seat.channel != JUMPER:
            seat.count = step.before  # its number is free again, on both sides
        if step.matched:
            seat.remote, seat.remote_body = None, b""
        self._out.append(Failed(seat, step, error))

    def post(self, seat: Seat) -> None:
        """The seat is bound: say what this side has open."""
        step, link = seat.step, seat.link
        if step is None or link is None:
            return
        step.id = link.new_operation()
        if step.direction == "receive":
            step.posted = True
            self._send(
                link,
                Await(
                    seat.binding,
                    step.id,
                    step.key,
                    step.kind,
                    clip(step.node, 120),
                ),
            )
        self._pair(seat)

    def _pair(self, seat: Seat) -> None:
        """Look whether the open operations of the two sides belong together."""
        mine, other = seat.step, seat.remote
        if mine is None or other is None or mine.matched:
            return
        problem = _misfit(mine, other)
        if problem:
            error = Mismatch(problem, peer=seat.who, remedy=MIRROR)
            self.broken(seat, error)
        elif isinstance(other, Offer):
            mine.matched = True
            self._out.append(Matched(seat, mine, other, seat.remote_body))
        elif mine.posted:
            mine.matched = True

    # --- the other side -----------------------------------------------------------------------

    def remote(self, seat: Seat, message: Await | Offer, body: bytes) -> None:
        """The other side has begun an operation. One at a time: the one before is over there."""
        seat.remote, seat.remote_body = message, body
        self._pair(seat)

    def cancelled(self, seat: Seat, message: Cancel) -> bool:
        """The other side gives up an operation; whether it was the one that is open here."""
        if seat.remote is None or seat.remote.operation != message.operation:
            return False
        mine = seat.step
        seat.remote, seat.remote_body = None, b""
        if mine is not None and mine.matched:
            why = f"the other side gave up: {message.why}"
            self.fail(seat, mine, RunEnded(why, peer=seat.who, stage=str(mine)), tell=True)
        return True

    # --- ends ---------------------------------------------------------------------------------

    def broken(self, seat: Seat, error: ChannelError) -> None:
        """Both sides see this fault for themselves; the CLOSE is for a side that does not."""
        if seat.link is not None:
            self._send(seat.link, Close(seat.binding, "failed", clip(error.what)))
        self.end(seat, error)

    def end(self, seat: Seat, error: ZBusError, tell_run: bool = True) -> None:
        """The seat has ended, for `error`: so does its operation, or its run is told."""
        expected = seat.expects_more
        step, seat.step = seat.step, None
        seat.state, seat.error = State.ENDED, error
        seat.remote, seat.remote_body = None, b""
        if step is not None:
            self._out.append(Failed(seat, step, _staged(error, step)))
        elif tell_run and expected:
            self._out.append(RunBroken(seat, error))

    def _send(self, link: Link, message: Await | Cancel | Close) -> None:
        self._out.append(Send(link.key, message))


def _misfit(mine: Step, other: Await | Offer) -> str | None:
    """Why the two cannot be the ends of one item, with both halves; None if they can."""
    theirs = "receive" if isinstance(other, Await) else "send"
    here, there = str(mine), other.node or theirs
    if mine.direction == theirs:
        return f"both sides {theirs}: {here} here, {there} there"
    if mine.key != other.key:
        return f"{here} here is at order {mine.key}, {there} there at order {other.key}"
    expect, kind = (
        (mine.kind, other.kind) if isinstance(other, Offer) else (other.expect, mine.kind)
    )
    if not accepts(expect, kind):
        return f"{here} here and {there} there: {expect} is expected, {kind} is sent"
    return None


def _staged(error: ZBusError, step: Step) -> ZBusError:
    return error if isinstance(error, LinkError) and error.stage else error.at(stage=str(step))
