"""The life of a job between sides in memory: late, lost, doubled, cancelled, at any time."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from jobpair import CHUNKS, END, RESULT, SPEC, SUBMIT, Hosted, Parcel, Side, World

from zbus.errors import (
    Cancelled,
    CodecRefused,
    InternalError,
    JobCancelled,
    JobFailed,
    JobRefused,
    LinkLost,
    NotPermitted,
    PeerClosed,
    PeerGone,
    PeerRestarted,
    QueueDeadlock,
    RemoteProtocolError,
    RunsNoPrompts,
    TransferRefused,
    ZBusError,
)
from zbus.protocol import given_jobs, taken_jobs
from zbus.protocol.budget import Ticket
from zbus.protocol.given_jobs import MAX_RESULTS, TELL_CANCEL
from zbus.protocol.identity import Identity, SessionKey
from zbus.protocol.job_records import GivenJob, GivenState, TakenState, Unsaid, wait_token
from zbus.protocol.job_room import MAX_OF_PRINCIPAL, MAX_TAKEN, REMEMBERED
from zbus.protocol.jobs import Jobs
from zbus.protocol.messages import JobCancel, JobState
from zbus.protocol.outcomes import PLAIN, refused
from zbus.protocol.queue_deadlock import waits_of
from zbus.protocol.taken_jobs import KEPT
from zbus.reasons import MAX_REASONS, Reason

LOST = LinkLost("the link was lost", peer="x")
GONE = PeerGone("its process has ended", peer="x")
RESTARTED = PeerRestarted("was restarted", peer="x")
WAIT = 300.0
STRANGER = Identity(b"another's key", b"client's life")
SESSION = SessionKey(b"key", b"theirs", b"ours", "listen 127.0.0.1:1", b"id")


def pair() -> tuple[World, Side, Side, bytes]:
    world = World("client", "worker")
    client, worker = world.sides
    return world, client, worker, world.connect(client, worker)


def running(job: str = "j") -> tuple[World, Side, Side, bytes]:
    """A job that runs."""
    world, client, worker, key = pair()
    client.submit(key, job)
    world.run()
    worker.queue(job, 3)
    worker.start(job)
    world.run()
    return world, client, worker, key


def offered(world: World, source: Side, way: str = "chunks") -> Parcel:
    """The value that `source` packs just now, when the other side has its offer."""
    (parcel,) = source.packing
    parcel.way = way
    source.packed(parcel)
    world.run_until(lambda: parcel.taking is not None)
    return parcel


def between(world: World, source: Side) -> Parcel:
    """The same, when some of its bytes are there and others are not."""
    parcel = offered(world, source)
    world.run_until(lambda: parcel.is_between)
    assert parcel.is_between
    return parcel


def over(world: World) -> None:
    """Nothing is left anywhere, and every taken was forgotten once."""
    world.run()
    assert world.nothing_left()
    for side in world.sides:
        side.check_ended()
        assert all(hosted.forgotten == 1 for hosted in side.hosted.values())
        assert side.ended.keys() == side.given.keys()


# --- the row of a life --------------------------------------------------------------------------


def test_a_job_runs_and_its_results_come() -> None:
    world, client, worker, key = pair()
    given = client.submit(key, "j", title="upscale")
    assert given.state is GivenState.SUBMITTED and key in client.jobs.sessions
    world.run()
    hosted = worker.hosted["j"]
    assert hosted.taken.what == ("request", "upscale", "") and hosted.taken.client == "client"
    for place in (2, 1):
        worker.queue("j", place)
        world.run()
        assert (given.state, given.place) == (GivenState.QUEUED, place)
    worker.start("j")
    world.run()
    assert (given.state, given.place) == (GivenState.RUNNING, 0)
    worker.give("j", "one")
    world.run()
    assert given.results == {"one": ("j", "one", 0)} and "j" not in client.ended
    worker.give("j", "two")
    worker.end("j")
    world.run()
    assert client.outcome("j") is None and set(given.results) == {"one", "two"}
    over(world)
    assert key not in client.jobs.sessions | worker.jobs.sessions


@pytest.mark.parametrize("first", range(6))
def test_results_and_end_in_any_order(first: int) -> None:
    world, client, worker, _ = running()
    for name in "abc":
        worker.give("j", name)
    worker.end("j")
    picked = itertools.count(first)
    world.run(lambda count: next(picked) * 7 % count if first % 2 else count - 1)
    assert client.outcome("j") is None and set(client.results["j"]) == set("abc")
    over(world)


def test_done_waits_for_every_result_named() -> None:
    world, client, worker, _ = running()
    worker.give("j", "a")
    worker.end("j")
    (result, _end) = worker.packing
    world.held.add(result)
    world.run()
    assert client.given["j"].end is not None and "j" not in client.ended
    world.held.clear()
    world.run()
    assert client.outcome("j") is None


def test_every_reason_of_a_refusal_is_told() -> None:
    world, client, worker, key = pair()
    client.submit(key, "j")
    world.run()
    reasons = [
        Reason("class", "4", "Sampler (4)", "Sampler", text="Sampler (4) is not installed"),
        Reason("choice", "5", input="ckpt", value="a.pt", near=("b.pt",), text="no a.pt: b.pt?"),
    ]
    worker.end("j", **refused(reasons))
    world.run()
    error = client.outcome("j")
    assert isinstance(error, JobRefused) and list(error.reasons) == reasons
    assert "is not installed\nno a.pt: b.pt?" in str(error) and error.peer == "worker"
    over(world)


def test_a_failure_says_which_node() -> None:
    world, client, worker, _ = running()
    told = {"node_id": "7", "title": "VAE (7)", "class_type": "VAE", "message": "no memory\n"}
    worker.end("j", "failed", exception_type="OOM", traceback="line 1", **told)
    world.run()
    error = client.outcome("j")
    assert isinstance(error, JobFailed) and "VAE (7) failed there: no memory" in str(error)
    assert (error.node_id, error.class_type, error.traceback) == ("7", "VAE", "line 1")
    over(world)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ({"outcome": "cancelled", "why": "by its user"}, JobCancelled),
        ({"outcome": "exploded"}, RemoteProtocolError),
        ({"outcome": None, "results": 3}, RemoteProtocolError),
        ({}, RemoteProtocolError),
        ("no dict", RemoteProtocolError),
        ({"outcome": "failed", "message": 4, "traceback": b"x"}, JobFailed),
        ({"outcome": "refused", "reasons": [3, {"kind": []}, {"near": "x"}]}, JobRefused),
        ({"outcome": "refused", "reasons": [{"kind": "worker"}]}, RunsNoPrompts),
        ({"outcome": "refused"}, JobRefused),
    ],
    ids=str,
)
def test_ends_that_are_told(end: Any, kind: type[ZBusError]) -> None:
    _world, client, _worker, key = pair()
    client.submit(key, "j")
    assert client.jobs.giving.wants(key, "j", END)
    client.jobs.arrived(key, "j", END, end)
    client.settle()
    assert type(client.outcome("j")) is kind


def test_an_end_whose_results_are_no_names() -> None:
    _world, client, _worker, key = pair()
    client.submit(key, "j")
    client.jobs.arrived(key, "j", END, {"outcome": "failed", "results": [1, {}, None]})
    client.settle()
    assert isinstance(client.outcome("j"), JobFailed)


def test_reasons_are_at_most_so_many() -> None:
    many = [Reason("other", text=str(i)) for i in range(MAX_REASONS + 9)]
    assert len(refused(many)["reasons"]) == MAX_REASONS


def test_not_permitted() -> None:
    world, client, worker, key = pair()
    client.submit(key, "j")
    worker.jobs.taking.deny(key, "j", PLAIN)
    worker.settle()
    assert not worker.jobs.taken
    client.packing.clear()  # what was asked of the other side is not looked at
    world.run()
    error = client.outcome("j")
    assert isinstance(error, NotPermitted) and "not permitted over this link" in str(error)


def test_parcels_that_nobody_waits_for() -> None:
    world, client, worker, key = running()
    other = world.connect(client, worker)
    assert client.jobs.giving.wants(key, "j", RESULT + "x") and client.jobs.giving.wants(
        key, "j", END
    )
    assert not client.jobs.giving.wants(other, "j", END), "of another session"
    assert not client.jobs.giving.wants(key, "nobody's", END)
    assert not client.jobs.giving.wants(key, "j", "resultx") and not client.jobs.giving.wants(
        key, "j", SUBMIT
    )
    client.jobs.giving.state(other, JobState("j", "queued", 9))
    assert client.given["j"].place == 0, "told on another session"
    client.jobs.arrived(key, "nobody's", END, {})
    worker.jobs.lost(key, "nobody's", SUBMIT, LOST, False)
    worker.jobs.taking.submitted(key, "nobody's", 1)
    worker.jobs.taking.cancelled(STRANGER, _cancel("j"))
    worker.settle()
    assert worker.hosted["j"].stops == []


def _cancel(job: str) -> JobCancel:
    return JobCancel(job, "stop")


# --- a submit that comes twice ------------------------------------------------------------------


def test_a_job_that_is_known_is_not_run_twice() -> None:
    world, client, worker, key = running()
    for step in ("running", "ended", "forgotten"):
        assert not worker.jobs.taking.offered(key, client.identity, "client", "j"), step
        worker.settle()
        world.run()
        if step == "running":
            worker.give("j", "a")
            worker.end("j")
    assert client.outcome("j") is None and len(worker.hosted) == 1
    assert worker.jobs.taken == {}


def test_a_job_id_of_another_peer_is_refused() -> None:
    _world, _client, worker, key = running()
    assert not worker.jobs.taking.offered(key, STRANGER, "another", "j")
    worker.settle()
    (answer,) = worker.packing
    assert answer.part == END
    assert pickle.loads(answer.body.removeprefix(SPEC))["outcome"] == "refused"
    assert worker.hosted["j"].stops == [] and "j" in worker.jobs.taken


def test_a_thousand_submits() -> None:
    world, client, worker, key = pair()
    for i in range(1000):
        client.submit(key, f"j{i}")
    world.run()
    assert len(worker.jobs.taken) == MAX_TAKEN == len(worker.hosted)
    told = Counter(type(error) for error in client.ended.values())
    assert told == {JobRefused: 1000 - MAX_TAKEN}
    assert f"more than {MAX_TAKEN} jobs at once" in str(client.outcome("j999"))
    for job in worker.hosted:
        worker.end(job)
    over(world)
    assert len(worker.jobs.taking._gone) == MAX_TAKEN
    client.submit(key, "one more")
    world.run()
    assert "one more" in worker.hosted
    for i in range(REMEMBERED + 5):
        client.submit(key, f"k{i}")
        world.run()
        worker.end(f"k{i}")
        world.run()
    assert len(worker.jobs.taking._gone) == REMEMBERED


# --- cancelled ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "at", ["packing", "offered", "arriving", "between", "checking", "queued", "running"]
)
def test_cancelled_here(at: str) -> None:
    world, client, worker, key = pair()
    client.submit(key, "j")
    if at == "offered":
        client.packed(client.packing[0])
    elif at == "arriving":
        offered(world, client)
    elif at == "between":
        between(world, client)
    elif at != "packing":
        world.run_until(lambda: "j" in worker.hosted)
    if at in ("queued", "running"):
        worker.queue("j", 1)
    if at == "running":
        worker.start("j")
        worker.give("j", "a")
    client.cancel("j")
    assert isinstance(client.outcome("j"), Cancelled) and not client.jobs.given
    world.run()
    if "j" in worker.hosted:
        (why,) = worker.hosted["j"].stops
        assert "cancelled there" in why
        worker.give("j", "late")
        worker.end("j", "cancelled", why=why)
        assert worker.packing == [], "nothing is sent to who does not want it"
    else:
        assert at not in ("checking", "queued", "running")
    over(world)


@pytest.mark.parametrize("at", ["offered", "arriving", "between", "stored"])
def test_cancelled_while_the_result_is_on_its_way(at: str) -> None:
    world, client, worker, key = running()
    worker.give("j", "a")
    if at == "arriving":
        offered(world, worker)
    elif at == "between":
        between(world, worker)
    elif at == "stored":  # and the sender does not know it yet
        parcel = offered(world, worker)
        world.run_until(lambda: parcel.receiving.ended)
        assert not parcel.sending.ended
    worker.end("j")
    for parcel in list(worker.packing):
        worker.packed(parcel)
    client.cancel("j")
    over(world)
    assert worker.hosted["j"].stops == []
    assert client.results["j"].keys() == ({"a"} if at == "stored" else set())


def test_a_cancel_that_was_said_on_a_session_which_then_broke_is_said_again() -> None:
    world, client, worker, key = running()
    worker.give("j", "a")
    client.cancel("j")  # its word is on the way
    world.cut(key, LinkLost("lost"), LinkLost("lost"))
    assert worker.hosted["j"].stops == []
    world.connect(client, worker)
    world.run()
    assert len(worker.hosted["j"].stops) == 1
    worker.end("j", "cancelled", why="stopped")
    over(world)


def test_a_runner_that_has_not_heard_of_the_end_keeps_nothing() -> None:
    """Its results were stored, and the word of that was lost with the session."""
    world, client, worker, key = running()
    worker.give("j", "a")
    worker.end("j")
    world.run_until(lambda: not client.jobs.given)
    assert client.outcome("j") is None and worker.jobs.taken
    world.cut(key, LinkLost("lost"), LinkLost("lost"))
    world.connect(client, worker)
    over(world)


def test_a_cancel_that_was_heard_is_not_said_again() -> None:
    world, client, worker, key = running()
    client.cancel("j")
    world.run()
    client.jobs.giving.heard(key)
    world.cut(key, LinkLost("lost"), LinkLost("lost"))
    again = world.connect(client, worker)
    assert not world.queues[again, worker]


def test_an_end_that_cannot_travel_is_told_plainly_and_else_the_session_ends() -> None:
    world, client, worker, key = running()
    worker.end("j")
    (end,) = worker.packing
    worker.packed(end, InternalError("out of memory"))
    (plain,) = worker.packing
    assert b"its end cannot be sent: out of memory" in plain.body
    worker.packing.remove(plain)
    worker.jobs.undeliverable(key, "j", END, InternalError("out of memory"), False)
    assert Unsaid(key, InternalError) in [
        Unsaid(e.session, type(e.error)) for e in worker.jobs.drain() if isinstance(e, Unsaid)
    ]


def test_cancelled_after_the_end() -> None:
    world, client, worker, _ = running()
    worker.end("j")
    world.run()
    client.cancel("j")
    assert client.outcome("j") is None
    assert not any(world.queues.values())


def test_stopped_there() -> None:
    world, client, worker, _ = running()
    worker.end("j", "cancelled", why="its user pressed stop")
    world.run()
    error = client.outcome("j")
    assert isinstance(error, JobCancelled) and "its user pressed stop" in str(error)
    over(world)


def test_closing_ends_what_was_given() -> None:
    world, client, worker, _ = running()
    client.jobs.close(PeerClosed("this side closes"))
    client.settle()
    assert isinstance(client.outcome("j"), PeerClosed)
    world.run()
    assert worker.hosted["j"].stops == ["this side closes"]


def test_a_newer_job_of_the_group_stops_the_older() -> None:
    world, client, worker, key = pair()
    for job in ("old", "foreign"):
        client.submit(key, job, group="" if job == "foreign" else "node 5")
    world.run()
    worker.start("old")
    client.submit(key, "new", group="node 5")
    world.run()
    assert worker.hosted["old"].stops == ["a newer job of the same node has come"]
    assert worker.hosted["new"].stops == worker.hosted["foreign"].stops == []
    worker.end("old", "cancelled", why=worker.hosted["old"].stops[0])
    world.run()
    assert "a newer job of the same node" in str(client.outcome("old"))
    worker.end("new")
    worker.end("foreign")
    over(world)


def test_a_newer_job_of_the_group_leaves_what_has_ended() -> None:
    world, client, worker, key = pair()
    client.submit(key, "old", group="g")
    world.run()
    worker.give("old", "a")
    worker.end("old")
    world.held |= set(worker.packing)
    client.submit(key, "new", group="g")
    world.run()
    assert "new" in worker.hosted
    assert worker.hosted["old"].stops == [] and "old" in worker.jobs.taken
    world.held.clear()
    world.run()
    assert client.outcome("old") is None and client.results["old"]


def test_an_older_job_of_the_group_that_arrives_later_is_stopped_itself() -> None:
    world, client, worker, key = pair()
    worker.memory = 100
    client.submit(key, "old", group="g")
    between(world, client)
    world.held |= set(client.sends.values())
    client.submit(key, "new", group="g")
    world.run()
    assert worker.hosted["new"].stops == [] and "old" not in worker.hosted
    world.held.clear()
    world.run()
    assert worker.hosted["new"].stops == []
    assert worker.hosted["old"].stops == ["a newer job of the same node has come"]


def test_groups_of_two_clients_are_two() -> None:
    world = World("a", "b", "worker")
    a, b, worker = world.sides
    for client in (a, b):
        client.submit(world.connect(client, worker), f"of {client.name}", group="g")
    world.run()
    assert [hosted.stops for hosted in worker.hosted.values()] == [[], []]


# --- values that cannot travel ------------------------------------------------------------------


def test_a_request_that_cannot_be_packed() -> None:
    world, client, _worker, key = pair()
    client.submit(key, "j")
    client.packed(client.packing[0], CodecRefused("no"))
    error = client.outcome("j")
    assert isinstance(error, CodecRefused) and error.peer == "worker"
    over(world)


def test_a_request_that_is_refused_on_its_way() -> None:
    world, client, worker, key = pair()
    client.submit(key, "j")
    worker.not_taken(between(world, client), TransferRefused("the value needs 4 TiB"))
    over(world)
    assert "4 TiB" in str(client.outcome("j")) and worker.hosted == {}


def test_a_request_that_has_come_and_cannot_be_used() -> None:
    world, client, worker, key = pair()
    taking = worker.jobs.taking

    def unusable(session: Any, job: str, *_: Any) -> None:
        taking.lost(session, job, RemoteProtocolError("no request"), False)
        assert taking.jobs[job].state is TakenState.ENDED

    taking.submitted = unusable  # type: ignore[method-assign]
    client.submit(key, "j")
    over(world)
    error = client.outcome("j")
    assert isinstance(error, JobRefused) and "no request" in str(error)
    assert not worker.hosted and not taking.offered(key, client.identity, "client", "j")


@pytest.mark.parametrize("ended", [False, True])
def test_a_result_that_cannot_be_packed(ended: bool) -> None:
    """Who waits for it is told, whether the end was told before or not."""
    world, client, worker, _ = running()
    worker.give("j", "bad")
    (bad,) = worker.packing
    if ended:
        world.held.add(bad)
        worker.end("j")
        world.run()
        assert worker.jobs.taken["j"].parts.keys() == {RESULT + "bad"}
    worker.packed(bad, CodecRefused("holds NaN"))
    if not ended:
        (why,) = worker.hosted["j"].stops
        assert "result bad cannot be sent" in why
        worker.end("j", "cancelled", why=why)
    over(world)
    error = client.outcome("j")
    assert isinstance(error, JobFailed) and "result bad cannot be sent: holds NaN" in str(error)


def test_a_result_that_cannot_be_packed_while_the_end_is_coming() -> None:
    """Which names it. The new end is told after that one."""
    world, client, worker, _ = running()
    worker.give("j", "bad")
    (bad,) = worker.packing
    world.held.add(bad)
    worker.end("j")
    world.run_until(lambda: any(p.is_coming for p in worker.sends.values()))
    worker.packed(bad, CodecRefused("holds NaN"))
    world.run()
    error = client.outcome("j")
    assert isinstance(error, JobFailed) and "result bad cannot be sent: holds NaN" in str(error)
    over(world)


def test_a_result_that_cannot_be_taken() -> None:
    world, client, worker, _key = running()
    worker.give("j", "big")
    client.not_taken(between(world, worker), TransferRefused("the value needs 4 TiB"))
    assert "4 TiB" in str(client.outcome("j"))
    world.run()
    assert len(worker.hosted["j"].stops) == 1
    worker.end("j", "cancelled", why="x")
    over(world)


# --- lost links ---------------------------------------------------------------------------------


def test_a_running_job_survives_its_link() -> None:
    world, client, worker, key = running()
    worker.give("j", "before")
    world.cut(key, LOST, LOST)
    worker.give("j", "between")
    assert client.jobs.given["j"].session is None and worker.hosted["j"].stops == []
    world.wait(WAIT - 1)
    world.connect(client, worker)
    worker.give("j", "after")
    worker.end("j")
    world.run()
    assert client.outcome("j") is None and len(client.results["j"]) == 3
    over(world)


def test_a_job_that_ended_while_nobody_was_there() -> None:
    world, client, worker, key = running()
    world.cut(key, LOST, LOST)
    worker.give("j", "a")
    worker.end("j")
    assert worker.jobs.deadline() is not None
    world.wait(1)
    world.connect(client, worker)
    world.run()
    assert client.outcome("j") is None
    over(world)
    assert world.parcels == 4, "its request, that again, its result and its end: each once"


def test_results_are_kept_only_so_long() -> None:
    world, client, worker, key = running()
    worker.give("j", "a")
    world.cut(key, LOST, LOST)
    world.wait(2 * KEPT)
    assert "j" in worker.jobs.taken, "it runs on, and its time begins with its end"
    worker.end("j")
    world.wait(0)
    world.wait(KEPT - 1)
    assert "j" in worker.jobs.taken
    assert worker.jobs.deadline() == world.now + 1
    world.wait(1)
    assert worker.jobs.taken == {} and worker.jobs.deadline() is None
    assert isinstance(client.outcome("j"), LinkLost)
    over(world)


def test_an_order_waits_only_so_long() -> None:
    world, client, worker, key = running()
    world.cut(key, LOST, LOST)
    assert client.jobs.deadline() == world.now + WAIT
    world.wait(WAIT)
    error = client.outcome("j")
    assert isinstance(error, LinkLost) and "job j" in str(error) and error.peer == "worker"
    assert "j" in worker.jobs.taken
    worker.end("j")
    world.wait(0)
    world.wait(KEPT)
    over(world)


def nothing_in_flight(world: World, client: Side, worker: Side, key: bytes) -> None:
    client.submit(key, "j")
    world.run()


def request_packed(world: World, client: Side, worker: Side, key: bytes) -> None:
    client.submit(key, "j")


def request_coming(world: World, client: Side, worker: Side, key: bytes) -> None:
    client.submit(key, "j")
    between(world, client)


def request_stored(world: World, client: Side, worker: Side, key: bytes) -> None:
    """And the client does not know it yet."""
    client.submit(key, "j")
    world.run_until(lambda: "j" in worker.hosted)
    assert client.sends


def queued(world: World, client: Side, worker: Side, key: bytes) -> None:
    nothing_in_flight(world, client, worker, key)
    worker.queue("j", 1)


def result_coming(world: World, client: Side, worker: Side, key: bytes) -> None:
    queued(world, client, worker, key)
    worker.start("j")
    world.run()
    worker.give("j", "a")
    between(world, worker)


def result_waits_for_memory(world: World, client: Side, worker: Side, key: bytes) -> Ticket:
    client.memory = 0
    blocker = client.budget.ticket(1, lambda: None)
    blocker.ask()
    queued(world, client, worker, key)
    worker.give("j", "a")
    parcel = offered(world, worker)
    world.run()
    assert parcel.receiving.waits_for_memory and parcel.sending.held
    return blocker


def result_stored(world: World, client: Side, worker: Side, key: bytes) -> None:
    """And the worker does not know it yet."""
    queued(world, client, worker, key)
    worker.give("j", "a")
    world.run_until(lambda: bool(client.given["j"].results))
    assert worker.sends


def end_coming(world: World, client: Side, worker: Side, key: bytes) -> None:
    queued(world, client, worker, key)
    worker.give("j", "a")
    world.run()
    worker.end("j")
    between(world, worker)


BROKEN_AT = [
    nothing_in_flight,
    request_packed,
    request_coming,
    request_stored,
    queued,
    result_coming,
    result_waits_for_memory,
    result_stored,
    end_coming,
]


@pytest.mark.parametrize("how", ["connection", "session", "session, values first", "by one side"])
@pytest.mark.parametrize("come_to", BROKEN_AT, ids=lambda at: at.__name__)
def test_a_broken_session_ends_no_job(come_to: Any, how: str) -> None:
    """Whatever was on its way; when the link is back the result comes, exact."""
    world, client, worker, key = pair()
    blocker = come_to(world, client, worker, key)
    if how == "connection":
        world.unplug(key)
    elif how == "by one side":
        client.down(key, LOST)
    else:
        world.cut(key, LOST, LOST, jobs_first=how == "session")
    assert client.ended == {} and "j" in client.jobs.given
    if blocker is not None:
        blocker.release()
    if how != "connection":
        assert client.given["j"].state is GivenState.LOST and not client.still_moving()
        world.wait(WAIT - 1)
        world.connect(client, worker)
    world.run()
    assert client.ended == {} or come_to is end_coming
    worker.give("j", "a")
    worker.give("j", "b")
    worker.end("j")
    world.run()
    if key in worker.up and how == "by one side":
        worker.down(key, GONE)
    gave = worker.hosted["j"].gave
    names = set("a") if come_to is end_coming else set("ab")
    assert client.outcome("j") is None and client.results["j"].keys() == names
    assert client.results["j"] == {name: gave[name] for name in names}
    over(world)


@pytest.mark.parametrize("error", [GONE, RESTARTED])
def test_a_peer_that_is_gone(error: ZBusError) -> None:
    world, client, worker, key = running()
    worker.give("j", "a")
    world.cut(key, error, error)
    assert type(client.outcome("j")) is type(error) and client.outcome("j").stage == "job j"  # type: ignore[union-attr]
    assert worker.hosted["j"].stops == ["client, whose job it is, is gone"]
    worker.end("j", "cancelled", why="")
    over(world)


def test_a_queued_job_survives_its_link() -> None:
    world, client, worker, key = pair()
    client.submit(key, "j")
    world.run()
    worker.queue("j", 1)
    world.run()
    world.cut(key, LOST, LOST)
    assert worker.hosted["j"].stops == [] and worker.jobs.deadline() == world.now + WAIT
    world.wait(WAIT - 1)
    assert worker.hosted["j"].stops == []
    world.connect(client, worker)
    world.run()
    assert client.given["j"].state is GivenState.QUEUED and worker.jobs.deadline() is None
    worker.start("j")
    worker.give("j", "a")
    worker.end("j")
    world.run()
    assert client.outcome("j") is None and client.results["j"]
    over(world)


def test_a_queued_job_goes_when_nobody_comes_back_and_says_so() -> None:
    world, client, worker, key = pair()
    client.submit(key, "j")
    world.run()
    worker.queue("j", 1)
    world.run()
    world.cut(key, LOST, LOST)
    client.jobs.giving.reconnect_wait = 2 * WAIT
    world.wait(WAIT)
    assert worker.hosted["j"].stops == ["client, whose job it is, is gone"]
    world.connect(client, worker)  # before it has stopped there
    world.run()
    error = client.outcome("j")
    assert isinstance(error, JobCancelled) and "client, whose job it is, is gone" in str(error)
    worker.end("j", "cancelled", why="")
    over(world)


def test_a_job_that_was_arriving_when_the_link_was_lost_is_sent_again() -> None:
    world, client, worker, key = pair()
    client.submit(key, "j")
    between(world, client)
    world.cut(key, LOST, LOST)
    assert worker.jobs.taken == {} and not worker.still_moving()
    world.connect(client, worker)
    world.run()
    worker.end("j")
    world.run()
    assert client.outcome("j") is None
    over(world)


@pytest.mark.parametrize("way", ["inline", "chunks", "head first"])
def test_a_job_that_was_arriving_on_a_session_which_only_the_client_has_given_up(
    way: str,
) -> None:
    world, client, worker, key = pair()
    client.submit(key, "j")
    between(world, client)
    client.down(key, LOST)
    world.ways = [way]
    world.connect(client, worker)
    world.run()
    worker.down(key, GONE)
    worker.end("j")
    world.run()
    assert client.outcome("j") is None
    over(world)


def test_a_running_job_whose_old_session_the_worker_still_holds() -> None:
    world, client, worker, key = running()
    worker.give("j", "a")
    client.down(key, LOST)
    world.connect(client, worker)
    world.run()
    worker.down(key, GONE)
    assert worker.hosted["j"].stops == []
    worker.end("j")
    world.run()
    assert client.outcome("j") is None and "a" in client.results["j"]
    over(world)


def test_a_session_of_another_process_is_not_waited_for() -> None:
    world, client, worker, key = running()
    world.cut(key, LOST, LOST)
    fresh = world.kill(worker)
    world.connect(client, fresh)
    world.run()
    assert fresh.hosted == {} and "j" in client.jobs.given
    world.wait(WAIT)
    assert isinstance(client.outcome("j"), LinkLost)


# --- two queues that wait for each other --------------------------------------------------------


class Prompts:
    """Sides whose running prompts each wait for jobs in others' queues: `gives` are the pairs
    (who gives, who runs), each with its id. A side's jobs run when its own prompt has ended; that
    fails with its first job."""

    def __init__(self, names: str, gives: dict[str, tuple[int, int]]) -> None:
        self.world = World(*names)
        self.world.ways, self.world.is_quick = ["inline"], True
        self.gives = gives
        self.links: dict[frozenset[int], bytes] = {}
        sides = self.world.sides
        for job, (giver, runner) in gives.items():
            ends = frozenset((giver, runner))
            if ends not in self.links:
                self.links[ends] = self.world.connect(sides[giver], sides[runner])
            side = sides[giver]
            title = f"{job} of {side.name}"
            side.submit(self.links[ends], job, title=title)

    def steps(self) -> list[Any]:
        """What may happen next."""
        steps: list[Any] = list(self.world.ready())
        for side in self.world.sides:
            for job, hosted in side.hosted.items():
                if hosted.outcome:
                    continue
                if hosted.stops:
                    steps.append(lambda s=side, j=job: s.end(j, "cancelled", why="stopped"))
                elif hosted.taken.state is TakenState.CHECKING:
                    steps.append(lambda s=side, j=job: s.queue(j))
                elif not side.jobs.given:
                    steps.append(lambda s=side, j=job: s.end(j))
            if any(side.ended.values()):
                steps += [lambda s=side, j=j: s.cancel(j) for j in side.jobs.given]
            for job in side.jobs.given.values():
                if not job.awaited:
                    who = f"the prompt of {side.name}"
                    steps.append(lambda s=side, j=job.id, w=who: s.awaits(j, w))
        return steps

    def run(self, pick: Any) -> list[QueueDeadlock]:
        for _ in range(20_000):
            steps = self.steps()
            if not steps:
                break
            steps[pick(len(steps))]()
        else:
            raise AssertionError("the sides never come to rest")
        assert self.world.nothing_left(), [s.jobs.given for s in self.world.sides]
        ends = [error for side in self.world.sides for error in side.ended.values()]
        assert len(ends) == len(self.gives)
        return [error for error in ends if isinstance(error, QueueDeadlock)]

    @property
    def has_ring(self) -> bool:
        edges = set(self.gives.values())
        for _ in range(8):
            edges |= {(a, d) for a, b in edges for c, d in edges if b == c}
        return any(a == b for a, b in edges)


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 3), st.permutations("abc"), st.data())
def test_a_ring_is_found_and_not_all_of_it_ends(size: int, ids: list[str], data: Any) -> None:
    gives = {ids[i]: (i, (i + 1) % size) for i in range(size)}
    made = Prompts("xyz"[:size], gives)
    found = made.run(lambda count: data.draw(st.integers(0, count - 1)))
    assert 1 <= len(found) < size
    for error in found:
        assert "the prompt of" in str(error) and "and the prompt that runs there" in str(error)
        named = [job for job in gives if f"{job} of " in error.what]
        assert len(named) == 2, error.what
        assert "one after the other" in error.remedy


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_queues_that_wait_for_each_other_in_any_way_go_on(data: Any) -> None:
    """And where no ring is, none is seen."""
    edges = st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(lambda e: e[0] != e[1])
    pairs = data.draw(st.lists(edges, min_size=1, max_size=5))
    ids = data.draw(st.permutations("abcde"))
    made = Prompts("wxyz", dict(zip(ids, pairs, strict=False)))
    found = made.run(lambda count: data.draw(st.integers(0, count - 1)))
    assert bool(found) == made.has_ring
    if not found:
        assert not any(error for side in made.world.sides for error in side.ended.values())


@pytest.mark.parametrize("waits_first", [True, False])
@pytest.mark.parametrize("ids", ["ab", "ba"])
def test_a_ring_whose_last_job_comes_late(ids: str, waits_first: bool) -> None:
    """The word that a job is waited for may come before the job itself."""
    world = World("x", "y")
    x, y = world.sides
    key = world.connect(x, y)
    mine, theirs = ids
    x.submit(key, mine, title="X's part")
    world.run()
    x.awaits(mine, "prompt X")
    y.submit(key, theirs, title="Y's part")
    y.awaits(theirs, "prompt Y")
    late = y.packing.pop()
    y.queue(mine)
    if waits_first:
        world.run()
    y.packing.append(late)
    world.run()
    x.queue(theirs)
    world.run()
    for side in world.sides:
        for job, hosted in side.hosted.items():
            if hosted.stops:
                side.end(job, "cancelled", why="stopped")
    world.run()
    errors = [*x.ended.values(), *y.ended.values()]
    assert [type(error) for error in errors] == [QueueDeadlock]
    assert "prompt X" in str(errors[0]) or "prompt Y" in str(errors[0])
    assert "X's part" in str(errors[0]) and "Y's part" in str(errors[0])


def test_a_cancelled_job_is_no_part_of_a_ring() -> None:
    world = World("x", "y")
    x, y = world.sides
    key = world.connect(x, y)
    x.submit(key, "z of x")
    y.submit(key, "a of y")
    world.run()
    y.awaits("a of y", "prompt Y")
    x.queue("a of y")
    y.queue("z of x")
    world.run()
    assert wait_token("a of y") in x.given["z of x"].waits
    x.jobs.taking.cancelled(y.identity, _cancel("a of y"))  # and its JOB-STATE has not come yet
    x.settle()
    x.awaits("z of x", "prompt X")
    assert x.ended == {}


def test_a_wait_that_is_over_is_no_part_of_a_ring() -> None:
    """It is told at once: C's prompt waits for a job behind A's, which waited for one behind B's,
    which waits for one behind C's; but A's does not any more."""
    world = World(*"abcd")
    a, b, c, d = world.sides
    links = {pair: world.connect(*pair) for pair in ((b, c), (a, b), (a, d), (c, a))}
    for giver, runner, job in ((b, c, "1"), (a, b, "2"), (a, d, "3"), (c, a, "4")):
        giver.submit(links[giver, runner], job)
        world.run()
        runner.queue(job)
    b.awaits("1", "prompt B")
    for job in "23":
        a.awaits(job, "prompt A")
    world.run()
    assert set(c.given["4"].waits) == {wait_token(job) for job in "123"}
    a.cancel("2")
    world.run()
    assert c.given["4"].waits == (wait_token("3"),)
    c.awaits("4", "prompt C")
    world.run()
    assert c.ended == {}


def lying() -> tuple[World, Side, Side, bytes]:
    """X's prompt waits for its job in Y's queue; Y's job "of y" waits in X's, Y's prompt for none.
    Y's ids are the higher ones, where it comes to that."""
    world = World("x", "y")
    x, y = world.sides
    key = world.connect(x, y)
    x.submit(key, "a of x", title="X's part")
    y.submit(key, "b of y", title="Y's part")
    world.run()
    x.queue("b of y")
    y.queue("a of x")
    x.awaits("a of x", "prompt X")
    world.run()
    return world, x, y, key


