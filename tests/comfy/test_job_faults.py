"""What goes wrong with jobs between real ComfyUIs: cancels, deaths, cuts; and nothing is left."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import psutil
import pytest
from chains import node
from children import ROOT, slowness, until
from paired import rerouted
from proxy import Proxy

BOUND = 1.5  # the promise is 0.5 s; the machines that test are slow


def on(peer, *nodes, **more):
    """A prompt: those nodes in a row by "value", the last of them run on that peer."""
    prompt = {}
    for class_type, inputs in nodes:
        if prompt:
            inputs = {"value": [str(len(prompt)), 0], **inputs}
        prompt[str(len(prompt) + 1)] = node(class_type, **inputs)
    given = {"peer": peer, "here": "no", "on_failure": "stop", "quality": "exact"} | more
    prompt["run"] = node("ZBusRun", value=[str(len(prompt)), 0], **given)
    prompt["digest"] = node("TestDigest", value=["run", 0])
    return prompt


def make(seed=1, **more):
    return "TestNoise", {"batch": 1, "height": 64, "width": 64, "channels": 3, "seed": seed} | more


def slow(seconds=60.0):
    return "TestSlow", {"seconds": seconds}


def big(seed):
    """192 MiB, and then some time to come over."""
    return make(seed, batch=16, height=1024, width=1024)


def listener(comfyui):
    return comfyui.get("/zbus/peer")["endpoints"][0]


def works(a, b, seed=99):
    """The next job runs at once."""
    started = time.monotonic()
    entry = a.run(on(b.peer, make(seed)), 20)
    assert a.outcome(entry) == "success", a.errors(entry)
    assert time.monotonic() - started < 5 * slowness()


def idle(comfyui, timeout=5.0):
    """Nothing runs or waits there, soon."""
    until(lambda: comfyui.queue() == ([], []), timeout, lambda: comfyui.queue())


def running_there(comfyui, timeout=15.0):
    until(lambda: comfyui.queue()[0], timeout, f"something runs on {comfyui.name}")


def ping_jobs(comfyui, name):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "zbus-ping"), name, "--jobs", "--size", "0"],
        env={**os.environ, "ZBUS_HOME": str(comfyui.zbus_home)},
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- cancel -------------------------------------------------------------------------------------


def ended(a, prompt_id, started, what, measured, b):
    entry = a.wait(prompt_id, 10)
    took = time.monotonic() - started
    idle(b)
    there = time.monotonic() - started
    measured(f"cancel {what}: ended here after {took:.3f} s, there {there:.3f} s")
    assert a.outcome(entry) == "interrupted", a.errors(entry)
    assert took < BOUND * slowness()
    assert there < (BOUND + 0.5) * slowness()
    works(a, b)


def test_cancel_while_it_runs(pair, measured):
    a, b = pair
    since = a.events.mark()
    prompt_id = a.prompt(on(b.peer, make(), slow()))
    a.events.wait_text("TestSlow", "run", since=since)
    running_there(b)
    started = time.monotonic()
    a.interrupt()
    ended(a, prompt_id, started, "while it runs", measured, b)


def test_cancel_while_it_is_queued(pair, measured):
    a, b = pair
    other = b.prompt({"1": node(*make(5)[:1], **make(5)[1]),
                      "2": node("TestSlow", value=["1", 0], seconds=60.0),
                      "3": node("TestDigest", value=["2", 0])})  # fmt: skip
    running_there(b)
    since = a.events.mark()
    prompt_id = a.prompt(on(b.peer, make()))
    a.events.wait_text("queued on", "run", since=since)
    assert len(b.queue()[1]) == 1
    started = time.monotonic()
    a.interrupt()
    entry = a.wait(prompt_id, 10)
    took = time.monotonic() - started
    measured(f"cancel while queued: ended after {took:.3f} s")
    assert a.outcome(entry) == "interrupted"
    assert took < BOUND * slowness()
    until(lambda: not b.queue()[1], BOUND)
    assert other in b.queue()[0], "the prompt of that ComfyUI's own user goes on"
    b.interrupt()
    idle(b)
    works(a, b)


@pytest.mark.usefixtures("by_socket")
def test_cancel_while_its_result_comes(new_pair, measured):
    a, b = new_pair
    with Proxy(listener(b)) as proxy, rerouted(b, proxy.address) as name:
        since = a.events.mark()
        proxy.rate = 20e6
        prompt_id = a.prompt(on(name, big(3)))
        a.events.wait_text("receiving from", "run", since=since)
        started = time.monotonic()
        a.interrupt()
        ended(a, prompt_id, started, "while its result comes", measured, b)


def test_cancel_while_its_values_go(new_pair, measured):
    a, b = new_pair
    with Proxy(listener(b)) as proxy, rerouted(b, proxy.address) as name:
        since = a.events.mark()
        proxy.rate = 20e6
        prompt = {
            "1": node(*big(4)[:1], **big(4)[1]),
            "2": node("ZBusHere", value=["1", 0]),
            "3": node("ImageInvert", image=["2", 0]),
            "run": node("ZBusRun", value=["3", 0], peer=name, here="no",
                        on_failure="stop", quality="exact"),
            "digest": node("TestDigest", value=["run", 0]),
        }  # fmt: skip
        prompt_id = a.prompt(prompt)
        a.events.wait_text("sending to", "run", timeout=30, since=since)
        started = time.monotonic()
        a.interrupt()
        ended(a, prompt_id, started, "while its values go", measured, b)


def test_a_users_interrupt_there_is_told_here(pair):
    a, b = pair
    prompt_id = a.prompt(on(b.peer, make(), slow()))
    running_there(b)
    b.interrupt()
    entry = a.wait(prompt_id, 5)
    assert "interrupted there" in a.errors(entry)
    assert b.peer in a.errors(entry)
    works(a, b)


def test_deleted_from_the_queue_there(pair):
    a, b = pair
    other = b.prompt({"1": node(*make(6)[:1], **make(6)[1]),
                      "2": node("TestSlow", value=["1", 0], seconds=60.0),
                      "3": node("TestDigest", value=["2", 0])})  # fmt: skip
    running_there(b)
    since = a.events.mark()
    prompt_id = a.prompt(on(b.peer, make()))
    a.events.wait_text("queued on", "run", since=since)
    b.post("/queue", {"clear": True})
    entry = a.wait(prompt_id, 5)
    assert "deleted from the queue there" in a.errors(entry)
    b.interrupt(other)
    idle(b)
    works(a, b)


# --- deaths and cuts ----------------------------------------------------------------------------


def test_the_remote_is_killed_in_mid_job(fresh_pair):
    a, b = fresh_pair
    name = b.peer
    prompt_id = a.prompt(on(name, make(), slow()))
    running_there(b)
    started = time.monotonic()
    b.kill(keep_base=True)
    entry = a.wait(prompt_id, 10)
    assert time.monotonic() - started < 5 * slowness()
    assert name in a.errors(entry) and "has ended" in a.errors(entry), a.errors(entry)
    b.start()
    works(a, b)


def test_a_peer_that_runs_no_prompts_any_more(fresh_pair):
    """Its page answers on. This machine computes too, for long: it stops at once."""
    a, b = fresh_pair
    name, said = b.peer, "runs no prompts any more: start it again"
    row = make(), ("TestRaise", {"text": "", "exits": b.port}), slow()
    since = a.events.mark()
    prompt_id = a.prompt(on(name, *row, here="also run here"))
    running_there(a)
    started = time.monotonic()
    entry = a.wait(prompt_id, 20)
    assert time.monotonic() - started < 10 * slowness()
    assert a.outcome(entry) == "error", entry["status"]
    assert name in a.errors(entry) and said in a.errors(entry)
    (told,) = a.events.all("execution_error", since)
    assert told.data["node_id"] == "run" and said in told.data["exception_message"]
    assert b.get("/queue"), "its page"
    entry = a.run(on(name, make(2)), 20)
    assert name in a.errors(entry) and said in a.errors(entry), "refused"
    entry = a.run(on(name, make(3), here="also run here", on_failure="return the rest"), 20)
    assert a.outcome(entry) == "success"
    ping = ping_jobs(a, name)
    assert ping.returncode == 1 and said in ping.stdout, ping
    b.kill(keep_base=True)


@pytest.mark.usefixtures("by_socket")
def test_the_remote_is_killed_in_mid_result(new_pair):
    a, b = new_pair
    with Proxy(listener(b)) as proxy, rerouted(b, proxy.address) as name:
        since = a.events.mark()
        proxy.rate = 20e6
        prompt_id = a.prompt(on(name, big(7)))
        a.events.wait_text("receiving from", "run", timeout=30, since=since)
        started = time.monotonic()
        b.kill(keep_base=True)
        entry = a.wait(prompt_id, 20)
        assert time.monotonic() - started < 10 * slowness()
        assert name in a.errors(entry) and "has ended" in a.errors(entry), a.errors(entry)
    b.start()
    works(a, b)


def test_the_client_is_killed(fresh_pair):
    a, b = fresh_pair
    a.prompt(on(b.peer, make(), slow()))
    running_there(b)
    started = time.monotonic()
    a.kill(keep_base=True)
    idle(b, 10), "its job is stopped: nobody wants the result"
    assert time.monotonic() - started < 10 * slowness()
    a.start()
    assert a.events is not None
    works(a, b)


@pytest.mark.usefixtures("by_socket")
@pytest.mark.parametrize("when", ["in mid-job", "in mid-result"])
def test_a_link_cut_for_five_seconds(new_pair, when):
    """The job survives, and its result arrives, exact."""
    a, b = new_pair
    made = big(8) if when == "in mid-result" else make(8)
    prompt = on("", made, slow(3.0 if when == "in mid-job" else 0.1))
    with Proxy(listener(b)) as proxy, rerouted(b, proxy.address) as name:
        prompt["run"]["inputs"]["peer"] = name
        since = a.events.mark()
        proxy.rate = None if when == "in mid-job" else 60e6
        prompt_id = a.prompt(prompt)
        words = "TestSlow" if when == "in mid-job" else "receiving from"
        a.events.wait_text(words, "run", timeout=30, since=since)
        proxy.refuse()
        proxy.cut()
        a.events.wait_text("lost", "run", timeout=10, since=since)
        time.sleep(5.0)  # what the test is about
        proxy.accept()
        proxy.rate = None
        entry = a.wait(prompt_id, 40)
    assert a.outcome(entry) == "success", a.errors(entry)
    here = a.run({"1": node(*made[:1], **made[1]), "2": node("TestDigest", value=["1", 0])}, 30)
    assert a.ui(entry, "digest", "digest") == a.ui(here, "2", "digest")


def test_two_queues_that_wait_for_each_other(pair):
    """Each side's running prompt waits for a job in the other's queue: one of them ends with an
    error that names both, and the other goes on."""
    a, b = pair
    both = []
    for home, away in ((a, b), (b, a)):
        prompt = on(away.peer, make(11))
        # Runs here first, until both sides have begun.
        prompt["0"] = node(*make(12)[:1], **make(12)[1])
        prompt["w"] = node("TestSlow", value=["0", 0], seconds=1.5)
        prompt["here"] = node("ZBusHere", value=["w", 0])
        prompt["3"] = node("ImageBatch", image1=["here", 0], image2=["1", 0])
        prompt["run"]["inputs"]["value"] = ["3", 0]
        both.append((home, home.prompt(prompt)))
    entries = [(home, home.wait(prompt_id, 20)) for home, prompt_id in both]
    outcomes = sorted(home.outcome(entry) for home, entry in entries)
    assert outcomes == ["error", "success"], [h.errors(e) for h, e in entries]
    text = next(home.errors(entry) for home, entry in entries if home.errors(entry))
    assert "waits for the job" in text and "QueueDeadlock" in text, text
    works(a, b)
    works(b, a)


# --- nothing is left, and how long it takes -----------------------------------------------------


class Held:
    """What a ComfyUI's process and folders hold."""

    def __init__(self, comfyui):
        process = psutil.Process(comfyui.pid)
        self.memory = process.memory_info().rss
        self.threads = process.num_threads()
        self.fds = process.num_fds() if os.name == "posix" else process.num_handles()
        self.sockets = len(process.net_connections())
        self.history = len(comfyui.get("/history?max_items=10000"))
        folders = ("input", "output", "temp")
        self.files = sorted(
            str(path) for f in folders for path in (comfyui.base / f).rglob("*") if path.is_file()
        )


