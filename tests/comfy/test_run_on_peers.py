"""Run on Peers on real ComfyUIs: a part of a workflow runs elsewhere, and its values come back."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import socket
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from chains import node
from children import slowness, until
from comfyui import PACKS, ComfyUI, PromptRefused, free_port, start_all
from conftest import Pair
from hosts import make_or_skip, skip_if_expanding_needs_a_cache
from paired import away, home_of, paired
from PIL import Image
from testpack import values

MOREPACK = Path(__file__).resolve().parent / "morepack"
WRITTEN = ("input", "output", "temp")
LIVE = ("model", "conditioning live")


def at_peer(value, peer, **more):
    """A ZBusRun."""
    how = {"here": "no", "on_failure": "stop", "quality": "exact"}
    return node("ZBusRun", value=list(value), peer=peer, **how | more)


def part(*, of="part", **at):
    """Noise, and a node that tells where it ran: image ["at", 0], span ["at", 1]."""
    return {
        "noise": node("TestNoise", batch=1, height=16, width=16, channels=3, seed=7),
        "at": node("TestAt", of, value=["noise", 0], **at),
    }


def shown(value, report):
    """A digest of that output, and a report."""
    return {
        "digest": node("TestDigest", value=list(value)),
        "report": node("PreviewAny", source=list(report)),
    }


def spans_of(peer, **more):
    """A prompt that shows in ["spans"] where and when its part ran: for each machine one text."""
    at = {"text": uuid.uuid4().hex, **more.pop("at", {})}  # nowhere cached
    return {
        **part(**at),
        "run": at_peer(("at", 1), peer, **more),
        "spans": node("PreviewAny", source=["run", 0]),
        "report": node("PreviewAny", source=["run", 1]),
    }


def good(comfyui, prompt, timeout=60.0):
    entry = comfyui.run(prompt, timeout)
    assert comfyui.outcome(entry) == "success", comfyui.errors(entry)
    return entry


def failure(comfyui, prompt, timeout=60.0):
    """The error of a prompt that fails: node_id, exception_message..."""
    entry = comfyui.run(prompt, timeout)
    errors = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
    assert len(errors) == 1, entry["status"]
    return errors[0]


def digests(entry, node_id="digest"):
    return entry["outputs"][node_id]["digest"]


def texts(entry, node_id):
    return entry["outputs"][node_id]["text"]


def spans(entry, node_id="spans"):
    return [json.loads(text) for text in texts(entry, node_id)]


def ports(entry, node_id="spans"):
    return [span["port"] for span in spans(entry, node_id)]


def overlap(found):
    return max(span["began_ns"] for span in found) < min(span["ended_ns"] for span in found)


def ran(comfyui, text=""):
    """How many times a TestAt of that text has run there."""
    return comfyui.log().count(f"TestAt ran {text}")


def queued(comfyui, since):
    """Whether anything was in its queue since that mark of its events."""
    found = comfyui.events.all("status", since)
    return any(event.data["status"]["exec_info"]["queue_remaining"] for event in found)


def address(comfyui):
    return comfyui.get("/zbus/peer")["endpoints"][0]


def files(comfyui):
    found = [p for name in WRITTEN for p in (comfyui.base / name).rglob("*") if p.is_file()]
    return sorted((str(p), p.stat().st_mtime_ns) for p in found)


def png(seed, mode="RGBA"):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "png")
    return buffer.getvalue()


@contextlib.contextmanager
def serving(body):
    """A web server that answers anything with that; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def rich(comfyui_dir):
    """A ComfyUI with one node more, which knows nobody by name."""
    with ComfyUI(comfyui_dir, name="rich", packs=PACKS | {"zbus-more": MOREPACK}) as made:
        yield made


class Busy:
    """Keeps a ComfyUI busy until the block ends."""

    def __init__(self, comfyui):
        self.comfyui = comfyui

    def __enter__(self):
        prompt = {
            "make": node("TestMake", kind="int", seed=1),
            "slow": node("TestSlow", value=["make", 0], seconds=60.0),
            "digest": node("TestDigest", value=["slow", 0]),
        }
        self.prompt_id = self.comfyui.prompt(prompt)
        self.comfyui.wait_running(self.prompt_id)
        return self

    def __exit__(self, *_):
        self.comfyui.interrupt(self.prompt_id)
        self.comfyui.wait(self.prompt_id, 10)


# --- what comes back ----------------------------------------------------------------------------


def test_a_part_runs_on_the_named_peer_bit_for_bit(pair):
    local = part(only=pair.a.port) | {"digest": node("TestDigest", value=["at", 0])}
    prompt = part(only=pair.b.port) | {"run": at_peer(("at", 0), pair.b.peer)}
    prompt |= shown(("run", 0), ("run", 1))
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(good(pair.a, local))
    (report,) = texts(entry, "report")
    assert report.startswith(f"{pair.b.peer}: done in ") and "\n" not in report


