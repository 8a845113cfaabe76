"""zbus in ComfyUI: the nodes. Importing this has no effect."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import host, node_ids
from .exchange import jumper, send_receive
from .exchange.queue_watcher import QUEUE_WATCHER
from .jobs import expanding, internal, run_on_peers, tapped_run
from .jobs.serving import Serving
from .netdist import files, queueing
from .page import routes
from .page.own_listener import OWN_LISTENER

MODULES = (
    *(send_receive, jumper, run_on_peers, tapped_run, expanding, internal),
    *(queueing, files),
)


class ZBusExtension(ComfyExtension):
    """What ComfyUI asks for the nodes; then the peer starts with ComfyUI's server."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        host.name_lines(__name__, "zbus")
        OWN_LISTENER.job_host = Serving
        QUEUE_WATCHER.jumper = dict(jumper.NODES)
        host.at_start(QUEUE_WATCHER.start)
        host.on_free(QUEUE_WATCHER.free)
        routes.open_routes()
        classes = {node_id: cls for module in MODULES for node_id, cls in module.NODES.items()}
        return [classes[node_id] for node_id in node_ids.ALL]