@pytest.mark.parametrize("job", ["b of y", "0 of y"])
def test_a_peer_that_says_it_waits_for_us_has_only_its_own_job_ended(job: str) -> None:
    world, x, y, key = lying()
    y.submit(key, "0 of y")
    world.run()
    x.queue("0 of y")
    x.jobs.giving.state(key, JobState("a of x", "queued", 0, (wait_token(job),)))
    x.settle()
    assert "a of x" not in x.ended, "its word ends no job of ours"
    stopped = [hosted.taken.id for hosted in x.hosted.values() if hosted.stops]
    assert stopped == ([job] if job > "a of x" else []), "and nobody else's"
    if stopped:
        x.end(job, "cancelled", why="stopped")
        world.run()
        error = y.outcome(job)
        assert isinstance(error, QueueDeadlock) and "X's part" in error.what


def test_a_peer_that_says_it_waits_for_anothers_job_touches_that_not() -> None:
    world = World("x", "y", "z")
    x, y, z = world.sides
    key, other = world.connect(x, y), world.connect(x, z)
    x.submit(key, "a of x")
    z.submit(other, "b of z")
    z.submit(other, "0 of z")
    world.run()
    y.queue("a of x")
    for job in ("b of z", "0 of z"):
        x.queue(job)
    x.awaits("a of x", "prompt X")
    world.run()
    for waits in (("b of z",), ("b of z", "0 of z"), ("made up",)):
        told = JobState("a of x", "queued", 0, tuple(map(wait_token, waits)))
        x.jobs.giving.state(key, told)
        x.settle()
        assert not any(hosted.stops for hosted in x.hosted.values()) and not x.ended
    x.jobs.giving.state(key, JobState("a of x", "queued", 0, (wait_token("0 of z"),)))
    x.settle()
    assert isinstance(x.outcome("a of x"), QueueDeadlock), "the one that Y runs, and could end"
    assert not any(hosted.stops for hosted in x.hosted.values())


