"""Pure: texts for another user, without the paths of this computer: a path tells who works here and
where what lies. The last part of it stays: a file's name is what the text is about. Of a program's
file all stays that is below the folder of programs: where a traceback leads is what it is for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_START = r"(?:[A-Za-z]:[\\/]|\\\\|~[\\/]|/)"  # of a path that does not depend on where one is
_URL = re.compile(r"\bfile:/{1,3}[^\s'\"<>]+", re.IGNORECASE)
_QUOTED = re.compile(rf"(?P<quote>['\"])(?P<path>{_START}[^'\"\n]*)(?P=quote)")
# Not within a URL, a word ("and/or") or a relative path.
_BARE = re.compile(rf"(?<![\w:/\\.<]){_START}[^\s'\",;:()\[\]<>|]+")
_DRIVE = re.compile(r"[A-Za-z]:$")


def is_absolute(name: str) -> bool:
    """Whether it is a path from the root of a computer."""
    return name.startswith(("/", "\\\\", "~/", "~\\")) or name[1:3] in (":/", ":\\")


def without_paths(
    text: str, folders: Mapping[str, str], programs: Mapping[str, str] | None = None
) -> str:
    """The text with only the last part of each path in it.

    Args:
        folders: The folders that paths here begin with, which may have spaces in them, each with
            what to call it.
        programs: Those of programs, likewise: a path into one of them begins with its name.
    """
    # What begins with "/" is cut below.
    known = {**(programs or {}), **{folder: f"/{name}" for folder, name in folders.items()}}
    for folder in sorted(known, key=len, reverse=True):
        pattern = _pattern(folder)
        if pattern is not None:
            text = pattern.sub(known[folder], text)
    text = _URL.sub(lambda found: _last(found[0]), text)
    text = _QUOTED.sub(lambda found: found["quote"] + _last(found["path"]) + found["quote"], text)
    return _BARE.sub(lambda found: _last(found[0]), text)


def _pattern(folder: str) -> re.Pattern[str] | None:
    """That folder as it is, and as Python's repr writes it; one of Windows with either slash, and
    in letters of either case. None for a root."""
    parts = [part for part in re.split(r"[\\/]+", folder) if part]
    is_windows = bool(_DRIVE.match(parts[0])) or folder.startswith("\\\\") if parts else False
    if len(parts) < (2 if is_windows else 1):
        return None
    between = r"[\\/]+" if is_windows else "/+"
    # From the first of several separators, or a long run of them would be read from each anew.
    first = rf"(?<![\\/]){between}" if is_windows else f"(?<!/){between}"
    start = "" if is_windows and not folder.startswith("\\\\") else first
    written = start + between.join(map(re.escape, parts))
    return re.compile(rf"{written}(?![\w-])", re.IGNORECASE if is_windows else 0)


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
