"""The legs of the handshake: does zbus answer, in a version that fits, and is it the one meant?"""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeout  # not the builtin one before 3.11
from typing import Any

from ...address import Address
from ...errors import ConnectError, VersionMismatch
from ...peer import Probe
from ...printable import shown
from ...protocol.messages import VERSION, Hello
from ...remote import Remote
from ...wrong import wrong_peer
from .report import Report, try_leg


def meet(link: Probe, target: Address | Remote, timeout: float, report: Report) -> Hello:
    """Who answers, once all of it fits."""
    report.begin("handshake", "waiting")
    met = try_leg(
        report,
        "handshake",
        lambda: _hello(link, report.address, timeout),
        lambda met, _: _who(met) if isinstance(met, Hello) else "a zbus peer answers",
    )
    hello = try_leg(report, "version", lambda: _agreed(met), lambda *_: f"both speak {VERSION}")
    if isinstance(target, Remote):
        what = "the one meant, by its key"
        try_leg(report, "identity", lambda: _demand(target, hello), lambda *_: what)
    return hello


def _demand(target: Remote, hello: Hello) -> None:
    if not target.is_met_by(target.key, hello.instance, hello.name):
        raise wrong_peer(target, hello.name)


def _hello(link: Probe, address: str, timeout: float) -> Hello | VersionMismatch:
    try:
        return link.hello(timeout)
    except VersionMismatch as error:
        return error  # the handshake works, or the versions would not be known
    except (FutureTimeout, TimeoutError) as error:
        raise ConnectError(
            f"no answer to HELLO in {timeout:g} s ({link.problem()})",
            peer=address,
            remedy="That ComfyUI hangs or is very busy: look at its console, then try again",
        ) from error


def _agreed(met: Hello | VersionMismatch) -> Hello:
    if isinstance(met, VersionMismatch):
        raise met
    return met


def described(hello: Hello) -> dict[str, Any]:
    """For the JSON."""
    return {
        "name": shown(hello.name),
        "software": shown(hello.software),
        "protocol": list(hello.versions),
        "codecs": [shown(codec) for codec in hello.codecs],
        "pid": hello.pid,
    }


def _who(hello: Hello) -> str:
    who = (shown(hello.name), shown(hello.software), f"pid {hello.pid}")
    return ", ".join(part for part in who if part)
