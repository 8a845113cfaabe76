"""zbus-farm: its file, prompts and pictures; and whole runs on real peers with fake ComfyUIs."""

from __future__ import annotations

import contextlib
import json
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

from zbus import Peer
from zbus.__main__ import main
from zbus.cli import farm
from zbus.errors import InputError, JobError
from zbus.job import Reason, Taken
from zbus.kinds import LIST

WORKFLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 4, "height": 4, "color": 7}},
    "57:8": {"class_type": "Note", "inputs": {"text": "0000", "value": ["1", 0]}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    "3": {
        "class_type": "SaveImage",
        "inputs": {"images": ["57:8", 0], "filename_prefix": "0000"},
        "_meta": {"title": "Keep"},
    },
    "4": {"class_type": "SaveImage", "inputs": {"filename_prefix": "muted"}},
}
SWAPS = [{"src": 7, "dst": "{job_num}"}, {"src": "0000", "dst": "n{job_num:04}"}]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def zbus_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of names of its own, and a folder of its own to work in."""
    monkeypatch.setenv("ZBUS_HOME", str(tmp_path / "zbus-home"))
    monkeypatch.chdir(tmp_path)


def configured(**more: Any) -> dict[str, Any]:
    told = {"workflow": "w.json", "job_start": 1, "job_end": 4, "replacement": SWAPS}
    told["workers"] = {"A": {"url": "127.0.0.1:9", "system": "posix"}}
    return {key: value for key, value in (told | more).items() if value is not None}


def wrong(told: object) -> str:
    with pytest.raises(InputError) as raised:
        farm.check_config(told, Path("some/job.yaml"))
    assert str(raised.value).startswith(str(Path("some/job.yaml")))
    return str(raised.value)


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
    config = farm.read_config(Path("job.yaml"))
    assert config.jobs == range(1, 100) and config.workflow == Path("job.example.png")
    assert config.workers == {
        "RTX3080@LOC": "http://127.0.0.1:8188/",
        "P40_0@NET": "http://192.168.4.6:8188/",
    }
    (swap,) = config.swaps
    assert swap.value(37) == "http://127.0.0.1:8080/image/openpose/0037.png"
    assert config.notes == ()


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"workflow": None}, "workflow", "is missing"),
        ({"workflow": 3}, "workflow", "is no text: 3"),
        ({"job_start": None}, "job_start", "is missing"),
        ({"job_start": "1"}, "job_start", "is no whole number: '1'"),
        ({"job_start": True}, "job_start", "is no whole number"),
        ({"job_end": 1}, "job_end", "must be above job_start, 1"),
        ({"job_end": 10**9}, "job_end", "more than 1000000 jobs"),
        ({"workers": None}, "workers", "is missing"),
        ({"workers": []}, "workers", "is no map of workers"),
        ({"workers": {"A": "x"}}, "workers.A", "is no map with url in it: 'x'"),
        ({"workers": {"A": {}}}, "workers.A.url", "is missing"),
        ({"workers": {"A": {"url": "ftp://h"}}}, "workers.A.url", "not the URL of a web page"),
        ({"workers": {"A": {"url": "h:99999"}}}, "workers.A.url", ""),
        ({"replacement": {}}, "replacement", "is no list of src and dst"),
        ({"replacement": ["x"]}, "replacement[0]", "is no map of src and dst"),
        ({"replacement": [{"dst": "x"}]}, "replacement[0].src", "is missing"),
        ({"replacement": [{"src": [], "dst": "x"}]}, "replacement[0].src", "no text and no number"),
        ({"replacement": [{"src": "x"}]}, "replacement[0].dst", "is missing"),
        ({"replacement": [{"src": 7, "dst": "x"}]}, "replacement[0].dst", "makes no number"),
        ({"replacement": [{"src": "x", "dst": "{0}"}]}, "replacement[0].dst", "only {job_num}"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(
    change: dict[str, Any], key: str, words: str
) -> None:
    text = wrong(configured(**change))
    assert f", {key}: " in text and words in text


def test_a_file_that_is_no_map() -> None:
    assert "is no map of workflow, job_start" in wrong(["x"])


def test_a_key_that_is_unknown_is_told() -> None:
    (note,) = farm.check_config(configured(replacment=[]), Path("job.yaml")).notes
    assert '"replacment" is unknown' in note


def test_a_worker_whose_name_nobody_has_now_may_come_later() -> None:
    config = farm.check_config(configured(workers={"A": {"url": "desk-8188"}}), Path("job.yaml"))
    assert config.workers == {"A": "desk-8188"}


def test_without_pyyaml_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("job.yaml").write_text("workflow: x")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(InputError, match="job.yaml: .* cannot read YAML.*pip install pyyaml"):
        farm.read_config(Path("job.yaml"))


@pytest.mark.parametrize("text", ["a: [", "\x00", "!!python/object:os.system {}", "{" * 5000])
def test_what_is_no_yaml(text: str) -> None:
    Path("job.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="job.yaml: "):
        farm.read_config(Path("job.yaml"))


def test_the_workflow_lies_where_one_stands_or_beside_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "else"
    folder.mkdir()
    (folder / "w.json").write_text("{}")
    assert farm.check_config(configured(), folder / "job.yaml").workflow == folder / "w.json"
    Path("w.json").write_text("{}")
    assert farm.check_config(configured(), folder / "job.yaml").workflow == Path("w.json")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("x", "x"),
        ("{job_num}", "42"),
        ("{job_num:04}.png", "0042.png"),
        ("{job_num:06d}/{job_num}", "000042/42"),
        ("{job_num:x}{job_num:>5}", "2a   42"),
        ("{{job_num}} {job_num:0>3}", "{job_num} 042"),
    ],
)
def test_the_number_in_a_text(text: str, made: str) -> None:
    assert farm.render(text, 42) == made == text.format(job_num=42)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "}", "{}", "{0}", "{job}", "{job_num.real}", "{job_num[0]}", "{job_num!r}"),
        *("{job_num:{job_num}}", "{job_num:99999999}", "{job_num.__class__}", "{job_num:s}"),
    ],
)
def test_nothing_else_in_braces(text: str) -> None:
    with pytest.raises(ValueError, match=r"only \{job_num\}"):
        farm.render(text, 42)


# --- the workflow -------------------------------------------------------------------------------


def picture_with(prompt: object, path: Path) -> Path:
    info = PngInfo()
    info.add_text("prompt", json.dumps(prompt))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_a_workflow_in_a_picture_or_a_file() -> None:
    assert farm.read_workflow(picture_with(WORKFLOW, Path("w.PNG"))) == WORKFLOW
    Path("w.json").write_text(json.dumps(WORKFLOW), encoding="utf-8")
    assert farm.read_workflow(Path("w.json")) == WORKFLOW


def test_what_holds_no_workflow() -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    Image.new("RGB", (8, 8)).save("other.jpg")
    Path("page.json").write_text(json.dumps({"nodes": [], "links": []}))
    Path("bad.json").write_text("{")
    picture_with([1], Path("list.png"))
    whole = picture_with(WORKFLOW, Path("whole.png")).read_bytes()
    Path("cut.png").write_bytes(whole[:60])
    said = {
        "plain.png": "a picture without a workflow. Name one",
        "other.jpg": "neither .png nor .json",
        "page.json": r"Export \(API\)",
        "bad.json": "cannot be read",
        "list.png": "no workflow in API format",
        "cut.png": "cannot be read|without a workflow",
        "none.png": "cannot be read: No such file",
    }
    for name, words in said.items():
        with pytest.raises(InputError, match=f"{name}, workflow: .*({words})"):
            farm.read_workflow(Path(name))


def recipe(prompt: Any = WORKFLOW, swaps: Any = SWAPS) -> farm.Recipe:
    config = farm.check_config(configured(replacement=swaps), Path("job.yaml"))
    return farm.Recipe(prompt, config.swaps, Path("w.json"))


def test_the_prompt_of_a_job() -> None:
    made = recipe().prompt(12)
    assert made["1"]["inputs"] == {"width": 4, "height": 4, "color": 12}
    assert made["57:8"]["inputs"] == {"text": "n0012", "value": ["1", 0]}
    result = {"value": ["57:8", 0], "name": "3", "job": ""}
    assert made["3"] == {"class_type": "ZBusResult", "inputs": result}
    assert made["2"]["class_type"] == "ZBusResult" and made["4"] == WORKFLOW["4"]
    assert recipe().prompt(13)["1"]["inputs"]["color"] == 13


def test_the_given_workflow_is_not_changed() -> None:
    before = json.dumps(WORKFLOW)
    recipe().prompt(12)
    assert json.dumps(WORKFLOW) == before


def test_the_last_picture_that_is_wired_is_the_one() -> None:
    made = recipe()
    assert made.output == "3"
    assert made.notes == ["w.json: only the pictures of Keep #3 are made, not of PreviewImage #2"]


def test_only_what_is_exactly_the_source_is_replaced() -> None:
    inputs = {"a": "0000", "b": "x0000", "c": 7, "d": 7.0, "e": "7", "f": True, "g": ["0000", 0]}
    prompt = WORKFLOW | {"1": {"class_type": "X", "inputs": inputs | {"h": 1}}}
    made = recipe(prompt, [*SWAPS, {"src": 1, "dst": "5"}]).prompt(3)["1"]["inputs"]
    expected = inputs | {"a": "n0003", "c": 3, "d": 3, "h": 5}
    assert made == expected and made["f"] is True and type(made["c"]) is int


def test_a_source_that_is_nowhere_is_told() -> None:
    notes = recipe(swaps=[{"src": "none", "dst": "x"}]).notes
    assert "no input is exactly 'none'" in notes[0]


def test_a_workflow_without_pictures() -> None:
    with pytest.raises(InputError, match="no Save Image or Preview Image"):
        recipe({i: WORKFLOW[i] for i in ("1", "4")})


# --- the pictures -------------------------------------------------------------------------------


def as_save_image(image: torch.Tensor) -> Any:
    """The arithmetic of ComfyUI's own node."""
    return np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_are_those_that_save_image_writes(channels: int) -> None:
    batch = torch.rand((3, 16, 16, channels), generator=torch.Generator().manual_seed(5)) * 2 - 0.5
    made = farm.pictures(batch)
    assert len(made) == 3
    assert all((a == as_save_image(b)).all() for a, b in zip(made, batch, strict=True))