def test_ids_are_told_to_nobody_who_does_not_own_the_job() -> None:
    world, _x, y, _key = lying()
    said: list[Any] = []
    put = world.put

    def heard(key: bytes, sender: Side, message: Any, body: bytes = b"") -> None:
        said.append(message)
        put(key, sender, message, body)

    world.put = heard  # type: ignore[method-assign]
    y.awaits("b of y", "prompt Y")
    world.run()
    waits = {word for message in said if isinstance(message, JobState) for word in message.waits}
    assert waits and not waits & {"a of x", "b of y"}


# --- the two tables -----------------------------------------------------------------------------


@pytest.mark.parametrize("table", [given_jobs.TABLE, taken_jobs.TABLE], ids=["given", "taken"])
def test_every_state_is_reached_and_leads_to_the_one_end(table: dict[Any, Any]) -> None:
    every = list(type(next(iter(table))[0]))
    first, last = every[0], every[-1]
    reached, leading = {first}, {last}
    for _ in every:
        reached |= {after for (before, _), after in table.items() if before in reached}
        leading |= {before for (before, _), after in table.items() if after in leading}
    assert reached == leading == set(every)
    assert not [event for before, event in table if before is last], "and nothing leads on from it"


GIVEN_AT = [GivenState.SUBMITTED, GivenState.QUEUED, GivenState.RUNNING]


