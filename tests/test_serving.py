"""A peer's job on this ComfyUI: `comfy_nodes.jobs.serving`, with a stand-in for ComfyUI's queue."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from zbus.errors import JobError, NotTransferable
from zbus.job import Request, Taken
from zbus.reasons import Reason

FOLDER = Path(__file__).resolve().parent.parent / "comfy_nodes"
PACKAGE = "zbus_serving_under_test"
PROMPT = {
    "1": {"class_type": "Make", "inputs": {}, "_meta": {"title": "Maker"}, "is_changed": [1]},
    "2": {"class_type": "ZBusResult", "inputs": {"value": ["1", 0], "name": "out"}},
}


class Ending(NamedTuple):
    kind: str
    error: dict[str, Any]
    prompt: dict[str, Any]


class Validation(NamedTuple):
    ok: bool
    outputs: tuple[str, ...]
    error: Any
    node_errors: dict[str, Any]


class Classes:
    def names(self):
        return ("Make", "ZBusResult")

    def inputs(self, class_type, given):
        return {}

    def slots(self, class_type):
        return None

    def judges(self, class_type, name):
        return False

    def returned(self, class_type, slot):
        return ""

    def matched(self, class_type, slot):
        return ()


class Interrupted(BaseException):
    """As ComfyUI's is since 0.20."""


class Host(types.ModuleType):
    """A queue with one place to run, and the statuses and events that ComfyUI sends."""

    Ending, Classes = Ending, Classes
    FOREIGN = (Exception, Interrupted)

    def __init__(self) -> None:
        super().__init__(f"{PACKAGE}.host")
        self.loop = asyncio.get_running_loop()
        self.running: list[str] = []
        self.waiting: list[str] = []
        self.history: dict[str, Ending] = {}
        self.followers: dict[str, Any] = {}
        self.watchers: list[Any] = []
        self.interrupts: list[str] = []
        self.queued: dict[str, Any] = {}
        self.valid = Validation(True, ("2",), None, {})
        self.validating: asyncio.Event | None = None
        self.asked = asyncio.Event()  # something is being validated
        self.silent = False  # no statuses, no events
        self.works = True  # the thread that runs prompts

    def without_paths(self, text):
        return text.replace("/home/bob smith", "~")

    def on_loop(self, call):
        self.loop.call_soon_threadsafe(call)

    def watch_queue(self, call):
        self.watchers.append(call)

    def replaced(self, prompt):
        """What is gone since is put in place of by what there is now."""
        made = {i: dict(node) for i, node in prompt.items()}
        for node in made.values():
            if node["class_type"] == "Old":
                node["class_type"] = "Make"
        return made

    async def validate(self, prompt_id, prompt, wanted):
        self.asked.set()
        if self.validating:
            await self.validating.wait()
        return self.valid

    def follow(self, prompt_id, on_event):
        self.followers[prompt_id] = on_event
        return prompt_id

    def unfollow(self, sid):
        self.followers.pop(sid, None)

    def echo(self, kind, prompt_id, sid):
        if not self.silent:
            self.loop.call_soon(self.tell, prompt_id, kind)

    def enqueue(self, prompt_id, prompt, extra, outputs):
        self.waiting.append(prompt_id)
        self.queued[prompt_id] = (prompt, extra, outputs)

    def queue(self):
        return set(self.running), list(self.waiting)

    def cancel(self, prompt_id):
        if prompt_id in self.waiting:
            self.waiting.remove(prompt_id)
        self.interrupt(prompt_id)

    def interrupt(self, prompt_id):
        if prompt_id in self.running:
            self.interrupts.append(prompt_id)

    def ending(self, prompt_id):
        return self.history.get(prompt_id)

    def forget(self, prompt_id):
        self.history.pop(prompt_id, None)

    def facts(self):
        return {"comfyui": "0"}

    def runs_prompts(self):
        return self.works

    # --- what the test does

    def tell(self, prompt_id, kind, **data):
        if prompt_id in self.followers:
            self.followers[prompt_id](kind, {"prompt_id": prompt_id, **data})

    def status(self):
        for call in () if self.silent else self.watchers:
            call()

    def next(self):
        """The next prompt leaves the queue."""
        self.running.append(self.waiting.pop(0))
        self.status()

    def end(self, kind="ok", **error):
        prompt_id = self.running.pop()
        if kind:
            self.history[prompt_id] = Ending(kind, error, {})
        self.status()


async def turn() -> None:
    """What has been posted to the loop is done: some of it posts more."""
    for _ in range(20):
        await asyncio.sleep(0)


