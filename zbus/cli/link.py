"""Link this computer with a rented GPU, or any machine that SSH reaches, until Ctrl-C.

Logs in with ssh, finds the ComfyUIs with zbus that run there, pairs with them (they may then pass
values to workflows here, and this computer may run workflows there), and forwards a port of this
computer to each, from 28188 up. While it runs, nodes and scripts reach them by the name; when the
connection is lost it is made anew, and jobs under way go on. HOST and the options are ssh's::

    zbus-link root@65.108.33.12 -p 20321
    zbus-link root@ssh5.vast.ai -p 12345 -i ~/.ssh/id_ed25519 --name vast
    zbus-link mybox -o ProxyJump=gate

vast.ai: address and port are behind the instance's key symbol ("SSH connect"); both its direct and
its proxy way will do. RunPod: "SSH over exposed TCP" on the pod's Connect page; not ssh.runpod.io,
which forwards no ports. On both, ComfyUI must run there with zbus in its custom_nodes.

Exit status: 0 if the link was up and you ended it, 1 if not, 2 for arguments that cannot be used.
"""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path
from typing import NoReturn

from ..errors import ConnectError, InputError, KeyChanged, ZBusError
from ..peer import Peer
from ..principals import check_name
from ..settings import Settings
from ..trust import Trust
from .endings import interrupt, signals
from .linking import book, ssh
from .linking.reasons import FORWARDING, LOGIN
from .linking.telling import Teller
from .linking.there import There

NAME = "link"
HELP = "link with a rented GPU over SSH"
FIRST_DELAY, MAX_DELAY = 0.5, 15.0  # seconds before the next try
STEADY = 30.0  # seconds after which a loss is not one of a row
STARTING = 15.0  # seconds in which the peers there take note of the pairing
ASK_EVERY, ASK_FIRST = 5.0, 0.5  # seconds between questions to the peers; until they answer
PATIENCE = 10.0  # seconds for an answer
FIND_EVERY, FIND_SOON = 60.0, 10.0  # seconds between looks for ComfyUIs; if one does not answer
LOGINS = 5  # refused in a row, after which there is no sense in another


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    parser.add_argument("host", metavar="HOST", help="USER@HOST, or a name of ssh's configuration")
    parser.add_argument("-p", dest="port", metavar="PORT", type=_port, default=0, help="of SSH")
    parser.add_argument("-i", dest="identity", metavar="KEYFILE", default="", help="SSH key to use")
    parser.add_argument(
        "-o", dest="options", metavar="OPTION", action="append", default=[], help="for ssh"
    )
    parser.add_argument("--name", default="", help=f"what to call it ({book.NAME})")
    parser.add_argument(
        "--replace", action="store_true", help="forget another machine that has that name"
    )
    parser.add_argument("--forget", action="store_true", help="forget the machine when this ends")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a line instead, for programs"
    )


def run(given: argparse.Namespace) -> int:
    """Link, keep the link up, take it down; returns the exit status."""
    teller = Teller(given.json)
    with signals(interrupt):
        linking = None
        try:
            linking = Linking(given, teller)
            linking.keep()
        except KeyboardInterrupt:
            pass
        except ZBusError as error:
            teller.fail(error)
            return 2 if isinstance(error, InputError) else 1
        finally:
            # Another Ctrl-C must not keep anything from being taken down.
            with signals(signal.SIG_IGN):
                if linking is not None:
                    linking.close()
        return 0 if linking is not None and linking.was_up else 1


class Linking:
    """The link, from its start to its end.

    Raises:
        ZBusError: It cannot begin.
    """

    def __init__(self, given: argparse.Namespace, teller: Teller) -> None:
        if given.name:
            check_name(given.name)
        identity = Path(given.identity).expanduser() if given.identity else None
        if identity is not None and not identity.is_file():
            raise InputError(
                f"-i names {identity}, which is no file", remedy="Give the path of the private key"
            )
        self._teller, self._forgets, trust = teller, given.forget, Trust()
        host, port, options = given.host, given.port, given.options
        self._ssh = ssh.Ssh(host, port, options, str(identity or ""), teller.hear)
        self._there = There(self._ssh, trust, teller, given.name, given.replace)
        # A ComfyUI that ends there is told of at once: no work of this peer waits for it.
        self._peer = Peer("zbus-link", trust=trust, settings=Settings(nobody_wait=1.0))
        self.was_up = False

    def keep(self) -> NoReturn:
        """Until it is interrupted.

        Raises:
            ZBusError: It did not come up; or it cannot come up again.
        """
        delay, refused = FIRST_DELAY, 0
        self._teller.say("connecting", f"connecting to {self._ssh}", host=str(self._ssh))
        while True:
            began = time.monotonic()
            try:
                self._connect()
                self._stay()
                problem = self._ssh.lost()
                refused = 0
            except ConnectError as error:
                refused = refused + 1 if error.stage == LOGIN else 0
                hopeless = isinstance(error, KeyChanged) or error.stage == FORWARDING
                if not self.was_up or hopeless or refused >= LOGINS:
                    raise
                problem = error
            self._ssh.disconnect()
            if time.monotonic() - began > STEADY:
                delay = FIRST_DELAY
            self._teller.lost(problem, delay)
            time.sleep(delay)
            delay = min(2 * delay, MAX_DELAY)

    def close(self) -> None:
        """Take everything down."""
        self._ssh.disconnect()
        self._peer.close()
        if self._forgets:
            self._there.forget()
        if self.was_up:
            self._teller.say("ended", "the link is down")

    def _connect(self) -> None:
        self._ssh.connect()
        if self.was_up:
            self._there.forward_again()  # at once: jobs that are under way wait for it
            self._look()
        else:
            self._there.look()
        first, self.was_up, self._ssh.may_ask = not self.was_up, True, False
        self._teller.up([one.as_json() for one in self._there.all], first)

    # --- while it is up

    def _stay(self) -> None:
        """Until the connection is lost.

        Raises:
            ConnectError: The other side forwards nothing.
        """
        began = looked = time.monotonic()
        for one in self._there.all:
            one.told = ""
        while True:
            starting = time.monotonic() - began < STARTING
            well = self._ask(starting)
            self._ssh.check_forwarding()
            if self._ssh.ended(ASK_FIRST if starting and not well else ASK_EVERY):
                return
            if time.monotonic() - looked > (FIND_EVERY if well else FIND_SOON):
                looked = time.monotonic()
                self._look()

    def _look(self) -> None:
        """For ComfyUIs that were not there before. That there are none just now is no fault."""
        try:
            self._there.look()
        except ConnectError as error:
            if not self._ssh.ended(0.0):
                self._teller.note(error.what)

    def _ask(self, starting: bool) -> bool:
        """Ask each how it is, and tell what is new; whether all have answered."""
        asked = self._there.all
        for one in asked:
            one.ask(self._peer)
        deadline = time.monotonic() + PATIENCE
        while any(one.is_asked for one in asked) and time.monotonic() < deadline:
            if self._ssh.ended(ssh.LOOK_EVERY):
                return False
        for one in asked:
            one.hear()
            # At the start the peers there have yet to take note of the pairing.
            early = starting and one.problem and not one.told
            if one.state and one.state != one.told and not early:
                one.told = one.state
                self._teller.say("state", one.state, **one.as_json())
        self._teller.status([(one.name, one.answered) for one in asked])
        return all(one.answered is not None for one in asked)


def _port(written: str) -> int:
    if not (written.isascii() and written.isdigit() and 1 <= int(written[:9]) <= 65535):
        raise argparse.ArgumentTypeError(f'"{written}" is not a port from 1 to 65535')
    return int(written)
