"""Keys and the trust store: whose key that is, what it may do, and that nothing of it is lost."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from children import Child, child

from zbus import keys, private
from zbus.errors import InputError, InvalidAddress, TrustError, UnknownPeer
from zbus.keys import KeyPair, fingerprint, from_text, generate, public_of, short, to_text
from zbus.trust import EXCHANGE, JOBS, PERMISSIONS, Principal, Trust

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")

OTHER = bytes(range(32))
THIRD = bytes(range(100, 132))
FINGERPRINT = "ZA3U2ZW-WONEYEZ-J2AQAAB-MYZJSOK"  # of OTHER


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ZBUS_TRUST", "ZBUS_LISTEN", "ZBUS_REQUIRE_PAIRING"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def trust(folder: Path) -> Trust:
    return Trust(folder)


def names(trust: Trust) -> list[str]:
    return [one.name for one in trust.principals()]


def write(trust: Trust, values: Any) -> None:
    """What somebody's editor leaves there."""
    trust.folder.mkdir(mode=0o700, exist_ok=True)
    trust.file.write_text(values if isinstance(values, str) else json.dumps(values))


def entry(key: bytes = OTHER, **changed: Any) -> dict[str, Any]:
    made = {"key": to_text(key), "name": "cloud", "permissions": ["exchange"], "peers": {}}
    return {**made, **changed}


def file_of(*entries: Any, **changed: Any) -> dict[str, Any]:
    return {"version": 1, "principals": list(entries), **changed}


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_pair_fits_together_and_its_text_comes_back() -> None:
    pair = generate()
    assert len(pair.public) == len(pair.secret) == 32 and pair != generate()
    assert public_of(pair.secret) == pair.public
    text = to_text(pair.public)
    assert len(text) == 52 and text == text.lower()
    assert from_text(text) == from_text(f" {text.upper()}\n") == pair.public


@pytest.mark.parametrize(
    "text",
    ["", "a" * 51, "a" * 53, "a" * 51 + "b", "1" * 52, "ä" * 52, "a" * 51 + "\0", "=" * 52],
    ids=repr,
)
def test_what_is_no_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(InputError, match="not a public key") as caught:
        from_text(text)
    assert text == "" or text not in str(caught.value)


def test_no_secret_in_what_a_key_pair_shows() -> None:
    pair = generate()
    shown = f"{pair} {pair!r} {[pair]}"
    assert repr(pair.secret) not in shown and to_text(pair.secret) not in shown


def test_a_fingerprint_is_the_same_for_ever_and_tells_a_misread_character() -> None:
    assert fingerprint(OTHER) == FINGERPRINT
    groups = FINGERPRINT.split("-")
    assert [len(group) for group in groups] == [7] * 4 and short(OTHER) == groups[0]
    for group in groups:
        assert keys._check(group[:6]) == group[6]
        for place in range(6):
            for letter in keys.ALPHABET.replace(group[place], ""):
                misread = group[:place] + letter + group[place + 1 : 6]
                assert keys._check(misread) != group[6]


# --- this user's key ------------------------------------------------------------------------------


def test_the_key_is_made_at_the_first_use_and_stays(folder: Path) -> None:
    trust = Trust(folder)
    assert not folder.exists(), "making a Trust does nothing"
    assert trust.keys == trust.keys == Trust(folder).keys
    assert public_of(trust.keys.secret) == trust.keys.public
    me = trust.of(trust.keys.public)
    assert me == Principal(trust.keys.public, "this user", PERMISSIONS)
    assert trust.principals() == []


def test_without_a_folder_it_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZBUS_HOME", str(tmp_path / "elsewhere"))
    assert Trust().folder == tmp_path / "elsewhere"
    assert Trust().keys == Trust(tmp_path / "elsewhere").keys


