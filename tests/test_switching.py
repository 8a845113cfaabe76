"""How soon threads give way to each other, while values are on their way and after."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from children import until

from zbus import Peer
from zbus.engine import loop
from zbus.engine.switching import INTERVAL, Switching


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield
    sys.setswitchinterval(before)


def test_the_last_one_puts_it_back() -> None:
    switching = Switching()
    switching.begin()
    switching.begin()
    assert sys.getswitchinterval() == pytest.approx(INTERVAL)
    switching.end()
    assert sys.getswitchinterval() == pytest.approx(INTERVAL)
    switching.end()
    assert sys.getswitchinterval() == pytest.approx(0.005)


@pytest.mark.parametrize("meanwhile", [0.01, 0.0001])
def test_what_somebody_else_has_set_stays(meanwhile: float) -> None:
    switching = Switching()
    switching.begin()
    sys.setswitchinterval(meanwhile)
    switching.end()
    assert sys.getswitchinterval() == pytest.approx(meanwhile)


def test_a_shorter_one_is_left_alone() -> None:
    sys.setswitchinterval(0.0002)
    switching = Switching()
    switching.begin()
    assert sys.getswitchinterval() == pytest.approx(0.0002)
    switching.end()
    assert sys.getswitchinterval() == pytest.approx(0.0002)


@pytest.mark.parametrize("closes", [False, True])
def test_a_transfer_shortens_it_for_a_while(closes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SWITCH_FOR", 60.0 if closes else 0.1)
    with Peer("here") as here, Peer("there") as there:
        with there.listen("127.0.0.1:0") as listening, here.connect(listening.address) as dialling:
            receiving = listening.start_receive(timeout=30)
            sending = dialling.start_send(bytes(300_000), timeout=30)
            until(lambda: sys.getswitchinterval() < 0.001)
            assert len(receiving.result()) == 300_000
            sending.result()
        if not closes:
            until(lambda: sys.getswitchinterval() > 0.004)
    assert sys.getswitchinterval() == pytest.approx(0.005)