def test_two_hundred_jobs_leave_nothing(fresh_pair, measured):
    a, b = fresh_pair

    def some(count, first):
        for seed in range(first, first + count):
            entry = a.run(on(b.peer, make(seed, height=256, width=256)), 20)
            assert a.outcome(entry) == "success", a.errors(entry)

    some(40, 0)
    idle(b)
    before = [Held(c) for c in (a, b)]
    some(200, 1000)
    idle(b)
    after = [Held(c) for c in (a, b)]
    for name, old, new in zip("ab", before, after, strict=True):
        grown = (new.memory - old.memory) / 2**20
        measured(
            f"{name}: memory {grown:+.1f} MiB, threads {old.threads} -> {new.threads}, "
            f"fds {old.fds} -> {new.fds}, sockets {old.sockets} -> {new.sockets}",
        )
        # 200 results of 0.75 MiB would be 150 MiB.
        assert grown < 40
        assert new.threads <= old.threads + 2
        assert new.fds <= old.fds + 3
        assert new.sockets <= old.sockets + 3
        assert new.files == old.files
    assert after[1].history == before[1].history == 0


@pytest.mark.parametrize(("what", "size"), [("trivial", (1, 64)), ("8 x 1024x1024", (8, 1024))])
def test_how_much_longer_a_job_takes(pair, measured, what, size):
    """Median of 20, beside the same workflow run locally; the promises are 15 and 100 ms."""
    a, b = pair
    batch, side = size
    local, remote = [], []

    def image(seed):
        return node("EmptyImage", width=side, height=side, batch_size=batch, color=seed)

    for seed in range(22):
        here = {"1": image(seed), "2": node("TestStamp", value=["1", 0])}
        there = on(b.peer, ("EmptyImage", image(seed + 50)["inputs"]))
        there["digest"] = node("TestStamp", value=["run", 0])
        for prompt, times in ((here, local), (there, remote)):
            started = time.monotonic()
            entry = a.run(prompt, 30)
            times.append(time.monotonic() - started)
            assert a.outcome(entry) == "success", a.errors(entry)
    local, remote = statistics.median(local[2:]), statistics.median(remote[2:])
    measured(
        f"{what}: local {local * 1e3:.1f} ms, as a job {remote * 1e3:.1f} ms, "
        f"{(remote - local) * 1e3:+.1f} ms",
    )
    assert remote - local < (0.5 if side == 64 else 2.0) * slowness()
