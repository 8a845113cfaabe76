"""A machine that zbus-link logs in to: an sshd of the test's own, and who runs there."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from children import Child
from comfyui import free_port
from sshd import Sshd

from zbus.trust import Trust

# Who is missed is waited for and looked for in seconds, where people have it take ten.
LINK = """
    import argparse
    import sys
    from zbus.cli import link
    link.FIND_SOON = link.PATIENCE = 1.0
    parser = argparse.ArgumentParser("zbus-link")
    link.arguments(parser)
    sys.exit(link.run(parser.parse_args()))
"""
# A ComfyUI as far as zbus-link can see. Its jobs give 48 MiB that the seed makes.
COMFYUI = """
    import sys
    import torch
    from jobpair import Host
    from zbus import Peer, discovery
    from zbus.keys import to_text

    name, port = sys.argv[1], int(sys.argv[2])

    def work(job):
        job.started()
        job.result("made", torch.rand(12 << 20, generator=torch.Generator().manual_seed(7)))
        job.done()

    peer = Peer(name, instance=name)
    address = peer.serve(Host(work), port)
    key = to_text(peer.trust.keys.public)
    instance = peer.own.instance.hex()
    discovery.register(discovery.Entry.of_this_process(instance, name, address, key=key))
    print("there", address, flush=True)
    sys.stdin.read()
"""


class Cloud:
    """A machine that one logs in to, and who runs on it."""

    def __init__(self, folder: Path, here: Path, home: Path, *more: str) -> None:
        (folder / "sshd").mkdir()
        self.sshd = Sshd(folder / "sshd", f"SetEnv ZBUS_HOME={home}", *more)
        self.here, self.home = here, home
        self.children: list[Child] = []

    def comfyui(self, name: str = "box-8188", port: int = 0) -> Child:
        child = Child(COMFYUI, name, port or free_port(), env={"ZBUS_HOME": str(self.home)})
        self.children.append(child)
        child.line("there")
        return child

    def link(self, *more: str, env: dict[str, str] | None = None) -> Child:
        """A zbus-link that begins."""
        words = [*self.sshd.options, *more, f"{self.sshd.user}@127.0.0.1"]
        child = Child(LINK, *words, env={"ZBUS_HOME": str(self.here), **(env or {})})
        self.children.append(child)
        return child

    def up(self, *more: str, env: dict[str, str] | None = None) -> Child:
        """One that is up, and whose ComfyUI answers."""
        child = self.link(*more, env=env)
        child.line("link up")
        child.line(" answers")
        return child

    @property
    def trust(self) -> Trust:
        return Trust(self.here)

    def processes(self) -> dict[int, str]:
        """Every ssh that logs in there, and its keeper; not zbus-link itself."""
        found = {}
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if not folder.name.isdigit():
                    continue
                words = (folder / "cmdline").read_bytes().decode(errors="replace")
                if f"{self.sshd.folder}/user" in words and "FIND_SOON" not in words:
                    found[int(folder.name)] = words
        return found

    def ssh(self) -> int:
        """The ssh that holds the connection."""
        return next(p for p, words in self.processes().items() if "keeper.py" not in words)

    def close(self) -> None:
        for child in self.children:
            child.kill()
        self.sshd.close()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
