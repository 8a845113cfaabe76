"""What ComfyUI's HTTP server answers for zbus, and what it does to prompts that come in by it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from zbus.card import CARD
from zbus.errors import InputError

from .. import host
from ..prompt import own_paths, preflight
from ..prompt.admitting import admit
from ..prompt.graph import class_type_of, inputs_of
from ..prompt.wiring import as_made
from . import names
from .own_listener import OWN_LISTENER
from .pairing import Pairing
from .websocket_door import PATH, Door

logger = logging.getLogger(__name__)


def open_routes() -> None:
    """Have ComfyUI answer them. Only while it loads its nodes."""
    host.answer(CARD, OWN_LISTENER.card)
    host.handle("GET", PATH, Door(lambda: OWN_LISTENER.address).handle)
    host.handle("GET", names.PATH, names.handle)
    for route in Pairing(lambda: host.peer().trust, host.multi_user()).routes():
        host.handle(*route)
    host.on_prompt(_admit)
    host.tell_prompt_as(as_made)
    host.tell_history_as(as_made)


def _admit(body: Any) -> Any:
    """A prompt has come, and is not validated yet: nodes that only a peer can run (a checkpoint
    that only it has) get stand-ins, or ComfyUI would refuse the whole of it; previews and saves
    inside a part get what the peer makes, or ComfyUI would run the part here as well."""
    prompt = body.get("prompt") if isinstance(body, dict) else None
    if isinstance(prompt, dict) and all(isinstance(node, dict) for node in prompt.values()):
        classes, targets = host.Classes(), body.get("partial_execution_targets")
        targets = targets if isinstance(targets, list) and targets else None
        made = admit(host.replaced(prompt), targets, classes, _only_elsewhere(classes))
        body["prompt"] = made.prompt
        for note in made.notes:
            logger.warning("%s", note)
            host.notice(note, body.get("client_id"))
    return body


def _only_elsewhere(classes: host.Classes) -> Callable[[str, Mapping[str, Any]], bool]:
    def is_bad(node_id: str, node: Mapping[str, Any]) -> bool:
        # One of that name on the peer would hold other files: rather no run at all.
        if any(classes.is_folder_input(class_type_of(node), name) for name in inputs_of(node)):
            return False
        reasons = preflight.look({node_id: node}, classes)
        return any(reason.kind in ("class", "choice", "value") for reason in reasons) or any(
            own_paths.is_elsewhere(class_type_of(node), name, value, classes)
            or (classes.is_file_input(class_type_of(node), name) and not _is_here(value))
            for name, value in inputs_of(node).items()
        )

    return is_bad


def _is_here(name: Any) -> bool:
    """Whether that file is there; loaders look for it themselves, and only when
    all of the prompt is validated."""
    try:
        return not isinstance(name, str) or host.input_file(name).is_file()
    except (InputError, ValueError, OSError):
        return False
