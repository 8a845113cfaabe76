"""A TCP socket on the loopback, plain or with TLS: sendall, recv_into, one byte back."""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
from pathlib import Path
from typing import Any

from ..buffers import Buffers
from ..values import plain
from .way import LIMIT, Way

SIZE = struct.Struct("<Q")
PIECE = 1 << 20  # bytes; TLS takes no more than 16 KiB of it at a time anyway
KEY = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"


class Socket(Way):
    """`kind` is "plain" or "tls"."""

    _link: socket.socket

    def __init__(self, kind: str, folder: Path) -> None:
        super().__init__(kind, folder)
        self._buffers = Buffers()

    def open(self) -> dict[str, Any]:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(LIMIT)
        return {"port": self._server.getsockname()[1]}

    def join(self, told: dict[str, Any]) -> dict[str, Any]:
        link = socket.create_connection((told.get("host", "127.0.0.1"), told["port"]), LIMIT)
        self._begin(link)
        if self.kind == "tls":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            # The handshake needs the other side, which begins it once this has returned.
            self._link = context.wrap_socket(link, do_handshake_on_connect=False)
        return {}

    def meet(self, told: dict[str, Any]) -> None:
        link, _ = self._server.accept()
        self._server.close()
        self._begin(link)
        if self.kind == "tls":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate(self.folder))
            self._link = context.wrap_socket(link, True, do_handshake_on_connect=False)

    def _begin(self, link: socket.socket) -> None:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.settimeout(LIMIT)
        self._link = link

    def prepare(self, value: Any) -> None:
        self.value = plain(value)

    def send(self) -> None:
        self._link.sendall(SIZE.pack(len(self.value)))
        self._link.sendall(self.value)
        if not self._link.recv(1):
            raise ConnectionError("the other side has gone")

    def receive(self, memory: str) -> Any:
        into = self._take(memory)
        self._link.sendall(b"\1")
        return into

    def _take(self, memory: str) -> memoryview:
        head = bytearray(SIZE.size)
        self._fill(memoryview(head))
        into = self._buffers.take(SIZE.unpack(head)[0], memory)
        self._fill(into)
        return into

    def _fill(self, into: memoryview) -> None:
        done = 0
        while done < len(into):
            got = self._link.recv_into(into[done:])
            if not got:
                raise ConnectionError("the other side has gone")
            done += got

    def clear(self) -> None:
        super().clear()
        self._buffers.drop()

    def close(self) -> None:
        self._link.close()


def tls_is_missing() -> str:
    return "" if shutil.which("openssl") else "openssl, which makes its certificate"


def certificate(folder: Path) -> Path:
    """A certificate of this run's own, with its key in the same file."""
    file = folder / "own.pem"
    if not file.exists():
        places = ["-subj", "/CN=127.0.0.1", "-keyout", str(file), "-out", str(folder / "cert.pem")]
        subprocess.run([*KEY.split(), *places], check=True, capture_output=True, timeout=LIMIT)
        with file.open("ab") as whole:
            whole.write((folder / "cert.pem").read_bytes())
    return file
