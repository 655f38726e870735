"""Rate-distortion curves: for one layer, the codebooks worth having, from all its codes to few.

The unit of distortion is the expected squared error of the layer's output, summed over its weights as if their errors
were independent: sum of importance * (code - level)**2 with importance = scale**2 * second moment of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.notebook import html_line, html_table
from autonuq.quant.codebook import (
    BINS,
    Codebook,
    CodebookFamily,
    build_codebook,
    build_codebooks,
    build_entropy_codebooks,
    code_histogram,
    code_importance,
)
from autonuq.quant.codec import Codec

MAX_POINTS = 64
"""Points of a curve at most."""

LAGRANGIANS = 128
"""Entropy-constrained codebooks that are tried per layer."""

MAX_LOSS = 0.95
"""Largest distortion of a point, as a share of the layer's output energy; nothing behind it is of use to a network."""

_CODES = np.arange(-128.0, 128.0)
_ZERO = 128


@dataclass(frozen=True)
class Curve:
    """The useful operating points of one layer, from large and exact to small and coarse.

    Attributes
    ----------
    layer : str
        Name of the layer.
    rates_bytes : ndarray of int64 or float64, shape (n,)
        Exact size of the layer in its codec, strictly falling.
    distortions : ndarray of float64, shape (n,)
        Expected squared output error, never falling; 0 at point 0.
    codebooks : tuple of Codebook, length n, or empty
        What each point keeps. Point 0 keeps every code that occurs.

    Raises
    ------
    ValueError
        The arrays are empty, of different lengths, not finite, or not in order.

    Examples
    --------
    >>> Curve("conv", np.array([900, 300, 100]), np.array([0.0, 0.4, 2.5])).levels
    ()
    >>> Curve("conv", np.array([100, 300]), np.array([0.4, 0.0]))
    Traceback (most recent call last):
    ValueError: The curve of layer 'conv' must have falling rates and rising distortions.
    """

    layer: str
    rates_bytes: NDArray[Any]
    distortions: NDArray[np.float64]
    codebooks: tuple[Codebook, ...] = ()

    def __post_init__(self) -> None:
        """Check the order, so that a curve from a file is as good as one that was built."""
        rates, distortions = np.asarray(self.rates_bytes), np.asarray(self.distortions)
        if rates.ndim != 1 or rates.size == 0 or distortions.shape != rates.shape:
            raise ValueError(f"The curve of layer '{self.layer}' must have as many rates as distortions, at least one.")
        if self.codebooks and len(self.codebooks) != rates.size:
            raise ValueError(f"The curve of layer '{self.layer}' must have a codebook per point, or none.")
        if not (np.all(np.isfinite(rates)) and np.all(np.isfinite(distortions))):
            raise ValueError(f"The curve of layer '{self.layer}' must be finite.")
        if np.any(rates[1:] >= rates[:-1]) or np.any(distortions[1:] < distortions[:-1]):  # unsigned ones, too
            raise ValueError(f"The curve of layer '{self.layer}' must have falling rates and rising distortions.")

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of levels of each point; empty without codebooks."""
        return tuple(len(codebook.levels) for codebook in self.codebooks)

    def _repr_html_(self) -> str:
        """Show a notebook the curve, distortion over bytes, and its points."""
        rates, distortions = np.asarray(self.rates_bytes, float).tolist(), np.asarray(self.distortions).tolist()
        levels = self.levels or ("",) * len(rates)
        rows = [
            (count, f"{rate:,.0f}", f"{distortion:.4g}")
            for count, rate, distortion in zip(levels, rates, distortions, strict=True)
        ]
        plot = html_line(rates, distortions, f"distortion of {self.layer} over its bytes")
        return plot + html_table(f"Rate-distortion curve of {self.layer}", ("levels", "bytes", "distortion"), rows)


def build_curve(
    layer: str,
    codes: NDArray[np.int8],
    codec: Codec,
    *,
    scale_like: NDArray[Any],
    second_moments: NDArray[Any] | None = None,
    nuq: bool = True,
    sizes: Sequence[int] | None = None,
) -> Curve:
    """Build the rate-distortion curve of one layer.

    Parameters
    ----------
    layer : str
        Name of the layer.
    codes : ndarray of int8, any shape but empty
        Its uniform int8 weights.
    codec : Codec
        What its bytes are counted with.
    scale_like : ndarray of float
        Scale of each weight; broadcasts to the shape of `codes`.
    second_moments : ndarray of float, optional
        Mean square of the input value that each weight multiplies; broadcasts to the shape of `codes`. 1 if omitted.
    nuq : bool
        False: the layer keeps its uniform steps, and the curve is one point.
    sizes : sequence of int, optional
        The numbers of levels that are allowed besides all; any by default.

    Returns
    -------
    Curve
        At most 64 points, on the lower-left convex hull of what was tried.

    Raises
    ------
    QuantizationError
        There are no codes, or scales or second moments are not finite.

    Notes
    -----
    Candidates are the exact optimal codebooks of every number of levels from 2 on and, where the codec is an entropy
    coder, the exact entropy-constrained ones of a geometric grid of lagrangians. Those that lose over half of the
    layer's output energy are left out. The hull is found on estimated sizes; its points are then encoded, and the hull
    of the real sizes is the curve.

    **Shapes**: codes (50, 20, 5, 5) go with scales (50, 1, 1, 1) and second moments (1, 20, 5, 5) or (1, 20, 1, 1).
    **Cost**: some 40 ms for the codebooks, whatever the size of the layer, and encoding it at most 64 times.
    **Source**: Shoham & Gersho, IEEE Trans. ASSP 36(9), 1988, for allocation over convex hulls.
    """
    if codes.size == 0:
        raise QuantizationError("there are no weights", layer=layer)
    histogram = code_histogram(codes)
    uniform_bytes = codec.size_bytes(codes)
    if not nuq:
        return Curve(layer, np.array([uniform_bytes]), np.zeros(1), (build_codebook(histogram, BINS),))
    importance = _importance(layer, codes, scale_like, second_moments)
    uniform, *others = _candidates(histogram, importance, codec, sizes)
    distortions = np.array([_distortion(codebook, importance) for codebook in (uniform, *others)])
    estimates = [codec.estimate_bytes(_coarse(codebook, histogram)) for codebook in others]
    rates = np.array([float(uniform_bytes), *estimates])
    useful = np.flatnonzero(distortions <= MAX_LOSS * np.dot(importance, _CODES**2))
    chosen = useful[_thinned(useful_points(rates[useful], distortions[useful]))]
    for point in chosen[1:]:
        rates[point] = codec.size_bytes(others[point - 1].apply(codes))
    chosen = chosen[useful_points(rates[chosen], distortions[chosen])]
    codebooks = (uniform, *(others[point - 1] for point in chosen[1:]))
    return Curve(layer, rates[chosen].astype(np.int64), distortions[chosen], codebooks)


def _importance(
    layer: str, codes: NDArray[np.int8], scale_like: NDArray[Any], second_moments: NDArray[Any] | None
) -> NDArray[np.float64]:
    moments = np.ones(1) if second_moments is None else np.asarray(second_moments, dtype=np.float64)
    try:
        return code_importance(codes, np.asarray(scale_like, dtype=np.float64) ** 2 * moments)
    except QuantizationError as error:
        raise QuantizationError(str(error), layer=layer) from error


def _candidates(
    histogram: NDArray[np.int64], importance: NDArray[np.float64], codec: Codec, sizes: Sequence[int] | None
) -> list[Codebook]:
    """Return the codebook of all codes that occur, then others with at least two levels."""
    family = build_codebooks(histogram, importance=importance)
    allowed = range(2, family.max_levels) if sizes is None else [size for size in sizes if size < family.max_levels]
    found = [family.codebook(levels) for levels in (BINS, *allowed)]
    if sizes is None and codec.entropy_coded and family.max_levels > 2:
        grid = _lagrangians(family, int(histogram.sum()))
        constrained = build_entropy_codebooks(histogram, grid, importance=importance)
        found += [codebook for codebook in constrained if 2 <= len(codebook.levels) < family.max_levels]
    return found


def _lagrangians(family: CodebookFamily, count: int) -> NDArray[np.float64]:
    """Return slopes that span the curve, in distortion per bit.

    At high rate the distortion of a weight falls by a factor of four per bit, so the slope of the whole layer's is
    2 ln 2 times distortion over `count` weights; the grid goes from well below the finest codebook's to the coarsest's.
    """
    positive = family.distortions[:-1][family.distortions[:-1] > 0]
    if positive.size == 0:
        return np.empty(0)
    slopes = 2 * np.log(2) / count * positive
    return np.geomspace(slopes[-1] / 4, slopes[0], LAGRANGIANS)


def _distortion(codebook: Codebook, importance: NDArray[np.float64]) -> float:
    return float(np.dot(importance, (_CODES - codebook.table) ** 2))


def _coarse(codebook: Codebook, histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the histogram of the layer once its codes are levels."""
    coarse = np.zeros(BINS, dtype=np.int64)
    np.add.at(coarse, codebook.table.astype(np.int64) + _ZERO, histogram)
    return coarse


