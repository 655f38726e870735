"""Whether the data can tell what the limit asks of them, said before hours are spent."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

from autonuq.errors import EvaluatorError
from autonuq.evaluate.evaluator import is_satisfied, loss_unit
from autonuq.evaluate.samples import Score
from autonuq.evaluate.verdict import margin
from autonuq.records import MARGIN_LIMIT, is_verdict_alone

CHANGED = 3.4
"""Samples that score otherwise for each one that is lost, near the limit (measured, see `studies/LOG.md`)."""
WIDEST = 0.5
"""Of the limit: what luck may hide with the study's confidence before it is worth a warning."""
_PROBED = 1e-3  # of the metric


def allowed_loss(evaluator: Any, original: float) -> float | None:
    """Return the loss at which the predicate turns, in the metric's unit; None if it shows no single edge.

    Notes
    -----
    **Cost**: some 200 calls of `is_satisfied`, none of the network.
    """

    def holds(before: float, after: float) -> bool:
        return is_satisfied(evaluator, before, after)

    found = [_edge(holds, original, sign * _PROBED * (abs(original) or 1.0)) for sign in (-1, 1)]
    return min((loss for loss in found if loss is not None), default=None)


def _edge(holds: Callable[[float, float], bool], original: float, step: float) -> float | None:
    try:
        found = margin(holds, original, original + step)
    except EvaluatorError:
        return None
    return None if abs(found) >= MARGIN_LIMIT or is_verdict_alone(found) else abs(step) / math.exp(found)


def resolution_warning(evaluator: Any, original: float, samples: int, confidence: float) -> str:
    """Say that the limit is below what so many samples can tell from luck, and how many would do; empty if they can.

    Parameters
    ----------
    original : float
        Of a plain number nothing can be said.
    samples : int
        Of a scoring pass.

    Notes
    -----
    Of samples that are right or wrong, a network that loses a share A of n changes some CHANGED A n, so that its loss
    has the error sqrt(CHANGED A / n); beside the original network's own decisions none is gained, and it changes A n.
    """
    allowed = allowed_loss(evaluator, original) if isinstance(original, Score) else None
    if not isinstance(original, Score) or original.samples.dtype != bool or allowed is None or confidence <= 0:
        return ""
    quantile = NormalDist().inv_cdf(max(confidence, 0.5))
    changed = 1.0 if getattr(evaluator, "compares", False) is True else CHANGED
    needed = math.ceil(changed * (quantile / WIDEST) ** 2 / allowed)
    if samples >= needed:
        return ""
    unit, count = loss_unit(evaluator), allowed * samples
    return (
        f"{samples} {unit.samples} cannot tell a loss of {unit.say(allowed, None)}, which is {count:.2g} of them, from "
        f"luck: the winner will be far inside the limit; {needed:,} {unit.samples} would do"
    )
