"""Where ComfyUIs are started from, on which ports, and with which command line."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError
from .devices import Device

COMFYUI_DIR = "COMFYUI_DIR"
BUS = 10000  # what zbus adds to the port of ComfyUI's page
LAST_PORT = 65535
DATABASE = "--database-url"
# What each must have for itself, or zbus-up could not tell which is which.
RESERVED = (
    "--port",
    "--cuda-device",
    "--cpu",
    "--user-directory",
    "--temp-directory",
    DATABASE,
)


def comfyui(given: str) -> Path:
    """The folder of ComfyUI's main.py.

    Args:
        given: What --comfyui names, or "".

    Raises:
        InputError: It is not there, or none is named and this zbus lies in none.
    """
    for named, by in ((given, "--comfyui"), (os.environ.get(COMFYUI_DIR, ""), COMFYUI_DIR)):
        if named:
            folder = Path(named).expanduser().absolute()
            if not (folder / "main.py").is_file():
                raise InputError(
                    f"{by} names {folder}, which has no main.py",
                    remedy="Give the folder in which ComfyUI's main.py lies",
                )
            return folder
    # The script's path too, as it was written: the pack may be linked into custom_nodes.
    for file in (Path(__file__), Path(sys.argv[0]).absolute()):
        for folder in file.parents:
            if folder.name == "custom_nodes" and (folder.parent / "main.py").is_file():
                return folder.parent
    raise InputError(
        "which ComfyUI? This zbus lies in no ComfyUI's custom_nodes",
        remedy=f"Give its folder: --comfyui DIR, or {COMFYUI_DIR}=DIR in the environment",
    )


def python(given: str) -> str:
    """The Python to run ComfyUI with.

    Raises:
        InputError: It is not there, or cannot run ComfyUI.
    """
    if not given:
        if importlib.util.find_spec("torch") is None:
            raise InputError(
                f"this Python ({sys.executable}) has no torch",
                remedy="Run zbus-up with the Python of your ComfyUI, or give it: --python PYTHON",
            )
        return sys.executable
    found = shutil.which(Path(given).expanduser())
    if found is None:
        raise InputError(
            f"--python names {given}, which is no program that can be run",
            remedy="Give the path of the Python that runs your ComfyUI",
        )
    # Not resolved: a virtual environment's python is a link, and means it by its own place.
    return os.path.abspath(found)


def check(more: Sequence[str]) -> None:
    """Whether ComfyUI may be given these arguments.

    Raises:
        InputError: One of them cannot be the same for all.
    """
    if more and not more[0].startswith("-"):
        raise InputError(
            f'"{more[0]}" is no argument of zbus-up',
            remedy="ComfyUI's own arguments come last, after --",
        )
    for argument in more:
        name = argument.partition("=")[0]
        if name in RESERVED:
            raise InputError(
                f"{name} cannot be given to all: each ComfyUI gets its own",
                remedy="zbus-up's own --port, --gpus, --cpu and --folder stand before the --",
            )


def free_ports(first: int, count: int) -> list[int]:
    """Ports for pages, from `first` up: each free, and so its bus port.

    Raises:
        InputError: There are not as many.
    """
    found: list[int] = []
    for port in range(first, LAST_PORT + 1):
        if len(found) == count:
            break
        # Above the last port zbus takes any that is free.
        if _is_free(port) and (port + BUS > LAST_PORT or _is_free(port + BUS)):
            found.append(port)
    if len(found) < count:
        raise InputError(
            f"{len(found)} ports are free from {first} up, not {count}",
            remedy="Give a lower --port",
        )
    return found


def command(
    program: str, main: Path, port: int, folder: Path, device: Device, more: Sequence[str]
) -> list[str]:
    """How one ComfyUI is started. `folder` is its own, for what two of them must not share: the
    user's files with the database, and temp, which each empties when it starts. Models, custom
    nodes and input are ComfyUI's own."""
    return [
        program,
        str(main),
        *("--port", str(port)),
        *("--user-directory", str(folder / "user")),
        *_database(main, folder),
        *("--temp-directory", str(folder)),
        *("--output-directory", str(folder / "output")),
        "--disable-auto-launch",
        *device.arguments,
        *more,
    ]


def _database(main: Path, folder: Path) -> list[str]:
    """One of its own: the second ComfyUI that finds a database in use ends, or goes on without."""
    where = folder / "user" / "comfyui.db"
    return ["--database-url", f"sqlite:///{where.as_posix()}"] if knows(main, DATABASE) else []


def knows(main: Path, flag: str) -> bool:
    """Whether that ComfyUI has a flag: one that it does not know would end it. It is looked up and
    not tried, since a ComfyUI takes its time to say so. In doubt it has."""
    try:
        declared = (main.parent / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return True
    return f'"{flag}"' in declared or f"'{flag}'" in declared


def make_folders(folder: Path) -> None:
    """What ComfyUI demands to be there, for this user alone.

    Raises:
        InputError: They cannot be made.
    """
    wanted = [folder / "user", folder / "output"]
    missing = {part for path in wanted for part in (path, *path.parents) if not part.exists()}
    try:
        for path in sorted(missing):
            path.mkdir(
                mode=0o700, exist_ok=True
            )  # each of them: zbus's own folder may be among them
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made: {error.strerror or error}",
            remedy="Give another place: --folder FOLDER",
        ) from error


def _is_free(port: int) -> bool:
    """Whether nobody listens there, on the loopback or on all interfaces."""
    for host in ("127.0.0.1", "0.0.0.0"):  # two questions where a system lets both be bound
        with socket.socket() as probe:
            if os.name == "posix":  # a port whose connections have just ended can be had
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
