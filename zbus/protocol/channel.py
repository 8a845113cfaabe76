"""Sans-IO: two workflow runs meeting on a chain.

Two people start two workflows at different times. Each run takes a `Registration` at an endpoint
(an address it listens on, one it dials, or any connected peer) and a channel. A registration is
announced on every session that its endpoint covers; two that meet on a session are bound, first
come first served, and stay bound until one run ends::

    WAITING --BOUND sent--> PROPOSED --BOUND_OK--> BOUND --CLOSE, session ended, mismatch--> ENDED
       ^                       |
       +------NOT_BOUND--------+          (the side that listens proposes, the other answers)

What passes on a bound registration is for `binding`.

`Channels` holds all registrations of a process. It takes messages and calls, and leaves what is to
be done in `out`: messages to send, and events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import (
    AmbiguousPeer,
    Cancelled,
    Mismatch,
    RemoteProtocolError,
    RunEnded,
    WrongNodes,
    ZBusError,
)
from .binding import MIRROR, Matching
from .fields import clip
from .identity import SessionKey
from .manifest import JUMPER, Manifest, compare
from .messages import (
    Announce,
    Await,
    Bound,
    BoundOk,
    Cancel,
    CancelOk,
    Close,
    Message,
    NotBound,
    Offer,
    Withdraw,
)
from .registrations import (
    Endpoint,
    Event,
    Link,
    Registration,
    Send,
    State,
)

MAX_REMOTE_RUNS = 64  # of one peer, waiting on one session: more are announced one by one


class Channels:
    """All registrations of one process, and what the other sides have announced."""

    def __init__(self) -> None:
        self.out: list[Event] = []
        self.matching = Matching(self.out)
        self.registrations: list[Registration] = []
        self.links: dict[SessionKey, Link] = {}
        self._abandoned: dict[tuple[SessionKey, int], Close] = {}  # proposals that ended unanswered
        self._handlers: dict[type[Message], Callable[[Link, Any, bytes], None]] = {
            Announce: self._announced,
            Withdraw: self._withdrawn,
            Bound: self._proposed,
            BoundOk: self._accepted,
            NotBound: self._declined,
            Await: self._begun,
            Offer: self._begun,
            Cancel: self._cancelled,
            CancelOk: self._cancel_answered,
            Close: self._closed,
        }

    def drain(self) -> list[Event]:
        """What is to be done since the last call, in order."""
        out = self.out.copy()
        self.out.clear()
        return out

    # --- registrations ------------------------------------------------------------------------

    def open(
        self,
        run: str,
        endpoint: Endpoint,
        channel: str,
        since: str,
        manifest: Manifest | None = None,
    ) -> Registration:
        """A run takes its registration.

        Args:
            run: Names the run for the other side, at most 80 characters.
            since: When the run began, for people ("14:02").
            manifest: What the run will do here, where it is known.
        """
        registration = Registration(run, endpoint, channel, since, manifest)
        self.registrations.append(registration)
        for link in self._covered(registration):
            self._announce(registration, link)
        self._settle_ambiguity(registration)
        for link in self._covered(registration):
            self._bind(link)
        return registration

    def close(self, registration: Registration, outcome: str, why: str = "") -> None:
        """The run has ended: "ok", "failed" or "cancelled", and why. Ends an open operation."""
        if registration in self.registrations:
            self.registrations.remove(registration)
        if registration.state is State.ENDED:
            self._withdraw(registration, f"the run of {registration.since} there has ended", None)
            return
        message = Close(max(registration.binding, 0), outcome, clip(why))
        if registration.state is State.BOUND and registration.link is not None:
            self._send(registration.link, message)
        elif registration.state is State.PROPOSED and registration.link is not None:
            self._abandoned[registration.link.key, registration.binding] = message
        if registration.state is not State.BOUND:
            self._withdraw(registration, f"the run of {registration.since} there has ended", None)
        self.matching.end(
            registration, Cancelled("this run has ended", peer=registration.who), tell_run=False
        )

    def _covered(self, registration: Registration) -> list[Link]:
        return [link for link in self.links.values() if registration.endpoint.covers(link)]

    def _announce(self, registration: Registration, link: Link) -> None:
        if registration.state is State.BOUND:
            self._send(link, Withdraw(registration.run, registration.channel, _busy(registration)))
            return
        key = registration.run, registration.channel
        if key not in link.announced and len(link.announced) >= MAX_REMOTE_RUNS:
            if registration not in link.held:
                link.held.append(registration)
            return
        link.announced.add(key)
        channels = {
            s.channel
            for s in self.registrations
            if s.run == registration.run and s.endpoint.covers(link)
        }
        self._send(
            link,
            Announce(
                registration.run,
                registration.channel,
                registration.since,
                tuple(sorted(channels | {registration.channel}))[:64],
                None if registration.manifest is None else tuple(registration.manifest),
            ),
        )

    def _withdraw(self, registration: Registration, why: str, but: Link | None) -> None:
        for link in self._covered(registration):
            if registration in link.held:
                link.held.remove(registration)
            elif link is not but and (registration.run, registration.channel) in link.announced:
                self._send(link, Withdraw(registration.run, registration.channel, why))
                self._not_announced(registration, link)

    def _not_announced(self, registration: Registration, link: Link) -> None:
        """The other side does not keep it any more: there is room for one that waits for that. A
        run may have two places that lead there: of the other one it has to hear anew."""
        link.announced.discard((registration.run, registration.channel))
        for twin in self.registrations:
            is_of_it = twin.run == registration.run and twin is not registration
            if is_of_it and _waits(twin, link, registration.channel):
                self._announce(twin, link)
                break
        while link.held and len(link.announced) < MAX_REMOTE_RUNS:
            self._announce(link.held.pop(0), link)
        self._bind(link)

    def _settle_ambiguity(self, registration: Registration) -> None:
        kind = registration.endpoint.kind
        if kind not in ("any", "peer") or registration.state is not State.WAITING:
            return
        covered = self._covered(registration)
        # With its key: an incarnation alone is what anybody may claim.
        peers = {(link.principal, link.incarnation): link.peer for link in covered}
        if len(peers) > 1:
            names = ", ".join(sorted(peers.values()))
            which = "no peer is named here, and" if kind == "any" else f"of {registration.endpoint}"
            example = (
                "" if kind == "any" else f", such as {registration.endpoint}/{min(peers.values())}"
            )
            error = AmbiguousPeer(
                f"{which} {len(peers)} are connected: {names}",
                remedy=f"Name one of them in the node's peer field{example}",
            )
            self._withdraw(registration, "that run found more than one peer", None)
            self.matching.end(registration, error)

    # --- sessions ---------------------------------------------------------------------------

    def session_up(self, link: Link) -> Link:
        """A new session: announce on it all that it covers."""
        self.links[link.key] = link
        for registration in list(self.registrations):
            if registration.endpoint.covers(link) and registration.state is not State.ENDED:
                self._announce(registration, link)
                self._settle_ambiguity(registration)
        return link

    def session_down(self, key: SessionKey, error: ZBusError) -> None:
        """The session has ended, and with it every binding on it."""
        link = self.links.pop(key, None)
        if link is None:
            return
        self._abandoned = {k: v for k, v in self._abandoned.items() if k[0] != key}
        for registration in list(self.registrations):
            if registration.link is not link:
                continue
            if registration.state is State.PROPOSED:
                self._free(registration)
            elif registration.state is State.BOUND:
                self.matching.end(registration, error)

    def refuse(self, endpoint: Endpoint, error: ZBusError) -> None:
        """That endpoint will not come about: whoever waits for it need not wait longer."""
        for registration in list(self.registrations):
            if registration.endpoint == endpoint and registration.state is State.WAITING:
                self.matching.end(registration, error)

    # --- messages -----------------------------------------------------------------------------

    def receive(self, key: SessionKey, message: Message, body: bytes = b"") -> None:
        """Take one message of a session, of one of `kinds`. After the session's end it is late,
        and nothing is done.

        Raises:
            RemoteProtocolError: The peer breaks the rules of binding.
        """
        link = self.links.get(key)
        if link is not None:
            self._handlers[type(message)](link, message, body)

    @property
    def kinds(self) -> tuple[type[Message], ...]:
        """The kinds of messages that are for channels."""
        return tuple(self._handlers)

    def _announced(self, link: Link, message: Announce, _: bytes) -> None:
        # A run announced again waits anew, at the end of the row.
        link.remote.pop((message.run, message.channel), None)
        if len(link.remote) >= MAX_REMOTE_RUNS:
            raise RemoteProtocolError("too many runs announced")
        link.remote[message.run, message.channel] = message
        link.busy.pop(message.channel, None)
        self._refuse_other_nodes(link, message)
        self._bind(link)

    def _begun(self, link: Link, message: Await | Offer, body: bytes) -> None:
        for registration in self._bound_by(link, message.binding):
            self.matching.remote(registration, message, body)

    def _cancelled(self, link: Link, message: Cancel, _: bytes) -> None:
        for registration in self._bound_by(link, message.binding):
            self.matching.cancelled(registration, message)

    def _cancel_answered(self, link: Link, message: CancelOk, _: bytes) -> None:
        for registration in self._bound_by(link, message.binding):
            self.matching.cancel_answered(registration, message)

    def _refuse_other_nodes(self, link: Link, message: Announce) -> None:
        """Jumper's nodes and zbus's own do not meet: say so instead of waiting for ever."""
        for registration in list(self.registrations):
            if registration.state is not State.WAITING or not registration.endpoint.covers(link):
                continue
            ours = {
                s.channel
                for s in self.registrations
                if s.run == registration.run and s.endpoint.covers(link)
            }
            if ours & set(message.channels) or (JUMPER in ours) == (JUMPER in message.channels):
                continue
            names = {True: "ComfyUI-Jumper's nodes", False: "zbus's own nodes"}
            here, there = names[JUMPER in ours], names[JUMPER in message.channels]
            error = WrongNodes(
                f"{here} here ({_nodes(registration.manifest)}) cannot meet {there} there "
                f"({_nodes(message.manifest)})",
                peer=link.peer,
                remedy="Use the same kind of nodes on both sides",
            )
            self.matching.end(registration, error)

    def _withdrawn(self, link: Link, message: Withdraw, _: bytes) -> None:
        link.remote.pop((message.run, message.channel), None)
        if len(link.busy) < MAX_REMOTE_RUNS:
            link.busy[message.channel] = message.why
        for registration in self._bound(link):
            if (
                registration.state is State.PROPOSED
                and registration.partner
                and registration.partner.run == message.run
            ):
                link.busy[message.channel] = message.why

    def _bind(self, link: Link) -> None:
        """Propose to every announced run the first registration that waits for it."""
        if not link.binds:
            return
        for (run, channel), announced in list(link.remote.items()):
            # Only one that the other side knows of: else it says NOT_BOUND, and both wait.
            registration = next(
                (
                    s
                    for s in self.registrations
                    if _waits(s, link, channel) and (s.run, channel) in link.announced
                ),
                None,
            )
            if registration is None or (run, channel) not in link.remote:
                continue
            del link.remote[run, channel]
            link.bindings += 1
            registration.state, registration.link = State.PROPOSED, link
            registration.binding, registration.partner = link.bindings, announced
            self._send(link, Bound(registration.binding, channel, registration.run, run))
            self._not_announced(registration, link)

    def _proposed(self, link: Link, message: Bound, _: bytes) -> None:
        if link.binds:
            raise RemoteProtocolError("BOUND from the side that does not bind")
        announced = link.remote.pop((message.mine, message.channel), None)
        registration = next(
            (
                s
                for s in self.registrations
                if s.run == message.yours and _waits(s, link, message.channel)
            ),
            None,
        )
        if registration is None or announced is None:
            self._send(link, NotBound(message.binding, "that run does not wait any more"))
            return
        registration.link, registration.binding, registration.partner = (
            link,
            message.binding,
            announced,
        )
        self._send(link, BoundOk(message.binding))
        self._bound_now(registration, link)
        self._not_announced(registration, link)

    def _accepted(self, link: Link, message: BoundOk, _: bytes) -> None:
        abandoned = self._abandoned.pop((link.key, message.binding), None)
        if abandoned is not None:
            self._send(link, abandoned)
            return
        for registration in self._bound(link):
            if registration.binding == message.binding and registration.state is State.PROPOSED:
                self._bound_now(registration, link)

    def _declined(self, link: Link, message: NotBound, _: bytes) -> None:
        self._abandoned.pop((link.key, message.binding), None)
        for registration in self._bound(link):
            if registration.binding == message.binding and registration.state is State.PROPOSED:
                self._free(registration)

    def _bound_now(self, registration: Registration, link: Link) -> None:
        registration.state = State.BOUND
        self._withdraw(registration, _busy(registration), link)
        theirs = registration.partner.manifest if registration.partner else None
        if registration.manifest is not None and theirs is not None:
            problem = compare(registration.channel, registration.manifest, theirs)
            if problem:
                error = Mismatch(problem, peer=link.peer, remedy=MIRROR)
                self.matching.broken(registration, error)
                return
        self.matching.post(registration)

    def _free(self, registration: Registration) -> None:
        """A proposal came to nothing: the registration waits again, everywhere."""
        registration.state, registration.link, registration.binding, registration.partner = (
            State.WAITING,
            None,
            -1,
            None,
        )
        for link in self._covered(registration):
            self._announce(registration, link)
            self._bind(link)

    def _closed(self, link: Link, message: Close, _: bytes) -> None:
        outcome = {
            "ok": "the other workflow has finished",
            "failed": "the other workflow failed",
            "cancelled": "the other workflow was cancelled",
        }[message.outcome]
        what = f"{outcome}: {message.why}" if message.why else outcome
        remedy = {
            "ok": f"{MIRROR}, then run both again",
            "failed": "Mend it there, then run both again",
            "cancelled": "",
        }[message.outcome]
        for registration in self._bound_by(link, message.binding):
            self.matching.end(registration, RunEnded(what, peer=link.peer, remedy=remedy))

    def _bound_by(self, link: Link, binding: int) -> list[Registration]:
        """The run that is bound so; none if it has ended here."""
        return [
            registration
            for registration in self._bound(link)
            if registration.binding == binding and registration.state is State.BOUND
        ]

    def _bound(self, link: Link) -> Iterable[Registration]:
        return [registration for registration in self.registrations if registration.link is link]

    def _send(self, link: Link, message: Message) -> None:
        self.out.append(Send(link.key, message))


def _waits(registration: Registration, link: Link, channel: str) -> bool:
    return (
        registration.state is State.WAITING
        and registration.channel == channel
        and registration.endpoint.covers(link)
    )


def _busy(registration: Registration) -> str:
    partner = f" of {registration.partner.since}" if registration.partner else ""
    peer = f" from {registration.link.peer}" if registration.link else ""
    return f"busy with the run{partner}{peer}"


def _nodes(manifest: Manifest | None) -> str:
    names = list(dict.fromkeys(op[4] for op in manifest or () if op[4]))
    return ", ".join(names[:3]) or "unknown nodes"
