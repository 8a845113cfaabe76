"""How the sockets of a peer are made, bound and cut."""

from __future__ import annotations

import logging
import os
import socket

import zmq

from ..keys import KeyPair
from .zap import DOMAIN

logger = logging.getLogger(__name__)


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


def shutdown(fd: int, port: int) -> None:
    """Shut down the connection under a descriptor that belongs to ZeroMQ, through a copy. By now
    the number may be another's: so only one that ends at that port of this machine."""
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            if copy.getsockname()[1] == port:
                copy.shutdown(socket.SHUT_RDWR)
    except (OSError, IndexError) as error:  # IndexError: no socket of the internet
        logger.debug("shutdown of descriptor %d: %s", fd, error)
