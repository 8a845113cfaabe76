"""What the nodes for files and URLs share: how they wait, read, write and notice changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from zbus.errors import FetchError, InputError

from .. import host
from ..exchange.waiting import interruptible
from . import decoding, fetching, urls

MAX_FILE = 2 << 30  # bytes of a file of the input folder: beyond it is a checkpoint, say

T = TypeVar("T")


async def fetched(url: str, what: str, decode: Callable[[bytes], T]) -> T:
    """What `decode` makes of what is at that URL; `what` is said in errors.

    Raises:
        ZBusError: It could not be fetched, or is not what was wanted.
    """
    data = await interruptible(fetching.get(url, what=what))
    try:
        return decode(data)
    except decoding.Undecodable as error:
        raise FetchError(
            str(error),
            peer=urls.shown(url),
            stage=what,
            remedy="Open that address in a browser: it has to be the file itself, and no page",
        ) from error


def fingerprint(name: str | None) -> Any:
    """Of the file's content, so that a changed file is loaded again."""
    if name is None:
        return float("nan")  # comes over a link: nobody knows
    state = hashlib.sha256()
    with host.input_file(name).open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def read(path: Path) -> bytes:
    """The content of a file.

    Raises:
        InputError: It cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise InputError(
                f'"{path.name}" is too large: more than {MAX_FILE >> 30} GiB',
                remedy="Choose a smaller one",
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f'"{path.name}" cannot be read: {error.strerror}',
            remedy="Look who owns it, and whether its disk is there",
        ) from error


def write(prefix: str, ending: str, data: bytes) -> str:
    """Write a new file of the output folder; returns its name, without the folder.

    Raises:
        InputError: It cannot be written there.
    """
    try:
        path = host.output_file(prefix, ending)
        path.write_bytes(data)
    except OSError as error:
        raise InputError(
            f'"{prefix}" cannot be written: {error.strerror}',
            remedy="Look at the output folder: whose it is, and how much room its disk has",
        ) from error
    return path.name
