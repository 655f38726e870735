"""Which point of every layer's curve to take: a multiple-choice knapsack, on its hull and exactly.

Notation: L layers; layer l has J_l points; the points of all layers stand in one flat array of T = sum J_l entries,
layer after layer. A plan is an integer array of shape (L,), the index of a point of each layer; n plans have shape
(n, L). Layer l's distortions count with a weight w_l > 0, so a plan x costs sum_l w_l distortion[l, x_l] and takes
sum_l rate[l, x_l] bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autonuq.quant.curve import lower_hull

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 1024
"""Steps of cost of the dynamic program."""

TOLERANCE = 1e-3
"""Share of bytes that is not worth a dynamic program."""

PRICES = 4096
"""Steps of the logarithm of a price, from the first at which a layer leaves its smallest point to the last change."""


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

    @cached_property
    def hulls(self) -> list[Ints]:
        """Places, in each layer, of the points on its curve's lower convex hull, from the smallest rate on."""
        return [
            lower_hull(self.rates[start:end], self.distortions[start:end])[::-1]
            for start, end in itertools.pairwise(self.starts.tolist())
        ]

    @cached_property
    def steps(self) -> tuple[Floats, Floats, Ints]:
        """Bytes more, distortion less and layer of every step along a hull, layer after layer in the hulls' order."""
        owners = np.repeat(np.arange(len(self)), [len(hull) - 1 for hull in self.hulls])
        points = [start + hull for start, hull in zip(self.starts[:-1], self.hulls, strict=True)]
        more, less = (np.concatenate([np.diff(of[own]) for own in points]) for of in (self.rates, self.distortions))
        return more, -less, owners


def stack_layers(rates: Sequence[Floats], distortions: Sequence[Floats]) -> Layers:
    """Put the curves of several layers, one pair of arrays each, one after another."""
    starts = np.cumsum([0, *(len(own) for own in rates)])
    return Layers(np.concatenate(rates).astype(float), np.concatenate(distortions).astype(float), starts)


class Relaxed:
    """The Lagrangian relaxation: every layer minimizes rate + lambda * w_l * distortion by itself.

    Prices, log(lambda w_l), are whole numbers of steps here, so that a choice is one look into a table.

    Parameters
    ----------
    layers : Layers

    Attributes
    ----------
    step : float
        Of the prices: mostly less than 0.01. A factor that is wrong by so little costs bytes of second order.

    Notes
    -----
    Only points on the lower convex hull of a layer's curve can be chosen. A point gives way to the next looser one
    once the price exceeds the log of the slope between them.

    **Cost**: O(L PRICES) time and memory once, then O(1) per layer and plan.
    **Source**: Shoham & Gersho, IEEE Trans. ASSP 36(9), 1988.
    """

    def __init__(self, layers: Layers) -> None:
        more, less, owners = layers.steps
        slopes = np.log(more / less)  # rising within a layer
        least, most = (float(slopes.min()), float(slopes.max())) if slopes.size else (0.0, 0.0)
        self.step = (most - least) / (PRICES - 4) or 1.0
        self._first = math.floor(least / self.step) - 1
        prices = self.step * (self._first + np.arange(PRICES))
        bounds = np.searchsorted(owners, np.arange(len(layers) + 1)).tolist()
        points = [
            hull[np.searchsorted(slopes[start:end], prices)]
            for hull, (start, end) in zip(layers.hulls, itertools.pairwise(bounds), strict=True)
        ]
        self._points = np.array(points, dtype=np.int32)
        self._rows = np.arange(len(layers))

    def in_steps(self, log_prices: Floats) -> Ints:
        """Round prices, or the logs of weights, to whole steps."""
        return np.rint(log_prices / self.step).astype(np.int64)

    def plans(self, prices: Ints) -> Ints:
        """Choose n plans at prices of shape (n, L)."""
        return self._points[self._rows, np.clip(prices - self._first, 0, PRICES - 1)].astype(np.int64)

    def plans_at(self, log_weights: Floats, targets: Floats, value: Callable[[Ints], Floats]) -> Ints:
        """Return, for n sets of weights, shape (n, L), the plan with the largest `value` up to each of n targets.

        `value` rises as plans get tighter. Where nothing is below a target, the loosest plan is returned.
        """
        own = self.in_steps(log_weights)
        tight, loose = self._first - own.max(axis=1), self._first + PRICES - own.min(axis=1)
        while (loose - tight > 1).any():
            middle = (tight + loose) // 2
            over = value(self.plans(own + middle[:, None])) > targets
            tight, loose = np.where(over, middle, tight), np.where(over, loose, middle)
        return self.plans(own + loose[:, None])


