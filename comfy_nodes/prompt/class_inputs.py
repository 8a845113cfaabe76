"""Pure: the inputs of node classes, as they declare them.

Those of newer classes may grow with what a prompt holds: their names there are dotted, the parts
of an Autogrow ("images.image0") and what a choice of a DynamicCombo brings ("mode.width").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
# Loaders of a whole folder: of pictures, films or texts in the input folder, or of a data set.
FOLDER_LOADERS = {
    ("VHS_LoadImages", "directory"),
    ("LoadImageDataSetFromFolder", "folder"),
    ("LoadImageTextDataSetFromFolder", "folder"),
    ("LoadVideoDataSetFromFolder", "folder"),
    ("LoadVideoTextDataSetFromFolder", "folder"),
    ("LoadTrainingDataset", "folder_name"),
}
# Loaders of any path, that do not say so (see `names_path`): also of one that is relative.
PATH_LOADERS = {
    ("LoadImagesFromFolderKJ", "folder"),
    ("LoadImagesFromDir //Inspire", "directory"),
    ("LoadImageListFromDir //Inspire", "directory"),
    ("Load Image Batch", "path"),
}
# By this an input that is a path tells the page which files to offer there.
_OFFERS_PATHS = "vhs_path_extensions"
# What the page has recorded, and put into the input folder.
RECORDED = ("WEBCAM", "AUDIO_RECORD")


AUTOGROW, DYNAMIC_COMBO = "COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3"
DYNAMIC_SLOT, MATCH_TYPE = "COMFY_DYNAMICSLOT_V3", "COMFY_MATCHTYPE_V3"
GROUPS = ("optional", "required")
MAX_NAMES = 100  # of one Autogrow, as in ComfyUI

Declared = Mapping[str, Any]  # "required" and "optional": name -> what is declared of it


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
        kind = parts[0] if parts else None
        if kind == DYNAMIC_COMBO:
            keys = [option.get("key") for option in _options(options)]
            return cls("COMBO", {**options, "options": keys}, group)
        if kind == DYNAMIC_SLOT:
            kind = options.get("slotType", kind)
        elif kind == MATCH_TYPE:
            kind = _template(options).get("allowed_types", kind)
        return cls(kind, options, group)

    @property
    def choices(self) -> list[Any] | None:
        """What a combo offers; None for other inputs, and where only a page can tell."""
        found = self.options.get("options") if self.kind == "COMBO" else self.kind
        return list(found) if isinstance(found, list) else None


def names_file(class_type: str, name: str, declared: ClassInput) -> bool:
    """Whether an input names a file of the user's own: in the input, output or temp folder."""
    uploads = [key for key, on in declared.options.items() if key.endswith("upload") and on is True]
    return bool(uploads) or declared.kind in RECORDED or (class_type, name) in LOADERS


def names_path(class_type: str, name: str, declared: ClassInput) -> bool:
    """Whether an input is any path of the user's own, or a URL, as VideoHelperSuite's "Load Video
    (Path)" and "Load Images (Path)" have it."""
    return _OFFERS_PATHS in declared.options or (class_type, name) in PATH_LOADERS


def expanded(declared: Declared, given: Mapping[str, Any]) -> dict[str, ClassInput]:
    """The inputs that a node has whose inputs in the prompt are these, by their names there.

    Of an Autogrow there are its parts alone, up to the largest that it may have.
    """
    return dict(_expanded(declared, given, ""))


def _expanded(
    declared: Declared, given: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, ClassInput]]:
    for name, info, group in _each(declared):
        full, kind, options = prefix + name, _kind(info), _options_of(info)
        if kind == AUTOGROW and _part(options) is not None:
            yield from _parts(options, full)
            continue
        if kind in (DYNAMIC_COMBO, DYNAMIC_SLOT) and full not in given:
            continue  # as in ComfyUI: then it is not there at all
        yield full, ClassInput.read(info, group)
        if kind == DYNAMIC_COMBO:
            chosen = [o for o in _options(options) if o.get("key") == given[full]]
            for option in chosen[:1]:
                yield from _expanded(_mapping(option.get("inputs")), given, f"{full}.")
        elif kind == DYNAMIC_SLOT:
            yield from _expanded(_mapping(options.get("inputs")), given, f"{full}.")


def find(declared: Declared, name: str) -> ClassInput | None:
    """An input by its name in a prompt, whatever else that prompt holds; None: there is none."""
    for known, info, group in _each(declared):
        if known == name:
            return ClassInput.read(info, group)
    for known, info, _ in _each(declared):
        if not name.startswith(f"{known}."):
            continue
        rest, kind, options = name[len(known) + 1 :], _kind(info), _options_of(info)
        if kind == AUTOGROW:
            found = dict(_parts(options, known)).get(name)
        elif kind == DYNAMIC_COMBO:
            of = (find(_mapping(o.get("inputs")), rest) for o in _options(options))
            found = next((one for one in of if one is not None), None)
        else:
            found = find(_mapping(options.get("inputs")), rest) if kind == DYNAMIC_SLOT else None
        if found is not None:
            return found
    return None


def _parts(options: Mapping[str, Any], full: str) -> Iterator[tuple[str, ClassInput]]:
    template, part = _template(options), _part(options)
    if part is None:
        return
    info, group = part
    names = template.get("names")
    least, most = template.get("min"), template.get("max")
    if not isinstance(names, list):
        count = most if isinstance(most, int) else 0
        names = [f"{template.get('prefix', '')}{i}" for i in range(min(count, MAX_NAMES))]
    needed = least if isinstance(least, int) and group == "required" else 0
    for place, name in enumerate(names[:MAX_NAMES]):
        yield f"{full}.{name}", ClassInput.read(info, "required" if place < needed else "optional")


def _part(options: Mapping[str, Any]) -> tuple[Any, str] | None:
    """What each part of an Autogrow is declared as, and its group."""
    for _, info, group in _each(_mapping(_template(options).get("input"))):
        return info, group
    return None


# --- what foreign code has declared, and may be anything ------------------------------------------


def _each(declared: Declared) -> Iterator[tuple[str, Any, str]]:
    for group in GROUPS:
        for name, info in _mapping(_mapping(declared).get(group)).items():
            if isinstance(name, str):
                yield name, info, group


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _kind(info: Any) -> Any:
    return info[0] if isinstance(info, (tuple, list)) and info else info


def _options_of(info: Any) -> Mapping[str, Any]:
    return _mapping(info[1]) if isinstance(info, (tuple, list)) and len(info) > 1 else {}


def _options(options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = options.get("options")
    return [o for o in found if isinstance(o, Mapping)] if isinstance(found, list) else []


def _template(options: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(options.get("template"))
