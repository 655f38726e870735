"""A few of each quantized layer's inputs, kept while the calibration runs, to tell how sensitive the layer is.

As with `moments`, a modified model asks for them by a folder beside its record file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autonuq.array_files import load_array
from autonuq.atomic import replacing
from autonuq.errors import QuantizationError
from autonuq.graph.model import Array
from autonuq.runtime.moments import array_file_name

MAX_IMAGES = 8


def samples_folder(record_file: Path) -> Path:
    """Return the folder of a record file's samples."""
    return record_file.with_name(f"{record_file.name}.samples")


def store_sample(record_file: Path, layer: str, bottom: Array) -> None:
    """Keep the first images of a layer's input."""
    images = np.ascontiguousarray(bottom[:MAX_IMAGES])
    with replacing(_file(record_file, layer)) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(images))
        file.write(images.data)


def load_sample(record_file: Path, layer: str) -> Array | None:
    """Return what was kept of a layer's input, or None if nothing was.

    Raises
    ------
    QuantizationError
        The file is damaged.
    """
    path = _file(record_file, layer)
    return load_array(path, QuantizationError, what="sample of a calibration") if path.exists() else None


def _file(record_file: Path, layer: str) -> Path:
    return samples_folder(record_file) / array_file_name(layer)
