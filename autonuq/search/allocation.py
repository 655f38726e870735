"""Which point of every layer's curve to take: a multiple-choice knapsack, on its hull and exactly.

Notation: L layers; layer l has J_l points; the points of all layers stand in one flat array of T = sum J_l entries,
layer after layer. A plan is an integer array of shape (L,), the index of a point of each layer; n plans have shape
(n, L). Layer l's distortions count with a weight w_l > 0, so a plan x costs sum_l w_l distortion[l, x_l] and takes
sum_l rate[l, x_l] bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.quant.curve import lower_hull

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 1024
"""Steps of cost of the dynamic program."""


@dataclass(frozen=True)
class Layers:
    """The curves of all layers.

    Attributes
    ----------
    rates : ndarray of float64, shape (T,)
        Bytes, falling within a layer.
    distortions : ndarray of float64, shape (T,)
        Any common unit, not falling within a layer.
    starts : ndarray of int64, shape (L + 1,)
        Where each layer begins in the flat arrays; the last entry is T.
    """

    rates: Floats
    distortions: Floats
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rates_of(self, plans: Ints) -> Floats:
        """Return the bytes of each layer, shape (n, L)."""
        return np.asarray(self.rates[plans + self.starts[:-1]])

    def distortions_of(self, plans: Ints) -> Floats:
        """Return the distortion of each layer, shape (n, L)."""
        return np.asarray(self.distortions[plans + self.starts[:-1]])

    @property
    def last(self) -> Ints:
        """The plan that takes the smallest point of every layer."""
        return np.diff(self.starts) - 1


def stack_layers(rates: Sequence[Floats], distortions: Sequence[Floats]) -> Layers:
    """Put the curves of several layers, one pair of arrays each, one after another."""
    starts = np.cumsum([0, *(len(own) for own in rates)])
    return Layers(np.concatenate(rates).astype(float), np.concatenate(distortions).astype(float), starts)


class Relaxed:
    """The Lagrangian relaxation: every layer minimizes rate + lambda * w_l * distortion by itself.

    Parameters
    ----------
    layers : Layers

    Notes
    -----
    Only points on the lower convex hull of a layer's curve can be chosen. Point h gives way to the next looser hull
    point h - 1 once lambda w_l exceeds the slope between them, so that a choice is one search in sorted slopes.

    **Cost**: O(n log J) per layer for n plans.
    **Source**: Shoham & Gersho, IEEE Trans. ASSP 36(9), 1988.
    """

    def __init__(self, layers: Layers) -> None:
        self._hulls = []
        self._slopes = []  # rising; log of bytes per unit of distortion between neighbours, from the tightest on
        for start, end in zip(layers.starts[:-1], layers.starts[1:], strict=True):
            hull, slopes = _hull(layers.rates[start:end], layers.distortions[start:end])
            self._hulls.append(hull)
            self._slopes.append(slopes)
        finite = np.concatenate(self._slopes)
        self._range = (float(finite.min()) - 1, float(finite.max()) + 1) if finite.size else (0.0, 0.0)

    def plans(self, log_weights: Floats, log_lambda: Floats) -> Ints:
        """Choose plans for n sets of weights, shape (n, L), and n multipliers, shape (n,)."""
        prices = log_weights + log_lambda[:, None]
        chosen = [
            hull[np.searchsorted(slopes, price)]
            for hull, slopes, price in zip(self._hulls, self._slopes, prices.T, strict=True)
        ]
        return np.stack(chosen, axis=1)

    def multipliers(self, log_weights: Floats) -> tuple[Floats, Floats]:
        """Return multipliers of the tightest and of the loosest plan of n sets of weights, two of shape (n,)."""
        return self._range[0] - log_weights.max(axis=1), self._range[1] - log_weights.min(axis=1)


def _hull(rates: Floats, distortions: Floats) -> tuple[Ints, Floats]:
    """Return the hull's points from the smallest rate on, and the log slopes between neighbours, rising."""
    hull = lower_hull(rates, distortions)[::-1]
    return hull, np.log(np.diff(rates[hull]) / -np.diff(distortions[hull]))


def frontier(layers: Layers, weights: Floats, budgets: Floats, *, bins: int = BINS) -> Ints:
    """Find the smallest plan within each of several budgets of cost.

    Parameters
    ----------
    layers : Layers
    weights : ndarray of float64, shape (L,)
    budgets : ndarray of float64, shape (n,), positive
        Largest total cost.
    bins : int
        Steps from 0 to the largest budget.

    Returns
    -------
    ndarray of int64, shape (n, L)
        The loosest plan where nothing keeps within a budget.

    Notes
    -----
    Costs are rounded to the nearest step: the answer is exact if all costs are whole steps, and otherwise within a
    budget but for rounding errors, which mostly cancel. One dynamic program serves all budgets.

    **Cost**: O(T * bins) time, O(L * bins) memory: 2 ms at 54 layers of 8 points, 15 ms at 54 of 64.
    **Source**: Kellerer, Pferschy & Pisinger, Knapsack Problems, 2004, section 11.5 (dynamic programming).
    """
    width = budgets.max() / bins
    steps = np.rint(np.minimum(layers.distortions * np.repeat(weights, np.diff(layers.starts)) / width, bins + 1))
    costs = steps.astype(np.int64).tolist()
    best = np.zeros(bins + 1)  # bytes of the smallest plan of the layers so far that costs at most so many steps
    choices = np.zeros((len(layers), bins + 1), dtype=np.int32)
    for index, (start, end) in enumerate(zip(layers.starts[:-1].tolist(), layers.starts[1:].tolist(), strict=True)):
        new = np.full(bins + 1, np.inf)
        for point in range(end - start):
            cost = costs[start + point]
            if cost > bins:
                continue
            rates = best[: bins + 1 - cost] + layers.rates[start + point]
            better = rates < new[cost:]
            np.copyto(new[cost:], rates, where=better)
            np.copyto(choices[index, cost:], point, where=better)
        best = new
    left = np.floor(budgets / width + 1e-9).astype(np.int64)
    plans = np.zeros((len(budgets), len(layers)), dtype=np.int64)
    possible = np.isfinite(best[left])
    for index in range(len(layers) - 1, -1, -1):
        plans[possible, index] = choices[index, left[possible]]
        left = left - np.array(costs)[layers.starts[index] + plans[:, index]]
    return plans
