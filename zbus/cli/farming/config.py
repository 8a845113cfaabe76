"""The YAML that says what to do, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from .workflow import Swap

MAX_JOBS = 1_000_000
KINDS: dict[type, str] = {str: "text", int: "whole number", dict: "map", list: "list"}


@dataclass(frozen=True)
class Config:
    """What to do.

    Attributes:
        workflow: Its file.
        jobs: The numbers of the jobs.
        workers: What each is called here -> where it is, as written.
        swaps: What to replace in the workflow.
    """

    workflow: Path
    jobs: range
    workers: dict[str, str]
    swaps: tuple[Swap, ...]


def read_config(path: Path) -> Config:
    """What that file says.

    Raises:
        InputError: It cannot be read or used; the text names the file and the key.
        ImportError: This Python has no PyYAML.
    """
    import yaml  # type: ignore[import-untyped,unused-ignore]  # ComfyUI brings it; ours need not

    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror or error}",
            peer=str(path),
            remedy="Give the file that says what to do: --conf FILE",
        ) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(
            f"is no YAML{_where(error)}",
            peer=str(path),
            remedy="Give the file that says what to do; docs/guide.md shows one",
        ) from error
    try:
        return _checked(told, path.parent)
    except InputError as error:
        raise error.at(peer=str(path)) from error


def _where(error: Exception) -> str:
    """The place of a fault in words: PyYAML's own are for who knows how it reads."""
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f": line {mark.line + 1}, column {mark.column + 1}"


def _checked(told: object, folder: Path) -> Config:
    first, end = _get(told, "job_start", int), _get(told, "job_end", int)
    if not 0 < end - first <= MAX_JOBS:
        what = f"must be above job_start, {first}, by at most {MAX_JOBS}"
        raise InputError(what, stage="job_end", remedy="The job before it is the last")
    workflow = Path(_get(told, "workflow", str)).expanduser()
    if not workflow.exists() and (folder / workflow).exists():
        workflow = folder / workflow
    workers, swaps = _get(told, "workers", dict), _get(told, "replacement", list)
    return Config(
        workflow,
        range(first, end),
        # NetDist's `system` is not needed: the workers mend separators themselves.
        {str(w): _get(how, "url", str, f"workers.{w}") for w, how in workers.items()},
        tuple(_swap(swap, f"replacement[{i}]", first) for i, swap in enumerate(swaps)),
    )


def _swap(told: object, at: str, number: int) -> Swap:
    target = _get(told, "dst", str, at)
    source = told.get("src") if isinstance(told, dict) else None
    if isinstance(source, bool) or not isinstance(source, (str, int, float)):
        raise InputError(f"is no text and no number: {source!r}", stage=f"{at}.src")
    swap = Swap(source, target)
    try:
        swap.value(number)
    except ValueError as error:
        raise InputError(
            f"cannot be used: {error}",
            stage=f"{at}.dst",
            remedy="In braces can be job_num, or a form of it such as job_num:04; where src is a "
            "number, dst must make one",
        ) from error
    return swap


def _get(told: object, key: str, kind: type, at: str = "") -> Any:
    """The value of that key, which must be of that kind."""
    if not isinstance(told, dict):
        raise InputError(f"is no map with {key} in it", stage=at)
    value, at = told.get(key), f"{at}.{key}" if at else key
    if value is None or value in ("", {}):
        raise InputError("is missing", stage=at)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"is no {KINDS[kind]}: {value!r}", stage=at)
    return value
