"""zbus in ComfyUI: the nodes. Importing this has no effect."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import host
from .exchange import jumper, send_receive
from .exchange.queue_watcher import WATCHER
from .jobs import expanding, internal, run_on_peers
from .netdist import files, queueing
from .page import routes


class ZBusExtension(ComfyExtension):
    """What ComfyUI asks for the nodes; then the peer starts with ComfyUI's server."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        WATCHER.jumper = dict(jumper.NODES)
        host.at_start(WATCHER.start)
        routes.open_routes()
        return [
            *send_receive.NODES.values(),
            *run_on_peers.NODES.values(),
            *jumper.NODES.values(),
            *queueing.NODES.values(),
            *files.NODES.values(),
            *expanding.NODES.values(),
            *internal.NODES.values(),
            *run_on_peers.INTERNAL_NODES.values(),
        ]
