"""Two ComfyUIs of two users pair by the routes for their pages, while they run."""

from __future__ import annotations

import http.client
import json

import pytest
from children import until
from comfyui import ComfyUI, free_port, start_all
from paired import home_of
from test_run_on_peers import failure, good, ports, spans_of

from zbus.keys import fingerprint
from zbus.trust import EXCHANGE, JOBS, Trust

PAGE = "/zbus/pair"
CLOUD, DESK = "cloud", "desk"


@pytest.fixture(scope="module")
def ends(comfyui_dir, tmp_path_factory):
    """Strangers to each other, that log all they can; any page may ask the second for anything
    that ComfyUI itself answers."""
    folder = tmp_path_factory.mktemp("pages")
    made = [
        ComfyUI(
            comfyui_dir,
            name=f"page-{name}",
            base=folder / f"base-{name}",  # the log is read when they have ended
            env={"ZBUS_HOME": str(folder / name)},
            args=("--verbose", "DEBUG", *more),
        )
        for name, more in (("a", ()), ("b", ("--enable-cors-header", "*")))
    ]
    try:
        start_all(*made)
        yield made
    finally:
        for comfyui in made:
            comfyui.kill()


def trust_of(comfyui):
    return Trust(home_of(comfyui))


def ask(comfyui, method, path, body=b"", **headers):
    """A request with those headers: status, answer."""
    link = http.client.HTTPConnection("127.0.0.1", comfyui.port, timeout=20)
    try:
        link.request(method, path, body, headers)
        reply = link.getresponse()
        return reply.status, json.loads(reply.read() or b"{}")
    finally:
        link.close()


def accepted(comfyui):
    """Its invitation, once the other's word has come that it knows."""
    until(lambda: comfyui.get(PAGE)["invitation"]["state"] != "waiting", 20, "an answer")
    invitation = comfyui.get(PAGE)["invitation"]
    assert (invitation["state"], invitation["confirmed"]) == ("paired", True), invitation
    return invitation


def test_they_pair_run_a_job_and_part(ends):
    a, b = ends
    assert a.get(PAGE)["principals"] == b.get(PAGE)["principals"] == []
    token = b.post(f"{PAGE}/invite", {"name": DESK})["token"]
    assert b.get(PAGE)["invitation"]["state"] == "waiting"
    cloud = a.post(f"{PAGE}/accept", {"token": token, "name": CLOUD})["principal"]
    desk = accepted(b)["principal"]
    assert (cloud["name"], cloud["permissions"]) == (CLOUD, [EXCHANGE])
    assert (desk["name"], desk["permissions"]) == (DESK, [EXCHANGE, JOBS])
    assert cloud["fingerprint"] == fingerprint(trust_of(b).keys.public)
    assert desk["fingerprint"] == fingerprint(trust_of(a).keys.public)

    assert ports(good(a, spans_of(CLOUD))) == [b.port], "at once, without a restart"
    b.post(f"{PAGE}/permit", {"name": DESK, "permissions": [EXCHANGE]})
    assert "zbus-pair permit" in failure(a, spans_of(CLOUD))["exception_message"]
    b.post(f"{PAGE}/permit", {"name": DESK, "permissions": [EXCHANGE, JOBS]})
    assert ports(good(a, spans_of(CLOUD))) == [b.port]

    assert b.post(f"{PAGE}/forget", {"name": DESK})["principals"] == []
    assert "not paired" in failure(a, spans_of(CLOUD))["exception_message"]
    assert a.post(f"{PAGE}/accept", {"token": token})["error"]["class"] == "PairingFailed"
    a.post(f"{PAGE}/forget", {"name": CLOUD})
    assert f"no peer named '{CLOUD}'" in failure(a, spans_of(CLOUD))["exception_message"]

    for comfyui in ends:
        log = comfyui.log().lower()
        assert "zbus" in log
        assert token not in log and token.removeprefix("zbus-") not in log


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_no_other_page_may(ends, prefix):
    _, b = ends
    path, lan, as_json = prefix + PAGE, b'{"host": "on"}', {"Content-Type": "application/json"}
    elsewhere = {"Origin": "https://attacker.example"}
    for comfyui in ends:
        assert ask(comfyui, "POST", f"{path}/lan", lan, **as_json, **elsewhere)[0] == 403
        assert ask(comfyui, "GET", path, **elsewhere)[0] == 403
        refusals = [
            ask(comfyui, "POST", f"{path}/lan", lan, **{"Content-Type": "text/plain"}),
            ask(comfyui, "POST", f"{path}/lan", lan, **as_json, **{"X-Real-IP": "127.0.0.1"}),
            ask(comfyui, "GET", path, Host="attacker.example"),
        ]
        for status, answer in refusals:
            assert (status, answer["error"]["class"]) == (403, "UseTerminal")
        assert ask(comfyui, "GET", path, Origin=comfyui.url)[1]["lan"] == ""
    # ComfyUI would let it pass there.
    assert ask(b, "POST", f"{path}/lan", lan, **as_json, **elsewhere)[1]["error"]


def test_with_several_users_only_the_terminal(make_comfyui, tmp_path):
    home = tmp_path / "several"
    comfyui = make_comfyui(
        name="several", args=("--multi-user",), env={"ZBUS_HOME": str(home)}
    ).start()
    refused = {"error": {"class": "UseTerminal", "text": comfyui.get(PAGE)["error"]["text"]}}
    assert "zbus-pair" in refused["error"]["text"]
    assert comfyui.post(f"{PAGE}/invite", {}) == refused
    assert comfyui.post(f"{PAGE}/lan", {"host": "on"}) == refused
    assert Trust(home).lan == ""


def test_an_invitation_ends_with_comfyui(ends):
    """The last one: it ends the first of them."""
    a, _ = ends
    made = a.post(f"{PAGE}/invite", {"at": f"192.0.2.1:{free_port()}"})
    assert made["lan"] == "0.0.0.0" and made["token"], made
    before = len(a.log())  # what its prompts said in failing
    a.stop(60)
    assert a.process.returncode == 0, "by itself"
    assert trust_of(a).lan == "", "opened for that invitation alone"
    assert "Traceback" not in a.log()[before:]
