"""The command line: ``python -m zbus COMMAND ...``."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence

from . import __version__
from .cli import bench as _bench
from .cli import farm as _farm
from .cli import link as _link
from .cli import pair as _pair
from .cli import ping as _ping
from .cli import up as _up

# Each has NAME, HELP, arguments(parser) and run(given).
COMMANDS = (_ping, _pair, _link, _up, _farm, _bench)


class _Fitting(argparse.HelpFormatter):
    """Paragraphs as wide as the terminal; examples, which are indented, line by line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        made = []
        for paragraph in text.strip().split("\n\n"):
            is_example = paragraph.startswith(" ")
            filled = paragraph if is_example else textwrap.fill(" ".join(paragraph.split()), width)
            made.append(filled[:-1] if filled.endswith("::") else filled)
        return "\n\n".join(made)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0 well, 1 not well, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="zbus", description="A tensor bus for ComfyUI.")
    parser.add_argument("--version", action="version", version=f"zbus {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.NAME,
            prog=f"zbus-{command.NAME}",  # as the texts call it, and as it is installed
            help=command.HELP,
            description=command.__doc__,
            formatter_class=_Fitting,
        )
        command.arguments(sub)
        sub.set_defaults(run=command.run, refuse=sub.error)
    given, unknown = parser.parse_known_args(argv)
    if unknown:  # told with that command's own usage
        given.refuse(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return int(given.run(given))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head`: the reader has seen enough
        sys.stderr.close()
        return 1


def ping() -> int:
    """The command ``zbus-ping``."""
    return main(["ping", *sys.argv[1:]])


def pair() -> int:
    """The command ``zbus-pair``."""
    return main(["pair", *sys.argv[1:]])


def link() -> int:
    """The command ``zbus-link``."""
    return main(["link", *sys.argv[1:]])


def up() -> int:
    """The command ``zbus-up``."""
    return main(["up", *sys.argv[1:]])


def farm() -> int:
    """The command ``zbus-farm``."""
    return main(["farm", *sys.argv[1:]])


def bench() -> int:
    """The command ``zbus-bench``."""
    return main(["bench", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
