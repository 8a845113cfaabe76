"""Whoever claims to be somebody else is given nothing, told nothing, and stops nothing.

A gives a job to B, which runs it. M is somebody else: paired with both and permitted nothing, to
exchange, or to give jobs; or not paired at all. It claims whatever of A's and B's it may have seen.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
import zmq
from children import until
from jobpair import Host, clean
from proxy import Proxy
from zmq.utils.monitor import recv_monitor_message

from zbus import Peer, Settings
from zbus.job import Job, Remote, Request
from zbus.protocol.job_records import wait_token
from zbus.protocol.messages import (
    Bye,
    Enquire,
    Facts,
    Hello,
    JobCancel,
    JobOffer,
    JobProgress,
    JobState,
    Ready,
    Reject,
    decode,
    encode,
)
from zbus.trust import EXCHANGE, JOBS, Trust
from zbus.values import payload

pytestmark = pytest.mark.usefixtures("by_socket")

BOTH = (EXCHANGE, JOBS)
PROMPT = {"1": {"class_type": "Secret", "inputs": {"text": "a private prompt"}}}
VALUES = {"photo": torch.arange(60.0)}
GROUP = "9 0"
QUICK = Settings(nobody_wait=0.5, reconnect_wait=60.0)


@dataclass(eq=False)
class Three:
    """A and B, whose job runs on B and may be reached through a tunnel; M's keys."""

    a: Peer
    b: Peer
    host: Host  # B's
    at_a: Host
    trust_m: Trust
    tunnel: Proxy
    job: Job
    addresses: tuple[str, str]

    @property
    def taken(self) -> Any:
        return self.host.jobs[self.job.id]

    def finish(self) -> None:
        """The job was touched by nobody: its result arrives, exact, and nobody had a copy. All
        that the host was told of before has reached it then: it is told in turn."""
        assert self.host.count("cancel") == 0 and not self.job.done()
        self.taken.result("picture", VALUES["photo"])
        self.taken.done()
        until(self.job.done, 20, self.job.note)
        got = self.job.result()
        assert got.keys() == {"picture"} and torch.equal(got["picture"], VALUES["photo"])
        until(lambda: ("forget", self.job.id, "") in self.host.said)


@contextlib.contextmanager
def three(folder: Path, may: tuple[str, ...] | None = BOTH) -> Iterator[Three]:
    """`may`: what M may do at A and at B; None: it is not paired with them."""
    a, b, m = (Trust(folder / name) for name in "abm")
    a.pair(b.keys.public, "B", BOTH)
    b.pair(a.keys.public, "A", BOTH)
    for trust, name in ((a, "A"), (b, "B")):
        m.pair(trust.keys.public, name, BOTH)
        if may is not None:
            trust.pair(m.keys.public, "M", may)
    with Peer("A", trust=a, settings=QUICK) as one, Peer("B", trust=b, settings=QUICK) as other:
        host, at_a = Host(), Host()
        addresses = (one.serve(at_a), other.serve(host))
        with Proxy(addresses[1]) as tunnel:
            remote = Remote(tunnel.address, other.own.instance.hex(), "B", b.keys.public)
            job = one.submit(remote, Request(PROMPT, values=VALUES, group=GROUP))
            taken = host.only()
            taken.queued(0)
            taken.started()
            until(lambda: job.progress.state == "running")
            yield Three(one, other, host, at_a, m, tunnel, job, addresses)


NO_KEY = "its key is not admitted"  # by the socket itself, before anything is said