@posix
def test_files_are_this_users_alone(trust: Trust) -> None:
    old = os.umask(0)
    try:
        trust.pair(OTHER, "cloud")
    finally:
        os.umask(old)
    assert stat.S_IMODE(trust.folder.stat().st_mode) == 0o700
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in trust.folder.iterdir()}
    assert found == {"secret.key": 0o600, "trust.json": 0o600, "trust.lock": 0o600}


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o666])
def test_a_key_that_others_can_read_is_an_error(folder: Path, mode: int) -> None:
    Trust(folder).keys  # noqa: B018
    (folder / "secret.key").chmod(mode)
    with pytest.raises(TrustError) as caught:
        Trust(folder).keys  # noqa: B018
    assert f"chmod 600 '{folder / 'secret.key'}'" in str(caught.value)


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702])
def test_a_folder_that_others_can_write_in_is_an_error(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(TrustError, match="chmod 700"):
        Trust(folder).keys  # noqa: B018
    assert list(folder.iterdir()) == []


@posix
def test_a_store_that_others_can_write_is_an_error_one_that_they_can_read_is_closed(
    trust: Trust,
) -> None:
    trust.pair(OTHER, "cloud")
    trust.file.chmod(0o644)  # an editor's doing
    assert names(Trust(trust.folder)) == ["cloud"]
    assert stat.S_IMODE(trust.file.stat().st_mode) == 0o600
    trust.file.chmod(0o664)
    with pytest.raises(TrustError, match="chmod 600"):
        Trust(trust.folder).principals()


needs_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can make files of another user"
)
NOBODY = 65534


@needs_root
@pytest.mark.parametrize("what", ["", "secret.key", "trust.json", "trust.lock"])
def test_root_takes_nothing_that_is_another_users(trust: Trust, what: str) -> None:
    """It may read what anybody has: a folder that somebody made first, with that one's key."""
    trust.pair(OTHER, "mallory", [EXCHANGE, JOBS])
    os.chown(trust.folder / what, NOBODY, NOBODY)
    fresh = Trust(trust.folder)
    with pytest.raises(TrustError, match=r"belongs to user .*ZBUS_HOME") as caught:
        fresh.pair(THIRD, "friend")
    assert str(trust.folder / what) in str(caught.value) and "chown" in str(caught.value)
    if what == "trust.json":
        with pytest.raises(TrustError, match="belongs to"):
            fresh.principals()
    if what == "":
        for look in (lambda: fresh.keys, fresh.principals, lambda: fresh.require_pairing):
            with pytest.raises(TrustError, match="belongs to"):
                look()


@needs_root
def test_a_link_that_another_user_has_made_leads_nowhere(tmp_path: Path) -> None:
    Trust(tmp_path / "real").keys  # noqa: B018
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    assert Trust(link).keys == Trust(tmp_path / "real").keys, "this user's own link is a way"
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    for folder in (link, link / "below"):
        with pytest.raises(TrustError, match="the link .* belongs to"):
            Trust(folder).keys  # noqa: B018


@posix
@pytest.mark.parametrize("what", ["secret.key", "trust.json", "trust.lock"])
def test_a_file_that_is_a_link_is_not_followed(trust: Trust, tmp_path: Path, what: str) -> None:
    trust.pair(OTHER, "cloud")
    (trust.folder / what).rename(tmp_path / "elsewhere")
    (trust.folder / what).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrustError, match="is a link to another place"):
        Trust(trust.folder).pair(THIRD, "friend")


@pytest.mark.parametrize("text", ["", "# only this\n", "nonsense\n", "\xff", "a" * 52 + "\nb\n"])
def test_a_broken_key_file_is_an_error_that_shows_nothing_of_it(folder: Path, text: str) -> None:
    folder.mkdir(mode=0o700)
    file = folder / "secret.key"
    file.write_bytes(text.encode("latin-1"))
    file.chmod(0o600)
    with pytest.raises(TrustError) as caught:
        Trust(folder).keys  # noqa: B018
    assert str(file) in str(caught.value) and "pair" in caught.value.remedy
    assert caught.value.__suppress_context__ and "nonsense" not in str(caught.value)
    assert file.read_bytes() == text.encode("latin-1"), "never written over"


def test_the_key_file_may_be_a_folder_or_too_large(folder: Path) -> None:
    (folder / "secret.key").mkdir(parents=True)
    folder.chmod(0o700)
    with pytest.raises(TrustError, match=r"secret\.key"):
        Trust(folder).keys  # noqa: B018


@posix
def test_where_nothing_can_be_made_the_error_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrustError, match="ZBUS_HOME"):
        Trust(tmp_path / "file" / "home").keys  # noqa: B018


