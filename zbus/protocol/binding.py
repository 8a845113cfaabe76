"""Sans-IO: the operations of two bound runs, and whether they are two ends of one item.

On a bound registration one operation at a time is open on each side: a send OFFERs, a receive
AWAITs. They pair by their key: the order, or on Jumper's channel the place in the run's sequence.
If each side has one open and they do not pair, both fail at once, each with both halves in its
text.
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
from .registrations import (
    ChannelOperation,
    Event,
    Failed,
    Link,
    Matched,
    Registration,
    RunBroken,
    Send,
    State,
)

MAX_ORDER = (1 << 63) - 1  # on the wire
MIRROR = "Make the two chains mirror each other"


class Matching:
    """The operations of all registrations.

    Args:
        out: Where what is to be done is left, in order.
    """

    def __init__(self, out: list[Event]) -> None:
        self._out = out

    # --- this side ----------------------------------------------------------------------------

    def begin(self, registration: Registration, step: ChannelOperation) -> None:
        """A send or receive begins. A send is posted by `offer`, when its value is prepared.

        Raises:
            OperationPending: One is open here already.
            ZBusError: The registration has ended; its own error.
        """
        if registration.step is not None:
            raise OperationPending(
                f"{step} began while {registration.step} is still open on {registration.endpoint}",
                remedy="Wire the order output of the one into the order input of the other",
            )
        if registration.error is not None:
            raise _staged(registration.error, step)
        if registration.channel == JUMPER or step.order is None:
            step.key = registration.count
        else:
            step.key = step.order
        if step.key > MAX_ORDER:
            raise InvalidOrder(
                f"{step} has no order left: the one before had {MAX_ORDER}",
                remedy="Start the chain at 0",
            )
        step.before, registration.count = registration.count, step.key + 1
        registration.step = step
        if registration.state is State.BOUND:
            self.post(registration)

    def offer(
        self, registration: Registration, step: ChannelOperation, body: bytes = b"", **told: object
    ) -> Link | None:
        """The value of a send is prepared: offer it, a small one in `body`; `told` are the fields
        of OFFER that speak of the value. Returns the link, None if it is too late."""
        link = registration.link
        if registration.step is not step or registration.state is not State.BOUND or link is None:
            return None
        step.posted = True
        offer = Offer(
            binding=registration.binding,
            operation=step.id,
            key=step.key,
            kind=step.kind,
            node=clip(step.node, 120),
            **told,  # type: ignore[arg-type]
        )
        self._out.append(Send(link.key, offer, body))
        self._pair(registration)
        return link

    def complete(self, registration: Registration, step: ChannelOperation) -> None:
        """The operation's value has been stored."""
        if registration.step is step:
            registration.step = registration.remote = None
            registration.remote_body = b""
            registration.finished += 1

    def fail(
        self, registration: Registration, step: ChannelOperation, error: ZBusError, tell: bool
    ) -> None:
        """The operation failed or was cancelled on this side; `tell` the other side."""
        if registration.step is not step:
            return
        if (
            tell
            and step.posted
            and registration.link is not None
            and registration.state is State.BOUND
        ):
            self._send(registration.link, Cancel(step.id, clip(str(error))))
        registration.step = None
        if registration.channel != JUMPER:
            registration.count = step.before  # its number is free again, on both sides
        if step.matched:
            registration.remote, registration.remote_body = None, b""
        self._out.append(Failed(registration, step, error))

    def post(self, registration: Registration) -> None:
        """The registration is bound: say what this side has open."""
        step, link = registration.step, registration.link
        if step is None or link is None:
            return
        step.id = link.new_operation()
        if step.direction == "receive":
            step.posted = True
            self._send(
                link,
                Await(
                    registration.binding,
                    step.id,
                    step.key,
                    step.kind,
                    clip(step.node, 120),
                ),
            )
        self._pair(registration)

    def _pair(self, registration: Registration) -> None:
        """Look whether the open operations of the two sides belong together."""
        mine, other = registration.step, registration.remote
        if mine is None or other is None or mine.matched:
            return
        problem = _misfit(mine, other)
        if problem:
            error = Mismatch(problem, peer=registration.who, remedy=MIRROR)
            self.broken(registration, error)
        elif isinstance(other, Offer):
            mine.matched = True
            self._out.append(Matched(registration, mine, other, registration.remote_body))
        elif mine.posted:
            mine.matched = True

    # --- the other side -----------------------------------------------------------------------

    def remote(self, registration: Registration, message: Await | Offer, body: bytes) -> None:
        """The other side has begun an operation. One at a time: the one before is over there."""
        registration.remote, registration.remote_body = message, body
        self._pair(registration)

    def cancelled(self, registration: Registration, message: Cancel) -> bool:
        """The other side gives up an operation; whether it was the one that is open here."""
        if registration.remote is None or registration.remote.operation != message.operation:
            return False
        mine = registration.step
        registration.remote, registration.remote_body = None, b""
        if mine is not None and mine.matched:
            why = f"the other side gave up: {message.why}"
            self.fail(
                registration, mine, RunEnded(why, peer=registration.who, stage=str(mine)), tell=True
            )
        return True

    # --- ends ---------------------------------------------------------------------------------

    def broken(self, registration: Registration, error: ChannelError) -> None:
        """Both sides see this fault for themselves; the CLOSE is for a side that does not."""
        if registration.link is not None:
            self._send(registration.link, Close(registration.binding, "failed", clip(error.what)))
        self.end(registration, error)

    def end(self, registration: Registration, error: ZBusError, tell_run: bool = True) -> None:
        """The registration has ended, for `error`: so does its operation, or its run is told."""
        expected = registration.expects_more
        step, registration.step = registration.step, None
        registration.state, registration.error = State.ENDED, error
        registration.remote, registration.remote_body = None, b""
        if step is not None:
            self._out.append(Failed(registration, step, _staged(error, step)))
        elif tell_run and expected:
            self._out.append(RunBroken(registration, error))

    def _send(self, link: Link, message: Await | Cancel | Close) -> None:
        self._out.append(Send(link.key, message))


def _misfit(mine: ChannelOperation, other: Await | Offer) -> str | None:
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


def _staged(error: ZBusError, step: ChannelOperation) -> ZBusError:
    return error if isinstance(error, LinkError) and error.stage else error.at(stage=str(step))
