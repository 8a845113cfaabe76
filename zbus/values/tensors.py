"""Tensors and arrays as plain bytes: the closed tables of data types, and torch at arm's length.

torch is imported here and nowhere else, when the first tensor is met: a process that moves no
tensor runs without it. A name from the wire is only ever looked up in the tables below.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MAX_QUOTED, NotTransferable, RemoteProtocolError, TransferRefused
from .recycling import LARGE, RECYCLER

if TYPE_CHECKING:
    import torch

# The bytes of one element. float4_e2m1fn_x2 holds two values in one byte.
TENSOR_ITEMSIZE = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
    "complex128": 16,
    "complex64": 8,
    "complex32": 4,
}

# What 8-bit can stand in for: real floats that can hold 0 and convert to and from float32.
QUANTISABLE = frozenset(
    {
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
    }
)

ARRAY_ITEMSIZE = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
    "complex128": 16,
    "complex64": 8,
}

# Same-sized integers: a copy as these keeps every bit, and works where a dtype has no kernels.
_INTEGER = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}

# What every torch copies and joins by itself, without looking at what the bits mean.
_USUAL = frozenset(
    [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
        "complex128",
        "complex64",
    ]
)


class NestedTensor:
    """Tensors of different shapes that travel together.

    Stands in for ``comfy.nested_tensor.NestedTensor`` in a process that has no ComfyUI.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors = list(tensors)


def torch_module() -> Any:
    """The torch module, imported now if need be.

    Raises:
        ModuleNotFoundError: There is none in this process.
        TransferRefused: There is one, and it cannot be loaded.
    """
    try:
        return importlib.import_module("torch")
    except Exception as error:  # a library that it lacks (OSError), or half of it is there
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            raise
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TransferRefused(
            f"torch cannot be loaded here: {said[:MAX_QUOTED]}",
            remedy="Repair that ComfyUI's torch: python -c 'import torch' must work",
        ) from error


def is_tensor(value: object) -> bool:
    """Whether it is a torch tensor. Does not import torch: without it there is no tensor."""
    torch = sys.modules.get("torch")
    kind = getattr(torch, "Tensor", None)  # absent while torch is only half imported
    return kind is not None and isinstance(value, kind)


def is_nested(value: object) -> bool:
    """Whether it is ComfyUI's NestedTensor, or ours: known by its name, as torch is."""
    return type(value).__name__ == "NestedTensor" and isinstance(
        getattr(value, "tensors", None), list
    )


def nested(tensors: list[Any]) -> object:
    """A NestedTensor of these: ComfyUI's own class where it can be imported."""
    try:
        made: object = importlib.import_module("comfy.nested_tensor").NestedTensor(tensors)
    except (ImportError, AttributeError):
        made = NestedTensor(tensors)
    return made


def tensor_dtype(tensor: torch.Tensor) -> str:
    """The name of its dtype as torch spells it, without the "torch."."""
    name = _names.get(tensor.dtype)
    if name is None:
        name = _names[tensor.dtype] = str(tensor.dtype).removeprefix("torch.")
    return name


_names: dict[torch.dtype, str] = {}  # making one takes longer than all else about a small tensor


def check_dtype(name: str) -> str:
    """The name, if this side has that dtype. Does not import torch for it: where nothing has
    yet, what this torch lacks shows in `find_dtype`.

    Raises:
        RemoteProtocolError: As `find_dtype`.
    """
    if name not in TENSOR_ITEMSIZE:
        raise RemoteProtocolError(f"the value holds a tensor of unknown dtype {name[:40]!r}")
    if "torch" in sys.modules:
        find_dtype(name)
    return name


def find_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name from the table.

    Raises:
        RemoteProtocolError: The name is in no table, or this torch has no such dtype.
        TransferRefused: This side's torch cannot be loaded.
    """
    if name not in TENSOR_ITEMSIZE:
        raise RemoteProtocolError(f"the value holds a tensor of unknown dtype {name[:40]!r}")
    try:
        found: torch.dtype | None = getattr(torch_module(), name, None)
    except ImportError:
        raise RemoteProtocolError(
            "the value holds a tensor, and this side has no torch",
            remedy="Install torch here, or send no tensor.",
        ) from None
    if found is None:
        raise RemoteProtocolError(
            f"this torch has no {name}", remedy="Update torch here, or convert before sending."
        )
    return found


def check_tensor(tensor: torch.Tensor, place: Callable[[], str]) -> None:
    """That its elements are plain memory of a dtype in the table.

    Args:
        place: Says where it lies, for the error.

    Raises:
        NotTransferable: It is sparse, quantised, on the meta device, a wrapper and so on.
    """
    torch = sys.modules["torch"]
    dtype = tensor_dtype(tensor)
    remedy = "Convert it to an ordinary tensor before sending."
    # A __torch_dispatch__ of its own marks a class whose data is not in its own storage:
    # FakeTensor, DTensor, the quantised weights of ComfyUI.
    wraps = type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    if wraps or isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        what = f"a {type(tensor).__name__}"
    elif tensor.is_nested:
        what = "a nested tensor of torch"
    elif tensor.layout is not torch.strided:
        what = f"a tensor of layout {str(tensor.layout).removeprefix('torch.')}"
    elif tensor.is_meta:
        what = "a tensor on the meta device, which has no data"
    elif dtype not in TENSOR_ITEMSIZE:
        what = f"a tensor of dtype {dtype}"
    else:
        return
    raise NotTransferable(f"{place()} is {what}, which cannot travel", remedy=remedy)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in CPU memory: no gradient, no lazy conjugate, no subclass. May share."""
    return settled(tensor).cpu()


