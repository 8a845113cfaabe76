"""Pairs two ZBUS_HOMEs, as `zbus-pair` would, without its socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zbus.keys import generate
from zbus.trust import EXCHANGE, JOBS, Trust

BOTH = (EXCHANGE, JOBS)


def home_of(comfyui: Any) -> Path:
    """Where a ComfyUI of the tests keeps its keys."""
    return Path(comfyui.zbus_home)


@contextlib.contextmanager
def paired(
    here: Path,
    there: Path,
    *,
    name: str = "there",
    addresses: tuple[str, ...] = (),
    may: tuple[str, ...] = BOTH,
) -> Iterator[tuple[Trust, Trust]]:
    """Until the end those two trust each other; `here` may do there what `may` says."""
    ours, theirs = Trust(here), Trust(there)
    ours.pair(theirs.keys.public, name, (EXCHANGE,), ((name, addresses),) if addresses else ())
    theirs.pair(ours.keys.public, "here", may)
    try:
        yield ours, theirs
    finally:
        for trust, key in ((ours, theirs.keys.public), (theirs, ours.keys.public)):
            one = trust.of(key)
            if one is not None:
                trust.forget(one.name)


@contextlib.contextmanager
def away(home: Path, address: str, name: str = "away") -> Iterator[str]:
    """A name in that home of a paired ComfyUI that is not there."""
    trust = Trust(home)
    trust.pair(generate().public, name, (EXCHANGE,), ((name, (address,)),))
    try:
        yield name
    finally:
        trust.forget(name)


@contextlib.contextmanager
def rerouted(comfyui: Any, address: str) -> Iterator[str]:
    """Until the end its name leads to that address, a proxy's: its name."""
    file = Path(comfyui.zbus_home) / "peers" / f"{comfyui.get('/zbus/peer')['id']}.json"
    entry = file.read_text()
    file.write_text(json.dumps(json.loads(entry) | {"address": address}))
    try:
        yield comfyui.peer
    finally:
        with contextlib.suppress(OSError):
            if json.loads(file.read_text())["address"] == address:
                file.write_text(entry)
