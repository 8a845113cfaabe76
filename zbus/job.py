"""A job, as callers see it: what is asked, and the handles of who asks and of who runs it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import codecs, given
from .callbacks import CALLBACKS, Callbacks
from .errors import CodecRefused, InputError, NotTransferable, RemoteProtocolError, UnknownCodec
from .operation import Operation
from .printable import shown
from .protocol.fields import clip
from .reasons import Reason
from .remote import Remote
from .values.payload import Flat, clipped, flatten

__all__ = ["Job", "JobHost", "Reason", "Remote", "Request", "Taken"]

MAX_VALUES = 1024  # attached to one job
MAX_TITLE = 120
MAX_NAME = 120  # of a result
PREVIEWS = ("image/jpeg", "image/png")
MAX_COUNT = (1 << 63) - 1  # on the wire
MAX_DETAIL = 200_000  # characters of a traceback


@dataclass(frozen=True)
class Request:
    """What another peer is asked to run.

    Attributes:
        prompt: ComfyUI's API format: node id -> {"class_type", "inputs"}.
        outputs: The ids of the nodes to execute; none: every output node.
        values: What travels with it, by name.
        title: What the job is, for people.
        group: A newer job of the same group stops the older ones that this process has given.
        check: Only look whether it could run.
        quality: How its results travel: see `Channel.send`.
        wanted: The names of its results; another one is not taken. None: whatever comes.
        types: Those types of a host's own (see `values.containers`) that its results may be of.
            None: whatever comes.

    Raises:
        InputError: A field cannot be used; the text names it.
    """

    prompt: dict[str, Any]
    outputs: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    group: str = ""
    check: bool = False
    quality: str = "exact"
    wanted: frozenset[str] | None = None
    types: frozenset[str] | None = None

    def __post_init__(self) -> None:
        given.a("prompt", self.prompt, dict)
        if not all(isinstance(node, dict) for node in self.prompt.values()):
            raise InputError("prompt is ComfyUI's API format, a dict of each node's id and dict")
        # A text is a sequence of texts, too: "12" would mean the nodes 1 and 2.
        if not isinstance(self.outputs, (tuple, list)) or not _texts(self.outputs):
            raise InputError(f"outputs are the ids of nodes, not {given.said(self.outputs)}")
        given.a("values", self.values, dict)
        if len(self.values) > MAX_VALUES or not _texts(self.values):
            raise InputError(f"values are up to {MAX_VALUES}, each by a name that is a text")
        given.text("title", self.title)
        given.text("group", self.group)
        given.flag("check", self.check)
        codecs.check(self.quality)
        if self.wanted is not None and not _texts(self.wanted):
            raise InputError(f"wanted are the names of results, not {given.said(self.wanted)}")
        if self.types is not None:
            given.a("types", self.types, frozenset)
            if not _texts(self.types):
                raise InputError("types are names, each a text")

    def told(self) -> dict[str, Any]:
        """As it travels: the prompt as JSON, which keeps NaN, and every value as itself."""
        try:
            prompt = json.dumps(self.prompt)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the prompt is not JSON: {error}") from error
        types = {} if self.types is None else {"types": sorted(self.types)}
        return types | {
            "prompt": prompt,
            "outputs": list(self.outputs),
            "values": self.values,
            "title": shown(clip(self.title, MAX_TITLE)),
            "group": clip(self.group, MAX_TITLE),
            "check": self.check,
            "quality": self.quality,
        }

    @classmethod
    def read(cls, told: object) -> Request:
        """From the wire.

        Raises:
            RemoteProtocolError: It is not what `told` makes.
        """
        given = told if isinstance(told, dict) else {}
        values, outputs = given.get("values"), given.get("outputs")
        if not isinstance(values, dict) or len(values) > MAX_VALUES or not _texts(values):
            raise RemoteProtocolError("a job whose values are no map by name")
        if not isinstance(outputs, list) or not _texts(outputs):
            raise RemoteProtocolError("a job whose outputs are no node ids")
        title, group, quality = given.get("title"), given.get("group"), given.get("quality")
        types = given.get("types")  # older ones do not say
        if types is not None and not (isinstance(types, list) and _texts(types)):
            raise RemoteProtocolError("a job whose types are no names")
        try:
            codecs.check(quality if isinstance(quality, str) else "exact")
        except UnknownCodec as error:
            raise RemoteProtocolError(f"a job with a quality unknown here: {error}") from error
        return cls(
            _prompt(given.get("prompt")),
            tuple(outputs),
            values,
            shown(clip(title, MAX_TITLE)) if isinstance(title, str) else "",
            clip(group, MAX_TITLE) if isinstance(group, str) else "",
            given.get("check") is True,
            quality if isinstance(quality, str) else "exact",
            types=None if types is None else frozenset(types),
        )


def _counted(value: Any) -> int:
    try:
        number = int(value)  # some nodes count in floats
    except (TypeError, ValueError, OverflowError):  # NaN, infinity, None
        return 0
    return min(max(0, number), MAX_COUNT)


def _texts(items: object) -> bool:
    return all(isinstance(item, str) for item in items)  # type: ignore[attr-defined]


def _prompt(told: object) -> dict[str, Any]:
    try:
        prompt = json.loads(told) if isinstance(told, str) else None
    except (ValueError, RecursionError):
        prompt = None
    if not isinstance(prompt, dict) or not all(isinstance(n, dict) for n in prompt.values()):
        raise RemoteProtocolError("a job whose prompt is no map of nodes")
    for node in prompt.values():
        if not isinstance(node.setdefault("inputs", {}), dict):
            raise RemoteProtocolError("a job with a node whose inputs are no map")
    return prompt


# --- who asks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """Where a job is.

    Attributes:
        state: "sending", "queued", "running", "ended".
        place: How many are before it in the queue there.
        node, title: The node that computes there: its id; its title and id for people.
        value, maximum: Its step; 0 of 0 where it has none.
        received, total: Bytes of the result that comes in, and of how many.
    """

    state: str = "sending"
    place: int = 0
    node: str = ""
    title: str = ""
    value: int = 0
    maximum: int = 0
    received: int = 0
    total: int = 0


class Job(Operation[dict[str, Any]]):
    """A job that another peer runs for this one. Wait with `result()`, or ``await`` it: the
    values by the name of their output. It raises `JobRefused`, `JobFailed`, `JobCancelled`,
    `RunsNoPrompts`, `QueueDeadlock`, or what ended the link.

    Attributes:
        id: A UUID.
        peer: The name of the peer that runs it, as far as it is known.
        request: What was asked.
        progress: Where it is.
        results: What has come already.
        on_change: Called when `progress` or `results` is new, in a thread of its own: with what is
            true then, so that of several changes only the latest may be told.
        on_preview: Called, likewise, with (node, "image/jpeg" or "image/png", bytes).
    """

    def __init__(
        self,
        id: str,
        remote: Remote,
        request: Request,
        cancel: Callable[[Operation[Any]], None],
        awaits: Callable[[str], None],
        callbacks: Callbacks = CALLBACKS,
    ) -> None:
        super().__init__(cancel, None, callbacks)
        self.id, self.remote, self.request = id, remote, request
        self.peer = str(remote)
        self.progress = Progress()
        self.results: dict[str, Any] = {}
        self.on_change: Callable[[Job], None] | None = None
        self.on_preview: Callable[[str, str, bytes], None] | None = None
        self.accepted = False  # in the queue there, or further
        self._awaits = awaits

    def awaited_by(self, who: str) -> None:
        """A running prompt, `who` in words, waits for this job from now on: where the two queues
        wait for each other it can be told."""
        self._awaits(who)


# --- who runs it --------------------------------------------------------------------------------


class JobHost(Protocol):
    """Runs the jobs of other peers. Called in a thread of its own, one call after the other; what
    is raised is logged. `facts` has threads for itself, and a deadline."""

    def submitted(self, job: Taken) -> None:
        """A job has come: check it and queue it, then tell by its methods."""

    def cancel(self, job: Taken, why: str) -> None:
        """Stop exactly this one, and say `stopped` when it has."""

    def forget(self, job: Taken) -> None:
        """Its results are delivered or dropped: remove every trace of it."""

    def facts(self) -> dict[str, Any]:
        """What there is to know of this ComfyUI: JSON. Perhaps in more than one thread at once."""


class Teller(Protocol):
    """What a taken job can tell: see `engine.taking`."""

    def refuse(self, job: str, reasons: Sequence[Reason]) -> None: ...
    def queued(self, job: str, place: int) -> None: ...
    def started(self, job: str) -> None: ...
    def progressed(self, job: str, node: str, title: str, value: int, maximum: int) -> None: ...
    def preview(self, job: str, node: str, kind: str, data: bytes) -> None: ...
    def result(self, job: str, name: str, flat: Flat, notes: Sequence[str]) -> None: ...
    def ended(self, job: str, end: dict[str, Any]) -> None: ...


class Taken:
    """A job of another peer, for who runs it. Usable from any thread; nothing blocks.

    Attributes:
        id: A UUID in lower case; ComfyUI's prompt id too.
        client: The name of the peer that gave it.
        request: What it asks.
    """

    def __init__(
        self,
        id: str,
        client: str,
        request: Request,
        tell: Callable[[Callable[[Teller], None]], object],
    ) -> None:
        self.id, self.client, self.request, self._tell = id, client, request, tell

    def refuse(self, reasons: Sequence[Reason]) -> None:
        """It cannot run: everything that is wrong."""
        self._tell(lambda teller: teller.refuse(self.id, reasons))

    def passed(self) -> None:
        """It could run: the end of a job that only asked."""
        self.done()

    def queued(self, place: int) -> None:
        """It is in the queue, behind `place` others. Again when that changes."""
        at = max(0, given.whole("place", place, -MAX_COUNT, MAX_COUNT))
        self._tell(lambda teller: teller.queued(self.id, at))

    def started(self) -> None:
        """It runs."""
        self._tell(lambda teller: teller.started(self.id))

    def progress(self, node: str, title: str, value: int, maximum: int) -> None:
        """Which node is at which step. What nodes tell of their steps is their own: where that is
        no number that can be counted to, it is 0."""
        told = given.text("node", node), given.text("title", title)
        at, most = _counted(value), _counted(maximum)
        self._tell(lambda teller: teller.progressed(self.id, *told, at, most))

    def preview(self, node: str, kind: str, data: bytes) -> None:
        """A picture of what that node computes: "image/jpeg" or "image/png", at most 1 MiB. What is
        something else is left out: it is the nodes' own, and no job fails for want of a preview."""
        if kind not in PREVIEWS or not isinstance(data, bytes) or not isinstance(node, str):
            return
        self._tell(lambda teller: teller.preview(self.id, node, kind, data))

    def result(self, name: str, value: Any, declared: str = "") -> None:
        """One of the outputs. It must not change any more.

        Args:
            declared: See `Channel.start_send`.

        Raises:
            NotTransferable: It holds something that cannot travel, or has no usable name.
        """
        try:
            given.label("name", name, MAX_NAME)
        except InputError as error:
            raise NotTransferable(f"a result's {error.what}") from None
        flat = flatten(value, declared)
        # Told with the job's end, which may be under way before this has been packed.
        notes: tuple[str, ...] = ()
        if codecs.eight_bit(self.request.quality) == "always":
            with contextlib.suppress(CodecRefused):  # which is the job's end when it is packed
                notes = clipped(flat)
        self._tell(lambda teller: teller.result(self.id, name, flat, notes))

    def done(self) -> None:
        """It has ended well, and all its results are told."""
        self._tell(lambda teller: teller.ended(self.id, {"outcome": "done"}))

    def failed(self, detail: dict[str, str]) -> None:
        """A node failed: node_id, title, class_type, exception_type, message, traceback."""
        told = {name: clip(str(text), MAX_DETAIL) for name, text in detail.items()}
        self._tell(lambda teller: teller.ended(self.id, told | {"outcome": "failed"}))

    def stopped(self, why: str) -> None:
        """It was stopped, and why."""
        given.text("why", why)
        self._tell(lambda teller: teller.ended(self.id, {"outcome": "cancelled", "why": clip(why)}))
