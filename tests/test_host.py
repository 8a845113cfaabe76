"""`comfy_nodes.host` on ComfyUIs of several ages, each as small as what is asked of it."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import runpy
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "comfy_nodes"
PACKAGE = "zbus_host_under_test"
INTERNALS = {"comfy", "comfy_api", "comfy_execution", "execution", "folder_paths", "app"}
INTERNALS |= {"latent_preview", "nodes", "server", "comfyui_version"}
GIB = 1 << 30


class ComfyUI:
    """Finds a module of any name for what only ComfyUI has."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.partition(".")[0] in INTERNALS else None

    def create_module(self, spec: ModuleSpec) -> Any:
        made = mock.MagicMock(__path__=[], __spec__=spec)
        made.__file__ = "/where/it/lies/file.py"
        if spec.name == "comfy.model_management":
            made.InterruptProcessingException = type("Interrupted", (BaseException,), {})
        return made

    def exec_module(self, module: Any) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``comfy_nodes.host``, where ComfyUI can do nothing but be asked."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "meta_path", [ComfyUI(), *sys.meta_path])
    sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
    sys.modules[PACKAGE].__path__ = [str(FOLDER)]
    yield importlib.import_module(f"{PACKAGE}.host")
    for loaded in set(sys.modules) - before:
        if loaded.partition(".")[0] in {PACKAGE, *INTERNALS}:
            del sys.modules[loaded]


# --- the queue


class Queue:
    """What ComfyUI's queue holds; "b" is executed."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.queue = [(2, "c", {}, {}, [], {})]
        self.currently_running = {7: (1, "b", {"1": {}}, {"client_id": "page"}, ["1"], {})}
        self.put = self.queue.append

    def delete_queue_item(self, is_meant: Any) -> bool:
        found = [item for item in self.queue if is_meant(item)]
        self.queue = [item for item in self.queue if item not in found]
        return bool(found)


class NewerQueue(Queue):
    """Of 0.26 on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def interrupt_if_running(self, prompt_id: str) -> bool:
        self.asked.append(prompt_id)
        return True


@pytest.fixture
def queue(host: Any) -> Any:
    return sys.modules[f"{PACKAGE}.host.queue"]


def server_with(queue: Any, held: Queue) -> Any:
    server = mock.MagicMock(prompt_queue=held, number=5)
    queue.the_server = lambda: server
    return server


def test_only_what_is_executed_is_interrupted(host: Any, queue: Any) -> None:
    server_with(queue, Queue())
    told = sys.modules["nodes"].interrupt_processing = mock.Mock()
    host.interrupt("c")
    assert not told.called
    host.interrupt("b")
    assert told.call_count == 1


def test_a_newer_host_is_asked_to_look_and_interrupt_at_once(host: Any, queue: Any) -> None:
    held = NewerQueue()
    server_with(queue, held)
    told = sys.modules["nodes"].interrupt_processing = mock.Mock()
    assert host.cancel("b") == "interrupting"
    assert held.asked == ["b"] and not told.called
    assert host.cancel("c") == "deleted" and host.cancel("c") == "unknown"
    assert held.asked == ["b"]


def test_each_execution_has_its_number(host: Any, queue: Any) -> None:
    """A program may queue one id again and again."""
    held = Queue()
    server_with(queue, held)
    (first,) = host.running()
    held.currently_running = {8: held.currently_running[7]}
    (second,) = host.running()
    assert first[:-1] == second[:-1] == ("b", {"1": {}}, "page", ("1",))
    assert (first.number, second.number) == (7, 8)


def test_a_job_is_queued_without_anybodys_token(host: Any, queue: Any) -> None:
    held = Queue()
    server_with(queue, held)

    def task_done(item_id, history_result, status, process_item=None):
        pass

    sys.modules["execution"].PromptQueue.task_done = task_done
    host.enqueue("j", {"1": {}}, {"client_id": "zbus-j"}, ["1"])
    number, prompt_id, prompt, extra, outputs, secret = held.queue[-1]
    assert (number, prompt_id, prompt, outputs) == (5, "j", {"1": {}}, ["1"])
    assert set(extra) <= {"client_id", "create_time", "preview_method"} and secret == {}