def given_at(state: GivenState) -> tuple[World, Side, Side, bytes]:
    """A job that its giver knows there."""
    world, client, worker, key = pair()
    client.submit(key, "j")
    world.run()
    if state is GivenState.QUEUED:
        worker.queue("j", 1)
    elif state is GivenState.RUNNING:
        worker.start("j")
    world.run()
    if state is GivenState.LOST:
        world.cut(key, LOST, LOST)
    assert client.given["j"].state is state
    return world, client, worker, key


@pytest.mark.parametrize("state", GIVEN_AT)
def test_wherever_a_given_job_is_its_end_ends_it(state: GivenState) -> None:
    world, client, worker, _ = given_at(state)
    worker.end("j")
    over(world)
    assert client.outcome("j") is None


@pytest.mark.parametrize("state", GIVEN_AT)
def test_wherever_a_given_job_is_a_runner_that_is_gone_ends_it(state: GivenState) -> None:
    world, client, worker, key = given_at(state)
    client.down(key, GONE)
    assert isinstance(client.outcome("j"), PeerGone) and not client.jobs.given
    worker.down(key, LOST)
    worker.end("j")
    world.wait(0)
    world.wait(KEPT)
    over(world)


@pytest.mark.parametrize("state", GIVEN_AT)
def test_wherever_a_given_job_is_it_goes_on_where_its_runner_is(state: GivenState) -> None:
    world, client, worker, key = given_at(state)
    world.cut(key, LOST, LOST)
    assert client.given["j"].state is GivenState.LOST
    world.connect(client, worker)
    assert client.given["j"].state is GivenState.SUBMITTED
    world.run()
    assert client.given["j"].state is state
    worker.end("j")
    over(world)
    assert client.outcome("j") is None