class Impostor:
    """M by hand, with its own keys: it says whatever the test says, and claims what it likes."""

    def __init__(self, trust: Trust, peer: Peer, address: str, **claims: Any) -> None:
        self._context = zmq.Context()
        self._link = self._context.socket(zmq.DEALER)
        self._link.linger, self._link.sndtimeo = 0, 1000  # who is refused has nobody to send to
        self._monitor = self._link.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._link.curve_publickey = trust.keys.public
        self._link.curve_secretkey = trust.keys.secret
        self._link.curve_serverkey = peer.trust.keys.public
        self._link.connect(f"tcp://{address}")
        self._seq = self._operation = 0
        self.shut_out = ""  # why, once it is
        self.heard: list[Any] = []
        self.bodies: list[bytes] = []
        told = {
            "name": "M",
            "incarnation": os.urandom(16),
            "instance": os.urandom(16),
            "nonce": os.urandom(16),
            "session": os.urandom(16),
            "pid": 0,
            "boot": "",
        }
        own = {one.name: getattr(peer.own, one.name) for one in fields(Hello)}
        with contextlib.suppress(zmq.Again):
            self._link.send(
                msgpack.packb([Hello.KIND, 0, own | told | claims])
            )  # as no peer of ours
        self.hello = self.hear(Hello)
        if self.hello is not None:
            self._link.send(encode(Ready(self.hello.nonce)))
            # The side with the lower instance gives the even ids, the other one the odd ones.
            self._operation = int(not self.hello.instance < (told | claims)["instance"])
        MADE.append(self)

    def say(self, message: Any, body: bytes | None = None) -> None:
        self._seq += message.SEQUENCED
        header = encode(message, self._seq if message.SEQUENCED else 0)
        with contextlib.suppress(zmq.Again):
            self._link.send_multipart([header, *([body] if body is not None else [])])

    def offer(self, job: str, part: str, value: Any) -> None:
        packed = payload.pack(payload.flatten(value), "never")
        body = b"".join(buffer.view for buffer in packed.buffers)
        self._operation += 2
        told = (packed.total, "raw", packed.spec, 0, True)
        self.say(JobOffer(job, part, self._operation, *told), body or None)

    def hear(self, kind: Any, within: float = 10.0) -> Any:
        """The next message of that kind; None if it is shut out instead."""
        poller = zmq.Poller()
        poller.register(self._link, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        deadline = time.monotonic() + within
        while not self.shut_out:
            ready = dict(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
            assert ready, f"no {kind.__name__}, but: {self.heard}"
            if self._monitor in ready:
                recv_monitor_message(self._monitor)
                self.shut_out = NO_KEY
            if self._link in ready:
                frames = self._link.recv_multipart()
                message = decode(frames[0], len(frames) > 1)[1]
                self.heard.append(message)
                self.bodies += frames[1:]
                if isinstance(message, Reject):
                    self.shut_out = message.why
                if isinstance(message, kind):
                    return message
        return None

    def answered(self) -> bool:
        """Whether all that was said has been dealt with: a question behind it is answered. If not,
        it has been shut out."""
        if not self.shut_out:
            self.say(Enquire(7))
        return self.hear(Facts) is not None

    def close(self) -> None:
        if not self._context.closed:
            self._link.disable_monitor()
            self._monitor.close(0)
            self._context.destroy(linger=0)


MADE: list[Impostor] = []


@pytest.fixture(autouse=True)
def _no_impostor_stays() -> Iterator[None]:
    """One that a failed test leaves behind is closed: its context would wait for its sockets, in
    whatever thread the garbage collector comes round to it."""
    yield
    while MADE:
        MADE.pop().close()


def attack(m: Impostor, job: str, session: Any = None) -> None:
    """All that can be said of a job, by either side of it."""
    if m.shut_out:
        return
    m.say(JobProgress(job, "1", "forged", 3, 4))
    m.say(JobState(job, "queued", 77, (wait_token(job),)))
    m.offer(job, "result:picture", "forged")
    m.offer(job, "end", {"outcome": "done", "results": ["picture"]})
    m.say(JobCancel(job, "forged"))
    m.offer(job, "submit", Request({}, group=GROUP).told())


WHO = {"not paired": None, "nothing": (), "exchange": (EXCHANGE,), "jobs": BOTH}
CLAIMS = ("incarnation", "instance", "job", "group", "session", "name")


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("who", WHO)
def test_what_somebody_else_claims_counts_for_nothing(who: str, claim: str, tmp_path: Path) -> None:
    with three(tmp_path, WHO[who]) as them:
        told = {a: getattr(them.a.own, a) for a in ("incarnation", "instance")}
        back = {a: getattr(them.b.own, a) for a in ("incarnation", "instance")}
        # No session's id is told to anybody but the two.
        (session,) = (p.session.key for p in them.b._engine.links.peerings)
        claims: list[tuple[dict[str, Any], str]]  # and the word that shuts it out, if one does
        if claim == "session":
            resumed = {"session": session, "resumed": True, "received": 1}
            claims = [(resumed, "not known here"), ({"session": session}, "")]
        elif claim == "name":
            claims = [({"name": "A\x1b[2J\r\nINFO forged\x00"}, "")]
        elif claim in told:
            claims = [({claim: told[claim]}, ""), ({claim: back[claim]}, "")]
            claims.append(({**told, "name": "A"}, ""))
        else:
            claims = [({}, "")]
        for own, peer, at in zip((told, back), (them.a, them.b), them.addresses, strict=True):
            for claimed, why in claims:
                itself = claimed.get("incarnation") == own["incarnation"]
                m = Impostor(them.trust_m, peer, at, **claimed)
                attack(m, them.job.id if claim != "group" else f"mine-{at}")
                is_heard = m.answered()
                expected = NO_KEY if who == "not paired" else "very process" if itself else why
                assert (expected in m.shut_out) if expected else is_heard, m.shut_out
                check_told_nothing(m, them)
                m.close()
        assert them.job.results == {} and them.job.progress.title != "forged"
        if claim == "name":
            check_names(them)
        them.finish()
        check_given_nothing(them, who)


def check_told_nothing(m: Impostor, them: Three) -> None:
    """Nothing of the job was said to M: not where it is, not what it is, not that it ended."""
    told = [message for message in m.heard if isinstance(message, (JobState, JobProgress))]
    assert [state for state in told if state.job == them.job.id] == []
    offered = [message for message in m.heard if isinstance(message, JobOffer)]
    assert all(offer.part == "end" for offer in offered), "refusals, and nothing else"
    wire = b"".join([*m.bodies, *(offer.spec for offer in offered)])
    assert b"private" not in wire and b"Secret" not in wire


def check_given_nothing(them: Three, who: str) -> None:
    """B has been given A's job once, and of M at most what is M's to give."""
    of_others = [job for job in them.host.jobs.values() if job.id != them.job.id]
    assert who == "jobs" or not of_others, "it may give none"
    assert them.taken.client == "A" and them.taken.request.prompt == PROMPT
    assert [said for said in them.host.said if said[1] == them.job.id] == [
        ("submitted", them.job.id, ""),
        ("forget", them.job.id, ""),
    ]


def check_names(them: Three) -> None:
    clients = [job.client for host in (them.host, them.at_a) for job in host.jobs.values()]
    for text in clients:
        assert text.isprintable(), "a name is a line of text, also in a log"


# --- what was seen to work ----------------------------------------------------------------------


@pytest.mark.parametrize("may", [(), BOTH], ids=["nothing", "jobs"])
def test_a_job_whose_link_is_lost_is_given_to_nobody_else(
    may: tuple[str, ...], tmp_path: Path
) -> None:
    """M comes with the incarnation of the very peer that A waits for."""
    with three(tmp_path, may) as them:
        them.tunnel.accepting = "close"
        them.tunnel.cut()
        until(lambda: not them.a.counters()["sessions"], 10, "A gives the session up")
        m = Impostor(
            them.trust_m,
            them.a,
            them.addresses[0],
            incarnation=them.b.own.incarnation,
            instance=them.b.own.instance,
            name="B",
        )
        assert m.answered()
        assert not [heard for heard in m.heard if isinstance(heard, JobOffer)], "no job for M"
        attack(m, them.job.id)
        m.answered()
        assert not them.job.done() and them.job.results == {}
        m.close()
        them.tunnel.accepting = "forward"
        until(lambda: them.job.note.startswith("running on B"), 10, "A dials on, and meets B")
        them.finish()


def test_results_go_to_the_peer_that_gave_the_job(tmp_path: Path) -> None:
    """M submits A's job again, under A's incarnation, and its session ends: nothing is A's loss."""
    with three(tmp_path) as them:
        own = them.a.own
        m = Impostor(
            them.trust_m,
            them.b,
            them.addresses[1],
            incarnation=own.incarnation,
            instance=own.instance,
            name="A",
        )
        m.offer(them.job.id, "submit", Request(PROMPT, group=GROUP).told())
        assert m.answered()
        them.taken.result("picture", VALUES["photo"])
        until(lambda: them.job.results, 10)
        m.answered()
        assert [o.part for o in m.heard if isinstance(o, JobOffer)] == ["end"], "the refusal"
        m.say(Bye("enough"))
        m.close()
        them.taken.done()
        until(them.job.done, 10)
        assert torch.equal(them.job.result()["picture"], VALUES["photo"])
        clean(them.a)


def test_a_group_is_one_of_its_own_peer(tmp_path: Path) -> None:
    """Also of two that say the same group, and one the other's incarnation."""
    with three(tmp_path) as them:
        own = them.a.own
        m = Impostor(
            them.trust_m,
            them.b,
            them.addresses[1],
            incarnation=own.incarnation,
            instance=own.instance,
        )
        m.offer("a job of M", "submit", Request(PROMPT, group=GROUP).told())
        until(lambda: "a job of M" in them.host.jobs, 10)
        assert m.answered() and them.host.count("cancel") == 0
        m.close()
        them.host.jobs["a job of M"].done()
        them.finish()


# --- a word that it waits for us ----------------------------------------------------------------


def test_a_lie_about_waiting_ends_no_job_of_ours(tmp_path: Path) -> None:
    """M runs A's job and has given A one: of the two it can have its own ended, and no other."""
    with three(tmp_path) as them:
        liar = Peer("M", trust=them.trust_m, settings=QUICK)
        host = Host()
        address = liar.serve(host)
        key = them.trust_m.keys.public
        job = them.a.submit(Remote(address, name="M", key=key), Request({}, title="A's part"))
        host.only().queued(0)
        job.awaited_by("prompt A")
        until(lambda: job.accepted)
        own_key = them.a.trust.keys.public
        mine = liar.submit(Remote(them.addresses[0], name="A", key=own_key), Request({}))
        until(lambda: mine.id in them.at_a.jobs)
        them.at_a.jobs[mine.id].queued(0)
        until(lambda: mine.accepted)
        liar_core = liar._engine.job_service.jobs
        every = tuple(wait_token(known) for known in (mine.id, them.job.id, "made up"))

        def lie() -> None:
            (taken,) = liar_core.taken.values()
            liar_core.taking.waits = every
            liar_core.taking.tell(taken)

        heard = them.a._engine.job_service.jobs

        def is_heard() -> bool:
            liar._engine.post(lie)  # again and again: its honest part takes it back
            return heard.given[job.id].waits == every or mine.done()

        until(is_heard, 10)
        liar.enquire(Remote(them.addresses[0], name="A", key=own_key)).result(10)
        assert not job.done() and not them.job.done()
        host.only().done()
        until(job.done, 5)
        assert job.result() == {}
        liar.close()
        them.finish()
        assert {said[1] for said in them.at_a.said if said[0] == "cancel"} <= {mine.id}


def test_nobody_hears_the_ids_of_jobs_that_are_not_its_own(tmp_path: Path) -> None:
    """B's running prompt waits for a job that it gave to A; M, whose job waits behind it, is told
    that it waits, and not for what."""
    with three(tmp_path) as them:
        key = them.a.trust.keys.public
        back = Remote(them.addresses[0], them.a.own.instance.hex(), "A", key)
        other = them.b.submit(back, Request({}))
        until(lambda: other.id in them.at_a.jobs)
        other.awaited_by("a prompt of B")
        m = Impostor(them.trust_m, them.b, them.addresses[1])
        m.offer("a job of M", "submit", Request({}).told())
        until(lambda: "a job of M" in them.host.jobs)
        them.host.jobs["a job of M"].queued(1)
        state = m.hear(JobState, 5)
        assert state is not None and state.waits == (wait_token(other.id),)
        assert other.id not in repr(m.heard) and them.job.id not in repr(m.heard)
        m.close()
        them.at_a.jobs[other.id].done()
        them.host.jobs["a job of M"].done()
        until(other.done)
        them.finish()
