"""zbus: a ZeroMQ peer-to-peer tensor bus for ComfyUI.

::

    from zbus import Peer

    with Peer() as peer, peer.connect("127.0.0.1:8282") as channel:
        channel.send(tensor, order=0)
        answer = channel.receive(order=1)

Importing it has no effect: the I/O thread starts with the first `Peer`.
"""

from . import errors
from .errors import ZBusError
from .job import Job, Remote, Request
from .operation import Operation
from .peer import Peer
from .run import Channel, Run
from .settings import Settings

__version__ = "0.1.0"
DISTRIBUTION = "comfyui-bus"  # PyPI has a foreign `zbus`: this tells ours

__all__ = [
    "DISTRIBUTION",
    "Channel",
    "Job",
    "Operation",
    "Peer",
    "Remote",
    "Request",
    "Run",
    "Settings",
    "ZBusError",
    "__version__",
    "errors",
]
