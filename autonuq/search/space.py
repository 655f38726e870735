"""The search space: one ratio per layer, snapped to the layer's curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution

from autonuq.quant.curve import Curve
from autonuq.records import RATIO_PREFIX

SEED_LEVELS = (64, 32, 16, 8, 6, 4)
"""Uniform level counts of the first trials, loose to tight."""


class Space:
    """What is searched: the curves of the layers that have more than one point.

    Parameters
    ----------
    curves : mapping of str to Curve
        Of every layer with int8 weights.
    weights : mapping of str to float
        Number of weights of each layer.

    Notes
    -----
    A layer's ratio is its float32 bytes over its compressed bytes. The parameter is a float on a logarithmic scale;
    the point with the nearest ratio is meant, so the curve may be rebuilt without changing the space's meaning.
    """

    def __init__(self, curves: Mapping[str, Curve], weights: Mapping[str, float]) -> None:
        self.curves = {name: curve for name, curve in curves.items() if len(curve.rates_bytes) > 1}
        self._log_ratios = {
            name: np.log(4 * weights[name] / np.asarray(curve.rates_bytes, float))
            for name, curve in self.curves.items()
        }

    @cached_property
    def distributions(self) -> dict[str, FloatDistribution]:
        """Optuna's distribution of every parameter."""
        return {
            RATIO_PREFIX + name: FloatDistribution(float(np.exp(logs[0])), float(np.exp(logs[-1])), log=True)
            for name, logs in self._log_ratios.items()
        }

    @property
    def size(self) -> int:
        """How many different plans there are; 1 if nothing is searched."""
        return math.prod(len(logs) for logs in self._log_ratios.values())

    def plan(self, parameters: Mapping[str, float]) -> dict[str, int]:
        """Snap ratios to the curves: layer -> index of its point."""
        return dict(zip(self._log_ratios, self.points([parameters])[0].tolist(), strict=True))

    def points(self, trials: Sequence[Mapping[str, float]]) -> NDArray[np.int64]:
        """Snap the ratios of several trials, shape (trials, layers); O(log points) each."""
        columns = [
            np.searchsorted(
                (logs[:-1] + logs[1:]) / 2, np.log([parameters[RATIO_PREFIX + name] for parameters in trials])
            )
            for name, logs in self._log_ratios.items()
        ]
        return np.array(columns, dtype=np.int64).reshape(len(columns), len(trials)).T

    def parameters(self, plan: Mapping[str, int]) -> dict[str, float]:
        """Return the ratios of a plan; `plan` of them is the plan again."""
        found = {}
        for name, distribution in self.distributions.items():
            layer = name.removeprefix(RATIO_PREFIX)
            ratio = float(np.exp(self._log_ratios[layer][plan.get(layer, 0)]))
            found[name] = min(max(ratio, distribution.low), distribution.high)
        return found

    def seeds(self) -> list[dict[str, int]]:
        """Plans with one level count for all layers, loose to tight, equal ones once."""
        plans: list[dict[str, int]] = []
        for levels in SEED_LEVELS:
            plan = {
                name: next((i for i, count in enumerate(curve.levels) if count <= levels), len(curve.levels) - 1)
                for name, curve in self.curves.items()
            }
            if plan not in plans:
                plans.append(plan)
        return plans
