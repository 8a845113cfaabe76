"""zbus in ComfyUI: the nodes. Importing this has no effect."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import exchange, host, jumper, page
from .jobs import collecting, internal, run_on_peers
from .netdist import files, queueing
from .watcher import WATCHER


class ZBusExtension(ComfyExtension):
    """What ComfyUI asks for the nodes; then the peer starts with ComfyUI's server."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        WATCHER.jumper = dict(jumper.NODES)
        host.at_start(WATCHER.start)
        page.open_routes()
        return [
            *exchange.NODES.values(),
            *run_on_peers.NODES.values(),
            *jumper.NODES.values(),
            *queueing.NODES.values(),
            *files.NODES.values(),
            *collecting.NODES.values(),
            *internal.NODES.values(),
            *run_on_peers.INTERNAL_NODES.values(),
        ]
