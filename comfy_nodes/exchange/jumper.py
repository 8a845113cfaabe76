"""ComfyUI-Jumper's four nodes, drop-in: same ids, inputs, results and sequence."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from zbus.errors import InputError

from .. import node_ids
from ..prompt.single import only
from . import waiting
from .meeting import MODES, Meeting, at_addr
from .validating import check

ADDR = "127.0.0.1:8282"
SEND_AS = ["png", "zlib", "raw"]
USE_ZBUS_SEND = "Send a list with Send to Peer (ZBusSend), and receive it with Receive from Peer"


def _where() -> list[Any]:
    addr = (
        'Where the two ComfyUIs meet, as "host:port": the same text on both sides. Or the name of '
        "the other ComfyUI, or its page's URL, where the two are paired or of one computer."
    )
    mode = (
        "One side is Server (it listens on addr), the other Client (it dials addr). With a name or "
        "a URL in addr it makes no difference."
    )
    return [
        io.String.Input("addr", default=ADDR, tooltip=addr),
        io.Combo.Input("mode", options=list(MODES), default="Client", tooltip=mode),
    ]


def _order() -> Any:
    tooltip = "Wire the order output of the chain's node before: it only puts them in sequence."
    return io.Int.Input("order", default=0, optional=True, force_input=True, tooltip=tooltip)


def _next_order() -> Any:
    return io.Int.Output("next_order", display_name="order", tooltip="order + 1: the next node's.")


def _schema(node_id: str, inputs: list[Any], outputs: list[Any], what: str) -> Any:
    return io.Schema(
        node_id=node_id,
        category="Jumper",
        description=what,
        inputs=[*_where(), *inputs, _order()],
        outputs=[*outputs, _next_order()],
        is_input_list=True,  # a list is refused as a whole, and not after its first item has gone
        not_idempotent=True,
    )


class _Node(io.ComfyNode):
    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")

    @classmethod
    def validate_inputs(cls, addr: Any = None, mode: Any = None) -> bool | str:
        addr, mode = (g[0] if isinstance(g, (list, tuple)) else g for g in (addr, mode))
        if addr is None or mode is None:
            return True  # comes over a link
        try:
            check(at_addr(addr, mode))
        except InputError as error:
            return str(error)
        return True


def _begin(addr: Any, mode: Any, order: Any) -> tuple[Meeting, int]:
    where = at_addr(*(only(n, g, USE_ZBUS_SEND) for n, g in (("addr", addr), ("mode", mode))))
    return where, only("order", order, USE_ZBUS_SEND)


class SendString(_Node):
    @classmethod
    def define_schema(cls) -> Any:
        tooltip = "The text that Receive String on the other side returns."
        string = io.String.Input("string", multiline=True, default="", tooltip=tooltip)
        return _schema(node_ids.SEND_STRING, [string], [], "Sends a text to the other ComfyUI.")

    @classmethod
    async def execute(cls, addr: Any, mode: Any, string: Any, order: Any = 0) -> Any:
        meeting, number = _begin(addr, mode, order)
        text = only("string", string, USE_ZBUS_SEND)
        await waiting.send(meeting, text, None, kind="text")
        return io.NodeOutput(number + 1)


class SendImages(_Node):
    @classmethod
    def define_schema(cls) -> Any:
        images = io.Image.Input("images", tooltip="A batch of images.")
        tooltip = "png: 8 bits a channel. zlib, raw: bit for bit (raw is the fastest on one host)."
        send_as = io.Combo.Input("send_as", options=SEND_AS, default="png", tooltip=tooltip)
        return _schema(
            node_ids.SEND_IMAGES, [images, send_as], [], "Sends images to the other ComfyUI."
        )

    @classmethod
    async def execute(cls, addr: Any, mode: Any, images: Any, send_as: Any, order: Any = 0) -> Any:
        meeting, number = _begin(addr, mode, order)
        quality = only("send_as", send_as, USE_ZBUS_SEND)
        if quality not in SEND_AS:
            raise InputError(f"send_as is one of {', '.join(SEND_AS)}, not {quality!r}")
        batch = only("images", images, USE_ZBUS_SEND)
        await waiting.send(meeting, batch, None, quality=quality, kind="image")
        return io.NodeOutput(number + 1)


class ReceiveString(_Node):
    @classmethod
    def define_schema(cls) -> Any:
        tooltip = "The text that was sent."
        outputs = [io.String.Output("string", display_name="string", tooltip=tooltip)]
        return _schema(
            node_ids.RECEIVE_STRING, [], outputs, "Receives a text from the other ComfyUI."
        )

    @classmethod
    async def execute(cls, addr: Any, mode: Any, order: Any = 0) -> Any:
        meeting, number = _begin(addr, mode, order)
        return io.NodeOutput(await waiting.receive(meeting, None, expect="text"), number + 1)


class ReceiveImages(_Node):
    @classmethod
    def define_schema(cls) -> Any:
        tooltip = "The batch of images that was sent."
        outputs = [io.Image.Output("images", display_name="images", tooltip=tooltip)]
        return _schema(
            node_ids.RECEIVE_IMAGES, [], outputs, "Receives images from the other ComfyUI."
        )

    @classmethod
    async def execute(cls, addr: Any, mode: Any, order: Any = 0) -> Any:
        meeting, number = _begin(addr, mode, order)
        return io.NodeOutput(await waiting.receive(meeting, None, expect="image"), number + 1)


NODES: dict[str, type[io.ComfyNode]] = {
    node_ids.SEND_STRING: SendString,
    node_ids.SEND_IMAGES: SendImages,
    node_ids.RECEIVE_STRING: ReceiveString,
    node_ids.RECEIVE_IMAGES: ReceiveImages,
}
