"""Range of activations by search (IFMR): the candidate that restores the values with the least squared error.

Notation, beside that of `activation` and `stream`:

========  ==============  ===========================================================================
n                         number of values
K                         number of candidate ranges
s         (K,)            scale of each candidate, float32
first     (K,)            RHA(low / s): the lowest step that values can land on
g         (K, 257)        grid points ``(first + j) * s``, float32
b         (K, 256)        the smallest float32 that lands on step first + j + 1; inf above the last step
========  ==============  ===========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.activation import ActivationRange, code_of_zero
from autonuq.quant.config import ActivationSettings
from autonuq.quant.stream import CHUNK, ValueStream
from autonuq.quant.uniform import FLT_EPSILON, round_half_away

# Bound on the relative rounding error of the sums that make the shortlist: a float64 cumulative sum over n values is
# off by at most n * 2**-53 of its total, and the values are at most 2 * stream.TAIL there.
SHORTLIST_TOLERANCE = 1e-9


@dataclass(frozen=True)
class _Candidates:
    """Ranges to choose from: float32 arrays of shape (K,), unusable ones left out, in order of the ratio."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    scale: NDArray[np.float32]

    def take(self, chosen: NDArray[np.int64]) -> _Candidates:
        return _Candidates(self.low[chosen], self.high[chosen], self.scale[chosen])


def ifmr(stream: ValueStream, *, settings: ActivationSettings, with_offset: bool) -> ActivationRange:
    """Search the range that quantizes values with the least squared error (IFMR).

    Parameters
    ----------
    stream : ValueStream
        All values of all calibration batches, at least one.
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
        There are no values, or no candidate gives a usable scale.
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

    The values of one step are those from b to the next b, so all candidates' sums of ``(x - g)**2`` follow from the
    counts and sums below b. While the stream holds every value, whatever is worse by more than the rounding error of
    those sums is left out, and the rest, mostly one, is evaluated by the definition. Afterwards the sums decide: they
    are exact but for the values in the same bins as the b. A value there is s / 2 from its grid point; on the wrong
    side of b it counts ``2 s |x - b|`` too much, so that the part of these values in the error is off by
    ``2 w / s`` of itself at most. In an even density they are w / s of all values, and the error is off by
    ``6 (w / s)**2`` of itself at most: 3e-3 with the default settings, where w is at most s / 45. Measured on even,
    normal and clipped normal values: 4e-5, most of it the same for all candidates.

    **Cost**: O(K 256 log n).
    **Source**: AMCT 9.0.0 (`ifmr.cpp`); the sums are our own derivation.
    """
    if not stream.size:
        raise QuantizationError("there are no activations to calibrate on")
    low, high = _percentile_bounds(stream, settings)
    candidates = _candidates(low, high, settings, with_offset)
    best = _best_candidate(stream, candidates)
    scale = candidates.scale[best]
    offset = code_of_zero(candidates.low[best], scale) if with_offset else 0
    return ActivationRange(float(scale), offset)


def _percentile_bounds(stream: ValueStream, settings: ActivationSettings) -> tuple[np.float32, np.float32]:
    def rank(percentile: float) -> int:
        kept = int(np.floor(np.float32(percentile) * np.float32(stream.size)))
        return max(stream.size - kept, 1)

    low = stream.at_rank(rank(settings.min_percentile) - 1)
    high = stream.at_rank(stream.size - rank(settings.max_percentile))
    return min(low, np.float32(0)), max(high, np.float32(0))


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


def _best_candidate(stream: ValueStream, candidates: _Candidates) -> int:
    """Return the index of the first candidate with the least error."""
    table = np.stack([candidates.low, candidates.high, candidates.scale])
    distinct = np.sort(np.unique(table, axis=1, return_index=True)[1])
    losses, uncertainty = _losses(stream, candidates.take(distinct))
    if stream.values is None or distinct.size == 1:
        return int(distinct[np.argmin(losses)])
    shortlist = distinct[losses - uncertainty <= np.min(losses + uncertainty)]
    return int(shortlist[np.argmin(_defined_losses(stream.values, candidates.take(shortlist)))])


def _losses(stream: ValueStream, candidates: _Candidates) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the summed squared error of each candidate, and a bound on what rounding may have done to it."""
    grid, boundaries = _steps(candidates)
    counts, sums = stream.below(boundaries)
    energy = stream.energy() + np.sum(grid * grid * _between(counts, stream.size), axis=1)
    losses = energy - 2 * np.sum(grid * _between(sums, stream.total()), axis=1)
    return losses, SHORTLIST_TOLERANCE * energy


def _between(below: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    return np.diff(below, axis=1, prepend=0.0, append=total)


def _defined_losses(values: NDArray[np.float32], candidates: _Candidates) -> NDArray[np.float64]:
    """Return the summed squared error of each candidate, straight from the definition."""
    losses = np.zeros(candidates.scale.size)
    for start in range(0, values.size, CHUNK):
        chunk = values[start : start + CHUNK]
        for index, (low, high, scale) in enumerate(zip(candidates.low, candidates.high, candidates.scale, strict=True)):
            restored = round_half_away(np.clip(chunk, low, high) / scale) * scale
            error = np.subtract(restored, chunk, dtype=np.float64)
            losses[index] += float(error @ error)
    return losses


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
