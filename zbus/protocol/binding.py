"""Sans-IO: the operations of two bound runs, and whether they are two ends of one item.

On a bound registration one operation at a time is open on each side: a send OFFERs, a receive
AWAITs. They pair by their key: the order, or on Jumper's channel the place in the run's sequence.
If each side has one open and they do not pair, both fail at once, each with both halves in its
text.

A side that gives up an operation says CANCEL and is done with it at once; but the other side may
have completed it in the meantime, and its STORED may be on its way. So each CANCEL is answered by
CANCEL_OK, behind whatever was said before it, and the next operation of this side is said only
after that word. Then both sides agree on which items are done, and the channel stays usable.
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
from .messages import Await, Cancel, CancelOk, Close, Offer
from .registrations import (
    ChannelOperation,
    Event,
    Failed,
    Link,
    Matched,
    MayOffer,
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
        if registration.operation is not None:
            raise OperationPending(
                f"{step} began while {registration.operation} is still open on "
                f"{registration.endpoint}",
                remedy="Wire the order output of the one into the order input of the other",
            )
        if registration.error is not None:
            raise _staged(registration.error, step)
        if step.order is None and registration.next_key > MAX_ORDER:
            raise InvalidOrder(
                f"{step} has no order left: the one before had {MAX_ORDER}",
                remedy="Start the chain at 0",
            )
        registration.operation = step
        self.post(registration)

    def post(self, registration: Registration) -> None:
        """Say what this side has open, if the registration is bound, and the other side has
        answered what was given up before."""
        step, link = registration.operation, registration.link
        is_bound = registration.state is State.BOUND and registration.cancelling is None
        if step is None or link is None or not is_bound:
            return
        by_sequence = registration.channel == JUMPER or step.order is None
        step.key = registration.next_key if by_sequence or step.order is None else step.order
        step.id = link.new_operation()
        if step.direction == "send":
            self._out.append(MayOffer(registration, step))
        else:
            step.posted = True
            node = clip(step.node, 120)
            self._send(link, Await(registration.binding, step.id, step.key, step.kind, node))
        self._pair(registration)

    def offer(
        self, registration: Registration, step: ChannelOperation, body: bytes = b"", **told: object
    ) -> None:
        """The value of a send is prepared: offer it, a small one in `body`; `told` are the fields
        of OFFER that speak of the value."""
        link = registration.link
        is_open = registration.operation is step and registration.state is State.BOUND
        if link is None or not is_open:
            return
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

    def complete(self, registration: Registration, step: ChannelOperation) -> None:
        """The operation's value has been stored, here or there."""
        if registration.operation is step:
            registration.operation = None
            if registration.remote is not None:
                registration.last_done = registration.remote.operation
            registration.remote, registration.remote_body = None, b""
            self._count(registration, step)

    def _count(self, registration: Registration, step: ChannelOperation) -> None:
        registration.next_key = step.key + 1
        registration.finished += 1

    def fail(
        self, registration: Registration, step: ChannelOperation, error: ZBusError, tell: bool
    ) -> None:
        """The operation failed or was cancelled on this side; `tell` the other side."""
        if registration.operation is not step:
            return
        registration.operation = None
        is_bound = registration.state is State.BOUND and registration.link is not None
        if tell and step.posted and is_bound and registration.link is not None:
            registration.cancelling = step
            cancel = Cancel(registration.binding, step.id, clip(str(error)))
            self._send(registration.link, cancel)
        elif step.matched:
            registration.remote, registration.remote_body = None, b""
        self._out.append(Failed(registration, step, error))

    def _pair(self, registration: Registration) -> None:
        """Look whether the open operations of the two sides belong together."""
        mine, other = registration.operation, registration.remote
        is_said = mine is not None and mine.id and registration.cancelling is None
        if mine is None or other is None or mine.matched or not is_said:
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

    def cancelled(self, registration: Registration, message: Cancel) -> None:
        """The other side gives up an operation; perhaps it is the one that is open here, and
        perhaps it was completed here, or given up, before this word came."""
        remote, mine = registration.remote, registration.operation
        if remote is not None and remote.operation == message.operation:
            registration.remote, registration.remote_body = None, b""
            if mine is not None and mine.matched:
                why = f"the other side gave up: {message.why}"
                error = RunEnded(why, peer=registration.who, stage=str(mine))
                self.fail(registration, mine, error, tell=False)
        if registration.link is not None:
            mine = registration.operation
            answer = CancelOk(
                registration.binding,
                message.operation,
                registration.last_done == message.operation,
                mine.id if mine is not None and mine.posted else 0,
            )
            self._send(registration.link, answer)

    def cancel_answered(self, registration: Registration, message: CancelOk) -> None:
        """The other side has heard that this one gave up an operation."""
        given_up = registration.cancelling
        if given_up is None or given_up.id != message.operation:
            return
        registration.cancelling = None
        if message.stored:
            self._count(registration, given_up)
        remote = registration.remote
        if remote is not None and remote.operation != message.open:
            registration.remote, registration.remote_body = None, b""
        self.post(registration)
        self._pair(registration)

    # --- ends ---------------------------------------------------------------------------------

    def broken(self, registration: Registration, error: ChannelError) -> None:
        """Both sides see this fault for themselves; the CLOSE is for a side that does not."""
        if registration.link is not None:
            self._send(registration.link, Close(registration.binding, "failed", clip(error.what)))
        self.end(registration, error)

    def end(self, registration: Registration, error: ZBusError, tell_run: bool = True) -> None:
        """The registration has ended, for `error`: so does its operation, or its run is told."""
        expected = registration.expects_more
        step, registration.operation = registration.operation, None
        registration.state, registration.error = State.ENDED, error
        registration.remote, registration.remote_body = None, b""
        registration.cancelling = None
        if step is not None:
            self._out.append(Failed(registration, step, _staged(error, step)))
        elif tell_run and expected:
            self._out.append(RunBroken(registration, error))

    def _send(self, link: Link, message: Await | Cancel | CancelOk | Close) -> None:
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
