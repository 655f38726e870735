"""A layer's operating points: the curve that is searched, and the codes that each of its points stands for.

With the second moments of the layer's inputs, the points come from error feedback: codebooks designed for what an error
costs when later columns make up for it, every weight rounded with the errors before it in mind, distortion measured on
the output. Without them, weights count alone and the codebook's table decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.atc.codec import AscendCodec
from autonuq.quant.codebook import (
    BINS,
    build_codebook,
    build_codebooks,
    build_entropy_codebooks,
    code_histogram,
    code_importance,
)
from autonuq.quant.codec import Codec
from autonuq.quant.curve import MAX_LOSS, Curve, build_curve, useful_points
from autonuq.quant.feedback import Feedback, assign, build_feedback, output_energy
from autonuq.quant.uniform import UniformWeights

# Distortion, as a share of the output energy per weight, that one bit may buy: from nearly lossless to a few levels.
_SLOPES = np.geomspace(2e-4, 0.15, 20)
# Steps of evenly spaced levels: at low rates, where feedback makes errors large and spreads them, nothing is better.
_STEPS = np.unique(np.geomspace(3, 127, 28).round().astype(int))
_FIXED_SIZES = (2, 4, 8, 16, 32, 64, 128)  # fewer levels than these save no bit


@dataclass(frozen=True)
class InputMoments:
    """What the calibration saw of a layer's inputs.

    Attributes
    ----------
    sums : ndarray of float64, shape (K, K)
        Sum of x x'.
    samples : int
        Number of x.
    """

    sums: NDArray[np.float64]
    samples: int


@dataclass(frozen=True)
class OperatingPoints:
    """What a layer can become.

    Attributes
    ----------
    curve : Curve
        Distortions as shares of the layer's output energy, so that layers can be compared.
    codes : ndarray of int8, shape (n, *shape of the weights)
        Codes of each point; may be a memory map.
    """

    curve: Curve
    codes: NDArray[np.int8]


def build_points(
    layer: str,
    weights: NDArray[np.float32],
    uniform: UniformWeights,
    codec: Codec,
    *,
    moments: InputMoments | None = None,
    nuq: bool = True,
    sizes: Sequence[int] | None = None,
) -> OperatingPoints:
    """Build the operating points of one layer.

    Parameters
    ----------
    layer : str
    weights : ndarray of float32, (outputs, ...)
    uniform : UniformWeights
        The same weights on their int8 grid; one scale, or one per output (axis 0).
    codec : Codec
    moments : InputMoments, optional
        Of the K inputs that a row of weights meets.
    nuq : bool
        False: the layer keeps its uniform steps.
    sizes : sequence of int, optional
        The numbers of levels that are allowed besides all; any by default.

    Raises
    ------
    QuantizationError
        The moments do not fit the weights, or are not finite.

    Notes
    -----
    **Cost**: with moments one Cholesky factorization and up to 48 assignments, each a fraction of it.
    """
    if moments is not None and nuq:
        try:
            return _feedback_points(layer, weights, uniform, codec, moments, sizes)
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
    moments: InputMoments,
    sizes: Sequence[int] | None,
) -> OperatingPoints:
    feedback, steps, scale = prepare_feedback(weights, uniform, moments)
    energy = output_energy(feedback, steps, row_scale=scale) or 1.0  # 0 if all weights are
    found = [(uniform.codes, 0.0)]
    for levels in _level_sets(uniform, codec, feedback, energy, sizes):
        assigned = assign(feedback, steps, levels, row_scale=scale)
        loss = assigned.distortion / energy
        if loss <= MAX_LOSS:
            found.append((assigned.codes.reshape(uniform.codes.shape), loss))
    rates = np.array([codec.size_bytes(codes) for codes, _ in found])
    losses = np.array([loss for _, loss in found])
    kept = useful_points(rates, losses)
    codes = np.stack([found[index][0] for index in kept])
    codebooks = tuple(build_codebook(code_histogram(point), BINS) for point in codes)
    return OperatingPoints(Curve(layer, rates[kept], losses[kept], codebooks), codes)


def prepare_feedback(
    weights: NDArray[np.float32], uniform: UniformWeights, moments: InputMoments
) -> tuple[Feedback, NDArray[np.float64], NDArray[np.float32]]:
    """Return what `assign` takes: the factor of the moments, the weights in code units (rows, K), each row's scale.

    Raises
    ------
    QuantizationError
        The moments do not fit the weights, or are not finite.
    """
    rows = len(weights)
    scale = np.broadcast_to(uniform.scale, (rows,))
    steps = weights.reshape(rows, -1) / scale[:, None].astype(np.float64)
    if steps.shape[1] != len(moments.sums):
        raise QuantizationError(f"has {steps.shape[1]} inputs, but second moments of {len(moments.sums)}")
    return build_feedback(moments.sums, moments.samples), steps, scale


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