@pytest.mark.parametrize("state", [*GIVEN_AT, GivenState.LOST])
def test_wherever_a_given_job_is_a_cancel_ends_it(state: GivenState) -> None:
    world, client, worker, _ = given_at(state)
    client.cancel("j")
    assert isinstance(client.outcome("j"), Cancelled) and not client.jobs.given
    if state is GivenState.LOST:
        world.connect(client, worker)
    world.run()
    assert worker.hosted["j"].stops == ["cancelled there"]
    worker.end("j", "cancelled", why="")
    over(world)


TAKEN_AT = [TakenState.CHECKING, TakenState.QUEUED, TakenState.RUNNING, TakenState.STOPPING]


def taken_at(state: TakenState) -> tuple[World, Side, Side, bytes]:
    """A job that its runner has there."""
    world, client, worker, key = pair()
    client.submit(key, "j")
    world.run()
    if state is TakenState.QUEUED:
        worker.queue("j", 1)
    elif state in (TakenState.RUNNING, TakenState.STOPPING):
        worker.start("j")
    if state is TakenState.STOPPING:
        worker.jobs.taking._stop(worker.hosted["j"].taken, "no")
        worker.settle()
        worker.queue("j", 1)
        worker.start("j")  # the host has not heard of it yet
    world.run()
    assert worker.hosted["j"].taken.state is state
    return world, client, worker, key


