"""zbus-bench: its figures, its choice of rows, what it prints and draws; a row from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zbus.__main__ import main
from zbus.cli import bench
from zbus.cli.benching import plot, report, values, ways
from zbus.cli.benching.figures import Figure, percentile, ratio, written
from zbus.cli.benching.kinds import KINDS, Measured, Plan, measure
from zbus.cli.benching.kinds.jobs import prompt
from zbus.cli.benching.processes import Absent, Pairs, WayFailed
from zbus.cli.benching.rows import ROWS, Entry, Goal, Row, chosen
from zbus.cli.benching.ways import WAYS

SMALL = Row(
    "small",
    "64 KiB by the socket",
    "floats:64K",
    (Entry("zbus-socket"), Entry("zmq"), Entry("socket", "fresh")),
    (Goal("raw socket", 1e9, 1e9), Goal("gloo", 1.0)),
    count=2,
    group="socket",
)


def figure(*samples: float) -> Figure:
    return Figure(samples)


def measured(row: Row = SMALL, **figures: Figure) -> Measured:
    return Measured(row, {label.replace("_", " "): made for label, made in figures.items()})


# --- figures


def test_a_figure_is_a_median_with_its_quartiles() -> None:
    made = figure(5, 1, 3, 2, 4)
    assert (made.median, made.quartiles) == (3, (2, 4))
    assert figure(3, 1).quartiles == (1, 3), "of few samples all of them"
    assert made.as_json() == {"median": 3, "quartiles": [2, 4], "samples": [5, 1, 3, 2, 4]}
    with pytest.raises(ValueError):
        Figure(())


def test_a_ratio_is_that_of_the_medians() -> None:
    assert ratio(figure(2, 4, 100), figure(1, 2, 50)) == 2
    assert ratio(figure(1.0), figure(0.0)) == float("inf")


def test_a_percentile_is_a_sample() -> None:
    assert percentile([3, 1, 2], 0.99) == 3
    assert percentile(range(1000), 0.99) == 990


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0000421, "s", "42 us"),
        (0.000853, "s", "0.853 ms"),
        (0.00212, "s", "2.12 ms"),
        (0.0534, "s", "53.4 ms"),
        (0.153, "s", "153 ms"),
        (1.349, "s", "1.35 s"),
        (0.0002, "/s", "5,000/s"),
        (16 << 20, "B", "16.0 MiB"),
        (0.03, "%", "0.03 %"),
    ],
)
def test_figures_are_written_for_people(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


# --- rows


def test_every_row_can_be_measured_and_its_goals_have_their_yardsticks() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert row.kind in KINDS and {entry.way for entry in row.entries} <= set(WAYS), row.name
        labels = [entry.label or WAYS[entry.way].label for entry in row.entries]
        assert labels[:1] in ([], ["zbus"]) and len(set(labels)) == len(labels), row.name
        for goal in row.goals:
            assert goal.against in ("", "best", *labels[1:]), row.name
            assert not goal.guard or goal.guard >= goal.most, row.name


def test_what_the_guard_compares_is_part_of_a_quick_run() -> None:
    for row in chosen([], quick=True):
        labels = [entry.label or WAYS[entry.way].label for entry in row.of(quick=True)]
        guarded = [goal.against for goal in row.goals if goal.guard]
        assert "zbus" in labels and (not guarded or {*guarded} & {"", *labels}), row.name


def test_rows_are_chosen_by_name_and_pattern() -> None:
    assert chosen([], quick=False) == list(ROWS)
    assert {row.name for row in chosen([], quick=True)} < {row.name for row in ROWS}
    assert [row.name for row in chosen(["dict", "1?m-host"], quick=True)] == ["16m-host", "dict"]
    with pytest.raises(ValueError, match='"192x"'):
        chosen(["192x"], quick=False)


def test_a_name_that_is_none_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--rows", "nonsense"]) == 2
    told = capsys.readouterr().err
    assert '"nonsense"' in told and all(row.name in told for row in ROWS)


def test_the_list_is_of_all_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [row.name for row in ROWS]


@pytest.mark.parametrize("option", ["--photo", "--json", "--markdown", "--plot"])
def test_a_file_that_cannot_be_is_told_before_anything_is_measured(
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured"))
    assert main(["bench", "--rows", "dict", option, str(tmp_path / "none" / "a.png")]) == 2
    assert option in capsys.readouterr().err


# --- what is said


def test_the_best_yardstick_is_no_limit_and_not_zbus() -> None:
    made = measured(zbus=figure(3.0), gloo=figure(2.0), memcpy=figure(1.0), TLS=figure(4.0))
    assert report.best(made) == "gloo"
    assert report.best(measured(zbus=figure(3.0))) == ""


def test_a_goal_is_held_against_its_yardstick() -> None:
    row = Row("r", "R", "dict", (), (Goal("gloo", 1.5, 3.0), Goal("best", 1.0), Goal("", 2.0)))
    made = measured(row, zbus=figure(3.0), gloo=figure(1.5))
    found = [(v.found, v.is_met, v.is_guarded) for v in report.verdicts(made)]
    assert found == [(2.0, False, True), (2.0, False, True), (3.0, False, True)]
    slow = measured(row, zbus=figure(6.0), gloo=figure(1.5))
    assert [v.is_guarded for v in report.verdicts(slow)] == [False, True, True]
    assert report.verdicts(measured(row, gloo=figure(1.0))) == [], "nothing without zbus"


def test_what_is_not_there_has_no_verdict() -> None:
    assert [v.goal.against for v in report.verdicts(measured(zbus=figure(1.0)))] == []


def test_a_row_fits_a_terminal() -> None:
    made = measured(zbus=figure(0.123456), raw_socket=figure(1e-9, 100.0, 5000.0))
    made.notes.append("x" * 500)
    lines = report.lines(made)
    assert max(map(len, lines)) <= report.WIDTH
    assert "zbus" in lines[1] and "the best" in lines[2]


def test_the_last_words_name_the_rows_that_miss() -> None:
    row = Row("slow-row", "R", "dict", (), (Goal("gloo", 1.5),))
    bad = measured(row, zbus=figure(6.0), gloo=figure(2.0))
    assert "slow-row (2.0 times the goal)" in report.missed([bad])
    assert report.missed([bad]).startswith("1 row misses its goal: ")
    assert report.missed([bad, bad]).startswith("2 rows miss their goals: ")
    assert report.missed([measured(row, zbus=figure(1.0), gloo=figure(2.0))]).startswith("All")


def test_a_row_in_which_zbus_has_failed_is_not_reached() -> None:
    row = Row("r", "R", "dict", (), (Goal("gloo", 1.5, 3.0),))
    failed, skipped = measured(row, gloo=figure(2.0)), Measured(row, skipped="no photograph")
    for without in (failed, skipped):
        assert report.missed([without]) == "Without a figure of zbus: r."
    assert bench._guarded([failed]) == 1, "the guard is there to see that"
    assert bench._guarded([skipped]) == 0


def test_the_json_has_everything() -> None:
    made = report.as_json([measured(zbus=figure(2.0), raw_socket=figure(1.0))], {"gloo": "why"})
    again = json.loads(json.dumps(made))
    assert again["absent"] == {"gloo": "why"} and again["machine"]["cores"]
    (row,) = again["rows"]
    assert row["figures"]["zbus"]["samples"] == [2.0]
    assert row["goals"] == [{"against": "raw socket", "most": 1e9, "found": 2.0, "met": True}]


def test_the_table_for_the_docs_has_a_line_for_each_row() -> None:
    row = Row("r", "64 KiB", "dict", (), (Goal("gloo", 1.5), Goal("", 2.0)))
    made = [measured(row, zbus=figure(1.6), gloo=figure(0.8))]
    made += [Measured(SMALL, skipped="there is no memory")]
    assert report.markdown(made).splitlines()[2:] == [
        "| 64 KiB | 1.60 s | gloo 800 ms (2.00) | missed: 1.5 x gloo; 2.00 s |",
        "| 64 KiB by the socket | - | there is no memory | - |",
    ]


def test_the_picture_can_be_read(tmp_path: Path) -> None:
    rows = [measured(zbus=figure(0.1), memcpy=figure(0.01), gloo=figure(0.2))]
    larger = Row("larger", "", "floats:1M", (), group="socket")
    rows.append(measured(larger, zbus=figure(0.2), memcpy=figure(0.02)))
    lines = plot.lines_of(rows)
    assert [line.label for line in lines] == ["zbus, socket", "gloo", "memcpy"]
    assert lines[0].points == ((1 << 16, 655360.0), (1 << 20, 5242880.0))
    file = tmp_path / "plot.png"
    plot.draw(rows).save(file)
    with Image.open(file) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
    assert (0xC1, 0x12, 0x1F) in colours, "zbus's line"


def test_without_rows_of_sizes_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match="could be drawn"):
        plot.draw([measured(Row("r", "R", "dict", ()), zbus=figure(1.0))])


# --- values


@pytest.mark.parametrize("name", ["floats:64K", "dict", "ints:9", "tensors:3", "conditioning:2"])
def test_a_value_is_known_by_its_digest(name: str) -> None:
    with_torch, without = (values.make(name, torch) for torch in (True, False))
    assert values.digest(with_torch) == values.digest(without) == values.digest(with_torch)
    assert values.digest(with_torch) != values.digest(values.make("ints:8", False))


def test_one_byte_makes_another_digest() -> None:
    one = np.zeros(1 << 16, np.uint8)
    other = one.copy()
    other[-1] = 1
    assert values.digest(one) != values.digest(other)
    assert values.digest(memoryview(one)) == values.digest(one), "whatever holds the bytes"


def test_a_photograph_is_as_loadimage_gives_it(tmp_path: Path) -> None:
    picture = tmp_path / "photo.png"
    Image.effect_noise((8, 6), 40).convert("RGB").save(picture)
    made = values.make(f"photo:{picture}", True)
    assert made.shape == (1, 6, 8, 3)
    assert ((made * 255).round() / 255 == made).all()


def test_a_job_is_the_same_workflow_with_a_part_there() -> None:
    here, there = prompt("8x1024", 7, ""), prompt("8x1024", 7, "desk-8189")
    assert there.pop("run")["inputs"]["peer"] == "desk-8189"
    assert there["one"]["inputs"].pop("image") == ["run", 0]
    assert here["one"]["inputs"].pop("image") == ["made", 0]
    assert here == there


class _NoZBus(BaseHTTPRequestHandler):
    """ComfyUI's page, without the nodes of zbus."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"error": "no node \x1b[31m ZBusRun"}'
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_job_that_is_refused_says_by_whom_and_what_to_do() -> None:
    with HTTPServer(("127.0.0.1", 0), _NoZBus) as server, Pairs() as pairs:
        page = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            made = measure(
                chosen(["job"], quick=False)[0], pairs, Plan(1, False, None, (page, page))
            )
        finally:
            server.shutdown()
    assert not made.figures
    assert made.skipped.startswith(f"JobRefused: {page}: /prompt was answered with 400: ")
    assert made.skipped.isprintable() and "zbus installed" in made.skipped


