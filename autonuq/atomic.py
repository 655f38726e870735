"""Writing a file so that a crash leaves the old one or the new one, never a part."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path


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
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the temporary name tells nobody anything
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def replace_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` as UTF-8, atomically."""
    return replace_file(path, [text.encode()])
