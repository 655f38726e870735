"""Ranges of activations: IFMR searches the range over all values, HFMG over a histogram.

Notation, after AMCT: a float x is quantized to ``q = clip(RHA(x / scale) + offset, -128, 127)`` and comes back as
``(q - offset) * scale``; RHA rounds half away from zero.

========  ==============  ===========================================================================
n                         number of values
V         (n,)            values, float32
K                         number of candidate ranges
s         (K,)            scale of each candidate, float32
first     (K,)            RHA(low / s): the lowest step that values can land on
g         (K, 257)        grid points ``(first + j) * s``, float32
b         (K, 256)        the smallest float32 that lands on step first + j + 1; inf above the last step
========  ==============  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.config import ActivationSettings
from autonuq.quant.uniform import FLT_EPSILON, checked_scale, round_half_away

CHUNK = 1 << 20
"""Values that are worked on at a time: bounds the temporaries to some tens of MB."""

# Bound on the relative rounding error of the fast error sums: a float64 cumulative sum over one chunk is off by at
# most CHUNK * 2**-53 < 1.2e-10 of its total; a few such sums meet.
SHORTLIST_TOLERANCE = 1e-9


@dataclass(frozen=True)
class ActivationRange:
    """How a layer's input is quantized.

    Attributes
    ----------
    scale : float
        Width of one step; exactly representable in float32.
    offset : int in [-128, 127]
        Code of zero.
    """

    scale: float
    offset: int


@dataclass(frozen=True)
class _Candidates:
    """Ranges to choose from: float32 arrays of shape (K,), unusable ones left out, in order of the ratio."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    scale: NDArray[np.float32]

    def take(self, chosen: NDArray[np.int64]) -> _Candidates:
        return _Candidates(self.low[chosen], self.high[chosen], self.scale[chosen])


def ifmr(values: NDArray[Any], *, settings: ActivationSettings, with_offset: bool) -> ActivationRange:
    """Search the range that quantizes values with the least squared error (IFMR).

    Parameters
    ----------
    values : ndarray of float32, any shape but empty
        All values of all calibration batches.
    settings : ActivationSettings
        The percentiles and the search's start, end and step.
    with_offset : bool
        True: from the low to the high percentile, with an offset; False: symmetric about 0.

    Returns
    -------
    ActivationRange

    Raises
    ------
    QuantizationError
        The values are empty or not finite, or no candidate gives a usable scale.
    ValueError
        The search settings give no candidate.

    Notes
    -----
    ``high`` is the k-th largest value, k = n - floor(max_percentile * n) but at least 1, and no less than 0; ``low``
    likewise. Candidate i scales the range by r = start + i * step (with an offset only `high`); the one with the
    smallest sum of ``(RHA(clip(x) / s) * s - x)**2`` over all values wins, the first of equal ones. Ratios, their
    count, percentile ranks and scales are float32 as in AMCT, so the defaults give 60 candidates and 1.30 is never
    tried. Sums are float64, where AMCT's are float32. AMCT leaves the error of a candidate with an unusable scale at
    0, so that it wins; here it never does.

    **Cost**: O(n log n) for all candidates together instead of O(n K): each chunk of V is sorted once; the values
    of one step are then neighbours, and ``sum((x - g)**2)`` comes from one cumulative sum of x at b. This
    leaves out every candidate that is worse by more than the rounding error of those sums; the rest, mostly one,
    is evaluated by the definition. Temporaries are bounded, plus one copy of V for the order statistics.

    **Source**: AMCT 9.0.0 (`ifmr.cpp`); the cumulative sums are our own derivation.
    """
    values = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    _check_finite(values)
    low, high = _percentile_bounds(values, settings)
    candidates = _candidates(low, high, settings, with_offset)
    best = _best_candidate(values, candidates)
    scale = candidates.scale[best]
    offset = _offset(candidates.low[best], scale) if with_offset else 0
    return ActivationRange(float(scale), offset)


