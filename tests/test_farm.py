"""zbus-farm: its file, prompts and pictures; and whole runs on real peers with fake ComfyUIs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import ROOT, child, until
from jobpair import Host, clean
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zbus import Peer, discovery
from zbus.__main__ import main
from zbus.cli import farm
from zbus.cli.farming.board import MAX_IN_A_ROW, MAX_LOST, Board, Task
from zbus.cli.farming.config import read_config
from zbus.cli.farming.pictures import Folder, pixels
from zbus.cli.farming.workflow import Recipe, Swap, read_recipe
from zbus.errors import InputError, JobError
from zbus.job import Reason, Taken
from zbus.keys import to_text
from zbus.protocol.outcomes import runs_no_prompts
from zbus.trust import EXCHANGE, JOBS, Trust
from zbus.values.kinds import LIST

WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 4, "height": 4, "color": 7}},
    "57:8": {"class_type": "Note", "inputs": {"text": "0000", "value": ["1", 0]}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["57:8", 0], "filename_prefix": "0000"}},
    "4": {"class_type": "SaveImage", "inputs": {"filename_prefix": "muted"}},
}
SWAPS = [{"src": 7, "dst": "{job_num}"}, {"src": "0000", "dst": "n{job_num:04}"}]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def zbus_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of names of its own, and a folder of its own to work in."""
    monkeypatch.setenv("ZBUS_HOME", str(tmp_path / "zbus-home"))
    monkeypatch.chdir(tmp_path)


def configured(**more: Any) -> Path:
    """A file that says that."""
    told: dict[str, Any] = {"workflow": "w.json", "job_start": 1, "job_end": 4}
    told |= {"replacement": SWAPS, "workers": {"A": {"url": "127.0.0.1:9", "system": "posix"}}}
    Path("job.yaml").write_text(json.dumps({k: v for k, v in (told | more).items() if v != "-"}))
    return Path("job.yaml")


# --- the file -----------------------------------------------------------------------------------


