"""The folders that ComfyUI reads from and writes to."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from zbus.errors import InputError


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
