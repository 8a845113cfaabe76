"""Keys: a CURVE key pair says who a user on a machine is; a public key's fingerprint says it aloud.

A public key as text is 52 base32 characters. Its fingerprint is 120 bits of a hash of it, in four
groups that two people can read to each other; the last character of each group tells a misread one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

import zmq
from zmq.utils import z85

from .errors import InputError

SIZE = 32  # bytes of a public and of a secret key
TEXT = 52  # characters of either
GROUP = 6  # characters of a fingerprint's group, before its check character
HASH = 15  # bytes: 24 base32 characters, four groups
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"  # base32, RFC 4648


@dataclass(frozen=True)
class KeyPair:
    """The two halves of a key, 32 raw bytes each. Whoever has `secret` is its user."""

    public: bytes
    secret: bytes = field(repr=False)


def generate() -> KeyPair:
    """A new key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(z85.decode(public), z85.decode(secret))


def public_of(secret: bytes) -> bytes:
    """The public key that belongs to a secret one."""
    return z85.decode(zmq.curve_public(z85.encode(secret)))


def to_text(key: bytes) -> str:
    """A key as 52 lower-case characters."""
    return base64.b32encode(key).decode().rstrip("=").lower()


def from_text(text: str) -> bytes:
    """The key in a text of `to_text`, in upper or lower case.

    Raises:
        InputError: It is none. The text is not repeated: it might be a secret one.
    """
    written = text.strip()
    if len(written) == TEXT and written.isascii():
        try:
            key = base64.b32decode(written.upper() + "====")
        except binascii.Error:
            key = b""
        # The last character has four bits to spare: a key has one text only.
        if len(key) == SIZE and to_text(key) == written.lower():
            return key
    raise InputError(
        f"that is not a public key: a public key is {TEXT} letters and digits from 2 to 7",
        remedy="Copy it anew from: zbus-pair fingerprint",
    )


def fingerprint(public: bytes) -> str:
    """What two people compare, such as "ABCDEFG-HIJKLMN-OPQRSTU-VWXYZ23"."""
    digest = hashlib.blake2b(public, digest_size=HASH, person=b"zbus-fingerprint").digest()
    letters = base64.b32encode(digest).decode()
    groups = [letters[start : start + GROUP] for start in range(0, len(letters), GROUP)]
    return "-".join(group + _check(group) for group in groups)


def short(public: bytes) -> str:
    """A fingerprint's first group: enough to recognise a known key by, not to trust one."""
    return fingerprint(public).partition("-")[0]


def _check(group: str) -> str:
    """Luhn's check character in base 32: another one for every single letter misread."""
    total = 0
    for place, letter in enumerate(reversed(group)):
        value = ALPHABET.index(letter) * (2 if place % 2 == 0 else 1)
        total += value // 32 + value % 32
    return ALPHABET[-total % 32]
