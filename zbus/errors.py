"""Every exception that zbus raises, in one tree::

    ZBusError
    +-- LocalProtocolError        the caller used zbus wrongly
    +-- RemoteProtocolError       the peer sent what the protocol does not allow
    +-- InputError (ValueError)   an argument cannot be used; nothing was sent
    |   +-- InvalidAddress        not "host:port" or "listen:host:port"
    |   +-- InvalidOrder          an order below 0, or not an int
    |   +-- UnknownCodec          no codec or choice of that name
    |   +-- CodecRefused          this codec cannot carry this value (8-bit of a latent)
    |   +-- NotTransferable       a live object, or a value too deep or too large
    |   +-- UnknownPeer           no peer of that name is known here
    |   +-- BadToken              not a whole and rightly written pairing token
    +-- ConnectError              no link to the peer came about
    |   +-- NameNotResolved       the host name is unknown
    |   +-- Unreachable           refused, timed out, no route
    |   +-- NotZBus               something else answers on that port
    |   +-- ValuesOnly            a plain listener, where a peer's own was wanted
    |   +-- NobodyBehind          a tunnel accepts and closes: nobody listens at its far end
    |   +-- DialledSelf           that address is this very process
    |   +-- VersionMismatch       the two zbus versions have no protocol in common
    |   +-- PortInUse             the address to listen on is taken
    |   +-- ListenRefused         a plain listener off the loopback
    |   +-- WrongPeer             another peer answers than the one that was meant
    |   +-- NotPaired             one of the two sides does not know the other's key
    |   +-- KeyChanged            the key that was paired is not the one that answers
    |   +-- PairingFailed         an invitation was not taken
    +-- LinkError                 the link ended while something was open on it
    |   +-- LinkLost              not back within reconnect_wait
    |   +-- PeerRestarted         the peer's process is a new one
    |   +-- PeerGone              the peer said goodbye, or its process has ended
    +-- ChannelError              two runs did not fit together
    |   +-- Mismatch              the operations of the two chains do not pair
    |   +-- WrongNodes            Jumper's nodes here, zbus's own there
    |   +-- OperationPending      a second operation on one endpoint at a time
    |   +-- AmbiguousPeer         no peer named, and more than one connected
    |   +-- RunEnded              the other run ended: finished, failed or cancelled
    +-- TransferError             one value did not arrive
    |   +-- TransferRefused       the receiver would not take it (memory, type, its own cancel)
    |   +-- DigestMismatch        what arrived is not what was sent
    +-- FetchError                an HTTP answer that cannot be used
    +-- JobError                  a job for another peer came to nothing
    |   +-- NotPermitted          jobs are not allowed over this link
    |   +-- JobRefused            the prompt cannot run there; `reasons` says all that is wrong
    |   +-- JobFailed             a node failed there
    |   +-- JobCancelled          it was stopped there
    |   +-- RunsNoPrompts         that ComfyUI's page answers, and nothing runs there any more
    |   +-- QueueDeadlock         each side's running prompt waits for a job in the other's queue
    +-- TrustError                the keys or the list of the paired cannot be used
    +-- Cancelled                 cancelled on this side
    +-- TimedOut                  the caller's own deadline passed (also a TimeoutError)
    +-- PeerClosed                this process's own Peer was closed
    +-- InternalError             a fault of zbus, or of what it builds on; the log has all of it

The text of each says which peer, at which stage, what happened, and what to do.
"""

from __future__ import annotations

import copy

from .reasons import Reason

MAX_QUOTED = 300  # characters of a foreign error's text
REPORT = "The log of this ComfyUI says more; please report it with that"
OUT_OF_MEMORY = "Free memory on this side, or send less at once"
CERTIFICATE = (
    "If the certificate is your own, name its file in the environment variable SSL_CERT_FILE; "
    "or use an SSH tunnel"
)
RUN_AGAIN = "run again (with Send and Receive: both workflows)"  # a part has one workflow


class ZBusError(Exception):
    """Base of all zbus errors.

    Args:
        what: What happened, as one clause without a full stop.
        peer: The name or address of the peer it concerns, where there is one.
        stage: What was being done ("waiting for order 2", "sending").
        remedy: What the user can do about it, as a sentence.
    """

    def __init__(self, what: str, *, peer: str = "", stage: str = "", remedy: str = "") -> None:
        self.what, self.peer, self.stage, self.remedy = what, peer, stage, remedy
        super().__init__(self._text())

    def _text(self) -> str:
        where = ", ".join(part for part in (self.peer, self.stage) if part)
        text = f"{where}: {self.what}" if where else self.what
        return f"{text}. {self.remedy}" if self.remedy else text

    def at(self, *, peer: str = "", stage: str = "") -> ZBusError:
        """The same error with a peer and a stage, where it had none."""
        same = copy.copy(self)
        same.peer, same.stage = self.peer or peer, self.stage or stage
        same.args = (same._text(),)
        return same


class LocalProtocolError(ZBusError):
    """The caller used zbus wrongly: a bug on this side."""


class RemoteProtocolError(ZBusError):
    """The peer sent what the protocol does not allow. Ends that connection, and nothing else."""


