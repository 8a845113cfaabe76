"""How the sockets of a peer are made, bound and cut."""

from __future__ import annotations

import logging
import os
import socket
import time

import zmq

from ..keys import KeyPair
from .zap import DOMAIN

logger = logging.getLogger(__name__)

BIND_TRIES, BIND_EVERY = 25, 0.02  # seconds: a listener that was closed frees its port later


def make(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    host: str,
    keys: KeyPair | None,
    max_frame: int,
) -> zmq.Socket[bytes]:
    """A ROUTER or DEALER for that numeric address; with keys, one that speaks CURVE."""
    made = context.socket(kind)
    if keys is not None:
        made.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        made.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        made.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, int(kind == zmq.ROUTER))
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.IPV6, int(":" in host))
    made.setsockopt(zmq.MAXMSGSIZE, max_frame)
    made.setsockopt(zmq.SNDHWM, 0)  # grants bound it
    made.setsockopt(zmq.RCVHWM, 16)
    made.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
    made.setsockopt(zmq.TCP_MAXRT, 120_000)  # shorter would cut a live peer that is deaf
    made.setsockopt(zmq.TCP_KEEPALIVE, 1)
    made.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    made.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 10)
    made.setsockopt(zmq.TCP_KEEPALIVE_CNT, 6)
    # Without one a ROUTER accepts ZMTP 1.0, and so an HTTP form's body.
    made.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    return made


def endpoint(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port or '*'}" if ":" in host else f"tcp://{host}:{port or '*'}"


def is_every(host: str) -> bool:
    return host in ("0.0.0.0", "::")


def bind_again(router: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind where this process may just have stopped listening.

    Raises:
        zmq.ZMQError: The system refuses the address.
    """
    for remaining in range(BIND_TRIES, -1, -1):
        try:
            router.bind(endpoint)
            return
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or not remaining:
                raise
        time.sleep(BIND_EVERY)


def shutdown(fd: int, port: int) -> None:
    """Shut down the connection under a descriptor that belongs to ZeroMQ, through a copy. By now
    the number may be another's: so only one that ends at that port of this machine."""
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            if copy.getsockname()[1] == port:
                copy.shutdown(socket.SHUT_RDWR)
    except (OSError, IndexError) as error:  # IndexError: no socket of the internet
        logger.debug("shutdown of descriptor %d: %s", fd, error)