def test_what_foreign_code_raises_is_an_interrupt_too(host: Any) -> None:
    assert not issubclass(host.Interrupted, Exception)
    with pytest.raises(host.FOREIGN):
        raise host.Interrupted

    class Broken:
        @classmethod
        def INPUT_TYPES(cls) -> Any:
            raise host.Interrupted

    sys.modules["nodes"].NODE_CLASS_MAPPINGS = {"Broken": Broken}
    assert host.Classes().inputs("Broken", {}) == {}


# --- runs: each execution has one, and what came of its nodes is its own


@pytest.fixture
def runs(host: Any, queue: Any) -> Any:
    """A fresh ``Runs`` of ``comfy_nodes.exchange``."""
    made = importlib.import_module(f"{PACKAGE}.exchange.runs").Runs()
    queue.ending = lambda prompt_id: None
    return made


def test_the_same_id_in_the_queue_again_is_another_run(runs: Any, queue: Any) -> None:
    held = Queue()
    server_with(queue, held)
    first = runs.of("b")
    first.once.keep(("1", 0), "text")
    assert runs.of("b") is first
    held.currently_running = {8: held.currently_running[7]}  # and nobody looked in between
    second = runs.of("b")
    assert second is not first and second.once.find(("1", 0)) is None
    assert first.once.find(("1", 0)) is None, "what it kept is given back"
    assert (second.client, second.outputs) == ("page", ("1",))


def test_the_same_id_outside_of_the_queue_again_is_another_run(runs: Any, queue: Any) -> None:
    """A program of its own executes it, and calls all that it executes by one name."""
    held = Queue()
    held.currently_running = {}
    server_with(queue, held)
    node = sys.modules[f"{PACKAGE}.host.node"]
    registry = mock.Mock()
    node.get_progress_state = lambda: registry
    first = runs.of("x")
    first.once.keep(("1", 0), "text")
    assert runs.of("x") is first
    registry = mock.Mock()
    second = runs.of("x")
    assert second is not first and second.once.find(("1", 0)) is None
    assert runs.of("y") is not second


def test_what_no_run_needs_is_given_back(runs: Any, queue: Any, host: Any) -> None:
    server_with(queue, Queue())
    sys.modules["nodes"].NODE_CLASS_MAPPINGS = {"Late": Late, "Plain": object}
    prompt = {
        "r": {"class_type": "Plain", "inputs": {}},
        "l": {"class_type": "Late", "inputs": {"lazy": ["r", 0]}},
        "1": {"class_type": "Plain", "inputs": {"x": ["l", 0]}},
    }
    dynamic = mock.Mock(all_node_ids=lambda: set(prompt), get_node=prompt.__getitem__)
    dynamic.get_parent_node_id = lambda node: None
    registry = mock.Mock(prompt_id="b", dynprompt=dynamic, nodes={})
    sys.modules[f"{PACKAGE}.host.node"].get_progress_state = lambda: registry
    run = runs.of("b")
    run.once.keep(("r", 0), "large", 5 << 20, is_wanted=lambda: run.is_wanted("r"))
    assert run.once.held == 5 << 20, "the lazy input may ask for it"
    done = {"state": mock.Mock(value="finished")}
    registry.nodes = {"l": done}
    runs.let_go()
    assert run.once.held == 5 << 20, "it is being computed"
    registry.nodes = {"l": done, "r": done}
    runs.let_go()
    assert run.once.held == 0
    assert not run.is_wanted("r") and run.once.is_holding is False


# --- classes, and how far a prompt is


class Late:
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> Any:
        required = {"now": ("IMAGE",), "lazy": ("IMAGE", {"lazy": True})}
        return {"required": {**required, "raw": ("IMAGE", {"rawLink": True})}}


