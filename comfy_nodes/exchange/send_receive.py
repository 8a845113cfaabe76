"""zbus's own nodes for two running workflows: Send to Peer, Receive from Peer."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from zbus import codecs
from zbus.errors import InputError
from zbus.run import EXPECT

from .. import host, node_ids
from ..host.lists import unwrap, wrap
from ..prompt.single import only
from . import waiting
from .meeting import Meeting, at_peer
from .validating import check

CATEGORY = "zbus"
QUALITY = ["exact", "8-bit", "raw", "lz4", "zlib", "png", "webp"]
PEER = (
    "Whom to meet: a ComfyUI of yours on this computer or a paired one by its name, or by the URL "
    'of its page. "host:port" dials a plain address, "listen:host:port" listens there for the '
    "other side; empty means the only peer that has come to such an address."
)
ORDER = "The value's place in the chain: the other side uses the same number. Not wired: 0."


def _where() -> list[Any]:
    channel = "Two workflows meet that name the same channel."
    return [
        io.String.Input("peer", default="", tooltip=PEER),
        io.String.Input("channel", default="main", tooltip=channel),
    ]


def _order() -> Any:
    return io.Int.Input("order", default=0, optional=True, force_input=True, tooltip=ORDER)


def _next_order() -> Any:
    return io.Int.Output("next_order", display_name="order", tooltip="order + 1: the next node's.")


class _Node(io.ComfyNode):
    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")

    @classmethod
    def validate_inputs(cls, peer: Any = None, channel: Any = None) -> bool | str:
        peer, channel = (g[0] if isinstance(g, (list, tuple)) else g for g in (peer, channel))
        if peer is None or channel is None:
            return True  # comes over a link
        try:
            check(at_peer(peer, channel))
        except InputError as error:
            return str(error)
        return True


def _begin(peer: Any, channel: Any, order: Any) -> tuple[Meeting, int]:
    return at_peer(only("peer", peer), only("channel", channel)), only("order", order)


class Send(_Node):
    @classmethod
    def define_schema(cls) -> Any:
        quality = (
            "exact: bit for bit, packed as suits the link. 8-bit: images and masks as 8 bits a "
            "channel. Or a codec by its name (png and webp are 8-bit)."
        )
        return io.Schema(
            node_id=node_ids.SEND,
            display_name="Send to Peer",
            category=CATEGORY,
            description="Sends a value of any type, also a list, to another running workflow.",
            inputs=[
                io.AnyType.Input("value", tooltip="What to send: images, latents, text, lists..."),
                *_where(),
                io.Combo.Input("quality", options=QUALITY, default="exact", tooltip=quality),
                _order(),
            ],
            outputs=[
                io.AnyType.Output(
                    "sent", display_name="value", is_output_list=True, tooltip="The value itself."
                ),
                _next_order(),
            ],
            is_output_node=True,
            is_input_list=True,
            not_idempotent=True,
        )

    @classmethod
    async def execute(
        cls, value: list[Any], peer: Any, channel: Any, quality: Any, order: Any = 0
    ) -> Any:
        meeting, number = _begin(peer, channel, order)
        how = only("quality", quality)
        codecs.check(how)
        declared = host.no_picture("value")
        await waiting.send(meeting, wrap(value), number, quality=how, declared=declared)
        return io.NodeOutput(value, number + 1)


class Receive(_Node):
    @classmethod
    def define_schema(cls) -> Any:
        timeout = "Seconds to wait for the value; 0 waits until it comes or you cancel."
        expect = "The kind of value that must come; another is an error on both sides."
        value = "What was sent; a list if a list was."
        return io.Schema(
            node_id=node_ids.RECEIVE,
            display_name="Receive from Peer",
            category=CATEGORY,
            description="Receives what Send to Peer of another running workflow sends.",
            inputs=[
                *_where(),
                io.Combo.Input("expect", options=list(EXPECT), default="any", tooltip=expect),
                io.Float.Input("timeout", default=0.0, min=0.0, max=1e6, step=1.0, tooltip=timeout),
                _order(),
            ],
            outputs=[
                io.AnyType.Output(
                    "value", display_name="value", is_output_list=True, tooltip=value
                ),
                _next_order(),
            ],
            is_input_list=True,
            not_idempotent=True,
        )

    @classmethod
    async def execute(
        cls, peer: Any, channel: Any, expect: Any, timeout: Any, order: Any = 0
    ) -> Any:
        meeting, number = _begin(peer, channel, order)
        kind, seconds = only("expect", expect), only("timeout", timeout)
        if kind not in EXPECT:
            raise InputError(f"expect is one of {', '.join(EXPECT)}, not {kind!r}")
        value = await waiting.receive(meeting, number, expect=kind, timeout=seconds or None)
        return io.NodeOutput(unwrap(value), number + 1)


NODES: dict[str, type[io.ComfyNode]] = {node_ids.SEND: Send, node_ids.RECEIVE: Receive}
