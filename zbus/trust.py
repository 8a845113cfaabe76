"""Whom this user trusts: the key pair of this user on this machine, and those it is paired with.

Two files in the user's own folder (`discovery.home`): ``secret.key``, and ``trust.json``, which
people may read and edit. Reads are of memory; `Trust.refresh` looks whether the file has changed.
Each change is read, made and written under a lock, so that two programs lose nothing of each
other's. The file is checked like anything that comes from outside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from . import discovery, given, opening, private
from .errors import InputError, InvalidAddress, TrustError, UnknownPeer
from .keys import KeyPair, from_text, generate, public_of, short, to_text
from .principals import (
    EVERY_HOST,
    EXCHANGE,
    JOBS,
    MAX_NAME,
    MAX_PRINCIPALS,
    PERMISSIONS,
    Peers,
    Principal,
    Store,
    check_name,
    listen_host,
    read_store,
    to_json,
)

__all__ = ["EXCHANGE", "JOBS", "PERMISSIONS", "Peers", "Principal", "Trust"]

logger = logging.getLogger(__name__)

SELF = "this user"  # the name of one's own key
MAX_KEY_FILE = 4096
KEY_FILE = "secret.key"

_RESERVED = (SELF, "this computer", "all", "any free")  # words that nodes and texts use
_KEY_NOTE = "# The secret key of zbus for this user on this machine. Give it to nobody.\n"
T = TypeVar("T")
_Edit = Callable[[Principal, Sequence[Principal]], Principal]


class Trust:
    """The trust store of this user. Cheap to make; for any thread.

    Args:
        folder: In place of `discovery.home`.

    Every property and method raises TrustError where a file cannot be read or written; the text
    names it. Methods that change something raise InputError for what cannot be used, and
    UnknownPeer for a name that nobody here has.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder
        self._lock = threading.RLock()
        self._keys: KeyPair | None = None
        self._store: Store | None = None
        self._by_key: dict[bytes, Principal] | None = None
        self._stamp: tuple[int, ...] | None = None  # of the file as last read
        self._is_lent = False  # the LAN, to an invitation
        self._told = (Store(), False)  # what `refresh` has told of
        self._complaint = ""  # the last one of `refresh`

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        try:
            return self._given or discovery.home()
        except OSError as error:
            raise TrustError(str(error)) from error

    @property
    def file(self) -> Path:
        """The file of the paired."""
        return self.folder / "trust.json"

    # --- reading ----------------------------------------------------------------------------------

    @property
    def keys(self) -> KeyPair:
        """This user's key pair on this machine; made at the first use."""
        with self._lock:
            if self._keys is None:
                self._keys = _key_pair(self.folder)
            return self._keys

    @property
    def has_keys(self) -> bool:
        """Whether there is a key pair, without making one."""
        return self._keys is not None or (self.folder / KEY_FILE).exists()

    def principals(self) -> list[Principal]:
        """All that are trusted, by name: the paired ones and those of ZBUS_TRUST, not oneself."""
        return sorted(self._trusted().values(), key=lambda one: one.name.casefold())

    def of(self, key: bytes) -> Principal | None:
        """Whose key that is; oneself too, with all permissions."""
        if key == self.keys.public:
            return Principal(key, SELF, PERMISSIONS)
        return self._trusted().get(key)

    def named(self, name: str) -> Principal:
        """The one of that name; upper and lower case count only where two differ by them."""
        return _named(name, self.principals())

    @property
    def lan(self) -> str:
        """The host to listen on beyond the loopback; "": none. ZBUS_LISTEN wins."""
        written = os.environ.get("ZBUS_LISTEN", "").strip()
        if written:
            return _listen_by_environment(written)
        return self._known().lan or (EVERY_HOST if self._is_lent else "")

    @property
    def is_lan_lent(self) -> bool:
        """Whether an invitation to pair has opened the LAN, for as long as it lasts; as was seen
        when the store was last looked at."""
        store = self._store
        return self._is_lent and not (store is not None and store.lan)

    @property
    def require_pairing(self) -> bool:
        """Whether the plain loopback is closed too."""
        if given.switch("ZBUS_REQUIRE_PAIRING", otherwise=False, wary=True):
            return True
        try:
            folder = self.folder
        except TrustError:  # a user without a home has never asked for it
            return False
        return folder.exists() and self._known().require_pairing

    def refresh(self) -> bool:
        """Read the file if it has changed; whether that, or a change made here, makes a difference
        to what was known at the last call.

        Raises:
            TrustError: The changed file cannot be used. What was known stays, and counts. The same
                is said once.
        """
        with self._lock:
            try:
                self.reload()
            except TrustError as error:
                if self._store is not None and self._complaint == str(error):
                    return False
                self._complaint = str(error)
                raise
            self._complaint = ""
            now = (self._store or Store(), self._is_lent)
            changed, self._told = now != self._told, now
            return changed

    def reload(self) -> None:
        """Read the file if it has changed, and leave it to `refresh` to tell of that."""
        with self._lock:
            self._is_lent = opening.is_lent(self.folder)
            stamp = private.stamp(self.file)
            if stamp == self._stamp and self._stamp is not None:
                return
            self._take(read_store(self.file))
            self._stamp = stamp

    def _trusted(self) -> dict[bytes, Principal]:
        """Each by its key. Apart from the store, which needs no keys of this side."""
        store = self._known()
        with self._lock:
            if self._by_key is None:
                self._by_key = _trusted(store, self.keys.public)
            return self._by_key

    def _known(self) -> Store:
        with self._lock:
            if self._store is None:
                self.reload()
            assert self._store is not None
            return self._store

    def _take(self, store: Store) -> None:
        self._by_key, self._store = None, store

    # --- changing ---------------------------------------------------------------------------------

    def pair(
        self, key: bytes, name: str, permissions: Iterable[str] = (), peers: Peers = ()
    ) -> Principal:
        """Trust a key. A known one gets all of this anew; a name that another has, a number."""
        if key == self.keys.public:
            raise InputError(
                "that is this user's own key: the ComfyUIs of one user on one machine trust each "
                "other without pairing",
                remedy="Write the other one's name: zbus-ping --discover lists them",
            )
        paired = datetime.now(timezone.utc).isoformat(timespec="seconds")
        wanted = Principal(key, name.strip(), frozenset(permissions), peers, paired)

        text = to_text(key)

        def edit(store: Store) -> tuple[Store, Principal]:
            others = tuple(one for one in store.principals if one.key != key)
            if len(others) + len(store.odd) >= MAX_PRINCIPALS:
                raise InputError(
                    f"{MAX_PRINCIPALS} are paired already", remedy="Forget some: zbus-pair forget"
                )
            taken = {*_RESERVED, *(one.name.casefold() for one in others)}
            made = replace(wanted, name=_free_name(wanted.name, taken))
            odd = tuple(
                one for one in store.odd if not isinstance(one, dict) or one.get("key") != text
            )
            return replace(store, principals=(*others, made), odd=odd), made

        return self._change(edit)

    def rename(self, name: str, new: str) -> Principal:
        """Call one otherwise."""
        new = new.strip()
        check_name(new)

        def edit(one: Principal, others: Sequence[Principal]) -> Principal:
            if new.casefold() in {*_RESERVED, *(other.name.casefold() for other in others)}:
                raise InputError(f"'{new}' is taken", remedy="Choose another name")
            return replace(one, name=new)

        return self._edit(name, edit)

    def move(self, name: str, addresses: Sequence[str], peer: str = "") -> Principal:
        """Reach one's ComfyUI at these addresses from now on, in this order.

        Args:
            peer: Which of its ComfyUIs; "": the only one, or one of the principal's name.
        """
        there = tuple(written.strip() for written in addresses)

        def edit(one: Principal, _: Sequence[Principal]) -> Principal:
            known = dict(one.peers)
            if not peer and len(known) > 1:
                raise InputError(
                    f"'{one.name}' has more than one ComfyUI: {', '.join(known)}",
                    remedy="Say which one has moved: --peer NAME",
                )
            known[peer.strip() or next(iter(known), one.name)] = there
            return replace(one, peers=tuple(known.items()))

        return self._edit(name, edit)

    def permit(self, name: str, permissions: Iterable[str]) -> Principal:
        """Say what one may do here: that, and nothing else."""
        wanted = frozenset(permissions)

        def edit(one: Principal, _: Sequence[Principal]) -> Principal:
            return replace(one, permissions=wanted)

        return self._edit(name, edit, revokes=True)

    def forget(self, name: str) -> Principal:
        """Trust one no longer; returns who it was."""

        def edit(store: Store) -> tuple[Store, Principal]:
            gone = self._stored(name, store, revokes=True)
            left = tuple(one for one in store.principals if one.key != gone.key)
            return replace(store, principals=left), gone

        return self._change(edit)

    def set_lan(self, host: str) -> None:
        """Listen on that numeric address too: "on" for all of them, "off" or "" for none, whatever
        is lent."""
        lan = listen_host(host)
        if not lan:
            opening.take_back(self.folder)
        self._change(lambda store: (replace(store, lan=lan), None))

    @contextlib.contextmanager
    def lan_lent(self) -> Iterator[None]:
        """Listen on all addresses meanwhile. Whatever ends this process ends that, too."""
        try:
            with opening.lent(self.folder):
                self._change(lambda store: (store, None))  # or why nobody could be stored
                self.reload()
                yield
        finally:
            with contextlib.suppress(TrustError):  # what has ended it is worth more
                self.reload()

    def set_require_pairing(self, flag: bool) -> None:
        """Close the plain loopback, or open it again."""
        self._change(lambda store: (replace(store, require_pairing=flag), None))

    def _stored(self, name: str, store: Store, *, revokes: bool) -> Principal:
        """The one of that name, which only the store trusts if a right is to be revoked."""
        key = _named(name, _trusted(store, self.keys.public).values()).key
        one = next((one for one in store.principals if one.key == key), None)
        if one is None or (revokes and key in _trusted_by_environment()):
            raise InputError(
                f"'{name.strip()}' is trusted by ZBUS_TRUST, whatever the store says",
                remedy="Take its key out of that variable, and start ComfyUI again",
            )
        return one

    def _edit(self, name: str, edit: _Edit, *, revokes: bool = False) -> Principal:
        def whole(store: Store) -> tuple[Store, Principal]:
            one = self._stored(name, store, revokes=revokes)
            made = edit(one, [other for other in store.principals if other is not one])
            principals = (made if other is one else other for other in store.principals)
            return replace(store, principals=tuple(principals)), made

        return self._change(whole)

    def _change(self, edit: Callable[[Store], tuple[Store, T]]) -> T:
        """Read, change and write the file, with nobody between."""
        folder, file, _ = private.make_folder(self.folder), self.file, self.keys
        # Not under `_lock` too: who only reads must not wait for another process.
        with private.locked(folder / "trust.lock"):
            store, result = edit(read_store(file))
            private.write(file, to_json(file, store))
            with self._lock:
                self._stamp = private.stamp(file)
                self._take(store)
        return result


