"""Peers of one user on one machine find each other by name, and dead or false ones do not count."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from children import child, until

from zbus import discovery, machine
from zbus.discovery import Entry, choose, find, home, peers, register, unregister
from zbus.errors import InputError, UnknownPeer

DEAD = 2**31 - 2  # above every system's largest pid


def entry(number: int = 1, name: str = "cloud", **changed: Any) -> Entry:
    made = Entry.of_this_process(f"{number:032x}", name, f"127.0.0.1:{18188 + number}")
    return dataclasses.replace(made, **changed)


def names(folder: Path) -> list[str]:
    return [found.name for found in peers(folder)]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "peers").iterdir())


def write(folder: Path, text: str | bytes, number: int = 2) -> Path:
    """A file that some other program put in the place of a peer's."""
    (folder / "peers").mkdir(exist_ok=True)
    file = folder / "peers" / f"{number:032x}.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def make_old(file: Path) -> None:
    long_ago = time.time() - discovery.DAY - 60
    os.utime(file, (long_ago, long_ago))


# --- the normal course ----------------------------------------------------------------------------


def test_registered_peers_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    made = [
        entry(1, "desk-8189", url="http://127.0.0.1:8189", software="ComfyUI 0.3.75"),
        entry(2, "cloud"),
        entry(3, "desk-8188"),
    ]
    for one in made:
        register(one, tmp_path)
    assert peers(tmp_path) == [made[1], made[2], made[0]]
    assert find("desk-8189", tmp_path) == made[0]


def test_registering_anew_replaces_the_entry(tmp_path: Path) -> None:
    register(entry(name="old"), tmp_path)
    register(entry(name="new"), tmp_path)
    assert names(tmp_path) == ["new"]
    assert files(tmp_path) == [f"{1:032x}.json"]


def test_unregister_removes_ones_own(tmp_path: Path) -> None:
    register(entry(), tmp_path)
    unregister(f"{1:032x}", tmp_path)
    assert files(tmp_path) == []
    unregister(f"{1:032x}", tmp_path)  # a second time is nothing


@pytest.mark.parametrize("changed", [{"pid": os.getppid()}, {"boot": "of another container"}])
def test_unregister_leaves_what_is_anothers_by_now(tmp_path: Path, changed: Any) -> None:
    register(entry(**changed), tmp_path)
    unregister(f"{1:032x}", tmp_path)
    assert files(tmp_path) == [f"{1:032x}.json"]


def test_the_longest_entry_fits_its_file(tmp_path: Path) -> None:
    # A backslash takes two bytes in JSON, these letters four in UTF-8.
    longest = entry(
        name="\U0001d51e" * 80,
        address="127.0.0.1:65535",
        started="\U0001d51e" * 64,
        boot="\U0001d51e" * 80,
        url="http://" + "\U0001d51e" * 393,
        software="\U0001d51e" * 100,
        pid=2**32 - 1,
    )
    register(longest, tmp_path)
    file = tmp_path / "peers" / f"{1:032x}.json"
    assert 3000 < file.stat().st_size < discovery.MAX_FILE
    assert discovery._read(file) == longest


# --- names ----------------------------------------------------------------------------------------


def test_the_exact_name_comes_before_upper_and_lower_case() -> None:
    known = [entry(1, "Cloud"), entry(2, "cloud"), entry(3, "Desk")]
    assert choose("Cloud", known) == known[0]
    assert choose("cloud", known) == known[1]
    assert choose(" DESK ", known) == known[2]


def test_an_unknown_name_tells_the_known_ones() -> None:
    with pytest.raises(UnknownPeer) as caught:
        choose("cloud", [entry(1, "desk-8189"), entry(2, "desk-8188")])
    assert caught.value.what == "no peer named 'cloud' here; known: desk-8188, desk-8189"
    assert "Start that ComfyUI" in caught.value.remedy
    assert '"host:port"' in caught.value.remedy


def test_an_unknown_name_where_nobody_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownPeer, match="no peer named 'cloud' here; known: none"):
        find("cloud", tmp_path)


def test_of_many_known_names_some_are_told() -> None:
    with pytest.raises(UnknownPeer, match=r"p00, .*, p09 and 5 more\."):
        choose("cloud", [entry(number, f"p{number:02}") for number in range(15)])


