"""Jobs between two real ComfyUIs: what a workflow takes longer on the other one than here."""

from __future__ import annotations

import itertools
import json
import random
import time
import urllib.error
import urllib.request
from typing import Any

from ....errors import JobError, JobFailed, JobRefused, TimedOut
from ....printable import shown
from ..processes import Pairs
from ..rows import Row
from .measured import WARM, Measured, Plan

LIMIT = 60.0  # seconds for one workflow
POLL = 0.002
HOW = "it needs two ComfyUIs with zbus: --comfyui http://HERE:PORT http://THERE:PORT"


def job(row: Row, pairs: Pairs, plan: Plan) -> Measured:
    """The seconds of a workflow whose part runs there, less those of the same here: the row's value
    is "BATCHxSIDE" of its pictures."""
    measured = Measured(row)
    if plan.comfyuis is None:
        measured.skipped = HOW
        return measured
    here, there = plan.comfyuis
    taken: dict[str, list[float]] = {"zbus": [], "as a job": [], "here": []}
    colours = itertools.count(random.randrange(1 << 20))  # no result of an earlier one is used
    try:
        for number in range(-WARM, plan.of(row)):
            alone = _seconds(here, prompt(row.value, next(colours), ""))
            given = _seconds(here, prompt(row.value, next(colours), there))
            if number >= 0:
                taken["here"].append(alone)
                taken["as a job"].append(given)
                taken["zbus"].append(max(0.0, given - alone))
        measured.take(taken)
    except (JobError, OSError, ValueError, KeyError) as error:
        measured.skipped = f"{type(error).__name__}: {error}"
    return measured


def prompt(pictures: str, colour: int, peer: str) -> dict[str, Any]:
    """Pictures of one colour, made by that peer ("": here), and looked at here."""
    batch, _, side = pictures.partition("x")
    size = {"width": int(side), "height": int(side), "batch_size": int(batch)}
    made: dict[str, Any] = {"made": _node("EmptyImage", color=colour & 0xFFFFFF, **size)}
    end = "made"
    if peer:
        end = "run"
        made["run"] = _node(
            "ZBusRun",
            value=["made", 0],
            peer=peer,
            here="no",
            quality="exact",
            on_failure="stop",
        )
    # One pixel of one picture: what is looked at must not take longer than what is measured.
    made["one"] = _node("ImageFromBatch", image=[end, 0], batch_index=0, length=1)
    crop = {"width": 1, "height": 1, "x": 0, "y": 0}
    made["pixel"] = _node("ImageCrop", image=["one", 0], **crop)
    made["shown"] = _node("PreviewImage", images=["pixel", 0])
    return made


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _seconds(page: str, workflow: dict[str, Any]) -> float:
    began = time.perf_counter()
    number = _asked(page, "/prompt", {"prompt": workflow})["prompt_id"]
    while time.perf_counter() < began + LIMIT:
        entry = _asked(page, f"/history/{number}").get(number)
        if entry:
            seconds = time.perf_counter() - began
            status = entry.get("status", {})
            if status.get("status_str") != "success":
                raise JobFailed(
                    f"the workflow failed: {json.dumps(status.get('messages', ''))[-300:]}",
                    peer=page,
                    remedy="Look at the consoles of both ComfyUIs, and whether zbus-ping finds the "
                    "second from the first one's machine",
                )
            return seconds
        time.sleep(POLL)
    raise TimedOut(
        f"the workflow has not ended in {LIMIT:.0f} s",
        peer=page,
        remedy="Look whether one of the two ComfyUIs hangs, or has other jobs in its queue",
    )


def _asked(page: str, path: str, given: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if given is None else json.dumps(given).encode()
    asked = urllib.request.Request(
        page.rstrip("/") + path, data, {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=LIMIT) as answer:
            got: dict[str, Any] = json.load(answer)
            return got
    except urllib.error.HTTPError as error:
        body = error.read()[:300].decode(errors="replace")
        raise JobRefused(
            f"{path} was answered with {error.code}: {shown(body)}",
            peer=page,
            remedy="Look whether both are ComfyUIs that have zbus installed",
        ) from error
