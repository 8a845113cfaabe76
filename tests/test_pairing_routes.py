"""Pairing by the page: the routes on an aiohttp server of their own, without a ComfyUI."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from children import until
from website import load

from zbus import machine
from zbus.__main__ import main
from zbus.address import Address
from zbus.keys import fingerprint, generate
from zbus.pairing import reach
from zbus.pairing.tokens import Token
from zbus.trust import EXCHANGE, JOBS, Trust

PATIENCE = 20.0
HOMES = ("desk", "pod")


pairing, own_browser = load("page.pairing"), load("page.own_browser")
VERBS = tuple(pairing.VERBS)
# What each verb takes, so that only the own_browser can refuse it.
GOOD: dict[str, dict[str, Any]] = {
    "invite": {},
    "cancel": {},
    "accept": {"token": "zbus-aaaa"},
    "rename": {"name": "friend", "new": "other"},
    "move": {"name": "friend", "addresses": ["192.0.2.9:18188"]},
    "permit": {"name": "friend", "permissions": []},
    "forget": {"name": "friend"},
    "lan": {"host": "on"},
    "require": {"flag": True},
}


class Page:
    """A page's server, with a trust store of its own; in a thread of its own."""

    def __init__(self, folder: Path, multi_user: bool = False, host: str = "127.0.0.1") -> None:
        self.trust = Trust(folder)
        self.pairing = pairing.Pairing(lambda: self.trust, multi_user)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self._call(self._open(host))

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    async def _open(self, host: str) -> int:
        app = web.Application()
        for method, path, handler in self.pairing.routes():
            app.router.add_route(method, path, handler)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, 0).start()
        return int(self._runner.addresses[0][1])

    def close(self) -> None:
        self.pairing.close()
        self._call(self._runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    def raw(
        self,
        method: str,
        verb: str,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> tuple[int, Any]:
        """A request with these headers alone, and its answer."""
        link = http.client.HTTPConnection(host, self.port, timeout=PATIENCE)
        sent = {"Host": f"127.0.0.1:{self.port}", **(headers or {})}
        try:
            link.putrequest(
                method,
                pairing.PATH + (f"/{verb}" if verb else ""),
                skip_host=True,
                skip_accept_encoding=True,
            )
            for name, value in {**sent, "Content-Length": str(len(data))}.items():
                if value:
                    link.putheader(name, value)
            link.endheaders(data)
            reply = link.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            link.close()

    def state(self, **headers: str) -> tuple[int, Any]:
        return self.raw("GET", "", headers=headers)

    def post(self, verb: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """As a page would; names of headers with "_" for "-"."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        data = json.dumps({} if body is None else body).encode()
        return self.raw("POST", verb, data, {"Content-Type": "application/json", **more})

    def good(self, verb: str, **body: Any) -> Any:
        status, answer = self.post(verb, body)
        assert status == 200, answer
        return answer

    def bad(self, status: int, verb: str, **body: Any) -> Any:
        """The error, and its text."""
        got, answer = self.post(verb, body)
        assert got == status, answer
        assert set(answer) == {"error"}
        return answer["error"]["class"], answer["error"]["text"]

    def until(self, state: str) -> Any:
        """The invitation, once it has got there."""
        invitation = lambda: self.state()[1]["invitation"]  # noqa: E731
        until(lambda: invitation()["state"] == state, PATIENCE, invitation)
        return invitation()


@pytest.fixture(autouse=True)
def _nobody_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZBUS_HOME", str(tmp_path / "registry"))


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[list[Page]]:
    made = [Page(tmp_path / name) for name in HOMES]
    yield made
    for page in made:
        page.close()


@pytest.fixture
def page(pages: list[Page]) -> Page:
    """One, and somebody whom it trusts."""
    pages[0].trust.pair(generate().public, "friend", (EXCHANGE, JOBS))
    return pages[0]


# --- who may --------------------------------------------------------------------------------------


def refused(answer: tuple[int, Any]) -> None:
    assert answer == (403, {"error": {"class": "UseTerminal", "text": pairing.USE_TERMINAL}})
    assert "zbus-pair" in pairing.USE_TERMINAL


def unchanged(page: Page) -> None:
    assert [one.name for one in page.trust.principals()] == ["friend"]
    assert page.trust.principals()[0].permissions == {EXCHANGE, JOBS}
    assert not page.trust.principals()[0].peers
    assert (page.trust.lan, page.trust.require_pairing) == ("", False)
    assert page.state()[1]["invitation"] is None


FOREIGN = {
    "forwarded": {"Forwarded": "for=192.0.2.1"},
    "x-forwarded-for": {"X-Forwarded-For": "127.0.0.1"},
    "x-forwarded-host": {"x-forwarded-host": "example.org"},
    "x-forwarded-proto": {"X-Forwarded-Proto": "https"},
    "x-real-ip": {"X-Real-IP": "127.0.0.1"},
    "via": {"Via": "1.1 proxy"},
    "cloudflare": {"CF-Connecting-IP": "192.0.2.1"},
    "rebound name": {"Host": "attacker.example:8188"},
    "name of the loopback's beginning": {"Host": "127.0.0.1.attacker.example"},
    "localhost's look-alike": {"Host": "localhost.attacker.example"},
    "a login before": {"Host": "localhost@attacker.example"},
    "lan address": {"Host": "192.168.1.20:8188"},
    "another page": {"Origin": "https://attacker.example"},
    "another port's page": {"Origin": "http://127.0.0.1:1"},
    "the page by another name": {"Origin": "http://localhost:{port}"},
    "the page by another scheme": {"Origin": "https://127.0.0.1:{port}"},
    "a page from a file": {"Origin": "null"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_who_may_be_somebody_else_is_sent_to_the_terminal(
    page: Page, headers: dict[str, str]
) -> None:
    sent = {name: value.format(port=page.port) for name, value in headers.items()}
    refused(page.state(**sent))
    for verb in VERBS:
        refused(page.post(verb, GOOD[verb], **sent))
    unchanged(page)


def test_two_hosts_are_none(page: Page) -> None:
    with socket.create_connection(("127.0.0.1", page.port), PATIENCE) as link:
        own = f"Host: 127.0.0.1:{page.port}\r\n"
        link.sendall(f"GET {pairing.PATH} HTTP/1.1\r\n{own}{own}\r\n".encode())
        assert link.recv(100).split()[1] in (b"403", b"400")  # the parser's, or ours


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_what_a_form_can_send_is_refused(page: Page, kind: str) -> None:
    for verb in VERBS:
        refused(page.post(verb, GOOD[verb], Content_Type=kind))
    unchanged(page)


def test_the_own_page_may(page: Page) -> None:
    for host in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]", "127.0.0.5"):
        for name in (f"{host}:{page.port}", host):
            status, state = page.state(Host=name, Origin=f"http://{name.lower()}")
            assert (status, state["principals"][0]["name"]) == (200, "friend"), name
    kind = "application/json; charset=utf-8"
    status, _ = page.post("cancel", {}, Content_Type=kind, Origin=f"http://127.0.0.1:{page.port}")
    assert status == 200


def mocked(peername: Any, sockname: Any, **headers: str) -> web.Request:
    ends = {"peername": peername, "sockname": sockname}
    transport = mock.Mock()
    transport.get_extra_info.side_effect = lambda name, default=None: ends.get(name, default)
    headers = headers or {"Host": "127.0.0.1:8188"}
    return make_mocked_request("GET", pairing.PATH, headers=headers, transport=transport)


LOOPBACK = [("127.0.0.1", 1), ("127.3.2.1", 1), ("::1", 1, 0, 0), ("::ffff:127.0.0.1", 1, 0, 0)]
OTHERS = [
    ("192.168.1.20", 1),
    ("8.8.8.8", 1),
    ("0.0.0.0", 1),
    ("fe80::1%eth0", 1, 0, 2),
    ("::ffff:192.168.1.20", 1, 0, 0),
    ("", 1),
    (),
    "/run/comfyui.sock",
    "",
    None,
]


@pytest.mark.parametrize("end", LOOPBACK)
def test_both_ends_of_the_socket_are_on_the_loopback(
    end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_browser, "connection_owner", lambda *_: os.geteuid())
    assert not own_browser.why_not(mocked(end, end))


@pytest.mark.parametrize("end", OTHERS)
def test_no_other_end_will_do(end: Any) -> None:
    for ends in ((end, LOOPBACK[0]), (LOOPBACK[0], end), (end, end)):
        assert own_browser.why_not(mocked(*ends)) == "not over the loopback"


def test_a_request_of_old_without_a_host_is_refused() -> None:
    request = mocked(LOOPBACK[0], LOOPBACK[0], Accept="*/*")
    assert "address in the browser" in own_browser.why_not(request)


def test_a_connection_that_is_gone_is_refused() -> None:
    request = make_mocked_request("GET", pairing.PATH, headers={"Host": "localhost"})
    request._transport_sslcontext, request._protocol.transport = None, None
    assert own_browser.why_not(request) == "not over the loopback"


def test_this_computers_own_lan_address_is_not_the_loopback(tmp_path: Path) -> None:
    own = [host for host in reach.hosts() if ":" not in host]
    if not own:
        pytest.skip("this machine is in no local network")
    page = Page(tmp_path / "desk", host="0.0.0.0")
    try:
        refused(page.raw("GET", "", host=own[0]))
        assert page.state()[0] == 200
    finally:
        page.close()


def test_not_with_several_users(tmp_path: Path) -> None:
    page = Page(tmp_path / "desk", multi_user=True)
    try:
        refused(page.state())
        for verb in VERBS:
            refused(page.post(verb, GOOD[verb]))
    finally:
        page.close()
    assert not (tmp_path / "desk").exists()


# --- what may be said -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"name=friend", b"\xff\xfe", b"[" * 8000, b'"text"', b"[]", b"null", b"1", b"NaN"],
)
def test_only_json_objects_are_taken(page: Page, data: bytes) -> None:
    json_type = {"Content-Type": "application/json"}
    for verb in VERBS:
        status, answer = page.raw("POST", verb, data, json_type)
        assert (status, answer["error"]["class"]) == (400, "InputError")
    unchanged(page)


def test_8_kib_are_enough(page: Page) -> None:
    def body(size: int) -> bytes:
        data = b'{"name": "friend", "new": "' + b" " * (size - 36) + b'other"}'
        return data + b" " * (size - len(data))

    json_type = {"Content-Type": "application/json"}
    status, answer = page.raw("POST", "rename", body(pairing.MAX_BODY + 1), json_type)
    assert status == 400 and "larger" in answer["error"]["text"]
    unchanged(page)
    assert page.raw("POST", "rename", body(pairing.MAX_BODY), json_type)[0] == 200


def test_a_body_that_does_not_come_is_not_waited_for(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "BODY_TIME", 0.2)
    with socket.create_connection(("127.0.0.1", page.port), PATIENCE) as link:
        link.sendall(
            f"POST {pairing.PATH}/forget HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        assert link.recv(100).split()[1] == b"400"
    unchanged(page)


MISFITS: list[tuple[str, dict[str, Any]]] = [
    ("invite", {"lan": "yes"}),
    ("invite", {"lan": 1}),
    ("invite", {"at": 18187}),
    ("invite", {"at": None}),
    ("invite", {"at": "nowhere"}),
    ("invite", {"name": ["x"]}),
    ("invite", {"lan": True, "at": "192.0.2.1:18187"}),
    ("invite", {"port": "1"}),
    ("cancel", {"all": "yes"}),
    ("accept", {}),
    ("accept", {"token": 1}),
    ("accept", {"token": "zbus-aaaa"}),
    ("accept", {"token": "\ud800"}),
    ("rename", {"name": "friend"}),
    ("rename", {"name": "nobody", "new": "x"}),
    ("rename", {"name": "friend", "new": ""}),
    ("rename", {"name": "friend", "new": "a/b"}),
    ("rename", {"name": "friend", "new": "\ud800"}),
    ("rename", {"name": "friend", "new": "all"}),
    ("move", {"name": "friend", "addresses": "192.0.2.9:18188"}),
    ("move", {"name": "friend", "addresses": [1]}),
    ("move", {"name": "friend", "addresses": ["nowhere"]}),
    ("move", {"name": "friend", "addresses": ["192.0.2.9:1"] * 9}),
    ("move", {"name": "friend", "addresses": [], "peer": "a:b"}),
    ("permit", {"name": "friend", "permissions": "jobs"}),
    ("permit", {"name": "friend", "permissions": ["root"]}),
    ("permit", {"name": "friend", "permissions": [["jobs"]]}),
    ("forget", {"name": None}),
    ("forget", {"name": "nobody"}),
    ("forget", {"name": "friend", "token": "x"}),
    ("lan", {"host": "example.org"}),
    ("lan", {"host": True}),
    ("require", {"flag": "on"}),
    ("require", {"flag": 1}),
    ("require", {}),
]


@pytest.mark.parametrize(("verb", "body"), MISFITS)
def test_what_does_not_fit_changes_nothing(page: Page, verb: str, body: dict[str, Any]) -> None:
    status, answer = page.post(verb, body)
    assert status == 400 and answer["error"]["text"], answer
    if verb != "invite":
        unchanged(page)
    assert page.good("invite")["token"]  # and nothing is in its way


# --- the store ------------------------------------------------------------------------------------


def test_the_state_is_what_the_terminal_lists(
    page: Page, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page.trust.move("friend", ["https://user:password@cloud.example/comfy"])
    monkeypatch.setenv("ZBUS_HOME", str(page.trust.folder))
    assert main(["pair", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert page.state() == (200, {**listed, "invitation": None})
    assert "password" not in json.dumps(page.state())


def test_each_change_is_made_and_told(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Trust] = []
    monkeypatch.setattr(pairing, "nudge", told.append)
    page.trust.refresh()

    def friend(answer: Any) -> Any:
        assert page.trust.refresh() and told.pop() is page.trust, "the running peer sees it"
        return answer["principals"][0]

    assert friend(page.good("rename", name="friend", new="mate"))["name"] == "mate"
    addresses = ["192.0.2.9:18188", "[2001:db8::1]:18188"]
    moved = friend(page.good("move", name="mate", addresses=addresses, peer="box-8188"))
    assert moved["peers"] == {"box-8188": addresses}
    assert friend(page.good("permit", name="mate", permissions=[JOBS]))["permissions"] == [JOBS]
    assert page.good("lan", host="on")["lan"] == "0.0.0.0"
    assert page.good("lan", host="127.0.0.1")["lan"] == "127.0.0.1"
    assert page.good("lan", host="off")["lan"] == ""
    assert page.good("require", flag=True)["require_pairing"] is True
    assert page.good("require", flag=False)["require_pairing"] is False
    assert page.good("forget", name="mate")["principals"] == []
    assert len(told) == 6 and Trust(page.trust.folder).principals() == []


def test_a_store_that_cannot_be_used_is_told(page: Page) -> None:
    page.trust.file.write_text("{")
    kind, text = page.bad(409, "lan", host="on")
    assert kind == "TrustError" and "trust.json" in text
    status, answer = page.state()
    assert (status, answer["error"]["class"]) == (409, "TrustError")


def test_what_is_unforeseen_is_no_answer_to_a_page(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("what nobody thought of")

    monkeypatch.setattr(pairing, "Inviting", broken)
    kind, text = page.bad(409, "invite")
    assert kind == "PairingFailed" and "log" in text and "thought" not in text
    monkeypatch.undo()
    assert page.until("failed")["error"]["class"] == "PairingFailed"


# --- pairing --------------------------------------------------------------------------------------


def test_two_pages_pair(pages: list[Page], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    desk, pod = pages
    made = desk.good("invite", name="pod")
    token = made["token"]
    assert made["invitation"]["state"] == "waiting"
    assert 590 < made["invitation"]["seconds_left"] <= 600
    assert made["invitation"]["hints"] == [str(hint) for hint in Token.read(token).hints]
    assert token not in json.dumps(desk.state()), "told once"

    taken = pod.good("accept", token=token, name="desk")
    assert taken["principal"]["fingerprint"] == fingerprint(desk.trust.keys.public)
    assert taken["principal"]["permissions"] == [EXCHANGE]
    assert taken["principals"] == [taken["principal"]] and taken["invitation"] is None
    paired = desk.until("paired")
    assert paired["confirmed"] is True
    assert paired["principal"]["name"] == "pod"
    assert paired["principal"]["fingerprint"] == fingerprint(pod.trust.keys.public)
    assert paired["principal"]["permissions"] == [EXCHANGE, JOBS]
    assert desk.state()[1]["principals"] == [paired["principal"]]

    kind, text = pod.bad(409, "accept", token=token)
    assert kind == "PairingFailed" and "zbus-pair invite" in text
    secrets = [token, token.removeprefix("zbus-"), Token.read(token).secret.hex()]
    shown = caplog.text + json.dumps([desk.state(), pod.state()])
    assert not [secret for secret in secrets if secret in shown]
    for one in pages:
        assert one.loop._default_executor is None, "asyncio's own threads are for ComfyUI"


def test_one_invitation_at_a_time(page: Page) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: page.post("invite"), range(6)))
    assert sorted(status for status, _ in answers) == [200, *[409] * 5]
    token = next(answer["token"] for status, answer in answers if status == 200)
    assert "open already" in page.bad(409, "invite")[1]
    first = page.good("cancel")["invitation"]
    assert (first["state"], first["error"]["class"]) == ("failed", "Cancelled")
    assert page.good("cancel")["invitation"] == first, "nothing more to cancel"
    second = page.good("invite")
    assert second["token"] != token and second["invitation"]["state"] == "waiting"


def test_a_cancelled_token_counts_no_longer(pages: list[Page]) -> None:
    desk, pod = pages
    token = desk.good("invite")["token"]
    desk.good("cancel")
    assert pod.bad(409, "accept", token=token)[0] == "PairingFailed"
    assert pod.state()[1]["principals"] == []


def test_an_invitation_for_the_lan_opens_it_only_if_somebody_comes(
    pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "hosts", lambda _="": ["127.0.0.1"])
    desk, pod = pages
    assert desk.good("invite", lan=True)["lan"] == "0.0.0.0"
    assert desk.good("cancel")["lan"] == ""
    token = desk.good("invite", lan=True)["token"]
    pod.good("accept", token=token)
    desk.until("paired")
    assert desk.state()[1]["lan"] == "0.0.0.0"


def test_an_invitation_that_cannot_be_opened_leaves_the_lan_closed(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "hosts", lambda _="": [])
    assert "--at" in page.bad(400, "invite", lan=True)[1]
    assert page.state()[1]["lan"] == ""
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        assert page.bad(409, "invite", at=f"192.0.2.1:{port}")[0] == "PortInUse"
    state = page.state()[1]
    assert (state["lan"], state["invitation"]["error"]["class"]) == ("", "PortInUse")


def test_the_end_of_comfyui_ends_it(page: Page) -> None:
    token = page.good("invite")["token"]
    (hint,) = Token.read(token).hints
    began = time.monotonic()
    page.pairing.close()
    assert time.monotonic() - began < pairing.END_TIME
    assert not [t.name for t in threading.enumerate() if t.name == "zbus-inviting"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((hint.host, hint.port), 2).close()


def test_a_page_that_accepts_from_nobody_waits_and_stops_nothing(pages: list[Page]) -> None:
    desk, pod = pages
    with socket.create_server(("127.0.0.1", 0)) as deaf, ThreadPoolExecutor(1) as pool:
        hint = Address("127.0.0.1", deaf.getsockname()[1])
        token = Token(desk.trust.keys.public, b"s" * 16, (hint,)).text()
        waiting = pool.submit(pod.post, "accept", {"token": token})
        assert deaf.accept()
        assert pod.state()[0] == 200 and pod.good("lan", host="off")
        assert "another token" in pod.bad(409, "accept", token=token)[1]
        assert not waiting.done()
        pod.pairing.close()
        status, answer = waiting.result(PATIENCE)
    assert (status, answer["error"]["class"]) == (409, "Cancelled")
    assert pod.trust.principals() == []


def test_another_user_of_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a proxy that says nothing of itself, and runs under a user of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client, server.accept()[0] as link:
            ends = link.getpeername(), link.getsockname()
            mine = machine.connection_owner(*ends)
            if mine is None:
                pytest.skip("this system does not tell whose a connection is")
            assert mine == os.geteuid() and client
            assert not own_browser.why_not(mocked(*ends))
            monkeypatch.setattr(own_browser, "connection_owner", lambda *_: mine + 1)
            assert own_browser.why_not(mocked(*ends)) == "another user of this computer sent it"
    assert machine.connection_owner(("127.0.0.1", 1), ("127.0.0.1", 2)) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell whose it is")
@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_who_sends_a_request_and_leaves_is_nobody(how: str) -> None:
    """The kernel writes root, or nothing at all, where the other end has been closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        with server.accept()[0] as link:
            ends = link.getpeername(), link.getsockname()
            assert machine.connection_owner(*ends) == os.geteuid()
            client.sendall(b"a whole request")
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.shutdown(socket.SHUT_WR) if how == "half" else client.close()
            assert machine.connection_owner(*ends) is None
            assert own_browser.why_not(mocked(*ends)) == "another user of this computer sent it"
        client.close()


def test_where_the_system_has_no_such_table_every_program_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_browser, "connection_owner", lambda *_: None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not own_browser.why_not(mocked(LOOPBACK[0], LOOPBACK[0]))


def test_whom_this_user_knows_is_told_to_no_other_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names for the drop-down: for who sees the page in the network as before."""
    for owner, refused in ((os.geteuid(), False), (os.geteuid() + 1, True)):
        monkeypatch.setattr(own_browser, "connection_owner", lambda *_, owner=owner: owner)
        assert own_browser.is_of_another_user(mocked(LOOPBACK[0], LOOPBACK[0])) is refused
        assert not own_browser.is_of_another_user(mocked(("192.168.1.20", 1), ("192.168.1.5", 2)))