def test_images_of_several_sizes_half_floats_and_one_channel() -> None:
    images = [torch.ones((1, 2, 3, 3)), torch.ones((2, 4, 5, 1)), torch.ones((1, 2, 2, 4)).half()]
    assert [a.shape for a in farm.pictures({LIST: images})] == [
        (2, 3, 3),
        (4, 5),
        (4, 5),
        (2, 2, 4),
    ]
    assert (farm.pictures(torch.full((1, 2, 2, 3), float("nan")))[0] == 0).all()


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
        farm.pictures(value)


GREY = np.full((4, 4, 3), 9, np.uint8)


def names() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


def test_one_image_and_several() -> None:
    folder = farm.Folder(Path("out"))
    folder.make()
    folder.save(3, [GREY], WORKFLOW)
    folder.save(4, [GREY, GREY + 1], WORKFLOW)
    assert names() == ["3.png", "4.0.png", "4.1.png"]
    with Image.open("out/4.1.png") as image:
        assert (np.asarray(image) == 10).all()
    assert farm.read_workflow(Path("out/3.png")) == WORKFLOW  # and so can the page


def test_nothing_is_overwritten_unasked() -> None:
    folder = farm.Folder(Path("out"))
    folder.make()
    folder.save(3, [GREY], WORKFLOW)
    with pytest.raises(FileExistsError):
        folder.save(3, [GREY + 1], WORKFLOW)
    assert names() == ["3.png"]
    with Image.open("out/3.png") as image:
        assert (np.asarray(image) == 9).all()
    with pytest.raises(InputError, match="out: would overwrite 3.png. Give another --output"):
        farm.Folder(Path("out")).demand_none(range(1, 5))
    farm.Folder(Path("out")).demand_none(range(4, 9))
    farm.Folder(Path("not there")).demand_none(range(1, 5))


