"""A real ComfyUI in a process of its own, driven over HTTP. Standard library only.

Used by the tests on real ComfyUI processes and by ``scripts/demo``::

    with ComfyUI(comfyui_dir, name="left") as left:
        entry = left.run(prompt)
        assert not left.errors(entry)
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spilled
from children import slowness, until

if TYPE_CHECKING:
    from events import Events

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TESTPACK = HERE / "testpack"
PACKS = {"zbus": ROOT, "zbus-test": TESTPACK}
START_TIME = 120.0  # seconds; 7 to 15 are usual, two at once on two busy cores take longer

# Of this process's environment nothing but this reaches ComfyUI, plus what Python itself needs.
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT")
_KEPT += ("ZBUS_SHARE_MEMORY",)  # of the fixture `by_socket`
_NOT_COPIED = shutil.ignore_patterns(".git", "tests", "__pycache__", "*.egg-info", ".*_cache")
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_RUNNING: weakref.WeakSet[ComfyUI] = weakref.WeakSet()

Prompt = Mapping[str, Any]


class NotReady(Exception):
    """ComfyUI did not come up; the text ends with its log."""


class PromptRefused(Exception):
    """ComfyUI refused the prompt; ``reply`` is what it answered, the text sums it up."""

    def __init__(self, reply: dict[str, Any]) -> None:
        self.reply = reply
        super().__init__(json.dumps(reply, indent=1))


class ComfyUI:
    """One ComfyUI on the CPU, with its own base folder, home and free port.

    Args:
        comfyui_dir: The checkout: the folder of main.py.
        name: For messages, the log's file name and the base folder.
        base: The folder for custom_nodes, input, output...; default a new temporary one, which
            ``stop`` and ``kill`` remove.
        packs: Folder name in custom_nodes -> the pack's folder. Only these are loaded.
        env: Environment variables on top of the isolated ones; None as value removes one.
        args: More arguments for ComfyUI's command line.
        port: Default a free one.
        python: The Python that runs it; default COMFYUI_PYTHON, or the one that runs this.
    """

    def __init__(
        self,
        comfyui_dir: Path | str,
        *,
        name: str = "comfyui",
        base: Path | str | None = None,
        packs: Mapping[str, Path] = PACKS,
        env: Mapping[str, str | None] | None = None,
        args: Sequence[str] = (),
        port: int | None = None,
        python: str = "",
    ) -> None:
        self.comfyui_dir = Path(comfyui_dir)
        self.python = python or host_python()
        self.name = name
        self._own_base = base is None
        # Resolved: on macOS the temporary folder is behind a link.
        self.base = Path(base or tempfile.mkdtemp(prefix=f"zbus-{name}-")).resolve()
        self.packs = dict(packs)
        self.args = tuple(args)
        self.port = port or free_port()
        self.client_id = uuid.uuid4().hex
        self.log_path = self.base / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._env = dict(env or {})
        self._events: Events | None = None
        self._told: dict[str, int] = {}  # prompts whose events we get, and since when

    @property
    def zbus_home(self) -> Path:
        """Where its zbus keeps keys and the paired."""
        named = self._env.get("ZBUS_HOME")
        return Path(named) if named else self.base / "home" / ".local" / "share" / "zbus"

    # --- life

    def launch(self) -> ComfyUI:
        """Start the process and return at once; ``wait_ready`` waits for it."""
        _RUNNING.add(self)
        for folder in ("custom_nodes", "user", "input", "output", "temp", "models", "home"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, pack in self.packs.items():
            place_pack(pack, self.base / "custom_nodes" / name)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.base,
                env=self._environment(),
                stdin=subprocess.PIPE,  # never written to: its end tells the runner to end
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def wait_ready(self, timeout: float = START_TIME) -> ComfyUI:
        """Wait until it answers. Raises NotReady, with the end of the log."""
        started = time.monotonic()
        while time.monotonic() < started + timeout * slowness():
            if not self.alive:
                raise NotReady(f"{self.name} ended while starting:\n{self.log()[-6000:]}")
            try:
                self.get("/system_stats", timeout=2)
                return self
            except OSError:
                time.sleep(0.1)  # that it listens is told by nothing
        self.kill(keep_base=True)
        raise NotReady(f"{self.name} was not ready in {timeout:.0f} s:\n{self.log()[-6000:]}")

    def start(self, timeout: float = START_TIME) -> ComfyUI:
        return self.launch().wait_ready(timeout)

    @property
    def events(self) -> Events:
        """What it tells the page; connected at the first use, so use it before the prompt."""
        if self._events is None:
            from events import Events  # needs aiohttp, which ComfyUI needs as well

            self._events = Events(self.url, self.client_id)
        return self._events

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    def stop(self, timeout: float = 10.0) -> float:
        """Ctrl-C, and wait; kill what is left then. Returns how long it took, in seconds."""
        started = time.monotonic()
        if self.alive:
            assert self.process is not None
            self.process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout * slowness())
        taken = time.monotonic() - started
        self.kill()
        return taken

    def kill(self, *, keep_base: bool = False) -> None:
        """End it and all its children at once, as a crash would (SIGKILL)."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self.process is not None:
            if os.name == "nt":
                self.process.kill()
            else:
                # The group outlives its leader where a node started a process.
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            if self.process.stdin:
                self.process.stdin.close()
            spilled.note_home(self.zbus_home)
            if self.log_path.is_file():
                spilled.check(self.log_path.read_text(errors="replace"), f"the log of {self.name}")
        if self._own_base and not keep_base:
            shutil.rmtree(self.base, ignore_errors=True)
            _RUNNING.discard(self)

    def freeze(self) -> None:
        """Stop the process in its tracks (SIGSTOP): a peer that is deaf."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> ComfyUI:
        return self if self.alive else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- prompts

    def prompt(self, prompt: Prompt, *, client_id: str | None = None, **extra: Any) -> str:
        """Queue a prompt in API format and return its id.

        Args:
            prompt: node id -> {"class_type": ..., "inputs": ...}.
            client_id: The WebSocket client that gets the events; default ``self.client_id``,
                which is the one that ``self.events`` connects with.
            extra: More keys of the request's body (front, partial_execution_targets...).

        Raises:
            PromptRefused: Validation failed, wholly or for one of the outputs.
        """
        body = {"prompt": prompt, "client_id": client_id or self.client_id, **extra}
        since = self._events.mark() if self._events is not None else None
        reply = self.post("/prompt", body)
        if "prompt_id" not in reply or reply.get("node_errors"):
            raise PromptRefused(reply)
        if since is not None and client_id is None:
            self._told[str(reply["prompt_id"])] = since
        return str(reply["prompt_id"])

    def wait(self, prompt_id: str, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until that prompt has ended, however it did; return its history entry.

        Where ``events`` was used before the prompt, all that the page is told of it has come.
        """
        started = time.monotonic()
        while True:
            entry = self.ended(prompt_id)
            if entry:
                self._wait_last_event(prompt_id)
                return entry
            if not self.alive:
                raise RuntimeError(f"{self.name} ended:\n{self.log()[-6000:]}")
            if time.monotonic() > started + timeout * slowness():
                raise TimeoutError(
                    f"{self.name}: prompt {prompt_id} has not ended in {timeout} s; its log:\n"
                    + self.log()[-3000:]
                )
            time.sleep(0.01)  # that it is in the history now is told by nothing

    def _wait_last_event(self, prompt_id: str) -> None:
        """The history can be ahead of the page: the last event is sent once it is written."""
        since = self._told.pop(prompt_id, None)
        if self._events is None or since is None:
            return
        last = {"node": None, "prompt_id": prompt_id}
        self._events.wait_for(
            lambda e: e.kind == "executing" and last.items() <= e.data.items(), 20.0, since
        )

    def ended(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a prompt that has ended, else None."""
        entry = self.get(f"/history/{prompt_id}").get(prompt_id)
        return dict(entry) if entry else None

    def run(self, prompt: Prompt, timeout: float = 60.0) -> dict[str, Any]:
        return self.wait(self.prompt(prompt), timeout)

    def wait_running(self, prompt_id: str, timeout: float = 10.0) -> None:
        """Wait until that prompt has left the queue and runs (or has run)."""
        until(
            lambda: prompt_id in self.queue()[0] or self.ended(prompt_id),
            timeout,
            f"{self.name} starts {prompt_id}",
        )

    def interrupt(self, prompt_id: str | None = None) -> None:
        """What the page's X does; with an id only if that prompt is running."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def queue(self) -> tuple[list[str], list[str]]:
        """The ids of the (running, pending) prompts."""
        queue = self.get("/queue")
        running = [item[1] for item in queue["queue_running"]]
        return running, [item[1] for item in queue["queue_pending"]]

    def clear(self, timeout: float = 10.0) -> bool:
        """Empty the queue and interrupt what runs; False if something still runs then."""
        self.post("/queue", {"clear": True})
        started = time.monotonic()
        while self.queue()[0]:
            self.interrupt()
            if time.monotonic() > started + timeout * slowness():
                return False
            time.sleep(0.05)
        return True

    # --- what came of a prompt

    @staticmethod
    def outcome(entry: Mapping[str, Any]) -> str:
        """One of: success, error, interrupted."""
        kinds = [message[0] for message in entry["status"]["messages"]]
        if "execution_interrupted" in kinds:
            return "interrupted"
        return str(entry["status"]["status_str"])

    @staticmethod
    def errors(entry: Mapping[str, Any]) -> str:
        """The errors of a run, one a line ("TestRaise: ValueError: text"); "" if there is none."""
        return "\n".join(
            f"{data['node_type']}: {data['exception_type']}: {data['exception_message'].strip()}"
            for kind, data in entry["status"]["messages"]
            if kind == "execution_error"
        )

    @staticmethod
    def ui(entry: Mapping[str, Any], node_id: str | int, key: str) -> Any:
        """What an output node showed under that key: the list, or the item if it is one."""
        shown = entry["outputs"][str(node_id)][key]
        return shown[0] if isinstance(shown, list | tuple) and len(shown) == 1 else shown

    # --- files, log, HTTP

    def put_input(self, source: Path | bytes, name: str | None = None) -> str:
        """Put a file into the input folder; returns the name that LoadImage takes."""
        name = name or (source.name if isinstance(source, Path) else f"{uuid.uuid4().hex}.bin")
        data = source.read_bytes() if isinstance(source, Path) else source
        (self.base / "input" / name).write_bytes(data)
        return name

    def log(self) -> str:
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def object_info(self, node: str = "") -> dict[str, Any]:
        return dict(self.get("/object_info" + (f"/{node.replace(' ', '%20')}" if node else "")))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def peer(self) -> str:
        """The name that its zbus peer has."""
        return str(self.get("/zbus/peer")["name"])

    def get(self, path: str, timeout: float = 20.0) -> Any:
        return self._request(urllib.request.Request(self.url + path), timeout)

    def post(self, path: str, body: Any, timeout: float = 60.0) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        request.add_header("Content-Type", "application/json")
        return self._request(request, timeout)

    @staticmethod
    def _request(request: urllib.request.Request, timeout: float) -> Any:
        try:
            with _NO_PROXY.open(request, timeout=timeout) as reply:
                data = reply.read()
        except urllib.error.HTTPError as error:  # a refused prompt is 400 with a JSON body
            data = error.read()
            if not data.startswith(b"{"):
                raise
        spilled.check(data.decode("latin-1"), request.full_url)
        return json.loads(data) if data.strip() else {}

    # --- details

    def _command(self) -> list[str]:
        command = [self.python, str(HERE / "runner.py"), str(self.comfyui_dir)]
        command += ["--cpu", "--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-all-custom-nodes"]
        if self.packs:
            command += ["--whitelist-custom-nodes", *self.packs]
        more = shlex.split(os.environ.get("COMFYUI_ARGS", ""))  # for a whole run with a flag
        return [*command, "--disable-api-nodes", *(self.args or more)]

    def _environment(self) -> dict[str, str]:
        home = str(self.base / "home")
        env = {name: os.environ[name] for name in _KEPT if name in os.environ}
        env |= dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA"), home)
        env |= {"TMPDIR": str(self.base / "temp"), "TEMP": str(self.base / "temp")}
        env |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
        for name, value in self._env.items():
            env.pop(name, None)
            if value is not None:
                env[name] = value
        return env


def host_python() -> str:
    """The Python that runs ComfyUI: a user's own checkout has one of its own."""
    return os.environ.get("COMFYUI_PYTHON") or sys.executable


def free_port() -> int:
    """A TCP port of the loopback that was free a moment ago. None that the system gives to whoever
    asks for any, and none that another process of the same test run takes."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("they go round")


def _own_ports() -> Iterator[int]:
    """Round and round, from anywhere: two test runs at once seldom want the same one."""
    count = 2000
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 10_000 + worker % 5 * count  # from 20000 on are the own listeners of these
    start = random.randrange(count)
    return (first + (start + i) % count for i in itertools.count())


_PORTS = _own_ports()


def start_all(*instances: ComfyUI) -> None:
    """Start several at once: they load torch side by side. All are ended if one fails."""
    try:
        for instance in instances:
            instance.launch()
        for instance in instances:
            instance.wait_ready()
    except BaseException:
        for instance in instances:
            instance.kill()
        raise


def place_pack(pack: Path, target: Path) -> None:
    """Link the pack into custom_nodes; copy it where links need rights (Windows)."""
    if target.is_symlink() or target.exists():
        return
    try:
        target.symlink_to(pack, target_is_directory=True)
    except OSError:
        shutil.copytree(pack, target, ignore=_NOT_COPIED)


@atexit.register
def _kill_all() -> None:
    for instance in list(_RUNNING):
        instance.kill()