# --- names ----------------------------------------------------------------------------------------


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, with a number if it is in `taken`, which holds casefolded ones."""
    free, number = name, 1
    while free.casefold() in taken:
        number += 1
        free = f"{name[: MAX_NAME - 6].rstrip()}-{number}"
    return free


def _named(name: str, known: Iterable[Principal]) -> Principal:
    wanted, known = name.strip(), list(known)
    same = [one for one in known if one.name == wanted]
    same = same or [one for one in known if one.name.casefold() == wanted.casefold()]
    if len(same) == 1:
        return same[0]
    names = sorted(one.name for one in known)
    shown = ", ".join(names[: discovery.SHOWN]) + ("..." if len(names) > discovery.SHOWN else "")
    raise UnknownPeer(
        f"nobody named '{wanted}' is paired here; paired: {shown or 'nobody'}",
        remedy="Look at: zbus-pair list",
    )


def _trusted(store: Store, own: bytes) -> dict[bytes, Principal]:
    """All that are trusted, by key, but oneself."""
    known = {one.key: one for one in store.principals if one.key != own}
    taken = {*_RESERVED, *(one.name.casefold() for one in known.values())}
    for key in _trusted_by_environment():
        if key in known:
            known[key] = replace(known[key], permissions=PERMISSIONS)
        elif key != own:
            name = _free_name(f"trusted-{short(key)}", taken)
            taken.add(name.casefold())
            known[key] = Principal(key, name, PERMISSIONS)
    return known


def _trusted_by_environment() -> tuple[bytes, ...]:
    return _keys_in(os.environ.get("ZBUS_TRUST", ""))


@lru_cache(maxsize=4)  # so that what is wrong is logged once
def _keys_in(written: str) -> tuple[bytes, ...]:
    keys = []
    for place, text in enumerate(written.split(",")[:MAX_PRINCIPALS], 1):
        try:
            if text.strip():
                keys.append(from_text(text))
        except InputError:
            # Not repeated: it might be something secret.
            logger.warning("ZBUS_TRUST: the entry at place %d is not a public key: ignored", place)
    return tuple(dict.fromkeys(keys))


@lru_cache(maxsize=4)
def _listen_by_environment(written: str) -> str:
    try:
        return listen_host(written)
    except InvalidAddress as error:
        logger.warning("ZBUS_LISTEN: %s. Only the loopback is listened on", error)
        return ""


# --- the key --------------------------------------------------------------------------------------


def _key_pair(folder: Path) -> KeyPair:
    file = private.make_folder(folder) / KEY_FILE
    pair = _read_key(file)
    if pair is None:
        with private.locked(folder / "trust.lock"):
            pair = _read_key(file)  # another process may have been faster
            if pair is None:
                pair = generate()
                private.write(file, f"{_KEY_NOTE}{to_text(pair.secret)}\n".encode())
    return pair


def _read_key(file: Path) -> KeyPair | None:
    data = private.read(file, MAX_KEY_FILE)
    if data is None:
        return None
    try:
        lines = [line for line in data.decode().splitlines() if line and line[0] != "#"]
        (text,) = lines
        secret = from_text(text)
    except ValueError:  # InputError too, which is not kept: it would stand in a traceback
        raise TrustError(
            f"{file} holds no key",
            remedy="Put it back from a copy; or delete it: this machine then gets a new key, and "
            "has to be paired anew with all others",
        ) from None
    return KeyPair(public_of(secret), secret)
