"""The far machine: which ComfyUIs with zbus run there, and pairing with their users.

What it says is checked as a local registry is. Its own shell looks for files of its own user alone:
nobody else there can have a program run by it.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from dataclasses import dataclass, fields
from typing import Any, Protocol

from ...discovery import MAX_FILE, Entry
from ...errors import ConnectError, PairingFailed
from ...keys import from_text, to_text
from ...printable import shown
from .ssh import Result

MARK = "zbus-link: "  # before each line that is ours: a shell's start may print others
MAX_HOMES = 20
MAX_ENTRIES = 64

# POSIX sh. ZBUS_HOME is where zbus keeps its files; without one in this login's environment, all
# folders count in which a program of this user may keep them.
FIND = """
echo 'zbus-link: begin' "$(uname -s)"
homes() {
    if [ -n "$ZBUS_HOME" ]; then printf '%s\\n' "$ZBUS_HOME"; return; fi
    if [ -n "$XDG_DATA_HOME" ]; then printf '%s\\n' "$XDG_DATA_HOME/zbus"; fi
    printf '%s\\n' "$HOME/.local/share/zbus" "$HOME/Library/Application Support/zbus"
    cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | sed -n \\
        -e 's/^ZBUS_HOME=//p' -e 's|^XDG_DATA_HOME=\\(.*\\)|\\1/zbus|p' \\
        -e 's|^HOME=\\(.*\\)|\\1/.local/share/zbus|p'
}
homes | sort -u | head -n 200 | while IFS= read -r home; do
    case $home in /*) ;; *) continue ;; esac
    [ -d "$home/peers" ] && [ ! -h "$home/peers" ] || continue
    if [ ! -O "$home" ] || [ ! -O "$home/peers" ]; then
        ls -ld "$home/peers" | { read -r _ _ owner _; echo 'zbus-link: foreign' "$owner"; }
        continue
    fi
    for file in "$home"/peers/*.json; do
        [ -f "$file" ] && [ ! -h "$file" ] && [ -O "$file" ] || continue
        [ "$(wc -c <"$file")" -le 8192 ] || continue
        pid=$(sed -n 's/.*"pid": *\\([0-9][0-9]*\\).*/\\1/p' "$file")
        stat=alive
        if [ -e /proc/self/stat ]; then stat=$(cat "/proc/$pid/stat" 2>/dev/null)
        else kill -0 "$pid" 2>/dev/null || continue; fi
        [ -n "$stat" ] || continue
        printf 'zbus-link: home %s\\nzbus-link: stat %s\\n' "$home" "$stat"
        printf 'zbus-link: entry '; cat "$file"; echo
    done
done
echo 'zbus-link: end'
"""
# What is variable comes quoted.
PAIR = """
echo 'zbus-link: begin'
cd {folder} && ZBUS_HOME={home} exec {python} -B -m zbus pair trust {key} --name={name} \\
    --permit exchange,jobs --json
