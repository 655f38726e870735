"""Ranges of activations: what a range is, and HFMG, which takes it from a histogram (`range_search` searches it).

Notation, after AMCT: a float x is quantized to ``q = clip(RHA(x / scale) + offset, -128, 127)`` and comes back as
``(q - offset) * scale``; RHA rounds half away from zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.stream import CHUNK, check_finite
from autonuq.quant.uniform import checked_scale, round_half_away


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
        check_finite(values)
        self._empty = False
        low, high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        if (low, high) != (self._low, self._high):
            self._widen(low, high)
        if low == high:
            self._zeros += values.size  # nothing but zeros so far: there is no width to divide into bins
            return
        for start in range(0, values.size, CHUNK):
            chunk = values[start : start + CHUNK]
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
        return ActivationRange(float(scale[best]), code_of_zero(low[best], scale[best]) if with_offset else 0)

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


def code_of_zero(low: np.float32, scale: np.float32) -> int:
    """Return the offset of a range from `low` up."""
    return -int(round_half_away(np.atleast_1d(low / scale))[0]) - 128


def _symmetric_scale(low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(high > -low, high / np.float32(127), -low / np.float32(128))


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
