"""What the page that queued a prompt shows: texts and pictures on its nodes."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from typing import Any

from .node import shown_as
from .process import the_server

logger = logging.getLogger(__name__)

# The page takes a text on a node for HTML, and parts of ours are the other side's words.
# Its nodes of HTML take it for Markdown, where a line ends with two blanks.
_NO_MARKUP = str.maketrans({"<": "\u2039", ">": "\u203a", "\n": "  \n"})


def show(text: str, node_id: str, client: str | None) -> None:
    """Put a line of text on a node. Without a page it only goes to the log."""
    show_at(text, shown_as(node_id), client)


def show_at(text: str, shown: str, client: str | None) -> None:
    """As `show`, on a node that the page knows; from any thread."""
    logger.debug("node %s: %s", shown, text)
    if client is not None:  # None would reach every tab
        the_server().send_progress_text(text.translate(_NO_MARKUP), shown, client)


def preview_at(kind: str, picture: bytes, shown: str, prompt_id: str, client: str | None) -> None:
    """Show a picture on a node that the page knows; `kind` is its MIME type. From any thread."""
    server = the_server()
    if client is None or client not in server.sockets:
        return
    features = server.sockets_metadata.get(client, {}).get("feature_flags", {})
    if features.get("supports_preview_metadata"):
        told = {"node_id": shown, "display_node_id": shown, "real_node_id": shown}
        told |= {"prompt_id": prompt_id, "image_type": kind}
        head = json.dumps(told).encode()
        event, data = 4, struct.pack(">I", len(head)) + head + picture
    else:
        event, data = 1, struct.pack(">I", 2 if kind == "image/png" else 1) + picture
    asyncio.run_coroutine_threadsafe(server.send_bytes(event, data, client), server.loop)


def notice(text: str, client: str | None, **more: Any) -> None:
    """Tell the page something that no node can say; the log has it as well."""
    if client is not None:
        the_server().send_sync("zbus.notice", {"text": text, **more}, client)
