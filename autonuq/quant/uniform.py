"""Uniform int8 weights: AMCT's ARQ, exact to the last float32 bit.

Every later step works on what this module makes: int8 codes and one float32 scale per output channel or layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError

# AMCT 9.0.0, quantize_lib: a smaller scale becomes 1; one above the reciprocal is refused, because the
# hardware multiplies by 1 / scale.
FLT_EPSILON = np.float32(np.finfo(np.float32).eps)


def round_half_away(x: NDArray[Any]) -> NDArray[Any]:
    """Round to the nearest integer, halves away from zero, as C's `round`.

    Parameters
    ----------
    x : ndarray of float32 or float64, any shape

    Returns
    -------
    ndarray of the same shape and dtype

    Notes
    -----
    **Cost**: three passes, one temporary of the size of `x`.
    **Source**: own derivation. ``floor(|x| + 0.5)`` turns 0.49999997 into 1, because the sum is rounded up to 1. Adding
    the largest float below one half instead never carries a fraction under one half over the next integer, while the
    sum of any fraction from one half on is rounded up to it. Checked on every float32 from 0.2 to 2**25.
    """
    below_half = np.nextafter(x.dtype.type(0.5), x.dtype.type(0.0))
    shifted = np.copysign(below_half, x)
    shifted += x
    rounded: NDArray[Any] = np.trunc(shifted)
    return rounded


def checked_scale(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales that are fit for use: tiny ones become 1, ones with a degenerate reciprocal are refused.

    Raises
    ------
    QuantizationError
        A scale is above 1 / FLT_EPSILON (8388608), or not a number.
    """
    scale = np.where(scale < FLT_EPSILON, np.float32(1), scale)
    if not np.all(scale <= 1 / FLT_EPSILON):
        raise QuantizationError(
            f"a scale of {float(np.max(scale)):g} has no usable reciprocal (it must be at most 1 / FLT_EPSILON);"
            " skip this layer"
        )
    return scale


@dataclass(frozen=True)
class UniformWeights:
    """Weights as uniform int8 steps.

    Attributes
    ----------
    codes : ndarray of int8, shape of the weights
    scale : ndarray of float32, shape (C,) or (1,)
        Width of one step, per output channel or for the layer.
    channel_axis : int or None
        Axis of `codes` that the scales run along; None when there is one scale.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    channel_axis: int | None

    def scale_like(self) -> NDArray[np.float32]:
        """Return the scale in a shape that broadcasts over `codes`: (20,) for (20, 1, 5, 5) gives (20, 1, 1, 1)."""
        return _scale_over(self.scale, self.codes.ndim, self.channel_axis)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the float32 weights that the codes stand for, in the shape of `codes`."""
        return dequantize(self.codes, self.scale, self.channel_axis)


