"""Operating points on disk: built once, mapped by every later run, worker and export.

A folder holds the codes of each layer in a file of its own, which trials map rather than read, and an index, written
last, with the curves and the key that says what they were built from.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.atomic import replace_file
from autonuq.quant.codebook import Codebook
from autonuq.quant.curve import Curve
from autonuq.quant.feedback import OutputFactor
from autonuq.quant.points import OperatingPoints, PackedCodes
from autonuq.records import Rounding

INDEX, CODES_SUFFIX = "index.npz", ".npy"
_UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)
_ARRAYS, _FACTOR = ("bias", "scale", "prices"), ("order", "diagonal", "blocks")


def store_points(
    folder: Path, key: str, built: Iterable[tuple[str, OperatingPoints]], rounding: Rounding | None = None
) -> dict[str, OperatingPoints]:
    """Write points as they are built, and return them with their codes mapped.

    Parameters
    ----------
    rounding : Rounding, optional
        How they were made, and what is made of them.

    Notes
    -----
    **Cost**: one layer's codes are in memory at a time.
    """
    folder.mkdir(exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    names: list[str] = []
    arrays: dict[str, NDArray[Any]] = {"key": np.array(key)}
    arrays["rounding"] = np.array(json.dumps(asdict(rounding or Rounding())))
    for number, (name, points) in enumerate(built):
        codes = _stored_codes(points.codes)
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(codes))
        replace_file(_codes_file(folder, number), [head.getvalue(), codes.reshape(-1).view(np.uint8).data])
        names.append(name)
        arrays |= _index_arrays(number, points)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, layers=np.array(names), **arrays)
    replace_file(folder / INDEX, [buffer.getbuffer()])
    return _mapped(folder, names, arrays)


def _stored_codes(codes: Any) -> NDArray[Any]:
    """Return the array that a layer's codes are stored as: bitstreams one behind the other."""
    if isinstance(codes, PackedCodes):
        return np.concatenate([np.frombuffer(stream, np.uint8) for stream in codes.streams])
    return np.ascontiguousarray(codes)


def has_points(folder: Path) -> bool:
    """Say whether points were stored to the end; `load_points` says whose they are."""
    return (folder / INDEX).exists()


def rounding_of(folder: Path) -> Rounding:
    """Return how the stored points were made; nothing, of those of earlier versions."""
    try:
        with np.load(folder / INDEX, allow_pickle=False) as arrays:
            return Rounding.from_data(json.loads(str(arrays.get("rounding", "{}"))))
    except _UNREADABLE:
        return Rounding()


def index_key(folder: Path) -> str:
    """Return what the stored points were built from; empty if there are none."""
    try:
        with np.load(folder / INDEX, allow_pickle=False) as arrays:
            return str(arrays["key"])
    except _UNREADABLE:
        return ""


def load_points(folder: Path, key: str) -> dict[str, OperatingPoints] | None:
    """Map stored points, or return None if there are none under this key."""
    try:
        with np.load(folder / INDEX, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            return _mapped(folder, arrays["layers"].tolist(), arrays)
    except _UNREADABLE:
        return None  # what is damaged is built again, like what is missing


def _codes_file(folder: Path, number: int) -> Path:
    return folder / f"{number}{CODES_SUFFIX}"


def _mapped(folder: Path, names: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> dict[str, OperatingPoints]:
    points = {}
    for number, name in enumerate(names):
        curve = _curve(name, arrays, number)
        codes: Any = np.load(_codes_file(folder, number), mmap_mode="r", allow_pickle=False)
        if f"{number}:stops" in arrays:
            streams = np.split(codes, arrays[f"{number}:stops"][:-1])
            codes = PackedCodes(streams, tuple(arrays[f"{number}:shape"].tolist()))
        if len(codes) != len(curve.rates_bytes):
            raise ValueError(f"codes of layer '{name}' do not belong to its curve")
        points[name] = OperatingPoints(curve, codes, **_optional_arrays(arrays, number))
    return points


def _optional_arrays(arrays: Mapping[str, NDArray[Any]], number: int) -> dict[str, Any]:
    """Return what a layer's points may have besides curve and codes."""
    found: dict[str, Any] = {key: arrays.get(f"{number}:{key}") for key in _ARRAYS}
    if f"{number}:order" in arrays:
        found["outputs"] = OutputFactor(*(arrays[f"{number}:{key}"] for key in _FACTOR))
    return found


def _index_arrays(index: int, points: OperatingPoints) -> dict[str, NDArray[Any]]:
    curve, codes = points.curve, points.codes
    arrays = {
        f"{index}:rates_bytes": np.asarray(curve.rates_bytes),
        f"{index}:distortions": np.asarray(curve.distortions),
        f"{index}:tables": np.array([codebook.table for codebook in curve.codebooks]),
        f"{index}:levels": np.concatenate([codebook.levels for codebook in curve.codebooks]),
        f"{index}:counts": np.array([len(codebook.levels) for codebook in curve.codebooks]),
    }
    for key in _ARRAYS:
        if (values := getattr(points, key)) is not None:
            arrays[f"{index}:{key}"] = values
    if points.outputs is not None:
        arrays |= {f"{index}:{key}": getattr(points.outputs, key) for key in _FACTOR}
    if isinstance(codes, PackedCodes):
        arrays[f"{index}:stops"] = np.cumsum([len(stream) for stream in codes.streams])
        arrays[f"{index}:shape"] = np.array(codes.shape)
    return arrays


def _curve(name: str, arrays: Mapping[str, NDArray[Any]], index: int) -> Curve:
    levels = np.split(arrays[f"{index}:levels"], np.cumsum(arrays[f"{index}:counts"])[:-1])
    codebooks = tuple(Codebook(own, table) for own, table in zip(levels, arrays[f"{index}:tables"], strict=True))
    return Curve(name, arrays[f"{index}:rates_bytes"], arrays[f"{index}:distortions"], codebooks)
