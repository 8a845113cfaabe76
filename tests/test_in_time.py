"""A deadline that loses no cancellation, in place of asyncio's own everywhere."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

from zbus.in_time import in_time

ROOT = Path(__file__).resolve().parent.parent


def test_what_comes_in_time_and_what_does_not() -> None:
    async def story() -> None:
        assert await in_time(asyncio.sleep(0, "x"), 60) == "x"
        late = asyncio.ensure_future(asyncio.sleep(60))
        with pytest.raises(asyncio.TimeoutError):
            await in_time(late, 0.001)
        assert late.cancelled()

    asyncio.run(story())


def test_a_deadline_loses_no_cancellation() -> None:
    async def story() -> None:
        work = asyncio.get_running_loop().create_future()
        waits = asyncio.ensure_future(in_time(work, 60))
        await asyncio.sleep(0)
        work.set_result("x")  # and at the same moment
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits

    asyncio.run(story())


def test_what_fails_in_time_is_told_as_it_is() -> None:
    async def fails() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        asyncio.run(in_time(fails(), 60))


def asyncios_deadlines(text: str) -> list[int]:
    """The lines in which `asyncio.wait_for` is named; a `Condition` has one of its own."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "asyncio.wait_for":
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "asyncio":
            lines += [node.lineno for alias in node.names if alias.name == "wait_for"]
    return lines


def test_nothing_waits_by_asyncios_own_deadline() -> None:
    """Before Python 3.12 it swallows a cancellation that comes together with the result."""
    both = asyncios_deadlines("asyncio.wait_for(x, 1)\nfrom asyncio import wait_for")
    assert sorted(both) == [1, 2]
    for folder in ("zbus", "comfy_nodes", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            assert asyncios_deadlines(path.read_text(encoding="utf-8")) == [], path
