"""Pair two computers, once, and say what each may do on the other.

On one of them "invite" prints a token; on the other "accept" asks for it. The one that invites lets
the other pass values to its workflows and run workflows on it; the one that accepts lets the first
only pass values ("permit" changes that). What ComfyUIs of one user on one computer do with each
other needs no pairing. A ComfyUI that runs sees every change at once. Exit status: 0 if it was
done, 1 if not, 2 for arguments that cannot be used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import BadToken, InputError, ZBusError
from ..keys import fingerprint, from_text, to_text
from ..nudging import nudge
from ..pairing import reach
from ..pairing.accepting import TIMEOUT, accept
from ..pairing.hellos import ACCEPTER_GRANTS, INVITER_GRANTS, is_loopback
from ..pairing.invitation import LIFETIME
from ..pairing.inviting import Inviting
from ..pairing.offers import Offer, as_json, own_as_json, own_name, shown
from ..pairing.tokens import Token, has_more
from ..principals import EVERY_HOST
from ..printable import printable
from ..trust import EXCHANGE, JOBS, PERMISSIONS, Peers, Principal, Trust
from .endings import interrupt_once, signals

NAME = "pair"
HELP = "pair two computers, and say what each may do on the other"
WORDS = {EXCHANGE: "pass values to running workflows", JOBS: "run workflows"}
ON_OFF = ("on", "off")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    verbs = parser.add_subparsers(metavar="VERB")
    parser.set_defaults(verb=lambda _: parser.error(_which(verbs.choices)))

    def verb(name: str, work: Callable[[argparse.Namespace], None], help: str) -> Any:
        made = verbs.add_parser(name, help=help, description=help)
        made.set_defaults(verb=work)
        return made

    added = verb("invite", _invite, "print a token with which another computer pairs with this one")
    where = added.add_mutually_exclusive_group()
    where.add_argument(
        "--lan", action="store_true", help="reachable in the local network, for paired peers alone"
    )
    where.add_argument(
        "--at",
        metavar="HOST:PORT",
        nargs="?",
        const="",
        help="the address under which this computer is reached from elsewhere; without one, as "
        "RunPod's and vast.ai's environment variables say",
    )
    added.add_argument("--port", type=_port, default=0, help=f"to listen on ({reach.PORT})")
    added.add_argument("--name", default="", help="what to call the other one")

    added = verb("accept", _accept, "take another computer's token")
    added.add_argument(
        "token",
        metavar="TOKEN",
        nargs="*",
        help="as the other one shows it. Better without: then it is asked for, and stands neither "
        "in the shell's history nor in the list of what runs",
    )
    added.add_argument("--name", default="", help="what to call the other one")
    added.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=TIMEOUT, help=f"({TIMEOUT:g})"
    )

    added = verb("list", _list, "list who is paired")
    added.add_argument("--json", action="store_true", help="print one JSON object instead")

    added = verb("rename", _rename, "call one otherwise")
    added.add_argument("name", metavar="OLD")
    added.add_argument("new", metavar="NEW")

    added = verb("move", _move, "say where one is reached now")
    added.add_argument("name", metavar="NAME")
    added.add_argument(
        "addresses", metavar="ADDRESS", nargs="+", help='"host:port", or the URL of its ComfyUI'
    )
    added.add_argument("--peer", default="", help="which of its ComfyUIs, if it has several")

    added = verb("permit", _permit, "say what one may do on this computer")
    added.add_argument("name", metavar="NAME")
    added.add_argument("permissions", metavar="PERMISSIONS", help=_permissions.__doc__)

    added = verb("forget", _forget, "trust one no longer: its connections end at once")
    added.add_argument("name", metavar="NAME")

    added = verb("fingerprint", _fingerprint, "show this user's own fingerprint on this computer")
    added.add_argument("--json", action="store_true", help="print one JSON object instead")

    added = verb("trust", _trust, "trust a public key that came in a way that is safe already")
    added.add_argument("key", metavar="KEY", help='of "fingerprint" on the other one')
    added.add_argument("--name", required=True, help="what to call it")
    added.add_argument("--permit", default="none", help=_permissions.__doc__)
    added.add_argument(
        "--address",
        metavar="[PEER=]ADDRESS",
        action="append",
        default=[],
        help="where its ComfyUI is reached; repeat it for more",
    )
    added.add_argument("--json", action="store_true", help="print one JSON object instead")

    added = verb("require", _require, "let nobody in without pairing, not even on the loopback")
    added.add_argument("flag", choices=ON_OFF)
    added = verb("lan", _lan, "listen in the local network, for paired peers alone")
    added.add_argument("host", metavar="on|off|HOST")


def _which(verbs: Iterable[str]) -> str:
    return f"what is to be done? One of: {', '.join(verbs)}. Each is told by zbus-pair --help"


def run(given: argparse.Namespace) -> int:
    """Do it, print, and return the exit status."""
    try:
        given.verb(given)
        if given.verb not in (_invite, _accept, _list, _fingerprint):
            nudge(Trust())
    except InputError as error:
        _complain(error)
        return 2
    except ZBusError as error:
        _complain(error)
        return 1
    return 0


def _complain(error: ZBusError) -> None:
    print(printable(f"zbus-pair: {error}", sys.stderr), file=sys.stderr)


def _say(*lines: str) -> None:
    for line in lines:
        print(printable(line, sys.stdout), flush=True)


# --- pairing --------------------------------------------------------------------------------------


def _invite(given: argparse.Namespace) -> None:
    trust = Trust()
    trust.keys  # noqa: B018  # or why there are none, before anything is opened
    offer = Offer(given.lan, given.at, given.port)
    was_open = bool(trust.lan) and not trust.is_lan_lent
    try:
        # The end of a session, or a terminal that is closed, is no reason to leave the LAN open.
        with signals(interrupt_once), offer.opened(trust) as where:
            name = own_name(not offer.is_public)
            with Inviting(trust, where, given.name, name) as inviting:
                _say_invitation(trust, inviting, offer.is_public)
                paired = inviting.serve()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # that terminal is there no longer
            _say("", "Cancelled: the token counts no longer.")
        raise
    _say_paired(trust, paired, INVITER_GRANTS | paired.permissions, ACCEPTER_GRANTS)
    if offer.is_public and trust.lan and not was_open:
        _say("", "This computer's ComfyUIs now listen in the network, for paired peers alone;")
        _say("zbus-pair lan off  closes that.")
    if not inviting.confirmed:
        _say("", f'"{paired.name}" has not said that it knows: look at  zbus-pair list  there.')


def _say_invitation(trust: Trust, inviting: Inviting, is_public: bool) -> None:
    hints = ", ".join(map(str, Token.read(inviting.token).hints))
    _say(f"Waiting at {hints} for {LIFETIME / 60:g} minutes; Ctrl-C ends it.")
    if not is_public:
        _say("That is reached by other users of this computer, and through a tunnel to that port;")
        _say("from the local network: invite --lan; from elsewhere: invite --at HOST:PORT")
    _say(f"This computer's fingerprint: {fingerprint(trust.keys.public)}", "")
    where = "On the other computer" if is_public else "On the other side"
    _say(f"{where} run  zbus-pair accept  and paste this token when it asks for it")
    _say("(whoever has the token can pair with you, once):", "", inviting.token, "")


def _accept(given: argparse.Namespace) -> None:
    trust = Trust()
    token = " ".join(given.token) or _asked()
    is_local = all(hint.is_loopback for hint in Token.read(token).hints)
    try:
        paired = accept(
            trust,
            token,
            name=given.name,
            own_name=own_name(is_local),
            timeout=given.timeout,
        )
    except KeyboardInterrupt:
        _say("", "Cancelled: nobody was paired.")
        raise
    _say_paired(trust, paired, paired.permissions, INVITER_GRANTS)


def _asked() -> str:
    """The token from the terminal, or through a pipe: so it is in no list of commands.

    It is shown as it is pasted: it stands on the other one's screen anyway, and a part of it that
    is missing can be seen. What a mail or a chat has broken into lines is read to its end, or the
    shell would get the rest.
    """
    token = ""
    with contextlib.suppress(EOFError):
        while has_more(token):
            line = input(("More: " if token else "Token: ") if sys.stdin.isatty() else "").strip()
            if token and not line:
                break
            token += line
    if not token:
        raise BadToken("there is no token", remedy="Give it when zbus-pair accept asks for it")
    return token


def _say_paired(
    trust: Trust, paired: Principal, here: Sequence[str] | frozenset[str], there: frozenset[str]
) -> None:
    _say(f'Paired with "{paired.name}".')
    _say(f"  its fingerprint   {fingerprint(paired.key)}")
    _say(f"  this computer's   {fingerprint(trust.keys.public)}")
    _say("The other computer shows the same two. If not: zbus-pair forget, on both.")
    _say(f"  it may do here    {_in_words(here)}")
    _say(f"  you may do there  {_in_words(there)}")
    for peer, addresses in shown(paired.peers).items():
        _say(f"  its ComfyUI       {peer}: {', '.join(addresses) or 'connects to this computer'}")


# --- the store ------------------------------------------------------------------------------------


def _list(given: argparse.Namespace) -> None:
    trust = Trust()
    known = trust.principals()
    if given.json:
        _print_json({**own_as_json(trust), "principals": [as_json(one) for one in known]})
        return
    if not known:
        _say("Nobody is paired. On one computer: zbus-pair invite; on the other: zbus-pair accept")
    for one in known:
        _say(one.name, f"  fingerprint  {fingerprint(one.key)}")
        _say(f"  may here     {_in_words(one.permissions)}")
        for peer, addresses in shown(one.peers).items():
            _say(f"  ComfyUI      {peer}: {', '.join(addresses) or 'connects to this computer'}")
        if not one.peers:
            _say(
                "  ComfyUI      none is known: it connects to this computer, or is seen on the LAN"
            )
        _say(f"  paired       {one.paired or 'by ZBUS_TRUST'}", "")
    if trust.lan:
        _say(f"This computer's ComfyUIs listen on {trust.lan} too, for these alone.")
    if trust.require_pairing:
        _say("Pairing is required on the loopback too.")


def _rename(given: argparse.Namespace) -> None:
    _say(f'It is called "{Trust().rename(given.name, given.new).name}" now.')


def _move(given: argparse.Namespace) -> None:
    moved = Trust().move(given.name, given.addresses, given.peer)
    for peer, addresses in shown(moved.peers).items():
        _say(f"{peer}: {', '.join(addresses)}")


def _permit(given: argparse.Namespace) -> None:
    changed = Trust().permit(given.name, _permissions(given.permissions))
    _say(f'"{changed.name}" may do here: {_in_words(changed.permissions)}')


def _forget(given: argparse.Namespace) -> None:
    gone = Trust().forget(given.name)
    _say(f'"{gone.name}" ({fingerprint(gone.key)}) is paired no longer.')


def _fingerprint(given: argparse.Namespace) -> None:
    trust = Trust()
    if given.json:
        _print_json(own_as_json(trust))
        return
    _say(f"fingerprint  {fingerprint(trust.keys.public)}")
    _say(f"public key   {to_text(trust.keys.public)}")


def _trust(given: argparse.Namespace) -> None:
    trust = Trust()
    peers = _peers(given.name, given.address)
    made = trust.pair(from_text(given.key), given.name, _permissions(given.permit), peers)
    if given.json:
        _print_json({**own_as_json(trust), "principal": as_json(made)})
        return
    _say(f'"{made.name}" ({fingerprint(made.key)}) may do here: {_in_words(made.permissions)}')


def _require(given: argparse.Namespace) -> None:
    trust = Trust()
    trust.set_require_pairing(given.flag == "on")
    if trust.require_pairing:
        _say("Pairing is required everywhere: plain loopback addresses are closed.")
    else:
        _say("Loopback addresses are open to every program of this computer, for values alone.")


def _lan(given: argparse.Namespace) -> None:
    trust = Trust()
    trust.set_lan(given.host)
    if os.environ.get("ZBUS_LISTEN", "").strip():
        _say("Stored; but ZBUS_LISTEN is set, and counts.")
    where = trust.lan if trust.lan != EVERY_HOST else "all networks"
    if trust.lan and not is_loopback(trust.lan):
        _say(f"This computer's ComfyUIs listen on {where}, for paired peers alone.")
    else:
        _say("This computer's ComfyUIs listen on the loopback alone.")


# --- words ----------------------------------------------------------------------------------------


def _permissions(written: str) -> frozenset[str]:
    """exchange, jobs, both with a comma between, or none"""
    words = frozenset(word.strip().lower() for word in written.split(",") if word.strip())
    if words == {"none"}:
        return frozenset()
    if not words or not words <= PERMISSIONS:
        raise InputError(
            f"{written[:80]!r} is not what one can be permitted",
            remedy=f"Give {EXCHANGE}, {JOBS}, {EXCHANGE},{JOBS} or none",
        )
    return words


def _peers(name: str, written: Sequence[str]) -> Peers:
    peers: dict[str, tuple[str, ...]] = {}
    for text in written:
        peer, equals, address = text.partition("=")
        if not equals or "/" in peer or ":" in peer:  # the sign belongs to a URL
            peer, address = name, text
        peers[peer.strip()] = (*peers.get(peer.strip(), ()), address.strip())
    return tuple(peers.items())


def _in_words(permissions: Sequence[str] | frozenset[str]) -> str:
    words = [f"{said} ({word})" for word, said in WORDS.items() if word in permissions]
    return ", ".join(words) or "nothing"


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, indent=2))


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 3600")
    return seconds