# --- from end to end


def test_a_row_is_measured_and_nothing_is_left() -> None:
    with Pairs() as pairs:
        made = measure(SMALL, pairs, Plan(rounds=3, quick=False))
        folder = pairs.folder()
        pids = [process._process.pid for pair in pairs._made.values() for process in pair._all]
        assert not pairs.absent
    assert made.notes == [] and list(made.figures) == ["zbus", "ZeroMQ chunks", "raw socket"]
    assert all(len(f.samples) == 3 and f.median > 0 for f in made.figures.values())
    assert [v.goal.against for v in report.verdicts(made)] == ["raw socket"]
    assert len(pids) == 6 and not any(map(is_there, pids)) and not folder.exists()


def test_a_peer_that_hangs_or_dies_ends_its_way_alone() -> None:
    with Pairs() as pairs:
        pairs.start(["socket", "zmq"])
        pair = pairs.get("socket")
        assert pair is not None
        pair.prepare("floats:64K")
        pair.receiver.tell("digest", sent=False)  # nothing has come: it fails
        with pytest.raises(WayFailed, match="IndexError"):
            pair.receiver.answer()
        with pytest.raises(WayFailed, match="no answer in 0 s"):
            pair.receiver.answer(within=0.01)
        pair.receiver.kill()
        with pytest.raises(WayFailed, match="raw socket, receiver"):
            pair.pass_on("floats:64K")
        assert measure(SMALL, pairs, Plan(1, False)).figures.keys() >= {"zbus", "ZeroMQ chunks"}


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ways.Known("nothing", "sockets", "Socket", needs=("no_such_package",))
    monkeypatch.setitem(WAYS, "socket", gone)
    assert ways.missing("socket") == "no_such_package is not installed"
    with Pairs() as pairs:
        pairs._without["gloo"] = "why"
        pairs.start(["gloo"])
        assert pairs.get("gloo") is None and pairs.absent == {"gloo": "why"}
    assert issubclass(Absent, WayFailed)


def test_too_little_memory_is_told_and_nothing_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    from zbus.cli.benching.kinds import measured as module

    monkeypatch.setattr(module, "free_memory", lambda: 1 << 30)
    with Pairs() as pairs:
        for row in chosen(["2g-*", "ping*", "deaf-2g*"], quick=False):
            made = measure(row, pairs, Plan(1, False))
            assert "GiB are free" in made.skipped and not made.figures
        assert pairs._made == {}


def test_the_command_from_end_to_end(tmp_path: Path) -> None:
    """Also: the photograph, through something slow, by peers that have never met."""
    picture, found = tmp_path / "photo.png", tmp_path / "found.json"
    Image.effect_noise((64, 48), 20).convert("RGB").save(picture)
    command = [sys.executable, "-B", "-m", "zbus", "bench", "--rows", "photo-100", "-n", "1"]
    done = subprocess.run(
        [*command, "--photo", str(picture), "--json", str(found)],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(found.read_text("utf-8"))["rows"]
    assert row["notes"] == [] and {"zbus", "PNG", "raw floats"} <= set(row["figures"])


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