def test_a_file_of_netdist_is_taken_as_it_is() -> None:
    text = """
workflow: "job.example.png"           # Your actual workflow to distribute.
job_start: 1
job_end: 100
workers:
  "RTX3080@LOC":
    url: "http://127.0.0.1:8188/"
    system: "windows"
  "P40_0@NET":
    url: "http://192.168.4.6:8188/"
    system: "posix"
replacement:
  -
    src: "http://127.0.0.1:8080/image/openpose/0000.png"
    dst: "http://127.0.0.1:8080/image/openpose/{job_num:04}.png"
"""
    Path("job.yaml").write_text(text, encoding="utf-8")
    config = read_config(Path("job.yaml"))
    assert config.jobs == range(1, 100) and config.workflow == Path("job.example.png")
    assert config.workers == {
        "RTX3080@LOC": "http://127.0.0.1:8188/",
        "P40_0@NET": "http://192.168.4.6:8188/",
    }
    (swap,) = config.swaps
    assert swap.value(37) == "http://127.0.0.1:8080/image/openpose/0037.png"


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"workflow": "-"}, "workflow", "is missing"),
        ({"workflow": 3}, "workflow", "is no text: 3"),
        ({"job_start": None}, "job_start", "is missing"),
        ({"job_start": "1"}, "job_start", "is no whole number: '1'"),
        ({"job_start": True}, "job_start", "is no whole number"),
        ({"job_end": 1}, "job_end", "must be above job_start, 1"),
        ({"job_end": 10**9}, "job_end", "by at most 1000000"),
        ({"workers": {}}, "workers", "is missing"),
        ({"workers": ["x"]}, "workers", "is no map"),
        ({"workers": {"A": "x"}}, "workers.A", "is no map with url in it"),
        ({"workers": {"A": {}}}, "workers.A.url", "is missing"),
        ({"replacement": "-"}, "replacement", "is missing"),
        ({"replacement": {"src": "x"}}, "replacement", "is no list"),
        ({"replacement": ["x"]}, "replacement[0]", "is no map with dst in it"),
        ({"replacement": [{"dst": "x"}]}, "replacement[0].src", "is no text and no number"),
        ({"replacement": [{"src": [], "dst": "x"}]}, "replacement[0].src", "is no text and no"),
        ({"replacement": [{"src": "x"}]}, "replacement[0].dst", "is missing"),
        ({"replacement": [{"src": 7, "dst": "x"}]}, "replacement[0].dst", "dst must make one"),
        ({"replacement": [{"src": "x", "dst": "{0}"}]}, "replacement[0].dst", "In braces can be"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(
    change: dict[str, Any], key: str, words: str
) -> None:
    with pytest.raises(InputError) as raised:
        read_config(configured(**change))
    text = str(raised.value)
    assert text.startswith(f"job.yaml, {key}: ") and words in text


def test_a_file_that_is_another_one_is_told_in_words() -> None:
    Path("README.md").write_text("# zbus\n\nRun: a part: of it\n")
    with pytest.raises(InputError) as raised:
        read_config(Path("README.md"))
    assert str(raised.value) == (
        "README.md: is no YAML: line 3, column 12. Give the file that says what to do; "
        "docs/guide.md shows one"
    )
    with pytest.raises(InputError) as raised:
        read_config(Path("nowhere.yaml"))
    said = str(raised.value)
    assert "Errno" not in said and "YAML" not in said and said.count("nowhere.yaml") == 1


@pytest.mark.parametrize(
    "text", ["[x]", "a: [", "\x00", "!!python/object:os.system {}", "{" * 5000]
)
def test_what_is_no_map_or_no_yaml(text: str) -> None:
    Path("job.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="job.yaml: "):
        read_config(Path("job.yaml"))


def test_the_workflow_lies_where_one_stands_or_beside_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "else"
    folder.mkdir()
    there = configured().rename(folder / "job.yaml")
    (folder / "w.json").write_text("{}")
    assert read_config(there).workflow == folder / "w.json"
    Path("w.json").write_text("{}")
    assert read_config(there).workflow == Path("w.json")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("x", "x"),
        ("{job_num}", "42"),
        ("{job_num:04}.png", "0042.png"),
        ("{job_num:06d}/{job_num}", "000042/42"),
        ("{{job_num}} {job_num:0>3}", "{job_num} 042"),
    ],
)
def test_the_number_in_a_text(text: str, made: str) -> None:
    assert Swap("x", text).value(42) == made


@pytest.mark.parametrize(
    "text",
    [
        *("{", "}", "{}", "{0}", "{job}", "{job_num.real}", "{job_num[0]}", "{job_num!r}"),
        *("{job_num:{job_num}}", "{job_num.__class__}", "{job_num:s}"),
    ],
)
def test_nothing_else_in_braces(text: str) -> None:
    with pytest.raises(ValueError):
        Swap("x", text).value(42)


# --- the workflow -------------------------------------------------------------------------------


def picture_with(prompt: object, path: Path) -> Path:
    info = PngInfo()
    info.add_text("prompt", json.dumps(prompt))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_a_workflow_in_a_picture_or_a_file() -> None:
    assert read_recipe(picture_with(WORKFLOW, Path("w.PNG")), ()).prompt(1) == WORKFLOW
    Path("w.json").write_text(json.dumps(WORKFLOW), encoding="utf-8")
    assert read_recipe(Path("w.json"), ()).prompt(1) == WORKFLOW


def test_what_holds_no_workflow() -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    Image.new("RGB", (8, 8)).save("other.jpg")
    Path("page.json").write_text(json.dumps({"nodes": [], "links": []}))
    Path("bad.json").write_text("{")
    picture_with([1], Path("list.png"))
    whole = picture_with(WORKFLOW, Path("whole.png")).read_bytes()
    Path("cut.png").write_bytes(whole[:60])
    Path("none.json").write_text(json.dumps({i: WORKFLOW[i] for i in ("1", "4")}))
    said = {
        "plain.png": "no workflow in API format.* PNG that Save Image has written",
        "other.jpg": "cannot be read",
        "page.json": r"Export \(API\)",
        "bad.json": "cannot be read",
        "list.png": "no workflow in API format",
        "cut.png": "cannot be read",
        "gone.png": "cannot be read: .*No such file",
        "none.json": "has no Save Image or Preview Image with a picture wired to it",
    }
    for name, words in said.items():
        with pytest.raises(InputError, match=f"{name}: .*({words})"):
            read_recipe(Path(name), ())


