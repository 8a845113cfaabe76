"""Fresh memory in huge pages: only where they are faster, and as good as any other."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zbus.values import pages
from zbus.values.recycling import Recycler

MIB = 1 << 20


@pytest.fixture(autouse=True)
def unmeasured() -> Iterator[None]:
    pages.are_faster.cache_clear()
    yield
    pages.are_faster.cache_clear()


def timed(monkeypatch: pytest.MonkeyPatch, huge: list[float], small: list[float]) -> None:
    took = {True: iter(huge), False: iter(small)}
    monkeypatch.setattr(pages, "_may_be_asked_for", lambda: True)
    monkeypatch.setattr(pages, "_touch", lambda huge: next(took[huge]))


linux = pytest.mark.skipif(sys.platform != "linux", reason="huge pages of Linux")


@linux
def test_they_are_measured_once_and_the_best_of_each_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed(monkeypatch, [9.0, 0.5], [1.0, 5.0])
    assert pages.are_faster()
    assert pages.are_faster(), "it is remembered: the times are used up"


@linux
@pytest.mark.parametrize("small", [[0.5, 0.7], [0.55, 0.6]], ids=["faster", "hardly slower"])
def test_they_are_not_taken_where_they_are_no_faster(
    monkeypatch: pytest.MonkeyPatch, small: list[float]
) -> None:
    timed(monkeypatch, [0.5, 0.5], small)
    assert not pages.are_faster()
    assert pages.allocate(64 * MIB) is None


def test_elsewhere_and_where_they_are_turned_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pages, "_touch", lambda huge: pytest.fail("measured"))
    enabled = tmp_path / "enabled"
    monkeypatch.setattr(pages, "_ENABLED", enabled)
    assert not pages.are_faster(), "a kernel without them"
    pages.are_faster.cache_clear()
    enabled.write_text("always madvise [never]\n")
    assert not pages.are_faster()
    pages.are_faster.cache_clear()
    enabled.write_text("always [madvise] never\n")
    monkeypatch.setattr(pages.sys, "platform", "win32")
    assert not pages.are_faster()


@linux
def test_a_kernel_that_knows_no_such_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(huge: bool) -> float:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(pages, "_may_be_asked_for", lambda: True)
    monkeypatch.setattr(pages, "_touch", unknown)
    assert not pages.are_faster()


@linux
@pytest.mark.parametrize("nbytes", [2 * MIB, 5 * MIB + 12, 16 * MIB])
def test_a_tensor_there_is_like_any_other(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setattr(pages, "are_faster", lambda: True)
    made = Recycler(lambda: 1 << 40).take(torch, nbytes)
    assert made.numel() == nbytes and made.data_ptr() % pages.HUGE == 0
    assert made.is_contiguous() and made.untyped_storage().nbytes() == nbytes
    made.fill_(7)
    values = made[: nbytes // 4 * 4].view(torch.float32)
    assert torch.equal(values * 2, values + values)
    copy, shared = made.clone(), torch.empty(0, dtype=torch.uint8).set_(made)
    shared[5] = 1
    assert made[5] == 1 and copy[5] == 7
    copy.resize_(2 * nbytes)


@linux
def test_what_would_not_fill_a_huge_page_lies_in_small_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or so little more than 2 MiB as this would take 4."""
    asked: list[tuple[int, ...]] = []

    class Mapping(pages.mmap.mmap):
        def madvise(self, *given: int) -> None:
            asked.append(given)

    monkeypatch.setattr(pages.mmap, "mmap", Mapping)
    made = pages._mapped(5 * MIB + 12, huge=True)
    [(_, start, length)] = asked
    assert length == 4 * MIB and len(made) == 5 * MIB + 12
    assert start + made.base.ctypes.data == made.ctypes.data  # type: ignore[union-attr]


@linux
def test_a_system_that_will_not_hear_of_them_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not another exception, which its caller does not know."""

    class Mapping(pages.mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(pages.mmap, "mmap", Mapping)
    with pytest.raises(MemoryError, match="Cannot allocate"):
        pages._mapped(2 * MIB, huge=True)


@linux
def test_its_mapping_goes_with_the_last_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "are_faster", lambda: True)

    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    before, size = mapped(), 1 << 34  # nothing of it is written to
    memory = pages.allocate(size)
    assert memory is not None and mapped() >= before + size
    view = torch.from_numpy(memory)[100:200]
    del memory
    gc.collect()
    assert mapped() >= before + size
    del view
    gc.collect()
    assert mapped() < before + size // 2


@linux
def test_what_is_smaller_than_a_page_is_no_business_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "are_faster", lambda: pytest.fail("asked"))
    assert pages.allocate(pages.HUGE - 1) is None


@linux
def test_more_than_there_is() -> None:
    with pytest.raises(MemoryError, match="no 1152921504606846976 bytes"):
        pages._mapped(1 << 60, huge=True)


@linux
def test_the_measurement_is_of_both_kinds() -> None:
    assert all(pages._touch(huge) > 0 for huge in (True, False))