class Loop:
    @classmethod
    def INPUT_TYPES(cls) -> Any:
        return {"required": {}, "hidden": {"list": ("EXECUTION_LIST",), "id": "UNIQUE_ID"}}


def test_who_may_ask_late(host: Any) -> None:
    sys.modules["nodes"].NODE_CLASS_MAPPINGS = {"Late": Late, "Loop": Loop}
    classes = host.Classes()
    asks = [name for name in ("now", "lazy", "raw", "none") if classes.asks_late("Late", name)]
    assert asks == ["lazy", "raw"]
    assert classes.sees_graph("Loop") and not classes.sees_graph("Late")


class LoadPath:
    RETURN_TYPES = ("IMAGE", "INT")

    @classmethod
    def INPUT_TYPES(cls) -> Any:
        return {"required": {"video": ("STRING", {"vhs_path_extensions": []}), "n": ("INT",)}}


def test_which_paths_are_of_this_computer(host: Any, tmp_path: Path) -> None:
    sys.modules["nodes"].NODE_CLASS_MAPPINGS = {"LoadPath": LoadPath}
    classes = host.Classes()
    declared = [name for name in ("video", "n", "x") if classes.is_path_input("LoadPath", name)]
    assert declared == ["video"]
    assert classes.outputs("LoadPath") == ["IMAGE", "INT"] and classes.outputs("Gone") == []
    here = [str(tmp_path), __file__, str(tmp_path / "none"), "/", "//", ".", "", "\0/x", "/\0"]
    assert [path for path in here if classes.is_here(path)] == [str(tmp_path), __file__]


def test_which_classes_are_of_the_core(host: Any) -> None:
    told = {"Core": None, "Extra": "comfy_extras.nodes_text", "Pack": "custom_nodes.Some-Pack"}
    sys.modules["nodes"].NODE_CLASS_MAPPINGS = {
        name: type(name, (), {"RELATIVE_PYTHON_MODULE": module} if module else {})
        for name, module in told.items()
    }
    assert [name for name in (*told, "Gone") if host.Classes().is_core(name)] == ["Core", "Extra"]


def test_what_a_class_declares_is_never_an_exception(host: Any) -> None:
    odd = [None, [], {"hidden": None}, {"hidden": ["PROMPT"]}, {"hidden": {"x": (), "y": None}}]

    class Odd:
        RETURN_TYPES = ("COMFY_MATCHTYPE_V3",)
        INPUT_TYPES = mock.Mock(side_effect=odd)
        GET_SCHEMA = mock.Mock(side_effect=KeyError)

    sys.modules["nodes"].NODE_CLASS_MAPPINGS = {"Odd": Odd}
    for _ in odd:
        classes = host.Classes()
        assert not classes.expands("Odd") and not classes.sees_graph("Odd")
        assert not classes.asks_late("Odd", "x") and not classes.loop_boundary("Odd")
        assert classes.matched("Odd", 0) == () and classes.inputs("Odd", {"x": 1}) == {}


def test_what_goes_along_with_a_job_is_kept_until_that_is_given(host: Any) -> None:
    """A queue node gives what its fetch node needs, whether or not it comes after that itself."""
    late_readers = importlib.import_module(f"{PACKAGE}.prompt.late_readers")
    sys.modules["nodes"].NODE_CLASS_MAPPINGS = {"Late": Late, "RemoteQueueSimple": Late}
    prompt = {
        "r": {"class_type": "ZBusReceive", "inputs": {}},
        "q": {"class_type": "RemoteQueueSimple", "inputs": {}},
        "b": {"class_type": "Late", "inputs": {"now": ["r", 0]}},
        "f": {"class_type": "FetchRemote", "inputs": {"now": ["b", 0], "remote_info": ["q", 2]}},
    }

    def may_come(*finished: str) -> bool:
        execution = late_readers.Execution(prompt, ("f",), {}, {"r", *finished})
        return late_readers.may_come("r", execution, host.Classes())

    assert may_come() and not may_come("q")