def test_what_is_missing() -> None:
    Path("out").mkdir()
    for name in ("1.png", "2.0.png", "2.1.png", "3.1.png", "04.png", "5.jpg", "6.png.part"):
        (Path("out") / name).touch()
    assert farm.Folder(Path("out"), True).missing(range(1, 7)) == [3, 4, 5, 6]


def test_pictures_of_an_earlier_run_do_not_stay_among_new_ones() -> None:
    Path("out").mkdir()
    for name in ("1.png", "2.0.png", "2.1.png", "2.2.png", "11.png"):
        (Path("out") / name).touch()
    folder = farm.Folder(Path("out"), True)
    folder.save(1, [GREY, GREY], WORKFLOW)
    folder.save(2, [GREY, GREY], WORKFLOW)
    assert names() == ["1.0.png", "1.1.png", "11.png", "2.0.png", "2.1.png"]


def test_what_cannot_be_written_leaves_nothing_behind() -> None:
    folder = farm.Folder(Path("out"), True)
    folder.make()
    Path("out/1.1.png").mkdir()
    with pytest.raises(OSError):
        folder.save(1, [GREY, GREY], WORKFLOW)
    assert names() == ["1.1.png"], "the first one says that all are there"


# --- who does what ------------------------------------------------------------------------------


def take(board: farm.Board, worker: str) -> farm.Task:
    task = board.take(worker)
    assert task is not None
    return task


