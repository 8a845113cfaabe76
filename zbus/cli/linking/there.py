"""Who is on the far machine: found, paired, forwarded, entered in the trust store, asked."""

from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ...address import Address, parse_dial
from ...discovery import Entry
from ...errors import ConnectError, PortInUse, UnknownPeer, ZBusError
from ...keys import fingerprint, to_text
from ...pairing.hellos import usable_name
from ...peer import Peer
from ...principals import Principal
from ...remote import Remote
from ...resolver import Resolver
from ...trust import Trust
from ..linking import book, far
from .ssh import Ssh
from .telling import Teller

PORTS = 10  # that may turn out to be taken

Found = dict[tuple[bytes, str], Entry]  # of its user's key and its name


@dataclass
class Far:
    """One ComfyUI there, and how it is.

    Attributes:
        key: Its user's public key.
        entry: As its own machine knows it.
        port: Here, which leads to it.
        name: What it is called here.
        answered: Seconds that it took to answer last; None: it does not, or was not asked yet.
        jobs: Whether it runs workflows for this computer.
        problem: Why it does not answer, or "".
        told: Its state that a person knows of.
    """

    key: bytes
    entry: Entry
    port: int
    name: str = ""
    answered: float | None = None
    jobs: bool = False
    problem: str = ""
    told: str = ""
    _asked: Future[dict[str, Any]] | None = field(default=None, repr=False)
    _took: list[float] = field(default_factory=list, repr=False)

    @property
    def address(self) -> str:
        return str(Address("127.0.0.1", self.port))

    @property
    def state(self) -> str:
        """How it is, in words; "" if nothing is known."""
        if self.problem:
            return f"{self.name} does not answer: {self.problem}"
        if self.answered is None:
            return ""
        return f"{self.name} answers" + ("" if self.jobs else ", and takes no jobs from here")

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "address": self.address,
            "there": self.entry.name,
            "ok": self.answered is not None,
            "jobs": self.jobs,
            "ms": None if self.answered is None else round(self.answered * 1000, 1),
            "error": self.problem or None,
        }

    def ask(self, peer: Peer) -> None:
        """How it is, unless a question is open."""
        if self._asked is None:
            began, took = time.monotonic(), list[float]()
            self._took = took
            remote = Remote(self.address, self.entry.instance, self.name, self.key)
            self._asked = peer.enquire(remote)
            self._asked.add_done_callback(lambda _: took.append(time.monotonic() - began))

    @property
    def is_asked(self) -> bool:
        """Whether a question is open."""
        return self._asked is not None and not self._asked.done()

    def hear(self) -> None:
        """What has come of the question."""
        self.answered = None
        if self._asked is None or not self._asked.done():
            self.problem = "no word of it yet"
            return
        try:
            self.jobs = self._asked.result().get("jobs") is True
            self.problem, self.answered = "", self._took[0] if self._took else 0.0
        except ZBusError as error:
            self.problem = error.what
        self._asked = None


class There:
    """All ComfyUIs there.

    Args:
        ssh: Leads there.
        trust: Of this user.
        name: What to call the machine; "": as it is called already, or `book.NAME`.
        replaces: Whether another machine of that name is forgotten.
    """

    def __init__(self, ssh: Ssh, trust: Trust, teller: Teller, name: str, replaces: bool) -> None:
        self._ssh, self._trust, self._teller = ssh, trust, teller
        self._name, self._replaces = name, replaces
        self._own = trust.keys.public  # or why there is none, before anything is done
        self._keys: dict[str, bytes] = {}  # folder of a zbus there -> its user's key, once paired
        self._names: dict[bytes, str] = {}
        self._far: dict[tuple[bytes, str], Far] = {}

    @property
    def all(self) -> list[Far]:
        return list(self._far.values())

    def forward_again(self) -> None:
        """What was forwarded before the connection was lost; and pair anew at the next look."""
        self._keys.clear()
        with contextlib.suppress(PortInUse):  # `look` takes another
            self._ssh.forward(self._wanted())

    def look(self) -> None:
        """Find who is there, pair, forward, and enter it.

        Raises:
            ConnectError: Nobody is there, or the connection is lost.
        """
        found: Found = {}
        for home in far.find(self._ssh):
            if any(entry.key == to_text(self._own) for entry in home.entries):
                raise ConnectError(
                    "the zbus there has this user's own key: it is this computer, or a copy of it",
                    remedy="On this computer no link is needed. Elsewhere: end ComfyUI, delete "
                    f"{home.path} there, and start it again",
                )
            if home.path not in self._keys:
                own = usable_name(socket.gethostname().split(".")[0])
                self._keys[home.path] = far.pair(self._ssh, home, self._own, own)
            for entry in home.entries:
                found.setdefault((self._keys[home.path], usable_name(entry.name)), entry)
        self._forward(found)
        for key in dict.fromkeys(key for key, _ in found):
            self._enter(key)

    def forget(self) -> None:
        """Trust none of them any longer."""
        for name in self._names.values():
            try:
                self._trust.forget(name)
            except ZBusError as error:
                self._teller.warn(str(error))

    def _wanted(self) -> dict[int, Address]:
        return {one.port: parse_dial(one.entry.address) for one in self._far.values()}

    def _forward(self, found: Found) -> None:
        taken: set[int] = set()
        before = self._far
        for left in reversed(range(PORTS)):
            self._far = self._with_ports(before, found, taken)
            try:
                self._ssh.forward(self._wanted())
                return
            except PortInUse as error:
                self._far = before
                if not left:
                    raise
                taken.add(int(error.peer))

    def _with_ports(
        self, before: dict[tuple[bytes, str], Far], found: Found, taken: set[int]
    ) -> dict[tuple[bytes, str], Far]:
        """Those who were there before, and those who are found. Who is not found may come back."""
        made = dict(before)
        for key in dict.fromkeys(key for key, _ in found):
            names = [name for of, name in found if of == key]
            held = {name: one.port for (of, name), one in before.items() if of == key}
            others = {one.port for (of, _), one in made.items() if of != key}
            for name, port in book.ports(self._trust, key, names, held, taken | others).items():
                entry, known = found[key, name], before.get((key, name))
                if known is None or (known.entry, known.port) != (entry, port):
                    made[key, name] = Far(key, entry, port)
        return made

    def _enter(self, key: bytes) -> None:
        """Into the trust store, where nodes look names up."""
        links = {name: one.port for (of, name), one in self._far.items() if of == key}
        wanted = self._name or ("" if self._trust.of(key) else book.NAME)
        other = book.holder(self._trust, wanted, self._keys.values()) if wanted else None
        one = book.enter(self._trust, key, wanted, links, other if self._replaces else None)
        for name in links:
            self._far[key, name].name = one.name if len(one.peers) == 1 else f"{one.name}/{name}"
        if self._names.get(key) != one.name:
            self._names[key] = one.name
            self._tell(one, other)

    def _tell(self, one: Principal, other: Principal | None) -> None:
        mark = fingerprint(one.key)
        text = f'paired: it is "{one.name}" here (its fingerprint: {mark})'
        self._teller.say("paired", text, name=one.name, fingerprint=mark)
        if other is not None and not self._replaces:
            self._teller.warn(
                f'another machine is called "{other.name}" here, since {other.paired[:10]}. To '
                "forget that one and give its name to this one: zbus-link --replace"
            )
        for name in [its.name for its in self._far.values() if its.key == one.key]:
            try:
                Resolver(self._trust).named(name)
            except UnknownPeer as error:
                self._teller.warn(str(error))
