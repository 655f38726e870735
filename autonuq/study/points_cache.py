"""Operating points on disk: built once, mapped by every later run, worker and export.

A folder holds the codes of each layer in a file of its own, which trials map rather than read, and an index, written
last, with the curves, the digests of the other files, and what says what they were built from: a key and a digest of
the calibration. Of the index itself the study holds the digest; of files of earlier versions it holds all digests.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.atomic import replace_file
from autonuq.plain import from_plain
from autonuq.quant.codebook import Codebook
from autonuq.quant.curve import Curve
from autonuq.quant.feedback import OutputFactor
from autonuq.quant.points import OperatingPoints, PackedCodes
from autonuq.records import Rounding
from autonuq.study.task import file_digest

INDEX, CODES_SUFFIX = "index.npz", ".npy"
_ARRAYS, _FACTOR = ("bias", "scale", "prices"), ("order", "diagonal", "blocks")


@dataclass(frozen=True)
class StoredPoints:
    """The operating points in a folder.

    Attributes
    ----------
    points : mapping of str to OperatingPoints
        Of each layer, the codes mapped.
    rounding : Rounding
        How they were made; nothing, of those of earlier versions.
    digests : mapping of str to str
        File name -> SHA-256; the index's is that of all of them.
    """

    points: dict[str, OperatingPoints]
    rounding: Rounding
    digests: Mapping[str, str]


def store_points(
    folder: Path,
    key: str,
    built: Iterable[tuple[str, OperatingPoints]],
    rounding: Rounding | None = None,
    calibration: str = "",
) -> StoredPoints:
    """Write points as they are built, and return them with their codes mapped.

    Parameters
    ----------
    rounding : Rounding, optional
        How they were made, and what is made of them.
    calibration : str
        Digest of what they were built from beside what the key says.

    Notes
    -----
    **Cost**: one layer's codes are in memory at a time; they are hashed as they are written.
    """
    folder.mkdir(exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    names: list[str] = []
    digests: dict[str, str] = {}
    arrays: dict[str, NDArray[Any]] = {"key": np.array(key), "calibration": np.array(calibration)}
    arrays["rounding"] = np.array(json.dumps(asdict(rounding or Rounding())))
    for number, (name, points) in enumerate(built):
        codes = _stored_codes(points.codes)
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(codes))
        digests[_codes_name(number)] = _write(
            folder / _codes_name(number), [head.getvalue(), codes.reshape(-1).view(np.uint8).data]
        )
        names.append(name)
        arrays |= _index_arrays(number, points)
    buffer = io.BytesIO()
    arrays["digests"] = np.array(list(digests.values()))
    np.savez_compressed(buffer, allow_pickle=False, layers=np.array(names), **arrays)
    digests[INDEX] = _write(folder / INDEX, [buffer.getbuffer()])
    return StoredPoints(_mapped(folder, names, arrays), rounding or Rounding(), digests)


def _write(path: Path, chunks: Sequence[bytes | memoryview]) -> str:
    """Write a file and return its digest."""
    replace_file(path, chunks)
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _stored_codes(codes: Any) -> NDArray[Any]:
    """Return the array that a layer's codes are stored as: bitstreams one behind the other."""
    if isinstance(codes, PackedCodes):
        return np.concatenate([np.frombuffer(stream, np.uint8) for stream in codes.streams])
    return np.ascontiguousarray(codes)


def has_points(folder: Path) -> bool:
    """Say whether points were stored to the end; `load_points` says whose they are."""
    return (folder / INDEX).exists()


def load_points(folder: Path, key: str, calibration: str, known: Mapping[str, str]) -> StoredPoints | None:
    """Map stored points, or return None where they are others or damaged: they are built again, like missing ones.

    Parameters
    ----------
    key, calibration : str
        What they have to be built from, unless digests are known.
    known : mapping of str to str
        Digests that a study holds: of the index, and of the other files where the index is an earlier version's.

    Notes
    -----
    **Cost**: every file is hashed once in a process; the codes are not read into memory.
    """
    try:
        with (folder / INDEX).open("rb") as file:
            content = file.read()
        digest = hashlib.sha256(content).hexdigest()
        if known and digest != known[INDEX]:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if not known and (str(arrays["key"]), str(arrays["calibration"])) != (key, calibration):
                return None
            return _checked(folder, arrays, {**known, INDEX: digest})
    except Exception:  # zipfile, zlib, tokenize and NumPy raise a dozen kinds for what a damaged file may hold
        return None


def _checked(folder: Path, arrays: Mapping[str, NDArray[Any]], known: Mapping[str, str]) -> StoredPoints | None:
    names = arrays["layers"].tolist()
    files = [_codes_name(number) for number in range(len(names))]
    own = dict(zip(files, arrays["digests"].tolist(), strict=True)) if "digests" in arrays else known
    digests = {name: own[name] for name in files} | {INDEX: known[INDEX]}
    if any(file_digest(folder / name) != digests[name] for name in files):
        return None
    entry = json.loads(str(arrays.get("rounding", "{}")))
    rounding: Rounding = from_plain(Rounding, entry)
    return StoredPoints(_mapped(folder, names, arrays), rounding, digests)


def _codes_name(number: int) -> str:
    return f"{number}{CODES_SUFFIX}"


def _mapped(folder: Path, names: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> dict[str, OperatingPoints]:
    points = {}
    for number, name in enumerate(names):
        curve = _curve(name, arrays, number)
        codes: Any = np.load(folder / _codes_name(number), mmap_mode="r", allow_pickle=False)
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
