"""zbus in ComfyUI: the nodes. Importing this has no effect."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import exchange, host, jumper
from .watcher import WATCHER


class ZBusExtension(ComfyExtension):
    """What ComfyUI asks for the nodes; then the peer starts with ComfyUI's server."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        WATCHER.jumper = dict(jumper.NODES)
        host.at_start(WATCHER.start)
        return [*exchange.NODES.values(), *jumper.NODES.values()]
