"""A layer's operating points: the curve that is searched, and the codes that each of its points stands for.

With the second moments of the layer's inputs, the points come from error feedback: codebooks designed for what an error
costs when later columns make up for it, every weight rounded with the errors before it in mind, distortion measured on
the output. Without them, weights count alone and the codebook's table decides.
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
    BINS,
    Codebook,
    build_codebook,
    build_codebooks,
    build_entropy_codebooks,
    code_histogram,
    code_importance,
)
from autonuq.quant.codec import Codec, EntropyCodec
from autonuq.quant.curve import MAX_LOSS, Curve, build_curve, useful_points
from autonuq.quant.feedback import (
    Feedback,
    Targets,
    assign,
    build_feedback,
    output_energy,
    sets_at_a_time,
    targets_of,
)
from autonuq.quant.inputs import Inputs
from autonuq.quant.uniform import UniformWeights

# Distortion, as a share of the output energy per weight, that one bit may buy: from nearly lossless to a few levels.
_SLOPES = np.geomspace(2e-4, 0.15, 20)
# Steps of evenly spaced levels: at low rates, where feedback makes errors large and spreads them, nothing is better.
_STEPS = np.unique(np.geomspace(3, 127, 28).round().astype(int))
_FIXED_SIZES = (2, 4, 8, 16, 32, 64, 128)  # fewer levels than these save no bit
_EVERY_LEVEL = np.arange(-128, 128).astype(np.int8)

PACKED_ABOVE = 1 << 20  # weights: all points of VGG-16's as they are would take 3.5 GB
MANY_WEIGHTS = 1 << 24  # of these layers half as many sets of levels are tried
_SMALLER = 0.94  # VGG-16's points take 0.7 GB then
_MULTIPLIED = 1 << 22  # weights that are multiplied in float64 at a time


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
    """

    curve: Curve
    codes: Sequence[NDArray[np.int8]] | NDArray[np.int8]
    bias: NDArray[np.float32] | None = None