class InputError(ZBusError, ValueError):
    """An argument cannot be used. Nothing was sent and nothing is lost."""


class InvalidAddress(InputError):
    """Not "host:port" or "listen:host:port"."""


class InvalidOrder(InputError):
    """An order is a whole number from 0 up."""


class UnknownCodec(InputError):
    """No codec and no choice has that name."""


class CodecRefused(InputError):
    """This codec cannot carry this value."""


class NotTransferable(InputError):
    """The value holds something that cannot travel; the text names its type and place."""


class UnknownPeer(InputError):
    """No peer of that name is known here."""


class BadToken(InputError):
    """Not a whole and rightly written pairing token."""


class ConnectError(ZBusError):
    """No link to the peer came about."""


class NameNotResolved(ConnectError):
    """The host name is unknown to the resolver."""


class Unreachable(ConnectError):
    """Nothing accepted the TCP connection."""


class NotZBus(ConnectError):
    """Something answers on that port which is not a zbus peer."""


class ValuesOnly(ConnectError):
    """A plain listener answers, which is for values only; a peer's own one was wanted."""


class NobodyBehind(ConnectError):
    """The port accepts and closes at once: a tunnel with nobody listening at its far end."""


class DialledSelf(ConnectError):
    """That address is this very process."""


class VersionMismatch(ConnectError):
    """The two zbus versions have no protocol version in common."""


class PortInUse(ConnectError):
    """The address to listen on is held by another program."""


class ListenRefused(ConnectError):
    """A plain listener is allowed on the loopback only."""


class WrongPeer(ConnectError):
    """Another peer answers at that address than the one that was meant."""


class NotPaired(ConnectError):
    """One of the two sides does not know the other's key."""


class KeyChanged(ConnectError):
    """Whoever answers does not have the key that was paired."""


class PairingFailed(ConnectError):
    """An invitation was not taken: used, too late, the wrong one, or nobody answers it."""


class LinkError(ZBusError):
    """The link ended while something was open on it."""


class LinkLost(LinkError):
    """The link broke and was not back within ``reconnect_wait``."""


class PeerRestarted(LinkError):
    """Another process answers in the peer's place: what was under way is gone with the old one."""


class PeerGone(LinkError):
    """The peer said goodbye, its process has ended, or it reads nothing of what is said to it."""


class ChannelError(ZBusError):
    """Two runs did not fit together."""


class Mismatch(ChannelError):
    """The operations of the two chains do not pair."""


class WrongNodes(ChannelError):
    """Jumper's nodes on one side, zbus's own on the other: they do not meet."""


class OperationPending(ChannelError):
    """A second operation was begun on an endpoint where one is still open."""


class AmbiguousPeer(ChannelError):
    """No peer was named and more than one is connected."""


class RunEnded(ChannelError):
    """The other run ended: it finished, failed or was cancelled; the text says which and why."""


class TransferError(ZBusError):
    """One value did not arrive."""


class TransferRefused(TransferError):
    """The receiver would not take the value."""


class DigestMismatch(TransferError):
    """What arrived is not what was sent."""


class FetchError(ZBusError):
    """An HTTP answer that cannot be used: a failure, too large, or not what was wanted."""


class JobError(ZBusError):
    """A job for another peer came to nothing."""


class NotPermitted(JobError):
    """Jobs are not allowed over this link."""


class JobRefused(JobError):
    """The prompt cannot run there.

    Attributes:
        reasons: Everything that is wrong with it.
    """

    reasons: tuple[Reason, ...] = ()


class JobFailed(JobError):
    """A node failed there.

    Attributes:
        node_id, class_type: Which node.
        exception_type, message, traceback: What it raised, as texts of the other side.
    """

    node_id = class_type = exception_type = message = traceback = ""


class JobCancelled(JobError):
    """It was stopped there, by its user or because this side had gone."""


class RunsNoPrompts(JobError):
    """The thread of that ComfyUI that runs prompts has ended, though its page still answers."""


class QueueDeadlock(JobError):
    """Each side's running prompt waits for a job in the other's queue."""


class TrustError(ZBusError):
    """The keys, or the list of those who are paired, cannot be read or written."""


class Cancelled(ZBusError):
    """Cancelled on this side."""


class TimedOut(ZBusError, TimeoutError):
    """The caller's own deadline passed."""


class PeerClosed(ZBusError):
    """This process's own Peer was closed."""


class InternalError(ZBusError):
    """A fault of zbus itself, or of what it builds on (torch, a codec): the log has all of it."""

    @classmethod
    def of(cls, error: BaseException, *, remedy: str = "") -> InternalError:
        """What was raised, as one of ours."""
        said = str(error).strip().partition("\n")[0][:MAX_QUOTED]
        name = type(error).__name__
        # torch's own is a RuntimeError, and only known by its name where torch is not loaded.
        if isinstance(error, MemoryError) or name in ("OutOfMemoryError", "AcceleratorError"):
            is_full = name != "AcceleratorError" or "out of memory" in said
            name = "out of memory" if is_full else name
            remedy = remedy or (OUT_OF_MEMORY if is_full else "")
        made = cls(f"{name}: {said}" if said else name, remedy=remedy or REPORT)
        made.__cause__ = error
        return made