@pytest.mark.parametrize("kind", [kind for kind in values.KINDS if kind not in LIVE])
def test_any_value_comes_back_as_it_is(pair, kind):
    prompt = {
        "make": node("TestMake", kind=make_or_skip(kind, *pair), seed=3),
        "at": node("TestAt", value=["make", 0], only=pair.b.port),
        "run": at_peer(("at", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
        "local": node("TestDigest", value=["make", 0]),
    }
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local")


def test_a_list_comes_back_as_a_list(pair):
    prompt = {
        "list": node("TestList", kind="image", count=3, seed=1),
        "at": node("TestAt", value=["list", 0], only=pair.b.port),
        "run": at_peer(("at", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
        "local": node("TestDigest", value=["list", 0]),
    }
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local")
    assert len(set(digests(entry))) == 3


def test_8_bit_is_what_8_bits_can_hold(pair):
    prompt = {
        "make": node("TestMakeImage", kind="image", seed=3),
        "eight": node("TestMake", kind="image 8-bit", seed=3),
        "run": at_peer(("make", 0), pair.b.peer, quality="8-bit"),
        "digest": node("TestDigest", value=["run", 0]),
        "local": node("TestDigest", value=["eight", 0]),
    }
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local")


def test_8_bit_is_for_pictures(pair):
    """A latent travels as it is, both ways."""
    prompt = {
        "make": node("TestMake", kind="latent", seed=3),
        "mark": node("ZBusHere", value=["make", 0]),
        "at": node("TestAt", value=["mark", 0], only=pair.b.port),
        "run": at_peer(("at", 0), pair.b.peer, quality="8-bit"),
        "digest": node("TestDigest", value=["run", 0]),
        "local": node("TestDigest", value=["make", 0]),
    }
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local")


@pytest.mark.parametrize("where", ["there", "here"])
@pytest.mark.parametrize("kind", LIVE)
def test_a_live_object_is_refused_by_its_name(pair, kind, where):
    prompt = {
        "make": node("TestMake", kind=kind, seed=3),
        "mark": node("ZBusHere", value=["make", 0]),
        "at": node("TestAt", value=["mark" if where == "here" else "make", 0]),
        "run": at_peer(("at", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
    }
    error = failure(pair.a, prompt)
    assert error["node_id"] == "run"
    assert "LiveObject" in error["exception_message"]
    assert "cannot travel" in error["exception_message"]
    # Neither side is stuck with it.
    prompt["make"] = node("TestMake", kind="int", seed=3)
    good(pair.a, prompt)


# --- the middle of a workflow -------------------------------------------------------------------


def middle(pair, prefix="", *, text="", seconds=0.0):
    """before (here) -> ZBusHere -> middle (there) -> ZBusRun -> after (here)."""
    here, there = pair.a.port, pair.b.port

    def n(name):
        return prefix + name

    return {
        n("1"): node("TestMake", kind="latent", seed=5),
        n("2"): node("TestAt", value=[n("1"), 0], only=here, seconds=seconds),
        n("3"): node("ZBusHere", value=[n("2"), 0]),
        n("4"): node("TestAt", value=[n("3"), 0], only=there, text=f"middle {text}."),
        n("5"): at_peer((n("4"), 0), pair.b.peer),
        n("6"): node("TestAt", value=[n("5"), 0], only=here),
        n("digest"): node("TestDigest", value=[n("6"), 0]),
        n("local"): node("TestDigest", value=[n("1"), 0]),
    }


@pytest.mark.parametrize("prefix", ["", "57:", "4.0.0.12:"])
def test_the_middle_runs_there_and_the_rest_here(pair, prefix):
    entry = good(pair.a, middle(pair, prefix))
    assert digests(entry, f"{prefix}digest") == digests(entry, f"{prefix}local")


@pytest.mark.usefixtures("keeps_results")
def test_what_is_unchanged_runs_nowhere_again(pair):
    good(pair.a, middle(pair, text="one"))
    once = ran(pair.a), ran(pair.b)
    assert ran(pair.b, "middle one.") >= 1
    since = pair.b.events.mark()
    good(pair.a, middle(pair, text="one"))
    assert (ran(pair.a), ran(pair.b)) == once
    assert not queued(pair.b, since)
    good(pair.a, middle(pair, text="two"))
    assert ran(pair.b, "middle two.") == 1


@pytest.mark.usefixtures("keeps_results")
def test_the_peer_runs_again_only_what_has_changed_in_value(pair):
    """What comes before Compute Here runs again, and gives the same: the peer has it cached."""
    good(pair.a, middle(pair, text="same"))
    before = ran(pair.a), ran(pair.b)
    since = pair.b.events.mark()
    entry = good(pair.a, middle(pair, text="same", seconds=0.01))
    assert digests(entry) == digests(entry, "local")
    assert ran(pair.a) > before[0] and queued(pair.b, since)
    assert ran(pair.b) == before[1]


def test_without_caches(make_comfyui, tmp_path):
    home = {"ZBUS_HOME": str(tmp_path / "zbus-home")}
    two = [make_comfyui(name=n, env=home, args=("--cache-none",)) for n in ("none-a", "none-b")]
    skip_if_expanding_needs_a_cache(two[0])
    start_all(*two)
    pair = Pair(*two)
    for _ in range(2):
        entry = good(pair.a, middle(pair))
        assert digests(entry) == digests(entry, "local")
    assert ran(pair.b, "middle") == 2


def test_within_a_node_that_becomes_several(pair):
    prompt = {
        "make": node("TestMake", kind="image", seed=5),
        "expand": node("TestExpand", value=["make", 0], peer=pair.b.peer, port=pair.b.port),
        "digest": node("TestDigest", value=["expand", 0]),
        "local": node("TestDigest", value=["make", 0]),
    }
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local")


def test_two_on_two_peers_work_at_the_same_time(trio):
    prompt = {}
    for name, comfyui in (("b", trio.b), ("c", trio.c)):
        prompt |= {
            f"make {name}": node("TestMake", kind="int", seed=time.time_ns() % 10**9),
            f"at {name}": node("TestAt", value=[f"make {name}", 0], only=comfyui.port, seconds=1.0),
            f"run {name}": at_peer((f"at {name}", 1), comfyui.peer),
            f"spans {name}": node("PreviewAny", source=[f"run {name}", 0]),
        }
    entry = good(trio.a, prompt)
    assert overlap(spans(entry, "spans b") + spans(entry, "spans c"))


def test_one_after_the_other(trio):
    prompt = {
        "make": node("TestMake", kind="conditioning", seed=2),
        "at b": node("TestAt", value=["make", 0], only=trio.b.port),
        "run b": at_peer(("at b", 0), trio.b.peer),
        "at c": node("TestAt", value=["run b", 0], only=trio.c.port),
        "run c": at_peer(("at c", 0), trio.c.peer),
        "digest": node("TestDigest", value=["run c", 0]),
        "local": node("TestDigest", value=["make", 0]),
    }
    entry = good(trio.a, prompt)
    assert digests(entry) == digests(entry, "local")


def test_a_bypassed_node_is_harmless(pair):
    """The page then links what follows to what comes before; the two others stay."""
    prompt = {
        "vary": node("ZBusVary", seed=7, step=1),
        "noise": node("TestNoise", batch=1, height=16, width=16, channels=3, seed=["vary", 0]),
        "here": node("ZBusHere", value=["noise", 0]),
        "digest": node("TestDigest", value=["here", 0]),
        "index": node("PreviewAny", source=["vary", 1]),
    }
    entry = good(pair.a, prompt)
    assert digests(entry) == [values.digest(values.noise((1, 16, 16, 3), 7))]
    assert texts(entry, "index") == ["0"]


def test_compute_here_passes_a_list_on(pair):
    prompt = {
        "list": node("TestList", kind="mask", count=3, seed=1),
        "here": node("ZBusHere", value=["list", 0]),
        "at": node("TestAt", value=["here", 0], only=pair.b.port),
        "run": at_peer(("at", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
        "plain": node("TestDigest", value=["here", 0]),
        "local": node("TestDigest", value=["list", 0]),
    }
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local") == digests(entry, "plain")
    assert len(digests(entry)) == 3


# --- which peer ---------------------------------------------------------------------------------


def test_any_free_is_the_one_that_is_idle(trio):
    for busy, idle in ((trio.b, trio.c), (trio.c, trio.b)):
        with Busy(busy):
            entry = good(trio.a, spans_of("any free"), 20)
        assert ports(entry) == [idle.port]


def test_two_that_ask_for_any_free_at_once_get_two(trio):
    prompt = {}
    for name in "12":
        more = spans_of("any free", at={"seconds": 2.0})  # still at it when the other one asks
        more["run"]["inputs"]["value"] = [f"at {name}", 1]
        more["at"]["inputs"]["value"] = [f"noise {name}", 0]
        more["spans"]["inputs"]["source"] = [f"run {name}", 0]
        del more["report"]
        prompt |= {f"{i} {name}": made for i, made in more.items()}
    entry = good(trio.a, prompt)
    found = {*ports(entry, "spans 1"), *ports(entry, "spans 2")}
    assert found == {trio.b.port, trio.c.port}


def test_any_free_leaves_a_queue_where_another_becomes_idle(trio):
    with Busy(trio.b), contextlib.ExitStack() as busier:
        busier.enter_context(Busy(trio.c))
        make = node("TestMake", kind="int", seed=1)
        behind = trio.c.prompt({"a": make, "b": node("TestDigest", value=["a", 0])})
        since = trio.a.events.mark()
        prompt_id = trio.a.prompt(spans_of("any free"))
        trio.a.events.wait_text(f"queued on {trio.b.peer}", "run", since=since)
        busier.close()
        trio.c.wait(behind, 10)
        entry = trio.a.wait(prompt_id, 20)
        assert trio.b.queue()[1] == [], "it does not wait there as well"
    assert ports(entry) == [trio.c.port]
    assert f"taken back from {trio.b.peer}, where it waited" in texts(entry, "report")[0]


def test_names_addresses_and_urls(trio):
    b, c = trio.b, trio.c
    by_name = [x.port for x in sorted((b, c), key=lambda x: x.peer)]
    for peer, expected in {
        "all": by_name,
        "ALL": by_name,
        f"{c.peer}, {b.peer}": [c.port, b.port],
        f"{b.peer},{b.url},{address(b)}": [b.port],
        address(c): [c.port],
        b.url: [b.port],
        f"{c.url}/": [c.port],
        c.peer.upper(): [c.port],
        "any free": None,
    }.items():
        found = ports(good(trio.a, spans_of(peer)))
        assert found == expected if expected else set(found) < set(by_name), peer


def test_a_page_that_never_answers_can_be_cancelled(pair):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        since = pair.a.events.mark()
        prompt_id = pair.a.prompt(spans_of(url))
        with silent.accept()[0], silent.accept()[0]:  # it has looked, then asked, and waits
            text = "asking who that is (no answer for 2 s)"
            pair.a.events.wait_text(text, "run", since=since)
            started = time.monotonic()
            pair.a.interrupt()
            entry = pair.a.wait(prompt_id, 10)
            assert time.monotonic() - started < 1.5 * slowness()
    assert pair.a.outcome(entry) == "interrupted"


def test_an_unknown_name_is_told_with_the_known_ones(trio):
    error = failure(trio.a, spans_of("no-such-peer"))
    assert error["node_id"] == "run"
    assert "no peer named 'no-such-peer'" in error["exception_message"]
    assert trio.b.peer in error["exception_message"]
    assert trio.c.peer in error["exception_message"]

    assert trio.a.peer not in error["exception_message"]  # that would be no help
    assert 'or set here to "only here"' in error["exception_message"]


@pytest.mark.parametrize(
    ("peer", "here", "others"),
    [
        ("NAME", "only here", 0),
        ("no-such-peer", "only here", 0),
        ("NAME", "also run here", 1),
        # as in workflows from before there was "only here"
        ("this computer", "no", 0),
        ("NAME, This computer", "no", 1),
    ],
)
def test_this_computer(pair, peer, here, others):
    """Alone it is as if the node were not there; with others it takes part."""
    took = good(pair.a, spans_of(peer.replace("NAME", pair.b.peer), here=here))
    ports = [json.loads(text)["port"] for text in texts(took, "spans")]
    assert ports == [pair.a.port, pair.b.port][: 1 + others]
    lines = texts(took, "report")[0].splitlines()
    assert lines[0].startswith("this computer: done in")
    assert len(lines) == len(ports)


@pytest.mark.parametrize(
    ("node_id", "word"), [("ZBusVary", "seed"), ("ZBusRun", "remote"), ("ZBusHere", "local")]
)
def test_a_node_is_found_by_what_it_is_for(pair, node_id, word):
    told = pair.a.object_info(node_id)[node_id]
    if "search_aliases" not in told:
        pytest.skip("this ComfyUI's page searches in names alone")
    assert word in told["search_aliases"]


@pytest.mark.parametrize("name", ["peer", "url", "address"])
def test_itself_is_no_peer(pair, name):
    own = {"peer": pair.a.peer, "url": pair.a.url, "address": address(pair.a)}[name]
    error = failure(pair.a, spans_of(own))
    assert error["node_id"] == "run"
    assert "that is this very ComfyUI" in error["exception_message"], error["exception_message"]


def test_a_comfyui_without_zbus_and_a_page_that_is_none(pair, make_comfyui):
    bare = make_comfyui(name="bare", packs={}).start()
    error = failure(pair.a, spans_of(bare.url))
    assert error["node_id"] == "run"
    assert "no zbus there" in error["exception_message"]
    assert "Install zbus there" in error["exception_message"]
    nobody = f"http://127.0.0.1:{free_port()}"
    error = failure(pair.a, spans_of(nobody))
    assert "connection refused" in error["exception_message"], error["exception_message"]
    assert nobody in error["exception_message"]
    assert "Install" not in error["exception_message"]


def test_a_tunnelled_page_whose_listener_is_not(pair):
    """Both machines use ComfyUI's own port: what the card tells leads back to this one."""
    key = pair.a.get("/zbus/peer")["key"]  # a home folder that two machines share
    card = {"id": "0" * 32, "name": "far", "endpoints": [address(pair.a)], "key": key}
    with serving(json.dumps(card).encode()) as url:
        error = failure(pair.a, spans_of(url))
    assert "this very ComfyUI answers there, and not far" in error["exception_message"]
    assert "ssh -N -L 127.0.0.1:" in error["exception_message"]


def test_where_no_other_runs(rich):
    for peer in ("any free", "all"):
        error = failure(rich, spans_of(peer))
        assert "no other ComfyUI with zbus runs on this computer" in error["exception_message"]


def test_nothing_wired(pair):
    prompt = spans_of(pair.b.peer)
    prompt["run"]["inputs"]["value"] = 5
    error = failure(pair.a, prompt)
    assert "nothing is wired to value" in error["exception_message"]


# --- several machines ---------------------------------------------------------------------------


def varied(peer, here, **noise):
    return {
        "vary": node("ZBusVary", seed=100, step=16),
        "noise": node(
            "TestNoise",
            **{"batch": 1, "height": 16, "width": 16, "channels": 3, "seed": ["vary", 0]} | noise,
        ),
        "at": node("TestAt", value=["noise", 0]),
        "run": at_peer(("at", 0), peer, here=here),
        **shown(("run", 0), ("run", 1)),
    }


def test_three_machines_one_batch_in_order(trio):
    """This machine first, then in the order of the names; each with its own seed."""
    import torch

    prompt = varied(f"{trio.c.peer},{trio.b.peer}", "also run here")
    before = [ran(c) for c in trio]
    entry = good(trio.a, prompt)
    pictures = [values.noise((1, 16, 16, 3), seed) for seed in (100, 116, 132)]
    assert digests(entry) == [values.digest(torch.cat(pictures))]
    assert [ran(c) - n for c, n in zip(trio, before, strict=True)] == [1, 1, 1]
    report = texts(entry, "report")[0].splitlines()
    starts = ["this computer", trio.c.peer, trio.b.peer]
    assert [line.split(": done in ")[0] for line in report] == starts


def test_two_others_without_this_one_begin_with_the_first_seed(trio):
    import torch

    entry = good(trio.a, varied(f"{trio.b.peer},{trio.c.peer}", "no"))
    pictures = [values.noise((1, 16, 16, 3), seed) for seed in (100, 116)]
    assert digests(entry) == [values.digest(torch.cat(pictures))]


def test_mixed_sizes_are_a_list(trio):
    prompt = varied(f"{trio.b.peer},{trio.c.peer}", "also run here", height=["vary", 0], seed=3)
    entry = good(trio.a, prompt)
    pictures = [values.noise((1, height, 16, 3), 3) for height in (100, 116, 132)]
    assert digests(entry) == [values.digest(picture) for picture in pictures]


@pytest.mark.parametrize("needs", ["nothing", "a value from here"])
def test_three_machines_work_at_the_same_time(trio, needs):
    prompt = spans_of("all", here="also run here", at={"seconds": 1.5})
    if needs != "nothing":  # then this machine's own share could begin long before the others'
        prompt["text"] = node("PrimitiveString", value="")
        prompt["slow"] = node("TestSlow", value=["text", 0], seconds=0.3)
        prompt["mark"] = node("ZBusHere", value=["slow", 0])
        both = {"string_a": ["at", 1], "string_b": ["mark", 0], "delimiter": ""}
        prompt["both"] = node("StringConcatenate", **both)
        prompt["run"]["inputs"]["value"] = ["both", 0]
    entry = good(trio.a, prompt)
    found = spans(entry)
    assert {span["port"] for span in found} == {c.port for c in trio}
    assert found[0]["port"] == trio.a.port
    assert overlap(found), found
    first, *others = texts(entry, "report")[0].splitlines()
    took = [float(line.split(": done in ")[1].split(" s")[0]) for line in (first, *others)]
    assert first.startswith("this computer: ") and min(took) >= 1.5, took


# --- failures -----------------------------------------------------------------------------------


def test_stop_is_the_first_failure(trio):
    prompt = spans_of(f"{trio.b.peer},{trio.c.peer}", at={"never": trio.b.port})
    error = failure(trio.a, prompt)
    assert error["node_id"] == "run" and error["node_type"] == "ZBusRun"
    assert f"this must not run on port {trio.b.port}" in error["exception_message"]


def test_stop_cancels_the_others(trio):
    prompt = spans_of(f"{trio.b.peer},{trio.c.peer}", at={"never": trio.b.port, "seconds": 5.0})
    prompt["slow"] = node("TestSlow", value=["at", 1], seconds=60.0)
    prompt["run"]["inputs"]["value"] = ["slow", 0]
    failure(trio.a, prompt, 20)
    until(lambda: trio.c.queue() == ([], []), 15, "the other peer stops what nobody wants")


def test_a_failure_here_stops_the_others(trio):
    prompt = spans_of("all", here="also run here", at={"never": trio.a.port})
    prompt["slow"] = node("TestSlow", value=["at", 1], seconds=60.0)
    prompt["run"]["inputs"]["value"] = ["slow", 0]
    error = failure(trio.a, prompt, 20)
    assert error["node_id"] == "at"
    until(lambda: all(c.queue() == ([], []) for c in trio), 10, "they stop what nobody wants")


@pytest.mark.parametrize("first", ["fails", "is not there"])
def test_try_another(trio, first):
    with away(home_of(trio.a), f"127.0.0.1:{free_port()}") as absent:
        bad = trio.b.peer if first == "fails" else absent
        prompt = spans_of(bad, on_failure="try another", at={"never": trio.b.port, "text": first})
        entry = good(trio.a, prompt)
    assert ports(entry) == [trio.c.port]
    report = texts(entry, "report")[0].splitlines()
    assert report[0].startswith("failed: ") and report[-1].startswith(f"{trio.c.peer}: done in ")
    assert bad in report[0]


def test_try_another_ends_when_all_have_failed(trio):
    prompt = spans_of(trio.b.peer, on_failure="try another", at={"only": trio.a.port})
    error = failure(trio.a, prompt)
    assert "this must not run on port" in error["exception_message"]


@pytest.mark.parametrize("first", ["fails", "is not there"])
def test_return_the_rest(trio, first):
    with away(home_of(trio.a), f"127.0.0.1:{free_port()}") as absent:
        bad = trio.b.peer if first == "fails" else absent
        prompt = spans_of(
            f"{bad},{trio.c.peer}",
            on_failure="return the rest",
            at={"never": trio.b.port, "text": f"rest {first}"},
        )
        entry = good(trio.a, prompt)
    assert ports(entry) == [trio.c.port]
    report = texts(entry, "report")[0]
    assert report.startswith("failed: ") and bad in report
    assert f"{trio.c.peer}: done in " in report


def test_the_rest_may_be_this_machine_alone(trio):
    prompt = spans_of(
        trio.b.peer,
        here="also run here",
        on_failure="return the rest",
        at={"never": trio.b.port, "text": "alone"},
    )
    entry = good(trio.a, prompt)
    assert ports(entry) == [trio.a.port]
    assert "failed: " in texts(entry, "report")[0]


def test_the_rest_of_none_is_an_error(trio):
    prompt = spans_of(
        f"{trio.b.peer},{trio.c.peer}", on_failure="return the rest", at={"only": trio.a.port}
    )
    error = failure(trio.a, prompt)
    assert "this must not run on port" in error["exception_message"]


def test_what_a_node_raises_there(pair):
    prompt = part()
    prompt["raise"] = node("TestRaise", "My trouble", value=["at", 0], text="no such thing")
    prompt |= {"run": at_peer(("raise", 0), pair.b.peer)} | shown(("run", 0), ("run", 1))
    error = failure(pair.a, prompt)
    message = error["exception_message"]
    assert error["node_id"] == "run"
    for words in (pair.b.peer, "My trouble #raise", "TestRaise", "ValueError", "no such thing"):
        assert words in message, message
    assert "raise ValueError(text)" in pair.a.log()  # the traceback of the other side


def test_everything_that_is_wrong_is_told_before_anything_runs(pair):
    prompt = {
        "text": node("TestMake", kind="text", seed=1),
        "before": node("TestAt", value=["text", 0], text="never at all"),
        "mark": node("ZBusHere", value=["before", 0]),
        "ckpt": node("CheckpointLoaderSimple", "My model", ckpt_name="nowhere.safetensors"),
        "lost": node("TestAtt", "My node", value=["mark", 0]),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "positive": node("CLIPTextEncode", text="x", clip=["ckpt", 1]),
        "sampler": node(
            "KSampler",
            "My sampler",
            **{"model": ["ckpt", 0], "positive": ["positive", 0], "negative": ["lost", 0]},
            **{"latent_image": ["latent", 0], "seed": 1, "steps": 1, "cfg": 1.0},
            **{"sampler_name": "eulerr", "scheduler": "normal", "denoise": 1.0},
        ),
        "run": at_peer(("sampler", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
    }
    (pair.b.base / "models/checkpoints").mkdir(exist_ok=True)
    (pair.b.base / "models/checkpoints/nowhere_v2.safetensors").touch()
    since, history = pair.b.events.mark(), pair.b.get("/history")
    error = failure(pair.a, prompt)
    assert error["node_id"] == "run"
    lines = error["exception_message"].splitlines()

    def line(*words):
        found = [line for line in lines if all(word in line for word in words)]
        assert len(found) == 1, (words, lines)

    line("CheckpointLoaderSimple", "My model", "#ckpt", "ckpt_name", "nowhere.safetensors",
         "nowhere_v2.safetensors")  # fmt: skip
    line("TestAtt", "My node", "#lost", "not installed", "TestAt,")
    line("KSampler", "My sampler", "#sampler", "sampler_name", "eulerr", '"euler"')
    assert pair.b.peer in error["exception_message"]
    assert not queued(pair.b, since) and pair.b.get("/history") == history
    assert ran(pair.a, "never at all") == 0


# --- files and models ---------------------------------------------------------------------------


@pytest.mark.parametrize("same_name", [False, True])
def test_a_picture_that_only_this_side_has(pair, same_name):
    """Also where the peer has another one under the same name."""
    name = f"picture-{same_name}.png"
    pair.a.put_input(png(1), name)
    if same_name:
        pair.b.put_input(png(2), name)
    prompt = {
        "load": node("LoadImage", image=name),
        "mask": node("LoadImageMask", image=name, channel="green"),
        "at": node("TestAt", value=["load", 0], only=pair.b.port),
        "at mask": node("TestAt", value=["mask", 0], only=pair.b.port),
        "run": at_peer(("at", 0), pair.b.peer),
        "run mask": at_peer(("at mask", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
        "digest mask": node("TestDigest", value=["run mask", 0]),
        "local": node("TestDigest", value=["load", 0]),
        "local mask": node("TestDigest", value=["mask", 0]),
    }
    before = files(pair.b)
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local")
    assert digests(entry, "digest mask") == digests(entry, "local mask")
    assert files(pair.b) == before


def test_a_picture_of_the_output_folder(pair):
    """Each side has numbered its pictures from 1 on."""
    for comfyui, seed in zip(pair, (1, 2), strict=True):
        (comfyui.base / "output/ComfyUI_00001_.png").write_bytes(png(seed))
    prompt = {
        "load": node("LoadImageOutput", image="ComfyUI_00001_.png [output]"),
        "again": node("LoadImage", image="ComfyUI_00001_.png [output]"),
        "at": node("TestAt", value=["load", 0], only=pair.b.port),
        "both": node("ImageBatch", image1=["at", 0], image2=["again", 0]),
        "run": at_peer(("both", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
        "here": node("ImageBatch", image1=["load", 0], image2=["again", 0]),
        "local": node("TestDigest", value=["here", 0]),
    }
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local")


def test_a_changed_picture_of_the_same_name(pair):
    prompt = {
        "load": node("LoadImage", image="changes.png"),
        "at": node("TestAt", value=["load", 0], only=pair.b.port),
        "run": at_peer(("at", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
    }
    found = []
    for seed in (1, 2):
        pair.a.put_input(png(seed), "changes.png")
        found += digests(good(pair.a, prompt))
    assert found[0] != found[1]


def test_a_latent_file_that_only_this_side_has(pair):
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(1).random((1, 4, 8, 8), dtype=np.float32))
    pair.a.put_input(buffer.getvalue(), "mine.npy")
    prompt = {
        "load": node("LoadLatentNumpy", latent="mine.npy"),
        "at": node("TestAt", value=["load", 0], only=pair.b.port),
        "run": at_peer(("at", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
        "local": node("TestDigest", value=["load", 0]),
    }
    entry = good(pair.a, prompt)
    assert digests(entry) == digests(entry, "local")


def test_a_picture_that_only_the_peer_has(pair):
    pair.b.put_input(png(5), "theirs.png")
    prompt = {
        "load": node("LoadImage", image="theirs.png"),
        "run": at_peer(("load", 0), pair.b.peer),
        "digest": node("TestDigest", value=["run", 0]),
    }
    there = {"load": prompt["load"], "digest": node("TestDigest", value=["load", 0])}
    assert digests(good(pair.a, prompt)) == digests(good(pair.b, there))


def test_a_model_that_only_the_peer_has(pair):
    (pair.b.base / "models/checkpoints").mkdir(exist_ok=True)
    (pair.b.base / "models/checkpoints/only-there.safetensors").touch()
    prompt = {
        "model": node("TestModel", "Mine", name="only-there.safetensors"),
        "at": node("TestAt", value=["model", 0], only=pair.b.port),
        "run": at_peer(("at", 0), pair.b.peer),
        "show": node("PreviewAny", source=["run", 0]),
    }
    assert texts(good(pair.a, prompt), "show") == ["only-there.safetensors"]
    prompt["run"] = at_peer(("at", 0), pair.b.peer, here="also run here")
    with pytest.raises(PromptRefused, match=r"only-there\.safetensors"):
        pair.a.prompt(prompt)


def test_a_node_that_only_the_peer_has(pair, rich):
    prompt = {
        "text": node("StringConcatenate", string_a="a", string_b="b", delimiter="-"),
        "more": node("TestMore", text=["text", 0]),
        "at": node("TestAt", value=["more", 0], only=rich.port),
        "run": at_peer(("at", 0), rich.url),
        "show": node("PreviewAny", source=["run", 0]),
    }
    with pytest.raises(Exception, match="not paired with"):
        good(pair.a, prompt)
    with paired(home_of(pair.a), home_of(rich)):
        assert texts(good(pair.a, prompt), "show") == ["more a-b"]
    prompt["run"] = at_peer(("at", 0), rich.url, here="also run here")
    with pytest.raises(PromptRefused, match="TestMore"):
        pair.a.prompt(prompt)


# --- what the user sees -------------------------------------------------------------------------


def test_the_place_the_step_and_the_preview_are_shown(pair):
    prompt = part()
    prompt["slow"] = node(
        "TestSlow", "My sampler", value=["at", 0], seconds=2.0, step=0.1, preview=True
    )
    prompt |= {"run": at_peer(("slow", 0), pair.b.peer)} | shown(("run", 0), ("run", 1))
    events, since = pair.a.events, pair.a.events.mark()
    with Busy(pair.b):
        prompt_id = pair.a.prompt(prompt)
        events.wait_text(f"queued on {pair.b.peer}, next: TestSlow #slow", "run", since=since)
    events.wait_text("My sampler #slow", "run", since=since)

    def step(event):
        nodes = event.data["nodes"].values() if event.kind == "progress_state" else ()
        shown = [at for at in nodes if at["display_node_id"] == "run"]
        return any(at["max"] == 20 and 0 < at["value"] < 20 for at in shown)

    events.wait_for(step, since=since)
    preview = events.wait_for(lambda e: e.kind == "preview", since=since)
    assert preview.data["node_id"] == "run" and preview.data["prompt_id"] == prompt_id
    with Image.open(io.BytesIO(preview.image)) as picture:
        assert picture.size == (64, 64)
        red, green, blue = picture.convert("RGB").getpixel((32, 32))
        assert red > 200 and green < 60 and blue < 60
    entry = pair.a.wait(prompt_id, 20)
    assert pair.a.outcome(entry) == "success"
    assert events.texts("run", since)[-1] == texts(entry, "report")[0]


def test_what_the_prompt_waits_for_that_is_before_ours(trio):
    """A job of C waits in A's queue, where a prompt waits for a job on B."""
    events, since = trio.c.events, trio.c.events.mark()
    with Busy(trio.b):
        first = trio.a.prompt(spans_of(trio.b.peer))
        trio.a.wait_running(first)
        second = trio.c.prompt(spans_of(trio.a.peer))
        words = f"queued on {trio.a.peer}, next: waits in ZBusRun #run"
        events.wait_text(words, "run", since=since)
    assert trio.a.outcome(trio.a.wait(first, 20)) == "success"
    assert trio.c.outcome(trio.c.wait(second, 20)) == "success"


def test_where_each_of_several_is_shown_at_once(trio):
    events, since = trio.a.events, trio.a.events.mark()
    with Busy(trio.b), Busy(trio.c):
        prompt_id = trio.a.prompt(spans_of(f"{trio.b.peer},{trio.c.peer}"))
        lines = [f"queued on {c.peer}, next: TestSlow #slow" for c in (trio.b, trio.c)]

        def both(event):
            is_text = event.kind == "text" and event.data["node"] == "run"
            # Each line may go on with how far that one is.
            said = event.data["text"].splitlines() if is_text else []
            return all(any(one.startswith(line) for one in said) for line in lines)

        events.wait_for(both, since=since)
        trio.a.interrupt(prompt_id)
        entry = trio.a.wait(prompt_id, 10)
    assert trio.a.outcome(entry) == "interrupted"
    assert events.texts("run", since)[-1] == "cancelled"


def test_within_a_node_that_becomes_several_the_page_knows_which(pair):
    prompt = {
        "make": node("TestMake", kind="int", seed=5),
        "expand": node("TestExpand", value=["make", 0], peer=pair.b.peer, port=pair.b.port),
        "digest": node("TestDigest", value=["expand", 0]),
    }
    events, since = pair.a.events, pair.a.events.mark()
    good(pair.a, prompt)
    assert events.wait_text(f"{pair.b.peer}: done in", "expand", since=since)