KEYS = """
    import sys
    from pathlib import Path
    from zbus.keys import to_text
    from zbus.trust import Trust
    print("ready", flush=True)
    for line in sys.stdin:
        print("key", to_text(Trust(Path(line.strip())).keys.public), flush=True)
"""


def test_processes_that_make_the_key_at_once_get_the_same(tmp_path: Path) -> None:
    made: list[Child] = []
    with child(KEYS) as one, child(KEYS) as two, child(KEYS) as three:
        made = [one, two, three]
        for process in made:
            process.line("ready")
        for round_ in range(20):
            folder = tmp_path / str(round_)
            for process in made:
                process.tell(str(folder))
            got = {process.line("key") for process in made}
            assert got == {f"key {to_text(Trust(folder).keys.public)}"}
            assert sorted(path.name for path in folder.iterdir()) == ["secret.key", "trust.lock"]


# --- the paired -----------------------------------------------------------------------------------


def test_who_is_paired_is_known_to_every_other_trust(trust: Trust) -> None:
    peers = (("desk", ("10.0.0.2:18188", "https://u:p@pod.example/comfy")), ("second", ()))
    made = trust.pair(OTHER, " cloud ", [EXCHANGE], peers)
    assert (made.name, made.permissions, made.peers) == ("cloud", {EXCHANGE}, peers)
    assert made.paired.endswith("+00:00")
    again = Trust(trust.folder)
    assert again.principals() == [made] == trust.principals()
    assert again.of(OTHER) == made and again.of(THIRD) is None
    assert again.named("CLOUD") == made


def test_a_known_key_is_updated_and_a_taken_name_gets_a_number(trust: Trust) -> None:
    trust.pair(OTHER, "cloud", [EXCHANGE, JOBS])
    assert trust.pair(THIRD, "Cloud").name == "Cloud-2"
    assert trust.pair(bytes(32), "cloud").name == "cloud-3"
    assert trust.pair(OTHER, "cloud", [EXCHANGE]).permissions == {EXCHANGE}
    assert names(trust) == ["cloud", "Cloud-2", "cloud-3"]
    assert trust.pair(b"x" * 32, "this user").name == "this user-2"
    long = [trust.pair(bytes([i]) * 32, "n" * 80).name for i in range(1, 12)]
    assert len(set(long)) == 11 and max(map(len, long)) == 80


def test_oneself_is_not_paired(trust: Trust) -> None:
    with pytest.raises(InputError, match="own key"):
        trust.pair(trust.keys.public, "me")
    # A store that was copied from another machine may hold it.
    write(trust, file_of(entry(trust.keys.public), entry(THIRD, name="x")))
    assert names(Trust(trust.folder)) == ["x"]


@pytest.mark.parametrize("name", ["", " ", "a/b", "a,b", "a:b", "n" * 81, "a\nb", "a\u202eb"])
def test_a_name_that_cannot_be_one(trust: Trust, name: str) -> None:
    with pytest.raises(InputError):
        trust.pair(OTHER, name)
    trust.pair(OTHER, "cloud")
    with pytest.raises(InputError):
        trust.rename("cloud", name)
    assert names(trust) == ["cloud"]


def test_rename_permit_forget(trust: Trust) -> None:
    trust.pair(OTHER, "cloud", [EXCHANGE])
    trust.pair(THIRD, "desk")
    assert trust.rename("cloud", "pod").name == "pod"
    assert trust.rename("pod", "Pod").name == "Pod"
    with pytest.raises(InputError, match="taken"):
        trust.rename("desk", "POD")
    assert trust.permit("pod", [JOBS]).permissions == {JOBS}
    with pytest.raises(InputError, match="permissions"):
        trust.permit("pod", ["everything"])
    assert trust.forget("desk").key == THIRD
    assert trust.of(THIRD) is None
    for work in (trust.forget, lambda name: trust.permit(name, []), lambda n: trust.rename(n, "a")):
        with pytest.raises(UnknownPeer, match="nobody named 'desk' is paired here; paired: Pod"):
            work("desk")
    assert [(one.name, one.permissions) for one in trust.principals()] == [("Pod", {JOBS})]


