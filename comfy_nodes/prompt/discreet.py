"""Pure: texts for another user, without the paths of this computer: a path tells who works here and
where what lies. The last part of it stays: a file's name is what the text is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_START = r"(?:[A-Za-z]:[\\/]|\\\\|~[\\/]|/)"  # of a path that does not depend on where one is
_QUOTED = re.compile(rf"(?P<quote>['\"])(?P<path>{_START}[^'\"\n]*)(?P=quote)")
# Not within a URL, a word ("and/or") or a relative path.
_BARE = re.compile(rf"(?<![\w:/\\.<]){_START}[^\s'\",;:()\[\]<>|]+")


def is_absolute(name: str) -> bool:
    """Whether it is a path from the root of a computer."""
    return name.startswith(("/", "\\\\", "~/", "~\\")) or name[1:3] in (":/", ":\\")


def without_paths(text: str, folders: Mapping[str, str]) -> str:
    """The text with only the last part of each path in it.

    Args:
        folders: The folders that paths here begin with, which may have spaces in them, each with
            what to call it.
    """
    for folder in sorted(folders, key=len, reverse=True):
        for written in _spellings(folder):
            text = re.sub(rf"{re.escape(written)}(?![\w-])", f"/{folders[folder]}", text)
    text = _QUOTED.sub(lambda found: found["quote"] + _last(found["path"]) + found["quote"], text)
    return _BARE.sub(lambda found: _last(found[0]), text)


def _spellings(folder: str) -> Iterable[str]:
    """As it is, and as Python's repr writes it; nothing for a root."""
    bare = folder.rstrip("\\/")
    return dict.fromkeys((bare.replace("\\", "\\\\"), bare)) if len(bare) > 2 else ()


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
