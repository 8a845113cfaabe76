"""Pairing: who has the token pairs, once; and nobody else, whatever is sent or stands between."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from children import ROOT, child, until
from comfyui import free_port
from hypothesis import given
from hypothesis import strategies as st

from zbus import discovery, machine
from zbus.address import Address
from zbus.cli import pair as cli
from zbus.errors import (
    BadToken,
    Cancelled,
    InputError,
    InvalidAddress,
    PairingFailed,
    PortInUse,
    RemoteProtocolError,
    TrustError,
)
from zbus.keys import generate, to_text
from zbus.net.frames import Closed, Connected, Connection, Received
from zbus.net.places import ListenedAddress
from zbus.net.transport import Transport
from zbus.pairing import accepting, hellos, invitation, inviting, reach, tokens
from zbus.pairing.accepting import accept
from zbus.pairing.hellos import own_hello
from zbus.pairing.invitation import LIFETIME, MAX_MESSAGE, Acceptance, Hello, Invitation
from zbus.pairing.inviting import Inviting
from zbus.pairing.offers import Offer
from zbus.pairing.reach import Reach
from zbus.pairing.tokens import MAX_TOKEN, PREFIX, Token, has_more
from zbus.peer import Peer
from zbus.trust import EXCHANGE, JOBS, Principal, Trust

INVITER, ACCEPTER, OTHER = (bytes([i]) * 32 for i in (1, 2, 3))
SECRET = bytes(range(16))
HINTS = (Address("192.168.1.20", 18187), Address("pod.example.org", 40123), Address("fe80::1", 1))
ANY_PORT = Reach(port=0)
BEGIN = f"{PREFIX}a"  # of a token of version 1


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZBUS_HOME", str(tmp_path / "zbus"))
    for name in list(os.environ):
        if name.startswith(("ZBUS_TRUST", "ZBUS_LISTEN", "ZBUS_REQUIRE", "RUNPOD_", "VAST_")):
            monkeypatch.delenv(name)


@pytest.fixture
def desk(tmp_path: Path) -> Trust:
    return Trust(tmp_path / "desk")


@pytest.fixture
def pod(tmp_path: Path) -> Trust:
    return Trust(tmp_path / "pod")


# --- tokens ---------------------------------------------------------------------------------------


TOKEN = Token(INVITER, SECRET, HINTS)
TEXT = TOKEN.text()


def forged(body: bytes, version: int = 1) -> str:
    """A token with a right checksum around anything."""
    data = bytes([version]) + (3 + len(body) + tokens.CHECK).to_bytes(2, "big") + body
    letters = tokens.base64.b32encode(data + tokens._checksum(data)).decode()
    return PREFIX + letters.rstrip("=").lower()


def test_a_token_survives_what_copying_does_to_it() -> None:
    assert Token.read(TEXT) == TOKEN
    assert TEXT.isprintable() and " " not in TEXT
    lines = "\n".join(TEXT[start : start + 40] for start in range(0, len(TEXT), 40))
    for copied in (TEXT.upper(), f"  {TEXT}\n", lines, f'"{TEXT}"', f"zbus-pair accept {TEXT}"):
        assert Token.read(copied) == TOKEN


def test_every_change_of_one_character_is_seen() -> None:
    for place in range(len(TEXT)):
        for letter in "abcdefghijklmnopqrstuvwxyz0123456789-_":
            changed = TEXT[:place] + letter + TEXT[place + 1 :]
            if changed != TEXT:
                with pytest.raises(BadToken):
                    Token.read(changed)
    with pytest.raises(BadToken, match="mistyped"):
        Token.read(TEXT[:60] + ("a" if TEXT[60] != "a" else "b") + TEXT[61:])


def test_no_more_is_asked_for_than_a_token_can_have() -> None:
    begun = f"{PREFIX}ab777"
    assert has_more(begun) and has_more(begun + "a" * 1000)
    assert not has_more(begun + "a" * MAX_TOKEN), "what is piped in may never end"


def test_a_part_of_a_token_is_incomplete() -> None:
    for length in range(len(PREFIX), len(TEXT)):
        with pytest.raises(BadToken, match="incomplete"):
            Token.read(TEXT[:length])


def test_a_character_that_is_missing_too_many_or_swapped_is_seen() -> None:
    for place in range(len(PREFIX), len(TEXT) - 1):
        for changed in (
            TEXT[:place] + TEXT[place + 1 :],
            TEXT[:place] + "a" + TEXT[place:],
            TEXT[:place] + TEXT[place + 1] + TEXT[place] + TEXT[place + 2 :],
        ):
            if changed != TEXT:
                with pytest.raises(BadToken):
                    Token.read(changed)


@pytest.mark.parametrize("text", ["", " ", "hello", "zbus", to_text(INVITER), "x" * 10_000])
def test_what_is_no_token_is_told_so(text: str) -> None:
    with pytest.raises(BadToken, match="not a token"):
        Token.read(text)


def test_a_newer_token_says_so() -> None:
    with pytest.raises(BadToken, match="newer zbus"):
        Token.read(forged(b"whatever is in there", version=2))


@given(st.binary(max_size=200))
def test_a_forged_token_is_refused_or_whole(body: bytes) -> None:
    with contextlib.suppress(BadToken):
        token = Token.read(forged(body))
        assert len(token.key) == 32 and len(token.secret) == 16 and 0 < len(token.hints) <= 8
        assert Token.read(token.text()) == token


@given(st.text(max_size=300))
def test_any_text_is_refused_or_a_token(text: str) -> None:
    for written in (text, PREFIX + text):
        with pytest.raises(BadToken):
            Token.read(written)


@pytest.mark.parametrize(
    "hints",
    [
        (),
        HINTS * 3,
        *((address,) for address in (Address("h", 0), Address("", 1), Address("a b", 1))),
        *((address,) for address in (Address("ä.de", 1), Address("x" * 254, 1))),
    ],
    ids=lambda hints: repr(hints)[:40],
)
def test_hints_that_cannot_be_in_a_token(hints: tuple[Address, ...]) -> None:
    with pytest.raises(InputError):
        Token(INVITER, SECRET, hints).text()


def test_no_secret_in_what_a_token_shows() -> None:
    assert repr(SECRET) not in repr(TOKEN) and SECRET.hex() not in repr(TOKEN)
    for wrong in (TEXT[:-1], TEXT[:-1] + "1"):
        with pytest.raises(BadToken) as caught:
            Token.read(wrong)
        assert TEXT[10:30] not in str(caught.value)


# --- the protocol, in memory ----------------------------------------------------------------------


HOST = Hello("desk", (("desk-8188", 18188),), ("192.168.1.20",), True, "boot")
GUEST = Hello("pod", (("pod-8188", 40123), ("pod-8189", 0)))


def open_invitation() -> Invitation:
    return Invitation(INVITER, SECRET, HOST, 100.0)


def asking(secret: bytes = SECRET, key: bytes = ACCEPTER, hello: Hello = GUEST) -> Acceptance:
    return Acceptance(Token(INVITER, secret, HINTS), key, hello)


def why(data: bytes) -> str:
    said = msgpack.unpackb(data)
    assert said["kind"] == "refused" and set(said) == {"kind", "why"}
    return str(said["why"])


def test_a_pairing() -> None:
    host, guest = open_invitation(), asking()
    step = host.receive(ACCEPTER, guest.ask, 101)
    assert step == invitation.Step(reply=step.reply)
    assert guest.receive(step.reply) == HOST
    step = host.receive(ACCEPTER, guest.stored, 102)
    assert step == invitation.Step(store=GUEST) and not host.is_used
    assert guest.receive(host.stored()) is None and guest.is_done
    assert host.receive(ACCEPTER, guest.thanks, 103) == invitation.Step(ends=True)
    assert host.is_over and host.lapsed(100 + LIFETIME * 2) == ""


def test_another_one_comes_too_late() -> None:
    host, guest, other = open_invitation(), asking(), asking(key=OTHER)
    host.receive(ACCEPTER, guest.ask, 101)
    step = host.receive(OTHER, other.ask, 101)
    assert why(step.reply) == "used" and step.ends
    host.receive(ACCEPTER, guest.stored, 101)
    host.stored()
    for again in (other, asking(b"x" * 16, OTHER)):
        assert why(host.receive(OTHER, again.ask, 101).reply) == "used"
    with pytest.raises(PairingFailed, match="has been used"):
        other.receive(step.reply)


def test_after_ten_minutes_it_is_late() -> None:
    host, guest = open_invitation(), asking()
    assert host.lapsed(100 + LIFETIME - 1) == "" and host.lapsed(100 + LIFETIME) == "late"
    host.receive(ACCEPTER, guest.ask, 101)
    for message in (guest.ask, guest.stored):
        step = host.receive(ACCEPTER, message, 100 + LIFETIME)
        assert why(step.reply) == "late" and step.ends and step.store is None
    with pytest.raises(PairingFailed, match="ten minutes are over"):
        guest.receive(step.reply)


def test_five_wrong_tries_make_it_void() -> None:
    host = open_invitation()
    for number in range(5):
        assert host.lapsed(101) == ""
        step = host.receive(OTHER, asking(bytes([number]) * 16, OTHER).ask, 101)
        assert why(step.reply) == "wrong" and step.ends
    assert host.lapsed(101) == "void"
    step = host.receive(ACCEPTER, asking().ask, 101)
    assert why(step.reply) == "void", "the right one too"
    with pytest.raises(PairingFailed, match="5 wrong tries"):
        asking().receive(step.reply)


def test_what_was_asked_counts_for_that_key_inviter_and_hello_alone() -> None:
    asked = msgpack.unpackb(asking().ask)
    other_hello = msgpack.packb({**asked, "hello": HOST.pack()})
    for key, message, inviter in (
        (OTHER, asking().ask, INVITER),  # overheard, and sent by another
        (ACCEPTER, other_hello, INVITER),
        (ACCEPTER, asking().ask, OTHER),
    ):
        host = Invitation(inviter, SECRET, HOST, 0.0)
        assert why(host.receive(key, message, 1).reply) == "wrong"


def test_who_has_not_heard_the_end_asks_again() -> None:
    host, guest = open_invitation(), asking()
    host.receive(ACCEPTER, guest.ask, 101)
    assert guest.receive(host.receive(ACCEPTER, guest.ask, 102).reply) == HOST
    host.receive(ACCEPTER, guest.stored, 103)
    host.stored()
    assert guest.receive(host.receive(ACCEPTER, guest.ask, 104).reply) == HOST
    step = host.receive(ACCEPTER, guest.stored, 105)
    assert step.store is None, "stored once"
    guest.receive(step.reply)
    assert guest.is_done


def test_nobody_gets_a_word_in_before_asking() -> None:
    host, guest = open_invitation(), asking()
    for message in (guest.stored, guest.thanks):
        with pytest.raises(RemoteProtocolError):
            host.receive(ACCEPTER, message, 101)
    host.receive(ACCEPTER, guest.ask, 101)
    with pytest.raises(RemoteProtocolError):
        host.receive(OTHER, guest.stored, 101)
    with pytest.raises(RemoteProtocolError):
        host.receive(ACCEPTER, guest.thanks, 101)


def test_a_failure_over_there_is_told() -> None:
    with pytest.raises(PairingFailed, match="could not store"):
        asking().receive(open_invitation().failed())
    with pytest.raises(PairingFailed, match="refused"):
        asking().receive(msgpack.packb({"kind": "refused", "why": "because\x1b[31m"}))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_what_they_are(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        open_invitation().receive(ACCEPTER, data, 101)
    with pytest.raises(RemoteProtocolError):
        asking().receive(data)
    with pytest.raises(RemoteProtocolError):
        Hello.unpack(data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 70_000)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(st.sampled_from(["name", "peers", "hosts", "is_open", "boot", None]), VALUES)
def test_a_hello_is_checked_field_by_field(field: str | None, value: Any) -> None:
    fields = {**vars(HOST), field or "new": value}
    try:
        hello = Hello.unpack(msgpack.packb(fields))
    except RemoteProtocolError:
        return
    assert Hello.unpack(hello.pack()) == hello
    assert field is not None or hello == HOST


@given(st.sampled_from(["kind", "mac", "hello", "why"]), VALUES)
def test_a_message_is_checked_field_by_field(field: str, value: Any) -> None:
    asked = msgpack.unpackb(asking().ask)
    host = open_invitation()
    with contextlib.suppress(RemoteProtocolError):
        host.receive(ACCEPTER, msgpack.packb({**asked, field: value}), 101)
    with contextlib.suppress(RemoteProtocolError, PairingFailed):
        asking().receive(msgpack.packb({"kind": "refused", "hello": HOST.pack(), field: value}))


def test_messages_stay_below_4_kib() -> None:
    many = tuple((f"{'ü' * 70}-{number}", 1) for number in range(50))
    large = Hello("ü" * 80, many, ("x" * 40,) * 8, True, "b" * 64)
    assert len(asking(hello=large).ask) < MAX_MESSAGE
    kept = Hello.unpack(large.pack()).peers
    assert 4 < len(kept) < 50 and kept == many[: len(kept)]
    with pytest.raises(RemoteProtocolError, match="too large"):
        open_invitation().receive(ACCEPTER, bytes(MAX_MESSAGE + 1), 101)
    with pytest.raises(RemoteProtocolError, match="too large"):
        Hello.unpack(msgpack.packb({**vars(HOST), "more": "x" * MAX_MESSAGE}))


# --- two sides, over sockets ----------------------------------------------------------------------


class Waiting:
    """An `Inviting` in a thread of its own, and what came of it."""

    def __init__(
        self, trust: Trust, where: Reach = ANY_PORT, kind: type[Inviting] = Inviting
    ) -> None:
        self.inviting = kind(trust, where)
        self.token, self.port = self.inviting.token, self.inviting.address.port
        self.cancelled = threading.Event()
        self.paired: Principal | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.paired = self.inviting.serve(self.cancelled)
        except BaseException as error:
            self.error = error

    def end(self, within: float = 20.0) -> Waiting:
        """Wait until it is over."""
        self._thread.join(within)
        assert not self._thread.is_alive(), "still waiting"
        return self


@pytest.fixture
def invite() -> Iterator[Callable[..., Waiting]]:
    made: list[Waiting] = []

    def invite(*arguments: Any, **more: Any) -> Waiting:
        made.append(Waiting(*arguments, **more))
        return made[-1]

    yield invite
    for one in made:
        one.cancelled.set()
        one.end()


Invite = Callable[..., Waiting]


def test_two_that_pair_know_each_other(desk: Trust, pod: Trust, invite: Invite) -> None:
    host = invite(desk)
    at_pod = accept(pod, host.token, own_name="pod")
    at_desk = host.end().paired
    assert at_desk is not None and host.inviting.confirmed
    assert (at_desk.key, at_desk.name) == (pod.keys.public, "pod")
    assert at_desk.permissions == {EXCHANGE, JOBS}, "the inviter grants both"
    assert (at_pod.key, at_pod.permissions) == (desk.keys.public, {EXCHANGE})
    assert Trust(desk.folder).principals() == [at_desk]
    assert Trust(pod.folder).principals() == [at_pod]


def test_no_secret_in_any_log_or_file(
    desk: Trust, pod: Trust, invite: Invite, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    host = invite(desk)
    with pytest.raises(PairingFailed):
        accept(pod, with_secret(host, b"x" * 16))
    accept(pod, host.token)
    host.end()
    token = Token.read(host.token)
    written = caplog.text + desk.file.read_text() + pod.file.read_text() + repr(vars(host.inviting))
    for hidden in (token.secret, desk.keys.secret, pod.keys.secret):
        for form in (to_text(hidden), hidden.hex(), repr(hidden)):
            assert form not in written.replace(host.token, "")
    assert host.token not in caplog.text


def with_secret(host: Waiting, secret: bytes, **changed: Any) -> str:
    return dataclasses.replace(Token.read(host.token), secret=secret, **changed).text()


def test_a_token_that_was_used_is_of_no_more_use(desk: Trust, pod: Trust, invite: Invite) -> None:
    host = invite(desk)
    accept(pod, host.token)
    host.end()
    stranger = Trust(desk.folder.with_name("stranger"))
    with pytest.raises(PairingFailed, match="no invitation answers: .*refused"):
        accept(stranger, host.token)
    assert [one.key for one in Trust(desk.folder).principals()] == [pod.keys.public]
    assert stranger.principals() == []


class Silent(Inviting):
    """Stores, and the link is cut before it can say so: `cuts` times."""

    cuts = 1

    def _stored(self, connection: Connection, hello: Hello) -> bytes:
        reply = super()._stored(connection, hello)
        return self._cut(connection) if self.cuts > 0 else reply

    def _cut(self, connection: Connection) -> bytes:
        self.cuts -= 1
        self._end(connection)
        return b""


def test_while_one_pairs_another_is_refused(
    desk: Trust, pod: Trust, invite: Invite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inviting, "THANKS_WITHIN", 60.0)
    monkeypatch.setattr(accepting._Accepting, "_hear", hear_but_never_thank)
    host = invite(desk)
    accept(pod, host.token)
    stranger = Trust(desk.folder.with_name("stranger"))
    with pytest.raises(PairingFailed, match="has been used"):
        accept(stranger, host.token)
    assert not host.inviting.confirmed and desk.of(stranger.keys.public) is None


def hear_but_never_thank(self: Any, event: Received) -> None:
    self._acceptance.thanks = self._acceptance.ask
    HEAR(self, event)


HEAR = accepting._Accepting._hear


def test_a_cut_at_the_worst_moment_leaves_no_half_pairing(
    desk: Trust, pod: Trust, invite: Invite
) -> None:
    host = invite(desk, kind=Silent)
    accept(pod, host.token)
    assert host.end().paired is not None and host.inviting.confirmed
    assert [len(Trust(one.folder).principals()) for one in (desk, pod)] == [1, 1]


class Deaf(Inviting):
    """Never says that it has stored."""

    def _stored(self, connection: Connection, hello: Hello) -> bytes:
        return b""


@pytest.mark.parametrize("known", [False, True])
def test_who_never_hears_of_the_end_takes_back_what_it_stored(
    desk: Trust, pod: Trust, invite: Invite, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(accepting, "ANSWER_WITHIN", 0.2)
    if known:
        pod.pair(desk.keys.public, "home", [JOBS], (("a", ("h:1",)),))
    before = [(one.name, one.permissions, one.peers) for one in pod.principals()]
    host = invite(desk, kind=Deaf)
    with pytest.raises(PairingFailed, match="taken back here"):
        accept(pod, host.token, timeout=1.5)
    after = Trust(pod.folder).principals()
    assert [(one.name, one.permissions, one.peers) for one in after] == before


def test_an_inviter_that_cannot_store_says_so_on_both_sides(
    desk: Trust, pod: Trust, invite: Invite, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = invite(desk)

    def full(*_: Any) -> None:
        raise TrustError("the disk is full")

    monkeypatch.setattr(desk, "pair", full)
    with pytest.raises(PairingFailed, match="could not store"):
        accept(pod, host.token)
    assert isinstance(host.end().error, TrustError)
    assert pod.principals() == [] == desk.principals()


def test_pairing_again_adds_and_takes_nothing(desk: Trust, pod: Trust, invite: Invite) -> None:
    desk.pair(pod.keys.public, "my pod", [JOBS], (("old", ("h:1",)),))
    host = invite(desk)
    accept(pod, host.token)
    host.end()
    host = invite(pod)  # and the other way round
    accept(desk, host.token)
    host.end()
    (at_desk,), (at_pod,) = Trust(desk.folder).principals(), Trust(pod.folder).principals()
    assert at_desk.name == "my pod" and dict(at_desk.peers)["old"] == ("h:1",)
    assert at_desk.permissions == at_pod.permissions == {EXCHANGE, JOBS}


def test_five_guesses_and_it_is_over(desk: Trust, pod: Trust, invite: Invite) -> None:
    host = invite(desk)
    for number in range(5):
        with pytest.raises(PairingFailed, match="not of the invitation that is open"):
            accept(pod, with_secret(host, bytes([number]) * 16))
    assert "5 wrong tries" in str(host.end().error)
    with pytest.raises(PairingFailed, match="no invitation answers"):
        accept(pod, host.token)
    assert desk.principals() == pod.principals() == []


def test_a_late_one_finds_nobody(
    desk: Trust, pod: Trust, invite: Invite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invitation, "LIFETIME", 0.1)
    host = invite(desk)
    assert "ten minutes are over" in str(host.end().error)
    with pytest.raises(PairingFailed, match="no invitation answers"):
        accept(pod, host.token)


def test_both_sides_can_be_cancelled(desk: Trust, pod: Trust, invite: Invite) -> None:
    host = invite(desk)
    host.cancelled.set()
    assert isinstance(host.end().error, Cancelled)
    cancelled = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        token = Token(INVITER, SECRET, (Address("127.0.0.1", silent.getsockname()[1]),)).text()
        timer = threading.Timer(0.3, cancelled.set)
        timer.start()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            accept(pod, token, cancelled=cancelled)
        assert time.monotonic() - began < 5
        timer.join()


def test_ones_own_token_is_for_the_other_machine(desk: Trust, invite: Invite) -> None:
    host = invite(desk)
    with pytest.raises(BadToken, match="very user"):
        accept(desk, host.token)


def test_a_port_that_is_taken(desk: Trust, invite: Invite) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        host = invite(desk, Reach(port=port))
        assert host.port != port
        assert Token.read(host.token).hints == (Address("127.0.0.1", host.port),)
        with pytest.raises(PortInUse, match=f"port {port} is held by .*--port"):
            Inviting(desk, Reach(port=port, fixed=True))


def test_hints_are_tried_together_and_the_first_that_answers_counts(
    desk: Trust, pod: Trust, invite: Invite
) -> None:
    host = invite(desk)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        others = [Address("127.0.0.1", one.getsockname()[1]) for one in (silent, nobody)]
        hints = (*others, Address("no.such.host.invalid", 1), Address("127.0.0.1", host.port))
        token = dataclasses.replace(Token.read(host.token), hints=hints).text()
        began = time.monotonic()
        accept(pod, token)
        assert time.monotonic() - began < 10
        assert host.end().paired is not None


def test_each_hint_that_fails_says_why(pod: Trust) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        hints = [Address("127.0.0.1", one.getsockname()[1]) for one in (silent, nobody)]
        hints.append(Address("no.such.host.invalid", 1))
        with pytest.raises(PairingFailed) as caught:
            accept(pod, Token(INVITER, SECRET, tuple(hints)).text(), timeout=1.5)
    text = str(caught.value)
    assert all(str(hint) in text for hint in hints)
    assert "refused" in text and "not known" in text and "zbus-pair invite" in text


# --- attackers ------------------------------------------------------------------------------------


def test_a_man_in_the_middle_cannot_pose_as_the_inviter(
    desk: Trust, pod: Trust, invite: Invite, tmp_path: Path
) -> None:
    host = invite(desk)
    attacker = Trust(tmp_path / "attacker")
    between = invite(attacker)  # with its own key: it does not have the one in the token
    token = with_secret(host, Token.read(host.token).secret, hints=Token.read(between.token).hints)
    with pytest.raises(PairingFailed, match="does not have the key of the token"):
        accept(pod, token, timeout=2)
    assert pod.principals() == attacker.principals() == []
    accept(pod, host.token)
    assert host.end().paired is not None


class Recorder:
    """Passes one connection on, and keeps what the client said."""

    def __init__(self, port: int) -> None:
        self.said = b""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._server.getsockname()[1])
        self._to = port
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        client, _ = self._server.accept()
        server = socket.create_connection(("127.0.0.1", self._to))
        back = threading.Thread(target=self._pass, args=(server, client), daemon=True)
        back.start()
        self.said = self._pass(client, server)
        back.join(10)
        for end in (client, server, self._server):
            end.close()

    def _pass(self, source: socket.socket, target: socket.socket) -> bytes:
        all_of_it = b""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                all_of_it += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        return all_of_it

    def end(self) -> bytes:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.said


def test_what_was_recorded_cannot_be_played_again(
    desk: Trust, pod: Trust, invite: Invite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_bytes", lambda size: SECRET[:size])
    host = invite(desk)
    recorder = Recorder(host.port)
    accept(pod, with_secret(host, SECRET, hints=(recorder.address,)))
    assert host.end().paired is not None
    said = recorder.end()
    assert len(said) > 500 and b"pod" not in said and SECRET not in said
    desk.forget(desk.principals()[0].name)
    again = invite(desk)  # the very same invitation
    assert Token.read(again.token).secret == SECRET
    for _ in range(6):
        with socket.create_connection(("127.0.0.1", again.port)) as replay:
            replay.sendall(said)
            replay.settimeout(10)
            with contextlib.suppress(OSError):
                while replay.recv(65536):
                    pass
    assert desk.principals() == [] and again.inviting._invitation._tries == 5
    accept(pod, again.token)
    assert again.end().paired is not None


def talk(token: str, messages: list[tuple[bytes, bytes | None]]) -> list[bytes]:
    """Send these over one CURVE connection with a new key; what comes back until it is closed."""
    invited = Token.read(token)
    transport = Transport(generate(), max_frame=1 << 20)
    heard: list[bytes] = []
    try:
        connection = transport.dial("127.0.0.1", invited.hints[0].port, server=invited.key)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for event in transport.poll(0.1):
                if isinstance(event, Connected):
                    for header, body in messages:
                        transport.send(connection, header, body)
                elif isinstance(event, Received):
                    heard.append(event.header)
                elif isinstance(event, Closed):
                    return heard
        pytest.fail("the connection stands")
    finally:
        transport.close()


@pytest.mark.parametrize(
    "messages",
    [
        [(bytes(MAX_MESSAGE + 1), None)],
        [(b"", None)],
        [(b"\xff" * 100, None)],
        [(asking().ask, b"a body")],
        [(asking().stored, None)],
        [(msgpack.packb({"kind": "ask"}), None)],
    ],
    ids=["too large", "empty", "no msgpack", "body", "out of turn", "incomplete"],
)
def test_what_is_none_of_our_messages_ends_that_connection_alone(
    desk: Trust, pod: Trust, invite: Invite, messages: list[tuple[bytes, bytes | None]]
) -> None:
    host = invite(desk)
    assert talk(host.token, messages) == []
    accept(pod, host.token)
    assert host.end().paired is not None


CHILD = """
    import sys
    from pathlib import Path
    from zbus.pairing.inviting import Inviting
    from zbus.pairing.reach import Reach
    from zbus.trust import Trust
    inviting = Inviting(Trust(Path(sys.argv[1])), Reach(port=0))
    print(inviting.address.port, inviting.token, flush=True)
    print("paired", inviting.serve().name, flush=True)
