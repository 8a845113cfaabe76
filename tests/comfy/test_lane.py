"""Two ComfyUIs between which only HTTP passes: a real nginx with TLS, a login and a path stands
before one of them, and the other knows that address alone."""

from __future__ import annotations

import contextlib

import pytest
from chains import jumper, node, own, run_both
from comfyui import ComfyUI, start_all
from conftest import Pair
from paired import home_of, paired
from test_run_on_peers import failure, good, part, ports, shown, spans_of
from webproxy import PASSWORD, USER, make_certificate, nginx

CLOUD, HERE = "cloud", "here"


class Ends:
    """`a` dials `b` through nginx, which `up` starts and `down` ends."""

    def __init__(self, a, b, folder, certificate):
        self.a, self.b = a, b
        self._folder, self._certificate = folder, certificate
        self._port = 0
        self._proxy = contextlib.ExitStack()
        self.up()

    def up(self):
        running = nginx(self._folder, self.b.port, self._certificate, port=self._port)
        host = self._proxy.enter_context(running)
        self._port = int(host.rpartition(":")[2])
        self.url = f"https://{USER}:{PASSWORD}@{host}/comfy/"

    def down(self):
        self._proxy.close()


@pytest.fixture(scope="module")
def ends(comfyui_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxied")
    certificate = make_certificate(folder)
    made = [
        ComfyUI(
            comfyui_dir,
            name=name,
            env={"ZBUS_HOME": str(folder / name), "SSL_CERT_FILE": str(certificate)},
        )
        for name in ("lane-a", "lane-b")
    ]
    try:
        start_all(*made)
        assert all(comfyui.events is not None for comfyui in made)
        found = Ends(*made, folder, certificate)
        yield found
        found.down()
        for comfyui in made:
            assert PASSWORD not in comfyui.log(), comfyui.name
    finally:
        for comfyui in made:
            comfyui.kill()


@pytest.fixture
def pair(ends):
    """The two, paired; `a` may do everything at `b`."""
    homes = home_of(ends.a), home_of(ends.b)
    with paired(*homes, name=CLOUD, addresses=(ends.url,)):
        yield Pair(ends.a, ends.b)


def test_a_job_runs_behind_the_proxy(pair):
    assert ports(good(pair.a, spans_of(CLOUD))) == [pair.b.port]


def test_192_mib_arrive_behind_the_proxy(pair):
    here, there = own(CLOUD), own(HERE)
    noise = node("TestNoise", batch=4, height=2048, width=2048, channels=3, seed=3)
    made = here.add(noise)
    passed = here.digest(here.step("ZBusSend", value=[made, 0], quality="exact"))
    got = there.digest(there.step("ZBusReceive", expect="image", timeout=60))
    sent, received = run_both(pair.a, here.prompt, pair.b, there.prompt, 120)
    assert pair.b.ui(received, got, "digest") == pair.a.ui(sent, passed, "digest")


def test_jumpers_nodes_meet_through_the_proxy(pair):
    here, there = jumper(CLOUD, "Client"), jumper(HERE, "Server")
    here.step("Send String", string="through")
    got = there.step("Receive String")
    seen = there.add(node("PreviewAny", source=[got, 0]))
    _, received = run_both(pair.a, here.end(), pair.b, there.end())
    assert pair.b.ui(received, seen, "text") == "through"


def test_the_proxy_may_go_and_come_back_in_mid_job(ends, pair):
    prompt = part()
    prompt["slow"] = node("TestSlow", "Slow", value=["at", 0], seconds=5.0, step=0.1)
    prompt["run"] = node(
        "ZBusRun", value=["slow", 0], peer=CLOUD, here="no", on_failure="stop", quality="exact"
    )
    prompt |= shown(("run", 0), ("run", 1))
    since = pair.a.events.mark()
    prompt_id = pair.a.prompt(prompt)
    pair.a.events.wait_text("Slow #slow", "run", since=since)
    ends.down()
    pair.a.events.wait_text(" lost ", "run", since=since)
    ends.up()
    entry = pair.a.wait(prompt_id, 60)
    assert pair.a.outcome(entry) == "success", pair.a.errors(entry)


def test_who_is_not_paired_is_told_so(ends):
    error = failure(ends.a, spans_of(ends.url))["exception_message"]
    assert "not paired" in error
    assert PASSWORD not in error
