"""Writing files so that a crash leaves the old one or the new one, never a part, and that a full disk is named.

Temporary files and folders bear the mark of their process (`processes`): what a killed one left behind is removed by
whoever writes there next.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from autonuq.processes import is_left_behind, new_mark

_PATIENCE_S, _POLL_S = 5.0, 0.02
_CHUNK_BYTES = 1 << 20
_NO_ROOM: Mapping[int, str] = {
    errno.ENOSPC: "make room there",
    getattr(errno, "EDQUOT", errno.ENOSPC): "make room there",
    errno.EFBIG: "its file system or 'ulimit -f' must allow files of this size",
}
_NOT_ALLOWED: Mapping[int, str] = {
    errno.EROFS: "it must be mounted to be written, or choose another place",
    errno.EACCES: "choose a place that you may write",
    errno.EPERM: "choose a place that you may write",
    errno.EIO: "look after the disk",
}
_GO_ON = "then run this again, or 'autonuq resume' for a study that was begun"


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
        With `path`: the folder is missing or not writable, or the disk is full; the old file is untouched.
    """
    with replacing(path) as file:
        file.writelines(chunks)
    return Path(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Give an open file that takes the place of `path` in the end, unless something is raised; see `replace_file`."""
    path = Path(path)
    remove_left_behind(path.parent, f".{path.name}.")
    temporary = path.with_name(f".{path.name}.{new_mark()}")
    with writing(path):
        # Unlike tempfile's, this file gets the permissions that the process's umask leaves.
        file = temporary.open("xb")
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Give errors of the system the name of the file that is being written, unless they name another already."""
    path = Path(path)
    try:
        yield
    except OSError as error:
        own = error.filename is None or Path(os.fsdecode(error.filename)).name.startswith(f".{path.name}.")
        if error.errno is None or not own:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a temporary name tells nobody anything


def append_text(path: Path, text: str) -> None:
    """Append to a text file by one write.

    Raises
    ------
    OSError
        With the file's name.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def allocate(file: IO[bytes], size_bytes: int) -> None:
    """Give an open, empty file blocks of zeros: one that is mapped without them ends the process on a full disk.

    Raises
    ------
    OSError
        There is no room.
    """
    descriptor = file.fileno()
    if hasattr(os, "posix_fallocate") and size_bytes:
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system that cannot
                raise
        else:
            return
    zeros = bytes(min(_CHUNK_BYTES, size_bytes))
    for begin in range(0, size_bytes, _CHUNK_BYTES):
        file.write(memoryview(zeros)[: size_bytes - begin])
    file.flush()
    os.fsync(descriptor)  # file systems that allocate late do so now


@contextmanager
def temporary_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """Make a folder, in the system's place for such or another one, and delete it afterwards."""
    place = Path(parent or tempfile.gettempdir())
    remove_left_behind(place, "autonuq-")
    folder = place / f"autonuq-{new_mark()}"
    folder.mkdir(0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the next one deletes what cannot be deleted now


def remove_left_behind(folder: Path, prefix: str) -> None:
    """Delete temporary files and folders of killed processes, in a folder, whose names begin so."""
    with suppress(OSError):  # the folder is missing or not ours: whoever writes there will say so
        for path in [Path(entry) for entry in os.scandir(folder) if entry.name.startswith(prefix)]:
            with suppress(OSError):  # another one was faster, or it is another user's
                if is_left_behind(path):
                    _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def is_out_of_room(error: BaseException) -> bool:
    """Say whether an error is the system's that there is no room for a file, or that its disk cannot be written."""
    return isinstance(error, OSError) and error.errno in (*_NO_ROOM, errno.EROFS, errno.EIO)


def say_system_error(error: OSError) -> str:
    """Say which file, what is wrong with it, and what to do, in one line."""
    what = "cannot be used" if error.errno not in {**_NO_ROOM, **_NOT_ALLOWED} else "cannot be written"
    remedy = {**_NOT_ALLOWED, **_NO_ROOM}.get(error.errno or 0)
    said = f"{what}: {error.strerror}" if error.filename or remedy else str(error)
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return where + said + (f"; {remedy}, {_GO_ON}" if remedy else "")


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
