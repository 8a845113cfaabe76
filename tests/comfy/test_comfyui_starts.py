"""The harness itself: two real ComfyUIs start, with the pack and the test pack loaded."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import workflows
from children import slowness, until
from comfyui import ROOT, ComfyUI, PromptRefused

JUMPER = {
    "Send String": ["addr", "mode", "string", "order"],
    "Send Images": ["addr", "mode", "images", "send_as", "order"],
    "Receive String": ["addr", "mode", "order"],
    "Receive Images": ["addr", "mode", "order"],
}
OWN = {
    "ZBusSend": ["value", "peer", "channel", "quality", "order"],
    "ZBusReceive": ["peer", "channel", "expect", "timeout", "order"],
}


@pytest.mark.parametrize("node, inputs", [*JUMPER.items(), *OWN.items()])
def test_node_is_there_with_its_inputs_in_order(pair, node, inputs):
    for comfyui in pair:
        info = comfyui.object_info(node)
        assert node in info, comfyui.log()[-3000:]
        shown = info[node]["input"]
        assert [*shown.get("required", {}), *shown.get("optional", {})] == inputs


def test_both_packs_are_loaded_without_an_error(pair):
    for comfyui in pair:
        # ComfyUI's own audio nodes may fail without torchaudio: no concern of ours.
        lines = [line for line in comfyui.log().splitlines() if "custom_nodes" in line]
        words = ("IMPORT FAILED", "Cannot import", "Error while calling")
        assert [line for line in lines if any(word in line for word in words)] == []


def test_jumpers_examples_become_prompts(pair, addr):
    local, remote = workflows.jumper_examples(pair.a.object_info(), addr=addr, send_as="raw")
    text = "beautiful scenery nature glass bottle landscape, , purple galaxy bottle,"
    expected = {"addr": addr, "mode": "Client", "string": text, "order": ["11", 0]}
    assert local["9"] == {"class_type": "Send String", "inputs": expected}
    assert local["11"] == {"class_type": "PrimitiveInt", "inputs": {"value": 0}}
    assert remote["14"] == {
        "class_type": "Send Images",
        "inputs": {
            **{"addr": addr, "mode": "Server", "send_as": "raw"},
            **{"images": ["8", 0], "order": ["13", 1]},
        },
    }
    assert set(remote) == {"6", "7", "8", "10", "12", "13", "14", "15"}


def test_a_prompt_runs_and_its_result_is_seen(pair):
    prompt = {"1": workflows.noise_node(2, 8, 8), "2": _node("TestDigest", value=["1", 0])}
    first, second = (comfyui.run(prompt) for comfyui in pair)
    assert pair.a.outcome(first) == "success"
    assert pair.a.ui(first, 2, "description") == "float32[2, 8, 8, 3]"
    assert pair.a.ui(first, 2, "digest") == pair.b.ui(second, 2, "digest")


def test_a_failing_node_is_an_error_with_its_text(pair):
    prompt = {
        "1": _node("TestMake", kind="text", seed=1),
        "2": _node("TestRaise", value=["1", 0], text="no such thing"),
        "3": _node("TestDigest", value=["2", 0]),
    }
    entry = pair.a.run(prompt)
    assert pair.a.outcome(entry) == "error"
    assert pair.a.errors(entry) == "TestRaise: ValueError: no such thing"


def test_an_interrupt_ends_a_slow_node(pair):
    prompt = {
        "1": _node("TestMake", kind="int", seed=1),
        "2": _node("TestSlow", value=["1", 0], seconds=60.0),
        "3": _node("TestDigest", value=["2", 0]),
    }
    events, since = pair.a.events, pair.a.events.mark()
    prompt_id = pair.a.prompt(prompt)
    events.wait_for(lambda e: e.kind == "progress_state", since=since)
    started = time.monotonic()
    pair.a.interrupt()
    assert pair.a.outcome(pair.a.wait(prompt_id, 5)) == "interrupted"
    assert time.monotonic() - started < 1 * slowness()


def test_a_refused_prompt_says_why(pair):
    with pytest.raises(PromptRefused, match="TestDigest"):
        pair.a.prompt({"1": _node("TestDigest")})


def test_stop_leaves_nothing_running(make_comfyui):
    comfyui = make_comfyui(name="stopped").start()
    process, base = comfyui.process, comfyui.base
    assert comfyui.stop(60) < 5 * slowness()
    assert process.poll() is not None
    assert not base.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_parent_leaves_no_comfyui(comfyui_dir, tmp_path):
    code = (
        "import sys; sys.path.append('..'); from comfyui import ComfyUI\n"
        "c = ComfyUI(sys.argv[1], base=sys.argv[2]).launch(); print(c.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(comfyui_dir), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, cwd=Path(__file__).parent) as parent:
        pid = int(parent.stdout.readline())
        logs = lambda: tmp_path.glob("*.log")  # noqa: E731
        until(lambda: any(log.stat().st_size for log in logs()), 60, "ComfyUI has begun")
        parent.send_signal(signal.SIGKILL)
    until(lambda: not is_running(pid), 20, "it has ended")


def is_running(pid):
    command = Path(f"/proc/{pid}/cmdline")
    return command.exists() and bool(command.read_bytes())


def test_the_pack_is_the_clone(pair):
    assert (ROOT / "zbus" / "__init__.py").is_file()
    assert isinstance(pair.a, ComfyUI)
    assert f"from {ROOT / 'zbus'}" in pair.a.log()


def _node(class_type: str, **inputs: object) -> dict[str, object]:
    return {"class_type": class_type, "inputs": inputs}
