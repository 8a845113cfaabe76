"""A picture by a raw socket, as a lossless file or as its floats."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from ....values.tensors import torch_module
from .sockets import Socket

WRITTEN: dict[str, dict[str, Any]] = {
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
    "webp-small": {"format": "WEBP", "lossless": True, "quality": 50, "method": 3},
    "png": {"format": "PNG", "compress_level": 1},
}


class Picture(Socket):
    """`kind` is one of `WRITTEN`, or "floats". Both sides have tensors."""

    with_torch = True

    def prepare(self, value: Any) -> None:
        self._tensor = value

    def send(self) -> None:
        floats = self._tensor.numpy()
        if self.kind == "floats":
            self.value = memoryview(floats).cast("B")
        else:
            self.value = memoryview(_encoded(floats, WRITTEN[self.kind]))
        self._link.sendall(np.array(floats.shape, "<u4").tobytes())
        super().send()

    def receive(self, memory: str) -> Any:
        head = bytearray(16)
        self._fill(memoryview(head))
        shape = np.frombuffer(head, "<u4")
        data = self._take(memory)
        if self.kind == "floats":
            floats = np.frombuffer(data, np.float32).reshape(shape)
        else:
            with Image.open(io.BytesIO(data)) as image:
                floats = np.asarray(image)[None].astype(np.float32) / 255.0
        tensor = torch_module().from_numpy(floats)
        self._link.sendall(b"\1")
        return tensor


def _encoded(floats: np.ndarray[Any, np.dtype[np.float32]], how: dict[str, Any]) -> memoryview:
    bytes_ = np.rint(floats * 255.0).astype(np.uint8)
    if not np.array_equal(bytes_.astype(np.float32) / 255.0, floats):
        raise ValueError("it is no picture of 8 bits")
    file = io.BytesIO()
    Image.fromarray(bytes_[0]).save(file, **how)
    return file.getbuffer()