async def turn_until(met: Callable[[], bool], within: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + within
    while not met():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0)


class JobService:
    """What a job told."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.news = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        def told(job: str, *what: Any) -> None:
            self.log.append((name, *what))
            self.loop.call_soon_threadsafe(self.news.set)

        return told

    async def until(self, name: str) -> Any:
        while not any(entry[0] == name for entry in self.log):
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 5)
        return next(entry for entry in self.log if entry[0] == name)

    async def end(self) -> dict[str, Any]:
        return (await self.until("ended"))[1]

    def names(self) -> list[str]:
        return [entry[0] for entry in self.log]


class Site:
    """A Serving with its host, in a package whose own __init__ is not run."""

    def __init__(self) -> None:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(FOLDER)]
        sys.modules[PACKAGE] = package
        self.host = package.host = sys.modules[f"{PACKAGE}.host"] = Host()
        self.module = importlib.import_module(f"{PACKAGE}.jobs.serving")
        self.jobs = importlib.import_module(f"{PACKAGE}.jobs.in_prompts").JOBS
        self.serving = self.module.Serving("here")

    def close(self) -> None:
        for loaded in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
            del sys.modules[loaded]

    def job(self, job_id="j1", prompt=None, **more) -> tuple[Taken, JobService]:
        desk = JobService()
        request = Request(prompt or PROMPT, **more)
        return Taken(job_id, "home", request, lambda call: call(desk)), desk

    def submit(self, job_id="j1", prompt=None, **more) -> tuple[Taken, JobService]:
        job, desk = self.job(job_id, prompt, **more)
        self.serving.submitted(job)
        return job, desk

    def left(self) -> list[Any]:
        host = self.host
        held = (self.serving._served, host.followers, host.history, host.waiting, host.running)
        return [*held, len(self.jobs)]


NOTHING = [{}, {}, {}, [], [], 0]


def on_a_site(story):
    """Make a test of that coroutine function, which gets a Site first."""
    given = inspect.signature(story)

    def test(**params) -> None:
        async def told() -> None:
            site = Site()
            try:
                await story(site, **params)
            finally:
                site.close()

        asyncio.run(told())

    test.__name__, test.__doc__ = story.__name__, story.__doc__
    left = [one for one in given.parameters.values() if one.name != "site"]
    test.__signature__ = given.replace(parameters=left)  # type: ignore[attr-defined]
    return test


@on_a_site
async def test_a_job_from_its_queue_to_its_end(site):
    job, desk = site.submit()
    assert await desk.until("queued") == ("queued", 0)
    prompt, extra, outputs = site.host.queued["j1"]
    assert "is_changed" not in prompt["1"] and prompt["1"]["_meta"] == {"title": "Maker"}
    assert (extra, outputs) == ({"client_id": "j1"}, ("2",))
    site.host.next()
    nodes = {
        "1": {"state": "running", "value": 3.0, "max": 20.0, "display_node_id": "1"},
        "2": {"state": "finished", "value": 1, "max": 1, "display_node_id": "2"},
    }
    site.host.tell("j1", "progress_state", nodes=nodes)
    site.host.tell("j1", "progress_state", nodes=nodes)  # says nothing new
    site.jobs.result("j1", "out", [1, 2])
    site.host.end()
    assert await desk.end() == {"outcome": "done"}
    assert [e for e in desk.log if e[0] == "progressed"] == [("progressed", "1", "Maker #1", 3, 20)]
    assert desk.names() == ["queued", "started", "progressed", "result", "ended"]
    site.serving.forget(job)
    await turn()
    assert site.left() == NOTHING


@on_a_site
async def test_events_that_are_late_come_before_the_end(site):
    _, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    site.host.end()  # seen at once; the events before it are still in the line
    site.host.tell("j1", "execution_start")
    site.host.tell("j1", "executing", node="1", display_node="1")
    assert await desk.end() == {"outcome": "done"}
    assert desk.names() == ["queued", "started", "progressed", "ended"]


@on_a_site
async def test_an_end_is_seen_without_any_event(site):
    site.module.TICK = site.module.GRACE = 0.01
    site.host.silent = True
    _, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    await desk.until("started")
    site.host.end()
    assert await desk.end() == {"outcome": "done"}
    await turn_until(lambda: not site.serving._ticking)


@on_a_site
async def test_places_are_told_when_they_change(site):
    desks = [site.submit(f"j{i}")[1] for i in range(3)]
    await desks[2].until("queued")
    site.host.status()
    site.host.next()
    site.host.status()
    told = [[e[1] for e in desk.log if e[0] == "queued"] for desk in desks]
    assert told == [[0], [1, 0], [2, 1]]


@on_a_site
async def test_a_refusal_has_every_reason_and_nothing_is_queued(site):
    prompt = {**PROMPT, "3": {"class_type": "Gone", "inputs": {"a": ["9", 0]}}}
    job, desk = site.submit(prompt=prompt)
    reasons = (await desk.until("refuse"))[1]
    assert [(r.kind, r.node) for r in reasons] == [("class", "3"), ("input", "3")]
    site.serving.forget(job)
    await turn()
    assert site.left() == NOTHING


@on_a_site
async def test_what_comfyui_would_replace_is_not_missing(site):
    _, desk = site.submit(prompt={**PROMPT, "1": {**PROMPT["1"], "class_type": "Old"}})
    await desk.until("queued")
    assert site.host.queued["j1"][0]["1"]["class_type"] == "Make"


@on_a_site
async def test_only_what_is_asked_for_must_be_there(site):
    prompt = {**PROMPT, "3": {"class_type": "Gone", "inputs": {}}}
    _, desk = site.submit(prompt=prompt, outputs=("2",))
    await desk.until("queued")
    assert list(site.host.queued["j1"][0]) == ["1", "2"]


@pytest.mark.parametrize(
    ("valid", "outputs", "reason"),
    [
        # ok, and one of the outputs is dropped
        (
            Validation(True, ("2",), None, {"1": {"errors": [{"type": "value_not_in_list"}]}}),
            (),
            ("choice", "1"),
        ),
        (Validation(True, ("2",), None, {}), ("1", "2"), ("output", "1")),
        (Validation(False, (), {"type": "prompt_no_outputs"}, {}), (), ("output", "")),
        (Validation(True, ("2",), None, {}), ("2", "8"), ("output", "8")),
    ],
)
@on_a_site
async def test_what_comfyui_would_drop_is_refused(site, valid, outputs, reason):
    site.host.valid = valid
    _, desk = site.submit(outputs=outputs)
    reasons = (await desk.until("refuse"))[1]
    assert [(r.kind, r.node) for r in reasons] == [reason]
    assert site.host.queued == {}


@on_a_site
async def test_a_check_runs_nothing(site):
    job, desk = site.submit(check=True)
    assert await desk.end() == {"outcome": "done"}
    site.serving.forget(job)
    await turn()
    assert site.host.queued == {} and site.left() == NOTHING


@pytest.mark.parametrize("raised", [RuntimeError, Interrupted])
@on_a_site
async def test_a_check_that_breaks_is_a_refusal(site, raised, caplog):
    async def broken(*_):
        raise raised("a foreign node's fault")

    site.host.validate = broken
    _, desk = site.submit()
    (reason,) = (await desk.until("refuse"))[1]
    assert isinstance(reason, Reason) and "a foreign node's fault" in reason.text


@on_a_site
async def test_a_failure_tells_the_node(site):
    _, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    site.host.end(
        "failed",
        node_id="1",
        node_type="Make",
        exception_type="torch.OutOfMemoryError",
        exception_message="Allocation failed\n\nTIPS",
        traceback=["line 1\n", "line 2\n"],
    )
    assert await desk.end() == {
        "outcome": "failed",
        "node_id": "1",
        "title": "Maker #1",
        "class_type": "Make",
        "exception_type": "torch.OutOfMemoryError",
        "message": "out of memory on here: Allocation failed",
        "traceback": "line 1\nline 2\n",
    }


@on_a_site
async def test_what_the_client_has_no_type_for_is_refused_before_it_is_queued(site, monkeypatch):
    monkeypatch.setattr(Classes, "returned", lambda self, class_type, slot: "SPLAT")
    _, desk = site.submit(types=frozenset({"MESH"}))
    kind, (reason,) = await desk.until("refuse")
    assert reason.kind == "output" and "a SPLAT would come back" in reason.text
    assert site.host.waiting == []
    _, desk = site.submit("j2", types=frozenset({"SPLAT"}))
    await desk.until("queued")


@on_a_site
async def test_a_failure_tells_no_paths_of_this_computer(site):
    _, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    site.host.end(
        "failed",
        node_id="1",
        node_type="Make",
        exception_type="/home/bob smith/p.nodes.Error",
        exception_message="no /home/bob smith/x",
        traceback=['  File "/home/bob smith/p.py", line 1\n'],
    )
    end = await desk.end()
    assert (end["exception_type"], end["message"]) == ("~/p.nodes.Error", "no ~/x")
    assert end["traceback"] == '  File "~/p.py", line 1\n'


@on_a_site
async def test_a_block_with_a_message_is_a_failure(site):
    _, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    blocked = {"exception_type": "ExecutionBlocked", "exception_message": "no face found"}
    site.host.tell("j1", "execution_error", node_id="2", node_type="ZBusResult", **blocked)
    site.host.end()
    end = await desk.end()
    assert (end["outcome"], end["message"]) == ("failed", "no face found")


@pytest.mark.parametrize(
    ("started", "kind", "event", "end"),
    [
        (False, "", "", {"outcome": "cancelled", "why": "deleted from the queue there"}),
        (True, "cancelled", "", {"outcome": "cancelled", "why": "interrupted there"}),
        (True, "", "execution_success", {"outcome": "done"}),  # the history was cleared
    ],
)
@on_a_site
async def test_what_the_user_there_does(site, started, kind, event, end):
    _, desk = site.submit()
    await desk.until("queued")
    if started:
        site.host.next()
        if event:
            site.host.tell("j1", event)
        site.host.end(kind)
    else:
        site.host.waiting.clear()
        site.host.status()
    assert await desk.end() == end


@on_a_site
async def test_an_end_without_a_word_is_a_failure(site):
    _, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    site.host.end("")
    end = await desk.end()
    assert (end["outcome"], end["message"]) == ("failed", "it ended without saying why")


# --- cancel


@on_a_site
async def test_where_no_prompts_run_any_more_jobs_end_and_none_is_taken(site):
    """The page answers on, the queue says "running" for ever: only the thread tells."""

    (first, one), (second, two) = site.submit(), site.submit("j2")
    await one.until("queued")
    await two.until("queued")
    site.host.next()
    await one.until("started")
    site.host.silent, site.host.works = True, False
    third, three = site.submit("j3", check=True)
    for desk in (one, two, three):
        (_, reasons) = await desk.until("refuse")
        assert [reason.kind for reason in reasons] == ["worker"]
        assert "runs no prompts any more: start it again" in reasons[0].text
    assert not site.host.waiting and not site.host.followers and len(site.jobs) == 0
    for job in (first, second, third):
        site.serving.forget(job)


@on_a_site
async def test_one_that_ended_before_the_last_prompt_is_told_as_it_ended(site):
    _, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    await desk.until("started")
    site.host.works = False
    site.host.end()
    assert await desk.end() == {"outcome": "done"}


@on_a_site
async def test_cancel_while_it_waits(site):
    site.submit("other")
    job, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    site.serving.cancel(job, "not wanted")
    assert await desk.end() == {"outcome": "cancelled", "why": "not wanted"}
    assert site.host.running == ["other"] and site.host.interrupts == []


@on_a_site
async def test_cancel_while_it_is_checked(site):
    site.host.validating = asyncio.Event()
    job, desk = site.submit()
    await site.host.asked.wait()
    site.serving.cancel(job, "not wanted")
    await turn()
    assert desk.log == []
    site.host.validating.set()
    assert await desk.end() == {"outcome": "cancelled", "why": "not wanted"}
    assert site.host.queued == {}


@on_a_site
async def test_cancel_is_repeated_until_it_ends_and_hits_nobody_else(site):
    job, desk = site.submit()
    _, other = site.submit("other")
    await other.until("queued")
    site.host.next()
    site.serving.cancel(job, "not wanted")
    await turn()
    before = len(site.host.interrupts)
    site.host.tell("j1", "execution_start")  # the ones before were lost
    assert len(site.host.interrupts) == before + 1
    site.host.tell("j1", "execution_interrupted")
    site.host.status()  # it is on its way out: no flag is left behind
    assert len(site.host.interrupts) == before + 1
    site.host.end("cancelled")
    site.host.next()
    assert await desk.end() == {"outcome": "cancelled", "why": "not wanted"}
    await other.until("started")
    assert set(site.host.interrupts) == {"j1"}


@on_a_site
async def test_cancel_of_one_that_has_ended_well_is_a_stop_still(site):
    job, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    site.serving.cancel(job, "not wanted")
    await turn()
    site.host.end()
    assert await desk.end() == {"outcome": "cancelled", "why": "not wanted"}
    assert desk.names().count("ended") == 1
    site.serving.cancel(job, "again")
    await turn()
    assert desk.names().count("ended") == 1


@on_a_site
async def test_a_job_that_is_forgotten_while_it_runs_is_stopped(site):
    job, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    site.serving.forget(job)
    await turn()
    assert site.host.interrupts == ["j1"] and "j1" not in site.host.followers
    site.host.end("cancelled")


# --- events


@on_a_site
async def test_events_of_others_are_not_ones_own(site):
    _, desk = site.submit()
    await desk.until("queued")
    hear = site.host.followers["j1"]
    for kind in ("execution_start", "executing", "progress_state", "execution_error"):
        hear(kind, {"prompt_id": "another", "node": "1", "nodes": {}})
    hear("status", {"status": {}})
    hear("zbus.notice", None)
    hear("preview", {"node": "", "prompt_id": "", "kind": "image/jpeg", "data": b"x"})
    assert desk.names() == ["queued"]


@on_a_site
async def test_previews_are_the_latest_and_not_too_many(site):
    site.module.PREVIEW_EVERY = 0.05
    _, desk = site.submit()
    await desk.until("queued")
    site.host.next()
    site.host.tell("j1", "executing", node="1", display_node="1")
    hear = site.host.followers["j1"]
    for i in range(20):
        data = {"node": "", "prompt_id": "", "kind": "image/jpeg", "data": bytes([i])}
        hear("preview", data)
    await turn_until(lambda: desk.names().count("preview") == 2)
    await asyncio.sleep(0.1)  # twice what lies between two: that no more comes has no event
    assert [e for e in desk.log if e[0] == "preview"] == [
        ("preview", "1", "image/jpeg", bytes([0])),
        ("preview", "1", "image/jpeg", bytes([19])),
    ]


# --- what the nodes see


@on_a_site
async def test_nodes_find_their_jobs_values_and_no_others(site):
    jobs = site.jobs
    job, desk = site.job(values={"v": 1})
    jobs.add(job)
    assert jobs.value("j1", "v") == 1
    with pytest.raises(JobError, match='no value "w"'):
        jobs.value("j1", "w")
    with pytest.raises(JobError, match="not given by a peer"):
        jobs.value("j2", "v")
    with pytest.raises(NotTransferable):
        jobs.result("j1", "out", object())
    jobs.drop("j1")
    with pytest.raises(JobError, match="not given by a peer"):
        jobs.result("j1", "out", 1)
    assert desk.log == []


@on_a_site
async def test_a_value_is_let_go_by_the_only_node_that_gives_it(site):
    def giver(name):
        return {"class_type": "ZBusValue", "inputs": {"name": name}}

    jobs = site.jobs
    prompt = {"1": giver("v"), "2": giver("w"), "3": giver("w")}
    job, _ = site.job(prompt=prompt, values={"v": 1, "w": 2})
    jobs.add(job)
    jobs.let_go("j1", "2", "v")
    jobs.let_go("j1", "2", "w")
    assert job.request.values == {"v": 1, "w": 2}, "another node gives it"
    jobs.let_go("j1", "1", "v")
    jobs.let_go("j1", "1", "v")
    jobs.let_go("gone", "2", "w")
    assert job.request.values == {"w": 2}


@on_a_site
async def test_two_hundred_jobs_leave_nothing(site):
    threads = threading.active_count()
    given = [site.submit(f"j{i}") for i in range(200)]
    await given[-1][1].until("queued")
    for i in range(200):
        if i % 10 == 3:
            site.serving.cancel(given[-1 - i][0], "not wanted")
        await turn()
        if site.host.waiting:
            site.host.next()
            site.host.end(("ok", "failed", "cancelled")[i % 3])
    for job, desk in given:
        await desk.end()
        assert desk.names().count("ended") == 1
        site.serving.forget(job)
    await turn()
    assert site.left() == NOTHING
    assert threading.active_count() <= threads  # those of earlier tests may end
    assert len(asyncio.all_tasks()) == 1
    assert len(site.host.watchers) == 1


@on_a_site
async def test_the_digest_of_an_attached_value_is_made_here(site):
    """By it ComfyUI caches: a client that claims another's would be given what that one sent."""

    names = (*Classes().names(), "ZBusValue")
    site.host.Classes = type("WithValues", (Classes,), {"names": lambda _: names})

    def prompt(digest):
        node = {"class_type": "ZBusValue", "inputs": {"name": "a", "digest": digest}}
        return PROMPT | {
            "3": node,
            "4": {"class_type": "ZBusValue", "inputs": {"digest": digest}},
        }

    seen = []
    for job_id, value, claimed in (("j1", 1, ""), ("j2", 2, "x"), ("j3", 1, "y")):
        _, desk = site.submit(job_id, prompt(claimed), values={"a": value})
        await desk.until("queued")
        graph = site.host.queued[job_id][0]
        assert graph["4"]["inputs"]["digest"] == "", "no such value has come"
        seen.append(graph["3"]["inputs"]["digest"])
    assert seen[0] == seen[2] != seen[1] and not {"", "x", "y"} & set(seen)
