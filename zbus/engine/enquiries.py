"""What is that peer, and what is it doing? Asked on one side, answered on the other.

Runs in the I/O thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..errors import RemoteProtocolError, ZBusError
from ..job import Remote
from ..net.places import Peering
from ..printable import clean_all
from ..protocol.messages import MAX_FACTS, Enquire, Facts
from .connecting import Connecting, SessionRequest
from .context import Context

logger = logging.getLogger(__name__)

MAX_QUESTIONS = 64  # of one session, unanswered

Answer = Callable[[dict[str, Any] | ZBusError], None]


class Enquiries:
    """All questions of one peer, and those that it is asked."""

    def __init__(self, context: Context, connecting: Connecting) -> None:
        self._context, self._connecting = context, connecting
        self._questions: dict[tuple[bytes, int], Answer] = {}
        self._asked = 0
        self._answering: dict[bytes, int] = {}

    def ask(self, remote: Remote) -> Future[dict[str, Any]]:
        """What that peer tells of itself."""
        future: Future[dict[str, Any]] = Future()
        future.set_running_or_notify_cancel()  # nobody but this ends it

        def then(peering: Peering) -> None:
            self._asked += 1
            self._questions[peering.key, self._asked] = answered
            peering.session.send(Enquire(self._asked))

        def answered(result: dict[str, Any] | ZBusError) -> None:
            self._connecting.done(errand)
            if isinstance(result, ZBusError):
                future.set_exception(result)
            else:
                future.set_result(result)

        errand = SessionRequest(remote, then, future.set_exception)
        self._connecting.begin(errand)
        return future

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
        least = json.dumps({"jobs": permitted})

        def look() -> str:
            try:
                text = json.dumps((facts() if permitted else {}) | {"jobs": permitted}, default=str)
            except Exception:  # the host's own code
                logger.exception("this side could not say how it is")
                return least
            return text if len(text) <= MAX_FACTS else least

        def tell(text: str | ZBusError) -> None:
            if peering.error is None:
                self._answering[peering.key] -= 1
                told = least if isinstance(text, ZBusError) else text
                peering.session.send(Facts(message.question, told))

        self._context.workers.run(look, tell)

    def told(self, peering: Peering, message: Facts) -> None:
        """The peer answers."""
        answered = self._questions.pop((peering.key, message.question), None)
        if answered is None:
            return
        try:
            facts = clean_all(json.loads(message.facts))
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict):
            facts = RemoteProtocolError("facts that are no map", peer=peering.name)
        answered(facts)

    def session_down(self, peering: Peering, error: ZBusError) -> None:
        """The session has ended, and its questions with it."""
        self._answering.pop(peering.key, None)
        for key in [k for k in self._questions if k[0] == peering.key]:
            self._questions.pop(key)(error)

    def close(self, error: ZBusError) -> None:
        """The peer is closed."""
        for key in list(self._questions):
            self._questions.pop(key)(error)