def build_points(
    layer: str,
    weights: NDArray[np.float32],
    uniform: UniformWeights,
    codec: Codec,
    *,
    inputs: Sequence[Inputs] = (),
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

    **Cost**: with inputs one factorization and up to 50 assignments, several side by side; half of them from 16 M
    weights on. Above 1 M weights the points are at least 6 % apart, and kept as bitstreams.
    """
    if inputs:
        try:
            if nuq:
                return _feedback_points(layer, weights, uniform, codec, inputs, has_bias, sizes)
            return _int8_point(layer, weights, uniform, codec, inputs, has_bias, output_axis)
        except QuantizationError as error:
            raise QuantizationError(str(error), layer=layer) from error
    curve = build_curve(layer, uniform.codes, codec, scale_like=uniform.scale_like(), nuq=nuq, sizes=sizes)
    energy = float((uniform.scale_like() * uniform.codes.astype(np.float64)).ravel() @ uniform.dequantize().ravel())
    codes = np.stack([codebook.apply(uniform.codes) for codebook in curve.codebooks])
    return OperatingPoints(replace(curve, distortions=curve.distortions / (energy or 1.0)), codes)


def _feedback_points(
    layer: str,
    weights: NDArray[np.float32],
    uniform: UniformWeights,
    codec: Codec,
    inputs: Sequence[Inputs],
    has_bias: bool,
    sizes: Sequence[int] | None,
) -> OperatingPoints:
    feedback, targets = prepare_feedback(weights, uniform, [own.centred() if has_bias else own for own in inputs])
    energy = output_energy(feedback, targets) or 1.0  # 0 if all weights are
    others = _level_sets(uniform, codec, feedback, energy, sizes)
    sets = [_EVERY_LEVEL, *others[:: 2 if weights.size >= MANY_WEIGHTS else 1]]
    tried, at_a_time = _Tried(codec, uniform.codes.shape), sets_at_a_time(weights.size)
    for begin in range(0, len(sets), at_a_time):
        for assigned in assign(feedback, targets, sets[begin : begin + at_a_time]):
            tried.add(assigned.codes, assigned.distortion / energy)
    points = tried.points(layer)
    return replace(points, bias=_biases(weights, uniform, points.codes, inputs[0].mean)) if has_bias else points


def _biases(
    weights: NDArray[np.float32], uniform: UniformWeights, codes: Iterable[NDArray[np.int8]], mean: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the mean of what each output lacks at each point, shape (points, outputs)."""
    whole = _times(weights, mean)
    found = [whole - np.broadcast_to(uniform.scale, len(weights)) * _times(point, mean) for point in codes]
    return np.array(found, np.float32)


def _times(rows: NDArray[Any], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply rows, of any shape behind the first axis, and a vector; a part at a time in float64."""
    size = max(1, _MULTIPLIED // mean.size)
    parts = [rows[begin : begin + size].reshape(-1, mean.size) @ mean for begin in range(0, len(rows), size)]
    return np.concatenate(parts)


class _Tried:
    """Points that were tried, those of use: the first, and the hull of the others."""

    def __init__(self, codec: Codec, shape: tuple[int, ...]) -> None:
        self._codec, self._shape, self._packing = codec, shape, EntropyCodec(shape)
        self._is_packed = math.prod(shape) > PACKED_ABOVE
        self._codes: list[Any] = []
        self._codebooks: list[Codebook] = []
        self._rates: list[int] = []
        self._losses: list[float] = []

    def add(self, codes: NDArray[np.int8], loss: float) -> None:
        """Take in a point; the loss of the first counts as none."""
        if self._codes and loss > MAX_LOSS:
            return
        kept: Any = self._packing.encode(codes) if self._is_packed else codes.reshape(self._shape)
        is_size = self._is_packed and self._codec == self._packing
        self._rates.append(len(kept) if is_size else self._codec.size_bytes(codes.reshape(self._shape)))
        self._losses.append(loss if self._codes else 0.0)
        self._codebooks.append(build_codebook(code_histogram(codes), BINS))
        self._codes.append(kept)
        self._keep(useful_points(np.array(self._rates), np.array(self._losses)))

    def _keep(self, chosen: Iterable[int]) -> None:
        chosen = list(chosen)
        columns: tuple[list[Any], ...] = (self._codes, self._codebooks, self._rates, self._losses)
        for column in columns:
            column[:] = [column[index] for index in chosen]

    def points(self, layer: str) -> OperatingPoints:
        """Return what is of use; of a large layer only points well below the one before."""
        if self._is_packed:
            self._keep(_spread(self._rates))
        curve = Curve(layer, np.array(self._rates), np.array(self._losses), tuple(self._codebooks))
        codes = PackedCodes(self._codes, self._shape) if self._is_packed else np.stack(self._codes)
        return OperatingPoints(curve, codes)


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
    scale = np.broadcast_to(uniform.scale, (len(by_output),))[:, None]
    rows = by_output.reshape(len(by_output), -1)
    groups = np.split(np.arange(len(rows)), len(inputs))
    codes, bias = np.empty(rows.shape, np.int8), np.zeros(len(rows))
    for group, own in zip(groups, inputs, strict=True):
        _check_inputs(rows, own)
        feedback = build_feedback(own.centred() if has_bias else own)
        targets = targets_of(feedback, rows[group], scale[group, 0])
        codes[group] = assign(feedback, targets, [_EVERY_LEVEL])[0].codes
        bias[group] = (rows[group] - codes[group] * scale[group]) @ own.mean
    shaped = np.ascontiguousarray(np.moveaxis(codes.reshape(by_output.shape), 0, output_axis))
    rate, codebook = codec.size_bytes(shaped), build_codebook(code_histogram(shaped), BINS)
    curve = Curve(layer, np.array([rate]), np.zeros(1), (codebook,))
    return OperatingPoints(curve, shaped[None], bias[None].astype(np.float32) if has_bias else None)


def prepare_feedback(
    weights: NDArray[np.float32], uniform: UniformWeights, inputs: Sequence[Inputs]
) -> tuple[Feedback, Targets]:
    """Return what `assign` takes of a layer with one group.

    Raises
    ------
    QuantizationError
        The inputs do not fit the weights, or are not finite.
    """
    rows, (own,) = weights.reshape(len(weights), -1), inputs
    _check_inputs(rows, own)
    scale = np.broadcast_to(uniform.scale, (len(rows),))
    feedback = build_feedback(own)
    return feedback, targets_of(feedback, rows, scale)


def _check_inputs(rows: NDArray[np.float32], inputs: Inputs) -> None:
    if rows.shape[1] != inputs.inputs:
        raise QuantizationError(f"has {rows.shape[1]} inputs, but second moments of {inputs.inputs}")


def feedback_importance(uniform: UniformWeights, feedback: Feedback) -> NDArray[np.float64]:
    """Return the importance of each code, shape (256,), that a codebook for error feedback is designed with."""
    columns = feedback.importance.reshape(1, *uniform.codes.shape[1:])
    return code_importance(uniform.codes, uniform.scale_like().astype(np.float64) ** 2 * columns)


def _level_sets(
    uniform: UniformWeights, codec: Codec, feedback: Feedback, energy: float, sizes: Sequence[int] | None
) -> list[NDArray[np.int8]]:
    """Return the sets of levels that are worth an assignment, each once."""
    histogram, importance = code_histogram(uniform.codes), feedback_importance(uniform, feedback)
    if sizes is not None or not codec.entropy_coded:
        family = build_codebooks(histogram, importance=importance)
        designed = [family.codebook(size).levels for size in sizes or _FIXED_SIZES if size < family.max_levels]
    else:
        slopes = _SLOPES * energy / uniform.codes.size
        if isinstance(codec, AscendCodec):
            books = codec.build_codebooks(histogram, slopes, importance=importance)
        else:
            books = build_entropy_codebooks(histogram, slopes, importance=importance)
        designed = [book.levels for book in books]
        designed += [np.arange(-(128 // step) * step, 128, step).astype(np.int8) for step in _STEPS]
    return list({levels.tobytes(): levels for levels in designed if len(levels) > 1}.values())
