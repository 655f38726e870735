"""Second moments of layers' inputs, collected while the calibration runs.

Whoever writes a modified model asks for them by files beside its record file (`request_moments`): nothing in the model
says so, because another Caffe would refuse what it does not know. Each layer's matrix is a file, empty at first, that
is added to in place.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np

from autonuq.graph.layers import convolution
from autonuq.graph.model import Array, Layer
from autonuq.quant.points import InputMoments

_CHUNK_VALUES = 1 << 24  # patches that are multiplied at a time: 64 MiB of float32


def moments_folder(record_file: Path) -> Path:
    """Return the folder of a record file's moments."""
    return record_file.with_name(f"{record_file.name}.moments")


def moments_file(record_file: Path, layer: str) -> Path:
    """Return the file of one layer's moments: float64, shape (K + 1, K), sums of x x', then the number of samples."""
    return moments_folder(record_file) / f"{quote(layer, safe='')}.npy"


def request_moments(record_file: Path, layers: Iterable[str]) -> None:
    """Ask for the moments of some layers; what an earlier calibration left is deleted."""
    shutil.rmtree(moments_folder(record_file), ignore_errors=True)
    for layer in layers:
        moments_folder(record_file).mkdir(exist_ok=True)
        moments_file(record_file, layer).touch()


def are_requested(record_file: Path, layer: str) -> bool:
    """Say whether somebody asked for a layer's moments."""
    return moments_file(record_file, layer).exists()


def load_moments(record_file: Path, layer: str) -> InputMoments | None:
    """Map a layer's moments, or return None if there are none."""
    path = moments_file(record_file, layer)
    if not path.exists() or not path.stat().st_size:
        return None
    stored = np.load(path, mmap_mode="r")
    return InputMoments(stored[:-1], int(stored[-1, 0]))


class MomentObserver:
    """Adds up x x' over everything that a layer's weights meet.

    Parameters
    ----------
    layer : Layer
        Convolution of group 1, or InnerProduct over axis 1.
    path : Path
        Where the sum goes; an old file is replaced.
    """

    def __init__(self, layer: Layer, path: Path) -> None:
        self._layer, self._path = layer, path
        self._columns = layer.blobs[0][0].size
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(self._columns + 1, self._columns))

    def observe(self, bottom: Array) -> None:
        """Take in one pass of the layer's input.

        Notes
        -----
        **Cost**: rows * K**2 multiplications in float32, summed in float64; O(K**2) memory beside the chunk, while the
        call lasts: the file is mapped for no longer, so that the layers of a network do not add up.
        """
        sums = np.load(self._path, mmap_mode="r+")
        for patches in self._patches(bottom):
            sums[:-1] += patches.T @ patches
            sums[-1] += len(patches)

    def _patches(self, bottom: Array) -> Iterator[Array]:
        """Yield the inputs that rows of weights meet, shape (some, K), columns in the weights' own order."""
        if self._layer.type == "InnerProduct":
            yield bottom.reshape(len(bottom), -1)
            return
        window = convolution(self._layer, 2)
        padded = np.pad(bottom, ((0, 0), (0, 0), *((pad, pad) for pad in window.pad)))
        views = np.lib.stride_tricks.sliding_window_view(padded, window.kernel, axis=(2, 3))
        views = views[:, :, :: window.stride[0], :: window.stride[1]].transpose(0, 2, 3, 1, 4, 5)
        images = max(1, _CHUNK_VALUES // max(1, views[0].size))
        for begin in range(0, len(views), images):
            yield np.ascontiguousarray(views[begin : begin + images]).reshape(-1, self._columns)


def is_observable(layer: Layer) -> bool:
    """Say whether the layer is of a kind whose inputs' moments error feedback can use."""
    if layer.type == "InnerProduct":
        parameters = layer.message.inner_product_param
        return not parameters.transpose and parameters.axis == 1
    if layer.type != "Convolution" or layer.blobs[0].ndim != 4:
        return False
    window = convolution(layer, 2)
    return window.group == 1 and set(window.dilation) == {1}
