"""What this machine can tell: the memory that is left, in a container too."""

from __future__ import annotations

from pathlib import Path

import pytest

from zbus import machine

MIB = 1 << 20
STAT = f"anon {9 * MIB}\ninactive_file {20 * MIB}\nactive_file {30 * MIB}\n"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "_free_in_all", lambda: 1000 * MIB)
    return tmp_path / "cgroup"


def group(folder: Path, limit: object, used: int, stat: str = STAT, version: int = 2) -> None:
    names = ("memory.max", "memory.current")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip((*names, "memory.stat"), (limit, used, stat), strict=True):
        (folder / name).write_text(f"{value}\n")


def inside(groups: Path, *lines: str) -> None:
    (groups.parent / "own").write_text("\n".join(lines) + "\n")


def test_without_groups_it_is_the_machines(groups: Path) -> None:
    assert machine.free_memory() == 1000 * MIB


def test_a_groups_limit_counts_and_what_files_occupy_is_free(groups: Path) -> None:
    inside(groups, "0::/box")
    group(groups / "box", 700 * MIB, 300 * MIB)
    assert machine.free_memory() == (700 - 300 + 50) * MIB


def test_in_a_container_the_base_is_its_own_group(groups: Path) -> None:
    for said in ("0::/", "0::/docker/abc", "0::/../../abc"):
        inside(groups, said)
        group(groups, 700 * MIB, 300 * MIB)
        assert machine.free_memory() == 450 * MIB


def test_the_limit_of_a_group_above_counts(groups: Path) -> None:
    inside(groups, "0::/above/box")
    group(groups / "above", 200 * MIB, 150 * MIB, "")
    group(groups / "above/box", "max", 10 * MIB)
    assert machine.free_memory() == 50 * MIB


def test_version_1(groups: Path) -> None:
    inside(groups, "9:name=systemd:/", "4:cpu,memory:/box", "0::/")
    total = f"{STAT}total_inactive_file {40 * MIB}\ntotal_active_file 0\n"
    group(groups / "memory/box", 700 * MIB, 300 * MIB, total, version=1)
    assert machine.free_memory() == 440 * MIB


def test_a_limit_beyond_the_machine_is_none_and_a_full_group_has_nothing(groups: Path) -> None:
    inside(groups, "4:memory:/")
    group(groups / "memory", 0x7FFFFFFFFFFFF000, 300 * MIB, version=1)
    assert machine.free_memory() == 1000 * MIB
    group(groups / "memory", 100 * MIB, 300 * MIB, version=1)
    assert machine.free_memory() == 0


@pytest.mark.parametrize("said", ["", "nonsense", "0::", "x:memory:/a", "\0"])
def test_what_cannot_be_read_is_left_out(groups: Path, said: str) -> None:
    inside(groups, said)
    group(groups, "soon", 1, "a b c\n")
    assert machine.free_memory() == 1000 * MIB


def test_whoever_asks_often_is_told_of_the_machine_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And of its control groups after a while: they are slow to read."""
    now, in_all, in_groups = 100.0, 5 << 30, [4 << 30, 3 << 30]
    monkeypatch.setattr(machine.time, "monotonic", lambda: now)
    monkeypatch.setattr(machine, "_free_in_all", lambda: in_all)
    monkeypatch.setattr(machine, "_free_in_groups", lambda: in_groups)
    free = machine.FreeMemory()
    assert free() == 3 << 30
    in_all, in_groups = 1 << 30, []
    assert free() == 1 << 30
    in_all = 6 << 30
    assert free() == 3 << 30
    now += machine.GROUPS_AGE
    assert free() == 6 << 30, "no group has a limit"
    in_groups, now = [-5], now + machine.GROUPS_AGE
    assert free() == 0
