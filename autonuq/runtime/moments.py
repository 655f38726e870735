"""What layers' weights meet, collected while the calibration runs: second moments, or samples where those are less.

Whoever writes a modified model asks for it by files beside its record file (`request_moments`): nothing in the model
says so, because another Caffe would refuse what it does not know. A layer's file is empty at first. Moments are added
to it in place, samples are appended to a second one.
"""

from __future__ import annotations

import hashlib
import io
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from autonuq.atomic import allocate, replacing, writing
from autonuq.errors import QuantizationError
from autonuq.graph.layers import InputWindow, input_window
from autonuq.graph.model import Array, Layer, Shape
from autonuq.quant.inputs import InputMoments, InputRows, Inputs, sampling_of, second_moments
from autonuq.quant.machine_code import compiled
from autonuq.reading import reading

_CHUNK_VALUES = 1 << 24  # patches that are multiplied at a time: 64 MiB of float32
_SUMMED = 64  # items that are added up in float32
_MOST_SAMPLES = 1 << 62
_MOST_GROUPED_VALUES = 1 << 26  # moments of a layer with groups


def moments_folder(record_file: Path) -> Path:
    """Return the folder of a record file's moments."""
    return record_file.with_name(f"{record_file.name}.moments")


def moments_file(record_file: Path, layer: str) -> Path:
    """Return the file of one layer's moments.

    Float32, shape (groups, K + 2, K): sums of x x', the sum of x, and the number of samples in each column. Empty where
    samples are kept: see `rows_file`.
    """
    return moments_folder(record_file) / array_file_name(layer)


def array_file_name(layer: str) -> str:
    """Return the name of a file of a layer's numbers: a digest.

    A layer may be called `aux`, which no file can be on Windows, or differ from another in its capitals alone.
    """
    return f"{hashlib.sha256(layer.encode()).hexdigest()[:32]}.npy"


def rows_file(moments: Path) -> Path:
    """Return the file of the samples beside a layer's moments: float32, one sample of K numbers behind the other."""
    return moments.with_suffix(".rows")


def request_moments(record_file: Path, layers: Iterable[str]) -> None:
    """Ask for the moments of some layers; what an earlier calibration left is deleted."""
    remove_moments(record_file)
    for layer in layers:
        moments_folder(record_file).mkdir(exist_ok=True)
        moments_file(record_file, layer).touch()


def remove_moments(record_file: Path) -> None:
    """Delete what a calibration left; it is needed no more once the operating points are built."""
    shutil.rmtree(moments_folder(record_file), ignore_errors=True)


def remove_left_moments(record_file: Path, layers: Iterable[str]) -> None:
    """Delete what a killed run left of some layers; earlier versions kept theirs, under other names."""
    for layer in layers:
        path = moments_file(record_file, layer)
        for file in (path, rows_file(path)):
            file.unlink(missing_ok=True)
    with suppress(OSError):  # it is missing, or not empty
        moments_folder(record_file).rmdir()


def are_requested(record_file: Path, layer: str) -> bool:
    """Say whether somebody asked for a layer's moments."""
    return moments_file(record_file, layer).exists()


def load_moments(record_file: Path, layer: Layer) -> tuple[Inputs, ...]:
    """Map what was collected of a layer's inputs, for each group; empty if there is nothing.

    Raises
    ------
    QuantizationError
        It is damaged, or an earlier version of autonuq left it.
    """
    path = moments_file(record_file, layer.name)
    rows = rows_file(path)
    if rows.exists() and rows.stat().st_size:
        _, columns = _matrix_shape(layer)
        with reading(rows, QuantizationError, "holds no samples; calibrate again", layer=layer.name):
            return (InputRows(np.memmap(rows, np.float32, "r").reshape(-1, columns)),)
    if not path.exists() or not path.stat().st_size:
        return ()
    groups, columns = _matrix_shape(layer)
    with reading(path, QuantizationError, "holds no moments; calibrate again", layer=layer.name):
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if stored.shape != (groups, columns + 2, columns) or stored.dtype != np.float32:
            raise ValueError(f"it is of an earlier version, or another layer's: shape {stored.shape}, {stored.dtype}")
        if not (stored[:, -1, 0] >= 1).all() or not (stored[:, -1, 0] < _MOST_SAMPLES).all():
            raise ValueError("it does not say of how many samples")
        return tuple(InputMoments(own[:-2], int(own[-1, 0]), own[-2]) for own in stored)


def describe_inputs(record_file: Path, layer: Layer) -> dict[str, object]:
    """Return what the `Python` layers of another Caffe need to know to collect the same."""
    path, sampling = moments_file(record_file, layer.name), sampling_of(_matrix_shape(layer)[1])
    files = {"moments": str(path), "rows": str(rows_file(path))}
    return {**files, "samples": sampling.samples, "scarce": sampling.scarce, "most_rows": sampling.rows}


