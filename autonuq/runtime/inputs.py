"""The first inputs of a calibration, kept so that networks can be compared on them afterwards.

As with `moments`, whoever writes a modified model asks for them by a folder beside its record file.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from autonuq.array_files import load_arrays
from autonuq.atomic import replacing
from autonuq.errors import QuantizationError
from autonuq.graph.model import Array

MOST_IMAGES = 1024
"""No further pass is kept when so many images are."""
MOST_BYTES = 1 << 29


def inputs_folder(record_file: Path) -> Path:
    """Return the folder of a record file's network inputs."""
    return record_file.with_name(f"{record_file.name}.inputs")


def request_inputs(record_file: Path) -> None:
    """Ask for the network's inputs; what an earlier calibration left is deleted."""
    discard_inputs(record_file)
    inputs_folder(record_file).mkdir()


def discard_inputs(record_file: Path) -> None:
    """Delete what was kept."""
    shutil.rmtree(inputs_folder(record_file), ignore_errors=True)


def load_inputs(record_file: Path) -> list[dict[str, Array]]:
    """Return the input blobs of each pass that was kept; none where the calibration ran in another Caffe.

    Raises
    ------
    QuantizationError
        A file is damaged.
    """
    return [_load(path) for path in input_files(record_file)]


def input_files(record_file: Path) -> list[Path]:
    """Return the files of the passes that were kept, in their order."""
    found = (path for path in inputs_folder(record_file).glob("*.npz") if path.stem.isdecimal())
    return sorted(found, key=lambda path: int(path.stem))


def first_images(passes: Sequence[Mapping[str, Array]], images: int) -> list[Mapping[str, Array]]:
    """Return so many passes that they have at least this number of images, or all."""
    found: list[Mapping[str, Array]] = []
    for one in passes:
        if count_images(found) >= images:
            break
        found.append(one)
    return found


def count_images(passes: Iterable[Mapping[str, Array]]) -> int:
    """Return how many images some passes have, of a network that takes them along the first axis."""
    return sum(len(next(iter(one.values()))) for one in passes)


def _load(path: Path) -> dict[str, Array]:
    names = load_arrays(path, ["names"], QuantizationError)["names"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise QuantizationError("holds no inputs of a network; calibrate again", path=path)
    arrays = load_arrays(path, [str(index) for index in range(len(names))], QuantizationError)
    return dict(zip(names.tolist(), arrays.values(), strict=True))


def count_kept(inputs: Mapping[str, Array], passes: int) -> int:
    """Return how many of so many passes are kept if all have such inputs."""
    images, size = len(next(iter(inputs.values()))), sum(values.nbytes for values in inputs.values())
    return min(passes, -(-MOST_IMAGES // max(1, images)), MOST_BYTES // max(1, size) + 1)


class InputKeeper:
    """Keeps a net's inputs, whole passes, where somebody asked for them.

    Parameters
    ----------
    record_files : iterable of Path
        Of the net's calibration layers.
    """

    def __init__(self, record_files: Iterable[Path]) -> None:
        folders = [inputs_folder(path) for path in dict.fromkeys(record_files)]
        self._folders = [folder for folder in folders if folder.is_dir()]
        self._passes = self._images = self._bytes = 0

    def keep(self, inputs: Mapping[str, Array]) -> None:
        """Take notice of one pass."""
        if not self._folders or not inputs or self._images >= MOST_IMAGES or self._bytes > MOST_BYTES:
            return
        arrays = {str(index): values for index, values in enumerate(inputs.values())}
        for folder in self._folders:
            with replacing(folder / f"{self._passes}.npz") as file:
                np.savez(file, allow_pickle=False, names=np.array(list(inputs)), **arrays)
        self._passes += 1
        self._images += len(next(iter(inputs.values())))
        self._bytes += sum(values.nbytes for values in inputs.values())
