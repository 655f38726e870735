"""The one rule for names that become files: of studies, and of what arrives from a storage or another machine.

A name must be the same file wherever the study is looked at, and must not leave the folder that it is put in. So it has
1 to 200 bytes of UTF-8, all of them printable characters; none is a slash, a backslash or one of ``:*?"<>|``; it does
not begin with a space or end with a space or a dot; and it is none of Windows's own names (``con``, ``nul``, ``com1``,
with whatever behind a dot).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath

LONGEST_BYTES = 200
RULE = (
    'a name that becomes a file has 1 to 200 bytes, none of /\\:*?"<>| and nothing unprintable in it, no space at '
    "either end, no dot at the end, and is not one of Windows's own, such as con or nul"
)
_FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
_WINDOWS = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(\..*)?", re.IGNORECASE)


def is_file_name(name: str) -> bool:
    """Say whether a name keeps the rule."""
    return (
        name.isprintable()
        and 0 < len(name.encode()) <= LONGEST_BYTES
        and _FORBIDDEN.search(name) is None
        and name == name.strip(" ")
        and not name.endswith(".")
        and _WINDOWS.fullmatch(name) is None
    )


def file_name_of(name: str) -> str:
    """Return the name, or one like it that keeps the rule: studies of earlier versions may be called anything."""
    if is_file_name(name):
        return name
    like = re.sub(r"[^\w-]+", "_", name).strip("_")[:40]
    return f"{like}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def file_below(folder: Path, name: str) -> Path | None:
    """Return the file of a relative name, with ``/`` between its parts, in a folder; None if it is not there.

    It is not there where a part breaks the rule, or is a link out of the folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or "/".join(parts) != name or not all(map(is_file_name, parts)):
        return None
    path = folder.joinpath(*parts)
    return path if path.resolve().is_relative_to(folder.resolve()) else None