def test_two_of_one_name_are_an_error_that_tells_their_addresses() -> None:
    with pytest.raises(UnknownPeer) as caught:
        choose("cloud", [entry(1), entry(2), entry(3, "desk")])
    assert caught.value.what == ("2 peers here are named 'cloud': 127.0.0.1:18189, 127.0.0.1:18190")
    assert caught.value.remedy


def test_two_that_differ_in_case_alone_are_told_apart_in_the_error() -> None:
    with pytest.raises(UnknownPeer, match=r"Cloud at 127.0.0.1:18189, cloud at 127.0.0.1:18190"):
        choose("CLOUD", [entry(1, "Cloud"), entry(2, "cloud")])


# --- who lives ------------------------------------------------------------------------------------


def test_a_killed_peer_is_gone_and_its_file_with_it(tmp_path: Path) -> None:
    with child(REGISTERS, 5, 1, env={"ZBUS_HOME": str(tmp_path)}) as other:
        other.line("registered")
        assert names(tmp_path) == ["peer-5"]
        other.kill()
        assert peers(tmp_path) == []
        assert files(tmp_path) == []


def test_a_pid_that_another_process_has_by_now_does_not_count(tmp_path: Path) -> None:
    register(entry(1, "older", started="1"), tmp_path)
    register(entry(2, "living"), tmp_path)
    assert names(tmp_path) == ["living"]
    assert files(tmp_path) == [f"{2:032x}.json"]


def test_what_cannot_be_told_counts_as_living(tmp_path: Path) -> None:
    register(entry(started=""), tmp_path)
    assert names(tmp_path) == ["cloud"]


def test_another_boots_entry_is_left_out_and_kept_for_a_day(tmp_path: Path) -> None:
    register(entry(boot="another container"), tmp_path)
    (name,) = files(tmp_path)
    assert peers(tmp_path) == []
    assert files(tmp_path) == [name]
    make_old(tmp_path / "peers" / name)
    assert peers(tmp_path) == []
    assert files(tmp_path) == []


def test_where_the_boot_is_not_known_a_dead_ones_file_stays_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "boot_id", lambda: "")
    register(entry(1, "living"), tmp_path)
    register(entry(2, "dead", pid=DEAD), tmp_path)
    assert names(tmp_path) == ["living"]
    assert len(files(tmp_path)) == 2
    for name in files(tmp_path):
        make_old(tmp_path / "peers" / name)
    assert names(tmp_path) == ["living"], "a live peer's file of this system is never too old"
    assert files(tmp_path) == [f"{1:032x}.json"]


def test_a_peer_that_starts_again_while_its_old_file_is_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(entry(name="old", pid=DEAD), tmp_path)

    def dead_and_back(entry_of_old: Entry) -> bool:
        register(entry(name="new"), tmp_path)
        return False

    monkeypatch.setattr(discovery, "_lives", dead_and_back)
    peers(tmp_path)
    monkeypatch.undo()
    assert names(tmp_path) == ["new"]


@pytest.mark.parametrize("with_psutil", [True, False])
def test_where_there_is_no_proc_the_process_is_still_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_psutil: bool
) -> None:
    is_file = Path.is_file
    monkeypatch.setattr(
        Path, "is_file", lambda path: path.parts[:2] != ("/", "proc") and is_file(path)
    )
    if not with_psutil:
        monkeypatch.setitem(sys.modules, "psutil", None)
    living = entry(1, "living")
    assert living.started.isdecimal() if with_psutil else living.started == ""
    register(living, tmp_path)
    register(entry(2, "dead", pid=DEAD), tmp_path)
    register(entry(3, "reused", started="1"), tmp_path)
    assert names(tmp_path) == (["living"] if with_psutil else ["living", "reused"])


# --- files that are no entries --------------------------------------------------------------------


def good(**changed: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(entry(2, "other")), **changed}


def test_what_a_newer_version_adds_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, json.dumps(good(networks=["10.0.0.7"])))
    assert names(tmp_path) == ["other"]


def test_what_may_be_missing(tmp_path: Path) -> None:
    some = {key: value for key, value in good().items() if key not in ("url", "software")}
    write(tmp_path, json.dumps(some))
    assert names(tmp_path) == ["other"]


