"""The messages of the wire: one frozen dataclass each, ``encode()`` to frames, ``decode()`` back.

A message is one header frame, and for some kinds an optional raw body frame after it. The
header is a msgpack array ``[kind, seq, field, field, ...]`` of at most 64 KiB: ``kind`` from the
closed table ``KINDS``, ``seq`` the session's sequence number (0 for the kinds outside the
sequence), then the dataclass's fields in their order. HELLO alone is ``[0, 0, {name: value}]``:
its layout is frozen for all versions and unknown names in it are ignored, so that two versions can
always tell each other who they are.

Every field carries its own check (`number`, `text`, ...), and `decode` promises: what comes in is
a valid message, or `RemoteProtocolError`.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import msgpack

from ..errors import LocalProtocolError, RemoteProtocolError
from .fields import Check, blob, each, flag, number, one_of, optional, piece, size, text

VERSION = 2  # of the protocol; HELLO carries the span that a peer speaks
MAX_HEADER = 64 * 1024
MAX_INLINE = 64 * 1024  # a value up to this size rides inside its OFFER
MAX_OFFERED_SPEC = 16 * 1024  # a longer spec goes in front of its value's bytes
MAX_HEAD = 16 << 20  # bytes of a spec in front: taken before the memory budget is asked
MAX_CHUNK = 1024 * 1024
DIGEST = "xxh3-128"  # of a value's plain bytes
MAX_FRAME = MAX_CHUNK + 64 * 1024  # what a socket accepts in one frame, with slack
MAX_TOTAL = 1 << 46  # bytes of one value
MAX_PIECES = 1024  # of memory that one value lies in: as many as one read of the system takes
MAX_PLANNED = 256  # operations in one manifest
MAX_PREVIEW = 1 << 20  # bytes of one preview picture
MAX_WAITS = 64  # jobs that a running prompt waits for, as far as they are told
MAX_FACTS = 48 * 1024  # characters of what a peer tells of itself


def _is(check: Check, default: Any = MISSING, later: bool = False) -> Any:
    """A field. One of `later`, at the end of its message, is left out where it has its default: a
    peer of before does not know it."""
    return field(metadata={"check": check, "later": later}, default=default)


@dataclass(frozen=True)
class Message:
    """Base of all messages."""

    KIND: ClassVar[int]
    SEQUENCED: ClassVar[bool] = False
    BODY: ClassVar[int] = 0  # how many bytes a body may have


# --- outside the sequence ---------------------------------------------------------------------


@dataclass(frozen=True)
class Hello(Message):
    """The first message of each side on each connection. Frozen for all versions."""

    KIND = 0
    versions: tuple[int, int] = _is(each(number(1, 1 << 16), 2))
    incarnation: bytes = _is(blob(16, 16))  # of this process's start
    instance: bytes = _is(blob(16, 16))  # of this ComfyUI, the same after a restart
    name: str = _is(text(80))
    nonce: bytes = _is(blob(16, 16))
    echo: bytes = _is(blob(0, 16), b"")  # the listener's answer: the dialler's nonce
    session: bytes = _is(blob(16, 16), bytes(16))  # chosen by the dialler
    resumed: bool = _is(flag, False)  # the session has been linked before
    received: int = _is(number(), 0)  # sequence number of the last message received
    listener: str = _is(text(20), "addr")
    pid: int = _is(number(), 0)
    boot: str = _is(text(80), "")  # names the machine's boot and pid namespace
    codecs: tuple[str, ...] = _is(each(text(20), 64), ())
    lanes: tuple[str, ...] = _is(each(text(20), 16), ("tcp",))
    limits: tuple[tuple[str, int], ...] = _is(each(size, 16), ())  # ("chunk", most bytes)
    permissions: tuple[str, ...] = _is(each(text(20), 16), ("exchange",))
    software: str = _is(text(80), "")
    port: int = _is(number(0, 65535), 0)  # that the listener has, or that the dialler has dialled


@dataclass(frozen=True)
class Ready(Message):
    """The dialler echoes the listener's nonce; nothing of it counts before."""

    KIND = 1
    nonce: bytes = _is(blob(16, 16))
    received: int = _is(number(), 0)


@dataclass(frozen=True)
class Reject(Message):
    """This connection ends, and why."""

    KIND = 2
    code: str = _is(one_of("protocol", "version", "self", "closing"))
    why: str = _is(text())


@dataclass(frozen=True)
class Ack(Message):
    KIND = 3
    received: int = _is(number())


@dataclass(frozen=True)
class Ping(Message):
    KIND = 4
    token: int = _is(number())


@dataclass(frozen=True)
class Pong(Message):
    KIND = 5
    token: int = _is(number())