def test_each_job_is_given_once() -> None:
    board = farm.Board([1, 2, 3], ["a", "b"])
    first, second = take(board, "a"), take(board, "b")
    assert (first.number, second.number) == (1, 2)
    assert board.finish("a", first) == []
    third = take(board, "a")
    assert board.left() == [2, 3]
    board.finish("a", third)
    assert not board.wait(0.0)
    board.finish("b", second)
    assert board.wait(0.0) and board.take("a") is None
    assert board.done == {1: "a", 2: "b", 3: "a"} and board.left() == []


def test_one_that_failed_goes_to_another_worker_and_no_further() -> None:
    board = farm.Board([1, 2], ["a", "b", "c"])
    one = take(board, "a")
    assert board.fail("a", one, "a: no")
    assert take(board, "b") is one, "it comes before new ones"
    assert not board.fail("b", one, "b: no")
    assert board.failed == {1: "a: no; b: no"}
    assert take(board, "a").number == 2


def test_who_failed_waits_for_the_verdict() -> None:
    board = farm.Board(range(1, 4), ["a", "b"])
    one = take(board, "a")
    board.fail("a", one, "no")
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(take(board, "a").number))
    thread.start()
    assert take(board, "b") is one
    thread.join(0.1)
    assert not got, "a new one, before it is known who is at fault"
    board.finish("b", one)
    thread.join(10)
    assert got == [2]


def test_two_that_failed_try_each_others() -> None:
    board = farm.Board([1, 2], ["a", "b"])
    one, two = take(board, "a"), take(board, "b")
    board.fail("a", one, "no")
    board.fail("b", two, "no")
    assert take(board, "a") is two and take(board, "b") is one


def test_a_worker_that_fails_what_others_do_is_of_no_use() -> None:
    board = farm.Board(range(9), ["bad", "good"])
    for turn in range(farm.MAX_STRIKES):
        task = take(board, "bad")
        board.fail("bad", task, "no")
        assert take(board, "good") is task
        useless = board.finish("good", task)
        assert useless == (["bad"] if turn == farm.MAX_STRIKES - 1 else [])