def frontier(
    layers: Layers, weights: Floats, budgets: Floats, *, bins: int = BINS, tolerance: float = TOLERANCE
) -> Ints:
    """Find the smallest plan within each of several budgets of cost.

    Parameters
    ----------
    layers : Layers
    weights : ndarray of float64, shape (L,)
    budgets : ndarray of float64, shape (n,), positive
        Largest total cost.
    bins : int
        Steps from 0 to the largest budget.
    tolerance : float
        Where the relaxation proves that the hull's plan is larger by no more than this share, it is taken.

    Returns
    -------
    ndarray of int64, shape (n, L)
        The loosest plan of the hull where nothing keeps within a budget.

    Notes
    -----
    Where the hull's plan is not good enough, a dynamic program over the points that the bound leaves finds a better
    one; it serves all budgets. What a layer costs beyond its cheapest such point is rounded to the nearest step:
    without tolerance the answer is exact if all costs are whole steps, and otherwise within a budget but for rounding
    errors. They are chosen in the program's favour: with hundreds of layers the hull's plans are better than its.

    **Cost**: O(T log T + n T), and O(bins) for each point that the dynamic program sees.
    **Source**: Kellerer, Pferschy & Pisinger, Knapsack Problems, 2004, sections 11.3 (bound) and 11.5 (program).
    """
    plans, multipliers, gaps = _relaxed_optima(layers, weights, budgets)
    loose = gaps > tolerance * layers.rates_of(plans).sum(axis=1)
    if loose.any():
        step = budgets.max() / bins
        costs = layers.distortions * np.repeat(weights, np.diff(layers.starts)) / step
        useful = _useful(layers, costs, multipliers[loose] * step, gaps[loose])
        plans[loose] = _smallest(layers, costs, useful, budgets[loose] / step)
    return plans


def _relaxed_optima(layers: Layers, weights: Floats, budgets: Floats) -> tuple[Ints, Floats, Floats]:
    """Return hull plans within n budgets, lambda there, and by how many bytes each may miss the optimum.

    From the smallest points of all layers on, steps are taken in the order of their bytes per cost, until one would be
    enough. The bound takes a part of it; a plan takes whole whichever layer's next step is the smallest one that is
    enough. Where all steps are not enough, the loosest plan is final.
    """
    more, less, owners = layers.steps
    less = less * weights[owners]
    order = np.argsort(more / less, kind="stable")
    loosest = layers.distortions[layers.starts[:-1]] @ weights
    costs = loosest + np.append(np.cumsum(less[order][::-1])[::-1], 0.0)  # after 0, 1, ... steps
    needed = np.searchsorted(-costs, -budgets * (1 + 1e-12))
    lengths = np.array([len(hull) for hull in layers.hulls])
    taken = np.where(needed[:, None] < len(costs), 0, lengths - 1)
    multipliers, gaps = np.zeros(len(budgets)), np.zeros(len(budgets))
    for index in np.flatnonzero((needed > 0) & (needed < len(costs))):
        before, last = order[: needed[index] - 1], order[needed[index] - 1]
        taken[index] = np.bincount(owners[before], minlength=len(layers))
        missing = costs[len(before)] - budgets[index]
        following = (np.cumsum(lengths - 1) - lengths + 1 + taken[index])[taken[index] < lengths - 1]
        enough = following[(less[following] >= missing) | (following == last)]
        chosen = enough[np.argmin(more[enough])]
        taken[index, owners[chosen]] += 1
        multipliers[index] = more[last] / less[last]
        gaps[index] = max(more[chosen] - multipliers[index] * missing, 0.0)
    return np.concatenate(layers.hulls)[np.cumsum(lengths) - lengths + taken], multipliers, gaps


def _useful(layers: Layers, costs: Floats, multipliers: Floats, gaps: Floats) -> Ints:
    """Return the flat indices of the points that a smallest plan within one of n budgets can have.

    A plan is larger than the bound by at least what its points lose in their layers' Lagrangians.
    """
    lagrangians = layers.rates + multipliers[:, None] * costs
    least = np.minimum.reduceat(lagrangians, layers.starts[:-1], axis=1)
    allowed = least * (1 + 1e-9) + gaps[:, None]  # ties and rounding errors stay
    return np.flatnonzero((lagrangians <= np.repeat(allowed, np.diff(layers.starts), axis=1)).any(axis=0))


def _smallest(layers: Layers, costs: Floats, points: Ints, budgets: Floats) -> Ints:
    """Return the smallest plans of these points within n budgets, of which each layer's cheapest points keep."""
    starts = np.searchsorted(points, layers.starts)
    least = np.minimum.reduceat(costs[points], starts[:-1])
    beyond = np.rint(costs[points] - np.repeat(least, np.diff(starts))).astype(np.int64)
    left = np.maximum(np.floor(budgets - least.sum() + 1e-9), 0).astype(np.int64)
    best = np.zeros(left.max() + 1)  # bytes of the smallest plan of the layers so far that costs at most so much
    choices = np.empty((len(layers), len(best)), dtype=np.int32)
    for choice, (start, end) in zip(choices, itertools.pairwise(starts.tolist()), strict=True):
        best = _with_layer(best, layers.rates[points[start:end]], beyond[start:end].tolist(), choice)
    plans = np.empty((len(budgets), len(layers)), dtype=np.int64)
    for index in range(len(layers) - 1, -1, -1):
        chosen = starts[index] + choices[index, left]
        plans[:, index] = points[chosen] - layers.starts[index]
        left = left - beyond[chosen]
    return plans


def _with_layer(before: Floats, rates: Floats, costs: Sequence[int], choice: NDArray[np.int32]) -> Floats:
    """Return the least bytes at each cost with one more layer; into `choice` goes which point of it they need."""
    best = np.full(len(before), np.inf)
    for point, (rate, cost) in enumerate(zip(rates.tolist(), costs, strict=True)):
        if cost < len(best):
            smaller = before[: len(best) - cost] + rate
            better = smaller < best[cost:]
            np.copyto(best[cost:], smaller, where=better)
            np.copyto(choice[cost:], point, where=better)
    return best
