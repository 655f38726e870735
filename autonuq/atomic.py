"""Writing a file so that a crash leaves the old one or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
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
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def replace_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` as UTF-8, atomically."""
    return replace_file(path, [text.encode()])


def _umask() -> int:
    """Return the process's umask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