def test_with_one_worker_what_failed_has_failed() -> None:
    board = farm.Board([1, 2], ["a"])
    assert not board.fail("a", take(board, "a"), "no")
    board.finish("a", take(board, "a"))
    assert board.wait(0.0) and list(board.failed) == [1] and list(board.done) == [2]


def test_what_only_a_gone_worker_could_try_has_failed() -> None:
    board = farm.Board([1], ["a", "b"])
    assert board.fail("a", take(board, "a"), "a: no")
    board.drop("b")
    assert board.wait(0.0) and board.failed == {1: "a: no"} and board.left() == []


def test_without_workers_all_is_left() -> None:
    board = farm.Board([1, 2, 3], ["a"])
    task = take(board, "a")
    assert board.lose("a", task)
    board.drop("a")
    assert board.wait(0.0) and board.left() == [1, 2, 3] and board.take("a") is None


def test_a_job_with_which_workers_go_is_given_up() -> None:
    board = farm.Board([1, 2], ["a"])
    for again in (True, True, False):
        assert board.lose("a", take(board, "a")) is again
    assert board.failed == {1: "3 workers went away while they ran it"}
    assert take(board, "a").number == 2


def test_numbers_for_people() -> None:
    assert farm.spans([7, 1, 3, 2]) == "1-3, 7" and farm.spans([]) == ""


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


@contextlib.contextmanager
def worker(name: str, do: Callable[[Taken], None] = compute) -> Iterator[tuple[Peer, Host, str]]:
    with Peer(name) as peer:
        host = Host(do)
        yield peer, host, peer.serve(host)


@pytest.fixture
def go(capsys: pytest.CaptureFixture[str]) -> Run:
    """``go({name: url}, arguments...)`` -> exit status, output, errors."""

    def run(urls: dict[str, str], *arguments: str, **more: Any) -> tuple[int, str, str]:
        Path("w.json").write_text(json.dumps(WORKFLOW), encoding="utf-8")
        workers = {name: {"url": url, "system": "windows"} for name, url in urls.items()}
        Path("job.json").write_text(json.dumps(configured(workers=workers) | more))
        status = main(["farm", "--conf", "job.json", "--output", "out", *arguments])
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
        assert "20 of 20 jobs done" in out and err.count("\n") == 1, "only what is not made"
        lines = [line for line in out.splitlines() if line.startswith("job ")]
        assert sorted(int(line.split()[1]) for line in lines) == list(range(1, 21))
        assert {line.split()[2] for line in lines} <= {"A", "B"}
        assert len(one.jobs) + len(two.jobs) == 20
        clean(a, b)
    assert farm.read_workflow(Path("out/5.png"))["1"]["inputs"]["color"] == 5


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
    import os, time
    from jobpair import Host
    from zbus import Peer
    with Peer("a") as peer:
        print(peer.serve(Host(lambda job: os._exit(1))), flush=True)
        time.sleep(60)
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
    assert "0 of 3 jobs done" in out and "not done: 1-3" in out


def test_a_listener_for_values_only_is_not_used(go: Run) -> None:
    with Peer("values") as peer, peer.listen("127.0.0.1:0") as channel:
        status, out, err = go({"A": channel.address})
    assert status == 1 and "A is not used: " in err and "not done: 1-3" in out


def refuse(job: Taken) -> None:
    job.refuse([Reason("choice", text="no model x.safetensors"), Reason("class", text="no node Y")])


def test_who_refuses_all_is_dropped_and_others_do_it(go: Run) -> None:
    with worker("a", refuse) as (_, one, at_a), worker("b") as (_, two, at_b):
        two.on_submitted = after(lambda: one.jobs, compute)
        status, out, err = go({"A": at_a, "B": at_b}, job_end=41)
        assert status == 0 and len(shades()) == 40
        assert len(one.jobs) <= farm.MAX_STRIKES and len(two.jobs) == 40
    assert "no model x.safetensors\nno node Y" in err
    assert "failed on A; it is tried on another worker" in err


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
    assert "what came is no image" in err and "no pictures came" in err


