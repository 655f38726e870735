"""Refuses what Windows refuses, once it is imported, and keeps what it refused in `refused`.

A file that is open or mapped cannot be replaced, moved or deleted, and neither can a folder that holds one; some names
cannot be had at all. What this process has open is looked up in /proc.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

refused: list[str] = []
"""Also what somebody suppressed."""

_DESCRIPTORS = Path("/proc/self/fd")
_NO_NAME = re.compile(r'.*[<>:"|?*\\\x00-\x1f].*|.*[. ]|(con|prn|aux|nul|com\d|lpt\d)(\..*)?', re.IGNORECASE)


def _in_use() -> Iterator[str]:
    """Return the files that are open or mapped."""
    for descriptor in _DESCRIPTORS.iterdir():
        try:
            file = descriptor.readlink()
        except FileNotFoundError:  # closed in the meantime, as that of the folder itself
            continue
        if not file.is_dir():
            yield str(file)
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        address, slash, path = line.partition("/")
        yield slash + path


def _place(path: object, folder: int) -> str:
    beside = Path.cwd() if folder < 0 else (_DESCRIPTORS / str(folder)).readlink()
    return str((beside / os.fsdecode(path)).resolve())


def _refuse(what: str, path: str) -> None:
    refused.append(f"{what}: {path}")
    raise PermissionError(errno.EACCES, what, path)


def _watch(event: str, arguments: tuple) -> None:
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, str | os.PathLike) and flags & os.O_CREAT and _NO_NAME.fullmatch(Path(path).name):
            _refuse("no name for a file", str(path))
        return
    places = []
    if event == "os.remove":
        places = [_place(*arguments)]
    elif event == "os.rename":
        places = [_place(arguments[0], arguments[2]), _place(arguments[1], arguments[3])]
    elif event == "os.mkdir" and _NO_NAME.fullmatch(Path(arguments[0]).name):
        _refuse("no name for a folder", str(arguments[0]))
    if places:
        for used in _in_use():
            if any(used == place or used.startswith(f"{place}/") for place in places):
                _refuse(f"in use, {event}", used)


sys.addaudithook(_watch)
