"""Writing a file so that a crash leaves the old one or the new one, never a part."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

_PATIENCE_S, _POLL_S = 5.0, 0.02


def replace_file(path: str | Path, chunks: Iterable[bytes | memoryview]) -> Path:
    """Write `chunks` one after the other to `path`, atomically.

    Parameters
    ----------
    path : str or Path
        Its folder must exist; an old file is replaced.
    chunks : iterable of bytes-like
        Written as they come, never joined in memory.

    Raises
    ------
    OSError
        The folder is missing or not writable, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        # Unlike tempfile's, this file gets the permissions that the process's umask leaves.
        file = temporary.open("xb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the temporary name tells nobody anything
    try:
        with file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _replace(temporary: Path, path: Path) -> None:
    """Put the new file in the old one's place; Windows refuses that while somebody has the old one open."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            temporary.replace(path)
        except PermissionError:
            if os.name != "nt" or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return


def replace_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` as UTF-8, atomically."""
    return replace_file(path, [text.encode()])
