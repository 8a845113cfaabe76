"""What each way of passing a value between two processes does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LIMIT = 60.0  # seconds for one step of any way


class Way:
    """One side of it, in a process of its own.

    It is opened in three steps: `open` in the sender, `join` in the receiver with what that told,
    and `meet` in the sender with what the receiver told. The sender is the one that listens, so
    that whoever unpacks what comes is connected to the very process that it was told of.

    Args:
        kind: Which of its variants.
        folder: For files, private to this run.

    Attributes:
        with_torch: Whether it carries tensors (else arrays).
        expected: The name of the value that comes next.
    """

    with_torch = False
    expected = ""
    value: Any = None

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder

    def open(self) -> dict[str, Any]:
        return {}

    def join(self, told: dict[str, Any]) -> dict[str, Any]:
        return {}

    def meet(self, told: dict[str, Any]) -> None:
        pass

    def begin(self, rank: int) -> None:
        """The last step of those that both sides do at once."""

    def prepare(self, value: Any) -> None:
        """What `send` is to send from now on."""
        self.value = value

    def send(self) -> None:
        """Send the value; returns when the other side has said that it holds it."""
        raise NotImplementedError

    def receive(self, memory: str) -> Any:
        """Receive it. `memory` is one of `buffers.MEMORIES`."""
        raise NotImplementedError

    # --- by name, for the rows that need more of some ways: what is `do_` can be called

    def do_listen(self) -> dict[str, Any]:
        """In the sender: a new link, the old one is gone."""
        return self.open()

    def do_dial(self, **told: Any) -> dict[str, Any]:
        """In the receiver, with what `do_listen` told: where it is to dial."""
        return self.join(told)

    def do_accept(self) -> dict[str, Any]:
        """In the sender, at the same time: returns when the link stands."""
        self.meet({})
        return {}

    def do_hang_up(self) -> dict[str, Any]:
        """In both."""
        self.close()
        return {}

    def clear(self) -> None:
        """Give up what is kept of values."""
        self.value = None

    def close(self) -> None:
        pass
