"""The sockets alone: what was said before a connection ended is heard, and it ends once."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from zbus.keys import generate
from zbus.net import transport
from zbus.net.frames import Closed, Connected, Connection, Event, Listener, Received
from zbus.net.transport import Transport

PATIENCE = 20.0
WORDS = [b"%d" % number for number in range(5)]


@pytest.fixture
def two() -> Iterator[tuple[Transport, Transport]]:
    ends = Transport(generate(), admit=lambda _: True), Transport(generate())
    yield ends
    for end in ends:
        if not end.context.closed:
            end.close()


def linked(listening: Transport, dialling: Transport, curve: bool) -> tuple[Connection, Connection]:
    """Both sides of a new connection on which one word has been said."""
    listener = listening.bind("127.0.0.1", 0, curve=curve)
    server = listening.key if curve else b""
    connection = dialling.dial("127.0.0.1", listener.port, server=server)
    polled(dialling, lambda event: isinstance(event, Connected), listening)
    dialling.send(connection, b"hello")
    [heard] = [e for e in polled(listening, is_heard) if isinstance(e, Received)]
    return connection, heard.connection


def polled(end: Transport, until: Callable[[Event], bool], *others: Transport) -> list[Event]:
    """The events of `end`, until one of them is the one."""
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while not any(map(until, events)):
        assert time.monotonic() < deadline, events
        for other in others:
            list(other.poll(0.01))
        events += end.poll(0.05)
    return events


def is_closed(event: Event) -> bool:
    return isinstance(event, Closed)


def is_heard(event: Event) -> bool:
    return isinstance(event, Received)


def words(events: list[Event]) -> list[bytes]:
    return [event.header for event in events if isinstance(event, Received)]


@pytest.mark.parametrize("curve", [False, True])
def test_the_last_words_of_a_listener_are_heard_by_who_was_busy(
    two: tuple[Transport, Transport], curve: bool
) -> None:
    listening, dialling = two
    _, accepted = linked(listening, dialling, curve)
    for word in WORDS:
        assert listening.send(accepted, word)
    listening.close()  # whoever dialled does not look meanwhile
    events = polled(dialling, is_closed)
    assert words(events) == WORDS
    assert [event.stage for event in events if isinstance(event, Closed)] == ["link"]


@pytest.mark.parametrize("curve", [False, True])
def test_the_last_words_of_a_dialler_are_heard_by_who_was_busy(
    two: tuple[Transport, Transport], curve: bool
) -> None:
    listening, dialling = two
    to_listener, _ = linked(listening, dialling, curve)
    for word in WORDS:
        assert dialling.send(to_listener, word)
    dialling.close()
    events = polled(listening, is_closed)
    assert words(events) == WORDS


def test_who_says_much_is_heard_for_a_moment_and_answered_before_the_rest(
    two: tuple[Transport, Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "DRAIN_TIME", 0.0)  # no message is taken in less
    listening, dialling = two
    to_listener, _ = linked(listening, dialling, curve=False)
    for word in WORDS:
        assert dialling.send(to_listener, word)
    heard: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    while heard != WORDS:
        assert time.monotonic() < deadline, heard
        events = words(list(listening.poll(0.05)))
        assert len(events) <= 1
        heard += events


def test_a_socket_that_ends_while_it_is_read_is_not_looked_at_again(
    two: tuple[Transport, Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "DRAIN_TIME", 0.0)
    listening, dialling = two
    to_listener, from_dialler = linked(listening, dialling, curve=False)
    for word in WORDS:
        assert listening.send(from_dialler, word)
    deadline = time.monotonic() + PATIENCE
    while to_listener.is_open:
        assert time.monotonic() < deadline
        for event in dialling.poll(0.05):
            if isinstance(event, Received):
                dialling.end(event.connection)
    assert words(list(dialling.poll(0.0))) == []


@pytest.mark.parametrize("curve", [False, True])
def test_to_close_twice_does_no_harm(two: tuple[Transport, Transport], curve: bool) -> None:
    listening, dialling = two
    linked(listening, dialling, curve)
    for end in (listening, dialling, listening, dialling):
        end.close()


def test_a_connection_is_dialled_once(two: tuple[Transport, Transport]) -> None:
    """Not even where somebody listens there again."""
    listening, dialling = two
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialling.dial("127.0.0.1", server.getsockname()[1])
        accepted, _ = server.accept()
        accepted.close()
        [event] = [e for e in polled(dialling, is_closed) if is_closed(e)]
        assert isinstance(event, Closed) and event.stage == "greeting"
        server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            server.accept()


def nobody(listening: Transport) -> Connection:
    """Of one that is gone, and that nobody has told of yet."""
    [listener] = {owner for owner in listening._sources.values() if isinstance(owner, Listener)}
    return Connection(listener.socket, b"nobody", -1, listener)


def test_what_cannot_be_said_is_told_at_the_next_look(
    two: tuple[Transport, Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening, dialling = two
    linked(listening, dialling, curve=False)
    gone = nobody(listening)
    assert not listening.send(gone, b"hello")
    asked: list[float | None] = []
    wait = listening._selector.select

    def watched(timeout: float | None = None) -> list[Any]:
        asked.append(timeout)
        return wait(0)

    monkeypatch.setattr(listening._selector, "select", watched)
    assert Closed(gone, "link") in list(listening.poll(PATIENCE))
    assert asked == [0], "nothing would have woken it"


def test_what_was_heard_while_something_could_not_be_said_is_read(
    two: tuple[Transport, Transport],
) -> None:
    listening, dialling = two
    to_listener, accepted = linked(listening, dialling, curve=False)
    list(listening.poll(0.0))
    assert dialling.send(to_listener, b"word")
    fd = accepted.socket.getsockopt(zmq.FD)
    assert select.select([fd], [], [], PATIENCE)[0]
    deadline = time.monotonic() + PATIENCE
    while select.select([fd], [], [], 0)[0]:  # ZeroMQ looks what is new once a millisecond
        assert time.monotonic() < deadline
        listening.send(nobody(listening), b"hello")
    # No descriptor tells of it any more.
    assert words([event for _ in range(3) for event in listening.poll(0.0)]) == [b"word"]