def test_move(trust: Trust) -> None:
    trust.pair(OTHER, "cloud")
    assert trust.move("cloud", ["1.2.3.4:5"]).peers == (("cloud", ("1.2.3.4:5",)),)
    two = ["pod.example:18188", "https://pod.example/comfy"]
    assert trust.move("cloud", two).peers == (("cloud", tuple(two)),)
    assert trust.move("cloud", ["h:1"], "second").peers[1] == ("second", ("h:1",))
    with pytest.raises(InputError, match=r"more than one ComfyUI: cloud, second\. .*--peer"):
        trust.move("cloud", ["h:2"])
    for wrong in ("h", "h:0", "h:1/x", "ftp://h", "http://", "http://h:99999", "x" * 301):
        with pytest.raises(InvalidAddress):
            trust.move("cloud", [wrong], "second")
    with pytest.raises(InputError, match="addresses"):
        trust.move("cloud", [f"h:{port}" for port in range(1, 10)], "second")


def test_a_login_in_an_address_is_not_shown(trust: Trust) -> None:
    one = trust.pair(OTHER, "cloud", (), (("a", ("https://user:hush@pod.example/comfy?t=hush",)),))
    assert "hush" not in repr(one)
    with pytest.raises(InvalidAddress) as caught:
        trust.move("cloud", ["https://user:hush@/"])
    assert "hush" not in str(caught.value)