def test_how_far_a_prompt_is(host: Any) -> None:
    sys.modules["nodes"].NODE_CLASS_MAPPINGS = {"Late": Late, "Loop": Loop}
    prompt = {"1": {"class_type": "Loop"}, "1.0": {"class_type": "Late"}}
    parents = {"1.0": "1"}
    dynamic = mock.Mock(all_node_ids=lambda: set(prompt), get_node=prompt.__getitem__)
    dynamic.get_parent_node_id = parents.get
    states = {"1": {"state": mock.Mock(value="finished")}, "1.0": {"state": mock.Mock(value="x")}}
    registry = mock.Mock(prompt_id="p", dynprompt=dynamic, nodes=states)
    sys.modules[f"{PACKAGE}.host.node"].get_progress_state = lambda: registry
    assert host.how_far("p", ("1",)) == (prompt, ("1",), parents, {"1"})
    assert host.how_far("p", ()).outputs == ["1.0"]
    assert host.how_far("another", ()) is None
    assert host.execution() is registry


# --- memory


@pytest.mark.parametrize(
    ("flag", "total", "reserve"),
    [
        (None, 8, 2),  # a host that has no such flag
        (0, 64, 6.4),  # 0.3.75, without it
        (4.0, 64, 4),  # and with it
        ([], 512, 10),  # 0.23 on, without it
        ([3.0], 64, 3),
        ([3.0, 24.0], 64, 24),
    ],
)
def test_the_memory_that_comfyui_means_to_leave(
    host: Any, flag: Any, total: int, reserve: float
) -> None:
    process = sys.modules[f"{PACKAGE}.host.process"]
    process.args = types.SimpleNamespace(**({} if flag is None else {"cache_ram": flag}))
    sys.modules["comfy.model_management"].total_ram = total * 1024
    assert host.memory_reserve() == pytest.approx(reserve * GIB)


