"""The folders that ComfyUI reads from and writes to."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
import nodes
import torch

from zbus.errors import InputError

from ..prompt import discreet
from .queue import Interrupted


def without_paths(text: str) -> str:
    """The text as another user may read it: see `discreet.without_paths`."""
    return discreet.without_paths(text, _folders(), _programs())


def _folders() -> dict[str, str]:
    """Where this ComfyUI's files lie, each with what to call it before others."""
    held = folder_paths.folder_names_and_paths.items()
    # Packs add to it: of what else is in an entry, ComfyUI itself asks for nothing here.
    models = {
        str(path): str(kind) for kind, found in held if kind != "custom_nodes" for path in found[0]
    }
    named = models | {
        os.path.expanduser("~"): "~",  # not Path.home(): a container's user may have none
        str(folder_paths.models_dir): "models",
        str(folder_paths.get_user_directory()): "user",
        str(folder_paths.get_temp_directory()): "temp",
        str(folder_paths.get_output_directory()): "output",
        str(folder_paths.get_input_directory()): "input",
    }
    return _as_linked(named)


def _programs() -> dict[str, str]:
    """Where the programs lie that a traceback leads through, likewise."""
    paths = sysconfig.get_paths()
    named = {sys.prefix: "python"} if sys.prefix != sys.base_prefix else {}
    named |= {paths[kind]: "python" for kind in ("stdlib", "platstdlib")}
    named |= {paths[kind]: "site-packages" for kind in ("purelib", "platlib")}
    own = str(Path(__file__).parents[2])
    packs = folder_paths.get_folder_paths("custom_nodes")
    named |= {own: "zbus", **{str(path): "custom_nodes" for path in packs}}
    named |= {str(folder_paths.base_path): "ComfyUI"}
    named |= {os.path.dirname(os.path.abspath(str(folder_paths.__file__))): "ComfyUI"}
    return _as_linked(named)


def _as_linked(named: dict[str, str]) -> dict[str, str]:
    """Those folders, and where links among them lead."""
    return named | {os.path.realpath(folder): name for folder, name in named.items()}


def input_files(*endings: str) -> list[str]:
    """The names of the files in the input folder that end so."""
    try:
        with os.scandir(folder_paths.get_input_directory()) as entries:
            return sorted(e.name for e in entries if e.is_file() and e.name.endswith(endings))
    except OSError:  # it would end the list of all nodes
        return []


def input_file(name: str) -> Path:
    """A file of the input folder; "name [output]" and "name [temp]" mean the other folders.

    Raises:
        InputError: It is not there, or not in that folder.
    """
    bare, folder = folder_paths.annotated_filepath(name)
    root = os.path.abspath(folder or folder_paths.get_input_directory())
    path = Path(os.path.abspath(os.path.join(root, bare)))
    if not path.is_relative_to(root):
        raise InputError(
            f'"{name}" leads out of the folder "{os.path.basename(root)}"',
            remedy="Put that file into the folder, and choose it there",
        )
    if not path.is_file():
        raise InputError(
            f'there is no file "{bare}" in the folder "{os.path.basename(root)}"',
            remedy="Put it there, or choose another one",
        )
    return path


def output_file(prefix: str, ending: str) -> Path:
    """The next free name in the output folder: prefix_00001_.ending. Makes its folder.

    Raises:
        InputError: The prefix leads out of the output folder.
    """
    root = os.path.abspath(folder_paths.get_output_directory())
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, root)
    except OSError:
        raise
    except Exception as error:  # a plain Exception, or ValueError of another drive
        remedy = "Use a name, or folders within it"
        said = f'filename_prefix "{prefix}" leads out of the output folder'
        raise InputError(said, remedy=remedy) from error
    return Path(folder) / f"{name}_{counter:05}_.{ending}"


def load_image(data: bytes, ending: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What this ComfyUI's own Load Image makes of a picture file with that content.

    You must have looked at the file's head before: it is decoded by whatever decodes it there.

    Returns:
        IMAGE [N, H, W, 3], a picture for each frame, and MASK; None where it cannot take it.

    Raises:
        InputError: The temp folder cannot be written.
    """
    try:
        folder = folder_paths.get_temp_directory()
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            prefix="zbus-", suffix=f".{ending}", dir=folder, delete=False
        ) as file:
            file.write(data)
    except OSError as error:
        raise InputError(
            f"the temp folder cannot be written: {error.strerror}",
            remedy="Look whose it is, and how much room its disk has",
        ) from error
    try:
        return _loaded(f"{os.path.basename(file.name)} [temp]")
    finally:
        with contextlib.suppress(OSError):  # Windows, while something has it open
            os.unlink(file.name)


def _loaded(name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    loader: Any = nodes.LoadImage
    try:
        made = getattr(loader(), loader.FUNCTION)(name)
        image, mask = _outputs(made)[:2]
    except Interrupted:
        raise
    except Exception:  # its decoders raise whatever they stumble over
        return None
    return (image, mask) if isinstance(image, torch.Tensor) and image.dim() == 4 else None


def _outputs(made: Any) -> tuple[Any, ...]:
    """What a node has returned: a tuple, a dict with one, or a NodeOutput, as V3 classes do."""
    if inspect.iscoroutine(made):
        made.close()  # never begun
        raise TypeError("its loader has to be awaited, and nothing waits here")
    held = made.get("result") if isinstance(made, Mapping) else getattr(made, "result", made)
    return tuple(held)