def _matrix_shape(layer: Layer) -> tuple[int, int]:
    """Return the number of groups and K, the weights of an output."""
    weights = layer.blobs[0]
    if layer.type == "InnerProduct":
        return 1, weights[0].size
    window = input_window(layer)
    return window.groups, weights[0].size if window.stretch is None else weights[:, 0].size


class MomentObserver:
    """Collects what a layer's weights meet.

    Parameters
    ----------
    layer : Layer
        One that `is_observable`.
    path : Path
        Its moments' file.
    passes : int
        How many there will be.
    """

    def __init__(self, layer: Layer, path: Path, passes: int) -> None:
        self._layer, self._path, self._passes = layer, path, passes
        self._groups, self._columns = _matrix_shape(layer)
        self._pass, self._used, self._as_rows = 0, 0, False
        rows_file(path).unlink(missing_ok=True)

    def observe(self, bottom: Array) -> None:
        """Take in one pass of the layer's input.

        Raises
        ------
        QuantizationError
            The inputs or their moments are not finite.

        Notes
        -----
        Where there are more samples than needed, each pass gives an even share, chosen at random with the number of the
        pass as seed.

        **Cost**: samples * K**2 multiplications in float32; O(K**2) memory beside the chunk, while the call lasts: the
        file is mapped for no longer, so that the layers of a network do not add up.
        """
        inputs = InputPatches(self._layer, bottom)
        if self._pass == 0:
            self._begin(inputs.samples * self._passes)
        share = self._used * (self._pass + 1) // self._passes - self._used * self._pass // self._passes
        self._pass += 1
        chunks = inputs.patches(share, seed=self._pass)
        if self._as_rows:
            with writing(rows_file(self._path)), rows_file(self._path).open("ab") as file:
                for patches in chunks:
                    if not np.isfinite(patches).all():
                        raise QuantizationError("its inputs are not finite")
                    file.write(np.ascontiguousarray(patches).data)
            return
        stored = np.load(self._path, mmap_mode="r+")
        for patches in chunks:
            with np.errstate(invalid="ignore", over="ignore"):  # that is looked at below
                stored[:, :-2] += second_moments(patches)
            stored[:, -2] += patches.sum(axis=1)
            stored[:, -1] += patches.shape[1]
        if not np.isfinite(stored.sum(dtype=np.float64)):  # any infinity or NaN stays in a sum
            raise QuantizationError("the second moments of its inputs are not finite")

    def _begin(self, samples: int) -> None:
        used, as_rows = sampling_of(self._columns).expected(samples)
        self._used, self._as_rows = used, as_rows and self._groups == 1
        if not self._as_rows:
            _make_array_file(self._path, (self._groups, self._columns + 2, self._columns))


def _make_array_file(path: Path, shape: Shape) -> None:
    """Make a file of zeros, float32, that can be mapped; whoever has the old one mapped keeps that."""
    head = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    begin = io.BytesIO()
    np.lib.format.write_array_header_1_0(begin, head)
    with replacing(path) as file:
        allocate(file, begin.tell() + 4 * math.prod(shape))
        file.seek(0)
        file.write(begin.getbuffer())