def test_a_type_is_looked_up_once_however_often_it_comes(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look goes through thousands of modules, and one spec may name 65536 values."""
    made = types.ModuleType("comfy_extras.nodes_hunyuan3d")
    made.MESH = type("MESH", (), {"__init__": lambda self, vertices=None: None})
    table = sys.modules[f"{PACKAGE}.host.containers"].HostTypes()
    looks = mock.Mock(side_effect=table._class)
    table._class = looks
    for _ in range(2):  # one that is not there yet may come
        with pytest.raises(ValueError, match="does not have"):
            table.check("SPLAT", [])
    monkeypatch.setitem(sys.modules, made.__name__, made)
    before = looks.call_count
    for _ in range(50):
        table.check("MESH", ["vertices"])
        assert isinstance(table.made("MESH", {"vertices": 1}), made.MESH)
    assert looks.call_count == before + 1
    with pytest.raises(ValueError, match="with faces, which"):
        table.check("MESH", ["faces"])
    assert table.here() == {"MESH"}


def test_what_this_comfyui_does_not_have_is_not_looked_for_in_each_module(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job tells which kinds there are, on the server's loop."""
    module = sys.modules[f"{PACKAGE}.host.containers"]
    for name in ("/ComfyUI/comfy_extras/nodes_hunyuan3d", "/ComfyUI/comfy_extras/nodes_images"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    table, looks = module.HostTypes(), mock.Mock(side_effect=module._is_module)
    monkeypatch.setattr(module, "_is_module", looks)
    assert table.here() == frozenset()
    assert looks.call_count > 0
    looks.reset_mock()
    assert table.here() == frozenset()
    assert looks.call_count == 0
    sys.modules["/ComfyUI/comfy_extras/nodes_images"].SVG = type("SVG", (), {})
    assert table.here() == {"SVG"}, "a class that a module gets later is found"


def test_types_are_looked_up_while_other_threads_import(host: Any, monkeypatch: Any) -> None:
    class Growing(dict[str, Any]):
        def items(self) -> Any:
            for n, item in enumerate(super().items()):
                self[f"imported {n}"] = None
                yield item

    module = sys.modules[f"{PACKAGE}.host.containers"]
    monkeypatch.setattr(module, "sys", types.SimpleNamespace(modules=Growing(sys.modules)))
    assert module.HostTypes().here() == frozenset()


def test_the_types_of_outputs_are_held_as_kinds_of_the_table(host: Any) -> None:
    types = sys.modules[f"{PACKAGE}.prompt.output_types"]
    held_as = {kind for kinds in types.HELD_AS.values() for kind in kinds} | {"FILE_3D"}
    assert held_as == set(sys.modules[f"{PACKAGE}.host.containers"].TYPES)


@pytest.mark.parametrize(
    ("method", "path", "is_told"),
    [
        ("POST", "/free", True),
        ("POST", "/api/free", True),
        ("GET", "/free", False),
        ("POST", "/prompt", False),
    ],
)
def test_it_is_told_that_memory_is_to_be_freed(
    host: Any, method: str, path: str, is_told: bool
) -> None:
    server, called = mock.MagicMock(), mock.Mock()
    server.app.frozen, server.app.on_response_prepare = False, []
    sys.modules[f"{PACKAGE}.host.process"].the_server = lambda: server
    host.on_free(called)
    (answering,) = server.app.on_response_prepare
    asyncio.run(answering(types.SimpleNamespace(method=method, path=path), None))
    assert called.called == is_told


# --- what it tells of a prompt


@pytest.fixture
def told(host: Any) -> Any:
    """A prompt as its nodes see it, through what `tell_prompt_as` is given."""

    class DynamicPrompt:
        def __init__(self, prompt: Any) -> None:
            self.original_prompt = prompt

        def get_original_prompt(self) -> Any:
            return self.original_prompt

    sys.modules[f"{PACKAGE}.host.node"].DynamicPrompt = DynamicPrompt

    def told(change: Any, prompt: Any) -> Any:
        host.tell_prompt_as(change)
        return DynamicPrompt(prompt)

    return told


def test_what_one_node_writes_into_the_prompt_another_one_saves(told: Any) -> None:
    dynamic = told(lambda prompt: {"1": {**prompt["1"], "shown": True}}, {"1": {"seed": -1}})
    dynamic.get_original_prompt()["1"]["seed"] = 7
    assert dynamic.get_original_prompt() == {"1": {"seed": 7, "shown": True}}
    dynamic.original_prompt = {"1": {"seed": 8}}
    assert dynamic.get_original_prompt()["1"]["seed"] == 8


def test_a_prompt_that_cannot_be_told_otherwise_is_told_as_it_is(told: Any) -> None:
    prompt = {"1": {"seed": -1}}
    assert told(lambda prompt: prompt["2"], prompt).get_original_prompt() is prompt


# --- pictures


class NodeOutput:
    """What a V3 class returns."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    @property
    def result(self) -> tuple[Any, ...] | None:
        return self.args or None


async def later(made: Any) -> Any:
    return made


@pytest.mark.parametrize(
    ("returned", "is_taken"),
    [
        (lambda *made: made, True),
        (lambda *made: {"ui": {}, "result": made}, True),
        (NodeOutput, True),
        (lambda *made: NodeOutput(*made, "more"), True),
        (lambda *made: NodeOutput(), False),
        (lambda *made: later(made), False),  # ours decodes it
    ],
)
def test_a_picture_of_whatever_load_image_returns(
    host: Any, returned: Any, is_taken: bool, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    image, mask = torch.rand(1, 2, 3, 3), torch.zeros(1, 2, 3)
    seen = []

    class LoadImage:
        FUNCTION = "load"

        def load(self, name: str) -> Any:
            seen.append((tmp_path / name.removesuffix(" [temp]")).read_bytes())
            return returned(image, mask)

    sys.modules["nodes"].LoadImage = LoadImage
    sys.modules["folder_paths"].get_temp_directory = lambda: str(tmp_path)
    made = sys.modules[f"{PACKAGE}.host.files"].load_image(b"a picture", "png")
    assert made == ((image, mask) if is_taken else None)
    assert seen == [b"a picture"] and not list(tmp_path.iterdir())


# --- texts for another user


def traceback_of(source: str, path: Path) -> str:
    """What is raised by a program that lies there, as ComfyUI tells it."""
    path.parent.mkdir(parents=True)
    path.write_text(source)
    try:
        runpy.run_path(str(path))
    except Exception as error:
        return "".join([*traceback.format_tb(error.__traceback__), f"{type(error)}: {error}"])
    raise AssertionError("it raised nothing")


def test_a_traceback_tells_no_paths_of_this_computer(host: Any, tmp_path: Path) -> None:
    home = tmp_path / "bob smith"
    base, models = home / "My ComfyUI", home / "all models"
    (home / "link").parent.mkdir(parents=True)
    (home / "link").symlink_to(base)
    paths = sys.modules["folder_paths"]
    paths.__file__ = str(base / "folder_paths.py")
    paths.base_path, paths.models_dir = home / "link", str(models)
    paths.get_input_directory = lambda: str(base / "input")
    paths.folder_names_and_paths = {"loras": ([home / "my loras"], {".safetensors"})}
    paths.get_folder_paths = lambda kind: [str(home / "packs")]
    source = f"""
import json
import logging
import logging
def work():
    open({str(models / "x y.safetensors")!r})
try:
    work()
except OSError as error:
    try:
        json.loads("{{")
    except ValueError as other:
        raise ValueError(f"{{error}}; in {home / "my loras" / "a" / "c.pt"}") from other
"""
    for folder in (base / "custom_nodes", home / "link/a", home / "packs", tmp_path / "bob else"):
        told = host.without_paths(traceback_of(source, folder / "pack" / "nodes.py"))
        assert "bob" not in told and str(tmp_path) not in told, told
        assert "'x y.safetensors'; in c.pt" in told, told
        assert 'nodes.py", line 1' in told
    assert 'File "custom_nodes/pack/nodes.py", line 11' in host.without_paths(
        f'File "{home / "packs"}/pack/nodes.py", line 11'
    )
    assert 'File "python/json/decoder.py"' in host.without_paths(f'File "{json.decoder.__file__}"')
    assert host.without_paths(f'File "{FOLDER}/jobs/a.py"') == 'File "zbus/comfy_nodes/jobs/a.py"'


def test_texts_are_told_whatever_packs_list_and_without_a_home(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Any:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    sys.modules["folder_paths"].folder_names_and_paths = {
        "LLM": (["/data/my models"],),
        "other": (["/data/other"], {".pt"}, "more"),
    }
    assert host.without_paths("no file /data/my models/a/b.pt") == "no file b.pt"


# --- what people see


def test_a_line_in_the_log_says_whose_it_is(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    root = "zbus_log_under_test"
    host.name_lines(root)
    host.name_lines(root)  # as on a second loading
    below = logging.getLogger(f"{root}.net.addresses")
    with caplog.at_level(logging.INFO):
        below.info("own listener on %s", "127.0.0.1:18188")
        below.warning("zbus could not start")
        below.debug("not asked for")
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [
        ("INFO", "zbus: own listener on 127.0.0.1:18188"),
        ("WARNING", "zbus could not start"),
    ]


def test_a_text_on_a_node_has_its_lines_as_html_and_as_markdown(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = mock.Mock()
    monkeypatch.setattr(sys.modules[f"{PACKAGE}.host.showing"], "the_server", lambda: server)
    host.show_at("desk: done in 1.00 s\n<b>: failed", "5", "page")
    server.send_progress_text.assert_called_once_with(
        "desk: done in 1.00 s  \n\u2039b\u203a: failed", "5", "page"
    )
