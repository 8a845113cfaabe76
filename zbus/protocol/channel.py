"""Sans-IO: two workflow runs meeting on a chain.

Two people start two workflows at different times. Each run takes a `Seat` at an endpoint (an
address it listens on, one it dials, or any connected peer) and a channel. A seat is announced on
every session that its endpoint covers; two seats that meet on a session are bound, first come
first served, and stay bound until one run ends::

    WAITING --BOUND sent--> PROPOSED --BOUND_OK--> BOUND --CLOSE, session ended, mismatch--> ENDED
       ^                       |
       +------NOT_BOUND--------+          (the side that listens proposes, the other answers)

What passes on a bound seat is for `pairing`.

`Channels` holds all seats of a process. It takes messages and calls, and leaves what is to be
done in `out`: messages to send, and events.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import (
    AmbiguousPeer,
    Cancelled,
    Mismatch,
    RemoteProtocolError,
    RunEnded,
    WrongNodes,
    ZBusError,
)
from .binding import MIRROR, Pairing
from .fields import clip
from .manifest import JUMPER, Manifest, compare
from .messages import (
    Announce,
    Await,
    Bound,
    BoundOk,
    Cancel,
    Close,
    Message,
    NotBound,
    Offer,
    Withdraw,
)
from .seats import (
    Endpoint,
    Event,
    Link,
    Seat,
    SeatBound,
    Send,
    SessionKey,
    State,
)

MAX_REMOTE_RUNS = 64  # waiting on one session


class Channels:
    """All seats of one process, and what the other sides have announced."""

    def __init__(self) -> None:
        self.out: list[Event] = []
        self.pairing = Pairing(self.out)
        self.seats: list[Seat] = []
        self.links: dict[SessionKey, Link] = {}
        self._abandoned: dict[tuple[SessionKey, int], Close] = {}  # proposals that ended unanswered

    def drain(self) -> list[Event]:
        """What is to be done since the last call, in order."""
        out = self.out.copy()
        self.out.clear()
        return out

    # --- seats ------------------------------------------------------------------------------

    def open(
        self,
        run: str,
        endpoint: Endpoint,
        channel: str,
        since: str,
        manifest: Manifest | None = None,
    ) -> Seat:
        """A run takes its seat.

        Args:
            run: Names the run for the other side, at most 80 characters.
            since: When the run began, for people ("14:02").
            manifest: What the run will do here, where it is known.
        """
        seat = Seat(run, endpoint, channel, since, manifest)
        self.seats.append(seat)
        for link in self._covered(seat):
            self._announce(seat, link)
        self._settle_ambiguity(seat)
        for link in self._covered(seat):
            self._bind(link)
        return seat

    def close(self, seat: Seat, outcome: str, why: str = "") -> None:
        """The run has ended: "ok", "failed" or "cancelled", and why. Ends an open operation."""
        if seat in self.seats:
            self.seats.remove(seat)
        if seat.state is State.ENDED:
            return
        message = Close(max(seat.binding, 0), outcome, clip(why))
        if seat.state is State.BOUND and seat.link is not None:
            self._send(seat.link, message)
        elif seat.state is State.PROPOSED and seat.link is not None:
            self._abandoned[seat.link.key, seat.binding] = message
        if seat.state is not State.BOUND:
            self._withdraw(seat, f"the run of {seat.since} there has ended", None)
        self.pairing.end(seat, Cancelled("this run has ended", peer=seat.who), tell_run=False)

    def _covered(self, seat: Seat) -> list[Link]:
        return [link for link in self.links.values() if seat.endpoint.covers(link)]

    def _announce(self, seat: Seat, link: Link) -> None:
        if seat.state is State.BOUND:
            self._send(link, Withdraw(seat.run, seat.channel, _busy(seat)))
            return
        channels = {s.channel for s in self.seats if s.run == seat.run and s.endpoint.covers(link)}
        self._send(
            link,
            Announce(
                seat.run,
                seat.channel,
                seat.since,
                tuple(sorted(channels | {seat.channel}))[:64],
                None if seat.manifest is None else tuple(seat.manifest),
            ),
        )

    def _withdraw(self, seat: Seat, why: str, but: Link | None) -> None:
        for link in self._covered(seat):
            if link is not but:
                self._send(link, Withdraw(seat.run, seat.channel, why))

    def _settle_ambiguity(self, seat: Seat) -> None:
        kind = seat.endpoint.kind
        if kind not in ("any", "peer") or seat.state is not State.WAITING:
            return
        peers = {link.incarnation: link.peer for link in self._covered(seat)}
        if len(peers) > 1:
            names = ", ".join(sorted(peers.values()))
            which = "no peer is named here, and" if kind == "any" else f"of {seat.endpoint}"
            example = "" if kind == "any" else f", such as {seat.endpoint}/{min(peers.values())}"
            error = AmbiguousPeer(
                f"{which} {len(peers)} are connected: {names}",
                remedy=f"Name one of them in the node's peer field{example}",
            )
            self._withdraw(seat, "that run found more than one peer", None)
            self.pairing.end(seat, error)

    # --- sessions ---------------------------------------------------------------------------

    def session_up(self, link: Link) -> Link:
        """A new session: announce on it all that it covers."""
        self.links[link.key] = link
        for seat in list(self.seats):
            if seat.endpoint.covers(link) and seat.state is not State.ENDED:
                self._announce(seat, link)
                self._settle_ambiguity(seat)
        return link

    def session_down(self, key: SessionKey, error: ZBusError) -> None:
        """The session has ended, and with it every binding on it."""
        link = self.links.pop(key, None)
        if link is None:
            return
        self._abandoned = {k: v for k, v in self._abandoned.items() if k[0] != key}
        for seat in list(self.seats):
            if seat.link is not link:
                continue
            if seat.state is State.PROPOSED:
                self._free(seat)
            elif seat.state is State.BOUND:
                self.pairing.end(seat, error)

    def refuse(self, endpoint: Endpoint, error: ZBusError) -> None:
        """That endpoint will not come about: whoever waits for it need not wait longer."""
        for seat in list(self.seats):
            if seat.endpoint == endpoint and seat.state is State.WAITING:
                self.pairing.end(seat, error)

    # --- messages -----------------------------------------------------------------------------

    def receive(self, key: SessionKey, message: Message, body: bytes = b"") -> bool:
        """Take one message of a session; False if it is not for channels.

        Raises:
            RemoteProtocolError: The peer breaks the rules of binding.
        """
        link = self.links.get(key)
        if link is None:
            return False
        match message:
            case Announce():
                self._on_announce(link, message)
            case Withdraw():
                self._on_withdraw(link, message)
            case Bound():
                self._on_bound(link, message)
            case BoundOk():
                self._on_bound_ok(link, message)
            case NotBound():
                self._on_not_bound(link, message)
            case Await() | Offer():
                for seat in self._bound(link):
                    if seat.binding == message.binding and seat.state is State.BOUND:
                        self.pairing.remote(seat, message, body)
            case Close():
                self._on_close(link, message)
            case Cancel():
                return any(self.pairing.cancelled(seat, message) for seat in self._bound(link))
            case _:
                return False
        return True

    def _on_announce(self, link: Link, message: Announce) -> None:
        if len(link.remote) >= MAX_REMOTE_RUNS:
            raise RemoteProtocolError("too many runs announced")
        # A run announced again waits anew, at the end of the row.
        link.remote.pop((message.run, message.channel), None)
        link.remote[message.run, message.channel] = message
        link.busy.pop(message.channel, None)
        self._refuse_other_nodes(link, message)
        self._bind(link)

    def _refuse_other_nodes(self, link: Link, message: Announce) -> None:
        """Jumper's nodes and zbus's own do not meet: say so instead of waiting for ever."""
        for seat in list(self.seats):
            if seat.state is not State.WAITING or not seat.endpoint.covers(link):
                continue
            ours = {s.channel for s in self.seats if s.run == seat.run and s.endpoint.covers(link)}
            if ours & set(message.channels) or (JUMPER in ours) == (JUMPER in message.channels):
                continue
            names = {True: "ComfyUI-Jumper's nodes", False: "zbus's own nodes"}
            here, there = names[JUMPER in ours], names[JUMPER in message.channels]
            error = WrongNodes(
                f"{here} here ({_nodes(seat.manifest)}) cannot meet {there} there "
                f"({_nodes(message.manifest)})",
                peer=link.peer,
                remedy="Use the same kind of nodes on both sides",
            )
            self.pairing.end(seat, error)

    def _on_withdraw(self, link: Link, message: Withdraw) -> None:
        link.remote.pop((message.run, message.channel), None)
        if len(link.busy) < MAX_REMOTE_RUNS:
            link.busy[message.channel] = message.why
        for seat in self._bound(link):
            if seat.state is State.PROPOSED and seat.partner and seat.partner.run == message.run:
                link.busy[message.channel] = message.why

    def _bind(self, link: Link) -> None:
        """Propose to every announced run the first seat that waits for it."""
        if not link.binds:
            return
        for (run, channel), announced in list(link.remote.items()):
            seat = next((s for s in self.seats if _waits(s, link, channel)), None)
            if seat is None:
                continue
            del link.remote[run, channel]
            link.bindings += 1
            seat.state, seat.link = State.PROPOSED, link
            seat.binding, seat.partner = link.bindings, announced
            self._send(link, Bound(seat.binding, channel, seat.run, run))

    def _on_bound(self, link: Link, message: Bound) -> None:
        if link.binds:
            raise RemoteProtocolError("BOUND from the side that does not bind")
        announced = link.remote.pop((message.mine, message.channel), None)
        seat = next(
            (s for s in self.seats if s.run == message.yours and _waits(s, link, message.channel)),
            None,
        )
        if seat is None or announced is None:
            self._send(link, NotBound(message.binding, "that run does not wait any more"))
            return
        seat.link, seat.binding, seat.partner = link, message.binding, announced
        self._send(link, BoundOk(message.binding))
        self._bound_now(seat, link)

    def _on_bound_ok(self, link: Link, message: BoundOk) -> None:
        abandoned = self._abandoned.pop((link.key, message.binding), None)
        if abandoned is not None:
            self._send(link, abandoned)
            return
        for seat in self._bound(link):
            if seat.binding == message.binding and seat.state is State.PROPOSED:
                self._bound_now(seat, link)

    def _on_not_bound(self, link: Link, message: NotBound) -> None:
        self._abandoned.pop((link.key, message.binding), None)
        for seat in self._bound(link):
            if seat.binding == message.binding and seat.state is State.PROPOSED:
                self._free(seat)

    def _bound_now(self, seat: Seat, link: Link) -> None:
        seat.state = State.BOUND
        self._withdraw(seat, _busy(seat), link)
        theirs = seat.partner.manifest if seat.partner else None
        if seat.manifest is not None and theirs is not None:
            problem = compare(seat.channel, seat.manifest, theirs)
            if problem:
                error = Mismatch(problem, peer=link.peer, remedy=MIRROR)
                self.pairing.broken(seat, error)
                return
        self.out.append(SeatBound(seat))
        self.pairing.post(seat)

    def _free(self, seat: Seat) -> None:
        """A proposal came to nothing: the seat waits again, everywhere."""
        seat.state, seat.link, seat.binding, seat.partner = State.WAITING, None, -1, None
        for link in self._covered(seat):
            self._announce(seat, link)
            self._bind(link)

    def _on_close(self, link: Link, message: Close) -> None:
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
        for seat in self._bound(link):
            if seat.binding == message.binding and seat.state is State.BOUND:
                self.pairing.end(seat, RunEnded(what, peer=link.peer, remedy=remedy))

    def _bound(self, link: Link) -> Iterable[Seat]:
        return [seat for seat in self.seats if seat.link is link]

    def _send(self, link: Link, message: Message) -> None:
        self.out.append(Send(link.key, message))


def _waits(seat: Seat, link: Link, channel: str) -> bool:
    return seat.state is State.WAITING and seat.channel == channel and seat.endpoint.covers(link)


def _busy(seat: Seat) -> str:
    partner = f" of {seat.partner.since}" if seat.partner else ""
    peer = f" from {seat.link.peer}" if seat.link else ""
    return f"busy with the run{partner}{peer}"


def _nodes(manifest: Manifest | None) -> str:
    names = list(dict.fromkeys(op[4] for op in manifest or () if op[4]))
    return ", ".join(names[:3]) or "unknown nodes"
