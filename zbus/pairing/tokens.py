"""Tokens of invitations to pair: one line that people copy, checked before anything is dialled."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from ..address import Address, parse_dial
from ..errors import BadToken, InputError, InvalidAddress
from ..keys import SIZE as KEY

VERSION = 1
PREFIX = "zbus-"
SECRET = 16  # bytes
MAX_HINTS = 8
MAX_HOST = 253  # characters of a DNS name
MAX_TOKEN = 8192  # characters
CHECK = 4  # bytes of the checksum
INCOMPLETE = "that token is incomplete"


@dataclass(frozen=True)
class Token:
    """What the inviter shows and the accepter types: whoever has it can pair, once.

    Attributes:
        key: The inviter's public key.
        secret: 16 random bytes, of this invitation alone.
        hints: Where the inviter may be reached: 1 to 8.
    """

    key: bytes
    secret: bytes = field(repr=False)
    hints: tuple[Address, ...]

    def text(self) -> str:
        """One line: "zbus-" and base32 of: version, length of the whole (2 bytes), key, secret,
        the hints (length, host, port: 2 bytes), checksum. The first three and the checksum are
        where they are in every version."""
        if not 0 < len(self.hints) <= MAX_HINTS:
            raise InputError(f"an invitation has 1 to {MAX_HINTS} addresses")
        body = self.key + self.secret
        for hint in self.hints:
            host = host_address(hint.host, hint.port).host.encode()
            body += bytes([len(host)]) + host + hint.port.to_bytes(2, "big")
        head = bytes([VERSION]) + (1 + 2 + len(body) + CHECK).to_bytes(2, "big")
        data = head + body + _checksum(head + body)
        return PREFIX + base64.b32encode(data).decode().rstrip("=").lower()

    @classmethod
    def read(cls, written: str) -> Token:
        """The token in what somebody pasted: upper and lower case, spaces and line breaks do not
        count.

        Raises:
            BadToken: It is mistyped, incomplete, of a newer zbus, or no token at all. The text does
                not repeat it.
        """
        data = _checked(written)
        if data[0] != VERSION:
            raise BadToken("that token is of a newer zbus", remedy="Update zbus on this side")
        body, place = data[3:-CHECK], KEY + SECRET
        hints = []
        while place < len(body):
            end = place + 1 + body[place]
            hints.append(_hint(body[place + 1 : end], body[end : end + 2]))
            place = end + 2
        if place != len(body) or not 0 < len(hints) <= MAX_HINTS:
            raise _mistyped()  # in truth made so: the checksum is right
        return cls(body[:KEY], body[KEY : KEY + SECRET], tuple(hints))


def has_more(written: str) -> bool:
    """Whether that is the beginning of a token, of which the end is missing; or nothing yet."""
    try:
        Token.read(written)
    except BadToken as error:
        is_short = len(written) < MAX_TOKEN  # more of it is not looked at
        return (error.what == INCOMPLETE and is_short) or not written.strip()
    return False


def _checked(written: str) -> bytes:
    """The bytes of a token whose checksum is right."""
    text = "".join(written[:MAX_TOKEN].split()).strip("\"'`<>").lower()
    _, prefix, letters = text.rpartition(PREFIX)  # before it perhaps "zbus-pair accept"
    if not prefix:
        raise BadToken(
            f'that is not a token: one begins with "{PREFIX}"',
            remedy="Copy the whole line that zbus-pair invite has printed",
        )
    letters = letters.upper()
    try:  # filled up, so that any length can be read
        data = base64.b32decode(letters + "A" * (-len(letters) % 8))[: len(letters) * 5 // 8]
    except (binascii.Error, ValueError):
        raise _mistyped() from None
    if len(data) < 3 or len(data) < int.from_bytes(data[1:3], "big"):
        raise BadToken(INCOMPLETE, remedy="Copy all of it, to its last character")
    # The last character may have bits to spare: a token has one text only.
    is_canonical = base64.b32encode(data).decode().rstrip("=") == letters
    if not is_canonical or _checksum(data[:-CHECK]) != data[-CHECK:]:
        raise _mistyped()
    return data


def _mistyped() -> BadToken:
    return BadToken(
        "that token is mistyped: its checksum is wrong",
        remedy="Copy it anew: the whole line that zbus-pair invite has printed",
    )


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECK, person=b"zbus-token").digest()


def _hint(host: bytes, port: bytes) -> Address:
    try:
        return host_address(host.decode("ascii"), int.from_bytes(port, "big"))
    except (UnicodeDecodeError, InvalidAddress):
        raise _mistyped() from None


def host_address(host: str, port: int) -> Address:
    """A host as a name or a numeric address, checked."""
    if len(host) > MAX_HOST or not host.isascii() or not host.isprintable() or " " in host:
        raise InvalidAddress("that is not the name or the numeric address of a host")
    return parse_dial(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
