"""Who hears of which message, and whose ids are whose."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from children import until
from ends import linked

from zbus import Peer, Settings
from zbus.callbacks import Callbacks
from zbus.errors import Cancelled, PeerClosed, RemoteProtocolError
from zbus.protocol.messages import KINDS, Await, JobOffer, Measure, Message, Offer

MIB = 1 << 20
SOCKET = Settings(share_memory=False)


def test_every_kind_has_one_handler() -> None:
    with Peer("p") as peer:
        engine = peer._engine
        channel, jobs = engine.channels.kinds, engine.job_service.kinds
        kinds = Counter([*channel, *jobs])
        assert max(kinds.values()) == 1, "for channels and for jobs"
        assert set(engine.links.handlers) == set(KINDS.values())


@pytest.mark.parametrize("kind", [Offer, Await, Measure, JobOffer])
def test_a_peer_cannot_take_the_ids_that_this_side_gives(kind: type[Message]) -> None:
    """Else what this side sends next would find its id in use."""
    with linked(SOCKET, SOCKET) as ends:
        receive = ends.listening.start_receive(timeout=10)
        ends.dialled.send(1, timeout=10)
        assert receive.result() == 1
        engine = ends.server._engine
        (peering,) = engine.links.peerings
        link = engine.channels.links[peering.key]
        ours, theirs = (
            link.operations * 2 + 2 + link.binds,
            link.operations * 2 + 2 + (not link.binds),
        )
        assert link.may_be_theirs(theirs) and not link.may_be_theirs(ours)
        said: dict[type[Message], Any] = {
            Offer: Offer(1, ours, 0, "text", "", 1, "raw", b"", 0, True),
            Await: Await(1, ours, 0, "any", ""),
            Measure: Measure(ours, "down", 1 << 20),
            JobOffer: JobOffer("j", "submit", ours, 1, "raw", b"", 0, True),
        }
        with pytest.raises(RemoteProtocolError, match="an id of this side"):
            engine.links.handlers[kind](peering, said[kind], None)
        receive = ends.dialled.start_receive(timeout=10)
        ends.listening.send("goes on", timeout=10)
        assert receive.result() == "goes on"


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("how", ["time", "close"])
def test_a_measurement_that_is_given_up_stops_on_both_sides(direction: str, how: str) -> None:
    with linked(SOCKET, SOCKET) as ends:
        ends.proxy.rate = 20e6
        probe = ends.client.probe(ends.proxy.address)
        probe.hello(10)
        if how == "time":
            with pytest.raises(TimeoutError):
                probe.block(direction, 256 * MIB, 0.3)
        else:
            failed: list[BaseException] = []

            def measure() -> None:
                try:
                    probe.block(direction, 256 * MIB, 60)
                except Cancelled as error:
                    failed.append(error)

            thread = threading.Thread(target=measure)
            thread.start()
            until(lambda: ends.client.counters()["transfers"])
            probe.close()
            thread.join(10)
            assert failed
        for peer in (ends.client, ends.server):
            until(lambda p=peer: not p.counters()["transfers"], 10)
        probe.close()


def test_a_block_of_no_bytes_ends() -> None:
    with linked(SOCKET, SOCKET) as ends:
        probe = ends.client.probe(ends.proxy.address)
        probe.hello(10)
        assert probe.block("up", 0, 10) >= 0 and probe.block("down", 0, 10) >= 0


def test_a_small_value_does_not_wait_for_memory() -> None:
    """A large one waits that does not fit beside one whose link is lost."""
    small = Settings(memory=20 * MIB, share_memory=False)
    with linked(small, small) as ends:
        ends.proxy.rate = 20e6
        ends.listening.start_receive(0)
        ends.dialled.start_send(np.zeros(16 * MIB, np.uint8), 0, quality="raw")
        until(lambda: ends.server.counters()["memory"])
        with ends.server.listen("127.0.0.1:0") as large, ends.server.listen("127.0.0.1:0") as other:
            with (
                Peer("c", settings=small) as peer,
                peer.connect(large.address) as a,
                peer.connect(other.address) as b,
            ):
                large.start_receive(0)
                a.start_send(np.zeros(8 * MIB, np.uint8), 0, quality="raw")
                until(lambda: ends.server.counters()["waiting for memory"])
                receive = other.start_receive(0, timeout=10)
                b.send("small", 0, timeout=10)
                assert receive.result() == "small"


def test_one_peers_callback_holds_up_no_other_peers() -> None:
    with linked(SOCKET, SOCKET) as ends:
        gate, told = threading.Event(), threading.Event()
        try:
            receive = ends.listening.start_receive(timeout=10)
            receive.add_done_callback(lambda _: gate.wait(30))
            send = ends.dialled.start_send("x", timeout=10)
            send.add_done_callback(lambda _: told.set())
            assert told.wait(10)
        finally:
            gate.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.skipif(sys.platform == "darwin", reason="threads and fork do not go together there")
def test_a_forked_child_is_told_that_its_peer_is_not_there() -> None:
    with Peer("parent") as peer, peer.listen("127.0.0.1:0") as channel:
        callbacks, called = Callbacks(), threading.Event()
        callbacks.call(called.set)
        assert called.wait(10)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                again = threading.Event()
                callbacks.call(again.set)
                receive = channel.start_receive(timeout=2)
                is_told = isinstance(receive.error(), PeerClosed)
                code = 0 if is_told and again.wait(10) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not peer._engine.closed
