"""Why ssh has not come through, by its own words, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import ConnectError, InputError, KeyChanged, NameNotResolved, Unreachable

HOST_KEY, LOGIN, FORWARDING = "host key", "logging in", "forwarding"  # stages that texts name

# Of a channel it says what the far ComfyUI does.
NOTES = re.compile(r"channel \d+: |Warning: Permanently added ")
NO_FORWARDING = (
    "its SSH server forbids to forward ports",
    "Have AllowTcpForwarding yes in /etc/ssh/sshd_config there; where the cloud has another way by "
    "SSH, take that one (RunPod: SSH over exposed TCP)",
)
# Words of ssh -> the error, where it was, what to say, what to do.
REASONS: tuple[tuple[str, type[ConnectError], str, str, str], ...] = (
    (
        "remote host identification has changed",
        KeyChanged,
        HOST_KEY,
        "it is not the machine that you knew under that address, or somebody pretends to be it",
        "If you know why (clouds give addresses to new machines): ssh-keygen -R {known}, and try "
        "again. If not, do not",
    ),
    (
        "host key verification failed",
        ConnectError,
        HOST_KEY,
        "its host key was not accepted",
        "Log in by hand once and answer yes, if its fingerprint is right: {by_hand}",
    ),
    (
        "could not resolve hostname",
        NameNotResolved,
        "",
        "that name is not known",
        "Check its spelling, or write the numeric address; a port is given with -p",
    ),
    (
        "connection refused",
        Unreachable,
        "",
        "nobody listens there: connection refused",
        "Check the port (-p), which clouds give anew at each start, and whether the machine is on",
    ),
    (
        "timed out",
        Unreachable,
        "",
        "no answer: timed out",
        "Check the address and the port (-p), and whether the machine is on",
    ),
    (
        "support pty",
        ConnectError,
        FORWARDING,
        "that is a proxy for terminals alone, which forwards no ports",
        "Take the direct way by SSH (RunPod: SSH over exposed TCP)",
    ),
    (
        "unprotected private key file",
        ConnectError,
        LOGIN,
        "ssh does not use a key that others may read",
        "Run: chmod 600 KEYFILE",
    ),
    (
        "permission denied",
        ConnectError,
        LOGIN,
        "it does not let you in: {last}",
        "Check the user's name and the key (-i KEYFILE), and that its public half is known to that "
        "machine or cloud. Try by hand: {by_hand}",
    ),
    ("administratively prohibited", ConnectError, FORWARDING, *NO_FORWARDING),
)


def reason(lines: Sequence[str], host: str, port: int) -> ConnectError:
    """What these words mean. What tells of no failure of ssh is left out."""
    lines = [line for line in lines if not NOTES.match(line)]
    said, last = "\n".join(lines).lower(), lines[-1] if lines else ""
    alias = host.rpartition("@")[2]
    words = {
        "known": f"'[{alias}]:{port}'" if port not in (0, 22) else alias,
        "by_hand": f"ssh -p {port} {host}" if port else f"ssh {host}",
        "last": last.rstrip("."),
    }
    where = shown_place(host, port)
    for sign, kind, stage, what, remedy in REASONS:
        if sign in said:
            what, remedy = what.format(**words), remedy.format(**words)
            return kind(what, peer=where, stage=stage, remedy=remedy)
    return Unreachable(
        last or "ssh has ended without a word",
        peer=where,
        remedy=f"Try it by hand: {words['by_hand']}",
    )


def forbidden(lines: Sequence[str], host: str, port: int) -> ConnectError | None:
    """The other side has refused to forward."""
    if not any("administratively prohibited" in line for line in lines):
        return None
    what, remedy = NO_FORWARDING
    return ConnectError(what, peer=shown_place(host, port), stage=FORWARDING, remedy=remedy)


def shown_place(host: str, port: int) -> str:
    """For texts."""
    return f"{host} port {port}" if port else host


def check_host(host: str) -> None:
    """Let pass what ssh takes as a host.

    Raises:
        InputError: It is none; or one of which it is known that it forwards nothing.
    """
    if not host or host.startswith("-") or not host.isprintable() or " " in host:
        raise InputError(
            f"{host[:80]!r} is no host",
            remedy="Write it as ssh takes it, such as root@65.108.33.12",
        )
    if host.rpartition("@")[2].lower() == "ssh.runpod.io":
        raise InputError(
            "ssh.runpod.io is a proxy for terminals alone, which forwards no ports",
            remedy='Take "SSH over exposed TCP" of the pod\'s Connect page: '
            "zbus-link root@ADDRESS -p PORT",
        )