@dataclass(frozen=True)
class Bye(Message):
    """The session ends now, by the will of the sender."""

    KIND = 6
    why: str = _is(text())


@dataclass(frozen=True)
class Status(Message):
    """What the sender's process is doing, for people. The latest counts."""

    KIND = 7
    activity: str = _is(text(300))


@dataclass(frozen=True)
class Chunk(Message):
    """`size` plain bytes at `offset` of a transfer, in the body, by its codec or as they are."""

    KIND = 16
    BODY = MAX_CHUNK
    transfer: int = _is(number())
    offset: int = _is(number(0, MAX_TOTAL))
    size: int = _is(number(1, MAX_CHUNK))
    encoded: bool = _is(flag)


@dataclass(frozen=True)
class Grant(Message):
    """The receiver has `received` plain bytes and takes them up to `limit`. Absolute."""

    KIND = 17
    transfer: int = _is(number())
    received: int = _is(number(0, MAX_TOTAL))
    limit: int = _is(number(0, MAX_TOTAL))


@dataclass(frozen=True)
class JobProgress(Message):
    """Which node of a job is at which step. The latest counts."""

    KIND = 18
    job: str = _is(text(80))
    node: str = _is(text(120))
    title: str = _is(text(120))
    value: int = _is(number())
    maximum: int = _is(number())


@dataclass(frozen=True)
class JobPreview(Message):
    """What a node of a job shows while it computes: a picture, in the body. The latest counts."""

    KIND = 19
    BODY = MAX_PREVIEW
    job: str = _is(text(80))
    node: str = _is(text(120))
    format: str = _is(one_of("image/jpeg", "image/png"))


# --- in the sequence ---------------------------------------------------------------------------

Planned = tuple[str, str, "int | None", bool, str]
"""One operation of a manifest: direction, type, key or None, certain, the node's title."""


def _planned(value: Any) -> Planned:
    if type(value) not in (list, tuple) or len(value) != 5:
        raise ValueError("not a planned operation")
    direction, kind, key, certain, node = value
    return (
        one_of("send", "receive")(direction),
        text(20)(kind),
        optional(number())(key),
        flag(certain),
        text(120)(node),
    )


@dataclass(frozen=True)
class Announce(Message):
    """A run waits on a channel of this session; `channels` lists all it waits on here."""

    KIND = 32
    SEQUENCED = True
    run: str = _is(text(80))
    channel: str = _is(text(80))
    since: str = _is(text(20))
    channels: tuple[str, ...] = _is(each(text(80), 64))
    manifest: tuple[Planned, ...] | None = _is(optional(each(_planned, MAX_PLANNED)), None)


@dataclass(frozen=True)
class Withdraw(Message):
    """That run is not to be had here, and why: it is bound elsewhere, or it has ended."""

    KIND = 33
    SEQUENCED = True
    run: str = _is(text(80))
    channel: str = _is(text(80))
    why: str = _is(text())


@dataclass(frozen=True)
class Bound(Message):
    """The binding side proposes: my run `mine` and your run `yours` have met."""

    KIND = 34
    SEQUENCED = True
    binding: int = _is(number())
    channel: str = _is(text(80))
    mine: str = _is(text(80))
    yours: str = _is(text(80))


@dataclass(frozen=True)
class BoundOk(Message):
    KIND = 35
    SEQUENCED = True
    binding: int = _is(number())


@dataclass(frozen=True)
class NotBound(Message):
    KIND = 36
    SEQUENCED = True
    binding: int = _is(number())
    why: str = _is(text())


@dataclass(frozen=True)
class Await(Message):
    """A receive waits for the item `key`, of type `expect`."""

    KIND = 37
    SEQUENCED = True
    binding: int = _is(number())
    operation: int = _is(number())
    key: int = _is(number())
    expect: str = _is(text(20))
    node: str = _is(text(120))


class Loan(NamedTuple):
    """Where the bytes of an offered value lie in the sender's memory, for a peer to read them.

    Attributes:
        pieces: (address, length) of each piece, in the value's order.
        token: What stands at `lease` for as long as the pieces are held.
        lease: An address.
        sample: The digest of some lines of the bytes, as they were when the value was offered.
        proof: That this user's process says so: keyed with the user's secret key.
    """

    pieces: tuple[tuple[int, int], ...]
    token: bytes
    lease: int
    sample: bytes
    proof: bytes


def _loan(value: Any) -> Loan:
    if not isinstance(value, (list, tuple)) or len(value) != 5:
        raise ValueError("not a loan")
    pieces, token, lease, sample, proof = value
    return Loan(
        each(piece, MAX_PIECES)(pieces),
        blob(16, 16)(token),
        number(1)(lease),
        blob(16, 16)(sample),
        blob(32, 32)(proof),
    )


