"""Jobs between real peers on real sockets, with a host that does as the test says."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import zmq
from children import child, until
from jobpair import Host, clean, left
from proxy import Proxy

from zbus import Peer, Settings, ZBusError
from zbus.engine import enquiries
from zbus.errors import (
    Cancelled,
    DialledSelf,
    InputError,
    InvalidAddress,
    JobCancelled,
    JobFailed,
    JobRefused,
    NameNotResolved,
    NotPermitted,
    NotTransferable,
    PeerClosed,
    PeerGone,
    QueueDeadlock,
    TimedOut,
    TransferRefused,
    Unreachable,
    WrongPeer,
)
from zbus.job import Job, Reason, Remote, Request, Taken
from zbus.protocol.identity import Identity
from zbus.protocol.job_records import GivenJob
from zbus.protocol.messages import (
    Bye,
    Enquire,
    Facts,
    Hello,
    JobCancel,
    JobOffer,
    JobState,
    Ready,
    Refused,
    Reject,
    Stored,
    decode,
    encode,
)
from zbus.values import payload

pytestmark = pytest.mark.usefixtures("by_socket")

MIB = 1 << 20
PROMPT: dict[str, Any] = {"1": {"class_type": "Number", "inputs": {"value": 3}}}


class Two(NamedTuple):
    """A peer that gives jobs, and one that runs them."""

    here: Peer
    there: Peer
    host: Host
    remote: Remote


@contextlib.contextmanager
def joined(settings: Settings | None = None) -> Iterator[Two]:
    with Peer("here", settings=settings) as here, Peer("there", settings=settings) as there:
        host = Host()
        address = there.serve(host)
        yield Two(here, there, host, Remote(address, there.own.instance.hex(), "there"))


@pytest.fixture
def two() -> Iterator[Two]:
    with joined() as made:
        yield made


def request(**told: Any) -> Request:
    return Request(told.pop("prompt", PROMPT), **told)


def error(job: Job, within: float = 10.0) -> Any:
    """The error that it ends with, in time."""
    until(job.done, within, f"an end of what says {job.note!r}")
    with pytest.raises(ZBusError) as raised:
        job.result()
    return raised.value


def result(job: Job, within: float = 30.0) -> dict[str, Any]:
    until(job.done, within, f"an end of what says {job.note!r}")
    return job.result()


def echo(job: Taken) -> None:
    """Run it: its values are its results."""
    job.queued(0)
    job.started()
    for name, value in job.request.values.items():
        job.result(name, value)
    job.done()


def quiet(two: Two) -> None:
    """Nothing is on its way: a goodbye that crosses with something may be lost with it."""

    def look() -> bool:
        engines = [peer._engine for peer in (two.here, two.there)]
        peerings = [peering for engine in engines for peering in engine.links.peerings]
        owed = any(peering.session._ack_at is not None for peering in peerings)
        return not owed and all(p.session.drained and p.connection for p in peerings)

    until(look, 5, "everything acknowledged")


# --- outcomes -----------------------------------------------------------------------------------


def test_done(two: Two) -> None:
    two.host.on_submitted = echo
    values = {"a": torch.rand(3, 4), "b": [1, {"x": None}], "c": "ü" * 10}
    wanted = request(values=values, outputs=("1",), title="double", group="g", quality="raw")
    job = two.here.submit(two.remote, wanted)
    got = result(job)
    assert torch.equal(got["a"], values["a"])
    assert (got["b"], got["c"]) == (values["b"], values["c"])
    assert job.peer == "there" and job.progress.state == "ended" and job.accepted
    taken = two.host.only()
    assert taken.id == job.id and taken.client == "here"
    asked = taken.request
    assert (asked.prompt, asked.outputs, asked.title) == (PROMPT, ("1",), "double")
    assert (asked.group, asked.check, asked.quality) == ("g", False, "raw")
    clean(two.here, two.there)
    assert [said[0] for said in two.host.said] == ["submitted", "forget"]


def test_a_job_can_be_awaited(two: Two) -> None:
    two.host.on_submitted = echo

    async def run() -> dict[str, Any]:
        return await two.here.submit(two.remote, request(values={"n": 1}))

    assert asyncio.run(run()) == {"n": 1}


def test_a_check_that_passes(two: Two) -> None:
    two.host.on_submitted = lambda job: job.passed()
    assert result(two.here.submit(two.remote, request(check=True))) == {}
    assert two.host.only().request.check


def test_refused_with_every_reason(two: Two) -> None:
    reasons = [
        Reason("class", "4", "Sampler (4)", "Sampler", text="Sampler (4) is not installed there"),
        Reason(
            "choice", "5", "Load (5)", "Load", "ckpt", "a.pt", ("b.pt", "c.pt"), "no a.pt there"
        ),
        Reason("value", "6", value="\ud800" * 600, text="not a number"),
    ]
    two.host.on_submitted = lambda job: job.refuse(reasons)
    failed = error(two.here.submit(two.remote, request(title="mine")))
    assert isinstance(failed, JobRefused)
    assert failed.reasons[:2] == tuple(reasons[:2]) and failed.reasons[1].near == ("b.pt", "c.pt")
    text = str(failed)
    assert all(reason.text in text for reason in reasons)
    assert text.startswith("there, job mine: cannot run there:\n")
    assert text.endswith(" missing there, and start that ComfyUI again")
    clean(two.here, two.there)


def test_refused_with_very_many_reasons(two: Two) -> None:
    many = [Reason("value", str(i), text=f"wrong {i}") for i in range(1000)]
    two.host.on_submitted = lambda job: job.refuse(many)
    failed = error(two.here.submit(two.remote, request()))
    assert len(failed.reasons) == 256 and "and 236 more" in str(failed)


def test_failed_with_a_traceback_of_100_kib(two: Two) -> None:
    told = {
        "node_id": "7",
        "title": "VAE Decode (7)",
        "class_type": "VAEDecode",
        "exception_type": "torch.OutOfMemoryError",
        "message": "no memory \ud800",
        "traceback": "".join(f"line {i}\n" for i in range(12_000)),
    }
    assert len(told["traceback"]) > 100_000
    two.host.on_submitted = lambda job: job.failed(told)
    failed = error(two.here.submit(two.remote, request()))
    assert isinstance(failed, JobFailed) and "VAE Decode (7) failed there: no memory" in str(failed)
    assert failed.traceback == told["traceback"] and failed.node_id == "7"
    assert failed.exception_type == "torch.OutOfMemoryError"
    clean(two.here, two.there)


def test_stopped_by_its_host(two: Two) -> None:
    two.host.on_submitted = lambda job: job.stopped("somebody pressed stop there")
    failed = error(two.here.submit(two.remote, request()))
    assert isinstance(failed, JobCancelled) and "somebody pressed stop there" in str(failed)
    clean(two.here, two.there)


def test_a_result_that_the_quality_cannot_carry(two: Two) -> None:
    """8 bits do not hold NaN: who waits for it hears that, and does not wait for ever."""
    image = torch.full((1, 8, 8, 3), math.nan)

    def run(job: Taken) -> None:
        job.result("fine", 1)
        job.result("image", image)
        job.done()

    two.host.on_submitted = run
    failed = error(two.here.submit(two.remote, request(quality="8-bit")))
    assert isinstance(failed, JobFailed) and "result image cannot be sent" in str(failed)
    clean(two.here, two.there)


def test_what_was_clipped_is_told_with_the_end(two: Two) -> None:
    def run(job: Taken) -> None:
        job.result("image", torch.full((1, 8, 8, 3), 1.5))
        job.result("embeds", torch.full((1, 8, 8), 1.5), "EMBEDS")
        job.result("tracks", {"track_path": torch.full((4, 2), -7.0)})
        job.done()

    two.host.on_submitted = run
    job = two.here.submit(two.remote, request(quality="8-bit"))
    got = result(job)
    assert float(got["image"].max()) == 1.0
    assert float(got["embeds"].max()) == 1.5 and float(got["tracks"]["track_path"].min()) == -7
    assert job.notes == ("values outside 0..1 were clipped (min 0, max 1.5)",)
    plain = two.here.submit(two.remote, request(quality="exact"))
    assert float(result(plain)["image"].max()) == 1.5 and plain.notes == ()


@pytest.mark.parametrize("notes", [3, ["\x1b[31m" + "x" * 5000, 4, *"abcdefghijk"], {}, None])
def test_notes_off_the_wire_are_few_and_printable(notes: object) -> None:
    given = GivenJob("job", None, "there", Identity(b"", b""))
    given.end = {"outcome": "done", "notes": notes}
    assert len(given.notes) <= 8
    assert all(text.isprintable() and len(text) <= 300 for text in given.notes)


def test_results_that_cannot_travel_at_all(two: Two) -> None:
    two.here.submit(two.remote, request())
    taken = two.host.only()
    with pytest.raises(NotTransferable):
        taken.result("a", object())
    for name in ("x" * 500, "\ud800"):
        with pytest.raises(NotTransferable):
            taken.result(name, 1)
    taken.done()
    clean(two.here, two.there)


def test_a_plain_listener_permits_no_jobs(two: Two) -> None:
    with two.there.listen("127.0.0.1:0") as channel:
        job = two.here.submit(Remote(channel.address), request())
        failed = error(job)
        assert isinstance(failed, NotPermitted)
        assert "for values only" in str(failed) and "name" in str(failed)
        with pytest.raises(NotPermitted):
            two.here.enquire(Remote(channel.address)).result(10)
        clean(two.here, two.there)
    assert two.host.said == []


def test_a_job_that_comes_by_a_plain_listener(two: Two) -> None:
    """This side's zbus would not give it: another's might."""
    with two.there.listen("127.0.0.1:0") as channel:
        bad = Bad(two.there, channel.address, plain=True)
        bad.parcel("job", "submit", request().told())
        refused = bad.hear(JobOffer)
        assert refused.part == "end" and b"not permitted over this link" in bad.body + refused.spec
        bad.say(Enquire(1))
        assert bad.hear(Facts).facts == '{"jobs": false}'
        bad.close()
    assert two.host.said == []


def test_a_peer_that_serves_nothing(two: Two) -> None:
    """Jobs the other way over a session that stands: who dialled has no host."""
    assert two.here.enquire(two.remote).result(10)["jobs"]
    back = Remote("127.0.0.1:1", two.here.own.instance.hex(), "here")
    assert isinstance(error(two.there.submit(back, request())), NotPermitted)
    assert two.there.enquire(back).result(10) == {"jobs": False}
    clean(two.here, two.there)


def test_oneself(two: Two) -> None:
    own = two.there.own.instance.hex()
    for remote in (Remote(two.remote.address, own), Remote(two.remote.address)):
        failed = error(two.there.submit(remote, request()))
        assert isinstance(failed, DialledSelf) and "this very ComfyUI" in str(failed)
    clean(two.there)


def test_another_peer_than_the_one_that_was_meant(two: Two) -> None:
    remote = Remote(two.remote.address, "ab" * 16, "studio")
    failed = error(two.here.submit(remote, request()))
    assert isinstance(failed, WrongPeer)
    assert "there answers there, and not studio" in str(failed)
    assert "ssh -N -L 127.0.0.1:18190:127.0.0.1:" in str(failed)
    with pytest.raises(WrongPeer):
        two.here.enquire(remote).result(10)
    clean(two.here, two.there)


def test_nobody_there(two: Two, addr: str) -> None:
    for remote in (Remote(addr, name="studio"), Remote("no-such-host.invalid:1")):
        began = time.monotonic()
        failed = error(two.here.submit(remote, request()))
        assert isinstance(failed, Unreachable | NameNotResolved) and time.monotonic() - began < 5
        assert "zbus-ping" in str(failed) and str(remote) in str(failed)
    with pytest.raises(Unreachable):
        two.here.enquire(Remote(addr)).result(10)
    clean(two.here)


def test_an_address_that_is_none(two: Two) -> None:
    assert isinstance(error(two.here.submit(Remote("nonsense"), request())), InvalidAddress)
    clean(two.here)


def test_what_cannot_be_asked(two: Two) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for bad in ({"1": {"x": object()}}, {"1": {"x": deep}}):
        with pytest.raises(InputError, match="not JSON"):
            two.here.submit(two.remote, request(prompt=bad))
    with pytest.raises(NotTransferable):
        two.here.submit(two.remote, request(values={"a": object()}))
    clean(two.here)


def test_a_closed_peer(two: Two) -> None:
    running = two.here.submit(two.remote, request())
    connecting = two.here.submit(Remote("127.0.0.1:9", "cd" * 16), request())
    taken = two.host.only()
    quiet(two)
    two.here.close()
    for job in (running, connecting):
        assert isinstance(error(job, 1), PeerClosed | Unreachable)
    with pytest.raises(PeerClosed):
        two.here.submit(two.remote, request())
    until(lambda: two.host.count("forget"), 5)
    assert [what for what, _, _ in two.host.said] == ["submitted", "cancel", "forget"]
    two.there.close()
    taken.result("late", 1)
    taken.progress("1", "", 1, 1)
    taken.done()  # into the void, without harm


def test_the_worker_closes(two: Two) -> None:
    job = two.here.submit(two.remote, request())
    two.host.only()
    quiet(two)
    two.there.close()
    assert isinstance(error(job), PeerGone)
    until(lambda: two.host.count("cancel") == 1)  # it is called in a thread of its own
    clean(two.here)


# --- values -------------------------------------------------------------------------------------


def noise(size: int, seed: int) -> torch.Tensor:
    made = torch.rand(size // 4, generator=torch.Generator().manual_seed(seed))
    made[: size // 8] = torch.arange(size // 8) % 977
    return made


@pytest.mark.parametrize("quality", ["exact", "lz4"])
def test_large_values_both_ways(two: Two, quality: str) -> None:
    values = {"a": noise(120 * MIB, 1), "b": noise(8 * MIB, 2), "n": torch.tensor(math.nan)}
    two.host.on_submitted = echo
    job = two.here.submit(two.remote, request(values=values, quality=quality))
    got = result(job, 90)
    assert all(_bits(got[name], values[name]) for name in values)
    clean(two.here, two.there)


def _bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def test_a_large_list_of_small_values(two: Two) -> None:
    values = {
        "list": [torch.full((2,), i) for i in range(5000)],
        "deep": [[{"k": i}] for i in range(3000)],
    }
    two.host.on_submitted = echo
    got = result(two.here.submit(two.remote, request(values=values)))
    assert all(torch.equal(a, b) for a, b in zip(got["list"], values["list"], strict=True))
    assert got["deep"] == values["deep"]
    clean(two.here, two.there)


def test_a_prompt_of_300_kib_with_everything_that_json_has(two: Two) -> None:
    inputs = {
        "nan": math.nan,
        "inf": -math.inf,
        "text": "\ud800ü\n" * 9,
        "link": ["1", 0],
        "n": 1 << 70,
    }
    prompt = {str(i): {"class_type": "K", "inputs": inputs} for i in range(2000)}
    assert len(json.dumps(prompt)) > 300_000
    two.here.submit(two.remote, request(prompt=prompt))
    got = two.host.only().request.prompt
    assert math.isnan(got["7"]["inputs"].pop("nan"))
    assert got["7"]["inputs"] == {n: v for n, v in inputs.items() if n != "nan"}
    assert got.keys() == prompt.keys()


def test_values_that_the_worker_has_no_memory_for() -> None:
    with Peer("here") as here, Peer("there", settings=Settings(memory=4 * MIB)) as there:
        host = Host(echo)
        remote = Remote(there.serve(host))
        failed = error(here.submit(remote, request(values={"a": torch.zeros(8 * MIB)})))
        assert isinstance(failed, TransferRefused) and "may be taken here" in str(failed)
        clean(here, there)
        assert result(here.submit(remote, request(values={"a": 1}))) == {"a": 1}
        assert host.count("submitted") == 1


def test_results_that_the_client_has_no_memory_for() -> None:
    with Peer("here", settings=Settings(memory=4 * MIB)) as here, Peer("there") as there:
        host = Host()
        remote = Remote(there.serve(host))
        job = here.submit(remote, request())
        taken = host.only()
        taken.started()
        taken.result("a", torch.zeros(8 * MIB))
        assert isinstance(error(job), TransferRefused)
        clean(here, there)
        assert host.count("cancel") == 1


# --- on the way ---------------------------------------------------------------------------------


def test_progress_previews_and_results_as_they_come(two: Two) -> None:
    seen: list[Any] = []
    previews: list[Any] = []
    job = two.here.submit(
        two.remote,
        request(title="T"),
        on_change=lambda job: seen.append((job.progress, sorted(job.results))),
        on_preview=lambda *told: previews.append(told),
    )
    taken = two.host.only()
    taken.queued(2)
    until(lambda: job.progress.state == "queued" and job.progress.place == 2)
    until(lambda: "queued on there, 2 before it" in job.note)
    taken.queued(0)
    until(lambda: "queued on there, next" in job.note)
    taken.started()
    taken.progress("7", "KSampler (7)", 3, 20)
    until(lambda: job.progress.value == 3)
    at = job.progress
    assert (at.state, at.node, at.title, at.maximum) == ("running", "7", "KSampler (7)", 20)
    until(lambda: "there: KSampler (7) 3/20" in job.note)
    taken.progress("7", "x" * 500, 0.5, 1.0)  # type: ignore[arg-type]  # as some nodes do
    until(lambda: job.progress.maximum == 1)
    taken.preview("7", "image/jpeg", b"\xff\xd8 a picture")
    until(lambda: previews)
    assert previews == [("7", "image/jpeg", b"\xff\xd8 a picture")]
    taken.result("first", [1])
    until(lambda: job.results)
    assert job.results == {"first": [1]} and not job.done()
    until(lambda: seen[-1][1] == ["first"])  # callbacks are told in a thread of their own
    taken.done()
    assert result(job) == {"first": [1]}
    taken.progress("7", "", 9, 20)
    taken.preview("7", "image/png", b"late")
    clean(two.here, two.there)
    assert two.here.enquire(two.remote).result(5)["jobs"]
    assert not [at for at, _ in seen if at.value == 9] and len(previews) == 1


def test_what_was_sent_is_not_taken_for_what_comes_back(two: Two) -> None:
    seen: list[Any] = []
    job = two.here.submit(
        two.remote,
        request(values={"given": torch.zeros(2 * MIB)}),
        on_change=lambda job: seen.append(job.progress),
    )
    taken = two.host.only()
    taken.started()
    taken.progress("7", "KSampler (7)", 3, 20)
    until(lambda: "there: KSampler (7) 3/20" in job.note)
    until(lambda: any(at.value == 3 for at in seen))
    assert not any(at.total for at in seen if at.state == "running")
    taken.done()
    result(job)


def test_previews_are_limited(two: Two) -> None:
    previews: list[bytes] = []
    job = two.here.submit(
        two.remote, request(), on_preview=lambda node, kind, data: previews.append(data)
    )
    taken = two.host.only()
    began = time.monotonic()
    for i in range(200):
        taken.preview("1", "image/png", bytes([i]))
        time.sleep(0.002)  # it goes on for several times what lies between two
    taken.preview("1", "image/png", b"")
    took = time.monotonic() - began
    taken.done()
    result(job)
    until(lambda: previews)  # told in a thread of their own, which may come later
    assert len(previews) <= took / 0.1 + 2
    other = two.here.submit(
        two.remote, request(), on_preview=lambda *told: previews.append(b"too large")
    )
    until(lambda: other.id in two.host.jobs)
    two.host.jobs[other.id].preview("1", "image/png", bytes(MIB + 1))
    two.host.jobs[other.id].done()
    result(other)
    assert b"too large" not in previews, "one that is too large is not sent"


def test_callbacks_that_fail_do_no_harm(two: Two, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a bug of the caller")

    two.host.on_submitted = broken
    job = two.here.submit(two.remote, request(), on_change=broken, on_preview=broken)
    taken = two.host.only()
    taken.preview("1", "image/png", b"x")
    taken.result("a", 1)
    taken.done()
    assert result(job) == {"a": 1}
    until(lambda: "a callback has raised" in caplog.text)


def test_a_host_that_says_nonsense_harms_nobody_else(two: Two) -> None:
    job = two.here.submit(two.remote, request())
    taken = two.host.only()
    taken.queued(-1)
    taken.progress("1", "", "x", None)  # type: ignore[arg-type]
    taken.preview("1", "text/html", b"x")
    taken.queued(1)
    until(lambda: job.progress.place == 1)
    taken.failed({"message": object()})  # type: ignore[dict-item]
    two.host.on_submitted = echo
    assert result(two.here.submit(two.remote, request(values={"n": 1}))) == {"n": 1}
    assert isinstance(error(job), JobFailed)
    clean(two.here, two.there)


def test_a_newer_job_of_the_group(two: Two) -> None:
    old = two.here.submit(two.remote, request(group="g"))
    until(lambda: two.host.jobs)
    two.host.on_submitted = echo
    new = two.here.submit(two.remote, request(group="g", values={"n": 2}))
    assert "a newer job of the same node" in str(error(old)) and result(new) == {"n": 2}
    clean(two.here, two.there)


# --- cancel -------------------------------------------------------------------------------------


@contextlib.contextmanager
def throttled(rate: float | None, settings: Settings | None = None) -> Iterator[tuple[Two, Proxy]]:
    with joined(settings) as two, Proxy(two.remote.address) as proxy:
        proxy.rate = rate
        yield two._replace(remote=Remote(proxy.address, two.remote.instance, "there")), proxy


def _uploading(two: Two) -> Job:
    job = two.here.submit(two.remote, request(values={"a": noise(48 * MIB, 1)}, quality="raw"))
    until(lambda: job.progress.received > MIB and job.progress.state == "sending")
    return job


def _receiving(two: Two) -> Job:
    job = two.here.submit(two.remote, request(quality="raw"))
    taken = two.host.only()
    taken.started()
    taken.result("a", noise(48 * MIB, 1))
    taken.done()
    until(lambda: job.progress.received > MIB)
    return job


def _queued(two: Two) -> Job:
    job = two.here.submit(two.remote, request())
    two.host.only().queued(1)
    until(lambda: job.progress.state == "queued")
    return job


def _running(two: Two) -> Job:
    job = two.here.submit(two.remote, request())
    two.host.only().started()
    until(lambda: job.progress.state == "running")
    return job


@pytest.mark.parametrize("stage", [_uploading, _queued, _running, _receiving])
def test_cancel(stage: Callable[[Two], Job]) -> None:
    """In under a second, and nothing is left on either side."""
    with throttled(12e6) as (two, _proxy):
        job = stage(two)
        began = time.monotonic()
        job.cancel()
        assert isinstance(error(job), Cancelled)
        assert time.monotonic() - began < 0.5
        clean(two.here, two.there, within=1.5)
        if stage in (_queued, _running):
            assert [said[0] for said in two.host.said] == ["submitted", "cancel", "forget"]
            assert "cancelled here" in two.host.said[1][2]
        elif stage is _uploading:
            assert two.host.said == []
        else:
            assert two.host.count("cancel") == 0 and two.host.count("forget") == 1


def test_cancel_while_connecting(two: Two) -> None:
    with Proxy(two.remote.address) as proxy:
        proxy.black_hole = True
        job = two.here.submit(Remote(proxy.address), request())
        until(lambda: proxy.accepted)
        until(lambda: "connecting to" in job.note)
        job.cancel()
        assert isinstance(error(job, 0.5), Cancelled)
        clean(two.here)


def test_a_cancel_stops_exactly_its_job(two: Two) -> None:
    jobs = [two.here.submit(two.remote, request()) for _ in range(5)]
    until(lambda: len(two.host.jobs) == 5)
    jobs[2].cancel()
    assert isinstance(error(jobs[2]), Cancelled)
    until(lambda: two.host.count("forget"))
    assert [said[1] for said in two.host.said if said[0] == "cancel"] == [jobs[2].id]
    for taken in two.host.jobs.values():
        taken.done()
    assert all(result(job) == {} for job in jobs if job is not jobs[2])
    clean(two.here, two.there)


def test_cancel_at_once_many_times(two: Two) -> None:
    two.host.on_submitted = echo
    for i in range(60):
        job = two.here.submit(two.remote, request(values={"a": torch.zeros(i * 10_000)}))
        if i % 3:
            time.sleep(i / 20_000)  # at any stage of it
        job.cancel()
        job.cancel()
        until(job.done, 5)
    clean(two.here, two.there)
    assert two.host.count("submitted") == two.host.count("forget")


# --- ends of processes --------------------------------------------------------------------------

WORKER = """
    import sys, torch
    from jobpair import Host
    from zbus import Peer
    peer = Peer("worker")
    host = Host()
    print("serving", peer.serve(host), flush=True)
    taken = host.only(60)
    taken.started()
    if sys.argv[1] == "result":
        taken.result("a", torch.zeros(32 << 20))
    print("running", flush=True)
    sys.stdin.read()
