"""A layer's operating points: the curve that is searched, and the codes that each of its points stands for.

With the second moments of the layer's inputs, the points come from error feedback: every weight is rounded with the
errors before it in mind, distortion is measured on the layer's output or, where it is known what the network's end
makes of that, there. For an entropy coder the grid is the layer's own: whole multiples of a step that is as wide as an
output can bear, and a bit has its price. For other codecs, levels are chosen among the 256 int8 steps, as codebooks
designed for what an error costs when later columns make up for it. Without moments, weights count alone and the
codebook's table decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.atc.codec import AscendCodec
from autonuq.quant.codebook import (
    build_codebooks,
    build_entropy_codebooks,
    code_histogram,
    code_importance,
    codebook_of,
)
from autonuq.quant.codec import Codec, EntropyCodec
from autonuq.quant.cores import one_blas_thread, side_by_side
from autonuq.quant.curve import MAX_LOSS, Curve, build_curve, useful_points
from autonuq.quant.feedback import (
    Grid,
    OutputFactor,
    Prices,
    Targets,
    assign,
    build_feedback,
    factor_outputs,
    targets_of,
)
from autonuq.quant.inputs import Inputs
from autonuq.quant.uniform import FLT_EPSILON, UniformWeights

# Distortion, as a share of the output energy per weight, that one bit may buy: from nearly lossless to a few levels.
_SLOPES = np.geomspace(2e-4, 0.15, 20)
# Steps of evenly spaced levels among int8's: at low rates, where feedback makes errors large, nothing is better.
_STEPS = np.unique(np.geomspace(3, 127, 28).round().astype(int))
_WIDEST, _NARROWEST = 4.0, 0.25  # of an output's step over that of the layer's others
_FIXED_SIZES = (2, 4, 8, 16, 32, 64, 128)  # fewer levels than these save no bit
_EVERY_LEVEL = np.arange(-128, 128).astype(np.int8)
_OWN_LEVELS = _EVERY_LEVEL[1:]  # of a grid of the layer's own: as many on both sides

PACKED_ABOVE = 1 << 20  # weights: all points of VGG-16's as they are would take 3.5 GB; half as many grids are tried
_SMALLER = 0.94  # VGG-16's points take 0.7 GB then
_MULTIPLIED = 1 << 22  # weights that are multiplied in float64 at a time


def is_packed(shape: tuple[int, ...]) -> bool:
    """Say whether the points of a layer with weights of this shape are kept as bitstreams."""
    return math.prod(shape) > PACKED_ABOVE


class PackedCodes(Sequence[NDArray[np.int8]]):
    """Codes of a large layer's points, each a bitstream of codec `entropy` until it is asked for.

    Parameters
    ----------
    streams : sequence of bytes or ndarray of uint8
    shape : tuple of int
        Of the weights.
    """

    def __init__(self, streams: Sequence[bytes | NDArray[np.uint8]], shape: tuple[int, ...]) -> None:
        self.streams, self.shape = streams, shape

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.streams)

    def __getitem__(self, point: Any) -> Any:
        """Return the codes of a point; 8 to 40 ns a weight."""
        return EntropyCodec(self.shape).decode(bytes(self.streams[point]), math.prod(self.shape)).reshape(self.shape)


@dataclass(frozen=True)
class OperatingPoints:
    """What a layer can become.

    Attributes
    ----------
    curve : Curve
        Distortions as shares of the layer's output energy, so that layers can be compared.
    codes : sequence of ndarray of int8, each in the shape of the weights
        Codes of each point: one array, which may be a memory map, or `PackedCodes`.
    bias : ndarray of float32, shape (n, outputs), optional
        What the layer's bias takes up of the weights' error at each point: its mean over the calibration.
    scale : ndarray of float32, shape (n, outputs) or (n, 1), optional
        Width of a step at each point; that of the int8 weights by default.
    prices : ndarray of float64, shape (n,), optional
        Of a bit at each point, in units of the layer's cost; see `Grid`.
    outputs : OutputFactor, optional
        What errors of the layer's outputs cost, as the codes were chosen.
    """

    curve: Curve
    codes: Sequence[NDArray[np.int8]] | NDArray[np.int8]
    bias: NDArray[np.float32] | None = None
    scale: NDArray[np.float32] | None = None
    prices: NDArray[np.float64] | None = None
    outputs: OutputFactor | None = None

    def grid(self, point: int, weights: NDArray[np.float32], uniform: UniformWeights, codec: Codec) -> Grid:
        """Return what the codes of a point of a layer with one group were chosen from."""
        own = uniform.scale if self.scale is None else self.scale[point]
        scale = np.broadcast_to(own, (len(weights),)).astype(np.float64)
        if self.prices is not None and self.prices[point]:
            rows = weights.reshape(len(weights), -1)
            return own_grid(codec, rows, scale, float(self.prices[point]))
        return Grid(self.curve.codebooks[point].levels if point else _EVERY_LEVEL, scale)


@dataclass(frozen=True)
class Tuning:
    """How an entropy coder's grids are made.

    Attributes
    ----------
    price : float
        Of a bit, over what it is worth to a fine uniform quantizer.
    steps : int
        How many widths of a step are tried.
    widths : (float, float)
        The narrowest and the widest, in standard deviations of the weights.
    """

    price: float = 0.3
    steps: int = 32
    widths: tuple[float, float] = (0.35, 14.0)


@one_blas_thread()
def build_points(
    layer: str,
    weights: NDArray[np.float32],
    uniform: UniformWeights,
    codec: Codec,
    *,
    inputs: Sequence[Inputs] = (),
    costs: NDArray[np.float64] | None = None,
    tuning: Tuning | None = None,
    has_bias: bool = False,
    nuq: bool = True,
    sizes: Sequence[int] | None = None,
    output_axis: int = 0,
) -> OperatingPoints:
    """Build the operating points of one layer.

    Parameters
    ----------
    layer : str
    weights : ndarray of float32
    uniform : UniformWeights
        The same weights on their int8 grid; one scale, or one per output.
    codec : Codec
    inputs : sequence of Inputs, optional
        What the K weights of an output multiply, for each group of outputs.
    costs : ndarray of float64, shape (outputs, outputs), optional
        What errors of the outputs cost at the network's end, positive definite. Distortions are then half of
        tr(costs E H E') instead of shares of the output's energy.
    tuning : Tuning, optional
        Given: an entropy coder's grid is the layer's own; otherwise levels are int8 steps.
    has_bias : bool
        The layer has a bias that takes up the mean error, and only what varies of the inputs counts.
    nuq : bool
        False: the layer keeps its uniform steps.
    sizes : sequence of int, optional
        The numbers of levels that are allowed besides all; any by default.
    output_axis : int
        Of the weights: 1 for a Deconvolution.

    Raises
    ------
    QuantizationError
        The inputs do not fit the weights, or are not finite.

    Notes
    -----
    With inputs, point 0 is the best int8: error feedback over all steps.

    **Cost**: with inputs one factorization and up to 50 assignments. Above 1 M weights half as many, and points are
    at least 6 % apart and kept as bitstreams.
    """
    if inputs:
        try:
            if nuq:
                found = _Searched(weights, uniform, codec, inputs[0], costs, has_bias)
                return found.points(layer, tuning, sizes)
            return _int8_point(layer, weights, uniform, codec, inputs, has_bias, output_axis)
        except QuantizationError as error:
            raise QuantizationError(str(error), layer=layer) from error
    curve = build_curve(layer, uniform.codes, codec, scale_like=uniform.scale_like(), nuq=nuq, sizes=sizes)
    energy = float((uniform.scale_like() * uniform.codes.astype(np.float64)).ravel() @ uniform.dequantize().ravel())
    codes = np.stack([codebook.apply(uniform.codes) for codebook in curve.codebooks])
    return OperatingPoints(replace(curve, distortions=curve.distortions / (energy or 1.0)), codes)


def layer_targets(
    weights: NDArray[np.floating],
    inputs: Inputs,
    has_bias: bool,
    outputs: OutputFactor | None = None,
    pairs: NDArray[np.int64] | None = None,
) -> Targets:
    """Return what `assign` takes of a layer with one group; `pairs` as in `build_feedback`.

    Raises
    ------
    QuantizationError
        The inputs do not fit the weights, or are not finite.
    """
    rows = weights.reshape(len(weights), -1)
    if rows.shape[1] != inputs.inputs:
        raise QuantizationError(f"has {rows.shape[1]} inputs, but second moments of {inputs.inputs}")
    return targets_of(build_feedback(inputs.centred() if has_bias else inputs, pairs), rows, outputs)


class _Searched:
    """A layer whose grid is searched."""

    def __init__(
        self,
        weights: NDArray[np.float32],
        uniform: UniformWeights,
        codec: Codec,
        inputs: Inputs,
        costs: NDArray[np.float64] | None,
        has_bias: bool,
    ) -> None:
        self._weights, self._uniform, self._codec, self._inputs = weights, uniform, codec, inputs
        self._has_bias = has_bias
        self._outputs = None if costs is None else factor_outputs(costs)
        self._targets = layer_targets(weights, inputs, has_bias, self._outputs, pairs_of(codec))
        self._scale = np.broadcast_to(uniform.scale, (len(weights),)).astype(np.float64)
        self._int8 = Grid(_EVERY_LEVEL, self._scale)
        self._whole = assign(self._targets, Grid(np.zeros(1, np.int8), self._scale)).cost or 1.0  # 0 if all weights are
        self._share = 1 / self._whole if costs is None else 0.5

    def points(self, layer: str, tuning: Tuning | None, sizes: Sequence[int] | None) -> OperatingPoints:
        """Try what is worth an assignment, and keep what is of use."""
        is_own = tuning is not None and sizes is None and self._codec.entropy_coded
        others = self._own_grids(tuning) if is_own and tuning else self._int8_grids(sizes)
        if is_packed(self._weights.shape) and sizes is None and self._codec.entropy_coded:
            others = others[::2]
        tried = _Tried(self._weights.shape)
        grids, own_bytes = [self._int8, *others], self._targets.assignment_bytes
        for point in side_by_side(self._point, grids, each_bytes=own_bytes):
            if point is not None:
                tried.add(point)
        points = tried.points(layer, self._uniform.scale.size)
        bias = self._biases(points) if self._has_bias else None
        return replace(points, bias=bias, outputs=self._outputs)

    def _point(self, grid: Grid) -> _Point | None:
        """Return what comes of a grid; None where that is too much of a loss. The loss of the first counts as none."""
        found, is_first = assign(self._targets, grid), grid is self._int8
        loss = 0.0 if is_first else found.cost * self._share
        if loss > MAX_LOSS * self._whole * self._share:
            return None
        codes = found.codes.reshape(self._weights.shape)
        if not is_packed(codes.shape):
            return _Point(grid, loss, self._codec.size_bytes(codes), code_histogram(codes), codes)
        packing = EntropyCodec(codes.shape)
        stream = packing.encode(codes)
        rate = len(stream) if self._codec == packing else self._codec.size_bytes(codes)
        return _Point(grid, loss, rate, code_histogram(codes), stream)

    def _int8_grids(self, sizes: Sequence[int] | None) -> list[Grid]:
        levels = _level_sets(self._uniform, self._codec, self._targets, self._whole, sizes)
        return [Grid(own, self._scale) for own in levels]

    def _own_grids(self, tuning: Tuning) -> list[Grid]:
        """Return grids of wider and wider steps; none is finer than int8 needs for the largest weight."""
        rows = self._weights.reshape(len(self._weights), -1)
        deviation = float(rows.std(dtype=np.float64))
        by_row, by_column = self._targets.importance
        shape = np.ones(len(rows))
        if self._uniform.scale.size > 1:
            shape[self._targets.outputs.order] = 1 / self._targets.outputs.diagonal
            shape = np.clip(shape / np.exp(np.log(shape).mean()), _NARROWEST, _WIDEST)
        finest = np.maximum(np.abs(rows).max(axis=1) / 127, FLT_EPSILON)
        grids = []
        for step in np.geomspace(*tuning.widths, tuning.steps) * deviation:
            wanted = np.maximum(step * shape, finest if self._uniform.scale.size > 1 else finest.max())
            scale = wanted.astype(np.float32).astype(np.float64)
            unit = float((by_row * scale[self._targets.outputs.order] ** 2).mean() * by_column.mean())
            grids.append(own_grid(self._codec, rows, scale, tuning.price * math.log(2) / 6 * unit))
        return grids

    def _biases(self, points: OperatingPoints) -> NDArray[np.float32]:
        """Return the mean of what each output lacks at each point, shape (points, outputs)."""
        mean = self._inputs.mean
        whole = _times(self._weights, mean)
        scales = [self._scale] * len(points.codes) if points.scale is None else list(points.scale)
        found = [whole - scale * _times(point, mean) for scale, point in zip(scales, points.codes, strict=True)]
        return np.array(found, np.float32)


def own_grid(codec: Codec, rows: NDArray[np.float32], scale: NDArray[np.float64], price: float) -> Grid:
    """Return the grid of whole multiples of steps of a scale, shape (rows,), with what its codes take.

    That is told by weights that are rounded to it, shape (rows, K). How often error feedback has each code is known
    afterwards only; with those counts nothing gets better, and a point's codes would not be found again.
    """
    histogram = code_histogram(np.rint(rows / scale[:, None].astype(np.float32)).astype(np.int8))
    prices = codec.prices(histogram) if isinstance(codec, AscendCodec) else _entropy_prices(histogram)
    return Grid(_OWN_LEVELS, scale, price, prices)


def _entropy_prices(histogram: NDArray[np.int64]) -> Prices:
    """Return what an entropy coder takes for each code; one that does not occur as if half a weight had it."""
    bits = -np.log2(np.maximum(histogram, 0.5) / max(1, histogram.sum()))
    return Prices(bits, bits)


def pairs_of(codec: Codec) -> NDArray[np.int64] | None:
    """Return the columns that are to be rounded two at a time, shape (P, 2), if the codec has such."""
    return codec.pairs if isinstance(codec, AscendCodec) and codec.is_compressed else None


def _times(rows: NDArray[Any], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply rows, of any shape behind the first axis, and a vector; a part at a time in float64."""
    size = max(1, _MULTIPLIED // mean.size)
    parts = [rows[begin : begin + size].reshape(-1, mean.size) @ mean for begin in range(0, len(rows), size)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Point:
    """A point that was tried.

    Attributes
    ----------
    grid : Grid
    loss : float
    rate_bytes : int
    histogram : ndarray of int64, shape (256,)
    codes : ndarray of int8, or bytes
        In the shape of the weights; of a large layer a bitstream.
    """

    grid: Grid
    loss: float
    rate_bytes: int
    histogram: NDArray[np.int64]
    codes: Any


class _Tried:
    """Points that were tried, those of use: the first, and the hull of the others."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape, self._is_packed = shape, is_packed(shape)
        self._kept: list[_Point] = []

    def add(self, point: _Point) -> None:
        """Take in a point."""
        self._kept.append(point)
        self._keep(useful_points(self._rates, self._losses))

    @property
    def _rates(self) -> NDArray[np.int64]:
        return np.array([one.rate_bytes for one in self._kept])

    @property
    def _losses(self) -> NDArray[np.float64]:
        return np.array([one.loss for one in self._kept])

    def _keep(self, chosen: Iterable[int]) -> None:
        self._kept = [self._kept[index] for index in chosen]

    def points(self, layer: str, scales: int) -> OperatingPoints:
        """Return what is of use, with so many scales each; of a large layer only points well below the one before."""
        if self._is_packed:
            self._keep(_spread(self._rates.tolist()))
        codebooks = tuple(codebook_of(one.histogram) for one in self._kept)
        curve = Curve(layer, self._rates, self._losses, codebooks)
        kept = [one.codes for one in self._kept]
        codes = PackedCodes(kept, self._shape) if self._is_packed else np.stack(kept)
        scale = np.array([one.grid.scale[:scales] for one in self._kept], np.float32)
        prices = np.array([one.grid.price for one in self._kept])
        return OperatingPoints(curve, codes, scale=scale, prices=prices)


def _spread(rates: Sequence[int]) -> list[int]:
    chosen = [0]
    for index, rate in enumerate(rates):
        if rate <= _SMALLER * rates[chosen[-1]]:
            chosen.append(index)
    return chosen


def _int8_point(
    layer: str,
    weights: NDArray[np.float32],
    uniform: UniformWeights,
    codec: Codec,
    inputs: Sequence[Inputs],
    has_bias: bool,
    output_axis: int,
) -> OperatingPoints:
    """Return the one point of a layer without a codebook."""
    by_output = np.moveaxis(weights, output_axis, 0)
    scale = np.broadcast_to(uniform.scale, (len(by_output),)).astype(np.float64)[:, None]
    rows = by_output.reshape(len(by_output), -1)
    groups = np.split(np.arange(len(rows)), len(inputs))
    codes, bias = np.empty(rows.shape, np.int8), np.zeros(len(rows))
    for group, own in zip(groups, inputs, strict=True):
        targets = layer_targets(rows[group], own, has_bias)
        codes[group] = assign(targets, Grid(_EVERY_LEVEL, scale[group, 0])).codes
        bias[group] = (rows[group] - codes[group] * scale[group]) @ own.mean
    shaped = np.ascontiguousarray(np.moveaxis(codes.reshape(by_output.shape), 0, output_axis))
    rate, codebook = codec.size_bytes(shaped), codebook_of(code_histogram(shaped))
    curve = Curve(layer, np.array([rate]), np.zeros(1), (codebook,))
    return OperatingPoints(curve, shaped[None], bias[None].astype(np.float32) if has_bias else None)


def feedback_importance(uniform: UniformWeights, targets: Targets) -> NDArray[np.float64]:
    """Return the importance of each code, shape (256,), that a codebook for error feedback is designed with."""
    by_row, by_column = targets.importance
    rows, columns = np.empty_like(by_row), np.empty_like(by_column)
    rows[targets.outputs.order], columns[targets.feedback.order] = by_row, by_column
    costs = rows.reshape(-1, *(1,) * (uniform.codes.ndim - 1)) * columns.reshape(1, *uniform.codes.shape[1:])
    return code_importance(uniform.codes, uniform.scale_like().astype(np.float64) ** 2 * costs)


def _level_sets(
    uniform: UniformWeights, codec: Codec, targets: Targets, whole: float, sizes: Sequence[int] | None
) -> list[NDArray[np.int8]]:
    """Return the sets of levels that are worth an assignment, each once; `whole` is what no weights at all cost."""
    histogram, importance = code_histogram(uniform.codes), feedback_importance(uniform, targets)
    if sizes is not None or not codec.entropy_coded:
        family = build_codebooks(histogram, importance=importance)
        designed = [family.codebook(size).levels for size in sizes or _FIXED_SIZES if size < family.max_levels]
    else:
        slopes = _SLOPES * whole / uniform.codes.size
        if isinstance(codec, AscendCodec):
            books = codec.build_codebooks(histogram, slopes, importance=importance)
        else:
            books = build_entropy_codebooks(histogram, slopes, importance=importance)
        designed = [book.levels for book in books]
        designed += [np.arange(-(128 // step) * step, 128, step).astype(np.int8) for step in _STEPS]
    return list({levels.tobytes(): levels for levels in designed if len(levels) > 1}.values())