class HfmgHistogram:
    """Range of activations from a histogram that grows with the batches (HFMG).

    Parameters
    ----------
    num_of_bins : int >= 8
        Bins of the histogram; AMCT allows 1024, 2048, 4096, 8192.

    Raises
    ------
    ValueError
        `num_of_bins` is too small.

    Notes
    -----
    AMCT's documents leave open: how two histograms are merged, what one greedy step is, and what becomes of zero.
    Here

    * the range always holds 0. When a batch widens it, the old counts are spread over the new bins by linear
      interpolation of the cumulative count: mass is kept, density within a bin is uniform;
    * one greedy step lets both sides give up ``step = max(ceil(total / 100000), 1)`` more values. The side that
      thereby frees more bins is the cheaper one and is trimmed (the upper one if equal). The bin of 0 is never
      trimmed. The steps end when a quarter of the bins is left;
    * every width on that way, the full one included, is scored with the exact integral of the squared quantization
      and clipping error of a uniform density in each bin; the first best wins.

    **Cost**: `update` is O(n); `range` is O(num_of_bins**2), some tenths of a second for 4096 bins; memory O(bins).
    **Source**: AMCT (`hfmg_impl.py`) for the scheme; the integral is our own derivation (`_range_losses`).
    """

    def __init__(self, num_of_bins: int = 4096) -> None:
        if num_of_bins < 8:
            raise ValueError(
                f"The 'num_of_bins' parameter of HfmgHistogram must be an int >= 8. Got {num_of_bins} instead."
            )
        self._counts: NDArray[np.float64] = np.zeros(num_of_bins)
        self._low = 0.0
        self._high = 0.0
        self._zeros = 0
        self._empty = True

    def update(self, values: NDArray[Any]) -> None:
        """Take in the values of one batch.

        Parameters
        ----------
        values : ndarray of float32, any shape but empty

        Raises
        ------
        QuantizationError
            The values are empty or not finite.
        """
        values = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        _check_finite(values)
        self._empty = False
        low, high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        if (low, high) != (self._low, self._high):
            self._widen(low, high)
        if low == high:
            self._zeros += values.size  # nothing but zeros so far: there is no width to divide into bins
            return
        for chunk in _chunks(values):
            self._counts += np.histogram(chunk, bins=self._counts.size, range=(low, high))[0]

    def range(self, with_offset: bool) -> ActivationRange:
        """Return the best range of what was seen.

        Parameters
        ----------
        with_offset : bool
            True: asymmetric, with an offset; False: symmetric.

        Raises
        ------
        QuantizationError
            There was no batch, or the values are too large for a usable scale.
        """
        if self._empty:
            raise QuantizationError("no batch was seen; run the calibration first")
        edges = np.linspace(self._low, self._high, self._counts.size + 1)
        lows, highs = (edges[side] for side in self._trimmed_sides())
        low, high = np.minimum(lows, 0).astype(np.float32), np.maximum(highs, 0).astype(np.float32)
        scale = checked_scale((high - low) / np.float32(255) if with_offset else _symmetric_scale(low, high))
        first = round_half_away(low / scale) if with_offset else np.full_like(scale, -128)
        if self._low == self._high:
            best = 0
        else:
            best = int(np.argmin(_range_losses(edges, self._counts, scale.astype(np.float64), first)))
        return ActivationRange(float(scale[best]), _offset(low[best], scale[best]) if with_offset else 0)

    def _widen(self, low: float, high: float) -> None:
        bins = self._counts.size
        if self._low < self._high:
            seen = np.concatenate(([0.0], np.cumsum(self._counts)))
            edges = np.linspace(low, high, bins + 1)
            self._counts = np.diff(np.interp(edges, np.linspace(self._low, self._high, bins + 1), seen))
        elif self._zeros:
            self._counts += np.histogram([0.0], bins=bins, range=(low, high))[0] * self._zeros
        self._low, self._high = low, high

    def _trimmed_sides(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the edges (left, right) that are kept after each greedy step, widest first."""
        bins = self._counts.size
        width = self._high - self._low
        zero = 0 if width == 0 else min(int(-self._low / width * bins), bins - 1)
        below = np.concatenate(([0.0], np.cumsum(self._counts)))
        above = below[-1] - below[::-1]
        step = max(np.ceil(below[-1] / 100000), 1.0)
        allowances = step * np.arange(1, 2 + int(below[-1] / step))
        # limits[u]: the edge that a side may go to once it gave up u + 1 steps of values
        left_limits = np.minimum(np.searchsorted(below, allowances, side="right") - 1, zero).tolist()
        right_limits = np.maximum(bins + 1 - np.searchsorted(above, allowances, side="right"), zero + 1).tolist()
        left, right, left_used, right_used = 0, bins, 0, 0
        kept = [(left, right)]
        while right - left > bins // 4 and max(left_used, right_used) < allowances.size:
            left_gain, right_gain = left_limits[left_used] - left, right - right_limits[right_used]
            if left_gain <= 0 and right_gain <= 0:
                left_used, right_used = left_used + 1, right_used + 1
                continue
            if left_gain > right_gain:
                left, left_used = left + left_gain, left_used + 1
            else:
                right, right_used = right - right_gain, right_used + 1
            kept.append((left, right))
        sides = np.array(kept, dtype=np.int64)
        return sides[:, 0], sides[:, 1]


def _chunks(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (values[start : start + CHUNK] for start in range(0, values.size, CHUNK))


def _check_finite(values: NDArray[np.float32]) -> None:
    if values.size == 0:
        raise QuantizationError("there are no activations to calibrate on")
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):  # both hand NaN on
        raise QuantizationError("activations must be finite; they hold NaN or infinity")


def _offset(low: np.float32, scale: np.float32) -> int:
    return -int(round_half_away(np.atleast_1d(low / scale))[0]) - 128


def _symmetric_scale(low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(high > -low, high / np.float32(127), -low / np.float32(128))


def _percentile_bounds(values: NDArray[np.float32], settings: ActivationSettings) -> tuple[np.float32, np.float32]:
    def rank(percentile: float) -> int:
        kept = int(np.floor(np.float32(percentile) * np.float32(values.size)))
        return max(values.size - kept, 1)

    at_low, at_high = rank(settings.min_percentile) - 1, values.size - rank(settings.max_percentile)
    ordered = np.partition(values, sorted({at_low, at_high}))
    return min(ordered[at_low], np.float32(0)), max(ordered[at_high], np.float32(0))


def _candidates(low: np.float32, high: np.float32, settings: ActivationSettings, with_offset: bool) -> _Candidates:
    start, end, step = map(np.float32, (settings.search_start, settings.search_end, settings.search_step))
    count = int((end - start) / step + np.float32(1)) if step > 0 else 0
    if count < 1 or start <= 0:
        raise ValueError(
            "The search settings of ifmr must satisfy 0 < search_start <= search_end and search_step > 0."
            f" Got {settings.search_start}, {settings.search_end}, {settings.search_step} instead."
        )
    ratios = start + np.arange(count, dtype=np.float32) * step
    with np.errstate(over="ignore"):
        if with_offset:
            highs, lows = ratios * high, np.full_like(ratios, low)
            scales = (highs - lows) / np.float32(255)
        else:
            highs = ratios * max(high, -low)
            lows = -highs
            scales = highs / np.float32(127 if high > -low else 128)
    usable = np.flatnonzero(scales <= 1 / FLT_EPSILON)
    if usable.size == 0:
        raise QuantizationError("activations are too large: no range has a usable scale; skip this layer")
    return _Candidates(lows, highs, np.where(scales < FLT_EPSILON, np.float32(1), scales)).take(usable)


def _best_candidate(values: NDArray[np.float32], candidates: _Candidates) -> int:
    """Return the index of the first candidate with the least error."""
    table = np.stack([candidates.low, candidates.high, candidates.scale])
    shortlist = np.sort(np.unique(table, axis=1, return_index=True)[1])
    if shortlist.size > 1:
        losses, uncertainty = _fast_losses(values, candidates.take(shortlist))
        shortlist = shortlist[losses - uncertainty <= np.min(losses + uncertainty)]
    if shortlist.size > 1:
        shortlist = shortlist[[np.argmin(_defined_losses(values, candidates.take(shortlist)))]]
    return int(shortlist[0])


def _sum_of_squares(values: NDArray[Any]) -> float:
    exact = values.astype(np.float64, copy=False)
    return float(np.dot(exact, exact))


def _defined_losses(values: NDArray[np.float32], candidates: _Candidates) -> NDArray[np.float64]:
    """Return the summed squared error of each candidate, straight from the definition."""
    losses = np.zeros(candidates.scale.size)
    for chunk in _chunks(values):
        for index, (low, high, scale) in enumerate(zip(candidates.low, candidates.high, candidates.scale, strict=True)):
            restored = round_half_away(np.clip(chunk, low, high) / scale) * scale
            losses[index] += _sum_of_squares(np.subtract(restored, chunk, dtype=np.float64))
    return losses


def _fast_losses(
    values: NDArray[np.float32], candidates: _Candidates
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the same sums from sorted chunks, and a bound on what rounding may have done to them."""
    grid, boundaries = _steps(candidates)
    losses, magnitudes = np.zeros(candidates.scale.size), np.zeros(candidates.scale.size)
    for chunk in _chunks(values):
        ordered = np.sort(chunk)
        sums = np.concatenate(([0.0], np.cumsum(ordered, dtype=np.float64)))
        inner = np.searchsorted(ordered, boundaries.ravel()).reshape(boundaries.shape)
        stops = np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, ordered.size)))
        energy = _sum_of_squares(chunk) + np.sum(grid * grid * np.diff(stops), axis=1)
        losses += energy - 2 * np.sum(grid * np.diff(sums[stops]), axis=1)
        magnitudes += energy
    return losses, SHORTLIST_TOLERANCE * magnitudes


