"""NumPy's files, `.npy` and `.npz`, read without belief in what they promise.

An array's header says how much memory it wants, a zip's directory how large a member is and how it is packed; whoever
makes the file may write anything there. Nothing is made here before the file was seen to hold as much. Deflate shrinks
zeros to a thousandth, so a member may also be a bomb; what images and means are never reach such ratios.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from autonuq.errors import AutonuqError
from autonuq.reading import reading

_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
"""Version -> its reader; version 3 is for names of fields alone, and an array of records is none of numbers."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What NumPy writes; of the others Python unpacks any amount at a time."""
_FREE_BYTES = 48 << 20
_MOST_RATIO = 64
"""How large a member may be, beside that, as a multiple of its packed size; a stored one always may."""
_SUFFIX = ".npy"


def load_array(path: str | Path, kind: type[AutonuqError], *, what: str = "") -> NDArray[Any]:
    """Read an `.npy` of plain numbers.

    Parameters
    ----------
    path : str or Path
    kind : type of AutonuqError
        Raised where the file cannot be read, is none, or holds less than it promises.
    what : str, optional
        What the file is; see `reading`.
    """
    path = Path(path)
    with reading(path, kind, f"cannot be read: it is no {_SUFFIX} of plain arrays", what=what), path.open("rb") as file:
        return _read(file, os.fstat(file.fileno()).st_size)


def load_arrays(path: str | Path, names: Sequence[str], kind: type[AutonuqError]) -> dict[str, NDArray[Any]]:
    """Read arrays of plain numbers of an `.npz`.

    Parameters
    ----------
    path : str or Path
    names : sequence of str
        The others are not looked at.
    kind : type of AutonuqError
        Raised where the file cannot be read, is none, lacks an array, or holds less than it promises.

    Notes
    -----
    **Cost**: memory for the arrays that are asked for.
    """
    path = Path(path)
    with (
        reading(path, kind, "cannot be read: it is no .npz of plain arrays"),
        path.open("rb") as file,
        zipfile.ZipFile(file) as archive,
    ):
        members = {info.filename.removesuffix(_SUFFIX): info for info in archive.infolist()}
        for name in names:
            if name not in members:
                raise kind(f"has no array '{name}' (it has: {', '.join(members)})", path=path)
        size = os.fstat(file.fileno()).st_size
        return {name: _member(archive, members[name], size) for name in names}


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size_bytes: int) -> NDArray[Any]:
    """Read an array of an archive of that size."""
    if info.compress_type not in _METHODS:
        raise ValueError(f"'{info.filename}' is packed by a method that NumPy does not use")
    packed = min(info.compress_size, size_bytes)
    most = packed if info.compress_type == zipfile.ZIP_STORED else _FREE_BYTES + _MOST_RATIO * packed
    if info.file_size > most:
        raise ValueError(
            f"'{info.filename}' unpacks to {info.file_size:,} bytes from {packed:,}, as no data do; if they really "
            "do, write them with numpy.savez, which packs nothing"
        )
    with archive.open(info) as member:
        return _read(member, info.file_size)


def _read(file: IO[bytes], size_bytes: int) -> NDArray[Any]:
    """Read an array of a file of that size, once its header asks for no more than there is."""
    version = npy_format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not known")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which could run anything")
    wanted, held = math.prod(shape) * dtype.itemsize, size_bytes - file.tell()
    if not 0 <= wanted <= held:
        raise ValueError(f"an array of shape {shape} of {dtype} takes {wanted:,} bytes, the file has {held:,}")
    file.seek(0)
    return np.asarray(npy_format.read_array(file, allow_pickle=False))