"""
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE".ljust(55, b"\0")
FLOOD = 500


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
@pytest.mark.parametrize("says", [b"", GREETING[:10], GREETING, GREETING + b"\x04\x26\x05HELLO"])
def test_a_flood_of_half_handshakes_costs_nothing(pod: Trust, tmp_path: Path, says: bytes) -> None:
    with child(CHILD, tmp_path / "desk") as host:
        port, token = host.line("zbus-").split()
        flood(int(port), says, 300)  # what the first ones bring with them is not the flood's
        before = host.rss()
        standing = flood(int(port), says, FLOOD)
        assert host.rss() - before < 3 << 20
        began = time.monotonic()
        accept(pod, token, own_name="pod")
        assert time.monotonic() - began < 15
        assert host.line("paired") == "paired pod"
        for one in standing:
            one.close()


def flood(port: int, says: bytes, count: int) -> list[socket.socket]:
    """Connections that say so much and no more; the latest 150 stay open."""
    open_: list[socket.socket] = []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", port), timeout=10)
        with contextlib.suppress(OSError):
            one.sendall(says)
        open_.append(one)
        if len(open_) > 150:
            open_.pop(0).close()
    return open_


def test_many_that_talk_do_not_stand_in_the_way(desk: Trust, pod: Trust, invite: Invite) -> None:
    """Each has the token but for its secret, and never lets go by itself."""
    host = invite(desk)
    key = Token.read(host.token).key
    transport = Transport(generate())
    try:
        for _ in range(40):
            transport.dial("127.0.0.1", host.port, server=key)
        greeted = 0
        deadline = time.monotonic() + 20
        while greeted < 40 and time.monotonic() < deadline:
            greeted += sum(isinstance(event, Connected) for event in transport.poll(0.1))
        assert greeted == 40
        accept(pod, host.token)
        assert host.end().paired is not None
    finally:
        transport.close()


# --- who is reached where -------------------------------------------------------------------------


def register(port: int, name: str) -> None:
    discovery.register(
        discovery.Entry.of_this_process(f"{port:032x}", name, f"127.0.0.1:{port}"),
    )


def test_what_a_side_tells_of_itself(pod: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_hello(pod, name="po/d") == Hello("po-d", boot=machine.boot_id())
    register(18188, "pod-8188")
    register(18189, "a,b")
    closed = own_hello(pod, name="pod")
    assert closed.peers == (("a-b", 18189), ("pod-8188", 18188))
    assert not closed.is_open and closed.hosts == ()
    pod.set_lan("10.0.0.5")
    monkeypatch.setattr(reach, "lan_hosts", lambda host: [host])
    assert own_hello(pod).hosts == ("10.0.0.5",) and own_hello(pod).is_open
    monkeypatch.setenv("RUNPOD_PUBLIC_IP", "203.0.113.7")
    monkeypatch.setenv("RUNPOD_TCP_PORT_18188", "40123")
    mapped = own_hello(pod)
    assert mapped.hosts == ("203.0.113.7",)
    assert mapped.peers == (("a-b", 0), ("pod-8188", 40123)), "one of them is not reached"
    pod.set_lan("127.0.0.1")
    assert not own_hello(pod).is_open


def test_without_a_running_comfyui_the_usual_port_is_told(pod: Trust) -> None:
    pod.set_lan("on")
    assert own_hello(pod, Reach(hosts=("10.0.0.5",)), "pod").peers == (("pod-8188", 18188),)


PEERS = (("a", 18188), ("b", 0))


@pytest.mark.parametrize(
    ("hello", "went", "expected"),
    [
        # Closed: the other one dials.
        (Hello("x", PEERS, ("10.0.0.5",)), "10.0.0.5", ()),
        (Hello("x", PEERS, (), True), "", ()),
        # In the network: as the pairing went, and as it says itself.
        (Hello("x", PEERS, ("10.0.0.5",), True), "10.0.0.9", ("10.0.0.9", "10.0.0.5")),
        (Hello("x", PEERS, ("10.0.0.5",), True), "10.0.0.5", ("10.0.0.5",)),
        (Hello("x", PEERS, ("10.0.0.5",), True), "pod.example", ("pod.example", "10.0.0.5")),
        # Through a tunnel the loopback is this machine's own, and another's word does not count.
        (Hello("x", PEERS, ("10.0.0.5", "127.0.0.1"), True, "else"), "127.0.0.1", ("10.0.0.5",)),
        # Another user of this machine.
        (Hello("x", PEERS, boot="here"), "127.0.0.1", ("127.0.0.1",)),
        (Hello("x", PEERS, boot="here"), "10.0.0.5", ()),
        (Hello("x", PEERS, ("10.0.0.5",), True, "here"), "127.0.0.1", ("127.0.0.1", "10.0.0.5")),
    ],
)
def test_the_addresses_that_are_stored(
    hello: Hello, went: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "boot_id", lambda: "here")
    at_a = tuple(f"{host}:18188" for host in expected)
    assert hellos._addresses(hello, went) == (("a", at_a), ("b", ()))


def test_two_users_of_one_machine_reach_each_other(desk: Trust, pod: Trust, invite: Invite) -> None:
    if not machine.boot_id():
        pytest.skip("this system does not tell one machine from another")
    register(18188, "mine")
    host = invite(desk)
    assert accept(pod, host.token).peers == (("mine", ("127.0.0.1:18188",)),)
    paired = host.end().paired
    assert paired is not None and paired.peers == (("mine", ("127.0.0.1:18188",)),)


CLOUDS = {
    "RunPod": {
        "RUNPOD_PUBLIC_IP": "203.0.113.7",
        "RUNPOD_TCP_PORT_18187": "40001",
        "RUNPOD_TCP_PORT_18188": "40002",
        "RUNPOD_TCP_PORT_70000": "10030",
    },
    "vast.ai": {
        "PUBLIC_IPADDR": "203.0.113.7",
        "VAST_TCP_PORT_18187": "40001",
        "VAST_TCP_PORT_18188": "40002",
        "VAST_TCP_PORT_70000": "10030",
        "VAST_UDP_PORT_1": "5",
    },
}


@pytest.mark.parametrize("environment", CLOUDS.values(), ids=CLOUDS)
def test_clouds_tell_how_they_map(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = {18187: 40001, 18188: 40002, 10030: 10030}
    assert reach.mapped(environment) == reach.Mapped("203.0.113.7", ports)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    by_environment = reach.at("")
    assert by_environment.hints == (Address("203.0.113.7", 40001),)
    assert (by_environment.host, by_environment.port) == ("0.0.0.0", 18187)
    assert by_environment.fixed and by_environment.ports == ports
    assert by_environment.hosts == ("203.0.113.7",)
    assert reach.at("", 10030).hints == (Address("203.0.113.7", 10030),)
    assert reach.at("203.0.113.7:40002").port == 18188, "the port inside"
    with pytest.raises(InputError, match="port 5 of this machine is not reached"):
        reach.at("", 5)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RUNPOD_PUBLIC_IP": "203.0.113.7"},
        {"RUNPOD_TCP_PORT_18188": "40001"},
        {"RUNPOD_PUBLIC_IP": "pod", "RUNPOD_TCP_PORT_18188": "40001"},
        {"RUNPOD_PUBLIC_IP": "203.0.113.7", "RUNPOD_TCP_PORT_x": "1", "RUNPOD_TCP_PORT_5": "99999"},
    ],
    ids=str,
)
def test_without_a_mapping_one_has_to_say_where(environment: dict[str, str]) -> None:
    assert reach.mapped(environment) is None
    with pytest.raises(InputError, match="--at HOST:PORT"):
        reach.at("")


def test_an_address_that_leads_here() -> None:
    given = reach.at("pod.example.org:40001", 18187)
    assert (given.host, given.port, given.hosts) == ("0.0.0.0", 18187, ("pod.example.org",))
    assert given.hints == (Address("pod.example.org", 40001),) and given.ports is None
    assert reach.at("pod.example.org:40001").port == 40001
    tunnel = reach.at("127.0.0.1:4000", 18187)
    assert (tunnel.host, tunnel.hosts) == ("127.0.0.1", ())
    with pytest.raises(InvalidAddress):
        reach.at("nowhere")


def test_lan_addresses_without_zeroconf(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> list[str]:
        raise ImportError

    monkeypatch.setattr(reach, "lan_hosts", missing)
    assert reach.hosts("10.0.0.5") == ["10.0.0.5"]
    assert len(reach.hosts("0.0.0.0")) <= 1
    monkeypatch.setattr(reach, "lan_hosts", lambda _: [])
    with pytest.raises(InputError, match="in no local network"):
        reach.in_lan("0.0.0.0")


# --- the command line -----------------------------------------------------------------------------


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cli.arguments(parser)
    return cli.run(parser.parse_args(arguments))


def test_without_a_verb_it_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run()
    said = capsys.readouterr().err
    assert end.value.code == 2 and "VERB is required" not in said
    assert "what is to be done? One of: invite, accept, list, " in said and "--help" in said


COMMAND = """
    import argparse, logging, sys
    from zbus.cli import pair
    logging.basicConfig(level=logging.DEBUG)
    parser = argparse.ArgumentParser()
    pair.arguments(parser)
    try:
        sys.exit(pair.run(parser.parse_args(sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def environment(home: Path) -> dict[str, str]:
    return {"ZBUS_HOME": str(home)}


def test_two_terminals(tmp_path: Path) -> None:
    homes = [tmp_path / "desk", tmp_path / "pod"]
    port = free_port()
    with child(COMMAND, "invite", "--port", port, env=environment(homes[0])) as host:
        host.line("run  zbus-pair accept  and paste this token")
        token = host.line(BEGIN)
        parts = [token[:50].upper(), token[50:]]
        with child(
            COMMAND, "accept", *parts, "--name", "my desk", env=environment(homes[1])
        ) as guest:
            at_pod, at_desk = guest.rest(), host.rest()
            assert (guest.process.returncode, host.process.returncode) == (0, 0)
    for text in (at_pod, at_desk):
        for home in homes:
            assert text.count(cli.fingerprint(Trust(home).keys.public)) >= 1
    assert 'Paired with "my desk"' in at_pod and at_desk.count(token) == 1
    assert "may do here    pass values to running workflows (exchange), run workflows" in at_desk
    assert "may do here    pass values to running workflows (exchange)\n" in at_pod
    assert token not in at_pod.lower()
    assert [one.name for one in Trust(homes[1]).principals()] == ["my desk"]


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_an_invitation_and_closes_what_it_opened(tmp_path: Path, name: str) -> None:
    """The end of a session, and of a terminal, too."""
    at = f"pod.example.org:{free_port()}"
    with child(COMMAND, "invite", "--at", at, env=environment(tmp_path / "desk")) as host:
        host.line("zbus-pair accept")
        assert Trust(tmp_path / "desk").lan == "0.0.0.0"
        host.signal(getattr(signal, name))
        host.signal(getattr(signal, name))  # a second one keeps nothing from being closed
        assert "Cancelled: the token counts no longer." in host.rest()
        assert host.process.returncode == 130
    assert Trust(tmp_path / "desk").lan == ""


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_one_that_is_killed_leaves_nothing_open(tmp_path: Path) -> None:
    """No handler runs: the ComfyUIs that listen notice it by themselves, and are the only ones
    that have to."""
    home = tmp_path / "desk"
    with Peer("desk-8188", trust=Trust(home)) as comfyui:
        comfyui.serve(None)

        def open_at() -> set[str]:
            (place,) = comfyui._engine.links.places
            assert isinstance(place, ListenedAddress)
            return place.listener.other_hosts

        at = f"pod.example.org:{free_port()}"
        with child(COMMAND, "invite", "--at", at, env=environment(home)) as host:
            host.line(BEGIN)
            # What `nudge` does to those that are entered as running.
            comfyui._engine.ask(comfyui._engine.links.admission.refresh)
            assert open_at() == {"0.0.0.0"} and comfyui.trust.is_lan_lent
            host.kill_alone()
            assert Trust(home).lan == ""
            until(lambda: open_at() == set(), 10)


def test_who_has_paired_keeps_it_open_and_another_invitation_does_not_matter(
    desk: Trust, pod: Trust
) -> None:
    # Not for real: nobody needs to reach this machine under that name.
    first, second = (Offer(at=f"pod.example.org:{port}") for port in (40123, 40124))
    with contextlib.ExitStack() as stack:
        stack.enter_context(first.opened(desk))
        with pytest.raises(KeyboardInterrupt), second.opened(Trust(desk.folder)):
            raise KeyboardInterrupt
        meanwhile = Trust(desk.folder)
        assert (meanwhile.lan, meanwhile.is_lan_lent) == ("0.0.0.0", True)
    again = Trust(desk.folder)
    assert (again.lan, again.is_lan_lent) == ("0.0.0.0", False)


def test_lan_off_takes_back_what_is_lent(desk: Trust) -> None:
    with pytest.raises(KeyboardInterrupt), Offer(at="pod.example.org:40123").opened(desk):
        Trust(desk.folder).set_lan("off")
        assert Trust(desk.folder).lan == ""
        raise KeyboardInterrupt


def test_lan_off_holds_after_the_pairing_as_well(desk: Trust) -> None:
    with Offer(at="pod.example.org:40123").opened(desk):
        Trust(desk.folder).set_lan("off")
    assert Trust(desk.folder).lan == ""


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal")
def test_a_terminal_that_is_closed_ends_an_invitation(tmp_path: Path) -> None:
    import fcntl
    import pty
    import termios

    ours, its = pty.openpty()
    command = [sys.executable, "-B", "-m", "zbus", "pair", "invite", "--lan"]
    host = subprocess.Popen(
        command,
        env={**environment(tmp_path / "desk"), "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(its, termios.TIOCSCTTY, 0),
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    try:
        said = b""
        while b"zbus-pair accept" not in said:
            said += os.read(ours, 4096)
        assert Trust(tmp_path / "desk").lan == "0.0.0.0"
    finally:
        os.close(ours)
        host.wait(20)
    assert Trust(tmp_path / "desk").lan == ""


def test_the_token_can_come_through_a_pipe(tmp_path: Path, desk: Trust, invite: Invite) -> None:
    host = invite(desk)
    with child(COMMAND, "accept", env=environment(tmp_path / "pod")) as guest:
        guest.tell(host.token)
        assert 'Paired with "' in guest.rest()
    assert host.end().paired is not None


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal")
def test_the_token_is_asked_for_and_may_be_pasted_in_lines(
    tmp_path: Path, desk: Trust, invite: Invite
) -> None:
    """As a mail breaks it; what is typed at a terminal stands in no list of commands."""
    import pty

    host, (ours, its) = invite(desk), pty.openpty()
    command = [sys.executable, "-B", "-m", "zbus", "pair", "accept", "--name", "my desk"]
    variables = {**os.environ, **environment(tmp_path / "pod"), "PYTHONPATH": str(ROOT)}
    guest = subprocess.Popen(command, env=variables, stdin=its, stdout=its, stderr=its)
    os.close(its)
    said = b""

    def read_until(words: bytes) -> None:
        nonlocal said
        while words not in said:
            said += os.read(ours, 4096)

    try:
        read_until(b"Token: ")
        middle = len(host.token) // 2
        os.write(ours, f"\n{host.token[:middle]}\n".encode())
        read_until(b"More: ")
        os.write(ours, f"  {host.token[middle:]}\n".encode())
        read_until(b'Paired with "my desk"')
        assert guest.wait(20) == 0
    finally:
        os.close(ours)
        guest.kill()
        guest.wait()
    assert host.end().paired is not None


@pytest.mark.parametrize(
    "given, words", [("", "there is no token"), ("zbus-aeb\n\n", "incomplete")]
)
def test_what_is_asked_for_and_not_given(tmp_path: Path, given: str, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-m", "zbus", "pair", "accept"],
        input=given,
        env={**os.environ, **environment(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and words in done.stderr


def test_a_bad_token_is_told_without_being_repeated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("accept", TEXT[:-3]) == 2
    out = capsys.readouterr()
    assert "incomplete" in out.err and TEXT[10:30] not in out.err + out.out


def test_list_and_the_other_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    trust, key = Trust(), to_text(ACCEPTER)
    assert run("list") == 0
    assert "Nobody is paired" in capsys.readouterr().out
    page = "https://user:hush@pod.example/comfy"
    permit = ["--permit", "exchange,jobs", "--address", "h:1", "--address", f"b={page}"]
    assert run("trust", key, "--name", "pod", *permit, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["key"] == to_text(trust.keys.public) and made["principal"]["key"] == key
    assert made["principal"]["peers"] == {"pod": ["h:1"], "b": ["https://pod.example/comfy"]}
    trust.reload()
    assert dict(trust.named("pod").peers)["b"] == (page,)
    assert run("rename", "pod", "cloud") == 0
    assert run("move", "cloud", "h:2", "h:3", "--peer", "pod") == 0
    assert run("permit", "cloud", "jobs") == 0
    assert run("require", "on") == 0
    assert run("lan", "192.168.1.20") == 0
    capsys.readouterr()
    assert run("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["lan"], listed["require_pairing"]) == ("192.168.1.20", True)
    (one,) = listed["principals"]
    assert (one["name"], one["permissions"]) == ("cloud", ["jobs"])
    assert one["peers"]["pod"] == ["h:2", "h:3"] and one["fingerprint"] == cli.fingerprint(ACCEPTER)
    assert run("list") == 0
    text = capsys.readouterr().out
    assert "hush" not in text and "h:2, h:3" in text and one["fingerprint"] in text
    assert run("permit", "cloud", "none") == 0
    assert run("lan", "off") == run("require", "off") == run("forget", "cloud") == 0
    assert run("fingerprint", "--json") == 0
    own = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert own["fingerprint"] == cli.fingerprint(trust.keys.public)
    trust.reload()
    assert (trust.principals(), trust.lan, trust.require_pairing) == ([], "", False)
    assert to_text(trust.keys.secret) not in text + json.dumps(listed) + json.dumps(own)


@pytest.mark.parametrize(
    "arguments",
    [
        ("rename", "nobody", "x"),
        ("forget", "nobody"),
        ("permit", "nobody", "jobs"),
        ("permit", "nobody", "everything"),
        ("move", "nobody", "h:1"),
        ("trust", "x", "--name", "y"),
        ("trust", to_text(ACCEPTER), "--name", "a/b"),
        ("lan", "my-computer"),
        ("invite", "--at", "nowhere"),
        ("invite", "--at", "https://h/"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_is_a_line_and_a_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().err.startswith("zbus-pair: ")
    assert Trust().lan == ""


def test_a_store_that_cannot_be_used_is_a_1(capsys: pytest.CaptureFixture[str]) -> None:
    Trust().pair(ACCEPTER, "pod")
    Trust().file.write_text("{")
    assert run("list") == 1
    assert str(Trust().file) in capsys.readouterr().err
