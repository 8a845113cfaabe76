"""Where a listener listens: on its own host, and in the local network as long as that is wanted."""

from __future__ import annotations

import time

import zmq

from ..errors import PortInUse
from . import sockets
from .frames import Listener

BIND_TRIES, BIND_EVERY = 25, 0.02  # seconds: a listener that was closed frees its port later


def widen(listener: Listener, hosts: set[str]) -> None:
    """Listen on the same port of these numeric addresses too, and of no others. One that is
    "0.0.0.0" takes the place of the listener's own. Where listening ends, ZeroMQ cuts the
    connections that came that way; who has a session dials again.

    Raises:
        PortInUse: The system refuses one of them. The listener's own stands, unless somebody
            has taken its port this very moment: see `stands`.
    """
    try:
        for host in listener.other_hosts - hosts:
            listener.socket.unbind(sockets.endpoint(host, listener.port))
            listener.other_hosts.discard(host)
            if _is_every(host):
                listener.stands = False
        for host in hosts - listener.other_hosts - {listener.host}:
            _listen_too(listener, host)
        if not listener.stands:
            _stand(listener)
    except zmq.ZMQError as error:
        raise PortInUse(str(error)) from error


def _listen_too(listener: Listener, host: str) -> None:
    if _is_every(host) and listener.stands:
        listener.socket.unbind(sockets.endpoint(listener.host, listener.port))
        listener.stands = False
    try:
        listener.socket.setsockopt(zmq.IPV6, int(":" in host))
        _bind_again(listener.socket, sockets.endpoint(host, listener.port))
    except zmq.ZMQError:
        if not listener.stands:
            _stand(listener)
        raise
    listener.other_hosts.add(host)
    listener.stands = True


def _stand(listener: Listener) -> None:
    """Listen on its own host again."""
    own = sockets.endpoint(listener.host, listener.port)
    listener.socket.setsockopt(zmq.IPV6, int(":" in listener.host))
    _bind_again(listener.socket, own)
    listener.stands = True


def _is_every(host: str) -> bool:
    return host in ("0.0.0.0", "::")


def _bind_again(router: zmq.Socket[bytes], endpoint: str) -> None:
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