"""
INSTALL = "Put zbus into custom_nodes of the ComfyUI there, start that ComfyUI, and try again"
NO_WINDOWS = "zbus-link reaches Linux and macOS; with Windows, pair: zbus-pair"


class Shell(Protocol):
    """What runs a script there."""

    def ask(self, script: str) -> Result: ...


@dataclass(frozen=True)
class Home:
    """Where one zbus keeps its files there, and the ComfyUIs that run with it."""

    path: str
    entries: tuple[Entry, ...]


def find(shell: Shell) -> list[Home]:
    """The ComfyUIs with zbus that run there.

    Raises:
        ConnectError: There are none, or it cannot be found out; the text says what to do there.
    """
    result = shell.ask(FIND)
    lines = _ours(result.output)
    words = lines[0].split() if lines else []
    if words[:1] != ["begin"]:
        last = f": {result.errors[-1]}" if result.errors else ""
        raise _failed(f"no POSIX shell answers there{last}", NO_WINDOWS)
    if words[1:] and words[1].upper().startswith(("MINGW", "MSYS", "CYGWIN", "WINDOWS")):
        raise _failed("that is Windows", NO_WINDOWS)
    if lines[-1] != "end":
        raise _failed("the look for ComfyUIs there has not come to its end", "Try again")
    homes = parse(lines)
    if not homes:
        raise _nobody(lines)
    return homes


def parse(lines: list[str]) -> list[Home]:
    """Those who live, of what `FIND` prints."""
    found: dict[str, dict[str, Entry]] = {}
    home = stat = ""
    for line in lines[: 3 * MAX_ENTRIES + MAX_HOMES]:
        word, _, rest = line.partition(" ")
        if word == "home":
            home, stat = rest, ""
        elif word == "stat":
            stat = rest
        elif word == "entry" and home.startswith("/") and home.isprintable():
            entry = _entry(rest)
            if entry is not None and _lives(entry, stat):
                found.setdefault(home, {})[entry.instance] = entry
    return [
        Home(path, tuple(sorted(entries.values(), key=lambda entry: entry.name)))
        for path, entries in list(found.items())[:MAX_HOMES]
    ]


def pair(shell: Shell, home: Home, key: bytes, name: str) -> bytes:
    """Have the user there trust this one, for values and jobs; returns that user's public key.

    Raises:
        ConnectError: It was not done; the text says why.
    """
    runner = next((entry for entry in home.entries if entry.python and entry.folder), None)
    if runner is None:
        raise _failed("the zbus there is an older one", "Update it, and start that ComfyUI again")
    words = {
        "folder": runner.folder,
        "home": home.path,
        "python": runner.python,
        "key": to_text(key),
        "name": name,
    }
    result = shell.ask(PAIR.format(**{word: shlex.quote(text) for word, text in words.items()}))
    _, begun, told = result.output.partition(f"{MARK}begin\n")
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
        values: Any = json.loads(told)
        if begun and result.status == 0 and isinstance(values["key"], str):
            return from_text(values["key"])
    last = shown(result.errors[-1]) if result.errors else f"exit status {result.status}"
    raise PairingFailed(
        f"the zbus there could not pair: {last}",
        remedy=f"Look at it there: cd {runner.folder} && {runner.python} -m zbus pair list. An "
        "older zbus has to be updated",
    )


def _ours(output: str) -> list[str]:
    return [line[len(MARK) :] for line in output.split("\n") if line.startswith(MARK)]


def _entry(written: str) -> Entry | None:
    if len(written) > MAX_FILE:
        return None
    with contextlib.suppress(ValueError, RecursionError, TypeError):  # InputError is a ValueError
        values: Any = json.loads(written)
        if isinstance(values, dict):
            known = {field.name for field in fields(Entry)} & values.keys()
            return Entry(**{name: values[name] for name in known})
    return None


def _lives(entry: Entry, stat: str) -> bool:
    """Whether the process of that line of /proc has written the entry."""
    if stat == "alive":
        return True
    pid, (state, *rest) = stat.partition(" ")[0], stat.rpartition(")")[2].split() or [""]
    if pid != str(entry.pid) or len(rest) < 19 or state in "ZXx":
        return False
    return entry.started in ("", rest[18])  # as `machine.process_start`


def _nobody(lines: list[str]) -> ConnectError:
    others = sorted({line.partition(" ")[2] for line in lines if line.startswith("foreign ")})
    if others:
        names = ", ".join(shown(name, 40) for name in others[:5])
        what = f"you have no running ComfyUI with zbus there; other users have zbus: {names}"
        return _failed(what, "Log in as the user that ComfyUI runs as")
    return _failed(
        "no running ComfyUI with zbus was found there",
        f"{INSTALL}. If it runs, with another ZBUS_HOME: set that in the environment of the login",
    )


def _failed(what: str, remedy: str) -> ConnectError:
    return ConnectError(what, stage="looking for ComfyUIs", remedy=remedy)