BAD_FIELDS: list[tuple[str, Any]] = [
    ("instance", "2" * 31),
    ("instance", "../" + "2" * 29),
    ("instance", f"{3:032x}"),  # not that of the file's name
    ("name", ""),
    ("name", "  "),
    ("name", "x" * 81),
    ("name", "two\nlines"),
    ("name", "\x1b[31mred"),
    ("name", "\ud800"),
    ("name", ["other"]),
    ("address", "10.0.0.7:8188"),
    ("address", "example.com:8188"),
    ("address", "127.0.0.1"),
    ("address", "127.0.0.1:0"),
    ("address", "127.0.0.1:70000"),
    ("address", "127.0.0.1:" + "1" * 3000),
    ("address", 8188),
    ("pid", str(os.getpid())),
    ("pid", float(os.getpid())),
    ("pid", True),
    ("pid", 0),
    ("pid", -1),
    ("pid", 2**64),
    ("pid", None),
    ("started", 12345),
    ("started", "1" * 65),
    ("boot", None),
    ("boot", "1" * 81),
    ("url", "javascript:alert(1)"),
    ("url", "http://" + "x" * 400),
    ("url", None),
    ("software", "x" * 101),
    ("software", {}),
]


def _id(value: Any) -> str:
    """The same in every process that collects the tests."""
    return repr(value)[:30].replace(str(os.getpid()), "own pid")


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=_id)
def test_every_field_is_checked(tmp_path: Path, field: str, value: Any) -> None:
    register(entry(), tmp_path)
    file = write(tmp_path, json.dumps(good(**{field: value})))
    assert names(tmp_path) == ["cloud"]
    assert file.exists()
    if value != f"{3:032x}":
        with pytest.raises(InputError):
            Entry(**good(**{field: value}))


DAMAGED: list[str | bytes] = [
    b"",
    b"\0" * 100,
    b"\xff\xfe",
    json.dumps(good())[:-20],
    json.dumps(good()).encode("utf-16"),
    "[" * 4000,
    "[]",
    "null",
    "7",
    '"text"',
    "{}",
    '{"instance": "' + f"{2:032x}" + '"}',
    json.dumps(good()) + " " * discovery.MAX_FILE,
]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: repr(text[:20]))
def test_damaged_files_are_ignored(tmp_path: Path, text: str | bytes) -> None:
    register(entry(), tmp_path)
    file = write(tmp_path, text)
    assert names(tmp_path) == ["cloud"]
    assert file.exists()


def test_symlinks_pipes_and_folders_are_ignored(tmp_path: Path) -> None:
    register(entry(), tmp_path)
    real = tmp_path / f"{2:032x}.json"
    real.write_text(json.dumps(good()))
    (tmp_path / "peers" / real.name).symlink_to(real)
    os.mkfifo(tmp_path / "peers" / f"{3:032x}.json")  # opening it would wait for a writer
    (tmp_path / "peers" / f"{4:032x}.json").mkdir()
    (tmp_path / "peers" / "notes.txt").write_text("hello")
    assert names(tmp_path) == ["cloud"]
    assert len(files(tmp_path)) == 5
    os.replace(real, tmp_path / "peers" / real.name)
    assert names(tmp_path) == ["cloud", "other"], "the same file, if it is no symlink, counts"


def test_a_symlink_put_there_between_two_looks_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "elsewhere"
    real.write_text(json.dumps(good()))
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / f"{2:032x}.json").symlink_to(real)
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)
    assert peers(tmp_path) == []


def test_files_of_another_user_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(entry(), tmp_path)
    assert names(tmp_path) == ["cloud"]
    another = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: another)
    assert peers(tmp_path) == []
    assert files(tmp_path) == [f"{1:032x}.json"]


def test_what_an_interrupted_register_left_goes_after_a_day(tmp_path: Path) -> None:
    register(entry(), tmp_path)
    left = tmp_path / "peers" / f".{2:032x}-0123456789abcdef.tmp"
    left.write_text("{")
    assert names(tmp_path) == ["cloud"]
    assert left.exists()
    make_old(left)
    assert names(tmp_path) == ["cloud"]
    assert not left.exists()


# --- folders --------------------------------------------------------------------------------------


def test_folders_and_files_are_the_users_alone(tmp_path: Path) -> None:
    root = tmp_path / "data" / "zbus"
    before = os.umask(0)
    try:
        register(entry(), root)
    finally:
        os.umask(before)
    made = [root, root / "peers", root / "peers" / f"{1:032x}.json"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700, 0o700, 0o600]


