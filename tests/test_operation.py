"""What the handle of one send or receive says of itself while it is under way."""

from __future__ import annotations

import pytest

from zbus import operation
from zbus.operation import Operation


def test_the_rate_is_that_of_the_bytes_that_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of those that came since progress was told last."""
    now = 100.0
    monkeypatch.setattr(operation.time, "monotonic", lambda: now)
    handle: Operation[None] = Operation(lambda _: None, None)
    handle.begin_bytes(10_000_000)
    for done in (10_000, 2_000_000):
        now += 0.01
        handle.progressed(done)
    assert "100.0 MB/s" in handle.note, "2 MB in 20 ms"
