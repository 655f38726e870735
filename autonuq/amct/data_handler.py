"""`amct_caffe.common.cmd_line_utils.data_handler`: calibration data out of folders of raw binary files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError, suggest_name

DATA_TYPES = (
    *(f"float{bits}" for bits in (16, 32, 64)),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "bool",
)


def load_data(
    inputs: Mapping[str, Sequence[int]],
    data_paths: Sequence[str | Path],
    data_types: Sequence[str],
    num: int | None = None,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield batches, each a file of every folder, in the order of the files' names.

    Parameters
    ----------
    inputs : mapping of str to sequence of int
        Input -> shape of a batch.
    data_paths : sequence of str
        The inputs' folders, in the order of `inputs`.
    data_types : sequence of str
        What the inputs' files hold, of `DATA_TYPES`, in the machine's byte order.
    num : int, optional
        How many batches; by default as many as the first folder has files.

    Yields
    ------
    dict of str to ndarray
        Input -> batch.

    Raises
    ------
    QuantizationError
        A folder is not there or has too few files, or a file is not of its batch's size.
    ValueError
        The parameters do not go together.
    """
    if not len(inputs) == len(data_paths) == len(data_types):
        counts = f"{len(inputs)} shapes, {len(data_paths)} folders, {len(data_types)} types"
        raise ValueError(f"each input needs a shape, a folder of data and a data type. Got {counts} instead.")
    files = [_files_of(Path(path)) for path in data_paths]
    wanted = len(files[0]) if num is None else num
    for path, found in zip(data_paths, files, strict=True):
        if len(found) < wanted:
            raise QuantizationError(f"{wanted} batches are asked for, but it holds {len(found)} files", path=path)
    for batch in zip(*(found[:wanted] for found in files), strict=True):
        loaded = zip(inputs.items(), batch, data_types, strict=True)
        yield {name: load_bin_data(file, data_type, shape) for (name, shape), file, data_type in loaded}


def load_bin_data(data_file_name: str | Path, data_types: str, data_shapes: Sequence[int]) -> NDArray[Any]:
    """Read one batch from a file; see `load_data`."""
    if data_types not in DATA_TYPES:
        hint = suggest_name(data_types, DATA_TYPES)
        raise ValueError(f"a data type must be one of {', '.join(DATA_TYPES)}. Got '{data_types}' instead.{hint}")
    path = Path(data_file_name)
    wanted, found = np.dtype(data_types).itemsize * int(np.prod(data_shapes)), path.stat().st_size
    if found != wanted:
        shape = ", ".join(map(str, data_shapes))
        raise QuantizationError(
            f"a batch of {data_types} ({shape}) has {wanted} bytes. Got {found} instead.", path=path
        )
    return np.fromfile(path, data_types).reshape(data_shapes)


def _files_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise QuantizationError("there is no such folder of calibration data", path=folder)
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
