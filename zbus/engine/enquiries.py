"""What is that peer, and what is it doing? Asked on one side, answered on the other.

Runs in the I/O thread. What the host tells of itself is asked in threads of their own: whatever it
waits for there, each question has an answer in time, and each asker an end.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..errors import RemoteProtocolError, TimedOut, ZBusError
from ..job import Remote
from ..net.places import Peering
from ..printable import clean_all
from ..protocol.identity import SessionKey
from ..protocol.messages import MAX_FACTS, Enquire, Facts
from .connecting import Connecting, SessionRequest

logger = logging.getLogger(__name__)

MAX_QUESTIONS = 64  # of one session, unanswered
LOOKS = 3  # calls of the host at once: one that hangs does not keep the others from being asked
LOOK_WITHIN = 5.0  # seconds; then the host's answer is done without
ANSWER_WITHIN = 10.0  # seconds of the asker's patience, while the peer's process answers pings;
DEAF = 40.0  # while it does not: it can be deaf for half a minute while it loads a model

Answer = Callable[[dict[str, Any] | ZBusError], None]


@dataclass(eq=False)
class _Asked:
    """A question of this side."""

    peering: Peering
    answered: Answer
    began: float


@dataclass(eq=False)
class _Question:
    """A question to this side, from one that may know."""

    peering: Peering
    number: int
    until: float
    answered: bool = False


class Enquiries:
    """All questions of one peer, and those that it is asked.

    Args:
        post: Hands a call to the I/O thread, from any thread.
    """

    def __init__(
        self, connecting: Connecting, post: Callable[[Callable[[], None]], object]
    ) -> None:
        self._connecting, self._post = connecting, post
        self._questions: dict[tuple[SessionKey, int], _Asked] = {}
        self._numbered = 0
        self._answering: dict[SessionKey, int] = {}
        self._open: list[_Question] = []  # that wait for what the host says
        self._unasked: list[_Question] = []  # and those of them for which it is not asked yet
        self._looks = 0

    # --- asking -------------------------------------------------------------------------------

    def ask(self, remote: Remote) -> Future[dict[str, Any]]:
        """What that peer tells of itself."""
        future: Future[dict[str, Any]] = Future()
        future.set_running_or_notify_cancel()  # nobody but this ends it

        def then(peering: Peering) -> None:
            self._numbered += 1
            asked = _Asked(peering, answered, time.monotonic())
            self._questions[peering.key, self._numbered] = asked
            peering.session.send(Enquire(self._numbered))

        def answered(result: dict[str, Any] | ZBusError) -> None:
            self._connecting.done(session_request)
            if isinstance(result, ZBusError):
                future.set_exception(result)
            else:
                future.set_result(result)

        session_request = SessionRequest(remote, then, future.set_exception)
        self._connecting.begin(session_request)
        return future

    def told(self, peering: Peering, message: Facts) -> None:
        """The peer answers."""
        asked = self._questions.pop((peering.key, message.question), None)
        if asked is None:
            return
        try:
            facts = clean_all(json.loads(message.facts))
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict):
            facts = RemoteProtocolError("facts that are no map", peer=peering.name)
        asked.answered(facts)

    # --- answering ----------------------------------------------------------------------------

    def asked(
        self,
        peering: Peering,
        message: Enquire,
        permitted: bool,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        """The peer asks: tell whether it may give jobs here, and if so the `facts` too.

        Raises:
            RemoteProtocolError: It asks too much.
        """
        open_ones = self._answering.get(peering.key, 0)
        if open_ones >= MAX_QUESTIONS:
            raise RemoteProtocolError("too many questions at once")
        self._answering[peering.key] = open_ones + 1
        question = _Question(peering, message.question, time.monotonic() + LOOK_WITHIN)
        if not permitted:
            self._tell(question, json.dumps({"jobs": False}))
            return
        self._open.append(question)
        self._unasked.append(question)
        self._look(facts)

    def _look(self, facts: Callable[[], dict[str, Any]]) -> None:
        """Ask the host, for all that came since it was asked last."""
        if not self._unasked or self._looks >= LOOKS:
            return
        self._looks += 1
        questions, self._unasked = self._unasked, []

        def look() -> None:
            told = _facts(facts)
            self._post(lambda: looked(told))

        def looked(told: str) -> None:
            self._looks -= 1
            for question in questions:
                self._tell(question, told)
            self._look(facts)

        try:
            threading.Thread(target=look, name="zbus-host-facts", daemon=True).start()
        except RuntimeError:  # the interpreter is ending, or has too many threads
            looked(_LEAST)

    def _tell(self, question: _Question, told: str) -> None:
        if question.answered:
            return
        question.answered = True
        if question in self._open:
            self._open.remove(question)
        peering = question.peering
        if peering.error is None:
            self._answering[peering.key] -= 1
            peering.session.send(Facts(question.number, told))

    # --- their ends ---------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Each question has its time, on either side."""
        for question in [q for q in self._open if now >= q.until]:
            logger.warning("this side could not say in %.0f s how it is", LOOK_WITHIN)
            self._tell(question, _LEAST)
        self._unasked = [question for question in self._unasked if not question.answered]
        for key, asked in list(self._questions.items()):
            if now >= _until(asked):
                del self._questions[key]
                asked.answered(_unanswered(asked, now))

    def deadline(self, now: float) -> float | None:
        """When `tick` has something to do."""
        times = [question.until for question in self._open]
        times += [max(_until(asked), now) for asked in self._questions.values()]
        return min(times, default=None)

    def session_down(self, peering: Peering, error: ZBusError) -> None:
        """The session has ended, and its questions with it."""
        self._answering.pop(peering.key, None)
        self._open = [question for question in self._open if question.peering is not peering]
        self._unasked = [question for question in self._unasked if question.peering is not peering]
        for key in [k for k in self._questions if k[0] == peering.key]:
            self._questions.pop(key).answered(error)

    def close(self, error: ZBusError) -> None:
        """The peer is closed."""
        for key in list(self._questions):
            self._questions.pop(key).answered(error)


_LEAST = json.dumps({"jobs": True})


def _facts(facts: Callable[[], dict[str, Any]]) -> str:
    """What the host tells, as JSON. In a thread of its own."""
    try:
        text = json.dumps(facts() | {"jobs": True}, default=str)
    except BaseException:  # the host's own code
        logger.exception("this side could not say how it is")
        return _LEAST
    return text if len(text) <= MAX_FACTS else _LEAST


def _until(asked: _Asked) -> float:
    peering = asked.peering
    is_deaf = peering.connection is None or peering.silent > 0
    return asked.began + (DEAF if is_deaf else ANSWER_WITHIN)


def _unanswered(asked: _Asked, now: float) -> TimedOut:
    return TimedOut(
        f"no answer in {now - asked.began:.0f} s, though its link stands",
        peer=asked.peering.name,
        stage="asking what it is and does",
        remedy="Look whether that ComfyUI hangs (its page, its log); restart it if it does",
    )
