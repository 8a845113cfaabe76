"""Float pictures as 8 bits: q = round(255 x), and back x = q / 255 computed in float32.

That is how ComfyUI's LoadImage makes floats from a file (uint8 -> float32, / 255), so a picture
that came from a file and was not changed comes back bit for bit: :func:`exactly` finds those.

Other ways from 8 bits to floats give other numbers, and still no more than 256 of them (a film's
frames, where white is 0.9961): :func:`paletted` names those, and each element by its place there.

All of it goes block by block: a picture of gigabytes needs one block of extra memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import CodecRefused
from .tensors import plain, torch_module

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_BLOCK = 256 * 1024  # elements: 1 MiB of float32, which stays in the cache
_SAMPLE = 4096  # elements looked at before the whole


class Quantised(NamedTuple):
    """A tensor as 8 bits: q is uint8 and one-dimensional; low and high are what it held."""

    q: torch.Tensor
    low: float
    high: float


def quantise(tensor: torch.Tensor, place: str) -> Quantised:
    """Rounds to the nearest of 256 steps, after clipping to 0..1.

    Raises:
        CodecRefused: It holds NaN.
    """
    torch = torch_module()
    flat = plain(tensor).reshape(-1)
    q = torch.empty(flat.numel(), dtype=torch.uint8)
    low, high = float("inf"), float("-inf")
    for span in _blocks(flat.numel()):
        block = flat[span].to(torch.float32)
        least, most = (float(end) for end in torch.aminmax(block))
        if least != least:  # aminmax passes NaN on
            raise _nan(flat, place)
        low, high = min(low, least), max(high, most)
        q[span] = _round(block)
    return Quantised(q, low, high)


def span(tensor: torch.Tensor, place: str) -> tuple[float, float]:
    """The least and the greatest that it holds. Raises as `quantise`."""
    torch = torch_module()
    flat = tensor.detach().reshape(-1)
    # float8 has no minimum in torch; and what lies on a device is looked at there.
    wide = flat.to(torch.float32) if flat.element_size() == 1 else flat
    low, high = (float(end) for end in torch.aminmax(wide))
    if low != low:  # aminmax passes NaN on
        raise _nan(plain(tensor).reshape(-1), place)
    return low, high


def exactly(tensor: torch.Tensor) -> torch.Tensor | None:
    """The 8-bit form (uint8, one-dimensional) if it gives every bit back, else None."""
    torch = torch_module()
    flat = plain(tensor).reshape(-1)
    # Anything but a picture from a file shows it in the first few elements.
    if _exact_block(flat[:: max(1, flat.numel() // _SAMPLE)]) is None:
        return None
    q = torch.empty(flat.numel(), dtype=torch.uint8)
    for span in _blocks(flat.numel()):
        part = _exact_block(flat[span])
        if part is None:
            return None
        q[span] = part
    return q  # type: ignore[no-any-return]


class Paletted(NamedTuple):
    """A tensor as the few numbers that it is made of: q (uint8, one-dimensional) counts them in
    `table`, which is of the tensor's own dtype."""

    q: torch.Tensor
    table: torch.Tensor


def paletted(tensor: torch.Tensor) -> Paletted | None:
    """Its numbers and which each element is, bit for bit; None where there are more than 256."""
    torch = torch_module()
    flat = plain(tensor).reshape(-1)
    # As integers: a NaN is unlike itself, and -0.0 like 0.0. Of what is not negative they have the
    # order of the floats, so that q is a picture still.
    bits = flat.contiguous().view(_integers(flat.element_size()))
    table = torch.unique(bits[:: max(1, bits.numel() // _SAMPLE)])
    if table.numel() > 256:
        return None
    q = torch.empty(bits.numel(), dtype=torch.uint8)
    for span in _blocks(bits.numel()):
        block = bits[span]
        even = _in_even_table(table, block, flat.dtype)
        if even is not None:
            q[span] = even
            continue
        found = torch.searchsorted(table, block).clamp_(max=table.numel() - 1)
        new = torch.unique(block[table[found] != block])
        if table.numel() + new.numel() > 256:
            return None
        if new.numel():  # what the sample has missed
            wider = torch.cat((table, new)).sort().values
            moved = torch.searchsorted(wider, table).to(torch.uint8)
            q[: span.start] = moved[q[: span.start].long()]
            table, found = wider, torch.searchsorted(wider, block)
        q[span] = found.to(torch.uint8)
    return Paletted(q, table.view(flat.dtype))


def _in_even_table(
    table: torch.Tensor, block: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | None:
    """Where each is in a table of numbers that lie as evenly as those of a picture do: found ten
    times as fast as in any. None if some of them is not found so."""
    torch = torch_module()
    numbers = table.view(dtype).to(torch.float32)
    low, high = (float(end) for end in torch.aminmax(numbers))
    if not 0.0 < high - low < float("inf"):
        return None
    places = torch.zeros(256, dtype=torch.int64)
    places[_slots(numbers, low, high)] = torch.arange(table.numel())
    found = places[_slots(block.view(dtype).to(torch.float32), low, high)]
    return found if torch.equal(table[found], block) else None


def _slots(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    torch = torch_module()
    spread = (values - low).mul_(255 / (high - low)).round_().clamp_(0, 255)
    return spread.to(torch.uint8).to(torch.int64)  # any byte for NaN: what is found is compared


def unpaletted(q: torch.Tensor, table: torch.Tensor, into: torch.Tensor) -> bool:
    """Fills ``into`` (contiguous, of the table's dtype) with what q counts; False if that is
    beyond the table."""
    flat, bits = into.view(-1), _integers(table.element_size())
    numbers = table.view(bits)
    for span in _blocks(flat.numel()):
        if int(q[span].max()) >= numbers.numel():
            return False
        flat[span] = numbers[q[span].long()].view(table.dtype)
    return True


def dequantise(q: torch.Tensor, into: torch.Tensor) -> None:
    """Fills ``into`` (contiguous, any float dtype) with q / 255; both hold as many elements."""
    flat = into.view(-1)
    for span in _blocks(flat.numel()):
        flat[span] = _restore(q[span], into.dtype)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(at, min(at + _BLOCK, count)) for at in range(0, count, _BLOCK))


def _round(block: torch.Tensor) -> torch.Tensor:
    return block.clamp(0, 1).mul_(255).round_().to(torch_module().uint8)


def _restore(q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return q.to(torch_module().float32).div_(255).to(dtype)


def _exact_block(block: torch.Tensor) -> torch.Tensor | None:
    torch = torch_module()
    block = block.contiguous()
    q = _round(block.to(torch.float32))  # any byte for NaN, which no byte gives back
    # Compared as integers: equal floats are not always equal bits (-0.0, NaN).
    bits = _integers(block.element_size())
    return q if torch.equal(_restore(q, block.dtype).view(bits), block.view(bits)) else None


def _integers(itemsize: int) -> torch.dtype:
    torch = torch_module()
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[itemsize]  # type: ignore[no-any-return]


def _nan(flat: torch.Tensor, place: str) -> CodecRefused:
    torch = torch_module()
    spans = _blocks(flat.numel())
    count = sum(int(torch.isnan(flat[span].to(torch.float32)).sum()) for span in spans)
    return CodecRefused(
        f"{place} holds {count} NaN value{'s' * (count != 1)}, which 8 bits cannot carry",
        remedy="Choose exact, raw, lz4 or zlib, or find the node that made them.",
    )
