"""An avahi of its own, beside the system's: ``unshare --mount python avahi.py FOLDER``, as root.

For each line of its input it says what avahi-browse sees of zbus: its lines, and an empty one. It
ends with its input, and its daemons with it. avahi-daemon keeps its pid, and D-Bus its socket, at
fixed places in /run: hence the mount namespace.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from children import until

NEEDS = ("avahi-daemon", "avahi-browse", "dbus-daemon", "unshare", "mount")
BROWSE = ("avahi-browse", "--resolve", "--parsable", "--terminate", "_zbus._tcp")
SECONDS = 20.0  # for the daemons to come up
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
AVAHI = """[server]
use-ipv6=no
[publish]
disable-publishing=yes
"""


def missing() -> str:
    """What of it is not installed, or ""."""
    return ", ".join(name for name in NEEDS if shutil.which(name) is None)


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "bus.conf").write_text(BUS)
    (folder / "avahi.conf").write_text(AVAHI)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    for name in ("dbus", "avahi-daemon"):
        Path("/run", name).mkdir()
    how = ("--no-drop-root", "--no-chroot", "--no-rlimits", f"--file={folder / 'avahi.conf'}")
    with (folder / "avahi.log").open("wb") as log:
        commands = (["dbus-daemon", "--nofork", f"--config-file={folder / 'bus.conf'}"],)
        commands += (["avahi-daemon", *how],)
        daemons = []
        try:
            for command in commands:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
                _wait_for_socket(command[0])
            for _ in sys.stdin:
                print(_browse(), flush=True)
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(10)


def _wait_for_socket(daemon: str) -> None:
    places = {"dbus-daemon": "dbus/system_bus_socket", "avahi-daemon": "avahi-daemon/socket"}
    until(Path("/run", places[daemon]).exists, SECONDS, f"{daemon} comes up")


def _browse() -> str:
    done: list[subprocess.CompletedProcess[str]] = []

    def browses() -> bool:
        done[:] = [subprocess.run(BROWSE, capture_output=True, text=True)]
        return done[0].returncode == 0

    until(browses, SECONDS, lambda: f"avahi-browse: {done[0].stderr}")
    return done[0].stdout


if __name__ == "__main__":
    main()
