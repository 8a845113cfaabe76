"""Messages: every kind there and back; whatever comes in is parsed or RemoteProtocolError."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zbus.errors import JobFailed, LocalProtocolError, RemoteProtocolError
from zbus.printable import clean_all
from zbus.protocol import messages as m
from zbus.protocol import outcomes
from zbus.protocol.fields import clip
from zbus.protocol.job_records import GivenJob
from zbus.reasons import Reason

LOAN = m.Loan(((1 << 46, 1 << 30), (4096, 1)), b"t" * 16, 1 << 46, b"s" * 16, bytes(32))
HELLO = m.Hello((1, 1), b"i" * 16, b"n" * 16, "desk-8188", b"x" * 16, codecs=("raw", "png"))
OFFER = m.Offer(1, 2, 3, "image", "Send", 192 << 20, "raw", b"spec", 0, False)
EXAMPLES: list[m.Message] = [
    HELLO,
    m.Ready(b"x" * 16, 7),
    m.Reject("version", "too old"),
    m.Ack(5),
    m.Ping(1),
    m.Pong(1),
    m.Bye("closing"),
    m.Status("KSampler 14/20"),
    m.Chunk(4, 1 << 40, 1 << 20, True),
    m.Grant(4, 0, 1 << 46),
    m.Announce("run", "main", "14:02", ("main",), (("send", "image", None, True, "Send"),)),
    m.Announce("run", "main", "14:02", (), None),
    m.Withdraw("run", "main", "busy"),
    m.Bound(1, "main", "mine", "yours"),
    m.BoundOk(1),
    m.NotBound(1, "gone"),
    m.Await(1, 2, 3, "image", "Receive Images 8"),
    OFFER,
    replace(OFFER, loan=LOAN),
    m.Finish(2, b"d" * 16),
    m.Stored(2),
    m.Refused(2, "no memory"),
    m.Cancel(1, 2, "cancelled"),
    m.CancelOk(1, 2, True, 0),
    m.Close(1, "failed", "ValueError: x"),
    m.ShmNear(bytes(32)),
    m.ShmDecline(3, True),
    m.Measure(2, "up", 1 << 30),
    m.JobProgress("job", "57:8", "KSampler #57:8", 14, 20),
    m.JobPreview("job", "57:8", "image/jpeg"),
    m.JobOffer("job", "result:a", 2, 192 << 20, "raw", b"spec", 0, False),
    m.JobOffer("job", "result:a", 2, 192 << 20, "raw", b"spec", 0, False, loan=LOAN),
    m.JobState("job", "queued", 3, ("other", "job")),
    m.JobCancel("job", "cancelled"),
    m.Enquire(1),
    m.Facts(1, '{"jobs": true}'),
]


DIRT = "x\n\x1b[2J\x1b[31mERROR root: forged\r\x9b0m\u202e\u2028"
CLEAN = "x  [2J [31mERROR root: forged  0m  "


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_no_text_of_the_wire_can_forge_a_line(message: m.Message) -> None:
    """Whoever prints or logs one need not think of it: nothing of the kind comes in."""
    header = msgpack.unpackb(m.encode(message, int(message.SEQUENCED)))

    def dirty(value: object) -> object:
        if isinstance(value, list):
            return [dirty(item) for item in value]
        return value[: 20 - len(DIRT)] + DIRT if isinstance(value, str) and value else value

    if isinstance(message, m.Hello):
        header[2] = {
            name: value if name == "codecs" else dirty(value) for name, value in header[2].items()
        }
    else:
        header[2:] = [dirty(value) for value in header[2:]]
    with suppress(RemoteProtocolError):  # a text that is one of a few words, or a short one
        _, read = m.decode(msgpack.packb(header), False)
        for text in texts(vars(read)):
            assert text.isprintable(), text


def texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.values() for text in texts(item))
    elif isinstance(value, (list, tuple)):
        yield from (text for item in value for text in texts(item))


def test_a_name_of_the_wire_is_as_long_as_before() -> None:
    raw = msgpack.unpackb(m.encode(HELLO))
    raw[2]["name"] = DIRT
    _, read = m.decode(msgpack.packb(raw), False)
    assert isinstance(read, m.Hello) and read.name == CLEAN and len(CLEAN) == len(DIRT)


@pytest.mark.parametrize("told", ["class_type", "message", "traceback"])
def test_how_a_job_ended_is_printable_too(told: str) -> None:
    error = outcomes.outcome(GivenJob("id", None, "desk", b""), {"outcome": "failed", told: DIRT})
    assert error is not None
    assert all(line.isprintable() for line in str(error).split("\n"))
    kept = outcomes.outcome(
        GivenJob("id", None, "d", b""), {"outcome": "failed", "traceback": "a\n b"}
    )
    assert isinstance(kept, JobFailed) and kept.traceback == "a\n b"
    reason = Reason.read({"kind": "choice", "text": DIRT, "near": [DIRT]})
    assert reason.text == CLEAN and reason.near == (CLEAN,)


def test_what_json_hides_is_cleaned() -> None:
    said = json.loads('{"a\\u001b": ["\\u001b[2J", 1, null, {"b": "\\n"}]}')
    assert clean_all(said) == {"a ": [" [2J", 1, None, {"b": " "}]}


def test_every_kind_is_among_the_examples() -> None:
    assert {type(example) for example in EXAMPLES} == set(m.KINDS.values())


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_there_and_back(message: m.Message) -> None:
    seq = 9 if message.SEQUENCED else 0
    assert m.decode(m.encode(message, seq), has_body=False) == (seq, message)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_sequence_number_where_none_belongs(message: m.Message) -> None:
    with pytest.raises(RemoteProtocolError, match="sequence"):
        m.decode(m.encode(message, 0 if message.SEQUENCED else 9), has_body=False)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_body_where_none_belongs(message: m.Message) -> None:
    header = m.encode(message, 9 if message.SEQUENCED else 0)
    if message.BODY:
        assert m.decode(header, has_body=True)[1] == message
    else:
        with pytest.raises(RemoteProtocolError, match="body"):
            m.decode(header, has_body=True)


@pytest.mark.parametrize("kind", [m.Offer, m.JobOffer])
def test_what_was_added_later_is_said_only_where_it_says_something(kind: type[m.Message]) -> None:
    """A peer of before does not know the field, and one of now does without."""
    plain, lent = (example for example in EXAMPLES if type(example) is kind)
    known = len(fields(kind)) - 1  # and kind and sequence number
    assert len(msgpack.unpackb(m.encode(plain, 1))) == 2 + known
    assert len(msgpack.unpackb(m.encode(lent, 1))) == 2 + known + 1
    without, with_loan = (msgpack.unpackb(m.encode(each, 1)) for each in (plain, lent))
    for header in ([*without, None], with_loan):
        assert m.decode(msgpack.packb(header), has_body=False)[1] in (plain, lent)
        for wrong in (header[: 1 + known], [*header, None]):
            with pytest.raises(RemoteProtocolError, match="number of fields"):
                m.decode(msgpack.packb(wrong), has_body=False)


def test_hello_ignores_what_a_later_version_adds() -> None:
    kind, seq, told = msgpack.unpackb(m.encode(HELLO))
    told["hat"] = {"colour": "red"}
    assert m.decode(msgpack.packb([kind, seq, told]), has_body=False) == (0, HELLO)


def test_hello_needs_what_has_no_default() -> None:
    kind, seq, told = msgpack.unpackb(m.encode(HELLO))
    del told["incarnation"]
    with pytest.raises(RemoteProtocolError, match="no incarnation"):
        m.decode(msgpack.packb([kind, seq, told]), has_body=False)


@pytest.mark.parametrize(
    "bad",
    [
        m.Chunk(-1, 0, 1, False),
        m.Chunk(0, 0, (1 << 20) + 1, False),
        m.Chunk(0, 0, 0, False),
        m.Chunk(0, 0, True, False),
        m.Grant(0, 0, (1 << 46) + 1),
        m.Reject("whatever", ""),
        m.Status("x" * 301),
        m.Announce("r", "c", "", (), (("eat", "image", 0, True, ""),)),
        m.Announce("r", "c", "", (), (("send", "image", 0, True, ""),) * 257),
        m.Finish(0, b"short"),
        replace(OFFER, loan=LOAN._replace(pieces=((1, 1),) * (m.MAX_PIECES + 1))),
        replace(OFFER, loan=LOAN._replace(pieces=((0, 1),))),
        replace(OFFER, loan=LOAN._replace(token=b"short")),
        replace(OFFER, loan=LOAN[:-1]),  # type: ignore[arg-type]
        replace(HELLO, versions=(1,)),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_a_field_out_of_its_bounds(bad: m.Message) -> None:
    """The sender refuses to say it; a receiver, who gets it anyway, refuses to hear it."""
    values = [getattr(bad, f.name) for f in fields(bad)]
    body = [dict(zip((f.name for f in fields(bad)), values, strict=True))]
    header = [bad.KIND, int(bad.SEQUENCED), *(body if isinstance(bad, m.Hello) else values)]
    with pytest.raises(RemoteProtocolError):
        m.decode(msgpack.packb(header), has_body=False)
    if bad.KIND != m.Hello.KIND:
        with pytest.raises(LocalProtocolError):
            m.encode(bad, int(bad.SEQUENCED))


def test_a_header_too_long() -> None:
    with pytest.raises(RemoteProtocolError, match="header"):
        m.decode(bytes(m.MAX_HEADER + 1), has_body=False)
    long = m.Announce("r", "c", "", (), (("send", "x" * 20, None, True, "y" * 120),) * 256)
    assert len(m.encode(long, 1)) < m.MAX_HEADER
    with pytest.raises(LocalProtocolError, match="too long|header of"):
        m.encode(replace(long, manifest=(("send", "x" * 20, None, True, "\u754c" * 120),) * 256), 1)


@given(st.binary(max_size=200))
@example(b"\xdf\xff\xff\xff\xff")  # a map of 2**32 - 1 entries
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x91" * 5000)
@example(b"\xc1")
@example(b"\x81\x90\x90")  # an unhashable key
def test_any_bytes(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        m.decode(data, has_body=False)


_scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary()
_values = st.recursive(
    _scalars, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=12
)


@given(st.sampled_from(sorted(m.KINDS)), st.integers(0, 3), st.lists(_values, max_size=12))
def test_any_fields(kind: int, seq: int, values: list[object]) -> None:
    with suppress(RemoteProtocolError):
        m.decode(msgpack.packb([kind, seq, *values]), has_body=False)


def test_clip_makes_any_text_fit() -> None:
    assert clip("a\udcffb") == "a?b"
    assert clip("x" * 30, 10) == "x" * 9 + "…"
    m.encode(m.Bye(clip("\udc80" * 5000)))
