"""Start one ComfyUI for each GPU of this machine, and keep them until Ctrl-C.

Each is a worker for the nodes "Run on Peers" and for zbus-farm, found by its name. All share the
models, the custom nodes and the input folder of the ComfyUI that they are started from; each has
its own port, output, user folder and log. A GPU that another ComfyUI works on already is better
left out: --gpus 1. What follows -- is given to every ComfyUI::

    zbus-up
    zbus-up --gpus 0,1 -- --lowvram
    zbus-up --cpu 2

Prints a table when all are ready, then runs on and tells when one ends. All are ended with
zbus-up, however it ends. Exit status: 0 if all came up and you ended them, 1 if not, 2 for
arguments that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from .. import discovery
from ..errors import InputError, ZBusError
from ..job import Remote
from ..operation import size_text
from ..peer import Peer
from ..printable import printable
from .pinging.jobs import told_memory
from .starting import keeper, places
from .starting.devices import ALL, CPU, Device, gpus
from .starting.worker import Worker

NAME = "up"
HELP = "start one ComfyUI for each GPU here"
FIRST_PORT = 8189  # 8188 is where a ComfyUI of one's own is
MAX_CPUS = 32
LOOK_EVERY = 0.25  # seconds, while one starts
IDLE = 1.0  # seconds: on Windows a Ctrl-C is seen between two waits only
WITHOUT_ZBUS = 5.0  # seconds from an open page to a peer, which is there before the page
ENDING = keeper.GRACE + keeper.KILL_TIME + 5.0
SHOWN = 5  # ports in a text
HEADINGS = ("name", "port", "device", "memory")
ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # not every system has all


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--gpus", metavar="all|0,1", default=ALL, help="on which, as nvidia-smi counts them (all)"
    )
    which.add_argument("--cpu", metavar="N", type=_count, help="that many without a GPU, to try")
    parser.add_argument("--port", type=_port, default=FIRST_PORT, help="of the first (8189)")
    parser.add_argument("--comfyui", metavar="DIR", default="", help="the folder of its main.py")
    parser.add_argument("--python", metavar="PROGRAM", default="", help="ComfyUI's, if not this")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="for their own folders and logs")
    parser.add_argument("--restart", action="store_true", help="start one that ends again")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=300.0, help="to come up (300)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object when ready")
    parser.add_argument("more", metavar="-- ARGUMENTS", nargs="*", help="for each ComfyUI")


def run(given: argparse.Namespace) -> int:
    """Start them, keep them, end them; returns the exit status."""
    try:
        workers = prepared(given)
    except (ZBusError, OSError) as error:
        complain(str(error))
        return 2
    for line in _other_names(given.port, [worker.port for worker in workers]):
        complain(line)
    with Peer("zbus-up") as peer:
        return Keeping(workers, peer, given).run()


def prepared(given: argparse.Namespace) -> list[Worker]:
    """What is to be started, with the folders made.

    Raises:
        InputError: An argument cannot be used.
        OSError: There is no folder for zbus.
    """
    places.check(given.more)
    comfyui, python = places.comfyui(given.comfyui), places.python(given.python)
    devices = [CPU] * given.cpu if given.cpu else gpus(given.gpus, python)
    root = given.folder.expanduser().absolute() if given.folder else discovery.home() / "up"
    ports = places.free_ports(given.port, len(devices))
    workers = []
    for port, device in zip(ports, devices, strict=True):
        folder = root / str(port)
        places.make_folders(folder)
        command = places.command(python, comfyui / "main.py", port, folder, device, given.more)
        worker = Worker(port, device, command, _variables(device), folder)
        try:
            worker.log.write_bytes(b"")
        except OSError as error:
            raise InputError(
                f"{worker.log} cannot be written: {error.strerror}",
                remedy="Give another place: --folder FOLDER",
            ) from error
        workers.append(worker)
    return workers


def _other_names(first: int, ports: Sequence[int]) -> Iterator[str]:
    """Workflows name ComfyUIs by their ports: another port than the last time is told."""
    taken = [str(port) for port in range(first, ports[-1]) if port not in ports]
    if taken:
        names = ", ".join(f"...-{port}" for port in ports)
        yield (
            f"in use: {', '.join(taken[:SHOWN])}{', ...' if len(taken) > SHOWN else ''}. A name "
            f"goes by the port, so the names are {names}. For those of before end what has these "
            "ports, wait until it has ended, and start again"
        )


def _variables(device: Device) -> dict[str, str]:
    variables = {
        "PYTHONUNBUFFERED": "1",  # what it says last is in its log
        "PYTHONIOENCODING": "utf-8",
        "ZBUS_JOBS": "1",
        **device.variables,
    }
    if os.environ.get("ZBUS_HOME"):
        variables["ZBUS_HOME"] = str(discovery.home())
    return variables


class Keeping:
    """All workers, from the start to the end."""

    def __init__(self, workers: list[Worker], peer: Peer, given: argparse.Namespace) -> None:
        self._workers, self._peer, self._given = workers, peer, given
        # Not another kind of queue: signal handlers put into it.
        self._events: SimpleQueue[tuple[Worker | None, str]] = SimpleQueue()
        self._told = False  # the table has been printed
        self._asked = False  # to end, by who has started this
        self._opened: dict[Worker, float] = {}

    def run(self) -> int:
        """Until a signal comes or none is left; returns the exit status."""
        for name in ENDINGS:
            number = getattr(signal, name, None)
            # nohup has had SIGHUP ignored; a shell's & does that to SIGINT, and is not meant.
            nohup = name == "SIGHUP" and number and signal.getsignal(number) == signal.SIG_IGN
            if number and not nohup:
                signal.signal(number, lambda *_: self._events.put((None, "signal")))
        logs = [worker.log for worker in self._workers]
        log = logs[0] if len(logs) == 1 else logs[0].parent.parent / "PORT" / logs[0].name
        self._say(f"starting {_plural(len(logs))}; what each says is in {log}")
        try:
            for worker in self._workers:
                worker.start(self._tell)
            while self._turn():
                pass
        finally:
            self._end()
        return 0 if self._asked and all(worker.was_up for worker in self._workers) else 1

    # --- while they run

    def _turn(self) -> bool:
        """Wait for what happens next, and see to it. False: this is over."""
        starting = any(self._is_open(worker) for worker in self._workers)
        worker, text = self._next(LOOK_EVERY if starting else IDLE)
        if text == "signal":
            self._asked = True
            return False
        if worker is not None and worker.heard(text):
            self._ended(worker)
        entries = discovery.peers() if starting else []
        for worker in self._workers:
            self._look(worker, entries)
        if not self._told and not any(self._is_open(worker) for worker in self._workers):
            self._told = True
            self._report()
        return any(worker.runs or worker.again is not None for worker in self._workers)

    def _next(self, timeout: float) -> tuple[Worker | None, str]:
        try:
            return self._events.get(timeout=timeout)
        except Empty:
            return None, ""

    def _tell(self, worker: Worker, line: str) -> None:
        self._events.put((worker, line))

    @staticmethod
    def _is_open(worker: Worker) -> bool:
        """Whether it is yet to be seen what becomes of it."""
        return worker.facts is None and (worker.runs or worker.again is not None)

    def _look(self, worker: Worker, entries: list[discovery.Entry]) -> None:
        if worker.again is not None and time.monotonic() >= worker.again:
            worker.start(self._tell)
        if not worker.runs or worker.facts is not None or worker.why:
            return
        url = f"http://127.0.0.1:{worker.port}"
        worker.entry = next((entry for entry in entries if entry.url == url), worker.entry)
        try:
            if worker.asked is not None:
                self._hear(worker)
            elif worker.entry is not None:
                entry = worker.entry
                remote = Remote(entry.address, entry.instance, entry.name)
                worker.asked = self._peer.enquire(remote)
            else:
                self._demand_zbus(worker)
            if worker.facts is None and worker.age > self._given.timeout:
                raise ZBusError(
                    f"has not come up in {self._given.timeout:g} s",
                    remedy="See its log; a slow disk may want a longer --timeout",
                )
        except ZBusError as error:
            worker.why = f"is ended: {error}"
            worker.end()

    def _hear(self, worker: Worker) -> None:
        """What it answers, once it does.

        Raises:
            ZBusError: It does not, or takes no jobs.
        """
        assert worker.asked is not None
        if not worker.asked.done():
            return
        facts = worker.asked.result()
        if facts.get("jobs") is not True:
            raise ZBusError(
                "it does not take jobs of this user",
                remedy="Look who runs that port: zbus-ping --discover",
            )
        worker.facts, back, worker.was_up = facts, worker.was_up, True
        self._say(f"{worker} is {'back' if back else 'ready'} after {worker.age:.1f} s")

    def _demand_zbus(self, worker: Worker) -> None:
        """
        Raises:
            ZBusError: ComfyUI's page has been open for a while, and zbus is not there.
        """
        if worker not in self._opened:
            try:
                socket.create_connection(("127.0.0.1", worker.port), 0.1).close()
            except OSError:
                return
            self._opened[worker] = time.monotonic()
        elif time.monotonic() - self._opened[worker] > WITHOUT_ZBUS:
            raise ZBusError(
                "that ComfyUI runs without zbus",
                remedy=f"Put zbus into its custom_nodes and see what {worker.log} says of it",
            )

    def _ended(self, worker: Worker) -> None:
        """Tell it, with the end of its log; and have it started again if that is wanted."""
        self._opened.pop(worker, None)
        worker.why, worker.facts = worker.why or worker.ended(), None
        lines = worker.last_lines()
        log = f". The end of {worker.log}:" if lines else f". It has left nothing in {worker.log}"
        complain("\n    ".join([f"{worker} {worker.why}{log}", *lines]))
        if self._given.restart and worker.was_up:
            complain(f"port {worker.port} is started again in {worker.start_later():.0f} s")

    # --- for people

    def _say(self, text: str) -> None:
        file = sys.stderr if self._given.json else sys.stdout
        print(printable(f"zbus-up: {text}", file), file=file, flush=True)

    def _report(self) -> None:
        """The table, or the JSON, of what has come up."""
        ready = [worker for worker in self._workers if worker.facts is not None]
        if self._given.json:
            print(json.dumps(as_json(self._workers), indent=2), flush=True)
        elif ready:
            print(printable(f"\n{table(ready)}\n", sys.stdout), flush=True)
        if len(ready) < len(self._workers):
            complain(f"{len(ready)} of {_plural(len(self._workers))} came up")
        if ready:
            self._say("Ctrl-C ends " + ("it" if len(ready) == 1 else "them all"))

    # --- the end

    def _end(self) -> None:
        """End all that runs; a second Ctrl-C ends it at once."""
        for worker in self._workers:
            worker.end()
        left = [worker for worker in self._workers if worker.runs]
        if not left:
            return
        self._say(f"ending {_plural(len(left))}")
        deadline = time.monotonic() + ENDING
        while any(worker.runs for worker in left) and time.monotonic() < deadline:
            speaker, text = self._next(IDLE)
            if text == "signal":
                for worker in left:
                    worker.kill()
            elif speaker is not None:
                speaker.heard(text)
        for worker in left:
            worker.kill()
        gone = not any(worker.runs for worker in left)
        self._say("all ended" if gone else "not all have ended; they do when they can")


def as_json(workers: Sequence[Worker]) -> dict[str, Any]:
    """What has come up, and what has not."""
    return {
        "ok": all(worker.facts is not None for worker in workers),
        "workers": [
            {
                "name": worker.entry.name if worker.entry else None,
                "port": worker.port,
                "url": f"http://127.0.0.1:{worker.port}",
                "address": worker.entry.address if worker.entry else None,
                "device": str(worker.device),
                "memory": _device(worker),
                "pid": worker.pid or None,
                "folder": str(worker.folder),
                "log": str(worker.log),
                "ok": worker.facts is not None,
                "error": worker.why or None,
            }
            for worker in workers
        ],
    }


def table(workers: Sequence[Worker]) -> str:
    """Who is where, and with which device and memory."""
    rows = [HEADINGS, *map(_row, workers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in line).rstrip() for line in lines
    )


def _row(worker: Worker) -> tuple[str, ...]:
    memory, device = _device(worker), str(worker.device)
    if memory is not None and not worker.device.name and worker.device.number:
        device = f"{device}: {memory['name']}"
    free = f"{size_text(memory['free'])} of {size_text(memory['total'])} free" if memory else "?"
    return worker.entry.name if worker.entry else "?", str(worker.port), device, free


def _device(worker: Worker) -> dict[str, Any] | None:
    """The device as it has told it itself."""
    told = (worker.facts or {}).get("devices")
    return told_memory(told[0]) if isinstance(told, list) and told else None


def _plural(count: int) -> str:
    return f"{count} ComfyUI" + "s" * (count != 1)


def complain(text: str) -> None:
    print(printable(f"zbus-up: {text}", sys.stderr), file=sys.stderr, flush=True)


# --- arguments ----------------------------------------------------------------------------------


def _whole(written: str, least: int, most: int, what: str) -> int:
    if not (written.isascii() and written.isdigit() and least <= int(written[:9]) <= most):
        raise argparse.ArgumentTypeError(f'"{written}" is not {what} from {least} to {most}')
    return int(written)


def _count(written: str) -> int:
    return _whole(written, 1, MAX_CPUS, "a count")


def _port(written: str) -> int:
    return _whole(written, 1, places.LAST_PORT, "a port")


def _seconds(written: str) -> float:
    return float(_whole(written, 1, 86400, "a time in whole seconds"))
