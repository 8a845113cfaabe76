"""What a peer tells of itself to who asks whether it runs jobs: checked, and for people.

All of it is the other side's word: a fact of a wrong kind counts as not told.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # not the builtin one before 3.11
from typing import Any

from ...errors import NotPermitted, RunsNoPrompts, TimedOut, ZBusError
from ...job import Remote
from ...net.places import OWN
from ...operation import size_text
from ...peer import Peer
from ...printable import shown
from ...protocol.messages import MAX_TOTAL, Hello
from ...protocol.outcomes import NO_PROMPTS

logger = logging.getLogger(__name__)

MAX_DEVICES = 16  # shown
MAX_WORDS = 100  # characters of one fact
MAX_COUNT = 1_000_000  # prompts in a queue
VERSIONS = (
    ("comfyui", "ComfyUI "),
    ("zbus", "zbus "),
    ("torch", "torch "),
    ("python", "Python "),
    ("os", ""),
)


def ask(peer: Peer, remote: Remote, hello: Hello, timeout: float) -> dict[str, Any]:
    """What `remote` tells, as `checked` gives it.

    Raises:
        TimedOut: It has not answered in `timeout` seconds.
        ZBusError: The link has ended.
    """
    try:
        told = peer.enquire(remote).result(timeout)
    except (FutureTimeout, TimeoutError) as error:
        raise TimedOut(
            f"has not said in {timeout:g} s whether it runs jobs",
            peer=str(remote),
            remedy="That ComfyUI hangs or is very busy: look at its console, or give a longer "
            "--timeout",
        ) from error
    return checked(told, hello)


def has_stopped(asked: Future[dict[str, Any]], patience: float) -> bool:
    """Whether it says that it runs no prompts any more. No if it does not say, in that time or at
    all: who has not asked for it waits for no busy one, and those that permit nothing tell nothing.
    """
    try:
        told = asked.result(patience)
    except (ZBusError, FutureTimeout, TimeoutError) as error:
        logger.debug("not known whether it runs prompts: %s", error)
        return False
    return told.get("jobs") is True and told.get("runs_prompts") is False


def checked(told: dict[str, Any], hello: Hello) -> dict[str, Any]:
    """The facts that are of their kind, with the same keys whatever was told; the others None."""
    queue = told.get("queue")
    devices = told.get("devices")
    found = map(told_memory, devices[:MAX_DEVICES] if isinstance(devices, list) else [])
    return {
        "permitted": told.get("jobs") is True,
        "runs_prompts": runs if isinstance(runs := told.get("runs_prompts"), bool) else None,
        "queue": _queue(queue) if isinstance(queue, dict) else None,
        "devices": [device for device in found if device is not None],
        "ram": told_memory(told.get("ram")),
        "comfyui": _words(told.get("comfyui")),
        "zbus": _words(hello.software.removeprefix("zbus ")),
        "torch": _words(told.get("torch")),
        "python": _words(told.get("python")),
        "os": _words(told.get("os")),
    }


def refusal(hello: Hello) -> NotPermitted:
    """Jobs may not go there, and why."""
    if hello.listener == OWN:
        return NotPermitted(
            "not permitted: that ComfyUI runs no jobs of this machine",
            remedy="Have it allowed there (zbus-pair permit NAME exchange,jobs), unless jobs are "
            "turned off there (ZBUS_JOBS=0)",
        )
    return NotPermitted(
        "not permitted: this address is for values only",
        remedy="Give that ComfyUI's name, its page's URL, or its own zbus address; zbus-ping alone "
        "lists those of this machine",
    )


def stopped(name: str) -> RunsNoPrompts:
    """Jobs are permitted, and come to nothing."""
    return RunsNoPrompts(NO_PROMPTS, peer=name)


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts for people; the first line says whether jobs are permitted."""
    queue = facts["queue"]
    busy = f"; queue: {queue['running']} running, {queue['pending']} pending" if queue else ""
    versions = [f"{title}{facts[key]}" for key, title in VERSIONS if facts[key]]
    memory = [_memory_text(device["name"] or device["type"], device) for device in facts["devices"]]
    memory += [_memory_text("RAM", facts["ram"])] if facts["ram"] else []
    return [f"permitted{busy}", *([", ".join(versions)] if versions else []), *memory]


def _queue(told: dict[str, Any]) -> dict[str, int] | None:
    running, pending = (_number(told.get(key), MAX_COUNT) for key in ("running", "pending"))
    if running is None or pending is None:
        return None
    return {"running": running, "pending": pending}


def told_memory(told: object) -> dict[str, Any] | None:
    """A device and its memory in bytes."""
    if not isinstance(told, dict):
        return None
    free, total = (_number(told.get(key), MAX_TOTAL) for key in ("free", "total"))
    name, kind = _words(told.get("name")), _words(told.get("type"))
    if free is None or total is None:
        return None
    return {"name": name, "type": kind, "free": free, "total": total}


def _memory_text(name: str | None, memory: dict[str, Any]) -> str:
    free, total = size_text(memory["free"]), size_text(memory["total"])
    return f"{name or 'a device'}: {free} of {total} free"


def _words(told: object) -> str | None:
    return (shown(told, MAX_WORDS) or None) if isinstance(told, str) else None


def _number(told: object, most: int) -> int | None:
    return told if type(told) is int and 0 <= told <= most else None
