"""Operating points on disk: built once, mapped by every later run, worker and export.

A folder holds the codes of each layer in a file of its own, which trials map rather than read, and an index, written
last, with the curves and the key that says what they were built from.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.atomic import replace_file
from autonuq.quant.codebook import Codebook
from autonuq.quant.curve import Curve
from autonuq.quant.points import OperatingPoints

INDEX, CODES_SUFFIX = "index.npz", ".npy"


def store_points(folder: Path, key: str, built: Iterable[tuple[str, OperatingPoints]]) -> dict[str, OperatingPoints]:
    """Write points as they are built, and return them with their codes mapped.

    Notes
    -----
    **Cost**: one layer's codes are in memory at a time.
    """
    folder.mkdir(exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    curves: dict[str, Curve] = {}
    for number, (name, points) in enumerate(built):
        codes = np.ascontiguousarray(points.codes)
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(codes))
        replace_file(_codes_file(folder, number), [head.getvalue(), codes.reshape(-1).view(np.uint8).data])
        curves[name] = points.curve
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **_index_arrays(key, curves))
    replace_file(folder / INDEX, [buffer.getbuffer()])
    return _mapped(folder, curves)


def load_points(folder: Path, key: str) -> dict[str, OperatingPoints] | None:
    """Map stored points, or return None if there are none under this key."""
    try:
        with np.load(folder / INDEX, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            curves = {str(name): _curve(str(name), arrays, index) for index, name in enumerate(arrays["layers"])}
        return _mapped(folder, curves)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # what is damaged is built again, like what is missing


def _codes_file(folder: Path, number: int) -> Path:
    return folder / f"{number}{CODES_SUFFIX}"


def _mapped(folder: Path, curves: Mapping[str, Curve]) -> dict[str, OperatingPoints]:
    points = {}
    for number, (name, curve) in enumerate(curves.items()):
        codes = np.load(_codes_file(folder, number), mmap_mode="r", allow_pickle=False)
        if len(codes) != len(curve.rates_bytes):
            raise ValueError(f"codes of layer '{name}' do not belong to its curve")
        points[name] = OperatingPoints(curve, codes)
    return points


def _index_arrays(key: str, curves: Mapping[str, Curve]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {"key": np.array(key), "layers": np.array(list(curves))}
    for index, curve in enumerate(curves.values()):
        arrays[f"{index}:rates_bytes"] = np.asarray(curve.rates_bytes)
        arrays[f"{index}:distortions"] = np.asarray(curve.distortions)
        arrays[f"{index}:tables"] = np.array([codebook.table for codebook in curve.codebooks])
        arrays[f"{index}:levels"] = np.concatenate([codebook.levels for codebook in curve.codebooks])
        arrays[f"{index}:counts"] = np.array([len(codebook.levels) for codebook in curve.codebooks])
    return arrays


def _curve(name: str, arrays: Mapping[str, NDArray[Any]], index: int) -> Curve:
    levels = np.split(arrays[f"{index}:levels"], np.cumsum(arrays[f"{index}:counts"])[:-1])
    codebooks = tuple(Codebook(own, table) for own, table in zip(levels, arrays[f"{index}:tables"], strict=True))
    return Curve(name, arrays[f"{index}:rates_bytes"], arrays[f"{index}:distortions"], codebooks)
