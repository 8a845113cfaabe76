"""ComfyUI_NetDist's nodes that run a workflow on a remote: same ids, widgets and outputs.

The queue nodes give the job and pass its handle on as REMINFO; Fetch waits for the result. The
remote is found by its ComfyUI's URL, and runs the job over zbus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from zbus.errors import InputError

from .. import host, node_ids
from ..jobs.expanding import expand
from ..prompt.graph import Graph
from .dispatched import Dispatched, fetched, queued, saved

CATEGORY, ADVANCED = "remote", "remote/advanced"
MAX_SEED = 0xFFFFFFFFFFFFFFFF
MAX_BATCH = 8
ENABLED = ["true", "false", "remote"]
REMCHAIN, REMINFO = io.Custom("REMCHAIN"), io.Custom("REMINFO")
ANY_REMINFO = io.Custom("REMINFO,REMOTE")  # the QueueRemote of 2023 called it so
JSON = io.Custom("JSON")


# --- what the queue nodes have in common ----------------------------------------------------------


def _url(default: str = "http://127.0.0.1:8288/") -> Any:
    tip = "The page of the other ComfyUI, which has zbus too. Or its zbus name."
    return io.String.Input("remote_url", default=default, tooltip=tip)


def _batch(name: str, default: int = 1, low: int = 1, **more: Any) -> Any:
    return io.Int.Input(name, default=default, min=low, max=MAX_BATCH, **more)


def _seed(**more: Any) -> Any:
    return io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True, **more)


def _trigger() -> Any:
    tip = "on_change: queues again only when an input has changed. always: each time."
    return io.Combo.Input("trigger", options=["on_change", "always"], tooltip=tip)


def _enabled(**more: Any) -> Any:
    tip = 'true: runs on the remote too. false: passes through. "remote" is set by zbus there.'
    return io.Combo.Input("enabled", options=ENABLED, default="true", tooltip=tip, **more)


def _out(kind: Any, name: str) -> Any:
    # Its id is not that of an input: a schema has each id once.
    return kind.Output(f"{name}_out", display_name=name)


class _Triggered(io.ComfyNode):
    @classmethod
    def fingerprint_inputs(cls, trigger: Any = None, **_: Any) -> Any:
        return float("nan") if trigger == "always" else ""


# --- single --------------------------------------------------------------------------------------


class RemoteQueueSimple(_Triggered):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.QUEUE_SIMPLE,
            display_name="Queue on remote (single)",
            category=CATEGORY,
            description="Runs this workflow on another ComfyUI as well, with another seed.",
            inputs=[
                _url(),
                _batch("batch_local"),
                _batch("batch_remote"),
                _trigger(),
                _enabled(),
                _seed(),
            ],
            outputs=[
                _out(io.Int, "seed"),
                _out(io.Int, "batch"),
                _out(REMINFO, "remote_info"),
            ],
            not_idempotent=True,
            enable_expand=True,
        )

    @classmethod
    async def execute(
        cls,
        remote_url: str,
        batch_local: int,
        batch_remote: int,
        trigger: str,
        enabled: str,
        seed: int,
    ) -> Any:
        if enabled == "remote":
            return io.NodeOutput((seed + batch_local) % (MAX_SEED + 1), batch_remote, {})
        if enabled == "false":
            return io.NodeOutput(seed, batch_local, {})
        return await queued([seed, batch_local], remote_url, None)


class FetchRemote(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.FETCH,
            display_name="Fetch from remote",
            category=CATEGORY,
            description="Waits for the remote's final image. Where its queue node is not enabled, "
            "the local image passes through.",
            inputs=[io.Image.Input("final_image"), ANY_REMINFO.Input("remote_info")],
            outputs=[_out(io.Image, "IMAGE")],
            not_idempotent=True,
            enable_expand=True,
        )

    @classmethod
    async def execute(cls, final_image: Any, remote_info: Any) -> Any:
        if not remote_info:
            return io.NodeOutput(final_image)
        if not isinstance(remote_info, Dispatched):
            raise InputError(
                "remote_info does not come from one of zbus's queue nodes",
                remedy="Wire the remote_info of a Queue on remote node to it",
            )
        here = host.executing()
        if remote_info.is_over or remote_info.prompt_id != here.prompt_id:
            # Its queue node is cached: those results belong to what was queued then.
            remote_info = await remote_info.again()
            made = expand(remote_info, here.node_id, collect=False)
            if made.started is not None:
                again = f"{here.node_id}.zbus-fetch"
                inputs = {**here.node["inputs"], "remote_info": list(made.started)}
                nodes = {**made.nodes, again: {"class_type": node_ids.FETCH, "inputs": inputs}}
                return io.NodeOutput([again, 0], expand=nodes)
        return io.NodeOutput(await fetched(remote_info, here))


# --- chain ---------------------------------------------------------------------------------------


class RemoteChainStart(_Triggered):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.CHAIN_START,
            display_name="Queue on remote (start of chain)",
            category=ADVANCED,
            inputs=[JSON.Input("workflow"), _trigger(), _batch("batch"), _seed()],
            outputs=[_out(REMCHAIN, "remote_chain")],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, workflow: Any, trigger: str, batch: int, seed: int) -> Any:
        chain = {"seed": seed, "batch": batch, "prompt": workflow, "seed_offset": batch}
        return io.NodeOutput(chain)


class RemoteQueueWorker(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        outputs = "final_image: only what Fetch needs. any: every output node of the workflow."
        return io.Schema(
            node_id=node_ids.QUEUE_WORKER,
            display_name="Queue on remote (worker)",
            category=ADVANCED,
            inputs=[
                REMCHAIN.Input("remote_chain"),
                _url(),
                _batch("batch_override", 0, 0),
                _enabled(),
                io.Combo.Input("outputs", options=["final_image", "any"], tooltip=outputs),
            ],
            outputs=[_out(REMCHAIN, "remote_chain"), _out(REMINFO, "remote_info")],
            not_idempotent=True,
            enable_expand=True,
        )

    @classmethod
    async def execute(
        cls, remote_chain: Any, remote_url: str, batch_override: int, enabled: str, outputs: str
    ) -> Any:
        return await _work(remote_chain, remote_url, batch_override, enabled, outputs == "any")


async def _work(
    chain: Any, remote_url: str, batch_override: int, enabled: str, everything: bool
) -> Any:
    passed, offset = dict(chain), chain["seed_offset"]
    passed["seed_offset"] = offset + (batch_override or 1)
    if enabled == "remote":
        passed["seed"] = (chain["seed"] + offset) % (MAX_SEED + 1)
        passed["batch"] = batch_override or chain["batch"]
    if enabled != "true":
        return io.NodeOutput(passed, {})
    workflow = saved(chain["prompt"])
    return await queued([passed], remote_url, workflow, everything=everything)


class RemoteChainEnd(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.CHAIN_END,
            display_name="Queue on remote (end of chain)",
            category=ADVANCED,
            inputs=[REMCHAIN.Input("remote_chain")],
            outputs=[_out(io.Int, "seed"), _out(io.Int, "batch")],
        )

    @classmethod
    def execute(cls, remote_chain: Any) -> Any:
        return io.NodeOutput(remote_chain["seed"], remote_chain["batch"])


# --- older ---------------------------------------------------------------------------------------


class QueueRemote(io.ComfyNode):
    """Two nodes had this id: that of 2023, and that of the rewrite, which has a chain."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id=node_ids.QUEUE_OLDER,
            display_name="Queue on remote (older)",
            category=CATEGORY,
            # In the order of 2023, which is that of the widgets' values in saved workflows. The
            # page puts what is required first, so that nothing behind the first one is.
            inputs=[
                _url("http://127.0.0.1:8188/"),
                _seed(optional=True),
                _batch("batch_override", 0, 0, optional=True),
                io.Combo.Input("system", options=["windows", "posix"], optional=True),
                _enabled(optional=True),
                io.Int.Input("node_id", default=1, min=1, max=64, optional=True),
                REMCHAIN.Input("remote_chain", optional=True),
            ],
            outputs=[_out(io.AnyType, "seed"), _out(io.AnyType, "remote_info")],
            is_deprecated=True,
            not_idempotent=True,
            enable_expand=True,
        )

    @classmethod
    async def execute(
        cls,
        remote_url: str,
        seed: int = 0,
        batch_override: int = 0,
        system: str = "posix",
        enabled: str = "true",
        node_id: int = 1,
        remote_chain: Any = None,
    ) -> Any:
        if remote_chain is not None:
            return await _work(remote_chain, remote_url, batch_override, enabled, False)
        if enabled == "remote":
            size = batch_override or _largest_batch(host.current_prompt())
            return io.NodeOutput((seed + node_id * size) % (MAX_SEED + 1), {})
        if enabled == "false":
            return io.NodeOutput(seed, {})

        def edit(prompt: Graph) -> None:
            for node in prompt.values():
                if batch_override and node.get("class_type") == "EmptyLatentImage":
                    node["inputs"]["batch_size"] = batch_override

        return await queued([seed], remote_url, None, edit=edit)


def _largest_batch(prompt: Mapping[str, Any]) -> int:
    sizes = [
        node["inputs"].get("batch_size")
        for node in prompt.values()
        if node.get("class_type") == "EmptyLatentImage"
    ]
    return max((size for size in sizes if isinstance(size, int)), default=1)


NODES: dict[str, type[io.ComfyNode]] = {
    node_ids.QUEUE_SIMPLE: RemoteQueueSimple,
    node_ids.FETCH: FetchRemote,
    node_ids.CHAIN_START: RemoteChainStart,
    node_ids.QUEUE_WORKER: RemoteQueueWorker,
    node_ids.CHAIN_END: RemoteChainEnd,
    node_ids.QUEUE_OLDER: QueueRemote,
}