def recipe(prompt: Any = WORKFLOW, swaps: Any = SWAPS) -> Recipe:
    return Recipe(prompt, [Swap(swap["src"], swap["dst"]) for swap in swaps])


def test_the_prompt_of_a_job() -> None:
    before = json.dumps(WORKFLOW)
    made = recipe().sent(12)
    assert made["1"]["inputs"] == {"width": 4, "height": 4, "color": 12}
    assert made["57:8"]["inputs"] == {"text": "n0012", "value": ["1", 0]}
    assert recipe().output == "3", "the last picture that is wired"
    result = {"value": ["57:8", 0], "name": "3", "job": ""}
    assert made["3"] == {"class_type": "ZBusResult", "inputs": result}
    assert recipe().sent(13)["1"]["inputs"]["color"] == 13
    assert json.dumps(WORKFLOW) == before, "the given one is not changed"


def test_only_what_is_exactly_the_source_is_replaced() -> None:
    inputs = {"a": "0000", "b": "x0000", "c": 7, "d": 0.5, "e": "7", "f": True, "g": ["0000", 0]}
    prompt = WORKFLOW | {"1": {"class_type": "X", "inputs": inputs | {"h": 1}}}
    swaps = [*SWAPS, {"src": 1, "dst": "5"}, {"src": 0.5, "dst": "0.{job_num}"}]
    made = recipe(prompt, swaps).prompt(3)["1"]["inputs"]
    assert made == inputs | {"a": "n0003", "c": 3, "d": 0.3, "h": 5}
    assert made["f"] is True and type(made["c"]) is int


def test_a_source_that_is_nowhere_is_told() -> None:
    with pytest.raises(InputError, match="no input in it is exactly 'none'"):
        recipe(swaps=[{"src": "none", "dst": "x"}])


# --- the pictures -------------------------------------------------------------------------------


def as_save_image(image: torch.Tensor) -> Any:
    """The arithmetic of ComfyUI's own node."""
    return np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_are_those_that_save_image_writes(channels: int) -> None:
    batch = torch.rand((3, 16, 16, channels), generator=torch.Generator().manual_seed(5)) * 2 - 0.5
    made = pixels(batch)
    assert len(made) == 3
    assert all((a == as_save_image(b)).all() for a, b in zip(made, batch, strict=True))


def test_images_of_several_sizes_half_floats_and_one_channel() -> None:
    images = [torch.ones((1, 2, 3, 3)), torch.ones((2, 4, 5, 1)), torch.ones((1, 2, 2, 4)).half()]
    shapes = [image.shape for image in pixels({LIST: images})]
    assert shapes == [(2, 3, 3), (4, 5), (4, 5), (2, 2, 4)]
    assert (pixels(torch.full((1, 2, 2, 3), float("nan")))[0] == 0).all()


@pytest.mark.parametrize(
    "value",
    [
        *("x", None, {LIST: []}, {LIST: ["x"]}, {LIST: 3}, {"samples": torch.ones(1)}),
        *(torch.ones((4, 4)), torch.ones((1, 4, 4, 3)).int()),
        *(torch.empty((0, 4, 4, 3)), torch.empty((1, 0, 4, 3))),
    ],
    ids=str,
)
def test_what_is_no_image(value: object) -> None:
    with pytest.raises(JobError):
        pixels(value)


GREY = np.full((4, 4, 3), 9, np.uint8)


def names() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


def test_one_image_and_several() -> None:
    folder = Folder(Path("out"), may_replace=False)
    folder.save(3, [GREY], WORKFLOW)
    folder.save(4, [GREY, GREY + 1], WORKFLOW)
    assert names() == ["3.png", "4.0.png", "4.1.png"]
    with Image.open("out/4.1.png") as image:
        assert (np.asarray(image) == 10).all()
    assert read_recipe(Path("out/3.png"), ()).prompt(3) == WORKFLOW  # and so can the page


