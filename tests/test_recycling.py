"""Memory that is used again, and never while anybody can see it."""

from __future__ import annotations

import gc
from unittest import mock

import pytest
import torch

from zbus.values import recycling
from zbus.values.recycling import KEPT, LOOK_EVERY, MOST, RESERVE, SWEEP_EVERY, Recycler

SIZE = 8 << 20


class Machine:
    """One whose free memory is what the test says."""

    def __init__(self) -> None:
        self.free = RESERVE

    def __call__(self) -> int:
        return self.free


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def recycler(machine: Machine) -> Recycler:
    return Recycler(machine)


def kept(recycler: Recycler) -> int:
    """The bytes that it keeps."""
    pieces = [*recycler._returned, *(memory for _, memory in recycler._kept)]
    return sum(memory.numel() for memory in pieces)


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
    assert recycler.sweep(2.0) == 2.0 + LOOK_EVERY
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


def test_nothing_is_kept_while_memory_is_short(recycler: Recycler, machine: Machine) -> None:
    """The host has given it up for want of memory, and looks at once what that has brought."""
    tensor = recycler.take(torch, SIZE)
    machine.free = RESERVE - 1
    del tensor
    gc.collect()
    assert kept(recycler) == 0


def test_what_is_kept_is_let_go_when_memory_becomes_short(
    recycler: Recycler, machine: Machine
) -> None:
    tensors = [recycler.take(torch, SIZE) for _ in range(2)]
    tensors.pop()
    recycler.sweep(1.0)  # one is put away, and one has only come back
    tensors.pop()
    gc.collect()
    assert kept(recycler) == 2 * SIZE
    recycler.relieve()
    assert kept(recycler) == 2 * SIZE, "there is enough"
    machine.free = RESERVE - 1
    recycler.relieve()
    assert kept(recycler) == 0


def test_the_sweep_sees_that_memory_is_short(recycler: Recycler, machine: Machine) -> None:
    tensor = recycler.take(torch, SIZE)
    del tensor
    gc.collect()
    assert recycler.sweep(1.0) == 1.0 + LOOK_EVERY
    machine.free = RESERVE - 1
    assert recycler.sweep(2.0) is None and kept(recycler) == 0


def test_memory_that_could_not_be_had_is_not_waited_for(recycler: Recycler) -> None:
    none = mock.Mock(empty=mock.Mock(side_effect=RuntimeError("not enough memory")))
    with pytest.raises(RuntimeError):
        recycler.take(none, SIZE)
    assert recycler.sweep(0.0) is None


def test_it_lets_go_when_it_is_asked(recycler: Recycler, monkeypatch) -> None:
    """Also of what comes back in the moments after: the host frees its own results only then."""
    now = 100.0
    monkeypatch.setattr(recycling.time, "monotonic", lambda: now)
    first, second = recycler.take(torch, SIZE), recycler.take(torch, SIZE)
    del first
    gc.collect()
    recycler.let_go(5.0)
    assert kept(recycler) == 0
    now += 4.9
    del second
    gc.collect()
    assert kept(recycler) == 0
    third, now = recycler.take(torch, SIZE), now + 0.2
    del third
    gc.collect()
    assert kept(recycler) == SIZE