def test_nothing_begins_where_something_would_be_overwritten(go: Run) -> None:
    Path("out").mkdir()
    Path("out/2.png").write_bytes(b"mine")
    with worker("a") as (_, host, at_a):
        status, _, err = go({"A": at_a})
        assert status == 2 and "would overwrite 2.png" in err and not host.jobs
        status, out, _ = go({"A": at_a}, "--resume")
        assert status == 0 and len(host.jobs) == 2 and "1 were there already" in out
        assert Path("out/2.png").read_bytes() == b"mine"
        status, out, _ = go({"A": at_a}, "--resume")
        assert status == 0 and len(host.jobs) == 2 and "all 3 jobs are there already" in out
        status, _, _ = go({"A": at_a}, "--overwrite")
        assert status == 0 and len(host.jobs) == 5
    assert shades() == {f"{n}.png": n for n in (1, 2, 3)}


def test_ctrl_c_stops_the_jobs_there_and_says_what_is_missing(
    go: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hold_the_second(job: Taken) -> None:
        if job.request.prompt["1"]["inputs"]["color"] == 1:
            compute(job)
        else:
            job.started()
            held.set()

    held = threading.Event()
    stops: list[str] = []

    def stop(job: Taken, why: str) -> None:
        stops.append(why)
        job.stopped(why)

    def interrupted(board: farm.Board, seconds: float) -> bool:
        assert held.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(farm.Board, "wait", interrupted)
    with worker("a", hold_the_second) as (a, host, at_a):
        host.on_cancel = stop
        status, out, _ = go({"A": at_a}, job_end=6)
        assert status == 130
        until(lambda: stops, 5, "the job there is stopped")
        clean(a)
    assert "stopped by Ctrl-C" in out and "1 of 5 jobs done" in out and "not done: 2-5" in out
    assert sorted(shades()) == ["1.png"]


def test_a_full_disk_stops_it_all(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(farm.Folder, "save", full)
    with worker("a") as (_, host, at_a):
        status, out, _ = go({"A": at_a})
    assert status == 1 and len(host.jobs) == 1
    assert "job 1 cannot be saved: No space left" in out and "not done: 1-3" in out


def test_a_fault_of_ours_ends_it(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(farm, "pictures", broken)
    with worker("a") as (_, _, at_a):
        status, out, _ = go({"A": at_a})
    assert status == 1 and "stopped by A: ZeroDivisionError: oops" in out


def test_no_torch(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise ImportError("torch")

    monkeypatch.setattr(farm, "torch_module", none)
    status, _, err = go({"A": "127.0.0.1:9"})
    assert status == 2 and "has no torch" in err and "Python of your ComfyUI" in err


def test_on_a_terminal_one_line_says_who_does_what(
    go: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    shown = threading.Event()
    real = farm.Screen.status

    def status(screen: farm.Screen, text: str) -> None:
        real(screen, text)
        if "KSampler 3/20" in text:
            shown.set()

    def step(job: Taken) -> None:
        job.started()
        job.progress("1", "KSampler", 3, 20)
        threading.Thread(target=lambda: shown.wait(20) and compute(job)).start()

    monkeypatch.setattr(farm.Screen, "status", status)
    with worker("a", step) as (_, _, at_a):
        code, out, _ = go({"A": at_a}, job_end=2)
    assert code == 0 and "\r\x1b[K0/1 | A: job 1 KSampler 3/20" in out


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "zbus-farm"), "--conf", "none.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "zbus-farm: none.yaml: cannot be read: No such file or directory\n"
    batch = (ROOT / "scripts" / "zbus-farm.cmd").read_bytes()
    ping = (ROOT / "scripts" / "zbus-ping.cmd").read_bytes()
    assert batch == ping.replace(b"zbus-ping", b"zbus-farm")