"""
CLIENT = """
    import sys, torch
    from zbus import Peer
    from zbus.job import Remote, Request
    peer = Peer("client")
    # Of which no codec makes less: the values that go there are packed, on so slow a link.
    whole = torch.randint(-(1 << 31), 1 << 31, (32 << 20,), dtype=torch.int32)
    values = {"a": whole} if sys.argv[2] == "upload" else {}
    job = peer.submit(Remote(sys.argv[1]), Request({}, values=values, quality="raw"))
    print("given", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("stage", ["running", "result"])
def test_the_worker_is_killed(stage: str) -> None:
    with Peer("here") as here, child(WORKER, stage) as worker:
        with Proxy(worker.line("serving").split()[1]) as proxy:
            proxy.rate = 12e6
            job = here.submit(Remote(proxy.address), request(quality="raw"))
            worker.line("running")
            if stage == "result":
                until(lambda: job.progress.received > MIB)
            worker.kill()
            failed = error(job, 3)
            assert isinstance(failed, PeerGone) and failed.peer == "worker"
            clean(here)


@pytest.mark.parametrize("stage", ["running", "upload"])
def test_the_client_is_killed(stage: str) -> None:
    with Peer("there") as there:
        host = Host()
        with Proxy(there.serve(host)) as proxy, child(CLIENT, proxy.address, stage) as client:
            proxy.rate = 12e6
            client.line("given")
            if stage == "upload":
                until(lambda: left(there).get("budget", 0) and proxy.forwarded > MIB, 20)
            else:
                host.only().started()
            client.kill()
            clean(there)
            ends = ["submitted", "cancel", "forget"] if stage == "running" else []
            assert [said[0] for said in host.said] == ends
            assert all(
                "client, whose job it is" in why for what, _, why in host.said if what == "cancel"
            )


# --- links that break ---------------------------------------------------------------------------


def test_a_cut_in_mid_job() -> None:
    with throttled(None) as (two, proxy):
        job = _running(two)
        proxy.refuse()
        proxy.cut()
        until(lambda: "link to there lost" in job.note)
        taken = two.host.only()
        taken.result("a", 1)
        taken.progress("1", "", 1, 2)
        time.sleep(0.3)  # for a while: that nothing happens has no event
        taken.done()
        assert not job.done()
        proxy.accept()
        assert result(job) == {"a": 1}
        clean(two.here, two.there)


def test_cuts_in_mid_result_and_in_mid_upload() -> None:
    with throttled(60e6) as (two, proxy):
        # Of which no codec makes less: the values that go there are packed, on so slow a link.
        value = torch.randint(-(1 << 31), 1 << 31, (16 * MIB,), dtype=torch.int32)
        two.host.on_submitted = echo
        job = two.here.submit(two.remote, request(values={"a": value}, quality="raw"))
        for at in (10, 30, 75, 100, 115):
            until(lambda mib=at: proxy.forwarded > mib * MIB or job.done(), 20)
            proxy.cut()
        until(lambda: proxy.forwarded > 120 * MIB, 20)
        proxy.refuse()
        proxy.cut()
        time.sleep(0.3)  # for a while there is nobody: nothing happens
        proxy.accept()
        assert _bits(result(job, 60)["a"], value)
        assert proxy.cuts >= 5
        clean(two.here, two.there)
        assert two.host.count("submitted") == two.host.count("forget") == 1


@pytest.mark.parametrize("stage", ["nothing", "queued", "submit", "result"])
def test_a_job_goes_on_after_a_session_was_given_up(stage: str) -> None:
    """On another session, with the same two processes, whatever was on its way."""
    value = noise(16 * MIB, 5)
    with throttled(40e6, Settings(reconnect_wait=1.0)) as (two, proxy):
        for peer in (two.here, two.there):
            jobs = peer._engine.job_service.jobs
            jobs.giving.reconnect_wait = jobs.taking.reconnect_wait = 60.0
        values = {"a": value} if stage == "submit" else {}
        job = two.here.submit(two.remote, request(values=values, quality="raw"))
        if stage == "submit":
            until(lambda: proxy.forwarded > 4 * MIB)
        else:
            taken = two.host.only()
            taken.queued(0) if stage == "queued" else taken.started()
            until(lambda: job.progress.state != "sending")
        if stage == "result":
            taken.result("a", value)
            until(lambda: job.progress.received > 4 * MIB)
        (session,) = (p.key for p in two.here._engine.links.peerings)
        proxy.refuse()
        proxy.cut()
        for peer in (two.here, two.there):
            until(lambda peer=peer: not peer.counters()["sessions"], 5)
        assert not job.done() and two.host.count("cancel") == 0
        proxy.accept()
        taken = two.host.only()
        if stage in ("nothing", "queued"):
            taken.result("a", value)
        elif stage == "submit":
            taken.result("a", taken.request.values["a"])
        taken.done()
        got = result(job)
        assert got.keys() == {"a"} and _bits(got["a"], value)
        assert all(p.key != session for p in two.here._engine.links.peerings)
        clean(two.here, two.there)
        assert two.host.count("submitted") == two.host.count("forget") == 1
        assert two.host.count("cancel") == 0


def test_a_job_goes_on_over_another_session_that_stands_already() -> None:
    with throttled(None, Settings(reconnect_wait=1.0)) as (two, proxy):
        job = _running(two)
        (own,) = (place for place in two.there._engine.links.places if place.own)
        straight = two.here.probe(Remote(str(own.address)))
        assert straight.hello(10).name == "there"
        assert two.here.counters()["sessions"] == 2
        proxy.refuse()
        proxy.cut()
        until(lambda: two.here.counters()["sessions"] == 1, 5)
        taken = two.host.only()
        taken.result("a", 1)
        taken.done()
        assert result(job, 5) == {"a": 1} and two.host.count("cancel") == 0
        straight.close()
        clean(two.here, two.there)


def test_a_cancel_while_nobody_is_there_is_told_later() -> None:
    with throttled(None, Settings(reconnect_wait=1.0)) as (two, proxy):
        job = _running(two)
        proxy.refuse()
        proxy.cut()
        until(lambda: not two.here.counters()["sessions"], 5)
        until(lambda: not two.there.counters()["sessions"], 5)
        job.cancel()
        assert isinstance(error(job, 0.5), Cancelled) and two.host.count("cancel") == 0
        proxy.accept()
        until(lambda: _asks(two), 10, "the link is back")
        until(lambda: two.host.count("forget"), 5)
        assert [said[0] for said in two.host.said] == ["submitted", "cancel", "forget"]
        clean(two.here, two.there)


def _asks(two: Two) -> bool:
    try:
        return bool(two.here.enquire(two.remote).result(10))
    except Unreachable:
        return False


def test_results_that_nobody_asked_for_are_not_taken(two: Two) -> None:
    job = two.here.submit(two.remote, request(wanted=frozenset({"a", "b"})))
    taken = two.host.only()
    for name in ("a", "forged", "b"):
        taken.result(name, name)
    taken.started()
    until(lambda: job.results.keys() == {"a", "b"})
    taken.done()
    failed = error(job)
    assert isinstance(failed, JobFailed) and "result forged cannot be sent" in str(failed)
    assert job.results == {"a": "a", "b": "b"}
    clean(two.here, two.there)


# --- code of others -----------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, MemoryError])
def test_what_foreign_code_raises_ends_nothing(two: Two, raised: type[BaseException]) -> None:
    def broken(*_: Any) -> None:
        raise raised("not zbus's own")

    def submitted(job: Taken) -> None:
        echo(job)
        broken()

    two.host.on_submitted, two.host.on_cancel = submitted, broken  # type: ignore[assignment]
    asked = request(values={"n": 1})
    job = two.here.submit(two.remote, asked, on_change=broken, on_preview=broken)
    assert result(job) == {"n": 1}
    two.host.on_submitted = None
    other = two.here.submit(two.remote, request(), on_change=broken, on_preview=broken)
    until(lambda: other.id in two.host.jobs)
    two.host.jobs[other.id].preview("1", "image/png", b"x")
    other.cancel()
    assert isinstance(error(other), Cancelled)
    until(lambda: two.host.count("cancel"))
    two.host.jobs[other.id].stopped("by hand")
    two.host.on_submitted, two.host.on_cancel = echo, lambda job, why: job.stopped(why)
    assert result(two.here.submit(two.remote, asked)) == {"n": 1}
    clean(two.here, two.there)


def test_a_host_that_blocks_holds_up_nothing_but_itself(two: Two) -> None:
    """And hears all of each job in its order."""
    go_on = threading.Event()
    two.host.on_submitted = lambda job: bool(go_on.wait(20)) and None
    jobs = [two.here.submit(two.remote, request()) for _ in range(3)]
    until(lambda: two.host.jobs)
    with two.there.listen("127.0.0.1:0") as one, two.here.connect(one.address) as other:
        sent = other.start_send(1, 0)
        assert one.receive(order=0) == 1
        until(sent.done)
    jobs[2].cancel()
    assert isinstance(error(jobs[2], 1), Cancelled) and len(two.host.jobs) == 1
    go_on.set()
    until(lambda: two.host.count("forget") == 1)
    of_it = [said[0] for said in two.host.said if said[1] == jobs[2].id]
    assert of_it in (["submitted", "cancel", "forget"], [])
    for taken in list(two.host.jobs.values()):
        taken.done()
    assert result(jobs[0]) == result(jobs[1]) == {}
    clean(two.here, two.there)


# --- who is there -------------------------------------------------------------------------------


def test_enquire(two: Two) -> None:
    two.host.told = {"queue": 3, "path": object()}
    facts = two.here.enquire(two.remote).result(10)
    assert facts["jobs"] is True and facts["queue"] == 3
    for told in ({"x": "y" * 100_000}, {(1, 2): 3}, None):
        two.host.told = told  # type: ignore[assignment]
        assert two.here.enquire(two.remote).result(10) == {"jobs": True}
    clean(two.here, two.there)
    assert not any(two.there._engine.job_service.enquiries._answering.values())


def test_a_host_that_does_not_say_how_it_is(
    two: Two, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each question is answered in time, with what is known without it, and few threads hang."""
    monkeypatch.setattr(enquiries, "LOOK_WITHIN", 0.3)
    go_on, calls = threading.Event(), []

    def facts() -> dict[str, Any]:
        calls.append(1)
        go_on.wait(20)
        return {"queue": 1}

    two.host.facts = facts  # type: ignore[method-assign]
    asked = [two.here.enquire(two.remote) for _ in range(10)]
    assert [one.result(3) for one in asked] == [{"jobs": True}] * 10
    assert len(calls) == enquiries.LOOKS and "could not say in" in caplog.text
    two.host.on_submitted = echo
    assert result(two.here.submit(two.remote, request(values={"n": 1}))) == {"n": 1}
    clean(two.here, two.there)
    go_on.set()
    until(lambda: two.here.enquire(two.remote).result(3) == {"jobs": True, "queue": 1})


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, OSError])
def test_a_host_that_fails_to_say_how_it_is(two: Two, raised: type[BaseException]) -> None:
    def facts() -> dict[str, Any]:
        raise raised("not zbus's own")

    two.host.facts = facts  # type: ignore[method-assign]
    assert two.here.enquire(two.remote).result(3) == {"jobs": True}
    assert two.here.enquire(two.remote).result(3) == {"jobs": True}
    clean(two.here, two.there)


def test_a_question_that_nobody_answers(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side takes the question and says nothing: the asker has a deadline of its own."""
    monkeypatch.setattr(enquiries, "ANSWER_WITHIN", 0.3)
    mute = two.there._engine.job_service.enquiries
    monkeypatch.setattr(mute, "asked", lambda *_: None)
    with pytest.raises(TimedOut) as raised:
        two.here.enquire(two.remote).result(3)
    assert raised.value.peer == "there" and "asking what it is" in str(raised.value)
    assert "restart it" in raised.value.remedy
    monkeypatch.undo()
    assert two.here.enquire(two.remote).result(3)["jobs"]
    clean(two.here, two.there)


def test_questions_that_nobody_waits_for_any_more(two: Two) -> None:
    started, go_on = threading.Event(), threading.Event()

    def facts() -> dict[str, Any]:
        started.set()
        go_on.wait(10)
        return {}

    two.host.facts = facts  # type: ignore[method-assign]
    futures = [two.here.enquire(two.remote) for _ in range(3)]
    started.wait(10)
    assert not futures[0].cancel(), "its end is not the caller's"
    go_on.set()
    assert [future.result(10) for future in futures] == [{"jobs": True}] * 3
    go_on.clear()
    started.clear()
    last = two.here.enquire(two.remote)
    started.wait(10)
    quiet(two)
    two.there.close()
    with pytest.raises(PeerGone):
        last.result(10)
    go_on.set()
    clean(two.here)


# --- in both directions -------------------------------------------------------------------------


def test_jobs_both_ways_over_one_session(two: Two) -> None:
    """Who was dialled gives jobs to who dialled, over the session that stands."""
    two.host.on_submitted = echo
    mine = Host(echo)
    two.here.serve(mine)
    assert result(two.here.submit(two.remote, request(values={"n": 0}))) == {"n": 0}
    back = Remote("127.0.0.1:1", two.here.own.instance.hex())
    values = [{"n": i, "a": noise(2 * MIB, i)} for i in range(6)]
    there = [two.here.submit(two.remote, request(values=v, quality="raw")) for v in values]
    here = [two.there.submit(back, request(values=v, quality="raw")) for v in values]
    for job, value in zip(there + here, values * 2, strict=True):
        got = result(job)
        assert got["n"] == value["n"] and torch.equal(got["a"], value["a"])
    assert two.here.counters()["sessions"] == two.there.counters()["sessions"] == 1
    assert len(mine.jobs) == 6
    clean(two.here, two.there)


def test_a_session_is_held_while_it_carries_a_job_the_other_way() -> None:
    """The address is not used by any job of who dialled it, but by one that it runs."""
    with joined(Settings(linger=0.1)) as two:
        two.host.on_submitted = echo
        mine = Host()
        two.here.serve(mine)
        assert result(two.here.submit(two.remote, request())) == {}
        job = two.there.submit(Remote("127.0.0.1:1", two.here.own.instance.hex()), request())
        taken = mine.only()
        taken.started()
        time.sleep(0.5)  # several times the linger: that nothing happens has no event
        taken.result("a", 1)
        taken.done()
        assert result(job) == {"a": 1}
        clean(two.here, two.there)
        until(lambda: not two.here.counters()["sessions"], 5, "and then it goes")


def test_two_peers_give_to_each_other_at_the_same_moment(two: Two) -> None:
    two.host.on_submitted = echo
    mine = Host(echo)
    address = two.here.serve(mine)
    back = Remote(address, two.here.own.instance.hex())
    begin = threading.Barrier(2)
    jobs: list[Job] = []

    def give(peer: Peer, remote: Remote) -> None:
        begin.wait()
        jobs.append(peer.submit(remote, request(values={"n": peer.name})))

    givers = [
        threading.Thread(target=give, args=args)
        for args in ((two.here, two.remote), (two.there, back))
    ]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join()
    assert {result(job)["n"] for job in jobs} == {"here", "there"}
    clean(two.here, two.there)


@pytest.mark.parametrize("early", [True, False])
def test_two_queues_that_wait_for_each_other(two: Two, early: bool) -> None:
    """`early`: it is said before there is a link."""
    mine = Host()
    back = Remote(two.here.serve(mine), two.here.own.instance.hex())
    a = two.here.submit(two.remote, request(title="A's part"))
    b = two.there.submit(back, request(title="B's part"))
    if early:
        a.awaited_by("prompt A")
        b.awaited_by("prompt B")
    two.host.only().queued(0)
    mine.only().queued(0)
    if not early:
        until(lambda: a.accepted and b.accepted)
        a.awaited_by("prompt A")
        b.awaited_by("prompt B")
    until(lambda: a.done() or b.done(), 5)
    ended, other, its_host = (a, b, mine) if a.done() else (b, a, two.host)
    failed = error(ended)
    assert isinstance(failed, QueueDeadlock)
    assert f"prompt {'A' if ended is a else 'B'}" in str(failed)
    assert "A's part" in str(failed) and "B's part" in str(failed)
    its_host.only().done()
    assert result(other) == {}
    clean(two.here, two.there)


# --- many ---------------------------------------------------------------------------------------


def test_300_jobs_in_a_row_do_not_grow(two: Two) -> None:
    two.host.on_submitted = echo

    def held() -> tuple[int, int]:
        gc.collect()
        ours = [t for t in threading.enumerate() if not t.name.startswith("zbus-work")]
        return len(os.listdir("/proc/self/fd")), len(ours)  # the pools have their own limit

    def once(i: int) -> None:
        values = {"n": i, "a": torch.full((i * 200,), i)}
        assert result(two.here.submit(two.remote, request(values=values)))["n"] == i

    for i in range(280, 300):  # the large ones: pyzmq begins a thread with the first of them
        once(i)
    fds, threads = held()
    for i in range(300):
        once(i)
    clean(two.here, two.there)
    # A look at the free memory has a file open for a moment.
    until(lambda: held()[0] <= fds and held()[1] <= threads, 5, lambda: (held(), fds, threads))
    for peer in (two.here, two.there):
        engine = peer._engine
        open_now = peer.counters()
        assert open_now["addresses"] == open_now["sessions"] == 1
        assert open_now["jobs given"] == open_now["jobs taken"] == 0
        assert all(p.session.drained or p.is_own for p in engine.links.peerings)
    assert len(two.there._engine.job_service.jobs.taking._gone) <= 512
    assert two.host.count("submitted") == two.host.count("forget") == 320


def test_200_jobs_at_once(two: Two) -> None:
    """More messages at once than a session keeps: it holds, and nothing is sent twice."""
    two.host.on_submitted = echo
    jobs = [
        two.here.submit(two.remote, request(values={"n": i, "a": torch.full((5000,), i)}))
        for i in range(200)
    ]
    for i, job in enumerate(jobs):
        got = result(job)
        assert got["n"] == i and torch.equal(got["a"], torch.full((5000,), i))
    clean(two.here, two.there)
    assert all(peer.counters()["sessions"] == 1 for peer in (two.here, two.there))


def test_1500_submits_at_once(two: Two) -> None:
    """Those above what a peer takes are refused with the reason, and the link holds."""
    two.host.on_submitted = echo
    values = {"text": "x" * 40_000}
    jobs = [two.here.submit(two.remote, request(values=values)) for _ in range(1500)]
    until(lambda: all(job.done() for job in jobs), 60)
    for job in jobs:
        try:
            assert job.result() == values
        except JobRefused as refused:
            assert "more than 256 jobs at once" in str(refused)
    clean(two.here, two.there)
    assert two.here.counters()["sessions"] == 1
    assert result(two.here.submit(two.remote, request(values=values))) == values


def test_a_long_queue_that_moves_while_the_link_is_cut() -> None:
    """Of each job only its latest place is told."""
    with throttled(None) as (two, proxy):
        jobs = [two.here.submit(two.remote, request()) for _ in range(100)]
        until(lambda: len(two.host.jobs) == 100)
        taken = [two.host.jobs[job.id] for job in jobs]
        proxy.refuse()
        proxy.cut()
        until(lambda: not two.there.counters()["connections"])
        for ahead in range(60, -1, -1):
            for i, job in enumerate(taken):
                job.queued(ahead + i)
        proxy.accept()
        for i, job in enumerate(jobs):
            until(lambda i=i, job=job: job.progress.state == "queued" and job.progress.place == i)
        for each in taken:
            each.done()
        assert all(result(job) == {} for job in jobs)
        clean(two.here, two.there)
        assert two.host.count("cancel") == 0


# --- peers that do not keep to the rules --------------------------------------------------------


class Bad:
    """A client by hand: it says whatever the test says, over the own listener of `peer`."""

    def __init__(self, peer: Peer, address: str, *, plain: bool = False) -> None:
        self._context = zmq.Context()
        self._link = self._context.socket(zmq.DEALER)
        self._link.linger = 0
        if not plain:  # it is this user's, and knows the key
            keys = peer.trust.keys
            self._link.curve_publickey, self._link.curve_secretkey = keys.public, keys.secret
            self._link.curve_serverkey = keys.public
        self._link.connect(f"tcp://{address}")
        self._seq = self._operation = 0
        own = replace(
            peer.own,
            name="bad",
            incarnation=os.urandom(16),
            instance=b"\xff" * 16,  # the other side's is lower: the even ids are this one's
            nonce=os.urandom(16),
            session=os.urandom(16),
            pid=0,
            boot="",
        )
        self._link.send(encode(own))
        answer = self.hear(Hello)
        self._link.send(encode(Ready(answer.nonce)))

    def say(self, message: Any, body: bytes | None = None) -> None:
        self._seq += 1
        frames = [encode(message, self._seq), *([body] if body is not None else [])]
        self._link.send_multipart(frames)

    def parcel(self, job: str, part: str, value: Any, **told: Any) -> int:
        """Say a value as a JOB_OFFER; `told` are fields that lie."""
        packed = payload.pack(payload.flatten(value), "never")
        body = b"".join(buffer.view for buffer in packed.buffers)
        self._operation += 2
        fields = {
            "operation": self._operation,
            "total": packed.total,
            "codec": "raw",
            "spec": packed.spec,
            "head": 0,
            "inline": True,
        } | told
        self.say(JobOffer(job, part, **fields), body or None)
        return self._operation

    def hear(self, kind: Any, within: float = 5.0) -> Any:
        """The next message of that kind."""
        deadline = time.monotonic() + within
        while True:
            left = deadline - time.monotonic()
            assert left > 0 and self._link.poll(left * 1000), f"no {kind.__name__}"
            frames = self._link.recv_multipart()
            message = decode(frames[0], len(frames) > 1)[1]
            if isinstance(message, kind):
                self.body = frames[-1]
                return message

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def bad(two: Two) -> Iterator[Bad]:
    made = Bad(two.there, two.remote.address)
    yield made
    made.close()


@pytest.fixture
def goes_on(two: Two) -> Iterator[None]:
    """A good job runs all the time beside the bad ones, and others can come."""
    good = two.here.submit(two.remote, request())
    taken = two.host.only()
    yield
    two.host.on_submitted = echo
    taken.result("a", 1)
    taken.done()
    assert result(good) == {"a": 1}
    assert result(two.here.submit(two.remote, request(values={"n": 2}))) == {"n": 2}


DEEP = "[" * 200_000
GOOD = {"prompt": "{}", "outputs": [], "values": {}}
SUBMITS: list[Any] = [
    None,
    "text",
    [],
    torch.zeros(3),
    {},
    GOOD | {"prompt": "no JSON"},
    GOOD | {"prompt": DEEP},
    GOOD | {"prompt": '{"1":' * 100_000},
    GOOD | {"prompt": "[]"},
    GOOD | {"prompt": '{"1": 3}'},
    GOOD | {"prompt": '{"1": {"inputs": []}}'},
    GOOD | {"prompt": "9" * 100_000},
    GOOD | {"prompt": 3},
    GOOD | {"outputs": [1]},
    GOOD | {"outputs": "1"},
    GOOD | {"values": []},
    GOOD | {"values": {1: 2}},
    GOOD | {"values": {str(i): i for i in range(2000)}},
    GOOD | {"quality": "no such"},
]


@pytest.mark.usefixtures("goes_on")
@pytest.mark.parametrize("value", SUBMITS, ids=lambda value: repr(value)[:60])
def test_submits_that_cannot_be_used(two: Two, bad: Bad, value: Any) -> None:
    packed = payload.pack(payload.flatten(value), "never")
    if packed.total > 60_000 or len(packed.spec) > 16_000:  # as a peer of ours would send it
        told = two.here._engine.job_service.giving
        job = two.here.submit(two.remote, request())
        until(lambda: len(two.host.jobs) == 2)
        two.host.jobs[job.id].done()
        result(job)
        remote = two.here._keyed(two.remote)
        sent = Job("by-hand", remote, request(), lambda _: None, lambda _: None)
        two.here._engine.post(lambda: told.submit(sent, payload.flatten(value)))
        failed = error(sent)
    else:
        bad.parcel("bad-job", "submit", value)
        end = bad.hear(JobOffer)
        assert (end.job, end.part) == ("bad-job", "end")
        assert b"refused" in bad.body + end.spec
        bad.say(Stored(end.operation))
        clean_but(two)
        return
    assert isinstance(failed, JobRefused) and "a job" in str(failed)
    clean_but(two)


def clean_but(two: Two) -> None:
    """Of all jobs only the good one is there."""
    until(lambda: two.there.counters()["jobs taken"] == 1, 5)
    assert set(left(two.there)) <= {"taken", "taken_jobs", "previewed"}
    assert two.host.count("submitted") <= 2


@pytest.mark.usefixtures("goes_on")
@pytest.mark.parametrize(
    "told",
    [
        {"codec": "no such"},
        {"digest": "no such"},
        {"spec": b"\x91" * 10_000},
        {"spec": b""},
        {"total": 5},
        {"total": 1 << 46},
        {"total": 4, "head": 16},
        {"head": 16 << 20, "total": 16 << 20},
    ],
    ids=str,
)
def test_parcels_that_lie(two: Two, bad: Bad, told: dict[str, Any]) -> None:
    operation = bad.parcel("bad-job", "submit", GOOD, **told)
    if told.get("head", 0) > 16:
        bad.say(JobCancel("bad-job", "and away"))
    assert bad.hear(Refused).transfer == operation
    if "head" not in told or told["head"] == 16:
        end = bad.hear(JobOffer)
        assert end.part == "end"
        bad.say(Stored(end.operation))
    clean_but(two)


@pytest.mark.usefixtures("goes_on")
def test_parcels_for_nobody(two: Two, bad: Bad) -> None:
    good = two.host.only().id
    for job, part in (
        ("unknown", "end"),
        ("unknown", "result:a"),
        (good, "end"),
        (good, "x"),
        ("", ""),
    ):
        operation = bad.parcel(job, part, {"outcome": "done"})
        refused = bad.hear(Refused)
        assert refused.transfer == operation and "not waited for" in refused.why
    bad.say(JobState(good, "running", 3, ("a",)))
    bad.say(JobCancel(good, "stop it"))
    bad.say(JobCancel("unknown", "stop it"))
    bad.say(Stored(999_999))
    bad.say(Refused(999_998, "no"))
    bad.parcel(good, "submit", GOOD)
    assert b"another peer" in bad.hear(JobOffer).spec + bad.body
    assert two.host.count("cancel") == 0


@pytest.mark.usefixtures("goes_on")
def test_an_operation_that_is_under_way(two: Two, bad: Bad) -> None:
    bad.parcel("one", "submit", {"a": torch.zeros(1000)}, inline=False, operation=2)
    bad.parcel("two", "submit", GOOD, operation=2)
    assert "under way" in bad.hear(Reject).why
    until(lambda: "one" not in two.host.jobs)


@pytest.mark.usefixtures("goes_on")
def test_a_thousand_submits_of_a_bad_client(two: Two, bad: Bad) -> None:
    bad._link.set_hwm(0)
    for i in range(1000):
        bad.parcel(f"job {i}", "submit", GOOD)
        while bad._link.poll(0):
            bad._link.recv_multipart()
    until(lambda: two.host.count("submitted") >= 257, 20)
    time.sleep(0.2)  # that no more are taken has no event
    assert two.host.count("submitted") == 257, "256 of one session, and the good one"
    bad.say(Bye("enough"))
    until(lambda: two.host.count("forget") == two.host.count("cancel") == 256)
    until(lambda: two.there.counters()["jobs taken"] == 1, 5)


@pytest.mark.usefixtures("goes_on")
def test_questions_without_end(two: Two, bad: Bad) -> None:
    go_on = threading.Event()
    two.host.facts = lambda: {"waited": go_on.wait(5)}  # type: ignore[method-assign]
    for i in range(100):
        bad.say(Enquire(i))
    assert "too many questions" in bad.hear(Reject).why
    go_on.set()