class InputPatches:
    """The input of a layer in one pass, seen as what each output's weights multiply.

    Parameters
    ----------
    layer : Layer
        One that `is_observable`.
    bottom : ndarray of float32

    Attributes
    ----------
    samples : int
        How many there are: items times positions.
    """

    def __init__(self, layer: Layer, bottom: Array) -> None:
        self._window, self._bottom = None if layer.type == "InnerProduct" else input_window(layer), bottom
        self._groups = 1 if self._window is None else self._window.groups
        self._positions = (1, 1) if self._window is None else _positions(bottom.shape[2:], self._window)
        self.samples = len(bottom) * math.prod(self._positions)

    @cached_property
    def _views(self) -> Array:
        return _windows(self._bottom, self._window)

    @property
    def _columns(self) -> int:
        """Values of a sample, all groups together."""
        if self._window is None:
            return int(self._bottom[0].size)
        return int(self._bottom.shape[1] * math.prod(self._window.kernel))

    def patches(self, count: int, seed: int) -> Iterator[Array]:
        """Yield so many samples, or all there are, shape (groups, some, K), columns in the weights' own order."""
        places = np.arange(self.samples)
        if count < self.samples:
            places = np.random.default_rng(seed).choice(self.samples, count, replace=False, shuffle=False)
        size = max(1, _CHUNK_VALUES // max(1, self._columns))
        for begin in range(0, len(places), size):
            some = self._at(*np.unravel_index(places[begin : begin + size], (len(self._bottom), *self._positions)))
            yield np.ascontiguousarray(some.reshape(len(some), self._groups, -1).swapaxes(0, 1))

    def _at(self, items: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
        """Return some windows, cut out of the input itself: a padded copy of it would take longer than they do."""
        if self._window is None:
            return self._bottom.reshape(len(self._bottom), -1)[items]
        windows = np.empty((len(items), self._bottom.shape[1], *self._window.kernel), self._bottom.dtype)
        down, across = (
            _taps(places, axis, self._bottom.shape[2 + axis], self._window)
            for axis, places in enumerate((rows, columns))
        )
        _cut_out(np.ascontiguousarray(self._bottom), items, down, across, windows)
        return windows

    def of_items(self, items: slice) -> Array:
        """Return all samples of some items of the batch, shape (groups, samples, K)."""
        some = self._views[items]
        channels = some.shape[3] // self._groups
        apart = some.reshape(*some.shape[:3], self._groups, channels, *some.shape[4:])  # a view
        return np.moveaxis(apart, 3, 0).reshape(self._groups, math.prod(some.shape[:3]), -1)

    def total(self) -> Array:
        """Return the sum of all samples, float64, shape (groups, K)."""
        views = _windows(sum_of_items(self._bottom), self._window)  # items first
        return np.asarray(views.sum(axis=(0, 1, 2)).reshape(self._groups, -1))


def sum_of_items(bottom: Array) -> Array:
    """Return the sum over the items of a batch, float64, the first axis kept; some at a time are added up by BLAS."""
    rows, total = bottom.reshape(len(bottom), -1), np.zeros(bottom[0].size)
    for begin in range(0, len(rows), _SUMMED):
        part = rows[begin : begin + _SUMMED]
        total += np.ones(len(part), part.dtype) @ part
    return total.reshape(1, *bottom.shape[1:])


def _positions(sizes: Shape, window: InputWindow) -> Shape:
    """Return how many windows an input has downwards and across."""
    stretched = [(size - 1) * step + 1 for size, step in zip(sizes, window.stretch or (1, 1), strict=True)]
    lengths = [size + 2 * pad - reach for size, pad, reach in zip(stretched, window.pad, _reach(window), strict=True)]
    return tuple(length // stride + 1 for length, stride in zip(lengths, window.stride, strict=True))


def _reach(window: InputWindow) -> Shape:
    return tuple((size - 1) * step + 1 for size, step in zip(window.kernel, window.dilation, strict=True))


def _taps(places: NDArray[np.int64], axis: int, size: int, window: InputWindow) -> NDArray[np.int64]:
    """Return where windows have their values along one axis, shape (windows, kernel); -1 where these are zeros."""
    taps = np.arange(window.kernel[axis]) * window.dilation[axis]
    if window.stretch is not None:
        taps = taps[::-1]
    found = places[:, None] * window.stride[axis] - window.pad[axis] + taps
    step = 1 if window.stretch is None else window.stretch[axis]
    return np.where((found >= 0) & (found % step == 0) & (found < size * step), found // step, -1)


@compiled
def _cut_out(
    bottom: Array, items: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64], windows: Array
) -> None:
    """Fill windows (some, channels, *kernel) from the rows and columns of items; -1 stands for zeros."""
    for index in range(len(items)):
        item = items[index]
        for channel in range(windows.shape[1]):
            for down in range(windows.shape[2]):
                row = rows[index, down]
                for across in range(windows.shape[3]):
                    column = columns[index, across]
                    inside = row >= 0 and column >= 0
                    windows[index, channel, down, across] = bottom[item, channel, row, column] if inside else 0


def _windows(bottom: Array, window: InputWindow | None) -> Array:
    """Return a view of all windows, shape (images, rows, columns, channels, *kernel); without a window one an image."""
    if window is None:
        return bottom.reshape(len(bottom), 1, 1, -1, 1, 1)
    if window.stretch is not None:  # a Deconvolution: zeros between the inputs, and its kernel turned round
        height, width = ((size - 1) * step + 1 for size, step in zip(bottom.shape[2:], window.stretch, strict=True))
        spread = np.zeros((*bottom.shape[:2], height, width), bottom.dtype)
        spread[:, :, :: window.stretch[0], :: window.stretch[1]] = bottom
        bottom = spread
    padded = np.pad(bottom, ((0, 0), (0, 0), *((pad, pad) for pad in window.pad)))
    views = sliding_window_view(padded, _reach(window), axis=(2, 3))
    views = views[:, :, :: window.stride[0], :: window.stride[1], :: window.dilation[0], :: window.dilation[1]]
    if window.stretch is not None:
        views = views[..., ::-1, ::-1]
    return views.transpose(0, 2, 3, 1, 4, 5)


def is_observable(layer: Layer) -> bool:
    """Say whether the layer is of a kind whose inputs error feedback can use."""
    if layer.type == "InnerProduct":
        parameters = layer.message.inner_product_param
        return not parameters.transpose and parameters.axis == 1
    if layer.type not in ("Convolution", "Deconvolution") or layer.blobs[0].ndim != 4:
        return False
    window = input_window(layer)
    if layer.type == "Deconvolution" and (window.groups > 1 or min(window.pad) < 0):
        return False
    return window.groups == 1 or window.groups * layer.blobs[0][0].size ** 2 <= _MOST_GROUPED_VALUES
