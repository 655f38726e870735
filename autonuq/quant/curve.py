"""Rate-distortion curves: what a layer costs in bytes, and what it loses, at every useful codebook."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.quant.codebook import (
    Codebook,
    build_codebook,
    build_codebooks,
    build_entropy_codebook,
    code_histogram,
    code_importance,
)
from autonuq.quant.codec import Codec

# Grid steps, in codes, from below one code to a fifth of the range, whose error and rate an entropy-coded uniform
# quantizer would have; they become the Lagrangians at which codebooks are designed.
_GRID_STEPS = np.geomspace(0.5, 100, 64)

# A codebook that loses more of the weights' energy than this is no use to any layer.
_MAX_LOSS = 0.5


@dataclass(frozen=True)
class Curve:
    """The useful operating points of one layer.

    Attributes
    ----------
    layer : str
    rates_bytes : ndarray, shape (n,)
        Falling; exact sizes.
    distortions : ndarray of float64, shape (n,)
        Rising; expected squared output error, up to a factor common to the layer.
    codebooks : tuple of Codebook, n of them or none
        Point 0 keeps every code.

    Raises
    ------
    ValueError
        The arrays differ in length, are empty, or are not sorted so.
    """

    layer: str
    rates_bytes: NDArray[np.generic]
    distortions: NDArray[np.float64]
    codebooks: tuple[Codebook, ...] = ()

    def __post_init__(self) -> None:
        """Check what the class promises."""
        rates, distortions = np.asarray(self.rates_bytes, float), np.asarray(self.distortions, float)
        if rates.ndim != 1 or rates.shape != distortions.shape or not rates.size:
            raise ValueError(f"curve of '{self.layer}': rates and distortions must be equally long and not empty")
        if (np.diff(rates) >= 0).any() or (np.diff(distortions) < 0).any():
            raise ValueError(f"curve of '{self.layer}': rates must fall and distortions must not")
        if self.codebooks and len(self.codebooks) != rates.size:
            raise ValueError(f"curve of '{self.layer}': {len(self.codebooks)} codebooks for {rates.size} points")

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of levels of each point."""
        return tuple(len(codebook.levels) for codebook in self.codebooks)


def build_curve(
    layer: str,
    codes: NDArray[np.int8],
    codec: Codec,
    *,
    scale_like: NDArray[np.float32],
    second_moments: NDArray[np.floating] | None = None,
    nuq: bool = True,
) -> Curve:
    """Build the rate-distortion curve of one layer.

    Parameters
    ----------
    layer : str
    codes : ndarray of int8
        Uniform weights.
    codec : Codec
    scale_like : ndarray of float32
        Scale of each weight; broadcasts over the codes.
    second_moments : ndarray of float, optional
        Mean square of the input that each weight meets; broadcasts over the codes. 1 by default.
    nuq : bool
        False: the layer keeps all its steps, and the curve has that one point.

    Returns
    -------
    Curve
        The lower convex hull of the optimal codebooks of every size and, for a codec whose bytes depend on the
        frequencies, of the entropy-constrained ones.

    Notes
    -----
    **Shapes**: codes (50, 20, 5, 5) go with scales (50, 1, 1, 1) and second moments (1, 20, 1, 1).
    **Cost**: two dynamic programs over 256 bins; only points on the estimated hull are coded for their exact size.
    """
    histogram = code_histogram(codes)
    everything = build_codebook(histogram, 256)
    if not nuq:
        return Curve(layer, np.array([codec.size_bytes(codes)]), np.zeros(1), (everything,))
    moments = 1.0 if second_moments is None else second_moments
    importance = code_importance(codes, np.asarray(scale_like, np.float64) ** 2 * moments)
    codebooks = [everything, *_candidates(histogram, importance, codec)]
    distortions = np.array([_distortion(codebook, importance) for codebook in codebooks])
    energy = float((importance * np.arange(-128.0, 128) ** 2).sum())
    useful = np.flatnonzero(distortions <= _MAX_LOSS * energy)
    codebooks, distortions = [codebooks[index] for index in useful], distortions[useful]
    estimates = np.array([codec.estimate_bytes(_kept(codebook, histogram)) for codebook in codebooks])
    hull = _lower_hull(estimates, distortions)
    rates = np.array([codec.size_bytes(codebooks[index].apply(codes)) for index in hull])
    exact = [int(hull[index]) for index in _lower_hull(rates.astype(float), distortions[hull])]
    size = dict(zip(hull.tolist(), rates.tolist(), strict=True))
    return Curve(
        layer,
        np.array([size[index] for index in exact]),
        distortions[exact],
        tuple(codebooks[index] for index in exact),
    )


def _candidates(histogram: NDArray[np.int64], importance: NDArray[np.float64], codec: Codec) -> list[Codebook]:
    family = build_codebooks(histogram, importance=importance)
    found = [family.codebook(levels) for levels in range(2, family.max_levels + 1)]
    if codec.name == "fixed":
        return found
    # An entropy-coded uniform quantizer of step d loses d**2/12 a weight; its slope is 2 ln 2 d**2/12 a bit.
    mean = importance.sum() / histogram.sum()
    lagrangians = mean * _GRID_STEPS**2 * np.log(2) / 6
    return found + [build_entropy_codebook(histogram, slope, importance=importance) for slope in lagrangians]


def _distortion(codebook: Codebook, importance: NDArray[np.float64]) -> float:
    error = np.arange(-128, 128) - codebook.table.astype(float)
    return float((importance * error**2).sum())


def _kept(codebook: Codebook, histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the histogram of the codes after the codebook."""
    kept = np.bincount(codebook.table.astype(int) + 128, weights=histogram, minlength=256)
    return kept.astype(np.int64)


def _lower_hull(rates: NDArray[np.float64], distortions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the lower-left convex hull, by falling rate, from point 0 on.

    Point 0 has distortion 0 and so is always the first.
    """
    hull: list[int] = [0]
    for index in np.lexsort((rates, distortions)):
        if index == 0 or rates[index] >= rates[hull[-1]]:
            continue
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], int(index), rates, distortions):
            hull.pop()
        hull.append(int(index))
    return np.array(hull)


def _is_above(
    first: int, middle: int, last: int, rates: NDArray[np.float64], distortions: NDArray[np.float64]
) -> bool:
    """Say whether `middle` lies on or above the chord from `first` to `last`."""
    share = (rates[first] - rates[middle]) / (rates[first] - rates[last])
    return bool(distortions[middle] >= distortions[first] + share * (distortions[last] - distortions[first]))