def _thinned(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return at most MAX_POINTS of the points, evenly, with both ends."""
    if points.size <= MAX_POINTS:
        return points
    return points[np.linspace(0, points.size - 1, MAX_POINTS).round().astype(np.int64)]


def useful_points(rates: NDArray[Any], distortions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of a curve's points: point 0, the uniform codes, then the hull of what is smaller."""
    hull = lower_hull(rates, distortions)
    return hull if hull[0] == 0 else np.concatenate([[0], hull])


def lower_hull(rates: NDArray[Any], distortions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the lower-left convex hull, from the least distortion on, rates strictly falling.

    Of points in a line the inner ones are left out, and of equal points all but the first.

    Notes
    -----
    **Cost**: O(n log n) for the order, then every point is looked at twice at most.
    **Source**: Andrew, Information Processing Letters 9(5), 1979 (monotone chain), half of it.
    """
    hull: list[int] = []
    for point in np.lexsort((rates, distortions)).tolist():
        if hull and rates[point] >= rates[hull[-1]]:
            continue
        while len(hull) > 1 and _is_above(hull[-1], hull[-2], point, rates, distortions):
            hull.pop()
        hull.append(point)
    return np.array(hull)


def _is_above(middle: int, left: int, right: int, rates: NDArray[Any], distortions: NDArray[np.float64]) -> bool:
    """Tell whether a point is on or above the line between its neighbours; rates fall from left to right."""
    risen = (distortions[middle] - distortions[left]) * (rates[left] - rates[right])
    line = (distortions[right] - distortions[left]) * (rates[left] - rates[middle])
    return bool(risen >= line)
