"""Jobs that a node gives: `jobs.submitting`, with stand-ins for ComfyUI and for the peer."""

from __future__ import annotations

import asyncio
import importlib
import io
import sys
import types
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from zbus.errors import JobRefused, PeerGone, UnknownPeer, ZBusError
from zbus.job import Job, Progress
from zbus.remote import Remote

FOLDER = Path(__file__).resolve().parent.parent / "comfy_nodes"
PACKAGE = "zbus_submitting_under_test"
OWN = b"k" * 32


class Interrupted(Exception):
    pass


class Host(types.ModuleType):
    """What jobs need of ComfyUI."""

    Interrupted = Interrupted

    def __init__(self, peer: Peer) -> None:
        super().__init__(f"{PACKAGE}.host")
        self.loop = asyncio.get_running_loop()
        self.given, self.said = peer, []
        self.previews: list[tuple[Any, ...]] = []
        self.failed: list[tuple[str, str, Exception]] = []
        self.is_interrupted = False

    HOST_TYPES = types.SimpleNamespace(here=lambda: frozenset({"MESH"}))

    def peer(self):
        return self.given

    def spawn(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def check_interrupt(self):
        if self.is_interrupted:
            raise Interrupted

    def shown_as(self, node_id):
        return node_id

    def show_at(self, text, node_id, client):
        self.said.append(text)

    def preview_at(self, *told):
        self.previews.append(told)

    def fail(self, prompt_id, node_id, error):
        self.failed.append((prompt_id, node_id, error))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Peer:
    """Gives jobs to others, whose `does` says what happens there."""

    def __init__(self) -> None:
        self.trust = SimpleNamespace(keys=SimpleNamespace(public=OWN))
        self.facts: dict[str, dict[str, Any] | None] = {}  # None: no answer
        self.does: dict[str, Callable[[Job], None]] = {}
        self.jobs: list[Job] = []

    def submit(self, remote, request, on_change=None, on_preview=None):
        job = Job(uuid.uuid4().hex, remote, request, self.cancelled, lambda who: None)
        job.on_change = on_change
        self.jobs.append(job)
        self.does[remote.name](job)
        return job

    def cancelled(self, job):
        job.fail(ZBusError("cancelled"))

    def enquire(self, remote):
        answer: Future[dict[str, Any]] = Future()
        told = self.facts[remote.name]
        if told is None:
            answer.set_exception(ZBusError("not there"))
        else:
            answer.set_result(told)
        return answer

    def to(self, name: str, check: bool = False) -> list[Job]:
        """The jobs given to that one."""
        return [j for j in self.jobs if j.remote.name == name and j.request.check is check]


def queue(running: int = 0, pending: int = 0, **more: Any) -> dict[str, Any]:
    return {"jobs": True, "queue": {"running": running, "pending": pending}, **more}


def runs(job: Job, state: str = "running") -> None:
    """It is taken: or, of one that only asks, it could run."""
    if job.request.check:
        job.succeed({})
    else:
        job.accepted, job.progress = True, Progress(state)
        job.on_change(job)


def waits(job: Job) -> None:
    runs(job, "queued")


def done(job: Job) -> None:
    runs(job)
    job.results = {"value": job.remote.name}
    job.succeed(job.results)


def refuses(job: Job) -> None:
    job.fail(JobRefused("no such model", peer=job.remote.name))


class Watched:
    """A share that counts how often it is looked at whether it could move."""

    @staticmethod
    def of(share: Any) -> Any:
        class Counting(share):  # type: ignore[misc]
            looked_at = 0

            @property
            def may_move(self):
                self.looked_at += 1
                return super().may_move

        return Counting


class Site:
    """The modules, and what they see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(FOLDER)]
        sys.modules[PACKAGE] = package
        self.peer = Peer()
        lists = sys.modules[f"{PACKAGE}.host.lists"] = types.ModuleType(f"{PACKAGE}.host.lists")
        lists.unwrap = lists.as_come = lambda value: [value]  # type: ignore[attr-defined]
        self.host = package.host = sys.modules[f"{PACKAGE}.host"] = Host(self.peer)
        load = lambda name: importlib.import_module(f"{PACKAGE}.{name}")  # noqa: E731
        self.peers, self.placement = load("page.peers"), load("page.placement")
        self.early = load("jobs.early_pictures")
        self.planned = load("jobs.planned")
        self.submitting, self.runs = load("jobs.submitting"), load("exchange.runs")
        monkeypatch.setattr(load("jobs.moving"), "LOOK_EVERY", 0.01)
        self.submitting.Share = Watched.of(self.submitting.Share)
        monkeypatch.setattr(self.peers, "known", lambda: list(self.remotes.values()))
        self.remotes: dict[str, Remote] = {}

    def add(self, name: str, does: Callable[[Job], None], facts: Any = None, **more: Any) -> Remote:
        self.peer.does[name] = does
        self.peer.facts[name] = facts or queue()
        self.remotes[name] = Remote("127.0.0.1:9", f"{len(self.remotes):032x}", name, OWN, **more)
        return self.remotes[name]

    def choice(self, name: str) -> Any:
        return self.peers.Choice(self.remotes[name])

    def unknown(self, name: str) -> Any:
        problem = UnknownPeer(f"no peer named '{name}' here")
        return self.peers.Choice(Remote("", name=name), problem=problem)

    def jobs(self, choices: list[Any], *, on_failure: str = "stop", here: bool = False) -> Any:
        piece = SimpleNamespace(prompt={"1": {"class_type": "X", "inputs": {}}}, outputs=("1",))
        piece.boundaries = {}
        plan = self.planned.JobPlan(
            piece, "a part", choices, first=int(here), on_failure=on_failure
        )
        return self.submitting.SubmittedJobs(plan, self.runs.Run("prompt"), "run")

    def held(self) -> int:
        return sum(self.placement.ON_THE_WAY.counts().values())

    def close(self) -> None:
        for loaded in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
            del sys.modules[loaded]


@pytest.fixture
def run(monkeypatch):
    """Run an async story with a Site."""

    def told(story):
        async def inside():
            site = Site(monkeypatch)
            try:
                await asyncio.wait_for(story(site), 20)
            finally:
                site.close()

        asyncio.run(inside())

    return told


async def until(met: Callable[[], Any]) -> None:
    while not met():
        await asyncio.sleep(0.005)


def by_whom(jobs: Any) -> list[str]:
    return [share.result("value") for share in jobs.shares]


# --- while this machine computes its own share ---------------------------------------------------


def test_a_death_while_this_machine_computes_ends_the_run_at_once(run):
    async def story(site):
        site.add("b", runs)
        jobs = site.jobs([site.choice("b")], here=True)
        await jobs.begin()
        assert jobs.begin_here(False), "and nobody collects for a long time"
        (job,) = site.peer.jobs
        job.fail(PeerGone("its process has ended", peer="b"))
        await until(lambda: site.host.failed)
        ((prompt_id, node_id, error),) = site.host.failed
        assert (prompt_id, node_id) == ("prompt", "run") and "b: its process has ended" in str(
            error
        )
        with pytest.raises(PeerGone):
            await jobs.collect("who")

    run(story)


def test_a_job_says_what_this_comfyui_can_hold(run):
    async def story(site):
        site.add("b", done)
        await site.jobs([site.choice("b")]).begin()
        assert site.peer.jobs[0].request.types == {"MESH"}

    run(story)


def test_a_death_before_this_machine_begins_keeps_it_from_beginning(run):
    async def story(site):
        site.add("b", runs)
        jobs = site.jobs([site.choice("b")], here=True)
        await jobs.begin()
        site.peer.jobs[0].fail(PeerGone("its process has ended", peer="b"))
        await until(lambda: "b: its process has ended" in site.host.said)
        await asyncio.sleep(0)
        assert not jobs.begin_here(False) and not site.host.failed
        with pytest.raises(PeerGone):
            await jobs.collect("who")

    run(story)


def test_try_another_moves_it_at_once_while_this_machine_computes(run):
    async def story(site):
        site.add("b", runs)
        site.add("c", done)
        jobs = site.jobs([site.choice("b")], on_failure="try another", here=True)
        await jobs.begin()
        assert jobs.begin_here(False)
        site.peer.jobs[0].fail(PeerGone("its process has ended", peer="b"))
        await until(lambda: site.peer.to("c"))
        await jobs.collect("who")
        assert by_whom(jobs) == ["c"] and not site.host.failed
        assert "its process has ended" in jobs.shares[0].failures[0]

    run(story)


def test_a_job_that_is_given_as_the_run_ends_is_cancelled(run):
    """It is given in a thread of its own: what goes along may have to come from a GPU first."""

    async def story(site):
        site.add("b", runs)
        site.add("c", lambda job: (jobs.cancel(), runs(job)))
        jobs = site.jobs([site.choice("b")], on_failure="try another")
        await jobs.begin()
        site.peer.jobs[0].fail(PeerGone("its process has ended", peer="b"))
        await until(lambda: site.peer.to("c") and site.peer.to("c")[0].done())
        assert site.held() == 0

    run(story)


def test_what_nobody_collects_is_followed_no_longer_than_the_run(run):
    async def story(site):
        site.add("b", runs)
        jobs = site.jobs([site.choice("b")])
        await jobs.begin()
        jobs.forget()
        await until(lambda: len(asyncio.all_tasks()) == len(tasks))
        assert not site.peer.jobs[0].done(), "it goes on there"

    async def with_tasks(site):
        tasks.extend(asyncio.all_tasks())
        await story(site)

    tasks: list[Any] = []
    run(with_tasks)


def test_when_this_machines_share_began_is_told_once(run):
    async def story(site):
        jobs = site.jobs([])
        await jobs.begin()
        assert jobs.begin_here(False)
        began = jobs.at_home
        assert began and jobs.begin_here(True) and jobs.at_home == began and not jobs.was_here
        other = site.jobs([])
        await other.begin()
        assert other.begin_here(True) and other.was_here, "other nodes have needed it"
        took = jobs.end_here()
        assert took > 0 and jobs.end_here() == took, "ComfyUI may compute the node again"

    run(story)


def test_the_users_x_cancels_the_jobs(run):
    async def story(site):
        site.add("b", runs)
        jobs = site.jobs([site.choice("b")])
        await jobs.begin()
        site.host.is_interrupted = True
        with pytest.raises(Interrupted):
            await jobs.collect("who")
        assert site.peer.jobs[0].done() and site.host.said[-1] == "cancelled"
        assert not site.host.failed

    run(story)


# --- names that mean nobody ----------------------------------------------------------------------


def test_an_unknown_name_stops_before_anything_is_given(run):
    async def story(site):
        site.add("b", runs)
        jobs = site.jobs([site.choice("b"), site.unknown("x")])
        with pytest.raises(UnknownPeer, match="no peer named 'x'"):
            await jobs.begin()
        assert not site.peer.jobs

    run(story)


def test_an_unknown_name_is_done_without(run):
    async def story(site):
        site.add("b", done)
        choices = [site.unknown("x"), site.choice("b")]
        jobs = site.jobs(choices, on_failure="return the rest")
        await jobs.begin()
        await jobs.collect("who")
        assert by_whom(jobs) == ["b"] and [share.position for share in jobs.shares] == [1]
        assert "no peer named 'x'" in jobs.lost[0].failures[0]

    run(story)


@pytest.mark.parametrize("here", [True, False])
def test_the_rest_of_one_unknown_name_is_this_machine_or_an_error(run, here):
    async def story(site):
        jobs = site.jobs([site.unknown("x")], on_failure="return the rest", here=here)
        if here:
            await jobs.begin()
            await jobs.collect("who")
            assert not jobs.shares and len(jobs.lost) == 1
        else:
            with pytest.raises(UnknownPeer):
                await jobs.begin()

    run(story)


def test_another_does_what_an_unknown_one_should(run):
    async def story(site):
        site.add("b", done)
        site.add("c", done)
        choices = [site.choice("b"), site.unknown("x")]
        jobs = site.jobs(choices, on_failure="try another")
        await jobs.begin()
        await jobs.collect("who")
        assert by_whom(jobs) == ["b", "c"] and len(site.peer.jobs) == 2

    run(story)


@pytest.mark.parametrize("written", ["any free", "all", "b, nobody"])
def test_what_a_field_means_is_never_an_exception(run, written, monkeypatch):
    async def story(site):
        def find(name):
            if name != "b":
                raise UnknownPeer(f"no peer named '{name}' here")
            return site.remotes["b"]

        monkeypatch.setattr(site.peers, "find", find)
        if "," in written:
            site.add("b", done)
        *known, problem = (await site.peers.chosen(written)).choices
        assert isinstance(problem.problem, UnknownPeer)
        assert [choice.remote.name for choice in known] == ["b"] * ("," in written)

    run(story)


# --- any free -----------------------------------------------------------------------------------


async def any_free(site: Site) -> Any:
    ((choice,), _) = await site.peers.chosen("any free")
    return choice


def test_what_was_just_placed_counts_until_it_is_in_the_queue(run):
    async def story(site):
        site.add("b", waits)
        site.add("c", waits, queue(1, 1))
        first = await any_free(site)
        second, third = await any_free(site), await any_free(site)
        names = [one.remote.name for one in (first, second, third)]
        assert names == ["b", "b", "c"], "as long as the others are busier"
        assert site.held() == 3
        jobs = site.jobs([first])
        await jobs.begin()
        await until(lambda: site.held() == 2)
        second.release()
        second.release()
        assert site.held() == 1
        del third
        await until(lambda: not site.held())  # of a run that broke off

    run(story)


def test_who_cannot_run_anything_is_not_free(run):
    async def story(site):
        site.add("a", done, queue(runs_prompts=False))
        site.add("b", done, {"jobs": False})
        site.add("c", done, queue(4, 2))
        site.peer.facts["d"] = site.add("d", done) and None
        assert (await any_free(site)).remote.name == "c"

    run(story)


def test_what_waits_is_taken_back_when_another_is_idle(run):
    async def story(site):
        site.add("b", waits, queue(1, 0))
        site.add("c", done, queue(2, 0))
        jobs = site.jobs([await any_free(site)])
        await jobs.begin()
        site.peer.facts["c"] = queue()
        await jobs.collect("who")
        assert by_whom(jobs) == ["c"] and jobs.shares[0].left == ["b"]
        assert site.peer.to("b")[0].error() is not None, "and it does not run twice"
        assert len(site.peer.to("c", check=True)) == 1 and not site.held()

    run(story)


def test_an_end_in_the_midst_of_a_move_leaves_no_job_behind(run, monkeypatch):
    async def story(site):
        site.add("b", waits, queue(1, 0))
        site.add("c", waits, queue(2, 0))
        jobs = site.jobs([await any_free(site)])
        await jobs.begin()
        in_a_thread, given = site.submitting.in_a_thread, asyncio.Event()

        async def slow(work):
            found = await in_a_thread(work)
            if site.peer.to("c"):
                given.set()
                await asyncio.sleep(60)
            return found

        monkeypatch.setattr(site.submitting, "in_a_thread", slow)
        site.peer.facts["c"] = queue()
        await given.wait()
        jobs.cancel()
        await until(lambda: all(job.done() for job in site.peer.jobs))

    run(story)


@pytest.mark.parametrize("why", ["it runs", "it is named", "the other one refuses"])
def test_what_is_not_taken_back(run, why):
    async def story(site):
        site.add("b", runs if why == "it runs" else waits, queue(1, 0))
        site.add("c", refuses if "refuses" in why else done, queue(2, 0))
        named = why == "it is named"
        jobs = site.jobs([site.choice("b") if named else await any_free(site)])
        await jobs.begin()
        site.peer.facts["c"] = queue()
        asked = "refuses" in why
        await until(lambda: len(site.peer.to("c", check=True)) == asked)
        share = jobs.shares[0]
        before = share.looked_at
        await until(lambda: share.looked_at > before + 5)
        assert len(site.peer.to("c", check=True)) == asked and not site.peer.to("c")
        (job,) = site.peer.to("b")
        job.results = {"value": "b"}
        job.succeed(job.results)
        await jobs.collect("who")
        assert by_whom(jobs) == ["b"] and not site.held()

    run(story)


# --- all ----------------------------------------------------------------------------------------


def test_all_is_without_who_is_away_and_with_who_is_busy(run):
    """Of this user's own one that listens may be busy; one that does not is being restarted."""

    async def story(site):
        busy = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = busy.sockets[0].getsockname()[1]
        site.add("fine", done)
        for name in ("busy", "restarting", "paired"):
            site.add(name, done)
            site.peer.facts[name] = None
        site.remotes["busy"] = Remote(f"127.0.0.1:{port}", "b" * 32, "busy", OWN)
        site.remotes["paired"] = Remote(f"127.0.0.1:{port}", "d" * 32, "paired", b"p" * 32)
        site.add("broken", done, queue(runs_prompts=False))
        chosen = await site.peers.chosen("all")
        assert [choice.remote.name for choice in chosen.choices] == ["fine", "busy"]
        left_out = [line.partition(":")[0] for line in chosen.left_out]
        assert left_out == ["restarting", "paired", "broken"]
        busy.close()

    run(story)


# --- pictures that come before the end ----------------------------------------------------------


def jpeg_of(told):
    with Image.open(io.BytesIO(told)) as picture:
        return picture.size, picture.convert("RGB").getpixel((0, 0))


def test_a_picture_that_comes_early_is_shown_once_where_it_belongs(run):
    async def story(site):
        site.add("b", runs)
        jobs = site.jobs([site.choice("b")])
        shown = sys.modules[f"{PACKAGE}.jobs.shown_here"].ShownHere(
            "run", "prompt", "page", {"tap0": ["9", "10"], "tap1": ["11"]}
        )
        await jobs.begin()
        (job,) = shown.jobs = site.peer.jobs
        red = torch.zeros(2, 20, 2100, 3)
        red[0, ..., 0] = 1.0
        job.results = {"tap0": red, "tap1": "a text"}
        shown.changed(job)
        shown.changed(job)
        assert [told[2:] for told in site.host.previews] == [
            ("9", "prompt", "page"),
            ("10", "prompt", "page"),
        ]
        kind, data = site.host.previews[0][:2]
        size, (red_there, green, blue) = jpeg_of(data)
        assert kind == "image/jpeg" and size[0] <= 1024 and red_there > 240 > 20 > green + blue
        job.succeed({})
        job.results = {"tap0": red, "tap1": red}
        shown.changed(job)
        assert len(site.host.previews) == 2, "the node itself shows it"

    run(story)


def test_no_picture_comes_early_once_nobody_wants_it(run):
    async def story(site):
        site.add("b", runs)
        site.peer.cancelled = lambda job: None
        jobs = site.jobs([site.choice("b")])
        await jobs.begin()
        (job,) = site.peer.jobs
        shown = jobs.shown_here
        shown.client, shown._shown_by = "page", {"tap0": ["9"]}
        job.results = {"tap0": torch.zeros(1, 8, 8, 3)}
        jobs.cancel()
        assert not job.done(), "that takes its time"
        shown.changed(job)
        assert site.host.previews == []

    run(story)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "x",
        torch.zeros(2, 2),
        torch.zeros(0, 2, 2, 3),
        torch.zeros(1, 0, 2, 3),
        torch.zeros(1, 2, 2, 2),
        torch.zeros(1, 2, 2, 3, dtype=torch.int64),
        {"samples": torch.zeros(1, 4, 2, 2)},
    ],
    ids=str,
)
def test_what_is_no_picture_is_not_shown_early(run, value):
    async def story(site):
        assert site.early.picture([value]) is None and site.early.picture([]) is None

    run(story)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_of_any_kind_is_shown_early(run, dtype, channels):
    async def story(site):
        grey = torch.full((1, 8, 8, channels), 0.5, dtype=dtype)
        grey[0, 0, 0] = float("nan")
        size, _ = jpeg_of(site.early.picture([grey]))
        assert size == (8, 8)

    run(story)