def settled(tensor: torch.Tensor) -> torch.Tensor:
    """The same where it lies."""
    base: torch.Tensor = tensor.detach().as_subclass(torch_module().Tensor)
    return base.resolve_conj().resolve_neg()


def joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The elements of tensors of one dtype, one after the other, in CPU memory: a copy, but for
    that of a single one."""
    torch = torch_module()
    if len(tensors) == 1:
        return plain(tensors[0])
    dtype, is_scattered = tensors[0].dtype, len({tensor.device for tensor in tensors}) > 1
    bits = None if tensor_dtype(tensors[0]) in _USUAL else getattr(torch, _INTEGER[dtype.itemsize])
    with torch.no_grad():
        for at, tensor in enumerate(tensors):
            if type(tensor) is not torch.Tensor or tensor.is_neg() or tensor.is_conj():
                tensors[at] = tensor = settled(tensor)
            if is_scattered:  # else they stay together, and leave their device as one
                tensors[at] = tensor.cpu()
        if bits is not None:
            tensors = [tensor.view(bits) for tensor in tensors]
        if len({tensor.shape for tensor in tensors}) == 1:
            whole = torch.stack(tensors)
        else:
            whole = torch.cat([tensor.reshape(-1) for tensor in tensors])
        return whole.cpu()  # type: ignore[no-any-return]


def parted(
    whole: torch.Tensor, lengths: list[int], shapes: list[tuple[int, ...]]
) -> Sequence[torch.Tensor]:
    """The opposite: tensors of these elements and shapes, each in memory of its own."""
    torch, dtype = torch_module(), whole.dtype
    is_usual = tensor_dtype(whole) in _USUAL
    bits = whole if is_usual else whole.view(getattr(torch, _INTEGER[dtype.itemsize]))
    # Not under no_grad: nothing here has a gradient, and what is viewed there can never have one.
    if len(set(shapes)) == 1:
        parts = torch.unbind_copy(bits.view(len(shapes), *shapes[0]))
    else:
        flat = torch.split_with_sizes_copy(bits, lengths)
        parts = [part.view(shape) for part, shape in zip(flat, shapes, strict=True)]
    return parts if is_usual else [part.view(dtype) for part in parts]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Its elements in C order, as writable bytes that share memory where it is contiguous."""
    torch = torch_module()
    same = _INTEGER.get(tensor.element_size())
    bits = tensor.view(getattr(torch, same)) if same else tensor
    flat = bits.contiguous().reshape(-1)
    if flat.stride(-1) != 1:  # of a single element any is contiguous, and its bytes are no view
        flat = flat.as_strided(flat.shape, (1,))
    return memory_of(flat.view(torch.uint8).numpy())


def array_bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """Its elements in C order and in the wire's byte order (little-endian)."""
    ordered = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return memory_of(ordered)


def memory_of(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a contiguous array, shared."""
    flat: Any = array.reshape(-1).view(np.uint8)  # numpy's stubs: no Buffer before Python 3.12
    return memoryview(flat)


def empty_tensor(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Memory for one tensor, to be filled.

    Raises:
        TransferRefused: The system does not give that much.
    """
    module, nbytes = torch_module(), math.prod(shape) * dtype.itemsize
    try:
        if nbytes >= LARGE:
            return RECYCLER.take(module, nbytes).view(dtype).view(tuple(shape))
        fresh: torch.Tensor = module.empty(tuple(shape), dtype=dtype)
        return fresh
    except (RuntimeError, MemoryError) as error:
        raise no_memory(f"a tensor of shape {list(shape)}, {dtype}") from error


def no_memory(what: str) -> TransferRefused:
    """The error of a receiver that cannot allocate."""
    return TransferRefused(
        f"there is no memory here for {what}", remedy="Free memory on the receiving side."
    )
