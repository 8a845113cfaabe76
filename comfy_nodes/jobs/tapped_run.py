"""Run on Peers with a preview or a save inside its part: it brings what they are to show as well.

Users do not see it: it takes the place of theirs when the prompt comes in (see `prompt.tapping`).
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .. import node_ids
from .expanding import INTERNAL
from .run_on_peers import RunOnPeers


class TappedRun(io.ComfyNode):  # not of RunOnPeers: ComfyUI keeps what it knows of a class in it
    @classmethod
    def define_schema(cls) -> Any:
        tapped = io.AnyType.Output("tapped")
        return RunOnPeers.schema(node_ids.RUN_TAPPED, INTERNAL, [tapped], is_deprecated=True)

    @classmethod
    def check_lazy_status(cls, **_: Any) -> list[str]:
        return []  # it is computed elsewhere

    @classmethod
    async def execute(cls, **inputs: Any) -> Any:
        made = await RunOnPeers.execute(**inputs)
        collect = made.args[0][0]
        return io.NodeOutput(*made.args, [collect, 2], expand=made.expand)


NODES: dict[str, type[io.ComfyNode]] = {node_ids.RUN_TAPPED: TappedRun}
