"""The loan of the LAN: as long as a process lives, and no longer."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from children import child

from zbus import opening

HOLD = """
    import sys, time
    from pathlib import Path
    from zbus import opening
    with opening.lent(Path(sys.argv[1])):
        print("lent", flush=True)
        sys.stdin.readline()
"""


def test_a_loan_is_seen_by_all_and_ends(tmp_path: Path) -> None:
    folder = tmp_path / "zbus"
    assert not opening.is_lent(folder)
    with opening.lent(folder):
        assert opening.is_lent(folder)
        with opening.lent(folder):
            assert opening.is_lent(folder)
        assert opening.is_lent(folder)
    assert not opening.is_lent(folder)
    assert list(folder.iterdir()) == []


def test_what_fails_ends_it_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), opening.lent(tmp_path):
        raise KeyboardInterrupt
    assert not opening.is_lent(tmp_path) and list(tmp_path.iterdir()) == []


def test_it_ends_with_a_process_that_is_killed(tmp_path: Path, monkeypatch) -> None:
    with child(HOLD, tmp_path) as holder:
        holder.line("lent")
        assert opening.is_lent(tmp_path)
        holder.kill_alone()
        assert not opening.is_lent(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1  # it might be one that has no lock yet
    monkeypatch.setattr(opening, "YOUNG", -1.0)
    assert not opening.is_lent(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_too_old_does_not_count(tmp_path: Path, monkeypatch) -> None:
    """A forked child of a process that was killed would hold its lock for as long as it lives."""
    with child(HOLD, tmp_path) as holder:
        holder.line("lent")
        later = opening._since_boot() + opening.AT_MOST
        monkeypatch.setattr(opening, "_since_boot", lambda: later)
        assert opening.is_lent(tmp_path) is not opening.FORKS
        holder.tell("")


@pytest.mark.parametrize("jump", [-1e6, -1e3, 1e3, 1e6])
def test_it_is_the_same_when_the_time_of_day_is_set(tmp_path: Path, monkeypatch, jump) -> None:
    now = time.time
    with opening.lent(tmp_path):
        (file,) = tmp_path.iterdir()
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        os.utime(file, (now() + jump, now() + jump))
        assert opening.is_lent(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_processes_agree_on_the_time_since_the_start_of_the_machine(tmp_path: Path) -> None:
    before = opening._since_boot()
    with child("from zbus import opening; print(opening._since_boot())") as other:
        theirs = float(other.line(""))
    assert before <= theirs <= opening._since_boot()


@pytest.mark.skipif(not opening.FORKS, reason="no child holds the lock of another process there")
def test_a_loan_of_another_machine_does_not_count_here_and_is_left_alone(
    tmp_path: Path, monkeypatch
) -> None:
    """In a folder that they share: it was this computer's clock that said when it is over."""
    with opening.lent(tmp_path):
        monkeypatch.setattr(opening, "_since_boot", lambda: -1e9)
        assert not opening.is_lent(tmp_path) and len(list(tmp_path.iterdir())) == 1


def test_what_no_loan_is_called_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "lan-x.lease").touch(mode=0o600)
    assert not opening.is_lent(tmp_path) and list(tmp_path.iterdir()) == []


def test_all_can_be_taken_back(tmp_path: Path) -> None:
    with opening.lent(tmp_path):
        opening.take_back(tmp_path)
        assert not opening.is_lent(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no shared locks of this kind")
def test_two_who_look_do_not_take_each_other_for_an_invitation(tmp_path: Path) -> None:
    """Each peer looks every second, at what a killed process has left as well."""
    (tmp_path / f"lan-{int(opening._since_boot())}-0.lease").touch(mode=0o600)
    seen: list[bool] = []

    def look() -> None:
        seen.extend(opening.is_lent(tmp_path) for _ in range(1000))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 2000 and not any(seen)