def test_an_open_peers_folder_is_closed_but_not_a_home_that_was_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers").chmod(0o777)
    register(entry(), tmp_path)
    assert stat.S_IMODE((tmp_path / "peers").stat().st_mode) == 0o700
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can make files of another user"
)
@pytest.mark.parametrize("what", ["", "peers"])
def test_a_folder_of_another_user_is_not_used(tmp_path: Path, what: str) -> None:
    register(entry(), tmp_path)
    assert len(peers(tmp_path)) == 1
    os.chown(tmp_path / what, 65534, 65534)
    assert peers(tmp_path) == []
    with pytest.raises(PermissionError, match="belongs to user"):
        register(entry(), tmp_path)


def test_zbus_home_is_used_where_no_folder_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZBUS_HOME", str(tmp_path / "kept"))
    assert home() == tmp_path / "kept"
    assert peers() == []
    assert not home().exists(), "looking makes no folder"
    register(entry())
    assert files(tmp_path / "kept") == [f"{1:032x}.json"]
    assert find("cloud") == entry()
    unregister(f"{1:032x}")
    assert peers() == []


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/zbus"),
        ("linux", {"XDG_DATA_HOME": "relative"}, "/home/me/.local/share/zbus"),
        ("linux", {}, "/home/me/.local/share/zbus"),
        ("linux", {"ZBUS_HOME": "~/bus"}, "/home/me/bus"),
        ("linux", {"ZBUS_HOME": ""}, "/home/me/.local/share/zbus"),
        ("darwin", {}, "/home/me/Library/Application Support/zbus"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/zbus"),
        ("win32", {}, "/home/me/AppData/Local/zbus"),
    ],
)
def test_home_is_the_systems_folder_for_data(
    monkeypatch: pytest.MonkeyPatch, platform: str, variable: dict[str, str], expected: str
) -> None:
    for name in ("ZBUS_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variable}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert home() == Path(expected)


def test_an_unusable_home_is_an_oserror_for_register_and_nobody_for_peers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none/zbus")):
        with pytest.raises(OSError):
            register(entry(), folder)
        assert peers(folder) == []
        unregister(f"{1:032x}", folder)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZBUS_HOME", "~nobody-of-that-name/zbus")
    with pytest.raises(OSError, match="set ZBUS_HOME"):
        register(entry())
    assert peers() == []
    unregister(f"{1:032x}")


def test_a_register_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "peers" / f"{1:032x}.json").mkdir(parents=True)
    with pytest.raises(OSError):
        register(entry(), tmp_path)
    assert files(tmp_path) == [f"{1:032x}.json"]


# --- many at once ---------------------------------------------------------------------------------

REGISTERS = """
    import sys
    from zbus.discovery import Entry, peers, register, unregister
    number, times = int(sys.argv[1]), int(sys.argv[2])
    instance = f"{number:032x}"
    entry = Entry.of_this_process(instance, f"peer-{number}", f"127.0.0.1:{20000 + number}")
    for _ in range(times):
        register(entry)
        if entry not in peers():
            print("lost", peers(), flush=True)
    print("registered", flush=True)
    sys.stdin.readline()
    unregister(instance)
    print("unregistered", flush=True)
"""


def test_many_processes_register_at_once_and_see_each_other(tmp_path: Path) -> None:
    expected = [f"peer-{number}" for number in range(6)]
    with contextlib.ExitStack() as stack:
        env = {"ZBUS_HOME": str(tmp_path)}
        children = [stack.enter_context(child(REGISTERS, n, 100, env=env)) for n in range(6)]
        seen: set[str] = set()

        def all_seen() -> bool:
            now = set(names(tmp_path))
            assert seen <= now, "one that was there is never missing while its file is rewritten"
            seen.update(now)
            return len(seen) == len(expected)

        until(all_seen, within=60)
        for one in children:
            one.line("registered", within=60)
            assert not any("lost" in line for line in one.lines)
        assert names(tmp_path) == expected
        assert files(tmp_path) == [f"{number:032x}.json" for number in range(6)]
        children[0].kill()
        for one in children[1:]:
            one.tell("end")
            one.line("unregistered")
        assert peers(tmp_path) == []
        assert files(tmp_path) == []
