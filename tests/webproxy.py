"""A real reverse proxy before an HTTP server: Debian's nginx, and a certificate for it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import until

PATIENCE = 20.0
USER, PASSWORD = "me", "s3cret"  # of /comfy/


def make_certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key beside it (.key)."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    file = folder / "own.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    places = ["-keyout", str(file.with_suffix(".key")), "-out", str(file)]
    subprocess.run([*command.split(), *names, *places], check=True, capture_output=True)
    return file


CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} {tls};
        location /comfy/ {{
            proxy_pass http://127.0.0.1:{behind}/;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header Host $host;
            proxy_read_timeout {silence}s;
            auth_basic "comfy";
            auth_basic_user_file {folder}/users;
        }}
        location /plain/ {{
            proxy_pass http://127.0.0.1:{behind}/;
        }}
        location /gone/ {{
            proxy_pass http://127.0.0.1:1/;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(
    folder: Path, behind: int, certificate: Path, *, port: int = 0, silence: int = 60
) -> Iterator[str]:
    """nginx as this user, with TLS, before the HTTP server at `behind`: where it is ("host:port").

    /comfy/ wants a login and passes WebSockets on, /plain/ does not pass them, behind /gone/ is
    nobody.

    Args:
        port: Default a free one.
        silence: Seconds after which it cuts a connection on which nothing comes.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    with socket.create_server(("127.0.0.1", port)) as free:
        port = free.getsockname()[1]
    key = certificate.with_suffix(".key")
    tls = f"ssl; ssl_certificate {certificate}; ssl_certificate_key {key}"
    hashed = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
    (folder / "users").write_text(f"{USER}:{{SHA}}{hashed}\n")
    text = CONFIG.format(folder=folder, port=port, behind=behind, tls=tls, silence=silence)
    (folder / "nginx.conf").write_text(textwrap.dedent(text))
    folder.chmod(0o755)
    for parent in (folder.parent, folder.parent.parent, certificate.parent):
        parent.chmod(0o755)  # where root runs this, nginx's worker is another user
    errors = ["-e", str(folder / "start.log")]
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), *errors]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            _wait_until_up(process, port)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    def is_up() -> bool:
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.fail(f"nginx ended: {process.stderr.read().decode()}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        return False

    until(is_up, PATIENCE, "nginx does not listen")
