"""Types of the host that are no more than a few tensors, bytes and numbers under one name.

A ComfyUI has classes of its own for meshes, files and the like. Their names and fields travel
(``MESH`` with ``vertices`` and ``faces``), and never code: the host on the receiving side builds
its own class, and only what is in its own closed table. In a process without a host each arrives as
a `Container`, which can be read, and sent back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from ..errors import NotTransferable, RemoteProtocolError

MAX_FIELDS = 64
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,59}")


class Container:
    """A value of a host's type, where that host is not.

    Attributes:
        kind: The type's name on the wire: "MESH".
        fields: What it holds, by name; anything that travels.
    """

    def __init__(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.kind, self.fields = kind, dict(fields)

    def __repr__(self) -> str:
        return f"Container({self.kind!r}, {sorted(self.fields)})"


class Host(Protocol):
    """The closed table of one host."""

    def taken(self, value: object) -> Container | None:
        """What a value of one of its types holds; None for all others.

        Raises:
            ValueError: It holds something that its class does not know; the text says what.
        """

    def check(self, kind: str, fields: Collection[str]) -> None:
        """That it has that type, and that the type has those fields.

        Raises:
            ValueError: It has not; the text says what is missing.
        """

    def made(self, kind: str, fields: dict[str, Any]) -> Any:
        """A value of a type that `check` has passed. May raise anything: it is foreign code."""


_host: Host | None = None


def use(host: Host | None) -> None:
    """That is this process's host; None: it has none."""
    global _host
    _host = host


def taken(value: object, place: Callable[[], str]) -> Container | None:
    """What a value of the host's table holds, or of a `Container`; None for all others.

    Args:
        place: Says where it lies, for the error.

    Raises:
        NotTransferable: It cannot travel as what its type is.
    """
    if isinstance(value, Container):
        names = (value.kind, *value.fields)
        if len(names) > MAX_FIELDS or not all(isinstance(n, str) and _is_name(n) for n in names):
            raise NotTransferable(f"{place()} is a Container of no usable names")
        return value
    if _host is None:
        return None
    try:
        return _host.taken(value)
    except Exception as error:  # the type's own code among it: a file that is gone
        said = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise NotTransferable(
            f"{place()} is a {type(value).__name__} that cannot travel: {said}",
            remedy="Send what it is made of instead.",
        ) from error


def check(kind: str, fields: Collection[str]) -> None:
    """That a value which comes in can be built here. The names are the peer's.

    Raises:
        RemoteProtocolError: It cannot, and what this side lacks.
    """
    if not all(map(_is_name, (kind, *fields))):
        raise RemoteProtocolError("the value holds a type or a field of no usable name")
    if _host is None:
        return
    try:
        _host.check(kind, fields)
    except ValueError as error:
        raise RemoteProtocolError(
            f"the value holds {error}", remedy="Update the ComfyUI on the receiving side."
        ) from None


def made(kind: str, fields: dict[str, Any]) -> object:
    """A value of that type.

    Raises:
        RemoteProtocolError: These are no fields of one.
    """
    if _host is None:
        return Container(kind, fields)
    try:
        built: object = _host.made(kind, fields)
    except Exception as error:
        raise RemoteProtocolError(
            f"the value holds a {kind} that is none ({type(error).__name__})"
        ) from error
    return built


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None