def test_what_has_come_meanwhile_is_not_overwritten() -> None:
    folder = Folder(Path("out"), may_replace=False)
    folder.save(3, [GREY], WORKFLOW)
    with pytest.raises(InputError, match="out: job 3 cannot be saved: .*3.png has come there"):
        folder.save(3, [GREY + 1], WORKFLOW)
    assert names() == ["3.png"]
    with Image.open("out/3.png") as image:
        assert (np.asarray(image) == 9).all()


def test_what_is_missing() -> None:
    Path("out").mkdir()
    for name in ("1.png", "2.0.png", "2.1.png", "3.1.png", "04.png", "5.jpg", "6.png.part"):
        (Path("out") / name).touch()
    assert Folder(Path("out"), True).missing(range(1, 7)) == [3, 4, 5, 6]


def test_what_cannot_be_written_leaves_nothing_behind() -> None:
    folder = Folder(Path("out"), may_replace=True)
    Path("out/1.1.png").mkdir()
    with pytest.raises(InputError, match="job 1 cannot be saved"):
        folder.save(1, [GREY, GREY], WORKFLOW)
    assert names() == ["1.1.png"], "the first one says that all are there"


# --- who does what ------------------------------------------------------------------------------


async def take(board: Board, worker: str) -> Task:
    task = await asyncio.wait_for(board.take(worker), 5)
    assert task is not None
    return task


async def gone(board: Board, worker: str) -> bool:
    return await asyncio.wait_for(board.take(worker), 5) is None


def test_each_job_is_given_once() -> None:
    async def go() -> None:
        board = Board([1, 2, 3], ["a", "b"])
        for worker, number in (("a", 1), ("b", 2)):
            task = await take(board, worker)
            assert task.number == number
            board.finish(worker, task)
        last = await take(board, "a")
        waiting = asyncio.create_task(board.take("b"))
        await asyncio.sleep(0)
        assert not waiting.done(), "it may come back"
        board.finish("a", last)
        assert await waiting is None and await gone(board, "a")
        assert board.done == {1: "a", 2: "b", 3: "a"}

    asyncio.run(go())


def test_one_that_failed_goes_to_another_worker_and_no_further() -> None:
    async def go() -> None:
        board = Board([1, 2], ["a", "b", "c"])
        one = await take(board, "a")
        assert board.fail("a", one)
        assert (await take(board, "a")).number == 2, "not on the same"
        assert await take(board, "b") is one
        assert not board.fail("b", one) and board.failed == [1]

    asyncio.run(go())


def test_a_worker_on_which_all_fails_is_dropped_and_the_last_one_not() -> None:
    async def go() -> None:
        board = Board(range(9), ["bad", "last"])
        for _ in range(MAX_IN_A_ROW):
            board.fail("bad", await take(board, "bad"))
        assert board.live == {"last"} and await gone(board, "bad")
        for _ in range(9):
            assert not board.fail("last", await take(board, "last"))
        assert await gone(board, "last") and sorted(board.failed) == list(range(9))

    asyncio.run(go())


def test_what_only_a_gone_worker_could_try_has_failed() -> None:
    async def go() -> None:
        board = Board([1], ["a", "b"])
        assert board.fail("a", await take(board, "a"))
        board.drop("b")
        assert board.failed == [1] and not board.open and await gone(board, "a")

    asyncio.run(go())


def test_the_job_of_a_gone_worker_goes_back() -> None:
    async def go() -> None:
        board = Board([1, 2], ["a", "b"])
        one, two = await take(board, "a"), await take(board, "b")
        waiting = asyncio.create_task(board.take("b"))
        board.drop("a", one)
        assert await waiting is one
        board.drop("b", two)
        assert await gone(board, "b") and [task.number for task in board.open] == [2]

    asyncio.run(go())