@pytest.mark.parametrize("state", TAKEN_AT)
def test_wherever_a_taken_job_is_its_host_can_end_it(state: TakenState) -> None:
    world, client, worker, _ = taken_at(state)
    worker.give("j", "a")
    worker.end("j")
    worker.start("j")
    worker.give("j", "b")
    assert worker.hosted["j"].taken.state is TakenState.ENDED, "nothing counts after its end"
    del worker.hosted["j"].gave["b"]
    over(world)
    assert client.outcome("j") is None and client.results["j"].keys() == {"a"}


@pytest.mark.parametrize("state", TAKEN_AT)
def test_wherever_a_taken_job_is_it_is_stopped_once(state: TakenState) -> None:
    world, client, worker, _ = taken_at(state)
    client.cancel("j")
    world.run()
    assert len(worker.hosted["j"].stops) == 1
    assert worker.hosted["j"].taken.state is TakenState.STOPPING
    worker.end("j", "cancelled", why="")
    over(world)


# --- whose it is --------------------------------------------------------------------------------


@pytest.mark.parametrize("stranger", ["same incarnation", "same key"])
def test_a_lost_job_is_given_to_nobody_but_its_runner(stranger: str) -> None:
    world, client, worker, key = running()
    world.cut(key, LOST, LOST)
    its = worker.identity
    claimed = {
        "same incarnation": Identity(b"another's key", its.incarnation),
        "same key": Identity(its.key, b"another life"),
    }
    client.jobs.session_up(SESSION, claimed[stranger])
    assert client.jobs.drain() == [] and client.given["j"].session is None
    world.connect(client, worker)
    worker.end("j")
    world.run()
    assert client.outcome("j") is None
    over(world)


