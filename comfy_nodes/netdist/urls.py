"""Pure: the URL in a text, and as texts may show it."""

from __future__ import annotations

import re

from yarl import URL

from zbus.errors import InvalidAddress
from zbus.protocol.fields import clip

EXAMPLE = 'Write it in full, for example "http://127.0.0.1:8188/view?filename=a.png"'
_SECRET = 4  # characters of a user or a query's value from which on they are kept out of texts


def web_address(written: str) -> URL:
    """The URL in a text.

    Raises:
        InvalidAddress: It is none, or neither http nor https.
    """
    cleaned = written.strip()
    if not cleaned:
        raise InvalidAddress("the URL is empty", remedy=EXAMPLE)
    try:
        url = parsed(cleaned)
    except ValueError:
        raise InvalidAddress(f'"{redacted(cleaned)}" is not a URL', remedy=EXAMPLE) from None
    if url.scheme not in ("http", "https") or not url.host:
        said = f'"{redacted(cleaned)}" is not a URL of http or https'
        raise InvalidAddress(said, remedy=EXAMPLE)
    return url


def parsed(text: str) -> URL:
    """A URL of any kind; raises ValueError."""
    # As it is, where it can be: signed URLs hold only in the very spelling that was signed.
    url = URL(text, encoded=re.fullmatch("[!-~]*", text) is not None)
    _ = url.port  # raises ValueError for what is none, which is looked at only when asked for
    return url


def shown(url: URL | str) -> str:
    """A URL as texts may show it: without user, password, query and fragment."""
    try:
        whole = web_address(str(url))
    except InvalidAddress:
        return redacted(str(url))
    return clip(whole.with_user(None).with_query(None).with_fragment(None).human_repr(), 150)


def redacted(text: str) -> str:
    """As `shown`, of what cannot be taken apart: rather too little than too much."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    start = scheme.group() if scheme else ""
    rest = text[len(start) :].rpartition("@")[2]
    return clip(start + re.split(r"[?#]", rest, maxsplit=1)[0], 150)


def secrets(url: URL) -> list[str]:
    """What a server's own words must not show of a URL: the longest first."""
    values = [*url.query.values(), *re.findall("=([^&]*)", url.raw_query_string)]
    found = [url.password, url.raw_password]
    found += [v for v in (url.user, *values) if v and len(v) >= _SECRET]
    return sorted(filter(None, found), key=len, reverse=True)
