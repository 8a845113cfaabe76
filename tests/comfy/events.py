"""What ComfyUI tells the page, collected: events, texts on nodes, previews."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from children import slowness

PREVIEW_IMAGE, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4


@dataclass(frozen=True)
class Event:
    """One message.

    kind: ComfyUI's own ("executing", "progress_state", "zbus.x"...); "text" for a text on a node
        (data: node, text); "preview" for a picture (data: the metadata; ``image``: the bytes).
    time_ns: ``time.time_ns()`` when it came.
    """

    kind: str
    data: dict[str, Any]
    time_ns: int
    image: bytes = b""


class Events:
    """A WebSocket client of one ComfyUI, on a thread of its own.

    Made by ``ComfyUI.events``; it gets the events of prompts queued with that client id.
    """

    def __init__(self, url: str, client_id: str) -> None:
        self._url = f"{url}/ws?clientId={client_id}"
        self._events: list[Event] = []
        self._news = threading.Condition()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()
        if not self._ready.wait(10 * slowness()):
            raise TimeoutError(f"no WebSocket at {self._url}")

    def mark(self) -> int:
        """A point in time, to give as ``since``."""
        with self._news:
            return len(self._events)

    def all(self, kind: str | None = None, since: int = 0) -> list[Event]:
        with self._news:
            return [e for e in self._events[since:] if kind in (None, e.kind)]

    def texts(self, node_id: str | int | None = None, since: int = 0) -> list[str]:
        """The texts shown on that node (or on any), oldest first."""
        wanted = None if node_id is None else str(node_id)
        found = [e.data for e in self.all("text", since)]
        return [data["text"] for data in found if wanted in (None, data["node"])]

    def wait_for(
        self, predicate: Callable[[Event], bool], timeout: float = 10.0, since: int = 0
    ) -> Event:
        """The first event from ``since`` on that fits; waits for one to come."""
        started = time.monotonic()
        seen = since
        with self._news:
            while True:
                for event in self._events[seen:]:
                    if predicate(event):
                        return event
                seen = max(seen, len(self._events))
                left = started + timeout * slowness() - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    last = [(e.kind, e.data) for e in self._events[since:][-10:]]
                    raise TimeoutError(f"no such event in {timeout} s; the last ones: {last}")

    def wait_text(
        self, part: str, node_id: str | int | None = None, timeout: float = 10.0, since: int = 0
    ) -> str:
        """Wait until a text that contains ``part`` is shown on that node (or on any)."""
        wanted = None if node_id is None else str(node_id)

        def fits(event: Event) -> bool:
            data = event.data
            return event.kind == "text" and part in data["text"] and wanted in (None, data["node"])

        return str(self.wait_for(fits, timeout, since).data["text"])

    def close(self) -> None:
        def cancel() -> None:
            if self._task:
                self._task.cancel()

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(cancel)
        self._thread.join(5)

    # --- on the thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        try:
            async with aiohttp.ClientSession() as session:
                # aiohttp's default would drop a preview of more than 4 MiB.
                async with session.ws_connect(self._url, max_msg_size=0) as ws:
                    features = {"supports_preview_metadata": True}
                    await ws.send_json({"type": "feature_flags", "data": features})
                    self._ready.set()
                    async for message in ws:
                        self._take(message)
        except (aiohttp.ClientError, OSError, asyncio.CancelledError):
            pass  # ComfyUI has ended, or close() was called

    def _take(self, message: aiohttp.WSMessage) -> None:
        now = time.time_ns()
        if message.type is aiohttp.WSMsgType.TEXT:
            parsed = json.loads(message.data)
            event = Event(parsed["type"], parsed.get("data") or {}, now)
        elif message.type is aiohttp.WSMsgType.BINARY:
            event = _binary(message.data, now)
        else:
            return
        with self._news:
            self._events.append(event)
            self._news.notify_all()


def _binary(data: bytes, now: int) -> Event:
    kind, length = struct.unpack_from(">II", data)
    if kind == TEXT:
        node, text = data[8 : 8 + length], data[8 + length :]
        return Event("text", {"node": node.decode(), "text": text.decode()}, now)
    if kind == PREVIEW_WITH_METADATA:
        return Event("preview", json.loads(data[8 : 8 + length]), now, data[8 + length :])
    return Event("preview", {"format": length}, now, data[8:])
