"""Fixtures for tests on real ComfyUI processes, and the switch that leaves those out."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from comfyui import ComfyUI, start_all


class Pair(NamedTuple):
    """Two running ComfyUIs, both with zbus and the test pack, and their events connected."""

    a: ComfyUI
    b: ComfyUI


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-comfyui", action="store_true", help="leave out the tests on real ComfyUI processes"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whatever needs ComfyUI says so by its fixtures; and it comes last, being slow."""
    needs = [i for i in items if "comfyui_dir" in getattr(i, "fixturenames", ())]
    for item in needs:
        item.add_marker("comfyui")
    others = [i for i in items if i not in set(needs)]
    if config.getoption("--no-comfyui"):
        config.hook.pytest_deselected(items=needs)
        needs = []
    items[:] = others + needs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """A failed test shows the end of its ComfyUIs' logs."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            for comfyui in value if isinstance(value, Pair) else ():
                report.sections.append((f"log of {comfyui.name}", comfyui.log()[-5000:]))
    return report


@pytest.fixture(scope="session")
def comfyui_dir() -> Path:
    """The ComfyUI checkout; skips where there is none, or fails if ZBUS_REQUIRE_COMFYUI=1."""
    named = os.environ.get("COMFYUI_DIR")
    if named and (Path(named) / "main.py").is_file():
        return Path(named)
    why = os.environ.get("ZBUS_WHY_NO_COMFYUI") or "COMFYUI_DIR names no ComfyUI (see scripts/test)"
    if os.environ.get("ZBUS_REQUIRE_COMFYUI") == "1":
        pytest.fail(f"no ComfyUI: {why}", pytrace=False)
    pytest.skip(f"no ComfyUI: {why}")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def addr(free_port: int) -> str:
    """A loopback address ("127.0.0.1:port") that nobody uses."""
    return f"127.0.0.1:{free_port}"


@pytest.fixture
def make_comfyui(comfyui_dir: Path) -> Iterator[Callable[..., ComfyUI]]:
    """``make_comfyui(**arguments of ComfyUI)`` -> one not yet started; ended after the test."""
    made: list[ComfyUI] = []

    def make(**arguments: Any) -> ComfyUI:
        made.append(ComfyUI(comfyui_dir, **arguments))
        return made[-1]

    yield make
    for comfyui in made:
        comfyui.kill()


@pytest.fixture
def fresh_pair(make_comfyui: Callable[..., ComfyUI]) -> Pair:
    """Two ComfyUIs for this test alone, which may kill them."""
    pair = Pair(make_comfyui(name="fresh-a"), make_comfyui(name="fresh-b"))
    start_all(*pair)
    _connect_events(pair)
    return pair


class _Shared:
    """The session's pair: started at the first use, and again after a test has broken it."""

    def __init__(self, comfyui_dir: Path) -> None:
        self._dir = comfyui_dir
        self._pair: Pair | None = None

    def get(self) -> Pair:
        if self._pair is None or not all(c.alive for c in self._pair):
            self.end()
            pair = Pair(ComfyUI(self._dir, name="a"), ComfyUI(self._dir, name="b"))
            start_all(*pair)
            _connect_events(pair)
            self._pair = pair
        return self._pair

    def tidy(self) -> None:
        """Leave nothing running or queued for the next test."""
        pair = self._pair
        if pair and not all([c.alive and c.clear() for c in pair]):  # both, not up to the first
            self.end()

    def end(self) -> None:
        for comfyui in self._pair or ():
            comfyui.kill()
        self._pair = None


@pytest.fixture(scope="session")
def _shared_pair(comfyui_dir: Path) -> Iterator[_Shared]:
    shared = _Shared(comfyui_dir)
    yield shared
    shared.end()


@pytest.fixture
def pair(_shared_pair: _Shared) -> Iterator[Pair]:
    """Two running ComfyUIs, the same ones for the whole test run, idle at the start of each."""
    yield _shared_pair.get()
    _shared_pair.tidy()


def _connect_events(pair: Pair) -> None:
    for comfyui in pair:
        assert comfyui.events is not None
