"""Decides which ``zbus`` this process uses, so that there is only ever one.

ComfyUI loads a pack by its path, so ``import zbus`` finds nothing in a clone that is not
installed; relative imports would find it, but make a second copy of every class (and a second
peer) where zbus is installed as well. PyPI also has a foreign package called zbus. So the name is
decided here, once, before anything else imports it:

1. already imported, ours, of the pack's version: that one;
2. already imported, ours, of another version: an error, since its peer may be running;
3. installed, ours, of the pack's version: that one;
4. else the clone's own, which takes the name over from a foreign package.

What is on disk is read as text: a foreign package is never run to find out what it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

logger = logging.getLogger("zbus")

NAME = "zbus"
DISTRIBUTION = "comfyui-bus"
_REQUIRED = ("zmq", "msgpack", "numpy", "PIL", "xxhash")
_CONSTANT = r"""^{}\s*(?::[^=\n]*)?=\s*["']([^"'\n]*)["']"""


def load(root: Path) -> ModuleType:
    """Return the one ``zbus`` of this process, importing it if need be.

    Args:
        root: The pack's folder, which holds the clone's own ``zbus/``.

    Raises:
        ImportError: Another version of zbus is in use already, or a package it needs is missing.
    """
    version = _constants(root / NAME / "__init__.py")[1]
    loaded = sys.modules.get(NAME)
    if loaded is not None and _is_ours(loaded):
        _check_version(loaded, version, root)
        return loaded
    if loaded is not None:
        _forget(loaded)
    with explain_missing(root):
        if _installed_fits(version):
            module = importlib.import_module(NAME)
        else:
            module = _import_own(root / NAME)
    logger.info("zbus %s from %s", module.__version__, _place(module))
    return module


@contextmanager
def explain_missing(root: Path) -> Iterator[None]:
    """Turn a missing dependency into the command that installs it; pass all else on."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _REQUIRED:
            raise
        # sys.executable, since Windows portable has its own Python that no "pip" on PATH means.
        raise ImportError(
            f"zbus needs the Python package {error.name!r}, which is not installed. Run: "
            f'"{sys.executable}" -m pip install -r "{root / "requirements.txt"}" '
            "and start ComfyUI again",
            name=error.name,
        ) from error


def _constants(init: Path) -> tuple[str, str]:
    """(DISTRIBUTION, __version__) as written in that file, "" for what is not there."""
    try:
        text = init.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    found = [re.search(_CONSTANT.format(n), text, re.M) for n in ("DISTRIBUTION", "__version__")]
    return tuple(match.group(1) if match else "" for match in found)  # type: ignore[return-value]


def _is_ours(module: ModuleType) -> bool:
    return getattr(module, "DISTRIBUTION", None) == DISTRIBUTION


def _place(module: ModuleType) -> str:
    return str(Path(module.__file__ or "?").parent)


def _check_version(loaded: ModuleType, version: str, root: Path) -> None:
    if loaded.__version__ == version:
        return
    raise ImportError(
        f"zbus {loaded.__version__} from {_place(loaded)} is already in use in this process, and "
        f"{root} is version {version}: two would mean two peers. Remove one of them, and start "
        "ComfyUI again",
        name=NAME,
    )


def _forget(foreign: ModuleType) -> None:
    """Take the name from a foreign package; who imported it keeps its module objects."""
    logger.warning(
        "another package called zbus (%s) was imported in this process; ComfyUI's tensor bus "
        "takes over the name",
        getattr(foreign, "__file__", None) or "no file",
    )
    _purge()


def _purge() -> None:
    for name in [n for n in sys.modules if n == NAME or n.startswith(NAME + ".")]:
        del sys.modules[name]


def _installed_fits(version: str) -> bool:
    """Whether a plain ``import zbus`` would give ours, of the pack's version."""
    try:
        spec = importlib.util.find_spec(NAME)
    except (ImportError, ValueError):
        return False
    if spec is None or not spec.origin:  # not there, or a mere folder of that name
        return False
    return _constants(Path(spec.origin)) == (DISTRIBUTION, version)


def _import_own(package: Path) -> ModuleType:
    """Import the clone's package under its name without touching sys.path.

    The clone's root on sys.path would lay its tests/, scripts/ and setup.py open to every other
    pack's imports.
    """
    spec = importlib.util.spec_from_file_location(
        NAME, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{package} cannot be imported", name=NAME)
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        _purge()
        raise
    return module
