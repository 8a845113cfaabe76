"""Fixtures for tests on real ComfyUI processes, and the switch that leaves those out."""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import late
import pytest
import spilled
from comfyui import ComfyUI, start_all
from comfyui import free_port as any_free_port

MEASURED = "measured"


class Trio(NamedTuple):
    """Three running ComfyUIs that know each other by name."""

    a: ComfyUI
    b: ComfyUI
    c: ComfyUI


class Pair(NamedTuple):
    """Two running ComfyUIs, both with zbus and the test pack, and their events connected."""

    a: ComfyUI
    b: ComfyUI


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stress", action="store_true", help="the tests that take long, and no others"
    )
    parser.addoption(
        "--no-comfyui", action="store_true", help="leave out the tests on real ComfyUI processes"
    )
    parser.addoption(
        "--late", type=int, metavar="SEED", help="zbus's threads come late, at random (see late.py)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """No test touches the keys and the paired of whoever runs it."""
    home = tempfile.TemporaryDirectory(prefix="zbus-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    os.environ["ZBUS_HOME"] = str(Path(home.name) / "zbus")
    for name in ("ZBUS_TRUST", "ZBUS_LISTEN", "ZBUS_REQUIRE_PAIRING", "ZBUS_SHARE_MEMORY"):
        os.environ.pop(name, None)
    spilled.watch()
    if (seed := config.getoption("--late")) is not None:
        late.make(seed)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whatever needs ComfyUI says so by its fixtures; and it comes last, being slow. What takes
    long is run where it was asked for, and nothing else then."""
    stress = config.getoption("--stress")
    unwanted = [i for i in items if bool(i.get_closest_marker("stress")) is not stress]
    config.hook.pytest_deselected(items=unwanted)
    items[:] = [i for i in items if i not in set(unwanted)]
    needs = [i for i in items if "comfyui_dir" in getattr(i, "fixturenames", ())]
    for item in needs:
        item.add_marker("comfyui")
    others = [i for i in items if i not in set(needs)]
    if config.getoption("--no-comfyui"):
        config.hook.pytest_deselected(items=needs)
        needs = []
    items[:] = others + needs


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """In several processes each file has one of its own, and all tests on ComfyUIs have the same:
    they share them, and a machine has room for few."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "comfy" if nodeid.startswith("comfy/") else nodeid.partition("::")[0]

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """A failed test shows the end of its ComfyUIs' logs."""
    report = yield
    for title, text in report.sections:
        try:
            spilled.check(text, title)
        except AssertionError as error:
            report.outcome, report.longrepr = "failed", str(error)
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            for comfyui in value if isinstance(value, (Pair, Trio)) else ():
                report.sections.append((f"log of {comfyui.name}", comfyui.log()[-5000:]))
    return report


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``measured(text)``: a figure for whoever reads the run's output, shown at its end."""
    return lambda text: request.node.user_properties.append((MEASURED, text))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was measured."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)]
    told = {
        r.nodeid: [text for name, text in r.user_properties if name == MEASURED] for r in reports
    }
    if not any(told.values()):
        return
    terminalreporter.section(MEASURED)
    for nodeid, texts in told.items():
        for text in texts:
            terminalreporter.line(f"{nodeid}:\n" + textwrap.indent(text, "  "))


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
def keeps_results() -> None:
    """For tests of what ComfyUI has cached of the prompt before."""
    given = os.environ.get("COMFYUI_ARGS", "")
    for flag in ("--cache-none", "--cache-ram 1000000"):  # so much memory is never free
        if flag in given:
            pytest.skip(f"with {flag} ComfyUI computes everything in each prompt")


@pytest.fixture
def by_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the wire: no value goes around it, through memory."""
    monkeypatch.setenv("ZBUS_SHARE_MEMORY", "0")


@pytest.fixture
def free_port() -> int:
    return any_free_port()


@pytest.fixture
def addr(free_port: int) -> str:
    """A loopback address ("127.0.0.1:port") that nobody uses."""
    return f"127.0.0.1:{free_port}"


@pytest.fixture
def other_addr() -> str:
    """Another one."""
    return f"127.0.0.1:{any_free_port()}"


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


class _Shared:
    """The session's ComfyUIs: each started at its first use, and again after a test has broken
    it. They share a home of zbus, so that they know each other by name."""

    def __init__(self, comfyui_dir: Path, home: Path) -> None:
        self._dir, self._home = comfyui_dir, home
        self._all: dict[str, ComfyUI] = {}

    def get(self, *names: str) -> list[ComfyUI]:
        env = {"ZBUS_HOME": str(self._home)}
        dead = [n for n in names if n not in self._all or not self._all[n].alive]
        for name in dead:
            if name in self._all:
                self._all.pop(name).kill()
        made = {name: ComfyUI(self._dir, name=name, env=env) for name in dead}
        start_all(*made.values())
        self._all |= made
        found = [self._all[name] for name in names]
        _connect_events(found)
        return found

    def tidy(self) -> None:
        """Leave nothing running or queued for the next test."""
        for name, comfyui in list(self._all.items()):
            if not (comfyui.alive and comfyui.clear()):
                self._all.pop(name).kill()

    def end(self) -> None:
        for comfyui in self._all.values():
            comfyui.kill()


@pytest.fixture(scope="session")
def _shared(comfyui_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Shared]:
    shared = _Shared(comfyui_dir, tmp_path_factory.mktemp("zbus-home"))
    yield shared
    shared.end()


@pytest.fixture
def pair(_shared: _Shared) -> Iterator[Pair]:
    """Two running ComfyUIs, the same ones for the whole test run, idle at the start of each."""
    yield Pair(*_shared.get("a", "b"))
    _shared.tidy()


@pytest.fixture
def trio(_shared: _Shared) -> Iterator[Trio]:
    """Three of them: those of `pair`, and one more."""
    yield Trio(*_shared.get("a", "b", "c"))
    _shared.tidy()


@pytest.fixture(scope="module")
def _breakable(
    comfyui_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], _Shared]]:
    """A module's own, for each way in which they are started."""
    made: dict[str, _Shared] = {}

    def get(started: str) -> _Shared:
        if started not in made:
            made[started] = _Shared(comfyui_dir, tmp_path_factory.mktemp("zbus-home"))
        return made[started]

    yield get
    for shared in made.values():
        shared.end()


@pytest.fixture
def fresh_pair(_breakable: Callable[[str], _Shared]) -> Iterator[Pair]:
    """Two ComfyUIs that a test may kill: of those of its module what is dead is started again.
    They know each other by name."""
    shared = _breakable(os.environ.get("ZBUS_SHARE_MEMORY", ""))  # of the fixture `by_socket`
    yield Pair(*shared.get("fresh-a", "fresh-b"))
    shared.tidy()


@pytest.fixture
def new_pair(comfyui_dir: Path, tmp_path: Path) -> Iterator[Pair]:
    """Two ComfyUIs that have not met: a job goes the way that the test gives it, and not over a
    session that stands already."""
    shared = _Shared(comfyui_dir, tmp_path / "zbus-home")
    yield Pair(*shared.get("new-a", "new-b"))
    shared.end()


def _connect_events(comfyuis: Iterable[ComfyUI]) -> None:
    for comfyui in comfyuis:
        assert comfyui.events is not None