def test_one_that_is_away_may_still_do_what_failed_elsewhere() -> None:
    async def go() -> None:
        board = Board([1, 2], ["a", "b"])
        one, two = await take(board, "a"), await take(board, "b")
        board.leave("b", two)
        assert board.fail("a", one) and not board.is_stuck, "two is left for a"
        board.finish("a", await take(board, "a"))
        assert board.is_stuck and not board.is_over
        waiting = asyncio.create_task(board.take("a"))
        await asyncio.sleep(0)
        assert not waiting.done()
        board.join("b")
        assert await take(board, "b") is one and not board.is_stuck
        board.leave("b", one)
        board.give_up()
        assert board.failed == [1] and board.is_over and await waiting is None

    asyncio.run(go())


def test_a_job_that_ends_each_worker_does_not_go_on_for_ever() -> None:
    """Where zbus-up starts each again."""

    async def go() -> None:
        board, given = Board([1, 2], ["a", "b"]), 0
        while not board.is_over:
            worker = "ab"[given % 2]
            task, given = await take(board, worker), given + 1
            if task.number == 1:
                assert board.lose(worker, task) == (task.lost < MAX_LOST)
                board.join(worker)
            else:
                board.finish(worker, task)
        assert (board.failed, list(board.done), given) == ([1], [2], MAX_LOST + 1)

    asyncio.run(go())


# --- whole runs ---------------------------------------------------------------------------------


def shade(number: int) -> torch.Tensor:
    """The picture that fake ComfyUIs make of a job."""
    return torch.full((1, 4, 4, 3), number / 255 + 0.001)


def compute(job: Taken) -> None:
    """As a ComfyUI would."""
    (output,) = job.request.outputs
    node = job.request.prompt[output]
    assert node["class_type"] == "ZBusResult" and node["inputs"]["name"] == output
    job.started()
    job.result(output, shade(job.request.prompt["1"]["inputs"]["color"]))
    job.done()


def after(condition: Callable[[], Any], do: Callable[[Taken], None]) -> Callable[[Taken], None]:
    """`do`, but not before that: a worker that is quick might do all."""

    def wait(job: Taken) -> None:
        until(condition)
        do(job)

    return wait


def registered(peer: Peer, host: Host) -> str:
    """Have it take jobs, and this user's others know it; its address."""
    address, key = peer.serve(host), to_text(peer.trust.keys.public)
    id = peer.own.instance.hex()
    discovery.register(discovery.Entry.of_this_process(id, peer.name, address, key=key))
    return address


@contextlib.contextmanager
def worker(name: str, do: Callable[[Taken], None] = compute) -> Iterator[tuple[Peer, Host, str]]:
    with Peer(name) as peer:
        host = Host(do)
        yield peer, host, registered(peer, host)


