"""The demo: Jumper's exchange and jobs between two real ComfyUI processes, timed and compared.

Run by `_demo.py` inside the environment that it made.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "comfy")]

import workflows  # noqa: E402
from _setup import cache_root, say  # noqa: E402
from comfyui import ComfyUI, free_port, start_all  # noqa: E402

PHOTO = ROOT / "tests" / "data" / "rocket.jpg"
PROMPT = "beautiful scenery nature glass bottle landscape, purple galaxy bottle"
LIMIT = 120  # seconds for one exchange
HEADINGS = ("passed", "from -> to", "bytes", "time", "GB/s", "equal")
RUN = {"here": "no", "on_failure": "stop", "quality": "exact"}
Node = dict[str, Any]


class Failed(Exception):
    """A workflow did not end well; the text says which and why."""


@dataclass(frozen=True)
class Row:
    """One line of the table. seconds: from the sender's go to the value in the receiver's hand."""

    what: str
    way: str
    size: int
    seconds: float
    equal: bool

    def cells(self) -> tuple[str, ...]:
        speed = self.size / self.seconds / 1e9
        # Of a thin line, too, there is something to see.
        rate = f"{speed:.2f}" if speed >= 0.1 else f"{speed:.2g}"
        rate = rate if self.size > 1 << 20 else "-"
        took = f"{self.seconds * 1000:.0f} ms"
        return self.what, self.way, f"{self.size:,}", took, rate, "yes" if self.equal else "NO"


class Exchange:
    """The two instances: ``local`` is Jumper's Client, ``remote`` its Server."""

    def __init__(self, local: ComfyUI, remote: ComfyUI, photo: str) -> None:
        self.local, self.remote = local, remote
        self.addr = f"127.0.0.1:{free_port()}"
        self.photo = node("LoadImage", image=photo)

    def examples(self) -> Row:
        """Jumper's own two example workflows, with the photograph in place of the sampling."""
        here, there = workflows.jumper_examples(
            self.local.object_info(), addr=self.addr, image=self.photo
        )
        here["12"] = node("SaveImage", images=["8", 0], filename_prefix="received")
        here["20"] = node("TestDigest", value=["8", 0])
        there["20"] = node("TestDigest", value=["8", 0])
        started = time.monotonic()
        ids = self.local.prompt(here), self.remote.prompt(there)
        received, sent = both(self.local, ids[0], self.remote, ids[1])
        seconds = time.monotonic() - started
        texts = [self.remote.ui(sent, i, "text") for i in ("6", "7")]
        equal = texts == [here[i]["inputs"]["string"] for i in ("9", "7")]
        digests = (self.local.ui(received, 20, "digest"), self.remote.ui(sent, 20, "digest"))
        size = self.local.ui(received, 20, "bytes") + sum(len(t.encode()) for t in texts)
        way = "both ways"
        return Row("Jumper's examples, whole", way, size, seconds, equal and len({*digests}) == 1)

    def text(self) -> Row:
        sender = self._sender(node("PrimitiveString", value=PROMPT))
        links = {"string": ["digest", 0], "order": ["go", 0]}
        sender["send"] = self._jumper("Send String", "Client", **links)
        receiver = self._receiver("Receive String", "Server")
        return self._timed("text", self.local, sender, self.remote, receiver)

    def pictures(self, what: str, send_as: str, batch: int = 1, size: int = 0) -> Row:
        value, extra = self.photo, {}
        if size:
            scale = {"upscale_method": "bicubic", "width": size, "height": size, "crop": "center"}
            extra["scaled"] = node("ImageScale", image=["photo", 0], **scale)
            extra["photo"] = self.photo
            value = node("RepeatImageBatch", image=["scaled", 0], amount=batch)
        sender = self._sender(value) | extra
        sender["send"] = self._jumper(
            "Send Images", "Server", images=["digest", 0], send_as=send_as, order=["go", 0]
        )
        receiver = self._receiver("Receive Images", "Client")
        return self._timed(f"{what}, {send_as}", self.remote, sender, self.local, receiver)

    def job(self, what: str, batch: int, size: int) -> Row:
        """Noise, made on the remote by "Run on Peers"; its equal is made here."""
        made = node("TestNoise", batch=batch, height=size, width=size, channels=3, seed=7)
        there = node("ZBusRun", value=["made", 0], peer=self.remote.url, **RUN)
        prompts = (
            {"made": made, "digest": node("TestDigest", value=["made", 0])},
            {"made": made, "run": there, "digest": node("TestDigest", value=["run", 0])},
        )
        shown = []
        for prompt in prompts:
            started = time.monotonic()
            entry = self.local.run(prompt, LIMIT)
            seconds = time.monotonic() - started
            if self.local.outcome(entry) != "success":
                raise Failed(f"the job failed:\n{self.local.errors(entry)}")
            shown.append(self.local.ui(entry, "digest", "digest"))
        way = "there and back"
        return Row(what, way, self.local.ui(entry, "digest", "bytes"), seconds, len({*shown}) == 1)

    def save(self, target: Path) -> None:
        """Copy the picture that the local ComfyUI saved."""
        found = max((self.local.base / "output").glob("received*.png"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(found, target)

    # --- details

    def _jumper(self, kind: str, mode: str, **inputs: Any) -> Node:
        return node(kind, addr=self.addr, mode=mode, **inputs)

    def _sender(self, value: Node) -> dict[str, Node]:
        """The value, its digest, and then the go, whose time is taken."""
        return {
            "value": value,
            "digest": node("TestDigest", value=["value", 0]),
            "zero": node("PrimitiveInt", value=0),
            "go": node("TestStamp", value=["zero", 0], after=["digest", 0]),
            "end": node("PreviewAny", source=["send", 0]),
        }

    def _receiver(self, kind: str, mode: str) -> dict[str, Node]:
        return {
            "receive": self._jumper(kind, mode),
            "come": node("TestStamp", value=["receive", 0]),
            "digest": node("TestDigest", value=["come", 0]),
        }

    def _timed(
        self,
        what: str,
        source: ComfyUI,
        sender: dict[str, Node],
        target: ComfyUI,
        receiver: dict[str, Node],
    ) -> Row:
        waiting = target.prompt(receiver)
        target.wait_running(waiting)
        time.sleep(0.5)  # the receiver waits already: what is timed is the way, not the wait
        sent, received = both(source, source.prompt(sender), target, waiting)
        nanoseconds = target.ui(received, "come", "time_ns") - source.ui(sent, "go", "time_ns")
        equal = target.ui(received, "digest", "digest") == source.ui(sent, "digest", "digest")
        size = target.ui(received, "digest", "bytes")
        return Row(what, f"{source.name} -> {target.name}", size, nanoseconds / 1e9, equal)


def both(
    first: ComfyUI, first_id: str, second: ComfyUI, second_id: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Wait for two prompts; if one fails say so at once, the other may wait for it in vain."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        entries = first.ended(first_id), second.ended(second_id)
        for comfyui, entry in zip((first, second), entries, strict=True):
            if entry and comfyui.outcome(entry) != "success":
                why = comfyui.errors(entry) or comfyui.outcome(entry)
                raise Failed(f"the workflow on {comfyui.name} failed:\n{why}")
        if entries[0] and entries[1]:
            return entries[0], entries[1]
        time.sleep(0.01)
    raise Failed(f"the workflows have not ended in {LIMIT} s")


def node(class_type: str, **inputs: Any) -> Node:
    return {"class_type": class_type, "inputs": inputs}


def table(rows: list[Row]) -> str:
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    left = (True, True, False, False, False, True)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


def rows_of(exchange: Exchange) -> list[Row]:
    return [
        exchange.examples(),
        exchange.text(),
        exchange.pictures("photograph", "png"),
        exchange.pictures("photograph", "zlib"),
        exchange.pictures("photograph", "raw"),
        exchange.pictures("64 pictures 512x512", "raw", batch=64, size=512),
        exchange.job("job: 1 picture 64x64", 1, 64),
        exchange.job("job: 8 pictures 1024x1024", 8, 1024),
    ]


def main(arguments: list[str]) -> int:
    photo = Path(arguments[0]).expanduser() if arguments else PHOTO
    if not photo.is_file():
        say(f"no such file: {photo}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    comfyui_dir = os.environ["COMFYUI_DIR"]
    home = tempfile.mkdtemp(prefix="zbus-demo-")  # of one user: they need no pairing
    env = {"ZBUS_HOME": str(Path(home) / "zbus")}
    local, remote = (ComfyUI(comfyui_dir, name=name, env=env) for name in ("local", "remote"))
    try:
        say("starting two ComfyUI processes on the CPU (10 to 30 s)")
        start_all(local, remote)
        say(f"local: {local.url}, remote: {remote.url}")
        # Only the remote has the picture: the local one can get it by the link alone.
        exchange = Exchange(local, remote, remote.put_input(photo, f"photo{photo.suffix}"))
        rows = rows_of(exchange)
        target = cache_root() / "demo" / "received.png"
        exchange.save(target)
    except Failed as failure:
        say(str(failure))
        return 1
    finally:
        say("stopping both")
        local.stop()
        remote.stop()
        shutil.rmtree(home, ignore_errors=True)
    print(f"\n{table(rows)}\n\nThe received picture: {target}", flush=True)
    return 0 if all(row.equal for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
