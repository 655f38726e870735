"""Passwords are shown nowhere and stored nowhere: the one place that takes them out of URLs and of texts.

Whoever needs a password gives it anew, in `AUTONUQ_STORAGE`, with ``--storage``, or as the server's own client takes it
(``PGPASSWORD``, ``~/.pgpass``). What is masked still tells whose account on which server it was.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "***"

_SECRET = r"pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|api_?key|access_?key|auth"
_SECRET_QUERY = re.compile(rf"([?&;][^=&;]*(?:{_SECRET})[^=&;]*=)[^&;#]*", re.IGNORECASE)
_SECRET_WORD = re.compile(rf"(?:{_SECRET})\w*\s*=", re.IGNORECASE)
_QUERY = re.compile(r"([?&;][^=&;]+=)([^&;#]*)")
# A URL between quotes may hold anything else, as a string of TOML's or of a shell's does.
_IN_TEXT = re.compile(
    r"""(?P<quote>["'])[^"'\s:]*://.*?(?<!\\)(?P=quote)|(?<![a-z0-9+.-])[a-z][a-z0-9+.-]*://[^\s"'<>]+""", re.I
)
# A parser's "got token: x" gives nothing away.
_ASSIGNED = re.compile(
    r"""(\b\w{0,40}(?:password|passwd|passphrase|pwd|secret|token|api_?key|access_?key)\w{0,40}\s{0,9}(?:=|(?<!\btoken):)\s{0,9})"""
    r"""("[^"\n]*"|'[^'\n]*'|[^\s"'&;,)]+)""",
    re.IGNORECASE,
)


def masked(url: str) -> str:
    """Return a URL, or an argument that ends with one, without its password and without secret values in its query.

    A password may hold what it should not, unescaped: it goes from the first colon to the last ``@`` in front of the
    query, or behind that where there is none before.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    return scheme + separator + _masked_query(rest if rest.startswith("/") else _masked_account(rest))


def _masked_account(rest: str) -> str:
    end = rest.rfind("@", 0, rest.find("?") if "?" in rest else len(rest))
    end = end if end >= 0 else rest.rfind("@")
    user, colon, _ = rest[: max(end, 0)].partition(":")
    is_query = "?" in user  # the @ belongs to a value
    return f"{user}:{MASK}{rest[end:]}" if colon and not is_query else rest


def _masked_query(rest: str) -> str:
    rest = _SECRET_QUERY.sub(rf"\1{MASK}", rest)
    return _QUERY.sub(lambda found: found[1] + (MASK if _SECRET_WORD.search(unquote(found[2])) else found[2]), rest)


def masked_text(text: str) -> str:
    """Return a text with every URL in it masked, and every value that is assigned to a password."""
    if "://" in text:
        text = _IN_TEXT.sub(_masked_found, text)
    return _ASSIGNED.sub(_masked_value, text)


def _masked_found(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    return quote + masked(found[0][len(quote) : len(found[0]) - len(quote)]) + quote


def _masked_value(found: re.Match[str]) -> str:
    value = found[2]
    quote = value[0] if value[0] in "\"'" and len(value) > 1 else ""
    return f"{found[1]}{quote}{MASK}{quote}"


def secrets_of(url: str) -> tuple[str, ...]:
    """Return what of a URL nobody may see, as it stands and decoded, the longest first; pieces of it, too.

    Whoever reads a URL whose password was not escaped takes a piece of that for a port, and says so.
    """
    shown = masked(url)
    if shown == url:
        return ()
    start = next(index for index, (one, other) in enumerate(zip(url, shown, strict=False)) if one != other)
    hidden = url[start : url.rfind("@")] if url.rfind("@") > start else url[start:]
    whole = {hidden, unquote(hidden)}
    found = whole | {piece for text in whole for piece in re.split(r"[:/?#@&;=\s]", text) if len(piece) > 1}
    return tuple(sorted(found, key=len, reverse=True))


def without_secrets(text: str, url: str) -> str:
    """Return a text that came of using a URL, masked, and without what is secret in that."""
    text = masked_text(text)
    for secret in secrets_of(url):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    return text