def test_lan_and_require_pairing(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (trust.lan, trust.require_pairing) == ("", False)
    trust.set_lan("on")
    trust.set_require_pairing(True)
    again = Trust(trust.folder)
    assert (again.lan, again.require_pairing) == ("0.0.0.0", True)
    trust.set_lan("192.168.1.20")
    assert trust.lan == "192.168.1.20"
    monkeypatch.setenv("ZBUS_LISTEN", "::")
    assert trust.lan == "::"
    monkeypatch.setenv("ZBUS_LISTEN", "off")
    assert trust.lan == ""
    trust.set_require_pairing(False)
    monkeypatch.setenv("ZBUS_REQUIRE_PAIRING", "1")
    assert trust.require_pairing
    with pytest.raises(InvalidAddress, match="network interface"):
        trust.set_lan("my-computer")


def test_a_bad_zbus_listen_is_logged_once_and_closed(
    trust: Trust, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trust.set_lan("on")
    monkeypatch.setenv("ZBUS_LISTEN", "nowhere-at-all")
    assert [trust.lan, trust.lan, Trust(trust.folder).lan] == [""] * 3
    assert caplog.text.count("ZBUS_LISTEN") == 1


# --- ZBUS_TRUST -----------------------------------------------------------------------------------


def test_zbus_trust(
    trust: Trust, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trust.pair(THIRD, "cloud", [EXCHANGE])
    own, secret = to_text(trust.keys.public), "n" * 51
    written = f"{to_text(OTHER)}, {secret},{to_text(THIRD).upper()},,{own},{to_text(OTHER)}"
    monkeypatch.setenv("ZBUS_TRUST", written)
    for known in (Trust(trust.folder), Trust(trust.folder)):
        assert [(one.key, one.name, one.permissions) for one in known.principals()] == [
            (THIRD, "cloud", PERMISSIONS),
            (OTHER, f"trusted-{short(OTHER)}", PERMISSIONS),
        ]
        assert known.of(OTHER) == known.principals()[1]
    assert caplog.text.count("ZBUS_TRUST") == 1 and secret not in caplog.text
    for name in ("cloud", f"trusted-{short(OTHER)}"):
        for revoke in (trust.forget, lambda name: trust.permit(name, [])):
            with pytest.raises(InputError, match="ZBUS_TRUST"):
                revoke(name)
    assert trust.rename("cloud", "pod").permissions == {EXCHANGE}, "in the store"


# --- a hostile file -------------------------------------------------------------------------------


BROKEN = {
    "empty": "",
    "no JSON": "{",
    "no object": "[]",
    "no version": "{}",
    "version of another type": {"version": True},
    "version 0": {"version": 0},
    "newer": {"version": 2},
    "no list": file_of(principals={}),
    "too many": file_of(*[1] * 1001),
    "lan": file_of(lan=5),
    "lan no address": file_of(lan="example.org"),
    "require": file_of(require_pairing="no"),
    "deep": "[" * 100_000,
    "number": '{"version": ' + "9" * 10_000 + "}",
    "large": " " * (1 << 20) + "{}",
}


@pytest.mark.parametrize("values", BROKEN.values(), ids=BROKEN)
def test_a_broken_store_is_an_error_and_who_runs_keeps_what_it_knew(
    trust: Trust, values: Any
) -> None:
    trust.pair(OTHER, "cloud")
    assert trust.refresh()
    write(trust, values)
    trust.file.chmod(0o600)
    before = trust.file.read_bytes()
    with pytest.raises(TrustError) as caught:
        trust.refresh()
    assert str(trust.file) in str(caught.value) and caught.value.remedy
    assert not trust.refresh(), "said once"
    assert names(trust) == ["cloud"]
    for work in (Trust(trust.folder).principals, lambda: trust.pair(THIRD, "x")):
        with pytest.raises(TrustError):
            work()
    assert trust.file.read_bytes() == before, "never written over"
    write(trust, file_of(entry(THIRD)))
    assert trust.refresh() and trust.of(OTHER) is None


ODD: list[Any] = [
    None,
    [],
    {},
    {"key": to_text(OTHER)},
    entry(key=b"short"),
    entry(name=5),
    entry(name="a/b"),
    entry(name="\udcff"),
    entry(permissions="exchange"),
    entry(permissions=None),
    entry(peers=[]),
    entry(peers={"a": "h:1"}),
    entry(peers={"a": [5]}),
    entry(peers={"a": ["nowhere"]}),
    entry(peers={"a": ["h:1"] * 9}),
    entry(peers={str(i): [] for i in range(65)}),
    entry(paired=5),
    entry(paired="x" * 41),
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_one_bad_principal_is_passed_over_and_kept(
    trust: Trust, odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write(trust, file_of(odd, entry(THIRD, name="desk")))
    assert names(trust) == ["desk"]
    assert len(caplog.records) == 1 and "place 1 is passed over" in caplog.text
    if odd == entry(name="\udcff"):
        with pytest.raises(TrustError, match="cannot be written again"):
            trust.rename("desk", "pod")
        return
    trust.rename("desk", "pod")
    kept = json.loads(trust.file.read_text("utf-8"))["principals"]
    assert [one["name"] for one in kept[:1]] == ["pod"] and kept[1] == odd


def test_twice_the_same_key_or_name_counts_once(
    trust: Trust, caplog: pytest.LogCaptureFixture
) -> None:
    twice = file_of(
        entry(), entry(name="x"), entry(THIRD, name="CLOUD"), entry(b"x" * 32, name="y")
    )
    write(trust, twice)
    assert [(one.key, one.name) for one in trust.principals()] == [
        (OTHER, "cloud"),
        (b"x" * 32, "y"),
    ]
    assert len(caplog.records) == 2


def test_pairing_anew_takes_the_place_of_what_was_passed_over(trust: Trust) -> None:
    write(trust, file_of(entry(permissions=None)))
    trust.pair(OTHER, "cloud")
    assert len(json.loads(trust.file.read_text())["principals"]) == 1


def test_a_permission_of_a_newer_zbus_is_none(trust: Trust) -> None:
    write(trust, file_of(entry(permissions=["exchange", "dance", 5])))
    assert trust.named("cloud").permissions == {EXCHANGE}


def test_there_is_an_end_to_it(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zbus.trust.MAX_PRINCIPALS", 2)
    trust.pair(OTHER, "a")
    trust.pair(THIRD, "b")
    with pytest.raises(InputError, match="2 are paired already"):
        trust.pair(b"x" * 32, "c")
    trust.pair(OTHER, "a")
    monkeypatch.setattr("zbus.principals.MAX_FILE", trust.file.stat().st_size)
    with pytest.raises(TrustError, match="larger"):
        trust.rename("a", "longer")
    assert names(trust) == ["a", "b"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": b"x"},
        {"key": "x" * 32},
        {"permissions": frozenset({"x"})},
        {"peers": (("a", ()), ("a", ()))},
        {"paired": "\0"},
    ],
    ids=str,
)
def test_a_principal_is_checked_wherever_it_comes_from(wrong: dict[str, Any]) -> None:
    good = Principal(OTHER, "cloud")
    with pytest.raises(InputError):
        dataclasses.replace(good, **wrong)


# --- changes --------------------------------------------------------------------------------------


def test_a_change_by_another_is_seen_by_refresh(trust: Trust) -> None:
    assert not trust.refresh()
    other = Trust(trust.folder)
    other.pair(OTHER, "cloud")
    assert trust.of(OTHER) is None, "reads are of memory"
    assert trust.refresh() and not trust.refresh()
    assert trust.of(OTHER) is not None
    other.permit("cloud", [JOBS])
    assert trust.refresh() and trust.named("cloud").permissions == {JOBS}
    os.utime(trust.file, (1, 1))
    assert not trust.refresh(), "touched, and the same"
    other.forget("cloud")
    assert trust.refresh() and trust.of(OTHER) is None
    other.pair(OTHER, "cloud")
    trust.refresh()
    trust.file.unlink()
    assert trust.refresh() and trust.principals() == []


def test_a_change_made_here_is_told_by_refresh_too(trust: Trust) -> None:
    trust.refresh()
    trust.pair(OTHER, "cloud")
    assert trust.of(OTHER) is not None
    assert trust.refresh() and not trust.refresh()


def test_readers_do_not_wait_for_a_writer(trust: Trust) -> None:
    trust.pair(OTHER, "cloud")
    with private.locked(trust.folder / "trust.lock"):
        writer = threading.Thread(target=trust.pair, args=(THIRD, "desk"))
        writer.start()
        assert trust.of(OTHER) is not None and not trust.require_pairing
        trust.refresh()
        assert writer.is_alive()
    writer.join(10)
    assert names(trust) == ["cloud", "desk"]


def test_a_writer_waits_for_the_lock_but_not_for_ever(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private, "LOCK_WITHIN", 0.1)
    trust.pair(OTHER, "cloud")
    with private.locked(trust.folder / "trust.lock"):
        with pytest.raises(TrustError, match="another program holds"):
            trust.forget("cloud")
    trust.forget("cloud")


WRITER = """
    import sys
    from pathlib import Path
    from zbus.trust import Trust
    trust, me = Trust(Path(sys.argv[1])), int(sys.argv[2])
    trust.keys
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(15):
        name = f"{me}-{number}"
        trust.pair(bytes([me, number]) * 16, "new", ["exchange"])
        mine = trust.of(bytes([me, number]) * 16).name
        trust.permit(mine, ["jobs"])
        trust.rename(mine, name)
    print("done", flush=True)
"""


def test_concurrent_writers_lose_nothing(trust: Trust) -> None:
    trust.keys  # noqa: B018
    with child(WRITER, trust.folder, 1) as one, child(WRITER, trust.folder, 2) as two:
        writers = [one, two]
        for writer in writers:
            writer.line("ready")
        for writer in writers:
            writer.tell("go")
        for number in range(15):  # and a thread of this process
            trust.pair(bytes([3, number]) * 16, f"3-{number}", [JOBS])
        for writer in writers:
            writer.line("done", within=60)
    trust.refresh()
    assert {one.name for one in trust.principals()} == {
        f"{me}-{number}" for me in (1, 2, 3) for number in range(15)
    }
    assert all(one.permissions == {JOBS} for one in trust.principals())
    assert sorted(path.name for path in trust.folder.iterdir()) == [
        "secret.key",
        "trust.json",
        "trust.lock",
    ]


def test_a_writer_that_fails_leaves_the_store_as_it_was(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust.pair(OTHER, "cloud")
    before = trust.file.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrustError, match=r"trust\.json cannot be written: No space left"):
        trust.forget("cloud")
    assert trust.file.read_bytes() == before and names(trust) == ["cloud"]
    assert not [path for path in trust.folder.iterdir() if path.suffix == ".tmp"]


def test_nothing_secret_in_any_log(trust: Trust, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = to_text(trust.keys.secret)
    trust.pair(OTHER, "cloud", [JOBS], (("a", ("https://user:hush@h/",)),))
    write(trust, file_of(entry(permissions=None, peers={"a": ["https://user:hush@h/"]})))
    trust.refresh()
    assert secret not in caplog.text and "hush" not in caplog.text
    assert secret not in trust.file.read_text()
    assert isinstance(trust.keys, KeyPair) and secret not in repr(vars(trust))
