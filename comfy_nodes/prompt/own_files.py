"""Pure: the nodes of a prompt that load a file of this computer's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from zbus.address import is_loopback_host

from .. import node_ids
from .class_inputs import FOLDER_LOADERS
from .graph import Prompt, class_type_of, constant, inputs_of


def loaders(prompt: Prompt, is_file_input: Callable[[str, str], bool]) -> set[str]:
    """The nodes that load a file of the user's own on this side, to be attached by `cut`: the
    peer may lack it, or have another picture under the same name. So are those that load from a
    URL of this very machine, which means another one there.

    Links beside the file's name do not matter: what they come from runs here as well. Those whose
    file's name is computed are not among them (the peer may have made that file), nor are those
    with a stand-in, whose file only the peer has, and those that name none (a painter without a
    mask). Those that load a whole folder are, however it is named: the peer's folder of the same
    name holds other files.

    Args:
        prompt: The whole prompt.
        is_file_input: Whether that input of that class names such a file.
    """

    def is_loader(class_type: str, name: str, value: Any) -> bool:
        if (class_type, name) in FOLDER_LOADERS:
            return True
        named = constant(prompt, value)
        if not str(named or "").strip():
            return False
        if class_type in (node_ids.LOAD_IMAGE_URL, node_ids.LOAD_LATENT_URL):
            return name == "url" and is_of_this_machine(str(named))
        return is_file_input(class_type, name)

    return {
        i
        for i, node in prompt.items()
        if any(is_loader(class_type_of(node), *given) for given in inputs_of(node).items())
    }


def is_of_this_machine(url: str) -> bool:
    """Whether that is a URL of the loopback."""
    try:
        return is_loopback_host(urlsplit(url.strip()).hostname or "")
    except ValueError:  # it is none, which its node will say
        return False
