"""Codebooks: which of its 256 int8 steps a layer keeps, chosen exactly.

Notation: a layer's codes fall into m occupied bins, x[0] < ... < x[m-1], with weights w (counts, or summed importance).
A codebook cuts the bins into intervals, and every interval i..j goes to one integer level. The cost of an interval is
c(i, j) = sum of w (x - level)**2 at the best integer level, which is the rounded weighted mean, because the cost is a
parabola in the level; the interval that holds code 0 has level 0. An optimal codebook's assignment to nearest levels
always is such a cut, so a dynamic program over the bins finds the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError

BINS = 256
_ZERO = 128  # index of code 0


def code_histogram(codes: NDArray[np.int8]) -> NDArray[np.int64]:
    """Count each int8 code.

    Parameters
    ----------
    codes : ndarray of int8, any shape

    Returns
    -------
    ndarray of int64, shape (256,)
        Index = code + 128.

    Notes
    -----
    **Cost**: O(n), one pass over pairs of bytes: half as many increments as counting bytes.
    """
    raw = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    pairs = np.bincount(raw[: raw.size // 2 * 2].view(np.uint16), minlength=BINS * BINS).reshape(BINS, BINS)
    counts = pairs.sum(axis=0) + pairs.sum(axis=1)
    if raw.size % 2:
        counts[raw[-1]] += 1
    return np.asarray(np.roll(counts, _ZERO), np.int64)


def code_importance(codes: NDArray[np.int8], importance: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sum the importance of the weights of each code.

    Parameters
    ----------
    codes : ndarray of int8, any shape
    importance : ndarray of float
        Of each weight; must broadcast to the shape of `codes`.

    Returns
    -------
    ndarray of float64, shape (256,)
        Index = code + 128.
    """
    raw = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    weights = np.broadcast_to(importance, codes.shape).reshape(-1)
    return np.roll(np.bincount(raw, weights=weights, minlength=BINS), _ZERO)