@pytest.fixture
def go(capsys: pytest.CaptureFixture[str]) -> Run:
    """``go({name: url}, arguments...)`` -> exit status, output, errors."""

    def run(urls: dict[str, str], *arguments: str, **more: Any) -> tuple[int, str, str]:
        Path("w.json").write_text(json.dumps(WORKFLOW), encoding="utf-8")
        workers = {name: {"url": url, "system": "windows"} for name, url in urls.items()}
        path = str(configured(workers=workers, **more))
        status = main(["farm", "--conf", path, "--output", "out", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def shades() -> dict[str, int]:
    found = {}
    for path in sorted(Path("out").iterdir()):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        assert (pixels == pixels.flat[0]).all()
        found[path.name] = int(pixels.flat[0])
    return found


def test_two_workers_do_it_all(go: Run) -> None:
    with worker("a") as (a, one, at_a), worker("b") as (b, two, at_b):
        status, out, err = go({"A": at_a, "B": at_b}, job_end=21)
        assert status == 0, err
        assert shades() == {f"{n}.png": n for n in range(1, 21)}
        assert "20 of 20 jobs done" in out and not err
        lines = [line for line in out.splitlines() if line.startswith("job ")]
        assert sorted(int(line.split()[1]) for line in lines) == list(range(1, 21))
        assert {line.split()[2] for line in lines} <= {"A", "B"}
        assert len(one.jobs) + len(two.jobs) == 20
        clean(a, b)
    made = read_recipe(Path("out/5.png"), ()).prompt(5)
    assert made["1"]["inputs"]["color"] == 5 and made["3"]["class_type"] == "SaveImage"


def test_a_free_worker_takes_what_a_slow_one_does_not(go: Run) -> None:
    """One holds its first job until the other has done all the rest."""
    held: list[Taken] = []

    def quick(job: Taken) -> None:
        compute(job)
        if len(two.jobs) == 7:
            compute(held.pop())

    def slow(job: Taken) -> None:
        if one.count("submitted") == 1:
            held.append(job)
        else:
            compute(job)

    with worker("a", slow) as (_, one, at_a), worker("b", quick) as (_, two, at_b):
        two.on_submitted = after(lambda: held, quick)
        status, out, _ = go({"A": at_a, "B": at_b}, job_end=9)
    assert status == 0 and len(shades()) == 8
    assert "A: 1" in out and "B: 7" in out


DIES = """
    import os, sys
    from jobpair import Host
    from test_farm import registered
    from zbus import Peer
    with Peer("a") as peer:
        print(registered(peer, Host(lambda job: os._exit(1))), flush=True)
        sys.stdin.read()
"""


def test_a_dying_worker_is_dropped_and_its_job_done_elsewhere(go: Run) -> None:
    with child(DIES) as a, worker("b") as (b, two, at_b):
        at_a = a.line("127.0.0.1:").strip()
        two.on_submitted = after(lambda: a.process.poll() is not None, compute)
        status, out, err = go({"A": at_a, "B": at_b}, job_end=9)
        assert status == 0 and len(shades()) == 8
        assert "A is gone, and job" in err and "goes back into the queue" in err
        assert len(two.jobs) == 8
        clean(b)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is away is looked for often."""
    monkeypatch.setattr(farm, "AGAIN", 0.05)
    monkeypatch.setattr(farm, "LOOK_EVERY", 0.05)


@pytest.mark.usefixtures("often")
def test_a_worker_that_is_late_joins(go: Run) -> None:
    late = Host(compute)
    with contextlib.ExitStack() as later, worker("b") as (_, two, at_b):
        two.on_submitted = after(lambda: late.jobs, compute)

        def start() -> None:
            until(lambda: two.jobs, 20)
            registered(later.enter_context(Peer("late-8188")), late)

        thread = threading.Thread(target=start)
        thread.start()
        status, out, err = go({"A": "late-8188", "B": at_b}, job_end=4)
        thread.join()
        assert status == 0 and len(shades()) == 3
        assert "A is not used: no peer named 'late-8188'" in err and "A joins" in out


@pytest.mark.usefixtures("often")
def test_the_only_worker_is_lost_and_comes_back(go: Run) -> None:
    with contextlib.ExitStack() as later, child(DIES) as a:
        a.line("127.0.0.1:")
        again = Host(compute)

        def start_again() -> None:
            a.process.wait(20)
            registered(later.enter_context(Peer("a")), again)

        thread = threading.Thread(target=start_again)
        thread.start()
        status, out, err = go({"A": "a"}, job_end=4)
        thread.join()
        assert status == 0 and len(shades()) == 3 and len(again.jobs) == 3
        assert "A is gone, and job 1 goes back into the queue: " in err and "A joins" in out


@pytest.mark.usefixtures("often")
def test_one_that_runs_no_prompts_any_more_is_lost_and_not_asked_again(go: Run) -> None:
    def strand(job: Taken) -> None:
        one.told = {"runs_prompts": False}
        job.started()
        job.refuse([runs_no_prompts()])

    with worker("a", strand) as (_, one, at_a), worker("b") as (_, two, at_b):
        two.on_submitted = after(lambda: one.jobs, compute)
        status, _, err = go({"A": at_a, "B": at_b}, job_end=6)
        assert status == 0 and len(shades()) == 5 and len(one.jobs) == 1
    assert "A is gone, and job" in err and "runs no prompts any more: start it again" in err


@pytest.mark.usefixtures("often")
def test_it_waits_no_longer_than_it_was_told(go: Run) -> None:
    status, out, err = go({"A": "no-such-peer"}, "--wait", "0.2")
    assert status == 1 and "3 are missing" in out and err.count("no-such-peer") == 1
    with pytest.raises(SystemExit):
        go({"A": "no-such-peer"}, "--wait", "ever")


def test_workers_by_their_names_here_and_on_a_paired_machine(go: Run, tmp_path: Path) -> None:
    here, there = Trust(), Trust(tmp_path / "cloud-home")
    there.pair(here.keys.public, "home", [EXCHANGE, JOBS])
    two = Host()
    with worker("Desk-8188") as (a, one, _), Peer("gpu-8188", trust=there) as b:
        peers = (("gpu-8188", ("127.0.0.1:9", b.serve(two))),)  # the first one leads nowhere
        here.pair(there.keys.public, "cloud", (), peers)
        one.on_submitted = after(lambda: two.jobs, compute)
        two.on_submitted = after(lambda: one.jobs, compute)
        status, out, err = go({"A": "desk-8188", "B": "cloud"}, job_end=9)
        assert (status, err) == (0, ""), err
        assert len(shades()) == 8 and one.jobs and two.jobs
        clean(a, b)


def test_a_paired_machine_that_permits_no_jobs_is_not_used(go: Run, tmp_path: Path) -> None:
    here, there = Trust(), Trust(tmp_path / "cloud-home")
    there.pair(here.keys.public, "home", [EXCHANGE])
    with worker("b") as (_, host, at_b), Peer("gpu-8188", trust=there) as far:
        refused = Host()
        here.pair(there.keys.public, "cloud", (), (("gpu-8188", (far.serve(refused),)),))
        status, _, err = go({"cloud": "cloud", "B": at_b}, job_end=5)
    assert status == 0 and len(shades()) == 4 and not refused.jobs
    assert "zbus-farm: cloud is not used: " in err and "permit" in err


def test_an_own_listener_that_nobody_here_knows_is_not_used(go: Run) -> None:
    with Peer("stranger") as peer:
        status, _, err = go({"A": peer.serve(Host())})
    assert status == 1 and "A is not used: no peer that is known here listens on " in err
    assert "zbus-pair move NAME" in err


def test_who_is_not_there_is_not_used(go: Run, addr: str) -> None:
    with worker("b") as (_, host, at_b):
        urls = {"gone": addr, "nobody": "no-such-peer", "page": f"http://{addr}", "B": at_b}
        status, _, err = go(urls, job_end=3)
    assert status == 0 and len(shades()) == 2
    for name in ("gone", "nobody", "page"):
        assert f"zbus-farm: {name} is not used: " in err


def test_nobody_there(go: Run) -> None:
    status, out, err = go({"A": "no-such-peer"})
    assert status == 1 and "no peer named 'no-such-peer'" in err
    assert "0 of 3 jobs done" in out and "3 are missing" in out


def test_a_listener_for_values_only_is_not_used(go: Run) -> None:
    with Peer("values") as peer, peer.listen("127.0.0.1:0") as channel:
        status, out, err = go({"A": channel.address})
    assert status == 1 and "A is not used: " in err and "3 are missing" in out


def refuse(job: Taken) -> None:
    job.refuse([Reason("choice", text="no model x.safetensors"), Reason("class", text="no node Y")])


def test_who_refuses_all_is_dropped_and_others_do_it(go: Run) -> None:
    with worker("a", refuse) as (_, one, at_a), worker("b") as (_, two, at_b):
        two.on_submitted = after(lambda: len(one.jobs) == MAX_IN_A_ROW, compute)
        status, out, err = go({"A": at_a, "B": at_b}, job_end=41)
        assert status == 0 and len(shades()) == 40
        assert len(one.jobs) == MAX_IN_A_ROW and len(two.jobs) == 40
    assert "no model x.safetensors\nno node Y" in err
    assert "failed on A; it is tried on another worker" in err
    assert "A is not used any more: 3 jobs in a row failed on it" in err


def test_a_job_that_fails_on_two_is_counted(go: Run) -> None:
    def fail_two(job: Taken) -> None:
        if job.request.prompt["1"]["inputs"]["color"] == 2:
            job.failed({"node_id": "1", "title": "Empty #1", "message": "no memory"})
        else:
            compute(job)

    with worker("a", fail_two) as (_, one, at_a), worker("b", fail_two) as (_, two, at_b):
        status, out, err = go({"A": at_a, "B": at_b}, job_end=6)
        asked = [*one.jobs.values(), *two.jobs.values()]
    assert status == 1 and sorted(shades()) == ["1.png", "3.png", "4.png", "5.png"]
    assert "4 of 5 jobs done" in out and "failed: 2" in out and "no memory" in err
    assert sum(job.request.prompt["1"]["inputs"]["color"] == 2 for job in asked) == 2


def test_what_is_no_picture_fails(go: Run) -> None:
    def text(job: Taken) -> None:
        job.result(job.request.outputs[0], "x")
        job.done()

    def nothing(job: Taken) -> None:
        job.done()

    with worker("a", text) as (_, _, at_a), worker("b", nothing) as (_, _, at_b):
        status, out, err = go({"A": at_a, "B": at_b}, job_end=2)
    assert status == 1 and "failed: 1" in out
    assert err.count("what came is no image") == 2


def test_nothing_begins_where_something_would_be_overwritten(go: Run) -> None:
    Path("out").mkdir()
    Path("out/2.png").write_bytes(b"mine")
    with worker("a") as (_, host, at_a):
        status, _, err = go({"A": at_a})
        assert status == 2 and "pictures of 1 of the jobs are there" in err and not host.jobs
        status, out, _ = go({"A": at_a}, "--resume")
        assert status == 0 and len(host.jobs) == 2 and "1 of 3 jobs are there already" in out
        assert Path("out/2.png").read_bytes() == b"mine"
        status, out, _ = go({"A": at_a}, "--resume")
        assert status == 0 and len(host.jobs) == 2 and "3 of 3 jobs are there already" in out
        status, _, _ = go({"A": at_a}, "--overwrite")
        assert status == 0 and len(host.jobs) == 5
    assert shades() == {f"{n}.png": n for n in (1, 2, 3)}


def test_ctrl_c_stops_the_jobs_there_and_says_what_is_missing(go: Run) -> None:
    def hold_the_second(job: Taken) -> None:
        if job.request.prompt["1"]["inputs"]["color"] == 1:
            compute(job)
        else:
            job.started()
            os.kill(os.getpid(), signal.SIGINT)

    stops: list[str] = []

    def stop(job: Taken, why: str) -> None:
        stops.append(why)
        job.stopped(why)

    with worker("a", hold_the_second) as (a, host, at_a):
        host.on_cancel = stop
        status, out, err = go({"A": at_a}, job_end=6)
        assert status == 130
        until(lambda: stops, 5, "the job there is stopped")
        clean(a)
    assert "stopped by Ctrl-C" in err and "1 of 5 jobs done" in out and "4 are missing" in out
    assert names() == ["1.png"]


def test_a_full_disk_stops_it_all(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    stops: list[str] = []
    held = threading.Event()

    def hold(job: Taken) -> None:
        job.started()
        held.set()

    with worker("a") as (_, one, at_a), worker("b", hold) as (_, two, at_b):
        one.on_submitted = after(held.is_set, compute)
        two.on_cancel = lambda job, why: (stops.append(why), job.stopped(why))
        status, out, err = go({"A": at_a, "B": at_b})
        until(lambda: stops, 5, "what another one does is stopped")
    assert status == 1 and len(one.jobs) == 1 and not names()
    assert "cannot be saved: [Errno 28] No space left" in err and "3 are missing" in out


@pytest.mark.parametrize("module", ["torch", "yaml"])
def test_without_torch_or_yaml(go: Run, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    status, _, err = go({"A": "127.0.0.1:9"})
    assert status == 2 and module in err and "Python of your ComfyUI" in err


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "zbus-farm"), "--conf", "none.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("zbus-farm: none.yaml: cannot be read: ")
    assert "Traceback" not in done.stderr
    batch = (ROOT / "scripts" / "zbus-farm.cmd").read_bytes()
    ping = (ROOT / "scripts" / "zbus-ping.cmd").read_bytes()
    assert batch == ping.replace(b"zbus-ping", b"zbus-farm")