def test_a_stranger_that_submits_a_known_id_hears_nothing_of_it() -> None:
    world, client, worker, key = running()
    worker.give("j", "a")
    assert not worker.jobs.taking.offered(SESSION, STRANGER, "client", "j")
    (answer,) = [e for e in worker.jobs.drain() if getattr(e, "session", None) == SESSION]
    assert answer.value["outcome"] == "refused"  # type: ignore[union-attr]
    worker.end("j")
    world.run()
    assert client.outcome("j") is None
    over(world)
    assert worker.jobs.taking.offered(SESSION, STRANGER, "stranger", "j"), "one of its own"


def test_one_principal_has_so_much_room_and_no_more() -> None:
    """However many processes it claims to be, and whatever becomes of their sessions."""
    jobs = Jobs()
    for process in range(8):
        owner, session = Identity(b"m", bytes([process])), SESSION._replace(id=bytes([process]))
        for i in range(MAX_TAKEN + 5):
            jobs.taking.offered(session, owner, "m", f"{process} {i}")
            jobs.taking.submitted(session, f"{process} {i}", "what")
        jobs.session_down(session, LOST, 0.0)
    assert len(jobs.taken) == MAX_OF_PRINCIPAL
    assert jobs.taking.offered(SESSION, STRANGER, "another", "j"), "others have theirs"


def test_a_result_that_was_not_asked_for_is_not_wanted() -> None:
    world, client, _worker, key = pair()
    given = client.submit(key, "j")
    given.wanted = frozenset({"a", "b"})
    giving = client.jobs.giving
    assert giving.wants(key, "j", RESULT + "a") and not giving.wants(key, "j", RESULT + "a")
    assert not giving.wants(key, "j", RESULT + "c") and not giving.has(key, "j", RESULT + "a")
    client.jobs.arrived(key, "j", RESULT + "a", 1)
    assert giving.has(key, "j", RESULT + "a") and not giving.has(key, "j", END)
    client.jobs.arrived(key, "j", END, {"outcome": "done", "results": ["a", "x"]})
    assert not giving.wants(key, "j", RESULT + "b"), "its end names no such result"
    given.wanted = None
    given.results = {str(i): i for i in range(MAX_RESULTS)}
    assert not giving.wants(key, "j", RESULT + "x"), "too many"
    del given.results["0"]
    assert giving.wants(key, "j", RESULT + "x")


def test_a_cancel_of_a_lost_job_is_told_when_its_runner_is_met_again() -> None:
    world, client, worker, key = running()
    world.cut(key, LOST, LOST)
    client.cancel("j")
    assert isinstance(client.outcome("j"), Cancelled) and worker.hosted["j"].stops == []
    client.jobs.session_up(SESSION, STRANGER)
    assert client.jobs.drain() == [], "not to another"
    world.wait(1)
    world.connect(client, worker)
    world.run()
    assert worker.hosted["j"].stops == ["cancelled there"]
    worker.end("j", "cancelled", why="")
    over(world)
    world.wait(2 * (WAIT + KEPT))
    assert client.jobs.deadline() is None


@pytest.mark.parametrize("late", [False, True])
def test_a_job_that_was_not_met_again_in_time_is_cancelled_when_its_runner_is(late: bool) -> None:
    world, client, worker, key = running()
    world.cut(key, LOST, LOST)
    world.wait(WAIT)
    assert isinstance(client.outcome("j"), LinkLost)
    assert client.jobs.deadline() == world.now + TELL_CANCEL
    world.wait(TELL_CANCEL if late else TELL_CANCEL - 1)
    world.connect(client, worker)
    world.run()
    told = [] if late else ["the link was lost and is not back"]
    assert worker.hosted["j"].stops == told and client.jobs.deadline() is None


# --- everything at any time ---------------------------------------------------------------------


SOME_END = st.sampled_from([LOST, LOST, GONE])


