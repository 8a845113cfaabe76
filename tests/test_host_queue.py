"""ComfyUI's queue as `comfy_nodes.host.queue` sees it, with a stand-in for ComfyUI."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from zbus.errors import PeerGone

FOLDER = Path(__file__).resolve().parent.parent / "comfy_nodes"
PACKAGE = "zbus_host_queue_under_test"
COMFYUI = ("comfy", "comfy.model_management", "execution", "latent_preview", "nodes")


class Server:
    """What it tells the page, and a queue with one prompt that is executed."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, str]] = []
        item = (0, "p1", {"5": {"class_type": "ZBusRun"}}, {"client_id": "page"}, ["5"], {})
        self.prompt_queue = mock.Mock(spec=["mutex", "currently_running", "history", "get_history"])
        self.prompt_queue.mutex = threading.RLock()
        self.prompt_queue.currently_running, self.prompt_queue.history = {0: item}, {}
        self.prompt_queue.get_history = lambda prompt_id: {}

    def send_sync(self, kind: str, data: Any, client: str) -> None:
        self.sent.append((kind, data, client))

    def end(self, *messages: tuple[str, dict[str, Any]]) -> None:
        self.prompt_queue.currently_running.clear()
        self.prompt_queue.history["p1"] = {"status": {"messages": list(messages)}}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def queue(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in COMFYUI:
        monkeypatch.setitem(sys.modules, name, mock.MagicMock(__path__=[]))
    package, host = types.ModuleType(PACKAGE), types.ModuleType(f"{PACKAGE}.host")
    package.__path__, host.__path__ = [str(FOLDER)], [str(FOLDER / "host")]
    process = types.ModuleType(f"{PACKAGE}.host.process")
    process.the_server = lambda: server  # type: ignore[attr-defined]
    for module in (package, host, process):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield importlib.import_module(f"{PACKAGE}.host.queue")
    for loaded in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
        del sys.modules[loaded]


@contextlib.contextmanager
def worker() -> Iterator[None]:
    """The thread of ComfyUI's main.py, until the block ends."""
    ended = threading.Event()

    def prompt_worker() -> None:
        ended.wait()

    thread = threading.Thread(target=prompt_worker, daemon=True)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_whether_prompts_run_is_known_once_the_thread_was_seen(queue: Any) -> None:
    assert queue.runs_prompts(), "a program of its own may execute them"
    with worker():
        assert queue.runs_prompts()
        assert [item.id for item in queue.running()] == ["p1"]
    assert not queue.runs_prompts() and queue.running() == []
    said = "this ComfyUI runs no prompts any more: start it again"
    assert queue.outcome("p1") == ("failed", said)
    with worker():
        assert queue.runs_prompts()


def test_a_prompt_that_is_stopped_for_a_failure_ends_with_it(queue: Any, server: Server) -> None:
    before = ("execution_start", {"prompt_id": "p1"})
    for _ in range(2):  # an interrupt may come too early, and be lost
        queue.fail("p1", "5", PeerGone("its process has ended", peer="desk"))
    ((kind, told, client),) = server.sent
    assert (kind, client, told["node_id"], told["node_type"]) == (
        "execution_error",
        "page",
        "5",
        "ZBusRun",
    )
    assert told["exception_type"] == "zbus.errors.PeerGone"
    assert told["exception_message"] == "desk: its process has ended\n"
    queue._tell_failures()
    server.end(before, ("execution_interrupted", {"prompt_id": "p1"}))
    queue._tell_failures()
    first, (kind, data) = server.prompt_queue.history["p1"]["status"]["messages"]
    assert first == before and kind == "execution_error" and data["node_id"] == "5"
    assert not queue._FAILURES


def test_an_end_of_its_own_stays_what_it_is(queue: Any, server: Server) -> None:
    queue.fail("p1", "5", PeerGone("gone"))
    ends = ("execution_success", {"prompt_id": "p1"})
    server.end(ends)
    queue._tell_failures()
    assert server.prompt_queue.history["p1"]["status"]["messages"] == [ends]
    queue.fail("p1", "5", PeerGone("gone"))
    assert len(server.sent) == 1, "it is not executed any more"
