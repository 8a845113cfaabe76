"""Two machines, each with its own user: they see each other, pair, and work for each other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import avahi
import pytest
from children import Child, until
from netns import Machine, permitted, two_machines

SHORT = "ABCDEF2"

ANNOUNCES = """
    import logging, sys
    from zbus import lan
    logging.basicConfig(level=logging.INFO)
    lan.LOOK = 0.2
    announcer = lan.Announcer()
    for line in sys.stdin:  # name port fingerprint; an empty one is the end of it
        if line.strip():
            name, port, short = line.split()
            announcer.announce(name, int(port), short)
        else:
            announcer.close()
"""
BROWSES = """
    import json, sys
    from zbus import lan
    browser = lan.Browser()
    for line in sys.stdin:
        print(json.dumps([vars(one) for one in browser.now()]), flush=True)
"""


class Two(NamedTuple):
    a: Machine
    b: Machine


@pytest.fixture
def two() -> Iterator[Two]:
    """Two machines on one cable."""
    if why := permitted():
        pytest.skip(why)
    with two_machines() as (a, b):
        yield Two(a, b)


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """``on(machine, code)`` -> a Python process there, with a home of zbus for each machine."""
    made: list[Child] = []

    def start(machine: Machine, code: str, *arguments: object) -> Child:
        env = {"ZBUS_HOME": str(home(tmp_path, machine))}
        made.append(machine.within(lambda: Child(code, *arguments, env=env)))
        return made[-1]

    yield start
    for child in made:
        child.kill()


def home(folder: Path, machine: Machine) -> Path:
    return folder / f"home-{machine.namespace[-1]}"


def seen(browser: Child) -> list[dict[str, Any]]:
    browser.tell("?")
    found: list[dict[str, Any]] = json.loads(browser.line("["))
    return found


def announced(machine: Machine, name: str = "desk-8188", port: int = 18188) -> dict[str, Any]:
    return {"name": name, "hosts": [machine.address], "port": port, "short": SHORT}


@pytest.fixture
def needs_zeroconf() -> None:
    pytest.importorskip("zeroconf", reason="the package zeroconf is not installed")


# --- who is there ---------------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("needs_zeroconf")


def test_one_sees_the_other_come_and_go(two: Two, on: Callable[..., Child]) -> None:
    announces, browses = on(two.a, ANNOUNCES), on(two.b, BROWSES)
    announces.tell(f"desk-8188 18188 {SHORT}")
    until(lambda: seen(browses), 30, "the announcement")
    assert seen(browses) == [announced(two.a)]
    announces.tell("")
    until(lambda: not seen(browses), 30, "the goodbye")


def test_a_browser_that_comes_later_sees_who_is_there(two: Two, on: Callable[..., Child]) -> None:
    announces = on(two.a, ANNOUNCES)
    announces.tell(f"desk-8188 18188 {SHORT}")
    announces.line("announced on the LAN", 30)
    browses = on(two.b, BROWSES)
    until(lambda: seen(browses), 30, "the announcement")
    assert seen(browses) == [announced(two.a)]


def test_a_changed_address_is_told(two: Two, on: Callable[..., Child]) -> None:
    announces, browses = on(two.a, ANNOUNCES), on(two.b, BROWSES)
    announces.tell(f"desk-8188 18188 {SHORT}")
    until(lambda: seen(browses), 30, "the announcement")
    two.a.add_address("10.77.0.9/24")
    both = [("desk-8188", ["10.77.0.1", "10.77.0.9"])]
    until(lambda: [(o["name"], sorted(o["hosts"])) for o in seen(browses)] == both, 30, "both")


def test_another_mdns_program_sees_it(two: Two, on: Callable[..., Child], tmp_path: Path) -> None:
    if missing := avahi.missing():
        pytest.skip(f"not installed: {missing}")
    announces = on(two.a, ANNOUNCES)
    announces.tell(f"desk-8188 18188 {SHORT}")
    announces.line("announced on the LAN", 30)
    command = ["unshare", "--mount", sys.executable, str(Path(avahi.__file__)), str(tmp_path)]
    foreign = two.b.within(
        lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    assert foreign.stdin is not None and foreign.stdout is not None
    with foreign:

        def resolved() -> list[list[str]]:
            print(file=foreign.stdin, flush=True)
            lines = list(iter(lambda: foreign.stdout.readline().strip(), ""))
            return [line.split(";") for line in lines if line.startswith("=")]

        (line,) = until(resolved, 60, "avahi resolves it")
        foreign.stdin.close()
        assert foreign.wait(20) == 0
    _, interface, protocol, name, kind, domain, host, address, port, text = line
    assert (name, kind, domain) == ("desk-8188", "_zbus._tcp", "local")
    assert (interface, protocol, address, port) == ("lan0", "IPv4", two.a.address, "18188")
    assert sorted(text.split()) == [f'"fp={SHORT}"', '"v=1"']
    assert host.startswith("zbus-"), "not the machine's own name"


def test_what_zbus_ping_lists(two: Two, on: Callable[..., Child]) -> None:
    announces = on(two.a, ANNOUNCES)
    announces.tell(f"desk-8188 18188 {SHORT}")
    announces.line("announced on the LAN", 30)
    code = "import sys; from zbus.cli import discover; discover.discover(3.0, False, sys.stdout)"
    listed = on(two.b, code).rest(60).splitlines()
    there = listed.index("In the local network:") + 1
    assert listed[there] == f"  desk-8188  {two.a.address}:18188  {SHORT}  not paired"
