"""The constraint that Optuna gets, out of a predicate that only says yes or no.

The predicate is a function of two numbers, so it can be asked about metrics that were never measured: on the line
from the original metric through the measured one there is an edge where yes turns into no. How far the measured
metric lies inside or outside that edge, on a logarithmic scale, is what a sampler can learn from.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from autonuq.records import MARGIN_LIMIT, verdict_alone

_TOLERANCE = 1e-6
_GRID = 32  # points on either side of the edge at which a single edge is checked


def margin(is_satisfied: Callable[[float, float], bool], original: float, new: float) -> float:
    """Return log(drop / allowed drop): negative where satisfied, positive where not.

    Parameters
    ----------
    is_satisfied : callable
        (original metric, new metric) -> bool. It may raise for metrics that cannot be.
    original, new : float
        Metrics; the metric may be one that rises or one that falls.

    Returns
    -------
    float in [-7, 7]
        -1 or 1, the verdict alone, where no single edge can be found.

    Notes
    -----
    **Cost**: about 90 calls of the predicate, none of the network.
    **Source**: own derivation. With f(t) = is_satisfied(original, original + t (new - original)) and t* the largest t
    with f(t), the margin is log(1 / t*); for "drop < limit" it equals log(drop / limit) exactly.
    """
    verdict = bool(is_satisfied(original, new))
    if new == original:
        return -MARGIN_LIMIT if verdict else verdict_alone(verdict)

    def holds(log_t: float) -> bool:
        return bool(is_satisfied(original, original + math.exp(log_t) * (new - original)))

    try:
        edge = _edge(holds, verdict)
        single = _is_constant(holds, verdict) if edge is None else _is_single(holds, edge)
    except (Exception, SystemExit):  # a predicate may refuse invented metrics; its verdict on the real one stands
        return verdict_alone(verdict)
    if not single:
        return verdict_alone(verdict)
    if edge is None:
        return -MARGIN_LIMIT if verdict else MARGIN_LIMIT
    return max(-MARGIN_LIMIT, min(MARGIN_LIMIT, -edge))


def _edge(holds: Callable[[float], bool], verdict: bool) -> float | None:
    """Return log t at which the predicate turns, or None if it does not within the limit."""
    low, high = (0.0, MARGIN_LIMIT) if verdict else (-MARGIN_LIMIT, 0.0)
    if holds(MARGIN_LIMIT if verdict else -MARGIN_LIMIT) == verdict:
        return None
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _is_single(holds: Callable[[float], bool], edge: float) -> bool:
    """Check on a grid that the predicate holds below the edge and fails above it."""
    step = MARGIN_LIMIT / _GRID
    below = (edge - step * index for index in range(1, _GRID + 1))
    above = (edge + step * index for index in range(1, _GRID + 1))
    return all(map(holds, below)) and not any(map(holds, above))


def _is_constant(holds: Callable[[float], bool], verdict: bool) -> bool:
    """Check on a grid that the verdict is the same up to the limit."""
    step = MARGIN_LIMIT / _GRID if verdict else -MARGIN_LIMIT / _GRID
    return all(holds(step * index) == verdict for index in range(1, _GRID + 1))