@dataclass(frozen=True)
class Offer(Message):
    """A send offers the item `key`; a small value rides in the body, else chunks follow a GRANT.

    Where `head` > 0, `spec` is empty and the first `head` bytes of the transfer are the spec.
    """

    KIND = 38
    SEQUENCED = True
    BODY = MAX_INLINE
    binding: int = _is(number())
    operation: int = _is(number())
    key: int = _is(number())
    kind: str = _is(text(20))
    node: str = _is(text(120))
    total: int = _is(number(0, MAX_TOTAL))
    codec: str = _is(text(20))
    spec: bytes = _is(blob(0, MAX_OFFERED_SPEC))
    head: int = _is(number(0, MAX_HEAD))
    inline: bool = _is(flag)
    digest: str = _is(text(20), DIGEST)  # its kind; FINISH carries it
    loan: Loan | None = _is(optional(_loan), None, later=True)  # noqa: RUF009


@dataclass(frozen=True)
class Finish(Message):
    """All bytes are under way; this is the digest (xxh3-128) of the plain ones."""

    KIND = 39
    SEQUENCED = True
    transfer: int = _is(number())
    digest: bytes = _is(blob(16, 16))


@dataclass(frozen=True)
class Stored(Message):
    """The receiver has verified the value and handed it over."""

    KIND = 40
    SEQUENCED = True
    transfer: int = _is(number())


@dataclass(frozen=True)
class Refused(Message):
    """The receiver will not take the value."""

    KIND = 41
    SEQUENCED = True
    transfer: int = _is(number())
    why: str = _is(text())


@dataclass(frozen=True)
class Cancel(Message):
    """The sender of this message gives up the operation, whichever side began it."""

    KIND = 42
    SEQUENCED = True
    binding: int = _is(number())
    operation: int = _is(number())
    why: str = _is(text())


@dataclass(frozen=True)
class CancelOk(Message):
    """The answer to CANCEL, behind all that was said before it.

    `stored`: that operation had been completed already. `open`: what the answering side has open
    now, by its own id, or 0.
    """

    KIND = 47
    SEQUENCED = True
    binding: int = _is(number())
    operation: int = _is(number())
    stored: bool = _is(flag)
    open: int = _is(number())


@dataclass(frozen=True)
class Close(Message):
    """The run on this side of the binding has ended."""

    KIND = 43
    SEQUENCED = True
    binding: int = _is(number())
    outcome: str = _is(one_of("ok", "failed", "cancelled"))
    why: str = _is(text())


@dataclass(frozen=True)
class ShmNear(Message):
    """The sender of this could read the peer's values out of its memory: they may be lent to it.

    `proof` is keyed with the secret key of the user whose processes both are.
    """

    KIND = 54
    SEQUENCED = True
    proof: bytes = _is(blob(32, 32))


@dataclass(frozen=True)
class ShmDecline(Message):
    """The receiver cannot read what was lent: it is to come as chunks, and `for_good` all others
    too."""

    KIND = 45
    SEQUENCED = True
    transfer: int = _is(number())
    for_good: bool = _is(flag)


@dataclass(frozen=True)
class Measure(Message):
    """zbus-ping: "down" asks for a made-up block of `size` bytes, "up" announces one to drop."""

    KIND = 48
    SEQUENCED = True
    transfer: int = _is(number())
    direction: str = _is(one_of("up", "down"))
    size: int = _is(number(0, 1 << 40))


@dataclass(frozen=True)
class JobOffer(Message):
    """One value of a job: "submit" to the peer that shall run it; "result:NAME" and "end" back.

    The fields from `operation` on are those of OFFER.
    """

    KIND = 49
    SEQUENCED = True
    BODY = MAX_INLINE
    job: str = _is(text(80))
    part: str = _is(text(200))
    operation: int = _is(number())
    total: int = _is(number(0, MAX_TOTAL))
    codec: str = _is(text(20))
    spec: bytes = _is(blob(0, MAX_OFFERED_SPEC))
    head: int = _is(number(0, MAX_HEAD))
    inline: bool = _is(flag)
    digest: str = _is(text(20), DIGEST)
    loan: Loan | None = _is(optional(_loan), None, later=True)  # noqa: RUF009


@dataclass(frozen=True)
class JobState(Message):
    """Where a job is: in the queue behind `place` others, or running.

    `waits` are what the prompt which runs there waits for, and what that waits for: tokens, which
    only those recognise whose jobs they are.
    """

    KIND = 50
    SEQUENCED = True
    job: str = _is(text(80))
    state: str = _is(one_of("queued", "running"))
    place: int = _is(number())
    waits: tuple[str, ...] = _is(each(text(80), MAX_WAITS), ())


@dataclass(frozen=True)
class JobCancel(Message):
    """The peer that gave the job does not want it any more."""

    KIND = 51
    SEQUENCED = True
    job: str = _is(text(80))
    why: str = _is(text())


