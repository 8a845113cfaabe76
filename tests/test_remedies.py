"""Each error that a user may meet says what to do next."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zbus import errors
from zbus.errors import ZBusError

ROOT = Path(__file__).resolve().parent.parent
# Whoever meets these has cancelled, or writes a program: or the peer's is broken.
NO_REMEDY = {
    errors.Cancelled,
    errors.PeerClosed,
    errors.LocalProtocolError,
    errors.RemoteProtocolError,
    errors.NotTransferable,  # says what it was, and where in the value
}
# Of arguments: their texts say what may be written ("a port is a number from 1 to 65535, not 0").
RULES = ("given.py", "principals.py", "remote.py", "job.py", "discovery.py", "run.py", "tokens.py")
# Parts of a longer text, which has the remedy.
PARTS = {
    "no answer in  s",
    "no answer: timed out",
    "that port is taken here",
    "the block came to nothing",
    "something unforeseen happened: ComfyUI's log says what",
}


def raised() -> Iterator[tuple[str, type[ZBusError], str, bool]]:
    """Each error that the code makes with a text of its own: where, which, the text, and whether
    it has a remedy."""
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, ZBusError)
    }
    for top in ("zbus", "comfy_nodes"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = getattr(getattr(call, "func", None), "id", "")
                if not isinstance(call, ast.Call) or name not in kinds or not call.args:
                    continue
                text = words(call.args[0])
                if text is not None:  # else it hands on what another error has said
                    has = any(keyword.arg in ("remedy", None) for keyword in call.keywords)
                    yield f"{path.relative_to(ROOT)}:{call.lineno}", kinds[name], text, has


def words(node: Any) -> str | None:
    """The text as it is written, without what is filled in; None if it is no literal."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    return None


def test_every_error_for_users_says_the_next_step():
    silent = []
    for where, kind, text, has in raised():
        is_rule = issubclass(kind, errors.InputError) and (
            Path(where.partition(":")[0]).name in RULES
            or where.startswith("comfy_nodes/page/pairing.py")  # for programs
            or "zbus/cli/farming/config.py" in where  # names the line and what belongs there
            or ", not " in text
        )
        if not (has or is_rule or kind in NO_REMEDY or text in PARTS):
            silent.append(f"{where} {kind.__name__}: {text}")
    assert not silent


@pytest.mark.parametrize("kind", sorted(NO_REMEDY, key=lambda kind: kind.__name__))
def test_what_has_none_is_used(kind):
    assert any(made is kind for _, made, _, _ in raised())


def test_the_parts_are_there():
    assert {text for _, _, text, has in raised() if not has} >= PARTS