def quantize_weights(weights: NDArray[Any], *, channel_axis: int | None) -> UniformWeights:
    """Quantize weights symmetrically to int8 (ARQ).

    Parameters
    ----------
    weights : ndarray of float, any shape but empty
        Converted to float32.
    channel_axis : int or None
        Axis of the output channels, one scale each (0 for Convolution, 1 for Deconvolution); None for one scale.

    Returns
    -------
    UniformWeights

    Raises
    ------
    QuantizationError
        Weights are empty, NaN or infinite, or so large that 1 / scale degenerates.
    ValueError
        `channel_axis` is no axis of `weights`.

    Notes
    -----
    The side of larger magnitude touches its end of the grid: scale = max / 127 if that side is positive, else
    -min / 128 (a tie counts as negative); a scale under FLT_EPSILON becomes 1.

    **Shapes**: (20, 1, 5, 5) with `channel_axis` 0 gives scales (20,); (500, 800) with None gives (1,).
    **Cost**: O(n), a few passes.
    **Source**: ARQ of AMCT 9.0.0 (`arq.cpp`).

    Examples
    --------
    >>> uniform = quantize_weights(np.array([[0.5, -1.0, 1.27], [0.1, -0.64, 0.2]]), channel_axis=0)
    >>> uniform.codes.tolist(), uniform.scale.astype(float).round(4).tolist()
    ([[50, -100, 127], [20, -128, 40]], [0.01, 0.005])
    """
    weights = np.asarray(weights, dtype=np.float32)
    if weights.size == 0:
        raise QuantizationError("there are no weights to quantize")
    if channel_axis is not None and not 0 <= channel_axis < weights.ndim:
        raise ValueError(
            "The 'channel_axis' parameter of quantize_weights must be None or an axis of weights with"
            f" {weights.ndim} dimensions. Got {channel_axis} instead."
        )
    axes = tuple(axis for axis in range(weights.ndim) if axis != channel_axis)
    largest = weights.max(axis=axes if channel_axis is not None else None)
    smallest = weights.min(axis=axes if channel_axis is not None else None)
    if not (np.all(np.isfinite(largest)) and np.all(np.isfinite(smallest))):
        raise QuantizationError("weights must be finite; they hold NaN or infinity")
    positive = largest > -smallest
    scale = checked_scale(np.atleast_1d(np.where(positive, largest / np.float32(127), -smallest / np.float32(128))))
    return on_grid(weights, scale, channel_axis)


def on_grid(weights: NDArray[np.float32], scale: NDArray[np.float32], channel_axis: int | None) -> UniformWeights:
    """Round weights to a grid whose scale is given, clipping to int8; the parameters are those of `UniformWeights`."""
    steps = round_half_away(weights / _scale_over(scale, weights.ndim, channel_axis))
    return UniformWeights(np.clip(steps, -128, 127).astype(np.int8), scale, channel_axis)


def dequantize(codes: NDArray[np.int8], scale: NDArray[np.float32], channel_axis: int | None) -> NDArray[np.float32]:
    """Return ``codes * scale`` in float32.

    Parameters
    ----------
    codes : ndarray of int8, any shape
    scale : ndarray of float32, shape (C,) or (1,)
    channel_axis : int or None
        Axis of `codes` with length C; None when there is one scale.

    Returns
    -------
    ndarray of float32, shape of `codes`
    """
    weights = codes.astype(np.float32)
    weights *= _scale_over(scale, codes.ndim, channel_axis)  # in place: a file may hold hundreds of megabytes
    return weights


def quantize_bias(bias: NDArray[Any], scale_d: float, scale_w: NDArray[np.float32]) -> NDArray[np.int32]:
    """Quantize a bias to the int32 accumulator's unit, ``scale_d * scale_w[c]``.

    Parameters
    ----------
    bias : ndarray of float, shape (C,)
    scale_d : float
        Scale of the layer's input.
    scale_w : ndarray of float32, shape (C,) or (1,)

    Returns
    -------
    ndarray of int32, shape (C,)

    Raises
    ------
    QuantizationError
        A value leaves int32 or is not a number.

    Notes
    -----
    In float64, so that the quotient is right to the last of 32 bits.

    **Source**: AMCT, bias = RHA(b[c] / (scale_d * scale_w[c])).
    """
    unit = np.float64(scale_d) * np.asarray(scale_w, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = round_half_away(np.asarray(bias, dtype=np.float64) / unit)
    bounds = np.iinfo(np.int32)
    if not np.all((steps >= bounds.min) & (steps <= bounds.max)):
        raise QuantizationError("the bias does not fit int32 in units of scale_d * scale_w; skip this layer")
    return steps.astype(np.int32)


def _scale_over(scale: NDArray[np.float32], dimensions: int, channel_axis: int | None) -> NDArray[np.float32]:
    if channel_axis is None:
        return scale.reshape((1,) * dimensions)
    return scale.reshape(tuple(-1 if axis == channel_axis else 1 for axis in range(dimensions)))