@dataclass(frozen=True)
class Enquire(Message):
    """What is this peer, and what is it doing?"""

    KIND = 52
    SEQUENCED = True
    question: int = _is(number())


@dataclass(frozen=True)
class Facts(Message):
    """The answer to ENQUIRE: a JSON object."""

    KIND = 53
    SEQUENCED = True
    question: int = _is(number())
    facts: str = _is(text(MAX_FACTS))


KINDS: dict[int, type[Message]] = {
    cls.KIND: cls
    for cls in (
        *(Hello, Ready, Reject, Ack, Ping, Pong, Bye, Status, Chunk, Grant),
        *(Announce, Withdraw, Bound, BoundOk, NotBound, Await, Offer),
        *(
            Finish,
            Stored,
            Refused,
            Cancel,
            CancelOk,
            Close,
            ShmNear,
            ShmDecline,
            Measure,
        ),
        *(JobProgress, JobPreview, JobOffer, JobState, JobCancel, Enquire, Facts),
    )
}
_CHECKS: dict[type[Message], tuple[tuple[str, Check, Any], ...]] = {
    cls: tuple((f.name, f.metadata["check"], f.default) for f in fields(cls))
    for cls in KINDS.values()
}
_LATER = {cls: sum(f.metadata["later"] for f in fields(cls)) for cls in KINDS.values()}


def encode(message: Message, seq: int = 0) -> bytes:
    """The header frame of a message.

    Raises:
        LocalProtocolError: A field breaks its own check, or the header is too long.
    """
    checks = _CHECKS[type(message)]
    try:
        values = [check(getattr(message, name)) for name, check, _ in checks]
    except ValueError as error:
        raise LocalProtocolError(f"{type(message).__name__}: {error}") from error
    if isinstance(message, Hello):
        values = [dict(zip((name for name, _, _ in checks), values, strict=True))]
    for _ in range(_LATER[type(message)]):
        if values[-1] != checks[len(values) - 1][2]:
            break
        values.pop()
    header: bytes = msgpack.packb([message.KIND, seq, *values])
    if len(header) > MAX_HEADER:
        raise LocalProtocolError(f"{type(message).__name__}: header of {len(header)} bytes")
    return header


def decode(header: bytes, has_body: bool) -> tuple[int, Message]:
    """The sequence number and message in a header frame.

    Raises:
        RemoteProtocolError: Anything else than a valid message.
    """
    if len(header) > MAX_HEADER:
        raise RemoteProtocolError(f"a header of {len(header)} bytes")
    parts = _unpack(header)
    if type(parts) is not list or len(parts) < 2 or type(parts[0]) is not int:
        raise RemoteProtocolError("a header that is not a message")
    cls = KINDS.get(parts[0])
    if cls is None:
        raise RemoteProtocolError(f"a message of unknown kind {parts[0]}")
    name = cls.__name__.upper()
    seq, (low, high) = parts[1], (1, 1 << 63) if cls.SEQUENCED else (0, 0)
    if type(seq) is not int or not low <= seq <= high:
        raise RemoteProtocolError(f"{name} with a wrong sequence number")
    if has_body and not cls.BODY:
        raise RemoteProtocolError(f"{name} with a body")
    try:
        if cls is Hello:
            return 0, _decode_hello(parts[2:])
        checks = _CHECKS[cls]
        if not len(checks) - _LATER[cls] <= len(parts) - 2 <= len(checks):
            raise ValueError("a wrong number of fields")
        return parts[1], cls(*(c[1](v) for c, v in zip(checks, parts[2:], strict=False)))
    except ValueError as error:
        raise RemoteProtocolError(f"{name}: {error}") from None


def _unpack(header: bytes) -> Any:
    try:
        return msgpack.unpackb(header, use_list=True, raw=False, strict_map_key=True, max_ext_len=0)
    # msgpack has many ways to say "not msgpack", and no base class for them.
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, MemoryError) as error:
        raise RemoteProtocolError("a header that is not msgpack") from error
    except msgpack.exceptions.UnpackException as error:
        raise RemoteProtocolError("a header that is not msgpack") from error


def _decode_hello(parts: list[Any]) -> Hello:
    if len(parts) != 1 or type(parts[0]) is not dict:
        raise ValueError("not a map")
    given = parts[0]
    required = [name for name, _, default in _CHECKS[Hello] if default is MISSING]
    missing = [name for name in required if name not in given]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    hello = Hello(**{n: check(given[n]) for n, check, _ in _CHECKS[Hello] if n in given})
    if len(hello.versions) != 2 or hello.versions[0] > hello.versions[1]:
        raise ValueError("versions that are no span")
    return hello
