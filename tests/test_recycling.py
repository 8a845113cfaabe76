"""Memory that is used again, and never while anybody can see it."""

from __future__ import annotations

import gc

import pytest
import torch

from zbus.values import recycling
from zbus.values.recycling import KEPT, MOST, SWEEP_EVERY, Recycler

SIZE = 8 << 20


@pytest.fixture
def recycler() -> Recycler:
    return Recycler()


def test_what_was_dropped_is_used_again(recycler: Recycler) -> None:
    first = recycler.take(torch, SIZE)
    where = first.data_ptr()
    del first
    again = recycler.take(torch, SIZE - 1000)
    assert again.data_ptr() == where and again.numel() == SIZE - 1000


def keep_tensor(tensor: torch.Tensor) -> object:
    return tensor


def keep_slice(tensor: torch.Tensor) -> object:
    return tensor[1000:1010]


def keep_array(tensor: torch.Tensor) -> object:
    return tensor.numpy()[5:9]


def keep_storage(tensor: torch.Tensor) -> object:
    return tensor.untyped_storage()


def keep_view(tensor: torch.Tensor) -> object:
    return tensor.view(torch.float32).view(-1, 2).detach().T


def keep_memoryview(tensor: torch.Tensor) -> object:
    return memoryview(tensor.numpy())


@pytest.mark.parametrize(
    "keep", [keep_tensor, keep_slice, keep_array, keep_storage, keep_view, keep_memoryview]
)
def test_nobody_gets_what_somebody_can_see(recycler: Recycler, keep) -> None:
    tensor = recycler.take(torch, SIZE)
    where, kept = tensor.data_ptr(), keep(tensor)
    del tensor
    gc.collect()
    others = [recycler.take(torch, SIZE) for _ in range(3)]
    assert where not in [other.data_ptr() for other in others]
    del kept, others
    gc.collect()
    assert where in [t.data_ptr() for t in [recycler.take(torch, SIZE) for _ in range(4)]]


def test_only_what_fits_well_is_taken(recycler: Recycler) -> None:
    where = recycler.take(torch, SIZE).data_ptr()
    gc.collect()
    small, large = recycler.take(torch, SIZE // 2), recycler.take(torch, SIZE * 2)
    assert where not in (small.data_ptr(), large.data_ptr())


def test_it_is_let_go_after_a_while(recycler: Recycler) -> None:
    assert recycler.sweep(0.0) is None, "nothing to look after"
    tensor = recycler.take(torch, SIZE)
    assert recycler.sweep(1.0) == 1.0 + SWEEP_EVERY
    del tensor
    gc.collect()
    assert recycler.sweep(2.0) == 2.0 + SWEEP_EVERY
    assert recycler.sweep(2.0 + KEPT) is None
    assert not recycler._kept and not recycler._returned


def test_not_more_is_kept_than_may_be(recycler: Recycler, monkeypatch) -> None:
    monkeypatch.setattr(recycling, "MOST", 3 * SIZE)
    tensors = [recycler.take(torch, SIZE) for _ in range(10)]
    del tensors
    gc.collect()
    recycler.sweep(1.0)
    assert sum(memory.numel() for _, memory in recycler._kept) <= 3 * SIZE
    assert MOST == 512 << 20
