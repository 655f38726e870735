"""Curves on disk: built once, read by every later run and worker."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.atomic import replace_file
from autonuq.quant.codebook import Codebook
from autonuq.quant.curve import Curve


def write_curves(path: Path, key: str, curves: Mapping[str, Curve]) -> None:
    """Write curves under a key that says what they were built from, atomically."""
    arrays = {"key": np.array(key), "layers": np.array(list(curves))}
    for index, curve in enumerate(curves.values()):
        arrays[f"{index}:rates_bytes"] = np.asarray(curve.rates_bytes)
        arrays[f"{index}:distortions"] = np.asarray(curve.distortions)
        arrays[f"{index}:tables"] = np.array([codebook.table for codebook in curve.codebooks])
        arrays[f"{index}:levels"] = np.concatenate([codebook.levels for codebook in curve.codebooks])
        arrays[f"{index}:counts"] = np.array([len(codebook.levels) for codebook in curve.codebooks])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    replace_file(path, [buffer.getbuffer()])


def load_curves(path: Path, key: str) -> dict[str, Curve] | None:
    """Read curves, or return None if there are none under this key."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            return {str(name): _curve(str(name), arrays, index) for index, name in enumerate(arrays["layers"])}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # a damaged file is rebuilt, like a missing one


def _curve(name: str, arrays: Mapping[str, NDArray[Any]], index: int) -> Curve:
    levels = np.split(arrays[f"{index}:levels"], np.cumsum(arrays[f"{index}:counts"])[:-1])
    codebooks = tuple(Codebook(own, table) for own, table in zip(levels, arrays[f"{index}:tables"], strict=True))
    return Curve(name, arrays[f"{index}:rates_bytes"], arrays[f"{index}:distortions"], codebooks)
