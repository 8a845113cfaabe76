"""The pictures of each job: from what came to files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...errors import InputError, JobError
from ...values.kinds import LIST, describe
from .workflow import Prompt

COMPRESSION = 4  # of PNG, as ComfyUI's Save Image


def pixels(value: Any) -> list[Any]:
    """Images as they came, each as 8-bit pixels, in the way of ComfyUI's Save Image.

    Raises:
        JobError: They are none.
    """
    if describe(value) != "image":
        raise JobError(
            "what came is no image", remedy="Wire an image to the last Save Image of the workflow"
        )
    batches = value[LIST] if isinstance(value, dict) else [value]
    made = [_eight_bit(image) for batch in batches for image in batch]
    if not made or not all(image.size for image in made):
        raise JobError(
            "no image came, or an empty one",
            remedy="Run the workflow once in the page, and see what its Save Image shows",
        )
    return made


def _eight_bit(image: Any) -> Any:
    scaled = np.nan_to_num(255.0 * image.float().cpu().numpy())
    made = np.clip(scaled, 0, 255).astype(np.uint8)
    return made[..., 0] if made.shape[-1] == 1 else made


class Folder:
    """Where the pictures go: JOB.png, or of several JOB.0.png, JOB.1.png...

    Args:
        path: The folder. It is made if it is not there.
        may_replace: Whether what is there may be replaced.

    Raises:
        InputError: It cannot be made or read.
    """

    def __init__(self, path: Path, may_replace: bool) -> None:
        self.path, self._may_replace = path, may_replace
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._before = set(os.listdir(path))
        except OSError as error:
            raise InputError(
                f"cannot be used: {error}", peer=str(path), remedy="Give another --output"
            ) from error

    def missing(self, jobs: Iterable[int]) -> list[int]:
        """The jobs whose pictures were not there when the program began."""
        # Of several the first is put there last: see `save`.
        return [n for n in jobs if not {f"{n}.png", f"{n}.0.png"} & self._before]

    def save(self, job: int, images: Sequence[Any], prompt: Prompt) -> None:
        """Save the pictures of a job, with the prompt that makes them: all, or none that counts.

        Raises:
            InputError: They cannot be saved.
        """
        info = PngInfo()
        info.add_text("prompt", json.dumps(prompt))
        names = [f"{job}.{i}" for i in range(len(images))] if images[1:] else [str(job)]
        paths = [self.path / f"{name}.png" for name in names]
        parts = [self.path / f"{name}.png.part" for name in names]
        try:
            for part, image in zip(parts, images, strict=True):
                Image.fromarray(image).save(part, "PNG", pnginfo=info, compress_level=COMPRESSION)
            for part, path in reversed(list(zip(parts, paths, strict=True))):
                if not self._may_replace and path.exists():
                    raise FileExistsError(f"{path} has come there meanwhile")
                os.replace(part, path)
        except OSError as error:
            raise InputError(
                f"job {job} cannot be saved: {error}",
                peer=str(self.path),
                remedy="See to that, then go on with --resume",
            ) from error
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
