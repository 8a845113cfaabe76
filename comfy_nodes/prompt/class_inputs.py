"""Pure: the inputs of node classes, as they declare them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import node_ids

# Loaders of the input folder that do not say so by an upload flag.
LOADERS = {
    ("LoadLatent", "latent"),
    (node_ids.LOAD_LATENT_NUMPY, "latent"),
    (node_ids.LOAD_WORKFLOW, "workflow"),
    ("VHS_LoadVideo", "video"),
    ("VHS_LoadVideoFFmpeg", "video"),
    ("VHS_LoadAudioUpload", "audio"),
}
# What the page has recorded, and put into the input folder.
RECORDED = ("WEBCAM", "AUDIO_RECORD")


class ClassInput(NamedTuple):
    """An input as a node class declares it."""

    kind: Any  # "IMAGE", "INT", "COMBO"..., or the list of choices
    options: Mapping[str, Any]
    group: str  # "required" or "optional"

    @classmethod
    def read(cls, info: Any, group: str) -> ClassInput:
        """From INPUT_TYPES, where foreign code may have put anything."""
        parts = list(info) if isinstance(info, (tuple, list)) else [info]
        options = parts[1] if len(parts) > 1 and isinstance(parts[1], Mapping) else {}
        return cls(parts[0] if parts else None, options, group)

    @property
    def choices(self) -> list[Any] | None:
        """What a combo offers; None for other inputs, and where only a page can tell."""
        found = self.options.get("options") if self.kind == "COMBO" else self.kind
        return list(found) if isinstance(found, list) else None


def names_file(class_type: str, name: str, declared: ClassInput) -> bool:
    """Whether an input names a file of the user's own: in the input, output or temp folder."""
    uploads = [key for key, on in declared.options.items() if key.endswith("upload") and on is True]
    return bool(uploads) or declared.kind in RECORDED or (class_type, name) in LOADERS
