"""How far a network's results moved: the divergence at its heads, and random factors of its curvature.

Of the logits z of a softmax, p = softmax(z / T) at every position, it is the mean over positions of KL(p || changed p),
in nats. Of other values it is half the mean over values of the squared error in units of their variance; values that
are constant do not count. Several heads add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.graph.model import Array

_CONSTANT = 1e-9  # variance over squared mean: what float32 sums leave of constant values


@dataclass(frozen=True)
class SoftmaxMetric:
    """The divergence at the logits of a softmax.

    Attributes
    ----------
    blob : str
        Its name; where a layer in place makes another value under it, that one is not the head's.
    axis : int
        Of the classes.
    """

    blob: str
    axis: int

    def divergence(self, original: Array, changed: Array, temperature: float = 1.0) -> float:
        """Return the divergence of changed values from the original ones, mean over images; NaN if not finite."""
        with np.errstate(all="ignore"):  # what is not finite shows in the result
            one, other = (
                _log_softmax(values.astype(np.float64) / temperature, self.axis) for values in (original, changed)
            )
            return float(np.mean(np.sum(np.exp(one) * (one - other), axis=self.axis)))

    def factor(self, values: Array, noise: Array, images: int, temperature: float) -> NDArray[np.float32]:
        """Return v with E[v v'] = the second derivative of the divergence of one image, for standard normal noise.

        Parameters
        ----------
        values, noise : ndarray of float32
            Of so many images together.
        """
        positions = values.size / values.shape[self.axis] / images
        factor = softmax_factor(values, noise, self.axis, temperature)
        return np.asarray(factor / math.sqrt(positions), np.float32)


@dataclass(frozen=True)
class SquaresMetric:
    """The divergence at values of another kind, which knows no temperature; the interface is `SoftmaxMetric`'s.

    Attributes
    ----------
    blob : str
    scale : ndarray of float64
        1 / standard deviation of each channel or of all values, 0 of constant ones.
    """

    blob: str
    scale: NDArray[np.float64]

    @property
    def is_constant(self) -> bool:
        """Say whether nothing can be told from it, because its values never change."""
        return not self.scale.any()

    def divergence(self, original: Array, changed: Array, temperature: float = 1.0) -> float:
        """Return half the mean squared error in units of the variance."""
        with np.errstate(all="ignore"):
            return 0.5 * float(np.mean(np.square((np.float64(changed) - original) * self.scale)))

    def factor(self, values: Array, noise: Array, images: int, temperature: float) -> NDArray[np.float32]:
        """Return v; see `SoftmaxMetric`."""
        return np.asarray(noise * self.scale / math.sqrt(values.size / images), np.float32)


HeadMetric = SoftmaxMetric | SquaresMetric


def _log_softmax(values: Array, axis: int) -> Array:
    shifted = values - values.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def softmax_factor(values: Array, noise: Array, axis: int, temperature: float) -> Array:
    """Return v = (sqrt(p) e - p (sqrt(p) . e)) / T, p = softmax(z / T); E[v v'] = (diag(p) - p p') / T^2.

    Notes
    -----
    **Source**: sqrt(p) e has the covariance diag(p), and I - p 1' takes the rest out of it: (I - p 1') diag(p)
    (I - 1 p') = diag(p) - p p' for p that add up to 1. The entries of v add up to 0.
    """
    p = np.exp(_log_softmax(values / temperature, axis))
    spread = np.sqrt(p) * noise
    return np.asarray((spread - p * spread.sum(axis=axis, keepdims=True)) / temperature)


@dataclass
class Spread:
    """Collects the spread of a head's values over images and positions."""

    values: int = 0  # of one channel, which lie along axis 1
    total: Array | float = 0.0
    squares: Array | float = 0.0

    def add(self, values: Array) -> None:
        """Take some images in."""
        rows = values.reshape(len(values), values.shape[1] if values.ndim > 1 else 1, -1).astype(np.float64)
        self.values += rows.shape[0] * rows.shape[2]
        self.total = self.total + rows.sum(axis=(0, 2))
        self.squares = self.squares + np.square(rows).sum(axis=(0, 2))

    def scale(self, axes: int) -> NDArray[np.float64]:
        """Return 1 / standard deviation, to multiply values with so many axes; 0 where they are constant.

        Channels with fewer values than there are channels have one spread together.
        """
        total, squares, values = np.atleast_1d(self.total), np.atleast_1d(self.squares), self.values
        if values < len(total):
            total, squares, values = total.sum(keepdims=True), squares.sum(keepdims=True), values * len(total)
        mean = total / values
        variance = squares / values - mean**2
        constant = variance <= _CONSTANT * mean**2
        scale = np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, variance)))
        return scale.reshape(1, -1, *(1,) * (axes - 2)) if axes > 1 else scale
