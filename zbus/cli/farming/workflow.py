"""The workflow: read from its file, and rendered as the prompt of each job."""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import InputError

PICTURES = ("SaveImage", "PreviewImage")

Prompt = dict[str, dict[str, Any]]  # ComfyUI's API format

# What Pillow and json raise for files that are broken.
_BOMB = Image.DecompressionBombError
_UNREADABLE = (OSError, EOFError, ValueError, SyntaxError, RecursionError, _BOMB)


@dataclass(frozen=True)
class Swap:
    """In every input that is exactly `source`, `target` takes its place."""

    source: str | int | float
    target: str

    def fits(self, value: object) -> bool:
        return type(value) is type(self.source) and value == self.source

    def value(self, number: int) -> str | int | float:
        """What stands there in that job: of a number a number.

        Raises:
            ValueError: `target` makes none, or has something else than {job_num} in braces.
        """
        for _, name, form, conversion in string.Formatter().parse(self.target):
            if name is not None and (name != "job_num" or conversion or "{" in (form or "")):
                raise ValueError(f"what is {{{name}}} in {self.target!r}?")
        return type(self.source)(self.target.format(job_num=number))


class Recipe:
    """Makes the prompt of each job.

    Attributes:
        output: The id of the node whose pictures are wanted: the last that shows or saves some.

    Raises:
        InputError: There is no such node, or nothing to replace.
    """

    def __init__(self, prompt: Prompt, swaps: Sequence[Swap]) -> None:
        self._prompt, self._swaps = prompt, swaps
        found = [node for node in prompt if _shows_picture(prompt[node])]
        if not found:
            raise InputError(
                "has no Save Image or Preview Image with a picture wired to it",
                remedy="Add one, and save the workflow again",
            )
        self.output = found[-1]
        values = [value for node in prompt.values() for value in node["inputs"].values()]
        for swap in swaps:
            if not any(map(swap.fits, values)):
                raise InputError(
                    f"no input in it is exactly {swap.source!r}, the src to replace",
                    remedy="Write the very value that the saved workflow has, a text in quotes",
                )

    def prompt(self, number: int) -> Prompt:
        """That job's prompt, as a ComfyUI would run it for its own user."""
        made = copy.deepcopy(self._prompt)
        for node in made.values():
            for name, value in node["inputs"].items():
                swap = next((swap for swap in self._swaps if swap.fits(value)), None)
                if swap is not None:
                    node["inputs"][name] = swap.value(number)
        return made

    def sent(self, number: int) -> Prompt:
        """That job's prompt for a worker: what would be shown or saved there comes here."""
        made = self.prompt(number)
        inputs = {"value": made[self.output]["inputs"]["images"], "name": self.output, "job": ""}
        made[self.output] = {"class_type": "ZBusResult", "inputs": inputs}
        return made


def read_recipe(path: Path, swaps: Sequence[Swap]) -> Recipe:
    """The recipe from a PNG that ComfyUI has saved, or from a file in API format.

    Raises:
        InputError: There is none in it, or it cannot be used.
    """
    try:
        return Recipe(_read(path), swaps)
    except InputError as error:
        raise error.at(peer=str(path)) from error
    except _UNREADABLE as error:
        raise InputError(
            f"cannot be read: {error}",
            peer=str(path),
            remedy='Give a picture that ComfyUI saved, or a file of its "Export (API)"',
        ) from error


def _read(path: Path) -> Prompt:
    if path.suffix.lower() == ".json":
        prompt = json.loads(path.read_text(encoding="utf-8-sig"))
    else:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # metadata may stand behind the pixels
            prompt = json.loads(image.info.get("prompt", "null"))
    if not isinstance(prompt, dict) or not all(map(_is_node, prompt.values())):
        raise InputError(
            "holds no workflow in API format",
            remedy="Save it with File > Export (API), or name a PNG that Save Image has written",
        )
    return {node_id: {"inputs": {}, **node} for node_id, node in prompt.items()}


def _is_node(told: object) -> bool:
    return (
        isinstance(told, dict)
        and isinstance(told.get("class_type"), str)
        and isinstance(told.get("inputs", {}), dict)
    )


def _shows_picture(node: Mapping[str, Any]) -> bool:
    return node["class_type"] in PICTURES and isinstance(node["inputs"].get("images"), list)