class Any_(RuleBasedStateMachine):
    """Jobs both ways between two sides, whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World("x", "y")
        self.count = 0
        self.key = self.world.connect(*self.world.sides)

    @initialize(whose=st.lists(st.booleans(), max_size=3), runs=st.booleans())
    def jobs(self, whose: list[bool], runs: bool) -> None:
        for which in whose:
            self.submit(which, "")
        if runs:
            self.world.run()
            for side, job, _ in self.live():
                side.start(job)
                side.give(job, "a")

    def side(self, which: bool) -> Side:
        return self.world.sides[which]

    def live(self) -> list[tuple[Side, str, Hosted]]:
        """Jobs that their host has not ended."""
        return [
            (side, job, hosted)
            for side in self.world.sides
            for job, hosted in side.hosted.items()
            if not hosted.outcome
        ]

    # --- what comes by itself -----------------------------------------------------------------

    @precondition(lambda self: self.world.ready())
    @rule(which=st.lists(st.integers(0, 1000), min_size=1, max_size=12))
    def steps(self, which: list[int]) -> None:
        for n in which:
            steps = self.world.ready()
            if steps:
                steps[n % len(steps)]()

    @precondition(lambda self: self.world.ready())
    @rule()
    def rest(self) -> None:
        self.world.run()

    @precondition(lambda self: any(p.part != END for s in self.world.sides for p in s.packing))
    @rule(which=st.integers(0, 100))
    def not_packed(self, which: int) -> None:
        found = [(s, p) for s in self.world.sides for p in s.packing if p.part != END]
        side, parcel = found[which % len(found)]
        side.packed(parcel, CodecRefused("cannot be packed"))

    @precondition(lambda self: self.world.coming())
    @rule(which=st.integers(0, 100))
    def not_taken(self, which: int) -> None:
        found = self.world.coming()
        parcel = found[which % len(found)]
        parcel.target.not_taken(parcel, TransferRefused("no memory"))

    # --- users --------------------------------------------------------------------------------

    @rule(which=st.booleans(), group=st.sampled_from(["", "", "g", "h"]))
    def submit(self, which: bool, group: str) -> None:
        side = self.side(which)
        if side.up:
            self.count += 1
            side.submit(list(side.up)[-1], f"job {self.count}", group)

    @rule(which=st.booleans(), n=st.integers(0, 100), at=st.integers(0, 2 * CHUNKS))
    def cancel(self, which: bool, n: int, at: int) -> None:
        self.come_to(at)
        side = self.side(which)
        if side.given:
            side.cancel(list(side.given)[n % len(side.given)])

    @rule(which=st.booleans(), n=st.integers(0, 100))
    def awaits(self, which: bool, n: int) -> None:
        side = self.side(which)
        if side.jobs.given:
            side.awaits(list(side.jobs.given)[n % len(side.jobs.given)], "a prompt")

    @rule(which=st.booleans(), n=st.integers(0, 100), known=st.booleans())
    def submit_again(self, which: bool, n: int, known: bool) -> None:
        """Not by a peer of ours: a job id that is or was known, on the session that stands."""
        side, client = self.side(which), self.side(not which)
        its_own = [j for j, h in side.hosted.items() if h.taken.owner == client.identity]
        ids = [job for job in its_own if known or job not in side.jobs.taken]
        if ids and side.up:
            job, key = ids[n % len(ids)], list(side.up)[-1]
            assert not side.jobs.taking.offered(key, client.identity, client.name, job)
            side.settle()

    # --- hosts --------------------------------------------------------------------------------

    @precondition(lambda self: self.live())
    @rule(n=st.integers(0, 100), place=st.integers(0, 3))
    def queue(self, n: int, place: int) -> None:
        side, job, _ = self.live()[n % len(self.live())]
        side.queue(job, place)

    @precondition(lambda self: self.live())
    @rule(n=st.integers(0, 100))
    def start(self, n: int) -> None:
        side, job, _ = self.live()[n % len(self.live())]
        side.start(job)

    @precondition(lambda self: self.live())
    @rule(n=st.integers(0, 100), name=st.sampled_from("abc"))
    def give(self, n: int, name: str) -> None:
        side, job, _ = self.live()[n % len(self.live())]
        side.give(job, name)

    @precondition(lambda self: self.live())
    @rule(n=st.integers(0, 100), how=st.sampled_from(["done", "done", "failed", "refused"]))
    def end(self, n: int, how: str) -> None:
        side, job, hosted = self.live()[n % len(self.live())]
        side.end(job, "cancelled" if hosted.stops and how != "done" else how)

    # --- links --------------------------------------------------------------------------------

    @rule(
        kind=st.sampled_from(["unplug", "unplug", "lose", "cut", "restart"]),
        at=st.integers(0, 2 * CHUNKS),
        data=st.data(),
    )
    def trouble(self, kind: str, at: int, data: st.DataObject) -> None:
        self.come_to(at)
        getattr(self, f"_{kind}")(data.draw)

    def come_to(self, at: int) -> None:
        """0: where it is. Else into the middle of a value, and so many things on."""
        if at:
            self.world.run_until(lambda: any(p.is_between for p in self.world.coming()))
            for _ in range(at - 1):
                for step in self.world.ready()[:1]:
                    step()

    def _unplug(self, draw: Any) -> None:
        """The connection alone breaks."""
        self.world.unplug(self.key)

    def _lose(self, draw: Any) -> None:
        """One side gives up its last session; the other has not noticed yet."""
        side = self.side(draw(st.booleans()))
        if side.up:
            side.down(list(side.up)[-1], draw(SOME_END), draw(st.booleans()))

    def _cut(self, draw: Any) -> None:
        self.world.cut(self.key, draw(SOME_END), draw(SOME_END), draw(st.booleans()))

    def _restart(self, draw: Any) -> None:
        which = draw(st.booleans())
        other = self.side(not which)
        self.world.kill(self.side(which))
        for key in list(other.up):
            other.down(key, RESTARTED)

    @rule()
    def connect(self) -> None:
        """Anew; what is left of the old session ends a moment later."""
        if not all(self.key in side.up for side in self.world.sides):
            old = self.key
            self.key = self.world.connect(*self.world.sides)
            for side in self.world.sides:
                if old in side.up:
                    side.down(old, GONE)

    @rule(seconds=st.sampled_from([1.0, 100.0, WAIT, KEPT]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    # --- and always ---------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        for side in self.world.sides:
            assert side.jobs.out == []
            side.check()
            side.check_ended()
            deadline = side.jobs.deadline()
            lost = [o for o in side.jobs.given.values() if o.session is None]
            assert deadline is not None or not lost

    def teardown(self) -> None:
        """At last everybody ends what is open, and all time passes."""
        self.connect()
        for _ in range(4):
            self.world.run()
            for side, job, hosted in self.live():
                side.end(job, "cancelled" if hosted.stops else "done")
            self.world.run()
            self.world.wait(2 * KEPT)
        assert self.world.nothing_left(), [(s.jobs.given, s.jobs.taken) for s in self.world.sides]
        for side in self.world.sides:
            assert side.ended.keys() == side.given.keys()
            assert all(hosted.forgotten == 1 for hosted in side.hosted.values())
            assert side.jobs.deadline() is None


TestAnything = Any_.TestCase
TestAnything.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)


def test_waits_of_many_jobs_are_clipped() -> None:
    jobs = Jobs()
    for i in range(200):
        given = GivenJob(f"j{i}", None, "x", STRANGER, awaited="a prompt")
        jobs.giving.submit(given, SESSION)
    assert len(waits_of(jobs.given.values())) == 64
