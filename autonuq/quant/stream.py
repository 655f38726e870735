"""What is remembered of values that come in batches and do not stay: both tails exactly, a fine histogram between.

Notation:

========  ==============  =============================================================================================
n                         number of values so far
V         (n,)            the values, float32
w                         width of a bin, a power of two: bin i holds the values with ``floor(x / w) = i``
N, S      (bins,)         count and sum of the values of each bin, float64
m         (bins,)         place of their mean in the bin, ``S / N / w - i``, in [0, 1]
h         (bins,)         half the width of the widest even density about m: ``min(m, 1 - m)``
========  ==============  =============================================================================================
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError

CHUNK = 1 << 19
"""Values that are worked on at a time: bounds the temporaries to some MB."""

TAIL = 1 << 16
"""Values that are kept at either end. With the default percentiles the rank looked for is among them up to
n = 6.5e10."""

BINS = 1 << 15
"""Most bins between the tails. More than half of them are in use, so that each of the 255 steps of a range that covers
them has 64 bins at least."""

FINEST = -40
"""Exponent of the smallest w: scales below 2**-23 are not used, and no step needs more than 2**17 bins."""

_FLOAT32_DIGITS = 24


class ValueStream:
    """Order statistics and sums of float32 values, in memory that does not grow with them.

    Notes
    -----
    The `TAIL` smallest and the `TAIL` largest values are kept as they are; what they push out, and all other values,
    are counted in bins of a width w that doubles when the range between the tails grows beyond `BINS` of them. The
    bins of the double width are pairs of the old ones, so nothing is lost but detail. Up to ``2 * TAIL`` values
    everything is exact.

    A sum over the values below a boundary b is exact but for the one bin that holds b. There the values are taken to
    lie evenly within m +- h: exact for an even density, and for equal values at the bin's edge (zeros, the ceiling of
    a ReLU6). However they lie, ``sum(max(x - b, 0))`` over them is between ``N w max(m - t, 0)`` (Jensen) and
    ``N w m (1 - t)`` (all at the two ends), t the place of b; so it is off by ``N w / 4`` at most.

    **Cost**: O(n) time, most of it to sort each chunk and to sum its runs; 4 MB, and some tens of MB while it works.
    **Source**: own derivation.
    """

    def __init__(self) -> None:
        self.size = 0
        self._waiting: list[NDArray[np.float32]] = []  # less than a chunk, not looked at yet
        self._kept = np.empty(0, np.float32)  # both tails, in ascending order
        self._inner = (np.float32(np.inf), np.float32(-np.inf))  # what lies between is no part of the tails
        self._exponent, self._first = FINEST, 0
        self._bins: NDArray[np.float64] = np.zeros((2, 0))  # N, S

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
        check_finite(values)
        self.size += values.size
        for start in range(0, values.size, CHUNK):
            self._waiting.append(values[start : start + CHUNK].copy())
            if sum(part.size for part in self._waiting) >= CHUNK:
                self._settle()

    @property
    def values(self) -> NDArray[np.float32] | None:
        """All values in ascending order, while there are few; None afterwards."""
        self._settle()
        return self._kept if self._kept.size == self.size else None

    def at_rank(self, rank: int) -> np.float32:
        """Return the value with `rank` others before it: exact in the tails, between them the mean of its bin."""
        self._settle()
        counted = self.size - self._kept.size
        if rank < TAIL or not counted:
            return np.float32(self._kept[rank])
        if rank >= TAIL + counted:
            return np.float32(self._kept[rank - counted])
        counts, sums = self._bins
        place = np.searchsorted(np.cumsum(counts), rank - TAIL, side="right")
        return np.float32(np.clip(sums[place] / counts[place], *self._inner))

    def below(self, boundaries: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how many values are smaller than each boundary, and their sums.

        Parameters
        ----------
        boundaries : ndarray of float32, any shape

        Returns
        -------
        tuple of ndarray of float64
            Both in the shape of `boundaries`.
        """
        self._settle()
        place = np.searchsorted(self._kept, boundaries.reshape(-1)).reshape(boundaries.shape)
        counts, sums = self._counted_below(boundaries)
        return place + counts, np.concatenate(([0.0], np.cumsum(self._kept, dtype=np.float64)))[place] + sums

    def total(self) -> float:
        """Return the sum of all values."""
        self._settle()
        return float(np.sum(self._kept, dtype=np.float64) + np.sum(self._bins[1]))

    def energy(self) -> float:
        """Return the sum of all squares; those of one bin count as equal."""
        self._settle()
        kept, (counts, sums) = self._kept.astype(np.float64), self._bins
        return float(kept @ kept + np.sum(sums * sums / np.maximum(counts, 1)))

    def _settle(self) -> None:
        """Put what waits where it belongs; sorting is cheapest for many at once."""
        if not self._waiting:
            return
        ordered = np.sort(np.concatenate(self._waiting))
        self._waiting.clear()
        lower, upper = self._inner
        begin = int(np.searchsorted(ordered, lower))
        end = max(begin, int(np.searchsorted(ordered, upper, side="right")))
        self._count(ordered[begin:end])
        if end - begin == ordered.size:
            return
        self._kept = np.sort(np.concatenate((self._kept, ordered[:begin], ordered[end:])))
        if self._kept.size > 2 * TAIL:
            low, middle, high = np.split(self._kept, [TAIL, self._kept.size - TAIL])
            self._kept, self._inner = np.concatenate((low, high)), (low[-1], high[0])
            self._count(middle)

    def _count(self, ordered: NDArray[np.float32]) -> None:
        """Put sorted values into bins: those of one bin are neighbours."""
        if not ordered.size:
            return
        self._make_room(float(ordered[0]), float(ordered[-1]))
        whole = np.floor(ordered * np.float32(math.ldexp(1.0, -self._exponent)))
        starts = np.flatnonzero(np.concatenate(([True], whole[1:] != whole[:-1])))
        index = (whole[starts] - np.float32(self._first)).astype(np.intp)
        self._bins[0, index] += np.diff(starts, append=ordered.size)
        self._bins[1, index] += np.add.reduceat(ordered.astype(np.float64), starts)

    def _make_room(self, low: float, high: float) -> None:
        """Let the bins reach from `low` to `high`, of the double width as often as needed."""
        if self._bins.shape[1]:
            low = min(low, math.ldexp(self._first, self._exponent))
            high = max(high, math.ldexp(self._first + self._bins.shape[1] - 1, self._exponent))
        else:
            self._exponent, self._first = FINEST, math.floor(math.ldexp(low, -FINEST))
        exponent = max(self._exponent, math.frexp(max(-low, high))[1] - _FLOAT32_DIGITS)
        while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
            exponent += 1
        while self._exponent < exponent:
            self._bins = _merged(self._bins, self._first % 2)
            self._exponent, self._first = self._exponent + 1, self._first // 2
        first, last = (math.floor(math.ldexp(end, -exponent)) for end in (low, high))
        missing = self._first - first, last + 1 - self._first - self._bins.shape[1]
        if any(missing):
            self._bins, self._first = np.pad(self._bins, ((0, 0), missing)), first

    def _counted_below(self, boundaries: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return counts and sums of the values in bins."""
        bins = np.pad(self._bins, ((0, 0), (0, 1)))  # an empty bin behind the last
        counts, sums = bins
        index = self._first + np.arange(counts.size)
        mean = np.clip(np.ldexp(sums / np.maximum(counts, 1), -self._exponent) - index, 0, 1)
        half = np.minimum(mean, 1 - mean)
        until = np.ldexp(boundaries.astype(np.float64), -self._exponent) - self._first
        until = np.clip(until, 0, counts.size - 1)
        at = until.astype(np.intp)
        mean, half, rest = mean[at], half[at], until - at
        share = np.where(rest > mean, 1.0, 0.0)
        np.divide(rest - mean + half, 2 * half, out=share, where=half > 0)
        share = np.clip(share, 0, 1)
        part = share * counts[at]
        of_part = np.ldexp(index[at] + mean - half + half * share, self._exponent)
        return (np.cumsum(counts) - counts)[at] + part, (np.cumsum(sums) - sums)[at] + part * of_part


def check_finite(values: NDArray[np.float32]) -> None:
    """Refuse activations that nothing can be learned from."""
    if values.size == 0:
        raise QuantizationError("there are no activations to calibrate on")
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):  # both hand NaN on
        raise QuantizationError("activations must be finite; they hold NaN or infinity")


def _merged(bins: NDArray[np.float64], odd: int) -> NDArray[np.float64]:
    """Join bins in pairs; the first one is the second of its pair if `odd`."""
    bins = np.pad(bins, ((0, 0), (odd, (odd + bins.shape[1]) % 2)))
    return bins[:, ::2] + bins[:, 1::2]
