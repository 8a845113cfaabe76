"""Several machines' results as one batch: `comfy_nodes/jobs/batching.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

MODULE = Path(__file__).resolve().parent.parent / "comfy_nodes" / "jobs" / "batching.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("zbus_batching_under_test", MODULE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


batching = _load()
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def pictures(count: int, dtype: torch.dtype, size: int = 8) -> torch.Tensor:
    torch.manual_seed(count)
    return torch.rand(count, size, size, 3).to(dtype)


@pytest.mark.parametrize(
    ("dtypes", "widest", "said"),
    [
        ((F16, F32), F32, "one batch of float32: float16 and float32 came"),
        ((F32, F16, F16), F32, "one batch of float32: float16 and float32 came"),
        ((F16, BF16), F32, "one batch of float32: bfloat16 and float16 came"),
        ((F16, torch.float64), torch.float64, "one batch of float64: float16 and float64 came"),
        ((F16, F16), F16, ""),
    ],
)
def test_float_dtypes_join_in_the_widest_and_it_says_so(
    dtypes: Any, widest: torch.dtype, said: str
) -> None:
    values = [pictures(number + 1, dtype) for number, dtype in enumerate(dtypes)]
    results = [[value] for value in values]
    (joined,) = batching.join(results)
    assert joined.dtype == widest
    assert torch.equal(joined, torch.cat([value.to(widest) for value in values]))
    assert batching.widening(results) == said


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (pictures(1, F32), pictures(1, F16, size=4)),
        (pictures(1, F32), pictures(1, F32)[..., :1]),
        (pictures(1, F32), (pictures(1, F32) * 9).to(torch.uint8)),
        (pictures(1, F32).to(torch.float8_e4m3fn), pictures(1, F32)),
        (torch.ones(8, 8), torch.ones(8, 8)),
        (pictures(1, F32), "text"),
        ({"samples": pictures(1, F32)}, {"samples": pictures(1, F32)}),
    ],
)
def test_what_is_no_batch_stays_a_list(first: Any, other: Any) -> None:
    joined = batching.join([[first], [other]])
    assert joined[0] is first and joined[1] is other and len(joined) == 2
    assert batching.widening([[first], [other]]) == ""


def test_one_run_is_left_as_it_is() -> None:
    values = [pictures(1, F16), pictures(1, F32)]
    assert batching.join([values]) == values and batching.widening([values]) == ""
    assert batching.join([[], []]) == [] and batching.widening([[], []]) == ""