@dataclass(frozen=True)
class Codebook:
    """The levels that a layer keeps.

    Attributes
    ----------
    levels : ndarray of int8, shape (k,)
        Sorted.
    table : ndarray of int8, shape (256,)
        code + 128 -> level. Levels map to themselves.
    """

    levels: NDArray[np.int8]
    table: NDArray[np.int8]

    def apply(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        """Replace every code by its level: one pass, same shape."""
        table = np.roll(self.table, -_ZERO).tobytes()
        return np.frombuffer(codes.tobytes().translate(table), np.int8).reshape(codes.shape)


def build_codebook(
    histogram: NDArray[np.int64], levels: int, *, importance: NDArray[np.float64] | None = None
) -> Codebook:
    """Choose the int8 levels that minimize the weighted squared error, exactly.

    Parameters
    ----------
    histogram : ndarray of int64, shape (256,)
        Count of each int8 code, index = code + 128.
    levels : int in [1, 256]
        How many distinct codes the layer may keep.
    importance : ndarray of float64, shape (256,), optional
        Summed importance of the weights of each code; defaults to `histogram`.

    Returns
    -------
    Codebook
        Of so many levels, or of all the codes that occur if they are fewer. 0 is a level wherever the layer holds
        zeros.

    Raises
    ------
    QuantizationError
        The histogram is empty, negative or not finite.
    """
    return build_codebooks(histogram, importance=importance, max_levels=levels).codebook(levels)


@dataclass(frozen=True)
class CodebookFamily:
    """The optimal codebooks of every size.

    Attributes
    ----------
    bins : ndarray of int64, shape (m,)
        The codes that occur.
    distortions : ndarray of float64, shape (K,)
        Weighted squared error in code units of the codebook with index + 1 levels; never rising.
    cuts : ndarray of int16, shape (K, m)
        First bin of the last interval when bins 0..j are cut into index + 1 intervals.
    interval_levels : ndarray of int64, shape (m, m)
        Best level of each interval.
    """

    bins: NDArray[np.int64]
    distortions: NDArray[np.float64]
    cuts: NDArray[np.int16]
    interval_levels: NDArray[np.int64]

    @property
    def max_levels(self) -> int:
        """Size of the largest codebook."""
        return len(self.distortions)

    def codebook(self, levels: int) -> Codebook:
        """Return the optimal codebook with at most `levels` levels."""
        if not 1 <= levels <= BINS:
            raise ValueError(f"The 'levels' parameter of codebook must be an int in [1, {BINS}]. Got {levels} instead.")
        count = min(levels, self.max_levels)
        end, starts = len(self.bins), []
        for row in range(count - 1, -1, -1):
            starts.append(int(self.cuts[row, end - 1]))
            end = starts[-1]
        return _codebook(self.bins, starts[::-1], self.interval_levels)


def build_codebooks(
    histogram: NDArray[np.int64], *, importance: NDArray[np.float64] | None = None, max_levels: int = BINS
) -> CodebookFamily:
    """Build the optimal codebooks of all sizes up to `max_levels` by one dynamic program.

    Parameters
    ----------
    histogram, importance
        See `build_codebook`.
    max_levels : int in [1, 256]

    Returns
    -------
    CodebookFamily

    Raises
    ------
    QuantizationError
        The histogram is empty, negative or not finite.
    ValueError
        `max_levels` is out of range.

    Notes
    -----
    **Shapes**: a (64, 3, 7, 7) convolution gives one histogram of 9,408 counts.
    **Cost**: O(K m**2) for m occupied bins, independent of the layer's size: about 10 ms for all sizes.
    **Source**: Wang & Song, R Journal 3(2), 2011 (optimal 1-D k-means); restricted to integer levels here.
    """
    if not 1 <= max_levels <= BINS:
        raise ValueError(
            f"The 'max_levels' parameter of build_codebooks must be an int in [1, {BINS}]. Got {max_levels} instead."
        )
    bins, weights = _occupied(histogram, importance)
    cost, levels = _interval_costs(bins, weights)
    count = len(bins)
    rows = min(max_levels, count)
    errors = np.empty((rows, count))
    cuts = np.zeros((rows, count), np.int16)
    errors[0] = cost[0]
    for row in range(1, rows):
        # Column j, row i: bins 0..i-1 in `row` intervals, then one interval i..j. Both need i >= row.
        totals = errors[row - 1, row - 1 : -1, None] + cost[row:, row:]
        best = totals.argmin(axis=0)
        cuts[row, row:] = best + row
        errors[row, row:] = totals[best, np.arange(count - row)]
        errors[row, :row] = errors[row - 1, :row]
    return CodebookFamily(bins, np.maximum(errors[:, -1], 0), cuts, levels)


def build_entropy_codebook(
    histogram: NDArray[np.int64],
    lagrangian: float,
    *,
    importance: NDArray[np.float64] | None = None,
    bits_per_level: float = 16.0,
) -> Codebook:
    """Choose the levels that minimize error + lagrangian * bits under an ideal entropy coder, over all sizes at once.

    Parameters
    ----------
    histogram, importance
        See `build_codebook`.
    lagrangian : float
        Weighted squared error, in code units, that one bit may buy.
    bits_per_level : float
        Side information that each level costs.

    Notes
    -----
    **Cost**: O(m**2). The bits of an interval are n log2(N / n) for its n of the layer's N weights, so the sum is
    additive over intervals and one pass over the bins is exact.
    **Source**: entropy-constrained scalar quantization (Chou, Lookabaugh & Gray 1989), solved exactly in one dimension.
    """
    bins, weights = _occupied(histogram, importance)
    cost, levels = _interval_costs(bins, weights)
    below = np.concatenate([[0], np.cumsum(np.asarray(histogram)[bins + _ZERO])]).astype(float)
    held = np.maximum(below[None, 1:] - below[:-1, None], 1)
    objective = cost + lagrangian * (held * np.log2(below[-1] / held) + bits_per_level)
    best = np.zeros(len(bins) + 1)
    starts = np.zeros(len(bins), np.int64)
    for end in range(len(bins)):
        totals = best[: end + 1] + objective[: end + 1, end]
        starts[end] = totals.argmin()
        best[end + 1] = totals[starts[end]]
    chosen, end = [], len(bins)
    while end:
        end = int(starts[end - 1])
        chosen.append(end)
    return _codebook(bins, chosen[::-1], levels)


def _occupied(
    histogram: NDArray[np.int64], importance: NDArray[np.float64] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Check a histogram and return the codes that occur with their weights."""
    counts = np.asarray(histogram)
    weights = counts if importance is None else np.asarray(importance)
    if counts.shape != (BINS,) or weights.shape != (BINS,):
        shapes = f"{counts.shape} and {weights.shape}"
        raise QuantizationError(f"histogram and importance must have shape ({BINS},). Got {shapes} instead.")
    if not np.isfinite(weights).all() or (counts < 0).any() or (weights < 0).any():
        raise QuantizationError("histogram and importance must be finite and not negative")
    occupied = np.flatnonzero(counts)
    if not occupied.size:
        raise QuantizationError("the histogram is empty")
    return occupied - _ZERO, weights[occupied].astype(np.float64)


def _interval_costs(
    bins: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return cost and best integer level of every interval i..j, shape (m, m); cost is inf below the diagonal."""

    def sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
        below = np.concatenate([[0.0], np.cumsum(values)])
        return np.asarray(below[None, 1:] - below[:-1, None])

    mass, first, second = sums(weights), sums(weights * bins), sums(weights * bins**2)
    middle = (bins[:, None] + bins[None, :]) / 2
    mean = np.divide(first, mass, out=middle, where=mass > 0)
    # Rounding to even is as good as any: at a half, both neighbours cost the same.
    levels = np.rint(np.clip(mean, bins[0], bins[-1])).astype(np.int64)
    if 0 in bins:
        zero = int(np.searchsorted(bins, 0))
        levels[: zero + 1, zero:] = 0
    cost = np.maximum(second - 2 * levels * first + levels**2 * mass, 0)
    cost[np.tril_indices(len(bins), -1)] = np.inf
    return cost, levels


def _codebook(bins: NDArray[np.int64], starts: list[int], interval_levels: NDArray[np.int64]) -> Codebook:
    """Make a codebook from the first bins of its intervals; codes that do not occur go to the nearest level."""
    ends = [*(start - 1 for start in starts[1:]), len(bins) - 1]
    levels = np.unique(interval_levels[starts, ends])
    codes = np.arange(BINS) - _ZERO
    above = np.searchsorted(levels, codes).clip(max=len(levels) - 1)
    below = (above - 1).clip(min=0)
    nearest = np.where(codes - levels[below] <= levels[above] - codes, levels[below], levels[above])
    occupied_level = np.repeat(interval_levels[starts, ends], np.diff([*starts, len(bins)]))
    nearest[bins + _ZERO] = occupied_level
    return Codebook(levels.astype(np.int8), nearest.astype(np.int8))