# --- whatever is raised -------------------------------------------------------------------------


class Interrupt(BaseException):
    """As ComfyUI's own is since 0.20."""


def test_the_end_of_a_run_is_told_to_all(run):
    async def story(site):
        site.host.running, site.host.execution = list, object
        runs, told = site.runs.Runs(), []

        def broken(*_):
            raise Interrupt

        first = runs.of("first")
        for close in (broken, lambda outcome, why: told.append("closed")):
            first.channels[object()] = SimpleNamespace(close=close)
        first.at_end += [broken, told.append]
        first.once.keep(("1", None), "a", give_back=lambda: told.append("given back"))
        runs.of("next")
        assert told == ["closed", "ok", "given back"]

    run(story)


def test_an_end_that_cannot_be_put_into_words_is_told(run):
    async def story(site):
        def broken(why):
            raise ValueError(why)

        site.host.running, site.host.execution, site.host.without_paths = list, object, broken
        runs, told = site.runs.Runs(), []
        first = runs.of("first")
        first.broken = ZBusError("out of order")
        first.channels[object()] = SimpleNamespace(close=lambda *how: told.append(how))
        first.at_end.append(told.append)
        runs.of("next")
        assert told == [("failed", "its end could not be read; its log may tell"), "failed"]

    run(story)


def test_what_breaks_a_wait_cancels_the_jobs(run):
    async def story(site):
        site.add("b", runs)
        jobs = site.jobs([site.choice("b")])
        await jobs.begin()

        def broken():
            raise Interrupt("out of order")

        site.host.check_interrupt = broken
        with pytest.raises(Interrupt):
            await jobs.collect("who")
        await until(lambda: site.peer.jobs[0].done())
        assert site.host.said[-1] == "out of order"

    run(story)