def _steps(candidates: _Candidates) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the grid g, (K, 257), and the boundaries b, (K, 256), of the module's notation.

    A boundary is within two units in the last place of (step - 1/2) * s; the division that decides is tried there.
    """
    scale = candidates.scale[:, None]
    first, last = (round_half_away(bound / candidates.scale)[:, None] for bound in (candidates.low, candidates.high))
    steps = first + np.arange(257, dtype=np.float32)
    grid = (steps * scale).astype(np.float64)
    upper = steps[:, 1:]
    trial = ((upper.astype(np.float64) - 0.5) * scale).astype(np.float32)
    for _ in range(4):
        trial = np.nextafter(trial, np.float32(-np.inf))
    boundaries = np.full(upper.shape, np.inf, dtype=np.float32)
    for _ in range(9):
        lands = (round_half_away(trial / scale) >= upper) & (upper <= last)
        boundaries = np.where(lands, np.minimum(boundaries, trial), boundaries)
        trial = np.nextafter(trial, np.float32(np.inf))
    return grid, boundaries


def _range_losses(
    edges: NDArray[np.float64],
    counts: NDArray[np.float64],
    scales: NDArray[np.float64],
    firsts: NDArray[Any],
) -> NDArray[np.float64]:
    """Return the squared error of each range, density uniform in each bin.

    With q the step that x lands on and u = x - q s, the squared error u**2 has the continuous antiderivative
    ``G(x) = (q - first) s**3 / 12 + u**3 / 3`` (a whole step adds s**3 / 12; beyond the grid q stays and u grows, which
    is clipping). The loss is the sum over bins of density times the difference of G, or over edges of G times the
    fall of the density.
    """
    density = counts / (edges[1] - edges[0])
    falls = np.concatenate(([0.0], density)) - np.concatenate((density, [0.0]))
    losses = np.empty(scales.size)
    block = max(1, CHUNK // edges.size)
    for start in range(0, scales.size, block):
        scale, first = (each[start : start + block, None] for each in (scales, firsts))
        steps = np.clip(round_half_away(edges / scale), first, first + 255)
        rest = edges - steps * scale
        integral = (steps - first) * (scale**3 / 12) + rest * rest * rest / 3
        losses[start : start + block] = integral @ falls
    return losses
